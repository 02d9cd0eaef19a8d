"""The truth about a join, slowly and plainly: the whole log at once, dicts and loops, no watermark, no state.

It holds for logs whose disorder stays within the allowed lateness and whose times are sane: served and displayed no
later than a display horizon after the events that refer to it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from learners.examples.kinds import CLICK, CONVERSION, EXPOSURE
from stream.join.config import JoinConfig
from stream.records.topics import CLICKS, CONVERSIONS, IMPRESSIONS


class LogEvent(NamedTuple):
    """One served row or event of an input; `produced_ms` is the broker's time of its record."""

    impression_id: int
    ts_ms: int
    value: float = 0.0
    produced_ms: int = 0
    user_key: int = 0


class Example(NamedTuple):
    """What must be known of one example."""

    kind: int
    impression_id: int
    ts_ms: int
    known_ms: int
    delay_ms: int
    value: float
    click_produced_ms: int


Rejected = tuple[str, int, int]  # topic, impression id, time


@dataclass
class Truth:
    """Every example; every event that must be rejected; repetitions that come when their row may be gone."""

    examples: set[Example] = field(default_factory=set)
    rejected: set[Rejected] = field(default_factory=set)
    repeated: set[Rejected] = field(default_factory=set)


def join_whole_log(
    config: JoinConfig,
    served: Sequence[LogEvent],
    impressions: Sequence[LogEvent],
    clicks: Sequence[LogEvent],
    conversions: Sequence[LogEvent],
) -> Truth:
    """Join complete logs, each in the order of its offsets."""
    truth = Truth()
    served_ms: dict[int, int] = {}
    users: dict[int, int] = {}
    for row in served:
        served_ms.setdefault(row.impression_id, row.ts_ms)
        users.setdefault(row.impression_id, row.user_key)
    by_id: dict[str, dict[int, list[LogEvent]]] = {t: defaultdict(list) for t in (IMPRESSIONS, CLICKS, CONVERSIONS)}
    for topic, events in ((IMPRESSIONS, impressions), (CLICKS, clicks), (CONVERSIONS, conversions)):
        for event in events:
            if event.user_key == users.get(event.impression_id, event.user_key):
                by_id[topic][event.impression_id].append(event)
            else:  # somebody else's impression
                truth.rejected.add((topic, event.impression_id, event.ts_ms))
    for key in {key for events in by_id.values() for key in events}:
        _join_one(config, truth, key, served_ms.get(key), {topic: by_id[topic][key] for topic in by_id})
    return truth


def _join_one(
    config: JoinConfig, truth: Truth, key: int, served_ms: int | None, events: dict[str, list[LogEvent]]
) -> None:
    display_ms = _first_display(config, truth, key, served_ms, events[IMPRESSIONS])
    if display_ms is None:
        truth.rejected |= {(topic, key, event.ts_ms) for topic in (CLICKS, CONVERSIONS) for event in events[topic]}
        return
    truth.examples.add(Example(EXPOSURE, key, display_ms, display_ms, 0, 0.0, 0))
    click = _first_click(config, truth, key, display_ms, events[CLICKS])
    if click is None:
        truth.rejected |= {(CONVERSIONS, key, event.ts_ms) for event in events[CONVERSIONS]}
        return
    click_ms = max(click.ts_ms, display_ms)
    truth.examples.add(Example(CLICK, key, display_ms, click_ms, click_ms - display_ms, 0.0, click.produced_ms))
    _convert(config, truth, key, display_ms, click_ms, events[CONVERSIONS])


def _first_display(
    config: JoinConfig, truth: Truth, key: int, served_ms: int | None, impressions: list[LogEvent]
) -> int | None:
    display_ms = None
    for event in impressions:
        if display_ms is not None:
            truth.repeated.add((IMPRESSIONS, key, event.ts_ms))
        elif served_ms is None or event.ts_ms > served_ms + config.display_horizon_s * 1000:
            truth.rejected.add((IMPRESSIONS, key, event.ts_ms))
        else:
            display_ms = event.ts_ms
    return display_ms


def _convert(
    config: JoinConfig, truth: Truth, key: int, display_ms: int, click_ms: int, conversions: list[LogEvent]
) -> None:
    converted: set[int] = set()
    for event in conversions:
        after_ms = event.ts_ms - click_ms
        if event.ts_ms in converted:
            truth.repeated.add((CONVERSIONS, key, event.ts_ms))
        elif after_ms > config.conversion_horizon_s * 1000:
            truth.rejected.add((CONVERSIONS, key, event.ts_ms))
        else:
            converted.add(event.ts_ms)
            truth.examples.add(Example(CONVERSION, key, display_ms, event.ts_ms, max(after_ms, 0), event.value, 0))


def _first_click(
    config: JoinConfig, truth: Truth, key: int, display_ms: int, clicks: list[LogEvent]
) -> LogEvent | None:
    """The first click that comes and is within its horizon."""
    click = None
    for event in clicks:
        if click is not None:
            truth.repeated.add((CLICKS, key, event.ts_ms))
        elif event.ts_ms > display_ms + config.click_horizon_s * 1000:
            truth.rejected.add((CLICKS, key, event.ts_ms))
        else:
            click = event
    return click
