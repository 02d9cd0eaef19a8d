"""Serving beside a learner that goes over to a new base."""

from __future__ import annotations

import asyncio
from pathlib import Path

from learners.snapshots.manifest import read_manifest
from learners.snapshots.snapshot import versions
from serving.followers import WeightsFollower
from serving.freshness import Freshness
from serving.metrics import ServingMetrics
from serving.model import HotModel
from serving.snapshots import LoadedModel, load_newest
from tests.brokers import TestTopics
from tests.stream.next_base import lived
from tests.stream.pipeline import SPEC


async def test_serving_goes_over_to_the_new_line_once_it_knows_what_the_old_one_did(
    kafka_topics: TestTopics, tmp_path: Path
) -> None:
    """It never holds the base alone: from the old line it goes to all that the new one has learned."""
    world, committed = await lived(kafka_topics, tmp_path)
    loaded = load_newest(str(world.root), SPEC)
    hot = HotModel(
        loaded.model,
        spec_hash=SPEC.hash,
        version=loaded.version,
        watermark_ms=loaded.watermark_ms,
        freshness=Freshness(),
    )
    followed: list[int] = []

    def load() -> LoadedModel:
        return load_newest(str(world.root), SPEC)

    follower = WeightsFollower(world.broker, ServingMetrics(), hot, load, lambda: followed.append(hot.version))
    await follower.start()
    try:
        await follower.caught_up.wait()
        old = hot.version
        assert old == loaded.version
        await world.learn(committed=committed)
        newest = versions(str(world.root))[0]
        while hot.version != newest:  # the test's timeout bounds it
            await asyncio.sleep(0.005)
    finally:
        await follower.stop()
    assert set(followed) <= {old, newest}
    assert hot.lost is False
    assert hot.model.weights_sha256() == read_manifest(f"{world.root}/v{newest:012d}").weights_sha256  # type: ignore[attr-defined]
