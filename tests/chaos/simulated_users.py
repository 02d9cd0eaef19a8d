"""Who asks for ads, and what comes of what is shown: everything from a seed, no clock, no broker."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from stream.join.config import JoinConfig
from stream.records.topics import CLICKS, CONVERSIONS, IMPRESSIONS

TICK_MS = 5_000
_REQUESTS_A_TICK = 10
_ADS_A_REQUEST = 3
_USERS, _ADS = 300, 120
_DISPLAYED, _DISPLAYED_TOO_LATE = 0.8, 0.01
_CLICKED, _CONVERTED = 0.15, 0.5
_DISPLAY_DELAY_MS = 20_000
_CLICK_DELAY_S, _CLICK_SPREAD = 15.0, 1.6  # a fifth beyond a window of 60 s, one in a hundred beyond 600 s
_CONVERSION_DELAY_S, _CONVERSION_SPREAD = 120.0, 2.0  # one in twenty beyond 3600 s
_REPEATED, _COPIED = 0.02, 0.03  # another event of the same kind; the very same record again
_COPY_DELAY_TICKS = 6
_STRAY = 0.05  # a tick and topic: an event of an impression that nobody served
_MISDATED = 0.2  # of those: by a clock that was never set
_BROKEN = 0.03  # a tick and topic: a record that cannot be read
BROKEN_MARK = b"broken-"
TOPICS = (IMPRESSIONS, CLICKS, CONVERSIONS)


class Event(NamedTuple):
    """One event of a user."""

    topic: str
    impression_id: int
    user_key: int
    ts_ms: int
    position: int = 0
    value: float = 0.0


class SimulatedUsers:
    """Time goes in ticks; ask `requests` of one, tell `show` what was served, then take what is `due`.

    Parameters
    ----------
    start_ms : event time of the first tick.
    """

    def __init__(self, seed: int, join: JoinConfig, start_ms: int) -> None:
        self._rng = random.Random(f"world {seed}")
        self._join = join
        self._numbers = itertools.count(1)
        self._order = itertools.count()
        self._due: list[tuple[int, int, Event]] = []  # when it is sent, which is mostly when it happens
        self.now_ms = start_ms

    @property
    def next_ms(self) -> int | None:
        """When the next event is due; None when nothing is left to come."""
        return self._due[0][0] if self._due else None

    def requests(self) -> list[dict[str, Any]]:
        """The requests of the present tick as serving reads them."""
        return [self._request() for _ in range(_REQUESTS_A_TICK)]

    def show(self, ts_ms: int, user_key: int, impression_ids: Sequence[int]) -> None:
        """Let happen what follows from the answer to a request."""
        for position, impression_id in enumerate(impression_ids):
            if self._rng.random() < _DISPLAYED:
                self._display(ts_ms, Event(IMPRESSIONS, impression_id, user_key, 0, position))

    def due(self, until_ms: int) -> list[Event]:
        """What is sent before ``until_ms``, in no order."""
        events = []
        while self._due and self._due[0][0] < until_ms:
            events.append(heapq.heappop(self._due)[2])
        self._rng.shuffle(events)
        self.now_ms = until_ms
        return events

    def strays(self) -> Iterator[Event]:
        """Events of the present tick whose impression nobody served, some with a time that no event has."""
        for topic in TOPICS:
            if self._rng.random() < _STRAY:
                misdated = self._rng.random() < _MISDATED
                yield self.stray(topic, (0 if misdated else self.now_ms) + self._rng.randrange(TICK_MS))

    def stray(self, topic: str, ts_ms: int) -> Event:
        """An event whose impression nobody served."""
        return Event(topic, self._rng.getrandbits(63) + 1, self._rng.getrandbits(63) + 1, ts_ms, 0, 1.0)

    def broken(self) -> Iterator[tuple[str, bytes]]:
        """Records of the present tick that cannot be read, each another one, with their topic."""
        for topic in TOPICS:
            if self._rng.random() < _BROKEN:
                mark = BROKEN_MARK + b"%d" % next(self._numbers)
                yield topic, self._rng.choice(_BREAKAGES) % mark

    def chance(self, probability: float) -> bool:
        """Whether something of that probability is the case."""
        return self._rng.random() < probability

    def _request(self) -> dict[str, Any]:
        number, rng = next(self._numbers), self._rng
        user = int(_USERS ** rng.random())  # a few come often, most rarely
        return {
            "request_id": str(number),
            "ts_ms": self.now_ms + rng.randrange(TICK_MS),
            "user": {
                "user_id": user,
                "age_group": user % 7,
                "gender": "fm"[user % 2],
                "region": user % 12,
                "device": user % 4,
            },
            "context": {"placement": rng.randrange(4)},
            "ads": [_ad(ad) for ad in rng.sample(range(1, _ADS + 1), _ADS_A_REQUEST)],
        }

    def _display(self, served_ms: int, shown: Event) -> None:
        delay_ms = self._rng.randrange(_DISPLAY_DELAY_MS)
        if self._rng.random() < _DISPLAYED_TOO_LATE:
            delay_ms += self._join.ms("display_horizon_s")
        display = shown._replace(ts_ms=served_ms + delay_ms)
        self._happens(display)
        if self._rng.random() < _CLICKED:
            click = display._replace(topic=CLICKS, position=0)
            click = click._replace(ts_ms=display.ts_ms + self._delay_ms(_CLICK_DELAY_S, _CLICK_SPREAD))
            self._happens(click)
            if self._rng.random() < _CONVERTED:
                delay_ms = self._delay_ms(_CONVERSION_DELAY_S, _CONVERSION_SPREAD)
                value = round(self._rng.uniform(1, 50), 2)
                self._happens(click._replace(topic=CONVERSIONS, ts_ms=click.ts_ms + delay_ms, value=value))

    def _delay_ms(self, median_s: float, spread: float) -> int:
        """Log-normal, at most two conversion horizons."""
        delay_s = median_s * math.exp(spread * self._rng.gauss(0, 1))
        return round(1000 * min(delay_s, 2 * self._join.conversion_horizon_s))

    def _happens(self, event: Event) -> None:
        """It happens, perhaps twice, and perhaps its record comes twice."""
        self._push(event.ts_ms, event)
        if self._rng.random() < _REPEATED:
            again = event._replace(ts_ms=event.ts_ms + self._rng.randrange(1, 60_000))
            self._push(again.ts_ms, again)
        if self._rng.random() < _COPIED:
            self._push(event.ts_ms + TICK_MS * self._rng.randrange(_COPY_DELAY_TICKS), event)

    def _push(self, at_ms: int, event: Event) -> None:
        heapq.heappush(self._due, (at_ms, next(self._order), event))


_BREAKAGES = (
    b"{not json %s",
    b'{"impression_id": "%s", "ts_ms": 1, "user_key": "1"}',
    b'{"impression_id": 1, "ts_ms": "noon", "user_key": 2, "note": "%s"}',
    b"\x93neither %s",
    b'\x82\xa6record\xa6events\xa4note\xad"%s',
)


def _ad(ad: int) -> dict[str, int]:
    return {
        "ad_id": ad,
        "campaign_id": ad // 2,
        "advertiser_id": ad // 5,
        "category": ad % 9,
        "creative_format": ad % 3,
        "price_bucket": ad % 10,
    }
