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
        self._watermark_ms: int | None = None

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
        holding = [one for one in self._inputs.values() if not self._idle(one, now_ms)]
        known = [one.watermark_ms for one in holding if one.watermark_ms is not None]
        if holding and len(known) == len(holding):
            self._advance(min(known))
        elif not holding:
            self._advance(
                max((w.watermark_ms for w in self._inputs.values() if w.watermark_ms is not None), default=None)
            )
        return self._watermark_ms

    def _idle(self, one: _Input, now_ms: int | None) -> bool:
        if now_ms is None:
            return False
        if one.spoke or one.active_ms is None:
            one.active_ms, one.spoke = now_ms, False
        return now_ms - one.active_ms >= self._idle_timeout_ms

    def _advance(self, watermark_ms: int | None) -> None:
        if watermark_ms is not None and (self._watermark_ms is None or watermark_ms > self._watermark_ms):
            self._watermark_ms = watermark_ms
