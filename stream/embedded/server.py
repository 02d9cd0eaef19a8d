"""A server of our own on loopback, with its folder: the frame that the broker, Redis and Kafka share."""

from __future__ import annotations

import shutil
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

from stream.embedded.process import ChildServer


class LocalServer(ABC):
    """`async with Server() as server: server.address`; a subclass says how it is launched.

    Parameters
    ----------
    name : as errors call it. port : of loopback; None takes a free one.
    data_dir : its data and log; None takes a temporary one, gone after `stop`.
    grace_s : how long it may take to stop on SIGTERM.
    """

    def __init__(self, name: str, port: int | None, data_dir: Path | None, grace_s: float) -> None:
        self._name = name
        self._asked_port = port
        self._own_dir = data_dir is None
        self.data_dir = data_dir or Path(tempfile.mkdtemp(prefix="millstream-"))
        self._grace_s = grace_s
        self._server = ChildServer(name, self.data_dir / "server.log")
        self.address = ""

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._server.pid

    async def start(self) -> str:
        """Start it and return its address. Raises ServerStartError; nothing is left behind then."""
        try:
            self.address = await self._launch()
        except BaseException:
            await self.stop()
            raise
        return self.address

    @abstractmethod
    async def _launch(self) -> str:
        """Start `self._server` and return the address at which it answers."""

    async def stop(self) -> None:
        """Stop it; its data stays only where a `data_dir` was given."""
        await self._server.stop(self._grace_s)
        if self._own_dir:
            shutil.rmtree(self.data_dir, ignore_errors=True)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
