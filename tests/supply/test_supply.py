"""The lock holds what is installed, by hash; every image has its digest; an audit says what it did not look at."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.supply.__main__ import unaudited, vulnerabilities
from tests.supply.images import FILES, images, pinned
from tests.supply.locked import CONSTRAINTS, ROOT, image_packages, locked, normalised

DIGEST = "sha256:" + "a" * 64


def test_the_lock_holds_every_dependency_at_the_version_of_the_constraints_with_its_hashes() -> None:
    """When this fails: make lock, and docker/torch.lock by hand."""
    constraints, found = locked(CONSTRAINTS.read_text()), image_packages()
    assert [name for name, one in found.items() if not one.hashes] == []
    said = {name: one.version.partition("+")[0] for name, one in found.items()}
    assert {name: version for name, version in said.items() if name in constraints} == {
        name: constraints[name].version for name in said if name in constraints
    }
    assert set(said) - set(constraints) <= {"setuptools"}
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {normalised(re.split(r"[<>=!~\[; ]", one)[0]) for one in wanted}
    assert sorted(names - set(found)) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_image_is_pinned_by_its_digest(path: object) -> None:
    """Ours alone, which is built here, is not."""
    found = images(path.read_text())  # type: ignore[attr-defined]
    assert found
    assert all(found.values()), found


def test_pinning_changes_digests_and_nothing_else() -> None:
    """A tag without one gets it, another digest is replaced, our own image stays."""
    text = "FROM python:3.12 AS build\n    image: redis:7.4@sha256:" + "b" * 64 + "\n    image: millstream:0.1.0\n"
    made = pinned(text, {"python:3.12": DIGEST, "redis:7.4": DIGEST})
    assert made == f"FROM python:3.12@{DIGEST} AS build\n    image: redis:7.4@{DIGEST}\n    image: millstream:0.1.0\n"
    assert images(made) == {"python:3.12": DIGEST, "redis:7.4": DIGEST}


def test_what_pins_no_version_is_refused() -> None:
    """A lock with a range would install whatever is newest."""
    with pytest.raises(ValueError, match="names no exact version"):
        locked("six>=1.0\n")


def test_an_audit_tells_what_it_found_and_what_it_could_not_look_at() -> None:
    """The tool itself ends with 0 where its database knew nothing at all."""
    found = {
        "dependencies": [
            {"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]},
            {"name": "b", "skip_reason": "Dependency not found on PyPI and could not be audited: b (1)"},
            {"name": "c", "version": "3", "vulns": []},
        ]
    }
    assert vulnerabilities(found) == ["a 1: PYSEC-1, mended in 2"]
    assert unaudited(found) == ["b"]
