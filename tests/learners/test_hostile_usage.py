"""`python -m learners` on files and folders that are not what they should be: a line on stderr, never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from learners.__main__ import app
from learners.examples.archive_writer import write_examples
from learners.features.spec import load_spec
from tests.learners.archived import encoded

KUAIRAND = load_spec("kuairand")
run = CliRunner()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough examples to train on."""
    path = tmp_path_factory.mktemp("archive") / "e.parquet"
    write_examples(path, encoded(700, id_columns=KUAIRAND.id_columns, dense=KUAIRAND.dense_inputs), KUAIRAND)
    return path


FILES = {
    "garbage": b"\xff\xfe\x00garbage",
    "deep.json": b"[" * 100_000,
    "deep.toml": b"a = " + b"[" * 100_000,
    "big.toml": b"dim = 100000000000000000000000\n",
    "seed.toml": b"seed = -1\n",
    "threads.toml": b"threads = 100000\n",
    "wide.toml": b"hidden = [1000000000000]\n",
    "expiry.toml": b"expire_after_s = inf\n",
    "text.toml": b'dim = "x"\n',
}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--values", "garbage"], "garbage is no JSON"),
        (["--values", "deep.json"], "deep.json is no JSON"),
        (["--values", "folder"], "folder: Is a directory: it cannot be read"),
        (["--model", "garbage"], "garbage is no TOML"),
        (["--model", "deep.toml"], "deep.toml is no TOML"),
        (["--model", "folder"], "folder: Is a directory"),
        (["--model", "missing.toml"], "missing.toml: No such file or directory"),
        (["--model", "seed.toml"], "seed=-1"),
        (["--model", "threads.toml"], "threads=100000 must be at most 256"),
        (["--model", "wide.toml"], "must be at most 65536"),
        (["--model", "expiry.toml"], "expire_after_s=inf must be at least 64"),
        (["--model", "text.toml"], "text.toml: Expected `int`"),
        (["--out", "garbage"], "garbage: Not a directory: it cannot be read or written"),
        (["--out", "garbage/x"], "garbage: Not a directory"),
        (["--out", ""], "'' is no folder"),
        (["--out", "nowhere://x"], "nowhere://x cannot be reached"),
        (["--checkpoints", "garbage"], "garbage: Not a directory"),
        (["--examples", "nowhere://x"], "nowhere://x cannot be reached"),
        (["--examples", "s3://bucket/x"], "s3://bucket/x cannot be reached (Install s3fs"),
        (["--examples", "garbage"], "garbage cannot be read as parquet"),
        (["--examples", "folder"], "folder holds no *.parquet file"),
        (["--since", "0000-00-00"], "day '0000-00-00' must be YYYY-MM-DD"),
        (["--since", "2024-02-30"], "day '2024-02-30' must be YYYY-MM-DD"),
    ],
)
def test_base_names_what_it_cannot_use(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    """Exit 2 before anything is trained; no file is made."""
    if "s3://bucket/x" in options:
        pytest.importorskip("pyarrow")
        try:
            import s3fs  # type: ignore[import-not-found, import-untyped, unused-ignore]  # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("s3fs is installed")
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    result = run.invoke(app, ["base", "--examples", str(archive), "--out", str(tmp_path / "out"), *options])
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    assert message in result.stderr.replace("\n", " ")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("what", ["", "/", "garbage", "folder", "nowhere://x/v000000000001", "memory://x/v1", "\x00/c"])
def test_inspect_names_what_is_no_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """A failed check, said in a line."""
    (tmp_path / "garbage").write_bytes(b"\xff")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    result = run.invoke(app, ["inspect", what])
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 1
    assert "has no readable manifest.json" in result.stderr
    assert len(result.stderr) < 500
