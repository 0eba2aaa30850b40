"""Matrix product: c[i][j] = a[i][0] b[0][j] + ... + a[i][depth-1] b[depth-1][j].

Shapes   a: (rows, depth), b: (depth, columns), c: (rows, columns), of any strides; float32, float16 or
         bfloat16, added up in float32. float32 is multiplied exactly, not as TF32.
Program  a tile of c, ROWS x COLUMNS; steps along the depth by DEPTH.
Grid     ceil(rows / ROWS) ceil(columns / COLUMNS), in bands of BAND tiles down.
Bytes    read: rows columns depth (1 / COLUMNS + 1 / ROWS) elements, where sizes are multiples of the tile.
         Programs that run side by side lie in one band, so that they find the same rows of a and columns of b
         in the L2 cache: the order of the programs is the whole trick.

Source: OpenAI, Triton tutorial 03, "Matrix Multiplication".
"""

import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from course_lib.kernels.triton.backend import INTERPRETED, same_device, tuned

# The first serves everywhere; the others are tried on a GPU, once for each size.
CONFIGS = [
    triton.Config({"ROWS": 32, "COLUMNS": 32, "DEPTH": 32, "BAND": 8}, num_warps=2, num_stages=3),
    triton.Config({"ROWS": 64, "COLUMNS": 64, "DEPTH": 32, "BAND": 8}, num_warps=4, num_stages=4),
    triton.Config({"ROWS": 128, "COLUMNS": 64, "DEPTH": 32, "BAND": 8}, num_warps=4, num_stages=4),
    triton.Config({"ROWS": 128, "COLUMNS": 128, "DEPTH": 32, "BAND": 8}, num_warps=8, num_stages=3),
    triton.Config({"ROWS": 128, "COLUMNS": 256, "DEPTH": 64, "BAND": 8}, num_warps=8, num_stages=3),
    triton.Config({"ROWS": 16, "COLUMNS": 64, "DEPTH": 64, "BAND": 8}, num_warps=4, num_stages=4),
]


@tuned(CONFIGS, key=["rows", "columns", "depth"])
@triton.jit
def matmul_kernel(
    a, b, c, rows, columns, depth,
    a_row, a_step, b_step, b_column, c_row, c_column,
    WIDEN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, BAND: tl.constexpr,
):  # fmt: skip
    down, across = tl.cdiv(rows, ROWS), tl.cdiv(columns, COLUMNS)
    # Programs are numbered down a band's first column of tiles, then down the next.
    program = tl.program_id(0)
    top = program // (BAND * across) * BAND
    height = tl.minimum(down - top, BAND)  # the last band may be lower
    within = program % (BAND * across)
    i = (top + within % height) * ROWS + tl.arange(0, ROWS)
    j = within // height * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.arange(0, DEPTH)
    i, j = i.to(tl.int64), j.to(tl.int64)  # a matrix may have more than 2^31 elements
    a_at = a + i[:, None] * a_row + k[None, :] * a_step
    b_at = b + k[:, None] * b_step + j[None, :] * b_column
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, depth, DEPTH):
        left = tl.load(a_at, (i[:, None] < rows) & (start + k[None, :] < depth), other=0.0)
        right = tl.load(b_at, (start + k[:, None] < depth) & (j[None, :] < columns), other=0.0)
        if WIDEN:
            left, right = left.to(tl.float32), right.to(tl.float32)
        total = tl.dot(left, right, total, input_precision="ieee")
        a_at += DEPTH * a_step
        b_at += DEPTH * b_step
    inside = (i[:, None] < rows) & (j[None, :] < columns)
    tl.store(c + i[:, None] * c_row + j[None, :] * c_column, total, inside)


def matmul(
    a: Float[Tensor, "rows depth"], b: Float[Tensor, "depth columns"]
) -> Float[Tensor, "rows columns"]:
    """a @ b. ValueError if they do not fit."""
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0] or a.dtype != b.dtype:
        raise ValueError(
            f"a and b must be matrices of one type, a as wide as b is high; got {tuple(a.shape)} of "
            f"{a.dtype} and {tuple(b.shape)} of {b.dtype}."
        )
    same_device(a=a, b=b)
    (rows, depth), columns = a.shape, b.shape[1]
    c = a.new_empty(rows, columns)
    if c.numel():

        def grid(chosen: dict[str, int]) -> tuple[int]:
            return (triton.cdiv(rows, chosen["ROWS"]) * triton.cdiv(columns, chosen["COLUMNS"]),)

        strides = (*a.stride(), *b.stride(), *c.stride())
        # The interpreter multiplies blocks of bfloat16 wrongly, and says nothing: it is given float32.
        matmul_kernel[grid](a, b, c, rows, columns, depth, *strides, WIDEN=INTERPRETED)
    return c
