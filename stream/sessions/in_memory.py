"""Session state in memory: the store of the backtest, and the sums of shared counters that serving keeps."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from learners.features.encode import EncodedIds, Encoder
from learners.features.session_state import COUNTER, USER, SessionView, merged
from learners.features.spec import FeatureSpec
from stream.records.partition import partition_of
from stream.sessions.fold import SessionFold, SessionKeys, SessionRecord, SessionStates
from stream.sessions.key_slots import KeySlots

_FIRST_SLOTS = 1024


class SessionExport(NamedTuple):
    """All session state of one feature spec, merged over partitions, in the order of its keys."""

    spec_hash: str
    states: SessionStates

    def save(self, path: Path) -> None:
        """Write an ``.npz`` file, whole or not at all."""
        keys = self.states.keys
        unfinished = path.with_name(path.name + ".unfinished")
        with unfinished.open("wb") as file:
            np.savez(
                file,
                spec_hash=np.array(self.spec_hash),
                user_keys=keys.users,
                users=self.states.users,
                counter_keys=keys.counters,
                counter_owners=keys.owners,
                counters=self.states.counters,
            )
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path, spec: FeatureSpec) -> SessionExport:
        """Read such a file. Raises ValueError for another feature spec or layout, or a file that is none."""
        try:
            with path.open("rb") as stored, np.load(stored, allow_pickle=False) as file:
                found = str(file["spec_hash"])
                keys = SessionKeys(file["user_keys"], file["counter_keys"], file["counter_owners"])
                states = SessionStates(keys, file["users"], file["counters"])
        except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{path} is not a whole session export ({error}): no state can be read from it. Write it again."
            ) from error
        if (states.users.dtype, states.counters.dtype) != (USER, COUNTER):
            raise ValueError(
                f"{path} holds states of another release, laid out as {states.users.dtype} and "
                f"{states.counters.dtype}: they would be read as other numbers. Export them again."
            )
        if found != spec.hash:
            raise ValueError(
                f"{path} holds sessions of feature spec {found}, this is {spec.name} {spec.hash}: its keys would match "
                "nothing. Export them under the same spec."
            )
        return cls(found, states)


class _Table:
    """Keys to packed states; unknown keys read as zeros."""

    def __init__(self, dtype: np.dtype[Any], width: tuple[int, ...] = ()) -> None:
        self.slots = KeySlots()
        self.states = np.zeros((_FIRST_SLOTS, *width), dtype)  # slot 0 stays all zeros

    def __len__(self) -> int:
        return len(self.slots)

    def admit(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The slots of keys, new ones made for unknown ones."""
        slots = self.slots.admit(keys)
        while len(self.slots) >= len(self.states):
            self.states = np.concatenate((self.states, np.zeros_like(self.states)))
        return slots

    def load(self, keys: NDArray[np.uint64]) -> NDArray[Any]:
        """The states of keys, a copy."""
        loaded: NDArray[Any] = self.states.take(self.slots.look_up(keys), axis=0)
        return loaded

    def put(self, keys: NDArray[np.uint64], states: NDArray[Any]) -> None:
        """Replace the states of keys."""
        slots = self.admit(keys)  # first: it may replace self.states
        self.states[slots] = states

    def sorted(self) -> tuple[NDArray[np.uint64], NDArray[Any]]:
        """All keys, ascending, and their states."""
        keys = np.sort(self.slots.keys())
        return keys, self.load(keys)


