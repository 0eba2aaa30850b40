"""The layers of a Llama: RMSNorm, rotary positions, grouped-query attention and the gated MLP.

The mathematics are plain functions of tensors, the modules only hold weights. Shapes use these letters:
B sequences in the batch, T new tokens of each, S tokens seen so far (S >= T), C hidden size, H query heads,
K key/value heads, D numbers per head, F width of the MLP.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
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


def rope_table(
    positions: int, head_dim: int, theta: float
) -> tuple[Float[Tensor, "T half"], Float[Tensor, "T half"]]:
    """Cosines and sines of the angles t * theta^(-2i / head_dim) by which position t turns pair i."""
    frequencies = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)  # (D/2,)
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * frequencies  # (T, D/2)
    return angles.cos(), angles.sin()


def apply_rope(
    x: Float[Tensor, "B T heads D"], cos: Float[Tensor, "T half"], sin: Float[Tensor, "T half"]
) -> Float[Tensor, "B T heads D"]:
    """Rotate the plane of coordinates i and i + D/2 of every head by the angle of its token's position.

    That pairing (Hugging Face's "rotate half") is one of two in use; the other pairs 2i with 2i + 1
    (GGUF's order for Llamas, see `load.unpermute`). Source: Su et al. (2021), "RoFormer", equation 34.
    """
    first, second = x.chunk(2, dim=-1)  # each (B, T, heads, D/2)
    cos, sin = cos[:, None], sin[:, None]  # (T, 1, D/2): the same for every head
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def swiglu(gate: Float[Tensor, "*batch F"], up: Float[Tensor, "*batch F"]) -> Float[Tensor, "*batch F"]:
    """silu(gate) * up: each unit is opened or shut by a gate of its own.

    Source: Shazeer (2020), "GLU Variants Improve Transformer".
    """
    return F.silu(gate) * up


def attention_mask(new: int, seen: int, device: torch.device) -> Bool[Tensor, "T S"]:
    """True where a query may look: the last `new` of `seen` tokens, each at itself and all before it."""
    return torch.ones(new, seen, dtype=torch.bool, device=device).tril(seen - new)


def grouped_query_attention(
    query: Float[Tensor, "B H T D"], key: Float[Tensor, "B K S D"], value: Float[Tensor, "B K S D"]
) -> Float[Tensor, "B H T D"]:
    """Causal attention of the last T of S tokens, where H/K query heads share each key/value head.

    Source: Ainslie et al. (2023), "GQA: Training Generalized Multi-Query Transformer Models".
    """
    batch, heads, new, head_dim = query.shape
    kv_heads, seen = key.shape[1], key.shape[2]
    if new == 1:
        # One new token sees everything, so the heads that share a key/value head can stand in as rows of
        # one query: keys and values are read once a group, and nothing is copied or masked.
        grouped = query.reshape(batch, kv_heads, heads // kv_heads, head_dim)  # (B, K, H/K, D)
        return F.scaled_dot_product_attention(grouped, key, value).reshape(query.shape)
    if heads != kv_heads:
        # SDPA's own `enable_gqa` is several times slower than this copy for bfloat16 on a CPU.
        key, value = (repeat_heads(tensor, heads // kv_heads) for tensor in (key, value))  # (B, H, S, D)
    if new == seen:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask(new, seen, query.device)
    )


def repeat_heads(x: Float[Tensor, "B K S D"], times: int) -> Float[Tensor, "B H S D"]:
    batch, heads, seen, head_dim = x.shape
    return (
        x[:, :, None]
        .expand(batch, heads, times, seen, head_dim)
        .reshape(batch, heads * times, seen, head_dim)
    )


class KVCache(Protocol):
    """What a layer asks of a cache; `course_lib.cache` has the implementations."""

    length: int

    def append(
        self, layer: int, key: Float[Tensor, "B K T D"], value: Float[Tensor, "B K T D"]
    ) -> tuple[Float[Tensor, "B K S D"], Float[Tensor, "B K S D"]]:
        """Store one layer's new keys and values after the `length` that are there; return all of them."""
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

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        cos: Float[Tensor, "T half"],
        sin: Float[Tensor, "T half"],
        cache: KVCache | None,
    ) -> Float[Tensor, "B T C"]:
        batch, new, _ = x.shape
        qkv = self.qkv_proj(x).view(batch, new, -1, self.head_dim)  # (B, T, H + 2K, D)
        query_key, value = qkv.split((self.heads + self.kv_heads, self.kv_heads), dim=2)
        query_key = apply_rope(query_key, cos, sin).transpose(1, 2)  # (B, H + K, T, D)
        query, key = query_key.split((self.heads, self.kv_heads), dim=1)
        value = value.transpose(1, 2)  # (B, K, T, D)
        if cache is not None:
            key, value = cache.append(self.layer, key, value)  # (B, K, S, D)
        mixed = grouped_query_attention(query, key, value)  # (B, H, T, D)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, new, -1))


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
        cos: Float[Tensor, "T half"],
        sin: Float[Tensor, "T half"],
        cache: KVCache | None,
    ) -> Float[Tensor, "B T C"]:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache)
        return x + self.mlp(self.post_attention_layernorm(x))
