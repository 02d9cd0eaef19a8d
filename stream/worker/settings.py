"""How long workers wait and how often they publish: read from the environment, defaults by clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, Literal

from pydantic_settings import BaseSettings, SettingsConfigDict

from calibration.config import CalibratorConfig
from stream.archive.part_buffer import ArchiveConfig
from stream.join.config import JoinConfig
from stream.learn.config import LearningConfig

Clock = Literal["wall", "log"]

# What a clock changes of LearningConfig. Live, a click must be learned about a second later, however few rows wait
# with it. In a replay thousands of seconds pass in one: full batches cost no freshness, snapshots may lie far apart.
_LEARNING: dict[str, dict[str, float]] = {
    "wall": {"learn_interval_s": 1.0, "snapshot_interval_s": 300.0},
    "log": {"learn_interval_s": 300.0, "snapshot_interval_s": 21_600.0},
}


_CALIBRATE_INTERVAL_S: dict[str, float] = {"wall": 2.0, "log": 60.0}


class WorkerSettings(BaseSettings):
    """``MILLSTREAM_CLICK_WINDOW_S`` and so on; None takes the default.

    Meanings: `JoinConfig`, `LearningConfig`, `CalibratorConfig`, `ArchiveConfig`. Raises pydantic.ValidationError,
    which names the variable; the configs raise ValueError.
    """

    model_config = SettingsConfigDict(env_prefix="MILLSTREAM_", env_ignore_empty=True, extra="ignore", frozen=True)

    click_window_s: float | None = None
    display_horizon_s: float | None = None
    click_horizon_s: float | None = None
    conversion_horizon_s: float | None = None
    allowed_lateness_s: float | None = None
    display_lead_s: float | None = None
    idle_timeout_s: float | None = None
    max_ahead_s: float | None = None
    join_memory_bytes: int | None = None
    most_unlearned_rows: int = 10_000_000
    """Examples by which the learner may lag before the join waits for it; 0: it never waits."""

    learn_batch_rows: int | None = None
    catch_up_batch_rows: int | None = None
    learn_interval_s: float | None = None
    publish_interval_s: float | None = None
    snapshot_interval_s: float | None = None
    diverged_loss_ratio: float | None = None
    diverged_loss_batches: int | None = None
    most_skipped_batches: int | None = None
    silence_probability: float | None = None
    exposure_rate: float | None = None
    force_base: bool | None = None
    adopt_snapshots: bool | None = None
    conversion_delay_median_s: float | None = None
    conversion_delay_sigma: float | None = None
    most_delayed_clicks: int | None = None

    archive_rows: int | None = None
    archive_interval_s: float | None = None

    half_life_clicks: float | None = None
    gate_half_life_clicks: float | None = None
    conversion_window_s: float | None = None
    calibrate_interval_s: float | None = None
    """Event time between two published calibration states of a partition, up to 150 kB each."""

    def join(self) -> JoinConfig:
        """The join's windows."""
        return JoinConfig(**self._given(JoinConfig))

    def learning(self, clock: Clock) -> LearningConfig:
        """The loop's intervals under a clock."""
        chosen: dict[str, Any] = {**_LEARNING[clock], **self._given(LearningConfig)}
        return LearningConfig(**chosen)

    def calibrator(self) -> CalibratorConfig:
        """The calibration's memory, and the windows of the join that it shares."""
        return CalibratorConfig(**self._given(CalibratorConfig))

    def archive(self) -> ArchiveConfig:
        """When the archiver closes a file."""
        return ArchiveConfig(**self._given(ArchiveConfig))

    def calibration_interval_s(self, clock: Clock) -> float:
        """Event time between two published calibration states of a partition."""
        return self.calibrate_interval_s if self.calibrate_interval_s is not None else _CALIBRATE_INTERVAL_S[clock]

    def _given(self, config: Callable[..., Any]) -> dict[str, Any]:
        names = {field.name for field in fields(config)} & set(type(self).model_fields)  # type: ignore[arg-type]
        return {name: value for name in sorted(names) if (value := getattr(self, name)) is not None}
