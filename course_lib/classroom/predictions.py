"""Estimates before measurements: `predict("decode tok/s", 40)`, then, in the cell that measures,
`measured(…)`.

The error is counted in powers of two, log2(measured / predicted): +1 means that the truth is twice the
estimate. Knowing a number to within one power of two before running anything is the skill that the course
trains.
"""

import math
from typing import Any


def error(predicted: float, measured: float) -> float | None:
    """log2(measured / predicted); None where one of them is zero or their signs differ and a ratio says
    nothing.
    """
    if predicted == measured:
        return 0.0
    ratio = measured / predicted if predicted else 0.0
    return math.log2(ratio) if ratio > 0 and math.isfinite(ratio) else None


def say(value: float) -> str:
    """A number for people: 3 significant digits, thousands with commas, 1.2e+09 only where it must be."""
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"


def verdict(predicted: float, measured: float) -> str:
    """One sentence about an estimate and its measurement."""
    off = error(predicted, measured)
    said = f"You said {say(predicted)}, measured {say(measured)}"
    if off is None:
        return f"{said}: no ratio to speak of."
    if abs(off) < 0.05:
        return f"{said}: right on."
    factor = 2 ** abs(off)
    times = f"{factor:.2f}" if factor < 10 else say(factor)
    direction = "low" if off > 0 else "high"
    return f"{said}: {times} times too {direction}."


def errors(progress: dict[str, Any]) -> list[float]:
    """The errors of all estimates that have been measured, in the order they were made."""
    entries = sorted(progress["predictions"].values(), key=lambda entry: entry.get("at") or "")
    found = (error(e["predicted"], e["measured"]) for e in entries if e.get("measured") is not None)
    return [off for off in found if off is not None]
