"""The users that are simulated."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tests.chaos.cluster import JOIN
from tests.chaos.simulated_users import TICK_MS, TOPICS, Event, SimulatedUsers
from tests.stream.pipeline import START_MS

_COPIES_MS = 6 * TICK_MS


def play(seed: int, ticks: int) -> tuple[list[list[Event]], list[dict[str, Any]]]:
    """The events of each tick until nothing is left to come, and all requests; impressions are numbered."""
    users = SimulatedUsers(seed, JOIN, START_MS)
    events: list[list[Event]] = []
    requests: list[dict[str, Any]] = []
    while len(events) < ticks or users.next_ms is not None:
        if len(events) < ticks:
            for request in users.requests():
                requests.append(request)
                first = 3 * len(requests)
                users.show(request["ts_ms"], request["user"]["user_id"], [first, first + 1, first + 2])
        events.append(users.due(users.now_ms + TICK_MS))
    return events, requests


def test_everything_follows_from_the_seed() -> None:
    """The same seed plays the same, another one does not."""
    assert play(3, 20) == play(3, 20)
    assert play(3, 20) != play(4, 20)


def test_events_come_in_the_tick_in_which_they_happen() -> None:
    """Only the copy of a record may come later, and not by much."""
    events, _ = play(3, 60)
    seen: set[Event] = set()
    for tick, happened in enumerate(events):
        start_ms = START_MS + tick * TICK_MS
        for event in happened:
            if event.ts_ms < start_ms:
                assert event in seen
                assert event.ts_ms >= start_ms - _COPIES_MS
            assert event.ts_ms < start_ms + TICK_MS
        seen.update(happened)


def test_every_case_of_the_join_comes_up() -> None:
    """In time, late and too late: displays, clicks and conversions; once, again, and copied."""
    events, requests = play(3, 400)
    times: dict[str, dict[int, list[int]]] = {topic: {} for topic in TOPICS}
    for event in (event for happened in events for event in happened):
        times[event.topic].setdefault(event.impression_id, []).append(event.ts_ms)
    served_ms = {3 * n + at: one["ts_ms"] for n, one in enumerate(requests, 1) for at in range(3)}
    impressions, clicks, conversions = (times[topic] for topic in TOPICS)
    cases = Counter(
        [
            *(
                ("display too late", min(at) > served_ms[k] + JOIN.ms("display_horizon_s"))
                for k, at in impressions.items()
            ),
            *(("click too late", min(at) > impressions[k][0] + JOIN.ms("click_horizon_s")) for k, at in clicks.items()),
            *(
                ("click after a minute", min(at) > impressions[k][0] + JOIN.ms("click_window_s"))
                for k, at in clicks.items()
            ),
            *(
                ("converts too late", min(at) > clicks[k][0] + JOIN.ms("conversion_horizon_s"))
                for k, at in conversions.items()
            ),
            *(("again", len(set(at)) > 1) for by_id in times.values() for at in by_id.values()),
            *(("copied", len(set(at)) < len(at)) for by_id in times.values() for at in by_id.values()),
        ]
    )
    names = {name for name, _ in cases}
    assert all(cases[name, True] > 0 and cases[name, False] > cases[name, True] for name in names), cases
