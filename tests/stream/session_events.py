"""Random displays, clicks and conversions of a few users and ads, and the session fold done slowly with dicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from learners.examples.kinds import CLICK, CONVERSION, EXPOSURE
from learners.features.session_state import COUNTER, REMEMBERED, USER
from learners.features.spec import FeatureSpec
from stream.records.examples import ExampleRows
from tests.learners.small_spec import SMALL

START_MS = 1_700_000_000_000


@dataclass(frozen=True, slots=True)
class Event:
    """One example of an impression: displayed at ``ts_ms``, and what happened at ``known_ms``."""

    kind: int
    user: int
    ad: int
    tab: int
    ts_ms: int
    known_ms: int
    impression: int = 1

    def ids(self, spec: FeatureSpec = SMALL) -> list[int]:
        """A row of ids with the counters' keys in their columns; 0 where a part is missing."""
        row = [0] * spec.id_columns
        author = self.ad % 2
        values = {"user": self.user, "tab": self.tab, "ad": self.ad}
        values["user_author"] = self.user * 10 + author if self.user and author else 0
        values["user_tab"] = self.user * 10 + self.tab if self.user and self.tab else 0
        for name, value in values.items():
            column = spec.field_index(name)
            row[column] = value and (value if name == "user" else value + 1000 * column)
        return row


def display(user: int, ad: int, ts_ms: int, impression: int = 1) -> Event:
    """A display on tab 1."""
    return Event(EXPOSURE, user, ad, 1, ts_ms, ts_ms, impression)


def rows_of(events: list[Event], spec: FeatureSpec = SMALL) -> ExampleRows:
    """Events as a record's rows; what sessions do not read is 0."""
    none = ExampleRows.empty(spec.id_columns, spec.dense_inputs).columns()
    columns = {name: np.zeros((len(events), *column.shape[1:]), column.dtype) for name, column in none.items()}
    columns |= {
        "kind": np.array([event.kind for event in events], np.uint8),
        "impression_id": np.array([event.impression for event in events], np.uint64),
        "user_key": np.array([event.user for event in events], np.uint64),
        "ts_ms": np.array([event.ts_ms for event in events], np.int64),
        "known_ms": np.array([event.known_ms for event in events], np.int64),
        "ids": np.array([event.ids(spec) for event in events], np.uint64).reshape(len(events), spec.id_columns),
    }
    return ExampleRows(**columns)


@st.composite
def events(draw: st.DrawFn, *, most: int = 40, jumps: bool = True) -> list[Event]:
    """A log in nearly ascending time, each click and conversion after its display.

    ``jumps``: with silences longer than a session and than the expiries.
    """
    steps = [0, 1, 700, 30_000] + ([600_000, 1_900_000, 3_600_001, 7_200_001] if jumps else [])
    now, out = START_MS, []
    shown: list[Event] = []
    clicked: set[int] = set()
    for at in range(draw(st.integers(0, most))):
        now += draw(st.sampled_from(steps))
        kind = draw(st.sampled_from([EXPOSURE, EXPOSURE, EXPOSURE, CLICK, CLICK, CONVERSION]))
        known_ms = now - draw(st.sampled_from([0, 0, 0, 5_000]))
        able = [one for one in shown if (one.impression in clicked) == (kind == CONVERSION)]
        if kind == EXPOSURE or not able:
            user, ad, tab = draw(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2)))
            # Ids that differ in their high halves, and some only there.
            impression = (at + 1) << 32 | draw(st.sampled_from([at + 1, at + 1, at + 1, 7]))
            shown.append(Event(EXPOSURE, user, ad, tab, known_ms, known_ms, impression))
            out.append(shown[-1])
            continue
        of = draw(st.sampled_from(able))
        clicked.add(of.impression)
        out.append(Event(kind, of.user, of.ad, of.tab, of.ts_ms, known_ms, of.impression))
    return out


