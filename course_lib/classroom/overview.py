"""`make progress`: the thirty days, the streak, the minutes left, the engine's rooms and your estimates, in
80 columns.
"""

import io
import sys
from collections import defaultdict
from datetime import date
from statistics import median
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from course_lib.classroom import lesson as lessons
from course_lib.classroom import predictions, progress
from course_lib.classroom.syllabus import WEEKS, Day, syllabus

WIDTH = 80
DONE, BEGUN, OPEN, PLANNED = "●", "◐", "○", "·"
BAR = ("━", "─")

ROOMS = {
    "numerics": "Numerics",
    "hardware": "Costs, roofline",
    "tensors": "Tensors",
    "autograd": "Autograd",
    "nn": "Layers",
    "train": "Training",
    "tokenizer": "Tokenizer",
    "model": "Model",
    "decode": "Decoding",
    "parallel": "Many devices",
    "finetune": "Adapters",
    "align": "Alignment",
    "quant": "Quantization",
    "cache": "KV cache",
    "kernels": "Kernels",
    "kernels_cuda": "CUDA",
    "kernels_metal": "Metal",
    "engine": "Engine",
    "bench": "Benchmarks",
}


def show(console: Console | None = None) -> None:
    """Print the overview."""
    if console is None and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="replace"
        )  # a terminal without Unicode gets question marks, not an error
    out = console or Console(highlight=False, width=min(WIDTH, Console().width))
    out.print(render(progress.load()))


def render(kept: dict[str, Any], today: date | None = None) -> RenderableType:
    """The overview of some progress as a rich renderable, at most 80 columns wide."""
    days = syllabus()
    return Padding(
        Group(
            *_head(kept, days, today),
            Text(),
            _weeks(kept, days),
            Text(f"{DONE} passed  {BEGUN} begun  {OPEN} to do  {PLANNED} not built yet", "dim"),
            Text(),
            *_engine(kept, days),
            *_estimates(kept),
            *_next(kept),
        ),
        (1, 1),
    )


def _head(kept: dict[str, Any], days: list[Day], today: date | None) -> list[RenderableType]:
    row = Table.grid(expand=True)
    row.add_column()
    row.add_column(justify="right")
    done = sum(progress.day_passed(kept, day.number) for day in days)
    streak, left = progress.streak(kept, today), _minutes_left(kept, days)
    hours = f"{left / 60:,.0f} hours" if left >= 90 else f"{left} minutes"
    words = [f"{done} of 30 days", f"{hours} left"]
    if streak:
        words.append(f"streak: {streak} day{'s' if streak > 1 else ''}")
    row.add_row(Text("Your thirty days", "bold"), Text(" · ".join(words)))
    return [row, Rule(style="dim")]


def _minutes_left(kept: dict[str, Any], days: list[Day]) -> int:
    """Minutes of the days that have not passed; of a day half done, those of what is not done."""
    return round(sum(day.minutes * (1 - _share(kept, day)) for day in days))


def _share(kept: dict[str, Any], day: Day) -> float:
    if progress.day_passed(kept, day.number):
        return 1.0
    passed, total = _counts(kept, day)
    return passed / total if total else 0.0


def _counts(kept: dict[str, Any], day: Day) -> tuple[int, int]:
    """How many of a day's exercises and questions have passed, and how many it has."""
    if not day.built:
        return 0, len(day.exercises)
    names = set(lessons.load_lesson(day.number).exercises)
    return len(progress.passed_names(kept, day.number) & names), len(names)


def _weeks(kept: dict[str, Any], days: list[Day], width: int = WIDTH - 2) -> RenderableType:
    """The four weeks, two beside two."""
    column = (width - 2) // 2
    grid = Table.grid(padding=(0, 2))
    weeks = [Group(*_week(kept, week, days, column)) for week in WEEKS]
    for left in range(0, len(weeks), 2):
        grid.add_row(*weeks[left : left + 2])
        grid.add_row("", "")
    return grid


