"""Settings of the calibration."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Self

from annotated_types import Ge, Gt

from calibration.fit import SLICE_PRIOR_CLICKS
from calibration.isotonic import PRIOR_WEIGHT

_SPANS = ("click_horizon_s", "click_window_s", "conversion_horizon_s", "conversion_window_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratorConfig:
    """How long the calibration remembers, and when a map has proved itself."""

    half_life_clicks: Annotated[float, Ge(1)] = 4_000.0
    """After so many clicks the map's evidence weighs one half. Clicks: what a row tells depends on the click rate."""
    gate_half_life_clicks: Annotated[float, Ge(1)] = 2_000.0
    """The same for the comparison of the map with no map."""
    click_horizon_s: float = 86_400.0
    """Later clicks never come: that of the join."""
    click_window_s: float = 600.0
    """Age at which a cohort of displays counts as mature."""
    conversion_horizon_s: float = 30 * 86_400.0
    """Later conversions of a click never come: that of the join."""
    conversion_window_s: Annotated[float, Gt(0)] = 86_400.0
    """Age at which a cohort of clicks counts as mature in reports, as to its conversions; nothing waits for it."""
    prior_weight: float = PRIOR_WEIGHT
    slice_prior_clicks: float = SLICE_PRIOR_CLICKS

    def __post_init__(self) -> None:
        for name in ("half_life_clicks", "gate_half_life_clicks"):
            if not getattr(self, name) >= 1:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be 1 or more: nothing would be remembered. Use 4000 for a "
                    "first try, math.inf to never forget."
                )
        for name in (*_SPANS, "prior_weight", "slice_prior_clicks"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be positive and finite. The default is "
                    f"{CalibratorConfig.__dataclass_fields__[name].default:g}."
                )

    def of_conversions(self) -> Self:
        """The same for P(conversion | click): its exposures are clicks, its events their conversions."""
        return replace(self, click_horizon_s=self.conversion_horizon_s, click_window_s=self.conversion_window_s)
