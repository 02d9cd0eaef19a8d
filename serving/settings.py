"""What can be set of serving beside its command line: environment variables ``MILLSTREAM_…``."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServingSettings(BaseSettings):
    """Times, bounds and sizes; an empty variable counts as unset. Raises pydantic.ValidationError."""

    model_config = SettingsConfigDict(env_prefix="MILLSTREAM_", env_ignore_empty=True, extra="ignore", frozen=True)

    feature_refresh_s: float = Field(default=1.0, gt=0)
    """Age at which counters that users share are read again, on the stream's clock."""
    feature_timeout_s: float = Field(default=0.5, gt=0)
    """A call waits no longer for Redis: it is then scored without session features."""
    heartbeat_s: float = Field(default=1.0, gt=0)
    """How often partitions without requests get the time."""
    fresh_within_s: float = Field(default=30.0, gt=0)
    """Serving is ready while it heard the learner no longer ago than this."""
    map_refit_interval_s: float = Field(default=1.0, ge=0)
    """Event time from one fit of the calibration map to the next."""
    served_queue_bytes: int = Field(default=64 << 20, ge=1 << 20)
    """Served records that may wait for the broker."""
    max_ads: int = Field(default=2_000, ge=1)
    """Ads of a request."""
    max_requests: int = Field(default=1_000, ge=1)
    """Requests of a score call."""
