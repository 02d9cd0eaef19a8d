"""Users, passwords and certificates of the broker and of Redis: used as given, refused when wrong, shown to nobody."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr, ValidationError
from redis.asyncio import Redis
from typer.testing import CliRunner

from learners.features.encode import Encoder
from serving.features import SessionFeatures
from serving.metrics import ServingMetrics
from stream.__main__ import app
from stream.agents.agent import Agent
from stream.agents.faust_source import credentials
from stream.agents.inbox import Inbox
from stream.agents.source import SourceKind
from stream.embedded.process import LOOPBACK, ChildServer, accepts_connections, free_port
from stream.embedded.redis import answers_ping, redis_program
from stream.kafka.admin import BrokerUnreachableError, ensure_topics
from stream.kafka.broker import find_broker
from stream.kafka.client_options import kafka_client_options
from stream.kafka.input_record import InputRecord, TopicPartition
from stream.kafka.log_reader import LogReader
from stream.kafka.log_writer import Outgoing, shared_writer
from stream.metrics import WorkerMetrics
from stream.records.topics import EXAMPLES
from stream.servers.settings import StreamSettings, redis_client_options, without_password
from stream.worker.servers import redis_client
from tests.apache_kafka import ApacheKafka, java_program
from tests.brokers import skip_or_fail
from tests.stream.pipeline import SPEC

USER, PASSWORD, KEY_PASSWORD = "worker", "hunter2-geheim", "schluessel-geheim"
SECRETS = (PASSWORD, KEY_PASSWORD, "hunter2%2Dgeheim", "wrong-geheim")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the machine reaches these tests."""
    for name in [name for name in os.environ if name.startswith(("KAFKA_S", "KAFKA_B", "REDIS_"))]:
        monkeypatch.delenv(name)


class Lines(logging.Handler):
    """Keeps every line as text."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Format it, with its exception."""
        self.lines.append(self.format(record))


@pytest.fixture
def output(capsys: pytest.CaptureFixture[str]) -> Iterator[list[str]]:
    """What a test says itself; at its end neither that nor any log, however detailed, may hold a secret."""
    root, kept, said = logging.getLogger(), Lines(), list[str]()
    level = root.level
    root.addHandler(kept)
    root.setLevel(logging.DEBUG)
    yield said
    root.setLevel(level)
    root.removeHandler(kept)
    text = "\n".join([*said, *kept.lines, *capsys.readouterr()])
    assert said or kept.lines
    assert [secret for secret in SECRETS if secret in text] == []


# ------------------------------------------------------------------------------------------------------------- settings


