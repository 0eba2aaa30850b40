"""Small random models, and engines that run them, for the tests of several rooms."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from course_lib.engine import Engine, EngineConfig, ModelRunner
from course_lib.model import Decoder, ModelConfig
from course_lib.model.decoder import init_weights

TIE = 1e-4  # logits closer than this may be ordered either way

LLAMA = ModelConfig(
    model_type="llama",
    vocab_size=31,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=96,
    tie_word_embeddings=False,
)


def tiny_llama(**changes: Any) -> ModelConfig:
    return replace(LLAMA, **changes)


def tiny_model(config: ModelConfig = LLAMA, seed: int = 1, std: float = 0.3) -> Decoder:
    """Random weights, large enough that the model has preferences."""
    return init_weights(config, seed=seed, std=std).eval().requires_grad_(False)


def tiny_engine(
    model: Decoder,
    num_blocks: int = 64,
    *,
    proposer: Any = None,
    tokenizer: Any = None,
    stop_ids: Sequence[int] = (),
    **options: Any,
) -> Engine:
    """An engine in debug mode, on blocks of 4 tokens; `options` are those of `EngineConfig`."""
    config = EngineConfig(**{"block_size": 4, "debug": True, **options})
    runner = ModelRunner(model, num_blocks, config.block_size, config.kv_cache_dtype)
    longest = model.config.max_position_embeddings
    return Engine(runner, num_blocks, config, tokenizer, stop_ids, longest, proposer)


def drain(engine: Engine, steps: int = 20_000) -> None:
    """Run until nobody waits or runs; then nobody holds a block (promise 1, at rest)."""
    for _ in range(steps):
        if not engine.has_work:
            break
        engine.step()
    at_rest(engine)


def at_rest(engine: Engine) -> None:
    assert not engine.has_work
    engine.scheduler.check()
    engine.prefix_cache.clear()
    assert engine.allocator.available == engine.allocator.total
    assert engine.allocator.references == [0] * engine.allocator.total


def same_or_tied(
    model: Decoder, prompt: list[int], got: list[int], want: list[int], record_property: Any
) -> None:
    """Equal tokens; or the first that differ had logits closer than TIE, which is reported."""
    for at, (ours, theirs) in enumerate(itertools.zip_longest(got, want)):
        if ours == theirs:
            continue
        assert None not in (ours, theirs), f"{len(got)} tokens, not {len(want)}"
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + want[:at]]), logits_to_keep=1)[0, -1]
        gap = abs(float(logits[ours] - logits[theirs]))
        assert gap <= TIE, f"token {at} is {ours}, not {theirs}; their logits are {gap:.2e} apart"
        record_property("tie", (prompt, at))
        return
