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
class Member:
    """One learner of the family. ``config`` is a dataclass: `dataclasses.replace` gives another one."""

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


FAMILY: Mapping[str, Member] = {
    "deepfm": Member(
        description="DeepFM (Guo 2017): first order, FM and MLP over one embedding table",
        learner=DeepFM,
        config=DeepFMConfig(),
    ),
    "fm": Member(
        description="factorisation machine (Rendle 2010): first order and pairs",
        learner=NetworkLearner,
        config=NetworkConfig(kind="fm"),
    ),
    "wide_deep": Member(
        description="Wide & Deep (Cheng 2016): first order beside an MLP",
        learner=NetworkLearner,
        config=NetworkConfig(kind="wide_deep"),
    ),
    "dcn_v2": Member(
        description="DCN-v2 (Wang 2021): explicit crosses beside an MLP",
        learner=NetworkLearner,
        config=NetworkConfig(kind="dcn_v2"),
    ),
    "din": Member(
        description="DIN (Zhou 2018): MLP with attention to the user's recent ads",
        learner=NetworkLearner,
        config=NetworkConfig(kind="din"),
    ),
    "ftrl": Member(
        description="logistic regression by FTRL-proximal on ids and dense inputs",
        learner=FtrlRegression,
        config=FtrlConfig(alpha=0.02),
    ),
    "ftrl_ids": Member(
        description="logistic regression by FTRL-proximal on ids alone (McMahan 2013)",
        learner=FtrlRegression,
        config=FtrlConfig(dense=False),
    ),
    "trees": Member(
        description="boosted trees refitted daily, online regression on their leaves (He 2014)",
        learner=LeafTrees,
        config=TreesConfig(),
    ),
    "stack": Member(
        description="boosted trees refitted daily beside an online DeepFM, their logits weighed online",
        learner=Stack,
        config=StackConfig(),
    ),
    "river_logistic_ftrl": Member(
        description="river: logistic regression by FTRL-proximal",
        learner=RiverClassifier,
        config=RiverConfig(kind="logistic_ftrl"),
    ),
    "river_ad_predictor": Member(
        description="river: AdPredictor, Bayesian probit regression on ids (Graepel 2010)",
        learner=RiverClassifier,
        config=RiverConfig(kind="ad_predictor"),
    ),
    "river_fm": Member(
        description="river: factorisation machine on ids",
        learner=RiverClassifier,
        config=RiverConfig(kind="fm"),
    ),
    "river_hoeffding_adaptive_tree": Member(
        description="river: Hoeffding adaptive tree on dense inputs (Bifet 2009)",
        learner=RiverClassifier,
        config=RiverConfig(kind="hoeffding_adaptive_tree"),
    ),
    "river_adaptive_random_forest": Member(
        description="river: adaptive random forest on dense inputs (Gomes 2017)",
        learner=RiverClassifier,
        config=RiverConfig(kind="adaptive_random_forest"),
    ),
}


def member(name: str) -> Member:
    """A learner by its name. Raises ValueError with the known ones."""
    if name not in FAMILY:
        raise ValueError(
            f"unknown learner {name!r}: nothing would be learned. Name one of {', '.join(sorted(FAMILY))}."
        )
    return FAMILY[name]
