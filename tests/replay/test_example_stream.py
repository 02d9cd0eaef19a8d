"""The stream that learners are compared on, and how it is cut into steps."""

from __future__ import annotations

import numpy as np
import pytest

from learners.deepfm.model import DeepFM, DeepFMConfig
from learners.examples.kinds import CLICK, CONVERSION, EXPOSURE
from learners.features.shape import ModelShape
from learners.features.spec import load_spec
from replay.backtest import BacktestOptions
from replay.example_stream import ExampleStream, Span, base_steps, collect_stream, online_steps
from replay.kuairand import KuaiRand
from replay.progress import Progress
from stream.learn.config import LearningConfig
from stream.learn.loop import Learned, LearningLoop
from tests.replay.kuairand_files import random_rows, write_folder

SPEC = load_spec("kuairand")


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> ExampleStream:
    """One base day and one online day of a made-up log."""
    scenario = KuaiRand(write_folder(tmp_path_factory.mktemp("kuairand"), random_rows(1_200, days=2)))
    days = scenario.days()
    return collect_stream(
        scenario, SPEC, days.span_ms(0, 1), days.span_ms(1, 1), Progress(quiet=True), BacktestOptions()
    )


@pytest.mark.parametrize(("rows", "interval_s"), [(16, 3_600.0), (5, 900.0), (10_000, 7_200.0)])
def test_steps_are_those_of_the_learning_loop(stream: ExampleStream, rows: int, interval_s: float) -> None:
    """The same rows in the same batches at the same watermarks as the loop itself learns them."""
    config = LearningConfig(learn_batch_rows=rows, learn_interval_s=interval_s)
    loop = LearningLoop(DeepFM(DeepFMConfig(dim=2, hidden=(2,)), ModelShape.of(SPEC)), config, 1)
    span, expected, start = stream.online, [], 0
    for offset, (end, at) in enumerate(zip(span.ends, span.watermarks_ms, strict=True)):
        outcomes = loop.step(span.examples.take(slice(start, end)), 0, offset, int(at))
        expected += [
            (o.journal.watermark_ms, o.rows.impression_id.tolist()) for o in outcomes if isinstance(o, Learned)
        ]
        start = end
    learnable, ends = span.learnable()
    steps = list(online_steps(ends, span.watermarks_ms, config))
    assert [(s.watermark_ms, learnable.impression_id[s.start : s.stop].tolist()) for s in steps] == expected
    assert len(expected) > 5


def test_every_step_holds_only_what_was_known_before_it_serves(stream: ExampleStream) -> None:
    """No event of a step is later than the time from which the step serves."""
    rows, ends = stream.online.learnable()
    for step in online_steps(ends, stream.online.watermarks_ms, LearningConfig()):
        assert rows.known_ms[step.start : step.stop].max() <= step.from_ms


def test_each_impression_is_there_once_in_order(stream: ExampleStream) -> None:
    """The displayed impressions of the span, with whether they were clicked in the end."""
    for span in (stream.base, stream.online):
        rows, clicked, _ = span.displayed()
        examples = span.examples
        assert (np.diff(rows.ts_ms) >= 0).all()
        assert np.array_equal(np.sort(rows.impression_id), np.sort(examples.impression_id[examples.kind == EXPOSURE]))
        clicks = examples.impression_id[examples.kind == CLICK]
        assert np.array_equal(np.sort(rows.impression_id[clicked]), np.sort(clicks))
        assert 0 < clicked.mean() < 1


def test_labels_are_learned_when_their_impression_is_mature(stream: ExampleStream) -> None:
    """Not before it is as old as the window, and with what was known by then: a later click is none."""
    span = stream.online
    for window_s in (60.0, 3.0):
        rows, clicked, ends = span.matured(window_s)
        for number, stop in enumerate(ends.tolist()):
            watermark_ms = int(span.watermarks_ms[: number + 1].max())
            assert (rows.ts_ms[:stop] + window_s * 1000 < watermark_ms).all()
            assert (rows.ts_ms[stop:] + window_s * 1000 >= watermark_ms).all()
        delays = {
            key: delay
            for kind, key, delay in zip(
                span.examples.kind.tolist(),
                span.examples.impression_id.tolist(),
                span.examples.delay_ms.tolist(),
                strict=True,
            )
            if kind == CLICK
        }
        expected = [delays.get(key, 10**9) <= window_s * 1000 for key in rows.impression_id.tolist()]
        assert clicked.tolist() == expected
    assert CONVERSION in span.examples.kind


def test_base_steps_cover_all_rows_in_full_batches(stream: ExampleStream) -> None:
    """All but the last hold the batch size; each is as late as its newest display."""
    rows, _, _ = stream.base.displayed()
    steps = list(base_steps(rows.ts_ms, 64))
    assert [s.stop - s.start for s in steps[:-1]] == [64] * (len(rows) // 64)
    assert [s.start for s in steps[1:]] == [s.stop for s in steps[:-1]]
    assert (steps[0].start, steps[-1].stop) == (0, len(rows))
    assert [s.watermark_ms for s in steps] == [int(rows.ts_ms[s.stop - 1]) for s in steps]


def test_days_without_an_impression_are_an_error() -> None:
    """There is nothing to compare on."""
    with pytest.raises(ValueError, match="no impression was displayed"):
        Span.of([])