class SlowFold:
    """The same fold, one event at a time."""

    def __init__(self, spec: FeatureSpec = SMALL) -> None:
        self.spec = spec
        self.users: dict[int, dict[str, Any]] = {}
        self.counters: dict[int, dict[str, float]] = {}

    def fold(self, event: Event) -> None:
        """Fold one event."""
        if event.user:
            self._user_event(event)
        for counter, column in zip(self.spec.counters, self.spec.counter_columns, strict=True):
            key = event.ids(self.spec)[column]
            if key:
                self._count(key, event, self.spec.own(counter))

    def _user(self, key: int, now: int) -> dict[str, Any]:
        new = {"seen": 0, "display": 0, "start": 0, "click": 0, "impressions": 0, "clicks": 0, "recent": []}
        state = self.users.get(key, new)
        if now - state["seen"] > self.spec.rates.own_ttl_s * 1000:
            state = new
        state["seen"] = max(state["seen"], now)
        self.users[key] = state
        return state

    def _user_event(self, event: Event) -> None:
        user = self._user(event.user, event.known_ms)
        name = (event.ids(self.spec)[self.spec.ad_field], event.impression & 0xFFFFFFFF)
        if event.kind == EXPOSURE:
            if not user["display"] or event.ts_ms - user["display"] >= self.spec.session.gap_s * 1000:
                user["start"], user["impressions"] = event.ts_ms, 0
            user["impressions"] += 1
            user["display"] = max(user["display"], event.ts_ms)
            user["recent"] = [[name, 0], *user["recent"]][:REMEMBERED]
        elif event.kind == CLICK:
            for pair in user["recent"]:
                if pair[0] == name:
                    pair[1] = 1
                    break
            if user["click"] < user["start"]:
                user["clicks"] = 0
            if event.ts_ms >= user["start"]:
                user["clicks"] += 1
            user["click"] = max(user["click"], event.ts_ms)

    def _count(self, key: int, event: Event, own: bool) -> None:
        new = {"n": 0.0, "clicks": 0.0, "values": 0.0, "rn": 0.0, "rclicks": 0.0, "rvalues": 0.0, "ts": 0}
        state = self.counters.get(key, new)
        ttl_s = self.spec.rates.own_ttl_s if own else self.spec.rates.shared_ttl_s
        if event.known_ms - state["ts"] > ttl_s * 1000:
            state = new
        newest = max(state["ts"], event.known_ms)
        half_life_ms = self.spec.rates.half_life_s * 1000
        for name in ("rn", "rclicks", "rvalues"):
            state[name] *= 0.5 ** ((newest - state["ts"]) / half_life_ms)
        name = {EXPOSURE: "n", CLICK: "clicks", CONVERSION: "values"}[event.kind]
        state[name] += 1
        state["r" + name] += 0.5 ** ((newest - event.known_ms) / half_life_ms)
        state["ts"] = newest
        self.counters[key] = state

    def user_states(self, keys: NDArray[np.uint64]) -> NDArray[Any]:
        """The states of users as packed states."""
        out = np.zeros(len(keys), USER)
        for at, key in enumerate(keys.tolist()):
            if key in self.users:
                user = self.users[key]
                fill = [0] * (REMEMBERED - len(user["recent"]))
                ads, impressions = ([pair[0][part] for pair in user["recent"]] + fill for part in (0, 1))
                bits = sum(clicked << bit for bit, (_, clicked) in enumerate(user["recent"]))
                numbers = (
                    user["seen"],
                    user["display"],
                    user["start"],
                    user["click"],
                    user["impressions"],
                    user["clicks"],
                )
                out[at] = (*numbers, ads, impressions, bits, len(user["recent"]))
        return out

    def counter_states(self, keys: NDArray[np.uint64]) -> NDArray[Any]:
        """The states of counters as packed states."""
        zero = (0.0,) * 6 + (0,)
        return np.array(
            [tuple(self.counters[k].values()) if k in self.counters else zero for k in keys.tolist()], COUNTER
        )


def assert_counters_equal(found: NDArray[Any], expected: NDArray[Any]) -> None:
    """Totals and times exactly, decayed sums to rounding."""
    for name in ("n", "clicks", "values", "ts_ms"):
        np.testing.assert_array_equal(found[name], expected[name], name)
    for name in ("recent_n", "recent_clicks", "recent_values"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-9, atol=1e-12, err_msg=name)
