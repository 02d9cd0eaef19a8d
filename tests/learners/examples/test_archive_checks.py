"""What an archive holds is what its columns are called, or the file, row group, column and value are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from learners.examples.archive import log_reach, read_examples, spec_name_of
from learners.examples.archive_parts import ArchiveError
from learners.examples.archive_writer import write_examples
from learners.examples.examples import SCALARS
from tests.learners.archived import encoded
from tests.learners.small_spec import SMALL

COUNT = 10


@pytest.fixture
def table(tmp_path: Path) -> pa.Table:
    """Ten good examples with every column."""
    made = encoded(COUNT, id_columns=SMALL.id_columns, dense=SMALL.dense_inputs)
    write_examples(tmp_path / "good.parquet", made, SMALL)
    return pq.read_table(tmp_path / "good.parquet")


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    """The table with other values in a column."""
    at = table.column_names.index(name)
    return table.set_column(at, name, values if isinstance(values, pa.Array) else pa.array(values))


def lists(table: pa.Table, name: str, value: Any, dtype: pa.DataType | None = None) -> pa.Array[Any]:
    """The lists of a column with another value in the second place of the eighth row."""
    rows: Any = table[name].to_pylist()
    rows[7][1] = value
    of = table.schema.field(name).type
    made: pa.Array[Any] = pa.array(rows, pa.list_(dtype or of.value_type, of.list_size))
    return made


@pytest.mark.parametrize("name", SCALARS)
def test_no_column_may_lack_a_value(table: pa.Table, tmp_path: Path, name: str) -> None:
    """A null would be read as a number, whatever the column."""
    values = [*table[name].to_pylist()[:7], None, *table[name].to_pylist()[8:]]
    bad = with_column(table, name, pa.array(values, table.schema.field(name).type))
    pq.write_table(bad, tmp_path / "bad.parquet", row_group_size=4)
    with pytest.raises(ArchiveError, match=rf"bad\.parquet(: weights hold| holds {name}) null in row 8: .*row group 1"):
        read_examples(tmp_path / "bad.parquet")


OUTSIDE = {
    "impression_id": (-1, 2**64), "label": (-1, 2), "ts_ms": (-1, 2**43), "known_ms": (-1, 2**43), "kind": (-1, 3),
    "weight": (-0.5, 1e7), "user_key": (-1, 2**64), "delay_ms": (-2, 2**63), "value": (-1e39, 1e39),
    "logit": (-1e39, 1e39), "p": (-0.1, 1.1), "conversion_logit": (-1e39, 1e39), "conversion_p": (-0.1, 1.1),
    "propensity": (-0.1, 1.1), "model_version": (-1, 2**63), "click_produced_ms": (-1, 2**43),
    "partition": (-2, 2**31), "offset": (-2, 2**63), "ordinal": (-2, 2**31),
}  # fmt: skip


def test_each_column_has_bounds() -> None:
    """A new one needs its own."""
    assert OUTSIDE.keys() == SCALARS.keys()


@pytest.mark.parametrize("side", [0, 1], ids=["below", "above"])
@pytest.mark.parametrize("name", OUTSIDE)
def test_both_bounds_of_each_column_hold(table: pa.Table, tmp_path: Path, name: str, side: int) -> None:
    """In a wider type than the column's own, which would be cut to another number."""
    value, good = OUTSIDE[name][side], table[name].to_numpy().tolist()
    whole = not SCALARS[name][0].startswith("f")
    if whole and value >= 2**64:
        return  # no integer type holds it
    wide = pa.float64() if not whole else pa.uint64() if value >= 2**63 else pa.int64()
    if wide == pa.uint64():
        good = [max(0, one) for one in good]
    bad = with_column(table, name, pa.array([*good[:7], value, *good[8:]], wide))
    pq.write_table(bad, tmp_path / "bad.parquet", row_group_size=4)
    with pytest.raises(ArchiveError, match=rf"{name}.* in row 8: it must be .*row group 1") as error:
        read_examples(tmp_path / "bad.parquet")
    assert str(value) in str(error.value) or f"{value:g}" in str(error.value)


@pytest.mark.parametrize("name", [name for name, (dtype, _) in SCALARS.items() if dtype.startswith("f")])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_are_finite(table: pa.Table, tmp_path: Path, name: str, value: float) -> None:
    """NaN stands only where it says that there is none."""
    values = table[name].to_numpy().copy()
    values[7] = value
    pq.write_table(with_column(table, name, values), tmp_path / "bad.parquet")
    if np.isnan(value) and name.startswith("conversion_"):
        assert len(read_examples(tmp_path / "bad.parquet")) == COUNT
        return
    with pytest.raises(ArchiveError, match=f"{value:g} in row 8"):
        read_examples(tmp_path / "bad.parquet")


@pytest.mark.parametrize(
    ("name", "value", "dtype", "message"),
    [
        ("ids", None, None, "ids hold null in row 8"),
        ("dense", None, None, "dense inputs hold null in row 8"),
        ("dense", float("nan"), None, "dense inputs hold nan in row 8"),
        ("dense", float("inf"), None, "dense inputs hold inf in row 8"),
        ("dense", 1e39, pa.float64(), "dense inputs hold 1e[+]39 in row 8"),
    ],
)
def test_lists_are_looked_into(
    table: pa.Table, tmp_path: Path, name: str, value: Any, dtype: Any, message: str
) -> None:
    """A null among them would make floats of ids."""
    pq.write_table(with_column(table, name, lists(table, name, value, dtype)), tmp_path / "bad.parquet")
    with pytest.raises(ArchiveError, match=rf"bad\.parquet: {message}"):
        read_examples(tmp_path / "bad.parquet")


