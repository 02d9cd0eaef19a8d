"""A proxy that can be cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]

from stream.embedded.broker import EmbeddedBroker
from stream.embedded.process import LOOPBACK
from stream.kafka.admin import ensure_topics
from stream.records.topics import CLICKS, topic_table
from tests.chaos.ports import lasting_ports
from tests.chaos.proxy import Proxy


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(line)
    writer.close()


@asynccontextmanager
async def echoing() -> AsyncIterator[Proxy]:
    """A proxy before a server that sends every line back."""
    port, upstream_port = lasting_ports(2)
    async with await asyncio.start_server(_echo, LOOPBACK, upstream_port), Proxy(port, upstream_port) as proxy:
        yield proxy


async def said(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: bytes) -> bytes:
    """What comes back."""
    writer.write(line)
    return await reader.readline()


async def test_bytes_go_both_ways() -> None:
    """As if it were not there."""
    async with echoing() as proxy:
        reader, writer = await asyncio.open_connection(LOOPBACK, proxy.port)
        assert await said(reader, writer, b"one\n") == b"one\n"
        writer.close()


async def test_a_cut_closes_connections_and_refuses_new_ones_until_it_is_over() -> None:
    """Afterwards the same port leads to the same server."""
    async with echoing() as proxy:
        reader, writer = await asyncio.open_connection(LOOPBACK, proxy.port)
        assert await said(reader, writer, b"one\n") == b"one\n"
        cut = asyncio.create_task(proxy.cut(0.3))
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        assert proxy.is_cut
        with pytest.raises(OSError, match="Connect call failed"):
            await asyncio.open_connection(LOOPBACK, proxy.port)
        await cut
        assert not proxy.is_cut
        reader, writer = await asyncio.open_connection(LOOPBACK, proxy.port)
        assert await said(reader, writer, b"two\n") == b"two\n"
        writer.close()


async def test_cuts_that_overlap_end_with_the_last_of_them() -> None:
    """The first one's end opens nothing."""
    async with echoing() as proxy:
        first, second = asyncio.create_task(proxy.cut(0.1)), asyncio.create_task(proxy.cut(0.3))
        await first
        assert proxy.is_cut
        await second
        reader, writer = await asyncio.open_connection(LOOPBACK, proxy.port)
        assert await said(reader, writer, b"one\n") == b"one\n"
        writer.close()


async def test_a_slow_one_hands_answers_on_late_each_as_late_as_the_others() -> None:
    """It is the way that is long, not narrow; what waits when it is short again keeps its order."""
    clock = asyncio.get_running_loop().time
    async with echoing() as proxy:
        reader, writer = await asyncio.open_connection(LOOPBACK, proxy.port)
        slow = asyncio.create_task(proxy.slow(0.4, delay_s=0.3))
        await asyncio.sleep(0)
        assert proxy.is_slow
        began_s = clock()
        for line in (b"one\n", b"two\n", b"three\n"):
            writer.write(line)
            await asyncio.sleep(0.05)
        assert await reader.readline() == b"one\n"
        assert clock() - began_s >= 0.3
        assert [await reader.readline() for _ in range(2)] == [b"two\n", b"three\n"]
        assert clock() - began_s < 0.3 + 3 * 0.3, "not one after another"
        await slow
        began_s = clock()
        assert await said(reader, writer, b"four\n") == b"four\n"
        assert clock() - began_s < 0.3
        writer.close()


async def test_a_server_that_is_away_closes_the_connection() -> None:
    """A client sees it at once, as without a proxy."""
    port, upstream_port = lasting_ports(2)
    async with Proxy(port, upstream_port):
        reader, _ = await asyncio.open_connection(LOOPBACK, port)
        assert await reader.read() == b""


async def test_the_embedded_broker_sends_its_clients_through_the_proxy() -> None:
    """It advertises the proxy's port: a client that knows only the broker's own is cut off with the others."""
    port, upstream_port = lasting_ports(2)
    async with Proxy(port, upstream_port) as proxy, EmbeddedBroker(upstream_port, advertised_port=port) as broker:
        await ensure_topics(broker.bootstrap, topic_table(1))
        async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap) as producer:
            await producer.send_and_wait(CLICKS, b"one", partition=0)
            cut = asyncio.create_task(proxy.cut(0.5))
            await asyncio.sleep(0.1)
            sending = asyncio.create_task(producer.send_and_wait(CLICKS, b"two", partition=0))
            await asyncio.sleep(0.2)
            assert not sending.done()
            await cut
            await sending
