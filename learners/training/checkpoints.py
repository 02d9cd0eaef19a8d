"""Checkpoints of a base training: the newest three, each there whole or not at all.

A checkpoint is a folder ``c000000012000``, named by its step: ``state.safetensors`` (the model), ``best.safetensors``
(the model after its best epoch, from the second epoch on) and, written last, ``progress.msgpack``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from learners.metrics.quality import Quality
from learners.snapshots.safetensors_pieces import pieces_of
from learners.snapshots.store import Pieces, store_of

KEPT = 3
"""The newest checkpoints that stay."""

State = Mapping[str, NDArray[Any]]

_FOLDER = re.compile(r"c(\d{12})")
_STATE, _BEST, _PROGRESS = "state.safetensors", "best.safetensors", "progress.msgpack"
_log = structlog.get_logger(__name__)


class CheckpointError(ValueError):
    """Checkpoints of another training, or none where there must be one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a training stands: ``step`` steps are done, the next is batch ``batch`` of epoch ``epoch``."""

    fingerprint: str  # of examples and settings
    step: int = 0
    epoch: int = 0
    batch: int = 0
    epochs: tuple[Quality, ...] = ()  # on the validation rows, after each finished epoch
    best_epoch: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """What a killed training goes on from, bit-equal."""

    progress: Progress
    state: State
    best: State | None


class _Stored(msgspec.Struct, frozen=True):
    progress: Progress
    sha256: dict[str, str]


class Checkpoints:
    """The checkpoints under one root, a directory or an fsspec URL."""

    def __init__(self, root: str, *, keep: int = KEPT) -> None:
        self.root = root
        self._store = store_of(root)
        self._keep = keep

    def write(self, checkpoint: Checkpoint) -> None:
        """Write it, then drop all but the newest."""
        states = {_STATE: checkpoint.state} | ({} if checkpoint.best is None else {_BEST: checkpoint.best})
        stored = _Stored(checkpoint.progress, {name: _sha256(pieces_of(state)) for name, state in states.items()})
        files = {name: pieces_of(state) for name, state in states.items()}
        self._store.write_folder(
            _folder(checkpoint.progress.step), {**files, _PROGRESS: [msgspec.msgpack.encode(stored)]}
        )
        for step in self.steps()[self._keep :]:
            self._store.remove_folder(_folder(step))

    def steps(self) -> list[int]:
        """Steps of the checkpoints, newest first, torn ones included."""
        matches = (_FOLDER.fullmatch(name) for name in self._store.folders())
        return sorted((int(match.group(1)) for match in matches if match), reverse=True)

    def newest(self, fingerprint: str) -> Checkpoint | None:
        """The newest whole one; a torn one is skipped with a warning. None where there is none.

        Raises
        ------
        CheckpointError
            It is of a training with another fingerprint.
        """
        for step in self.steps():
            try:
                found = self._read(_folder(step))
            except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
                _log.warning("torn checkpoint skipped", url=self._store.url(_folder(step)), error=str(error))
                continue
            if found.progress.fingerprint != fingerprint:
                raise CheckpointError(
                    f"{self._store.url(_folder(step))} is of a training with fingerprint {found.progress.fingerprint}, "
                    f"this one has {fingerprint}: other examples, settings or number of processes. Resume with those "
                    "of the checkpoint, or take an empty checkpoint folder."
                )
            return found
        return None

    def _read(self, folder: str) -> Checkpoint:
        stored = msgspec.msgpack.decode(self._store.read(f"{folder}/{_PROGRESS}"), type=_Stored)
        files = {name: self._store.read(f"{folder}/{name}") for name in stored.sha256}
        for name, data in files.items():
            if _sha256([data]) != stored.sha256[name]:
                raise ValueError(f"{name} is not what was written: its checksum differs")
        best = load(files[_BEST]) if _BEST in files else None
        return Checkpoint(progress=stored.progress, state=load(files[_STATE]), best=best)


def _folder(step: int) -> str:
    return f"c{step:012d}"


def _sha256(pieces: Pieces) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()
