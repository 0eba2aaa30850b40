"""The decoder of the Llama family: token ids in, logits out, with or without a key/value cache."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from course_lib.model.config import ModelConfig
from course_lib.model.layers import MLP, Attention, DecoderLayer, KVCache, Linear, RMSNorm, rope_table


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
        self.cos = self.sin = torch.empty(0, config.head_dim // 2)

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed_tokens.dtype

    def forward(
        self, ids: Int64[Tensor, "B T"], cache: KVCache | None = None, logits_to_keep: int = 0
    ) -> Float[Tensor, "B kept vocab"]:
        """Logits for the token after each of `ids`, which continue what the cache holds.

        `logits_to_keep=n` computes only the last n positions (0: all): while a prompt is read only its
        end matters, and the output head is the largest matrix of a small model.

        Raises:
            ValueError: the sequence would be longer than the positions that the model was trained for.
        """
        start = cache.length if cache is not None else 0
        new = ids.shape[1]
        if start + new > self.config.max_position_embeddings:
            raise ValueError(
                f"{start + new} tokens do not fit: "
                f"the model has {self.config.max_position_embeddings} positions."
            )
        cos, sin = self.rotations(start, start + new)
        x = F.embedding(ids, self.embed_tokens)  # (B, T, C)
        for layer in self.layers:
            x = layer(x, cos, sin, cache)
        if cache is not None:
            cache.advance(new)
        return self.lm_head(self.norm(x[:, -logits_to_keep:]))

    def rotations(self, start: int, end: int) -> tuple[Float[Tensor, "T half"], Float[Tensor, "T half"]]:
        """Cosines and sines of positions start to end - 1. The table grows by doubling, as texts do."""
        if end > len(self.cos):
            length = min(max(end, 2 * len(self.cos), 512), self.config.max_position_embeddings)
            with torch.inference_mode(False):  # what a first answer computes, training may use later
                cos, sin = rope_table(length, self.config.head_dim, self.config.rope_theta)
                self.cos, self.sin = cos.to(self.embed_tokens.data), sin.to(self.embed_tokens.data)
        return self.cos[start:end], self.sin[start:end]

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