@dataclass(frozen=True)
class Certificates:
    """A throw-away authority and what it signed: a server's and a client's certificate, each with its key."""

    folder: Path

    def __getattr__(self, name: str) -> Path:
        """The file of that name: ``ca``, ``server``, ``client`` with ``_pem``, ``_key`` or ``_encrypted``."""
        return self.folder / name.replace("_", ".")

    def kafka(self, **more: Any) -> dict[str, Any]:
        """The settings of a client that has them all."""
        files = {"cafile": self.ca_pem, "certfile": self.client_pem, "keyfile": self.client_encrypted}
        named = {f"kafka_ssl_{name}": path for name, path in files.items()}
        return {"kafka_security_protocol": "SSL", "kafka_ssl_keyfile_password": KEY_PASSWORD, **named, **more}

    def redis(self, **more: Any) -> dict[str, Any]:
        """The same for Redis."""
        files = {"cafile": self.ca_pem, "certfile": self.client_pem, "keyfile": self.client_encrypted}
        named = {f"redis_ssl_{name}": path for name, path in files.items()}
        return {"redis_url": f"rediss://{LOOPBACK}:1/0", "redis_ssl_keyfile_password": KEY_PASSWORD, **named, **more}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Made for each session, good for a day."""
    folder = tmp_path_factory.mktemp("certificates")
    (folder / "extensions").write_text(f"subjectAltName=IP:{LOOPBACK}\nauthorityKeyIdentifier=keyid\n")
    key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    commands = [f"req -x509 {key} -keyout ca.key -out ca.pem -days 1 -subj /CN=authority"]
    for who in ("server", "client"):
        commands += [
            f"req {key} -keyout {who}.key -out {who}.request -subj /CN={who}",
            f"x509 -req -in {who}.request -CA ca.pem -CAkey ca.key -CAcreateserial -days 1 -extfile extensions "
            f"-out {who}.pem",
        ]
    commands.append(f"pkcs8 -topk8 -in client.key -out client.encrypted -passout pass:{KEY_PASSWORD}")
    for command in commands:
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
    (folder / "server.chain").write_text(
        "".join((folder / f"{one}").read_text() for one in ("server.key", "server.pem"))
    )
    return Certificates(folder)


def test_everything_set_reaches_the_clients_and_no_text(
    monkeypatch: pytest.MonkeyPatch, certificates: Certificates, output: list[str]
) -> None:
    """Both servers' options hold it; settings as text do not."""
    variables = certificates.kafka(kafka_security_protocol="SASL_SSL") | {
        "kafka_sasl_username": USER,
        "kafka_sasl_password": PASSWORD,
        "redis_url": "rediss://localhost:1/0",
        "redis_username": USER,
        "redis_password": PASSWORD,
        "redis_ssl_cafile": certificates.ca_pem,
        "redis_ssl_certfile": certificates.client_pem,
        "redis_ssl_keyfile": certificates.client_encrypted,
        "redis_ssl_keyfile_password": KEY_PASSWORD,
    }
    for name, value in variables.items():
        monkeypatch.setenv(name.upper(), str(value))
    settings = StreamSettings()
    kafka, redis = kafka_client_options(settings), redis_client_options(settings)
    assert (kafka["sasl_plain_username"], kafka["sasl_plain_password"]) == (USER, PASSWORD)
    assert kafka["ssl_context"].verify_mode is ssl.CERT_REQUIRED
    assert kafka["ssl_context"].check_hostname
    assert redis == {
        "username": USER,
        "password": PASSWORD,
        "ssl_cert_reqs": "required",
        "ssl_check_hostname": True,
        "ssl_ca_certs": str(certificates.ca_pem),
        "ssl_certfile": str(certificates.client_pem),
        "ssl_keyfile": str(certificates.client_encrypted),
        "ssl_password": KEY_PASSWORD,
    }
    output += [repr(settings), str(settings), f"{settings!r:.5000}", str(settings.kafka_tls), repr(settings.redis_tls)]


def test_without_security_nothing_is_passed() -> None:
    """A plain Redis gets a plain client."""
    assert redis_client_options(StreamSettings(redis_url="redis://localhost:1/0")) == {}
    assert redis_client_options(StreamSettings()) == {}


def test_the_users_of_the_url_go_before_those_of_the_variables() -> None:
    """Each of user and password where the URL holds it."""
    user: dict[str, Any] = {"redis_username": USER, "redis_password": PASSWORD}
    settings = StreamSettings(redis_url="redis://other:from-url@localhost:1/0", **user)
    client = Redis.from_url(settings.redis_url or "", **redis_client_options(settings))
    kept = client.connection_pool.connection_kwargs
    assert (kept["username"], kept["password"]) == ("other", "from-url")


