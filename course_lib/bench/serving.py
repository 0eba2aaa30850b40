"""The engine beside Transformers, and its step taken apart: `python -m course_lib.bench.serving`.

Ratios are taken within one process, in turns, on the same weights; absolute speeds say more about the
machine and its other users. What Transformers is given: batches of equal length where there is a batch,
and for the mixed requests static batches in the order of arrival, padded on the left, since its `generate`
knows no other. Only tokens that somebody asked for count.
"""

import course_lib.engine.startup  # noqa: F401  # before torch: how its threads wait is read when it loads

# isort: split
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from course_lib.bench.decode import transformers_twin
from course_lib.decode.sampler import SamplingParams
from course_lib.engine.calibrate import fastest_threads
from course_lib.engine.engine import Engine, EngineConfig
from course_lib.engine.llm import LLM
from course_lib.engine.load import find
from course_lib.engine.model_runner import ModelRunner
from course_lib.engine.request import Request
from course_lib.engine.scheduler import Schedule
from course_lib.hardware.detect import detect
from course_lib.model.decoder import Decoder
from course_lib.model.load import load_model, open_checkpoint

STATIC_BATCH = 8
Work = Sequence[tuple[list[int], int]]  # prompts, each with the number of tokens wanted


@dataclass
class Load:
    """One kind of work: useful tokens a second, one entry a round."""

    name: str
    dtype: str
    ours: list[float] = field(default_factory=list)
    transformers: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Median over the rounds of our speed divided by Transformers'."""
        return statistics.median(a / b for a, b in zip(self.ours, self.transformers, strict=True))


def loads(vocabulary: int, short: bool) -> dict[str, Work]:
    """Batch 1, batch 8, a prompt of 512 tokens, and 64 requests of all sizes."""
    rng = random.Random(0)
    new = 16 if short else 64

    def prompt(length: int) -> list[int]:
        return [rng.randrange(vocabulary) for _ in range(length)]

    many = 16 if short else 64
    return {
        "batch 1": [(prompt(32), new)],
        "batch 8": [(prompt(32), new) for _ in range(8)],
        "prefill 512": [(prompt(512), 1)],
        f"{many} mixed": [(prompt(rng.randrange(8, 200)), rng.randrange(4, new)) for _ in range(many)],
    }


def run_ours(engine: Engine, work: Work) -> float:
    """Seconds for all of it, with nothing known from before."""
    engine.prefix_cache.clear()
    started = time.perf_counter()
    for prompt, new in work:
        engine.add(prompt, SamplingParams(temperature=0, max_tokens=new, ignore_eos=True))
    while engine.has_work:
        engine.step()
    return time.perf_counter() - started


@torch.inference_mode()
def run_transformers(twin: Any, work: Work) -> float:
    """Seconds for all of it, in static batches: each runs until its last text is done."""
    started = time.perf_counter()
    for first in range(0, len(work), STATIC_BATCH):
        batch = work[first : first + STATIC_BATCH]
        longest = max(len(prompt) for prompt, _ in batch)
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt, _ in batch])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p, _ in batch])
        new = max(new for _, new in batch)
        twin.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=new, pad_token_id=0)
    return time.perf_counter() - started


def race(model: str, dtype: str, rounds: int, threads: int | None, short: bool) -> list[Load]:
    """Both engines on every load, in turns."""
    llm = LLM(model, "cpu", dtype, threads)
    weights = dict(load_model(open_checkpoint(find(model)), dtype=llm.choice.dtype).named_weights())
    twin = transformers_twin(llm.config, weights, llm.choice.dtype)
    one = torch.zeros(1, 1, dtype=torch.long)
    cores = detect().cores
    ours = threads or fastest_threads(llm.step, cores)[0]
    theirs = threads or fastest_threads(lambda: twin(one, use_cache=False), cores)[0]
    results = []
    for name, work in loads(llm.config.vocab_size, short).items():
        load = Load(name, str(llm.choice.dtype).removeprefix("torch."))
        tokens = sum(new if len(work) > 1 or new > 1 else len(prompt) for prompt, new in work)
        for turn in range(rounds + 1):  # the first is a warm-up
            for who in ("ours", "theirs") if turn % 2 else ("theirs", "ours"):
                torch.set_num_threads(ours if who == "ours" else theirs)
                seconds = run_ours(llm.engine, work) if who == "ours" else run_transformers(twin, work)
                if turn:
                    (load.ours if who == "ours" else load.transformers).append(tokens / seconds)
        results.append(load)
    return results


# What a step costs


def running(engine: Engine, batch: int, context: int) -> list[Request]:
    """`batch` requests in the middle of their texts, each with `context` tokens in the cache.

    The cache is not computed but left at zero: attention reads it as fast.
    """
    rng = random.Random(batch)
    params = SamplingParams(temperature=0, max_tokens=1 << 20, ignore_eos=True)
    requests = []
    for _ in range(batch):
        (request,) = engine.add([rng.randrange(256) for _ in range(context)], params)
        if not engine.scheduler.admit(request):
            raise ValueError(f"{batch} requests of {context} tokens do not fit into the pool.")
        request.num_computed_tokens = context - 1
        engine.scheduler.publish(request, 0)
        requests.append(request)
    return requests


def empty(engine: Engine) -> None:
    for request in [*engine.scheduler.running, *engine.scheduler.waiting]:
        engine.cancel(request)
    engine.prefix_cache.clear()


