"""Event-time watermarks: how far each input has come, and how far all of them have."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from stream.join.arrival import UNBOUNDED_MS


@dataclass(slots=True)
class _Input:
    watermark_ms: int | None = None
    typical_ms: int = 0  # the newest events' median; one that a wrong clock dated does not move it far
    active_ms: int | None = None  # wall clock of the last poll after which it had said something
    spoke: bool = False


class Watermarks:
    """The watermark of a partition is the minimum over its inputs, and never goes back.

    An input's own watermark is the greatest event time seen less the allowed lateness, or a promise of its producer
    (nothing is subtracted from that), whichever is greater. An event may still come at the watermark, none before it.
    With a wall clock it does not pass that, whatever was seen and promised.
    """

    def __init__(self, inputs: Iterable[str], allowed_lateness_ms: int, idle_timeout_ms: int) -> None:
        self._inputs = {name: _Input() for name in inputs}
        self._allowed_lateness_ms = allowed_lateness_ms
        self._idle_timeout_ms = idle_timeout_ms
        self._active = [*self._inputs]  # at the last poll
        self._now_ms: int | None = None  # likewise
        self.reached_ms: int | None = None  # by the last poll

    def seen(self, name: str, newest_ms: int, typical_ms: int) -> bool:
        """Note that events came, the newest of ``newest_ms``; return whether that moved the input's watermark."""
        if (one := self._inputs.get(name)) is not None:
            one.typical_ms = typical_ms
        return self._raise(name, newest_ms - self._allowed_lateness_ms)

    def promised(self, name: str, watermark_ms: int) -> bool:
        """Note the producer's promise; return whether that moved the input's watermark."""
        if (one := self._inputs.get(name)) is not None:
            one.typical_ms = max(one.typical_ms, watermark_ms)
        return self._raise(name, watermark_ms)

    def _raise(self, name: str, watermark_ms: int) -> bool:
        one = self._inputs.get(name)
        if one is None:
            return False
        one.spoke = True
        if one.watermark_ms is not None and watermark_ms <= one.watermark_ms:
            return False
        one.watermark_ms = watermark_ms
        return True

    def poll(self, now_ms: int | None = None) -> int | None:
        """Return the watermark, None before every input has spoken.

        With the wall clock `now_ms` an input that said nothing for the idle timeout is left out of the minimum; when
        all are idle the one that came furthest counts.
        """
        self._now_ms = now_ms
        latest_ms = UNBOUNDED_MS if now_ms is None else now_ms
        self._active = [name for name, one in self._inputs.items() if not self._idle(one, now_ms)]
        known = self._known(self._active)
        if self._active and len(known) == len(self._active):
            self.advance_to(min(*known, latest_ms))
        elif not self._active and (known := self._known(self._inputs)):
            self.advance_to(min(max(known), latest_ms))
        return self.reached_ms

    def ahead(self, by_ms: int = 0) -> frozenset[str]:
        """The inputs that have come further, by more than ``by_ms``, than the slowest that was active at the last poll.

        How far an input has come is here what its newest events say together, and at most the wall clock: one event
        of a wrong clock must not stop its input. An input that never spoke is slower than all, by how much is unknown.
        """
        known = self._known(self._active)
        if len(known) < len(self._active):
            spoke = (name for name in self._active if self._inputs[name].watermark_ms is not None)
            return frozenset(spoke if not by_ms else ())
        if not known:
            return frozenset()
        slowest = min(known)
        return frozenset(name for name in self._inputs if self._at_ms(name) > slowest + by_ms)

    def _at_ms(self, name: str) -> int:
        one = self._inputs[name]
        if one.watermark_ms is None:
            return 0
        at_ms = min(one.watermark_ms, one.typical_ms)
        return at_ms if self._now_ms is None else min(at_ms, self._now_ms)

    def advance_to(self, watermark_ms: int) -> None:
        """Move the watermark to ``watermark_ms`` whatever the inputs say; it never goes back."""
        if self.reached_ms is None or watermark_ms > self.reached_ms:
            self.reached_ms = watermark_ms

    def _known(self, names: Iterable[str]) -> list[int]:
        return [at for name in names if (at := self._inputs[name].watermark_ms) is not None]

    def _idle(self, one: _Input, now_ms: int | None) -> bool:
        if now_ms is None:
            return False
        if one.spoke or one.active_ms is None:
            one.active_ms, one.spoke = now_ms, False
        return now_ms - one.active_ms >= self._idle_timeout_ms
