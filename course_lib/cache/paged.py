"""The paged key/value cache: one pool of blocks for all requests, and attention of one step's tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int8, Int64
from torch import Tensor

from course_lib.cache.contiguous import kv_cache_bytes
from course_lib.kernels.paged_torch import gathered_attention
from course_lib.model.config import ModelConfig
from course_lib.model.layers import grouped_query_attention

KVCacheDtype = Literal["auto", "int8"]  # vLLM's name; auto: the model's own number format

# Requests are attended to together while the longest of them takes at most so much more than the shortest.
PADDING = 1.25


@dataclass
class Singles:
    """Rows start to end - 1 of a step: requests that compute one token each, of about the same length."""

    start: int
    end: int
    blocks: Int64[Tensor, " N_most"]  # row by row: as many blocks for each request as the longest has
    lengths: Int64[Tensor, " N"]
    bias: dict[int | None, Float[Tensor, "N 1 1 S"]] = field(default_factory=dict)  # by window

    def bias_for(self, window: int | None, slots: int, dtype: torch.dtype) -> Float[Tensor, "N 1 1 S"]:
        """-inf where a request has no token, or none that its window shows; computed once a step."""
        if window not in self.bias:
            place, last = torch.arange(slots, device=self.lengths.device), self.lengths[:, None]
            hidden = place >= last
            if window is not None:
                hidden |= place < last - window
            bias = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            self.bias[window] = bias.masked_fill_(hidden, -torch.inf)[:, None, None]
        return self.bias[window]


@dataclass
class Piece:
    """Rows start to end - 1 of a step: the last tokens of the `length` that one request has then."""

    start: int
    end: int
    blocks: Int64[Tensor, " most"]
    length: int


@dataclass
class Step:
    """Which request each of a step's N tokens belongs to, and where in the pool it goes; for every layer."""

    slots: Int64[Tensor, " N"]
    parts: list[Singles | Piece]

    @classmethod
    def build(
        cls,
        slots: Sequence[int],
        chunks: Sequence[tuple[int, Sequence[int], int]],
        device: torch.device | str,
    ) -> "Step":
        """`chunks` are (tokens, blocks, length) of each request in the order of the rows: so many new
        tokens, the last of `length`. Requests of one token should stand together, in order of length.
        """
        parts: list[Singles | Piece] = []
        row = at = 0
        while at < len(chunks):
            count, blocks, length = chunks[at]
            if count > 1:
                parts.append(Piece(row, row + count, tensor(blocks, device), length))
                row, at = row + count, at + 1
                continue
            end = at
            while (
                end < len(chunks) and chunks[end][0] == 1 and len(chunks[end][1]) <= PADDING * len(blocks) + 1
            ):
                end += 1
            group = chunks[at:end]
            most = max(len(blocks) for _, blocks, _ in group)
            # A shorter table is filled up with its own last block: what is read there is masked out.
            padded = [b for _, blocks, _ in group for b in (*blocks, *[blocks[-1]] * (most - len(blocks)))]
            lengths = tensor([length for _, _, length in group], device)
            parts.append(Singles(row, row + len(group), tensor(padded, device), lengths))
            row, at = row + len(group), end
        return cls(tensor(slots, device), parts)


