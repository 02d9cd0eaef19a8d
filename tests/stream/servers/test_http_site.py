"""Bounded connections, over real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import aiohttp
import pytest
from aiohttp import web

from stream.servers.http_site import BoundedSite, Connections, Reason, noting_calls

HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
Serve = Callable[[Connections], Awaitable[int]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Serve small and endless answers: ``port = await serve(connections)``."""
    async with AsyncExitStack() as stack:

        async def run(connections: Connections) -> int:
            async def small(_: web.Request) -> web.Response:
                return web.Response(text="here")

            async def large(_: web.Request) -> web.Response:
                return web.Response(body=bytes(64 << 20))

            app = web.Application(middlewares=[noting_calls(connections)])
            app.add_routes([web.get("/", small), web.get("/large", large)])
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            listener = socket.create_server(("127.0.0.1", 0))
            await BoundedSite(runner, listener, connections).start()
            return int(listener.getsockname()[1])

        yield run


async def opened(port: int, said: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection on which so much was said."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(said)
    return reader, writer


async def test_who_calls_gets_in_where_others_only_hold_places(serve: Serve) -> None:
    """All places are held by silence and half heads: the oldest of them goes, and the count stays."""
    closed: list[Reason] = []
    connections = Connections(most=4, closed=closed.append)
    port = await serve(connections)
    holders = [await opened(port, HEAD[: 5 * n]) for n in range(4)]
    async with asyncio.timeout(5), aiohttp.ClientSession() as http:
        async with http.get(f"http://127.0.0.1:{port}/") as answer:
            assert await answer.text() == "here"
        assert await holders[0][0].read() == b""
        assert closed == ["no_place"]
        assert len(connections) <= 4


async def test_a_connection_whose_call_is_answered_is_not_cut_off(serve: Serve) -> None:
    """With all places in calls a newcomer waits until one ends, and ends ask their connections to close."""
    connections = Connections(most=2)
    port = await serve(connections)
    holders = [await opened(port) for _ in range(2)]
    async with asyncio.timeout(5):
        while len(connections) < 2:
            await asyncio.sleep(0)
    held = list(connections._open)
    with connections.kept(held[0]), connections.kept(held[1]):
        reader, _writer = await opened(port, HEAD + b"\r\n")
        async with asyncio.timeout(5):
            while not connections.crowded:
                await asyncio.sleep(0.01)
        assert all(not one.is_closing() for one in held)
    del holders  # idle now
    async with asyncio.timeout(5):
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")


async def test_a_head_that_does_not_come_and_an_answer_that_is_not_read_end_in_time(
    serve: Serve,
) -> None:
    """Idle after a call is aiohttp's own knob, and longer."""
    closed: list[Reason] = []
    port = await serve(Connections(most=9, header_timeout_s=0.2, answer_timeout_s=0.2, closed=closed.append))
    silent, _silent = await opened(port)
    called, _called = await opened(port, HEAD + b"\r\n")
    _deaf, deaf = await opened(port, HEAD.replace(b"/ ", b"/large ") + b"\r\n")
    async with asyncio.timeout(10):
        assert await silent.read() == b""
        while "unread" not in closed:
            await asyncio.sleep(0.05)
    assert sorted(closed) == ["no_head", "unread"]
    assert not called.at_eof()
    deaf.close()
