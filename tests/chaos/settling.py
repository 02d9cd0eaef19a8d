"""After the last fault: everything that was shown comes to its end, and every agent to the end of the log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import numpy as np

from stream.records.partition import partition_of
from stream.records.topics import CONVERSIONS, DEADLETTER, EXAMPLES, JOURNAL
from tests.chaos.cluster import CALIBRATE_INTERVAL_S, JOIN
from tests.chaos.outcome import Outcome
from tests.chaos.progress import say
from tests.chaos.simulated_users import Event
from tests.chaos.stores import Stores
from tests.chaos.topic_log import TopicLog
from tests.chaos.traffic import Traffic
from tests.chaos.verdict import journalled

_PATIENCE_S = 120.0  # without any progress
_LOOK_EVERY_S = 1.0
_MARGIN_S = 2 * CALIBRATE_INTERVAL_S  # of event time: every agent's interval ends in it


class Settling:
    """Waits until nothing is left to do; what is left after all patience is reported, and the verdict will show it."""

    def __init__(self, traffic: Traffic, log: TopicLog, outcome: Outcome, stores: Stores, partitions: int) -> None:
        self._traffic = traffic
        self._log = log
        self._outcome = outcome
        self._stores = stores
        self._partitions = partitions

    async def settle(self) -> None:
        """Let time pass beyond every horizon and wait for those who work on it."""
        await self._traffic.play_out()
        await self._traffic.pass_time(JOIN.click_horizon_s + 2 * JOIN.display_horizon_s + _MARGIN_S)
        # A conversion of nothing makes the join bring its store of clicks up to the log; once it is put aside, all
        # conversions before it are answered.
        last = [self._conversion_of_nothing(partition) for partition in range(self._partitions)]
        await self._traffic.pass_time(JOIN.display_horizon_s, last)
        until_ms = await self._traffic.pass_time(2 * JOIN.display_horizon_s + _MARGIN_S)
        await self._wait_for("the join", lambda: self._joined(until_ms, {event.impression_id for event in last}))
        until_ms = await self._traffic.pass_time(_MARGIN_S)
        await self._wait_for("the join", lambda: self._joined(until_ms, set()))
        await self._wait_for("the session fold", self._folded)
        await self._wait_for("the learner", self._learned)

    def _conversion_of_nothing(self, partition: int) -> Event:
        users = self._traffic.users
        while True:
            event = users.stray(CONVERSIONS, users.now_ms)
            if int(partition_of(np.array([event.user_key], np.uint64), self._partitions)[0]) == partition:
                return event

    async def _wait_for(self, what: str, left: Callable[[], Awaitable[int]]) -> None:
        """Until nothing is left, or that does not grow less for long."""
        least, at = -1, time.monotonic()
        while now_left := await left():
            if least < 0 or now_left < least:
                least, at = now_left, time.monotonic()
            elif time.monotonic() > at + _PATIENCE_S:
                say(f"{what} has made no progress for {_PATIENCE_S:g} s, {now_left} left to do: not waited for longer")
                return
            await asyncio.sleep(_LOOK_EVERY_S)
            await self._traffic.promise_served()  # a promise that had to wait in serving is written with the next one
        say(f"{what} has come to the end")

    async def _joined(self, until_ms: int, rejected: set[int]) -> int:
        """Partitions that have not come so far, and conversions that are not put aside."""
        await self._log.read_on(EXAMPLES, DEADLETTER)
        behind = sum(watermark_ms < until_ms for watermark_ms in self._outcome.watermarks().values())
        return behind + len(rejected - {impression_id for _, impression_id, _ in self._outcome.rejected()[0]})

    async def _folded(self) -> int:
        """Partitions whose states lag behind the examples."""
        fences = await self._stores.fences(self._partitions, "fence")
        return sum(fences[partition] < end for partition, end in self._outcome.ends().items())

    async def _learned(self) -> int:
        """Examples that are not in the journal."""
        await self._log.read_on(EXAMPLES, JOURNAL)
        return journalled(self._outcome.learnable(), self._outcome.journal())[0].lost
