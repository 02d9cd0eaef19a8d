"""The session store in a real Redis against the one in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import pytest
from redis.asyncio import Redis

from learners.examples.kinds import CLICK, CONVERSION, EXPOSURE
from learners.features.encode import Encoder, Request
from learners.features.session_state import COUNTER, USER
from stream.records.examples import ExampleRows
from stream.records.partition import partition_of
from stream.sessions import store as session_store
from stream.sessions.fold import SessionFold, SessionKeys, SessionStates
from stream.sessions.in_memory import MemorySessionStore
from stream.sessions.shared_feed import SharedCounterFeed
from stream.sessions.store import RedisSessionStore, SeedError
from tests.learners.small_spec import SMALL
from tests.stream.session_events import START_MS, Event, rows_of

PARTITIONS = 3
USERS = 6
ADS = 8


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client of an empty Redis."""
    client = Redis.from_url(redis_url)
    yield client
    await client.aclose()


def _bytes(answer: object) -> bytes:
    assert isinstance(answer, bytes)
    return answer


def requests(rng: np.random.Generator, count: int, ads: int = 2) -> list[Request]:
    """Random requests of a few users and ads."""
    return [
        Request(
            at,
            START_MS + 1000 * at,
            {"user_id": int(rng.integers(USERS))},
            {"tab": int(rng.integers(2))},
            [{"ad_id": int(a), "author_id": int(a) // 2} for a in rng.integers(0, ADS, ads)],
        )
        for at in range(count)
    ]


def batches(encoder: Encoder, seed: int, steps: int) -> list[tuple[int, ExampleRows]]:
    """Records of events of served rows by partition."""
    rng = np.random.default_rng(seed)
    out: list[tuple[int, ExampleRows]] = []
    for step in range(steps):
        ids = encoder.ids(requests(rng, 12))
        rows = np.concatenate((ids.request_ids[ids.row_request], ids.ad_ids), axis=1)
        user = ids.user_key[ids.row_request]
        of_user = partition_of(user, PARTITIONS)
        for partition in range(PARTITIONS):
            here = np.flatnonzero(of_user == partition)
            events = []
            for _ in here:
                kind = int(rng.choice([EXPOSURE, EXPOSURE, CLICK, CONVERSION]))
                ts_ms = START_MS + step * 90_000
                known_ms = ts_ms + (kind != EXPOSURE) * int(rng.integers(60_000))
                events.append(Event(kind, 1, 1, 1, ts_ms, known_ms, int(rng.integers(1, 9))))
            out.append((partition, replace(rows_of(events), user_key=user[here], ids=rows[here])))
    return out


async def both(redis: Redis, steps: int = 6) -> tuple[Encoder, MemorySessionStore, RedisSessionStore]:
    """The two stores after the same batches."""
    encoder, fold = Encoder(SMALL), SessionFold(SMALL)
    memory, store = MemorySessionStore(SMALL, PARTITIONS), RedisSessionStore(redis, SMALL, PARTITIONS)
    for partition, record in batches(encoder, 3, steps):
        before = memory.fence(partition)
        memory.step(fold, record, partition)
        after = memory.fence(partition)
        assert await store.step(fold, partition, before, after, [record]) == after
    return encoder, memory, store


async def test_redis_holds_what_memory_holds(redis: Redis) -> None:
    """After the same batches every state of every partition is the same, byte for byte, and so are the fences."""
    _, memory, store = await both(redis)
    keys = memory.export().states.keys
    assert len(keys.users) == USERS
    for partition in range(PARTITIONS):
        expected, found = memory.load(partition, keys), await store.load(partition, keys)
        assert found.users.tobytes() == expected.users.tobytes()
        assert found.counters.tobytes() == expected.counters.tobytes()
        assert await store.fence(partition) == memory.fence(partition) != 0


@pytest.mark.parametrize(("count", "ads"), [(1, 1), (1, 50), (20, 1), (7, 3), (1, 0), (0, 1)])
async def test_serving_reads_what_memory_reads(redis: Redis, count: int, ads: int) -> None:
    """One or many requests, few or many ads: the same view from Redis and the refreshed sums as from memory."""
    encoder, memory, store = await both(redis)
    feed = SharedCounterFeed(store)
    await feed.refresh()
    ids = encoder.ids(requests(np.random.default_rng(count), count, ads))
    expected, found = memory.read(encoder, ids), await store.read(encoder, ids, feed.counters)
    for left, right in zip(found, expected, strict=True):
        assert left.shape == right.shape
        assert left.tobytes() == right.tobytes()
    if count * ads:
        assert (expected.request_counters["n"] > 0).any()


async def test_an_unknown_user_reads_as_new(redis: Redis) -> None:
    """Nothing remembered is all zeros, also for a request that names nobody."""
    encoder, _, store = await both(redis)
    ids = encoder.ids([Request(1, START_MS, {"user_id": "never"}, {}, [{}]), Request(2, START_MS, {}, {}, [{}])])
    view = await store.read(encoder, ids, SharedCounterFeed(store).counters)
    assert not any(part.tobytes().strip(b"\0") for part in view)


async def test_a_replayed_batch_is_refused_and_changes_nothing(redis: Redis) -> None:
    """The answer to a stale fence is the fence that stands; not one key differs."""
    encoder, memory, store = await both(redis)
    before = {key: await redis.dump(key) for key in await redis.keys()}
    fold = SessionFold(SMALL)
    for partition, record in batches(encoder, 3, 6):
        assert await store.step(fold, partition, 0, 1, [record]) == memory.fence(partition)
        states = await store.load(partition, fold.keys([record]))
        assert await store.apply(partition, 0, 1, fold.fold(states, [record])) == memory.fence(partition)
    assert {key: await redis.dump(key) for key in await redis.keys()} == before


async def test_states_expire_and_carry_the_partitions_hash_tag(redis: Redis) -> None:
    """Own states live for the own expiry, shared ones for the shared one; all keys of a partition share a slot."""
    _, memory, store = await both(redis)
    names = store.names[1]
    own = memory.load(1, memory.export().states.keys)
    user = names.users(own.keys.users[own.users["seen_ms"] > 0])[0]
    shared = names.counters(own.keys.counters[(own.keys.owners == 0) & (own.counters["n"] > 0)])[0]
    assert SMALL.rates.own_ttl_s - 60 < await redis.ttl(user) <= SMALL.rates.own_ttl_s
    assert SMALL.rates.shared_ttl_s - 60 < await redis.ttl(shared) <= SMALL.rates.shared_ttl_s
    assert await redis.ttl(names.fence) == -1
    assert all(_bytes(key).startswith(f"millstream:{SMALL.hash}:{{".encode()) for key in await redis.keys())


async def test_a_refresh_pulls_only_what_changed(redis: Redis) -> None:
    """The second refresh finds nothing, the third finds one batch."""
    _, memory, store = await both(redis)
    feed = SharedCounterFeed(store)
    first = await feed.refresh()
    assert first >= len(feed.counters) > 0
    assert await feed.refresh() == 0
    keys = SessionKeys(np.zeros(0, np.uint64), np.array([11, 12], np.uint64), np.zeros(2, np.uint64))
    states = np.zeros(2, COUNTER)
    states["n"] = 5
    fence = memory.fence(0)
    assert await store.apply(0, fence, fence + 1, SessionStates(keys, np.zeros(0, USER), states)) == fence + 1
    assert await feed.refresh() == 2
    assert feed.counters.sums(keys.counters)["n"].tolist() == [5, 5]


async def test_a_refresh_in_pages_misses_nothing(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that end inside a batch, and batches larger than a page."""
    _, memory, store = await both(redis)
    shared = memory.export().states
    keys = shared.keys.counters[shared.keys.owners == 0]
    for page in (1, 2, 3, 7):
        monkeypatch.setattr(session_store, "_PULLED_CHANGES", page)
        feed = SharedCounterFeed(store)
        await feed.refresh()
        assert feed.counters.keys().tolist() == keys.tolist()
        assert feed.counters.sums(keys).tobytes() == shared.counters[shared.keys.owners == 0].tobytes()


async def test_an_emptied_store_empties_the_sums(redis: Redis) -> None:
    """After a flush serving forgets too."""
    _, memory, store = await both(redis)
    feed = SharedCounterFeed(store)
    await feed.refresh()
    await redis.flushall()
    await feed.refresh()
    assert not feed.counters.sums(memory.export().states.keys.counters)["n"].any()


async def test_the_change_list_forgets_expired_counters(redis: Redis) -> None:
    """The list of changes stays as short as the counters that live."""
    _, memory, store = await both(redis)
    names = store.names[0]
    members = await redis.zrange(names.changes, 0, -1)
    await redis.delete(*[names.counter + _bytes(member) for member in members])
    keys = SessionKeys(np.zeros(0, np.uint64), np.array([11], np.uint64), np.zeros(1, np.uint64))
    fence = memory.fence(0)
    for at in range(1 + len(members) // 4):
        states = SessionStates(keys, np.zeros(0, USER), np.zeros(1, COUNTER))
        await store.apply(0, fence + at, fence + at + 1, states)
    assert await redis.zrange(names.changes, 0, -1) == [b"%016x" % 11]


async def test_a_seeded_store_reads_like_the_one_exported(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warm start: state folded in memory, seeded in parts, is what requests read."""
    monkeypatch.setattr(session_store, "_SEED_STATES", 5)
    encoder, fold = Encoder(SMALL), SessionFold(SMALL)
    memory = MemorySessionStore(SMALL)
    for _, record in batches(encoder, 5, 4):
        memory.step(fold, record)
    store = RedisSessionStore(redis, SMALL, PARTITIONS)
    export = memory.export()
    assert await store.seed(export) == len(export.states.users) + len(export.states.counters)
    feed = SharedCounterFeed(store)
    await feed.refresh()
    ids = encoder.ids(requests(np.random.default_rng(1), 10))
    for left, right in zip(await store.read(encoder, ids, feed.counters), memory.read(encoder, ids), strict=True):
        assert left.tobytes() == right.tobytes()


async def test_a_store_in_use_is_not_seeded(redis: Redis) -> None:
    """Folded state is never overwritten."""
    _, memory, store = await both(redis)
    with pytest.raises(SeedError, match=r"up to examples offset \d+: .* Seed before the first worker"):
        await store.seed(memory.export())


async def test_damaged_bytes_read_as_nothing(redis: Redis) -> None:
    """A value of another length is not taken for a state."""
    _, memory, store = await both(redis)
    keys = memory.export().states.keys
    names = store.names[0]
    for name in names.users(keys.users) + names.counters(keys.counters):
        await redis.set(name, b"short")
    states = await store.load(0, keys)
    assert not states.users.tobytes().strip(b"\0")
    assert not states.counters.tobytes().strip(b"\0")
