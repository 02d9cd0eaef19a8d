"""What the simulated markets share: placements, and how long people take to click and to convert."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

PLACEMENTS = ("feed", "stories", "search", "video")
PLACEMENT_LOGIT = np.array([0.0, -0.3, 0.5, -0.1])
MEDIAN_CLICK_DELAY_S = 6.0


@dataclass(frozen=True, slots=True)
class DelayLaw:
    """A distribution of delays by points of its distribution function, linear between them.

    within_s : (points,) seconds, ascending. share : (points,) of the events that come within them, 0 to 1.
    """

    within_s: tuple[float, ...]
    share: tuple[float, ...]

    def quantile_s(self, u: ArrayLike) -> NDArray[np.float64]:
        """Delays in seconds from uniform draws in [0, 1), of any shape."""
        return np.asarray(np.interp(np.asarray(u, np.float64), self.share, self.within_s))

    def share_within(self, age_s: ArrayLike) -> NDArray[np.float64]:
        """The share of the events that come within ``age_s``."""
        return np.asarray(np.interp(np.asarray(age_s, np.float64), self.within_s, self.share))


INSTALLS = DelayLaw(
    (1.0, 60.0, 300.0, 900.0, 3_600.0, 21_600.0, 43_200.0),
    (0.0, 0.29, 0.54, 0.61, 0.73, 0.93, 1.0),
)
"""Installs after a click, of a real log: hours."""
PURCHASES = DelayLaw(
    (1.0, 600.0, 3_600.0, 21_600.0, 86_400.0, 1_209_600.0, 2_592_000.0),
    (0.0, 0.20, 0.35, 0.42, 0.50, 0.87, 1.0),
)
"""Purchases after a click: 35 % within an hour, 50 % within a day, 13 % after two weeks.

O. Chapelle, "Modeling Delayed Feedback in Display Advertising", KDD 2014, section 3 (the points between are ours).
"""


def click_delay_s(u: ArrayLike, median_s: float = MEDIAN_CLICK_DELAY_S) -> NDArray[np.float64]:
    """Seconds from display to click from uniform draws: log-normal around ``median_s``, sigma 1, of any shape."""
    return np.asarray(median_s * np.exp(_normal(u)))


def _normal(u: ArrayLike) -> NDArray[np.float64]:
    """Standard normal quantiles by the logistic approximation (Tocher 1963): good enough for a click's delay."""
    u = np.clip(u, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(u / (1 - u)) / 1.702)
