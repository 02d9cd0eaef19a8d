"""Logs of a process, on stderr: how they look, what is repeated too often for them, and what must never be in them."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

import structlog

_EVERY_S = 10.0
_PATIENCE_S = 5.0  # an election takes less, and so does all that a client gets over by itself
_PAUSE_S = 2.0  # between two lines of one trouble; a client that tries again waits for less
_RETRIED = (  # what aiokafka calls a warning or an error and tries again, mostly with success
    "Error sending %s to node %s [%s] -- marking coordinator dead",
    "Failed fetch messages from %s",
    "Failed fetch offsets from %s",
    "FindCoordinator Request failed",
    "Got error produce response on topic-partition %s, retrying",
    "Group Coordinator Request failed",
    "Heartbeat failed for group %s",
    "Heartbeat failed: local member_id was not recognized",
    "Heartbeat send request failed",
    "Marking the coordinator dead",
    "OffsetCommit failed for group %s due to group",
    "Topic %s is not available during auto-create initialization",
    "Topic %s not found in cluster metadata",
    "Unable connect to node with id",
    "Unable to request metadata from node",
    "Unable to update metadata from",
)


def log_to_stderr() -> None:
    """Lines on stderr; the libraries' own only from warnings on, since they log every step of every rebalance."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                exception_formatter=structlog.dev.plain_traceback,  # no local variables
            ),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(RetriedFilter())
    handler.addFilter(RateLimitFilter())
    line = "%(asctime)s %(levelname)s %(name)s %(message)s"
    logging.basicConfig(level=logging.WARNING, handlers=[handler], format=line)
    logging.getLogger("faust").setLevel(logging.ERROR)  # it warns of what our settings ask for
    logging.getLogger("mode").setLevel(logging.ERROR)


class RateLimitFilter(logging.Filter):
    """Lets a line pass once in ``every_s``, by its logger and its text before values are put in.

    The next one that passes says how many did not. aiokafka reports each of thousands of attempts to reach a broker
    that is away.
    """

    def __init__(self, every_s: float = _EVERY_S, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._every_s = every_s
        self._now = now
        self._passed_at: dict[tuple[str, str], float] = {}
        self._left_out: dict[tuple[str, str], int] = {}

    def filter(self, line: logging.LogRecord) -> bool:
        """Return whether the line passes."""
        kind, now = (line.name, str(line.msg)), self._now()
        if now - self._passed_at.get(kind, -self._every_s) < self._every_s:
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return False
        self._passed_at[kind] = now
        if left_out := self._left_out.pop(kind, 0):
            line.msg, line.args = f"{line.getMessage()} (and {left_out} like it)", None
        return True


class RetriedFilter(logging.Filter):
    """Holds back what aiokafka says of a request that it tries again, until that has failed for ``patience_s``.

    A new group's coordinator is not there at once, a partition that was made just now has no leader, a transaction
    begins before the last one's end is everywhere (the broker calls that too few replicas): none of it is a trouble.
    """

    def __init__(self, patience_s: float = _PATIENCE_S, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._patience_s = patience_s
        self._now = now
        self._since: dict[str, tuple[float, float]] = {}  # line → when it came first, and last, without a pause

    def filter(self, line: logging.LogRecord) -> bool:
        """Return whether the line passes."""
        if not line.name.startswith("aiokafka") or line.exc_info or not str(line.msg).startswith(_RETRIED):
            return True
        now, text = self._now(), line.getMessage()
        first, last = self._since.get(text, (now, now))
        if now - last > _PAUSE_S:
            first = now
        self._since = {one: times for one, times in self._since.items() if now - times[1] <= _PAUSE_S}
        self._since[text] = first, now
        return now - first >= self._patience_s


class RateLimitedLog:
    """Logs an error at most once in ten seconds, for what may fail with every call.

    Parameters
    ----------
    about : values that every line holds.
    """

    def __init__(self, **about: object) -> None:
        self._log = structlog.get_logger(__name__).bind(**about)
        self._next_s = 0.0

    def __call__(self, event: str, **details: object) -> None:
        """Log it, or not."""
        now_s = time.monotonic()
        if now_s >= self._next_s:
            self._next_s = now_s + _EVERY_S
            self._log.error(event, **details)

    def reset(self) -> None:
        """Let the next one be logged, whenever it comes."""
        self._next_s = 0.0
