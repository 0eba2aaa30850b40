"""The map that opens every lesson: where today's parts stand in the engine that thirty days build.

Each box is a room of the engine, or of the workshop that makes its model; the small numbers are the days
that furnish it. Orange is today, blue is behind you, an outline is still to come.
"""

from dataclasses import dataclass
from typing import Any

from course_lib.classroom.figures import BLUE, GREY, INK, LIGHT, ORANGE, bare, figure

LAST_DAY = 30

# The fill of a room that is furnished today, of one furnished before, and of the frames that hold several.
TODAY_FILL = "#FDEBD0"
PAST_FILL = "#D8E8F4"
FRAME_FILL = "#F4F6F8"


@dataclass(frozen=True)
class Room:
    """One box: its name, the days that add to it, its middle, and its width in the map's own units."""

    name: str
    days: tuple[int, ...]
    x: float
    y: float
    width: float = 13.6


# Columns and floors of the drawing.
_A, _B, _C, _D, _E, _F = 7.8, 24.0, 40.0, 56.0, 76.0, 92.2
_SERVE, _STEP, _MODEL, _KERNELS, _TRAIN, _GROUND = 61.0, 49.4, 35.8, 22.6, 9.4, -3.8
_TOP = 72.2
ROOM_WIDTH, ROOM_HEIGHT = 13.6, 7.0

ROOMS = (
    Room("Server", (29,), _A, _SERVE),
    Room("Tokenizer", (5,), _B, _SERVE),
    Room("Requests", (28,), _C, _SERVE),
    Room("Scheduler", (24, 28), _D, _SERVE),
    Room("Text stream", (5, 28), _E, _SERVE),
    Room("Benchmarks", (26, 30), _F, _SERVE),
    Room("Speculation", (23, 25), _C, _STEP),
    Room("Model runner", (27, 29), _D, _STEP),
    Room("Sampler", (1, 7, 28), _E, _STEP),
    Room("Quantization", (13, 22), _A, _MODEL),
    Room("Embeddings", (3, 6, 7), _B, _MODEL),
    Room("Norms", (4, 12), _C, _MODEL),
    Room("Attention", (6, 12, 21), _D, _MODEL),
    Room("MLP, experts", (3, 12), _E, _MODEL),
    Room("KV cache", (15, 20, 24), _F, _MODEL),
    Room("Checkpoints", (7, 9, 27), _A, _KERNELS),
    Room("Kernel lab", (16, 17), _B, _KERNELS),
    Room("CUDA", (17, 18, 21), _C, _KERNELS),
    Room("Triton", (18, 21), _D, _KERNELS),
    Room("Metal, MLX", (19, 21), _E, _KERNELS),
    Room("Data", (8,), _B, _TRAIN),
    Room("Training", (3, 4, 8, 9), _C, _TRAIN),
    Room("Many devices", (10, 11), _D, _TRAIN),
    Room("Adapters", (13,), _E, _TRAIN),
    Room("Alignment", (14,), _F, _TRAIN),
    Room("Numerics", (1,), 15.9, _GROUND, 29.8),
    Room("Tensors and autograd", (2, 4), 49.9, _GROUND, 30.6),
    Room("Costs and the roofline", (1, 15, 16), 84.1, _GROUND, 29.8),
)


def course_map(day: int) -> None:
    """Draw the engine's map with the parts of `day` (1 to 30) lit, as a notebook cell's figure."""
    draw_map(day)


