"""What is upgraded from."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.chaos import upgrade
from tests.chaos.upgrade import UpgradeError, export


def _repository(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrade, "ROOT", root)
    who = ["-c", "user.name=n", "-c", "user.email=e"]
    (root / "file").write_text("old")
    (root / "link").symlink_to(root.parent)
    for arguments in (["init", "-q"], ["add", "file", "link"], [*who, "commit", "-q", "-m", "First"]):
        subprocess.run(["git", "-C", str(root), *arguments], check=True)
    (root / "file").write_text("new")


def test_the_tree_of_a_commit_is_put_into_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was then, whatever the working tree holds."""
    repository = tmp_path / "repository"
    repository.mkdir()
    _repository(repository, monkeypatch)
    assert export("HEAD", tmp_path / "old").endswith(" First")
    assert [(file.name, file.read_text()) for file in (tmp_path / "old").iterdir()] == [("file", "old")]
    with pytest.raises(UpgradeError, match="Give a commit of a clone that holds it"):
        export("no-such-commit", tmp_path / "older")


def test_without_a_repository_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unpacked archive has no older commits."""
    monkeypatch.setattr(upgrade, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(UpgradeError, match="not a git repository"):
        export("HEAD", tmp_path / "old")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UpgradeError, match="Install git"):
        export("HEAD", tmp_path / "old")
