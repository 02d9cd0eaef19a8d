"""What the replay's commands do with a terminal: print, stop with a status, and end cleanly on a signal."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import orjson
import typer
from rich.console import Console

from learners.examples.archive_parts import ArchiveError
from replay.errors import PlaybackError
from stream.embedded.process import ServerStartError
from stream.kafka.admin import BrokerUnreachableError, TopicMismatchError

FAILED, BAD_USAGE = 1, 2
T = TypeVar("T")


def awaited(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end; SIGTERM and Ctrl-C cancel it, so that everything it started is stopped."""

    async def main() -> T:
        task = asyncio.ensure_future(work)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await task

    try:
        return asyncio.run(main())
    except (KeyboardInterrupt, asyncio.CancelledError):
        typer.echo("stopped; everything that was started is stopped too.", err=True)
        raise typer.Exit(130) from None
    except (ServerStartError, BrokerUnreachableError, TopicMismatchError, PlaybackError, ArchiveError) as error:
        stop(error, FAILED)


def console(width: int = 100) -> Console:
    """Stdout; as wide as the tables where it is no terminal."""
    return Console() if sys.stdout.isatty() else Console(width=width)


def make_folder(out: Path) -> None:
    """Make the folder of ``--out``. Raises ValueError where there can be none."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"--out {out} can be no folder ({error.strerror}): there would be no place for the results. Give a folder, "
            "or a path where one can be made."
        ) from error


def json_bytes(document: dict[str, Any]) -> bytes:
    """Indented, with a line end."""
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def print_json(document: dict[str, Any]) -> None:
    """Write it to stdout."""
    sys.stdout.buffer.write(json_bytes(document))


def stop(error: Exception, status: int) -> NoReturn:
    """Say what is wrong on stderr and end with ``status``."""
    told = str(error)
    if isinstance(error, OSError) and error.filename and error.strerror:
        told = f"{error.filename}: {error.strerror}: it cannot be read or written. Give another path."
    typer.echo(f"error: {told}", err=True)
    raise typer.Exit(status)
