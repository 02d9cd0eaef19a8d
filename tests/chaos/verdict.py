"""What is held against what: plain comparisons, each one line of the table."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

from stream.records.wire import JournalRecord

_INSTANCES = 5
_INSTANCE_CHARACTERS = 300

Row = tuple[int, int]  # offset, index in the record


@dataclass(frozen=True, slots=True)
class Check:
    """One line.

    lost : expected, not found. doubled : found again, or never expected. changed : found once, with another content.
    """

    what: str
    expected: int
    found: int
    lost: int = 0
    doubled: int = 0
    changed: int = 0
    instances: list[str] = field(default_factory=list)  # the first few that do not hold

    @property
    def holds(self) -> bool:
        """Whether nothing is lost, doubled or changed."""
        return not (self.lost or self.doubled or self.changed)


def compare(what: str, expected: Mapping[Any, Any], found: Iterable[tuple[Hashable, Any]]) -> Check:
    """Hold what was found against what was expected: each key once, with its content."""
    pairs = [*found]
    counts = Counter(key for key, _ in pairs)
    lost = [key for key in expected if key not in counts]
    unexpected = [key for key in counts if key not in expected]
    again = [key for key, count in counts.items() if count > 1 and key in expected]
    doubled = sum(counts[key] for key in unexpected) + sum(counts[key] - 1 for key in again)
    changed = {key: content for key, content in pairs if key in expected and content != expected[key]}
    instances = [f"lost: {key} {expected[key]}" for key in lost[:_INSTANCES]]
    instances += [f"unexpected: {key}" for key in unexpected[:_INSTANCES]]
    instances += [f"doubled: {key}, {counts[key]} times" for key in again[:_INSTANCES]]
    instances += [f"changed: {key} {expected[key]} → {changed[key]}" for key in [*changed][:_INSTANCES]]
    return Check(what, len(expected), len(pairs), len(lost), doubled, len(changed), _cut(instances))


def covered(
    what: str, required: AbstractSet[Hashable], allowed: AbstractSet[Hashable], found: AbstractSet[Hashable]
) -> Check:
    """Hold a set against what it must contain and what it may contain."""
    lost, beyond = required - found, found - allowed - required
    instances = [f"lost: {one}" for one in [*lost][:_INSTANCES]]
    instances += [f"unexpected: {one}" for one in [*beyond][:_INSTANCES]]
    return Check(what, len(required), len(found), len(lost), len(beyond), 0, _cut(instances))


def journalled(learnable: Mapping[int, Sequence[Row]], journal: Sequence[JournalRecord]) -> list[Check]:
    """Hold the journal against the rows of each partition that are to be learned, in their order.

    Every row is in one range; the versions follow each other, each of as many rows as its ranges hold.
    """
    rows: list[tuple[Hashable, None]] = []
    steps: dict[int, int] = {}
    for record in journal:
        before = len(rows)
        for learned in record.ranges:
            positions = learnable.get(learned.partition, ())
            first = bisect_left(positions, (learned.from_offset, learned.from_row))
            end = bisect_left(positions, (learned.to_offset, learned.to_row))
            rows += [((learned.partition, *position), None) for position in positions[first:end]]
        steps.setdefault(record.version, len(rows) - before)
    expected = {(partition, *position): None for partition, found in learnable.items() for position in found}
    consecutive = {version: steps.get(version, 0) for version in range(1, max(steps, default=0) + 1)}
    versions = [(record.version, record.rows) for record in journal]
    return [
        compare("examples in the journal", expected, rows),
        compare("versions in the journal", consecutive, versions),
    ]


def alike(what: str, ways: Mapping[str, str | None]) -> Check:
    """Hold several ways to one value against each other; a way that led nowhere is lost."""
    missing = [name for name, value in ways.items() if value is None]
    values = Counter(value for value in ways.values() if value is not None)
    changed = values.total() - max(values.values(), default=0)
    instances = [f"{name}: {value}" for name, value in ways.items()] if missing or changed else []
    return Check(what, len(ways), values.total(), len(missing), 0, changed, instances)


def _cut(instances: Sequence[str]) -> list[str]:
    """Packed columns would fill pages."""
    return [one if len(one) <= _INSTANCE_CHARACTERS else f"{one[:_INSTANCE_CHARACTERS]}…" for one in instances]
