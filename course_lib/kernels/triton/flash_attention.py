"""Attention without the matrix of scores (FlashAttention-2, forward), with grouped heads: query head h reads
key and value head h / (H / K).

Shapes   q, out: (batch, H, queries, D); k, v: (batch, K, keys, D); lse: (batch, H, queries) float32, the
         logarithm of each row's sum of exp(score). float32, float16 or bfloat16, added up in float32.
Causal   the queries are the last ones of the keys: query i sees keys 0 to keys - queries + i.
Program  ROWS queries of a head; passes over tiles of COLUMNS keys, and stops at the diagonal.
Grid     (ceil(queries / ROWS), batch H).
Elements a head: queries D of q read, as many of out written, and queries of lse; of k and of v each about
         keys (queries + ROWS) D / (2 ROWS) if causal and queries = keys, else keys queries D / ROWS.

Exponentials are of base 2, which is what the hardware has: scores are scaled by log2(e), and the logarithm is
scaled back.

Source: T. Dao, "FlashAttention-2" (2023), algorithm 1; OpenAI, Triton tutorial 06, "Fused Attention".
"""

import math

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from course_lib.kernels.triton.backend import INTERPRETED, block_of, same_device, tuned

CONFIGS = [
    triton.Config({"ROWS": 32, "COLUMNS": 32}, num_warps=4, num_stages=2),
    triton.Config({"ROWS": 64, "COLUMNS": 64}, num_warps=4, num_stages=3),
    triton.Config({"ROWS": 128, "COLUMNS": 64}, num_warps=8, num_stages=3),
    triton.Config({"ROWS": 128, "COLUMNS": 128}, num_warps=8, num_stages=2),
]


@tuned(CONFIGS, key=["queries", "keys", "width"])
@triton.jit
def flash_attention_kernel(
    q, k, v, out, lse, heads, kv_heads, queries, keys, width, scale,
    CAUSAL: tl.constexpr, WIDEN: tl.constexpr, D: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(1).to(tl.int64)  # of all texts
    kv_head = head // heads * kv_heads + head % heads // (heads // kv_heads)
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, D)
    rows = head * queries + i[:, None]
    asked = (i[:, None] < queries) & (d[None, :] < width)
    query = tl.load(q + rows * width + d[None, :], asked, other=0.0)
    if WIDEN:
        query = query.to(tl.float32)
    last = keys - queries + i  # the last key that a row may see
    end = keys
    if CAUSAL:
        end = tl.minimum(keys, keys - queries + (tl.program_id(0) + 1) * ROWS)
    highest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, D), tl.float32)
    for start in range(0, end, COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        at = (kv_head * keys + j[:, None]) * width + d[None, :]
        inside = (j[:, None] < end) & (d[None, :] < width)
        key, value = tl.load(k + at, inside, other=0.0), tl.load(v + at, inside, other=0.0)
        if WIDEN:
            key, value = key.to(tl.float32), value.to(tl.float32)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        seen = j[None, :] < keys
        if CAUSAL:
            seen = j[None, :] <= last[:, None]
        score = tl.where(seen, score, float("-inf"))
        # Every row sees key 0, so that no maximum is -inf after the first tile.
        higher = tl.maximum(highest, tl.max(score, 1))
        weight = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(highest - higher)
        total = total * shrink + tl.sum(weight, 1)
        mixed = tl.dot(weight.to(value.dtype), value, mixed * shrink[:, None], input_precision="ieee")
        highest = higher
    tl.store(out + rows * width + d[None, :], mixed / total[:, None], asked)
    LN_2: tl.constexpr = 0.6931471805599453
    tl.store(lse + head * queries + i, (highest + tl.log2(total)) * LN_2, i < queries)


def flash_attention(
    q: Float[Tensor, "batch H queries D"],
    k: Float[Tensor, "batch K keys D"],
    v: Float[Tensor, "batch K keys D"],
    causal: bool = True,
    scale: float | None = None,
) -> tuple[Float[Tensor, "batch H queries D"], Float[Tensor, "batch H queries"]]:
    """softmax(scale q kᵀ) v, and each row's log-sum-exp; scale is 1/sqrt(D) if None.

    Raises:
        ValueError: shapes do not fit, or there are more queries than keys though it is causal.
    """
    (batch, heads, queries, width), (_, kv_heads, keys, _) = q.shape, k.shape
    if k.shape != v.shape or k.shape != (batch, kv_heads, keys, width) or heads % kv_heads or not keys:
        raise ValueError(
            f"the shapes do not fit: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}."
        )
    if causal and queries > keys:
        raise ValueError(f"{queries} queries cannot be the last ones of {keys} keys: pass causal=False.")
    same_device(q=q, k=k, v=v)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = torch.empty(batch, heads, queries, dtype=torch.float32, device=q.device)
    if q.numel():

        def grid(chosen: dict[str, int]) -> tuple[int, int]:
            return triton.cdiv(queries, chosen["ROWS"]), batch * heads

        scale = (1 / math.sqrt(width) if scale is None else scale) * math.log2(math.e)
        arrays = (q.contiguous(), k.contiguous(), v.contiguous(), out, lse)
        flash_attention_kernel[grid](
            *arrays, heads, kv_heads, queries, keys, width, scale,
            CAUSAL=causal, WIDEN=INTERPRETED, D=block_of(width),
        )  # fmt: skip
    return out, lse
