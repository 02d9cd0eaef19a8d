"""A TCP proxy on loopback that can be cut: what stands behind it is then out of reach for those before it."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from stream.embedded.process import LOOPBACK

_READ_BYTES = 256 << 10


class Proxy:
    """`async with Proxy(port, upstream) as proxy: await proxy.cut(2.0)`; ``upstream`` is a port or a Unix socket."""

    def __init__(self, port: int, upstream: int | str) -> None:
        self.port = port
        self._upstream = upstream
        self._server: asyncio.Server | None = None
        self._ends: set[asyncio.StreamWriter] = set()  # of every connection both

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
        await self.stop()
        await asyncio.sleep(seconds)
        await self.start()

    @property
    def is_cut(self) -> bool:
        """Whether connections are refused."""
        return self._server is None

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
            await asyncio.gather(_pump(reader, upstream_writer), _pump(upstream_reader, writer))
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
