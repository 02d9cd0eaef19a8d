"""How long the join waits for what, and how much it may hold."""

from __future__ import annotations

from dataclasses import dataclass

_POSITIVE = (
    "click_window_s",
    "display_horizon_s",
    "click_horizon_s",
    "conversion_horizon_s",
    "idle_timeout_s",
    "max_ahead_s",
)
_NOT_NEGATIVE = ("allowed_lateness_s", "display_lead_s")
LEAST_MEMORY_BYTES = 16 << 20  # an empty join of some partitions, and a few thousand rows


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinConfig:
    """Times in seconds of event time (idle inputs: of wall-clock time), memory in bytes of one worker process."""

    click_window_s: float = 600.0  # age at which a cohort of displays counts as mature; the join waits for nothing
    display_horizon_s: float = 600.0  # a served ad is displayed by then or never; an event waits as long for its row
    click_horizon_s: float = 86_400.0  # a later click no longer moves a day-old model
    conversion_horizon_s: float = 30 * 86_400.0  # the usual attribution window
    allowed_lateness_s: float = 5.0  # disorder within one input
    display_lead_s: float = 5.0  # exposures may be so far ahead of the slowest input: clicks that lag hold them back
    idle_timeout_s: float = 30.0  # longer than a broker's rebalance; then an input no longer holds the others back
    max_ahead_s: float = 3600.0  # an event later than its record's own time by more was dated by a wrong clock
    join_memory_bytes: int = 1 << 30  # some three million pending rows of 40 columns, or thirty million exposed ones

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be positive: no display, click or conversion could be waited "
                    f"for. Set {_setting(name)}."
                )
        for name in _NOT_NEGATIVE:
            if not getattr(self, name) >= 0:
                raise ValueError(
                    f"{name}={getattr(self, name)} must not be negative: exposures would wait for events that are "
                    f"later than they. Set {_setting(name)}."
                )
        if self.join_memory_bytes < LEAST_MEMORY_BYTES:
            raise ValueError(
                f"join_memory_bytes={self.join_memory_bytes} must be at least {LEAST_MEMORY_BYTES}: rows would be "
                f"forgotten before their clicks can come. Set {_setting('join_memory_bytes')}."
            )

    def ms(self, name: str) -> int:
        """One of the times in milliseconds."""
        seconds: float = getattr(self, name)
        return round(seconds * 1000)


def _setting(name: str) -> str:
    return f"MILLSTREAM_{name.upper()}"
