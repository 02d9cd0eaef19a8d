"""``python -m replay``: replay historical logs or the simulated marketplace, live or in one process."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from learners.deepfm.model import DivergenceError
from learners.features.spec import FeatureSpec, load_spec
from learners.models.losses import LOSSES
from learners.models.registry import REGISTRY, Entry
from learners.snapshots.manifest import SnapshotError
from learners.snapshots.snapshot import newest_snapshot
from replay import backtest as in_process
from replay.base import base_snapshot, read_base_examples, write_base
from replay.compare import Compared, chosen, comparison_json, comparison_table
from replay.compare import compare as compare_learners
from replay.datasets import NAMES, open_dataset
from replay.demo import DEMO_PARTITIONS, DemoOptions
from replay.demo import run as run_demo
from replay.errors import PlaybackError, ReplayError
from replay.example_stream import collect_stream
from replay.live import play_and_report
from replay.player import PlayerOptions
from replay.progress import Progress
from replay.report import Report, facts_table, quality_table
from replay.scenario import Scenario, base_and_online_days
from replay.terminal import BAD_USAGE, FAILED, awaited, console, make_folder, print_json, stop
from replay.truth_cli import truth
from stream.learn.config import LearningConfig
from stream.servers.setting_names import say_unknown_settings
from stream.servers.settings import StreamSettings

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
app.callback()(say_unknown_settings)

Dataset = Annotated[str, typer.Option(help=f"One of {', '.join(NAMES)}.")]
Data = Annotated[Path | None, typer.Option(help="Folder of the dataset's files; the marketplace needs none.")]
BaseDays = Annotated[int | None, typer.Option(help="Days for the base model; default: half of the days, 3 at most.")]
OnlineDays = Annotated[
    int | None, typer.Option(help="Days to replay after them; default: up to 3 of those that follow.")
]
TickS = Annotated[float, typer.Option(help="Requests of so much event time are scored together.")]
LearnIntervalS = Annotated[float, typer.Option(help="A learn step at least so often, in event time.")]
MaxLagS = Annotated[float, typer.Option(help="Bounded lead of the player over the workers, in event time.")]
Speed = Annotated[str, typer.Option(help="Times real time, or max: as fast as the lockstep allows.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")]

app.command()(truth)

DEFAULTS = PlayerOptions()
BACKTEST_DEFAULTS = in_process.BacktestOptions()


@app.command()
def backtest(
    dataset: Dataset,
    data: Data = None,
    base_days: BaseDays = None,
    online_days: OnlineDays = None,
    tick_s: TickS = BACKTEST_DEFAULTS.tick_s,
    learn_interval_s: LearnIntervalS = BACKTEST_DEFAULTS.learn_interval_s,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run the loop in one process without a broker, deterministically: two runs print the same hashes."""
    progress = Progress(quiet=quiet)
    try:
        scenario = open_dataset(dataset, data)
        base, online = base_and_online_days(scenario, base_days, online_days)
        options = in_process.BacktestOptions(tick_s=tick_s, learn_interval_s=learn_interval_s)
        found = _backtest(scenario, base, online, options, progress)
    except (ReplayError, ValueError, OSError) as error:
        stop(error, BAD_USAGE)
    if as_json:
        print_json({**found.report.to_json(), "sha256": found.sha256})
        return
    console().print(quality_table(found.report, f"{dataset}: backtest, progressive"))
    for what, digest in found.sha256.items():
        typer.echo(f"sha256 of {what}: {digest}")


@app.command()
def compare(
    dataset: Dataset,
    data: Data = None,
    base_days: BaseDays = None,
    online_days: OnlineDays = None,
    learners: Annotated[
        str | None, typer.Option(help=f"Comma-separated, of {', '.join(REGISTRY)}; default: all that are installed.")
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            "--losses",
            help=f"Comma-separated, of {', '.join(LOSSES)}: each learner by each way to learn from late clicks.",
        ),
    ] = None,
    tick_s: TickS = BACKTEST_DEFAULTS.tick_s,
    learn_interval_s: LearnIntervalS = BACKTEST_DEFAULTS.learn_interval_s,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Drive every learner over the same stream; each impression is predicted before its outcome is learned."""
    progress = Progress(quiet=quiet)
    try:
        names = learners.split(",") if learners is not None else ["deepfm"] if loss is not None else None
        named = chosen(names)
        loss_names = [name.strip() for name in loss.split(",")] if loss is not None else []
        scenario = open_dataset(dataset, data)
        base, online = base_and_online_days(scenario, base_days, online_days)
        options = in_process.BacktestOptions(tick_s=tick_s, learn_interval_s=learn_interval_s)
        lines = _compare(scenario, base, online, options, named, loss_names, names is None, progress)
    except (ReplayError, ValueError, OSError) as error:
        stop(error, BAD_USAGE)
    except (ImportError, DivergenceError) as error:
        stop(error, FAILED)
    if as_json:
        print_json(comparison_json(lines, dataset))
        return
    console(width=160).print(comparison_table(lines, f"{dataset}: all learners on one stream, progressive"))


@app.command()
def base(
    dataset: Dataset,
    out: Annotated[Path, typer.Option(help="Folder for examples.parquet and sessions.npz.")],
    data: Data = None,
    base_days: BaseDays = None,
    quiet: Quiet = False,
) -> None:
    """Write what the base days leave behind: examples for `python -m learners base`, sessions for Redis."""
    progress = Progress(quiet=quiet)
    try:
        scenario = open_dataset(dataset, data)
        make_folder(out)
        days, _ = base_and_online_days(scenario, base_days, None)
        spec = load_spec(scenario.spec_name)
        span_ms = scenario.days().span_ms(0, days)
        with progress.counting("base days", scenario.count(*span_ms)) as advance:
            collected = in_process.collect_base(scenario, spec, span_ms, advance)
        written = write_base(collected, spec, out)
    except (ReplayError, ValueError, OSError) as error:
        stop(error, BAD_USAGE)
    for path in written:
        typer.echo(path)


@app.command()
def run(
    dataset: Dataset,
    snapshots: Annotated[
        Path, typer.Option(help="Folder of the snapshots; the newest at the start is the frozen base.")
    ],
    data: Data = None,
    base_days: BaseDays = None,
    online_days: OnlineDays = None,
    speed: Speed = "max",
    max_lag_s: MaxLagS = DEFAULTS.max_lag_s,
    tick_s: TickS = DEFAULTS.tick_s,
    serving: Annotated[str, typer.Option(help="URL of the running serving.")] = "http://127.0.0.1:8080",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Play the days after the base against running workers and serving (started with --clock log), then report."""
    try:
        scenario = open_dataset(dataset, data)
        days, online = base_and_online_days(scenario, base_days, online_days)
        newest = newest_snapshot(str(snapshots), spec_hash=load_spec(scenario.spec_name).hash)
        if newest is None:
            raise PlaybackError(f"{snapshots} holds no snapshot: there is nothing to compare with. Run learners base.")
        options = PlayerOptions(speed=_speed(speed), max_lag_s=max_lag_s, tick_s=tick_s)
        settings = StreamSettings()
    except (ReplayError, SnapshotError, ValueError, OSError) as error:
        stop(error, BAD_USAGE)
    span_ms = scenario.days().span_ms(days, online)
    progress = Progress(quiet=quiet)
    found = awaited(play_and_report(scenario, span_ms, settings, serving, newest[1].model(), options, progress))
    _print_live(found, dataset, as_json)


