"""Vector addition: c[i] = a[i] + b[i].

Shapes   a, b, c: (n,) of one floating-point type.
Program  BLOCK neighbors; the last one masks what lies behind n.
Grid     ceil(n / BLOCK).
Bytes    3 n elements: two read, one written. One addition for these, so memory alone decides the time.

Source: OpenAI, Triton tutorial 01, "Vector Addition"; Tillet, Kung and Cox, "Triton" (MAPL 2019).
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from course_lib.kernels.triton.backend import same_device


@triton.jit
def vector_add_kernel(a, b, c, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    # Added in float32, as the hardware does it; of bfloat16 the interpreter would add the bits.
    left, right = tl.load(a + i, inside).to(tl.float32), tl.load(b + i, inside).to(tl.float32)
    tl.store(c + i, left + right, inside)


def vector_add(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """a + b. ValueError if their shapes differ."""
    if a.shape != b.shape or a.dim() != 1:
        raise ValueError(f"a and b must be vectors of one length; got {tuple(a.shape)} and {tuple(b.shape)}.")
    same_device(a=a, b=b)
    a, b = a.contiguous(), b.contiguous()
    c = torch.empty_like(a)
    if len(a):
        vector_add_kernel[(triton.cdiv(len(a), 1024),)](a, b, c, len(a), BLOCK=1024)
    return c
