"""Attention over keys and values that lie in blocks, in torch, without a kernel of our own."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def gathered_attention(
    query: Float[Tensor, "N H D"],
    keys: Float[Tensor, "N S K D"],
    values: Float[Tensor, "N S K D"],
    bias: Float[Tensor, "N 1 1 S"] | None,
    scale: float,
) -> Float[Tensor, "N H D"]:
    """One new token of each of N texts, whose blocks have been gathered; `bias` is -inf where none may look.

    The H/K query heads that share a key/value head stand in as rows of one query, so that keys and
    values are read once.
    """
    tokens, heads, width = query.shape
    grouped = query.view(tokens, keys.shape[2], -1, width)  # (N, K, H/K, D)
    mixed = F.scaled_dot_product_attention(
        grouped, keys.transpose(1, 2), values.transpose(1, 2), attn_mask=bias, scale=scale
    )
    return mixed.reshape(tokens, heads, width)
