"""The models that `make train` knows by name."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from course_lib.model.config import ModelConfig
from course_lib.model.decoder import Decoder, init_weights
from course_lib.model.gpt import GPT, GPTConfig


def gpt2(vocab_size: int, dropout: float, seed: int, **sizes: Any) -> GPT:
    """GPT-2's design."""
    torch.manual_seed(seed)
    return GPT(GPTConfig(vocab_size, n_positions=512, dropout=dropout, **sizes))


def modern(vocab_size: int, dropout: float, seed: int, **sizes: Any) -> Decoder:
    """RMSNorm, rotary positions, SwiGLU, grouped-query attention and QK-norm: the design of Qwen 3."""
    if dropout:
        raise ValueError("the modern design has no dropout, as those models are trained on each text once")
    config = ModelConfig(
        model_type="qwen3",
        vocab_size=vocab_size,
        max_position_embeddings=512,
        qk_norm=True,
        tie_word_embeddings=True,
        **sizes,
    )
    return init_weights(config, seed)


# Built by (vocab_size, dropout, seed).
MODELS: dict[str, Callable[[int, float, int], nn.Module]] = {
    "course-1m": partial(gpt2, n_embd=128, n_layer=4, n_head=4),
    "course-4m": partial(gpt2, n_embd=256, n_layer=5, n_head=4),
    "course-10m": partial(gpt2, n_embd=384, n_layer=6, n_head=6),
    "modern-1m": partial(
        modern,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
    ),
    "modern-10m": partial(
        modern,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=7,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=64,
    ),
}


def context(model: nn.Module) -> int:
    """The most tokens that a model of MODELS sees at once."""
    config: Any = model.config
    return config.n_positions if isinstance(model, GPT) else config.max_position_embeddings


def attention_shape(model: nn.Module) -> tuple[int, int]:
    """(layers, width of all query heads), which `training_flops` asks for."""
    config: Any = model.config
    if isinstance(model, GPT):
        return config.n_layer, config.n_embd
    return config.num_hidden_layers, config.num_attention_heads * config.head_dim


def multiplying_weights(model: nn.Module) -> int:
    """Weights that every token is multiplied by: all matrices, the tied token table once as the output layer,
    but no table of positions."""
    matrices = [
        weight for name, weight in model.named_parameters() if weight.dim() == 2 and "wpe" not in name
    ]
    return sum(weight.numel() for weight in matrices)
