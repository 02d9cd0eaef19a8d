"""Our join as its users run it: a worker process between topics, from the first record sent to the last example."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import aiohttp
import numpy as np

from stream.embedded.process import free_port
from stream.kafka.broker import find_broker
from stream.kafka.log_reader import LogReader
from stream.records.examples_codec import decode_examples
from stream.records.topics import CLICKS, EXAMPLES
from stream.servers.settings import StreamSettings
from tests.bench.harness import Child, progress
from tests.bench.join_log import SPEC, START_MS, Encoding, digest, join_log
from tests.bench.join_peers import produce
from tests.bench.join_times import HORIZON_MS

_POLL_S = 0.25  # asking costs the worker some milliseconds
_PATIENCE_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is joined, and how."""

    impressions: int
    encoding: Encoding
    runner: str
    partitions: int = 1
    per_second: float = 10_000.0


class Worker:
    """A `python -m stream worker --agents join`; ``process`` is the present one."""

    def __init__(self, environment: Mapping[str, str], runner: str, cores: Sequence[int]) -> None:
        self._environment = {**os.environ, **environment, "OMP_NUM_THREADS": "1"}
        self._runner = runner
        self._cores = cores
        self.process: asyncio.subprocess.Process | None = None
        self.url = ""

    async def start(self) -> None:
        """Start it; returns at once."""
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "stream", "worker", "--spec", SPEC.name, "--snapshots", "unused", "--agents", "join",
            "--clock", "log", "--runner", self._runner, "--metrics-port", str(port),
            env=self._environment, stdout=sys.stderr.fileno(), stderr=sys.stderr.fileno(),
        )  # fmt: skip
        os.sched_setaffinity(self.process.pid, self._cores)

    async def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
            await self.process.wait()

    async def wait_ready(self) -> None:
        """Return once it has its partitions."""
        await self.until(lambda samples: True)

    async def until(self, holds: Callable[[Mapping[str, float]], bool]) -> dict[str, float]:
        """Ask for its metrics until they satisfy ``holds``."""
        deadline = time.monotonic() + _PATIENCE_S
        async with aiohttp.ClientSession() as http:
            while time.monotonic() < deadline:
                if self.process is not None and self.process.returncode is not None:
                    raise RuntimeError(f"the worker ended with status {self.process.returncode}; it has said why above")
                try:
                    async with http.get(f"{self.url}/healthz") as health, http.get(f"{self.url}/metrics") as answer:
                        samples = samples_of(await answer.text())
                        if health.status == 200 and holds(samples):
                            return samples
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(_POLL_S)
        raise RuntimeError(f"the worker did not get there within {_PATIENCE_S:g} s")


def samples_of(text: str) -> dict[str, float]:
    """Every sample of /metrics by its name with labels."""
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines}


def joined_rows(samples: Mapping[str, float]) -> float:
    """Exposures and clicks."""
    return sum(samples[f'millstream_examples_total{{kind="{kind}"}}'] for kind in ("exposure", "click"))


@asynccontextmanager
async def worker(
    bootstrap: str, redis_url: str, load: Load, prefix: str, cores: Sequence[int]
) -> AsyncIterator[Worker]:
    """A worker on fresh topics, ready; killed at the end."""
    environment = {
        "KAFKA_BOOTSTRAP_SERVERS": bootstrap,
        "REDIS_URL": redis_url,
        "MILLSTREAM_PARTITIONS": str(load.partitions),
        "MILLSTREAM_TOPIC_PREFIX": prefix,
        "MILLSTREAM_DISPLAY_HORIZON_S": str(HORIZON_MS / 1000),
        "MILLSTREAM_JOIN_MEMORY_BYTES": str(2 << 30),  # with the default, inputs ahead wait from half a million rows on
    }
    running = Worker(environment, load.runner, cores)
    try:
        await running.start()
        await running.wait_ready()
        yield running
    finally:
        await running.kill()


async def end_to_end(bootstrap: str, redis_url: str, load: Load, prefix: str, cores: Sequence[int]) -> float:
    """Impressions a second of wall time from the first record sent to the last example; all processes share the cores.

    Raises RuntimeError when the examples are not exactly those that must come out.
    """
    arguments = {
        "impressions": load.impressions,
        "encoding": load.encoding,
        "partitions": load.partitions,
        "per_second": load.per_second,
    }
    with Child("tests.bench.join_producer", cores=cores) as producer:
        log = await asyncio.to_thread(producer.turn, "prepare", **arguments)
        await asyncio.to_thread(producer.turn, "topics", bootstrap=bootstrap, prefix=prefix, partitions=load.partitions)
        async with worker(bootstrap, redis_url, load, prefix, cores) as running:
            began = time.monotonic()
            sent = asyncio.to_thread(producer.turn, "send", bootstrap=bootstrap, prefix=prefix, **arguments)
            sending = asyncio.create_task(sent)
            await running.until(lambda samples: joined_rows(samples) >= log["examples"])
            wall_s = time.monotonic() - began
            await sending
    await _check(bootstrap, load, prefix)
    progress(f"{load}: {load.impressions / wall_s:,.0f} impressions/s")
    return load.impressions / wall_s


async def recovery(
    bootstrap: str, redis_url: str, load: Load, prefix: str, cores: Sequence[int], *, exposed: int
) -> float:
    """Seconds from the start of a process, after another was killed, until it holds all pending rows again.

    The log has ``exposed`` rows more than ``load``, which waits for its clicks when the log ends: they lag.
    """
    rows = exposed + load.impressions
    log = join_log(rows, load.encoding, partitions=load.partitions, per_second=load.per_second)
    lag_ms = START_MS + 1000 * exposed / load.per_second
    came = [one for one in log.records[: -3 * load.partitions] if one.topic != CLICKS or one.sent_ms <= lag_ms]
    log = replace(log, records=came)
    await produce(bootstrap, log, prefix, load.partitions)

    least = load.impressions - 10 * load.per_second  # the lead, and the time from request to display

    def holds_all(samples: Mapping[str, float]) -> bool:
        lag = sum(value for name, value in samples.items() if name.startswith("millstream_lag_records"))
        return lag == 0 and samples["millstream_join_pending_rows"] >= least

    async with worker(bootstrap, redis_url, load, prefix, cores) as running:
        before = await running.until(holds_all)
        await running.kill()
        began = time.monotonic()
        await running.start()
        after = await running.until(holds_all)
        seconds = time.monotonic() - began
    progress(f"recovery: {seconds:.1f} s, pending {before['millstream_join_pending_rows']:,.0f} before, "
             f"{after['millstream_join_pending_rows']:,.0f} after")  # fmt: skip
    return seconds


async def _check(bootstrap: str, load: Load, prefix: str) -> None:
    log = join_log(load.impressions, load.encoding, partitions=load.partitions, per_second=load.per_second)
    settings = StreamSettings(kafka_bootstrap_servers=bootstrap, partitions=load.partitions, topic_prefix=prefix)
    ids, kinds = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint8)]
    async with LogReader(await find_broker(settings)) as reader:
        for partition in range(load.partitions):
            async for record in reader.read(EXAMPLES, partition):
                rows, _ = decode_examples(record.value, SPEC)
                ids.append(rows.impression_id)
                kinds.append(rows.kind)
    found = np.concatenate(ids)
    if (len(found), digest(found, np.concatenate(kinds))) != (log.examples, log.digest):
        raise RuntimeError(f"{load}: the examples written are not those that must come out ({len(found)} rows)")
