"""The dense part of DeepFM on a GPU, for the large batches of base training.

The table, the parameters and both optimisers stay in host memory, where the stream goes on with them. A step sends the
batch's distinct table rows, their places, and the parameters (some 150 kB) to the GPU, and takes the gradients back.
That pays from some thousand rows a batch; at the stream's 128 rows the CPU is faster.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch.nn.functional import linear, logsigmoid

from learners.deepfm import DeepFM
from learners.deepfm_config import DeepFMConfig
from learners.network import Floats, Inputs, Network
from learners.terms import Terms

DeviceSetting = Literal["auto", "cpu", "cuda"]


def chosen_device(setting: str, rank: int = 0) -> torch.device:
    """The device to learn on; ``auto`` takes a GPU where torch sees one. Workers of one machine take turns.

    Raises
    ------
    ValueError
        Another setting, or ``cuda`` where torch sees no GPU.
    """
    if setting not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device {setting} must be auto, cpu or cuda: torch code for no other was written.")
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if setting == "cuda" and not seen:
        raise ValueError("--device cuda needs a GPU and torch sees none: install a torch built for it, or use cpu.")
    return torch.device("cuda", rank % seen) if seen and setting != "cpu" else torch.device("cpu")


def moved(model: DeepFM, device: torch.device) -> DeepFM:
    """The same model, its dense part on ``device`` from now on; states are exchanged freely between both kinds."""
    network = GpuNetwork(model.config, columns=len(model.shape.embedded), dense=model.shape.dense, device=device)
    network.parameters.load(model.dense.arrays())
    model.network, model.dense = network, network.parameters
    return model


class GpuNetwork(Network):
    """A `Network` whose forward and backward pass run on ``device``, by autograd, in fp32.

    Its sums are added in another order than on a CPU: the same batches give nearly, not exactly, the same weights.
    """

    def __init__(self, config: DeepFMConfig, *, columns: int, dense: int, device: torch.device) -> None:
        if config.regularised:
            raise ValueError(
                f"batch_norm={config.batch_norm} and dropout={config.dropout} must be off on a GPU: only the CPU's "
                "network has them. Use --device cpu."
            )
        super().__init__(config, columns=columns, dense=dense)
        self.device = device
        self._depths = [len(widths) for widths in config.tower_widths]

    def logits(self, inputs: Inputs) -> Floats:
        """Each head's own logit, (H, B)."""
        with torch.no_grad():
            return self._own_logits(inputs, self._sent(inputs.values), self._sent_parameters()).T.cpu().numpy()

    def gradients(self, inputs: Inputs, terms: Terms, *, step: int = 0, first_row: int = 0) -> tuple[Floats, Floats]:
        """Sums over the rows of the log loss' gradients: of ``values`` (U, D + 1) and of the parameters, flat (P,)."""
        values, parameters = self._sent(inputs.values).requires_grad_(), self._sent_parameters()
        for parameter in parameters.values():
            parameter.requires_grad_()
        loss = self._loss(inputs, terms, values, parameters)
        of_values, *of_parameters = torch.autograd.grad(loss, [values, *parameters.values()])
        sums = self.parameters.like()
        for name, gradient in zip(parameters, of_parameters, strict=True):
            sums.value[name].copy_(gradient)
        return of_values.cpu().numpy(), sums.flat.numpy()

    def _sent(self, array: Floats) -> torch.Tensor:
        return torch.tensor(array, device=self.device)  # a copy, also on the CPU

    def _sent_parameters(self) -> dict[str, torch.Tensor]:
        return {name: value.detach().clone().to(self.device) for name, value in self.parameters.value.items()}

    def _loss(
        self, inputs: Inputs, terms: Terms, values: torch.Tensor, parameters: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        """Σ exposure·softplus(z) − event·z, in the form of `learners.heads.summed_loss`."""
        own = self._own_logits(inputs, values, parameters)  # (B, H)
        exposure, event = self._sent(terms.exposure), self._sent(terms.event)
        return -((exposure - event) * logsigmoid(-own) + event * logsigmoid(own)).sum()

    def _own_logits(self, inputs: Inputs, values: torch.Tensor, parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        """(B, H)."""
        places = torch.from_numpy(inputs.inverse.astype(np.int64)).to(self.device)
        with_missing = torch.cat((values, values.new_zeros((1, values.shape[1]))))  # place −1 is its last row
        looked = with_missing[places]  # (B, E, D + 1)
        dense = self._sent(inputs.dense)
        vectors = looked[:, :, :-1]
        pairs = 0.5 * (vectors.sum(1).square().sum(1) - vectors.square().sum((1, 2)))
        x = torch.cat((vectors.flatten(1), dense), dim=1)
        towers = [self._tower(place, x, parameters) for place in range(len(self.heads))]
        towers[0] = towers[0] + looked[:, :, -1].sum(1) + pairs + dense @ parameters["linear.weight"]
        return torch.stack(towers, dim=1)

    def _tower(self, place: int, x: torch.Tensor, parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        prefix, depth = f"mlp.{self.heads.names[place]}", self._depths[place]
        for layer in range(depth):
            x = linear(x, parameters[f"{prefix}.{layer}.weight"], parameters[f"{prefix}.{layer}.bias"]).relu()
        return linear(x, parameters[f"{prefix}.{depth}.weight"], parameters[f"{prefix}.{depth}.bias"])[:, 0]
