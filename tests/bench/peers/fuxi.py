"""FuxiCTR's DeepFM: its ``train_step``. ``python -m tests.bench.peers.fuxi ROWS_FOLDER``.

The package has the layers but not its model zoo; ``DeepFM`` composes them as the zoo's DeepFM does.
"""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from fuxictr.features import FeatureMap  # type: ignore[import-not-found, unused-ignore]
from fuxictr.pytorch.layers import (  # type: ignore[import-not-found, unused-ignore]
    FactorizationMachine,
    FeatureEmbedding,
    MLP_Block,
)
from fuxictr.pytorch.models import BaseModel  # type: ignore[import-not-found, unused-ignore]
from numpy.typing import NDArray

from tests.bench.rows import BATCH, CARDINALITIES, DIM, HIDDEN, ClickRows
from tests.bench.turns import take_turns

_GRADIENT_NORM = 10.0  # the default of FuxiCTR's fit
_RATE = 1e-3


class DeepFM(BaseModel):  # type: ignore[misc, unused-ignore]
    """First order + FM + MLP from FuxiCTR's own layers; no penalties, no dropout, no batch norm."""

    def __init__(self, features: Any, rate: float) -> None:
        super().__init__(features, model_id="deepfm", verbose=0, model_root=tempfile.gettempdir(), metrics=["logloss"])
        self.embedding_layer = FeatureEmbedding(features, DIM)
        self.fm = FactorizationMachine(features)
        self.mlp = MLP_Block(
            input_dim=features.sum_emb_out_dim(), output_dim=1, hidden_units=list(HIDDEN), hidden_activations="ReLU"
        )
        self.compile("adam", "binary_crossentropy", rate)
        self.reset_parameters()
        self.model_to_device()
        self._max_gradient_norm = _GRADIENT_NORM

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Probabilities, (B, 1)."""
        x = self.get_inputs(inputs)
        vectors = self.embedding_layer(x)
        logit = self.fm(x, vectors) + self.mlp(vectors.flatten(start_dim=1))
        return {"y_pred": self.output_activation(logit)}


def _feature_map() -> Any:
    """39 categorical features; id 0 is padding there, so a column has one id more."""
    features = FeatureMap("clicks", tempfile.gettempdir())
    features.features = OrderedDict(
        (f"f{field}", {"source": "", "type": "categorical", "vocab_size": cardinality + 1, "padding_idx": 0})
        for field, cardinality in enumerate(CARDINALITIES)
    )
    features.labels = ["label"]
    features.num_fields = len(CARDINALITIES)
    features.default_emb_dim = DIM
    features.total_features = sum(CARDINALITIES)
    features.set_column_index()
    return features


class FuxiDeepFM:
    """``train_step`` on batches as its data loader hands them out."""

    def __init__(self, rate: float | None) -> None:
        self.model = DeepFM(_feature_map(), rate or _RATE)

    def learn(self, rows: ClickRows) -> None:
        """One ``train_step`` a batch."""
        self.model.train()
        for batch in _batches(rows):
            self.model.train_step(batch)

    def probabilities(self, rows: ClickRows) -> NDArray[Any]:
        """The forward pass without gradients, in batches."""
        self.model.eval()
        with torch.no_grad():
            return np.concatenate([self.model(batch)["y_pred"].numpy()[:, 0] for batch in _batches(rows)])


def _batches(rows: ClickRows) -> list[dict[str, torch.Tensor]]:
    ids, labels = torch.from_numpy(rows.ids), torch.from_numpy(rows.labels)
    return [
        {f"f{field}": ids[start : start + BATCH, field] for field in range(ids.shape[1])}
        | {"label": labels[start : start + BATCH]}
        for start in range(0, len(ids), BATCH)
    ]


def _from_one(rows: ClickRows) -> ClickRows:
    """Ids as FuxiCTR's tokenizer makes them: int64, counted from 1."""
    return ClickRows(rows.ids.astype(np.int64) + 1, rows.labels)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    take_turns(FuxiDeepFM, _from_one)