def _week(kept: dict[str, Any], week: Any, days: list[Day], width: int) -> list[RenderableType]:
    lines: list[RenderableType] = [Text(f"Week {week.number}  {week.title}", "bold")]
    for day in (day for day in days if day.number in week.days):
        passed, total = _counts(kept, day)
        if progress.day_passed(kept, day.number):
            sign, style = DONE, "green"
        elif passed or (day.built and kept["days"].get(str(day.number), {}).get("opened_at")):
            sign, style = BEGUN, "yellow"
        else:
            sign, style = (OPEN, "") if day.built else (PLANNED, "dim")
        count = f" {passed}/{total}" if day.built else ""
        title = Text(day.title, "" if day.built else "dim")
        title.truncate(width - 5 - len(count), overflow="ellipsis", pad=True)
        lines.append(Text.assemble((f"{day.number:>2} ", "dim"), (sign, style), " ", title, (count, "dim")))
    return lines


def _engine(kept: dict[str, Any], days: list[Day]) -> list[RenderableType]:
    """How much of the engine is the learner's, room by room; rooms without a part of theirs are summed up."""
    total: dict[str, int] = defaultdict(int)
    for day in days:
        for name in day.exercises:
            if not _local(name):
                total[_room(name)] += 1
    mine: dict[str, int] = defaultdict(int)
    for name in _owned(kept, days):
        mine[_room(name)] += 1
    parts, own = sum(total.values()), sum(mine.values())
    share = Text.assemble((f"{own} of {parts}", "bold"), " parts are yours  ")
    lines: list[RenderableType] = [
        Text.assemble(("The engine  ", "bold"), share, _bar(own, parts, WIDTH - 15 - len(share)))
    ]
    rooms = [room for room in total if mine[room]]
    table = Table.grid(padding=(0, 1, 0, 0))
    for side in range(2):
        table.add_column(width=15, no_wrap=True)
        table.add_column(width=14)
        table.add_column(width=8 if side == 0 else 6, no_wrap=True, style="dim")
    for at in range(0, len(rooms), 2):
        row: list[RenderableType] = []
        for room in rooms[at : at + 2]:
            row += [_room_title(room), _bar(mine[room], total[room], 14), f"{mine[room]}/{total[room]}"]
        table.add_row(*row)
    if rooms:
        lines.append(table)
    else:
        lines.append(Text("What passes `make check-day` becomes a part of it.", "dim"))
    return [*lines, Text()]


def _local(name: str) -> bool:
    """Whether a name is a lesson's own (`day05.…`), and no part of the engine."""
    return name.startswith("day") and name[3:5].isdigit()


def _room(name: str) -> str:
    return name.replace("/", ".").split(".")[0]


def _room_title(room: str) -> str:
    return ROOMS.get(room, room)


def _owned(kept: dict[str, Any], days: list[Day]) -> set[str]:
    parts = {name for day in days for name in day.exercises if not _local(name)}
    return progress.passed_names(kept) & parts


def _bar(value: float, of: float, width: int) -> Text:
    filled = round(width * value / of) if of else 0
    if value and not filled:
        filled = 1
    return Text.assemble((BAR[0] * filled, "green"), (BAR[1] * (width - filled), "dim"))


def _estimates(kept: dict[str, Any]) -> list[RenderableType]:
    """The errors of the estimates in powers of two: how many were how far off."""
    found = predictions.errors(kept)
    if not found:
        return []
    middle = median(abs(error) for error in found)
    head = Text.assemble(
        ("Your estimates", "bold"),
        f"  {len(found)} measured, half of them within a factor of {2**middle:.1f}",
    )
    table = Table.grid(padding=(0, 1))
    table.add_column(width=26, justify="right", style="dim")
    table.add_column()
    counts: dict[int, int] = defaultdict(int)
    for error in found:
        counts[max(-4, min(4, round(error)))] += 1
    most = max(counts.values())
    for power in range(max(counts), min(counts) - 1, -1):
        bar = Text(BAR[0] * max(1 if counts[power] else 0, round(30 * counts[power] / max(most, 10))), "cyan")
        table.add_row(_power(power), bar + Text(f" {counts[power]}" if counts[power] else "", "dim"))
    return [head, table, Text()]


def _power(power: int) -> str:
    if not power:
        return "right, within 1.4 times"
    times = 2 ** abs(power)
    more = " or more" if abs(power) == 4 else ""
    return f"{times} times{more} too {'low' if power > 0 else 'high'}"


def _next(kept: dict[str, Any]) -> list[RenderableType]:
    day = progress.first_unfinished(kept)
    if day is None:
        return [Text("Every day there is has passed.")]
    title = lessons.load_lesson(day).title
    return [Text.assemble("Next: day ", str(day), ", ", title, ".  ", ("make start", "bold"), " opens it.")]
