"""What can be set of serving beside its command line: environment variables ``MILLSTREAM_…``."""

from __future__ import annotations

from pydantic import Field, SecretStr
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
    """A learner not heard for so long makes answers `degraded`; they go on."""
    map_refit_interval_s: float = Field(default=1.0, ge=0)
    """Event time from one fit of the calibration map to the next."""
    served_queue_bytes: int = Field(default=64 << 20, ge=1 << 20)
    """Served records that may wait for the broker."""
    max_ads: int = Field(default=2_000, ge=1)
    """Ads of a request."""
    max_requests: int = Field(default=1_000, ge=1)
    """Requests of a score call."""
    max_rows: int = Field(default=20_000, ge=1)
    """Ads of all requests of a score call."""
    max_calls: int = Field(default=256, ge=1)
    """Calls in flight; one more is answered with 503 and Retry-After."""
    max_rows_in_flight: int = Field(default=60_000, ge=1)
    """Ads of the calls in flight, likewise: about half a second of work of one core."""
    max_connections: int = Field(default=1_024, ge=4)
    """Open at once, at most half of `ulimit -n`; one more takes the place of the one longest without a call."""
    header_timeout_s: float = Field(default=10.0, gt=0)
    """A new connection without a whole request head after so long is closed."""
    body_timeout_s: float = Field(default=20.0, gt=0)
    """A body that has not come whole after so long is answered with 408."""
    answer_timeout_s: float = Field(default=20.0, gt=0)
    """A connection whose peer leaves an answer unread for so long is closed."""
    keepalive_timeout_s: float = Field(default=75.0, gt=0)
    """A connection idle for so long after a call is closed; longer than that of a load balancer before it."""
    allowed_hosts: str | None = None
    """Names, by commas, by which serving may be called and whose pages may call it; unset: `--host` where that is
    loopback, else any. By address it may be called always."""
    api_token: SecretStr | None = None
    """What scoring calls must send as `Authorization: Bearer`; unset: nothing. Never logged."""
