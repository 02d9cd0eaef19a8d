"""Snapshots whose checksums are right and whose content is not: skipped like torn ones for the sound one before."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from learners.snapshots.manifest import SnapshotError, TornSnapshotError, UnsoundSnapshotError
from learners.snapshots.snapshot import load_snapshot, newest_snapshot, versions, write_snapshot
from tests.learners.snapshots.forged import State, forge
from tests.learners.snapshots.test_snapshot import snapshot

Alter = Callable[[dict[str, Any]], None]


def to(**values: Any) -> Alter:
    """These values in the manifest."""
    return lambda manifest: manifest.update(values)


def config(**values: Any) -> Alter:
    """These in its config."""
    return lambda manifest: manifest["config"].update(values)


def shape(**values: Any) -> Alter:
    """These in its shape."""
    return lambda manifest: manifest["shape"].update(values)


def also(name: str) -> Alter:
    """One more file."""

    def alter(manifest: dict[str, Any]) -> None:
        data = Path("/etc/passwd").read_bytes()
        manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    return alter


MANIFESTS: dict[str, tuple[Alter, str]] = {
    "version -5": (to(version=-5), "version -5"),
    "version 2^63": (to(version=2**63), "version 9223372036854775808"),
    "version 2^70": (to(version=2**70), "2"),
    "version of another": (to(version=7), "version 7 in the folder of 2"),
    "a time in microseconds": (to(watermark_ms=1_700_000_000_000_000), "watermark_ms 1700000000000000"),
    "a time before all": (to(newest_event_ms=-1), "newest_event_ms -1"),
    "a line of 2^63": (to(line=2**63), "line"),
    "an offset below 0": (to(offsets={"0": -1}), "offset -1 of partition 0"),
    "an offset of 2^63": (to(offsets={"0": 2**63}), "offset 9223372036854775808"),
    "a partition below 0": (to(offsets={"-1": 5}), "partition -1"),
    "made from nowhere": (to(created_from="nowhere"), "created_from 'nowhere'"),
    "format 0": (to(format=0), "format 0"),
    "a file of another folder": (also("../v000000000001/model.safetensors"), "is read"),
    "a file of the system": (also("../../../../../../../../../etc/passwd"), "etc/passwd"),
    "a file by its whole path": (also("/etc/passwd"), "etc/passwd"),
    "no model": (lambda manifest: manifest["files"].clear(), "no model.safetensors"),
    "a size below 0": (lambda manifest: manifest["files"]["model.safetensors"].update(size=-1), "size or checksum"),
    "weights without a checksum": (to(weights_sha256=""), "size or checksum"),
    "a dim that is not the arrays'": (config(dim=2**12), "dense weights"),
    "a layer that is not the arrays'": (config(hidden=[2**16, 2**16]), "dense weights"),
    "a layer wider than any memory": (config(hidden=[2**40]), "must be at most 65536"),
    "more threads than any machine has": (config(threads=10**9), "threads=1000000000"),
    "a seed below 0": (config(seed=-1), "seed=-1"),
    "rows that are fewer than the keys": (config(max_rows=1), "max_rows"),
    "a column too many": (shape(dense=4), "dense weights"),
    "columns that no row has": (shape(embedded=[0, 1, 3, 9]), "embedded"),
    "a config of nothing": (to(config=None), "manifest"),
    "shape as text": (to(shape="toy"), "manifest"),
}


def put(name: str, change: Callable[[np.ndarray[Any, Any]], Any]) -> Callable[[State], None]:
    """Another array of that name."""

    def alter(state: State) -> None:
        array = state[name].copy()
        changed = change(array)
        state[name] = array if changed is None else changed

    return alter


def first(value: Any) -> Callable[[np.ndarray[Any, Any]], None]:
    """With this as its first number."""

    def alter(array: np.ndarray[Any, Any]) -> None:
        array.reshape(-1)[0] = value

    return alter


def without(name: str) -> Callable[[State], None]:
    """No array of that name."""

    def alter(state: State) -> None:
        del state[name]

    return alter


STATES: dict[str, tuple[Callable[[State], None], str]] = {
    "NaN among the vectors": (put("table.values", first(np.nan)), "values of a table state"),
    "infinite vectors": (put("table.values", first(np.inf)), "values of a table state"),
    "NaN in the network": (put("dense.mlp.click.0.weight", first(np.nan)), "mlp.click.0.weight"),
    "NaN in Adam": (put("adam.first", first(np.nan)), "adam.first"),
    "Adam's variance below 0": (put("adam.second", first(-1)), "adam.second"),
    "steps below 0": (put("adam.steps", first(-1)), "adam.steps"),
    "accumulators below 0": (put("table.accumulators", first(-1)), "accumulators"),
    "accumulators without a number": (put("table.accumulators", first(np.nan)), "accumulators"),
    "key 0": (put("table.keys", first(0)), "keys of a state must ascend"),
    "keys as signed numbers": (put("table.keys", lambda a: a.view(np.int64)), "keys of a table state is int64"),
    "values as doubles": (put("table.values", lambda a: a.astype(np.float64)), "values of a table state is float64"),
    "a row too few": (put("table.seen", lambda a: a[:-1]), "seen of a table state"),
    "a column that is none": (put("table.column", lambda a: a + np.uint16(9)), "column"),
    "default rows that expire": (put("table.seen", lambda a: np.zeros_like(a)), "default rows"),
    "pending keys without rows": (put("table.pending", lambda a: np.array([1 << 63], np.uint64)), "pending"),
    "a clock below 0": (put("table.clock", first(-1)), "clock"),
    "an empty clock": (put("table.clock", lambda a: a[:0]), "clock"),
    "a half of the sketch that is none": (put("table.sightings", first(7)), "sightings"),
    "no keys": (without("table.keys"), "keys"),
    "no Adam": (without("adam.second"), "adam.second"),
    "no network": (without("dense.linear.weight"), "linear.weight"),
    "an array too many in the network": (lambda state: state.update({"dense.x": np.zeros(3, np.float32)}), "dense"),
    "nothing": (lambda state: state.clear(), "dense weights"),
}


def check_skipped(root: Path, message: str) -> None:
    """Version 2 is an error by its name, and 1 is found with a warning."""
    with pytest.raises(UnsoundSnapshotError if "manifest" not in message else TornSnapshotError, match=message):
        load_snapshot(str(root / "v000000000002")).model()
    with structlog.testing.capture_logs() as logs:
        found = newest_snapshot(str(root))
    assert found is not None
    assert found[1].version == 1
    assert [(entry["log_level"], entry["url"][-1]) for entry in logs] == [("warning", "2")]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store of versions 1 and 2."""
    for version in (1, 2):
        write_snapshot(str(tmp_path), snapshot(version))
    return tmp_path


