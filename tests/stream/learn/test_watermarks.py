"""The slowest partition says what time it is."""

from __future__ import annotations

from stream.learn.watermarks import LeastWatermark


def test_there_is_no_time_before_every_partition_was_heard() -> None:
    """One that was never heard may hold anything."""
    watermark = LeastWatermark(2, {})
    assert watermark.hear(0, 500) == 0
    assert watermark.hear(1, 300) == 300


def test_a_watermark_never_goes_back() -> None:
    """A record of an earlier producer says nothing new; a restart goes on from what was heard."""
    watermark = LeastWatermark(2, {1: 300, 0: 500})
    assert watermark.hear(1, 200) == 300
    assert watermark.state() == {0: 500, 1: 300}
    assert LeastWatermark(2, watermark.state()).hear(1, 900) == 500
