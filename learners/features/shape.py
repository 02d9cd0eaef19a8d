"""What a model must know of a feature spec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from learners.features.hashing import salt_of


class _Spec(Protocol):
    """The part of ``learners.features.spec.FeatureSpec`` that shapes a model."""

    @property
    def name(self) -> str: ...
    @property
    def hash(self) -> str: ...
    @property
    def columns(self) -> Sequence[str]: ...
    @property
    def embedded_columns(self) -> Sequence[int] | NDArray[np.intp]: ...
    @property
    def history_columns(self) -> Sequence[int]: ...
    @property
    def ad_field(self) -> int: ...
    @property
    def id_columns(self) -> int: ...
    @property
    def dense_inputs(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Which columns of ``Rows`` a model reads.

    ``id_columns`` is F, the width of ``Rows.ids``; ``embedded`` the E of them that are learned and ``names`` their
    names in the spec; ``dense`` is K. ``target`` is the column of the ad's id and ``history`` the columns that hold ids
    of the same kind: the user's recent ads, newest first.
    """

    spec_name: str
    spec_hash: str
    id_columns: int
    embedded: tuple[int, ...]
    names: tuple[str, ...]
    dense: int
    history: tuple[int, ...] = ()
    target: int | None = None

    def __post_init__(self) -> None:
        if not self.embedded or min(self.embedded) < 0 or max(self.embedded) >= self.id_columns or self.dense < 0:
            raise ValueError(
                f"embedded columns {self.embedded} must be one or more of 0..{self.id_columns - 1} and "
                f"dense={self.dense} not negative: the model would read columns that rows do not have. Take the shape "
                "from a feature spec."
            )
        if len(set(self.names)) != len(self.embedded):
            raise ValueError(
                f"names {self.names} must be as many as the embedded columns {self.embedded} and differ: each column "
                "has a default row under its name. Take the shape from a feature spec."
            )
        if self.target is not None and self.target not in self.embedded:
            raise ValueError(
                f"target={self.target} must be one of the embedded columns {self.embedded}: the ad's id has no vector "
                "otherwise. Let the spec's ad be a learned field."
            )
        outside = [column for column in self.history if not 0 <= column < self.id_columns]
        if outside or (self.history and self.target is None):
            raise ValueError(
                f"history {self.history} must be columns of 0..{self.id_columns - 1} with a target={self.target}: a "
                "history holds ids of the target's kind. Take the shape from a feature spec."
            )

    @property
    def default_keys(self) -> NDArray[np.uint64]:
        """(E,) u64: the key of each embedded column's default row, which stands for ids that have none yet."""
        return np.array([salt_of(f"default:{name}") for name in self.names], np.uint64)

    @classmethod
    def of(cls, spec: _Spec) -> Self:
        """The shape of a feature spec."""
        embedded = tuple(int(column) for column in spec.embedded_columns)
        return cls(
            spec_name=spec.name,
            spec_hash=spec.hash,
            id_columns=spec.id_columns,
            embedded=embedded,
            names=tuple(spec.columns[column] for column in embedded),
            dense=spec.dense_inputs,
            history=tuple(spec.history_columns),
            target=spec.ad_field if spec.ad_field in embedded else None,
        )
