"""A new base in an empty store, and beside the versions of a stream that is in use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import fsspec  # type: ignore[import-untyped]  # it ships no types
import pytest
import structlog

from learners.snapshots.manifest import SnapshotSpecError
from learners.snapshots.next_base import forget_waiting_base, take_waiting_base, waiting_base, write_base
from learners.snapshots.snapshot import Snapshot, load_snapshot, newest_snapshot, versions, write_snapshot
from tests.learners.batches import SHAPE, learned


def snapshot(version: int, steps: int) -> Snapshot:
    """A base of some learning, which reaches up to offset 7."""
    model = learned(steps)
    return Snapshot(
        version=version,
        created_from="base",
        watermark_ms=1000,
        newest_event_ms=900,
        shape=SHAPE,
        config=model.config,
        state=model.state(),
        offsets={0: 7},
    )


def test_the_first_base_is_version_1(tmp_path: Path) -> None:
    """Nothing waits: a learner starts from it."""
    written = write_base(str(tmp_path), snapshot(9, 1))
    assert written.url == str(tmp_path / "v000000000001")
    assert load_snapshot(written.url).version == 1
    assert waiting_base(str(tmp_path)) is None


@pytest.mark.parametrize("scheme", ["", "memory://next-base-test"])
def test_beside_versions_a_base_waits_until_it_is_taken(scheme: str, tmp_path: Path) -> None:
    """Meanwhile the newest version is the stream's; a later base replaces one that waits; taken, it is the newest."""
    root = scheme + str(tmp_path)
    try:
        write_snapshot(root, snapshot(41, 1))
        write_base(root, snapshot(1, 2))
        write_base(root, snapshot(1, 3))
        assert versions(root) == [41]
        waiting = waiting_base(root, spec_hash=SHAPE.spec_hash)
        assert waiting is not None
        assert (waiting.weights_sha256(), waiting.offsets) == (learned(3).weights_sha256(), {0: 7})
        take_waiting_base(root, replace(waiting, version=53))
        assert waiting_base(root) is None
        found = newest_snapshot(root)
        assert found is not None
        assert (found[1].version, found[1].created_from) == (53, "base")
        assert found[1].weights_sha256() == learned(3).weights_sha256()
    finally:
        if scheme:
            fsspec.filesystem("memory").rm("/next-base-test", recursive=True)


def test_a_base_that_cannot_be_used_does_not_wait(tmp_path: Path) -> None:
    """A torn one is warned of, one of another spec refused."""
    root = str(tmp_path)
    write_snapshot(root, snapshot(41, 1))
    written = write_base(root, snapshot(1, 2))
    with pytest.raises(SnapshotSpecError, match="other"):
        waiting_base(root, spec_hash="other")
    (Path(written.url) / "model.safetensors").write_bytes(b"torn")
    with structlog.testing.capture_logs() as logs:
        assert waiting_base(root) is None
    assert [entry["event"] for entry in logs] == ["torn base skipped"]
    forget_waiting_base(root)
    with structlog.testing.capture_logs() as logs:
        assert waiting_base(root) is None
    assert logs == []
