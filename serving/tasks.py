"""Ending background tasks for certain."""

from __future__ import annotations

import asyncio

import structlog

log = structlog.get_logger()

_ASK_AGAIN_AFTER_S = 0.2


async def end(task: asyncio.Task[None]) -> None:
    """Cancel a task until it has ended; log what it failed with, if it did.

    Once is not enough: redis-py swallows a cancellation that arrives while it waits under a timeout of its own.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_ASK_AGAIN_AFTER_S)
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a background task failed", task=task.get_name(), error=f"{type(error).__name__}: {error}")
