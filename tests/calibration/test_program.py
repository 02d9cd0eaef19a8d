"""`python -m calibration` on files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

import calibration
from calibration.__main__ import app
from calibration.curve import CalibrationMap
from tests.calibration.rows import drifting_stream

run = CliRunner()


@pytest.fixture(params=["csv", "npz", "parquet"])
def biased_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """5,000 rows whose logits are 0.5 too high, in each format."""
    stream = drifting_stream(0, 5_000, start=0.0, stop=0.0, bias=0.5)
    path = tmp_path / f"rows.{request.param}"
    if request.param == "csv":
        lines = [f"{i},{y:d},{x}" for i, (x, y) in enumerate(zip(stream.logits, stream.labels, strict=True))]
        path.write_text("\n".join(["id,label,logit", *lines]) + "\n")
    elif request.param == "npz":
        np.savez(path, label=stream.labels, logit=stream.logits)
    else:
        pyarrow.parquet.write_table(pa.table({"label": stream.labels, "logit": stream.logits}), path)
    return path


def test_fit_then_apply_then_report_calibrates_a_file(biased_file: Path, tmp_path: Path) -> None:
    """A biased file reports O/E off 1; fitted and applied, the result reports within 1 %."""
    before = json.loads(run.invoke(app, ["report", str(biased_file), "--json"]).stdout)
    assert before["observed_over_expected"] < 0.9
    assert before["rows"] == sum(row["rows"] for row in before["table"]) == 5_000

    curve, out = tmp_path / "map", tmp_path / "out.csv"
    fitted = run.invoke(app, ["fit", str(biased_file), "--out", str(curve), "--json"])
    assert json.loads(fitted.stdout)["observed_over_expected_after"] == pytest.approx(1.0, abs=0.01)
    assert run.invoke(app, ["apply", str(biased_file), "--map", str(curve), "--out", str(out)]).exit_code == 0

    logits, p = np.loadtxt(out, delimiter=",", skiprows=1).T
    expected = CalibrationMap.from_bytes(curve.read_bytes()).apply(logits)
    np.testing.assert_allclose(p, expected, rtol=1e-6)


def test_report_prints_a_table(tmp_path: Path) -> None:
    """Text goes to standard output: a summary line, a header, a line a group."""
    path = tmp_path / "rows.csv"
    path.write_text("label,p\n1,0.5\n0,0.5\n1,0.75\n1,0.75\n")
    result = run.invoke(app, ["report", str(path), "--bins", "2"])
    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == "rows 4  O/E 1.2000  ECE 0.12500"
    assert len(result.stdout.splitlines()) == 4


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """A folder of two parts of examples: logits too sure, p right, the last minute's exposures without their clicks."""
    random = np.random.default_rng(0)
    n = 6_000
    true = random.normal(-1, 1, n)
    clicked = np.flatnonzero((random.random(n) < 1 / (1 + np.exp(-true))) & (np.arange(n) < n - 100))
    rows = np.concatenate([np.arange(n), clicked])
    kind = np.repeat(np.array([0, 1], np.uint8), [n, len(clicked)])
    table = pa.table(
        {
            "kind": kind,
            "impression_id": rows.astype(np.uint64) + np.uint64(2**63),
            "ts_ms": rows * 600,
            "known_ms": rows * 600 + 7_000 * kind.astype(np.int64),
            "logit": (1.5 * true[rows]).astype(np.float32),
            "p": (1 / (1 + np.exp(-true[rows]))).astype(np.float32),
            "ids": pa.FixedSizeListArray.from_arrays(pa.array(np.repeat(rows % 3, 2).astype(np.uint64)), 2),
            "dense": pa.FixedSizeListArray.from_arrays(pa.array(true[rows].astype(np.float32)), 1),
        }
    )
    (tmp_path / "log").mkdir()
    pyarrow.parquet.write_table(table.slice(0, n), tmp_path / "log" / "a.parquet")
    pyarrow.parquet.write_table(table.slice(n - 50), tmp_path / "log" / "b.parquet")  # some exposures again
    return tmp_path / "log"


