"""What is fuzzed: an input of the product, how relatives of valid ones are made, and what must hold of each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from hypothesis import strategies as st

from tests.fuzz.mutate import damaged

CORPUS = Path(__file__).parent / "corpus"
TAKEN = ""
"""Said of an input that was taken; of any other the reason of its rejection is."""

Mutate = Callable[[bytes, Random], bytes]


class BrokenPromiseError(AssertionError):
    """An input was taken that a second look finds wrong, or was rejected without a reason."""


@dataclass(frozen=True, slots=True)
class Target:
    """A pure function of bytes.

    run : decodes and checks as the product does; `TAKEN`, or why it was rejected. Whatever it raises is a fault: an
        exception that no caller of the product expects, or `BrokenPromiseError`.
    seeds : valid inputs, each of which must be taken.
    mutate : a change of what the bytes mean, where the format is known; else bytes are changed.
    """

    name: str
    run: Callable[[bytes], str]
    seeds: Callable[[], Sequence[bytes]]
    mutate: Mutate | None = None

    def inputs(self) -> st.SearchStrategy[bytes]:
        """Mutated inputs; three in four keep the format where it is known."""
        return st.builds(self.mutated, st.randoms(use_true_random=False))

    def mutated(self, source: Random) -> bytes:
        """One of them."""
        seeds = [*self.seeds(), *self.corpus()]
        value, how = source.choice(seeds), source.randrange(8)
        if self.mutate is not None and how:
            try:
                value = self.mutate(value, source)
            except Exception:  # noqa: BLE001 - of the corpus: what failed once need not have its format
                return damaged(value, source, source.choice(seeds))
        return damaged(value, source, source.choice(seeds)) if self.mutate is None or how < 2 else value

    def corpus(self) -> list[bytes]:
        """What failed once."""
        return [path.read_bytes() for path in self.corpus_files()]

    def corpus_files(self) -> list[Path]:
        """Where that lies."""
        return sorted((CORPUS / self.name).glob("*.bin"))

    def save(self, value: bytes) -> Path:
        """Add an input to the corpus."""
        path = CORPUS / self.name / f"{hashlib.sha256(value).hexdigest()[:12]}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(value)
        return path


def promised(holds: object, what: str) -> None:
    """Raise BrokenPromiseError unless it holds."""
    if not holds:
        raise BrokenPromiseError(what)


def rejected(reason: str, detail: str, reasons: Sequence[str]) -> str:
    """The reason of a rejection, which must be one that is counted, with a detail for people."""
    promised(reason in reasons, f"rejected for {reason!r}, which is none of {reasons}")
    promised(detail and len(detail) < 20_000, f"rejected for {reason} with a detail of {len(detail)} characters")
    return reason
