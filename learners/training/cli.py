"""``python -m learners base``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast, get_args

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from learners.deepfm.model import DeepFMConfig, DivergenceError
from learners.training.base import BaseConfig
from learners.training.base import Progress as Report
from learners.training.distributed import process_group
from learners.training.fit import FitConfig, Order
from learners.training.job import BaseJob, ReplicaError, run
from learners.training.model_file import read_model_config
from learners.training.sampling import NegativeSampling
from learners.training.schedule import RateSchedule

_FAILED, _BAD_USAGE = 1, 2
_BASE, _FIT, _RATES = BaseConfig(), FitConfig(), RateSchedule()


def base(
    examples: Annotated[str, typer.Option(help="Archived examples: a parquet file, a folder of them, an fsspec URL.")],
    out: Annotated[str, typer.Option(help="Where the snapshot goes: the directory or fsspec URL of the snapshots.")],
    spec: Annotated[str, typer.Option(help="Feature spec, a name or a TOML file; default: the archive's.")] = "",
    since: Annotated[str, typer.Option(help="First local day (YYYY-MM-DD) of the events to take.")] = "",
    until: Annotated[str, typer.Option(help="Last such day.")] = "",
    validation_share: Annotated[float, typer.Option(help="Share of the rows, before the holdout, to stop by.")] = 0.1,
    holdout_share: Annotated[float, typer.Option(help="Newest share, reported on before it is learned.")] = 0.1,
    epochs: Annotated[int, typer.Option(help="Passes over the train rows, with early stopping.")] = _FIT.epochs,
    patience: Annotated[int, typer.Option(help="Epochs without a lower validation loss until then.")] = _FIT.patience,
    order: Annotated[str, typer.Option(help="time or shuffled.")] = _FIT.order,
    batch_rows: Annotated[int, typer.Option(help="Rows of a step on the train rows.")] = _FIT.batch_rows,
    warmup_steps: Annotated[int, typer.Option(help="Steps until the rates are whole.")] = _RATES.warmup_steps,
    plateau_steps: Annotated[int, typer.Option(help="Steps at whole rates before they decay; -1: for ever.")] = -1,
    half_life_steps: Annotated[float, typer.Option(help="Steps in which they then halve.")] = _RATES.half_life_steps,
    negative_rate: Annotated[float, typer.Option(help="Share of the non-clicks to learn, weighing 1 / share.")] = 1.0,
    click_window_s: Annotated[
        float,
        typer.Option(
            help="Age at which a display counts as mature: none younger is judged by.",
            envvar="MILLSTREAM_CLICK_WINDOW_S",
        ),
    ] = _BASE.click_window_s,
    conversion_horizon_s: Annotated[
        float, typer.Option(help="No click converts later.", envvar="MILLSTREAM_CONVERSION_HORIZON_S")
    ] = _BASE.conversion_horizon_s,
    conversion_delay_median_s: Annotated[
        float,
        typer.Option(
            help="Believed of conversions that come later than the archive.",
            envvar="MILLSTREAM_CONVERSION_DELAY_MEDIAN_S",
        ),
    ] = _BASE.conversion_delay_median_s,
    conversion_delay_sigma: Annotated[
        float, typer.Option(help="Of its logarithm, log-normal.", envvar="MILLSTREAM_CONVERSION_DELAY_SIGMA")
    ] = _BASE.conversion_delay_sigma,
    checkpoints: Annotated[str, typer.Option(help="Directory or URL for checkpoints; the last three stay.")] = "",
    checkpoint_steps: Annotated[int, typer.Option(help="Steps from one to the next.")] = _FIT.checkpoint_steps,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    device: Annotated[str, typer.Option(help="Of the dense part: auto (a GPU if torch sees one), cpu, cuda.")] = "auto",
    segment: Annotated[list[str] | None, typer.Option(help="Segments of the report: user, hour, columns.")] = None,
    values: Annotated[Path | None, typer.Option(help="JSON: field to its raw values, to name them.")] = None,
    model: Annotated[Path | None, typer.Option(help="TOML of model settings: hidden, heads, admit_after, ...")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of start weights, shuffling, left-out non-clicks; default: the model's, 0.")
    ] = None,
    new_log: Annotated[
        bool, typer.Option("--new-log", help="The stream will write another log than the archived one.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Train a base model, report on the newest examples, write it as snapshot version 1.

    In the folder of a stream that is in use it waits: the learner goes over to it at its next start, learns what came
    after the archive's end, and publishes that as its next version. With --until the base ends before the first event
    of a later day, in each partition.

    Under torchrun all processes train it together; the first one reports and writes.
    """
    try:
        model_config = _model_config(model, seed)
        schedule = RateSchedule(
            warmup_steps=warmup_steps,
            plateau_steps=None if plateau_steps < 0 else plateau_steps,
            half_life_steps=half_life_steps,
        )
        fit = FitConfig(
            batch_rows=batch_rows,
            epochs=epochs,
            order=_order(order),
            patience=patience,
            seed=model_config.seed,
            schedule=schedule,
            sampling=NegativeSampling(negative_rate=negative_rate),
            checkpoint_steps=checkpoint_steps,
        )
        job = BaseJob(
            examples=examples,
            out=out,
            spec=spec,
            since=since,
            until=until,
            config=BaseConfig(
                validation_share=validation_share,
                holdout_share=holdout_share,
                fit=fit,
                click_window_s=click_window_s,
                conversion_horizon_s=conversion_horizon_s,
                conversion_delay_median_s=conversion_delay_median_s,
                conversion_delay_sigma=conversion_delay_sigma,
            ),
            model_config=model_config,
            checkpoints=checkpoints,
            resume=resume,
            device=device,
            segments=segment or (),
            values=_values(values),
            new_log=new_log,
        )
        _run(job, as_json=as_json)
    except (DivergenceError, ReplicaError) as error:
        _stop(str(error), _FAILED)
    except (ValueError, OSError) as error:
        _stop(str(error), _BAD_USAGE)


def _run(job: BaseJob, *, as_json: bool) -> None:
    with process_group() as group, _progress_bar(shown=group.rank == 0) as report:
        trained = run(job, group, report)
    if trained is None:
        return
    for line in [json.dumps(trained.plain())] if as_json else trained.lines():
        typer.echo(line)


@contextmanager
def _progress_bar(*, shown: bool) -> Iterator[Report]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown) as bar:
        task = bar.add_task("rows learned", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _model_config(path: Path | None, seed: int | None) -> DeepFMConfig:
    config = DeepFMConfig() if path is None else read_model_config(path)
    return config if seed is None else replace(config, seed=seed)


def _order(order: str) -> Order:
    for known in get_args(Order):
        if order == known:
            return cast(Order, known)
    raise ValueError(f"--order {order} must be time or shuffled: rows have no other order. Use one of the two.")


def _values(path: Path | None) -> dict[str, list[Any]]:
    if path is None:
        return {}
    found = json.loads(path.read_bytes())
    if not isinstance(found, dict) or not all(isinstance(of_field, list) for of_field in found.values()):
        raise ValueError(f'{path} must hold an object of lists, such as {{"video_type": ["NORMAL", "AD"]}}.')
    return found


def _stop(message: str, code: int) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(code)
