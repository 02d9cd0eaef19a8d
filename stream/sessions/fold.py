"""The fold of displays, clicks and conversions into session state: plain functions over arrays, no store and no clock.

A partition's state has one ordered source, its log of examples. A display moves the gap, the session, the last outcomes
and the counters' n at once; its click, when it comes, turns its outcome and moves the clicks; conversions move the
values. So a smoothed CTR holds displays whose clicks are still to come, a few seconds of traffic. The *fence* of a
partition is the first offset of that log that its state does not hold, so that a state and its fence are a function of
the log alone.

One step is: `SessionFold.keys` names the states that some records touch, a store loads them, `SessionFold.fold` returns
them changed, the store applies them together with the new fence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from learners.features.spec import FeatureSpec
from stream.sessions.kernels import MISSING, EventColumns, Rules, fold_counters, fold_users


class SessionRecord(Protocol):
    """What one record of the log says: B events in its order; `ExampleRows` is one."""

    @property
    def kind(self) -> NDArray[np.uint8]: ...  # noqa: D102
    @property
    def impression_id(self) -> NDArray[np.uint64]: ...  # noqa: D102
    @property
    def user_key(self) -> NDArray[np.uint64]: ...  # noqa: D102
    @property
    def ts_ms(self) -> NDArray[np.int64]: ...  # noqa: D102
    @property
    def known_ms(self) -> NDArray[np.int64]: ...  # noqa: D102
    @property
    def ids(self) -> NDArray[np.uint64]: ...  # noqa: D102


@dataclass(frozen=True, slots=True, eq=False)
class SessionKeys:
    """Which states some records touch; keys ascend, each once, 0 (missing) never."""

    users: NDArray[np.uint64]  # (U,)
    counters: NDArray[np.uint64]  # (K,)
    owners: NDArray[np.uint64]  # (K,) the user key of a user's own counter; 0: shared


@dataclass(frozen=True, slots=True, eq=False)
class SessionStates:
    """The states of such keys; all zeros where there was none."""

    keys: SessionKeys
    users: NDArray[Any]  # (U,) USER
    counters: NDArray[Any]  # (K,) COUNTER


class SessionFold:
    """Folds records of one partition under one feature spec. The result does not depend on how steps are cut."""

    def __init__(self, spec: FeatureSpec) -> None:
        self.spec = spec
        self._columns = np.array(spec.counter_columns, np.intp)
        self._own = np.array([spec.own(counter) for counter in spec.counters], bool)
        self._rules = Rules(
            gap_ms=round(spec.session.gap_s * 1000),
            own_ttl_ms=round(spec.rates.own_ttl_s * 1000),
            shared_ttl_ms=round(spec.rates.shared_ttl_s * 1000),
            half_life_ms=spec.rates.half_life_s * 1000.0,
        )

    def keys(self, records: Sequence[SessionRecord]) -> SessionKeys:
        """The states that some records touch."""
        if not records:
            return SessionKeys(*np.zeros((3, 0), np.uint64))
        user_key = np.concatenate([rows.user_key for rows in records])
        counters, first = np.unique(np.concatenate([rows.ids[:, self._columns] for rows in records]), return_index=True)
        row, column = np.divmod(first, max(len(self._columns), 1))
        owners = np.where(self._own[column], user_key[row], np.uint64(0))
        users = np.unique(user_key)
        # 0 names nobody
        named, present = (slice(int(np.searchsorted(keys, 1)), None) for keys in (users, counters))
        return SessionKeys(users[named], counters[present], owners[present])

    def fold(self, states: SessionStates, records: Sequence[SessionRecord]) -> SessionStates:
        """The states after the records; ``states`` are those of `keys` and stay as they are."""
        users, counters = states.users.copy(), states.counters.copy()
        for rows in records:
            events = self._columns_of(states.keys, rows)
            fold_users(users, events, self._rules)
            fold_counters(counters, self._own, events, self._rules)
        return SessionStates(states.keys, users, counters)

    def _columns_of(self, keys: SessionKeys, rows: SessionRecord) -> EventColumns:
        """What the kernels read; copies, because they are compiled for each kind of array: read-only, with gaps."""
        return EventColumns(
            kind=np.array(rows.kind),
            impression=rows.impression_id.astype(np.uint32),  # the low half
            ts_ms=np.array(rows.ts_ms),
            known_ms=np.array(rows.known_ms),
            ad=np.array(rows.ids[:, self.spec.ad_field]),
            user=_indices(keys.users, rows.user_key),
            counters=_indices(keys.counters, rows.ids[:, self._columns]),
        )


def _indices(keys: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where keys stand among ``keys``, which hold them all; `MISSING` for 0."""
    return np.where(wanted == 0, MISSING, np.searchsorted(keys, wanted))
