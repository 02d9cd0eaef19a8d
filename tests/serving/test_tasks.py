"""Ending tasks."""

from __future__ import annotations

import asyncio
import contextlib

from structlog.testing import capture_logs

from serving.tasks import begin, end


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


async def test_a_failure_in_the_background_is_logged_when_it_happens() -> None:
    """With its name and its error; a task that is ended says nothing."""

    async def failing() -> None:
        raise ValueError("no such thing")

    with capture_logs() as logged:
        failed, ended = begin(failing(), "do a thing"), begin(asyncio.sleep(1000), "wait")
        await asyncio.wait([failed])
        await end(ended)
    assert [(entry["task"], str(entry["exc_info"])) for entry in logged] == [("do a thing", "no such thing")]
