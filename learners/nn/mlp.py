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
    """For n rows. outputs, grad_outputs : of each hidden layer, (n, width) · bf16_inputs : its inputs in bf16."""

    outputs: list[torch.Tensor]
    grad_outputs: list[torch.Tensor]
    bf16_inputs: list[torch.Tensor]

    def first(self, rows: int) -> Buffers:
        """The same memory for fewer rows."""
        return Buffers([t[:rows] for t in self.outputs], [t[:rows] for t in self.grad_outputs], [])


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
        grad_output: torch.Tensor,
        buffers: Buffers,
        gradient: Tensors,
        grad_input: torch.Tensor,
        *,
        add: bool,
    ) -> None:
        """After ``forward``: ∂loss/∂outputs (n,) → sums over the rows in ``gradient``, and ∂loss/∂x in ``grad_input``.

        ``add``: to what ``grad_input`` holds already.
        """
        weight, bias = self._names[-1]
        layer_input = buffers.outputs[-1] if self._layers else x
        torch.mv(layer_input.T, grad_output, out=gradient[weight][0])
        torch.sum(grad_output, 0, keepdim=True, out=gradient[bias])
        if not self._layers:
            torch.addr(grad_input, grad_output, self._value[weight][0], beta=int(add), out=grad_input)
            return
        torch.mul(grad_output[:, None], self._value[weight], out=buffers.grad_outputs[-1])
        for layer in reversed(range(self._layers)):
            weight, bias = self._names[layer]
            grad_hidden = buffers.grad_outputs[layer]
            relu_backward(grad_hidden.numpy(), buffers.outputs[layer].numpy(), gradient[bias].numpy())
            layer_input = buffers.outputs[layer - 1] if layer else x
            grad_layer_input = buffers.grad_outputs[layer - 1] if layer else grad_input
            self._backward_gemms(
                layer, layer_input, buffers, gradient[weight], grad_layer_input, add=add and layer == 0
            )

    def _backward_gemms(
        self,
        layer: int,
        layer_input: torch.Tensor,
        buffers: Buffers,
        gradient: torch.Tensor,
        grad_input: torch.Tensor,
        *,
        add: bool,
    ) -> None:
        grad_output = buffers.grad_outputs[layer]
        if not self._bf16:
            weight = self._value[self._names[layer][0]]
            torch.mm(grad_output.T, layer_input, out=gradient)
            torch.addmm(grad_input, grad_output, weight, beta=int(add), out=grad_input)
            return
        bf16_grad = grad_output.bfloat16()
        gradient.copy_(bf16_grad.T @ buffers.bf16_inputs[layer])
        back = bf16_grad @ self._bf16_weights[layer]
        if add:
            grad_input.add_(back)
        else:
            grad_input.copy_(back)
