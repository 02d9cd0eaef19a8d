"""Fences in Redis: the first examples offset that a store's states of a partition do not hold, as decimal digits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

_LAST = 2**62
_SCANNED = 1_000  # keys a call
_DAMAGE = ("WRONGTYPE", "not an integer", "not a valid float", "out of range")


class DamagedStoreError(ValueError):
    """A partition's state holds what no worker has written: it must be cleared and folded again from the log."""


def fence_of(value: bytes | int | str | None) -> int:
    """Return the offset that a fence says; 0 where there is none. Raises DamagedStoreError for what is no offset."""
    text = str(value) if isinstance(value, int) else (value or b"0")
    digits = text.decode("latin-1") if isinstance(text, bytes) else text
    if not (digits.isascii() and digits.isdigit() and int(digits) <= _LAST):
        raise DamagedStoreError(f"its fence is {digits[:40]!r}, no offset of a log")
    return int(digits)


def sequence_of(value: bytes | None) -> int:
    """Return a sequence number; 0, as of a store that was emptied, for what is none: its writer clears the store."""
    try:
        return fence_of(value)
    except DamagedStoreError:
        return 0


@contextmanager
def damage_is_said() -> Iterator[None]:
    """Raise DamagedStoreError where Redis refuses a call for what a key holds: it would at every call."""
    try:
        yield
    except ResponseError as error:
        if any(sign in str(error) for sign in _DAMAGE):
            raise DamagedStoreError(str(error)) from error
        raise


async def clear(redis: Redis, patterns: list[bytes], last: list[bytes]) -> None:
    """Remove the keys of these glob patterns, then those of ``last``: a clearing that was cut off is repeated."""
    for pattern in patterns:
        async for names in _pages(redis, pattern):
            await redis.unlink(*names)
    await redis.unlink(*last)


async def _pages(redis: Redis, pattern: bytes) -> AsyncIterator[list[Any]]:
    cursor = 0
    while True:
        cursor, names = await redis.scan(cursor, match=pattern, count=_SCANNED)
        if names:
            yield names
        if not int(cursor):
            return
