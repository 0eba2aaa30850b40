"""The one house style for figures: same fonts, colors, sizes and grid in all thirty days.

    fig, ax = figure()                                  # one plot, as wide as a line of prose
    fig, (left, right) = figure(height=2.6, cols=2)     # two side by side

Matplotlib is imported at the first call, so that importing a lesson's set-up cell stays fast.
"""

from collections.abc import Sequence
from typing import Any

# A palette that stays apart for the common kinds of color blindness (after Okabe and Ito, 2008), each color
# dark enough on white to be read as a thin line (contrast 3:1 or more; INK and BLUE also as small text).
INK = "#1F2A37"
BLUE = "#0F6CA8"
ORANGE = "#D97B06"
GREEN = "#0B8F6A"
RED = "#B3203F"
GREY = "#7A8694"
# Fills, not lines: the color of what is there but not the point.
LIGHT = "#E6EBF0"

# Any: Matplotlib types the keys as one long Literal, which a dict of strings does not match.
STYLE: Any = {
    # White and opaque: a figure must be readable on JupyterLab's dark page too.
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.dpi": 100,
    # DejaVu ships inside Matplotlib: the same picture on every machine.
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8.0,
    "axes.labelsize": 9.0,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": GREY,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": LIGHT,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "patch.edgecolor": "white",
    "patch.linewidth": 0.8,
    "image.cmap": "Blues",
    "image.interpolation": "nearest",
    # Without a salt and a type of its own, the same SVG differs between two builds.
    "svg.hashsalt": "course",
    "svg.fonttype": "path",
}


def figure(
    width: float = 7.0, height: float = 3.0, rows: int = 1, cols: int = 1, **subplots: Any
) -> tuple[Any, Any]:
    """Start a figure in the house style.

    Parameters are inches (7 is the width of a lesson's column) and numbers of panels; further keywords go to
    `plt.subplots` (`sharey=True`, `width_ratios=[2, 1]`). Returns `(fig, ax)`: `ax` is one Axes, or an array
    of them, of shape (cols,), (rows,) or (rows, cols), where there is more than one panel.
    """
    import matplotlib.pyplot as plt

    _sharp_in_notebooks()
    colors = [BLUE, ORANGE, GREEN, RED, GREY, INK]
    plt.rcParams.update(STYLE, **{"axes.prop_cycle": plt.cycler(color=colors)})
    return plt.subplots(rows, cols, figsize=(width, height), layout="constrained", **subplots)


def _sharp_in_notebooks() -> None:
    """Ask the notebook's display for twice the pixels at the same size; elsewhere there is nothing to ask."""
    import sys

    if "IPython" not in sys.modules:
        return
    from IPython import get_ipython

    shell = get_ipython()
    if shell is not None and getattr(shell, "kernel", None) is not None:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("retina")


def bare(ax: Any) -> Any:
    """Take spines, ticks and grid away, for drawings that are not plots. Returns the same Axes."""
    ax.set_axis_off()
    ax.grid(False)
    return ax


def cells(
    ax: Any,
    texts: Sequence[object],
    x: float = 0.0,
    y: float = 0.0,
    widths: float | Sequence[float] = 1.0,
    colors: str | Sequence[str] = LIGHT,
    height: float = 0.8,
    size: float = 8.0,
) -> list[float]:
    """Draw a row of labeled boxes: bytes of a string, tokens of a sentence, slots of a memory.

    The first box starts at `x`; `y` is the row's middle, `widths` are in data units, one number or one a box,
    and `colors` likewise. Returns the x of each box's middle, so that arrows and captions can point at it.
    Set the limits and `bare(ax)` afterwards.
    """
    from matplotlib.patches import Rectangle

    each_width = [widths] * len(texts) if isinstance(widths, (int, float)) else list(widths)
    each_color = [colors] * len(texts) if isinstance(colors, str) else list(colors)
    if not len(texts) == len(each_width) == len(each_color):
        raise ValueError(
            f"cells() was given {len(texts)} texts, {len(each_width)} widths and {len(each_color)} colors; "
            "give one of each a box, or a single number and a single color for all."
        )
    middles = []
    for text, width, color in zip(texts, each_width, each_color, strict=True):
        box = Rectangle((x, y - height / 2), width, height, facecolor=color, edgecolor="white", linewidth=1.2)
        ax.add_patch(box)
        ax.text(x + width / 2, y, str(text), ha="center", va="center", fontsize=size, color=text_on(color))
        middles.append(x + width / 2)
        x += width
    return middles


def text_on(color: str) -> str:
    """The palette's color for text on a fill: INK on light fills, white on dark ones."""
    return "white" if luminance(color) < 0.3 else INK


def luminance(color: str) -> float:
    """Relative luminance of a color, 0 (black) to 1 (white), as WCAG 2.1 defines it."""
    from matplotlib.colors import to_rgb

    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def save_svg(fig: Any, path: Any) -> None:
    """Write a figure as SVG, byte for byte the same each time: no date, ids from a fixed salt."""
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        fig.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
