"""The archive of examples."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learners.archive import SCALARS, ArchiveError, read_examples, write_examples
from learners.kinds import CONVERSION, CORRECTION, SETTLED
from tests.learners.archived import encoded

SPEC = SimpleNamespace(name="toy", hash="0123456789abcdef")


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


def test_a_correction_makes_its_settled_row_a_click_and_a_conversion_is_none(tmp_path: Path) -> None:
    """Each displayed impression counts once, with its final label."""
    sent = encoded(4, id_columns=1, dense=1)
    sent.impression_id = np.array([10, 11, 10, 11], np.uint64)
    sent.kind = np.array([SETTLED, SETTLED, CORRECTION, CONVERSION], np.uint8)
    sent.label = np.array([0, 0, 1, 1], np.uint8)
    write_examples(tmp_path / "e", sent, SPEC)
    index, labels = read_examples(tmp_path / "e").settled()
    assert index.tolist() == [0, 1]
    assert labels.tolist() == [True, False]


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
