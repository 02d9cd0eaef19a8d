"""How far the inputs of a partition have come together."""

from __future__ import annotations

from stream.join.watermarks import Watermarks


def two_inputs() -> Watermarks:
    """Inputs a and b; events may be 10 ms late, and an input is idle after 1,000 ms."""
    return Watermarks(("a", "b"), allowed_lateness_ms=10, idle_timeout_ms=1_000)


def test_an_input_that_never_spoke_holds_the_watermark() -> None:
    """Nothing is known of how far it is."""
    marks = two_inputs()
    marks.seen("a", 500, 500)
    assert marks.poll() is None


def test_it_is_that_of_the_slowest_input() -> None:
    """Less the allowed lateness of its newest event; from a promise nothing is subtracted."""
    marks = two_inputs()
    marks.seen("a", 500, 500)
    marks.promised("b", 300)
    assert marks.poll() == 300
    marks.promised("b", 600)
    assert marks.poll() == 490


def test_it_never_goes_back() -> None:
    """An older event, or an older promise, moves nothing."""
    marks = two_inputs()
    assert marks.promised("a", 500)
    assert not marks.promised("a", 400)
    assert not marks.seen("a", 450, 450)
    marks.promised("b", 500)
    assert marks.poll() == 500


def test_an_idle_input_is_left_out() -> None:
    """By the wall clock; when it speaks again it counts again, and time does not go back for it."""
    marks = two_inputs()
    marks.promised("a", 500)
    marks.promised("b", 100)
    assert marks.poll(now_ms=10_000) == 100
    marks.promised("a", 900)
    assert marks.poll(now_ms=10_999) == 100
    marks.promised("a", 901)
    assert marks.poll(now_ms=11_500) == 901
    marks.promised("b", 200)
    assert marks.poll(now_ms=11_600) == 901


def test_when_all_are_idle_the_one_that_came_furthest_counts() -> None:
    """What waits for the others would wait for ever."""
    marks = two_inputs()
    marks.promised("a", 500)
    marks.promised("b", 100)
    marks.poll(now_ms=10_000)
    assert marks.poll(now_ms=11_000) == 500


def test_the_inputs_ahead_of_the_slowest_are_named() -> None:
    """By more than is asked for; next to one that never spoke, every other is ahead, by an unknown time."""
    marks = two_inputs()
    marks.promised("a", 500)
    marks.poll()
    assert marks.ahead() == {"a"}
    assert not marks.ahead(by_ms=1)
    marks.promised("b", 400)
    marks.poll()
    assert marks.ahead(by_ms=99) == {"a"}
    assert not marks.ahead(by_ms=100)
