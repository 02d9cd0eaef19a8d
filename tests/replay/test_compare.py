"""All learners on one stream."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from learners.examples.kinds import CLICK, EXPOSURE
from learners.examples.terms import Terms
from learners.features.rows import Rows
from learners.features.shape import ModelShape
from learners.features.spec import load_spec
from replay.__main__ import app
from replay.backtest import BacktestOptions
from replay.compare import Drive, chosen, compare
from replay.example_stream import ExampleStream, Span, collect_stream
from replay.feeds import Delayed, feed_of, losses
from replay.kuairand import KuaiRand
from replay.progress import Progress
from stream.learn.config import LearningConfig
from tests.replay.kuairand_files import random_rows, write_folder

pytestmark = pytest.mark.timeout(240)
SPEC = load_spec("kuairand")
QUIET = Progress(quiet=True)
LOG: Any = {"utc_offset_h": 8, "click_window_s": 60}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three days of a made-up log."""
    return write_folder(tmp_path_factory.mktemp("kuairand"), random_rows(2_400, days=3))


@pytest.fixture(scope="module")
def stream(folder: Path) -> ExampleStream:
    """Two base days and one online day."""
    scenario = KuaiRand(folder)
    days = scenario.days()
    return collect_stream(scenario, SPEC, days.span_ms(0, 2), days.span_ms(2, 1), QUIET, BacktestOptions())


class Recorder:
    """Remembers which impressions it was asked about and which it had learned by then; its only id is theirs."""

    def __init__(self, config: Any = None, shape: ModelShape | None = None) -> None:
        self.learned: list[int] = []
        self.asked: list[tuple[list[int], int]] = []  # impressions, and how many rows were learned before
        self.heard_ms: list[int] = []

    def predict_many(self, rows: Rows) -> NDArray[np.float32]:
        """Zeros."""
        self.asked.append((rows.ids[:, 0].tolist(), len(self.learned)))
        return np.zeros(len(rows.ids), np.float32)

    def learn_many(self, rows: Rows, labels: NDArray[np.bool_], weight: NDArray[np.float32] | None = None) -> None:
        """Note the impressions."""
        self.learned += rows.ids[:, 0].tolist()

    def advance(self, event_ms: int) -> None:
        """Note the time."""
        self.heard_ms.append(event_ms)

    def state(self) -> Mapping[str, NDArray[Any]]:
        """Nothing."""
        return {}

    @classmethod
    def from_state(cls, config: Any, shape: ModelShape, state: Mapping[str, NDArray[Any]]) -> Self:
        """A fresh one."""
        return cls()


class TermsRecorder(Recorder):
    """Learns arrivals: it remembers also which kind each row was."""

    def __init__(self, config: Any = None, shape: ModelShape | None = None) -> None:
        super().__init__(config, shape)
        self.kinds: list[tuple[float, float]] = []

    def learn_terms(self, rows: Rows, terms: Terms) -> None:
        """Note the impressions and their terms."""
        self.learned += rows.ids[:, 0].tolist()
        self.kinds += zip(terms.exposure.tolist(), terms.event.tolist(), strict=True)


def by_impression(span: Span) -> Span:
    """The span with the impression's number as the only id."""
    return replace(span, examples=replace(span.examples, ids=span.examples.impression_id[:, None]))


def driven(recorder: Recorder, stream: ExampleStream, learning: LearningConfig) -> list[tuple[list[int], list[int]]]:
    """Impressions that were predicted, and what of the online days had been learned by then; checks the order."""
    stream = ExampleStream(by_impression(stream.base), by_impression(stream.online))
    Drive(recorder, feed_of(recorder, 60.0), lambda rows: None, lambda: 0.0).over(stream, learning)
    base_rows = len(stream.base.displayed().rows)
    frozen, *online = recorder.asked
    assert frozen == (frozen[0], base_rows)
    shown = [i for impressions, _ in online for i in impressions]
    assert shown == frozen[0] == stream.online.displayed().rows.impression_id.tolist()
    assert len({learned for impressions, learned in online if impressions}) > 20  # it did learn in between
    assert (np.diff(recorder.heard_ms[-len(online) + 1 :]) >= 0).all()
    return [(impressions, recorder.learned[base_rows:learned]) for impressions, learned in online if impressions]


