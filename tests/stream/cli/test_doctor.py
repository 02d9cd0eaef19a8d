"""The doctor, and the program around it, against real servers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import orjson
import pytest
from typer.testing import CliRunner

from stream.__main__ import app
from stream.cli.doctor import check_packages, check_port, check_python, run_checks
from stream.embedded.process import free_port
from stream.embedded.redis import EmbeddedRedis
from stream.servers.settings import StreamSettings
from tests.brokers import TestTopics

BARE = ("KAFKA_BOOTSTRAP_SERVERS", "REDIS_URL", "KAFKA_HOME")


def run_stream(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m stream` with only the given server variables."""
    environment = {name: value for name, value in os.environ.items() if name not in BARE} | variables
    command = [sys.executable, "-m", "stream", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


async def test_a_whole_machine_passes(kafka_topics: TestTopics, redis_url: str) -> None:
    """Real servers and topics as in the table: every check is well."""
    checks = await run_checks(kafka_topics.settings(redis_url), ports=[free_port()])
    assert [check for check in checks if not check.ok] == []
    assert {"python", "packages", "broker", "topics", "redis"} <= {check.name for check in checks}


async def test_a_redis_that_evicts_is_named_with_the_setting(kafka_topics: TestTopics) -> None:
    """Whatever it throws away when its memory is full would be missing without a trace."""
    async with EmbeddedRedis(options=["--maxmemory-policy", "allkeys-lru"]) as server:
        checks = await run_checks(kafka_topics.settings(server.url), ports=[free_port()])
    (broken,) = (check for check in checks if not check.ok)
    assert (broken.name, broken.found) == ("redis eviction", "allkeys-lru")
    assert "noeviction" in broken.fix


async def test_missing_topics_are_named_with_the_command(kafka_topics: TestTopics, redis_url: str) -> None:
    """Another prefix has no topics yet: the check says which and how to make them."""
    settings = kafka_topics.settings(redis_url).model_copy(update={"topic_prefix": kafka_topics.prefix + "other."})
    broken = [check for check in await run_checks(settings, ports=[]) if not check.ok]
    assert [check.name for check in broken] == ["topics"]
    assert "other.ads.served.v1" in broken[0].found
    assert "topics --create" in broken[0].fix


async def test_servers_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broker and Redis that do not answer: both addresses, both variables, no password."""
    kafka, port = f"127.0.0.1:{free_port()}", free_port()
    settings = StreamSettings(kafka_bootstrap_servers=kafka, redis_url=f"redis://:hunter2@127.0.0.1:{port}/0")
    monkeypatch.delenv("KAFKA_HOME", raising=False)
    broken = {check.name: check for check in await run_checks(settings, ports=[]) if not check.ok}
    assert set(broken) == {"broker", "redis"}
    assert kafka in broken["broker"].found
    assert "KAFKA_BOOTSTRAP_SERVERS" in broken["broker"].fix
    assert "REDIS_URL" in broken["redis"].fix
    assert "hunter2" not in str(broken)


def test_a_port_in_use_is_broken() -> None:
    """A port in use is named; a free one is well."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        taken = check_port(holder.getsockname()[1])
    assert (taken.ok, taken.found) == (False, "in use")
    assert "a program listens there: if it is serving" in taken.fix
    assert check_port(free_port()).ok


@pytest.mark.parametrize(("version", "ok"), [((3, 10), False), ((3, 11), True), ((3, 13), True), ((3, 14), False)])
def test_supported_pythons(version: tuple[int, int], ok: bool) -> None:
    """3.11 to 3.13 are supported."""
    assert check_python(version).ok is ok


def test_a_missing_package_is_named() -> None:
    """The check names the package that does not import, not the others."""
    check = check_packages(("json", "no_such_package"))
    assert not check.ok
    assert check.found.startswith("no_such_package (")
    assert "make install" in check.fix


def test_the_program_passes_on_a_machine_with_nothing_but_the_packages() -> None:
    """Without a variable the embedded servers are tried, each check is one JSON object, and the exit status is 0."""
    run = run_stream("doctor", "--json", "--port", str(free_port()))
    checks = orjson.loads(run.stdout)
    assert run.returncode == 0, run.stdout
    assert {"embedded broker program", "redis-server program", "topics"} <= {check["name"] for check in checks}
    assert all(set(check) == {"name", "ok", "found", "fix"} for check in checks)


def test_the_program_fails_with_the_fix_when_something_is_missing() -> None:
    """Exit status 1, and a line with the fix below the line with the fault."""
    run = run_stream("doctor", KAFKA_BOOTSTRAP_SERVERS=f"127.0.0.1:{free_port()}")
    assert run.returncode == 1
    fault = run.stdout.index("MISSING broker")
    assert "fix:" in run.stdout[fault:]


def test_topics_check_and_create(kafka_topics: TestTopics, redis_url: str) -> None:
    """`topics --check` is 0 on equal topics, 1 on missing ones, 0 again after --create; a bad setting is 2."""
    environment = kafka_topics.environment(redis_url)
    variables = {name: environment[name] for name in ("KAFKA_BOOTSTRAP_SERVERS", "MILLSTREAM_PARTITIONS")}
    same = run_stream("topics", "--check", MILLSTREAM_TOPIC_PREFIX=kafka_topics.prefix, **variables)
    assert (same.returncode, same.stdout) == (0, "all 9 topics are as in the table\n")
    other = run_stream("topics", "--check", "--json", MILLSTREAM_TOPIC_PREFIX=kafka_topics.prefix + "x", **variables)
    assert (other.returncode, len(orjson.loads(other.stdout)["differences"])) == (1, 9)
    made = run_stream("topics", "--create", "--check", MILLSTREAM_TOPIC_PREFIX=kafka_topics.prefix + "x", **variables)
    assert made.returncode == 0
    assert made.stdout.count("created ") == 9
    for arguments, wrong in ((["topics", "--check"], {}), (["topics"], {"MILLSTREAM_PARTITIONS": "0"})):
        assert CliRunner().invoke(app, arguments, env=dict.fromkeys(BARE, "") | wrong).exit_code == 2
