"""A week of event time through the backtest, with outcomes that come up to a month later, against the slow oracle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from learners.examples.kinds import CLICK, CONVERSION, EXPOSURE
from learners.features.encode import Request
from learners.features.spec import load_spec
from replay.backtest import collect
from replay.scenario import DAY_MS, Days, Display, calendar
from stream.join.config import JoinConfig
from stream.records.examples import ExampleRows
from stream.sessions.in_memory import MemorySessionStore
from tests.stream.oracle import LogEvent, join_whole_log

START_MS = 1_767_225_600_000  # 2026-01-01
DAYS = 7
REQUESTS = 1_500
ADS = 3
WINDOW_S = 600.0
HOUR_MS = 3_600_000


class Week:
    """Requests over a week; clicks at once, late or far too late; conversions up to 45 days after."""

    name = "week"
    spec_name = "marketplace"
    utc_offset_h = 0.0
    click_window_s = WINDOW_S
    head_names: tuple[str, ...] = ("click",)
    top_k: int | None = None

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.asked_ms = START_MS + np.sort(rng.integers(0, DAYS * DAY_MS, REQUESTS))
        self.shown = [self._outcomes(int(at), rng) for at in self.asked_ms]

    @staticmethod
    def _outcomes(asked_ms: int, rng: np.random.Generator) -> list[Display]:
        displays = []
        for index in np.flatnonzero(rng.random(ADS) < 0.8).tolist():
            display_ms = asked_ms + int(rng.integers(0, 590_000))
            latest_ms = int(rng.choice([600_000, 24 * HOUR_MS, 48 * HOUR_MS], p=[0.7, 0.2, 0.1]))
            click_ms = display_ms + int(rng.integers(1, latest_ms)) if rng.random() < 0.4 else None
            conversion_ms = None
            if rng.random() < 0.3:
                conversion_ms = (click_ms or display_ms) + int(rng.integers(1, 45 * DAY_MS))
            displays.append(Display(index, index, display_ms, click_ms, conversion_ms, float(rng.integers(1, 9))))
        return displays

    def days(self) -> Days:
        """The week."""
        return calendar(int(self.asked_ms[0]), int(self.asked_ms[-1]), 0.0)

    def count(self, start_ms: int, end_ms: int) -> int:
        """All of it."""
        return REQUESTS

    def requests(self, start_ms: int, end_ms: int) -> Iterator[Request]:
        """In time order."""
        for number, at in enumerate(self.asked_ms.tolist()):
            ads = [{"ad_id": number * ADS + ad} for ad in range(ADS)]
            yield Request(number, at, {"user_id": number % 97}, {}, ads)

    def displays(self, request: Request, order: Sequence[int]) -> list[Display]:
        """What was drawn for it."""
        return self.shown[request.request_id]

    def log(self) -> tuple[list[LogEvent], list[LogEvent], list[LogEvent], list[LogEvent]]:
        """The same as whole logs; an impression is known by its request and place."""
        served = [LogEvent(r * ADS + ad + 1, int(at)) for r, at in enumerate(self.asked_ms) for ad in range(ADS)]
        shown = [(r * ADS + one.index + 1, one) for r, displays in enumerate(self.shown) for one in displays]
        impressions = [LogEvent(key, one.display_ms) for key, one in shown]
        clicks = [LogEvent(key, one.click_ms) for key, one in shown if one.click_ms is not None]
        conversions = [
            LogEvent(key, one.conversion_ms, one.value) for key, one in shown if one.conversion_ms is not None
        ]
        return served, impressions, clicks, conversions


def test_a_week_with_conversions_a_month_late_equals_the_oracle() -> None:
    """Displayed, clicked and converted: as many of each, with the same times, delays and values."""
    week, found, spec = Week(seed=11), list[ExampleRows](), load_spec("marketplace")

    def keep(rows: ExampleRows | None, watermark_ms: int) -> None:
        if rows is not None:
            found.append(rows)

    span = (START_MS, START_MS + DAYS * DAY_MS)
    collect(week, spec, MemorySessionStore(spec), span, lambda done: None, keep)

    truth = join_whole_log(JoinConfig(click_window_s=WINDOW_S), *week.log())
    expected = Counter((one.kind, one.ts_ms, one.known_ms, one.delay_ms, one.value) for one in truth.examples)
    columns = ("kind", "ts_ms", "known_ms", "delay_ms", "value")
    joined = Counter(row for rows in found for row in zip(*(getattr(rows, c).tolist() for c in columns), strict=True))
    assert joined == expected
    kinds = Counter(kind for kind, *_ in joined.elements())
    assert min(kinds[EXPOSURE] // 10, kinds[CLICK], kinds[CONVERSION]) > 100
    longest_ms = max(delay_ms for kind, _, _, delay_ms, _ in joined if kind == CONVERSION)
    assert longest_ms > 29 * DAY_MS
