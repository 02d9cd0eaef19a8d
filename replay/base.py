"""The base days as files: archived examples to train on, session features to start from."""

from __future__ import annotations

from pathlib import Path

from learners.examples.archive import read_examples
from learners.examples.archive_writer import write_examples
from learners.examples.examples import Examples
from learners.features.shape import ModelShape
from learners.features.spec import FeatureSpec
from learners.snapshots.snapshot import Snapshot
from learners.training.base import BaseConfig, train_base
from replay.backtest import Base

EXAMPLES_FILE, SESSIONS_FILE = "examples.parquet", "sessions.npz"


def write_base(base: Base, spec: FeatureSpec, folder: Path) -> tuple[Path, Path]:
    """Write the archive and the session export of the base days into ``folder``; returns both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    archive, sessions = folder / EXAMPLES_FILE, folder / SESSIONS_FILE
    write_examples(archive, base.examples, spec)
    base.store.export().save(sessions)
    return archive, sessions


def read_base_examples(folder: Path, spec: FeatureSpec) -> Examples:
    """Read the archive back. Raises ArchiveError for another spec."""
    return read_examples(folder / EXAMPLES_FILE, spec_hash=spec.hash)


def base_snapshot(examples: Examples, spec: FeatureSpec, click_window_s: float) -> Snapshot:
    """The snapshot that ``python -m learners base`` makes of an archive at its defaults, version 1."""
    return train_base(examples, ModelShape.of(spec), config=BaseConfig(click_window_s=click_window_s)).snapshot()
