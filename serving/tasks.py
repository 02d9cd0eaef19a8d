"""Background tasks: none fails unheard, all end for certain."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

log = structlog.get_logger()

_ASK_AGAIN_AFTER_S = 0.2


def begin(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """Run ``work`` in the background; should it fail, that is logged at once."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_log_failure)
    return task


async def end(task: asyncio.Task[None]) -> None:
    """Cancel a task until it has ended.

    Once is not enough: redis-py swallows a cancellation that arrives while it waits under a timeout of its own.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=_ASK_AGAIN_AFTER_S)


async def stopped(stop: Coroutine[Any, Any, None], name: str, limit_s: float) -> None:
    """Let a part stop, for ``limit_s`` at most; that it fails is logged, and the other parts stop all the same.

    Clients of a broker that is away fail in many ways when they are closed, with a cancellation among them.
    """
    stopping = asyncio.create_task(stop, name=name)
    done, _ = await asyncio.wait([stopping], timeout=limit_s)
    if not done:
        stopping.cancel()
        log.warning("a part did not stop in time and is left behind", part=name, limit_s=limit_s)
    elif stopping.cancelled() or (error := stopping.exception()) is None:
        return
    else:
        log.warning("a part failed while it stopped", part=name, error=f"{type(error).__name__}: {error}")


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("a background task failed", task=task.get_name(), exc_info=error)
