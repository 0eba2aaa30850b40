"""The families: from a checkpoint's own settings to `ModelConfig`, and what each calls its weights.

`read_config` reads Hugging Face's `config.json`, as version 4 or 5 of Transformers writes it,
`read_gguf_config` a GGUF file's metadata. What we would compute wrongly is refused, never ignored.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from course_lib.model.config import FULL, SLIDING, ModelConfig, RopeParameters
from course_lib.model.errors import CheckpointError

Settings = Mapping[str, Any]
MAX_LAYERS = 10_000
LARGEST = 2**40


def read_config(settings: Settings) -> ModelConfig:
    """From the dictionary of a `config.json`.

    Raises:
        CheckpointError: unknown architecture, missing entry, or an option we would get wrong.
    """
    model_type = str(settings.get("model_type", "(none given)"))
    if model_type not in HF_FAMILIES:
        raise unknown_architecture(model_type, HF_FAMILIES)
    if quantization := settings.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise CheckpointError(f"The weights are quantized by {method!r}; give a checkpoint in float numbers.")
    return ModelConfig(model_type=model_type, **HF_FAMILIES[model_type](settings))


def llama(settings: Settings) -> dict[str, Any]:
    """Llama 2 and 3, SmolLM2; and what all families but GPT-2 have in common."""
    rope = rope_settings(settings)
    refuse_unless(settings.get("hidden_act", "silu"), "silu", "activation")
    bias = flag(settings, "attention_bias")
    return sizes(settings) | {
        "norm_eps": number(settings, "rms_norm_eps", 1e-6),
        "rope": read_rope(rope, number({**settings, **rope}, "rope_theta", 10_000.0), settings),
        "tie_word_embeddings": flag(settings, "tie_word_embeddings"),
        "attention_bias": bias,
        "output_bias": bias,
        "mlp_bias": flag(settings, "mlp_bias"),
    }


def mistral(settings: Settings) -> dict[str, Any]:
    """Mistral is Llama with a sliding window in all layers, or in none."""
    settings = {"num_key_value_heads": 8, **settings}
    window = settings.get("sliding_window") and whole(settings, "sliding_window")
    return llama(settings) | {"sliding_window": window, "layer_types": (SLIDING if window else FULL,)}


def mixtral(settings: Settings) -> dict[str, Any]:
    """Mistral with a mixture of experts in the place of each MLP."""
    return mistral({"rms_norm_eps": 1e-5, "rope_theta": 1e6, **settings}) | {
        "num_experts": whole(settings, "num_local_experts", 8),
        "num_experts_per_tok": whole(settings, "num_experts_per_tok", 2),
    }


def qwen2(settings: Settings) -> dict[str, Any]:
    """Llama with biases on queries, keys and values; a sliding window, where used, begins at some layer."""
    fields = llama(settings) | {"attention_bias": True, "output_bias": False}
    if flag(settings, "use_sliding_window"):
        layers = fields["num_hidden_layers"]
        full = min(whole(settings, "max_window_layers", 28, least=0), layers)
        fields["sliding_window"] = whole(settings, "sliding_window", 4096)
        fields["layer_types"] = layer_types(settings, (FULL,) * full + (SLIDING,) * (layers - full), layers)
    return fields


def qwen3(settings: Settings) -> dict[str, Any]:
    """Qwen 2 with a norm on each query and key head, and no biases unless the settings say so."""
    bias = flag(settings, "attention_bias")
    head_dim = whole(settings, "head_dim", 128)
    own = {"head_dim": head_dim, "attention_bias": bias, "output_bias": bias, "qk_norm": True}
    return qwen2(settings) | own


def gemma3(settings: Settings) -> dict[str, Any]:
    """Gemma 3: five layers with a window and rotary angles of their own, then one without; and four norms."""
    refuse_unless(settings.get("hidden_activation", "gelu_pytorch_tanh"), "gelu_pytorch_tanh", "activation")
    refuse_unless(settings.get("attn_logit_softcapping"), None, "attention softcap")
    refuse_unless(settings.get("use_bidirectional_attention") or False, False, "bidirectional attention")
    settings = {"num_key_value_heads": 4, **settings}
    fields = sizes(settings, head_dim=256)
    every = whole(settings, "sliding_window_pattern", 6)
    if every > MAX_LAYERS:
        raise CheckpointError(
            f"The configuration gives sliding_window_pattern = {every}; expected a few layers."
        )
    nested = options(settings, "rope_parameters")
    rope = options(nested, FULL) or options(settings, "rope_scaling")
    local = options(nested, SLIDING)
    bias = flag(settings, "attention_bias")
    theta = number({**settings, **rope}, "rope_theta", 1_000_000.0)
    local_theta = number(local, "rope_theta", number(settings, "rope_local_base_freq", 10_000.0))
    cap = settings.get("final_logit_softcapping")
    return fields | {
        "norm_eps": number(settings, "rms_norm_eps", 1e-6),
        "rope": read_rope(rope, theta, settings),
        "local_rope": read_rope(local, local_theta, settings),
        "tie_word_embeddings": flag(settings, "tie_word_embeddings", True),
        "attention_bias": bias,
        "output_bias": bias,
        "norm_offset": 1.0,
        "qk_norm": True,
        "post_norms": True,
        "activation": "gelu_pytorch_tanh",
        "attention_scale": number(settings, "query_pre_attn_scalar", 256) ** -0.5,
        "embedding_scale": fields["hidden_size"] ** 0.5,
        "logit_softcap": None if cap is None else number(settings, "final_logit_softcapping"),
        "sliding_window": whole(settings, "sliding_window", 4096),
        "layer_types": layer_types(settings, (SLIDING,) * (every - 1) + (FULL,), fields["num_hidden_layers"]),
    }


def gpt2(settings: Settings) -> dict[str, Any]:
    """GPT-2: learned positions, LayerNorm, biases everywhere, a plain MLP."""
    refuse_unless(settings.get("scale_attn_weights", True), True, "option scale_attn_weights =")
    refuse_unless(
        flag(settings, "scale_attn_by_inverse_layer_idx"), False, "option scale_attn_by_inverse_layer_idx ="
    )
    refuse_unless(flag(settings, "add_cross_attention"), False, "option add_cross_attention =")
    hidden, heads = whole(settings, "n_embd"), whole(settings, "n_head")
    if hidden % heads:
        raise CheckpointError(f"n_embd is {hidden}; {heads} heads cannot share it evenly.")
    return GPT2 | {
        "vocab_size": whole(settings, "vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": whole(settings, "n_inner", 4 * hidden),
        "num_hidden_layers": count_layers(settings, "n_layer"),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": hidden // heads,
        "max_position_embeddings": whole(settings, "n_positions", 1024),
        "norm_eps": number(settings, "layer_norm_epsilon", 1e-5),
        "tie_word_embeddings": flag(settings, "tie_word_embeddings", True),
        "activation": str(settings.get("activation_function", "gelu_new")),
        "bos_token_id": token_id(settings, "bos_token_id"),
        "eos_token_ids": token_ids(settings.get("eos_token_id")),
    }


GPT2: dict[str, Any] = {
    "rope": None,
    "norm": "layer",
    "attention_bias": True,
    "output_bias": True,
    "mlp_bias": True,
    "fused_qkv": True,
    "gated_mlp": False,
}
HF_FAMILIES: dict[str, Callable[[Settings], dict[str, Any]]] = {
    "gpt2": gpt2,
    "llama": llama,
    "mistral": mistral,
    "mixtral": mixtral,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "gemma3_text": gemma3,
}


def sizes(settings: Settings, head_dim: int | None = None) -> dict[str, Any]:
    """The sizes and tokens that all families but GPT-2 name alike."""
    heads, hidden = whole(settings, "num_attention_heads"), whole(settings, "hidden_size")
    return {
        "vocab_size": whole(settings, "vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": whole(settings, "intermediate_size"),
        "num_hidden_layers": count_layers(settings, "num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": whole(settings, "num_key_value_heads", heads),
        "head_dim": whole(settings, "head_dim", head_dim or hidden // heads),
        "max_position_embeddings": whole(settings, "max_position_embeddings", 2048),
        "bos_token_id": token_id(settings, "bos_token_id"),
        "eos_token_ids": token_ids(settings.get("eos_token_id")),
    }


def rope_settings(settings: Settings) -> Settings:
    """One dictionary of options; version 4 of Transformers keeps `rope_theta` apart from it."""
    return options(settings, "rope_parameters") or options(settings, "rope_scaling")


def read_rope(rope: Settings, theta: float, settings: Settings) -> RopeParameters:
    """The rotary settings of one kind of layer."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    refuse_unless(rope.get("partial_rotary_factor", 1.0), 1.0, "partial rotary factor")
    if kind == "default":
        return RopeParameters(theta)
    if kind not in ("linear", "llama3", "yarn"):
        raise CheckpointError(
            f"The rotary scaling {kind!r} is not supported; supported are default, linear, llama3, yarn."
        )
    factor = number(rope, "factor")
    original = whole(
        rope,
        "original_max_position_embeddings",
        whole(settings, "max_position_embeddings", 2048) if kind == "yarn" else 8192,
    )
    common = {"rope_theta": theta, "rope_type": kind, "factor": factor}
    if kind == "linear":
        return RopeParameters(**common)
    if kind == "llama3":
        low, high = number(rope, "low_freq_factor"), number(rope, "high_freq_factor")
        if low >= high:
            raise CheckpointError(f"low_freq_factor is {low}; it must be below high_freq_factor, {high}.")
        return RopeParameters(
            **common,
            original_max_position_embeddings=original,
            low_freq_factor=low,
            high_freq_factor=high,
        )
    refuse_unless(rope.get("truncate", True), True, "YaRN option truncate =")
    refuse_unless(rope.get("mscale_all_dim") or 0, 0, "YaRN option mscale_all_dim =")
    default = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0  # Peng et al. (2023), equation 22
    return RopeParameters(
        **common,
        original_max_position_embeddings=original,
        beta_fast=number(rope, "beta_fast", 32.0),
        beta_slow=number(rope, "beta_slow", 1.0),
        attention_factor=number(rope, "attention_factor", default),
    )


