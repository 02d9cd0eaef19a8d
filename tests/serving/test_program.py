"""`python -m serving` as a process: clear errors, and a clean stop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import pytest
from typer.testing import CliRunner

from learners.deepfm.model import DeepFM, DeepFMConfig
from learners.features.shape import ModelShape
from learners.features.spec import FeatureSpec, load_spec
from learners.snapshots.snapshot import Snapshot, write_snapshot
from serving.__main__ import app
from stream.embedded.process import free_port
from tests.brokers import TestTopics
from tests.learners.small_spec import SMALL
from tests.serving.trainer import Trainer

pytestmark = [pytest.mark.timeout(120), pytest.mark.e2e]
SMALL_MODEL = DeepFMConfig(dim=4, hidden=(8,))
NOWHERE = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1", "REDIS_URL": "redis://127.0.0.1:1/0"}


def snapshot_of(spec: FeatureSpec, root: Path) -> None:
    """An untrained model as a snapshot."""
    model = DeepFM(SMALL_MODEL, ModelShape.of(spec))
    write_snapshot(
        str(root),
        Snapshot(
            version=1,
            created_from="base",
            watermark_ms=1_700_000_000_000,
            newest_event_ms=1_700_000_000_000,
            shape=model.shape,
            config=SMALL_MODEL,
            state=model.state(),
        ),
    )


async def program(environment: dict[str, str], *arguments: str) -> asyncio.subprocess.Process:
    """The program with its stderr caught."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "serving", *arguments, env={**os.environ, **environment}, stderr=asyncio.subprocess.PIPE
    )


def run(arguments: Sequence[str], environment: dict[str, str]) -> tuple[int, str]:
    """Exit status and stderr of the program, run in this process."""
    found = CliRunner().invoke(app, [*arguments], env=environment)
    assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
    return found.exit_code, found.stderr


@pytest.fixture(autouse=True)
def no_log_setup(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program's logging would outlive the test."""
    monkeypatch.setattr("serving.__main__.log_to_stderr", lambda: None)


def test_what_cannot_be_served_is_bad_usage_with_its_remedy(
    kafka_topics: TestTopics, redis_url: str, tmp_path: Path
) -> None:
    """A port in use, no snapshot, a snapshot of another spec, an unknown spec or clock, and no broker to talk to."""
    environment = kafka_topics.environment(redis_url)
    empty, foreign = tmp_path / "empty", tmp_path / "foreign"
    Trainer().snapshot(foreign)
    common = ["--spec", "marketplace", "--snapshots", str(empty), "--port", "0"]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        cases = [
            (2, [*common, "--port", port], environment, [f"port {port}", "in use", "--port"]),
            (2, common, environment, [str(empty), "python -m learners base"]),
            (2, [*common, "--snapshots", str(foreign)], environment, [load_spec("marketplace").hash, SMALL.hash]),
            (2, [*common, "--spec", "nowhere"], environment, ["nowhere", "marketplace"]),
            (2, common[2:], environment | {"MILLSTREAM_SPEC": "elsewhere"}, ["elsewhere", "marketplace"]),
            (2, [*common, "--clock", "sundial"], environment, ["sundial", "wall"]),
            (2, common, {"KAFKA_BOOTSTRAP_SERVERS": ""}, ["KAFKA_BOOTSTRAP_SERVERS is not set"]),
            (2, common, environment | {"MILLSTREAM_HEARTBEAT_S": "often"}, ["heartbeat_s"]),
            (1, common, NOWHERE, ["127.0.0.1:1", "KAFKA_BOOTSTRAP_SERVERS"]),
        ]
        for status, arguments, variables, parts in cases:
            found, stderr = run(arguments, variables)
            assert found == status, stderr
            assert all(part in stderr for part in parts), (parts, stderr)


async def test_sigterm_stops_it_within_ten_seconds(kafka_topics: TestTopics, redis_url: str, tmp_path: Path) -> None:
    """It answers, then a SIGTERM ends it with status 0."""
    snapshot_of(load_spec("marketplace"), tmp_path)
    port = free_port()
    process = await program(
        kafka_topics.environment(redis_url),
        *("--spec", "marketplace", "--snapshots", str(tmp_path), "--port", str(port), "--clock", "log"),
    )
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
            await ready(http, process)
            body = {"ts_ms": 1_700_000_000_000, "user": {"user_id": 1}, "ads": [{"ad_id": 1}, {"ad_id": 2, "bid": 3}]}
            async with http.post("/v1/rank", json=body) as answer:
                assert answer.status == 200, await answer.text()
                assert len((await answer.json())["ranked"]) == 2
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):  # the promise under test
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def ready(http: aiohttp.ClientSession, process: asyncio.subprocess.Process) -> None:
    """Wait until the program is ready; fail with its stderr when it ends instead."""
    while True:
        if process.returncode is not None and process.stderr is not None:
            pytest.fail((await process.stderr.read()).decode())
        try:
            async with http.get("/readyz") as answer:
                if answer.status == 200:
                    return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.05)
