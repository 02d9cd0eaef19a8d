"""``python -m learners``: train a base snapshot, look into a snapshot."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast, get_args

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from learners.archive import read_examples
from learners.base import Base, BaseConfig, Order, train_base
from learners.deepfm import DeepFMConfig, DivergenceError
from learners.metrics import Quality
from learners.shape import ModelShape
from learners.snapshot import (
    Snapshot,
    SnapshotError,
    Written,
    describe,
    load_snapshot,
    read_manifest,
    versions,
    write_snapshot,
)
from learners.spec import load_spec

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Train a base model and inspect snapshots.")

_FAILED, _BAD_USAGE = 1, 2
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


@app.command()
def base(
    examples: Annotated[Path, typer.Option(help="Archived examples, a parquet file.", exists=True, dir_okay=False)],
    out: Annotated[str, typer.Option(help="Where the snapshot goes: a directory or an fsspec URL without snapshots.")],
    spec: Annotated[str, typer.Option(help="Feature spec, a name or a TOML file; default: the archive's.")] = "",
    epochs: Annotated[int, typer.Option(help="Passes over the examples, with early stopping.")] = 1,
    order: Annotated[str, typer.Option(help="time or shuffled.")] = "time",
    batch_rows: Annotated[int, typer.Option(help="Rows of a learning step.")] = BaseConfig().batch_rows,
    holdout_share: Annotated[float, typer.Option(help="Newest share, judged before it is learned.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Of the start weights and the shuffling.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Train a base model, report its quality on the newest examples, write it as snapshot version 1."""
    if held := versions(out):
        _stop(
            f"{out} already holds version {held[0]}: a base of version 1 would be taken for older. Give an empty "
            "directory.",
            _BAD_USAGE,
        )
    try:
        archived = read_examples(examples)
        known = load_spec(spec or archived.spec_name)
        archived = read_examples(examples, spec_hash=known.hash)
        config = BaseConfig(
            epochs=epochs, order=_order(order), batch_rows=batch_rows, holdout_share=holdout_share, seed=seed
        )
        with _progress_bar() as bar:
            task = bar.add_task("rows learned", total=None)
            trained = train_base(
                archived,
                ModelShape.of(known),
                model_config=DeepFMConfig(seed=seed),
                config=config,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
    except DivergenceError as error:
        _stop(str(error), _FAILED)
    except (ValueError, OSError) as error:
        _stop(str(error), _BAD_USAGE)
    written = write_snapshot(out, trained.snapshot())
    _print_base(trained, written, as_json=as_json)


@app.command()
def inspect(
    snapshot: Annotated[str, typer.Argument(help="A snapshot's directory or URL, ending in v000000000042.")],
    as_json: AsJson = False,
) -> None:
    """Check a snapshot's checksums and print what it holds."""
    try:
        held = load_snapshot(snapshot)
        facts = describe(read_manifest(snapshot)) | {"weights": _weights_of(held)}
    except SnapshotError as error:
        _stop(str(error), _FAILED)
    if as_json:
        typer.echo(json.dumps(facts))
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            typer.echo(name)
            for key, detail in value.items():
                typer.echo(f"  {key:22} {detail}")
        else:
            typer.echo(f"{name:24} {value}")


def _order(order: str) -> Order:
    for known in get_args(Order):
        if order == known:
            return cast(Order, known)
    raise ValueError(f"--order {order} must be time or shuffled: rows have no other order. Use one of the two.")


def _weights_of(held: Snapshot) -> dict[str, Any]:
    values = held.state["table.values"]
    model = held.model()
    return {
        "learned_rows": len(values),
        "learned_rows_share": round(len(values) / held.config.table_rows, 6),
        "mean_vector_norm": _mean(np.linalg.norm(values[:, :-1], axis=1)),
        "mean_absolute_weight": _mean(np.abs(values[:, -1])),
        "dense_parameters": sum(array.size for name, array in held.state.items() if name.startswith("dense.")),
        "steps": int(held.state["adam.steps"][0]),
        "sha256": model.weights_sha256(),
    }


def _mean(values: np.ndarray[Any, Any]) -> float | None:
    return round(float(values.mean()), 6) if len(values) else None


def _print_base(trained: Base, written: Written, *, as_json: bool) -> None:
    if as_json:
        report = {
            "url": written.url,
            "sha256": written.sha256,
            "rows": trained.rows,
            "watermark_ms": trained.watermark_ms,
            "holdout": _plain(trained.holdout),
            "epochs": [_plain(epoch) for epoch in trained.epochs],
        }
        typer.echo(json.dumps(report))
        return
    typer.echo(f"{'rows':>10} {'AUC':>7} {'log loss':>9} {'NE':>7} {'O/E':>7}")
    for name, of in (*((f"after epoch {i}", q) for i, q in enumerate(trained.epochs, 1)), ("holdout", trained.holdout)):
        figures = f"{of.rows:10d} {of.auc:7.4f} {of.log_loss:9.4f} {of.ne:7.4f} {of.observed_over_expected:7.3f}"
        typer.echo(f"{figures}  {name}")
    typer.echo(f"{trained.rows} rows learned; snapshot {written.url}")


def _plain(of: Quality) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in asdict(of).items()}


def _progress_bar() -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


def _stop(message: str, code: int) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(code)


if __name__ == "__main__":
    app()
