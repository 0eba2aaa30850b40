"""The seam: Day 7's model in NumPy under the same scheduler serves the same requests."""

import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from course_lib.decode.params import SamplingParams
from course_lib.engine.engine import Engine, EngineConfig
from course_lib.engine.numpy_runner import NumpyRunner
from course_lib.model.numpy_gpt import GPT, GPTConfig, gpt_forward, tensor_shapes

CONFIG = GPTConfig(vocab_size=37, n_positions=48, n_embd=24, n_layer=3, n_head=3)
TIE = 1e-4


@pytest.fixture(scope="module")
def model() -> GPT:
    rng = np.random.default_rng(7)
    weights = {
        name: (rng.normal(0, 0.3, shape) + (name.endswith("weight") and len(shape) == 1)).astype(np.float32)
        for name, shape in tensor_shapes(CONFIG).items()
    }
    return GPT(CONFIG, weights)


def engine_of(model: GPT, blocks: int = 40, **options) -> Engine:
    config = EngineConfig(**{"block_size": 4, "debug": True, **options})
    return Engine(NumpyRunner(model, blocks, 4), blocks, config, max_model_len=model.config.n_positions)


def run(engine: Engine, prompts: list[list[int]], params: list[SamplingParams]) -> list[list[int]]:
    requests = [r for prompt, p in zip(prompts, params, strict=True) for r in engine.add(prompt, p)]
    while engine.has_work:
        engine.step()
    return [request.output_ids for request in requests]


def prompts_of(count: int) -> list[list[int]]:
    rng = random.Random(1)
    beginning = [rng.randrange(37) for _ in range(9)]
    return [beginning[: 9 * (i % 2)] + [rng.randrange(37) for _ in range(1 + i)] for i in range(count)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prefix_cache": "off"},
        {"prefix_cache": "radix"},
        {"max_num_batched_tokens": 5, "max_num_seqs": 3},
        {"blocks": 11},
    ],
)
def test_texts_are_those_of_the_plain_model(model, options):
    prompts = prompts_of(8)
    greedy = SamplingParams(temperature=0, max_tokens=10)
    for prompt, got in zip(prompts, run(engine_of(model, **options), prompts, [greedy] * 8), strict=True):
        logits = gpt_forward(model, np.array(prompt + got[:-1]))[len(prompt) - 1 :]
        behind = logits.max(-1) - logits[np.arange(10), got]
        assert len(got) == 10 and behind.max() <= TIE


def test_torch_and_numpy_write_the_same(model, tmp_path):
    """The same checkpoint under both runners: greedy, drawn with a seed, and three texts of one prompt."""
    import json

    from safetensors.numpy import save_file

    from course_lib.engine.model_runner import ModelRunner
    from course_lib.model.load import load_model, open_checkpoint

    settings = {"model_type": "gpt2", "tie_word_embeddings": True, "activation_function": "gelu_new"}
    sizes = {name: getattr(CONFIG, name) for name in CONFIG.__dataclass_fields__}
    (tmp_path / "config.json").write_text(json.dumps(settings | sizes))
    save_file({f"transformer.{name}": w for name, w in model.weights.items()}, tmp_path / "model.safetensors")
    decoder = load_model(open_checkpoint(tmp_path))
    torch_engine = Engine(ModelRunner(decoder, 40, 4), 40, EngineConfig(block_size=4), max_model_len=48)
    params = [
        SamplingParams(temperature=0, max_tokens=9),
        SamplingParams(temperature=0.9, seed=5, max_tokens=9),
        SamplingParams(temperature=1.2, top_k=9, top_p=0.8, min_p=0.05, seed=6, max_tokens=9, n=3),
    ] * 2
    prompts = prompts_of(6)
    assert run(engine_of(model), prompts, params) == run(torch_engine, prompts, params)


def test_promise_7_what_it_cannot_do_it_refuses(model):
    runner = NumpyRunner(model, 4)
    runner.refuse(SamplingParams(temperature=0.5, top_k=3, seed=1, n=2, stop=("x",), max_tokens=5))
    options: dict[str, Any] = {"repetition_penalty": 2.0, "logprobs": 1, "min_tokens": 2}
    for name in (name for name in options if name in SamplingParams.__dataclass_fields__):
        with pytest.raises(ValueError, match=f"{name} is not supported by the NumPy runner"):
            runner.refuse(SamplingParams(**{name: options[name]}))


def test_it_needs_no_torch():
    """Engine, scheduler and this runner serve, and nobody has loaded torch."""
    script = """
import sys
import numpy as np
from course_lib.decode.params import SamplingParams
from course_lib.engine.engine import Engine, EngineConfig
from course_lib.engine.numpy_runner import NumpyRunner
from course_lib.model.numpy_gpt import GPT, GPTConfig, tensor_shapes
config = GPTConfig(vocab_size=11, n_positions=32, n_embd=8, n_layer=1, n_head=2)
rng = np.random.default_rng(0)
model = GPT(config, {n: rng.normal(size=s).astype(np.float32) for n, s in tensor_shapes(config).items()})
engine = Engine(NumpyRunner(model, 8, 4), 8, EngineConfig(block_size=4), max_model_len=32)
(request,) = engine.add([1, 2, 3], SamplingParams(temperature=0.5, max_tokens=5))
while engine.has_work:
    engine.step()
print(len(request.output_ids), "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout == "5 False\n", done.stderr
