"""Session state in Redis: one atomic call writes a step, one round trip reads what a request needs.

Keys are ``millstream:<spec hash>:{<partition>}:u:<user key>`` and ``…:c:<counter key>`` (hex); the hash tag keeps a
partition on one node of a Redis Cluster. Beside them a partition has its fence, the first offset of the examples log
that its states do not hold, and, of its shared counters, a list of what changed since when. Expiry by Redis bounds
memory on the wall clock; readers enforce it in event time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from importlib import resources
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from redis.asyncio import Redis

from learners.features.encode import EncodedIds, Encoder
from learners.features.session_state import COUNTER, USER, SessionView, impossible_states
from learners.features.spec import FeatureSpec
from stream.records.partition import partition_of
from stream.servers.fences import clear, damage_is_said, fence_of, sequence_of
from stream.sessions.fold import SessionFold, SessionKeys, SessionRecord, SessionStates
from stream.sessions.in_memory import SessionExport, SharedCounters, split_export

T = TypeVar("T")

_SEED_STATES = 2_000  # a call: some 200 kB
_PULLED_CHANGES = 10_000  # a round trip of a refresh: some 600 kB


class KeyNames:
    """The names of one partition's keys."""

    def __init__(self, spec: FeatureSpec, partition: int) -> None:
        base = f"millstream:{spec.hash}:{{{partition}}}:".encode()
        self.fence, self.sequence, self.changes = base + b"fence", base + b"sequence", base + b"changes"
        self.user, self.counter = base + b"u:", base + b"c:"

    def users(self, keys: NDArray[np.uint64]) -> list[bytes]:
        """Names of users' states."""
        return _named(self.user, keys)

    def counters(self, keys: NDArray[np.uint64]) -> list[bytes]:
        """Names of counters."""
        return _named(self.counter, keys)


class SeedError(ValueError):
    """A store that already holds state under a fence cannot be seeded."""


_MOVE_BACK = """
local current = redis.call('GET', KEYS[1]) or '0'
if current ~= ARGV[1] then return current end
redis.call('SET', KEYS[1], ARGV[2])
return ARGV[2]
"""


