"""All learners by name, each with the config that it starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from learners.deepfm.model import DeepFM, DeepFMConfig
from learners.features.shape import ModelShape
from learners.models.ftrl import FtrlConfig, FtrlRegression
from learners.models.network_learner import NetworkLearner
from learners.models.networks import NetworkConfig
from learners.models.river import RiverClassifier, RiverConfig
from learners.models.stack import Stack, StackConfig
from learners.models.trees import LeafTrees, TreesConfig
from learners.protocol.learner import Learner, State


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One learner. ``config`` is a dataclass: `dataclasses.replace` gives another one."""

    description: str
    learner: type[Learner]
    config: Any

    @property
    def additive(self) -> bool:
        """Whether it learns the two terms of the log loss apart, `AdditiveLearner`; others need the label of a row."""
        return hasattr(self.learner, "learn_terms")

    def make(self, shape: ModelShape, config: Any = None) -> Learner:
        """A fresh learner, of ``config`` instead of its own if one is given."""
        return self.learner(self.config if config is None else config, shape)

    def from_state(self, shape: ModelShape, state: State, config: Any = None) -> Learner:
        """The learner that ``state`` was taken from."""
        return self.learner.from_state(self.config if config is None else config, shape, state)


REGISTRY: Mapping[str, Entry] = {
    "deepfm": Entry(
        description="DeepFM (Guo 2017): first order, FM and MLP over one embedding table",
        learner=DeepFM,
        config=DeepFMConfig(),
    ),
    "fm": Entry(
        description="factorisation machine (Rendle 2010): first order and pairs",
        learner=NetworkLearner,
        config=NetworkConfig(kind="fm"),
    ),
    "wide_deep": Entry(
        description="Wide & Deep (Cheng 2016): first order beside an MLP",
        learner=NetworkLearner,
        config=NetworkConfig(kind="wide_deep"),
    ),
    "dcn_v2": Entry(
        description="DCN-v2 (Wang 2021): explicit crosses beside an MLP",
        learner=NetworkLearner,
        config=NetworkConfig(kind="dcn_v2"),
    ),
    "din": Entry(
        description="DIN (Zhou 2018): MLP with attention to the user's recent ads",
        learner=NetworkLearner,
        config=NetworkConfig(kind="din"),
    ),
    "ftrl": Entry(
        description="logistic regression by FTRL-proximal on ids and dense inputs",
        learner=FtrlRegression,
        config=FtrlConfig(alpha=0.02),
    ),
    "ftrl_ids": Entry(
        description="logistic regression by FTRL-proximal on ids alone (McMahan 2013)",
        learner=FtrlRegression,
        config=FtrlConfig(dense=False),
    ),
    "trees": Entry(
        description="boosted trees refitted daily, online regression on their leaves (He 2014)",
        learner=LeafTrees,
        config=TreesConfig(),
    ),
    "stack": Entry(
        description="boosted trees refitted daily beside an online DeepFM, their logits weighed online",
        learner=Stack,
        config=StackConfig(),
    ),
    "river_logistic_ftrl": Entry(
        description="river: logistic regression by FTRL-proximal",
        learner=RiverClassifier,
        config=RiverConfig(kind="logistic_ftrl"),
    ),
    "river_ad_predictor": Entry(
        description="river: AdPredictor, Bayesian probit regression on ids (Graepel 2010)",
        learner=RiverClassifier,
        config=RiverConfig(kind="ad_predictor"),
    ),
    "river_fm": Entry(
        description="river: factorisation machine on ids",
        learner=RiverClassifier,
        config=RiverConfig(kind="fm"),
    ),
    "river_hoeffding_adaptive_tree": Entry(
        description="river: Hoeffding adaptive tree on dense inputs (Bifet 2009)",
        learner=RiverClassifier,
        config=RiverConfig(kind="hoeffding_adaptive_tree"),
    ),
    "river_adaptive_random_forest": Entry(
        description="river: adaptive random forest on dense inputs (Gomes 2017)",
        learner=RiverClassifier,
        config=RiverConfig(kind="adaptive_random_forest"),
    ),
}


def registered(name: str) -> Entry:
    """A learner by its name. Raises ValueError with the known ones."""
    if name not in REGISTRY:
        raise ValueError(
            f"unknown learner {name!r}: nothing would be learned. Name one of {', '.join(sorted(REGISTRY))}."
        )
    return REGISTRY[name]