def test_a_learner_of_terms_learns_nothing_before_it_happens(stream: ExampleStream) -> None:
    """What was learned before an impression was predicted had happened before it was displayed; clicks are clicks."""
    recorder = TermsRecorder()
    online = driven(recorder, stream, LearningConfig(learn_batch_rows=16))
    rows, _ = stream.online.learnable()
    shown = stream.online.displayed().rows
    ts_ms = dict(zip(shown.impression_id.tolist(), shown.ts_ms.tolist(), strict=True))
    for impressions, learned in online:
        newest_ms = max(rows.known_ms[: len(learned)].tolist(), default=0)
        assert learned == rows.impression_id[: len(learned)].tolist()
        assert all(newest_ms <= ts_ms[i] for i in impressions)
    expected = [(1.0, 0.0) if kind == EXPOSURE else (0.0, 1.0) for kind in rows.kind.tolist()]
    assert recorder.kinds == expected[: len(recorder.kinds)]
    assert len(recorder.kinds) > 0.95 * len(rows)


def test_a_learner_of_labels_learns_an_impression_when_it_is_mature(stream: ExampleStream) -> None:
    """A minute after its display, whatever became of it."""
    online = driven(Recorder(), stream, LearningConfig(learn_batch_rows=16))
    shown = stream.online.displayed().rows
    ts_ms = dict(zip(shown.impression_id.tolist(), shown.ts_ms.tolist(), strict=True))
    for impressions, learned in online:
        newest_ms = max((ts_ms[i] for i in learned), default=0)
        assert all(newest_ms + 60_000 <= ts_ms[i] for i in impressions)
    assert len(online[-1][1]) > 0.9 * len(shown)


def test_a_learner_that_sees_events_early_would_be_found(stream: ExampleStream) -> None:
    """The checks above can fail: some clicks come only after the next impression was displayed."""
    rows, _ = stream.online.learnable()
    clicks = rows.take(rows.kind == CLICK)
    shown = stream.online.displayed().rows
    following = np.searchsorted(shown.ts_ms, clicks.ts_ms, side="right")
    followed = following < len(shown)
    assert (clicks.known_ms[followed] > shown.ts_ms[following[followed]]).mean() > 0.02


@pytest.mark.parametrize("name", ["split", "fnw", "fnc", "es_dfm", "defer", "waiting"])
def test_a_loss_sees_each_row_when_it_is_known(stream: ExampleStream, name: str) -> None:
    """Nothing of it earlier than the model is told, each display at least once, and each click that came in time."""
    recorder = TermsRecorder()
    known = losses(stream.base, 60.0)
    span = by_impression(stream.online)
    lessons = Delayed(recorder, known[name]).online(span)
    assert (np.diff(lessons.times_ms) >= 0).all()
    newest_ms = np.maximum.accumulate(span.watermarks_ms)
    assert all(lessons.times_ms[:end].max(initial=0) < at for end, at in zip(lessons.ends, newest_ms, strict=True))
    lessons.learn(slice(0, len(lessons.times_ms)))
    assert set(recorder.learned) == set(span.displayed().rows.impression_id.tolist())
    clicked = [key for key, (_, event) in zip(recorder.learned, recorder.kinds, strict=True) if event > 0]
    assert set(clicked) == set(span.examples.impression_id[span.examples.kind == CLICK].tolist())
    assert len(recorder.learned) == {"waiting": 1, "defer": 2}.get(name, 0) * len(span.displayed().rows) or (
        name in ("split", "fnw", "fnc", "es_dfm")
    )


def test_the_split_of_a_loss_is_that_of_the_stream(stream: ExampleStream) -> None:
    """The rows and terms of the loss named split are those that arrive."""
    span = by_impression(stream.online)
    ways = []
    for by_loss in (True, False):
        recorder = TermsRecorder()
        feed = Delayed(recorder, losses(stream.base, 60.0)["split"]) if by_loss else feed_of(recorder, 60.0)
        lessons = feed.online(span)
        lessons.learn(slice(0, len(lessons.times_ms)))
        ways.append(sorted(zip(recorder.learned, recorder.kinds, strict=True)))
    assert ways[0] == ways[1]