class SharedCounters:
    """Counters that are not one user's own: each partition's state, and their sums, ready to be looked up.

    Memory: 56 bytes x (partitions + 1) a key, and `KeySlots`.
    """

    def __init__(self, spec: FeatureSpec, partitions: int) -> None:
        self._half_life_ms = spec.rates.half_life_s * 1000
        self._parts = _Table(COUNTER, (partitions,))
        self._sums = np.zeros(_FIRST_SLOTS, COUNTER)

    def __len__(self) -> int:
        return len(self._parts)

    def put(self, partition: int, keys: NDArray[np.uint64], states: NDArray[Any]) -> None:
        """Replace one partition's states of keys, and sum again."""
        if not len(keys):
            return
        slots = self._parts.admit(keys)
        parts = self._parts.states
        parts[slots, partition] = states
        if len(self._sums) < len(parts):
            self._sums = np.concatenate((self._sums, np.zeros(len(parts) - len(self._sums), COUNTER)))
        self._sums[slots] = states if parts.shape[1] == 1 else merged(parts[slots].T, self._half_life_ms)

    def forget(self, partition: int) -> None:
        """Drop all that came of one partition (its store was emptied)."""
        keys, _ = self._parts.sorted()
        self.put(partition, keys, np.zeros(len(keys), COUNTER))

    def of_partition(self, partition: int, keys: NDArray[np.uint64]) -> NDArray[Any]:
        """One partition's states of keys, (K,) COUNTER."""
        states: NDArray[Any] = self._parts.states[self._parts.slots.look_up(keys), partition]
        return states

    def sums(self, keys: NDArray[np.uint64]) -> NDArray[Any]:
        """The sums over partitions, of the shape of ``keys``; zeros for unknown keys."""
        found: NDArray[Any] = self._sums.take(self._parts.slots.look_up(keys.ravel())).reshape(keys.shape)
        return found

    def keys(self) -> NDArray[np.uint64]:
        """All keys, ascending."""
        return self._parts.sorted()[0]


