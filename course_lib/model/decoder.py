"""The decoder of the Llama family: token ids in, logits out, with or without a key/value cache."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from course_lib.model.config import ModelConfig
from course_lib.model.layers import (
    MLP,
    Attention,
    DecoderLayer,
    KVCache,
    Linear,
    RMSNorm,
    rope_frequencies,
    rope_table,
)


class Decoder(nn.Module):
    """Embedding, N blocks, a last norm and the output head. `named_weights` gives them Hugging Face's names.

    Build it through `course_lib.model.load.load_model`, which fills the weights; here they are
    uninitialized memory.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens
        # No buffer, which `model.to(torch.bfloat16)` would round: position 1001 would turn like 1000.
        self.frequencies = rope_frequencies(config.head_dim, config.rope_theta)

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed_tokens.dtype

    def forward(
        self,
        ids: Int64[Tensor, "B T"],
        cache: KVCache | None = None,
        positions: Int64[Tensor, "*batch T"] | None = None,
        logits_to_keep: int = 0,
        rows: Int64[Tensor, " kept"] | None = None,
    ) -> Float[Tensor, "B kept vocab"]:
        """Logits for the token after each of `ids`, which continue what the cache holds.

        Args:
            ids: token ids.
            cache: keys and values of the tokens before; None where there are none to remember.
            positions: where each token stands, (T,) or (B, T). None: right after what the cache holds.
                A cache that knows which token belongs to which request, as the engine's does, takes many
                requests as one row, B = 1.
            logits_to_keep: compute only the last n positions (0: all): while a prompt is read only its
                end matters, and the output head is the largest matrix of a small model.
            rows: compute only these of the T positions, in this order; overrides `logits_to_keep`.

        Raises:
            ValueError: the sequence would be longer than the positions that the model was trained for
                (not checked where `positions` are given: who gives them has checked).
        """
        new = ids.shape[1]
        if positions is None:
            start = cache.length if cache is not None else 0
            if start + new > self.config.max_position_embeddings:
                raise ValueError(
                    f"{start + new} tokens do not fit: "
                    f"the model has {self.config.max_position_embeddings} positions."
                )
            positions = torch.arange(start, start + new, device=ids.device)
        cos, sin = self.rotations(positions)
        x = F.embedding(ids, self.embed_tokens)  # (B, T, C)
        for layer in self.layers:
            x = layer(x, cos, sin, cache)
        if cache is not None:
            cache.advance(new)
        x = x[:, -logits_to_keep:] if rows is None else x[:, rows]
        return self.lm_head(self.norm(x))

    def rotations(
        self, positions: Int64[Tensor, "*batch T"]
    ) -> tuple[Float[Tensor, "*batch T half"], Float[Tensor, "*batch T half"]]:
        """Cosines and sines by which tokens at `positions` are turned; computed in float32."""
        self.frequencies = self.frequencies.to(positions.device)
        cos, sin = rope_table(positions, self.frequencies)
        return cos.to(self.dtype), sin.to(self.dtype)

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight as (Hugging Face's name, tensor); parts of a fused matrix are views of it."""
        yield "model.embed_tokens.weight", self.embed_tokens.data
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, DecoderLayer)
            prefix = f"model.layers.{index}"
            yield f"{prefix}.input_layernorm.weight", layer.input_layernorm.weight.data
            yield from slices(f"{prefix}.self_attn", layer.self_attn)
            yield from whole(f"{prefix}.self_attn.o_proj", layer.self_attn.o_proj)
            yield f"{prefix}.post_attention_layernorm.weight", layer.post_attention_layernorm.weight.data
            yield from slices(f"{prefix}.mlp", layer.mlp)
            yield from whole(f"{prefix}.mlp.down_proj", layer.mlp.down_proj)
        yield "model.norm.weight", self.norm.weight.data
        if not self.config.tie_word_embeddings:
            yield from whole("lm_head", self.lm_head)

    def pack(self) -> None:
        """Reorder every matrix for fast reading on a CPU (see `Linear.pack`); `named_weights` ends here."""
        for module in self.modules():
            if isinstance(module, Linear):
                module.pack()


def whole(name: str, linear: Linear) -> Iterator[tuple[str, Tensor]]:
    if linear.packed is not None:
        raise RuntimeError(f"{name} has been packed: its weights can no longer be read by name.")
    yield f"{name}.weight", linear.weight.data
    if linear.bias is not None:
        yield f"{name}.bias", linear.bias.data


def slices(prefix: str, block: Attention | MLP) -> Iterator[tuple[str, Tensor]]:
    """The projections that share a fused matrix, each as a view of its rows."""
    fused = block.qkv_proj if isinstance(block, Attention) else block.gate_up_proj
    for kind, tensor in whole("", fused):
        for name, rows in zip(block.rows, tensor.split(list(block.rows.values())), strict=True):
            yield f"{prefix}.{name}{kind}", rows


def init_weights(config: ModelConfig, seed: int, std: float = 0.02) -> Decoder:
    """A decoder with random weights, to be trained: matrices normal, biases 0, norms 1.

    The two matrices of a layer that write into the residual stream start smaller, by the square root of
    how many of them write there: else the stream would grow with the depth. The same seed gives the same
    weights. Source: Radford et al. (2019), "Language Models are Unsupervised Multitask Learners", 2.3.
    """
    model = Decoder(config)
    generator = torch.Generator().manual_seed(seed)
    residual_std = std / (2 * config.num_hidden_layers) ** 0.5
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
        else:
            into_stream = "o_proj" in name or "down_proj" in name
            torch.nn.init.normal_(parameter, 0.0, residual_std if into_stream else std, generator=generator)
    return model
