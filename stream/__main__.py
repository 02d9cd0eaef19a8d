"""`python -m stream`: look at the servers and the topics."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import asdict
from typing import Annotated

import orjson
import typer
from pydantic import ValidationError

from stream.cli.doctor import SERVING_PORT, run_checks
from stream.cli.rebuild import rebuild
from stream.cli.sessions import sessions
from stream.cli.worker import worker
from stream.kafka.admin import BrokerUnreachableError, Difference, TopicMismatchError, check_topics, ensure_topics
from stream.kafka.client_options import kafka_client_options
from stream.records.schemas import schemas as record_schemas
from stream.servers.setting_names import say_unknown_settings
from stream.servers.settings import StreamSettings, settings_fault

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

app.callback()(say_unknown_settings)
app.command()(worker)
app.command()(rebuild)
app.add_typer(sessions, name="sessions")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of lines.")]


def load_settings() -> StreamSettings:
    """Return the settings of the environment; a wrong one ends the program as bad usage."""
    try:
        return StreamSettings()
    except ValidationError as error:
        raise typer.BadParameter(settings_fault(error)) from error


@app.command()
def topics(
    create: Annotated[bool, typer.Option("--create", help="Create the topics that are missing.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Compare the broker with the table; 1 when it differs.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print the table of topics, create them (--create), or compare a broker with it (--check)."""
    settings = load_settings()
    if (create or check) and settings.kafka_bootstrap_servers is None:
        raise typer.BadParameter(
            "KAFKA_BOOTSTRAP_SERVERS is not set: the embedded broker lives only inside the program that starts it, "
            "which also creates its topics. Set it to the broker to look at."
        )
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it repeats what our errors say
    if not (create or check):
        _print_table(settings, as_json)
        return
    try:
        created, differences = asyncio.run(_create_and_check(settings, create, check))
    except (BrokerUnreachableError, TopicMismatchError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    if as_json:
        document = {"created": created, "differences": [asdict(d) for d in differences]}
        typer.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2))
    else:
        for name in created:
            typer.echo(f"created {name}")
        for difference in differences:
            typer.echo(str(difference))
        if check and not differences:
            typer.echo(f"all {len(settings.topics())} topics are as in the table")
    raise typer.Exit(1 if differences else 0)


async def _create_and_check(settings: StreamSettings, create: bool, check: bool) -> tuple[list[str], list[Difference]]:
    bootstrap, table, options = (
        settings.kafka_bootstrap_servers or "",
        settings.topics(),
        kafka_client_options(settings),
    )
    created = await ensure_topics(bootstrap, table, options) if create else []
    return created, await check_topics(bootstrap, table, options) if check else []


def _print_table(settings: StreamSettings, as_json: bool) -> None:
    if as_json:
        typer.echo(orjson.dumps([asdict(t) for t in settings.topics()], option=orjson.OPT_INDENT_2))
        return
    for topic in settings.topics():
        typer.echo(f"{topic.name:24} {topic.partitions:3} partitions  {topic.cleanup_policy:8} {topic.doc}")


@app.command()
def doctor(
    port: Annotated[list[int] | None, typer.Option(help="A port that must be free; may be repeated.")] = None,
    as_json: AsJson = False,
) -> None:
    """Look for what is missing on this machine and say the fix; 1 when something is broken."""
    settings = load_settings()
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    checks = asyncio.run(run_checks(settings, port or [SERVING_PORT]))
    if as_json:
        typer.echo(orjson.dumps([asdict(check) for check in checks], option=orjson.OPT_INDENT_2))
    for check in [] if as_json else checks:
        state = "ok     " if check.ok else "IN USE " if check.name.startswith("port ") else "MISSING"
        typer.echo(f"{state} {check.name}: {check.found}")
        if not check.ok:
            typer.echo(f"        fix: {check.fix}")
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)


@app.command()
def schemas() -> None:
    """Print the JSON Schemas of every record and of the single-event JSON, by topic."""
    typer.echo(orjson.dumps(record_schemas(), option=orjson.OPT_INDENT_2))


if __name__ == "__main__":
    app()
