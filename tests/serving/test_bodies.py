"""Inflating within bounds."""

from __future__ import annotations

import gzip
import zlib

import pytest

from serving.bodies import MAX_BODY_BYTES, inflated
from serving.refusals import Refusal, RefusedError

TEXT = b'{"user": {}}' * 50_000


def raw(body: bytes) -> bytes:
    """Deflated without a header, which some clients call deflate."""
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(body) + stream.flush()


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (gzip.compress(TEXT), "gzip"),
        (gzip.compress(TEXT[:7]) + gzip.compress(b"") + gzip.compress(TEXT[7:]), "gzip"),
        (zlib.compress(TEXT), "deflate"),
        (raw(TEXT), "deflate"),
    ],
    ids=["gzip", "members", "deflate", "raw deflate"],
)
async def test_what_was_compressed_comes_back(body: bytes, encoding: str) -> None:
    """In whatever way HTTP allows, and its bytes are counted as they come."""
    counted: list[int] = []
    assert await inflated(body, encoding, counted.append) == TEXT
    assert sum(counted) == len(TEXT)


async def test_the_bound_is_of_what_it_becomes() -> None:
    """As many bytes as may be are taken, one more is not, and much more is not even inflated."""
    assert len(await inflated(gzip.compress(bytes(MAX_BODY_BYTES)), "gzip")) == MAX_BODY_BYTES
    for size in (MAX_BODY_BYTES + 1, 4 * MAX_BODY_BYTES):
        counted: list[int] = []
        with pytest.raises(RefusedError) as caught:
            await inflated(gzip.compress(bytes(size)), "gzip", counted.append)
        assert caught.value.refusal is Refusal.TOO_LARGE
        assert caught.value.closes
        assert sum(counted) <= MAX_BODY_BYTES


@pytest.mark.parametrize(
    "body",
    [TEXT, gzip.compress(TEXT)[:-9], gzip.compress(TEXT)[:20], gzip.compress(TEXT) + b"more", gzip.compress(b"") * 17],
    ids=["plain", "half", "little", "more", "members"],
)
async def test_what_is_not_what_it_says_is_refused(body: bytes) -> None:
    """Plain text, what breaks off, what goes on, members without end."""
    with pytest.raises(RefusedError, match=r"says Content-Encoding gzip and is not") as caught:
        await inflated(body, "gzip")
    assert caught.value.refusal is Refusal.BODY
