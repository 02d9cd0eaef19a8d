"""How much is worked on at once: calls, their rows and bytes, and whose turn it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from serving.refusals import Refusal, RefusedError

_MOST_BODY_BYTES = 96 << 20  # of all calls together, as they came and inflated


RETRY_AFTER_S = 1


class OverloadedError(RefusedError):
    """More is in flight than may be; the caller may come again in RETRY_AFTER_S."""

    def __init__(self, held: str) -> None:
        super().__init__(
            Refusal.OVERLOAD,
            f"{held}: the call was not scored. Send it again in {RETRY_AFTER_S} s, or to another process.",
        )


class Turn:
    """Held while a piece of a call is worked on: ``async with turn:`` and no await within.

    Pieces follow each other in the order of asking, and after AT_ONCE_S of them the loop goes round once, so that what
    else is due is done in between: probes, swaps, served records. A lock alone would not see to that: where the answers
    of Redis to thirty calls come at once, each of the thirty finds it free.
    """

    AT_ONCE_S = 0.02  # two calls of a thousand ads

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._round_began_s: float | None = None

    async def __aenter__(self) -> None:
        await self._lock.acquire()
        if self._round_began_s is None:
            loop = asyncio.get_running_loop()
            self._round_began_s = loop.time()
            loop.call_soon(self._next_round)

    async def __aexit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        if self._round_began_s is not None and loop.time() - self._round_began_s > self.AT_ONCE_S:
            loop.call_soon(self._lock.release)
        else:
            self._lock.release()

    def _next_round(self) -> None:
        self._round_began_s = None


@dataclass(slots=True, kw_only=True)
class Admission:
    """Refuses what would only wait: a call that is answered late is of no use, and makes all others late.

    Parameters
    ----------
    most_calls : in flight at once, whole in body.
    most_rows : of the calls in flight, about; a call alone is always taken.
    blocked : why no call at all may be taken just now, if so.
    """

    most_calls: int
    most_rows: int
    blocked: Callable[[], str | None] = lambda: None
    turn: Turn = field(default_factory=Turn)
    calls: int = 0
    rows: int = 0
    body_bytes: int = 0

    @contextmanager
    def call(self, rows: int) -> Iterator[None]:
        """A call of about ``rows`` rows is in flight. Raises OverloadedError."""
        if (why := self.blocked()) is not None:
            raise OverloadedError(why)
        if self.calls >= self.most_calls or (self.calls and self.rows + max(rows, 1) > self.most_rows):
            raise OverloadedError(
                f"{self.calls} calls of {self.rows} ads are in flight, {self.most_calls} and {self.most_rows} may be"
            )
        self.calls += 1
        self.rows += rows
        try:
            yield
        finally:
            self.calls -= 1
            self.rows -= rows

    def take_bytes(self, count: int) -> None:
        """A body in flight has grown by ``count`` bytes. Raises OverloadedError."""
        if self.body_bytes + count > _MOST_BODY_BYTES:
            raise OverloadedError(f"the calls in flight hold {self.body_bytes} bytes, {_MOST_BODY_BYTES} may be")
        self.body_bytes += count

    def give_bytes(self, count: int) -> None:
        """A body of ``count`` bytes is no longer needed."""
        self.body_bytes -= count
