"""Logs of the serving process: structlog to stderr, repetitions of the Kafka client held back."""

from __future__ import annotations

import logging
import sys

import structlog

from stream.repeated_logs import SeldomRepeated


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
    handler.addFilter(SeldomRepeated())
    line = "%(asctime)s %(levelname)s %(name)s %(message)s"
    logging.basicConfig(level=logging.WARNING, handlers=[handler], format=line)
