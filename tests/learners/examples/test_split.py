"""The temporal split, and events in the order of a stream."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from learners.examples.examples import Examples
from learners.examples.kinds import CLICK, CONVERSION, EXPOSURE
from learners.examples.split import arrived, day_span_ms, split_by_time
from learners.features.rows import Rows
from tests.learners.archived import as_events
from tests.learners.archived import examples as labelled


def examples(
    ts_ms: list[int],
    kind: list[int] | None = None,
    *,
    known_ms: list[int] | None = None,
    impression: list[int] | None = None,
    label: list[int] | None = None,
) -> Examples:
    """Examples of which only times, kinds and impressions matter."""
    count = len(ts_ms)
    columns: dict[str, NDArray[Any]] = {
        "ts_ms": np.array(ts_ms, np.int64),
        "known_ms": np.array(known_ms or ts_ms, np.int64),
        "kind": np.array(kind or [EXPOSURE] * count, np.uint8),
        "impression_id": np.array(impression or range(count), np.uint64),
        "label": np.array(label or [0] * count, np.uint8),
    }
    return Examples(
        spec_name="toy",
        spec_hash="0",
        rows=Rows(np.ones((count, 1), np.uint64), np.zeros((count, 0), np.float32)),
        columns=columns,
    )


@given(ts_ms=st.lists(st.integers(0, 60), min_size=30, max_size=200))
def test_every_part_lies_before_the_next(ts_ms: list[int]) -> None:
    """No row is lost, none is displayed at the time of an earlier part, order is that of the displays."""
    given_examples = examples(ts_ms)
    try:
        split = split_by_time(given_examples, validation_share=0.2, holdout_share=0.3)
    except ValueError:
        assert len(set(ts_ms)) < len(ts_ms)  # only many rows of one time leave a part without rows
        return
    times = given_examples.columns["ts_ms"]
    parts = [times[part] for part in (split.train, split.validation, split.holdout)]
    assert np.array_equal(np.concatenate(parts), np.sort(times))
    assert all(len(part) for part in parts)
    assert parts[0][-1] < split.validation_from_ms == parts[1][0]
    assert parts[1][-1] < split.holdout_from_ms == parts[2][0]
    assert len(parts[2]) >= int(0.3 * len(ts_ms))


def test_only_mature_exposures_are_split() -> None:
    """Clicks are no rows of their own, and a display that may still be clicked is judged by nobody."""
    kind = [CLICK, EXPOSURE, EXPOSURE, EXPOSURE, EXPOSURE, EXPOSURE]
    split = split_by_time(
        examples([25, 10, 20, 40, 50, 60], kind), validation_share=0.25, holdout_share=0.25, mature_until_ms=60
    )
    assert [part.tolist() for part in (split.train, split.validation, split.holdout)] == [[1, 2], [3], [4]]


def test_train_rows_are_mature_when_the_validation_begins() -> None:
    """What was displayed within the click window before it is in the gap, where the replay begins."""
    split = split_by_time(examples(list(range(100))), validation_share=0.2, holdout_share=0.1, click_window_ms=15)
    parts = (split.train, split.gap, split.validation, split.holdout)
    assert [(int(part[0]), int(part[-1])) for part in parts] == [(0, 54), (55, 69), (70, 89), (90, 99)]
    assert (split.replay_from_ms, split.validation_from_ms, split.rows) == (55, 70, 100)
    with pytest.raises(ValueError, match="or too few to learn"):
        split_by_time(examples(list(range(100))), validation_share=0.2, holdout_share=0.1, click_window_ms=70)


def test_a_holdout_is_not_made_of_what_became_known_last() -> None:
    """Non-clicks that are known a window after their display, clicks at once: the newest displays are both."""
    clicked = np.arange(400) % 4 == 0
    ts_ms = np.arange(400) * 100
    known_ms = ts_ms + np.where(clicked, 70, 60_000)
    log = examples(ts_ms.tolist(), known_ms=known_ms.tolist(), label=clicked.astype(int).tolist())
    split = split_by_time(log, validation_share=0.1, holdout_share=0.1)
    for part in (split.validation, split.holdout):
        assert log.clicked(part).mean() == 0.25


def test_what_arrived_is_every_event_at_its_time() -> None:
    """A display before its click of the same moment; conversions when asked, each click's first."""
    log = examples(
        [20, 20, 10, 20, 50, 20],
        [EXPOSURE, CONVERSION, EXPOSURE, CLICK, EXPOSURE, CONVERSION],
        known_ms=[20, 45, 10, 20, 50, 40],
        impression=[7, 7, 8, 7, 9, 7],
    )
    found = arrived(log, (10, 50), conversions=True)
    assert list(zip(found.rows.tolist(), found.kind.tolist(), found.time_ms.tolist(), strict=True)) == [
        (2, EXPOSURE, 10),
        (0, EXPOSURE, 20),
        (3, CLICK, 20),
        (5, CONVERSION, 40),
    ]
    assert arrived(log, (11, 51), conversions=False).rows.tolist() == [0, 3, 4]


def test_clicks_of_unknown_displays_did_not_arrive() -> None:
    """An archive that begins in the middle of a log holds clicks whose displays nobody paid for."""
    log = examples([5, 20, 5], [CLICK, EXPOSURE, CONVERSION], known_ms=[25, 20, 30], impression=[1, 2, 1])
    assert arrived(log, (0, 100), conversions=True).rows.tolist() == [1]


def test_a_log_of_labels_arrives_as_the_stream_that_it_stands_for() -> None:
    """One labelled row of an impression, or its display and its click: the same events, and the same impressions."""
    rows = labelled(300)
    ways = []
    for log in (rows, as_events(rows)):
        found = arrived(log, (0, 2**62), conversions=False)
        impression = log.columns["impression_id"][found.rows]
        ways.append(list(zip(impression.tolist(), found.kind.tolist(), found.time_ms.tolist(), strict=True)))
    assert ways[0] == ways[1]
    assert len(ways[0]) == 300 + int(rows.columns["label"].sum())


def test_too_few_rows_are_refused_with_their_number() -> None:
    """Each part needs rows."""
    with pytest.raises(ValueError, match="5 mature exposures leave 0 to validate and 0 to hold out"):
        split_by_time(examples([1, 2, 3, 4, 5]), validation_share=0.1, holdout_share=0.1)
    with pytest.raises(ValueError, match="20 mature exposures leave 2 to validate"):
        split_by_time(examples([7] * 20), validation_share=0.1, holdout_share=0.1)


def test_days_are_local_and_both_included() -> None:
    """A day of UTC+8 begins eight hours before that of UTC; a missing bound is none."""
    midnight = 1_650_844_800_000  # 2022-04-25 UTC
    day, offset = 86_400_000, 8 * 3_600_000
    assert day_span_ms("2022-04-25", "2022-04-26", 8 * 3600) == (midnight - offset, midnight - offset + 2 * day)
    start, stop = day_span_ms("2022-04-25", "", 0) or (0, 0)
    assert start == midnight
    assert stop > 10**17
    assert day_span_ms("", "", 0) is None


@pytest.mark.parametrize(("since", "until", "message"), [("2022-04-26", "2022-04-25", "must not come"), ("x", "", "x")])
def test_days_that_mean_nothing_are_refused(since: str, until: str, message: str) -> None:
    """ValueError with the day."""
    with pytest.raises(ValueError, match=message):
        day_span_ms(since, until, 0)
