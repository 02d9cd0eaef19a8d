"""A store that does not answer: how often it is asked, and how often that is said."""

from __future__ import annotations

import time

import pytest
import structlog

from stream.servers.circuit_breaker import RETRY_AFTER_S, CircuitBreaker


class _Clock:
    """A clock that is advanced by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    """The monotonic clock of the module."""
    clock = _Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def test_a_store_that_failed_is_left_alone_for_a_while(clock: _Clock) -> None:
    """Then it may be asked again, and at once after it answered."""
    breaker = CircuitBreaker("session store")
    assert not breaker.is_open
    breaker.record_failure(OSError("refused"))
    assert breaker.is_open
    clock.now_s += RETRY_AFTER_S
    assert not breaker.is_open
    breaker.record_failure(OSError("refused"))
    breaker.record_success()
    assert not breaker.is_open


def test_a_store_that_was_waited_for_is_left_alone_for_as_long(clock: _Clock) -> None:
    """Else who asks it stands still nearly always: half of the time is for what needs no store."""
    breaker = CircuitBreaker("session store")
    breaker.record_failure(TimeoutError(), waited_s=5.0)
    clock.now_s += 4.9
    assert breaker.is_open
    clock.now_s += 0.2
    assert not breaker.is_open


def test_an_outage_is_logged_at_its_start_its_end_and_every_ten_seconds(clock: _Clock) -> None:
    """Twenty-five seconds of failures are three lines and one of the end; the next outage is logged anew."""
    breaker = CircuitBreaker("session store")
    with structlog.testing.capture_logs() as logs:
        breaker.record_success()
        for _ in range(50):
            breaker.record_failure(OSError("refused"))
            clock.now_s += 0.5
        breaker.record_success()
        breaker.record_success()
        breaker.record_failure(TimeoutError())
    assert [(entry["log_level"], entry["away_s"]) for entry in logs] == [
        ("error", 0.0),
        ("error", 10.0),
        ("error", 20.0),
        ("info", 25.0),
        ("error", 0.0),
    ]
    assert logs[0]["store"] == "session store"
    assert logs[0]["error"] == "OSError: refused"


def test_it_tells_what_is_amiss_as_long_as_it_is(clock: _Clock) -> None:
    """Under the store's name, with the reason."""
    degraded: dict[str, str] = {}
    breaker = CircuitBreaker("session store", degraded=degraded)
    breaker.record_failure(OSError("no space"))
    assert degraded == {"session_store": "the session store does not answer: OSError: no space"}
    breaker.record_success()
    assert degraded == {}
