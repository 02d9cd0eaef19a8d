"""`python -m serving` as a process among hostile peers, and sockets that speak less HTTP than they should."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from learners.features.spec import load_spec
from stream.embedded.process import LOOPBACK, free_port
from tests.serving.test_program import ready, snapshot_of

JSON = {"Content-Type": "application/json"}


@dataclass
class ServingProgram:
    """A running program."""

    process: asyncio.subprocess.Process
    port: int
    probe_port: int
    http: aiohttp.ClientSession
    log: Path

    async def post(self, body: Any, path: str = "/v1/rank", **headers: str) -> tuple[int, dict[str, Any]]:
        """Status and JSON of a call."""
        given = {"data": body} if isinstance(body, bytes) else {"json": body}
        async with self.http.post(path, headers={**JSON, **headers}, **given) as answer:
            return answer.status, await answer.json()

    async def metric(self, sample: str) -> float:
        """The value of a sample of the metrics page."""
        async with self.http.get("/metrics") as answer:
            lines = (await answer.text()).splitlines()
        return next(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{sample} "))

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit status after a signal."""
        self.process.send_signal(number)
        return await self.process.wait()

    def resident_bytes(self) -> int:
        """Memory of the process."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize()


@asynccontextmanager
async def serving(environment: Mapping[str, str], work: Path, descriptors: int = 1024) -> AsyncIterator[ServingProgram]:
    """The program on an untrained marketplace model, ready; killed at the end if it still runs."""
    snapshot_of(load_spec("marketplace"), work / "snapshots")
    port, probe_port = free_port(), free_port()
    log = work / "serving.log"
    arguments = ["--snapshots", str(work / "snapshots"), "--port", str(port), "--probe-port", str(probe_port)]
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *("bash", "-c", f'ulimit -n {descriptors}; exec "$@"', "bash", sys.executable, "-m", "serving", *arguments),
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stderr=stderr,
        )
    try:
        connector = aiohttp.TCPConnector(force_close=True)  # the program closes idle connections early
        async with aiohttp.ClientSession(f"http://{LOOPBACK}:{port}", connector=connector) as http:
            await ready(http, process)
            yield ServingProgram(process, port, probe_port, http, log)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def said(port: int, head: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection on which so much was said."""
    reader, writer = await asyncio.open_connection(LOOPBACK, port, limit=1 << 16)
    writer.write(head)
    return reader, writer


async def rest(reader: asyncio.StreamReader) -> bytes:
    """What still comes, until the other side closes."""
    try:
        return await reader.read()
    except ConnectionError:
        return b""