class MemorySessionStore:
    """The session state of all partitions in this process: same meaning as `RedisSessionStore`, but not awaited."""

    def __init__(self, spec: FeatureSpec, partitions: int = 1) -> None:
        self.spec = spec
        self.partitions = partitions
        self._fences = [0] * partitions
        self._users = [_Table(USER) for _ in range(partitions)]
        self._own = [_Table(COUNTER) for _ in range(partitions)]
        self._owner_of: dict[int, int] = {}
        self._shared = SharedCounters(spec, partitions)
        self._own_request = np.array([spec.own(counter) for counter in spec.request_counters], bool)
        self._own_ad = np.array([spec.own(counter) for counter in spec.ad_counters], bool)

    def fence(self, partition: int) -> int:
        """How many steps the partition's state holds."""
        return self._fences[partition]

    def load(self, partition: int, keys: SessionKeys) -> SessionStates:
        """The partition's states of keys, zeros where there is none."""
        counters = np.zeros(len(keys.counters), COUNTER)
        if len(counters):
            own = keys.owners != 0
            counters[own] = self._own[partition].load(keys.counters[own])
            counters[~own] = self._shared.of_partition(partition, keys.counters[~own])
        return SessionStates(keys, self._users[partition].load(keys.users), counters)

    def apply(self, partition: int, expected: int, fence: int, states: SessionStates) -> int:
        """Write changed states and move the fence, if it stands at ``expected``; returns where it stands after."""
        if self._fences[partition] != expected:
            return self._fences[partition]
        keys = states.keys
        self._users[partition].put(keys.users, states.users)
        if len(keys.counters):
            own = keys.owners != 0
            self._own[partition].put(keys.counters[own], states.counters[own])
            self._owner_of.update(zip(keys.counters[own].tolist(), keys.owners[own].tolist(), strict=True))
            self._shared.put(partition, keys.counters[~own], states.counters[~own])
        self._fences[partition] = fence
        return fence

    def step(self, fold: SessionFold, record: SessionRecord, partition: int = 0) -> None:
        """Load, fold and apply one record; the fence counts steps here."""
        before = self._fences[partition]
        states = self.load(partition, fold.keys([record]))
        self.apply(partition, before, before + 1, fold.fold(states, [record]))

    def read(self, encoder: Encoder, ids: EncodedIds) -> SessionView:
        """The states that encoded requests read: the user's from its partition, shared ones summed."""
        if self.partitions == 1:
            return self._read_one(encoder, ids)
        partitions = partition_of(ids.user_key, self.partitions)
        request_keys, ad_keys = encoder.counter_keys(ids)
        users = np.zeros(len(ids.user_key), USER)
        request, ad = self._shared.sums(request_keys), self._shared.sums(ad_keys)
        for partition in np.unique(partitions).tolist():
            here = partitions == partition
            rows = here[ids.row_request]
            users[here] = self._users[partition].load(ids.user_key[here])
            own = self._own[partition]
            request[np.ix_(here, self._own_request)] = _loaded(own, request_keys[np.ix_(here, self._own_request)])
            ad[np.ix_(rows, self._own_ad)] = _loaded(own, ad_keys[np.ix_(rows, self._own_ad)])
        return SessionView(users, request, ad)

    def _read_one(self, encoder: Encoder, ids: EncodedIds) -> SessionView:
        request_keys, ad_keys = encoder.counter_keys(ids)
        request, ad = self._shared.sums(request_keys), self._shared.sums(ad_keys)
        request[:, self._own_request] = _loaded(self._own[0], request_keys[:, self._own_request])
        ad[:, self._own_ad] = _loaded(self._own[0], ad_keys[:, self._own_ad])
        return SessionView(self._users[0].load(ids.user_key), request, ad)

    def export(self) -> SessionExport:
        """All state, merged over partitions."""
        users = _merge_disjoint(USER, self._users)
        own = _merge_disjoint(COUNTER, self._own)
        shared = self._shared.keys()
        keys = np.concatenate((own[0], shared))
        owners = np.array([self._owner_of[key] for key in own[0].tolist()] + [0] * len(shared), np.uint64)
        counters = np.concatenate((own[1], self._shared.sums(shared)))
        order = np.argsort(keys)
        session_keys = SessionKeys(users[0], keys[order], owners[order])
        return SessionExport(self.spec.hash, SessionStates(session_keys, users[1], counters[order]))

    def restore(self, export: SessionExport) -> None:
        """Put exported state in; fences stay where they are."""
        for partition, states in split_export(export, self.partitions):
            self.apply(partition, self.fence(partition), self.fence(partition), states)

    def sha256(self) -> str:
        """A digest of all state, independent of the order in which keys came."""
        states = self.export().states
        digest = hashlib.sha256(self.spec.hash.encode())
        parts = (states.keys.users, states.users, states.keys.counters, states.keys.owners, states.counters)
        for part in parts:
            digest.update(part.tobytes())
        return digest.hexdigest()


def split_export(export: SessionExport, partitions: int) -> Iterator[tuple[int, SessionStates]]:
    """An export by partition: the user's own where the user lives, shared counters where their key would."""
    keys = export.states.keys
    user_partition = partition_of(keys.users, partitions)
    counter_partition = partition_of(np.where(keys.owners != 0, keys.owners, keys.counters), partitions)
    for partition in range(partitions):
        user, counter = user_partition == partition, counter_partition == partition
        here = SessionKeys(keys.users[user], keys.counters[counter], keys.owners[counter])
        yield partition, SessionStates(here, export.states.users[user], export.states.counters[counter])


def _loaded(table: _Table, keys: NDArray[np.uint64]) -> NDArray[Any]:
    return table.load(keys.ravel()).reshape(keys.shape)


def _merge_disjoint(dtype: np.dtype[Any], tables: list[_Table]) -> tuple[NDArray[np.uint64], NDArray[Any]]:
    """All keys of tables that share none, ascending, and their states."""
    both = [table.sorted() for table in tables]
    keys = np.concatenate([keys for keys, _ in both])
    order = np.argsort(keys)
    states = np.concatenate([np.asarray(states, dtype) for _, states in both])
    return keys[order], states[order]
