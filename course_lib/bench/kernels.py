"""`python -m course_lib.bench.kernels`: each kernel of the course run, checked, counted and, on a GPU, timed.

CUDA and Metal sources run in the kernel lab, Triton's in its interpreter where there is no NVIDIA GPU. There
the bytes that threads ask for are counted, and must equal each kernel's closed formula. Where there is a GPU
for a kernel, the same source also runs on it, at a size that fills it; its share of the roofline is the least
time that the problem's bytes or arithmetic take, at the speeds that torch's own copy and product reach there,
divided by the time measured.
"""

import functools
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from course_lib.hardware.detect import detect
from course_lib.kernels.catalog import Case, Kernel, Problem, cuda, metal
from course_lib.kernels.catalog import triton as triton_catalog
from course_lib.kernels.catalog.triton import TritonCase
from course_lib.kernels.lab import LabError, Module, NoCompiler

REPEATS = 5  # on a GPU; the fastest counts


@dataclass
class Row:
    """What became of one kernel.

    error: the largest distance from the float64 result, over the largest number wanted (or 1).
    counted, formula: bytes of global memory that threads asked for. None: nothing counts there.
    seconds, share: on a GPU, at the large size; share is of the roofline.
    wrong: sentences; empty for a kernel that is right. skipped: why it did not run.
    """

    kernel: str
    backend: str
    error: float | None = None
    counted: int | None = None
    formula: int | None = None
    seconds: float | None = None
    share: float | None = None
    wrong: tuple[str, ...] = ()
    skipped: str = ""


def in_the_lab(kernel: Kernel[Case]) -> Row:
    """Run a CUDA or Metal kernel on the CPU at its counted shape."""
    row = Row(kernel.name, "lab")
    case = kernel.at(*kernel.counted)
    try:
        reports = case.run(module_of(kernel.path), level="counts")
    except NoCompiler as error:
        row.skipped = str(error)
        return row
    except LabError as error:
        row.wrong = (str(error),)
        return row
    judge(row, case, case.miscounted(reports))
    row.counted, row.formula = sum(report.global_bytes for report in reports), sum(case.moved.values())
    return row


def in_triton(kernel: Kernel[TritonCase]) -> Row:
    """Call a Triton kernel where Triton runs on this machine."""
    if sys.platform != "linux" or importlib.util.find_spec("triton") is None:
        return Row(kernel.name, "Triton", skipped="Triton exists for Linux only.")
    from course_lib.kernels import triton

    row = Row(kernel.name, "interp." if triton.INTERPRETED else "GPU")
    case = kernel.at(*kernel.counted)
    try:
        counted = case.run()
    except Exception as error:  # whatever a kernel does wrong, the others still run
        row.wrong = (f"{type(error).__name__}: {error}",)
        return row
    judge(row, case, case.miscounted(counted) if triton.INTERPRETED else [])
    if triton.INTERPRETED:
        row.counted, row.formula = sum(counted.values()), sum(case.moved.values())
        return row
    from triton.testing import do_bench

    large = kernel.at(*kernel.large)
    tensors = large.tensors("cuda")
    row.seconds = do_bench(lambda: large.call(triton, tensors), return_mode="min") / 1e3
    row.share = floor(large.problem) / row.seconds
    return row


def on_the_gpu(kernel: Kernel[Case], backend: str) -> Row:
    """The same source on this machine's GPU: its result at the counted shape, its time at the large one."""
    row, module = Row(kernel.name, "GPU"), module_of(kernel.path)
    case = kernel.at(*kernel.counted)
    try:
        case.run(module, backend=backend)
        judge(row, case, [])
        large = kernel.at(*kernel.large)
        row.seconds = min(
            sum(report.seconds for report in large.run(module, backend=backend)) for _ in range(REPEATS)
        )
    except LabError as error:
        row.wrong = (str(error),)
        return row
    if backend == "cuda":
        row.share = floor(large.problem) / row.seconds
    return row


def judge(row: Row, case: Case | TritonCase, miscounted: list[str]) -> None:
    """Note the case's error, and all that is wrong with its result and counts."""
    row.wrong = tuple(filter(None, [case.wrong(), *miscounted]))
    row.error = case.problem.error()  # now that results of other types have been brought back to float32


@functools.cache
def module_of(path: Path) -> Module:
    return Module(path)


def floor(problem: Problem) -> float:
    """Seconds that no kernel can beat on this GPU: the roofline, with the speeds that torch reaches."""
    half = any(array.dtype.itemsize == 2 for array in problem.inputs.values())
    bandwidth, peak = speeds(half)
    return max(problem.least_bytes / bandwidth, problem.flops / peak)


