"""deepctr-torch's DeepFM, through ``fit`` as its users call it, or step by step at its best case.

``python -m tests.bench.peers.deepctr ROWS_FOLDER fit|step``. ``fit`` keeps every default but the layer sizes, the batch
size, the order of the rows (as given: all contestants see one order) and the progress bar (off). ``step`` is its best
case: no l2 penalty, tensors made beforehand, no DataLoader.
"""

from __future__ import annotations

import contextlib
import io
import sys
from typing import Any, NoReturn

import numpy as np
import requests  # type: ignore[import-untyped, unused-ignore]
import torch
from numpy.typing import NDArray

from tests.bench.rows import BATCH, CARDINALITIES, DIM, HIDDEN, ClickRows
from tests.bench.turns import take_turns


def _refuse(*_: object, **__: object) -> NoReturn:
    raise ConnectionError("a benchmark asks no registry whether the peer has a newer version")


requests.get = _refuse  # the import below looks for a newer version of itself, in a thread
from deepctr_torch.inputs import SparseFeat  # type: ignore[import-not-found, unused-ignore]  # noqa: E402
from deepctr_torch.models import DeepFM  # type: ignore[import-not-found, unused-ignore]  # noqa: E402

_NAMES = tuple(f"f{field}" for field in range(len(CARDINALITIES)))


class DeepCtrFit:
    """``DeepFM.fit`` with Adam at its defaults."""

    def __init__(self, rate: float | None, **penalties: float) -> None:
        columns = [
            SparseFeat(name, cardinality, embedding_dim=DIM)
            for name, cardinality in zip(_NAMES, CARDINALITIES, strict=True)
        ]
        self.model = DeepFM(columns, columns, dnn_hidden_units=HIDDEN, task="binary", device="cpu", **penalties)
        optimiser = "adam" if rate is None else torch.optim.Adam(self.model.parameters(), rate)
        self.model.compile(optimiser, "binary_crossentropy", metrics=[])

    def learn(self, rows: ClickRows) -> None:
        """One epoch of ``fit``."""
        with contextlib.redirect_stdout(io.StringIO()):
            self.model.fit(_columns(rows), rows.labels, batch_size=BATCH, epochs=1, verbose=0, shuffle=False)

    def probabilities(self, rows: ClickRows) -> NDArray[Any]:
        """``predict`` in batches."""
        found: NDArray[Any] = self.model.predict(_columns(rows), BATCH)
        return found[:, 0]


class DeepCtrStep(DeepCtrFit):
    """What ``fit`` does with one batch, without penalties and with the tensors ready."""

    def __init__(self, rate: float | None) -> None:
        super().__init__(rate, l2_reg_linear=0.0, l2_reg_embedding=0.0, l2_reg_dnn=0.0)

    def learn(self, rows: ClickRows) -> None:
        """The lines of ``fit``'s loop that a step needs."""
        model = self.model.train()
        x, y = torch.from_numpy(rows.ids), torch.from_numpy(rows.labels)
        for start in range(0, len(x), BATCH):
            predicted = model(x[start : start + BATCH]).squeeze(-1)
            model.optim.zero_grad()
            loss = model.loss_func(predicted, y[start : start + BATCH], reduction="sum")
            (loss + model.get_regularization_loss()).backward()
            model.optim.step()


def _columns(rows: ClickRows) -> dict[str, NDArray[Any]]:
    return {name: rows.ids[:, field] for field, name in enumerate(_NAMES)}


def _as_float(rows: ClickRows) -> ClickRows:
    """The model takes ids as one float32 matrix, exact below 2**24."""
    return ClickRows(rows.ids.astype(np.float32), rows.labels)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if sys.argv[2] == "fit":
        take_turns(DeepCtrFit)
    else:
        take_turns(DeepCtrStep, _as_float)
