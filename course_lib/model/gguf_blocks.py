"""The block formats of GGUF: how a few bytes stand for 32 or 256 weights.

Decoders take the raw bytes as (blocks, bytes per block) and return float32 (blocks, weights per block).
Each product and sum is rounded on its own, as in ggml's reference code, so that the results agree with
it bit for bit.

The simple formats share a scale (and a minimum) among 32 weights. The k-quants put 256 weights into a super
block: its halves d and dmin scale the small integers that are the scales and minima of its 8 or 16 parts.
Source: ggml-org/ggml `src/ggml-common.h` (layouts), `src/ggml-quants.c` (`dequantize_row_*`).
"""

from collections.abc import Callable

import torch
from torch import Tensor


def half(raw: Tensor) -> Tensor:
    """Two bytes to one float32 column: (blocks, 2) -> (blocks, 1)."""
    return raw.contiguous().view(torch.float16).float()


def nibbles(raw: Tensor) -> Tensor:
    """(..., n) bytes -> (..., 2n) integers 0..15: all low halves first, then all high halves."""
    return torch.cat((raw & 15, raw >> 4), dim=-1)


def bits(raw: Tensor, width: int) -> Tensor:
    """(..., n) bytes -> (..., 8 / width, n): the fields of `width` bits of each byte, the lowest first."""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8)[:, None]
    return (raw[..., None, :] >> shifts) & (2**width - 1)


def fifth_bits(raw: Tensor) -> Tensor:
    """(blocks, 4) bytes -> (blocks, 32): bit i, moved to the place of value 16."""
    return bits(raw, 1).transpose(1, 2).reshape(len(raw), 32) << 4


def decode_f32(raw: Tensor) -> Tensor:
    return raw.clone().view(torch.float32)


def decode_f16(raw: Tensor) -> Tensor:
    return raw.clone().view(torch.float16).float()


def decode_bf16(raw: Tensor) -> Tensor:
    return raw.clone().view(torch.bfloat16).float()


def decode_q8_0(raw: Tensor) -> Tensor:
    """Scale (half), 32 signed bytes: w = d * q."""
    return half(raw[:, :2]) * raw[:, 2:].contiguous().view(torch.int8)


def decode_q4_0(raw: Tensor) -> Tensor:
    """Scale (half), 32 nibbles: w = d * (q - 8)."""
    return half(raw[:, :2]) * (nibbles(raw[:, 2:]).to(torch.int8) - 8)


def decode_q4_1(raw: Tensor) -> Tensor:
    """Scale and minimum (halves), 32 nibbles: w = d * q + m."""
    return half(raw[:, :2]) * nibbles(raw[:, 4:]) + half(raw[:, 2:4])


def decode_q5_0(raw: Tensor) -> Tensor:
    """Scale (half), 32 fifth bits, 32 nibbles: w = d * (q - 16)."""
    return half(raw[:, :2]) * ((nibbles(raw[:, 6:]) | fifth_bits(raw[:, 2:6])).to(torch.int8) - 16)


def decode_q5_1(raw: Tensor) -> Tensor:
    """Scale and minimum (halves), 32 fifth bits, 32 nibbles: w = d * q + m."""
    return half(raw[:, :2]) * (nibbles(raw[:, 8:]) | fifth_bits(raw[:, 4:8])) + half(raw[:, 2:4])


def scales_and_minima(raw: Tensor) -> tuple[Tensor, Tensor]:
    """The first 16 bytes of Q4_K and Q5_K: scale and minimum of each of the 8 parts, (blocks, 8, 1).

    After the halves d and dmin come twelve bytes with eight scales and eight minima of 6 bits: four bytes
    hold scales 0 to 3, four minima 0 to 3, the last four the low halves of scales 4 to 7 (right) and of
    minima 4 to 7 (left). Their missing upper two bits are the upper two of the first eight bytes.
    """
    low, mid, last = raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]
    scales = torch.cat((low & 63, (last & 15) | (low >> 6) << 4), dim=1)  # (blocks, 8)
    minima = torch.cat((mid & 63, (last >> 4) | (mid >> 6) << 4), dim=1)
    return (half(raw[:, :2]) * scales)[..., None], (half(raw[:, 2:4]) * minima)[..., None]


def decode_q4_k(raw: Tensor) -> Tensor:
    """Scales and minima of 8 parts, 256 nibbles, two parts in each 32 bytes: w = d * q - m."""
    scales, minima = scales_and_minima(raw)
    quants = nibbles(raw[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return (scales * quants - minima).reshape(-1, 256)


def decode_q5_k(raw: Tensor) -> Tensor:
    """As Q4_K, with 256 fifth bits before the nibbles: bit p of byte i belongs to weight i of part p."""
    scales, minima = scales_and_minima(raw)
    fifth = bits(raw[:, 16:48], 1)  # (blocks, 8, 32)
    quants = nibbles(raw[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32) | fifth << 4
    return (scales * quants - minima).reshape(-1, 256)


def decode_q6_k(raw: Tensor) -> Tensor:
    """256 nibbles, 256 times two upper bits, 16 signed scales, d (half): w = d * s * (q - 32).

    Each half of the weights has 64 bytes of nibbles and 32 bytes of upper bits.
    """
    low = nibbles(raw[:, :128].reshape(-1, 2, 64))  # (blocks, 2, 128)
    high = bits(raw[:, 128:192].reshape(-1, 2, 32), 2).reshape(-1, 2, 128)
    quants = (low | high << 4).to(torch.int8).reshape(-1, 16, 16) - 32
    scales = half(raw[:, 208:210]) * raw[:, 192:208].contiguous().view(torch.int8)  # (blocks, 16)
    return (scales[..., None] * quants).reshape(-1, 256)


TYPE_NAMES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    8: "Q8_0",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    30: "BF16",
}
# type: (weights per block, bytes per block, decoder)
DECODERS: dict[int, tuple[int, int, Callable[[Tensor], Tensor]]] = {
    0: (1, 4, decode_f32),
    1: (1, 2, decode_f16),
    2: (32, 18, decode_q4_0),
    3: (32, 20, decode_q4_1),
    6: (32, 22, decode_q5_0),
    7: (32, 24, decode_q5_1),
    8: (32, 34, decode_q8_0),
    12: (256, 144, decode_q4_k),
    13: (256, 176, decode_q5_k),
    14: (256, 210, decode_q6_k),
    30: (1, 2, decode_bf16),
}
