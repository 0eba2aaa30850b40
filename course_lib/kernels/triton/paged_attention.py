"""Attention of one new token a text (decoding) over keys and values that lie in blocks of a pool: token j of
text i is row j % size of block tables[i][j / size].

Shapes   q, out: (texts, H, D); keys, values: (blocks, size, K, D); tables: (texts, most) and lengths:
         (texts,), integers. float32, float16 or bfloat16, added up in float32.
Program  a group of G = H / K query heads of a text, over a part of its tokens, TOKENS at a time: what it
         reads of a key serves all of the group.
Grid     (texts, K, parts). A long text is shared out in parts, so that few texts fill a GPU.
Elements of keys and of values: K D for each token seen, once. A token's arithmetic is small: these bytes are
         the time. The parts write parts H (D + 1) numbers a text more, which torch merges.

Source: Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention"
(2023), section 4; Dao et al., "Flash-Decoding" (2023), for the parts.
"""

import math

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from course_lib.kernels.triton.backend import INTERPRETED, block_of, same_device, tuned

CONFIGS = [
    triton.Config({"TOKENS": 32}, num_warps=2, num_stages=3),
    triton.Config({"TOKENS": 64}, num_warps=4, num_stages=3),
    triton.Config({"TOKENS": 128}, num_warps=4, num_stages=2),
]


@tuned(CONFIGS, key=["size", "width", "group"])
@triton.jit
def paged_attention_kernel(
    q, keys, values, tables, lengths, outs, lses,
    most, size, width, group, window, scale,
    WIDEN: tl.constexpr, D: tl.constexpr, G: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    text, kv_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    texts, kv_heads, parts = tl.num_programs(0), tl.num_programs(1), tl.num_programs(2)
    length = tl.load(lengths + text).to(tl.int32)
    first = tl.maximum(length - window, 0)  # what the window shows
    share = tl.cdiv(length - first, parts)
    begin = first + part * share
    end = tl.minimum(begin + share, length)
    g, d = tl.arange(0, G), tl.arange(0, D)
    head = (text * kv_heads + kv_head) * group + g
    inside = (g[:, None] < group) & (d[None, :] < width)
    query = tl.load(q + head[:, None] * width + d[None, :], inside, other=0.0)
    if WIDEN:
        query = query.to(tl.float32)
    highest = tl.full((G,), float("-inf"), tl.float32)
    total = tl.zeros((G,), tl.float32)
    mixed = tl.zeros((G, D), tl.float32)
    for start in range(begin, end, TOKENS):
        j = start + tl.arange(0, TOKENS)
        block = tl.load(tables + text * most + j // size, j < end, other=0).to(tl.int64)  # a pool is large
        row = ((block * size + j % size) * kv_heads + kv_head) * width
        there = (j[:, None] < end) & (d[None, :] < width)
        key = tl.load(keys + row[:, None] + d[None, :], there, other=0.0)
        value = tl.load(values + row[:, None] + d[None, :], there, other=0.0)
        if WIDEN:
            key, value = key.to(tl.float32), value.to(tl.float32)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        score = tl.where(j[None, :] < end, score, float("-inf"))
        higher = tl.maximum(highest, tl.max(score, 1))
        weight = tl.exp2(score - higher[:, None])
        shrink = tl.exp2(highest - higher)
        total = total * shrink + tl.sum(weight, 1)
        mixed = tl.dot(weight.to(value.dtype), value, mixed * shrink[:, None], input_precision="ieee")
        highest = higher
    # A part without tokens: zeros, which weigh exp(-inf).
    row = part * (texts * kv_heads * group) + head
    some = tl.where(total > 0, total, 1.0)
    tl.store(outs + row[:, None] * width + d[None, :], mixed / some[:, None], inside)
    LN_2: tl.constexpr = 0.6931471805599453
    tl.store(lses + row, (highest + tl.log2(some)) * LN_2, g < group)


def paged_attention(
    query: Float[Tensor, "texts H D"],
    keys: Float[Tensor, "blocks size K D"],
    values: Float[Tensor, "blocks size K D"],
    block_tables: Int[Tensor, "texts most"],
    lengths: Int[Tensor, " texts"],
    scale: float | None = None,
    window: int | None = None,
    parts: int | None = None,
) -> Float[Tensor, "texts H D"]:
    """As `course_lib.kernels.paged_attention`, which defines it, in torch's types.

    window: each text sees its last `window` tokens only. parts: into how many each text is cut; None: enough
    for all of a GPU's processors.
    """
    (texts, heads, width), (_, size, kv_heads, _) = query.shape, keys.shape
    if heads % kv_heads or keys.shape != values.shape or keys.shape[3] != width:
        raise ValueError(
            f"the shapes do not fit: query {tuple(query.shape)}, keys {tuple(keys.shape)}, values "
            f"{tuple(values.shape)}."
        )
    if not (keys.is_contiguous() and values.is_contiguous()):
        raise ValueError(
            "keys and values must be contiguous: a copy of the pool would cost all there is to save."
        )
    same_device(query=query, keys=keys, values=values, block_tables=block_tables, lengths=lengths)
    if not texts:
        return torch.empty_like(query)
    most, group = block_tables.shape[1], heads // kv_heads
    parts = parts_for(texts * kv_heads, most * size, query.device) if parts is None else parts
    # Parts are merged in float32; without them the result is written as it is wanted.
    outs = query.new_empty(parts, texts, heads, width, dtype=torch.float32 if parts > 1 else query.dtype)
    lses = query.new_empty(parts, texts, heads, dtype=torch.float32)
    paged_attention_kernel[(texts, kv_heads, parts)](
        query.contiguous(), keys, values, block_tables.contiguous(), lengths.contiguous(), outs, lses,
        most, size, width, group, most * size if window is None else window,
        (1 / math.sqrt(width) if scale is None else scale) * math.log2(math.e),
        WIDEN=INTERPRETED, D=block_of(width), G=block_of(group),
    )  # fmt: skip
    if parts == 1:
        return outs[0]
    weights = torch.softmax(lses, 0)[..., None]  # (parts, texts, H, 1)
    return (weights * outs).sum(0).to(query.dtype)


def parts_for(programs: int, tokens: int, device: torch.device) -> int:
    """So many parts that each processor has two programs, and no part fewer than 256 tokens."""
    if device.type != "cuda":
        return 1
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(2 * processors // programs, tokens // 256))