def median_seconds(step: Callable[[], object], times: int) -> float:
    step()
    measured = []
    for _ in range(times):
        started = time.perf_counter()
        step()
        measured.append(time.perf_counter() - started)
    return statistics.median(measured)


def step_times(model: Decoder, batches: Sequence[int], contexts: Sequence[int], times: int) -> dict[str, Any]:
    """Milliseconds of a decode step, by batch at a context of 256 and by context at a batch of 1."""

    def measure(batch: int, context: int) -> float:
        blocks = batch * -(-(context + times + 2) // 16)
        config = EngineConfig(max_num_seqs=batch, max_num_batched_tokens=max(512, batch), prefix_cache="off")
        engine = Engine(ModelRunner(model, blocks), blocks, config)
        running(engine, batch, context)
        return 1e3 * median_seconds(engine.step, times)

    return {
        "by batch (context 256)": {batch: measure(batch, 256) for batch in batches},
        "by context (batch 1)": {context: measure(1, context) for context in contexts},
    }


class Nothing:
    """A runner that computes nothing: what is left is the scheduler's own time."""

    vocab_size = 2

    def execute(self, schedule: Schedule) -> None:
        return None

    def sample(self, logits: None, schedule: Schedule) -> list[list[int]]:
        return [[0] for _ in schedule.samplers()]

    def refuse(self, params: SamplingParams) -> None:
        """Everything is the same to it."""


def queue_times(lengths: Sequence[int], times: int) -> dict[int, float]:
    """Microseconds of a step without a model, one request running and so many waiting behind it."""
    results = {}
    for length in lengths:
        engine = Engine(Nothing(), 4096, EngineConfig(max_num_seqs=1))
        for _ in range(length + 1):
            engine.add([1] * 32, SamplingParams(temperature=0, max_tokens=1 << 20))
        results[length] = 1e6 * median_seconds(engine.step, times)
    return results


def scheduler_share(model: Decoder, batch: int, context: int, times: int) -> dict[str, float]:
    """Of a decode step at so many running requests: milliseconds in all, and the share of the books.

    Books: all but the model's pass and the sampler, so the scheduler, the batch's preparation, and texts.
    """
    blocks = batch * -(-(context + times + 2) // 16)
    engine = Engine(ModelRunner(model, blocks), blocks, EngineConfig(max_num_seqs=batch))
    running(engine, batch, context)
    runner, inside = engine.runner, [0.0]

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            started = time.perf_counter()
            result = function(*arguments)
            inside[0] += time.perf_counter() - started
            return result

        return call

    runner.forward, runner.sample = timed(runner.forward), timed(runner.sample)  # type: ignore[attr-defined, method-assign]
    engine.step()
    inside[0], started = 0.0, time.perf_counter()
    for _ in range(times):
        engine.step()
    total = time.perf_counter() - started
    return {"requests": batch, "step ms": 1e3 * total / times, "books": (total - inside[0]) / total}


def main(
    model: Annotated[str, typer.Option(help="A model that Transformers' Llama can run, too.")] = "smollm2",
    dtypes: Annotated[str, typer.Option(help="Number formats, separated by commas.")] = "bf16,fp32",
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each engine.")] = 3,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    short: Annotated[bool, typer.Option(help="Less of everything: to see that it runs.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the JSON file.")] = Path(".course/bench"),
) -> None:
    """Run the engine and Transformers on four loads, then take the engine's step apart."""
    console = Console()
    races = []
    for dtype in dtypes.split(","):
        with console.status(f"{dtype}: {rounds} rounds of four loads"):
            races += race(model, dtype.strip(), rounds, threads, short)
    shown = Table(title="Useful tokens a second, median of the rounds", caption="prefill: tokens read")
    for name in ("load", "numbers", "ours", "Transformers", "ratio"):
        shown.add_column(name, justify="left" if name in ("load", "numbers") else "right")
    for load in races:
        ours, theirs = statistics.median(load.ours), statistics.median(load.transformers)
        shown.add_row(load.name, load.dtype, f"{ours:.1f}", f"{theirs:.1f}", f"{load.ratio:.2f}")
    console.print(shown)
    llm = LLM(model, "cpu", dtypes.split(",")[0].strip(), threads)
    times = 3 if short else 9
    batches, contexts = (
        ((1, 8, 64), (128, 1024)) if short else ((1, 2, 4, 8, 16, 32, 64), (128, 512, 2048, 8000))
    )
    with console.status("the step taken apart"):
        steps = step_times(llm.model, batches, contexts, times)
        queue = queue_times((1, 10, 100, 1000, 10_000), 200)
        share = scheduler_share(llm.model, 64 if short else 256, 64, times)
    for name, times_by in steps.items():
        console.print(f"step, {name}: " + ", ".join(f"{n}: {ms:.1f} ms" for n, ms in times_by.items()))
    console.print("scheduler, by queue: " + ", ".join(f"{n}: {us:.0f} µs" for n, us in queue.items()))
    console.print(
        f"{share['requests']} running: {share['step ms']:.1f} ms a step, books {share['books']:.1%}"
    )
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"serving-{datetime.now(UTC):%Y%m%dT%H%M%S%f}.json"
    content = {
        "machine": str(detect()),
        "torch": torch.__version__,
        "races": [asdict(load) | {"ratio": load.ratio} for load in races],
        "step ms": steps,
        "queue us": queue,
        "books": share,
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    console.print(f"every round: {path}", style="dim", highlight=False)


if __name__ == "__main__":
    typer.run(main)
