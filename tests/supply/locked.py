"""The lock files: which version of what is installed into the image, with the hashes of its files. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
CONSTRAINTS, LOCK, TORCH_LOCK = DOCKER / "constraints.txt", DOCKER / "requirements.lock", DOCKER / "torch.lock"
_PINNED = re.compile(r"([A-Za-z0-9._-]+)==([^\s;\\]+)")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})(?=\s|$)")


@dataclass(frozen=True, slots=True)
class Locked:
    """One package."""

    version: str
    hashes: tuple[str, ...]  # SHA-256 of each of its files


def normalised(name: str) -> str:
    """The name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(text: str) -> Mapping[str, Locked]:
    """The packages of a lock or of constraints by normalised name. Raises ValueError for a line that pins nothing."""
    found: dict[str, Locked] = {}
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if not line.strip() or line.lstrip().startswith(("#", "-")):
            continue
        pinned = _PINNED.match(line)
        if pinned is None:
            raise ValueError(f"{line[:80]!r} names no exact version: what is installed would be chance. Pin it by ==.")
        found[normalised(pinned[1])] = Locked(pinned[2], tuple(_HASH.findall(line)))
    return found


def image_packages() -> Mapping[str, Locked]:
    """All that is installed into the image beside the project itself."""
    return {**locked(LOCK.read_text()), **locked(TORCH_LOCK.read_text())}
