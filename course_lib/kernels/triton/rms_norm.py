"""RMS normalization of each row: y[i][j] = x[i][j] / sqrt(mean of x[i][0]^2 ... + eps) w[j].

Shapes   x, y: (rows, columns); w: (columns,); float32, float16 or bfloat16, computed in float32.
Program  a row, which stays in registers: x is read once.
Grid     rows.
Bytes    2 rows columns elements; w comes from the cache after the first rows.

Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019).
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from course_lib.kernels.triton.backend import block_of, same_device


@triton.jit
def rms_norm_kernel(x, w, y, columns, eps, BLOCK: tl.constexpr):
    j = tl.arange(0, BLOCK)
    row = tl.program_id(0).to(tl.int64) * columns
    value = tl.load(x + row + j, j < columns, other=0.0).to(tl.float32)
    weight = tl.load(w + j, j < columns, other=0.0).to(tl.float32)
    # What is masked adds nothing to the sum, and is not counted.
    scale = 1 / tl.sqrt(tl.sum(value * value, 0) / columns + eps)
    tl.store(y + row + j, value * scale * weight, j < columns)


def rms_norm(
    x: Float[Tensor, "rows columns"], weight: Float[Tensor, " columns"], eps: float = 1e-5
) -> Float[Tensor, "rows columns"]:
    """Rows scaled to a mean square of 1, then by `weight`."""
    same_device(x=x, weight=weight)
    x = x.contiguous()
    y = torch.empty_like(x)
    rows, columns = x.shape
    if x.numel():
        block = block_of(columns)
        warps = min(16, max(1, block // 512))
        rms_norm_kernel[(rows,)](x, weight.contiguous(), y, columns, eps, BLOCK=block, num_warps=warps)
    return y
