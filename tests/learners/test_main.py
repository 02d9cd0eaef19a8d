"""``python -m learners``."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from learners.__main__ import app
from learners.examples.archive_parts import LogRange
from learners.examples.archive_writer import write_examples, write_part
from learners.features.hashing import FieldHasher
from learners.features.spec import load_spec
from learners.snapshots.next_base import waiting_base
from learners.snapshots.snapshot import load_snapshot
from tests.learners.archived import encoded
from tests.learners.torchrun import torchrun

KUAIRAND = load_spec("kuairand")
run = CliRunner(env={"MILLSTREAM_CLICK_WINDOW_S": "0"})  # all of the made-up clicks are in the archive


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Examples of a built-in spec."""
    path = tmp_path_factory.mktemp("archive") / "examples.parquet"
    made = encoded(700, id_columns=KUAIRAND.id_columns, dense=KUAIRAND.dense_inputs)
    write_examples(path, made, KUAIRAND)
    return path


@pytest.fixture(scope="module")
def trained(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of a base training."""
    out = tmp_path_factory.mktemp("snapshots")
    result = run.invoke(app, ["base", "--examples", str(archive), "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def test_base_writes_version_1_with_its_watermark(trained: dict[str, Any]) -> None:
    """The snapshot loads under its spec and stands where the examples end."""
    snapshot = load_snapshot(str(trained["url"]), spec_hash=KUAIRAND.hash)
    assert (snapshot.version, snapshot.created_from) == (1, "base")
    assert snapshot.watermark_ms == trained["watermark_ms"]
    assert trained["rows"] == 700
    assert trained["weights_sha256"] == [snapshot.model().weights_sha256()]


def test_base_reports_the_holdout_by_decile_and_segment(trained: dict[str, Any]) -> None:
    """Every row of it once in each."""
    report = trained["report"]
    assert report["overall"]["rows"] == trained["holdout"]["rows"] == 70
    for cut in (report["deciles"], *report["segments"].values()):
        assert sum(one["rows"] for one in cut) == 70
    assert {"user", "hour", "tab", "video_type"} <= set(report["segments"])


def test_base_reports_for_people(archive: Path, tmp_path: Path) -> None:
    """Tables under headings; nothing but the report on stdout."""
    result = run.invoke(app, ["base", "--examples", str(archive), "--out", str(tmp_path), "--segment", "tab"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["rows", "CTR", "mean", "p", "AUC", "log", "loss", "NE", "O/E", "holdout"]
    assert [line.split("  ")[-1] for line in lines if "  by " in line] == ["by decile of p", "by tab"]
    assert lines[-1] == f"700 rows learned; snapshot {tmp_path / 'v000000000001'}"


def test_a_folder_of_parts_trains_the_same_base(archive: Path, trained: dict[str, Any], tmp_path: Path) -> None:
    """Parts overlap, and lie in any order; the examples are the same."""
    made = encoded(700, id_columns=KUAIRAND.id_columns, dense=KUAIRAND.dense_inputs)
    day = np.datetime64("2023-11-14").astype(object)
    for first, stop in [(300, 700), (0, 400)]:
        cut = {name: column[first:stop] for name, column in vars(made).items()}
        log_range, ordinal = LogRange(0, first, stop), np.zeros(stop - first, np.int32)
        sent = type(made)(**cut)
        write_part(tmp_path / "a", day, log_range, sent, KUAIRAND, offset=np.arange(first, stop), ordinal=ordinal)
    arguments = ["base", "--examples", str(tmp_path / "a"), "--out", str(tmp_path / "b"), "--json"]
    result = run.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["weights_sha256"] == trained["weights_sha256"]
    assert load_snapshot(report["url"]).offsets == {0: 700}


def test_base_trains_the_model_of_a_file(archive: Path, tmp_path: Path) -> None:
    """A conversion head beside the click head needs settings only."""
    (tmp_path / "model.toml").write_text('heads = [{ name = "click" }, { name = "conversion", given = "click" }]')
    arguments = ["base", "--examples", str(archive), "--out", str(tmp_path / "out"), "--json"]
    result = run.invoke(app, [*arguments, "--model", str(tmp_path / "model.toml"), "--seed", "4"])
    assert result.exit_code == 0, result.output
    snapshot = load_snapshot(json.loads(result.stdout)["url"], spec_hash=KUAIRAND.hash)
    assert (snapshot.model().heads.names, snapshot.config.seed) == (("click", "conversion"), 4)


def test_base_takes_only_the_days_it_is_told(archive: Path, tmp_path: Path) -> None:
    """The events are of 2023-11-15 of UTC+8."""
    arguments = ["base", "--examples", str(archive), "--out", str(tmp_path), "--json"]
    result = run.invoke(app, [*arguments, "--until", "2023-11-14"])
    assert result.exit_code == 2
    assert "0 mature exposures" in result.stderr
    result = run.invoke(app, [*arguments, "--since", "2023-11-15", "--until", "2023-11-15"])
    assert json.loads(result.stdout)["rows"] == 700


def test_base_goes_on_from_a_checkpoint(archive: Path, trained: dict[str, Any], tmp_path: Path) -> None:
    """A second run with --resume ends in the same weights."""
    common = ["base", "--examples", str(archive), "--checkpoints", str(tmp_path / "c"), "--json"]
    for name, options in (("a", ["--checkpoint-steps", "2"]), ("b", ["--resume"])):
        result = run.invoke(app, [*common, "--out", str(tmp_path / name), *options])
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["weights_sha256"] == trained["weights_sha256"]
    assert len(list((tmp_path / "c").iterdir())) == 3


def test_two_processes_train_one_base(archive: Path, trained: dict[str, Any], tmp_path: Path) -> None:
    """Their weights are equal to the bit, and nearly those of one process; the first one writes."""
    arguments = ["base", "--examples", str(archive), "--out", str(tmp_path), "--click-window-s", "0", "--json"]
    ended = torchrun("-m", "learners", *arguments)
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert len(report["weights_sha256"]) == 2
    assert len(set(report["weights_sha256"])) == 1
    assert report["holdout"]["log_loss"] == pytest.approx(trained["holdout"]["log_loss"], abs=1e-3)
    snapshot = load_snapshot(report["url"], spec_hash=KUAIRAND.hash)
    assert snapshot.model().weights_sha256() == report["weights_sha256"][0]


def test_inspect_prints_what_a_snapshot_holds(trained: dict[str, Any]) -> None:
    """Both as text and as JSON."""
    result = run.invoke(app, ["inspect", str(trained["url"]), "--json"])
    facts = json.loads(result.stdout)
    assert facts["shape"]["spec_hash"] == KUAIRAND.hash
    assert facts["weights"]["sha256"] == trained["weights_sha256"][0]
    text = run.invoke(app, ["inspect", str(trained["url"])])
    assert text.exit_code == 0
    assert KUAIRAND.hash in text.stdout


def test_inspect_fails_on_what_is_no_snapshot(tmp_path: Path) -> None:
    """Exit 1, with the path and the reason on stderr."""
    result = run.invoke(app, ["inspect", str(tmp_path / "v000000000001")])
    assert result.exit_code == 1
    assert "v000000000001 has no readable manifest.json" in result.stderr


def test_a_base_beside_other_versions_must_tell_its_offsets(archive: Path, trained: dict[str, Any]) -> None:
    """Without them the learner that goes over to it would learn examples twice: exit 2, and why."""
    out = str(Path(str(trained["url"])).parent)
    result = run.invoke(app, ["base", "--examples", str(archive), "--out", out])
    assert result.exit_code == 2
    assert "has version 1 of a stream" in result.stderr
    assert "does not say where in its log they stand" in result.stderr


def test_a_base_tells_up_to_where_in_the_log_it_reaches(archive: Path, tmp_path: Path) -> None:
    """In an empty store as version 1, in one that is in use as one that waits; never for a new log."""
    made = encoded(700, id_columns=KUAIRAND.id_columns, dense=KUAIRAND.dense_inputs)
    offset, ordinal = np.arange(700) // 7, (np.arange(700) % 7).astype(np.int32)
    write_part(tmp_path / "a", date(2026, 1, 5), LogRange(3, 0, 100), made, KUAIRAND, offset=offset, ordinal=ordinal)
    out = tmp_path / "s"
    arguments = ["base", "--examples", str(tmp_path / "a"), "--out", str(out)]
    first = json.loads(run.invoke(app, [*arguments, "--json"]).stdout)
    assert (first["url"], first["waits"]) == (str(out / "v000000000001"), False)
    assert load_snapshot(first["url"]).offsets == {3: 100}
    second = run.invoke(app, arguments)
    assert "the learner goes over to it at its next start" in second.stdout
    waiting = waiting_base(str(out))
    assert waiting is not None
    assert (waiting.version, waiting.offsets) == (1, {3: 100})
    refused = run.invoke(app, [*arguments, "--new-log"])
    assert refused.exit_code == 2
    assert "it is to begin a new log" in refused.stderr
    arguments[-1] = str(tmp_path / "n")
    assert run.invoke(app, [*arguments, "--new-log"]).exit_code == 0
    assert load_snapshot(str(tmp_path / "n" / "v000000000001")).offsets == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--spec", "marketplace"], KUAIRAND.hash),
        (["--spec", "nonsense"], "nonsense"),
        (["--order", "backwards"], "backwards"),
        (["--epochs", "0"], "epochs=0"),
        (["--negative-rate", "0"], "negative_rate=0"),
        (["--since", "yesterday"], "yesterday"),
        (["--segment", "colour"], "colour"),
        (["--device", "tpu"], "tpu"),
        (["--resume"], "--checkpoints"),
        (["--examples", "nowhere"], "nowhere cannot be read"),
        (["--values", "nowhere.json"], "nowhere.json"),
    ],
)
def test_base_says_what_is_wrong_with_its_usage(
    archive: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    """Exit 2, the wrong value on stderr, no snapshot."""
    result = run.invoke(app, ["base", "--examples", str(archive), "--out", str(tmp_path), *options])
    assert result.exit_code == 2
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("label", pa.array([-1] * 2 + [0] * 698), "label -1 in row 1 and in 1 more: it must be 0 to 1"),
        ("label", pa.array([0, None] + [0] * 698), "label null in row 2: it must be a value"),
        ("label", pa.array([0.5] * 700), "label as double, which must be whole numbers"),
        ("label", pa.array([np.nan] * 700), "label as double, which must be whole numbers"),
        ("kind", pa.array([0] * 699 + [-1]), "kind -1 in row 700: it must be 0 to 2"),
        ("known_ms", pa.array([None] + [1_700_000_000_000] * 699), "known_ms null in row 1"),
        ("ts_ms", pa.array([-5] * 700), "ts_ms -5 in row 1 and in 699 more: it must be 0 or more"),
        ("p", pa.array([0.5] * 699 + [np.nan]), "p nan in row 700: it must be 0 to 1"),
        ("partition", pa.array(["a"] * 700), "partition as string"),
    ],
)
def test_a_column_of_another_type_or_out_of_its_bounds_is_named_with_file_and_row(
    archive: Path, tmp_path: Path, column: str, values: pa.Array[Any], message: str
) -> None:
    """Nothing is learned of it: a label of -1 is no click."""
    table, path = pq.read_table(archive), tmp_path / "e.parquet"
    pq.write_table(table.set_column(table.column_names.index(column), column, values), path)
    result = run.invoke(app, ["base", "--examples", str(path), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert f"{path} holds {message}" in result.stderr
    assert not (tmp_path / "out").exists()


def test_values_give_segments_their_names(archive: Path, tmp_path: Path) -> None:
    """A file that does not map fields to lists is refused."""
    values = tmp_path / "values.json"
    arguments = ["base", "--examples", str(archive), "--values", str(values), "--json"]
    values.write_text('["NORMAL"]')
    result = run.invoke(app, [*arguments, "--out", str(tmp_path / "a")])
    assert result.exit_code == 2
    assert "values.json must hold an object of lists" in result.stderr
    values.write_text('{"tab": ["home"]}')
    made = encoded(100, id_columns=KUAIRAND.id_columns, dense=KUAIRAND.dense_inputs)
    made.ids[:, KUAIRAND.field_index("tab")] = FieldHasher("tab", "context.tab").id("home")
    write_examples(tmp_path / "e.parquet", made, KUAIRAND)
    arguments[2] = str(tmp_path / "e.parquet")
    result = run.invoke(app, [*arguments, "--out", str(tmp_path / "b")])
    assert [one["name"] for one in json.loads(result.stdout)["report"]["segments"]["tab"]] == ["home"]


def test_a_base_that_diverges_is_a_failure(tmp_path: Path) -> None:
    """Exit 1, no snapshot."""
    made = encoded(400, id_columns=KUAIRAND.id_columns, dense=KUAIRAND.dense_inputs)
    made.dense[:] = 1e30
    write_examples(tmp_path / "e.parquet", made, KUAIRAND)
    out = tmp_path / "out"
    result = run.invoke(app, ["base", "--examples", str(tmp_path / "e.parquet"), "--out", str(out)])
    assert result.exit_code == 1
    assert "must be finite" in result.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("label", 2, "holds label 2"),
        ("kind", 3, "holds kind 3"),
        ("dense", np.nan, "dense inputs hold nan"),
        ("weight", np.nan, "weights hold nan"),
        ("weight", -1.0, "must not be negative"),
        ("weight", 1e7, "must not exceed"),
    ],
)
@pytest.mark.parametrize("row", [10, 690])
def test_examples_that_cannot_be_learned_are_bad_usage(
    column: str, value: float, message: str, row: int, tmp_path: Path
) -> None:
    """Among the oldest and among the newest: exit 2, the value on stderr, no snapshot."""
    made = encoded(700, id_columns=KUAIRAND.id_columns, dense=KUAIRAND.dense_inputs)
    made.weight = np.ones(700, np.float32)
    getattr(made, column)[np.argsort(made.known_ms, kind="stable")[row]] = value
    write_examples(tmp_path / "e.parquet", made, KUAIRAND)
    out = tmp_path / "out"
    result = run.invoke(app, ["base", "--examples", str(tmp_path / "e.parquet"), "--out", str(out)])
    assert result.exit_code == 2
    assert message in result.stderr
    assert not out.exists()
