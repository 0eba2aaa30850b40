"""What an operation costs before anyone runs it: arithmetic done, bytes moved, and their ratio."""

from typing import NamedTuple

from course_lib.parts import exercise


class MatmulCost(NamedTuple):
    """Cost of one matrix product; `intensity` decides which limit of the machine it meets first."""

    flops: int  # multiplications and additions
    bytes: float  # read and written, each matrix once
    intensity: float  # FLOPs a byte


@exercise(day=1)
def matmul_cost(
    m: int,
    k: int,
    n: int,
    weight_bytes: float = 2,
    activation_bytes: float = 2,
) -> MatmulCost:
    """FLOPs and bytes of (m, k) activations @ (k, n) weights -> (m, n) activations.

    Each of the m * n outputs takes k multiplications and, by custom, k additions. The bytes are
    the least possible: each matrix crosses the memory bus once, as with a perfect cache.

    Args:
        m, k, n: sizes, 1 or more; m is the number of tokens computed together.
        weight_bytes: bytes a weight: 4 in float32, 2 in bfloat16, 0.5 in 4 bits.
        activation_bytes: bytes an entry of the other two matrices.

    Raises:
        ValueError: a size is below 1.

    Source: Williams, Waterman & Patterson (2009), "Roofline".
    """
    if min(m, k, n) < 1:
        raise ValueError(f"matrix sizes must be 1 or more; got m={m}, k={k}, n={n}")
    flops = 2 * m * k * n
    moved = weight_bytes * k * n + activation_bytes * (m * k + m * n)
    return MatmulCost(flops, moved, flops / moved)
