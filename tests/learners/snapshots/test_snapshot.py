"""Snapshots: whole or not at all, on a local disk and behind a URL."""

from __future__ import annotations

import dataclasses
import json
import shutil
import uuid
from pathlib import Path

import numpy as np
import pytest
import structlog

from learners.snapshots import store
from learners.snapshots.manifest import SnapshotError, SnapshotSpecError, TornSnapshotError, describe, read_manifest
from learners.snapshots.snapshot import Snapshot, load_snapshot, newest_line, newest_snapshot, versions, write_snapshot
from tests.learners.batches import CONFIG, SHAPE, batch, learned


def snapshot(version: int, *, steps: int = 2, calibration: bytes | None = b"bins") -> Snapshot:
    """A snapshot of a small model."""
    return Snapshot(
        version=version,
        created_from="stream",
        watermark_ms=1000 * version,
        newest_event_ms=1000 * version - 5,
        shape=SHAPE,
        config=CONFIG,
        state=learned(steps).state(),
        offsets={0: 7, 3: 12},
        calibration=calibration,
    )


@pytest.fixture(params=["directory", "url"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store that does not exist yet."""
    return str(tmp_path / "snapshots") if request.param == "directory" else f"memory://{uuid.uuid4().hex}/snapshots"


def test_a_snapshot_returns_whole(root: str) -> None:
    """Every field, and a model that continues bit-equal."""
    sent = snapshot(4)
    written = write_snapshot(root, sent)
    got = load_snapshot(written.url, spec_hash=SHAPE.spec_hash)
    for name in ("version", "created_from", "watermark_ms", "newest_event_ms", "shape", "config", "calibration"):
        assert getattr(got, name) == getattr(sent, name)
    assert got.offsets == {0: 7, 3: 12}
    assert got.state.keys() == sent.state.keys()
    assert all(np.array_equal(got.state[name], sent.state[name]) for name in sent.state)
    first, second = sent.model(), got.model()
    for model in (first, second):
        model.learn_many(*batch(np.random.default_rng(1), 8))
    assert first.weights_sha256() == second.weights_sha256()


def test_without_a_calibrator_there_is_no_calibration(root: str) -> None:
    """A base has none."""
    assert load_snapshot(write_snapshot(root, snapshot(1, calibration=None)).url).calibration is None


def test_the_newest_is_found_and_the_three_newest_stay(root: str) -> None:
    """Older ones are removed as new ones come."""
    for version in (1, 2, 10, 9, 11):
        write_snapshot(root, snapshot(version))
    assert versions(root) == [11, 10, 9]
    found = newest_snapshot(root)
    assert found is not None
    assert found[0].endswith("v000000000011")
    assert found[1].version == 11


DAY_MS = 86_400_000


def of_day(version: int, day: float, created_from: str = "stream") -> Snapshot:
    """A snapshot whose watermark lies in a UTC day."""
    return dataclasses.replace(snapshot(version), watermark_ms=int(day * DAY_MS), created_from=created_from)


def test_of_each_day_the_newest_stays_for_so_many_days(root: str) -> None:
    """Three newest, one of every UTC day of the watermark within the days that are kept; older days go."""
    for version, day in enumerate((20.0, 20.9, 21.0, 21.5, 22.0, 23.0, 23.1, 23.2, 23.3), start=1):
        write_snapshot(root, of_day(version, day), keep_days=3)
    assert versions(root) == [9, 8, 7, 5, 4]


def test_the_base_stays_as_its_day(root: str) -> None:
    """Also when the stream begins on the same day: every version can be made again from it."""
    write_snapshot(root, of_day(1, 20.1, "base"))
    for version in range(2, 8):
        write_snapshot(root, of_day(version, 20.5))
    assert versions(root) == [7, 6, 5, 1]
    write_snapshot(root, of_day(8, 51.0))
    assert versions(root) == [8, 7, 6]


def test_a_torn_snapshot_is_no_days(tmp_path: Path) -> None:
    """A folder without a manifest does not displace the day's whole one."""
    for version in (1, 2, 3):
        write_snapshot(str(tmp_path), of_day(version, 20))
    (tmp_path / "v000000000003" / "manifest.json").unlink()
    for version in (4, 5, 6):
        write_snapshot(str(tmp_path), of_day(version, 21))
    assert versions(str(tmp_path)) == [6, 5, 4, 2]


def test_the_manifest_names_the_weights(root: str) -> None:
    """The SHA-256 that the model itself says, without loading it."""
    written = write_snapshot(root, snapshot(3))
    assert read_manifest(written.url).weights_sha256 == snapshot(3).model().weights_sha256()
    assert describe(read_manifest(written.url))["weights_sha256"] == snapshot(3).weights_sha256()


def test_what_a_dead_writer_left_goes_with_the_next_write(tmp_path: Path) -> None:
    """Unfinished folders of any version do not pile up."""
    (tmp_path / ".v000000000007.unfinished").mkdir()
    (tmp_path / ".v000000000007.unfinished" / "model.safetensors").write_bytes(b"half")
    write_snapshot(str(tmp_path), snapshot(8))
    assert [path.name for path in tmp_path.iterdir()] == ["v000000000008"]


def test_what_was_just_written_stays_even_when_it_is_the_oldest(root: str) -> None:
    """A returned url always holds the snapshot."""
    for version in (5, 6, 7):
        write_snapshot(root, snapshot(version))
    assert load_snapshot(write_snapshot(root, snapshot(2)).url).version == 2


def test_a_store_without_snapshots_has_no_newest(root: str) -> None:
    """Neither a missing root nor an empty one is an error."""
    assert newest_snapshot(root) is None


def test_writing_a_version_again_replaces_it(root: str) -> None:
    """The second content is what is found, whole."""
    write_snapshot(root, snapshot(1, steps=1))
    second = snapshot(1, steps=3, calibration=None)
    got = load_snapshot(write_snapshot(root, second).url)
    assert got.model().weights_sha256() == second.model().weights_sha256()
    assert got.calibration is None


def tear(path: Path, how: str) -> None:
    """Damage a snapshot's folder."""
    model, manifest = path / "model.safetensors", path / "manifest.json"
    content = model.read_bytes()
    match how:
        case "no manifest":
            manifest.unlink()
        case "manifest cut":
            manifest.write_bytes(manifest.read_bytes()[:40])
        case "no model":
            model.unlink()
        case "model cut":
            model.write_bytes(content[:-1])
        case "a bit flipped":
            model.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
        case "calibration altered":
            (path / "calibration.bin").write_bytes(b"sins")


@pytest.mark.parametrize(
    "how", ["no manifest", "manifest cut", "no model", "model cut", "a bit flipped", "calibration altered"]
)
def test_a_torn_snapshot_is_skipped_with_a_warning(tmp_path: Path, how: str) -> None:
    """The one before it is taken; read by name, the torn one is an error."""
    write_snapshot(str(tmp_path), snapshot(1))
    torn = write_snapshot(str(tmp_path), snapshot(2))
    tear(Path(torn.url), how)
    with structlog.testing.capture_logs() as logs:
        found = newest_snapshot(str(tmp_path))
    assert found is not None
    assert found[1].version == 1
    assert [(entry["log_level"], entry["url"]) for entry in logs] == [("warning", torn.url)]
    with pytest.raises(TornSnapshotError, match="v000000000002"):
        load_snapshot(torn.url)


def test_a_write_that_dies_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash before the rename shows readers no new version, and the next write succeeds."""
    write_snapshot(str(tmp_path), snapshot(1))

    def die(path: Path) -> None:
        raise OSError("disk gone")

    with monkeypatch.context() as patch:
        patch.setattr(store, "sync_directory", die)
        with pytest.raises(OSError, match="disk gone"):
            write_snapshot(str(tmp_path), snapshot(2))
    assert versions(str(tmp_path)) == [1]
    write_snapshot(str(tmp_path), snapshot(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v000000000001", "v000000000002"]


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("steps", [2, 3])
def test_killed_between_the_two_renames_of_a_version_its_old_content_is_found_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """Whether the new content is equal or not: a reader finds the old one, the next writer puts it back."""
    old = write_snapshot(str(tmp_path), snapshot(2, steps=2))
    rename, remove = Path.rename, shutil.rmtree

    def die_at_second(path: Path, target: Path) -> Path:
        if path.name.endswith(".unfinished"):
            raise Killed
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", die_at_second)
        patch.setattr(store.DirectoryStore, "_recover", lambda self: None)  # what is killed mends nothing
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        if steps == 2:  # an equal one is not even begun
            assert write_snapshot(str(tmp_path), snapshot(2, steps=2)) == old
            store.DirectoryStore(tmp_path).root.joinpath("v000000000002").rename(tmp_path / ".v000000000002.replaced")
        else:
            with pytest.raises(Killed):
                write_snapshot(str(tmp_path), snapshot(2, steps=3))
    assert remove is shutil.rmtree
    assert not (tmp_path / "v000000000002").exists()
    found = newest_snapshot(str(tmp_path))
    assert found is not None
    assert found[1].weights_sha256() == snapshot(2, steps=2).weights_sha256()
    write_snapshot(str(tmp_path), snapshot(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v000000000002", "v000000000003"]
    assert load_snapshot(old.url).weights_sha256() == snapshot(2, steps=2).weights_sha256()


def test_an_equal_version_is_not_written_again_but_a_damaged_one_is(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same url and checksum; what lies there is looked at, not believed."""
    first = write_snapshot(root, snapshot(2))
    kind = type(store.store_of(root))
    with monkeypatch.context() as patch:
        patch.setattr(kind, "write_folder", lambda *_: pytest.fail("it lies there already"))
        assert write_snapshot(root, snapshot(2)) == first
    store.store_of(root).write_folder(
        "v000000000002",
        {"model.safetensors": [b"torn"], "manifest.json": [store.store_of(root).read("v000000000002/manifest.json")]},
    )
    assert newest_snapshot(root) is None
    assert write_snapshot(root, snapshot(2)) == first
    assert newest_snapshot(root) is not None


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The half that was written would hold the space that the next try needs."""
    write_snapshot(str(tmp_path), snapshot(1))

    def full(path: Path, pieces: store.Pieces) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_synced", full)
        with pytest.raises(OSError, match="No space left"):
            write_snapshot(str(tmp_path), snapshot(2))
    assert [path.name for path in tmp_path.iterdir()] == ["v000000000001"]


def test_an_old_snapshot_that_cannot_be_removed_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new one is there: that is what was asked for."""
    for version in (1, 2, 3):
        write_snapshot(str(tmp_path), snapshot(version))

    def refuse(self: store.DirectoryStore, folder: str) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(store.DirectoryStore, "remove_folder", refuse)
        with structlog.testing.capture_logs() as logs:
            write_snapshot(str(tmp_path), snapshot(4))
    assert versions(str(tmp_path)) == [4, 3, 2, 1]
    assert [entry["event"] for entry in logs] == ["a snapshot that is no longer needed stays"]


@pytest.mark.parametrize("path", ["../secret", "a/../../secret", "a//b", "/etc/passwd", "a/..", "a", "a/b\\..", "a/\0"])
def test_a_store_reads_only_files_of_its_folders(root: str, path: str) -> None:
    """Names come from files that anybody may have written."""
    with pytest.raises(OSError, match="is no file of a folder"):
        store.store_of(root).read(path)


def test_a_snapshot_of_another_spec_is_refused_with_both_hashes(root: str) -> None:
    """It is not skipped in favour of an older one: the configuration is wrong, not the file."""
    write_snapshot(root, snapshot(1))
    other = dataclasses.replace(SHAPE, spec_hash="ffffffffffffffff")
    write_snapshot(root, dataclasses.replace(snapshot(2), shape=other))
    with pytest.raises(SnapshotSpecError, match=f"toy ffffffffffffffff.*{SHAPE.spec_hash}"):
        newest_snapshot(root, spec_hash=SHAPE.spec_hash)


def test_a_snapshot_of_before_streams_had_names_is_read(tmp_path: Path) -> None:
    """It is of no stream in particular."""
    path = Path(write_snapshot(str(tmp_path), snapshot(1)).url) / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["stream"]
    path.write_text(json.dumps(manifest))
    found = newest_snapshot(str(tmp_path))
    assert found is not None
    assert found[1].stream == ""


def test_another_format_is_refused_with_both_numbers(tmp_path: Path) -> None:
    """A later release's snapshot is not guessed at."""
    written = write_snapshot(str(tmp_path), snapshot(1))
    path = Path(written.url) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 9}))
    with pytest.raises(SnapshotError, match="format 9, this program reads 2"):
        read_manifest(written.url)


def test_a_line_is_named_by_the_base_that_it_comes_from(root: str) -> None:
    """Of a base it is its own version, whatever it was called before it got that; of its snapshots the base's."""
    assert newest_line(root) == 0
    base = dataclasses.replace(snapshot(44), created_from="base", line=1)
    assert load_snapshot(write_snapshot(root, base).url).line == newest_line(root) == 44
    of_stream = dataclasses.replace(snapshot(61), created_from="stream", line=44)
    assert load_snapshot(write_snapshot(root, of_stream).url).line == newest_line(root) == 44
