"""What a snapshot holds, for people and for JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from learners.deepfm.model import DeepFM
from learners.snapshots.manifest import describe, read_manifest
from learners.snapshots.snapshot import Snapshot, load_snapshot

_VOCABULARY = "vocabulary"


def facts_of(url: str) -> dict[str, Any]:
    """Check the snapshot at ``url`` and tell what is in it.

    Raises
    ------
    SnapshotError
        Torn, of another format, or nothing at all.
    """
    snapshot = load_snapshot(url)
    model = snapshot.model()
    facts = describe(read_manifest(url))
    return facts | {"heads": _heads(model), "weights": _weights(snapshot, model), _VOCABULARY: _vocabulary(model)}


def lines_of(facts: dict[str, Any]) -> Iterator[str]:
    """For people: a line a fact, the vocabulary as a table."""
    for name, value in facts.items():
        if name == _VOCABULARY:
            yield name
            yield f"  {'rows':>10} {'admitted':>10} {'expired':>10} {'evicted':>10}  column"
            for one in value:
                numbers = " ".join(f"{one[key]:10d}" for key in ("rows", "admitted", "expired", "evicted"))
                yield f"  {numbers}  {one['column']}"
        elif isinstance(value, dict):
            yield name
            yield from (f"  {key:22} {detail}" for key, detail in value.items())
        else:
            yield f"{name:24} {value}"


def _heads(model: DeepFM) -> dict[str, str]:
    given = {head.name: head.given for head in model.config.heads}
    return {name: f"P({name} | {of})" if of else f"P({name})" for name, of in given.items()}


def _weights(snapshot: Snapshot, model: DeepFM) -> dict[str, Any]:
    values = snapshot.state["table.values"]
    dense = {name: array for name, array in snapshot.state.items() if name.startswith("dense.")}
    return {
        "table_rows": len(values),
        "table_bytes": model.table.memory_bytes(),
        "sightings_waiting": model.table.waiting,  # of ids that are not admitted yet
        "mean_vector_norm": _mean(np.linalg.norm(values[:, :-1], axis=1)),
        "mean_absolute_weight": _mean(np.abs(values[:, -1])),
        "dense_parameters": sum(array.size for array in dense.values()),
        "steps": int(snapshot.state["adam.steps"][0]),
        "sha256": model.weights_sha256(),
    }


def _vocabulary(model: DeepFM) -> list[dict[str, Any]]:
    """By embedded column; ``rows`` counts its default row."""
    return [
        {
            "column": model.shape.names[of.column],
            "rows": of.rows,
            "admitted": of.admitted_total,
            "expired": of.expired_total,
            "evicted": of.evicted_total,
        }
        for of in model.table.vocabulary()
    ]


def _mean(values: NDArray[Any]) -> float | None:
    return round(float(values.mean()), 6) if len(values) else None
