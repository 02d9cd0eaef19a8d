"""Files that are not what they are called end with exit 2 and a message, and nothing is measured of another column."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from calibration.__main__ import app

run = CliRunner()
ROWS = "1.5,1,0.5\n-1.5,0,0.5\n0.5,1,0.5\n"


def report(path: Path, *more: str) -> tuple[int, str]:
    """Exit code and what was said; a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = run.invoke(app, ["report", str(path), *more])
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found.exit_code, found.stderr if found.exit_code else found.stdout


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8"])
def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path, encoding: str) -> None:
    """The logit is measured, not the p beside it: fit needs it."""
    path = tmp_path / "rows.csv"
    path.write_text("logit,label,p\n" + ROWS, encoding=encoding)
    assert run.invoke(app, ["fit", str(path), "--out", str(tmp_path / "map"), "--json"]).exit_code == 0
    applied = run.invoke(app, ["apply", str(path), "--map", str(tmp_path / "map")])
    assert [line.split(",")[0] for line in applied.stdout.splitlines()] == ["logit", "1.5", "-1.5", "0.5"]


@pytest.mark.parametrize("name", ["Logit", "LOGIT", "logits", "logt", "lgoit", "log_it", "\ufeff\ufefflogit", "logit:"])
def test_a_name_that_is_nearly_there_is_an_error(tmp_path: Path, name: str) -> None:
    """In each format: the p beside it would be measured as if it had been asked for."""
    csv, parquet, npz = tmp_path / "rows.csv", tmp_path / "rows.parquet", tmp_path / "rows.npz"
    csv.write_text(f"{name},label,p\n{ROWS}", encoding="utf-8")
    columns = {name: np.zeros(3), "label": np.array([1, 0, 1]), "p": np.full(3, 0.5)}
    pyarrow.parquet.write_table(pa.table(columns), parquet)
    np.savez(npz, **columns)  # type: ignore[arg-type]
    for path in (csv, parquet, npz):
        code, said = report(path)
        assert code == 2
        assert "nearly 'logit'" in said


@pytest.mark.parametrize(
    ("header", "message"),
    [("logit,logit,label", "2 columns 'logit'"), ("Label,p,x", "nearly 'label'"), ("P,label,x", "nearly 'p'")],
)
def test_other_names_that_could_be_meant(tmp_path: Path, header: str, message: str) -> None:
    """Twice, or in capitals."""
    path = tmp_path / "rows.csv"
    path.write_text(f"{header}\n{ROWS}")
    code, said = report(path)
    assert code == 2
    assert message in said


def test_other_columns_are_left_alone(tmp_path: Path) -> None:
    """Names that only resemble each other in sound or sense, and any beside the right one."""
    path = tmp_path / "rows.csv"
    path.write_text("logit,label,p,logits,login,value,pp\n" + "".join(f"{row},1,2,3,4\n" for row in ROWS.split()))
    assert report(path)[0] == 0


@pytest.mark.parametrize(("value", "said"), [("1e39", "1e+39"), ("-1e300", "-1e+300"), ("inf", "inf"), ("nan", "nan")])
def test_a_logit_that_no_float32_holds_is_named_with_its_row(tmp_path: Path, value: str, said: str) -> None:
    """The row of the file, no warning of numpy's, whatever is asked."""
    path = tmp_path / "rows.csv"
    path.write_text(f"logit,label\n1,1\n-1,0\n{value},1\n2,0\n")
    for command in (["report"], ["fit", "--out", str(tmp_path / "map")]):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = run.invoke(app, [command[0], str(path), *command[1:]])
        assert found.exit_code == 2
        assert f"logit={said} in row 3 is not finite, or beyond float32" in found.stderr
    path.write_text("logit,label\n3.4e38,1\n-3.4e38,0\n")
    assert report(path)[0] == 0


BAD_LABELS: dict[str, tuple[Any, str]] = {
    "255": ([1, 0, 255], "label=255 in row group 1, row 1 is outside {0, 1}"),
    "-1": ([-1, 0, 1], "label=-1 in row group 0, row 1"),
    "null": ([1, None, 0], "label=nan in row group 0, row 2"),
    "a half": ([1.0, 0.0, 0.5], "label=0.5 in row group 1, row 1"),
    "text": (["1", "no", "0"], "label='no' in row group 0, row 2 is not a number"),
    "lists": ([[1], [0], [1]], "label"),
    "times": (pa.array([1, 0, 1], pa.timestamp("s")), "label"),
    "nothing": (pa.nulls(3), "label"),
    "structs": ([{"a": 1}, {"a": 2}, {"a": 3}], "label"),
    "2^70": (pa.array([1, 0, 2**70], pa.decimal128(38)), "label=1.18059e+21 in row group 1, row 1"),
}


