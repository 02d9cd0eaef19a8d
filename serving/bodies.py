"""A call's body: read and inflated within bounds of time and size, which hold for what it becomes."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from learners.features.shown import shown
from serving.admission import Admission
from serving.refusals import Refusal, RefusedError

MAX_BODY_BYTES = 16 << 20
_INFLATED_HERE, _INFLATED_AT_ONCE = 256 << 10, 1 << 20  # what is more than the first is inflated in threads
_MOST_MEMBERS = 16  # of one gzip body; each one copies the rest
_GZIP, _ZLIB, _RAW = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS
ENCODINGS = ("identity", "gzip", "deflate")


@asynccontextmanager
async def body_of(request: web.Request, admission: Admission, timeout_s: float) -> AsyncIterator[bytes]:
    """The body as JSON text; its bytes count in ``admission`` meanwhile.

    Raises RefusedError, serving.admission.OverloadedError; ConnectionError where the peer has gone.
    """
    encoding = encoding_of(request)
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise too_large()
    held = 0

    def take(count: int) -> None:
        nonlocal held
        admission.take_bytes(count)
        held += count

    try:
        body = await _read(request, timeout_s, take)
        if encoding != "identity":
            body = await inflated(body, encoding, take)
        yield body
    finally:
        admission.give_bytes(held)


def encoding_of(request: web.Request) -> str:
    """How the body is compressed. Raises RefusedError."""
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ENCODINGS:
        raise RefusedError(
            Refusal.ENCODING,
            f"Content-Encoding {shown(encoding)} is none of {', '.join(ENCODINGS)}: the body cannot be read, nothing "
            "was scored. Send it as it is, or by gzip.",
        )
    return encoding


async def _read(request: web.Request, timeout_s: float, take: Callable[[int], None]) -> bytes:
    chunks, size = [], 0
    try:
        async with asyncio.timeout(timeout_s):
            await request.writer.drain()  # a peer that does not read its answers gets no more of them
            while chunk := await request.content.readany():
                size += len(chunk)
                if size > MAX_BODY_BYTES:
                    raise too_large()
                take(len(chunk))
                chunks.append(chunk)
    except TimeoutError as error:
        raise RefusedError(
            Refusal.SLOW_BODY,
            f"the body did not come whole within {timeout_s:g} s ({size} bytes did): the connection is closed, nothing "
            "was scored. Send it faster or in smaller calls, or raise MILLSTREAM_BODY_TIMEOUT_S.",
        ) from error
    except (web.RequestPayloadError, HttpProcessingError) as error:
        raise RefusedError(
            Refusal.BODY,
            f"the body breaks off or is not chunked as HTTP asks ({shown(str(error))}): nothing was scored. Send it "
            "whole, with its Content-Length or in chunks.",
        ) from error
    return b"".join(chunks)


async def inflated(body: bytes, encoding: str, take: Callable[[int], None] = lambda _: None) -> bytes:
    """What was compressed, at most MAX_BODY_BYTES; a large one is inflated beside the event loop. Raises RefusedError.

    take : told how much more memory each piece needs; what it raises ends the inflating.
    """
    inflater = _Inflater(body, encoding)
    pieces = [inflater.more(_INFLATED_HERE)]
    size = len(pieces[0])
    take(size)
    while not inflater.ended:
        pieces.append(await asyncio.to_thread(inflater.more, _INFLATED_AT_ONCE))
        size += len(pieces[-1])
        if size > MAX_BODY_BYTES:
            raise too_large()
        take(len(pieces[-1]))
    return b"".join(pieces)


class _Inflater:
    """Inflates piece by piece; members of gzip may follow each other."""

    def __init__(self, body: bytes, encoding: str) -> None:
        self.ended = not body
        self._encoding = encoding
        self._waiting = body
        self._members = 1
        if encoding == "gzip":
            self._bits = _GZIP
        else:  # with or without its header: both are called deflate
            self._bits = _ZLIB if body[:1] and body[0] & 0xF == 8 else _RAW
        self._stream = zlib.decompressobj(self._bits)
        self._size = len(body)

    def more(self, most: int) -> bytes:
        """The next ``most`` bytes, fewer at the end. Raises RefusedError."""
        pieces, size = [], 0
        try:
            while not self.ended and size < most:
                piece = self._stream.decompress(self._waiting, most - size)
                self._waiting = self._stream.unconsumed_tail
                pieces.append(piece)
                size += len(piece)
                if self._stream.eof:
                    self._next_member()
                elif not self._waiting and not piece:
                    raise zlib.error("it ends early")
        except zlib.error as error:
            raise RefusedError(
                Refusal.BODY,
                f"the body ({self._size} bytes) says Content-Encoding {self._encoding} and is not: {error}. Nothing "
                "was scored. Compress it, or leave the header out.",
            ) from error
        return b"".join(pieces)

    def _next_member(self) -> None:
        self._waiting = self._stream.unused_data
        self.ended = not self._waiting
        if self.ended:
            return
        self._members += 1
        if self._members > _MOST_MEMBERS:
            raise zlib.error(f"more than {_MOST_MEMBERS} members follow each other")
        self._stream = zlib.decompressobj(self._bits)


def too_large() -> RefusedError:
    """The refusal of a body beyond the bound."""
    return RefusedError(
        Refusal.TOO_LARGE,
        f"the body is larger than {MAX_BODY_BYTES} bytes, as it came or inflated: the connection is closed, nothing "
        "was scored. Send the requests in several calls.",
    )
