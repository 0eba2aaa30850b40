"""`python -m course_lib.bench.forward`: Day 7's NumPy forward pass beside Transformers' GPT-2 in torch.

Both compute all logits of one sequence, in float32 on the CPU, with the same random weights. They take turns,
and what counts is the ratio within each round: on a shared machine absolute times wander. OMP_NUM_THREADS,
which both obey, sets the number of threads.
"""

import course_lib.engine.startup  # noqa: F401  # before torch: how its threads wait is read when it loads

# isort: split
import json
import statistics
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console

from course_lib.bench.ratios import median_ratio
from course_lib.hardware.detect import detect
from course_lib.model.numpy_gpt import GPT, GPTConfig, count_parameters, gpt_forward, tensor_shapes

GPT2_SMALL = GPTConfig(n_layer=12, n_head=12, n_embd=768, n_positions=1024, vocab_size=50257)


@dataclass
class ForwardRace:
    """Seconds of each forward pass, one entry a round."""

    config: GPTConfig
    tokens: int
    threads: int  # torch's; NumPy's BLAS reads the same variable
    difference: float  # the largest between the two models' logits
    numpy: list[float] = field(default_factory=list)
    torch: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """Median over the rounds of NumPy's time divided by torch's."""
        return median_ratio(self.numpy, self.torch)

    @property
    def flops(self) -> int:
        """Of one pass: the products with weights, and attention with every score computed."""
        c, counts = self.config, count_parameters(self.config)
        weights = counts["attention"] + counts["mlp"] + c.vocab_size * c.n_embd
        return 2 * self.tokens * weights + 4 * c.n_layer * self.tokens**2 * c.n_embd


def random_model(config: GPTConfig, seed: int = 0) -> GPT:
    """Weights of the size that training starts from: normal, with a standard deviation of 0.02."""
    rng = np.random.default_rng(seed)
    shapes = tensor_shapes(config).items()
    weights = {name: 0.02 * rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes}
    return GPT(config, {n: w + (".ln_" in f".{n}" and n.endswith("weight")) for n, w in weights.items()})


def transformers_twin(model: GPT) -> Any:
    """Transformers' GPT-2 with the same weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = asdict(model.config)
    twin: Any = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    state = {f"transformer.{name}": torch.from_numpy(weight) for name, weight in model.weights.items()}
    twin.load_state_dict(state, strict=False)
    twin.tie_weights()
    return twin.eval()


def race(config: GPTConfig = GPT2_SMALL, tokens: int = 256, rounds: int = 7) -> ForwardRace:
    """Let both run `rounds` times, in turns, after a pass each that also compares their logits."""
    model = random_model(config)
    twin = transformers_twin(model)
    ids = np.random.default_rng(1).integers(0, config.vocab_size, size=tokens)

    def in_numpy() -> np.ndarray:
        return gpt_forward(model, ids)

    def in_torch() -> np.ndarray:
        with torch.inference_mode():
            logits: np.ndarray = twin(torch.from_numpy(ids)[None], use_cache=False).logits[0].numpy()
        return logits

    difference = float(np.abs(in_numpy() - in_torch()).max())
    result = ForwardRace(config, tokens, torch.get_num_threads(), difference)
    turns = [(in_numpy, result.numpy), (in_torch, result.torch)]
    for _ in range(rounds):
        turns.reverse()
        for run, seconds in turns:
            started = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - started)
    return result


def table(result: ForwardRace) -> Any:
    """What a person reads."""
    from rich.table import Table

    c = result.config
    shown = Table(
        title=f"Forward pass: {c.n_layer} layers of {c.n_embd}, {result.tokens} tokens",
        caption=f"fp32, threads: {result.threads}, median of {len(result.numpy)} rounds; "
        f"logits differ by {result.difference:.1e} at most",
    )
    for name in ("model", "time", "tok/s", "GFLOP/s", "ratio"):
        shown.add_column(name, justify="left" if name == "model" else "right")
    for name, times in (("ours, NumPy", result.numpy), ("Transformers, torch", result.torch)):
        seconds = statistics.median(times)
        shown.add_row(
            name,
            f"{seconds * 1e3:.0f} ms",
            f"{result.tokens / seconds:,.0f}",
            f"{result.flops / seconds / 1e9:.0f}",
            f"{result.ratio:.2f}" if times is result.numpy else "1",
        )
    return shown


def save(result: ForwardRace, folder: Path) -> Path:
    """Write every round to a JSON file named by the time."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"forward-{datetime.now(UTC):%Y%m%dT%H%M%S%f}.json"
    versions = {"machine": str(detect()), "torch": torch.__version__, "numpy": np.__version__}
    content = versions | asdict(result) | {"ratio": result.ratio, "flops": result.flops}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def main(
    tokens: Annotated[int, typer.Option(min=1, max=1024, help="Tokens of the sequence.")] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each.")] = 7,
    out: Annotated[Path, typer.Option(help="Folder for the JSON file.")] = Path(".course/bench"),
) -> None:
    """Time GPT-2 small's forward pass in NumPy and in torch, in turns."""
    result = race(GPT2_SMALL, tokens, rounds)
    console = Console()
    console.print(table(result))
    console.print(f"every round: {save(result, out)}", style="dim", highlight=False)


if __name__ == "__main__":
    typer.run(main)
