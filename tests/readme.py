"""The console blocks of a README: what is typed, and what is shown below it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Command:
    """One command, of one or more lines, and the lines that the README shows as its output."""

    text: str
    output: tuple[str, ...]


def commands(readme: str) -> Iterator[Command]:
    """Every command of the console blocks: a line after "$ ", with those below it that begin with a blank."""
    for block in _BLOCK.findall(readme):
        for entry in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            lines = entry.splitlines()
            count = next((n for n, line in enumerate(lines) if n and not line.startswith(" ")), len(lines))
            yield Command("\n".join(lines[:count]), tuple(lines[count:]))


def shows(shown: str, line: str) -> bool:
    """Whether a line of a README is one of a program: … stands for anything, a number for any number."""
    return re.fullmatch(_NUMBER.sub(r"\\d+(?:\\.\\d+)?", re.escape(shown).replace("…", ".*")), line) is not None