@pytest.mark.parametrize("part", ["cafile", "certfile", "keyfile"])
def test_a_file_that_is_missing_is_named_by_its_variable(
    part: str, certificates: Certificates, output: list[str]
) -> None:
    """With its path and what would not work."""
    missing = certificates.folder / "missing.pem"
    for server in ("kafka", "redis"):
        given = getattr(certificates, server)() | {f"{server}_ssl_{part}": missing, f"{server}_password": PASSWORD}
        with pytest.raises(
            ValidationError, match=rf"{server.upper()}_SSL_{part.upper()}={missing} cannot be"
        ) as caught:
            StreamSettings(**given)
        output += [str(caught.value), repr(caught.value)]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"kafka_ssl_keyfile_password": "wrong-geheim"}, "KAFKA_SSL_CERTFILE=.*cannot be used together.*_PASSWORD"),
        ({"kafka_ssl_keyfile_password": None}, "KAFKA_SSL_KEYFILE=.*is encrypted.*Set KAFKA_SSL_KEYFILE_PASSWORD"),
        ({"kafka_ssl_certfile": None}, "KAFKA_SSL_KEYFILE=.*belongs to no certificate.*KAFKA_SSL_CERTFILE"),
        ({"kafka_security_protocol": "PLAINTEXT"}, "KAFKA_SECURITY_PROTOCOL=PLAINTEXT: .*clear text"),
        ({"kafka_ssl_keyfile": "server_key"}, "KAFKA_SSL_KEYFILE=.*cannot be used together .*key values mismatch"),
        ({"kafka_ssl_cafile": "client_key"}, "KAFKA_SSL_CAFILE=.*holds no certificates"),
    ],
    ids=["wrong password", "no password", "key alone", "in plain text", "another's key", "no certificate"],
)
def test_files_that_do_not_fit_are_refused_with_the_remedy(
    changed: dict[str, Any], said: str, certificates: Certificates, output: list[str]
) -> None:
    """At the start, before any connection."""
    changed = {name: getattr(certificates, v) if str(v).endswith("_key") else v for name, v in changed.items()}
    with pytest.raises(ValidationError, match=said) as caught:
        StreamSettings(**certificates.kafka(kafka_sasl_password=PASSWORD, **changed))
    output += [str(caught.value), repr(caught.value)]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"redis_url": f"redis://u:{PASSWORD}/x@h:1/0"}, "REDIS_URL .not shown.*%2F"),
        ({"redis_url": f"redis://u:1/{PASSWORD}@h:1/0"}, "REDIS_URL .not shown.*%2F"),
        ({"redis_url": f"http://u:{PASSWORD}@h:1/0"}, "REDIS_URL .not shown.*rediss://"),
        ({"redis_url": f"u:{PASSWORD}@h:1"}, "REDIS_URL .not shown"),
        ({"kafka_bootstrap_servers": f"kafka://u:{PASSWORD}@h:1"}, "KAFKA_BOOTSTRAP_SERVERS: .not shown"),
        ({"kafka_bootstrap_servers": f"u:{PASSWORD}@h:1"}, "KAFKA_BOOTSTRAP_SERVERS: .not shown"),
        ({"redis_password": PASSWORD}, "REDIS_URL is not: the embedded Redis knows no users"),
        ({"redis_url": f"redis://:{PASSWORD}@h:1/0", "redis_ssl_cafile": "/x"}, "does not begin with rediss://"),
        ({"kafka_sasl_password": PASSWORD, "partitions": 0}, "greater than or equal to 1"),
        ({"kafka_sasl_password": PASSWORD, "kafka_session_timeout_s": 0.5}, "greater than or equal to 1"),
    ],
)
def test_what_is_wrong_is_told_without_the_secret_beside_it(
    given: dict[str, Any], said: str, output: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the error, whose input pydantic would quote, and by the programs."""
    with pytest.raises(ValidationError, match=said) as caught:
        StreamSettings(**given)
    output += [str(caught.value), repr(caught.value)]
    monkeypatch.setattr("stream.cli.worker.log_to_stderr", lambda: None)  # it would keep this test's streams
    for name, value in given.items():
        monkeypatch.setenv({"partitions": "MILLSTREAM_PARTITIONS"}.get(name, name.upper()), str(value))
    for arguments in (["worker", "--snapshots", "/nowhere"], ["topics"], ["doctor"]):
        run = CliRunner().invoke(app, arguments)
        assert run.exit_code == 2
        output += [run.output, run.stderr]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"redis://u:{PASSWORD}@h:6379/0", "redis://u:***@h:6379/0"),
        ("rediss://:hunter2%2Dgeheim@h", "rediss://:***@h"),
        (f"redis://u:{PASSWORD}@x@h:1", "redis://u:***@h:1"),
        (f"redis://h:6379/0?password={PASSWORD}", "redis://h:6379/0?password=***"),
        (f"redis://h/0?db=2&p%61ssword={PASSWORD}&protocol=3", "redis://h/0?db=2&p%61ssword=***&protocol=3"),
        (f"rediss://u:{PASSWORD}@h/0?ssl_password={PASSWORD}", "rediss://u:***@h/0?ssl_password=***"),
        (f"redis://{PASSWORD}@u:{PASSWORD}@h", f"redis://{PASSWORD}@u:***@h"),
        ("redis://h:6379/0?db=2", "redis://h:6379/0?db=2"),
        ("redis://u@h:6379/0", "redis://u@h:6379/0"),
    ],
)
def test_passwords_are_hidden_wherever_a_url_holds_them(url: str, shown: str) -> None:
    """Before the host, in the query, percent-encoded; all else stays."""
    assert without_password(url) == shown


async def test_the_session_timeout_is_the_brokers_unless_it_is_set() -> None:
    """The given one goes before the defaults."""
    settings = StreamSettings(kafka_bootstrap_servers=f"{LOOPBACK}:1", kafka_session_timeout_s=45)
    assert settings.kafka_session_timeout_s == 45
    with pytest.raises(ValidationError):
        StreamSettings(kafka_session_timeout_s=float("inf"))


# --------------------------------------------------------------------------------------------------------------- broker


@dataclass(frozen=True)
class SecuredKafka:
    """A broker that listens in four ways; `ways` are the settings with which each of the other three lets one in."""

    ways: Mapping[str, dict[str, Any]]

    def settings(self, way: str, **changed: Any) -> StreamSettings:
        """Settings with topics of their own; ``changed`` replaces some."""
        prefix = f"s{uuid.uuid4().hex[:10]}."
        return StreamSettings(**{"partitions": 1, "topic_prefix": prefix, **self.ways[way], **changed})


@pytest.fixture(scope="module")
async def secured_kafka(certificates: Certificates) -> AsyncIterator[SecuredKafka]:
    """One node: plain text for itself, PLAIN over TCP, certificates both ways, SCRAM over TLS."""
    if not (home := os.environ.get("KAFKA_HOME")):
        skip_or_fail("KAFKA_HOME is not set: only an Apache Kafka started here can be given users and certificates")
        return
    ports = {name: free_port() for name in ("PLAINTEXT", "CONTROLLER", "SASL", "TLS", "BOTH")}
    at = {name: f"{LOOPBACK}:{port}" for name, port in ports.items()}
    listeners = ",".join(f"{name}://{address}" for name, address in at.items())
    module = "org.apache.kafka.common.security"
    properties = {
        "listeners": listeners,
        "advertised.listeners": ",".join(one for one in listeners.split(",") if not one.startswith("CONTROLLER")),
        "controller.quorum.voters": f"1@{at['CONTROLLER']}",
        "listener.security.protocol.map": (
            "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_PLAINTEXT,TLS:SSL,BOTH:SASL_SSL"
        ),
        "inter.broker.listener.name": "PLAINTEXT",
        "listener.name.sasl.sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl.plain.sasl.jaas.config": (
            f'{module}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
        ),
        "listener.name.both.sasl.enabled.mechanisms": "SCRAM-SHA-256",
        "listener.name.both.scram-sha-256.sasl.jaas.config": f"{module}.scram.ScramLoginModule required;",
        "listener.name.tls.ssl.client.auth": "required",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(certificates.server_chain),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(certificates.ca_pem),
    }
    user = {"kafka_sasl_username": USER, "kafka_sasl_password": PASSWORD}
    ways: dict[str, dict[str, Any]] = {
        "SASL": {"kafka_security_protocol": "SASL_PLAINTEXT", **user},
        "TLS": certificates.kafka(),
        "BOTH": {
            "kafka_security_protocol": "SASL_SSL",
            "kafka_sasl_mechanism": "SCRAM-SHA-256",
            "kafka_ssl_cafile": certificates.ca_pem,
            **user,
        },
    }
    async with ApacheKafka(Path(home), port=ports["PLAINTEXT"], properties=properties) as kafka:
        await asyncio.to_thread(_add_scram_user, Path(home), kafka.bootstrap)
        yield SecuredKafka({name: {"kafka_bootstrap_servers": at[name], **way} for name, way in ways.items()})


def _add_scram_user(home: Path, bootstrap: str) -> None:
    tool = [java_program(), "-XX:TieredStopAtLevel=1", "-cp", f"{home}/libs/*", "kafka.admin.ConfigCommand"]
    what = ["--add-config", f"SCRAM-SHA-256=[iterations=4096,password={PASSWORD}]"]
    where = ["--bootstrap-server", bootstrap, "--entity-type", "users", "--entity-name", USER]
    subprocess.run([*tool, "--alter", *what, *where], check=True, capture_output=True)


class Taker:
    """A runner that keeps what it gets."""

    topics = (EXAMPLES,)

    def __init__(self) -> None:
        self.inbox = Inbox()
        self.taken: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def on_assigned(self, partitions: frozenset[int]) -> None:
        """Nothing."""

    async def work(self, records: Sequence[InputRecord]) -> None:
        """Keep the values."""
        for record in records:
            self.taken.put_nowait(record.value)

    async def log_cut(self, topic: str, partition: int, offset: int) -> None:
        """Nothing."""

    async def tick(self) -> None:
        """Nothing."""

    async def on_revoked(self) -> None:
        """Nothing."""

    def offsets_to_commit(self) -> Mapping[TopicPartition, int]:
        """Nothing."""
        return {}


@pytest.mark.e2e
@pytest.mark.parametrize("way", ["SASL", "TLS", "BOTH"])
async def test_who_may_enter_can_do_all_that_a_worker_does(
    way: str, secured_kafka: SecuredKafka, output: list[str]
) -> None:
    """Create topics, write, read, and read in a group, with either library and a long session; nothing is shown."""
    settings = secured_kafka.settings(way, kafka_session_timeout_s=45)
    await ensure_topics(settings.kafka_bootstrap_servers or "", settings.topics(), kafka_client_options(settings))
    broker = await find_broker(settings)
    assert broker.session_timeout_s == 45
    output += [repr(broker), str(broker), repr(credentials(broker.options))]
    async with shared_writer(broker) as writer:
        await writer.write([Outgoing(EXAMPLES, b"written", partition=0)])
    async with LogReader(broker) as log:
        assert [record.value async for record in log.read(EXAMPLES, 0)] == [b"written"]
    sources: tuple[SourceKind, ...] = ("faust", "aiokafka")
    for source in sources:
        runner, failures = Taker(), list[BaseException]()
        agent = Agent(source, broker, runner, failures.append, WorkerMetrics(CollectorRegistry()), source=source)
        await agent.start()
        async with asyncio.timeout(20):
            assert await runner.taken.get() == b"written"
        await agent.finish()
        await agent.leave()
        assert failures == []


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("way", "changed"),
    [
        ("SASL", {"kafka_sasl_password": "wrong-geheim"}),
        ("SASL", {"kafka_security_protocol": "PLAINTEXT"}),
        ("TLS", {"kafka_ssl_certfile": None, "kafka_ssl_keyfile": None}),
        ("TLS", {"kafka_ssl_cafile": None}),
        ("BOTH", {"kafka_sasl_password": "wrong-geheim"}),
        ("BOTH", {"kafka_sasl_mechanism": "PLAIN"}),
    ],
    ids=["wrong password", "no user", "no certificate", "another authority", "wrong SCRAM password", "no mechanism"],
)
async def test_who_may_not_enter_is_told_what_to_check_and_no_secret(
    way: str, changed: dict[str, Any], secured_kafka: SecuredKafka, output: list[str]
) -> None:
    """At once, and not after a timeout; by whatever asks the broker first."""
    settings = secured_kafka.settings(way, **changed)
    bootstrap = settings.kafka_bootstrap_servers or ""
    async with asyncio.timeout(5):
        with pytest.raises(BrokerUnreachableError, match=rf"at {bootstrap} .*KAFKA_SECURITY_PROTOCOL") as caught:
            await ensure_topics(bootstrap, settings.topics(), kafka_client_options(settings))
        output.append(str(caught.value))
        with pytest.raises(BrokerUnreachableError, match=rf"at {bootstrap} .*KAFKA_SECURITY_PROTOCOL") as caught:
            await find_broker(settings)
        output.append(str(caught.value))


# ---------------------------------------------------------------------------------------------------------------- Redis


@pytest.fixture(scope="module")
async def secured_redis(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The address of a Redis that knows two users: its own, by a password alone, and `USER`."""
    port, folder = free_port(), tmp_path_factory.mktemp("redis")
    server = ChildServer("Redis", folder / "server.log")
    argv = [redis_program(), "--port", str(port), "--bind", LOOPBACK, "--dir", str(folder), "--save", ""]
    argv += ["--requirepass", PASSWORD, "--user", USER, "on", f">{PASSWORD}", "~*", "&*", "+@all"]
    await server.start(argv, lambda: accepts_connections(port), timeout_s=20)
    yield f"{LOOPBACK}:{port}"
    await server.stop()


@asynccontextmanager
async def over_tls(address: str, certificates: Certificates) -> AsyncIterator[str]:
    """The address of a TLS front of a server, which asks for a certificate: redis-server may be built without TLS."""
    host, port = address.split(":")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates.ca_pem)
    context.load_cert_chain(certificates.server_pem, certificates.server_key)
    context.verify_mode = ssl.CERT_REQUIRED

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back_reader, back_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pipe(reader, back_writer), pipe(back_reader, writer), return_exceptions=True)

    server = await asyncio.start_server(serve, LOOPBACK, 0, ssl=context)
    async with server:
        yield "{}:{}".format(*server.sockets[0].getsockname())


