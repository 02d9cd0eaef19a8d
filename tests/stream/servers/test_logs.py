"""What passes of lines that are repeated."""

from __future__ import annotations

import logging

import pytest

from stream.servers.logs import RateLimitFilter


def test_a_line_passes_once_in_a_while_and_tells_how_often_it_came(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever its values; other lines, and those of other loggers, pass on their own."""
    now = 100.0
    caplog.handler.addFilter(RateLimitFilter(every_s=10, now=lambda: now))
    for turn in range(30):
        now = 100.0 + turn
        logging.getLogger("one").warning("attempt %d failed", turn)
        if turn == 3:
            logging.getLogger("two").warning("attempt %d failed", turn)
            logging.getLogger("one").warning("something else")
    assert caplog.messages == [
        "attempt 0 failed",
        "attempt 3 failed",
        "something else",
        "attempt 10 failed (and 9 like it)",
        "attempt 20 failed (and 9 like it)",
    ]
