"""Local days of a log."""

from __future__ import annotations

from datetime import date

from replay.scenario import DAY_MS, calendar

NOON_MS = 1_650_801_600_000  # 2022-04-24 12:00 UTC


def test_spans_touch_and_the_first_reaches_back_to_the_first_request() -> None:
    """No request falls between two spans, and an evening before the first day belongs to it."""
    days = calendar(NOON_MS + 11 * 3_600_000, NOON_MS + 3 * DAY_MS, utc_offset_h=0.0)
    assert days.dates[0] == date(2022, 4, 25)
    assert days.span_ms(0, 1) == (NOON_MS + 11 * 3_600_000, NOON_MS + 12 * 3_600_000 + DAY_MS)
    assert days.span_ms(0, 2)[1] == days.span_ms(2, 1)[0]


def test_a_log_that_begins_in_the_morning_has_that_day() -> None:
    """Only a beginning after noon is cut off."""
    assert calendar(NOON_MS - 1, NOON_MS + DAY_MS, utc_offset_h=0.0).dates[0] == date(2022, 4, 24)


def test_the_offset_moves_midnight() -> None:
    """At UTC+8 the day begins at 16:00 UTC."""
    days = calendar(NOON_MS - 6 * 3_600_000, NOON_MS + DAY_MS, utc_offset_h=8.0)
    assert (days.starts_ms[0] - NOON_MS) % DAY_MS == 4 * 3_600_000
