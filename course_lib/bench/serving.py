"""The engine beside Transformers, and its step taken apart: `python -m course_lib.bench.serving`.

Ratios are taken within one process, in turns, on the same weights; absolute speeds say more about the
machine and its other users. What Transformers is given: batches of equal length where there is a batch,
and for the mixed requests static batches in the order of arrival, padded on the left, since its `generate`
knows no other. Only tokens that somebody asked for count.

Each ratio is taken twice: of the time that passed, and of the processor's time. Where other programs want
the processor, too, the second says more. On a quiet machine with two cores all of it takes about ten minutes.
"""

import course_lib.engine.startup  # noqa: F401  # before torch: how its threads wait is read when it loads

# isort: split
import json
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from course_lib.bench.decode import transformers_twin
from course_lib.bench.ratios import median_ratio, steepest_growth
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


@dataclass(frozen=True)
class Spent:
    """Seconds that passed, and seconds of processors, which count several threads several times."""

    wall: float
    processor: float


@dataclass
class Load:
    """One kind of work: so many useful tokens, and what each round spent on them."""

    name: str
    dtype: str
    tokens: int
    ours: list[Spent] = field(default_factory=list)
    transformers: list[Spent] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Median over the rounds of our speed divided by Transformers'."""
        return median_ratio([s.wall for s in self.transformers], [s.wall for s in self.ours])

    @property
    def processor_ratio(self) -> float:
        """The same by the time that processors worked."""
        return median_ratio([s.processor for s in self.transformers], [s.processor for s in self.ours])

    def speed(self, rounds: Sequence[Spent]) -> float:
        """Useful tokens a second in the median round."""
        return self.tokens / statistics.median(spent.wall for spent in rounds)


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


def run_ours(engine: Engine, work: Work) -> None:
    """All of it, with nothing known from before."""
    engine.prefix_cache.clear()
    for prompt, new in work:
        engine.add(prompt, SamplingParams(temperature=0, max_tokens=new, ignore_eos=True))
    while engine.has_work:
        engine.step()


@torch.inference_mode()
def run_transformers(twin: Any, work: Work) -> None:
    """All of it, in static batches: each runs until its last text is done."""
    for first in range(0, len(work), STATIC_BATCH):
        batch = work[first : first + STATIC_BATCH]
        longest = max(len(prompt) for prompt, _ in batch)
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt, _ in batch])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p, _ in batch])
        new = max(new for _, new in batch)
        twin.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=new, pad_token_id=0)


def spent(run: Callable[[], object]) -> Spent:
    started, worked = time.perf_counter(), time.process_time()
    run()
    return Spent(time.perf_counter() - started, time.process_time() - worked)


def race(
    model: str, dtype: str, rounds: int, threads: int | None, short: bool, done: Callable[[], None]
) -> list[Load]:
    """Both engines on every load, in turns. `done` is called after each load."""
    llm = LLM(model, "cpu", dtype, threads)
    weights = dict(load_model(open_checkpoint(find(model)), dtype=llm.choice.dtype).named_weights())
    twin = transformers_twin(llm.config, weights, llm.choice.dtype)
    one = torch.zeros(1, 1, dtype=torch.long)
    cores = detect().cores
    ours = threads or fastest_threads(llm.step, cores)[0]
    theirs = threads or fastest_threads(lambda: twin(one, use_cache=False), cores)[0]
    results = []
    for name, work in loads(llm.config.vocab_size, short).items():
        tokens = sum(new if len(work) > 1 or new > 1 else len(prompt) for prompt, new in work)
        load = Load(name, str(llm.choice.dtype).removeprefix("torch."), tokens)
        for turn in range(rounds + 1):  # the first is a warm-up, of a few tokens
            part = work if turn else [(prompt, min(new, 2)) for prompt, new in work[:STATIC_BATCH]]
            for who in ("ours", "theirs") if turn % 2 else ("theirs", "ours"):
                torch.set_num_threads(ours if who == "ours" else theirs)
                if who == "ours":
                    cost, kept = spent(lambda: run_ours(llm.engine, part)), load.ours  # noqa: B023
                else:
                    cost, kept = spent(lambda: run_transformers(twin, part)), load.transformers  # noqa: B023
                if turn:
                    kept.append(cost)
        results.append(load)
        done()
    return results


# What a step costs


def running(engine: Engine, batch: int, context: int) -> list[Request]:
    """`batch` requests in the middle of their texts, each with `context` tokens in the cache.

    The cache is not computed but left at zero: attention reads it as fast.
    """
    rng, vocabulary = random.Random(batch), engine.runner.vocab_size
    params = SamplingParams(temperature=0, max_tokens=1 << 20, ignore_eos=True)
    requests = []
    for _ in range(batch):
        (request,) = engine.add([rng.randrange(vocabulary) for _ in range(context)], params)
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


