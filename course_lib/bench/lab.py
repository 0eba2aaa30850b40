"""`python -m course_lib.bench.lab`: what the kernel lab costs, in seconds and beside the machine's own speed.

    cold build   a new kernel compiled and loaded (the lab's own runtime lies compiled in the cache)
    cached load  the same source once more: nothing is compiled
    matmul       128 x 128 x 128 in 16 x 16 tiles, with counts
    flash        FlashAttention, causal, 256 tokens of 64, one head, with counts

Each is the best of several rounds, in turns, so that a busy moment harms all alike. Ratios travel between
machines: a build beside the compiler's time for an empty file, a launch beside the same launch unwatched.
They are taken from processor time, which the system counts in hundredths of a second.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from course_lib.kernels.catalog import Kernel, cuda
from course_lib.kernels.lab import Module, build

BARS = {"cold build": 0.5, "cached load": 0.010, "matmul": 0.1, "flash": 0.25}  # seconds


@dataclass(frozen=True)
class Cost:
    """Seconds that passed, and seconds of processors: on a busy machine the second tells more."""

    wall: float
    processor: float


def best(rounds: int, tasks: dict[str, Callable[[], Cost]]) -> dict[str, Cost]:
    """The least of each task, run in turns."""
    costs: dict[str, list[Cost]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, task in tasks.items():
            costs[name].append(task())
    return {n: Cost(min(c.wall for c in of), min(c.processor for c in of)) for n, of in costs.items()}


def timed(action: Callable[[], object]) -> Cost:
    before, began = os.times(), time.perf_counter()
    action()
    wall, after = time.perf_counter() - began, os.times()
    return Cost(wall, sum(after[:4]) - sum(before[:4]))  # this process's, and its children's


def _compile_nothing(folder: Path) -> None:
    empty = folder / "empty.cpp"
    empty.write_text("", encoding="utf-8")
    command = [*build.find_compiler().command, "-S", str(empty), "-o", str(folder / "empty.s")]
    subprocess.run(command, check=True)


def _load_in_a_new_process(source: Path) -> Cost:
    """What `Module(source)` alone costs, in a process that has loaded nothing before."""
    code = (
        "import sys; from course_lib.bench.lab import Module, timed; "
        "cost = timed(lambda: Module(sys.argv[1])); print(cost.wall, cost.processor)"
    )
    command = [sys.executable, "-c", code, str(source)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    wall, processor = done.stdout.split()
    return Cost(float(wall), float(processor))


def _launch(kernel: Kernel, shape: tuple[int, ...], level: str) -> Cost:
    case, module = kernel.at(*shape), Module(kernel.path)
    case.launches[0].run(module, level="off")  # what is compiled for this level is compiled now
    case.launches[0].run(module, level=level)
    fresh = kernel.at(*shape)
    cost = timed(lambda: fresh.run(module, level=level))
    if wrong := fresh.wrong():
        raise RuntimeError(f"{kernel.name} is wrong: {wrong}")
    return cost


def measure(rounds: int) -> dict[str, Cost]:
    """What each task costs, by name."""
    softmax = cuda.find("softmax").path
    matmul, flash = cuda.find("matmul_tiled"), cuda.find("flash_attention")
    number = iter(range(10**6))
    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("COURSE_KERNELS")
        os.environ["COURSE_KERNELS"] = folder
        try:
            Module(softmax)  # compiles the runtime, too

            def build_anew() -> None:
                Module(softmax.read_text(encoding="utf-8") + f"// {next(number)}\n")

            return best(
                rounds,
                {
                    "empty file": lambda: timed(lambda: _compile_nothing(Path(folder))),
                    "cold build": lambda: timed(build_anew),
                    "cached load": lambda: _load_in_a_new_process(softmax),
                    "matmul": lambda: _launch(matmul, (128, 128, 128), "counts"),
                    "matmul off": lambda: _launch(matmul, (128, 128, 128), "off"),
                    "matmul races": lambda: _launch(matmul, (128, 128, 128), "races"),
                    "flash": lambda: _launch(flash, (1, 1, 256, 64), "counts"),
                    "flash off": lambda: _launch(flash, (1, 1, 256, 64), "off"),
                    "flash races": lambda: _launch(flash, (1, 1, 256, 64), "races"),
                },
            )
        finally:
            os.environ.pop("COURSE_KERNELS")
            if before is not None:
                os.environ["COURSE_KERNELS"] = before


def main(rounds: Annotated[int, typer.Option(min=1, help="Turns of each task.")] = 5) -> None:
    """Time the kernel lab and compare with its bars; exit status 1 if one is missed."""
    costs = measure(rounds)
    beside = {"cold build": "empty file", "matmul": "matmul off", "flash": "flash off"}
    beside |= {"matmul races": "matmul off", "flash races": "flash off"}
    table = Table("task", "ms", "bar", "processor ms", "ratio", "beside")
    for name in ("cold build", "cached load", "matmul", "matmul races", "flash", "flash races"):
        cost, other = costs[name], beside.get(name, "")
        ratio = f"{cost.processor / max(costs[other].processor, 1e-3):.1f}" if other else ""
        bar = f"{1000 * BARS[name]:.0f}" if name in BARS else ""
        table.add_row(name, f"{1000 * cost.wall:.1f}", bar, f"{1000 * cost.processor:.0f}", ratio, other)
    Console().print(table)
    missed = [name for name, bar in BARS.items() if costs[name].wall > bar]
    if missed:
        print(f"slower than the bar: {', '.join(missed)}. Is the machine busy with something else?")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
