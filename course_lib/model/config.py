"""The shape of a model: the few numbers of a checkpoint's own configuration, under Hugging Face's names."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from course_lib.model.errors import CheckpointError

SUPPORTED = ("llama",)


@dataclass(frozen=True)
class ModelConfig:
    """What the decoder must know to build itself. Field names are those of Hugging Face's `config.json`."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.model_type not in SUPPORTED:
            raise unknown_architecture(self.model_type)
        if self.num_attention_heads % self.num_key_value_heads:
            raise CheckpointError(
                f"{self.num_attention_heads} query heads cannot share {self.num_key_value_heads} key/value "
                "heads evenly: the first number must be a multiple of the second."
            )
        if self.head_dim % 2:
            raise CheckpointError(
                f"head_dim is {self.head_dim}; rotary embeddings turn pairs, so it must be even."
            )

    @property
    def parameters(self) -> int:
        """How many numbers the model has learned; a tied output head is not counted twice."""
        c = self.hidden_size
        query, key_value = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        attention = c * (query + 2 * key_value) + query * c
        mlp = 3 * c * self.intermediate_size
        biases = self.attention_bias * (query + 2 * key_value + c) + self.mlp_bias * (
            2 * self.intermediate_size + c
        )
        tables = self.vocab_size * c * (1 if self.tie_word_embeddings else 2)
        return tables + c + self.num_hidden_layers * (attention + mlp + biases + 2 * c)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "ModelConfig":
        """From the dictionary of a Hugging Face `config.json`, as written by version 4 or 5 of Transformers.

        Raises:
            CheckpointError: unknown architecture, missing entry, or an option we would get wrong.
        """
        model_type = str(config.get("model_type", "(none given)"))
        if model_type not in SUPPORTED:
            raise unknown_architecture(model_type)
        # Transformers 5 keeps rotary options in one dictionary, version 4 in `rope_theta` and `rope_scaling`.
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        refuse_unless(rope.get("rope_type", rope.get("type", "default")), "default", "rotary scaling")
        refuse_unless(rope.get("partial_rotary_factor", 1.0), 1.0, "partial rotary factor")
        refuse_unless(config.get("hidden_act", "silu"), "silu", "activation")
        heads, hidden = whole(config, "num_attention_heads"), whole(config, "hidden_size")
        stops = config.get("eos_token_id")
        return cls(
            model_type=model_type,
            vocab_size=whole(config, "vocab_size"),
            hidden_size=hidden,
            intermediate_size=whole(config, "intermediate_size"),
            num_hidden_layers=whole(config, "num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=whole(config, "num_key_value_heads", heads),
            head_dim=whole(config, "head_dim", hidden // heads),
            max_position_embeddings=whole(config, "max_position_embeddings", 2048),
            rms_norm_eps=number(config, "rms_norm_eps", 1e-6),
            rope_theta=number({**config, **rope}, "rope_theta", 10_000.0),
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            attention_bias=bool(config.get("attention_bias", False)),
            mlp_bias=bool(config.get("mlp_bias", False)),
            bos_token_id=config.get("bos_token_id"),
            eos_token_ids=tuple(stops) if isinstance(stops, list) else () if stops is None else (stops,),
        )

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], tied: bool) -> "ModelConfig":
        """From a GGUF file's metadata, which does not say `tied`: there is an `output.weight` or not.

        Raises:
            CheckpointError: unknown architecture, missing entry, or an option we would get wrong.
        """
        arch = str(metadata.get("general.architecture", "(none given)"))
        if arch not in SUPPORTED:
            raise unknown_architecture(arch)
        hidden = whole(metadata, f"{arch}.embedding_length")
        heads = whole(metadata, f"{arch}.attention.head_count")
        head_dim = whole(metadata, f"{arch}.attention.key_length", hidden // heads)
        refuse_unless(metadata.get(f"{arch}.rope.scaling.type", "none"), "none", "rotary scaling")
        refuse_unless(metadata.get(f"{arch}.rope.dimension_count", head_dim), head_dim, "rotary dimension")
        tokens = metadata.get("tokenizer.ggml.tokens")
        stop = metadata.get("tokenizer.ggml.eos_token_id")
        return cls(
            model_type=arch,
            vocab_size=whole(
                metadata, f"{arch}.vocab_size", len(tokens) if isinstance(tokens, list) else None
            ),
            hidden_size=hidden,
            intermediate_size=whole(metadata, f"{arch}.feed_forward_length"),
            num_hidden_layers=whole(metadata, f"{arch}.block_count"),
            num_attention_heads=heads,
            num_key_value_heads=whole(metadata, f"{arch}.attention.head_count_kv", heads),
            head_dim=head_dim,
            max_position_embeddings=whole(metadata, f"{arch}.context_length"),
            rms_norm_eps=number(metadata, f"{arch}.attention.layer_norm_rms_epsilon"),
            rope_theta=number(metadata, f"{arch}.rope.freq_base", 10_000.0),
            tie_word_embeddings=tied,
            bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
            eos_token_ids=() if stop is None else (stop,),
        )


def unknown_architecture(name: str) -> CheckpointError:
    known = ", ".join(SUPPORTED)
    return CheckpointError(f"The architecture {name!r} is not supported; this engine runs: {known}.")


def refuse_unless(given: Any, expected: Any, what: str) -> None:
    if given != expected:
        raise CheckpointError(f"The {what} {given!r} is not supported; only {expected!r} is.")


def whole(source: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """The entry as a whole number from 1 up."""
    value = default if source.get(name) is None else source[name]
    if value is None:
        raise CheckpointError(f"The configuration has no entry {name!r}, which the decoder needs.")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CheckpointError(
            f"The configuration gives {name} = {value!r}; expected a whole number from 1 up."
        )
    return value


def number(source: Mapping[str, Any], name: str, default: float | None = None) -> float:
    """The entry as a finite number above 0."""
    value = default if source.get(name) is None else source[name]
    if value is None:
        raise CheckpointError(f"The configuration has no entry {name!r}, which the decoder needs.")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise CheckpointError(f"The configuration gives {name} = {value!r}; expected a number above 0.")
    return float(value)