def draw_map(day: int | None) -> Any:
    """Draw the map and return the figure; `None` draws it with no day lit, for pages about the course."""
    if day is not None and not (isinstance(day, int) and 1 <= day <= LAST_DAY):
        raise ValueError(f"course_map() was given day {day!r}; days are whole numbers from 1 to {LAST_DAY}.")
    fig, ax = figure(width=7.2, height=5.2)
    bare(ax)
    ax.set(xlim=(-0.8, 100.8), ylim=(-8.8, 74.6))
    _frame(ax, "The engine", _B, _E, _STEP, top=_SERVE)
    _frame(ax, "The model", _B, _E, _MODEL)
    _frame(ax, "Kernels", _B, _E, _KERNELS)
    _frame(ax, "The workshop, where a model's weights are made", _B, _F, _TRAIN)
    _frame(ax, "The ground floor", _A, _F, _GROUND)
    ax.text(
        _B,
        _STEP,
        "one step:\none more token\nfor each request",
        ha="center",
        va="center",
        fontsize=6.5,
        color=GREY,
    )
    _bubble(ax, "What is the capital of France?", _A - 6.4, "left")
    _bubble(ax, "The capital of France is Paris.", _F + 6.4, "right")
    _arrows(ax)
    for room in ROOMS:
        _room(ax, room, day)
    _legend(ax, day)
    return fig


def _state(room_days: tuple[int, ...], day: int | None) -> str:
    if day is None or min(room_days) > day:
        return "coming"
    return "today" if day in room_days else "past"


def _room(ax: Any, room: Room, day: int | None) -> None:
    from matplotlib.patches import FancyBboxPatch

    state = _state(room.days, day)
    edge = {"today": ORANGE, "past": BLUE, "coming": "#B7C0CA"}[state]
    fill = {"today": TODAY_FILL, "past": PAST_FILL, "coming": "white"}[state]
    left, bottom = room.x - room.width / 2, room.y - ROOM_HEIGHT / 2
    box = FancyBboxPatch(
        (left, bottom),
        room.width,
        ROOM_HEIGHT,
        boxstyle="round,pad=0,rounding_size=1.1",
        facecolor=fill,
        edgecolor=edge,
        linewidth=1.8 if state == "today" else 1.0,
        zorder=3,
    )
    ax.add_patch(box)
    quiet = day is not None and state == "coming"
    weight = "bold" if state == "today" else "normal"
    color = GREY if quiet else INK
    ax.text(
        room.x,
        room.y + 1.6,
        room.name,
        ha="center",
        va="center",
        fontsize=8,
        weight=weight,
        color=color,
        zorder=4,
    )
    for index, number in enumerate(room.days):
        x = room.x + (index - (len(room.days) - 1) / 2) * 3.2
        _chip(ax, x, room.y - 1.6, str(number), _state((number,), day))


def _chip(ax: Any, x: float, y: float, text: str, state: str) -> None:
    """A day's number: filled when it is today or past, so that a room shows how far it is furnished."""
    fill = {"today": ORANGE, "past": BLUE, "coming": "white"}[state]
    edge = {"today": ORANGE, "past": BLUE, "coming": GREY}[state]
    ax.plot(
        x, y, "o", markersize=9.0, markerfacecolor=fill, markeredgecolor=edge, markeredgewidth=0.7, zorder=4
    )
    color = GREY if state == "coming" else "white"
    ax.text(x, y - 0.1, text, ha="center", va="center", fontsize=5.5, weight="bold", color=color, zorder=5)


def _frame(ax: Any, title: str, first: float, last: float, y: float, top: float | None = None) -> None:
    """A band behind the rooms of columns `first` to `last`, from the floor at `y` up to that at `top`."""
    from matplotlib.patches import FancyBboxPatch

    left, right = first - ROOM_WIDTH / 2 - 1.1, last + ROOM_WIDTH / 2 + 1.1
    bottom, upper = y - ROOM_HEIGHT / 2 - 1.0, (y if top is None else top) + ROOM_HEIGHT / 2 + 1.0
    ax.add_patch(
        FancyBboxPatch(
            (left, bottom),
            right - left,
            upper - bottom,
            boxstyle="round,pad=0,rounding_size=1.4",
            facecolor=FRAME_FILL,
            edgecolor=LIGHT,
            linewidth=0.8,
            zorder=1,
        )
    )
    # Above the frame's edge, small: a sign on the door, not a heading.
    ax.text(left + 0.6, upper + 0.5, title, fontsize=6.5, color=GREY, va="bottom", zorder=2)


