"""`python -m calibration`: measure, fit and apply calibration on files of labels and predictions."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from calibration import comparison
from calibration.bins import BinState
from calibration.curve import CalibrationMap
from calibration.examples_file import CLICK_WINDOW_S
from calibration.isotonic import PRIOR_WEIGHT, fit_map
from calibration.logistic import sigmoid
from calibration.picture import draw
from calibration.reliability import (
    ReliabilityBin,
    expected_calibration_error,
    observed_over_expected,
    reliability_table,
)
from calibration.tables import Predictions, read_predictions

app = typer.Typer(
    help="Measure, fit and apply the calibration of click probabilities.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # they show local variables: rows of people
)

Rows = Annotated[
    Path,
    typer.Argument(help=".csv, .npz or .parquet with columns label and logit or p; or examples, a .parquet or folder."),
]
Slices = Annotated[
    list[str] | None,
    typer.Option("--slice", help="A column of a Parquet file: tab, ids[3], dense[1]:0.5,2 (cut at edges). Repeatable."),
]
Window = Annotated[float, typer.Option(min=0, help="Of examples: younger exposures are left out, clicks may come.")]
Picture = Annotated[Path | None, typer.Option(help="Picture to write, .png or .svg (needs matplotlib).")]
MapFile = Annotated[Path, typer.Option("--map", help="A map that `fit` wrote.")]
Bins = Annotated[int, typer.Option(min=1, help="Rows of the table, by quantile of p.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")]


@app.command()
def report(
    file: Rows,
    bins: Bins = 10,
    slices: Slices = None,
    click_window_s: Window = CLICK_WINDOW_S,
    out: Picture = None,
    as_json: AsJson = False,
) -> None:
    """Print O/E, expected calibration error and the reliability table of p (of the logit where there is no p)."""
    with _bad_usage():
        rows = _labelled(file, slices, click_window_s)
        labels, p = rows.labels(), rows.probabilities()
        table = reliability_table(labels, p, bins)
        ratio, error = observed_over_expected(labels, p), expected_calibration_error(labels, p, bins)
        raw = p if rows.logit is None else sigmoid(rows.logit)
        found = comparison.compare(labels, raw, p, rows.slices, bins)
        if out is not None:
            draw(found, out)
    if as_json:
        by_slice = {"slices": found.as_json()["slices"]} if slices else {}
        typer.echo(json.dumps(_report_json(len(p), ratio, error, table) | by_slice))
        return
    typer.echo(f"rows {len(p)}  O/E {ratio:.4f}  ECE {error:.5f}")
    typer.echo(f"{'rows':>10} {'mean p':>10} {'observed':>10} {'O/E':>8}")
    for count, mean_p, rate, of_expected in table:
        typer.echo(f"{count:>10} {mean_p:>10.5f} {rate:>10.5f} {of_expected:>8.4f}")
    for name, lines in found.slices.items():
        typer.echo(f"\nby {name}")
        for line in lines:
            ratio = line.observed_over_expected_after
            typer.echo(
                f"{line.rows:>10} {line.mean_after:>10.5f} {line.observed_rate:>10.5f} {ratio:>8.4f}  {line.name}"
            )


@app.command()
def compare(
    file: Rows,
    map_file: Annotated[
        Path | None, typer.Option("--map", help="A map that `fit` wrote; left out: the served p of the file.")
    ] = None,
    slices: Slices = None,
    bins: Bins = 10,
    click_window_s: Window = CLICK_WINDOW_S,
    out: Picture = None,
    as_json: AsJson = False,
) -> None:
    """Show the raw logit's probability before, and the calibrated one after: by decile and by slice."""
    with _bad_usage():
        rows = _labelled(file, slices, click_window_s)
        if rows.logit is None or (rows.p is None and map_file is None):
            raise ValueError(
                f"{file} needs the column 'logit', and 'p' or --map: there is no before and after. Add them."
            )
        after = rows.probabilities() if map_file is None else _map(map_file).apply(rows.logit).astype(np.float64)
        found = comparison.compare(rows.labels(), sigmoid(rows.logit), after, rows.slices, bins)
        if out is not None:
            draw(found, out)
    typer.echo(json.dumps(found.as_json()) if as_json else "\n".join(found.lines()))


@app.command()
def fit(
    file: Rows,
    out: Annotated[Path, typer.Option(help="Where to write the map.")],
    prior_weight: Annotated[float, typer.Option(help="Pseudo-rows per unit of log-odds.")] = PRIOR_WEIGHT,
    as_json: AsJson = False,
) -> None:
    """Fit a calibration map to labelled predictions and write it."""
    with _bad_usage():
        rows = _labelled(file)
        state = BinState()
        state.add(rows.logits().astype(np.float32), rows.labels())
        curve = fit_map(state, prior_weight=prior_weight, version=1)
        before = observed_over_expected(rows.labels(), rows.probabilities())
        after = observed_over_expected(rows.labels(), curve.apply(rows.logits()))
        out.write_bytes(curve.to_bytes())
    result = {
        "rows": len(rows.labels()),
        "knots": len(curve.logits),
        "observed_over_expected_before": _number(before),
        "observed_over_expected_after": _number(after),
        "map": str(out),
    }
    line = f"rows {len(rows.labels())}  knots {len(curve.logits)}  O/E {before:.4f} -> {after:.4f}  map {out}"
    typer.echo(json.dumps(result) if as_json else line)


@app.command()
def apply(
    file: Rows,
    map_file: MapFile,
    out: Annotated[Path | None, typer.Option(help="CSV to write; standard output when left out.")] = None,
) -> None:
    """Write the calibrated probability of each row as CSV: logit,p."""
    with _bad_usage():
        curve = _map(map_file)
        logits = read_predictions(file).logits()
        target = sys.stdout if out is None else out.open("w", newline="", encoding="utf-8")
        try:
            writer = csv.writer(target, lineterminator="\n")
            writer.writerow(["logit", "p"])
            writer.writerows(zip(logits.tolist(), map(str, curve.apply(logits)), strict=True))
        finally:
            if out is not None:
                target.close()


def _labelled(file: Path, slices: list[str] | None = None, click_window_s: float = CLICK_WINDOW_S) -> Predictions:
    """Rows that hold something to measure."""
    rows = read_predictions(file, slices or (), click_window_s=click_window_s)
    if not len(rows.labels()):
        raise ValueError(f"{file} has 0 rows: there is nothing to measure. Give a file with labels and predictions.")
    return rows


def _map(path: Path) -> CalibrationMap:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. Write one with `python -m calibration fit`.")
    return CalibrationMap.from_bytes(path.read_bytes())


@contextmanager
def _bad_usage() -> Iterator[None]:
    """A file or option that cannot be used: its message on stderr, exit 2."""
    try:
        yield
    except (OSError, ValueError) as error:
        told = str(error)
        if isinstance(error, OSError) and error.strerror:
            told = f"{error.filename}: {error.strerror}: it cannot be read or written. Give another path."
        typer.echo(f"calibration: {told}", err=True)
        raise typer.Exit(2) from error


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def _report_json(rows: int, ratio: float, error: float, table: list[ReliabilityBin]) -> dict[str, object]:
    return {
        "rows": rows,
        "observed_over_expected": _number(ratio),
        "expected_calibration_error": _number(error),
        "table": [{name: _number(value) for name, value in row._asdict().items()} for row in table],
    }


if __name__ == "__main__":
    app(prog_name="python -m calibration")
