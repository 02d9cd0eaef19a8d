"""The MLP of one head, forward and backward written out over buffers that are made once.

At 64 rows autograd takes 60 % of a step; at 2048 the buffers save its page faults. The tests hold this against it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from learners.nn.kernels import add_bias_relu, relu_backward

Tensors = Mapping[str, torch.Tensor]


class Buffers(NamedTuple):
    """Of one chunk of n rows. outputs, flows : of each hidden layer, (n, width) · bf16_inputs : its inputs in bf16."""

    outputs: list[torch.Tensor]
    flows: list[torch.Tensor]
    bf16_inputs: list[torch.Tensor]

    def first(self, rows: int) -> Buffers:
        """The same memory for fewer rows."""
        return Buffers([t[:rows] for t in self.outputs], [t[:rows] for t in self.flows], [])


class Mlp:
    """ReLU layers of ``hidden`` widths over ``inputs`` numbers, then one number.

    Parameters
    ----------
    prefix
        Of the names of its parameters, ``<prefix>.<layer>.weight`` (out, in) and ``.bias`` (out,).
    value
        All parameters by name; they are read at each call.
    bf16
        Multiply in bf16 while learning: on copies of the weights that ``begin`` makes. Weights and sums stay in fp32.
    """

    def __init__(
        self, prefix: str, inputs: int, hidden: tuple[int, ...], value: Tensors, *, bf16: bool = False
    ) -> None:
        self.widths = (inputs, *hidden)
        self._layers = len(hidden)
        self._names = [(f"{prefix}.{layer}.weight", f"{prefix}.{layer}.bias") for layer in range(self._layers + 1)]
        self._value = value
        self._bf16 = bf16
        self._bf16_weights: list[torch.Tensor] = []

    @staticmethod
    def shapes(prefix: str, inputs: int, hidden: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """The parameters' shapes by name."""
        widths = (inputs, *hidden, 1)
        shapes: dict[str, tuple[int, ...]] = {}
        for layer in range(len(widths) - 1):
            shapes[f"{prefix}.{layer}.weight"] = (widths[layer + 1], widths[layer])
            shapes[f"{prefix}.{layer}.bias"] = (widths[layer + 1],)
        return shapes

    def start(self, generator: np.random.Generator) -> None:
        """He et al. 2015 for ReLU layers; the output layer at half of it, so that early logits stay near 0."""
        for layer, (name, _) in enumerate(self._names):
            weight = self._value[name].numpy()
            scale = math.sqrt(2 / weight.shape[1]) * (1 if layer < self._layers else 0.5)
            weight[...] = generator.standard_normal(weight.shape, dtype=np.float32) * np.float32(scale)

    def buffers(self, rows: int) -> Buffers:
        """Room for ``rows`` rows."""
        widths = self.widths[1:]
        return Buffers([torch.empty((rows, w)) for w in widths], [torch.empty((rows, w)) for w in widths], [])

    def begin(self) -> None:
        """Before a batch is learned: the weights are as they will be until its end."""
        if self._bf16:
            self._bf16_weights = [self._value[name].bfloat16() for name, _ in self._names[:-1]]

    def forward(self, x: torch.Tensor, buffers: Buffers, *, learning: bool) -> torch.Tensor:
        """Inputs (n, widths[0]) → outputs (n,), in fp32 unless ``learning`` with bf16; fills the buffers."""
        layer_input = x
        buffers.bf16_inputs.clear()
        for layer, output in enumerate(buffers.outputs):
            weight, bias = self._names[layer]
            if learning and self._bf16:
                buffers.bf16_inputs.append(layer_input.bfloat16())
                output.copy_(buffers.bf16_inputs[layer] @ self._bf16_weights[layer].T)
            else:
                torch.mm(layer_input, self._value[weight].T, out=output)
            add_bias_relu(output.numpy(), self._value[bias].numpy())
            layer_input = output
        weight, bias = self._names[-1]
        return torch.addmv(self._value[bias], layer_input, self._value[weight][0])

    def backward(
        self,
        x: torch.Tensor,
        error: torch.Tensor,
        buffers: Buffers,
        gradient: Tensors,
        flow: torch.Tensor,
        *,
        add: bool,
    ) -> None:
        """After ``forward``: ∂loss/∂outputs (n,) → sums over the rows in ``gradient``, and ∂loss/∂x in ``flow``.

        ``add``: to what ``flow`` holds already.
        """
        weight, bias = self._names[-1]
        layer_input = buffers.outputs[-1] if self._layers else x
        torch.mv(layer_input.T, error, out=gradient[weight][0])
        torch.sum(error, 0, keepdim=True, out=gradient[bias])
        if not self._layers:
            torch.addr(flow, error, self._value[weight][0], beta=int(add), out=flow)
            return
        torch.mul(error[:, None], self._value[weight], out=buffers.flows[-1])
        for layer in reversed(range(self._layers)):
            weight, bias = self._names[layer]
            outflow = buffers.flows[layer]
            relu_backward(outflow.numpy(), buffers.outputs[layer].numpy(), gradient[bias].numpy())
            layer_input = buffers.outputs[layer - 1] if layer else x
            inflow = buffers.flows[layer - 1] if layer else flow
            self._backward_gemms(layer, layer_input, buffers, gradient[weight], inflow, add=add and layer == 0)

    def _backward_gemms(
        self,
        layer: int,
        layer_input: torch.Tensor,
        buffers: Buffers,
        gradient: torch.Tensor,
        inflow: torch.Tensor,
        *,
        add: bool,
    ) -> None:
        outflow = buffers.flows[layer]
        if not self._bf16:
            weight = self._value[self._names[layer][0]]
            torch.mm(outflow.T, layer_input, out=gradient)
            torch.addmm(inflow, outflow, weight, beta=int(add), out=inflow)
            return
        half = outflow.bfloat16()
        gradient.copy_(half.T @ buffers.bf16_inputs[layer])
        back = half @ self._bf16_weights[layer]
        if add:
            inflow.add_(back)
        else:
            inflow.copy_(back)
