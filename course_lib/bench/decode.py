"""Decoding at batch 1 beside Transformers' `generate`, in one process, in turns.

On a shared machine absolute speeds wander by a factor of two within a minute. So the two take turns,
round by round on the same prompt and the same weights, and what counts is the ratio within each round.
"""

import itertools
import json
import statistics
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from course_lib.bench.ratios import median_ratio
from course_lib.decode.sampler import SamplingParams
from course_lib.engine.calibrate import fastest_threads
from course_lib.engine.llm import LLM, Completion
from course_lib.engine.load import find
from course_lib.hardware.detect import detect
from course_lib.model.config import ModelConfig
from course_lib.model.load import load_model, open_checkpoint

QUESTION = "Explain in a few paragraphs how a steam engine works, and why it changed the world."


@dataclass
class Race:
    """Both engines in one number format. Speed: new tokens over the whole call, prompt included."""

    dtype: str
    threads: tuple[int, int]  # ours, Transformers'
    prompt_tokens: int
    new_tokens: int
    bytes_per_token: int
    same_tokens: int  # so many new tokens are equal, counted from the first
    ours: list[float] = field(default_factory=list)  # tokens per second, one entry a round
    transformers: list[float] = field(default_factory=list)
    first_token: list[float] = field(default_factory=list)  # seconds, ours

    def ratios(self) -> list[float]:
        return [ours / theirs for ours, theirs in zip(self.ours, self.transformers, strict=True)]

    @property
    def ratio(self) -> float:
        """Median over the rounds of our speed divided by Transformers'."""
        return median_ratio(self.ours, self.transformers)

    @property
    def gigabytes_per_second(self) -> float:
        """How fast our median run reads the weights; the memory's own speed is the limit."""
        return statistics.median(self.ours) * self.bytes_per_token / 1e9


def transformers_twin(config: ModelConfig, weights: dict[str, torch.Tensor], dtype: torch.dtype) -> Any:
    """Transformers' own Llama with these weights, ready to run; its `generate` never stops by itself."""
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        twin: Any = LlamaForCausalLM(transformers_config(config))
    # The weights are taken as they are, not copied; the rotary table is no weight and has to be computed.
    twin.load_state_dict(
        {name: weight.to(dtype) for name, weight in weights.items()}, strict=False, assign=True
    )
    twin.tie_weights()
    twin.model.rotary_emb = type(twin.model.rotary_emb)(twin.config)
    return twin.eval()


def transformers_config(config: ModelConfig) -> Any:
    from transformers import LlamaConfig

    same_names = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
        "head_dim max_position_embeddings tie_word_embeddings attention_bias mlp_bias"
    )
    return LlamaConfig(
        **{name: getattr(config, name) for name in same_names.split()},
        rms_norm_eps=config.norm_eps,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": config.rope.rope_theta if config.rope else None,
        },
        bos_token_id=None,
        eos_token_id=None,
    )


def race(
    model: str = "smollm2",
    dtype: str = "bf16",
    new_tokens: int = 64,
    rounds: int = 5,
    threads: int | None = None,
) -> Race:
    """Let both engines write `new_tokens` tokens greedily, `rounds` times each, in turns.

    Without `threads` each runs with the number that is fastest for it, measured at the start.
    """
    llm = LLM(model, "cpu", dtype, threads)
    weights = dict(load_model(open_checkpoint(find(model)), dtype=llm.choice.dtype).named_weights())
    twin = transformers_twin(llm.config, weights, llm.choice.dtype)
    one = torch.zeros(1, 1, dtype=torch.long)
    counts = (
        (threads, threads)
        if threads
        else (
            fastest_threads(llm.step, detect().cores)[0],
            fastest_threads(lambda: twin(one, use_cache=False), detect().cores)[0],
        )
    )
    messages = [{"role": "user", "content": QUESTION}]
    prompt = torch.tensor([llm.encode(messages)])
    params = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True)

    def ours() -> Completion:
        torch.set_num_threads(counts[0])
        llm.forget()  # no head start from the round before
        return llm.stream(messages, params).finish()

    def theirs() -> list[int]:
        torch.set_num_threads(counts[1])
        with torch.inference_mode():
            written = twin.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                max_new_tokens=new_tokens,
                pad_token_id=0,
            )
        return written[0, prompt.shape[1] :].tolist()

    pairs = zip(ours().token_ids, theirs(), strict=True)  # a warm-up, and the truth: both write the same
    result = Race(
        dtype=str(llm.choice.dtype).removeprefix("torch."),
        threads=counts,
        prompt_tokens=prompt.shape[1],
        new_tokens=new_tokens,
        bytes_per_token=llm.config.parameters * llm.choice.dtype.itemsize,
        same_tokens=sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)),
    )
    for turn in range(rounds):
        for who in ("ours", "theirs") if turn % 2 == 0 else ("theirs", "ours"):
            started = time.perf_counter()
            if who == "ours":
                result.first_token.append(ours().time_to_first_token)
            else:
                theirs()
            speeds = result.ours if who == "ours" else result.transformers
            speeds.append(new_tokens / (time.perf_counter() - started))
    return result


def table(races: list[Race]) -> Any:
    """What a person reads."""
    from rich.table import Table

    first = races[0]
    shown = Table(
        title=f"Decoding, batch 1: {first.new_tokens} new tokens after {first.prompt_tokens}, median rounds",
        caption="tok/s over the whole call, prompt included; ratio: median (lowest-highest)",
    )
    for name in ("numbers", "ours", "Transformers", "ratio", "first token", "reads"):
        shown.add_column(name, justify="left" if name == "numbers" else "right", no_wrap=True)
    for entry in races:
        ratios = entry.ratios()
        shown.add_row(
            entry.dtype,
            f"{statistics.median(entry.ours):.1f}",
            f"{statistics.median(entry.transformers):.1f}",
            f"{entry.ratio:.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
            f"{statistics.median(entry.first_token) * 1e3:.0f} ms",
            f"{entry.gigabytes_per_second:.1f} GB/s",
        )
    return shown


def notes(races: list[Race]) -> list[str]:
    """What the table has no room for."""
    return [
        f"{entry.dtype}: threads {entry.threads[0]} (ours) and {entry.threads[1]} (Transformers); "
        f"first {entry.same_tokens} of {entry.new_tokens} tokens equal"
        for entry in races
    ]


def save(races: list[Race], folder: Path) -> Path:
    """Write the runs, every round of them, to a JSON file named by the time."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"decode-{datetime.now(UTC):%Y%m%dT%H%M%S%f}.json"
    content = {
        "machine": str(detect()),
        "torch": torch.__version__,
        "races": [asdict(entry) | {"ratio": entry.ratio} for entry in races],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path
