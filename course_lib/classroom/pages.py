"""The generated parts of README.md and days/README.md: the map, the table of lessons, and three figures.

A region stands between `<!-- begin NAME -->` and `<!-- end NAME -->`; everything outside is written by hand.
"""

import re
import tempfile
from pathlib import Path
from typing import Any

from course_lib.classroom.course_map import draw_map
from course_lib.classroom.figures import BLUE, GREY, INK, LIGHT, ORANGE, bare, figure, save_svg
from course_lib.classroom.syllabus import WEEKS, Day, syllabus

IMAGES = ".github/images"
BUILT, COMING = "●", "○"


def write(root: Path) -> list[str]:
    """Bring every generated region and figure up to date; returns the paths changed, relative to `root`.

    A `root` without README.md is a course in a test, and has no pages to write.
    """
    if not (root / "README.md").is_file():
        return []
    changed = []
    for name, content in _wanted(root).items():
        path = root / name
        if not path.is_file() or path.read_text(encoding="utf-8") != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
            changed.append(name)
    return changed


def stale(root: Path, figures: bool = True) -> list[str]:
    """The generated files that differ from what `write` would make of them, relative to `root`."""
    wanted = _wanted(root, figures)
    return [
        name
        for name, content in wanted.items()
        if not (root / name).is_file() or (root / name).read_text(encoding="utf-8") != content
    ]


def _wanted(root: Path, figures: bool = True) -> dict[str, str]:
    days = syllabus(root)
    pages = {
        "README.md": {"pictures": pictures(root), "map": week_map(days, "days/")},
        "days/README.md": {"lessons": lesson_tables(days)},
    }
    wanted = {name: _fill(root / name, regions) for name, regions in pages.items()}
    if figures:
        wanted |= {f"{IMAGES}/{name}.svg": _svg(draw) for name, draw in FIGURES.items()}
    return wanted


def _fill(page: Path, regions: dict[str, str]) -> str:
    text = page.read_text(encoding="utf-8")
    for name, content in regions.items():
        region = re.compile(rf"<!-- begin {name} -->\n.*?<!-- end {name} -->", re.DOTALL)
        pieces = region.split(text)
        if len(pieces) != 2:
            raise ValueError(
                f"{page} must hold the lines <!-- begin {name} --> and <!-- end {name} --> once each, "
                "with the generated text between them"
            )
        text = f"{pieces[0]}<!-- begin {name} -->\n{content}<!-- end {name} -->{pieces[1]}"
    return text


def _svg(draw: Any) -> str:
    import matplotlib.pyplot as plt

    fig = draw()
    with tempfile.NamedTemporaryFile(suffix=".svg") as file:
        save_svg(fig, file.name)
        plt.close(fig)
        return Path(file.name).read_text(encoding="utf-8")


# Screenshots are taken of the running course, not drawn here: shown once they are there.
PICTURES = (
    (
        "lesson",
        "A lesson in JupyterLab: the text, an exercise filled in, and below it the verdict of check().",
        "A lesson: the exercise, your answer, and the verdict.",
    ),
    (
        "scoreboard",
        "The scoreboard of make check-day: a line an exercise, passed, failed or not attempted, and for the "
        "failed one the input, what was expected and what came.",
        "The scoreboard of `make check-day`.",
    ),
)


def pictures(root: Path) -> str:
    """The screenshots of a lesson and of the scoreboard, each with its caption, as far as they exist."""
    parts = []
    for name, description, caption in PICTURES:
        found = [path for kind in ("svg", "png") if (path := root / IMAGES / f"{name}.{kind}").is_file()]
        if found:
            image = f'<img alt="{description}" src="{IMAGES}/{found[0].name}" width="100%">'
            parts.append(f"{image}\n\n*{caption}*\n")
    return "\n".join(parts)


