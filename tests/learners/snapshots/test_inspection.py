"""What a snapshot is said to hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from learners.deepfm.model import DeepFM
from learners.snapshots.inspection import facts_of, lines_of
from learners.snapshots.manifest import SnapshotError
from learners.snapshots.snapshot import Snapshot, write_snapshot
from tests.learners.batches import CONFIG, SHAPE, learned


@pytest.fixture
def model() -> DeepFM:
    """A small model that learned a little."""
    return learned(5)


@pytest.fixture
def url(model: DeepFM, tmp_path: Path) -> str:
    """A snapshot of it."""
    snapshot = Snapshot(
        version=7,
        created_from="stream",
        watermark_ms=123,
        newest_event_ms=120,
        shape=SHAPE,
        config=CONFIG,
        state=model.state(),
        offsets={0: 11, 1: 5},
    )
    return write_snapshot(str(tmp_path), snapshot).url


def test_the_facts_are_those_of_the_model(url: str, model: DeepFM) -> None:
    """Rows by column name, offsets, heads, sizes and hashes."""
    facts = facts_of(url)
    assert facts["version"] == 7
    assert facts["offsets"] == {"0": 11, "1": 5}
    assert facts["heads"] == {"click": "P(click)"}
    assert facts["weights"]["sha256"] == model.weights_sha256()
    assert facts["weights"]["steps"] == 5
    assert [one["column"] for one in facts["vocabulary"]] == list(SHAPE.names)
    assert sum(one["rows"] for one in facts["vocabulary"]) == facts["weights"]["table_rows"] == len(model.table)
    assert all(one["admitted"] + 1 == one["rows"] for one in facts["vocabulary"])
    assert facts["files"]["model.safetensors"]["size"] > 0
    assert facts["config"]["dim"] == CONFIG.dim


def test_facts_are_json_and_text(url: str) -> None:
    """A line for every column of the vocabulary."""
    facts = facts_of(url)
    assert json.loads(json.dumps(facts, allow_nan=False))["watermark_ms"] == 123
    lines = list(lines_of(facts))
    assert all(any(line.endswith(f"  {name}") for line in lines) for name in SHAPE.names)
    assert any(line.split() == ["version", "7"] for line in lines)


def test_a_torn_snapshot_is_refused(url: str) -> None:
    """By its checksum."""
    file = Path(url) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(SnapshotError, match=r"model\.safetensors"):
        facts_of(url)


def test_a_folder_that_is_no_snapshot_is_refused(tmp_path: Path) -> None:
    """With its name."""
    (tmp_path / "v000000000003").mkdir()
    (tmp_path / "v000000000003" / "manifest.json").write_text('{"format": "another program"}')
    with pytest.raises(SnapshotError, match="v000000000003 has no readable manifest"):
        facts_of(str(tmp_path / "v000000000003"))
