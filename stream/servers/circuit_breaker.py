"""A store that does not answer: when it is asked again, and what is said of it."""

from __future__ import annotations

import time
from collections.abc import MutableMapping

import structlog

from stream.servers.logs import RateLimitedLog

RETRY_AFTER_S = 0.5

_log = structlog.get_logger(__name__)


class CircuitBreaker:
    """Open while a store that failed is not to be asked again, so that nobody waits for it; logs failures now and then.

    Parameters
    ----------
    store : as the log calls it.
    meanwhile : what comes of that, as the log says it.
    degraded : where it is said that the store does not answer and why, as long as it does not.
    """

    def __init__(
        self,
        store: str,
        *,
        retry_after_s: float = RETRY_AFTER_S,
        meanwhile: str = "it is asked again and again, and nothing is lost",
        degraded: MutableMapping[str, str] | None = None,
    ) -> None:
        self._store = store
        self._degraded: MutableMapping[str, str] = {} if degraded is None else degraded
        self._retry_after_s = retry_after_s
        self._meanwhile = meanwhile
        self._retry_at = 0.0
        self._since: float | None = None
        self._error = RateLimitedLog(store=store)

    @property
    def is_open(self) -> bool:
        """Whether the store failed just now: leave it alone."""
        return time.monotonic() < self._retry_at

    @property
    def is_failing(self) -> bool:
        """Whether the store has not answered since it failed."""
        return self._since is not None

    def record_failure(self, error: Exception, waited_s: float = 0.0) -> None:
        """The store was asked and failed after so long: as long it is left alone, so that half of the time is work."""
        now = time.monotonic()
        self._retry_at = now + max(self._retry_after_s, waited_s)
        if self._since is None:
            self._since = now
            self._error.reset()
        reason = f"{type(error).__name__}: {error}"
        self._degraded[self._store.replace(" ", "_")] = f"the {self._store} does not answer: {reason:.300}"
        self._error(
            f"a store does not answer; {self._meanwhile}",
            error=reason,
            away_s=round(now - self._since, 1),
        )

    def record_success(self) -> None:
        """The store was asked and answered."""
        self._degraded.pop(self._store.replace(" ", "_"), None)
        if self._since is not None:
            _log.info("a store answers again", store=self._store, away_s=round(time.monotonic() - self._since, 1))
        self._retry_at, self._since = 0.0, None
