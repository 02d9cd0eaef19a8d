"""The learning rates of base training over its steps: warm-up, plateau, exponential decay."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RateSchedule:
    r"""A factor on every learning rate of a model. The default is 1 throughout: the rates that the stream goes on with.

    ::

        1 |    ______________
          |   /              \\_
          |  /                 \\____
          | /                        \\______  floor
          +---|--------------|--------------- step
           warm-up  plateau    half-lives
    """

    warmup_steps: int = 0  # the factor grows by 1/warmup_steps a step; large batches need it, 128 rows do not
    plateau_steps: int | None = None  # None: it never ends
    half_life_steps: float = 10_000.0  # of the decay after the plateau
    floor: float = 0.01  # the decay ends here: a model that goes on in the stream must still move

    def __post_init__(self) -> None:
        if self.warmup_steps < 0 or (self.plateau_steps is not None and self.plateau_steps < 0):
            raise ValueError(
                f"warmup_steps={self.warmup_steps} and plateau_steps={self.plateau_steps} must not be negative: no "
                "step lies there. Use 0 for none."
            )
        if not (self.half_life_steps > 0 and math.isfinite(self.half_life_steps)):
            raise ValueError(
                f"half_life_steps={self.half_life_steps} must be positive and finite: the rates would drop to nothing "
                "at once, or never. For rates that never drop leave plateau_steps out."
            )
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor={self.floor} must lie in 0..1: the rates would grow in the end. Take 0.01.")

    def factor(self, step: int) -> float:
        """The factor of a step, counted from 0.

        >>> schedule = RateSchedule(warmup_steps=4, plateau_steps=10, half_life_steps=5, floor=0.2)
        >>> [schedule.factor(step) for step in (0, 3, 13, 14, 19, 24, 10_000)]
        [0.25, 1.0, 1.0, 1.0, 0.5, 0.25, 0.2]
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.plateau_steps is None:
            return 1.0
        decayed = max(0, step - self.warmup_steps - self.plateau_steps)
        return max(self.floor, float(0.5 ** min(decayed / self.half_life_steps, 1000.0)))
