"""Ending tasks."""

from __future__ import annotations

import asyncio
import contextlib

from serving.tasks import end


async def test_a_task_that_swallows_its_first_cancellation_ends_all_the_same() -> None:
    """Also one that has failed, and one that is done, are simply over."""
    swallowed = asyncio.Event()

    async def stubborn() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(1000)
        swallowed.set()
        await asyncio.sleep(1000)

    async def failing() -> None:
        raise ValueError

    tasks = [asyncio.create_task(stubborn()), asyncio.create_task(failing())]
    await asyncio.sleep(0)
    for task in [*tasks, *tasks]:
        await end(task)
    assert swallowed.is_set()
    assert tasks[0].cancelled()
    assert isinstance(tasks[1].exception(), ValueError)
