"""The verb `python -m stream sessions load`: session features from a file into Redis, before the first worker runs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import redis.asyncio
import typer
from redis.exceptions import RedisError

from learners.features.spec import load_spec
from learners.features.spec_parts import SpecError
from stream.servers.settings import StreamSettings, redis_client_options, without_password
from stream.sessions.in_memory import SessionExport
from stream.sessions.store import RedisSessionStore, SeedError

sessions = typer.Typer(no_args_is_help=True, help="Session features in Redis.")


@sessions.callback()
def _group() -> None:
    """Session features in Redis."""


@sessions.command()
def load(
    file: Annotated[Path, typer.Argument(help="An export of session features (.npz).", exists=True, dir_okay=False)],
    spec: Annotated[
        str, typer.Option(help="Feature spec: kuairand, marketplace or a TOML file.", envvar="MILLSTREAM_SPEC")
    ] = "marketplace",
) -> None:
    """Put exported session features into the Redis of REDIS_URL; it must hold none of this spec that workers folded."""
    settings = StreamSettings()
    if settings.redis_url is None:
        raise typer.BadParameter(
            "REDIS_URL is not set: the embedded Redis lives only inside the program that starts it. Set it to the "
            "Redis that workers and serving use."
        )
    try:
        export = SessionExport.load(file, load_spec(spec))
        count = asyncio.run(_seed(settings, spec, export))
    except (SpecError, SeedError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    except (RedisError, OSError) as error:
        typer.echo(
            f"error: Redis at {without_password(settings.redis_url)} failed ({error}): no sessions were loaded, or "
            "only a part. Start it, or correct REDIS_URL, and load again.",
            err=True,
        )
        raise typer.Exit(1) from error
    typer.echo(f"{count} session states loaded into {settings.partitions} partitions")


async def _seed(settings: StreamSettings, spec: str, export: SessionExport) -> int:
    client = redis.asyncio.Redis.from_url(settings.redis_url or "", **redis_client_options(settings))
    try:
        return await RedisSessionStore(client, load_spec(spec), settings.partitions).seed(export)
    finally:
        await client.aclose()
