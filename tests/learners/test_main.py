"""``python -m learners``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from learners.__main__ import app
from learners.archive import write_examples
from learners.snapshot import load_snapshot
from learners.spec import load_spec
from tests.learners.archived import encoded

KUAIRAND = load_spec("kuairand")
run = CliRunner()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Examples of a built-in spec."""
    path = tmp_path_factory.mktemp("archive") / "examples.parquet"
    made = encoded(700, id_columns=KUAIRAND.id_columns, dense=KUAIRAND.dense_inputs)
    write_examples(path, made, KUAIRAND)
    return path


@pytest.fixture(scope="module")
def trained(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The report of a base training."""
    out = tmp_path_factory.mktemp("snapshots")
    result = run.invoke(app, ["base", "--examples", str(archive), "--out", str(out), "--json"])
    assert result.exit_code == 0, result.output
    report: dict[str, object] = json.loads(result.stdout)
    return report


def test_base_writes_version_1_with_its_watermark(trained: dict[str, object]) -> None:
    """The snapshot loads under its spec and stands where the examples end."""
    snapshot = load_snapshot(str(trained["url"]), spec_hash=KUAIRAND.hash)
    assert (snapshot.version, snapshot.created_from) == (1, "base")
    assert snapshot.watermark_ms == trained["watermark_ms"]
    assert trained["rows"] == 700


def test_base_reports_the_held_out_tail(archive: Path, tmp_path: Path) -> None:
    """Rows, AUC, log loss, NE and O/E for people; nothing but the report on stdout."""
    result = run.invoke(app, ["base", "--examples", str(archive), "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    heading, *rows, last = result.stdout.splitlines()
    assert heading.split() == ["rows", "AUC", "log", "loss", "NE", "O/E"]
    assert rows[-1].split()[0] == "70"
    assert rows[-1].endswith("holdout")
    assert last == f"700 rows learned; snapshot {tmp_path / 'v000000000001'}"


def test_inspect_prints_what_a_snapshot_holds(trained: dict[str, object]) -> None:
    """Both as text and as JSON."""
    result = run.invoke(app, ["inspect", str(trained["url"]), "--json"])
    facts = json.loads(result.stdout)
    assert facts["shape"]["spec_hash"] == KUAIRAND.hash
    assert facts["weights"]["sha256"] == load_snapshot(str(trained["url"])).model().weights_sha256()
    text = run.invoke(app, ["inspect", str(trained["url"])])
    assert text.exit_code == 0
    assert KUAIRAND.hash in text.stdout


def test_inspect_fails_on_what_is_no_snapshot(tmp_path: Path) -> None:
    """Exit 1, with the path and the reason on stderr."""
    result = run.invoke(app, ["inspect", str(tmp_path / "v000000000001")])
    assert result.exit_code == 1
    assert "v000000000001 has no readable manifest.json" in result.stderr


def test_base_refuses_a_store_that_already_holds_a_version(archive: Path, trained: dict[str, object]) -> None:
    """A base of version 1 would be older than what is there."""
    out = str(Path(str(trained["url"])).parent)
    result = run.invoke(app, ["base", "--examples", str(archive), "--out", out])
    assert result.exit_code == 2
    assert "already holds version 1" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--spec", "marketplace"], KUAIRAND.hash),
        (["--spec", "nonsense"], "nonsense"),
        (["--order", "backwards"], "backwards"),
        (["--epochs", "0"], "epochs=0"),
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
