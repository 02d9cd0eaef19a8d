"""When the learner learns, publishes and takes a snapshot."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stream.records.wire import ConversionDelays

_LEAST_EXPOSURE_RATE = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningConfig:
    """When the loop learns, publishes and takes a snapshot. Intervals are event time, the time of the watermark."""

    learn_batch_rows: int = 128  # the best progressive log loss on KuaiRand-Pure; 64 to 256 are close
    learn_interval_s: float = 300.0  # a smaller batch is learned when it has waited this long
    publish_interval_s: float = 1.0
    snapshot_interval_s: float = 3600.0  # a restart learns again what came after the newest one
    diverged_loss_ratio: float = 3.0  # times the loss of a constant: a model that works stays below 1
    diverged_loss_batches: int = 20  # over which the loss is taken
    most_skipped_batches: int = 10  # in a row whose gradients are not finite, before nothing is learned any more
    silence_probability: float = 1e-6  # of no click by chance, below which displays are left out until clicks come
    force_base: bool = False  # take a new base although it is worse than the line that serves
    click_window_s: float = 600.0  # the join's: from that age on a display that has no click counts as not clicked
    conversion_horizon_s: float = 30 * 86_400.0  # the join's: a later conversion of a click does not count
    conversion_delay_median_s: float = 7_200.0  # what is believed before conversions were seen: log-normal,
    conversion_delay_sigma: float = 2.0  # 36 % within an hour, 89 % within a day; shops measure about that
    most_delayed_clicks: int = 200_000  # that wait for their conversion: 98 MB of rows of 40 ids and 36 numbers
    exposure_rate: float = 1.0  # of the exposures that are learned, for a learner that cannot keep up; clicks all are

    def __post_init__(self) -> None:
        if self.learn_batch_rows < 1:
            raise ValueError(
                f"learn_batch_rows={self.learn_batch_rows} must be at least 1: no batch would ever be full. Set "
                "MILLSTREAM_LEARN_BATCH_ROWS; 128 is the default."
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
        if not _LEAST_EXPOSURE_RATE <= self.exposure_rate <= 1:
            raise ValueError(
                f"exposure_rate={self.exposure_rate} must lie in [{_LEAST_EXPOSURE_RATE:g}, 1]: it is the share of the "
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
                    f"{name}={getattr(self, name)} must be positive and finite: a click could not be told when to "
                    f"expect its conversion. Set MILLSTREAM_{name.upper()}."
                )

    @property
    def conversion_delays(self) -> ConversionDelays:
        """As the journal tells them."""
        return ConversionDelays(self.conversion_horizon_s, self.conversion_delay_median_s, self.conversion_delay_sigma)
