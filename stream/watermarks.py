"""Event-time watermarks: how far each input has come, and how far all of them have."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(slots=True)
class _Input:
    watermark_ms: int | None = None
    active_ms: int | None = None  # wall clock of the last poll after which it had said something
    spoke: bool = False


class Watermarks:
    """The watermark of a partition is the minimum over its inputs, and never goes back.

    An input's own watermark is the greatest event time seen less the allowed lateness, or a promise of its producer
    (nothing is subtracted from that), whichever is greater. An event may still come at the watermark, none before it.
    """

    def __init__(self, inputs: Iterable[str], allowed_lateness_ms: int, idle_timeout_ms: int) -> None:
        self._inputs = {name: _Input() for name in inputs}
        self._allowed_lateness_ms = allowed_lateness_ms
        self._idle_timeout_ms = idle_timeout_ms
        self._holding = [*self._inputs]  # at the last poll
        self.reached_ms: int | None = None  # by the last poll

    def seen(self, name: str, newest_ms: int) -> bool:
        """Note that an event of `newest_ms` came; return whether that moved the input's watermark."""
        return self._raise(name, newest_ms - self._allowed_lateness_ms)

    def promised(self, name: str, watermark_ms: int) -> bool:
        """Note the producer's promise; return whether that moved the input's watermark."""
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
        self._holding = [name for name, one in self._inputs.items() if not self._idle(one, now_ms)]
        known = self._known(self._holding)
        if self._holding and len(known) == len(self._holding):
            self._advance(min(known))
        elif not self._holding:
            self._advance(max(self._known(self._inputs), default=None))
        return self.reached_ms

    def ahead(self) -> frozenset[str]:
        """The inputs that have come further than the slowest of those that held the watermark at the last poll."""
        known = self._known(self._holding)
        if len(known) < len(self._holding):
            return frozenset(name for name in self._holding if self._inputs[name].watermark_ms is not None)
        slowest = min(known, default=0)
        return frozenset(name for name in self._holding if (self._inputs[name].watermark_ms or 0) > slowest)

    def hurry(self, watermark_ms: int) -> None:
        """Move the watermark to ``watermark_ms`` whatever the inputs say; it never goes back."""
        self._advance(watermark_ms)

    def _known(self, names: Iterable[str]) -> list[int]:
        return [at for name in names if (at := self._inputs[name].watermark_ms) is not None]

    def _idle(self, one: _Input, now_ms: int | None) -> bool:
        if now_ms is None:
            return False
        if one.spoke or one.active_ms is None:
            one.active_ms, one.spoke = now_ms, False
        return now_ms - one.active_ms >= self._idle_timeout_ms

    def _advance(self, watermark_ms: int | None) -> None:
        if watermark_ms is not None and (self.reached_ms is None or watermark_ms > self.reached_ms):
            self.reached_ms = watermark_ms
