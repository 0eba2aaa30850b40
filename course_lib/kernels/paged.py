"""Attention over keys and values that lie in blocks, as it is defined: in NumPy, one query at a time."""

import math

import numpy as np
from jaxtyping import Float, Int

from course_lib.parts import exercise


@exercise(day=24)
def paged_attention(
    query: Float[np.ndarray, "N H D"],
    keys: Float[np.ndarray, "blocks size K D"],
    values: Float[np.ndarray, "blocks size K D"],
    block_tables: Int[np.ndarray, "N most"],
    lengths: Int[np.ndarray, " N"],
    scale: float | None = None,
) -> Float[np.ndarray, "N H D"]:
    """Attention in which every query reads its text's keys and values where they lie, in blocks.

    Args:
        query: N tokens, of one text or of many, with H heads of D numbers.
        keys, values: the whole pool: blocks of `size` tokens, K heads each; head k serves query
            heads k*H/K to (k+1)*H/K - 1.
        block_tables: row i lists the blocks of token i's text, in order. What stands behind the
            blocks that it needs has no meaning.
        lengths: token i sees the first lengths[i] tokens of its text, at least one.
        scale: multiplies the scores; None: 1/sqrt(D).

    Returns:
        (N, H, D), in float32 or float64 as the query. Extra memory is one block of scores a head:
        the softmax is computed online, with a running maximum and a running sum.

    Source: Kwon et al. (2023), section 4.1; Milakov and Gimelshein (2018) for the online softmax.
    """
    tokens, heads, width = query.shape
    size, kv_heads = keys.shape[1:3]
    scale = 1 / math.sqrt(width) if scale is None else scale
    grouped = query.reshape(tokens, kv_heads, heads // kv_heads, width) * query.dtype.type(scale)
    mixed = np.empty_like(grouped)
    for i, length in enumerate(lengths):
        best = np.full((*grouped.shape[1:3], 1), -np.inf, query.dtype)  # (K, H/K, 1)
        weight_sum, value_sum = np.zeros_like(best), np.zeros_like(grouped[i])
        for start in range(0, length, size):
            block = block_tables[i, start // size]
            filled = min(size, length - start)
            key, value = keys[block, :filled], values[block, :filled]  # (filled, K, D)
            scores = np.einsum("kgd,skd->kgs", grouped[i], key)
            higher = np.maximum(best, scores.max(-1, keepdims=True))
            weights, shrink = np.exp(scores - higher), np.exp(best - higher)
            weight_sum = weight_sum * shrink + weights.sum(-1, keepdims=True)
            value_sum = value_sum * shrink + np.einsum("kgs,skd->kgd", weights, value)
            best = higher
        mixed[i] = value_sum / weight_sum
    return mixed.reshape(query.shape)
