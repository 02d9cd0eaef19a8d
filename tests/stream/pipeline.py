"""A small marketplace for tests of the stream: a base snapshot, served rows, events, a running worker."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import numpy as np
from aiokafka import AIOKafkaProducer  # type: ignore[import-untyped]

from learners.deepfm.model import DeepFM, DeepFMConfig
from learners.examples.kinds import CLICK, EXPOSURE
from learners.features.encode import Encoder, Request
from learners.features.shape import ModelShape
from learners.features.spec import FeatureSpec, load_spec
from learners.snapshots.snapshot import Snapshot, write_snapshot
from stream.embedded.process import free_port
from stream.kafka.broker import Broker, find_broker
from stream.kafka.log_reader import LogReader
from stream.records.examples import ExampleRows
from stream.records.partition import key_bytes, partition_of
from stream.records.topics import CLICKS, CONVERSIONS, IMPRESSIONS, SERVED
from stream.records.wire import EventsRecord, ServedRecord
from stream.servers.settings import StreamSettings
from stream.sessions.in_memory import MemorySessionStore

START_MS = 1_700_000_000_000
START_PATIENCE_S = 90.0  # of a program: the first one compiles the kernels, and the cores may be busy
SPEC = load_spec("marketplace")
SMALL = DeepFMConfig(dim=4, hidden=(8,))
_T = TypeVar("_T")


def base_snapshot(
    root: Path, spec: FeatureSpec = SPEC, version: int = 0, config: DeepFMConfig = SMALL, watermark_ms: int = 0
) -> Snapshot:
    """An untrained model of ``spec`` in the store ``root``."""
    shape = ModelShape.of(spec)
    model = DeepFM(config, shape)
    snapshot = Snapshot(
        version=version,
        created_from="base",
        watermark_ms=watermark_ms,
        newest_event_ms=0,
        shape=shape,
        config=config,
        state=model.state(),
    )
    write_snapshot(str(root), snapshot)
    return snapshot


def example_rows(count: int, seed: int, spec: FeatureSpec = SPEC, **columns: Any) -> ExampleRows:
    """Exposures and clicks (one row in four) of random columns, a click after 1 s; ``columns`` replace some."""
    rng = np.random.default_rng(seed)
    kind = np.asarray(columns.get("kind", np.where(rng.integers(0, 4, count) == 0, CLICK, EXPOSURE)), np.uint8)
    ts_ms = np.asarray(columns.get("ts_ms", START_MS + np.sort(rng.integers(0, 60_000, count))))
    rows = {
        "kind": kind,
        "impression_id": rng.integers(1, 2**63, count, dtype=np.uint64),
        "user_key": rng.integers(1, 50, count, dtype=np.uint64),
        "ts_ms": ts_ms,
        "known_ms": ts_ms + 1000 * (kind != EXPOSURE),
        "delay_ms": np.where(kind == EXPOSURE, 0, 1000),
        "value": np.zeros(count, np.float32),
        "logit": rng.normal(size=count).astype(np.float32),
        "p": rng.random(count, dtype=np.float32),
        "conversion_logit": rng.normal(size=count).astype(np.float32),
        "conversion_p": rng.random(count, dtype=np.float32),
        "propensity": np.ones(count, np.float32),
        "model_version": np.zeros(count, np.int64),
        "click_produced_ms": np.where(kind == CLICK, START_MS, 0),
        "ids": rng.integers(1, 200, (count, spec.id_columns), dtype=np.uint64),
        "dense": rng.normal(size=(count, spec.dense_inputs)).astype(np.float32),
    }
    return ExampleRows(**{**rows, **columns})


@dataclass(frozen=True, slots=True)
class Shown:
    """Rows that were served: one request each, in order."""

    impression_id: list[int]
    user_key: list[int]
    ts_ms: list[int]
    record: dict[int, ServedRecord]  # by partition


def serve(users: Sequence[int], ts_ms: Sequence[int], partitions: int, first_id: int) -> Shown:
    """Serve one ad to each user at each time, as serving would."""
    encoder, store = Encoder(SPEC), MemorySessionStore(SPEC)
    requests = [
        Request(
            request_id=first_id + i,
            ts_ms=at,
            user={"user_id": user, "age_group": user % 5},
            context={"placement": user % 3},
            ads=[{"ad_id": (user * 7 + i) % 20, "category": i % 4}],
        )
        for i, (user, at) in enumerate(zip(users, ts_ms, strict=True))
    ]
    ids = encoder.ids(requests)
    encoded = encoder.encode(ids, store.read(encoder, ids))
    impression_id = np.arange(first_id, first_id + len(requests), dtype=np.uint64)
    where = partition_of(ids.user_key, partitions)
    logit = np.linspace(-2, 2, len(requests)).astype(np.float32)
    records = {}
    for partition in np.unique(where).tolist():
        rows = np.flatnonzero(where == partition)
        records[partition] = ServedRecord.of(
            spec_hash=SPEC.hash,
            model_version=0,
            map_version=0,
            variant="main",
            requests=len(rows),
            rows=len(rows),
            request_fields=encoded.request_ids.shape[1],
            ad_fields=encoded.ad_ids.shape[1],
            request_dense_inputs=encoded.request_dense.shape[1],
            ad_dense_inputs=encoded.ad_dense.shape[1],
            request_id=ids.request_id[rows],
            ts_ms=ids.ts_ms[rows],
            user_key=ids.user_key[rows],
            request_ids=encoded.request_ids[rows],
            request_dense=encoded.request_dense[rows],
            row_request=np.arange(len(rows)),
            impression_id=impression_id[rows],
            ad_ids=encoded.ad_ids[rows],
            ad_dense=encoded.ad_dense[rows],
            logit=logit[rows],
            p=1 / (1 + np.exp(-logit[rows])),
            conversion_logit=-logit[rows],
            conversion_p=1 / (1 + np.exp(logit[rows])),
            propensity=np.ones(len(rows)),
        )
    return Shown(impression_id.tolist(), ids.user_key.tolist(), list(ts_ms), records)


def events(rows: Iterable[tuple[int, int, int]], watermark_ms: int = 0) -> EventsRecord:
    """A columnar batch of (impression id, time, user key)."""
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    return EventsRecord.of(
        rows=len(columns[0]),
        impression_id=columns[0],
        ts_ms=columns[1],
        user_key=columns[2],
        position=np.zeros(len(columns[0])),
        value=np.zeros(len(columns[0])),
        watermark_ms=watermark_ms,
    )


def silent(watermark_ms: int) -> ServedRecord:
    """A served record without rows: only its watermark."""
    widths = dict.fromkeys(("request_fields", "ad_fields", "request_dense_inputs", "ad_dense_inputs"), 0)
    scalars = {"spec_hash": SPEC.hash, "model_version": 0, "map_version": 0, "variant": "main"}
    none = np.zeros(0)
    return ServedRecord.of(
        **scalars, **widths, requests=0, rows=0, watermark_ms=watermark_ms, **dict.fromkeys(ServedRecord.LAYOUT, none)
    )


class Front:
    """Stands where serving and the clients stand."""

    def __init__(self, broker: Broker, producer: AIOKafkaProducer) -> None:
        self.broker = broker
        self.producer = producer

    async def send(self, topic: str, value: bytes, partition: int | None = None, key: int | None = None) -> None:
        """One record to a partition, or to that of a user."""
        where = key_bytes(key) if key is not None else None
        await self.producer.send_and_wait(self.broker.topic(topic), value, key=where, partition=partition)

    async def show(self, shown: Shown, clicked: Sequence[int] = ()) -> None:
        """Served rows, their impressions a tenth of a second later, and clicks of some of them a second after that."""
        for partition, record in shown.record.items():
            await self.send(SERVED, record.encode(), partition)
        for key, user, at in zip(shown.impression_id, shown.user_key, shown.ts_ms, strict=True):
            await self.send(IMPRESSIONS, _json(impression_id=key, user_key=user, ts_ms=at + 100), key=user)
            if key in clicked:
                await self.send(CLICKS, _json(impression_id=key, user_key=user, ts_ms=at + 1100), key=user)

    async def pass_time(self, watermark_ms: int) -> None:
        """Promise on every input that nothing earlier follows."""
        for partition in range(self.broker.partitions):
            await self.send(SERVED, silent(watermark_ms).encode(), partition)
            for topic in (IMPRESSIONS, CLICKS, CONVERSIONS):
                await self.send(topic, _json(watermark_ms=watermark_ms), partition)


def _json(**fields: int) -> bytes:
    body = ", ".join(f'"{name}": {value}' for name, value in fields.items())
    return f"{{{body}}}".encode()


@asynccontextmanager
async def front(settings: StreamSettings) -> AsyncIterator[Front]:
    """A front end on the broker of ``settings``."""
    broker = await find_broker(settings)
    producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap, acks="all", linger_ms=0)
    await producer.start()
    try:
        yield Front(broker, producer)
    finally:
        await producer.stop()


class Worker:
    """A `python -m stream worker` process."""

    def __init__(self, process: asyncio.subprocess.Process, metrics_url: str, log: Path) -> None:
        self.process = process
        self.metrics_url = metrics_url
        self.log = log

    async def stop(self) -> int:
        """SIGTERM; its exit status."""
        self.process.terminate()
        return await self.process.wait()

    async def health(self) -> int | None:
        """The status of /healthz, None before it answers. Raises AssertionError when the process has ended."""
        if self.process.returncode is not None:
            raise AssertionError(f"the worker ended with {self.process.returncode}:\n{said(self.log)}")
        try:
            async with aiohttp.ClientSession() as http, http.get(f"{self.metrics_url}/healthz") as answer:
                return answer.status
        except aiohttp.ClientError:
            return None

    async def metrics(self) -> dict[str, float]:
        """Every sample of /metrics by its name with labels."""
        async with aiohttp.ClientSession() as http, http.get(f"{self.metrics_url}/metrics") as answer:
            lines = (await answer.text()).splitlines()
        samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in samples}


@asynccontextmanager
async def starting_worker(
    environment: Mapping[str, str], snapshots: Path, log: Path, clock: str = "log", spec: str = SPEC.name
) -> AsyncIterator[Worker]:
    """A worker just started; killed at the end when it still runs."""
    port = free_port()
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "stream", "worker", "--spec", spec, "--snapshots", str(snapshots),
            "--clock", clock, "--metrics-port", str(port),
            env={**environment, "OMP_NUM_THREADS": "1"}, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        yield Worker(process, f"http://127.0.0.1:{port}", log)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@asynccontextmanager
async def worker(
    environment: Mapping[str, str], snapshots: Path, log: Path, clock: str = "log", spec: str = SPEC.name
) -> AsyncIterator[Worker]:
    """A worker, ready; killed at the end when it still runs."""
    async with starting_worker(environment, snapshots, log, clock, spec) as running:

        async def ready() -> bool:
            return await running.health() == 200

        await until(ready, "the worker is ready", START_PATIENCE_S)
        yield running


def said(log: Path) -> str:
    """What a worker logged."""
    return log.read_text()


async def until(found: Callable[[], Any], what: str, patience_s: float = 40.0) -> Any:
    """Ask again until the answer is true; AssertionError naming ``what`` after ``patience_s``."""
    deadline = asyncio.get_running_loop().time() + patience_s
    while not (answer := await found()):
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"waited {patience_s} s without success until {what}")
        await asyncio.sleep(0.05)
    return answer


async def values(broker: Broker, topic: str, partitions: int = 1) -> list[bytes]:
    """All record values of a topic, partition by partition."""
    async with LogReader(broker) as log:
        return [record.value for p in range(partitions) async for record in log.read(topic, p)]
