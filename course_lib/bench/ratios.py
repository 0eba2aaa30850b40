"""Comparing two runners on a machine that others use, too."""

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median over the rounds of above[i] / below[i].

    What slows a machine down for a while slows both sides of a round. So the ratio is taken within each
    round, and of the ratios the one in the middle: a single disturbed round does not count.
    """
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def steepest_growth(times: Mapping[int, float]) -> float:
    """By how much the time grows faster than the size, at worst: 1 is linear, below is better.

    `times` are seconds (or any unit) by size, in ascending order. Between two neighbors the time's ratio is
    divided by the size's.
    """
    return max((t2 / t1) / (n2 / n1) for (n1, t1), (n2, t2) in pairwise(times.items()))
