"""When the learner learns, publishes and takes a snapshot."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt

from stream.records.wire import ConversionDelays

_MIN_EXPOSURE_RATE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningConfig:
    """When the loop learns, publishes and takes a snapshot. Intervals are event time, the time of the watermark."""

    learn_batch_rows: Annotated[int, Ge(1)] = 128
    """Rows of a learn step. 128 has the best progressive log loss on KuaiRand-Pure; 64 to 256 are close."""
    catch_up_batch_rows: Annotated[int, Ge(1)] = 512
    """The same while more waits than is learned in time, if that is more: twice as fast, at rates to match."""
    learn_interval_s: Annotated[float, Gt(0)] = 300.0
    """A smaller batch is learned when it has waited this long."""
    publish_interval_s: Annotated[float, Gt(0)] = 1.0
    """From one delta of the weights to the next."""
    snapshot_interval_s: Annotated[float, Gt(0)] = 3600.0
    """From one snapshot to the next; a restart learns again what came after the newest one."""
    diverged_loss_ratio: Annotated[float, Gt(1)] = 3.0
    """Publishing stops when the log loss is so many times that of a constant; a model that works stays below 1."""
    diverged_loss_batches: Annotated[int, Ge(1)] = 20
    """Batches over which that loss is taken."""
    most_skipped_batches: Annotated[int, Ge(1)] = 10
    """Batches in a row whose gradients are not finite, before the model counts as diverged and learns no more."""
    silence_probability: Annotated[float, Ge(0), Lt(0.01)] = 1e-6
    """Probability of no click by chance, below which nothing is learned until clicks come again; 0: never."""
    force_base: bool = False
    """Take a new base that is worse than the serving line on the newest mature rows, or that none can judge."""
    adopt_snapshots: bool = False
    """Go on from another stream's snapshots, once: its log was moved here with all its offsets."""
    click_window_s: float = 600.0  # the join's: from that age on a display that has no click counts as not clicked
    conversion_horizon_s: Annotated[float, Gt(0)] = 30 * 86_400.0  # the join's
    conversion_delay_median_s: Annotated[float, Gt(0)] = 7_200.0
    """Median of the conversions' delays (log-normal) until they are measured."""
    conversion_delay_sigma: Annotated[float, Gt(0)] = 2.0
    """Of the logarithm of these delays: 36 % come within an hour, 89 % within a day; shops measure about that."""
    most_delayed_clicks: Annotated[int, Ge(1)] = 200_000
    """Clicks that wait for their conversion, 98 MB of 40 ids and 36 numbers; beyond it those due next pay early."""
    exposure_rate: Annotated[float, Ge(_MIN_EXPOSURE_RATE), Le(1)] = 1.0
    """Share of the exposures that are learned, each weighing 1 / rate, if a learner cannot keep up; clicks all are."""

    def __post_init__(self) -> None:
        for name in ("learn_batch_rows", "catch_up_batch_rows"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be at least 1: no batch would ever be full. Set "
                    f"MILLSTREAM_{name.upper()}, or leave it unset."
                )
        if not (self.diverged_loss_ratio > 1 and self.diverged_loss_batches >= 1):
            raise ValueError(
                f"diverged_loss_ratio={self.diverged_loss_ratio} must be above 1 and "
                f"diverged_loss_batches={self.diverged_loss_batches} at least 1: a model that works would count as "
                "diverged. Set MILLSTREAM_DIVERGED_LOSS_RATIO (3, or inf to never stop) and "
                "MILLSTREAM_DIVERGED_LOSS_BATCHES (20)."
            )
        if self.most_skipped_batches < 1:
            raise ValueError(
                f"most_skipped_batches={self.most_skipped_batches} must be at least 1: a model would count as diverged "
                "before it learned. Set MILLSTREAM_MOST_SKIPPED_BATCHES (10)."
            )
        if not 0 <= self.silence_probability < 0.01:
            raise ValueError(
                f"silence_probability={self.silence_probability} must lie in [0, 0.01): chance alone would stop the "
                "learning again and again. Set MILLSTREAM_SILENCE_PROBABILITY (1e-6; 0 learns them as none)."
            )
        if not _MIN_EXPOSURE_RATE <= self.exposure_rate <= 1:
            raise ValueError(
                f"exposure_rate={self.exposure_rate} must lie in [{_MIN_EXPOSURE_RATE:g}, 1]: it is the share of the "
                "exposures that are learned, and each then weighs 1 / rate, so that a few would throw the model about. "
                "Set MILLSTREAM_EXPOSURE_RATE; 1 learns all."
            )
        self._check_conversions()
        for name in ("learn_interval_s", "publish_interval_s", "snapshot_interval_s"):
            if not getattr(self, name) > 0:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be positive: the loop would do nothing else. Set "
                    f"MILLSTREAM_{name.upper()}."
                )

    def _check_conversions(self) -> None:
        if self.most_delayed_clicks < 1:
            raise ValueError(
                f"most_delayed_clicks={self.most_delayed_clicks} must be at least 1: every click would be learned as "
                "unconverted at once. Set MILLSTREAM_MOST_DELAYED_CLICKS (200000)."
            )
        for name in ("conversion_horizon_s", "conversion_delay_median_s", "conversion_delay_sigma"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be positive and finite: a click could not be given a time to "
                    f"expect its conversion. Set MILLSTREAM_{name.upper()}."
                )

    @property
    def conversion_delays(self) -> ConversionDelays:
        """As the journal has them."""
        return ConversionDelays(self.conversion_horizon_s, self.conversion_delay_median_s, self.conversion_delay_sigma)
