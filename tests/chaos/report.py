"""The result of a run, as a table or as one JSON object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from tests.chaos.verdict import Check

_COLUMNS = ("what", "expected", "found", "lost", "doubled", "changed", "holds")


def all_hold(checks: Sequence[Check]) -> bool:
    """Whether nothing was lost, doubled or changed."""
    return bool(checks) and all(check.holds for check in checks)


def as_json(checks: Sequence[Check], facts: Mapping[str, Any]) -> str:
    """One object: the checks, the facts, and whether all hold."""
    lines = [{**asdict(check), "holds": check.holds} for check in checks]
    return orjson.dumps({"checks": lines, **facts, "holds": all_hold(checks)}).decode()


def print_tables(checks: Sequence[Check], facts: Mapping[str, Any]) -> None:
    """The checks, what does not hold of them, and the facts."""
    console = Console(highlight=False, width=120)
    table = Table()
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column in ("what", "holds") else "right")
    for check in checks:
        counts = (check.expected, check.found, check.lost, check.doubled, check.changed)
        table.add_row(check.what, *(f"{count:,}" for count in counts), "yes" if check.holds else "NO")
    console.print(table)
    for check in checks:
        for instance in check.instances:
            console.print(f"{check.what}: {instance}", markup=False, soft_wrap=True)
    table = Table(show_header=False)
    for name, value in facts.items():
        table.add_row(
            name, ", ".join(f"{k} {v:,}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        )
    console.print(table)
