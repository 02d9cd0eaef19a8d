"""Up to which record a topic's offset may be committed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stream.join.commit_tracker import CommitTracker


def ints(*values: int) -> NDArray[np.int64]:
    """An array of them."""
    return np.array(values, np.int64)


def test_nothing_is_committed_before_the_first_record() -> None:
    """The group's own commit stands."""
    assert CommitTracker().to_commit() is None


def test_the_first_record_with_an_unfinished_row_is_the_one_to_commit() -> None:
    """A later record that is finished waits for it."""
    tracker = CommitTracker()
    rows = tracker.start(ints(5, 6, 9), ints(2, 1, 1))
    tracker.finish(rows[[0, 2]])  # half of record 5, all of 6
    assert tracker.to_commit() == 5
    tracker.finish(rows[[1]])
    assert tracker.to_commit() == 9


def test_when_all_is_finished_the_next_offset_is_committed() -> None:
    """One beyond the last record; a record without rows is finished at once."""
    tracker = CommitTracker()
    tracker.finish(tracker.start(ints(5, 6), ints(1, 0)))
    assert tracker.to_commit() == 7


def test_the_record_that_moved_the_watermark_is_read_again() -> None:
    """A restart that read nothing would not know how far the topic had come."""
    tracker = CommitTracker()
    tracker.finish(tracker.start(ints(5, 6), ints(1, 1)))
    tracker.pin(5)
    assert tracker.to_commit() == 5
    tracker.pin(6)
    assert tracker.to_commit() == 6


def test_a_redelivered_record_is_known() -> None:
    """Those before the offset that was committed, and those that were read since."""
    tracker = CommitTracker()
    tracker.start_at(4)
    assert tracker.seen(ints(3, 4)).tolist() == [True, False]
    tracker.start(ints(4), ints(1))
    assert tracker.seen(ints(4, 5)).tolist() == [True, False]


def test_a_long_log_needs_room_for_its_unfinished_records_only() -> None:
    """Numbers go on while the arrays stay as they are."""
    tracker = CommitTracker()
    bytes_before = tracker.bytes
    for offset in range(5_000):
        rows = tracker.start(ints(offset), ints(1))
        assert tracker.offsets_of(rows).tolist() == [offset]
        tracker.finish(rows)
        assert tracker.to_commit() == offset + 1
    assert (len(tracker), tracker.bytes) == (0, bytes_before)


def test_records_of_a_log_that_was_cut_are_new_from_there_on() -> None:
    """Unfinished ones of before the cut no longer commit what stands in their place now."""
    tracker = CommitTracker()
    rows = tracker.start(ints(5, 6, 9), ints(1, 1, 1))
    tracker.pin(9)
    tracker.log_cut(6)
    assert not tracker.seen(ints(6, 7, 8)).any()
    assert tracker.seen(ints(5)).all()
    more = tracker.start(ints(6, 7), ints(1, 1))
    tracker.finish(rows[[0]])
    assert tracker.to_commit() == 6
    tracker.finish(rows[[1, 2]])
    tracker.pin(7)
    assert tracker.to_commit() == 6
    tracker.finish(more)
    assert tracker.to_commit() == 7  # it moved the watermark


def test_a_cut_behind_what_was_read_changes_nothing() -> None:
    """The log lost what nobody had."""
    tracker = CommitTracker()
    tracker.finish(tracker.start(ints(5), ints(1)))
    tracker.log_cut(20)
    assert tracker.to_commit() == 6
