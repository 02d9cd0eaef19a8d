"""What is replayed: who asks for ads when, and what the users then do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple, Protocol

from learners.features.encode import Request

DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Display:
    """One ad shown to a user and what came of it; times in ms of event time, None where it never came."""

    index: int  # of the ad among the request's candidates
    position: int  # 0 is the first slot
    display_ms: int
    click_ms: int | None
    conversion_ms: int | None
    value: float


class Days(NamedTuple):
    """The local calendar of a log: ``starts_ms[i]`` is local midnight of ``dates[i]`` in ms since the epoch.

    ``first_ms`` is the time of the first request, which may lie before the first of these days.
    """

    dates: list[date]
    starts_ms: list[int]
    first_ms: int

    def span_ms(self, first: int, count: int) -> tuple[int, int]:
        """From the start of day ``first`` to the end of day ``first + count - 1``."""
        start = self.starts_ms[first]
        return (min(start, self.first_ms) if first == 0 else start), self.starts_ms[first + count - 1] + DAY_MS


class Scenario(Protocol):
    """A source of requests with known outcomes. Requests come in time order; the same seed gives the same stream."""

    name: str
    spec_name: str
    utc_offset_h: float
    click_window_s: float
    head_names: tuple[str, ...]  # of a model of it: what is worth predicting
    top_k: int | None  # how many of the ranked ads are shown; None: all of them, in the order of the request

    def days(self) -> Days:
        """The days that the source holds."""
        ...

    def count(self, start_ms: int, end_ms: int) -> int:
        """How many requests ``requests`` will yield, for progress lines."""
        ...

    def requests(self, start_ms: int, end_ms: int) -> Iterator[Request]:
        """Requests with ``start_ms <= ts_ms < end_ms`` in time order."""
        ...

    def displays(self, request: Request, order: Sequence[int]) -> list[Display]:
        """What the user saw and did when the ads were ranked as ``order`` (indices into ``request.ads``)."""
        ...


def calendar(first_ms: int, last_ms: int, utc_offset_h: float) -> Days:
    """Local days from the one of ``first_ms`` to the one of ``last_ms``.

    A day of which the log holds only the last hours (it begins after local noon) belongs to the next day: a log that
    opens at 23:05 does not have a day of 55 minutes.
    """
    offset = timedelta(hours=utc_offset_h)
    local = datetime.fromtimestamp(first_ms / 1000, UTC) + offset
    first = local.date() + timedelta(days=1) if local.hour >= 12 else local.date()
    last = (datetime.fromtimestamp(last_ms / 1000, UTC) + offset).date()
    dates = [first + timedelta(days=i) for i in range(max((last - first).days + 1, 1))]
    starts = [datetime(d.year, d.month, d.day, tzinfo=UTC) - offset for d in dates]
    return Days(dates, [round(s.timestamp() * 1000) for s in starts], first_ms)


def base_and_online_days(scenario: Scenario, base_days: int | None, online_days: int | None) -> tuple[int, int]:
    """How many days of the scenario are base and how many are played.

    Raises
    ------
    ValueError
        When the scenario does not have them.
    """
    there = len(scenario.days().dates)
    base = base_days if base_days is not None else max(min(3, there // 2), 1)
    if not 1 <= base < there:
        raise ValueError(
            f"--base-days {base} must lie between 1 and {there - 1}: {scenario.name} holds {there} days, and the base "
            "must leave at least one to play."
        )
    online = online_days if online_days is not None else min(3, there - base)
    if not 1 <= online <= there - base:
        raise ValueError(
            f"--online-days {online} must lie between 1 and {there - base}: {scenario.name} holds {there} days, the "
            f"first {base} of them base."
        )
    return base, online
