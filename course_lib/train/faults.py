"""How often a long run should save its state, when something breaks every few hours."""

import math


def checkpoint_interval(save_seconds: float, mtbf_seconds: float) -> float:
    """The seconds of work between two checkpoints at which the least time is lost.

    Args:
        save_seconds: how long the run stands still for a checkpoint.
        mtbf_seconds: mean time between failures, much longer than save_seconds.

    Source: Young (1974), "A first order approximation to the optimum checkpoint interval".
    """
    if not 0 < save_seconds < mtbf_seconds:
        raise ValueError(f"save {save_seconds} s, failures every {mtbf_seconds} s: expected 0 < save < mtbf")
    return math.sqrt(2 * save_seconds * mtbf_seconds)


def lost_share(
    interval: float, save_seconds: float, mtbf_seconds: float, restart_seconds: float = 0
) -> float:
    """Which share of the time is not progress: saving, work done twice, and starting again.

    First order: a failure costs half an interval on average, and a restart; failures while saving or
    restarting are left out. `checkpoint_interval` minimizes it.
    """
    return save_seconds / interval + (interval / 2 + restart_seconds) / mtbf_seconds
