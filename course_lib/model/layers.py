"""The layers of a decoder: norms, grouped-query attention, gated MLPs and mixtures of them.

The mathematics are plain functions of tensors (rotary positions: rope.py), the modules only hold weights.
Shapes use these letters: B sequences in the batch, T new tokens of each, S tokens seen so far (S >= T),
C hidden size, H query heads, K key/value heads, D numbers per head, F width of the MLP, E experts.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from course_lib.model.config import ModelConfig
from course_lib.model.errors import CheckpointError
from course_lib.model.rope import apply_rope


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


def swiglu(gate: Float[Tensor, "*batch F"], up: Float[Tensor, "*batch F"]) -> Float[Tensor, "*batch F"]:
    """silu(gate) * up: each unit is opened or shut by a gate of its own.

    Source: Shazeer (2020), "GLU Variants Improve Transformer".
    """
    return F.silu(gate) * up


def geglu(gate: Float[Tensor, "*batch F"], up: Float[Tensor, "*batch F"]) -> Float[Tensor, "*batch F"]:
    """gelu(gate) * up, with the tanh approximation of GELU. Source: as for `swiglu`."""
    return F.gelu(gate, approximate="tanh") * up


gelu_tanh = partial(F.gelu, approximate="tanh")
# By Hugging Face's names. OpenAI's GPT-2 calls the tanh approximation "gelu_new".
GATED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"silu": swiglu, "gelu_pytorch_tanh": geglu}
PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu": F.gelu,
    "relu": F.relu,
}


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
        seen = window + new - 1
        key, value = key[:, :, -seen:], value[:, :, -seen:]
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


def moe_layer(
    x: Float[Tensor, "N C"],
    router: Float[Tensor, "E C"],
    gate_up: Float[Tensor, "E 2F C"],
    down: Float[Tensor, "E C F"],
    top_k: int,
    product: Callable[[Tensor, Any], Tensor] = F.linear,
) -> Float[Tensor, "N C"]:
    """A mixture of gated MLPs: each of N tokens goes through the `top_k` experts that its router prefers.

    Their outputs are added by the router's probabilities, scaled to a sum of 1 among those chosen. So a
    token costs `top_k` experts, however many there are.

    Args:
        x: the tokens of all sequences, one below the other.
        router: one row an expert; its products with a token are the token's logits over the experts.
        gate_up: each expert's gate and up projections, gate's F rows first.
        down: each expert's way back.
        product: multiplies tokens by an expert's matrix; F.linear(x, w) is x wᵀ. Matrices that are not kept
            as plain numbers have another one.

    Source: Shazeer et al. (2017), "Outrageously Large Neural Networks"; Jiang et al. (2024), "Mixtral of
    Experts", section 2.1.
    """
    probs = torch.softmax(F.linear(x, router).float(), dim=-1)  # (N, E)
    weights, chosen = probs.topk(top_k, dim=-1)  # each (N, top_k)
    weights = weights / weights.sum(-1, keepdim=True)
    out = torch.zeros_like(x)
    for expert in range(len(router)):
        token, place = torch.where(chosen == expert)  # who takes this expert, and as which choice
        if len(token):
            gate, up = product(x[token], gate_up[expert]).chunk(2, dim=-1)
            mixed = product(swiglu(gate, up), down[expert]) * weights[token, place, None]
            out.index_add_(0, token, mixed.to(x.dtype))
    return out


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


# oneDNN chooses the order of a packed weight by the number of rows it is told to expect. The order for many
# serves one row as well, and eight rows in float32 in half the time of the order for one.
PACKED_FOR = 64


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
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), PACKED_FOR)
            self.weight = nn.Parameter(self.weight.new_empty(0))


class FusedLinear(Linear):
    """Several projections of one vector as a single matrix: one long read instead of several short ones.

    `rows` names them in order, each with its number of outputs.
    """

    def __init__(self, inputs: int, rows: dict[str, int], bias: bool = False):
        super().__init__(inputs, sum(rows.values()), bias)
        self.rows = rows


class RMSNorm(nn.Module):
    """`rms_norm` with a learned weight. Some families store it less `offset`, so that 0 leaves x alone."""

    def __init__(self, size: int, eps: float, offset: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps, self.offset = eps, offset

    def forward(self, x: Float[Tensor, "*batch C"]) -> Float[Tensor, "*batch C"]:
        if self.offset:  # 1 + w in bfloat16 would lose w's digits
            return rms_norm(x.float(), self.weight.float() + self.offset, self.eps).to(x.dtype)
        return rms_norm(x, self.weight, self.eps)


def norm(config: ModelConfig) -> nn.Module:
    if config.norm == "layer":
        return nn.LayerNorm(config.hidden_size, config.norm_eps)
    return RMSNorm(config.hidden_size, config.norm_eps, config.norm_offset)


class Attention(nn.Module):
    """Self-attention; queries, keys and values come from one matrix."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.scale = self.head_dim**-0.5 if config.attention_scale is None else config.attention_scale
        self.window = config.window(layer)
        query, key_value = self.heads * self.head_dim, self.kv_heads * self.head_dim
        rows = {"q_proj": query, "k_proj": key_value, "v_proj": key_value}
        if config.fused_qkv:
            rows = {"qkv_proj": query + 2 * key_value}
        self.qkv_proj = FusedLinear(config.hidden_size, rows, config.attention_bias)
        self.o_proj = Linear(query, config.hidden_size, config.output_bias)
        self.q_norm = self.k_norm = None
        if config.qk_norm:
            self.q_norm, self.k_norm = (
                RMSNorm(self.head_dim, config.norm_eps, config.norm_offset) for _ in range(2)
            )

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        cos: Float[Tensor, "*batch T half"] | None,
        sin: Float[Tensor, "*batch T half"] | None,
        cache: KVCache | None,
    ) -> Float[Tensor, "B T C"]:
        batch, new, _ = x.shape
        qkv = self.qkv_proj(x).view(batch, new, -1, self.head_dim)  # (B, T, H + 2K, D)
        query_key, value = qkv.split((self.heads + self.kv_heads, self.kv_heads), dim=2)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = query_key.split((self.heads, self.kv_heads), dim=2)
            query_key = torch.cat((self.q_norm(query), self.k_norm(key)), dim=2)
        if cos is not None and sin is not None:
            query_key = apply_rope(query_key, cos, sin)
        query, key = query_key.split((self.heads, self.kv_heads), dim=2)  # (B, T, H, D), (B, T, K, D)
        if cache is not None:
            mixed = cache.attend(self.layer, query, key, value, scale=self.scale, window=self.window)
        else:
            query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
            mixed = grouped_query_attention(query, key, value, self.scale, self.window).transpose(1, 2)
        return self.o_proj(mixed.reshape(batch, new, -1))