@app.command()
def demo(
    dataset: Dataset = "marketplace",
    data: Data = None,
    base_days: BaseDays = None,
    online_days: OnlineDays = None,
    max_lag_s: MaxLagS = DEFAULTS.max_lag_s,
    tick_s: TickS = DEFAULTS.tick_s,
    port: Annotated[int | None, typer.Option(help="Port of the live page; default: a free one.")] = None,
    partitions: Annotated[int, typer.Option(min=1, help="Of every input topic.")] = DEMO_PARTITIONS,
    work_dir: Annotated[
        Path | None, typer.Option(help="Keep snapshots and logs here; default: a temporary one.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start everything on this machine, replay a log through it, print the summary, stop everything."""
    progress = Progress()
    try:
        scenario = open_dataset(dataset, data)
        days, online = base_and_online_days(scenario, base_days, online_days)
        player = PlayerOptions(max_lag_s=max_lag_s, tick_s=tick_s)
    except (ReplayError, ValueError, OSError) as error:
        stop(error, BAD_USAGE)
    folder = work_dir or Path(tempfile.mkdtemp(prefix="millstream-demo-"))
    options = DemoOptions(base_days=days, online_days=online, work_dir=folder, port=port, partitions=partitions)
    try:
        found = awaited(run_demo(scenario, options, player, progress))
    except typer.Exit as stopped:
        if stopped.exit_code == FAILED:
            typer.echo(f"the logs of worker and serving are kept in {folder / 'logs'}", err=True)
        elif work_dir is None:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if work_dir is None:
        shutil.rmtree(folder, ignore_errors=True)
    _print_live(found, dataset, as_json)


def _backtest(
    scenario: Scenario, base_days: int, online_days: int, options: in_process.BacktestOptions, progress: Progress
) -> in_process.Backtest:
    spec, days = load_spec(scenario.spec_name), scenario.days()
    base_span, online_span = days.span_ms(0, base_days), days.span_ms(base_days, online_days)
    with progress.counting("base days", scenario.count(*base_span)) as advance:
        collected = in_process.collect_base(scenario, spec, base_span, advance, options)
    snapshot = _trained(collected, spec, scenario.click_window_s)
    with progress.counting("online days", scenario.count(*online_span)) as advance:
        return in_process.run(scenario, spec, snapshot, collected.store, online_span, advance, options)


def _compare(
    scenario: Scenario,
    base_days: int,
    online_days: int,
    options: in_process.BacktestOptions,
    named: Mapping[str, Entry],
    loss_names: Sequence[str],
    skip_missing: bool,
    progress: Progress,
) -> list[Compared]:
    spec, days = load_spec(scenario.spec_name), scenario.days()
    base_span, online_span = days.span_ms(0, base_days), days.span_ms(base_days, online_days)
    stream = collect_stream(scenario, spec, base_span, online_span, progress, options)
    return compare_learners(
        stream,
        spec,
        named,
        progress,
        utc_offset_h=scenario.utc_offset_h,
        click_window_s=scenario.click_window_s,
        learning=LearningConfig(learn_interval_s=options.learn_interval_s),
        loss_names=loss_names,
        skip_missing=skip_missing,
    )


def _trained(collected: in_process.Base, spec: FeatureSpec, click_window_s: float) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        write_base(collected, spec, Path(folder))
        return base_snapshot(read_base_examples(Path(folder), spec), spec, click_window_s)


def _speed(text: str) -> float | None:
    if text == "max":
        return None
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--speed {text} is neither a number nor max. Pass 1 for real time.") from None


def _print_live(found: Report, dataset: str, as_json: bool) -> None:
    if as_json:
        print_json(found.to_json())
        return
    out = console()
    out.print(quality_table(found, f"{dataset}: live, progressive"))
    out.print(facts_table(found))


if __name__ == "__main__":
    app()