def test_ids_as_signed_numbers_are_ids_unless_one_is_negative(table: pa.Table, tmp_path: Path) -> None:
    """As some writers have no unsigned ones."""
    path = tmp_path / "ids.parquet"
    for value in (5, -5):
        rows = [[row % 7 + 1] * SMALL.id_columns for row in range(COUNT)]
        rows[7][1] = value
        signed = pa.array(rows, pa.list_(pa.int64(), SMALL.id_columns))
        pq.write_table(with_column(table, "ids", signed), path)
        if value > 0:
            found = read_examples(path)
            assert found.rows.ids.dtype == np.uint64
            assert found.rows.ids[7, 1] == 5
        else:
            with pytest.raises(ArchiveError, match="ids hold -5 in row 8"):
                read_examples(path)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("kind", ["0"] * COUNT), ("kind", [True] * COUNT), ("kind", [0.0] * COUNT), ("ts_ms", [[1]] * COUNT),
        ("ts_ms", pa.array([1] * COUNT, pa.timestamp("ms"))), ("p", ["0.5"] * COUNT), ("p", [{"a": 1}] * COUNT),
        ("ids", [[1, 2]] * COUNT), ("ids", [1] * COUNT), ("dense", [["1"] * 3] * COUNT), ("weight", pa.nulls(COUNT)),
        ("kind", pa.array(["a"] * COUNT).dictionary_encode()),
        ("impression_id", pa.array([1] * COUNT, pa.decimal128(9))),
    ],
)  # fmt: skip
def test_a_column_of_another_type_is_named(table: pa.Table, tmp_path: Path, name: str, values: Any) -> None:
    """Text, lists, times, booleans, structures."""
    pq.write_table(with_column(table, name, values), tmp_path / "bad.parquet")
    with pytest.raises(ArchiveError, match=f"bad.parquet holds {name} as"):
        read_examples(tmp_path / "bad.parquet")


def test_what_names_an_archive_is_text_and_each_column_is_there_once(table: pa.Table, tmp_path: Path) -> None:
    """Metadata that is missing or garbage, and a name that stands twice."""
    path = tmp_path / "bad.parquet"
    for metadata, message in (
        ({}, "it lacks spec_hash, spec_name"), ({"spec_hash": "a"}, "it lacks spec_name"),
        ({"spec_hash": "a\x00", "spec_name": "b"}, "which is no text"),
    ):  # fmt: skip
        pq.write_table(table.replace_schema_metadata(metadata), path)
        for read in (read_examples, log_reach, spec_name_of):
            if read is not log_reach or "lacks" in message:
                with pytest.raises(ArchiveError, match=message):
                    read(path)
    twice = table.append_column("kind", table["kind"]).replace_schema_metadata(table.schema.metadata)
    pq.write_table(twice, path)
    with pytest.raises(ArchiveError, match="holds kind 2 times"):
        read_examples(path)


def test_where_a_log_goes_on_is_no_guess(table: pa.Table, tmp_path: Path) -> None:
    """Offsets are looked at before anything is computed of them."""
    for name in ("partition", "offset", "known_ms"):
        values = [*table[name].to_pylist()[:7], None, *table[name].to_pylist()[8:]]
        bad = with_column(table, name, pa.array(values, table.schema.field(name).type))
        pq.write_table(bad, tmp_path / "bad.parquet")
        with pytest.raises(ArchiveError, match=f"holds {name} null in row 8"):
            log_reach(tmp_path / "bad.parquet")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_bytes_a_file_holds_it_is_read_or_refused(
    table: pa.Table, tmp_path: Path, data: st.DataObject
) -> None:
    """Bit flips, cuts and insertions: never another error."""
    content = bytearray((tmp_path / "good.parquet").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content) - 1))
        change = data.draw(st.sampled_from(["flip", "cut", "insert", "zero"]))
        if change == "flip":
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        elif change == "cut":
            del content[at : at + data.draw(st.integers(1, 50))]
        elif change == "insert":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=20))
        else:
            content[at : at + 8] = bytes(8)
        if not content:
            break
    path = tmp_path / "mutated.parquet"
    path.write_bytes(bytes(content))
    try:
        log_reach(path)
        found = read_examples(path)
    except ArchiveError:
        return
    assert found.rows.ids.dtype == np.uint64


def test_rows_must_say_what_they_are(table: pa.Table, tmp_path: Path) -> None:
    """Without kind and label all would be displays that nobody clicked; either of them is enough."""
    with_label = (
        table if "label" in table.column_names else table.append_column("label", pa.array([0] * COUNT, pa.uint8()))
    )
    for dropped, refused in ((["kind"], False), (["label"], False), (["kind", "label"], True)):
        pq.write_table(with_label.drop_columns(dropped), tmp_path / "some.parquet")
        if refused:
            with pytest.raises(ArchiveError, match=r"some\.parquet holds neither kind nor label: .*nobody clicked"):
                read_examples(tmp_path / "some.parquet")
        else:
            assert len(read_examples(tmp_path / "some.parquet")) == COUNT
