"""Topics that are deleted and created again under the same names, as by somebody who had too few partitions."""

from __future__ import annotations

from stream.kafka.admin import check_topics, delete_topics, ensure_topics
from tests.brokers import TestTopics
from tests.stream.pipeline import until


async def created_again(topics: TestTopics, only: str = "") -> None:
    """Returns once all of them, or ``only`` one, can be used, empty."""
    table = [topic for topic in topics.table if topic.name.endswith(only)]
    await delete_topics(topics.broker.bootstrap, table)

    async def gone() -> bool:
        differences = await check_topics(topics.broker.bootstrap, table)
        return sum(one.what == "topic" for one in differences) == len(table)

    await until(gone, "the topics are deleted")
    await ensure_topics(topics.broker.bootstrap, topics.table)
