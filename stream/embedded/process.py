"""A server that runs as our child on loopback: started, waited for, stopped, never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

LOOPBACK = "127.0.0.1"
_LOG_TAIL_BYTES = 2_000
_GUARD = Path(__file__).with_name("die_with_parent.py")


class ServerStartError(RuntimeError):
    """A child server did not come up; the message carries the end of its log."""


def free_port() -> int:
    """Return a TCP port on loopback that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def port_is_free(port: int) -> bool:
    """Return whether a server could listen on `port` of loopback now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free for a server
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def claim_port(port: int | None, server: str, remedy: str) -> int:
    """Return `port`, or a free one for None. Raises ServerStartError when the asked port is taken."""
    if port is None:
        return free_port()
    if not port_is_free(port):
        raise ServerStartError(
            f"port {port} on {LOOPBACK} is in use: {server} cannot listen there and nothing was started. "
            f"Stop the program that holds it, or {remedy}."
        )
    return port


async def accepts_connections(port: int) -> bool:
    """Return whether something on loopback accepts a TCP connection on `port`."""
    try:
        _, writer = await asyncio.open_connection(LOOPBACK, port)
    except OSError:
        return False
    writer.close()
    return True


class ChildServer:
    """One child process and its log file.

    It is a plain `subprocess.Popen`, so it is not bound to the event loop that started it. Start it from the main
    thread: Linux ties the parent-death signal to the thread that forked.
    """

    def __init__(self, name: str, log_path: Path) -> None:
        self.name = name
        self.log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id. Raises RuntimeError when it is not running."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started, so it has no process id: await start() first.")
        return self._process.pid

    async def start(
        self,
        argv: Sequence[str],
        ready: Callable[[], Awaitable[bool]],
        *,
        timeout_s: float,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start `argv` and return once `ready` answers True.

        Raises ServerStartError, with the end of the log, when it exits or is not ready within `timeout_s`.
        """
        self._process = self._spawn(argv, environment or {})
        try:
            await self._wait_until(ready, timeout_s)
        except BaseException:
            await self.stop(grace_s=0.0)
            raise

    def _spawn(self, argv: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-I", "-S", str(_GUARD), str(os.getpid()), *argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,  # Ctrl-C reaches us, not the server: we stop it after its clients
            )

    async def _wait_until(self, ready: Callable[[], Awaitable[bool]], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not await ready():
            status = None if self._process is None else self._process.poll()
            if status is not None:
                raise ServerStartError(f"{self.name} exited with status {status} at its start. {self.log_tail()}")
            if time.monotonic() > deadline:
                raise ServerStartError(
                    f"{self.name} was not ready within {timeout_s:g} s and was stopped. {self.log_tail()}"
                )
            await asyncio.sleep(0.02)

    async def stop(self, grace_s: float = 5.0) -> None:
        """Stop it: SIGTERM, and SIGKILL after `grace_s`. Does nothing when it does not run."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None and grace_s > 0:
            process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + grace_s
            while process.poll() is None and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
        if process.poll() is None:
            process.kill()
        process.wait()

    def log_tail(self) -> str:
        """Return a sentence that names the log file and quotes its end."""
        text = self.log_path.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
        return f"The end of its log {self.log_path}:\n{text or '(the log is empty)'}"
