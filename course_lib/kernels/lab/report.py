"""What a launch did: findings, traffic by buffer and by source line, barriers, printed text."""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from course_lib.kernels.lab.errors import LabError

SECTOR = 32  # bytes: the unit in which global memory is moved


@dataclass(frozen=True)
class Place:
    """Where something happened: which thread of which block, at which line of the source (0: not known)."""

    block: tuple[int, int, int]
    thread: tuple[int, int, int]
    line: int
    kind: str = ""

    def __str__(self) -> str:
        return f"thread {self.thread} of block {self.block}"


@dataclass(frozen=True)
class Finding:
    """Something that is wrong in a kernel.

    kind: a word to test for, such as "out of bounds" or "race". `message` is the whole sentence; the rest
    names the place, the variable and, of a race or a barrier, the other thread.
    """

    kind: str
    message: str
    kernel: str
    place: Place
    variable: str = ""
    other: Place | None = None

    @property
    def line(self) -> int:
        return self.place.line

    def __str__(self) -> str:
        return self.message


class KernelFault(LabError):
    """A kernel did something wrong. `report` holds all findings; the message says the first ones."""

    of_the_kernel = True

    def __init__(self, message: str, report: "Report"):
        super().__init__(message)
        self.report = report
        # Both orders follow each other in a loop; which one comes first tells two missing barriers apart.
        first = {(f.kind, f.variable): f for f in reversed(report.findings)}
        self.fingerprint = ", ".join(sorted(map(_mark, first.values())))

    @property
    def findings(self) -> tuple[Finding, ...]:
        return self.report.findings


def _mark(finding: Finding) -> str:
    """A finding without its place, equal for equal mistakes: "race tile (read after write)"."""
    here, other = finding.place, finding.other
    order = ""
    if finding.kind == "race" and other is not None:
        far = " in another block" if here.block != other.block else ""
        order = f"({here.kind} after {other.kind}{far})"
    return f"{finding.kind} {finding.variable} {order}".strip()


@dataclass(frozen=True)
class Traffic:
    """Memory traffic, summed.

    Attributes:
        requests: instructions of a warp: up to 32 lanes that access together.
        accesses: the same, lane by lane.
        bytes: what the lanes asked for.
        sectors: 32-byte pieces of global memory that the requests touched: what the chip moves, before any
        cache.
        ideal_sectors: the fewest sectors that could hold what they touched.
        wavefronts: passes that shared memory needed.
        ideal_wavefronts: the passes without bank conflicts.
    """

    requests: int = 0
    accesses: int = 0
    bytes: int = 0
    sectors: int = 0
    ideal_sectors: int = 0
    wavefronts: int = 0
    ideal_wavefronts: int = 0

    @property
    def moved_bytes(self) -> int:
        """Bytes of the touched sectors."""
        return self.sectors * SECTOR

    @property
    def bank_conflicts(self) -> int:
        """Passes of shared memory beyond the ideal."""
        return self.wavefronts - self.ideal_wavefronts

    @property
    def efficiency(self) -> float:
        """The part of the moved sectors that was needed, 0 to 1; 1 where nothing moved."""
        return self.ideal_sectors / self.sectors if self.sectors else 1.0

    @staticmethod
    def sum(parts: "Iterable[Traffic]") -> "Traffic":
        rows = list(parts)
        return Traffic(*(sum(getattr(r, f.name) for r in rows) for f in fields(Traffic)))


@dataclass(frozen=True)
class Row(Traffic):
    """The traffic of one line of the source with one variable."""

    line: int = 0
    variable: str = ""
    space: str = "global"  # or "shared"
    kind: str = "read"  # or "write", "atomic"
    size: int = 4  # bytes an access


@dataclass(frozen=True)
class SharedArray:
    """An array in shared memory: its name, bytes, the line that declares it, whether the launch sized it."""

    name: str
    size: int
    line: int
    dynamic: bool = False


