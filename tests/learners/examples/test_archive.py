"""The archive of examples."""

from __future__ import annotations

from datetime import date
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import fsspec  # type: ignore[import-untyped]  # it ships no types
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.examples.archive import log_reach, read_examples
from learners.examples.archive_parts import ArchiveError, LogRange, archived_up_to
from learners.examples.archive_writer import write_examples, write_part
from learners.examples.examples import SCALARS, Examples
from learners.examples.kinds import CLICK, CONVERSION, EXPOSURE
from tests.learners.archived import encoded

SPEC = SimpleNamespace(name="toy", hash="0123456789abcdef")
DAY = date(2026, 1, 5)


def part(folder: Path, partition: int, first: int, stop: int, rows_a_record: int = 2) -> Path:
    """The part file of records first..stop−1, whose every impression tells its place."""
    offset = np.repeat(np.arange(first, stop), rows_a_record)
    ordinal = np.tile(np.arange(rows_a_record, dtype=np.int32), stop - first)
    sent = encoded(len(offset), id_columns=2, dense=1)
    sent.impression_id = (partition * 10_000 + offset * 10 + ordinal).astype(np.uint64)
    log_range = LogRange(partition, first, stop)
    return write_part(folder, DAY, log_range, sent, SPEC, offset=offset, ordinal=ordinal)


def impressions(examples: Examples) -> list[int]:
    """Their impressions, in order."""
    found: list[int] = examples.columns["impression_id"].tolist()
    return found


def test_examples_return_as_they_were_written(tmp_path: Path) -> None:
    """Ids to the last of 64 bits, and every column with its type."""
    path = tmp_path / "examples.parquet"
    sent = encoded(50, id_columns=4, dense=2)
    sent.ids[7, 3] = np.uint64(2**64 - 1)
    write_examples(path, sent, SPEC)
    got = read_examples(path, spec_hash=SPEC.hash)
    assert (got.spec_name, got.spec_hash, len(got)) == ("toy", SPEC.hash, 50)
    assert np.array_equal(got.rows.ids, sent.ids)
    assert np.array_equal(got.rows.dense, sent.dense)
    for name in ("label", "ts_ms", "known_ms", "impression_id"):
        assert np.array_equal(got.columns[name], getattr(sent, name))
    assert {name: column.dtype for name, column in got.columns.items()} == {
        name: np.dtype(dtype) for name, (dtype, _) in SCALARS.items()
    }


def test_columns_that_were_not_given_have_their_neutral_value(tmp_path: Path) -> None:
    """A weight of 1, no delay."""
    write_examples(tmp_path / "e", encoded(3, id_columns=1, dense=1), SPEC)
    got = read_examples(tmp_path / "e").columns
    assert got["weight"].tolist() == [1, 1, 1]
    assert got["delay_ms"].tolist() == [-1, -1, -1]


def test_no_examples_are_an_archive_too(tmp_path: Path) -> None:
    """Widths survive without rows."""
    write_examples(tmp_path / "e", encoded(0, id_columns=3, dense=2), SPEC)
    assert read_examples(tmp_path / "e").rows.ids.shape == (0, 3)


@pytest.mark.parametrize("labels", [None, [0, 0, 1, 1]], ids=["as the stream tells them", "of an older archive"])
def test_a_click_is_its_exposures_and_a_conversion_is_none(labels: list[int] | None, tmp_path: Path) -> None:
    """Each displayed impression counts once, with what became of it."""
    sent = encoded(4, id_columns=1, dense=1)
    sent.impression_id = np.array([10, 11, 10, 11], np.uint64)
    sent.kind = np.array([EXPOSURE, EXPOSURE, CLICK, CONVERSION], np.uint8)
    del sent.label
    if labels is not None:
        sent.label = np.array(labels, np.uint8)
    write_examples(tmp_path / "e", sent, SPEC)
    got = read_examples(tmp_path / "e")
    assert ("label" in pq.read_schema(tmp_path / "e").names) == (labels is not None)
    index = got.exposures()
    assert index.tolist() == [0, 1]
    assert got.clicked(index).tolist() == [True, False]
    assert got.converted(index).tolist() == [False, True]


