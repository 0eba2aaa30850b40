"""`python -m course_lib.bench.sampler`: what choosing the tokens costs, as a share of a decode step.

The engine decodes a batch of equal requests; within each step the runner's two halves, computing logits and
choosing tokens, are timed apart. On a shared machine the times wander, their ratio hardly.
"""

import course_lib.engine.startup  # noqa: F401  # before torch: how its threads wait is read when it loads

# isort: split
import json
import statistics
import time
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from course_lib.bench.ratios import median_ratio
from course_lib.decode.params import SamplingParams, StructuredOutputsParams
from course_lib.engine.llm import LLM
from course_lib.engine.scheduler import Schedule
from course_lib.hardware.detect import detect

BATCHES = (1, 8, 64)
PROMPT_TOKENS = 64
SETTINGS = {
    "greedy": SamplingParams(temperature=0),
    "temperature": SamplingParams(seed=1),
    "top_p 0.9": SamplingParams(seed=1, top_p=0.9),
    "top_k 50, top_p 0.9, min_p 0.05": SamplingParams(seed=1, top_k=50, top_p=0.9, min_p=0.05),
    "greedy, three penalties": SamplingParams(
        temperature=0, repetition_penalty=1.1, frequency_penalty=0.2, presence_penalty=0.1
    ),
    "greedy, 5 logprobs": SamplingParams(temperature=0, logprobs=5),
    "greedy, regex": SamplingParams(
        temperature=0, structured_outputs=StructuredOutputsParams(regex="[a-z ]{4000}")
    ),
}


class Timed:
    """A runner that notes, for every step, the seconds of its two halves."""

    def __init__(self, runner: Any):
        self.runner = runner
        self.seconds: list[tuple[float, float]] = []
        self.refuse, self.vocab_size = runner.refuse, runner.vocab_size

    def execute(self, schedule: Schedule) -> Any:
        self.began = time.perf_counter()
        logits = self.runner.execute(schedule)
        if logits is not None and logits.is_cuda:
            torch.cuda.synchronize()
        self.between = time.perf_counter()
        return logits

    def sample(self, logits: Any, schedule: Schedule) -> list[list[int]]:
        chosen: list[list[int]] = self.runner.sample(logits, schedule)
        self.seconds.append((self.between - self.began, time.perf_counter() - self.between))
        return chosen


@dataclass
class Cost:
    """Seconds of each step's halves at one batch size and setting."""

    batch: int
    setting: str
    forward: list[float] = field(default_factory=list)
    sampling: list[float] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Median over the steps of the sampler's part of a step."""
        steps = [f + s for f, s in zip(self.forward, self.sampling, strict=True)]
        return median_ratio(self.sampling, steps)


def measure(llm: LLM, batch: int, setting: str, steps: int) -> Cost:
    """Decode `steps` tokens for `batch` different prompts; the steps that read the prompts do not count."""
    engine = llm.engine
    timed = Timed(engine.runner)
    engine.runner = timed
    params = replace(SETTINGS[setting], max_tokens=10_000)
    if params.structured_outputs is None:
        params = replace(params, ignore_eos=True)
    prompt = llm.encode("The engine decodes a batch of equal requests. " * 20)[:PROMPT_TOKENS]
    # Different texts whose common beginning is read once: it is decoding that is measured.
    requests = [engine.add([*prompt, 100 + i], params)[0] for i in range(batch)]
    try:
        while any(not request.output_ids for request in requests):
            engine.step()
        timed.seconds.clear()
        for _ in range(steps):
            engine.step()
    finally:
        engine.runner = timed.runner
        for request in requests:
            engine.cancel(request)
    forward, sampling = zip(*timed.seconds, strict=True)
    return Cost(batch, setting, list(forward), list(sampling))


def table(costs: list[Cost], vocabulary: int) -> Table:
    """What a person reads: milliseconds of sampling, and its share of the step."""
    shown = Table(title=f"Choosing tokens from {vocabulary:,}: time, and share of a decode step")
    shown.add_column("setting")
    for batch in BATCHES:
        shown.add_column(f"batch {batch}", justify="right")
    for setting in SETTINGS:
        cells = [
            f"{statistics.median(cost.sampling) * 1e3:.2f} ms {cost.share:6.1%}"
            for cost in costs
            if cost.setting == setting
        ]
        shown.add_row(setting, *cells)
    return shown


def main(
    model: Annotated[str, typer.Option(help="As for the engine.")] = "smollm2",
    steps: Annotated[int, typer.Option(min=1, help="Steps of each batch size and setting.")] = 20,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the JSON file.")] = Path(".course/bench"),
) -> None:
    """Time the sampler inside the engine's decode steps."""
    console = Console()
    llm = LLM(model, threads=threads)
    costs = [measure(llm, batch, setting, steps) for batch in BATCHES for setting in SETTINGS]
    console.print(table(costs, llm.config.vocab_size))
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"sampler-{datetime.now(UTC):%Y%m%dT%H%M%S%f}.json"
    content = {
        "machine": str(detect()),
        "torch": torch.__version__,
        "choice": llm.choice.reasons(),
        "costs": [asdict(cost) | {"share": cost.share} for cost in costs],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    console.print(f"every step: {path}", style="dim", highlight=False)


if __name__ == "__main__":
    typer.run(main)
