"""The learning rate as a function of the step."""

import math

from course_lib.parts import exercise


@exercise(day=4)
def cosine_schedule(step: int, peak: float, warmup: int, total: int, floor: float = 0.0) -> float:
    """The learning rate of a step: a straight line up to `peak`, half a cosine down to `floor`.

    Args:
        step: counts from 1, as `adamw_step`'s does.
        peak: the highest rate, reached at step `warmup` exactly.
        warmup: how many steps the line from 0 takes; with 0 there is none.
        total: the step that reaches `floor`; later ones stay there.
        floor: the lowest rate after the peak.

    Returns:
        A Python float.

    Raises:
        ValueError: not 0 <= warmup < total.

    Source: Loshchilov & Hutter (2017), "SGDR", equation 5, without restarts.
    """
    if not 0 <= warmup < total:
        raise ValueError(f"warmup {warmup} and total {total}: expected 0 <= warmup < total")
    if step < warmup:
        return peak * step / warmup
    progress = min((step - warmup) / (total - warmup), 1.0)  # 0 at the peak, 1 at the end
    return floor + (peak - floor) * (1 + math.cos(math.pi * progress)) / 2
