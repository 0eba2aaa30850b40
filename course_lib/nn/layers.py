"""Layers and their backward passes, written out: linear, GELU, embedding, softmax with cross-entropy.

NumPy only. Each `..._backward` takes the derivative of the loss with respect to the layer's output, and
returns it with respect to what went in. `dy` is short for dL/dy, and has y's shape.
"""

import math

import numpy as np
from jaxtyping import Float, Int

from course_lib.numerics import softmax
from course_lib.parts import exercise


def linear(
    x: Float[np.ndarray, "... fan_in"],
    weight: Float[np.ndarray, "fan_in fan_out"],
    bias: Float[np.ndarray, " fan_out"],
) -> Float[np.ndarray, "... fan_out"]:
    """x @ weight + bias: one row of x an example. PyTorch keeps the transpose of this weight."""
    return x @ weight + bias


@exercise(day=3)
def linear_backward(
    dy: Float[np.ndarray, "... fan_out"],
    x: Float[np.ndarray, "... fan_in"],
    weight: Float[np.ndarray, "fan_in fan_out"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Backward of y = x @ weight + bias, for any leading axes: one row, a batch, (batch, tokens).

    Args:
        dy: derivative of the loss with respect to y.
        x: what went into the layer.
        weight: the layer's weight.

    Returns:
        (dx, dweight, dbias), of the shapes of x, weight and bias. Weight and bias serve every
        row, so their gradients are sums over the rows; not means: the loss has already divided.
    """
    dx = dy @ weight.T
    # To the weight it makes no difference which axis a row came from.
    rows_x = x.reshape(-1, weight.shape[0])
    rows_dy = dy.reshape(-1, weight.shape[1])
    return dx, rows_x.T @ rows_dy, rows_dy.sum(axis=0)


@exercise(day=3)
def gelu(x: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """GELU as GPT-2 computes it: x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))).

    An approximation of x times the probability that a normal variable is below x, good to 5e-4.

    Args:
        x: any shape, float32 or float64.

    Returns:
        x's shape and x's type: float32 stays float32.

    Source: Hendrycks & Gimpel (2016), "Gaussian Error Linear Units (GELUs)", section 2.
    """
    # math.sqrt, for np.sqrt gives a float64 scalar, which would widen a float32 array. And
    # x * x * x, for NumPy's x**3 calls a general power, dozens of times slower.
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
    return 0.5 * x * (1 + np.tanh(inner))


@exercise(day=3)
def gelu_backward(
    dy: Float[np.ndarray, "..."],
    x: Float[np.ndarray, "..."],
) -> Float[np.ndarray, "..."]:
    """Backward of `gelu`: dy times the slope of GELU at x, entry by entry.

    Args:
        dy: derivative of the loss with respect to gelu(x), of x's shape.
        x: what went into gelu.

    Returns:
        dx, of x's shape and type.
    """
    c = math.sqrt(2 / math.pi)
    t = np.tanh(c * (x + 0.044715 * x * x * x))
    inner_slope = c * (1 + 3 * 0.044715 * x * x)
    # x/2 * (1 + t) is a product: one term for each factor, and t' = (1 - t^2) * inner_slope.
    return dy * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner_slope)


@exercise(day=3)
def embedding_backward(
    dy: Float[np.ndarray, "... width"], ids: Int[np.ndarray, "..."], vocab: int
) -> Float[np.ndarray, "vocab width"]:
    """Backward of the look-up y = table[ids]: each row of dy goes to the row that was looked up.

    Args:
        dy: derivative of the loss with respect to y.
        ids: the indices that were looked up, 0..vocab-1; any shape; the same one may occur often.
        vocab: rows of the table.

    Returns:
        The table's gradient, in dy's type; rows that nobody looked up are zero.
    """
    dtable = np.zeros((vocab, dy.shape[-1]), dtype=dy.dtype)
    # dtable[ids] += dy would read all rows, add, and write: of repeated ids the last one wins.
    np.add.at(dtable, ids, dy)
    return dtable


@exercise(day=3)
def cross_entropy_backward(
    logits: Float[np.ndarray, "... vocab"], targets: Int[np.ndarray, "..."]
) -> Float[np.ndarray, "... vocab"]:
    """Gradient of `numerics.cross_entropy`, the mean over all positions, by the logits.

    Args:
        logits: (..., vocab).
        targets: (...), such as `cross_entropy` accepts.

    Returns:
        (softmax - one-hot of the target) / number of positions: logits' shape and type (float16
        becomes float32, as in `softmax`).
    """
    one_hot = np.arange(logits.shape[-1]) == targets[..., None]  # (..., vocab)
    return (softmax(logits) - one_hot) / targets.size
