"""Pictures of a launch: what a warp touched, which banks were busy, what each line moved, how blocks are
scheduled.

Each function draws on an Axes that it is given, in the colors of that Axes' style, so that a lesson's figure
keeps the course's own:

    from course_lib.classroom.figures import figure
    from course_lib.kernels.lab import pictures

    report = module.launch("transpose", grid, block, x, y, rows, columns, trace=((0, 0), 0))
    fig, ax = figure()
    pictures.access_map(ax, report, "out", kind="write")
"""

from typing import Any

import numpy as np

from course_lib.kernels.lab.native import ACCESSES
from course_lib.kernels.lab.report import SECTOR, Report

_WORD, BANKS = 4, 32  # bytes, and banks of shared memory


def accesses(
    report: Report, variable: str, *, kind: str = "read", line: int | None = None
) -> list[np.ndarray]:
    """The requests of the traced warp on one variable, in order: each an array of (lane, offset, size) rows.

    Offsets are bytes from the variable's beginning. ValueError if the launch kept no trace, or if the warp
    never touched the variable so.
    """
    if report.trace is None:
        raise ValueError("the launch kept no trace: launch with trace=(block, warp), such as trace=(0, 0)")
    rows = report.trace
    wanted = np.array([report.variable_of(int(number)) == variable for number in rows["object"]], dtype=bool)
    wanted &= rows["kind"] == ACCESSES.index(kind)
    if line is not None:
        wanted &= rows["line"] == line
    rows = rows[wanted]
    if not len(rows):
        raise ValueError(f"the traced warp has no {kind} of {variable!r}; it touched {report.variables}")
    # Lanes run one after another: the n-th access of each lane at a line belongs to one request.
    found: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    seen: dict[tuple[int, int], int] = {}
    for row in rows:
        lane, at = int(row["lane"]), (int(row["lane"]), int(row["line"]))
        turn = seen[at] = seen.get(at, -1) + 1
        found.setdefault((int(row["line"]), turn), []).append((lane, int(row["offset"]), int(row["size"])))
    return [np.array(sorted(group)) for group in found.values()]


def access_map(ax: Any, report: Report, variable: str, *, kind: str = "read", request: int = 0) -> Any:
    """One request of the traced warp: each lane a row, its bytes in their place, the moved sectors behind.

    Far sectors are drawn side by side, with the bytes between them left out. Returns the Axes.
    """
    from matplotlib.patches import Rectangle

    group = accesses(report, variable, kind=kind)[request]
    sectors = sorted({at // SECTOR for _, at, _ in group})
    place = {sector: i for i, sector in enumerate(sectors)}
    for i, _ in enumerate(sectors):
        ax.add_patch(Rectangle((i * SECTOR, -0.5), SECTOR, BANKS, facecolor="C4", alpha=0.15 + 0.1 * (i % 2)))
    thin = len(sectors) * SECTOR / 80  # what is narrower would not be seen
    for lane, at, size in group:
        x = place[at // SECTOR] * SECTOR + at % SECTOR
        ax.add_patch(Rectangle((x, lane - 0.4), max(size, thin), 0.8, facecolor="C0", linewidth=0))
    ax.set_xlim(0, len(sectors) * SECTOR)
    ax.set_ylim(BANKS - 0.5, -0.5)
    step = max(1, -(-len(sectors) // 4))
    ticks = range(0, len(sectors), step)
    ax.set_xticks([i * SECTOR for i in ticks], [f"{sectors[i] * SECTOR:,}" for i in ticks])
    used = len({int(b) for _, at, size in group for b in range(at, at + size)})
    ax.set_xlabel(f"byte of {variable}")
    ax.set_ylabel("lane")
    ax.set_title(f"{len(sectors)} sectors for {used:,} bytes")
    ax.grid(False)
    return ax


def bank_map(ax: Any, report: Report, variable: str, *, kind: str = "read", most: int = 32) -> Any:
    """Which banks the traced warp asked, request by request: the color is the number of words asked of a
    bank.

    More than one word of a bank in a request is a conflict. Draws the first `most` requests. Returns the
    Axes.
    """
    groups = accesses(report, variable, kind=kind)[:most]
    words = np.zeros((len(groups), BANKS), dtype=int)
    for i, group in enumerate(groups):
        asked = {(at + b) // _WORD for _, at, size in group for b in range(0, size, _WORD)}
        for word in asked:
            words[i, word % BANKS] += 1
    image = ax.imshow(words, vmin=0, vmax=max(2, int(words.max())), aspect="auto")
    ax.figure.colorbar(image, ax=ax, label="words asked of the bank")
    ax.set_xlabel("bank")
    ax.set_ylabel("request of the warp")
    ax.set_title(f"{variable}: {int(words.max(axis=1).sum())} passes for {len(groups)} requests")
    ax.grid(False)
    return ax


def traffic_by_line(ax: Any, report: Report) -> Any:
    """The sectors of global memory that each line moved, beside its text: needed, and moved in vain.

    Returns the Axes.
    """
    texts = report.source.splitlines()
    lines = sorted({row.line for row in report.rows if row.space == "global"})
    for i, line in enumerate(lines):
        moved = report.traffic(space="global", line=line)
        ax.barh(i, moved.ideal_sectors, color="C0", label="needed" if i == 0 else None)
        excess = moved.sectors - moved.ideal_sectors
        ax.barh(i, excess, left=moved.ideal_sectors, color="C3", label="in vain" if i == 0 else None)
    labels = [f"{line}  {texts[line - 1].strip()[:60] if 0 < line <= len(texts) else ''}" for line in lines]
    ax.set_yticks(range(len(lines)), labels, family="monospace", size=7)
    ax.invert_yaxis()
    ax.set_xlabel("sectors of 32 bytes")
    ax.set_title(f"{report.sectors:,} sectors, {report.ideal_sectors:,} needed")
    ax.legend()
    return ax


def waves(ax: Any, report: Report, processors: int, resident: int = 1) -> Any:
    """How the grid's blocks fill a chip of so many processors, if all blocks take the same time: in waves.

    resident: blocks that one processor holds at once. Returns the Axes.
    """
    from matplotlib.patches import Rectangle

    blocks, slots = int(np.prod(report.grid)), processors * resident
    for number, block in enumerate(report.order if len(report.order) else range(blocks)):
        wave, slot = divmod(number, slots)
        box = Rectangle((wave, slot), 0.96, 0.9, facecolor=f"C{wave % 3}", alpha=0.8)
        ax.add_patch(box)
        if slots <= 32:
            ax.text(
                wave + 0.48, slot + 0.45, str(int(block)), ha="center", va="center", size=6, color="white"
            )
    count = -(-blocks // slots)
    ax.set_xlim(0, count)
    ax.set_ylim(slots, 0)
    ax.set_xlabel("wave")
    ax.set_ylabel("place on a processor")
    ax.set_title(f"{count} waves, {blocks / (count * slots):.0%} full")
    ax.grid(False)
    return ax
