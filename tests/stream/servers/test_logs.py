"""What passes of lines that are repeated."""

from __future__ import annotations

import logging

import pytest

from stream.servers.logs import RateLimitFilter, RetriedFilter


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


RETRY = "Got error produce response on topic-partition %s, retrying. Error: %s"


def line(name: str, text: str, error: BaseException | None = None) -> logging.LogRecord:
    """A line of a library's log."""
    values = ("clicks[0]", "NotEnoughReplicasError")[: text.count("%s")]
    return logging.LogRecord(name, logging.ERROR, "", 0, text, values, (type(error), error, None) if error else None)


def passed(at_s: list[float]) -> list[float]:
    """Which of the retries at these times are said."""
    clock = iter(at_s)
    held_back = RetriedFilter(patience_s=5, now=lambda: next(clock))
    return [at for at in at_s if held_back.filter(line("aiokafka.producer.sender", RETRY))]


def test_what_a_client_gets_over_by_itself_is_no_trouble() -> None:
    """However often it comes, with pauses between."""
    assert passed([3.0 * turn + part for turn in range(20) for part in (0, 0.1)]) == []


def test_what_it_does_not_get_over_is_said() -> None:
    """Once it has failed for the patience, again and again."""
    assert passed([0.5 * turn for turn in range(12)]) == [5.0, 5.5]


def test_other_lines_pass_at_once() -> None:
    """Those of other loggers, other texts, and failures with a traceback."""
    held_back = RetriedFilter()
    assert held_back.filter(line("another", RETRY))
    assert held_back.filter(line("aiokafka.cluster", "Topic %s is not authorized for this client"))
    assert held_back.filter(line("aiokafka.client", "Unable to update metadata from %s", OSError("gone")))
    assert not held_back.filter(line("aiokafka.client", "Unable to update metadata from %s"))