class MLP(nn.Module):
    """The gated MLP, gate and up projections as one matrix; or GPT-2's plain one, of two matrices."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width, known = config.intermediate_size, GATED if config.gated_mlp else PLAIN
        if config.activation not in known:
            raise CheckpointError(
                f"The activation {config.activation!r} is not supported in a {config.model_type}; "
                f"supported are {', '.join(known)}."
            )
        if config.gated_mlp:
            rows = {"gate_proj": width, "up_proj": width}
            self.gate_up_proj = FusedLinear(config.hidden_size, rows, config.mlp_bias)
            self.gated = GATED[config.activation]
        else:
            self.up_proj = Linear(config.hidden_size, width, config.mlp_bias)
            self.activation = PLAIN[config.activation]
        self.down_proj = Linear(width, config.hidden_size, config.mlp_bias)
        self.has_gate = config.gated_mlp

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        if self.has_gate:
            return self.down_proj(self.gated(*self.gate_up_proj(x).chunk(2, dim=-1)))  # (B, T, F) inside
        return self.down_proj(self.activation(self.up_proj(x)))


class Experts(nn.Module):
    """The experts' matrices, one behind the other; see `moe_layer`."""

    product = staticmethod(F.linear)

    def __init__(self, config: ModelConfig):
        super().__init__()
        experts, width, inner = config.num_experts, config.hidden_size, config.intermediate_size
        self.gate_up = nn.Parameter(torch.empty(experts, 2 * inner, width))
        self.down = nn.Parameter(torch.empty(experts, width, inner))


class MixtureOfExperts(nn.Module):
    """Takes the place of `MLP` in Mixtral."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        self.experts = Experts(config)
        self.top_k = config.num_experts_per_tok

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T C"]:
        tokens, own = x.flatten(0, 1), self.experts
        mixed = moe_layer(tokens, self.gate, own.gate_up, own.down, self.top_k, own.product)
        return mixed.view(x.shape)


class DecoderLayer(nn.Module):
    """One block: attention, then the MLP, each on a normalized copy and added back to the residual stream.

    With `post_norms` what they give is normalized too. The norms have Hugging Face's names, by which
    `post_attention_layernorm` stands before the MLP or, with `post_norms`, behind attention.
    """

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.post_norms = config.post_norms
        self.rope = config.layer_rope(layer)
        self.input_layernorm = norm(config)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = norm(config)
        self.mlp = MixtureOfExperts(config) if config.num_experts else MLP(config)
        if config.post_norms:
            self.pre_feedforward_layernorm = norm(config)
            self.post_feedforward_layernorm = norm(config)

    def forward(
        self,
        x: Float[Tensor, "B T C"],
        cos: Float[Tensor, "*batch T half"] | None,
        sin: Float[Tensor, "*batch T half"] | None,
        cache: KVCache | None,
    ) -> Float[Tensor, "B T C"]:
        mixed = self.self_attn(self.input_layernorm(x), cos, sin, cache)
        if self.post_norms:
            x = x + self.post_attention_layernorm(mixed)
            return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x))