@pytest.mark.parametrize("what", MANIFESTS)
def test_a_manifest_that_cannot_be_so_is_skipped_with_a_warning(root: Path, what: str) -> None:
    """Each number is held to its range, each file to its folder, before memory is taken for it."""
    alter, message = MANIFESTS[what]
    forge(root / "v000000000002", manifest=alter)
    refused = ("version 2^70", "columns that no row has", "more threads than any machine has", "a seed below 0")
    if what in (*refused, "a layer wider than any memory"):
        message = "manifest"  # they are refused as it is decoded
    check_skipped(root, message)


@pytest.mark.parametrize("what", STATES)
def test_a_state_that_is_no_models_is_skipped_with_a_warning(root: Path, what: str) -> None:
    """Missing arrays, other types and shapes, numbers that no learning leads to."""
    alter, message = STATES[what]
    forge(root / "v000000000002", state=alter)
    check_skipped(root, message)


def test_a_manifest_that_nests_without_end_or_is_endless_is_skipped(root: Path) -> None:
    """Neither the reader's stack nor its memory is the manifest's to use."""
    manifest = root / "v000000000002" / "manifest.json"
    for content in (b"[" * 100_000, b"\xff\xfe{}", b" " * (5 << 20), b"null", b"7", b"{}"):
        manifest.write_bytes(content)
        check_skipped(root, "manifest")
    manifest.unlink()
    os.mkfifo(manifest)
    check_skipped(root, "manifest")


def test_a_file_longer_than_the_manifest_says_is_not_read(root: Path) -> None:
    """A sparse file of a terabyte takes no memory."""
    with (root / "v000000000002" / "model.safetensors").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(TornSnapshotError, match="1099511627776 bytes where at most"):
        load_snapshot(str(root / "v000000000002"))


def test_an_unsound_snapshot_has_no_other_dropped(tmp_path: Path) -> None:
    """A time of the year 2100 in one manifest does not make all others too old to stay."""
    for version in range(1, 5):
        write_snapshot(str(tmp_path), snapshot(version))
    forge(tmp_path / "v000000000004", manifest=to(watermark_ms=4_000_000_000_000))
    write_snapshot(str(tmp_path), snapshot(5))
    assert versions(str(tmp_path)) == [5, 4, 3]
    forge(tmp_path / "v000000000003", manifest=to(created_from="base"))
    for version in (6, 7, 8):
        write_snapshot(str(tmp_path), snapshot(version))
    assert versions(str(tmp_path)) == [8, 7, 6, 4, 3], "the base of the day stays"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_in_a_snapshot_it_is_a_model_or_it_is_refused(root: Path, data: st.DataObject) -> None:
    """Never another error, and what is loaded can be learned on."""
    write_snapshot(str(root), snapshot(2))
    where = data.draw(st.sampled_from(["", "config", "shape"]))
    value = data.draw(
        st.one_of(
            st.none(),
            st.booleans(),
            st.sampled_from([-1, 0, 1, 2**31, 2**63, 2**64, 2**70, 1e300, 0.5]),
            st.text(max_size=3),
            st.lists(st.integers(-1, 6), max_size=3),
        )
    )

    def alter(manifest: dict[str, Any]) -> None:
        part = manifest[where] if where else manifest
        part[data.draw(st.sampled_from(sorted(part)))] = value

    def alter_state(state: State) -> None:
        name = data.draw(st.sampled_from(sorted(state)))
        array = state[name]
        change = data.draw(st.sampled_from(["drop", "cut", "type", "shape", "number"]))
        if change == "drop":
            del state[name]
        elif change == "cut":
            state[name] = array[: data.draw(st.integers(0, len(array)))]
        elif change == "type":
            state[name] = array.astype(data.draw(st.sampled_from(["f8", "i8", "u1", "f2", "?"])))
        elif change == "shape":
            state[name] = array.reshape(1, *array.shape)
        elif array.size:
            state[name] = array = array.copy()
            with np.errstate(all="ignore"):
                numbers = np.array(data.draw(st.sampled_from([0, -1, np.nan, np.inf, 2.0**40]))).astype(array.dtype)
            array.reshape(-1)[data.draw(st.integers(0, array.size - 1))] = numbers

    in_manifest = data.draw(st.booleans())
    forge(root / "v000000000002", manifest=alter if in_manifest else to(), state=to() if in_manifest else alter_state)
    try:
        found = load_snapshot(str(root / "v000000000002"))
    except SnapshotError:
        return
    assert found.model().weights_sha256()
