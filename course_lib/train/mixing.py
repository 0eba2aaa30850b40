"""Which of several sources comes next, so that each has its share at every moment of a run."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64


def mix(weights: Sequence[float], count: int) -> Int64[np.ndarray, " count"]:
    """The source of each of `count` documents or windows, without chance.

    Each time the source that is furthest behind its share is next (the first of several). So after any
    number of steps a source's count is close to its share of them, where drawing at random would wander off
    like a root; and the order needs no state but the step, so that a run resumes anywhere.

    Args:
        weights: not negative, at least one of them positive; they need not sum to 1.
        count: how many to choose.

    Raises:
        ValueError: a weight is negative or not finite, or all are 0.
    """
    share = np.asarray(weights, dtype=np.float64)
    if not (np.isfinite(share).all() and (share >= 0).all() and share.sum() > 0):
        raise ValueError(f"weights {list(weights)}: expected numbers of 0 or more, and one above 0")
    share = share / share.sum()
    taken = np.zeros(len(share))
    order = np.empty(count, dtype=np.int64)
    for step in range(count):
        order[step] = np.argmax(share * (step + 1) - taken)
        taken[order[step]] += 1
    return order
