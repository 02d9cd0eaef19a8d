"""``python -m learners base``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, cast, get_args

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from learners.deepfm.model import DeepFMConfig, DivergenceError
from learners.training import options
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
    examples: options.Examples,
    out: options.Out,
    spec: options.Spec = "",
    since: options.Since = "",
    until: options.Until = "",
    validation_share: options.ValidationShare = 0.1,
    holdout_share: options.HoldoutShare = 0.1,
    epochs: options.Epochs = _FIT.epochs,
    patience: options.Patience = _FIT.patience,
    order: options.RowOrder = _FIT.order,
    batch_rows: options.BatchRows = _FIT.batch_rows,
    warmup_steps: options.WarmupSteps = _RATES.warmup_steps,
    plateau_steps: options.PlateauSteps = -1,
    half_life_steps: options.HalfLifeSteps = _RATES.half_life_steps,
    negative_rate: options.NegativeRate = 1.0,
    click_window_s: options.ClickWindow = _BASE.click_window_s,
    conversion_horizon_s: options.ConversionHorizon = _BASE.conversion_horizon_s,
    conversion_delay_median_s: options.ConversionDelayMedian = _BASE.conversion_delay_median_s,
    conversion_delay_sigma: options.ConversionDelaySigma = _BASE.conversion_delay_sigma,
    checkpoints: options.CheckpointFolder = "",
    checkpoint_steps: options.CheckpointSteps = _FIT.checkpoint_steps,
    resume: options.Resume = False,
    device: options.Device = "auto",
    segment: options.Segment = None,
    values: options.Values = None,
    model: options.ModelFile = None,
    seed: options.Seed = None,
    new_log: options.NewLog = False,
    as_json: options.AsJson = False,
) -> None:
    """Train a base model, report on the newest examples, write it as snapshot version 1.

    In the folder of a stream that is in use it waits: the learner goes over to it at its next start, learns what came
    after the archive's end, and publishes that as its next version. With --until the base ends before the first event
    of a later day, in each partition.

    Under torchrun all processes train it together; the first one reports and writes.
    """
    with _failures_told():
        model_config = _model_config(model, seed)
        fit = FitConfig(
            batch_rows=batch_rows, epochs=epochs, order=_order(order), patience=patience, seed=model_config.seed,
            schedule=_schedule(warmup_steps, plateau_steps, half_life_steps), checkpoint_steps=checkpoint_steps,
            sampling=NegativeSampling(negative_rate=negative_rate),
        )  # fmt: skip
        config = BaseConfig(
            validation_share=validation_share, holdout_share=holdout_share, fit=fit, click_window_s=click_window_s,
            conversion_horizon_s=conversion_horizon_s, conversion_delay_median_s=conversion_delay_median_s,
            conversion_delay_sigma=conversion_delay_sigma,
        )  # fmt: skip
        job = BaseJob(
            examples=examples, out=out, spec=spec, since=since, until=until, config=config, model_config=model_config,
            checkpoints=checkpoints, resume=resume, device=device, segments=segment or (), values=_values(values),
            new_log=new_log,
        )  # fmt: skip
        _run(job, as_json=as_json)


@contextmanager
def _failures_told() -> Iterator[None]:
    """What fails is told in a line, with an exit code that says whose fault it is."""
    try:
        yield
    except (DivergenceError, ReplicaError) as error:
        _stop(str(error), _FAILED)
    except OSError as error:
        where = f"{error.filename}: {error.strerror}" if error.strerror and error.filename else str(error)
        _stop(f"{where}: it cannot be read or written. Give another path.", _BAD_USAGE)
    except ImportError as error:
        _stop(f"{error}: a URL of that kind cannot be read without it. Install it, or give a folder.", _BAD_USAGE)
    except MemoryError as error:
        _stop(f"not enough memory: {error}. Lower --batch-rows or the model's sizes, or archive less.", _BAD_USAGE)
    except ValueError as error:
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


def _schedule(warmup_steps: int, plateau_steps: int, half_life_steps: float) -> RateSchedule:
    """Of the options, where a negative plateau never ends."""
    plateau = None if plateau_steps < 0 else plateau_steps
    return RateSchedule(warmup_steps=warmup_steps, plateau_steps=plateau, half_life_steps=half_life_steps)


def _order(order: str) -> Order:
    for known in get_args(Order):
        if order == known:
            return cast(Order, known)
    raise ValueError(f"--order {order} must be time or shuffled: rows have no other order. Use one of the two.")


def _values(path: Path | None) -> dict[str, list[Any]]:
    if path is None:
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error!s:.200}): segments would have no names. Correct it.") from error
    if not isinstance(found, dict) or not all(isinstance(of_field, list) for of_field in found.values()):
        raise ValueError(f'{path} must hold an object of lists, such as {{"video_type": ["NORMAL", "AD"]}}.')
    return found


def _stop(message: str, code: int) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(code)