def test_losses_are_lines_of_one_table(folder: Path) -> None:
    """Each with its name; one that is not known, and a learner that cannot take one, are bad usage."""
    options = ["compare", "--dataset", "kuairand", "--data", str(folder), "--base-days", "2", "--quiet"]
    done = CliRunner().invoke(app, [*options, "--losses", "split, waiting", "--json"])
    assert done.exit_code == 0, done.stderr
    lines = {line["learner"]: line for line in json.loads(done.stdout)["learners"]}
    assert set(lines) == {"deepfm, split", "deepfm, waiting"}
    assert lines["deepfm, split"]["learned_rows"] > lines["deepfm, waiting"]["learned_rows"]
    for more, message in (
        (["--losses", "sgd"], "unknown loss 'sgd'"),
        (["--losses", "fnw", "--learners", "trees"], "LeafTrees learns labelled rows"),
    ):
        done = CliRunner().invoke(app, [*options, *more])
        assert (done.exit_code, message in done.stderr) == (2, True), done.stderr


def test_the_deepfm_of_the_comparison_is_that_of_the_backtest(folder: Path, stream: ExampleStream) -> None:
    """Driven over the collected stream, it ranks as well as in the whole loop with ranker, join and deltas."""
    (line,) = compare(
        stream,
        SPEC,
        chosen(["deepfm"]),
        QUIET,
        utc_offset_h=8,
        click_window_s=60,
        learning=LearningConfig(learn_interval_s=300),
    )
    options = ["--dataset", "kuairand", "--data", str(folder), "--base-days", "2", "--json", "--quiet"]
    done = CliRunner().invoke(app, ["backtest", *options])
    assert done.exit_code == 0, done.stderr
    backtest = json.loads(done.stdout)
    assert line.report.rows == backtest["rows"]
    for ours, theirs in (
        (line.report.online, backtest["online_before_calibration"]),
        (line.report.frozen, backtest["frozen"]),
    ):
        assert abs(ours["auc"] - theirs["auc"]) < 0.01  # 800 rows: an AUC's standard error is 0.02
        assert abs(ours["log_loss"] - theirs["log_loss"]) < 0.01


def test_the_program_prints_one_table_sorted_by_auc(folder: Path) -> None:
    """JSON holds every learner with its days, its frozen figures and its speed; the table names them all."""
    options = ["--dataset", "kuairand", "--data", str(folder), "--base-days", "2", "--learners", "ftrl, deepfm"]
    done = CliRunner().invoke(app, ["compare", *options, "--json"])
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    lines = found["learners"]
    assert {line["learner"] for line in lines} == {"ftrl", "deepfm"}
    assert lines[0]["online"]["auc"] >= lines[1]["online"]["auc"] > 0.5
    for line in lines:
        (day,) = line["days"]
        assert day["rows"] == line["rows"] > 600
        assert {"auc", "log_loss", "ne", "observed_over_expected"} == set(line["online"]) == set(line["frozen"])
        assert line["learned_rows"] > line["rows"]
        assert line["learned_rows_per_s"] > 0
    assert "deepfm" in done.stderr  # progress
    table = CliRunner().invoke(app, ["compare", *options, "--quiet"])
    assert table.exit_code == 0
    assert table.stderr == ""
    for text in ("ftrl", "deepfm", "AUC 04-27", "frozen AUC", "rows/s"):
        assert text in table.stdout


def test_an_unknown_learner_is_bad_usage(folder: Path) -> None:
    """The known ones are named."""
    done = CliRunner().invoke(app, ["compare", "--dataset", "kuairand", "--data", str(folder), "--learners", "deepgm"])
    assert done.exit_code == 2
    assert "unknown learner 'deepgm'" in done.stderr
    assert "deepfm" in done.stderr


def test_a_learner_whose_library_is_missing_is_left_out_or_an_error(
    stream: ExampleStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left out when all were asked for, an error when it was named."""

    def absent(self: Recorder, rows: Rows) -> NDArray[np.float32]:
        raise ImportError("lightgbm is not installed")

    monkeypatch.setattr(Recorder, "predict_many", absent)
    broken = {"trees": replace(chosen(["trees"])["trees"], learner=Recorder)}
    learning = LearningConfig()
    assert compare(stream, SPEC, broken, QUIET, **LOG, learning=learning, skip_missing=True) == []
    with pytest.raises(ImportError, match="lightgbm"):
        compare(stream, SPEC, broken, QUIET, **LOG, learning=learning)
