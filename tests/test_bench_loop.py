"""The log of the benchmark of catching up: its ids are those of the encoder, and it tells what must come out."""

from __future__ import annotations

import numpy as np
import pytest

from learners.features.encode import Request
from replay.market_laws import PLACEMENTS
from stream.records.events import decode_events
from stream.records.partition import partition_of
from stream.records.topics import CLICKS, CONVERSIONS, IMPRESSIONS, SERVED
from tests.bench.loop_log import loop_log
from tests.bench.loop_market import CLICK_RATE, LoopMarket

START_MS = 1_767_225_600_000


def test_its_ids_are_those_that_the_encoder_makes_one_by_one() -> None:
    """Plain fields, crosses of the request's and of the ad's."""
    market = LoopMarket(users=300, ads=60)
    rng = np.random.default_rng(0)
    requests = market.world.requests(rng, 40, 3)
    ts_ms = START_MS + np.sort(rng.integers(0, 86_400_000, 40))
    expected = market.encoder.ids([
        Request(
            number + 1, int(at_ms), market.attributes(int(user)), {"placement": PLACEMENTS[placement]},
            [market.ad_attributes(int(ad)) for ad in ads],
        )
        for number, (at_ms, user, placement, ads) in enumerate(zip(ts_ms, *requests, strict=True))
    ])  # fmt: skip
    found = market.encoded(requests, 1, ts_ms)
    for name in found._fields:
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name


def test_its_events_come_in_time_on_the_partition_of_their_user_and_none_twice() -> None:
    """A record is sent when the last of its events has happened; clicks are as frequent as they are to be."""
    log = loop_log(LoopMarket(users=300, ads=60), START_MS, 100, 4)
    seen: dict[str, list[int]] = {topic: [] for topic in (IMPRESSIONS, CLICKS, CONVERSIONS)}
    for topic, partition, sent_ms, value in log.records:
        if topic != SERVED:
            rows = decode_events(topic, value)
            assert (rows.ts_ms < sent_ms).all()
            assert (np.diff(rows.ts_ms) >= 0).all()
            assert (partition_of(rows.user_key, 4) == partition).all()
            seen[topic] += rows.impression_id.tolist()
    shown, clicked, bought = (set(seen[topic]) for topic in (IMPRESSIONS, CLICKS, CONVERSIONS))
    assert {topic: len(ids) for topic, ids in seen.items()} == {topic: log.rows[topic] for topic in seen}
    assert len(shown) == len(seen[IMPRESSIONS])
    assert len(clicked) == len(seen[CLICKS])
    assert bought <= clicked <= shown
    assert len(clicked) / len(shown) == pytest.approx(CLICK_RATE, rel=0.3)
