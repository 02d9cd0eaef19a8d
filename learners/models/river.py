"""river's classifiers as learners, for comparison: one row and one Python dict at a time.

J. Montiel et al., "River: machine learning for streaming data in Python", JMLR 22, 2021. An id becomes the feature
"column x id bucket" with value 1; a dense input becomes a number under its position. river has no batches: a batch is a
loop over its rows.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from learners.features.rows import Rows
from learners.features.shape import ModelShape
from learners.protocol.batch import Batch, check_widths, checked_batch

_SMALLEST_P = 1e-7  # trees answer 0 and 1

Kind = Literal["logistic_ftrl", "ad_predictor", "fm", "hoeffding_adaptive_tree", "adaptive_random_forest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RiverConfig:
    """Which classifier, and the bound of its memory."""

    kind: Kind
    buckets: int = 2**18  # ids share that many features; linear models keep a number or a vector for each
    trees_mib: float = 32.0  # a tree that grows beyond stops splitting
    dim: int = 8  # of the factorisation machine
    trees: int = 5  # of the forest
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("buckets", "trees_mib", "dim", "trees"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive: the classifier would hold nothing.")


@dataclass(frozen=True, slots=True)
class _Classifier:
    """How a kind of classifier is made and what it reads."""

    make: Callable[[RiverConfig], Any]
    ids: bool
    dense: bool
    weighted: bool  # its learn_one takes a weight


def _logistic_ftrl(config: RiverConfig) -> Any:
    from river import linear_model, optim

    return linear_model.LogisticRegression(optim.FTRLProximal(alpha=0.05, l1=0.0, l2=0.0), intercept_lr=0.01)


def _ad_predictor(config: RiverConfig) -> Any:
    from river import linear_model

    return linear_model.AdPredictor(beta=0.1, epsilon=0.0)


def _fm(config: RiverConfig) -> Any:
    from river import facto, optim

    return facto.FMClassifier(
        n_factors=config.dim,
        weight_optimizer=optim.AdaGrad(0.05),
        latent_optimizer=optim.SGD(0.005),
        latent_initializer=optim.initializers.Normal(sigma=0.01, seed=config.seed),
        seed=config.seed,
    )


def _hoeffding_adaptive_tree(config: RiverConfig) -> Any:
    from learners.models.river_trees import CountedAdaptiveTree

    return CountedAdaptiveTree(max_size=config.trees_mib, memory_estimate_period=1000, seed=config.seed)


def _adaptive_random_forest(config: RiverConfig) -> Any:
    from river import forest

    return forest.ARFClassifier(
        n_models=config.trees,
        max_size=config.trees_mib / config.trees,
        memory_estimate_period=1000,
        seed=config.seed,
    )


_CLASSIFIERS: Mapping[Kind, _Classifier] = {
    "logistic_ftrl": _Classifier(_logistic_ftrl, ids=True, dense=True, weighted=True),
    "ad_predictor": _Classifier(_ad_predictor, ids=True, dense=False, weighted=False),
    "fm": _Classifier(_fm, ids=True, dense=False, weighted=True),
    "hoeffding_adaptive_tree": _Classifier(_hoeffding_adaptive_tree, ids=False, dense=True, weighted=True),
    "adaptive_random_forest": _Classifier(_adaptive_random_forest, ids=False, dense=True, weighted=False),
}


class RiverClassifier:
    """A classifier of river. Linear models and the factorisation machine read ids, trees read dense inputs.

    Weights other than 0 and 1 are refused for the kinds that have none in river (``ad_predictor``,
    ``adaptive_random_forest``). A state holds a pickle: continue only from states that you wrote yourself.
    """

    def __init__(self, config: RiverConfig, shape: ModelShape) -> None:
        self.config, self.shape = config, shape
        self._classifier = _CLASSIFIERS[config.kind]
        self.model = self._classifier.make(config)
        self._learned = 0
        self._columns = np.array(shape.embedded, np.intp)

    def predict_many(self, rows: Rows) -> NDArray[np.float32]:
        """Logits, (B,) float32; 0 before any learning. Changes nothing."""
        check_widths(rows, self.shape)
        logits = np.zeros(len(rows.ids), np.float32)
        if self._learned:
            for at, features in enumerate(self._features(rows)):
                chances = self.model.predict_proba_one(self._known(features))
                p = min(max(chances.get(True, 0.0 if chances else 0.5), _SMALLEST_P), 1 - _SMALLEST_P)
                logits[at] = math.log(p / (1 - p))
        return logits

    def learn_many(self, rows: Rows, labels: NDArray[Any], weight: NDArray[Any] | None = None) -> None:
        """Learn row after row; rows of weight 0 are left out. Raises ValueError; then nothing was learned."""
        batch = checked_batch(self.shape, rows, labels, weight)
        self._check_weights(batch)
        kept = batch.where(batch.weight > 0)
        for features, label, scale in zip(
            self._features(kept.rows), kept.target.tolist(), kept.weight.tolist(), strict=True
        ):
            extra = {"w": scale} if self._classifier.weighted else {}
            self.model.learn_one(features, label == 1, **extra)
        self._learned += len(kept.target)

    def advance(self, event_ms: int) -> None:
        """Nothing: no classifier of river knows time."""

    def _check_weights(self, batch: Batch) -> None:
        odd = (batch.weight != 0) & (batch.weight != 1)
        if odd.any() and not self._classifier.weighted:
            raise ValueError(
                f"weight {batch.weight[odd][0]:g} must be 0 or 1: river's {self.config.kind} knows no weights. "
                "Repeat or drop rows instead."
            )

    def _features(self, rows: Rows) -> list[dict[Any, float]]:
        """A dict for each row: positions of dense inputs below 0, buckets of ids from 0 on."""
        features: list[dict[Any, float]] = [{} for _ in range(len(rows.ids))]
        if self._classifier.dense:
            names = [-1 - k for k in range(self.shape.dense)]
            features = [dict(zip(names, values, strict=True)) for values in rows.dense.tolist()]
        if self._classifier.ids:
            ids = rows.ids[:, self._columns]
            for row, present, buckets in zip(features, ids != 0, ids % np.uint64(self.config.buckets), strict=True):
                row.update(dict.fromkeys(buckets[present].tolist(), 1.0))
        return features

    def _known(self, features: dict[Any, float]) -> dict[Any, float]:
        """What may be asked of the model: a factorisation machine would make up and keep vectors of unseen ids."""
        if self.config.kind != "fm":
            return features
        return {name: value for name, value in features.items() if name in self.model.latents}

    def state(self) -> dict[str, NDArray[Any]]:
        """``river.pickle`` : the model as bytes · ``river.learned`` : (1,) rows that it learned."""
        pickled = np.frombuffer(pickle.dumps(self.model), np.uint8).copy()
        return {"river.pickle": pickled, "river.learned": np.array([self._learned], np.int64)}

    @classmethod
    def from_state(cls, config: RiverConfig, shape: ModelShape, state: Mapping[str, NDArray[Any]]) -> Self:
        """The learner that ``state`` was taken from. Raises ValueError for one without arrays or of another kind."""
        learner = cls(config, shape)
        try:
            model, learned = pickle.loads(state["river.pickle"].tobytes()), int(state["river.learned"][0])  # noqa: S301
        except KeyError as error:
            raise ValueError(f"a state without {error} is none of RiverClassifier: it cannot be continued.") from error
        if type(model) is not type(learner.model):
            raise ValueError(
                f"a state of {type(model).__name__} must be of {type(learner.model).__name__}: it came from another "
                "kind. Use the config that it was learned with."
            )
        learner.model, learner._learned = model, learned
        return learner