def test_what_became_known_later_can_be_left_out(tmp_path: Path) -> None:
    """A model trained up to some time must not know a click that came after it."""
    sent = encoded(3, id_columns=1, dense=1)
    sent.impression_id = np.array([10, 10, 10], np.uint64)
    sent.kind = np.array([EXPOSURE, CLICK, CONVERSION], np.uint8)
    sent.label = np.zeros(3, np.uint8)
    sent.known_ms = np.array([100, 200, 300])
    write_examples(tmp_path / "e", sent, SPEC)
    got = read_examples(tmp_path / "e")
    assert [bool(got.clicked(got.exposures(), before_ms=ms)[0]) for ms in (200, 201)] == [False, True]
    assert [bool(got.converted(got.exposures(), before_ms=ms)[0]) for ms in (300, 301)] == [False, True]


def test_a_labelled_exposure_is_a_click_from_when_that_became_known(tmp_path: Path) -> None:
    """A log of one row an impression, in a file of no more columns than it needs."""
    sent = encoded(2, id_columns=1, dense=1)
    sent.label, sent.known_ms = np.array([1, 0], np.uint8), np.array([200, 100])
    write_examples(tmp_path / "all", sent, SPEC)
    few = pq.read_table(tmp_path / "all").select(["ids", "dense", "impression_id", "ts_ms", "known_ms", "label"])
    pq.write_table(few, tmp_path / "e")
    got = read_examples(tmp_path / "e")
    assert got.exposures().tolist() == [0, 1]
    assert got.clicked(got.exposures()).tolist() == [True, False]
    assert got.clicked(got.exposures(), before_ms=200).tolist() == [False, False]
    assert (got.end_ms, log_reach(tmp_path / "e")) == (int(sent.ts_ms.max()), {})


def test_an_impression_can_be_left_out_with_all_that_became_of_it(tmp_path: Path) -> None:
    """By the time of its display."""
    sent = encoded(4, id_columns=1, dense=1)
    sent.kind = np.array([EXPOSURE, EXPOSURE, CLICK, CLICK], np.uint8)
    sent.ts_ms, sent.known_ms = np.array([100, 200, 200, 100]), np.array([100, 200, 250, 300])
    write_examples(tmp_path / "e", sent, SPEC)
    got = read_examples(tmp_path / "e")
    assert got.end_ms == 300
    assert got.displayed_before(200).columns["known_ms"].tolist() == [100, 300]
    assert got.displayed_before(201) is got


def test_columns_of_other_lengths_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    """Labels must not slip to other ids."""
    sent = encoded(4, id_columns=1, dense=1)
    sent.label = sent.label[:3]
    with pytest.raises(ArchiveError, match=r"label is \(3,\) beside 4 rows"):
        write_examples(tmp_path / "e", sent, SPEC)
    assert list(tmp_path.iterdir()) == []


def test_an_archive_of_another_spec_is_refused_with_both_hashes(tmp_path: Path) -> None:
    """Its columns mean other fields."""
    write_examples(tmp_path / "e", encoded(4, id_columns=1, dense=1), SPEC)
    with pytest.raises(ArchiveError, match=f"{SPEC.hash}.*ffffffffffffffff"):
        read_examples(tmp_path / "e", spec_hash="ffffffffffffffff")


def test_files_that_are_no_archive_are_named(tmp_path: Path) -> None:
    """Neither text nor another parquet file passes for examples."""
    text, other = tmp_path / "text", tmp_path / "other.parquet"
    text.write_text("impression_id,label")
    pq.write_table(pa.table({"label": [1]}), other)
    with pytest.raises(ArchiveError, match="text cannot be read as parquet"):
        read_examples(text)
    with pytest.raises(ArchiveError, match=r"other\.parquet is no archive.*ids"):
        read_examples(other)


def test_a_folder_is_read_in_the_order_of_the_log_and_overlapping_parts_count_once(tmp_path: Path) -> None:
    """An archiver that died before it committed its offsets writes rows again, cut elsewhere."""
    for partition, first, stop in [(1, 0, 3), (0, 5, 8), (0, 0, 4), (0, 2, 6)]:
        part(tmp_path, partition, first, stop)
    expected = [
        p * 10_000 + offset * 10 + row for p, stop in ((0, 8), (1, 3)) for offset in range(stop) for row in (0, 1)
    ]
    assert impressions(read_examples(tmp_path)) == expected


def test_part_files_lie_by_day_partition_and_offsets(tmp_path: Path) -> None:
    """The name says the range, padded so that names sort as offsets do."""
    path = part(tmp_path, 3, 7, 9)
    assert path == tmp_path / "date=2026-01-05" / "p3-00000000000000000007-00000000000000000009.parquet"
    assert LogRange.of(path) == LogRange(3, 7, 9)
    assert LogRange.of(tmp_path / "examples.parquet") is None


