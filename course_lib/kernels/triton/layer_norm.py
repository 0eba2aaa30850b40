"""Layer normalization of each row: y[i][j] = (x[i][j] - mean_i) / sqrt(variance_i + eps) w[j] + b[j].

Shapes   x, y: (rows, columns); w, b: (columns,); float32, float16 or bfloat16, computed in float32.
Program  a row, block by block: one pass for mean and variance, one that writes.
Grid     rows.
Bytes    x is read twice (the second time from the cache, if a row fits there), y written once.

The pass keeps three numbers of what it has seen: how many values, their mean, and the sum of their squared
distances to it. A block's own three are exact to rounding, since they are taken around the block's mean; two
sets combine by Chan's formula. Sums of x and of x^2 would be simpler, but at a mean of 1e4 float32 loses
every digit of the variance: 1e4^2 + 1 is 1e8.

Source: Ba, Kiros and Hinton, "Layer Normalization" (2016); B. P. Welford (1962); Chan, Golub and LeVeque,
"Updating Formulae and a Pairwise Algorithm for Computing Sample Variances" (1979).
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from course_lib.kernels.triton.backend import block_of, same_device


@triton.jit
def layer_norm_kernel(x, w, b, y, columns, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * columns
    seen, mean, squares = 0.0, 0.0, 0.0
    for start in range(0, columns, BLOCK):
        j = start + tl.arange(0, BLOCK)
        value = tl.load(x + row + j, j < columns, other=0.0).to(tl.float32)
        count = tl.minimum(columns - start, BLOCK).to(tl.float32)
        block_mean = tl.sum(value, 0) / count
        distance = tl.where(j < columns, value - block_mean, 0.0)
        apart, total = block_mean - mean, seen + count
        mean += apart * (count / total)
        squares += tl.sum(distance * distance, 0) + apart * apart * (seen * count / total)
        seen = total
    scale = 1 / tl.sqrt(squares / columns + eps)
    for start in range(0, columns, BLOCK):
        j = start + tl.arange(0, BLOCK)
        value = tl.load(x + row + j, j < columns, other=0.0).to(tl.float32)
        weight = tl.load(w + j, j < columns, other=0.0).to(tl.float32)
        bias = tl.load(b + j, j < columns, other=0.0).to(tl.float32)
        tl.store(y + row + j, (value - mean) * scale * weight + bias, j < columns)


def layer_norm(
    x: Float[Tensor, "rows columns"],
    weight: Float[Tensor, " columns"],
    bias: Float[Tensor, " columns"],
    eps: float = 1e-5,
    block: int = 4096,
) -> Float[Tensor, "rows columns"]:
    """Rows of mean 0 and variance 1, then scaled and shifted. `block` numbers are taken at a time."""
    same_device(x=x, weight=weight, bias=bias)
    x = x.contiguous()
    y = torch.empty_like(x)
    rows, columns = x.shape
    if x.numel():
        block = min(block, block_of(columns))
        arrays = (x, weight.contiguous(), bias.contiguous(), y)
        warps = min(16, max(1, block // 512))
        layer_norm_kernel[(rows,)](*arrays, columns, eps, BLOCK=block, num_warps=warps)
    return y
