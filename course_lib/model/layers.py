"""The layers of a Llama: RMSNorm, rotary positions, grouped-query attention and the gated MLP.

The mathematics are plain functions of tensors, the modules only hold weights. Shapes use these letters:
B sequences in the batch, T new tokens of each, S tokens seen so far (S >= T), C hidden size, H query heads,
K key/value heads, D numbers per head, F width of the MLP.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from course_lib.model.config import ModelConfig


def rms_norm(
    x: Float[Tensor, "*batch C"], weight: Float[Tensor, " C"], eps: float
) -> Float[Tensor, "*batch C"]:
    """Scale each vector to a root mean square of 1, then each coordinate by its learned weight.

    The mean is taken in float32 whatever x is: in bfloat16 a sum of a few hundred squares loses most of
    its digits.
    Source: Zhang and Sennrich (2019), "Root Mean Square Layer Normalization", equation 4.
    """
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def rope_frequencies(head_dim: int, theta: float) -> Float[Tensor, " half"]:
    """The angle by which one step in position turns each pair: theta^(-2i / head_dim), in radians."""
    return theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)


def rope_table(
    positions: Int64[Tensor, "*batch T"], frequencies: Float[Tensor, " half"]
) -> tuple[Float[Tensor, "*batch T half"], Float[Tensor, "*batch T half"]]:
    """Cosines and sines of the angles by which each position turns each pair."""
    angles = positions[..., None] * frequencies
    return angles.cos(), angles.sin()


def apply_rope(
    x: Float[Tensor, "B T heads D"], cos: Float[Tensor, "*batch T half"], sin: Float[Tensor, "*batch T half"]
) -> Float[Tensor, "B T heads D"]:
    """Rotate the plane of coordinates i and i + D/2 of every head by the angle of its token's position.

    `cos` and `sin` are (T, D/2) where all sequences of the batch stand at the same positions, otherwise
    (B, T, D/2).

    That pairing (Hugging Face's "rotate half") is one of two in use; the other pairs 2i with 2i + 1
    (GGUF's order for Llamas, see `load.unpermute`). Source: Su et al. (2021), "RoFormer", equation 34.
    """
    first, second = x.chunk(2, dim=-1)  # each (B, T, heads, D/2)
    cos, sin = cos[..., None, :], sin[..., None, :]  # (..., T, 1, D/2): the same for every head
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def swiglu(gate: Float[Tensor, "*batch F"], up: Float[Tensor, "*batch F"]) -> Float[Tensor, "*batch F"]:
    """silu(gate) * up: each unit is opened or shut by a gate of its own.

    Source: Shazeer (2020), "GLU Variants Improve Transformer".
    """
    return F.silu(gate) * up


def sliding_window_mask(
    queries: int, keys: int, window: int | None = None, device: torch.device | str = "cpu"
) -> Bool[Tensor, "T S"]:
    """True where a query may look; the queries are the last of the tokens that there are keys for.

    Each sees itself and the `window - 1` tokens before it, or all of them where `window` is None.
    Source: Beltagy et al. (2020), "Longformer", section 3.1; Jiang et al. (2023), "Mistral 7B".
    """
    mask = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return mask if window is None else mask.triu(keys - queries - window + 1)


def grouped_query_attention(
    query: Float[Tensor, "B H T D"],
    key: Float[Tensor, "B K S D"],
    value: Float[Tensor, "B K S D"],
    scale: float | None = None,
    window: int | None = None,
) -> Float[Tensor, "B H T D"]:
    """Causal attention of the last T of S tokens, where H/K query heads share each key/value head.

    `scale` multiplies the scores (None: 1/sqrt(D)). With a `window` each token sees only so many: itself
    and those just before it.
    Source: Ainslie et al. (2023), "GQA: Training Generalized Multi-Query Transformer Models".
    """
    batch, heads, new, head_dim = query.shape
    kv_heads, seen = key.shape[1], key.shape[2]
    if window is not None and seen > window + new - 1:  # the first query sees no further back than this
        key, value = key[:, :, 1 - window - new :], value[:, :, 1 - window - new :]
        seen = window + new - 1
    if new == 1:
        # One new token sees everything, so the heads that share a key/value head can stand in as rows of
        # one query: keys and values are read once a group, and nothing is copied or masked.
        grouped = query.reshape(batch, kv_heads, heads // kv_heads, head_dim)  # (B, K, H/K, D)
        return F.scaled_dot_product_attention(grouped, key, value, scale=scale).reshape(query.shape)
    if heads != kv_heads:
        # SDPA's own `enable_gqa` is several times slower than this copy for bfloat16 on a CPU.
        key, value = (repeat_heads(tensor, heads // kv_heads) for tensor in (key, value))  # (B, H, S, D)
    if new == seen and (window is None or window >= seen):
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
    mask = sliding_window_mask(new, seen, window, query.device)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


def repeat_heads(x: Float[Tensor, "B K S D"], times: int) -> Float[Tensor, "B H S D"]:
    batch, heads, seen, head_dim = x.shape
    return (
        x[:, :, None]
        .expand(batch, heads, times, seen, head_dim)
        .reshape(batch, heads * times, seen, head_dim)
    )


class KVCache(Protocol):
    """What the decoder asks of a cache; `course_lib.cache` has the implementations."""

    @property
    def length(self) -> int:
        """How many tokens it holds: where new ones go on that come without positions."""
        ...

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
        """Store one layer's new keys and values, and let each new query look at all before it and itself."""
        ...

    def advance(self, new: int) -> None:
        """All layers have stored `new` tokens: they count from now on."""
        ...


class Linear(nn.Module):
    """y = x Wᵀ + b, with uninitialized weights of shape (out, in) that the checkpoint fills."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None
        self.packed: Tensor | None = None

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        if self.packed is not None:
            return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)

    def pack(self) -> None:
        """Move the weight into oneDNN's own blocked order, for good: `weight` is empty afterwards.

        For a single token torch's linear uses one thread in float32 and a slow path in bfloat16; oneDNN
        on packed weights reads them at close to the memory's speed. This is what torch.compile's frozen
        graphs do.
        """
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), 1)
            self.weight = nn.Parameter(self.weight.new_empty(0))


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        return rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Self-attention. Query, key and value projections are one matrix: one long read, not three short."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.rows = {
            "q_proj": self.heads * self.head_dim,
            "k_proj": self.kv_heads * self.head_dim,
            "v_proj": self.kv_heads * self.head_dim,
        }
        self.qkv_proj = Linear(config.hidden_size, sum(self.rows.values()), config.attention_bias)
        self.o_proj = Linear(self.rows["q_proj"], config.hidden_size, config.attention_bias)
        self.scale = self.head_dim**-0.5
        self.window: int | None = None

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        cos: Float[Tensor, "*batch T half"],
        sin: Float[Tensor, "*batch T half"],
        cache: KVCache | None,
    ) -> Float[Tensor, "B T C"]:
        batch, new, _ = x.shape
        qkv = self.qkv_proj(x).view(batch, new, -1, self.head_dim)  # (B, T, H + 2K, D)
        query_key, value = qkv.split((self.heads + self.kv_heads, self.kv_heads), dim=2)
        query_key = apply_rope(query_key, cos, sin)
        query, key = query_key.split((self.heads, self.kv_heads), dim=2)  # (B, T, H, D), (B, T, K, D)
        if cache is not None:
            mixed = cache.attend(self.layer, query, key, value, scale=self.scale, window=self.window)
        else:
            query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
            mixed = grouped_query_attention(query, key, value, self.scale, self.window).transpose(1, 2)
        return self.o_proj(mixed.reshape(batch, new, -1))


class MLP(nn.Module):
    """The gated MLP. Gate and up projections are one matrix, for the same reason as in `Attention`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.rows = {"gate_proj": config.intermediate_size, "up_proj": config.intermediate_size}
        self.gate_up_proj = Linear(config.hidden_size, 2 * config.intermediate_size, config.mlp_bias)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, config.mlp_bias)

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)  # each (B, T, F)
        return self.down_proj(swiglu(gate, up))


class DecoderLayer(nn.Module):
    """One block: attention, then the MLP, each on a normalized copy and added back to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        cos: Float[Tensor, "*batch T half"],
        sin: Float[Tensor, "*batch T half"],
        cache: KVCache | None,
    ) -> Float[Tensor, "B T C"]:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache)
        return x + self.mlp(self.post_attention_layernorm(x))