@functools.cache
def speeds(half: bool) -> tuple[float, float]:
    """Bytes and FLOPs a second of torch's copy of 1 GiB and product of 8192² matrices. NVIDIA only."""
    import torch
    from triton.testing import do_bench

    dtype = torch.float16 if half else torch.float32
    buffer = torch.empty(1 << 28, dtype=torch.float32, device="cuda")
    a = torch.ones(8192, 8192, dtype=dtype, device="cuda")
    copying = do_bench(lambda: buffer.clone(), return_mode="min") / 1e3
    multiplying = do_bench(lambda: a @ a, return_mode="min") / 1e3
    return 2 * buffer.nbytes / copying, 2 * 8192**3 / multiplying


def runs(only: str = "") -> Iterator[tuple[str, str, Callable[[], Row]]]:
    """(language, kernel, how to run it), for all kernels whose name contains `only`."""
    from course_lib.kernels.lab import on_cuda

    gpus = {"CUDA": "cuda" if on_cuda.driver() else "", "Metal": "metal" if sys.platform == "darwin" else ""}
    for language, kernels in (("CUDA", cuda.KERNELS), ("Metal", metal.KERNELS)):
        for kernel in kernels:
            if only in kernel.name:
                yield language, kernel.name, functools.partial(in_the_lab, kernel)
                if gpus[language]:
                    yield language, kernel.name, functools.partial(on_the_gpu, kernel, gpus[language])
    for kernel in triton_catalog.KERNELS:
        if only in kernel.name:
            yield "Triton", kernel.name, functools.partial(in_triton, kernel)


def table(rows: dict[str, list[Row]]) -> Table:
    """What a person reads, in 80 columns."""
    shown = Table(box=None, padding=(0, 2, 0, 0), title="Kernels: result, bytes against the formula, time")
    for name in ("kernel", "where", "error", "bytes", "formula", "time", "roof"):
        left = name in ("kernel", "where")
        shown.add_column(name, justify="left" if left else "right", no_wrap=True)
    for language, of_language in rows.items():
        shown.add_row(f"[bold]{language}[/bold]")
        for row in of_language:
            shown.add_row(
                row.kernel,
                row.backend,
                "-" if row.error is None else f"{row.error:.0e}",
                "-" if row.counted is None else f"{row.counted:,}",
                "-" if row.formula is None else "same" if row.formula == row.counted else f"{row.formula:,}",
                "-" if row.seconds is None else f"{1e3 * row.seconds:.2f} ms",
                "-" if row.share is None else f"{row.share:.0%}",
                style="red" if row.wrong else "dim" if row.skipped else "",
            )
    return shown


def notes(rows: dict[str, list[Row]]) -> list[str]:
    """What the table has no room for: all that is wrong, each reason for skipping once, where it ran."""
    told = [
        f"WRONG: {language} {row.kernel} ({row.backend}): {text}"
        for language, of_language in rows.items()
        for row in of_language
        for text in row.wrong
    ]
    told += dict.fromkeys(row.skipped for of_language in rows.values() for row in of_language if row.skipped)
    every = [row for of_language in rows.values() for row in of_language]
    if not any(row.backend == "GPU" for row in every):
        told.append(
            "No GPU that these kernels run on was found: counts are the lab's and the interpreter's, and no "
            "time is given, since theirs say nothing about a GPU's."
        )
    right = sum(not row.wrong and not row.skipped for row in every)
    told.append(f"{right} of {len(every)} right, {sum(bool(row.wrong) for row in every)} wrong.")
    return told


def save(rows: dict[str, list[Row]], folder: Path) -> Path:
    """Write all rows to a JSON file named by the time."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"kernels-{datetime.now(UTC):%Y%m%dT%H%M%S%f}.json"
    content = {
        "machine": str(detect()),
        "kernels": [
            {"language": language} | asdict(row)
            for language, of_language in rows.items()
            for row in of_language
        ],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def main(
    only: Annotated[str, typer.Option(help="Only kernels whose name contains this.")] = "",
    out: Annotated[Path, typer.Option(help="Folder for the JSON file.")] = Path(".course/bench"),
) -> None:
    """Run every kernel, and print what it computed, moved and took. Exits with 1 if one is wrong."""
    console = Console()
    rows: dict[str, list[Row]] = {}
    with console.status("kernels") as status:
        for language, name, run in runs(only):
            status.update(f"{language}: {name}")
            rows.setdefault(language, []).append(run())
    console.print(table(rows))
    for note in notes(rows):
        console.print(note, highlight=False, markup=False)
    console.print(f"every kernel: {save(rows, out)}", style="dim", highlight=False, soft_wrap=True)
    if any(row.wrong for of_language in rows.values() for row in of_language):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
