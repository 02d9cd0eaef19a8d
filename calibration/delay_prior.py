"""What is believed of delays before any was seen."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class DelayPrior:
    """What is believed before events were seen: a log-normal delay, worth ``events`` events in every bin.

    A bin that no display is old enough for has nothing but the prior: at the start it says how much is still to come.
    So where nobody can know the median beforehand, ``median_spread`` (standard deviation of its logarithm) lets the
    delays that were seen move it, and narrow the law: conversions that come in seconds are not the first of many.
    """

    median_s: float = 7.0  # of clicks; a conversion takes hours
    sigma: float = 1.0  # of the logarithm: 0.2 % of the clicks come after two minutes
    events: float = 8.0
    median_spread: float = 0.0  # 0: the median is as given

    def __post_init__(self) -> None:
        for name in ("median_s", "sigma", "events"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(
                    f"prior {name}={value} must be positive and finite: what was never seen would have no law. The "
                    f"default is {DelayPrior.__dataclass_fields__[name].default}."
                )

    def scaled(self, median: float, sigma: float) -> DelayPrior:
        """With median and sigma multiplied by these."""
        return replace(self, median_s=self.median_s * median, sigma=self.sigma * sigma)

    def share(self, delay_ms: NDArray[np.float64]) -> NDArray[np.float64]:
        """P(delay <= delay_ms), 0 at 0."""
        z = (np.log(np.maximum(delay_ms, 1e-9) / 1000.0) - math.log(self.median_s)) / self.sigma
        return np.array([0.5 * math.erfc(-at / math.sqrt(2.0)) for at in np.atleast_1d(z)])


MEDIAN_SPREAD: Final = 2.0
"""Of the median of conversions' delays: seconds or days are as easily believed."""
CONVERSION_PRIOR: Final = DelayPrior(median_s=7_200.0, sigma=2.0)