def _bubble(ax: Any, text: str, x: float, side: str) -> None:
    ax.text(
        x,
        _TOP,
        text,
        ha=side,
        va="center",
        fontsize=8,
        style="italic",
        color=INK,
        bbox={"boxstyle": "round,pad=0.35", "facecolor": LIGHT, "edgecolor": "none"},
        zorder=3,
    )


def _arrows(ax: Any) -> None:
    side, half, frame = ROOM_WIDTH / 2, ROOM_HEIGHT / 2, 1.0
    _arrow(ax, (_A, _TOP - 1.6), (_A, _SERVE + half))
    for start, end in ((_A, _B), (_B, _C), (_C, _D)):
        _arrow(ax, (start + side, _SERVE), (end - side, _SERVE))
    _arrow(ax, (_D, _SERVE - half), (_D, _STEP + half))
    _arrow(ax, (_C + side, _STEP), (_D - side, _STEP))
    _arrow(ax, (_D, _STEP - half), (_D, _MODEL + half + frame))
    _arrow(ax, (_E, _MODEL + half + frame), (_E, _STEP - half))
    _arrow(ax, (_E, _STEP + half), (_E, _SERVE - half))
    _arrow(ax, (_E, _SERVE + half), (_E, _TOP - 1.6))
    # The loop that makes it generate: each sampled token goes back into the next step.
    bend = (_D + _E) / 2
    _line(ax, (_E - side, _STEP), (bend, _STEP), (bend, _SERVE))
    _arrow(ax, (bend, _SERVE), (_D + side, _SERVE))
    ax.text(bend + 0.6, (_STEP + _SERVE) / 2, "next token", fontsize=6, color=GREY, rotation=90, va="center")
    _arrow(ax, (_E + side + 1.1, _MODEL), (_F - side, _MODEL), both=True)
    _arrow(ax, (_A + side, _MODEL), (_B - side - 1.1, _MODEL))
    _arrow(ax, (_D, _KERNELS + half + frame), (_D, _MODEL - half - frame))
    for start, end in ((_B, _C), (_C, _D), (_D, _E), (_E, _F)):
        _arrow(ax, (start + side, _TRAIN), (end - side, _TRAIN))
    # Trained weights leave the workshop as checkpoints, and reach the model as they are or quantized.
    _line(ax, (_B - side - 1.1, _TRAIN), (_A, _TRAIN), (_A, _TRAIN + half))
    _arrow(ax, (_A, _TRAIN + half), (_A, _KERNELS - half))
    _arrow(ax, (_A, _KERNELS + half), (_A, _MODEL - half))


def _line(ax: Any, *points: tuple[float, float]) -> None:
    ax.plot([x for x, _ in points], [y for _, y in points], color=GREY, linewidth=1.0, zorder=2)


def _arrow(ax: Any, start: tuple[float, float], end: tuple[float, float], both: bool = False) -> None:
    style = {
        "arrowstyle": "<|-|>" if both else "-|>",
        "color": GREY,
        "linewidth": 1.0,
        "mutation_scale": 7,
        "shrinkA": 0,
        "shrinkB": 0,
    }
    ax.annotate("", xy=end, xytext=start, arrowprops=style, zorder=2)


def _legend(ax: Any, day: int | None) -> None:
    if day is None:
        ax.text(50.0, _TOP, "The numbers are days.", fontsize=7, color=GREY, ha="center", va="center")
        return
    for x, state, text in (
        (33.5, "today", f"day {day}"),
        (43.5, "past", "behind you"),
        (55.8, "coming", "to come"),
    ):
        _chip(ax, x, _TOP, "", state)
        ax.text(x + 1.6, _TOP - 0.1, text, fontsize=7, color=INK, va="center")