class RedisSessionStore:
    """The session state of one feature spec in Redis.

    Every call raises RedisError, or OSError, when Redis fails.

    Parameters
    ----------
    redis : must answer bytes (``decode_responses=False``).
    timeout_s : how long a round trip may take, retries of ``redis`` included; TimeoutError, an OSError, then.
    """

    def __init__(self, redis: Redis, spec: FeatureSpec, partitions: int, timeout_s: float = 1.0) -> None:
        self.spec = spec
        self.partitions = partitions
        self._redis = redis
        self._timeout_s = timeout_s
        self.names = [KeyNames(spec, partition) for partition in range(partitions)]
        lua = (resources.files("stream.sessions") / "store.lua").read_text("utf-8")
        self._apply = redis.register_script(lua)
        self._move_back = redis.register_script(_MOVE_BACK)
        self._ttl_s = (str(max(1, round(spec.rates.own_ttl_s))), str(max(1, round(spec.rates.shared_ttl_s))))
        self._own_request = np.array([spec.own(counter) for counter in spec.request_counters], bool)
        self._own_ad = np.array([spec.own(counter) for counter in spec.ad_counters], bool)

    async def fence(self, partition: int) -> int:
        """The first offset of the examples log that the partition's state does not hold. Raises DamagedStoreError."""
        with damage_is_said():
            return fence_of(await self._answer(self._redis.get(self.names[partition].fence)))

    async def clear(self, partition: int) -> None:
        """Forget a partition's states, the fence last: it is folded again from the log's start."""
        names = self.names[partition]
        last = [names.sequence, names.changes, names.fence]
        await clear(self._redis, [names.user + b"*", names.counter + b"*"], last)

    async def load(self, partition: int, keys: SessionKeys) -> SessionStates:
        """The partition's states of keys, zeros where there is none; one round trip."""
        return (await self._load(partition, keys))[1]

    async def apply(self, partition: int, expected: int, fence: int, states: SessionStates) -> int:
        """Write changed states and move the fence in one step, if it stands at ``expected``.

        Returns where the fence stands afterwards; if that is not ``fence``, nothing was written. Raises
        DamagedStoreError.
        """
        names, keys = self.names[partition], states.keys
        own = np.flatnonzero(keys.owners)
        order = np.concatenate((own, np.flatnonzero(keys.owners == 0)))
        state_keys = names.users(keys.users) + names.counters(keys.counters[order])
        values = (states.users.tobytes(), states.counters.take(order).tobytes())
        head = (expected, fence, *self._ttl_s, len(keys.users), len(own), names.counter)
        with damage_is_said():
            current = await self._answer(
                self._apply(
                    keys=[names.fence, names.sequence, names.changes, *state_keys],
                    args=[*head, USER.itemsize, COUNTER.itemsize, *values],
                )
            )
        return fence_of(current)

    async def step(
        self, fold: SessionFold, partition: int, expected: int, fence: int, records: Sequence[SessionRecord]
    ) -> int:
        """Load, fold and apply some records, which take the fence from ``expected`` to ``fence``.

        Returns where the fence stands afterwards; elsewhere than at ``fence`` means that nothing was written.
        """
        current, states = await self._load(partition, fold.keys(records))
        if current != expected:
            return current
        return await self.apply(partition, expected, fence, fold.fold(states, records))

    async def move_back(self, partition: int, expected: int, fence: int) -> int:
        """Move the fence back to where the log was cut, states as they are; returns where it stands afterwards."""
        with damage_is_said():
            moved = await self._answer(self._move_back(keys=[self.names[partition].fence], args=[expected, fence]))
        return fence_of(moved)

    async def read(self, encoder: Encoder, ids: EncodedIds, shared: SharedCounters) -> SessionView:
        """The states that encoded requests read: the users' own in one round trip, shared sums from memory."""
        request_keys, ad_keys = encoder.counter_keys(ids)
        request, ad = shared.sums(request_keys), shared.sums(ad_keys)
        partitions = partition_of(ids.user_key, self.partitions)
        own_request, own_ad = request_keys[:, self._own_request], ad_keys[:, self._own_ad]
        by_request = own_request.size
        counter_partitions = (
            np.repeat(partitions, own_request.shape[1]),
            np.repeat(partitions[ids.row_request], own_ad.shape[1]),
        )
        users, counters = await self._read(
            _Wanted(ids.user_key, partitions),
            _Wanted(np.concatenate((own_request.ravel(), own_ad.ravel())), np.concatenate(counter_partitions)),
        )
        request[:, self._own_request] = counters[:by_request].reshape(own_request.shape)
        ad[:, self._own_ad] = counters[by_request:].reshape(own_ad.shape)
        return SessionView(users, request, ad)

    async def seed(self, export: SessionExport) -> int:
        """Put exported state into an empty store; returns the number of states.

        Raises
        ------
        SeedError
            If a partition has a fence: folded state would be overwritten.
        """
        for partition in range(self.partitions):
            fence = await self.fence(partition)
            if fence:
                raise SeedError(
                    f"partition {partition} already holds state up to examples offset {fence}: seeding would overwrite "
                    "it. Seed before the first worker runs, or flush the keys of this spec."
                )
        count = 0
        for partition, states in split_export(export, self.partitions):
            for part in _slices(states, _SEED_STATES):
                await self.apply(partition, 0, 0, part)
                count += len(part.users) + len(part.counters)
        return count

    async def pull_changes(self, partition: int, since: int) -> tuple[int, NDArray[np.uint64], NDArray[Any]]:
        """Shared counters of a partition that changed after sequence number ``since``: the newest number, keys, states.

        At most some ten thousand at a time, oldest first; call again until the number stays. A number below
        ``since`` means that the store was emptied.
        """
        names = self.names[partition]
        pipe = self._redis.pipeline(transaction=False)
        pipe.get(names.sequence)
        pipe.zrangebyscore(names.changes, f"({since}", "+inf", start=0, num=_PULLED_CHANGES, withscores=True)
        newest, changed = await self._answer(pipe.execute())
        if not changed:
            return sequence_of(newest), np.zeros(0, np.uint64), np.zeros(0, COUNTER)
        # The page may end inside a batch: what shares its last number is asked for again next time.
        cut = int(changed[-1][1]) - 1 if len(changed) == _PULLED_CHANGES else int(changed[-1][1])
        if cut <= since:
            more = self._redis.zrangebyscore(names.changes, f"({since}", cut + 1, withscores=True)
            changed, cut = await self._answer(more), cut + 1
        members = [member for member, _ in changed]
        values = await self._mget([names.counter + member for member in members])
        keys = np.array([int(member, 16) for member in members], np.uint64)
        return cut, keys, _unpacked(values, COUNTER)

    async def _load(self, partition: int, keys: SessionKeys) -> tuple[int, SessionStates]:
        """The partition's fence and its states of keys, at one moment."""
        names = self.names[partition]
        fence, *values = await self._mget([names.fence, *names.users(keys.users), *names.counters(keys.counters)])
        u = len(keys.users)
        return fence_of(fence), SessionStates(keys, _unpacked(values[:u], USER), _unpacked(values[u:], COUNTER))

    async def _mget(self, names: Sequence[bytes]) -> list[bytes | None]:
        return await self._answer(cast("Awaitable[list[bytes | None]]", self._redis.mget(names)))

    async def _answer(self, call: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await call
        except TimeoutError as error:
            raise TimeoutError(f"no answer within {self._timeout_s:g} s") from error

    async def _read(self, users: _Wanted, counters: _Wanted) -> tuple[NDArray[Any], NDArray[Any]]:
        """States from any partitions: each distinct one once, one MGET a partition, one round trip."""
        partitions = np.unique(users.partitions).tolist()
        parts = [(users.of(partition), counters.of(partition)) for partition in partitions]
        pipe = self._redis.pipeline(transaction=False)
        for partition, (user, counter) in zip(partitions, parts, strict=True):
            names = self.names[partition]
            pipe.mget(names.users(user.keys) + names.counters(counter.keys))
        user_states, counter_states = np.zeros(len(users.keys), USER), np.zeros(len(counters.keys), COUNTER)
        for values, (user, counter) in zip(await self._answer(pipe.execute()), parts, strict=True):
            u = len(user.keys)
            user_states[user.rows] = _unpacked(values[:u], USER).take(user.inverse)
            counter_states[counter.rows] = _unpacked(values[u:], COUNTER).take(counter.inverse)
        return user_states, counter_states


class _PartitionKeys(NamedTuple):
    """The keys of one partition, each once: rows ``rows[i]`` of what is wanted are of key ``inverse[i]``."""

    keys: NDArray[np.uint64]
    rows: NDArray[np.intp]
    inverse: NDArray[np.intp]


class _Wanted(NamedTuple):
    """N keys to be read, the same ones perhaps often, and the partition of each."""

    keys: NDArray[np.uint64]  # (N,)
    partitions: NDArray[np.int32]  # (N,)

    def of(self, partition: int) -> _PartitionKeys:
        rows = np.flatnonzero(self.partitions == partition)
        keys, inverse = np.unique(self.keys[rows], return_inverse=True)
        return _PartitionKeys(keys, rows, inverse)


def _named(prefix: bytes, keys: NDArray[np.uint64]) -> list[bytes]:
    """A name a key: the prefix and the key in sixteen hex digits."""
    names = np.empty((len(keys), len(prefix) + 16), np.uint8)
    names[:, : len(prefix)] = np.frombuffer(prefix, np.uint8)
    digits = keys.astype(">u8").tobytes().hex().encode()
    names[:, len(prefix) :] = np.frombuffer(digits, np.uint8).reshape(-1, 16)
    return cast("list[bytes]", names.view(f"S{names.shape[1]}").ravel().tolist())


def _unpacked(values: Sequence[bytes | None], dtype: np.dtype[Any]) -> NDArray[Any]:
    """States from their bytes, writable; zeros for none, for bytes of another layout, and for what none can be."""
    empty = bytes(dtype.itemsize)
    joined = bytearray().join([v if v is not None and len(v) == dtype.itemsize else empty for v in values])
    states = np.frombuffer(joined, dtype)
    if (impossible := impossible_states(states)).any():
        states[impossible] = np.zeros((), dtype)
    return states


def _slices(states: SessionStates, most: int) -> list[SessionStates]:
    """The states in parts of at most ``most`` users and counters each."""
    keys = states.keys
    longest = max(len(keys.users), len(keys.counters))
    parts = []
    for at in range(0, longest, most):
        s = slice(at, at + most)
        here = SessionKeys(keys.users[s], keys.counters[s], keys.owners[s])
        parts.append(SessionStates(here, states.users[s], states.counters[s]))
    return parts