def test_examples_become_labelled_rows_compared_before_and_after(examples: Path, tmp_path: Path) -> None:
    """Exposures with their clicks, each once, without those that are young; p is better than the logit everywhere."""
    out = tmp_path / "picture.svg"
    options = ["--click-window-s", "60", "--slice", "ids[1]", "--slice", "dense[0]:-1,0", "--out", str(out)]
    found = json.loads(run.invoke(app, ["compare", str(examples), *options, "--json"]).stdout)
    assert found["overall"]["rows"] == 5_900
    assert found["overall"]["observed_over_expected_after"] == pytest.approx(1.0, abs=0.03)
    assert found["overall"]["log_loss_after"] < found["overall"]["log_loss_before"] - 0.01
    assert sum(line["rows"] for line in found["deciles"]) == 5_900
    lowest, highest = found["deciles"][0], found["deciles"][-1]
    assert lowest["observed_over_expected_before"] > 1.2 > highest["observed_over_expected_before"] * 1.3
    assert [line["name"] for line in found["slices"]["ids[1]"]] == ["0", "1", "2"]
    assert [line["name"] for line in found["slices"]["dense[0]:-1,0"]] == ["[-1, 0)", "[-inf, -1)", "[0, inf)"]
    assert "<svg" in out.read_text()
    text = run.invoke(app, ["compare", str(examples), *options]).stdout
    assert "by ids[1]" in text
    assert len(text.splitlines()) == 2 + 10 + 2 * 2 + 3 + 3
    report = run.invoke(app, ["report", str(examples), "--slice", "ids[1]", "--click-window-s", "60"]).stdout
    assert report.splitlines()[0].startswith("rows 5900")
    assert "by ids[1]" in report


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--slice", "colour"], "slice 'colour' is no column; there are kind,"),
        (["--slice", "ids[2]"], "the lists of ids hold 2 values"),
        (["--out", "picture.txt"], "suffix '.txt' is not one of .png, .svg"),
        (["--map", "none"], "no such file"),
    ],
)
def test_what_cannot_be_compared_exits_2(examples: Path, options: list[str], message: str) -> None:
    """The message names it."""
    result = run.invoke(app, ["compare", str(examples), *options])
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_without_matplotlib_the_message_says_what_to_install(
    examples: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The figures need nothing."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run.invoke(app, ["compare", str(examples)]).exit_code == 0
    result = run.invoke(app, ["compare", str(examples), "--out", str(tmp_path / "a.png")])
    assert result.exit_code == 2
    assert "pip install 'millstream[plot]'" in result.stderr


@pytest.mark.parametrize("verb", [["report", "--json"], ["compare"], ["fit", "--out", "map"]])
def test_a_file_without_rows_is_no_success(tmp_path: Path, verb: list[str]) -> None:
    """A header alone has nothing to measure: exit 2, no figures."""
    path = tmp_path / "rows.csv"
    path.write_text("label,logit,p\n")
    result = run.invoke(app, [verb[0], str(path), *verb[1:]])
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{path} has 0 rows" in result.stderr


def test_examples_that_are_all_young_name_the_option(examples: Path) -> None:
    """Their clicks may still come; the message says how many they are and what takes another age."""
    result = run.invoke(app, ["report", str(examples), "--click-window-s", "6000"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "all 6050 exposures are younger than 6000 s; --click-window-s takes another age" in result.stderr


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("model_version", "these rows were served by no model (model_version 0)"),
        ("label", "has the columns kind and label"),
    ],
)
@pytest.mark.parametrize("verb", ["report", "compare"])
def test_examples_that_say_nothing_of_a_model_are_refused(
    examples: Path, tmp_path: Path, verb: str, column: str, message: str
) -> None:
    """A base's archive holds logit 0 and p 0.5; rows with a label beside kind would count clicks as displays."""
    table, path = pyarrow.parquet.read_table(examples), tmp_path / "e.parquet"
    pyarrow.parquet.write_table(table.append_column(column, pa.array([0] * len(table))), path)
    result = run.invoke(app, [verb, str(path)])
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"{path}: {message}" in result.stderr


def test_a_picture_of_one_probability_has_one_line(examples: Path, tmp_path: Path) -> None:
    """A report of p alone was corrected by nothing: no before and after."""
    pytest.importorskip("matplotlib")
    table = pyarrow.parquet.read_table(examples).drop_columns(["logit"])
    pyarrow.parquet.write_table(table, tmp_path / "e.parquet")
    for source, lines in ((tmp_path / "e.parquet", 2), (examples, 3)):
        options = ["--click-window-s", "60", "--out", str(tmp_path / "p.svg")]
        assert run.invoke(app, ["report", str(source), *options]).exit_code == 0
        drawn = (tmp_path / "p.svg").read_text()
        assert drawn.count("<!-- before -->") == drawn.count("<!-- after -->") == lines - 2
        assert drawn.count("<!-- true -->") == 1


def test_paths_that_cannot_be_used_are_named_without_an_errno(tmp_path: Path) -> None:
    """A picture in a folder that is not there, a CSV of other bytes."""
    path = tmp_path / "rows.csv"
    path.write_text("label,p\n1,0.5\n")
    out = tmp_path / "nodir" / "x.png"
    result = run.invoke(app, ["report", str(path), "--out", str(out)])
    assert result.exit_code == 2
    assert f"{out}: No such file or directory" in result.stderr
    assert "Give another path" in result.stderr
    assert "Errno" not in result.stderr
    path.write_bytes(b"label,p\n\xff\xfe,0.5\n")
    result = run.invoke(app, ["report", str(path)])
    assert result.exit_code == 2
    assert f"{path}: no CSV in UTF-8" in result.stderr


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", "label,p\n1,0.5\n2,0.5\n", "label=2 in row 2 is outside {0, 1}"),
        ("rows.csv", "label,p\n1,1.5\n", "p=1.5 in row 1 is outside [0, 1]"),
        ("rows.csv", "label,logit\n1,0\n1,nan\n", "logit=nan in row 2 is not finite"),
        ("rows.csv", "label,p\n1,0.5\n1,high\n", "p='high' in row 2 is not a number"),
        ("rows.csv", "label,p\n1\n", "row 1 has 1 fields, the header 2"),
        ("rows.csv", "label,score\n1,0.5\n", "neither a column 'logit' nor 'p'"),
        ("rows.csv", "click,p\n1,0.5\n", "no column 'label'"),
        ("rows.npz", "not an archive", "not a readable .npz archive"),
        ("rows.parquet", "not parquet", "not a readable Parquet file"),
        ("rows.txt", "label,p\n", "suffix '.txt' is not one of .csv, .npz, .parquet"),
        ("rows.csv", None, "no such file"),
    ],
)
def test_bad_file_exits_2_with_the_reason(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    """Each fault is named with its row on stderr, nothing is on standard output."""
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    result = run.invoke(app, ["report", str(path)])
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_certainties_cannot_be_fitted(tmp_path: Path) -> None:
    """A p of 1 has no logit: fit names its row."""
    path = tmp_path / "rows.csv"
    path.write_text("label,p\n1,0.5\n1,1.0\n")
    result = run.invoke(app, ["fit", str(path), "--out", str(tmp_path / "map")])
    assert result.exit_code == 2
    assert "p=1.0 in row 2" in result.stderr


def test_a_file_that_is_no_map_is_refused(tmp_path: Path) -> None:
    """The program says what is wrong with the map, whether it is missing or something else."""
    path = tmp_path / "rows.csv"
    path.write_text("label,p\n1,0.5\n")
    for curve, message in [(path, "calibration map"), (tmp_path / "none", "no such file")]:
        result = run.invoke(app, ["apply", str(path), "--map", str(curve)])
        assert result.exit_code == 2
        assert message in result.stderr


def test_package_is_a_program() -> None:
    """`python -m calibration --help` names its verbs."""
    root = Path(calibration.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "calibration", "--help"], cwd=root, capture_output=True, text=True, check=True
    )
    assert all(verb in done.stdout for verb in ("report", "compare", "fit", "apply"))
