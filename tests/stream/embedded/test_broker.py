"""The embedded broker as a child process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition  # type: ignore[import-untyped]

from stream.embedded.broker import EmbeddedBroker
from stream.embedded.process import ChildServer, ServerStartError, port_is_free
from stream.kafka.admin import ensure_topics
from stream.records.topics import SERVED, topic_table

PARENT = """
import asyncio, sys, time
from stream.embedded.broker import EmbeddedBroker
broker = EmbeddedBroker()
print(asyncio.run(broker.start()), broker.pid, flush=True)
time.sleep(600)
"""


def is_alive(pid: int) -> bool:
    """Whether a process runs under this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def test_records_come_back_as_they_were_sent() -> None:
    """Key, value, headers, time and a record of 3 MB survive the way through the broker."""
    async with EmbeddedBroker() as broker:
        await ensure_topics(broker.bootstrap, topic_table(2))
        value = os.urandom(3_000_000)
        async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap, max_request_size=4_000_000) as producer:
            await producer.send_and_wait(
                SERVED, value, key=b"user", partition=1, timestamp_ms=1_700_000_000_123, headers=[("type", b"x")]
            )
        async with AIOKafkaConsumer(bootstrap_servers=broker.bootstrap, fetch_max_wait_ms=20) as consumer:
            consumer.assign([TopicPartition(SERVED, 1)])
            await consumer.seek_to_beginning()
            record = await consumer.getone()
    assert (record.key, record.value, record.timestamp) == (b"user", value, 1_700_000_000_123)
    assert tuple(record.headers) == (("type", b"x"),)


async def test_stop_frees_port_process_and_folder() -> None:
    """After the block nothing of the broker is left, and a second stop does nothing."""
    async with EmbeddedBroker() as broker:
        pid, port = broker.pid, int(broker.bootstrap.rpartition(":")[2])
        folder = broker.data_dir
        assert is_alive(pid)
        assert folder.is_dir()
    assert not is_alive(pid)
    assert port_is_free(port)
    assert not folder.exists()
    await broker.stop()


async def test_a_port_in_use_is_an_error_that_names_it(tmp_path: Path) -> None:
    """Nothing is started on a port that somebody else holds."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(ServerStartError, match=rf"port {port} on 127.0.0.1 is in use.*KAFKA_BOOTSTRAP_SERVERS"):
            await EmbeddedBroker(port=port, data_dir=tmp_path).start()


async def test_a_server_that_dies_at_its_start_quotes_its_log(tmp_path: Path) -> None:
    """The error holds the exit status and what the server said last."""

    async def never() -> bool:
        return False

    server = ChildServer("the test server", tmp_path / "server.log")
    with pytest.raises(ServerStartError, match=r"(?s)the test server exited with status 3.*out of luck"):
        await server.start(["sh", "-c", "echo out of luck; exit 3"], never, timeout_s=20)


async def test_a_server_that_never_gets_ready_is_stopped(tmp_path: Path) -> None:
    """The error names the time, and the process is gone."""

    async def never() -> bool:
        return False

    server = ChildServer("the test server", tmp_path / "server.log")
    with pytest.raises(ServerStartError, match=r"not ready within 0\.3 s"):
        await server.start(["sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 60"], never, timeout_s=0.3)
    assert not is_alive(int((tmp_path / "pid").read_text()))


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_the_broker_dies_with_a_killed_parent(tmp_path: Path) -> None:
    """SIGKILL of the program that started it leaves no broker behind."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # a killed parent cannot remove its temporary folder
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    with parent.stdout:
        pid = int(parent.stdout.readline().split()[1])
    assert is_alive(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 20
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(pid)
