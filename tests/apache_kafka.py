"""One node of a real Apache Kafka (KRaft) on loopback, from an unpacked distribution: for tests, never for production.

Unlike the embedded broker it has transactions, compaction, retention and a log that survives a kill.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from stream.embedded.process import LOOPBACK, ServerStartError, accepts_connections, claim_port, free_port
from stream.embedded.server import LocalServer
from stream.kafka.admin import answers_metadata

START_TIMEOUT_S = 60.0  # 3 s on an idle machine, more when every core is busy
_CLUSTER_ID = "bWlsbHN0cmVhbS10ZXN0cw"  # any 16 bytes in URL-safe base64
_LOGGING = """Configuration:
  Appenders:
    Console: {name: stdout, PatternLayout: {pattern: "%d %p %c: %m%n"}}
  Loggers:
    Root: {level: WARN, AppenderRef: {ref: stdout}}
"""
# One node: every internal topic has one replica; groups and fencing react within seconds instead of minutes.
_PROPERTIES = """process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller_port}
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=PLAINTEXT://{host}:{advertised_port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={log_dir}
auto.create.topics.enable=false
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
"""


def kafka_jars(home: Path) -> Path:
    """Return the `libs` folder of the distribution at `home`. Raises ServerStartError when there is none."""
    libs = home / "libs"
    if not any(libs.glob("kafka_*.jar")):
        raise ServerStartError(
            f"KAFKA_HOME={home} holds no libs/kafka_*.jar, so it is no unpacked Apache Kafka and no broker can be "
            "started from it. Point KAFKA_HOME at the folder that the Kafka archive unpacks to."
        )
    return libs


def java_program() -> str:
    """Return the path of `java`. Raises ServerStartError when there is none on the PATH."""
    java = shutil.which("java")
    if java is None:
        raise ServerStartError(
            "no java on the PATH: Apache Kafka cannot be started. Install a Java runtime 17 or newer "
            "(apt-get install openjdk-17-jre-headless)."
        )
    return java


class ApacheKafka(LocalServer):
    """A one-node Kafka: `async with ApacheKafka(home) as kafka: kafka.bootstrap`.

    A second start on the same `data_dir` finds the data of the first, after a kill too.

    Parameters
    ----------
    home : the unpacked distribution.
    port : where it listens in plain text, whatever else `properties` make it listen to; None takes a free one.
    data_dir : its log and settings; None takes a temporary one.
    heap_mb : the most that Java takes.
    properties : further lines of its settings, which go before those written here.
    advertised_port : where it tells clients to connect, as to a proxy before it; None: where it listens.
    """

    def __init__(
        self,
        home: Path,
        port: int | None = None,
        data_dir: Path | None = None,
        heap_mb: int = 512,
        *,
        properties: Mapping[str, str] | None = None,
        advertised_port: int | None = None,
    ) -> None:
        super().__init__("Apache Kafka", port, data_dir, grace_s=15.0)
        self._home = home
        self._heap_mb = heap_mb
        self._properties = dict(properties or {})
        self._advertised_port = advertised_port

    @property
    def bootstrap(self) -> str:
        """Where clients connect, host:port."""
        return self.address

    async def _launch(self) -> str:
        libs, java = kafka_jars(self._home), java_program()
        port = claim_port(self._asked_port, self._name, "choose another port")
        bootstrap = f"{LOOPBACK}:{port}"
        config = self._write_config(port)
        command = [java, "-Xms128m", f"-Xmx{self._heap_mb}m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"]
        command += [f"-Dlog4j2.configurationFile={self.data_dir / 'log4j2.yaml'}", "-cp", f"{libs}/*"]
        if not (self.data_dir / "log" / "meta.properties").exists():
            await self._format(command, config)

        async def ready() -> bool:
            return await accepts_connections(port) and await answers_metadata(bootstrap)

        await self._server.start([*command, "kafka.Kafka", str(config)], ready, timeout_s=START_TIMEOUT_S)
        return bootstrap

    def _write_config(self, port: int) -> Path:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        (self.data_dir / "log4j2.yaml").write_text(_LOGGING)
        config = self.data_dir / "server.properties"
        settings = _PROPERTIES.format(
            host=LOOPBACK,
            port=port,
            advertised_port=self._advertised_port or port,
            controller_port=free_port(),
            log_dir=self.data_dir / "log",
        )
        config.write_text(settings + "".join(f"{name}={value}\n" for name, value in self._properties.items()))
        return config

    async def _format(self, command: list[str], config: Path) -> None:
        tool = [*command, "kafka.tools.StorageTool", "format", "-t", _CLUSTER_ID, "-c", str(config)]
        run = await asyncio.to_thread(subprocess.run, tool, capture_output=True, text=True, timeout=START_TIMEOUT_S)
        if run.returncode:
            raise ServerStartError(
                f"Apache Kafka could not format {self.data_dir} (status {run.returncode}), so it has no storage to "
                f"start on. Is java 17 or newer? It said:\n{(run.stdout + run.stderr)[-2000:].strip()}"
            )

    async def kill(self) -> None:
        """Kill it at once (SIGKILL), as a crash would."""
        await self._server.stop(grace_s=0.0)
