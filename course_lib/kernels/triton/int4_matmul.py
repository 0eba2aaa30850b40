"""Product with weights of 4 bits in groups: y = x Wᵀ, W[n][k] = (code[n][k] - 8) scale[n][g] + middle[n][g].

Shapes   x: (tokens, depth) float32, float16 or bfloat16; codes: (outputs, depth / 2) uint8, column 2i in the
         low half of byte i and 2i + 1 in the high half; scale, middle: (outputs, groups);
         y: (tokens, outputs).
         The layout of course_lib.quant.Int4Linear(fast=False); g = k / GROUP, and depth = groups GROUP.
Program  a tile of y, TOKENS x OUTPUTS; a step is one group.
Grid     (ceil(outputs / OUTPUTS), ceil(tokens / TOKENS)).
Bytes    a weight: 1/2 for its code and 2 / GROUP numbers for scale and middle, once for each TOKENS tokens.

A group's scale and middle come out of the sum over its columns, so the dot product is of x and codes:
scale (sum of x (code - 8)) + middle (sum of x). Even columns meet the low halves, odd ones the high halves:
the codes are never put back in order.

Source: Frantar et al., "GPTQ" (2022), section 4; Lin et al., "AWQ" (2023), section 4.
"""

import triton
import triton.language as tl
from jaxtyping import Float, UInt8
from torch import Tensor

from course_lib.kernels.triton.backend import INTERPRETED, same_device, tuned

CONFIGS = [
    triton.Config({"TOKENS": 16, "OUTPUTS": 32}, num_warps=2, num_stages=3),
    triton.Config({"TOKENS": 16, "OUTPUTS": 64}, num_warps=4, num_stages=4),
    triton.Config({"TOKENS": 16, "OUTPUTS": 128}, num_warps=4, num_stages=4),
    triton.Config({"TOKENS": 64, "OUTPUTS": 64}, num_warps=4, num_stages=3),
]


@tuned(CONFIGS, key=["tokens", "outputs", "groups"])
@triton.jit
def int4_matmul_kernel(
    x, codes, scale, middle, y, tokens, outputs, groups,
    WIDEN: tl.constexpr, GROUP: tl.constexpr,
    TOKENS: tl.constexpr, OUTPUTS: tl.constexpr,
):  # fmt: skip
    PAIRS: tl.constexpr = GROUP // 2
    n = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    t = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    pair = tl.arange(0, PAIRS)
    n, t = n.to(tl.int64), t.to(tl.int64)
    x_at = x + t[:, None] * (groups * GROUP) + 2 * pair[None, :]
    codes_at = codes + n[None, :] * (groups * PAIRS) + pair[:, None]
    total = tl.zeros((TOKENS, OUTPUTS), tl.float32)
    for group in range(groups):
        even = tl.load(x_at, t[:, None] < tokens, other=0.0)
        odd = tl.load(x_at + 1, t[:, None] < tokens, other=0.0)
        both = tl.load(codes_at, n[None, :] < outputs, other=0).to(tl.int32)  # (PAIRS, OUTPUTS)
        if WIDEN:
            even, odd = even.to(tl.float32), odd.to(tl.float32)
        low, high = ((both & 15) - 8).to(even.dtype), ((both >> 4) - 8).to(even.dtype)
        products = tl.dot(odd, high, tl.dot(even, low, input_precision="ieee"), input_precision="ieee")
        sums = tl.sum(even.to(tl.float32) + odd.to(tl.float32), 1)
        at = n * groups + group
        scales = tl.load(scale + at, n < outputs, other=0.0).to(tl.float32)
        middles = tl.load(middle + at, n < outputs, other=0.0).to(tl.float32)
        total += products * scales[None, :] + sums[:, None] * middles[None, :]
        x_at += GROUP
        codes_at += PAIRS
    inside = (t[:, None] < tokens) & (n[None, :] < outputs)
    tl.store(y + t[:, None] * outputs + n[None, :], total, inside)


def int4_matmul(
    x: Float[Tensor, "tokens depth"],
    codes: UInt8[Tensor, "outputs pairs"],
    scale: Float[Tensor, "outputs groups"],
    middle: Float[Tensor, "outputs groups"],
) -> Float[Tensor, "tokens outputs"]:
    """x times the transpose of the weight that these stand for. ValueError if they do not fit."""
    (tokens, depth), (outputs, groups) = x.shape, scale.shape
    group = depth // max(1, groups)
    if codes.shape != (outputs, depth // 2) or middle.shape != scale.shape or group * groups != depth:
        raise ValueError(
            f"the shapes do not fit: x {tuple(x.shape)}, codes {tuple(codes.shape)}, scale "
            f"{tuple(scale.shape)}, middle {tuple(middle.shape)}; a row of codes has depth / 2 bytes."
        )
    if group < 32 or group & (group - 1):
        raise ValueError(f"a group has {group} columns; it must be a power of two, 32 or more.")
    same_device(x=x, codes=codes, scale=scale, middle=middle)
    y = x.new_empty(tokens, outputs)
    if y.numel():

        def grid(chosen: dict[str, int]) -> tuple[int, int]:
            return triton.cdiv(outputs, chosen["OUTPUTS"]), triton.cdiv(tokens, chosen["TOKENS"])

        arrays = (x.contiguous(), codes.contiguous(), scale.contiguous(), middle.contiguous(), y)
        int4_matmul_kernel[grid](*arrays, tokens, outputs, groups, WIDEN=INTERPRETED, GROUP=group)
    return y
