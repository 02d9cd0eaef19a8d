"""Serving as a process, and the foreign client."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from stream.embedded.process import free_port
from tests.brokers import skip_or_fail
from tests.stream.pipeline import START_PATIENCE_S, said, until


@asynccontextmanager
async def serving(
    environment: Mapping[str, str], snapshots: Path, log: Path, *, spec: str, clock: str
) -> AsyncIterator[aiohttp.ClientSession]:
    """`python -m serving`, ready; stopped at the end."""
    port = free_port()
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "serving", "--spec", spec, "--snapshots", str(snapshots), "--clock", clock,
            "--port", str(port), env={**environment, "OMP_NUM_THREADS": "1"}, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:

            async def ready() -> bool:
                if process.returncode is not None:
                    raise AssertionError(f"serving ended with {process.returncode}:\n{said(log)}")
                try:
                    async with http.get("/readyz") as answer:
                        return answer.status == 200
                except aiohttp.ClientError:
                    return False

            await until(ready, "serving is ready", START_PATIENCE_S)
            yield http
    finally:
        if process.returncode is None:
            process.terminate()
            await asyncio.wait_for(process.wait(), 10)


def kcat_program() -> str:
    """The path of kcat; the test is skipped (in CI: fails) without it."""
    path = shutil.which("kcat") or shutil.which("kafkacat")
    if path is None:
        skip_or_fail("kcat, the foreign client, is not installed: apt-get install kcat")
    return str(path)
