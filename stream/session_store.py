"""Session state in Redis: one atomic call writes a batch, one round trip reads what a request needs.

Keys are ``millstream:<spec hash>:{<partition>}:u:<user key>`` and ``…:c:<counter key>`` (hex); the hash tag keeps a
partition on one node of a Redis Cluster. Beside them a partition has its fence, and, of its shared counters, a list of
what changed since when. Expiry by Redis bounds memory on the wall clock; readers enforce it in event time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from importlib import resources
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from redis.asyncio import Redis

from learners.encode import EncodedIds, Encoder
from learners.session_state import COUNTER, USER, SessionView
from learners.spec import FeatureSpec
from stream.partition import partition_of
from stream.session_memory import SessionExport, SharedCounters, split_export
from stream.sessions import Displays, Fence, Outcomes, SessionFold, SessionKeys, SessionStates

_SEED_STATES = 2_000  # a call: some 200 kB
_PULLED_CHANGES = 10_000  # a round trip of a refresh: some 600 kB


class _Names:
    """The names of one partition's keys."""

    def __init__(self, spec: FeatureSpec, partition: int) -> None:
        base = f"millstream:{spec.hash}:{{{partition}}}:"
        self.fence, self.sequence, self.changes = base + "fence", base + "sequence", base + "changes"
        self.user, self.counter = base + "u:", base + "c:"

    def users(self, keys: NDArray[np.uint64]) -> list[str]:
        return [f"{self.user}{key:016x}" for key in keys.tolist()]

    def counters(self, keys: NDArray[np.uint64]) -> list[str]:
        return [f"{self.counter}{key:016x}" for key in keys.tolist()]


class SeedError(ValueError):
    """A store that already holds state under a fence cannot be seeded."""