@dataclass(frozen=True)
class Report:
    """The result of a launch.

    `ran` says what executed it: "kernel lab", or the name of a GPU (then nothing is counted). Traffic is
    counted at the levels "counts" and "races" only. `trace`, if one was asked for, is a structured array of
    the accesses of one warp.
    """

    kernel: str
    label: str
    ran: str
    level: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    seconds: float
    findings: tuple[Finding, ...] = ()
    rows: tuple[Row, ...] = ()
    barriers: int = 0
    warp_operations: int = 0
    atomics: int = 0
    shared: tuple[SharedArray, ...] = ()
    printed: str = ""
    order: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint32))
    trace: np.ndarray | None = None
    source: str = ""
    names: dict[int, str] = field(default_factory=dict)  # of the objects in `trace`

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def traffic(
        self,
        variable: str | None = None,
        *,
        space: str | None = None,
        kind: str | None = None,
        line: int | None = None,
    ) -> Traffic:
        """Sum what fits: a variable, "global" or "shared" space, "read", "write" or "atomic", a line.

        What the launch did not touch gives zeros.
        """
        wanted = {"variable": variable, "space": space, "kind": kind, "line": line}
        return Traffic.sum(
            row for row in self.rows if all(v is None or getattr(row, k) == v for k, v in wanted.items())
        )

    @property
    def global_memory(self) -> Traffic:
        return self.traffic(space="global")

    @property
    def shared_memory(self) -> Traffic:
        return self.traffic(space="shared")

    @property
    def global_bytes(self) -> int:
        """Bytes that threads loaded from and stored to global memory."""
        return self.global_memory.bytes

    @property
    def sectors(self) -> int:
        return self.global_memory.sectors

    @property
    def ideal_sectors(self) -> int:
        return self.global_memory.ideal_sectors

    @property
    def wavefronts(self) -> int:
        return self.shared_memory.wavefronts

    @property
    def bank_conflicts(self) -> int:
        return self.shared_memory.bank_conflicts

    @property
    def shared_bytes(self) -> int:
        """Bytes of shared memory that a block uses."""
        return sum(a.size for a in self.shared)

    def variable_of(self, number: int) -> str:
        """The name of the buffer or shared array that has this number in `trace`."""
        return self.names.get(number, "")

    @property
    def variables(self) -> tuple[str, ...]:
        """The names of buffers and shared arrays that were touched, in order."""
        return tuple(dict.fromkeys(row.variable for row in self.rows))

    def __str__(self) -> str:
        head = f"{self.kernel}: grid {_shape(self.grid)}, block {_shape(self.block)}, {self.ran}"
        lines = [head]
        if self.rows:
            lines += _table(self)
            lines.append(
                f"{self.barriers:,} barriers, {self.warp_operations:,} warp operations, {self.atomics:,} "
                "atomics, "
                f"{self.shared_bytes:,} bytes of shared memory a block"
            )
        lines += [f"{f.kind}: {f.message}" for f in self.findings]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"

    def by_line(self) -> list[tuple[int, str, Row]]:
        """(line number, the text of that line, its traffic), a row for each variable and kind, in order of
        lines."""
        text = self.source.splitlines()
        return [
            (row.line, text[row.line - 1] if 0 < row.line <= len(text) else "", row)
            for row in sorted(self.rows, key=lambda r: (r.line, r.variable, r.kind))
        ]


def _shape(sizes: tuple[int, int, int]) -> str:
    used = [*sizes]
    while len(used) > 1 and used[-1] == 1:
        used.pop()
    return "×".join(map(str, used))


def _table(report: Report) -> list[str]:
    rows: list[tuple[Any, ...]] = [
        ("line", "variable", "", "bytes", "sectors", "ideal", "wavefronts", "conflicts")
    ]
    for row in sorted(report.rows, key=lambda r: (r.line, r.variable, r.kind)):
        far = row.space == "global"
        rows.append(
            (
                row.line,
                row.variable,
                row.kind,
                f"{row.bytes:,}",
                f"{row.sectors:,}" if far else "",
                f"{row.ideal_sectors:,}" if far else "",
                "" if far else f"{row.wavefronts:,}",
                "" if far else f"{row.bank_conflicts:,}",
            )
        )
    total = report.global_memory, report.shared_memory
    rows.append(
        (
            "",
            "all",
            "",
            f"{total[0].bytes + total[1].bytes:,}",
            f"{total[0].sectors:,}",
            f"{total[0].ideal_sectors:,}",
            f"{total[1].wavefronts:,}",
            f"{total[1].bank_conflicts:,}",
        )
    )
    widths = [max(len(str(r[i])) for r in rows) for i in range(8)]
    left = (1, 2)
    return [
        "  ".join(
            str(c).ljust(w) if i in left else str(c).rjust(w)
            for i, (c, w) in enumerate(zip(r, widths, strict=True))
        ).rstrip()
        for r in rows
    ]
