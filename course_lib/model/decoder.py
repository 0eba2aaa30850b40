"""The decoder of all families: token ids in, logits out, with or without a key/value cache."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from course_lib.model.config import ModelConfig, RopeParameters
from course_lib.model.layers import DecoderLayer, Experts, FusedLinear, KVCache, Linear, norm
from course_lib.model.rope import rope_table, stretched_frequencies


class Decoder(nn.Module):
    """Embedding, N blocks, a last norm and the output head. `named_weights` gives them names.

    Build it through `course_lib.model.load.load_model`, which fills the weights, or through `init_weights`;
    here they are uninitialized memory.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.embed_positions = None
        if config.rope is None:
            self.embed_positions = nn.Parameter(
                torch.empty(config.max_position_embeddings, config.hidden_size)
            )
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = norm(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens
        # No buffers, which `model.to(torch.bfloat16)` would round: position 1001 would turn like 1000.
        self.frequencies = {
            rope: stretched_frequencies(config.head_dim, rope)
            for rope in (config.rope, config.local_rope)
            if rope
        }

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
        turned = {rope: self.rotations(positions, rope) for rope in self.frequencies}
        x = F.embedding(ids, self.embed_tokens)  # (B, T, C)
        if self.config.embedding_scale != 1:
            x = x * float(torch.tensor(self.config.embedding_scale, dtype=x.dtype, device="cpu"))
        if self.embed_positions is not None:
            x = x + F.embedding(positions, self.embed_positions)
        for layer in self.layers:
            assert isinstance(layer, DecoderLayer)
            cos, sin = turned[layer.rope] if layer.rope else (None, None)
            x = layer(x, cos, sin, cache)
        if cache is not None:
            cache.advance(new)
        x = x[:, -logits_to_keep:] if rows is None else x[:, rows]
        logits = self.lm_head(self.norm(x))
        if (cap := self.config.logit_softcap) is not None:
            logits = cap * torch.tanh(logits / cap)
        return logits

    def rotations(
        self, positions: Int64[Tensor, "*batch T"], rope: RopeParameters | None = None
    ) -> tuple[Float[Tensor, "*batch T half"], Float[Tensor, "*batch T half"]]:
        """Cosines and sines by which tokens at `positions` are turned; computed in float32.

        `rope` is one of the model's own, by default its first: only layers with a sliding window may
        have another.
        """
        rope = rope or self.config.rope
        if rope is None:
            raise ValueError(f"A {self.config.model_type} has no rotary positions.")
        frequencies = self.frequencies[rope] = self.frequencies[rope].to(positions.device)
        cos, sin = rope_table(positions, frequencies)
        if rope.attention_factor != 1:
            cos, sin = cos * rope.attention_factor, sin * rope.attention_factor
        return cos.to(self.dtype), sin.to(self.dtype)

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight as (name, tensor); parts of a fused matrix are views of it.

        The names are those of Hugging Face's Llama, with what it lacks named as other families there do.

        Raises:
            RuntimeError: the matrices have been packed.
        """
        for path, module in self.named_modules():
            prefix = path if path == "lm_head" else f"model.{path}".rstrip(".")
            parent = prefix.rpartition(".")[0]
            if isinstance(module, Linear) and module.packed is not None:
                raise RuntimeError(f"{prefix} has been packed: its weights can no longer be read by name.")
            for kind, parameter in module.named_parameters(recurse=False):
                if module is self.lm_head and self.config.tie_word_embeddings:
                    continue
                if isinstance(module, FusedLinear):
                    parts = parameter.data.split(list(module.rows.values()))
                    for name, part in zip(module.rows, parts, strict=True):
                        yield f"{parent}.{name}.{kind}", part
                elif isinstance(module, Experts):
                    names = ("gate_proj", "up_proj") if kind == "gate_up" else ("down_proj",)
                    for expert, matrix in enumerate(parameter.data):
                        for name, part in zip(names, matrix.chunk(len(names)), strict=True):
                            yield f"{prefix}.{expert}.{name}.weight", part
                else:  # a bare table, such as the embedding, is a module with one weight elsewhere
                    yield (
                        f"{prefix}.{kind}" + ("" if kind in ("weight", "bias") else ".weight"),
                        parameter.data,
                    )

    def pack(self) -> None:
        """Reorder every matrix for fast reading on a CPU (see `Linear.pack`); `named_weights` ends here."""
        for module in self.modules():
            if isinstance(module, Linear):
                module.pack()


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
            torch.nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0 - config.norm_offset)
        else:
            into_stream = "o_proj" in name or "down" in name
            torch.nn.init.normal_(parameter, 0.0, residual_std if into_stream else std, generator=generator)
    return model