class RedisSessionStore:
    """The session state of one feature spec in Redis. ``redis`` must answer bytes (``decode_responses=False``)."""

    def __init__(self, redis: Redis, spec: FeatureSpec, partitions: int) -> None:
        self.spec = spec
        self.partitions = partitions
        self._redis = redis
        self._names = [_Names(spec, partition) for partition in range(partitions)]
        lua = (resources.files("stream") / "session_store.lua").read_text("utf-8")
        self._apply = redis.register_script(lua)
        self._ttl_s = (str(max(1, round(spec.rates.own_ttl_s))), str(max(1, round(spec.rates.shared_ttl_s))))
        self._own_request = np.array([spec.own(counter) for counter in spec.request_counters], bool)
        self._own_ad = np.array([spec.own(counter) for counter in spec.ad_counters], bool)

    async def fence(self, partition: int) -> Fence:
        """What the partition's state holds."""
        found = cast("bytes | None", await self._redis.get(self._names[partition].fence))
        return _fence(found) if found else Fence()

    async def load(self, partition: int, keys: SessionKeys) -> SessionStates:
        """The partition's states of keys, zeros where there is none; one round trip."""
        names = self._names[partition]
        wanted = names.users(keys.users) + names.counters(keys.counters)
        values = await self._mget(wanted)
        u = len(keys.users)
        return SessionStates(keys, _unpacked(values[:u], USER), _unpacked(values[u:], COUNTER))

    async def apply(self, partition: int, expected: Fence, fence: Fence, states: SessionStates) -> Fence:
        """Write changed states and move the fence in one step, if it stands at ``expected``.

        Returns where the fence stands afterwards; if that is not ``fence``, nothing was written.
        """
        names, keys = self._names[partition], states.keys
        own = np.flatnonzero(keys.owners)
        shared = np.flatnonzero(keys.owners == 0)
        order = np.concatenate((own, shared))
        state_keys = names.users(keys.users) + names.counters(keys.counters[order])
        values = _packed(states.users) + _packed(states.counters[order])
        head = [_text(expected), _text(fence), *self._ttl_s, str(len(keys.users) + len(own)), names.counter]
        stands = await self._apply(
            keys=[names.fence, names.sequence, names.changes, *state_keys], args=[*head, *values]
        )
        return _fence(stands)

    async def step(
        self,
        fold: SessionFold,
        partition: int,
        fences: tuple[Fence, Fence],
        displays: Displays | None,
        outcomes: Outcomes | None,
    ) -> Fence:
        """Load, fold and apply one batch, whose rows take the fence from the first to the second of ``fences``.

        Returns where the fence stands afterwards; elsewhere than the second means that nothing was written.
        """
        states = await self.load(partition, fold.keys(displays, outcomes))
        return await self.apply(partition, *fences, fold.fold(states, displays, outcomes))

    async def read(self, encoder: Encoder, ids: EncodedIds, shared: SharedCounters) -> SessionView:
        """The states that encoded requests read: the users' own in one round trip, shared sums from memory."""
        request_keys, ad_keys = encoder.counter_keys(ids)
        request, ad = shared.sums(request_keys), shared.sums(ad_keys)
        places = partition_of(ids.user_key, self.partitions)
        own_request, own_ad = request_keys[:, self._own_request], ad_keys[:, self._own_ad]
        names: list[str] = []
        for place, user, counters in zip(places.tolist(), ids.user_key.tolist(), own_request.tolist(), strict=True):
            prefix = self._names[place]
            names.append(f"{prefix.user}{user:016x}")
            names += [f"{prefix.counter}{key:016x}" for key in counters]
        for place, counters in zip(places[ids.row_request].tolist(), own_ad.tolist(), strict=True):
            prefix = self._names[place]
            names += [f"{prefix.counter}{key:016x}" for key in counters]
        values = await self._read_values(names)
        r, width = len(ids.user_key), 1 + own_request.shape[1]
        by_request = r * width
        users = _unpacked(values[:by_request:width], USER)
        counters_found = _unpacked([v for at, v in enumerate(values[:by_request]) if at % width], COUNTER)
        request[:, self._own_request] = counters_found.reshape(own_request.shape)
        ad[:, self._own_ad] = _unpacked(values[by_request:], COUNTER).reshape(own_ad.shape)
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
            if fence != Fence():
                raise SeedError(
                    f"partition {partition} already holds state up to {_text(fence)} (displays:examples): seeding "
                    "would overwrite it. Seed before the first worker runs, or flush the keys of this spec."
                )
        count = 0
        for partition, states in split_export(export, self.partitions):
            for part in _slices(states, _SEED_STATES):
                await self.apply(partition, Fence(), Fence(), part)
                count += len(part.users) + len(part.counters)
        return count

    async def pull_changes(self, partition: int, since: int) -> tuple[int, NDArray[np.uint64], NDArray[Any]]:
        """Shared counters of a partition that changed after sequence number ``since``: the newest number, keys, states.

        At most some ten thousand at a time, oldest first; call again until the number stays. A number below
        ``since`` tells that the store was emptied.
        """
        names = self._names[partition]
        pipe = self._redis.pipeline(transaction=False)
        pipe.get(names.sequence)
        pipe.zrangebyscore(names.changes, f"({since}", "+inf", start=0, num=_PULLED_CHANGES, withscores=True)
        newest, changed = await pipe.execute()
        if not changed:
            return int(newest or 0), np.zeros(0, np.uint64), np.zeros(0, COUNTER)
        # The page may end inside a batch: what shares its last number is asked for again next time.
        cut = int(changed[-1][1]) - 1 if len(changed) == _PULLED_CHANGES else int(changed[-1][1])
        if cut <= since:
            more = await self._redis.zrangebyscore(names.changes, f"({since}", cut + 1, withscores=True)
            changed, cut = more, cut + 1
        members = [member for member, _ in changed]
        values = await self._mget([names.counter + member.decode() for member in members])
        keys = np.array([int(member, 16) for member in members], np.uint64)
        return cut, keys, _unpacked(values, COUNTER)

    async def _mget(self, names: Sequence[str]) -> list[bytes | None]:
        return await cast("Awaitable[list[bytes | None]]", self._redis.mget(names)) if names else []

    async def _read_values(self, names: list[str]) -> list[bytes | None]:
        """Values of names of any partitions: each distinct name once, one MGET a partition, one round trip."""
        distinct = list(dict.fromkeys(names))
        by_tag: dict[str, list[str]] = {}
        for name in distinct:
            by_tag.setdefault(name[: name.index("}")], []).append(name)
        if len(by_tag) <= 1:
            found = dict(zip(distinct, await self._mget(distinct), strict=True))
        else:
            pipe = self._redis.pipeline(transaction=False)
            for group in by_tag.values():
                pipe.mget(group)
            answers = await pipe.execute()
            found = {
                name: value
                for group, values in zip(by_tag.values(), answers, strict=True)
                for name, value in zip(group, values, strict=True)
            }
        return [found[name] for name in names]


class SharedCounterFeed:
    """Keeps `SharedCounters` abreast of the store: call `refresh` every ``feature_refresh_s``."""

    def __init__(self, store: RedisSessionStore) -> None:
        self.counters = SharedCounters(store.spec, store.partitions)
        self._store = store
        self._since = [0] * store.partitions

    async def refresh(self) -> int:
        """Pull what changed in every partition; returns how many states were replaced."""
        count = 0
        for partition in range(self._store.partitions):
            while True:
                since = self._since[partition]
                newest, keys, states = await self._store.pull_changes(partition, since)
                if newest < since:
                    self.counters.forget(partition)
                    self._since[partition] = 0
                    continue
                self.counters.put(partition, keys, states)
                self._since[partition] = newest
                count += len(keys)
                if newest == since or not len(keys):
                    break
        return count


def _packed(states: NDArray[Any]) -> list[bytes]:
    size, raw = states.dtype.itemsize, states.tobytes()
    return [raw[at : at + size] for at in range(0, len(raw), size)]


def _unpacked(values: Sequence[bytes | None], dtype: np.dtype[Any]) -> NDArray[Any]:
    """States from their bytes, writable; zeros for none and for bytes of another layout."""
    empty = bytes(dtype.itemsize)
    joined = bytearray().join([v if v is not None and len(v) == dtype.itemsize else empty for v in values])
    return np.frombuffer(joined, dtype)


def _text(fence: Fence) -> str:
    return f"{fence.displays}:{fence.examples}"


def _fence(value: bytes) -> Fence:
    displays, _, examples = value.decode().partition(":")
    return Fence(int(displays), int(examples))


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