@pytest.mark.parametrize("what", BAD_LABELS)
def test_a_label_that_is_none_is_named_with_its_row_group(tmp_path: Path, what: str) -> None:
    """Also in a folder, with the file."""
    labels, message = BAD_LABELS[what]
    table = pa.table({"label": labels, "logit": [0.1, 0.2, 0.3]})
    (tmp_path / "f").mkdir()
    for path in (tmp_path / "rows.parquet", tmp_path / "f" / "part.parquet"):
        pyarrow.parquet.write_table(table, path, row_group_size=2)
    code, said = report(tmp_path / "rows.parquet")
    assert (code, message in said) == (2, True), said
    assert "part.parquet" in report(tmp_path / "f")[1] or "row" not in message


def events(**columns: Any) -> pa.Table:
    """Examples, two displays and a click, with some columns replaced."""
    good = {
        "kind": np.array([0, 0, 1], np.uint8),
        "impression_id": [5, 6, 5],
        "ts_ms": [1000, 2000, 1000],
        "known_ms": [1000, 2000, 10_000_000],
        "logit": [0.1, 0.2, 0.1],
    }
    return pa.table(good | columns)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"kind": [0, 0, 255]}, "kind=255 in row group 1, row 1 is outside {0, 1, 2}"),
        ({"kind": [0, None, 1]}, "kind holds null in row group 0, row 2"),
        ({"kind": [0.0, 0.0, 1.0]}, "kind holds values of float64"),
        ({"kind": ["0", "0", "1"]}, "kind"),
        ({"ts_ms": [-1, 2, 3]}, "ts_ms=-1 in row group 0, row 1"),
        ({"known_ms": [1000, 2000, 2**62]}, "known_ms=4.61169e+18 in row group 1, row 1"),
        ({"known_ms": [1000, None, 2000]}, "known_ms holds null in row group 0, row 2"),
        ({"impression_id": [5, None, 5]}, "impression_id holds null in row group 0, row 2"),
        ({"model_version": [-5, 1, 1]}, "model_version=-5 in row group 0, row 1"),
        ({"logit": [0.1, 0.2, float("nan")]}, "logit=nan in row group 1, row 1"),
    ],
)
def test_an_event_that_is_none_is_named(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    """It would be passed over in silence, or counted as another."""
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(events(), path)
    assert report(path)[0] == 0
    pyarrow.parquet.write_table(events(**columns), path, row_group_size=2)
    code, said = report(path)
    assert code == 2
    assert message in said or (None in columns.get("kind", []) and "kind holds null in row group 0, row 2" in said), (
        said
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", "logit,label\n1,1\n".encode("utf-16")),
        ("rows.csv", b"\x00\x01\x02"),
        ("rows.csv", b""),
        ("rows.csv", b"logit;label\n1;1\n"),
        ("rows.csv", b'logit,label\n"1,1\n'),
        ("rows.csv", b"logit,label\n1\n"),
        ("rows.csv", b"logit,label\n,1\n"),
        ("rows.csv", b"logit,label\n" + b"9" * 200_000 + b",1\n"),
        ("rows.parquet", b""),
        ("rows.parquet", b"PAR1" + b"\xff" * 60 + b"PAR1"),
        ("rows.npz", b"PK\x03\x04"),
        ("rows.npz", b""),
        ("rows", b"logit,label\n1,1\n"),
    ],
)
def test_what_is_no_such_file_is_said(tmp_path: Path, name: str, content: bytes) -> None:
    """Exit 2, the path, no traceback."""
    path = tmp_path / name
    path.write_bytes(content)
    code, said = report(path)
    assert code == 2
    assert str(path) in said or "column" in said
    assert len(said) < 600


def test_arrays_that_are_no_numbers(tmp_path: Path) -> None:
    """Dates, structures, complex numbers and objects in an .npz."""
    for values in (
        np.array(["2020-01-01", "2020-01-02"], "M8[s]"), np.zeros(2, [("a", "f8")]), np.array([1j, 2]),
        np.zeros((2, 2)), np.array([1, None], object), np.array(5.0), np.array(["x", "1"]),
    ):  # fmt: skip
        np.savez(tmp_path / "rows.npz", logit=values, label=np.array([0, 1]))
        code, said = report(tmp_path / "rows.npz")
        assert code == 2, values
        assert "rows.npz" in said


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=80), at=st.integers(0, 60))
def test_whatever_stands_in_a_csv_or_a_map_it_is_measured_or_refused(tmp_path: Path, data: bytes, at: int) -> None:
    """Never another exit code, never a warning."""
    good = ("logit,label,p\n" + ROWS).encode()
    path = tmp_path / "rows.csv"
    path.write_bytes(good[:at] + data + good[at + len(data) // 2 :])
    assert report(path)[0] in (0, 2)
    path.write_bytes(good)
    (tmp_path / "map").unlink(missing_ok=True)
    assert run.invoke(app, ["fit", str(path), "--out", str(tmp_path / "map")]).exit_code == 0
    whole = (tmp_path / "map").read_bytes()
    (tmp_path / "map").write_bytes(whole[:at] + data + whole[at:])
    found = run.invoke(app, ["apply", str(path), "--map", str(tmp_path / "map")])
    assert found.exit_code == (0 if not data else 2), found.output
