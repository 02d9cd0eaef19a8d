"""The in-memory session store, its exports and the sums of shared counters."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learners.examples.kinds import CLICK, EXPOSURE
from learners.features.encode import Encoder, Request
from learners.features.session_state import COUNTER, USER
from stream.records.partition import partition_of
from stream.sessions.fold import SessionFold
from stream.sessions.in_memory import MemorySessionStore, SessionExport, SharedCounters
from tests.learners.small_spec import SMALL
from tests.stream.session_events import START_MS, Event, assert_counters_equal, display, events, rows_of


def folded(rows: list[Event], partitions: int) -> MemorySessionStore:
    """A store in which each event went to its user's partition."""
    store, fold = MemorySessionStore(SMALL, partitions), SessionFold(SMALL)
    partition_of_event = partition_of(np.array([event.user for event in rows], np.uint64), partitions).tolist()
    for partition in range(partitions):
        here = [event for event, its in zip(rows, partition_of_event, strict=True) if its == partition]
        if here:
            store.step(fold, rows_of(here), partition)
    return store


@settings(max_examples=40, deadline=None)
@given(events(jumps=False), st.integers(1, 4))
def test_an_export_restores_to_the_same_state(rows: list[Event], partitions: int) -> None:
    """Exported, restored into any number of partitions and exported again, nothing changes."""
    store = folded(rows, 1)
    other = MemorySessionStore(SMALL, partitions)
    other.restore(store.export())
    assert other.sha256() == store.sha256()
    assert other.fence(0) == 0


@settings(max_examples=40, deadline=None)
@given(events(jumps=False))
def test_partitions_do_not_change_what_requests_read(rows: list[Event]) -> None:
    """Own states come from the user's partition, shared ones are sums."""
    encoder = Encoder(SMALL)
    requests = [
        Request(1, START_MS, {"user_id": user}, {"tab": 1}, [{"ad_id": 1, "author_id": 1}, {"ad_id": 2}])
        for user in (1, 2, 9)
    ]
    ids = encoder.ids(requests)
    keys = {name: encoder.ids(requests).request_ids[:, SMALL.field_index(name)] for name in ("user", "tab", "user_tab")}
    views = []
    for partitions in (1, 3):
        store, fold = MemorySessionStore(SMALL, partitions), SessionFold(SMALL)
        for event in rows:
            one = rows_of([event])
            r = event.user % 3
            one.user_key[:] = ids.user_key[r]
            for name, column in keys.items():
                one.ids[:, SMALL.field_index(name)] = column[r]
            store.step(fold, one, int(partition_of(one.user_key, partitions)[0]))
        views.append(store.read(encoder, ids))
    assert views[0].users.tobytes() == views[1].users.tobytes()
    assert_counters_equal(views[0].request_counters, views[1].request_counters)
    assert_counters_equal(views[0].ad_counters, views[1].ad_counters)
    assert views[0].request_counters["n"][0].tolist() == [
        sum(e.kind == EXPOSURE and e.user % 3 == 0 for e in rows),
        sum(e.kind == EXPOSURE for e in rows),
        sum(e.kind == EXPOSURE and e.user % 3 == 0 for e in rows),
    ]


def test_the_digest_does_not_hang_on_the_order_of_arrival() -> None:
    """Two users in either order make the same state."""
    a, b = display(1, 1, START_MS), display(2, 2, START_MS)
    assert folded([a, b], 1).sha256() == folded([b, a], 1).sha256() != folded([a], 1).sha256()


def test_an_export_file_round_trips(tmp_path: Path) -> None:
    """What was saved is loaded."""
    store = folded([display(1, 1, START_MS), Event(CLICK, 1, 1, 1, START_MS, START_MS + 1), display(2, 1, START_MS)], 1)
    path = tmp_path / "sessions.npz"
    store.export().save(path)
    other = MemorySessionStore(SMALL)
    other.restore(SessionExport.load(path, SMALL))
    assert other.sha256() == store.sha256()


def test_an_export_of_another_spec_is_refused_with_both_hashes(tmp_path: Path) -> None:
    """Its keys would match nothing."""
    path = tmp_path / "sessions.npz"
    MemorySessionStore(SMALL).export().save(path)
    other = msgspec.structs.replace(SMALL, name="other")
    with pytest.raises(ValueError, match=rf"{SMALL.hash}, this is other {other.hash}"):
        SessionExport.load(path, other)


def test_an_export_of_another_layout_is_refused(tmp_path: Path) -> None:
    """States of a release that remembered other things would be read as other numbers."""
    path = tmp_path / "sessions.npz"
    folded([display(1, 1, START_MS)], 1).export().save(path)
    with np.load(path) as file:
        arrays = dict(file)
    arrays["users"] = arrays["users"][[name for name in USER.names or () if name != "recent_impressions"]]
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match="states of another release"):
        SessionExport.load(path, SMALL)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04half"])
def test_a_file_that_is_no_export_is_refused(tmp_path: Path, content: bytes) -> None:
    """A torn or foreign file is named."""
    path = tmp_path / "sessions.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"sessions\.npz is not a whole session export"):
        SessionExport.load(path, SMALL)


def test_a_partitions_state_replaces_its_earlier_one_in_the_sum() -> None:
    """Sums are of the newest state of each partition, over thousands of keys."""
    shared = SharedCounters(SMALL, 2)
    keys = np.arange(1, 5001, dtype=np.uint64)
    for partition, n in ((0, 5), (1, 2), (0, 3)):
        states = np.zeros(len(keys), COUNTER)
        states["n"] = n + keys.astype(np.float64)
        shared.put(partition, keys, states)
    assert shared.sums(keys.reshape(100, 50))["n"].ravel().tolist() == [5 + 2 * key for key in range(1, 5001)]
    assert shared.sums(np.array([0, 6000], np.uint64))["n"].tolist() == [0, 0]
    shared.forget(0)
    assert shared.sums(keys)["n"].tolist() == [2 + key for key in range(1, 5001)]
