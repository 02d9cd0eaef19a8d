"""The snapshot that serving starts from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from learners.deepfm.model import DeepFM
from learners.features.rows import Rows
from learners.features.spec import FeatureSpec
from learners.snapshots.manifest import UnsoundSnapshotError
from learners.snapshots.snapshot import Snapshot, check_columns, newest_snapshot


class NoSnapshotError(RuntimeError):
    """There is no model to serve."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model at one version."""

    model: DeepFM
    version: int
    watermark_ms: int
    url: str
    line: int = 0  # the version of the base that it comes from; 0: unknown
    calibration: bytes | None = None  # that the line brought


def load_newest(root: str, spec: FeatureSpec, *, scores: Rows | None = None) -> LoadedModel:
    """The model of the newest whole snapshot under ``root`` (directory or fsspec URL).

    Raises NoSnapshotError; learners.snapshots.snapshot.SnapshotSpecError (both hashes named) when it is of another
    spec.

    scores : rows that it must score as numbers; one that does not is skipped.
    """
    try:
        found = newest_snapshot(root, spec_hash=spec.hash, check=partial(_check, spec=spec, scores=scores))
    except OSError as error:
        raise NoSnapshotError(
            f"{root} cannot be read ({error}): there is no model to serve. Give --snapshots a folder that this user "
            "may read."
        ) from error
    if found is None:
        raise NoSnapshotError(
            f"{root} holds no whole snapshot: there is no model to serve. Train one with 'python -m learners base "
            f"--examples FILE.parquet --out {root}', or give the folder of one with --snapshots."
        )
    url, snapshot = found
    return LoadedModel(
        snapshot.model(), snapshot.version, snapshot.watermark_ms, url, snapshot.line, snapshot.calibration
    )


def _check(snapshot: Snapshot, spec: FeatureSpec, scores: Rows | None) -> None:
    check_columns(snapshot, spec)
    if scores is not None and not np.isfinite(snapshot.model().predict_heads(scores)).all():
        raise UnsoundSnapshotError(
            f"snapshot {snapshot.version} scores rows that were asked for as no number: it cannot be answered with. "
            "Look at what the learner learned last; an older one is taken."
        )
