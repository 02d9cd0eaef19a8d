"""Connections to an HTTP server of ours: how many there may be, who goes when all places are taken, who is too slow.

aiohttp's own knobs bound a head's size and an idle connection's life; what they do not bound is here.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

Reason = Literal["no_place", "no_head", "unread"]
CLOSED: tuple[Reason, ...] = (
    "no_place",  # another came when all places were taken; this one had gone longest without a call
    "no_head",  # no call came within the header timeout
    "unread",  # its answer was not read within the answer timeout
)
_SWEEP_S = 0.5
_ACCEPT_AGAIN_S = 0.02
_IDLE_S = 0.1
_MOST_UNREAD_BYTES = 256 << 20


@dataclass(slots=True)
class _Connection:
    opened_at: float
    active_at: float  # opened, a head came, or a call was finished
    called: bool = False  # a whole head has come on it
    calls: int = 0  # that must not be cut off
    unread_since: float | None = None


@dataclass(slots=True, kw_only=True)
class Connections:
    """The open connections of one site, those that have gone longest without a call first.

    Parameters
    ----------
    most : open at once.
    header_timeout_s : a new connection on which no whole head came for so long is closed.
    answer_timeout_s : one whose peer has left an answer unread for so long is closed.
    closed : told why, once a connection that is cut off here.
    """

    most: int
    header_timeout_s: float = 10.0
    answer_timeout_s: float = 20.0
    closed: Callable[[Reason], None] = lambda _: None
    crowded: bool = False
    _open: dict[asyncio.BaseTransport, _Connection] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._open)

    def opened(self, transport: asyncio.BaseTransport) -> None:
        """A connection was made."""
        now = time.monotonic()
        self._open[transport] = _Connection(now, now)

    def called(self, transport: asyncio.BaseTransport | None) -> None:
        """A whole head has come: of all connections this one is now the last to go."""
        if transport is not None and (known := self._open.pop(transport, None)) is not None:
            known.called, known.active_at = True, time.monotonic()
            self._open[transport] = known

    @contextmanager
    def kept(self, transport: asyncio.BaseTransport | None) -> Iterator[None]:
        """Meanwhile this connection does not make room for another: its call is being answered."""
        known = None if transport is None else self._open.get(transport)
        if known is None:
            yield
            return
        known.calls += 1
        try:
            yield
        finally:
            known.calls -= 1
            self.called(transport)

    def make_room(self, coming: int = 0) -> bool:
        """Cut off the connection that has gone longest without a call, if all places are taken.

        False, and who comes must wait, while each has been active within _IDLE_S: cutting them off would make callers
        take each other's places without end. Until then `crowded` asks answers to close their connections.

        coming : connections that have a place and are not open yet.
        """
        if len(self._open) + coming >= self.most:
            self._forget_closed()
        self.crowded = False
        if len(self._open) + coming < self.most:
            return True
        idle = next((transport for transport, known in self._open.items() if not known.calls), None)
        if idle is None or time.monotonic() - self._open[idle].active_at < _IDLE_S:
            self.crowded = True
            return False
        self._cut_off(idle, "no_place")
        return True

    def sweep(self) -> None:
        """Cut off those that are too slow: with their first head, or with reading an answer."""
        self._forget_closed()
        now = time.monotonic()
        unread: list[tuple[float, asyncio.BaseTransport, int]] = []
        for transport, known in list(self._open.items()):
            waiting = transport.get_write_buffer_size() if isinstance(transport, asyncio.WriteTransport) else 0
            known.unread_since = None if not waiting else known.unread_since or now
            if known.unread_since is not None:
                unread.append((known.unread_since, transport, waiting))
            elif not known.called and now - known.opened_at > self.header_timeout_s:
                self._cut_off(transport, "no_head")
        total = sum(waiting for _, _, waiting in unread)
        for since, transport, waiting in sorted(unread, key=lambda one: one[0]):
            if now - since > self.answer_timeout_s or total > _MOST_UNREAD_BYTES:
                total -= waiting
                self._cut_off(transport, "unread")

    def _cut_off(self, transport: asyncio.BaseTransport, reason: Reason) -> None:
        del self._open[transport]
        self.closed(reason)
        if isinstance(transport, asyncio.WriteTransport):
            transport.abort()  # close() would wait for a peer that does not read

    def _forget_closed(self) -> None:
        for transport in [transport for transport in self._open if _is_closed(transport)]:
            del self._open[transport]


def noting_calls(connections: Connections) -> Middleware:
    """Middleware that tells ``connections`` of every call."""

    @web.middleware
    async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
        connections.called(request.transport)
        response = await handler(request)
        if connections.crowded:
            response.force_close()
        return response

    return note


class BoundedSite(web.BaseSite):
    """Accepts on a bound socket while `connections` have room; who comes beyond that waits in the kernel's queue."""

    def __init__(self, runner: web.BaseRunner, listener: socket.socket, connections: Connections) -> None:
        super().__init__(runner)
        self._listener = listener
        self._connections = connections
        self._tasks: list[asyncio.Task[None]] = []
        self._coming: set[asyncio.Task[None]] = set()

    @property
    def name(self) -> str:
        """Where it listens."""
        return f"http://{self._listener.getsockname()[:2]}"

    async def start(self) -> None:
        """Listen and accept. Raises OSError."""
        await super().start()
        self._listener.setblocking(False)
        self._listener.listen(1024)
        self._tasks = [asyncio.create_task(self._accept(), name="accept"), asyncio.create_task(self._sweep())]

    async def stop(self) -> None:
        """Accept nothing more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *self._coming, return_exceptions=True)
        self._listener.close()
        await super().stop()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(self._listener)
                with ExitStack() as unless_taken:
                    unless_taken.callback(accepted.close)
                    while not self._connections.make_room(len(self._coming)):
                        await asyncio.sleep(_ACCEPT_AGAIN_S)
                    unless_taken.pop_all()
            except OSError:  # no descriptor is left, or the peer has gone already
                await asyncio.sleep(_ACCEPT_AGAIN_S)
                continue
            opening = loop.create_task(self._open(accepted))
            self._coming.add(opening)
            opening.add_done_callback(self._coming.discard)

    async def _open(self, accepted: socket.socket) -> None:
        server = self._runner.server
        assert server is not None  # BaseSite refuses a runner that was not set up
        with suppress(OSError):
            transport, _ = await asyncio.get_running_loop().connect_accepted_socket(server, accepted)
            self._connections.opened(transport)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_S)
            self._connections.sweep()


def most_connections(wanted: int) -> int:
    """``wanted``, or half of the descriptors that this process may open: the rest is for broker, Redis and files."""
    return min(wanted, max(4, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))


def _is_closed(transport: asyncio.BaseTransport) -> bool:
    connected = transport.get_extra_info("socket")
    return connected is None or connected.fileno() == -1