def test_an_archive_can_lie_behind_a_url(tmp_path: Path) -> None:
    """As an fsspec file system that knows folders."""
    part(tmp_path, 0, 0, 3)
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path), "/archive-test", recursive=True)
    try:
        assert impressions(read_examples("memory://archive-test")) == impressions(read_examples(tmp_path))
    finally:
        store.rm("/archive-test", recursive=True)


def test_the_reach_is_after_the_last_record(tmp_path: Path) -> None:
    """Of each partition; examples of no topic have none."""
    for partition, first, stop in [(0, 0, 4), (0, 2, 6), (3, 7, 8)]:
        part(tmp_path, partition, first, stop)
    assert log_reach(tmp_path) == {0: 6, 3: 8}
    assert len(read_examples(tmp_path).before({0: 6, 3: 8})) == len(read_examples(tmp_path))
    write_examples(tmp_path / "e", encoded(3, id_columns=1, dense=1), SPEC)
    assert log_reach(tmp_path / "e") == {}


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=20), st.integers(0, 30), st.integers(1, 20))
def test_up_to_a_time_the_reach_divides_the_log(known: list[int], until: int, cut: int) -> None:
    """Before it is nothing known then or later, and at it the first such example: none is left out, none held twice."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        for first, stop in pairwise(sorted({0, min(cut, len(known)), len(known)})):
            made = encoded(stop - first, id_columns=1, dense=1)
            made.known_ms = np.array(known[first:stop], np.int64)
            ordinal = np.zeros(stop - first, np.int32)
            log_range = LogRange(2, first, stop)
            write_part(root, DAY, log_range, made, SPEC, offset=np.arange(first, stop), ordinal=ordinal)
        reach = log_reach(root, until_ms=until)
        expected = next((at for at, when in enumerate(known) if when >= until), len(known))
        assert reach == {2: expected}
        held = read_examples(root, known_ms=(0, until)).before(reach)
        assert held.columns["offset"].tolist() == list(range(expected))
        assert len(read_examples(root).before({})) == 0


def test_an_archiver_goes_on_where_its_parts_end(tmp_path: Path) -> None:
    """The highest offset of each partition, and nothing of unfinished files."""
    assert archived_up_to(tmp_path) == {}
    for partition, first, stop in [(0, 0, 4), (0, 4, 9), (1, 0, 2)]:
        part(tmp_path, partition, first, stop)
    unfinished = LogRange(1, 2, 50).path(tmp_path, DAY)
    unfinished.with_name(f".{unfinished.name}.unfinished").write_bytes(b"PAR1")
    assert archived_up_to(tmp_path) == {0: 9, 1: 2}
    assert len(read_examples(tmp_path)) == 22


def test_only_examples_known_in_a_span_are_read(tmp_path: Path) -> None:
    """From its start, without its end, from a file and from a folder."""
    sent = encoded(20, id_columns=1, dense=1)
    sent.known_ms = np.arange(20)
    write_examples(tmp_path / "e.parquet", sent, SPEC)
    for path in (tmp_path, tmp_path / "e.parquet"):
        got = read_examples(path, known_ms=(5, 9))
        assert got.columns["known_ms"].tolist() == [5, 6, 7, 8]
        assert np.array_equal(got.rows.ids, sent.ids[5:9])


def test_a_part_of_other_offsets_than_its_name_is_refused(tmp_path: Path) -> None:
    """Nothing is written."""
    sent = encoded(2, id_columns=1, dense=1)
    with pytest.raises(ArchiveError, match=r"offsets 3..9 must lie in .*first_offset=3, next_offset=9"):
        write_part(
            tmp_path,
            DAY,
            LogRange(0, 3, 9),
            sent,
            SPEC,
            offset=np.array([3, 9]),
            ordinal=np.zeros(2, np.int32),
        )
    assert list(tmp_path.iterdir()) == []


def test_a_folder_must_hold_examples_of_one_spec(tmp_path: Path) -> None:
    """An empty folder and a mixed one are both refused."""
    with pytest.raises(ArchiveError, match="holds no"):
        read_examples(tmp_path)
    write_examples(tmp_path / "a.parquet", encoded(4, id_columns=1, dense=1), SPEC)
    other = SimpleNamespace(name="toy", hash="f" * 16)
    write_examples(tmp_path / "b.parquet", encoded(4, id_columns=1, dense=1), other)
    with pytest.raises(ArchiveError, match=f"b.parquet was encoded with feature spec {other.hash}"):
        read_examples(tmp_path)
