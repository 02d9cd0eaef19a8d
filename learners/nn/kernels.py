"""The sparse side of a step and the elementwise parts of the dense one, compiled.

Inner loops index whole arrays: with slices of them scatter takes five times as long.
Shapes: n rows of a chunk, E embedded columns, D = dim, U different table rows of the batch, W >= E·D inputs of the MLP.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from learners.kernel import kernel

Floats = NDArray[np.float32]


@kernel
def expand(values: Floats, inverse: NDArray[np.int32], x: Floats, sums: Floats, logits: Floats) -> None:
    """Write each row's vectors side by side into ``x`` (n, W), and the first order and FM into ``logits`` (n,).

    values : (U, D + 1) vectors and first-order weights. inverse : (n, E) rows of ``values``, negative for a missing
    id. sums : (n, D), into which the sum of a row's vectors is written. FM is equation 2 of the DeepFM paper by the
    identity of Rendle 2010, equation 5: half the difference between the squared sum and the sum of squares.
    """
    dim = sums.shape[1]
    squares = np.empty(dim, np.float32)
    for row in range(len(inverse)):
        for d in range(dim):
            sums[row, d] = squares[d] = 0
        first = np.float32(0)
        for column in range(inverse.shape[1]):
            value, start = inverse[row, column], column * dim
            if value < 0:
                for d in range(dim):
                    x[row, start + d] = 0
                continue
            first += values[value, dim]
            for d in range(dim):
                v = values[value, d]
                x[row, start + d] = v
                sums[row, d] += v
                squares[d] += v * v
        pairs = np.float32(0)
        for d in range(dim):
            pairs += sums[row, d] * sums[row, d] - squares[d]
        logits[row] = first + np.float32(0.5) * pairs


@kernel
def scatter(grad_x: Floats, inverse: NDArray[np.int32], sums: Floats, grad_logit: Floats, gradients: Floats) -> None:
    """Add a chunk's gradients to those of its values, in the order of the rows.

    grad_x : (n, W) ∂loss/∂x of the MLPs. grad_logit : (n,) ∂loss/∂(first order + FM). gradients : (U, D + 1), to which
    FM adds only grad_logit · (sum of the row's vectors); ``less_own_vector`` takes away the rest.
    """
    dim = sums.shape[1]
    pull = np.empty(dim, np.float32)
    for row in range(len(inverse)):
        for d in range(dim):
            pull[d] = grad_logit[row] * sums[row, d]
        for column in range(inverse.shape[1]):
            value, start = inverse[row, column], column * dim
            if value >= 0:
                gradients[value, dim] += grad_logit[row]
                for d in range(dim):
                    gradients[value, d] += grad_x[row, start + d] + pull[d]


@kernel
def less_own_vector(gradients: Floats, values: Floats) -> None:
    """Finish ``scatter``: ∂FM/∂v = (sum of the row's vectors) − v, and v is the same wherever the id occurs."""
    dim = values.shape[1] - 1
    for value in range(len(values)):
        for d in range(dim):
            gradients[value, d] -= gradients[value, dim] * values[value, d]


@kernel
def add_bias_relu(x: Floats, bias: Floats) -> None:
    """Add bias (w,) to ``x`` (n, w) and cut it off at 0, in place. A NaN stays one."""
    for row in range(x.shape[0]):
        for j in range(x.shape[1]):
            v = x[row, j] + bias[j]
            x[row, j] = np.float32(0) if v < 0 else v


@kernel
def relu_backward(grad_output: Floats, outputs: Floats, bias_gradient: Floats) -> None:
    """Zero ``grad_output`` (n, w) where the layer gave 0, in place; its row sum goes into ``bias_gradient`` (w,)."""
    bias_gradient[:] = 0
    for row in range(grad_output.shape[0]):
        for j in range(grad_output.shape[1]):
            v = grad_output[row, j] if outputs[row, j] > 0 else np.float32(0)
            grad_output[row, j] = v
            bias_gradient[j] += v


@kernel
def adam(
    values: Floats,
    gradients: Floats,
    first: Floats,
    second: Floats,
    scale: np.float32,
    decays: tuple[np.float32, np.float32],
    rate: np.float32,
    second_correction: np.float32,
    epsilon: np.float32,
) -> None:
    """One Adam step on ``scale`` x ``gradients``, all (P,), in place; ``rate`` holds the first moment's correction."""
    keep_first, keep_second = decays
    for i in range(len(values)):
        gradient = scale * gradients[i]
        m = keep_first * first[i] + (np.float32(1) - keep_first) * gradient
        v = keep_second * second[i] + (np.float32(1) - keep_second) * gradient * gradient
        first[i] = m
        second[i] = v
        values[i] -= rate * m / (np.sqrt(v) / second_correction + epsilon)
