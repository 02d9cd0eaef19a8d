"""Where a new base goes: the start of an empty store, or beside the versions of a stream that is in use.

Only the learner knows which version it has come to, and what it writes next. So a base for a store that holds versions
waits in a folder of its own until the learner, at its next start, gives it the next number.
"""

from __future__ import annotations

from dataclasses import replace

import structlog

from learners.snapshots.manifest import TornSnapshotError
from learners.snapshots.snapshot import Snapshot, Written, load_snapshot, versions, write_snapshot
from learners.snapshots.store import store_of

_FOLDER, _FIRST = "next-base", "v000000000001"
_log = structlog.get_logger(__name__)


def write_base(root: str, base: Snapshot) -> Written:
    """Write it as version 1 of an empty store, else as the one that waits; a base that waited before is replaced."""
    return write_snapshot(_waiting_root(root) if versions(root) else root, replace(base, version=1))


def waiting_base(root: str, *, spec_hash: str | None = None) -> Snapshot | None:
    """The base that waits in the store at ``root``; None where there is none, or a torn one, which is warned of.

    Raises SnapshotSpecError for one of another feature spec.
    """
    url = f"{_waiting_root(root)}/{_FIRST}"
    try:
        return load_snapshot(url, spec_hash=spec_hash) if versions(_waiting_root(root)) else None
    except (OSError, TornSnapshotError) as error:
        _log.warning("torn base skipped", url=url, error=str(error))
        return None


def take_waiting_base(root: str, base: Snapshot) -> Written:
    """Make it a version of the store, that of ``base``; it waits no longer."""
    written = write_snapshot(root, base)
    forget_waiting_base(root)
    return written


def forget_waiting_base(root: str) -> None:
    """Remove the base that waits; one that cannot be removed is found taken already at the next start."""
    try:
        store_of(_waiting_root(root)).remove_folder(_FIRST)
    except OSError as error:
        _log.warning("a base that was taken stays where it waited", url=_waiting_root(root), error=str(error))


def _waiting_root(root: str) -> str:
    return f"{root.rstrip('/')}/{_FOLDER}"