def layer_types(settings: Settings, default: Sequence[str], layers: int) -> tuple[str, ...]:
    """The kind of each layer, as the settings list them."""
    given = settings.get("layer_types")
    if given is None:
        return tuple(default)
    if not isinstance(given, list) or len(given) != layers or not {*map(str, given)} <= {FULL, SLIDING}:
        raise CheckpointError(
            f"layer_types must name {layers} layers, each {FULL!r} or {SLIDING!r}; it is {given!r:.200}."
        )
    return tuple(given)


# GGUF


def read_gguf_config(
    metadata: Settings, tensors: Collection[str], rope_factors: tuple[float, ...] = ()
) -> ModelConfig:
    """From a GGUF file's metadata, and what only its tensors tell.

    Args:
        metadata: as `read_gguf` gives it.
        tensors: their names: without an `output.weight` the head is tied, and a Llama may have biases.
        rope_factors: its tensor `rope_freqs.weight`, in which Llama 3's rotary scaling is stored.

    Raises:
        CheckpointError: unknown architecture, missing entry, or an option we would get wrong.
    """
    arch = str(metadata.get("general.architecture", "(none given)"))
    if arch not in GGUF_ARCHITECTURES:
        raise unknown_architecture(arch, GGUF_ARCHITECTURES)
    own = {
        key.removeprefix(f"{arch}."): value for key, value in metadata.items() if key.startswith(f"{arch}.")
    }
    if own.get("expert_count"):
        raise CheckpointError("Mixtures of experts are read from safetensors, not from GGUF.")
    hidden, heads = whole(own, "embedding_length"), whole(own, "attention.head_count")
    tokens = metadata.get("tokenizer.ggml.tokens")
    stops = (metadata.get("tokenizer.ggml.eos_token_id"), metadata.get("tokenizer.ggml.eot_token_id"))
    fields: dict[str, Any] = {
        "model_type": {"gemma3": "gemma3_text"}.get(arch, arch),
        "vocab_size": whole(own, "vocab_size", len(tokens) if isinstance(tokens, list) else None),
        "hidden_size": hidden,
        "intermediate_size": whole(own, "feed_forward_length"),
        "num_hidden_layers": count_layers(own, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": whole(own, "attention.head_count_kv", heads),
        "head_dim": whole(own, "attention.key_length", hidden // heads),
        "max_position_embeddings": whole(own, "context_length"),
        "tie_word_embeddings": "output.weight" not in tensors,
        "bos_token_id": token_id(metadata, "tokenizer.ggml.bos_token_id"),
        "eos_token_ids": token_ids(list(dict.fromkeys(stop for stop in stops if stop is not None))),
    }
    if arch == "gpt2":
        eps = number(own, "attention.layer_norm_epsilon", 1e-5)
        return ModelConfig(**GPT2 | fields, norm_eps=eps, activation="gelu_new")
    refuse_unless(own.get("rope.dimension_count", fields["head_dim"]), fields["head_dim"], "rotary dimension")
    refuse_unless(own.get("attention.value_length", fields["head_dim"]), fields["head_dim"], "value length")
    fields |= {
        "norm_eps": number(own, "attention.layer_norm_rms_epsilon"),
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "output_bias": "blk.0.attn_output.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
        "rope": gguf_rope(own, 1_000_000.0 if arch == "gemma3" else 10_000.0, rope_factors),
    }
    return ModelConfig(**fields | GGUF_ARCHITECTURES[arch](own, fields))


def gguf_rope(own: Settings, theta: float, factors: tuple[float, ...]) -> RopeParameters:
    theta = number(own, "rope.freq_base", theta)
    kind = own.get("rope.scaling.type", "none")
    if kind not in ("none", "linear", "yarn"):
        raise CheckpointError(
            f"The rotary scaling {kind!r} is not supported; supported are none, linear, yarn."
        )
    if factors:
        refuse_unless(kind, "none", "rotary scaling besides the table rope_freqs.weight,")
        return RopeParameters(theta, "table", factors=factors)
    if kind == "none":
        return RopeParameters(theta)
    options = {
        "rope_type": kind,
        "factor": number(own, "rope.scaling.factor"),
        "original_max_position_embeddings": own.get("rope.scaling.original_context_length"),
    }
    return read_rope(options, theta, {"max_position_embeddings": whole(own, "context_length")})


def gguf_gemma3(own: Settings, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What llama.cpp's converter leaves out it fixes in its own code (`src/models/gemma3.cpp`).

    Norm weights are stored with their 1 added, so there is no offset.
    """
    # Only the 27B, which is the one with 62 layers, scales by another width than that of a head.
    biggest = fields["num_hidden_layers"] == 62
    width = fields["hidden_size"] / fields["num_attention_heads"] if biggest else fields["head_dim"]
    cap = own.get("final_logit_softcapping")
    return {
        "local_rope": RopeParameters(number(own, "rope.freq_base_swa", 10_000.0)),
        "qk_norm": True,
        "post_norms": True,
        "activation": "gelu_pytorch_tanh",
        "attention_scale": width**-0.5,
        "embedding_scale": fields["hidden_size"] ** 0.5,
        "logit_softcap": None if cap is None else number(own, "final_logit_softcapping"),
        "sliding_window": whole(own, "attention.sliding_window"),
        "layer_types": (SLIDING,) * 5 + (FULL,),
    }


GGUF_ARCHITECTURES: dict[str, Callable[[Settings, Mapping[str, Any]], dict[str, Any]]] = {
    "gpt2": lambda own, fields: {},
    "llama": lambda own, fields: {},
    "qwen2": lambda own, fields: {"attention_bias": True},
    "qwen3": lambda own, fields: {"qk_norm": True},
    "gemma3": gguf_gemma3,
}


# Names. Ours are those of Hugging Face's Llama; a table holds what to replace, in this order.

HF_NAMES: dict[str, dict[str, str]] = {
    "gpt2": {
        "model.embed_tokens": "transformer.wte",
        "model.embed_positions": "transformer.wpe",
        "model.norm": "transformer.ln_f",
        "model.layers": "transformer.h",
        "input_layernorm": "ln_1",
        "self_attn.qkv_proj": "attn.c_attn",
        "self_attn.o_proj": "attn.c_proj",
        "post_attention_layernorm": "ln_2",
        "mlp.up_proj": "mlp.c_fc",
        "mlp.down_proj": "mlp.c_proj",
    },
    "mixtral": {
        "mlp.": "block_sparse_moe.",
        "gate_proj": "w1",
        "up_proj": "w3",
        "down_proj": "w2",
    },
}
GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.embed_positions": "position_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "input_layernorm": "attn_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
PRE_NORM = {"post_attention_layernorm": "ffn_norm"}
POST_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def stored_name(name: str, table: Mapping[str, str]) -> str:
    """`model.layers.3.self_attn.q_proj.weight` -> `blk.3.attn_q.weight`, by GGUF's table."""
    for ours, theirs in table.items():
        name = name.replace(ours, theirs)
    return name


# Reading single entries


def unknown_architecture(name: str, known: Mapping[str, Any]) -> CheckpointError:
    return CheckpointError(
        f"The architecture {name!r} is not supported; this engine runs: {', '.join(known)}."
    )


def refuse_unless(given: Any, expected: Any, what: str) -> None:
    if given != expected:
        raise CheckpointError(f"The {what} {given!r} is not supported; only {expected!r} is.")


def whole(source: Settings, name: str, default: int | None = None, least: int = 1) -> int:
    """The entry as a whole number from `least` up."""
    value = default if source.get(name) is None else source[name]
    if value is None:
        raise CheckpointError(f"The configuration has no entry {name!r}, which the decoder needs.")
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise CheckpointError(
            f"The configuration gives {name} = {value!r:.200}; expected a whole number from {least} up."
        )
    if value > LARGEST:
        raise CheckpointError(
            f"The configuration gives {name} = {float(min(value, 10**300)):.3g}; no model is so large."
        )
    return value


def options(source: Settings, name: str) -> Settings:
    """The entry as a dictionary; empty where there is none."""
    value = source.get(name) or {}
    if not isinstance(value, Mapping):
        raise CheckpointError(
            f"The configuration gives {name} = {value!r:.200}; expected an object of settings."
        )
    return value


def count_layers(source: Settings, name: str) -> int:
    layers = whole(source, name)
    if layers > MAX_LAYERS:
        raise CheckpointError(
            f"The configuration gives {name} = {layers}; no model has over {MAX_LAYERS:,} layers."
        )
    return layers


def number(source: Settings, name: str, default: float | None = None) -> float:
    """The entry as a finite number above 0."""
    value = default if source.get(name) is None else source[name]
    if value is None:
        raise CheckpointError(f"The configuration has no entry {name!r}, which the decoder needs.")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e300:
        raise CheckpointError(f"The configuration gives {name} = {value!r:.200}; expected a number above 0.")
    return float(value)


def flag(source: Settings, name: str, default: bool = False) -> bool:
    value = default if source.get(name) is None else source[name]
    if not isinstance(value, bool):
        raise CheckpointError(f"The configuration gives {name} = {value!r:.200}; expected true or false.")
    return value


def token_id(source: Settings, name: str) -> int | None:
    return None if source.get(name) is None else whole(source, name, least=0)


def token_ids(given: Any) -> tuple[int, ...]:
    """None, one id, or a list of them."""
    listed = given if isinstance(given, list) else [] if given is None else [given]
    return tuple(whole({"eos_token_id": one}, "eos_token_id", least=0) for one in listed)