async def enters(settings: StreamSettings) -> bool:
    """Whether all that talk to Redis get in; they must agree."""
    answers = [await answers_ping(settings.redis_url or "", redis_client_options(settings))]
    async with AsyncExitStack() as stack:
        features = SessionFeatures(
            settings.redis_url or "",
            Encoder(SPEC),
            1,
            ServingMetrics(),
            redis_options=redis_client_options(settings),
        )
        stack.push_async_callback(features.stop)
        for client in (redis_client(stack, settings), features.redis):
            try:
                answers.append(bool(await client.ping()))
            except Exception as error:  # noqa: BLE001 - whatever it is, it must not hold a secret
                logging.getLogger(__name__).warning("refused: %r from %r", error, client)
                answers.append(False)
    assert len(set(answers)) == 1
    return answers[0]


@pytest.mark.e2e
async def test_redis_lets_in_who_has_a_password(secured_redis: str, output: list[str]) -> None:
    """By the URL, by its query, or by the variables, which the URL goes before."""
    output.append("Redis")
    at = f"redis://{secured_redis}/0"
    apart: dict[str, Any] = {"redis_username": USER, "redis_password": PASSWORD}
    assert await enters(StreamSettings(redis_url=f"redis://{USER}:{PASSWORD}@{secured_redis}/0"))
    assert await enters(StreamSettings(redis_url=f"redis://:hunter2%2Dgeheim@{secured_redis}/0"))
    assert await enters(StreamSettings(redis_url=f"{at}?password={PASSWORD}"))
    assert await enters(StreamSettings(redis_url=at, redis_password=SecretStr(PASSWORD)))
    assert await enters(StreamSettings(redis_url=at, **apart))
    assert not await enters(StreamSettings(redis_url=at))
    assert not await enters(StreamSettings(redis_url=at, **{**apart, "redis_password": "wrong-geheim"}))
    assert not await enters(StreamSettings(redis_url=f"redis://{USER}:wrong-geheim@{secured_redis}/0", **apart))


@pytest.mark.e2e
async def test_redis_over_tls_verifies_both_ends(
    secured_redis: str, certificates: Certificates, output: list[str]
) -> None:
    """The server's certificate and name by the client, the client's by the server."""
    output.append("Redis")
    async with over_tls(secured_redis, certificates) as address:
        url, port = f"rediss://{USER}:{PASSWORD}@{address}/0", address.split(":")[1]
        for changed, welcome in (
            ({}, True),
            ({"redis_ssl_cafile": None}, False),
            ({"redis_url": f"rediss://{USER}:{PASSWORD}@localhost:{port}/0"}, False),  # the certificate is of 127.0.0.1
            ({"redis_ssl_certfile": None, "redis_ssl_keyfile": None}, False),
        ):
            given: dict[str, Any] = {"redis_url": url, **changed}
            assert await enters(StreamSettings(**certificates.redis(**given))) is welcome
        assert not await enters(StreamSettings(redis_url=f"redis://{USER}:{PASSWORD}@{address}/0"))
