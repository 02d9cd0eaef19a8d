"""What is missing on this machine, and the fix: each check looks at the real thing and changes nothing that lasts."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import BusyLoadingError

from stream.embedded.broker import EmbeddedBroker, broker_program
from stream.embedded.process import ServerStartError, port_is_free
from stream.embedded.redis import EmbeddedRedis, eviction_policy, ping_fault, redis_program
from stream.kafka.admin import BrokerUnreachableError, check_topics, ensure_topics
from stream.kafka.client_options import kafka_client_options
from stream.servers.settings import StreamSettings, redis_client_options, without_password

PYTHONS = ((3, 11), (3, 14))  # at least, below
PACKAGES = (
    *("aiohttp", "aiokafka", "cramjam", "faust", "fsspec", "hiredis", "msgspec", "numba", "numpy", "orjson"),
    *("prometheus_client", "pyarrow", "pydantic_settings", "redis", "rich", "river", "safetensors", "structlog"),
    *("torch", "typer", "xxhash"),
)
SERVING_PORT = 8080


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at: what was found and, unless it is well, what to do."""

    name: str
    ok: bool
    found: str
    fix: str = ""


def check_python(version: tuple[int, int] = sys.version_info[:2]) -> Check:
    """Whether the interpreter is one that every dependency supports."""
    low, high = PYTHONS
    found = f"{version[0]}.{version[1]}"
    fix = f"use Python {low[0]}.{low[1]} to {high[0]}.{high[1] - 1}: make install PYTHON=python3.12"
    return Check("python", low <= version < high, found, fix)


def check_packages(names: Sequence[str] = PACKAGES) -> Check:
    """Whether every needed package imports."""
    broken = []
    for name in names:
        try:
            importlib.import_module(name)
        except (ImportError, OSError) as error:  # OSError: a shared library of it is missing
            broken.append(f"{name} ({error})")
    found = "; ".join(broken) or f"all {len(names)} import"
    return Check("packages", not broken, found, "install them: make install")


def _program(name: str, path: str, *arguments: str) -> Check:
    """Whether the program at `path` runs."""
    fix = f"{path} does not run on this machine: set the address of a running server instead"
    try:
        run = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check(name, False, str(error), fix)
    text = (run.stdout or run.stderr).strip().splitlines()
    return Check(name, run.returncode == 0, text[0] if text else path, fix)


def check_broker_program() -> Check:
    """Whether the embedded broker's executable is there and runs."""
    try:
        return _program("embedded broker program", broker_program(), "--version")
    except ServerStartError as error:
        return Check("embedded broker program", False, "none", str(error))


def check_redis_program() -> Check:
    """Whether a redis-server is there and runs."""
    try:
        return _program("redis-server program", redis_program(), "--version")
    except ServerStartError as error:
        return Check("redis-server program", False, "none", str(error))


async def check_broker(settings: StreamSettings) -> list[Check]:
    """Whether a broker answers and its topics equal the table; the embedded one is started and stopped for it."""
    if settings.kafka_bootstrap_servers is not None:
        return await _broker_checks(settings.kafka_bootstrap_servers, settings)
    broker = EmbeddedBroker()
    try:
        bootstrap = await broker.start()
        await ensure_topics(bootstrap, settings.topics())
        return await _broker_checks(bootstrap, settings)
    except ServerStartError as error:
        return [Check("broker", False, "the embedded one does not start", str(error))]
    finally:
        await broker.stop()


async def _broker_checks(bootstrap: str, settings: StreamSettings) -> list[Check]:
    kind = "given" if settings.kafka_bootstrap_servers else "embedded, started for this check"
    try:
        differences = await check_topics(bootstrap, settings.topics(), kafka_client_options(settings), timeout_s=5.0)
    except BrokerUnreachableError as error:
        return [Check("broker", False, f"nothing answers at {bootstrap}", str(error))]
    found = "; ".join(map(str, differences)) or f"all {len(settings.topics())} as in the table"
    fix = "python -m stream topics --create makes what is missing; other differences: kafka-configs.sh, kafka-topics.sh"
    return [Check("broker", True, f"{bootstrap} ({kind})"), Check("topics", not differences, found, fix)]


async def check_redis(settings: StreamSettings) -> list[Check]:
    """Whether Redis answers a PING and evicts nothing; the embedded one is started and stopped for it."""
    if settings.redis_url is not None:
        url, options = without_password(settings.redis_url), redis_client_options(settings)
        fix = f"no Redis answered PING at {url}: check REDIS_URL and its user, or unset it to use the embedded one"
        fault = await ping_fault(settings.redis_url, options)
        if fault is not None:
            loads = "wait: it reads its data from the disk" if isinstance(fault, BusyLoadingError) else fix
            return [Check("redis", False, f"{url} (given; {type(fault).__name__}: {fault})", loads)]
        return [Check("redis", True, f"{url} (given)"), await _check_eviction(settings.redis_url, options)]
    server = EmbeddedRedis()
    try:
        return [Check("redis", True, f"{await server.start()} (embedded, started for this check)")]
    except ServerStartError as error:
        return [Check("redis", False, "the embedded one does not start", str(error))]
    finally:
        await server.stop()


async def _check_eviction(url: str, options: Mapping[str, Any]) -> Check:
    """Whether Redis keeps what it was given: states that are evicted are lost until somebody empties it."""
    policy = await eviction_policy(url, options)
    if policy is None:
        return Check("redis eviction", True, "not known; its maxmemory-policy must be noeviction")
    fix = "set maxmemory-policy noeviction: evicted session features and clicks are missing without a trace"
    return Check("redis eviction", policy == "noeviction", policy, fix)


def check_port(port: int) -> Check:
    """Whether serving could listen on `port`."""
    free = port_is_free(port)
    fix = (
        f"a program listens there: if it is serving (curl localhost:{port}/readyz answers), all is well; else stop it, "
        "or give serving another --port"
    )
    return Check(f"port {port}", free, "free" if free else "in use", fix)


async def run_checks(settings: StreamSettings, ports: Sequence[int] = (SERVING_PORT,)) -> list[Check]:
    """Run every check that these settings need, in the order in which faults should be mended."""
    checks = [check_python(), check_packages()]
    if settings.kafka_bootstrap_servers is None:
        checks.append(check_broker_program())
    if settings.redis_url is None:
        checks.append(check_redis_program())
    checks += await check_broker(settings)
    checks += await check_redis(settings)
    return checks + [check_port(port) for port in ports]
