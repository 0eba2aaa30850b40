"""Attention in NumPy: a soft look-up of values by how well a query meets each key, and what it costs.

Axes: t queries, s keys (and as many values), d numbers a head. Masks are boolean, True where a query may
look, as in PyTorch's `scaled_dot_product_attention`. `layers.py` has the same for torch.
"""

import math

import numpy as np
from jaxtyping import Bool, Float

from course_lib.numerics import softmax
from course_lib.parts import exercise
from course_lib.tensors import merge_heads, split_heads


@exercise(day=6)
def causal_mask(queries: int, keys: int) -> Bool[np.ndarray, "t s"]:
    """True where a query may look: at its own token and at all before it.

    Args:
        queries: how many tokens ask, t: the last ones of the sequence.
        keys: how many tokens there are to look at, s, the askers among them. More than t where
            earlier tokens' keys come from a cache.

    Returns:
        Booleans of shape (t, s). The last row is True throughout.

    Raises:
        ValueError: there are more queries than keys: the first would see nothing at all.
    """
    if queries > keys:
        raise ValueError(f"{queries} queries and {keys} keys: every query's own key must be there")
    last_seen = np.arange(keys - queries, keys)  # query i is token keys - queries + i
    return np.arange(keys) <= last_seen[:, None]


@exercise(day=6)
def masked_softmax(
    scores: Float[np.ndarray, "... t s"], mask: Bool[np.ndarray, "... t s"] | None = None
) -> Float[np.ndarray, "... t s"]:
    """Softmax along the last axis over the keys that the mask allows; all others get exactly 0.

    Args:
        scores: (..., t, s), float32 or float64, one or more keys.
        mask: broadcasts to scores' shape; True where a query may look. None allows everything.

    Returns:
        An array of scores' shape and type. Each row sums to 1, or is all zeros where the mask
        allows no key.
    """
    if mask is None:
        return softmax(scores)
    with np.errstate(invalid="ignore"):  # in a row without any key, -inf - -inf is NaN for a moment
        weights = softmax(np.where(mask, scores, -np.inf))
    return np.where(mask, weights, 0)


@exercise(day=6)
def scaled_dot_product(
    q: Float[np.ndarray, "... t d"],
    k: Float[np.ndarray, "... s d"],
    v: Float[np.ndarray, "... s dv"],
    mask: Bool[np.ndarray, "... t s"] | None = None,
) -> Float[np.ndarray, "... t dv"]:
    """Attention: for each query the mean of the values, weighted by softmax(q·k / sqrt(d)).

    Args:
        q, k, v: float32 or float64; leading axes (batch, heads) broadcast.
        mask: broadcasts to (..., t, s); True where a query may look. None allows everything.

    Returns:
        (..., t, dv), of the inputs' type. A query that may look nowhere gets zeros.

    Source: Vaswani et al. (2017), equation 1.
    """
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])  # (..., t, s)
    return masked_softmax(scores, mask) @ v


@exercise(day=6)
def multi_head_attention(
    q: Float[np.ndarray, "... t q_width"],
    k: Float[np.ndarray, "... s kv_width"],
    v: Float[np.ndarray, "... s kv_width"],
    heads: int,
    kv_heads: int | None = None,
    mask: Bool[np.ndarray, "... t s"] | None = None,
) -> Float[np.ndarray, "... t q_width"]:
    """Attention in several heads at once, each on its own piece of the vectors.

    Args:
        q: projected queries, of width heads * d.
        k, v: projected keys and values, of width kv_heads * d.
        heads: query heads, H.
        kv_heads: key/value heads, K; each serves H / K neighboring query heads: the first serves
            query heads 0 to H/K - 1. None means as many as query heads.
        mask: broadcasts to (..., heads, t, s), so (t, s) serves every head and sequence.

    Returns:
        (..., t, heads * d): the heads' results next to one another, before the output projection.

    Raises:
        ValueError: kv_heads does not divide heads.

    Source: Vaswani et al. (2017), section 3.2.2; Ainslie et al. (2023) for shared key/value heads.
    """
    kv_heads = heads if kv_heads is None else kv_heads
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads cannot share {kv_heads} key/value heads evenly")
    q = split_heads(q, heads)  # (..., H, t, d)
    k, v = (np.repeat(split_heads(x, kv_heads), heads // kv_heads, axis=-3) for x in (k, v))
    return merge_heads(scaled_dot_product(q, k, v, mask))


@exercise(day=6)
def sinusoidal_positions(positions: int, width: int) -> Float[np.ndarray, "positions width"]:
    """A vector for each position: sines and cosines of wavelengths from 2 pi to 10,000 * 2 pi.

    Entries 2i and 2i + 1 of position p are the sine and the cosine of p / 10,000^(2i / width).

    Returns:
        float32 of shape (positions, width).

    Raises:
        ValueError: width is odd: sines and cosines come in pairs.

    Source: Vaswani et al. (2017), section 3.5.
    """
    if width % 2:
        raise ValueError(f"width {width} is odd: each frequency takes a sine and a cosine")
    frequencies = 10_000.0 ** -(np.arange(0, width, 2) / width)  # (width / 2,)
    angles = np.arange(positions)[:, None] * frequencies  # (positions, width / 2)
    table = np.empty((positions, width), dtype=np.float32)
    table[:, 0::2], table[:, 1::2] = np.sin(angles), np.cos(angles)
    return table


@exercise(day=6)
def attention_cost(
    queries: int,
    keys: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    layers: int = 1,
    itemsize: int = 2,
) -> dict[str, int]:
    """What attention takes for one sequence, with every score computed (no mask made use of).

    The projections before and after are matrix products like any other, and not counted; nor is
    softmax, whose share is small.

    Returns:
        "flops": of both products, all heads and layers; a multiplication and an addition are 2.
        "score_bytes": of the (heads, queries, keys) scores of ONE layer: the next reuses the room.
        "kv_bytes": of the keys and values of all layers, which stay for as long as text is made.
    """
    return {
        "flops": 2 * 2 * layers * heads * queries * keys * head_dim,
        "score_bytes": heads * queries * keys * itemsize,
        "kv_bytes": 2 * layers * kv_heads * keys * head_dim * itemsize,
    }


@exercise(day=6)
def attention_backward(
    dy: Float[np.ndarray, "... t dv"],
    q: Float[np.ndarray, "... t d"],
    k: Float[np.ndarray, "... s d"],
    v: Float[np.ndarray, "... s dv"],
    mask: Bool[np.ndarray, "... t s"] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gradients of `scaled_dot_product`, given that of its output.

    Args:
        dy: gradient of the loss with respect to the output.
        q, k, v: what went in, with equal leading axes.
        mask: as it was on the way forward.

    Returns:
        (dq, dk, dv), of the shapes of q, k and v. A query that may look nowhere contributes zeros.

    Source: Dao et al. (2022), "FlashAttention", appendix B.2.
    """
    scale = 1 / math.sqrt(q.shape[-1])
    weights = masked_softmax(q @ k.swapaxes(-1, -2) * scale, mask)  # (..., t, s), computed again
    dv = weights.swapaxes(-1, -2) @ dy
    dweights = dy @ v.swapaxes(-1, -2)
    mean = (weights * dweights).sum(axis=-1, keepdims=True)  # (..., t, 1)
    dscores = weights * (dweights - mean)
    return dscores @ k * scale, dscores.swapaxes(-1, -2) @ q * scale, dv
