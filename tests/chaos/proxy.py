"""A TCP proxy on loopback that can be cut or slowed: what stands behind it is then out of reach, or answers late."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from stream.embedded.process import LOOPBACK

_READ_BYTES = 256 << 10
_WAITING_READS = 64  # of answers that are late; whoever sends more of them waits


class Proxy:
    """`async with Proxy(port, upstream) as proxy: await proxy.cut(2.0)`; ``upstream`` is a port or a Unix socket."""

    def __init__(self, port: int, upstream: int | str) -> None:
        self.port = port
        self._upstream = upstream
        self._server: asyncio.Server | None = None
        self._ends: set[asyncio.StreamWriter] = set()  # of every connection both
        self._cuts = 0  # that last: they may overlap
        self._delay_s = 0.0

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._relay, LOOPBACK, self.port)

    async def stop(self) -> None:
        """Refuse new connections and close those that there are."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for end in self._ends:
            end.transport.abort()
        await asyncio.sleep(0)

    async def cut(self, seconds: float) -> None:
        """Close all connections, and refuse new ones for so long."""
        self._cuts += 1
        await self.stop()
        await asyncio.sleep(seconds)
        self._cuts -= 1
        if not self._cuts:
            await self.start()

    async def slow(self, seconds: float, delay_s: float) -> None:
        """Hand every answer on so much later than it came, for so long; as many as ever come in a second."""
        self._delay_s = delay_s
        try:
            await asyncio.sleep(seconds)
        finally:
            self._delay_s = 0.0

    @property
    def is_cut(self) -> bool:
        """Whether connections are refused."""
        return self._server is None

    @property
    def is_slow(self) -> bool:
        """Whether answers are late."""
        return self._delay_s > 0

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.is_cut:
            writer.transport.abort()
            return
        self._ends.add(writer)
        try:
            upstream_reader, upstream_writer = await self._connect()
        except OSError:
            self._close(writer)
            return
        if self.is_cut:
            writer.transport.abort()
            upstream_writer.transport.abort()
        self._ends.add(upstream_writer)
        try:
            answers = _pump_late(upstream_reader, writer, lambda: self._delay_s)
            await asyncio.gather(_pump(reader, upstream_writer), answers)
        finally:
            self._close(writer)
            self._close(upstream_writer)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._upstream, str):
            return await asyncio.open_unix_connection(self._upstream)
        return await asyncio.open_connection(LOOPBACK, self._upstream)

    def _close(self, writer: asyncio.StreamWriter) -> None:
        self._ends.discard(writer)
        writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Hand on bytes until either side ends; then end the other."""
    try:
        while data := await reader.read(_READ_BYTES):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


async def _pump_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: Callable[[], float]) -> None:
    """The same, each piece ``delay_s`` after it came, in their order."""
    clock = asyncio.get_running_loop().time
    waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_WAITING_READS)

    async def take() -> None:
        data = b"more"
        while data:
            data = await reader.read(_READ_BYTES)
            await waiting.put((clock() + delay_s(), data))

    async def hand_on() -> None:
        due_s, data = await waiting.get()
        while data:
            if (early_s := due_s - clock()) > 0:
                await asyncio.sleep(early_s)
            writer.write(data)
            await writer.drain()
            due_s, data = await waiting.get()

    try:
        async with asyncio.TaskGroup() as both:
            both.create_task(take())
            both.create_task(hand_on())
    except* OSError:
        pass
    finally:
        writer.close()
