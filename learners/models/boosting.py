"""Gradient-boosted trees fitted once to a set of rows: lightgbm behind arrays.

Dense inputs are split as numbers. An id column is split as a category if it shows few values, and left out otherwise:
what a rare id says stands in its counters. lightgbm comes with the extra ``trees`` and is imported when first needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from learners.models.row_buffer import Remembered

_BETWEEN = b"\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class BoostingConfig:
    """Size of the ensembles and what keeps it from learning the rows by heart."""

    forests: int = 3  # their mean: another seed moves the AUC by 0.0003, a third of the noise is left
    trees: int = 200  # of each
    leaves: int = 31
    rate: float = 0.03
    smallest_leaf: int = 50  # rows
    tree_share: float = 0.2  # of the inputs that one tree may use, drawn for it
    node_share: float = 0.3  # of these that one split may use; the two are worth 0.0015 AUC on KuaiRand
    categories: int = 64  # an id column with more values than that is left out
    l2: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        lowest = {"forests": 1, "trees": 1, "leaves": 2, "smallest_leaf": 1, "categories": 0, "l2": 0}
        for name, low in lowest.items():
            if getattr(self, name) < low:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be at least {low}: there would be no trees to fit."
                )
        for name in ("rate", "tree_share", "node_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(
                    f"{name}={getattr(self, name)} must lie in (0, 1]: it is a share, and none is nothing."
                )


class Categories(NamedTuple):
    """Which id columns are categories: ``columns`` (C,) int64, and their known codes, (C, categories + 1) uint32.

    A row of ``codes`` ascends; behind its known values it is filled up with the largest of them.
    """

    columns: NDArray[np.int64]
    codes: NDArray[np.uint32]

    @classmethod
    def of(cls, codes: NDArray[np.uint32], most: int) -> Self:
        """The columns of (n, E) codes with 2 to ``most`` different values, missing (0) included."""
        known = [(at, np.unique(codes[:, at])) for at in range(codes.shape[1])]
        kept = [(at, values) for at, values in known if 1 < len(values) <= most]
        table = [np.concatenate((values, np.repeat(values[-1:], most + 1 - len(values)))) for _, values in kept]
        return cls(np.array([at for at, _ in kept], np.int64), np.array(table, np.uint32).reshape(len(kept), most + 1))

    def numbers(self, codes: NDArray[np.uint32]) -> NDArray[np.float32]:
        """(B, C) the rank of each known value; NaN for a value that was not there to be fitted."""
        out = np.empty((len(codes), len(self.columns)), np.float32)
        for at, column in enumerate(self.columns):
            rank = np.minimum(np.searchsorted(self.codes[at], codes[:, column]), self.codes.shape[1] - 1)
            out[:, at] = np.where(self.codes[at][rank] == codes[:, column], rank, np.nan)
        return out


class Forest:
    """T fitted trees of one or more ensembles, whose mean is the answer.

    A leaf is known by its number: tree x L + leaf, with L the most leaves that a tree may have.
    """

    def __init__(self, config: BoostingConfig, texts: Sequence[bytes], categories: Categories) -> None:
        self._texts, self._categories = tuple(texts), categories
        self.boosters = [lightgbm().Booster(model_str=text.decode()) for text in texts]
        self.trees = sum(int(booster.num_trees()) for booster in self.boosters)
        self._first = np.arange(self.trees) * config.leaves  # (T,)
        self.leaf_values = np.concatenate([_values(booster, config.leaves) for booster in self.boosters]) / len(texts)
        """(T x L,) float64: what each leaf adds to the logit; 0 where a tree has fewer leaves."""

    @classmethod
    def fit(cls, config: BoostingConfig, rows: Remembered) -> Self:
        """Boost trees on the log loss of all rows. The same rows give the same trees."""
        categories = Categories.of(rows.codes, config.categories)
        k = rows.dense.shape[1]
        parameters = {
            "objective": "binary", "num_leaves": config.leaves, "learning_rate": config.rate, "lambda_l2": config.l2,
            "min_data_in_leaf": config.smallest_leaf, "feature_fraction": config.tree_share,
            "feature_fraction_bynode": config.node_share, "deterministic": True, "num_threads": 1,
            "force_row_wise": True, "verbose": -1,
        }  # fmt: skip
        inputs = np.concatenate((rows.dense, categories.numbers(rows.codes)), axis=1)
        data = lightgbm().Dataset(
            inputs,
            rows.target,
            weight=rows.weight,
            categorical_feature=list(range(k, inputs.shape[1])),
            params=parameters,
        )
        seeds = range(config.seed, config.seed + config.forests)
        fitted = [lightgbm().train({**parameters, "seed": seed}, data, config.trees) for seed in seeds]
        return cls(config, [booster.model_to_string().encode() for booster in fitted], categories)

    def leaves(self, codes: NDArray[np.uint32], dense: NDArray[np.float32]) -> NDArray[np.int64]:
        """The numbers (B, T) of the leaves that rows fall into."""
        if not len(dense):
            return np.zeros((0, self.trees), np.int64)
        inputs = np.concatenate((dense, self._categories.numbers(codes)), axis=1)
        found = [booster.predict(inputs, pred_leaf=True, num_threads=1) for booster in self.boosters]
        numbers = [np.asarray(leaves, np.int64).reshape(len(dense), -1) for leaves in found]
        return np.concatenate(numbers, axis=1) + self._first

    def state(self) -> dict[str, NDArray[Any]]:
        """The trees as lightgbm's texts, one behind the other with a 0 between them, and the categories."""
        return {
            "text": np.frombuffer(_BETWEEN.join(self._texts), np.uint8).copy(),
            "category_columns": self._categories.columns.copy(),
            "category_codes": self._categories.codes.copy(),
        }

    @classmethod
    def from_state(cls, config: BoostingConfig, state: Mapping[str, NDArray[Any]]) -> Self:
        """The forest that ``state`` was taken from."""
        texts = state["text"].tobytes().split(_BETWEEN)
        return cls(config, texts, Categories(state["category_columns"], state["category_codes"]))


def _values(booster: Any, most: int) -> NDArray[np.float64]:
    values = np.zeros((booster.num_trees(), most))
    for tree, info in enumerate(booster.dump_model()["tree_info"]):
        for leaf in range(info["num_leaves"]):
            values[tree, leaf] = booster.get_leaf_output(tree, leaf)
    return values.reshape(-1)


def lightgbm() -> ModuleType:
    """The library, or ImportError with the remedy."""
    try:
        import lightgbm as library
    except ImportError as error:
        raise ImportError(
            "lightgbm is not installed, so no trees can be fitted. Install the extra: pip install 'millstream[trees]'."
        ) from error
    module: ModuleType = library
    return module