def week_map(days: list[Day], folder: str) -> str:
    """Four columns, one a week; each cell a day, with its mark and, once built, a link to its notebook."""
    columns = [[day for day in days if day.week == week.number] for week in WEEKS]
    lines = [
        "| " + " | ".join(f"Week {week.number}: {week.title}" for week in WEEKS) + " |",
        "|" + " --- |" * len(WEEKS),
    ]
    for row in range(max(map(len, columns))):
        cells = [_map_cell(column[row], folder) if row < len(column) else "" for column in columns]
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("| " + " | ".join(f"*{week.artifact}*" for week in WEEKS) + " |")
    built = sum(day.built for day in days)
    lines += [
        "",
        f"{BUILT} built and graded from end to end: {built} of {len(days)} days.",
        f"{COMING} planned, not built yet. The last row is what each week leaves you with, once it is.",
    ]
    return "\n".join(lines) + "\n"


def _map_cell(day: Day, folder: str) -> str:
    if day.built:
        return f"{BUILT} {day.number} [{day.title}]({folder}{day.folder}/lesson.ipynb)"
    return f"{COMING} {day.number} {day.title}"


def lesson_tables(days: list[Day]) -> str:
    """A table a week: mark, lesson, what it is about, what is written, minutes (in italics if planned)."""
    parts = []
    for week in WEEKS:
        parts += [
            f"### Week {week.number}: {week.title}",
            "",
            f"You build: **{_lower_first(week.artifact)}**.",
            "",
            "| | Day | What it is about, and what you write | Minutes |",
            "| --- | --- | --- | --- |",
        ]
        parts += [_lesson_row(day) for day in days if day.number in week.days]
        parts.append("")
    built = [day for day in days if day.built]
    hours = sum(day.minutes for day in days) / 60
    parts += [
        f"{BUILT} built ({len(built)} of {len(days)}), {COMING} planned. Minutes are the lesson's own where",
        f"it is built, and a plan, in italics, where not: about {hours:.0f} hours in all. *Read* leads to",
        "the executed lesson with its solutions in it; do the exercises first.",
    ]
    return "\n".join(parts) + "\n"


def _lesson_row(day: Day) -> str:
    mark = BUILT if day.built else COMING
    title = f"**{day.number}. {day.title}**"
    minutes = str(day.minutes) if day.built else f"*{day.minutes}*"
    if day.built:
        title += f"<br>[Work]({day.folder}/lesson.ipynb) · [Read](../solutions/{day.folder}/lesson.ipynb)"
    names = " ".join(f"`{_short(name)}`" for name in day.exercises)
    return f"| {mark} | {title} | {day.summary}<br><sub>{names}</sub> | {minutes} |"


def _short(name: str) -> str:
    """The last part of a public name; a method keeps its class, a kernel its file name."""
    if "/" in name:
        return name.rpartition("/")[2]
    head, _, last = name.rpartition(".")
    owner = head.rpartition(".")[2]
    return f"{owner}.{last}" if owner[:1].isupper() else last


def _lower_first(text: str) -> str:
    return text[0].lower() + text[1:]


# Parameters, and where the number comes from. The two of our own are what the course plans to train.
LADDER = (
    ("Day 3: an MLP, every gradient by hand", 1e5, None, "yours"),
    ("Day 9: course-1m, a draft model", 1e6, None, "yours"),
    ("Day 9: course-10m, your GPT", 1e7, None, "yours"),
    ("GPT-2 small (2019)", 124_439_808, None, "published"),
    ("SmolLM2-135M: what this engine runs today", 134_515_008, None, "engine"),
    ("GPT-2 XL (2019)", 1_557_611_200, None, "published"),
    ("Llama 3 8B (2024)", 8_030_261_248, None, "published"),
    ("Llama 3.1 70B (2024)", 70_553_706_496, None, "published"),
    ("GPT-3 (2020)", 175e9, None, "published"),
    ("Llama 3.1 405B (2024)", 405e9, None, "published"),
    ("DeepSeek-V3 (2024)", 671e9, 37e9, "published"),
    ("Kimi K2 (2025)", 1.04e12, 32e9, "published"),
    ("GPT-4 (2023): reported, never confirmed", 1.8e12, None, "rumor"),
)
MEMORIES = (("16 GB", 16e9), ("80 GB", 80e9), ("640 GB", 640e9))  # a laptop, one large GPU, a server of eight


