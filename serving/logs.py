"""Logs of the serving process: structlog to stderr, repetitions of the Kafka client held back."""

from __future__ import annotations

import logging
import sys
import time

import structlog

_REPEAT_AFTER_S = 10.0


class OncePerWhile(logging.Filter):
    """Lets a message of a logger through again only after a while: a lost broker is reported 30 times a second."""

    def __init__(self, repeat_after_s: float = _REPEAT_AFTER_S) -> None:
        super().__init__()
        self._repeat_after_s = repeat_after_s
        self._said_at: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is logged."""
        key, now = (record.name, str(record.msg)), time.monotonic()
        if now - self._said_at.get(key, -self._repeat_after_s) < self._repeat_after_s:
            return False
        self._said_at[key] = now
        return True


def to_stderr() -> None:
    """Write structlog and the standard library's warnings to stderr."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.dev.ConsoleRenderer(colors=False),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(OncePerWhile())
    line = "%(asctime)s %(levelname)s %(name)s %(message)s"
    logging.basicConfig(level=logging.WARNING, handlers=[handler], format=line)
