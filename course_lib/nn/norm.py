"""Normalization of activations: LayerNorm and RMSNorm, forward and backward.

Both work on the last axis, the width of the model, and treat every position on its own.
"""

import numpy as np
from jaxtyping import Float

from course_lib.parts import exercise


@exercise(day=4)
def layer_norm(
    x: Float[np.ndarray, "... d"],
    weight: Float[np.ndarray, " d"],
    bias: Float[np.ndarray, " d"],
    eps: float = 1e-5,
) -> Float[np.ndarray, "... d"]:
    """Shift and scale each vector to mean 0 and variance 1, then by learned weight and bias.

    (x - mean) / sqrt(variance + eps) * weight + bias, with the mean and the (biased) variance of
    the last axis.

    Args:
        x: any leading axes; mean and size may be large.
        weight, bias: one number a channel.
        eps: keeps a constant vector from dividing by 0.

    Returns:
        An array of x's shape and dtype.

    Source: Ba, Kiros & Hinton (2016), "Layer Normalization".
    """
    # Two passes: subtracting the mean first is what keeps the digits of a small variance.
    centered = x - x.mean(axis=-1, keepdims=True)
    variance = np.mean(centered * centered, axis=-1, keepdims=True)
    return centered / np.sqrt(variance + eps) * weight + bias


@exercise(day=4)
def layer_norm_backward(
    dy: Float[np.ndarray, "... d"],
    x: Float[np.ndarray, "... d"],
    weight: Float[np.ndarray, " d"],
    eps: float = 1e-5,
) -> tuple[Float[np.ndarray, "... d"], Float[np.ndarray, " d"], Float[np.ndarray, " d"]]:
    """The gradients of `layer_norm(x, weight, bias, eps)` with respect to x, weight and bias.

    Args:
        dy: the loss's gradient with respect to the output, of x's shape.
        x, weight, eps: what the forward pass was given.

    Returns:
        (dx, dweight, dbias), of x's, weight's and the bias's shape.

    Source: Ba, Kiros & Hinton (2016); the same sums as PyTorch's `native_layer_norm_backward`.
    """
    centered = x - x.mean(axis=-1, keepdims=True)
    rstd = 1 / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + eps)  # (..., 1)
    n = centered * rstd  # the output before weight and bias
    g = dy * weight  # the gradient with respect to n
    # Moving all of x, or stretching it, leaves n as it was: g's parts along 1 and along n vanish.
    along_one = g.mean(axis=-1, keepdims=True)
    along_n = n * (g * n).mean(axis=-1, keepdims=True)
    positions = tuple(range(x.ndim - 1))  # weight and bias served all of them
    return rstd * (g - along_one - along_n), (dy * n).sum(axis=positions), dy.sum(axis=positions)


def rms_norm(
    x: Float[np.ndarray, "... d"], weight: Float[np.ndarray, " d"], eps: float = 1e-6
) -> Float[np.ndarray, "... d"]:
    """Scale each vector to a mean square of 1, then by a learned weight: x / rms(x) * weight.

    rms(x) = sqrt(mean(x^2) + eps) over the last axis; no mean is subtracted and no bias added.

    Source: Zhang & Sennrich (2019), "Root Mean Square Layer Normalization".
    """
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


@exercise(day=4)
def rms_norm_backward(
    dy: Float[np.ndarray, "... d"],
    x: Float[np.ndarray, "... d"],
    weight: Float[np.ndarray, " d"],
    eps: float = 1e-6,
) -> tuple[Float[np.ndarray, "... d"], Float[np.ndarray, " d"]]:
    """The gradients of `rms_norm(x, weight, eps)` with respect to x and weight.

    Args:
        dy: the loss's gradient with respect to the output, of x's shape.
        x, weight, eps: what the forward pass was given.

    Returns:
        (dx, dweight), of x's and weight's shape.

    Source: Zhang & Sennrich (2019), section 3.
    """
    rrms = 1 / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + eps)  # (..., 1)
    n = x * rrms
    g = dy * weight
    # Stretching x leaves n as it was, so the part of g along n vanishes.
    dx = rrms * (g - n * np.mean(g * n, axis=-1, keepdims=True))
    return dx, (dy * n).reshape(-1, x.shape[-1]).sum(axis=0)