def draw_ladder() -> Any:
    """Models from 100K parameters to a trillion, on a logarithmic axis, beside what memory holds."""
    fig, ax = figure(width=7.4, height=4.3)
    top = len(LADDER) - 0.2
    for name, size in MEMORIES:
        holds = size / 2  # a bfloat16 weight is two bytes
        ax.plot([holds, holds], [-0.7, top], color=GREY, linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
        ax.text(holds, top + 0.1, name, fontsize=7, color=GREY, ha="center", va="bottom")
    ax.text(3.4e9, top + 0.1, "bfloat16 weights fill", fontsize=7, color=GREY, ha="right", va="bottom")
    colors = {"yours": ORANGE, "engine": BLUE, "published": INK, "rumor": INK}
    for row, (name, total, active, kind) in enumerate(LADDER):
        color = colors[kind]
        ax.plot([4e4, total], [row, row], color=LIGHT, linewidth=1.0, zorder=1)
        if active:
            ax.plot([active, total], [row, row], color=color, linewidth=1.4, zorder=2)
            ax.plot(active, row, "o", color="white", markeredgecolor=color, markersize=5, zorder=3)
        hollow = kind == "rumor"
        ax.plot(
            total, row, "o", color="white" if hollow else color, markeredgecolor=color, markersize=7, zorder=3
        )
        weight = "bold" if kind in ("yours", "engine") else "normal"
        behind = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}
        ax.text(
            total * 1.45,
            row,
            count(total),
            fontsize=7.5,
            color=color,
            weight=weight,
            va="center",
            bbox=behind,
        )
        ax.text(3.2e4, row, name, fontsize=7.5, color=color, ha="right", va="center")
    ax.set_xscale("log")
    ax.set(xlim=(4e4, 1.6e13), ylim=(-0.7, top + 0.9), xlabel="parameters (logarithmic scale)")
    ax.set_xticks([10.0**k for k in range(5, 13)], ["100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"])
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.grid(False)
    ax.minorticks_off()
    return fig


def count(parameters: float) -> str:
    """A number of parameters as people say it: 124M, 8.0B, 1.04T."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if parameters >= size:
            value = parameters / size
            digits = 2 if unit == "T" and value < 1.5 else 1 if value < 10 and value != round(value) else 0
            return f"{value:.{digits}f}{unit}"
    return f"{parameters:.0f}"


def draw_families() -> Any:
    """Who may look at whom in the three Transformer families, as attention masks of eight tokens."""
    import numpy as np
    from matplotlib.patches import Rectangle

    n, source = 8, 4
    causal = np.tril(np.ones((n, n), dtype=int))
    two_stacks = np.zeros((n, n), dtype=int)
    two_stacks[:source, :source] = 1
    two_stacks[source:, source:] = np.tril(np.ones((n - source, n - source), dtype=int))
    two_stacks[source:, :source] = 2  # cross-attention
    masks = (
        ("Encoder-only", "BERT, ModernBERT", np.ones((n, n), dtype=int)),
        ("Decoder-only", "GPT, Llama, Qwen: this course", causal),
        ("Encoder-decoder", "T5, the 2017 Transformer", two_stacks),
    )
    fig, axes = figure(width=7.2, height=2.95, cols=3)
    for ax, (title, examples, mask) in zip(axes, masks, strict=True):
        for row in range(n):
            for column in range(n):
                color = ("white", BLUE, ORANGE)[mask[row, column]]
                ax.add_patch(Rectangle((column, n - 1 - row), 0.9, 0.9, facecolor=color, edgecolor=LIGHT))
        bare(ax)
        ax.set(xlim=(-1.2, n + 0.4), ylim=(-1.5, n + 2.1), aspect="equal")
        ours = BLUE if title == "Decoder-only" else INK
        ax.text(n / 2, n + 1.4, title, fontsize=10, weight="bold", color=ours, ha="center", va="center")
        ax.text(n / 2, n + 0.35, "may look at", fontsize=7, color=GREY, ha="center", va="center")
        ax.text(-0.5, n / 2, "each token", fontsize=7, color=GREY, rotation=90, ha="center", va="center")
        ax.text(n / 2, -0.9, examples, fontsize=7.5, color=GREY, ha="center", va="center")
    return fig


def draw_engine() -> Any:
    """The engine's map with no day lit."""
    return draw_map(None)


FIGURES = {"scale_ladder": draw_ladder, "families": draw_families, "engine": draw_engine}
