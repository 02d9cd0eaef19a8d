"""How long the join waits for what, and how much it may hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt

_POSITIVE = (
    "click_window_s",
    "display_horizon_s",
    "click_horizon_s",
    "conversion_horizon_s",
    "idle_timeout_s",
    "max_ahead_s",
)
_NOT_NEGATIVE = ("allowed_lateness_s", "display_lead_s")
MIN_MEMORY_BYTES = 16 << 20  # an empty join of some partitions, and a few thousand rows


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinConfig:
    """Times in seconds of event time (idle inputs: of wall-clock time), memory in bytes of one worker process."""

    click_window_s: Annotated[float, Gt(0)] = 600.0
    """Age at which a cohort of displays counts as mature in reports and base training; nothing waits for it."""
    display_horizon_s: Annotated[float, Gt(0)] = 600.0
    """A served ad is displayed by then or never; an event waits as long for its row."""
    click_horizon_s: Annotated[float, Gt(0)] = 86_400.0
    """A click that comes later than this after its display does not count."""
    conversion_horizon_s: Annotated[float, Gt(0)] = 30 * 86_400.0
    """A conversion that comes later than this after its click does not count: the usual attribution window."""
    allowed_lateness_s: Annotated[float, Ge(0)] = 5.0
    """Disorder of event times within one input."""
    display_lead_s: Annotated[float, Ge(0)] = 5.0
    """Exposures may be so far ahead of the slowest input: clicks that lag hold them back."""
    idle_timeout_s: Annotated[float, Gt(0)] = 30.0
    """An input that is silent for so long no longer holds the others back. Longer than a broker's rebalance."""
    max_ahead_s: Annotated[float, Gt(0)] = 3600.0
    """An event dated later than its record, or the clock, by more than this is rejected: its clock was wrong."""
    join_memory_bytes: Annotated[int, Ge(MIN_MEMORY_BYTES)] = 1 << 30
    """What the join of a worker may hold: three million pending rows of 40 columns, or thirty million exposed ones."""

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
        if self.join_memory_bytes < MIN_MEMORY_BYTES:
            raise ValueError(
                f"join_memory_bytes={self.join_memory_bytes} must be at least {MIN_MEMORY_BYTES}: rows would be "
                f"forgotten before their clicks can come. Set {_setting('join_memory_bytes')}."
            )

    def ms(self, name: str) -> int:
        """One of the times in milliseconds."""
        seconds: float = getattr(self, name)
        return round(seconds * 1000)


def _setting(name: str) -> str:
    return f"MILLSTREAM_{name.upper()}"
