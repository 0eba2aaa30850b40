"""Every family against Transformers: tiny random checkpoints of odd shapes, by safetensors and by GGUF."""

import copy
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from course_lib.cache import ContiguousCache
from course_lib.model import init_weights, load_model, open_checkpoint
from course_lib.model.families import read_config
from course_lib.model.rope import stretched_frequencies

TOLERANCE = 1e-4  # of logits in float32, whatever the family

# Odd on purpose: fewer key/value heads than heads, heads that do not fill the hidden size, sizes that no
# block divides, windows shorter than the texts.
COMMON: dict[str, Any] = {
    "vocab_size": 71,
    "hidden_size": 36,
    "intermediate_size": 37,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "rope_theta": 100.0, "factor": 3.0}
GEMMA: dict[str, Any] = {
    "query_pre_attn_scalar": 7,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
    },
}
SMALL_GPT2 = {"vocab_size": 71, "n_embd": 36, "n_head": 6, "n_layer": 3, "n_positions": 128}
QWEN2 = {key: value for key, value in COMMON.items() if key != "head_dim"}
WINDOWED = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", SMALL_GPT2),
    "gpt2, another MLP": ("gpt2", SMALL_GPT2 | {"n_inner": 50, "activation_function": "relu"}),
    "gpt2, untied": ("gpt2", SMALL_GPT2 | {"tie_word_embeddings": False}),
    "llama": ("llama", COMMON),
    "llama, tied, biases": (
        "llama",
        COMMON | {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
    ),
    "llama 3": ("llama", COMMON | {"rope_parameters": LLAMA3}),
    "llama, linear": ("llama", COMMON | {"rope_parameters": LINEAR}),
    "llama, yarn": ("llama", COMMON | {"rope_parameters": YARN}),
    "mistral": ("mistral", COMMON | {"sliding_window": 5}),
    "mistral without window": ("mistral", COMMON | {"sliding_window": None}),
    "mixtral": ("mixtral", COMMON | {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "mixtral, windowed": (
        "mixtral",
        COMMON | {"num_local_experts": 3, "num_experts_per_tok": 1, "sliding_window": 5},
    ),
    "qwen2": ("qwen2", QWEN2),
    "qwen2, tied, windowed": ("qwen2", QWEN2 | WINDOWED | {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", COMMON),
    "qwen3, tied, biases": ("qwen3", COMMON | {"tie_word_embeddings": True, "attention_bias": True}),
    "gemma3": ("gemma3_text", COMMON | GEMMA),
    "gemma3, untied, softcap": (
        "gemma3_text",
        COMMON | GEMMA | {"tie_word_embeddings": False, "final_logit_softcapping": 3.0},
    ),
    "gemma3, defaults": ("gemma3_text", {**COMMON, "num_hidden_layers": 7, "sliding_window": 4}),
}


def reference_model(model_type: str, options: dict[str, Any]) -> Any:
    """Transformers' own model with random weights, large ones, so that nothing is nearly uniform."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(model_type, **options)
    config._attn_implementation = config._experts_implementation = "eager"
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        spread = 0.3 if "norm" in name or "bias" in name or "ln_" in name else 0.2
        center = 1.0 if spread == 0.3 and "gemma" not in model_type and "bias" not in name else 0.0
        torch.nn.init.normal_(parameter, mean=center, std=spread)
    return model


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    """(Transformers' model, the folder that it was saved to)."""
    model = reference_model(*FAMILIES[request.param])
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return model, folder


def worst(got: torch.Tensor, expected: torch.Tensor) -> float:
    assert got.shape == expected.shape
    return float((got - expected).detach().abs().max())


@pytest.mark.parametrize("pack", [False, True])
def test_logits_equal_transformers(pair, pack):
    reference, folder = pair
    model = load_model(open_checkpoint(folder), pack=pack)
    ids = torch.randint(0, 71, (3, 97))
    with torch.no_grad():
        expected = reference(ids).logits
    assert expected.std() > 0.3, "logits so small that any would pass"
    assert worst(model(ids), expected) < TOLERANCE
    assert model.config.parameters == sum(parameter.numel() for parameter in reference.parameters())


@pytest.mark.parametrize("pieces", [[1] * 20, [13, 1, 6], [5, 15], [19, 1]])
def test_cache_gives_the_logits_of_the_whole(pair, pieces):
    reference, folder = pair
    model = load_model(open_checkpoint(folder))
    ids = torch.randint(0, 71, (2, 20))
    with torch.no_grad():
        expected = reference(ids).logits
    cache = ContiguousCache(model.config, capacity=3, batch=2)
    parts = [model(piece, cache) for piece in ids.split(pieces, dim=1)]
    assert worst(torch.cat(parts, dim=1), expected) < TOLERANCE


def test_shards_and_bfloat16(pair, tmp_path):
    """The same model in many files, its weights stored in half the bytes."""
    from transformers import AutoModelForCausalLM

    copy.deepcopy(pair[0]).bfloat16().save_pretrained(tmp_path, max_shard_size="20KB")
    reference = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ids = torch.randint(0, 71, (2, 20))
    with torch.no_grad():
        expected = reference(ids).logits
    assert worst(load_model(open_checkpoint(tmp_path))(ids), expected) < TOLERANCE


def test_family_can_be_trained(pair):
    """A fresh decoder of any family gives every weight a gradient, and untrained it guesses evenly."""
    _, folder = pair
    config = open_checkpoint(folder).config
    model = init_weights(config, seed=3)
    torch.manual_seed(3)
    ids = torch.randint(0, 71, (4, 30))
    loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert abs(loss.item() - 4.263) < 0.3  # ln 71


# GGUF: tensors named by the gguf package's own tables, and changed as llama.cpp's converter does.

GGUF_MODELS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    # name: (GGUF's architecture, Transformers' type, its settings, metadata besides the sizes)
    "gpt2": ("gpt2", "gpt2", SMALL_GPT2, {}),
    "llama": ("llama", "llama", COMMON | {"attention_bias": True, "mlp_bias": True}, {}),
    "llama 3": ("llama", "llama", COMMON | {"rope_parameters": LLAMA3}, {"rope.freq_base": 100.0}),
    "llama, linear": (
        "llama",
        "llama",
        COMMON | {"rope_parameters": LINEAR},
        {"rope.freq_base": 100.0, "rope.scaling.type": "linear", "rope.scaling.factor": 3.0},
    ),
    "llama, yarn": (
        "llama",
        "llama",
        COMMON | {"rope_parameters": YARN},
        {
            "rope.freq_base": 100.0,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 32,
        },
    ),
    "qwen2": ("qwen2", "qwen2", QWEN2 | {"tie_word_embeddings": True}, {}),
    "qwen3": ("qwen3", "qwen3", COMMON, {}),
    "gemma3": (
        "gemma3",
        "gemma3_text",
        COMMON
        | {
            "num_hidden_layers": 7,
            "sliding_window": 4,
            "query_pre_attn_scalar": 10,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 500.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            },
        },
        {"rope.freq_base": 500.0, "attention.sliding_window": 4},
    ),
}


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """The order of rows that llama.cpp's converter gives a Llama's queries and keys."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, arch: str, reference: Any, metadata: dict[str, Any]) -> None:
    config = reference.config
    gguf_arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == arch)
    names = gguf.get_tensor_name_map(gguf_arch, config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", 4 * config.hidden_size))
    writer.add_token_list([f"t{i}" for i in range(config.vocab_size)])
    writer.add_eos_token_id(2)
    if arch == "gpt2":
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(getattr(config, "head_dim", config.hidden_size // config.num_attention_heads))
    for key, value in metadata.items():
        add: Any = {float: writer.add_float32, int: writer.add_uint32, str: writer.add_string}[type(value)]
        add(f"{arch}.{key}", value)
    tied = config.tie_word_embeddings
    for name, tensor in reference.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        stored = tensor.float().numpy()
        if arch == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            stored = stored.T
        if arch == "llama" and (".q_proj." in name or ".k_proj." in name):
            heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            stored = permuted(stored, heads)
        if arch == "gemma3" and "norm" in name:
            stored = stored + 1
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert new is not None, name
        writer.add_tensor(new, np.ascontiguousarray(stored))
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "llama3":  # the converter stores the divisors of the frequencies
        plain = 1.0 / 100.0 ** (np.arange(0, 10, 2) / 10)
        divisors = plain / reference.model.rotary_emb.inv_freq.double().numpy()
        assert divisors.max() > 7.9 and divisors.min() == pytest.approx(1)
        writer.add_tensor("rope_freqs.weight", divisors.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("case", GGUF_MODELS)
def test_gguf_logits_equal_transformers(case, tmp_path):
    arch, model_type, options, metadata = GGUF_MODELS[case]
    reference = reference_model(model_type, options)
    write_gguf(tmp_path / "model.gguf", arch, reference, metadata)
    model = load_model(open_checkpoint(tmp_path / "model.gguf"))
    ids = torch.randint(0, 71, (2, 97))
    with torch.no_grad():
        expected = reference(ids).logits
    assert worst(model(ids), expected) < TOLERANCE
    assert model.config.eos_token_ids == (2,)
    reference.save_pretrained(tmp_path / "folder")
    assert worst(load_model(open_checkpoint(tmp_path / "folder"))(ids), model(ids)) < TOLERANCE


# Rotary frequencies, at positions far beyond those of the tiny models


@pytest.mark.parametrize(
    "options",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 4.0},
        LLAMA3 | {"original_max_position_embeddings": 8192, "factor": 32.0},
        {"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096},
        {"rope_type": "yarn", "factor": 4.0, "beta_fast": 20.0, "beta_slow": 2.0, "attention_factor": 1.3},
    ],
    ids=lambda options: f"{options['rope_type']}-{options.get('factor', 1)}",
)
@pytest.mark.parametrize(("head_dim", "theta"), [(64, 1e4), (128, 5e5), (10, 100.0)])
def test_rotary_frequencies_equal_transformers(options, head_dim, theta):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    settings = {
        "model_type": "llama",
        "vocab_size": 9,
        "hidden_size": 8 * head_dim,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 8,
        "head_dim": head_dim,
        "max_position_embeddings": 16384,
        "rope_parameters": options | {"rope_theta": theta},
    }
    rope = read_config(settings).rope
    assert rope is not None
    got = stretched_frequencies(head_dim, rope)
    if options["rope_type"] == "default":
        expected, factor = 1.0 / theta ** (torch.arange(0, head_dim, 2).float() / head_dim), 1.0
    else:
        config = LlamaConfig(**settings)
        expected, factor = ROPE_INIT_FUNCTIONS[options["rope_type"]](config, torch.device("cpu"))
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)
    assert rope.attention_factor == pytest.approx(factor)
