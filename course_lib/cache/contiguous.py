"""The simplest key/value cache: for every layer one block of memory, filled from the left."""

import torch
from jaxtyping import Float
from torch import Tensor

from course_lib.model.config import ModelConfig
from course_lib.model.layers import grouped_query_attention


def kv_cache_bytes(config: ModelConfig, tokens: int, batch: int = 1, bytes_per_number: float = 2) -> int:
    """Bytes that the keys and values of `batch` sequences of `tokens` tokens take.

    Two tensors, for every layer and key/value head, of head_dim numbers a token: for Llama-3-8B in 16 bit
    2 * 32 * 8 * 128 * 2 = 131,072 bytes a token.
    """
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return int(numbers * bytes_per_number * tokens * batch)


class ContiguousCache:
    """Keys and values of `batch` sequences of equal length, in memory reserved ahead of use.

    `length` tokens are valid; what lies behind is garbage. The memory doubles when it is full, so
    appending one token costs no allocation, and on average no copy.
    """

    def __init__(
        self,
        config: ModelConfig,
        capacity: int,
        batch: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        self.length = 0
        shape = (config.num_hidden_layers, batch, config.num_key_value_heads, capacity, config.head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "B T H D"],
        key: Float[Tensor, "B T K D"],
        value: Float[Tensor, "B T K D"],
        *,
        scale: float,
        window: int | None,
    ) -> Float[Tensor, "B T H D"]:
        """Store one layer's new keys and values behind the valid ones; attend to all S = length + T."""
        end = self.length + key.shape[1]
        self.reserve(end)
        self.keys[layer, :, :, self.length : end] = key.transpose(1, 2)
        self.values[layer, :, :, self.length : end] = value.transpose(1, 2)
        keys, values = self.keys[layer, :, :, :end], self.values[layer, :, :, :end]  # (B, K, S, D)
        mixed = grouped_query_attention(query.transpose(1, 2), keys, values, scale, window)
        return mixed.transpose(1, 2)

    def advance(self, new: int) -> None:
        """Every layer has stored `new` tokens: count them as valid."""
        self.length += new

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens. Nothing is moved: they are overwritten later."""
        if not 0 <= length <= self.length:
            raise ValueError(f"Cannot cut a cache of {self.length} tokens to {length}.")
        self.length = length

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` tokens in all."""
        if tokens <= self.capacity:
            return
        grown = max(tokens, 2 * self.capacity)

        def larger(old: Tensor) -> Tensor:
            new = old.new_empty((*old.shape[:3], grown, old.shape[4]))
            new[:, :, :, : self.length] = old[:, :, :, : self.length]
            return new

        self.keys, self.values = larger(self.keys), larger(self.values)
