"""Softmax of each row: y[i][j] = exp(x[i][j] - max_i) / sum_i, where sum_i adds exp(x[i][j] - max_i) over j.

Shapes   x, y: (rows, columns); float32, float16 or bfloat16, computed in float32.
Program  a row.
Grid     rows.

kernel               bytes of x read  what it does
softmax_kernel       once             the whole row stays in registers: up to 16 384 columns
softmax_long_kernel  twice            block by block: first maximum and sum together (when the maximum
                                      rises, the sum so far shrinks), then the quotients

Source: OpenAI, Triton tutorial 02, "Fused Softmax"; M. Milakov and N. Gimelshein, "Online normalizer
calculation for softmax" (2018).
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from course_lib.kernels.triton.backend import block_of, same_device

IN_REGISTERS = 16384


@triton.jit
def softmax_kernel(x, y, columns, BLOCK: tl.constexpr):
    j = tl.arange(0, BLOCK)
    row = tl.program_id(0).to(tl.int64) * columns
    value = tl.load(x + row + j, j < columns, other=float("-inf")).to(tl.float32)
    weight = tl.exp(value - tl.max(value, 0))
    tl.store(y + row + j, weight / tl.sum(weight, 0), j < columns)


@triton.jit
def softmax_long_kernel(x, y, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * columns
    highest, total = float("-inf"), 0.0
    for start in range(0, columns, BLOCK):
        j = start + tl.arange(0, BLOCK)
        value = tl.load(x + row + j, j < columns, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(highest, tl.max(value, 0))
        total = total * tl.exp(highest - higher) + tl.sum(tl.exp(value - higher), 0)
        highest = higher
    for start in range(0, columns, BLOCK):
        j = start + tl.arange(0, BLOCK)
        value = tl.load(x + row + j, j < columns, other=0.0).to(tl.float32)
        tl.store(y + row + j, tl.exp(value - highest) / total, j < columns)


def softmax(
    x: Float[Tensor, "rows columns"], in_registers: int = IN_REGISTERS
) -> Float[Tensor, "rows columns"]:
    """Softmax along the last axis. Rows of more than `in_registers` numbers are read twice."""
    same_device(x=x)
    x = x.contiguous()
    y = torch.empty_like(x)
    rows, columns = x.shape
    if not x.numel():
        return y
    if columns <= in_registers:
        block = block_of(columns)
        softmax_kernel[(rows,)](x, y, columns, BLOCK=block, num_warps=min(16, max(1, block // 512)))
    else:
        softmax_long_kernel[(rows,)](x, y, columns, BLOCK=min(4096, in_registers), num_warps=8)
    return y
