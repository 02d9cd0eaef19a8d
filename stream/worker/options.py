"""What one worker process runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from learners.features.spec import FeatureSpec
from stream.agents.source import SourceKind
from stream.worker.settings import Clock

AGENTS = ("join", "sessions", "learn", "calibrate", "archive")


class WorkerStartError(RuntimeError):
    """Something that the worker needs is missing; the message names the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """What one worker process runs."""

    spec: FeatureSpec
    snapshots: str
    archive: str | None = None  # where the archiver writes; None: it does not run
    agents: Sequence[str] = AGENTS
    clock: Clock = "wall"
    runner: SourceKind = "faust"
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None  # None: no port is opened