def tensor(numbers: Sequence[int], device: torch.device | str) -> Int64[Tensor, " n"]:
    return torch.tensor(numbers, dtype=torch.long, device=device)


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Zeros, because what lies behind a text's end is read, too: weighted with zero, but it must be numbers.

    On a CPU they take no memory before they are written: NumPy asks the system for pages that are zero,
    which it hands out one by one. torch.zeros writes them all.
    """
    if torch.device(device).type != "cpu":
        return torch.zeros(*shape, dtype=dtype, device=device)
    same_size = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[dtype.itemsize]
    return torch.from_numpy(np.zeros(shape, same_size)).view(dtype)


class PagedCache:
    """Keys and values of all requests, of every layer, in `num_blocks` blocks of `block_size` tokens.

    To the model it is a cache like `ContiguousCache`, that takes a step's tokens of many requests as one
    row. `begin` says beforehand which token is whose.
    """

    length = 0  # the positions of a step's tokens are always given

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int = 16,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        heads, width = config.num_key_value_heads, config.head_dim
        shape = (config.num_hidden_layers, num_blocks, block_size, heads, width)
        self.keys, self.values = (zeros(shape, dtype, device) for _ in range(2))
        self.block_size = block_size
        self.step: Step | None = None

    def begin(self, step: Step) -> None:
        """The next pass of the model computes this step."""
        self.step = step

    def advance(self, new: int) -> None:
        """Nothing to count: the scheduler does."""

    @staticmethod
    def bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
        """What the keys and values of one token take, of all layers; `dtype` is the model's."""
        return kv_cache_bytes(config, 1, bytes_per_number=dtype.itemsize)

    def pools(self) -> Sequence[Tensor]:
        """All that belongs to blocks, each (layers, blocks, ...)."""
        return self.keys, self.values

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy blocks: (from, to) each. All are read before any is written."""
        sources, targets = zip(*pairs, strict=True)
        for pool in self.pools():
            pool[:, list(targets)] = pool[:, list(sources)]

    def store(
        self,
        layer: int,
        slots: Int64[Tensor, " N"],
        key: Float[Tensor, "N K D"],
        value: Float[Tensor, "N K D"],
    ) -> tuple[Float[Tensor, "N K D"], Float[Tensor, "N K D"]]:
        """Write one layer's new keys and values to their slots; returns them as `gather` will read them."""
        self.keys[layer].flatten(0, 1).index_copy_(0, slots, key)
        self.values[layer].flatten(0, 1).index_copy_(0, slots, value)
        return key, value

    def gather(
        self, layer: int, blocks: Int64[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n size K D"], Float[Tensor, "n size K D"]]:
        """Read one layer's keys and values of these blocks."""
        return self.keys[layer].index_select(0, blocks), self.values[layer].index_select(0, blocks)

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "1 N H D"],
        key: Float[Tensor, "1 N K D"],
        value: Float[Tensor, "1 N K D"],
        *,
        scale: float,
        window: int | None,
    ) -> Float[Tensor, "1 N H D"]:
        """Store one layer's new keys and values; attend from every token to its own request's text."""
        assert self.step is not None  # `begin` comes first
        new_keys, new_values = self.store(layer, self.step.slots, key[0], value[0])
        mixed = []
        for part in self.step.parts:
            asked = query[:, part.start : part.end]  # (1, n, H, D)
            if isinstance(part, Singles):
                mixed.append(self.attend_singles(layer, asked[0], part, scale, window)[None])
                continue
            if part.length == part.end - part.start:  # the whole text is in this step
                keys, values = new_keys[part.start : part.end], new_values[part.start : part.end]
            else:
                keys, values = (x.flatten(0, 1)[: part.length] for x in self.gather(layer, part.blocks))
            keys, values = (x.transpose(0, 1)[None] for x in (keys, values))  # (1, K, length, D)
            attended = grouped_query_attention(asked.transpose(1, 2), keys, values, scale, window)
            mixed.append(attended.transpose(1, 2))
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=1)

    def attend_singles(
        self,
        layer: int,
        query: Float[Tensor, "N H D"],
        part: Singles,
        scale: float,
        window: int | None,
    ) -> Float[Tensor, "N H D"]:
        """Attend from one token of each of N requests, whose keys and values are stored already."""
        keys, values = self.gather(layer, part.blocks)  # (N * most, size, K, D)
        keys, values = (x.view(len(part.lengths), -1, *x.shape[2:]) for x in (keys, values))
        bias = part.bias_for(window, keys.shape[1], query.dtype)
        return gathered_attention(query, keys, values, bias, scale)


class Int8PagedCache(PagedCache):
    """As `PagedCache`, with 8 bits a number: each head of each token has codes and a scale of its own.

    So a token is rounded once, when it is written, whoever is in the batch and however its text was cut;
    and a text reads its own newest tokens as everybody will read them later. What head_dim numbers take is
    head_dim + 4 bytes instead of 2 head_dim in 16 bit.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_size: int = 16,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        super().__init__(config, num_blocks, block_size, torch.int8, device)
        self.dtype = dtype  # of what is given and read
        self.key_scales, self.value_scales = (
            zeros(self.keys.shape[:-1], torch.float32, device) for _ in range(2)
        )

    @staticmethod
    def bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
        scales = 2 * config.num_hidden_layers * config.num_key_value_heads
        return kv_cache_bytes(config, 1, bytes_per_number=1) + scales * torch.float32.itemsize

    def pools(self) -> Sequence[Tensor]:
        return self.keys, self.values, self.key_scales, self.value_scales

    def store(
        self,
        layer: int,
        slots: Int64[Tensor, " N"],
        key: Float[Tensor, "N K D"],
        value: Float[Tensor, "N K D"],
    ) -> tuple[Float[Tensor, "N K D"], Float[Tensor, "N K D"]]:
        (key_codes, key_scale), (value_codes, value_scale) = quantize_heads(key), quantize_heads(value)
        super().store(layer, slots, key_codes, value_codes)
        self.key_scales[layer].flatten(0, 1).index_copy_(0, slots, key_scale)
        self.value_scales[layer].flatten(0, 1).index_copy_(0, slots, value_scale)
        return (
            dequantize_heads(key_codes, key_scale, self.dtype),
            dequantize_heads(value_codes, value_scale, self.dtype),
        )

    def gather(
        self, layer: int, blocks: Int64[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n size K D"], Float[Tensor, "n size K D"]]:
        keys, values = super().gather(layer, blocks)
        key_scale, value_scale = self.key_scales[layer, blocks], self.value_scales[layer, blocks]
        return (
            dequantize_heads(keys, key_scale, self.dtype),
            dequantize_heads(values, value_scale, self.dtype),
        )


def quantize_heads(
    x: Float[Tensor, "*batch D"],
) -> tuple[Int8[Tensor, "*batch D"], Float[Tensor, "*batch"]]:
    """8 bits, symmetric: the largest magnitude of each head becomes 127. Returns codes and scales."""
    x = x.float()
    scale = (x.abs().amax(-1) / 127).clamp(min=1e-30)
    return (x / scale[..., None]).round().to(torch.int8), scale


def dequantize_heads(
    codes: Int8[Tensor, "*batch D"], scale: Float[Tensor, "*batch"], dtype: torch.dtype
) -> Float[Tensor, "*batch D"]:
    return (codes * scale[..., None]).to(dtype)


PAGED_CACHES: dict[KVCacheDtype, type[PagedCache]] = {"auto": PagedCache, "int8": Int8PagedCache}
