"""Topics that are deleted and created again under the same names, as by somebody who had too few partitions."""

from __future__ import annotations

from stream.kafka.admin import check_topics, delete_topics, ensure_topics
from tests.brokers import TestTopics
from tests.stream.pipeline import until


async def created_again(topics: TestTopics) -> None:
    """Returns once all of them can be used, empty."""
    await delete_topics(topics.broker.bootstrap, topics.table)

    async def gone() -> bool:
        differences = await check_topics(topics.broker.bootstrap, topics.table)
        return sum(one.what == "topic" for one in differences) == len(topics.table)

    await until(gone, "the topics are deleted")
    await ensure_topics(topics.broker.bootstrap, topics.table)
