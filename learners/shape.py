"""What a model must know of a feature spec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray


class _Spec(Protocol):
    """The part of ``learners.spec.FeatureSpec`` that shapes a model."""

    @property
    def name(self) -> str: ...
    @property
    def hash(self) -> str: ...
    @property
    def embedded_columns(self) -> Sequence[int] | NDArray[np.intp]: ...
    @property
    def id_columns(self) -> int: ...
    @property
    def dense_inputs(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Which columns of ``Rows`` a model reads.

    ``id_columns`` is F, the width of ``Rows.ids``; ``embedded`` the E of them that are learned; ``dense`` is K.
    """

    spec_name: str
    spec_hash: str
    id_columns: int
    embedded: tuple[int, ...]
    dense: int

    def __post_init__(self) -> None:
        if not self.embedded or min(self.embedded) < 0 or max(self.embedded) >= self.id_columns or self.dense < 0:
            raise ValueError(
                f"embedded columns {self.embedded} must be one or more of 0..{self.id_columns - 1} and "
                f"dense={self.dense} not negative: the model would read columns that rows do not have. Take the shape "
                "from a feature spec."
            )

    @classmethod
    def of(cls, spec: _Spec) -> Self:
        """The shape of a feature spec."""
        return cls(
            spec_name=spec.name,
            spec_hash=spec.hash,
            id_columns=spec.id_columns,
            embedded=tuple(int(column) for column in spec.embedded_columns),
            dense=spec.dense_inputs,
        )
