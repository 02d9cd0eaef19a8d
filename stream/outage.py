"""A store that does not answer: when it is asked again, and what is said of it."""

from __future__ import annotations

import time

import structlog

RETRY_AFTER_S = 0.5
_LOG_EVERY_S = 10.0

_log = structlog.get_logger(__name__)


class Outage:
    """Spares a store that failed, so that nobody waits for it; logs the failure now and then.

    Parameters
    ----------
    store : as the log calls it.
    """

    def __init__(self, store: str) -> None:
        self._store = store
        self._retry_at = 0.0
        self._since: float | None = None
        self._log_at = 0.0

    @property
    def lasts(self) -> bool:
        """Whether the store failed just now: leave it alone."""
        return time.monotonic() < self._retry_at

    def failed(self, error: Exception) -> None:
        """The store was asked and failed."""
        now = time.monotonic()
        self._retry_at = now + RETRY_AFTER_S
        if self._since is None:
            self._since = self._log_at = now
        if now >= self._log_at:
            self._log_at = now + _LOG_EVERY_S
            _log.error(
                "a store does not answer; it is asked again and again, and nothing is lost",
                store=self._store,
                error=f"{type(error).__name__}: {error}",
                away_s=round(now - self._since, 1),
            )

    def over(self) -> None:
        """The store was asked and answered."""
        if self._since is not None:
            _log.info("a store answers again", store=self._store, away_s=round(time.monotonic() - self._since, 1))
        self._retry_at, self._since = 0.0, None
