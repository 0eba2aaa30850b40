"""A kernel on one problem: its launches, and closed formulas for what they move."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from course_lib.kernels.catalog.problems import Array, Problem
from course_lib.kernels.lab import Module, Report, Traffic

ROOT = Path(__file__).resolve().parents[3]
AnyCase = TypeVar("AnyCase")


@dataclass(frozen=True)
class Launch:
    """Arguments of `Module.launch`."""

    kernel: str
    grid: int | Sequence[int] | None
    block: int | Sequence[int]
    arguments: tuple[Array | int | float, ...]
    shared_bytes: int | Sequence[int] = 0
    threads: int | Sequence[int] | None = None

    def run(self, module: Module, **options: Any) -> Report:
        return module.launch(
            self.kernel,
            self.grid,
            self.block,
            *self.arguments,
            threads=self.threads,
            shared_bytes=self.shared_bytes,
            **options,
        )


@dataclass(frozen=True)
class Case:
    """One problem, and the launches that solve it, one after the other. It can be run once.

    moved: bytes of global memory that the threads read and write, by variable and summed over the launches;
    barriers: how many a block passes, times the blocks. Both are closed formulas, exact at the kernel's
    `counted` shape. At other shapes, too, except that a warp of paged attention that finds no token may
    not have read its query.
    """

    problem: Problem
    launches: tuple[Launch, ...]
    moved: dict[str, int]
    barriers: int = 0

    def run(self, module: Module, **options: Any) -> list[Report]:
        """Launch on the module of the kernel's own source; options as of `Module.launch`."""
        return [launch.run(module, **options) for launch in self.launches]

    def wrong(self) -> str | None:
        """After `run`: a sentence about the first wrong number, or None."""
        return self.problem.wrong()

    def miscounted(self, reports: Sequence[Report]) -> list[str]:
        """A sentence for each count that is not as its formula says; `reports` as from `run`."""
        counted = {
            name: traffic_of(reports, name).bytes
            for name in {row.variable for report in reports for row in report.rows if row.space == "global"}
            | set(self.moved)
        }
        off = [
            f"{name}: {count:,} bytes counted, {self.moved.get(name, 0):,} by the formula."
            for name, count in sorted(counted.items())
            if count != self.moved.get(name, 0)
        ]
        barriers = sum(report.barriers for report in reports)
        if barriers != self.barriers:
            off.append(f"{barriers:,} barriers counted, {self.barriers:,} by the formula.")
        return off


def traffic_of(reports: Iterable[Report], variable: str) -> Traffic:
    """Traffic in global memory with one variable, over several launches."""
    return Traffic.sum(report.traffic(variable, space="global") for report in reports)


@dataclass(frozen=True)
class Kernel(Generic[AnyCase]):
    """A version of a kernel: `name` in the source `file` (from the repository's root).

    shapes: sizes to try, each the arguments of `at`: awkward ones.
    counted: the shape at which the closed formulas are exact.
    large: the shape that is timed on a GPU.
    """

    file: str
    name: str
    build: Callable[..., AnyCase] = field(repr=False)
    shapes: tuple[tuple[Any, ...], ...]
    counted: tuple[Any, ...]
    large: tuple[Any, ...]

    @property
    def path(self) -> Path:
        return ROOT / self.file

    def at(self, *shape: Any) -> AnyCase:
        """A fresh case of these sizes."""
        return self.build(self.name, *shape)
