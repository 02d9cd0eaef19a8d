"""Examples that wait for their batch, and where a restart reads on."""

from __future__ import annotations

import numpy as np
import pytest

from stream.learn.queue import PendingExamples, Position
from tests.stream.pipeline import example_rows


def add(
    pending: PendingExamples, rows: int, offset: int, *, partition: int = 0, leave_out: tuple[int, ...] = ()
) -> None:
    """A record of so many rows at ``offset``, without those that are not to be learned."""
    keep = np.ones(rows, np.bool_)
    keep[list(leave_out)] = False
    pending.add(example_rows(rows, seed=offset), keep, partition, offset)


def test_a_batch_says_from_where_to_where_it_goes() -> None:
    """In the middle of a record the position names its row."""
    pending = PendingExamples()
    add(pending, 3, 7)
    add(pending, 3, 8)
    (stretch,) = pending.cut(4).ranges
    assert (stretch.from_offset, stretch.from_row, stretch.to_offset, stretch.to_row) == (7, 0, 8, 1)
    assert (len(pending), pending.positions()) == (2, {0: Position(8, 1)})


def test_rows_that_are_not_learned_lie_before_the_position_all_the_same() -> None:
    """The next row to be learned says where the cut is."""
    pending = PendingExamples()
    add(pending, 4, 7, leave_out=(1, 2))
    pending.cut(1)
    assert pending.positions() == {0: Position(7, 3)}
    add(pending, 2, 8, partition=1, leave_out=(0, 1))
    assert pending.positions()[1] == Position(9, 0)


def test_a_restart_leaves_out_what_was_cut_before() -> None:
    """Whole records, and the first rows of one."""
    pending = PendingExamples()
    pending.move_to(0, Position(8, 2))
    add(pending, 3, 7)
    add(pending, 3, 8)
    batch = pending.cut(5)
    assert batch.rows.impression_id.tolist() == example_rows(3, seed=8).impression_id[2:].tolist()
    assert [(r.from_offset, r.from_row, r.to_offset, r.to_row) for r in batch.ranges] == [(8, 2, 9, 0)]


def test_each_row_of_several_partitions_leaves_once_in_the_order_it_came() -> None:
    """However the batches are cut."""
    pending = PendingExamples()
    for offset in range(3):
        for partition in range(2):
            add(pending, 3, offset, partition=partition)
    came = [example_rows(3, seed=offset).impression_id.tolist() for offset in range(3) for _ in range(2)]
    cut = []
    while len(pending):
        cut += pending.cut(4).rows.impression_id.tolist()
    assert cut == [one for record in came for one in record]
    assert pending.positions() == {0: Position(3, 0), 1: Position(3, 0)}


def test_a_partition_that_moves_drops_its_waiting_rows_only() -> None:
    """Those of the others stay."""
    pending = PendingExamples()
    add(pending, 3, 5)
    add(pending, 2, 5, partition=1)
    pending.move_to(0, Position(9, 0))
    assert (len(pending), pending.next_position(0)) == (2, Position(9, 0))


def test_nothing_is_cut_of_nothing() -> None:
    """The message says what to ask first."""
    with pytest.raises(ValueError, match=r"cut\(1\) of 0 waiting rows"):
        PendingExamples().cut(1)


def test_what_a_cut_log_holds_now_is_expected_and_what_waited_of_it_is_dropped() -> None:
    """Rows of before the cut stay and are learned; a cut behind all that was read changes nothing."""
    pending = PendingExamples()
    for offset in range(4):
        add(pending, 3, offset)
    add(pending, 3, 7, partition=1)
    pending.cut(4)  # in the midst of record 1
    pending.log_cut(0, 9)
    assert pending.next_position(0) == Position(4, 0)
    pending.log_cut(0, 2)
    assert (len(pending), pending.next_position(0), pending.positions()[0]) == (5, Position(2, 0), Position(1, 1))
    add(pending, 3, 2)
    assert len(pending) == 8
    pending.log_cut(0, 0)
    assert pending.positions() == {0: Position(0, 0), 1: Position(7, 0)}
