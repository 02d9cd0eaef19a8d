"""Worker processes that catch up, by agent: how far each has come, and what it takes of the cores."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from stream.embedded.process import free_port
from tests.bench.harness import progress
from tests.bench.join_worker import samples_of
from tests.bench.loop_market import SPEC

_POLL_S = 0.25
_PATIENCE_S = 240.0
_DONE = {
    "join": ("millstream_examples_total",),
    "sessions": ("millstream_session_rows_total",),
    "learn": ("millstream_learned_rows_total", "millstream_learned_conversions_total"),
    "calibrate": ("millstream_calibration_rows_total",),  # which conversions of clicks are not, without a head of them
}
"""The counters whose sum says how many examples an agent is done with."""


@dataclass(slots=True)
class AgentWorker:
    """A worker process of some agents."""

    agents: Sequence[str]
    process: asyncio.subprocess.Process
    url: str

    def cpu_s(self) -> float:
        """What it has used of the cores."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def done(self) -> dict[str, float] | None:
        """Examples that each agent is done with; None before it is ready."""
        if self.process.returncode is not None:
            raise RuntimeError(f"the worker of {self.agents} ended with {self.process.returncode}; why is said above")
        try:
            async with (
                aiohttp.ClientSession() as http,
                http.get(f"{self.url}/healthz") as health,
                http.get(f"{self.url}/metrics") as answer,
            ):
                if health.status != 200:
                    return None
                samples = samples_of(await answer.text())
        except aiohttp.ClientError:
            return None
        return {
            agent: sum(value for name, value in samples.items() if name.split("{")[0] in _DONE[agent])
            for agent in self.agents
        }


@asynccontextmanager
async def workers(
    environment: Mapping[str, str], folder: Path, processes: Sequence[Sequence[str]]
) -> AsyncIterator[list[AgentWorker]]:
    """A worker process for each group of agents; killed at the end."""
    running: list[AgentWorker] = []
    try:
        for agents in processes:
            port = free_port()
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "stream", "worker", "--spec", SPEC.name,
                "--snapshots", str(folder), "--agents", ",".join(agents), "--metrics-port", str(port),
                env=environment, stdout=sys.stderr.fileno(), stderr=sys.stderr.fileno(),
            )  # fmt: skip
            running.append(AgentWorker(agents, process, f"http://127.0.0.1:{port}"))
        yield running
    finally:
        for worker in running:
            if worker.process.returncode is None:
                worker.process.terminate()
        for worker in running:
            await worker.process.wait()


async def worked_off(running: Sequence[AgentWorker], wanted: Mapping[str, int]) -> tuple[float, list[float]]:
    """Seconds from when all are ready until each agent is done with its ``wanted`` examples; core s of each process."""
    deadline = time.monotonic() + _PATIENCE_S
    began, cpu, shown = 0.0, [0.0] * len(running), 0.0
    while time.monotonic() < deadline:
        found = [await worker.done() for worker in running]
        if all(one is not None for one in found):
            if not began:
                began, cpu = time.monotonic(), [worker.cpu_s() for worker in running]
                progress(f"ready: {found}")
            if time.monotonic() > shown + 10:
                shown = time.monotonic()
                progress(f"{shown - began:.0f} s: {found} of {wanted}")
            if all(count >= wanted[agent] for one in found if one for agent, count in one.items()):
                used = [worker.cpu_s() - before for worker, before in zip(running, cpu, strict=True)]
                return time.monotonic() - began, used
        await asyncio.sleep(_POLL_S)
    raise RuntimeError(f"not done within {_PATIENCE_S:g} s: {found} of {wanted}")
