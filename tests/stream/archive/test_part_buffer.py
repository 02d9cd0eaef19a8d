"""Examples cut into part files: whole records, no gap, nothing twice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from learners.examples.kinds import CLICK, CONVERSION, EXPOSURE
from stream.archive.part_buffer import ArchiveConfig, ArchivePart, PartBuffer
from stream.records.examples import ExampleRows, concat
from tests.stream.pipeline import SPEC, START_MS, example_rows

Record = tuple[ExampleRows, int]  # rows, watermark
records = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 400_000)), max_size=30).map(
    lambda drawn: [(example_rows(rows, seed=at), START_MS + mark) for at, (rows, mark) in enumerate(drawn)]
)
CONFIG = ArchiveConfig(archive_rows=10, archive_interval_s=100.0)


def cut(log: list[Record], start: int = 0) -> list[ArchivePart]:
    """The parts of a partition's records, the last at the stop."""
    buffer = PartBuffer(3, start, CONFIG)
    parts = [part for at, (rows, mark) in enumerate(log) for part in buffer.add(rows, start + at, mark)]
    assert buffer.first_waiting <= buffer.next_offset == start + len(log)
    return parts + buffer.take()


SLIPPED_BACK = [
    (example_rows(rows, seed=at), START_MS + mark)
    for at, (rows, mark) in enumerate(
        [(1, 0), (0, 100_000), (1, 0), (0, 200_000), (4, 0), (6, 0), (1, 0), (0, 100_000)]
    )
]  # a watermark that is behind one before it: another worker's, or that of a worker started again


@given(records)
def test_every_row_is_in_one_part_in_order(log: list[Record]) -> None:
    """The ranges follow each other without a gap; each row knows its record and its index in it."""
    parts = cut(log, start=7)
    assert [part.log_range.first_offset for part in parts] == [7, *(part.log_range.next_offset for part in parts)][
        : len(parts)
    ]
    whole = concat([ExampleRows.empty(SPEC.id_columns, SPEC.dense_inputs), *(rows for rows, _ in log)])
    found = [key for part in parts for key in part.rows.impression_id.tolist()]
    assert found == whole.impression_id.tolist()
    for part in parts:
        assert part.log_range.partition == 3
        assert part.log_range.first_offset <= part.offset.min()
        assert part.offset.max() < part.log_range.next_offset
        for row, (offset, ordinal) in enumerate(zip(part.offset, part.ordinal, strict=True)):
            assert log[offset - 7][0].impression_id[ordinal] == part.rows.impression_id[row]


@given(records, st.integers(0, 30))
@example(SLIPPED_BACK, 2)
def test_parts_that_are_full_are_the_same_wherever_a_run_begins_behind_one(log: list[Record], part: int) -> None:
    """A restart behind a part cuts the following ones as the run before would have."""
    parts = cut(log)
    if part < len(parts):
        start = parts[part].log_range.next_offset
        assert [one.log_range for one in cut(log[start:], start)] == [one.log_range for one in parts[part + 1 :]]


def test_a_part_ends_when_it_is_full_or_its_interval_is_over() -> None:
    """Records are never divided; the record that brings the next interval begins the next part."""
    marks = [(4, 0), (7, 1), (2, 2), (1, 99_999), (3, 100_000), (1, 200_000)]
    log = [(example_rows(rows, seed=at), mark) for at, (rows, mark) in enumerate(marks)]
    assert [tuple(part.log_range) for part in cut(log)] == [(3, 0, 2), (3, 2, 4), (3, 4, 5), (3, 5, 6)]


def test_rows_that_cannot_be_learned_are_left_out() -> None:
    """A NaN and a kind of 3 are the learner's to reject; the ordinals of the others stay."""
    rows = example_rows(5, seed=1, kind=np.array([EXPOSURE, CLICK, 3, CONVERSION, EXPOSURE], np.uint8))
    rows.dense[0, 0] = np.nan
    (part,) = cut([(rows, 0)])
    assert part.ordinal.tolist() == [1, 3, 4]


def test_the_day_is_that_of_the_first_event() -> None:
    """UTC; a time that has no date does not stop the archiver."""
    (part,) = cut([(example_rows(2, seed=1, known_ms=np.array([START_MS + 86_400_000, START_MS])), 0)])
    assert part.day.isoformat() == "2023-11-14"
    no_date = example_rows(1, seed=1, known_ms=np.array([2**62]))
    assert replace(part, rows=no_date).day.year == 9999
    assert cut([(no_date, 0)]) == []  # no event has such a time: base training need not meet it


@pytest.mark.parametrize("wrong", [{"archive_rows": 0}, {"archive_interval_s": 0.0}])
def test_settings_that_would_never_close_a_file_are_refused(wrong: dict[str, float]) -> None:
    """Both variables are named."""
    with pytest.raises(ValueError, match=r"(?s)MILLSTREAM_ARCHIVE_ROWS.*MILLSTREAM_ARCHIVE_INTERVAL_S"):
        ArchiveConfig(**wrong)  # type: ignore[arg-type]


def test_rows_of_impossible_scores_are_not_archived() -> None:
    """A reader refuses a file for one of them."""
    p = np.array([0.5, 2.0, np.nan], np.float32)
    (part,) = cut([(example_rows(3, seed=1, p=p), START_MS)])
    assert part.rows.p.tolist() == [0.5]
    assert part.ordinal.tolist() == [0]
