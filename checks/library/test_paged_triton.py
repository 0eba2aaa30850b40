"""The engine with Triton's paged attention, interpreted: its tokens are those of torch; and the choice."""

import sys
from typing import Any

import pytest
import torch

from checks.tiny import drain, tiny_llama, tiny_model
from course_lib.cache import paged_triton
from course_lib.cache.paged import Int8PagedCache, PagedCache
from course_lib.cache.paged_triton import TritonPagedCache, choose_cache
from course_lib.decode import SamplingParams
from course_lib.engine import LLM, Engine, EngineConfig, ModelRunner
from course_lib.model.config import FULL, SLIDING

needs_triton = pytest.mark.skipif(
    sys.platform != "linux" or torch.cuda.is_available(),
    reason="on the CPU Triton's interpreter attends, on Linux without an NVIDIA GPU",
)
GREEDY = SamplingParams(temperature=0, max_tokens=6)
SEEDED = SamplingParams(temperature=0.8, seed=3, max_tokens=6)
CPU = torch.device("cpu")
CONFIG = tiny_llama()


@needs_triton
def test_course_1m_writes_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    attend = TritonPagedCache.attend_singles

    def counted(self: TritonPagedCache, *arguments: Any) -> torch.Tensor:
        calls.append(len(arguments[1]))
        return attend(self, *arguments)

    monkeypatch.setattr(TritonPagedCache, "attend_singles", counted)
    prompts = [
        "ROMEO:\nBut soft",
        "JULIET:",
        "KING RICHARD:\nNow is the winter of our discontent made glorious",
    ]
    written = {}
    for attention in ("torch", "triton"):
        config = EngineConfig(attention=attention, num_blocks=40, debug=True)
        llm = LLM("course-1m", "cpu", "fp32", threads=1, config=config)
        assert llm.runner.attention == f"{attention}: as asked"
        answers = llm.generate(prompts, [GREEDY, SEEDED, GREEDY])
        written[attention] = [answer.token_ids for answer in answers]
    assert written["torch"] == written["triton"]
    layers = llm.config.num_hidden_layers
    decoding = [count for count in calls if count > 1]
    assert len(decoding) >= 4 * layers and max(decoding) == 3  # steps in which all three wrote


@needs_triton
@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        tiny_llama(num_key_value_heads=1, head_dim=10),
        tiny_llama(sliding_window=7, layer_types=(SLIDING, FULL)),
    ],
    ids=["grouped heads", "one head of 10", "window"],
)
def test_small_models_write_the_same_tokens(config: Any) -> None:
    model, written = tiny_model(config), []
    for attention in ("torch", "triton"):
        runner = ModelRunner(model, 24, 4, attention=attention)
        settings = EngineConfig(block_size=4, attention=attention, debug=True)
        engine = Engine(runner, 24, settings, None, (), config.max_position_embeddings)
        requests = [engine.add(prompt, GREEDY)[0] for prompt in ([3, 1, 4, 1, 5, 9, 2, 6, 5], [7, 7], [2])]
        drain(engine)
        written.append([request.output_ids for request in requests])
    assert written[0] == written[1]


# The choice


def chosen(attention: Any, kv_cache_dtype: Any = "auto", device: torch.device = CPU) -> tuple[type, str]:
    return choose_cache(attention, kv_cache_dtype, CONFIG, 4, torch.float32, device)


def test_torch_attends_where_there_is_no_nvidia_gpu() -> None:
    assert chosen("auto") == (PagedCache, "torch: no NVIDIA GPU")
    assert chosen("auto", "int8") == (Int8PagedCache, "torch: no NVIDIA GPU")
    assert chosen("torch", device=torch.device("cuda")) == (PagedCache, "torch: as asked")


@needs_triton
def test_triton_attends_on_an_nvidia_gpu_if_the_trial_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, trial = torch.device("cuda"), paged_triton.trial
    # The GPU is not here: the trial that its choice depends on runs on the CPU.
    monkeypatch.setattr(
        paged_triton, "trial", lambda config, block_size, dtype, device: trial(config, block_size, dtype, CPU)
    )
    kind, why = chosen("auto", device=gpu)
    assert kind is TritonPagedCache and why.startswith("triton: its result was torch's in a trial")
    assert chosen("auto", "int8", gpu) == (
        Int8PagedCache,
        "torch: Triton's kernel does not read keys and values of int8",
    )


@needs_triton
@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (lambda query, *rest: 1.01 * query, "gave other numbers in a trial"),
        (lambda *arguments: 1 / 0, "failed here (ZeroDivisionError: division by zero)"),
    ],
    ids=["wrong numbers", "an error"],
)
def test_torch_attends_where_the_trial_fails(
    kernel: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("course_lib.kernels.triton.paged_attention", kernel)
    trial = paged_triton.trial
    monkeypatch.setattr(
        paged_triton, "trial", lambda config, block_size, dtype, device: trial(config, block_size, dtype, CPU)
    )
    kind, why = chosen("auto", device=torch.device("cuda"))
    assert kind is PagedCache and why.startswith("torch: Triton's kernel") and reason in why
    with pytest.raises(ValueError, match="attention='triton' cannot be used"):
        chosen("triton")


def test_without_triton_torch_attends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "course_lib.kernels.triton", None)
    reason = paged_triton.trial(CONFIG, 4, torch.float32, CPU)
    assert reason is not None and "failed here (ModuleNotFoundError" in reason


def test_another_word_is_refused() -> None:
    with pytest.raises(ValueError, match="attention is 'flash'; choose auto, torch, triton"):
        chosen("flash")
    with pytest.raises(ValueError, match="does not read keys and values of int8"):
        chosen("triton", "int8")
