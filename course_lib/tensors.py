"""Shapes, strides and views: how an array of any rank lies in one row of memory.

NumPy and einops. `split_heads` and `merge_heads` are the layout of attention: they take NumPy, PyTorch
and MLX arrays alike, because einops does.
"""

from typing import TypeVar

import numpy as np
from einops import rearrange
from jaxtyping import Shaped

from course_lib.parts import exercise

Array = TypeVar("Array")  # a NumPy array, a torch tensor or an MLX array: the one that came in


@exercise(day=2)
def broadcast_shapes(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that arrays of these shapes have together, by NumPy's rules of broadcasting.

    Shapes are aligned at the right; a missing axis counts as 1, an axis of length 1 stretches to
    the others' length, and any two other lengths must be equal. Lengths of 0 are lengths like any
    other: 1 stretches to 0, and 3 does not. Of no shapes at all, the result is ().

    Raises:
        ValueError: two lengths on the same axis differ and neither is 1.

    Source: NumPy user guide, "Broadcasting".
    """
    rank = max((len(shape) for shape in shapes), default=0)
    result = [1] * rank
    for shape in shapes:
        for axis, length in enumerate(shape, start=rank - len(shape)):
            if result[axis] == 1:
                result[axis] = length
            elif length not in (1, result[axis]):
                raise ValueError(f"{shapes} do not broadcast: {length} meets {result[axis]}")
    return tuple(result)


@exercise(day=2)
def contiguous_strides(shape: tuple[int, ...], itemsize: int = 1) -> tuple[int, ...]:
    """Strides of an array whose entries lie in memory without gaps, the last axis varying fastest.

    Args:
        shape: lengths of the axes. A length of 0 is reckoned as 1, as PyTorch does.
        itemsize: bytes an entry, for NumPy's strides in bytes; 1 gives PyTorch's, in entries.

    Returns:
        One number an axis: how far the address moves if that index grows by 1.
    """
    strides = []
    step = itemsize
    for length in reversed(shape):
        strides.append(step)
        step *= max(length, 1)
    return tuple(reversed(strides))


@exercise(day=2)
def split_heads(x: Shaped[Array, "... t width"], heads: int) -> Shaped[Array, "... heads t d"]:
    """Cut each token's vector into `heads` equal pieces, and put the heads before the tokens.

    t counts tokens, and d is width / heads. Piece h holds the entries h * d to (h + 1) * d of the
    vector. Any leading axes stay. On a NumPy array this is a view: nothing is copied.

    Raises:
        einops.EinopsError: `heads` does not divide the width.

    Source: Vaswani et al. (2017), section 3.2.2.
    """
    return rearrange(x, "... t (h d) -> ... h t d", h=heads)


@exercise(day=2)
def merge_heads(x: Shaped[Array, "... heads t d"]) -> Shaped[Array, "... t width"]:
    """Put the heads' pieces of each token next to one another again: the inverse of `split_heads`.

    Any leading axes stay, and the width is heads * d.
    """
    return rearrange(x, "... h t d -> ... t (h d)")


@exercise(day=2)
def sliding_windows(
    x: Shaped[np.ndarray, "... n"], size: int, step: int = 1
) -> Shaped[np.ndarray, "... windows size"]:
    """All windows of `size` entries along the last axis, each `step` after the one before; no copy.

    Args:
        x: any strides, any leading axes.
        size: entries a window, from 1 to n.
        step: 1 or more. What is left at the end and fills no window is dropped.

    Returns:
        A read-only view of x's memory, of shape (..., (n - size) // step + 1, size). Read-only,
        because windows overlap: whoever wrote into one would write into its neighbors.

    Raises:
        ValueError: `size` is not in 1..n, or `step` is below 1. Strides are not checked by NumPy,
            and a wrong view reads whatever lies behind the array.
    """
    n = x.shape[-1]
    if not 1 <= size <= n or step < 1:
        raise ValueError(f"size {size} and step {step}: expected 1 <= size <= {n} and step >= 1")
    windows = (n - size) // step + 1
    along = x.strides[-1]
    return np.lib.stride_tricks.as_strided(
        x,
        shape=(*x.shape[:-1], windows, size),
        strides=(*x.strides[:-1], step * along, along),
        writeable=False,
    )