def step_time(model: Decoder, batch: int, context: int, times: int) -> float:
    """Milliseconds of a decode step of so many requests with so many tokens each."""
    blocks = batch * -(-(context + times + 2) // 16)
    config = EngineConfig(max_num_seqs=batch, max_num_batched_tokens=max(512, batch), prefix_cache="off")
    engine = Engine(ModelRunner(model, blocks), blocks, config)
    running(engine, batch, context)
    return 1e3 * median_seconds(engine.step, times)


class Nothing:
    """A runner that computes nothing: what is left is the scheduler's own time."""

    vocab_size = 2

    def execute(self, schedule: Schedule) -> None:
        return None

    def sample(self, logits: None, schedule: Schedule) -> list[list[int]]:
        return [[0] for _ in schedule.samplers()]

    def refuse(self, params: SamplingParams) -> None:
        """Everything is the same to it."""


def queue_time(length: int, times: int) -> float:
    """Microseconds of a step without a model, one request running and so many waiting behind it."""
    engine = Engine(Nothing(), 4096, EngineConfig(max_num_seqs=1))
    for _ in range(length + 1):
        engine.add([1] * 32, SamplingParams(temperature=0, max_tokens=1 << 20))
    return 1e6 * median_seconds(engine.step, times)


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


def race_table(races: Sequence[Load]) -> Table:
    shown = Table(
        title="Useful tokens a second, median of the rounds",
        caption="prefill: tokens read. Ratios: ours to Transformers', of time and of processor time",
    )
    for name in ("load", "numbers", "ours", "Transformers", "ratio", "by CPU"):
        shown.add_column(name, justify="left" if name in ("load", "numbers") else "right")
    for load in races:
        ours, theirs = load.speed(load.ours), load.speed(load.transformers)
        ratios = f"{load.ratio:.2f}", f"{load.processor_ratio:.2f}"
        shown.add_row(load.name, load.dtype, f"{ours:.1f}", f"{theirs:.1f}", *ratios)
    return shown


def growth_table(title: str, size: str, unit: str, times: Mapping[int, float]) -> Table:
    """Times by size; beside each how much faster than the size it has grown since the row above."""
    shown = Table(title=title, caption="growth: 1 is linear; below, the step grows less than that")
    for name in (size, unit, "growth"):
        shown.add_column(name, justify="right")
    rows = list(times.items())
    for before, row in zip([None, *rows], rows, strict=False):
        growth = "" if before is None else f"{steepest_growth(dict([before, row])):.2f}"
        shown.add_row(f"{row[0]:,}", f"{row[1]:.1f}", growth)
    return shown


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
    formats = [dtype.strip() for dtype in dtypes.split(",")]
    times = 3 if short else 9
    batches = (1, 8, 64) if short else (1, 2, 4, 8, 16, 32, 64)
    contexts = (128, 1024) if short else (128, 256, 512, 1024, 2048, 4096, 8192)
    lengths = (1, 10, 100, 1000, 10_000)
    races, steps = [], {}
    with Progress(console=console) as progress:
        racing = progress.add_task("races", total=4 * len(formats))
        for dtype in formats:
            races += race(model, dtype, rounds, threads, short, lambda: progress.advance(racing))
        llm = LLM(model, "cpu", formats[0], threads)
        every = [(batch, 256) for batch in batches] + [(1, context) for context in contexts]
        for batch, context in progress.track(dict.fromkeys(every), description="steps"):
            steps[batch, context] = step_time(llm.model, batch, context, times)
        queue = {length: queue_time(length, 200) for length in progress.track(lengths, description="queues")}
        share = scheduler_share(llm.model, 64 if short else 256, 64, times)
    by_batch = {batch: steps[batch, 256] for batch in batches}
    by_context = {context: steps[1, context] for context in contexts}
    console.print(race_table(races))
    console.print(growth_table("A step by batch, context 256", "requests", "ms", by_batch))
    console.print(growth_table("A step by context, batch 1", "tokens", "ms", by_context))
    console.print(growth_table("The scheduler's step by its queue", "waiting", "µs", queue))
    console.print(
        f"{share['requests']} running: {share['step ms']:.1f} ms a step, of which books {share['books']:.1%}"
    )
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"serving-{datetime.now(UTC):%Y%m%dT%H%M%S%f}.json"
    content = {
        "machine": str(detect()),
        "torch": torch.__version__,
        "races": [
            asdict(load) | {"ratio": load.ratio, "processor ratio": load.processor_ratio} for load in races
        ],
        "step ms by batch": by_batch,
        "step ms by context": by_context,
        "queue us": queue,
        "books": share,
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    console.print(f"every round: {path}", style="dim", highlight=False)


if __name__ == "__main__":
    typer.run(main)
