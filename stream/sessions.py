"""The fold of displays and outcomes into session state: plain functions over arrays, no store and no clock.

A partition's state has one ordered source, its log of examples. A record tells what was displayed since the record
before, then what was settled: *displays* move the gap and the session; *outcomes* move counters, last outcomes and
session clicks. The *fence* of a partition is the first offset of that log that its state does not hold, so that a state
and its fence are a function of the log alone.

One step is: `SessionFold.keys` names the states that some records touch, a store loads them, `SessionFold.fold` returns
them changed, the store applies them together with the new fence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from learners.spec import FeatureSpec
from stream.examples import Displays
from stream.session_kernels import MISSING, OutcomeColumns, Rules, fold_counters, fold_displays, fold_user_outcomes


class Outcomes(Protocol):
    """B examples in log order; `ExampleRows` is one."""

    @property
    def kind(self) -> NDArray[np.uint8]: ...  # noqa: D102
    @property
    def label(self) -> NDArray[np.uint8]: ...  # noqa: D102
    @property
    def user_key(self) -> NDArray[np.uint64]: ...  # noqa: D102
    @property
    def ts_ms(self) -> NDArray[np.int64]: ...  # noqa: D102
    @property
    def known_ms(self) -> NDArray[np.int64]: ...  # noqa: D102
    @property
    def ids(self) -> NDArray[np.uint64]: ...  # noqa: D102


class Told(NamedTuple):
    """What one record tells: its displays come first, then its outcomes."""

    displays: Displays | None
    outcomes: Outcomes | None


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

    def keys(self, records: Sequence[Told]) -> SessionKeys:
        """The states that some records touch."""
        users = [rows.user_key for told in records for rows in told if rows is not None]
        user_keys = np.unique(np.concatenate(users)) if users else np.zeros(0, np.uint64)
        user_keys = user_keys[np.searchsorted(user_keys, 1) :]  # 0 names nobody
        outcomes = [told.outcomes for told in records if told.outcomes is not None]
        if not outcomes:
            return SessionKeys(user_keys, np.zeros(0, np.uint64), np.zeros(0, np.uint64))
        flat = np.concatenate([rows.ids[:, self._columns] for rows in outcomes])
        counters, first = np.unique(flat, return_index=True)
        user_key = np.concatenate([rows.user_key for rows in outcomes])
        row, column = np.divmod(first, len(self._columns))
        owners = np.where(self._own[column], user_key[row], np.uint64(0))
        present = slice(int(np.searchsorted(counters, 1)), None)
        return SessionKeys(user_keys, counters[present], owners[present])

    def fold(self, states: SessionStates, records: Sequence[Told]) -> SessionStates:
        """The states after the records; ``states`` are those of `keys` and stay as they are."""
        users, counters = states.users.copy(), states.counters.copy()
        for displays, outcomes in records:
            if displays is not None:
                at = _places(states.keys.users, displays.user_key)
                fold_displays(users, at, np.array(displays.ts_ms), self._rules)
            if outcomes is not None:
                rows = self._columns_of(states.keys, outcomes)
                fold_user_outcomes(users, rows, self._rules)
                fold_counters(counters, self._own, rows, self._rules)
        return SessionStates(states.keys, users, counters)

    def _columns_of(self, keys: SessionKeys, outcomes: Outcomes) -> OutcomeColumns:
        """What the kernels read; copies, because they are compiled for each kind of array: read-only, with gaps."""
        return OutcomeColumns(
            kind=np.array(outcomes.kind),
            label=np.array(outcomes.label),
            ts_ms=np.array(outcomes.ts_ms),
            known_ms=np.array(outcomes.known_ms),
            ad=np.array(outcomes.ids[:, self.spec.ad_field]),
            user=_places(keys.users, outcomes.user_key),
            counters=_places(keys.counters, outcomes.ids[:, self._columns]),
        )


def _places(keys: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where keys stand among ``keys``, which hold them all; `MISSING` for 0."""
    return np.where(wanted == 0, MISSING, np.searchsorted(keys, wanted))
