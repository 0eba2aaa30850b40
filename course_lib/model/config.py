"""The shape of a model: the few numbers of a checkpoint's own configuration, under Hugging Face's names."""

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
        sizes = (
            "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
            "num_key_value_heads head_dim max_position_embeddings"
        )
        for name in sizes.split():
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise CheckpointError(
                    f"The configuration gives {name} = {value!r}; it must be a whole number from 1 up."
                )
        if self.num_attention_heads % self.num_key_value_heads:
            raise CheckpointError(
                f"{self.num_attention_heads} query heads cannot share "
                f"{self.num_key_value_heads} key/value heads evenly: num_attention_heads must be a multiple of num_key_value_heads."
            )
        if self.head_dim % 2:
            raise CheckpointError(
                f"head_dim = {self.head_dim} is odd: rotary embeddings turn pairs of numbers."
            )

    @property
    def parameters(self) -> int:
        """How many numbers the model has learned; a tied output head is not counted twice."""
        c = self.hidden_size
        query, key_value = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        attention = c * (query + 2 * key_value) + query * c
        mlp = 3 * c * self.intermediate_size
        biases = (query + 2 * key_value + c) * self.attention_bias + (
            2 * self.intermediate_size + c
        ) * self.mlp_bias
        tables = self.vocab_size * c * (1 if self.tie_word_embeddings else 2)
        return tables + c + self.num_hidden_layers * (attention + mlp + biases + 2 * c)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "ModelConfig":
        """From the dictionary of a Hugging Face `config.json`, as written by version 4 or 5 of Transformers.

        Raises:
            CheckpointError: unknown architecture, missing entry, or an option that this decoder would get
            wrong.
        """
        model_type = str(config.get("model_type", "(none given)"))
        if model_type not in SUPPORTED:
            raise unknown_architecture(model_type)
        # Transformers 5 keeps rotary options in `rope_parameters`, version 4 in `rope_theta` and
        # `rope_scaling`.
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        rope_type = rope.get("rope_type", rope.get("type", "default"))
        if rope_type != "default":
            raise CheckpointError(
                f"Rotary scaling of type {rope_type!r} is not supported; only 'default' is."
            )
        if (activation := config.get("hidden_act", "silu")) not in ("silu", "swish"):
            raise CheckpointError(
                f"The activation {activation!r} is not supported in a Llama; only 'silu' is."
            )
        heads, hidden = require(config, "num_attention_heads"), require(config, "hidden_size")
        stops = config.get("eos_token_id")
        return cls(
            model_type=model_type,
            vocab_size=require(config, "vocab_size"),
            hidden_size=hidden,
            intermediate_size=require(config, "intermediate_size"),
            num_hidden_layers=require(config, "num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or hidden // heads,
            max_position_embeddings=config.get("max_position_embeddings", 2048),
            rms_norm_eps=config.get("rms_norm_eps", 1e-6),
            rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            attention_bias=bool(config.get("attention_bias", False)),
            mlp_bias=bool(config.get("mlp_bias", False)),
            bos_token_id=config.get("bos_token_id"),
            eos_token_ids=tuple(stops) if isinstance(stops, list) else () if stops is None else (stops,),
        )

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], tied: bool = False) -> "ModelConfig":
        """From a GGUF file's metadata, which does not say `tied`: there is an `output.weight` or not.

        Raises:
            CheckpointError: unknown architecture, missing entry, or an option that this decoder would get
            wrong.
        """
        arch = str(metadata.get("general.architecture", "(none given)"))
        if arch not in SUPPORTED:
            raise unknown_architecture(arch)
        scaling = metadata.get(f"{arch}.rope.scaling.type", "none")
        if scaling != "none":
            raise CheckpointError(f"Rotary scaling of type {scaling!r} is not supported; only 'none' is.")
        hidden, heads = (
            require(metadata, f"{arch}.embedding_length"),
            require(metadata, f"{arch}.attention.head_count"),
        )
        head_dim = metadata.get(f"{arch}.attention.key_length", hidden // heads)
        if (turned := metadata.get(f"{arch}.rope.dimension_count", head_dim)) != head_dim:
            raise CheckpointError(
                f"Rotary embeddings on {turned} of {head_dim} dimensions are not supported."
            )
        stop = metadata.get("tokenizer.ggml.eos_token_id")
        tokens = metadata.get("tokenizer.ggml.tokens")
        vocab_size = metadata.get(f"{arch}.vocab_size") or (len(tokens) if tokens else None)
        if vocab_size is None:
            raise CheckpointError(f"The metadata gives neither {arch}.vocab_size nor a vocabulary.")
        return cls(
            model_type=arch,
            vocab_size=vocab_size,
            hidden_size=hidden,
            intermediate_size=require(metadata, f"{arch}.feed_forward_length"),
            num_hidden_layers=require(metadata, f"{arch}.block_count"),
            num_attention_heads=heads,
            num_key_value_heads=metadata.get(f"{arch}.attention.head_count_kv", heads),
            head_dim=head_dim,
            max_position_embeddings=require(metadata, f"{arch}.context_length"),
            rms_norm_eps=require(metadata, f"{arch}.attention.layer_norm_rms_epsilon"),
            rope_theta=metadata.get(f"{arch}.rope.freq_base", 10_000.0),
            tie_word_embeddings=tied,
            bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
            eos_token_ids=() if stop is None else (stop,),
        )


def unknown_architecture(name: str) -> CheckpointError:
    return CheckpointError(
        f"The architecture {name!r} is not supported; this engine runs: {', '.join(SUPPORTED)}."
    )


def require(source: Mapping[str, Any], name: str) -> Any:
    if source.get(name) is None:
        raise CheckpointError(
            f"The checkpoint's configuration has no entry {name!r}, which the decoder needs."
        )
    return source[name]
