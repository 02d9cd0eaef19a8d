"""How long the join waits for what, and how much it may hold."""

from __future__ import annotations

from dataclasses import dataclass

_POSITIVE = ("click_window_s", "display_horizon_s", "conversion_horizon_s", "idle_timeout_s", "max_ahead_s")
LEAST_MEMORY_BYTES = 16 << 20  # an empty join of some partitions, and a few thousand rows


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinConfig:
    """Times in seconds of event time (idle inputs: of wall-clock time), memory in bytes of one worker process."""

    click_window_s: float = 600.0  # most clicks come sooner; the later ones correct
    display_horizon_s: float = 600.0  # a served ad is displayed by then or never
    late_horizon_s: float = 86_400.0  # later clicks no longer move a day-old model
    conversion_horizon_s: float = 30 * 86_400.0  # the usual attribution window
    allowed_lateness_s: float = 5.0  # disorder within one input
    idle_timeout_s: float = 30.0  # longer than a broker's rebalance, shorter than a click window
    max_ahead_s: float = 3600.0  # an event later than its record's own time by more was dated by a wrong clock
    join_memory_bytes: int = 1 << 30  # some three million pending rows of 40 columns, or thirty million settled ones

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be positive: no click, display or conversion could be waited "
                    f"for. Set {_setting(name)}."
                )
        if not self.allowed_lateness_s >= 0:
            raise ValueError(
                f"allowed_lateness_s={self.allowed_lateness_s} must not be negative: windows would end before their "
                f"events are there. Set {_setting('allowed_lateness_s')}."
            )
        if not self.late_horizon_s >= self.click_window_s:
            raise ValueError(
                f"late_horizon_s={self.late_horizon_s} must be at least click_window_s={self.click_window_s}: clicks "
                f"within the window would be late. Set {_setting('late_horizon_s')}."
            )
        if self.join_memory_bytes < LEAST_MEMORY_BYTES:
            raise ValueError(
                f"join_memory_bytes={self.join_memory_bytes} must be at least {LEAST_MEMORY_BYTES}: rows would settle "
                f"before their clicks can come. Set {_setting('join_memory_bytes')}."
            )

    def ms(self, name: str) -> int:
        """One of the times in milliseconds."""
        seconds: float = getattr(self, name)
        return round(seconds * 1000)


def _setting(name: str) -> str:
    return f"MILLSTREAM_{name.upper()}"
