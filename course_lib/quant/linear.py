"""Linear layers whose weights have 8 or 4 bits: rounded to the nearest, scaled by row or by group of a row.

Writing a token reads every matrix once, and does little else: half the bytes are almost half the time.
Shapes: (out, in) a weight, G groups of a row of it.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8, UInt8
from torch import Tensor, nn

from course_lib.model.decoder import Decoder
from course_lib.model.layers import Experts, Linear

Scheme = Literal["int8", "int4"]
SCHEMES: tuple[Scheme, ...] = ("int8", "int4")
GROUP_SIZES = (32, 64, 128, 256)  # that torch's kernel knows


def quantize_rows(
    weight: Float[Tensor, "out in"],
) -> tuple[Int8[Tensor, "out in"], Float[Tensor, " out"]]:
    """8 bits, symmetric: of each row the largest magnitude becomes 127. Returns codes and scales.

    The scales have the dtype of the weight, as torch's kernel wants them; a number is off by half a scale
    at most, and in bfloat16 the row's largest, whose scale may have been rounded down, by a little more.
    """
    scale = (weight.abs().amax(1).float() / 127).clamp(min=1e-12).to(weight.dtype)
    codes = (weight.float() / scale.float()[:, None]).round().clamp(-127, 127)
    return codes.to(torch.int8), scale


def dequantize_rows(codes: Int8[Tensor, "out in"], scale: Float[Tensor, " out"]) -> Float[Tensor, "out in"]:
    return (codes.float() * scale.float()[:, None]).to(scale.dtype)


def quantize_groups(
    weight: Float[Tensor, "out in"], group_size: int
) -> tuple[UInt8[Tensor, "out in"], Float[Tensor, "out G"], Float[Tensor, "out G"]]:
    """4 bits, asymmetric: `group_size` neighbors of a row share a scale and a middle.

    Returns codes from 0 to 15, scales and middles: a number is (code - 8) * scale + middle. The smallest
    of a group has the code 0 and the largest 15.

    Raises:
        ValueError: rows cannot be cut into such groups.
    """
    outputs, inputs = weight.shape
    if group_size not in GROUP_SIZES or inputs % group_size:
        raise ValueError(
            f"A matrix of shape {tuple(weight.shape)} cannot be cut into groups of {group_size} along its "
            f"rows: the size must be one of {', '.join(map(str, GROUP_SIZES))}, and divide {inputs}."
        )
    groups = weight.float().view(outputs, -1, group_size)
    low, high = groups.amin(-1), groups.amax(-1)
    scale = ((high - low) / 15).clamp(min=1e-12).to(weight.dtype)
    middle = (low + 8 * scale.float()).to(weight.dtype)
    codes = ((groups - middle.float()[..., None]) / scale.float()[..., None] + 8).round().clamp(0, 15)
    return codes.to(torch.uint8).view(outputs, inputs), scale, middle


def dequantize_groups(
    codes: UInt8[Tensor, "out in"], scale: Float[Tensor, "out G"], middle: Float[Tensor, "out G"]
) -> Float[Tensor, "out in"]:
    groups = codes.view(*scale.shape, -1).float() - 8
    weight = groups * scale.float()[..., None] + middle.float()[..., None]
    return weight.view(codes.shape).to(scale.dtype)


class QuantizedLinear(Linear):
    """A `Linear` that keeps codes instead of its weight, which can no longer be read by name or trained.

    `fast` takes torch's own kernel, which reads the codes as they are, where there is one and for as few rows
    as it is good for; otherwise the weight is made anew for every product, and float matrices are multiplied.
    """

    def __init__(self, linear: Linear, fast: bool):
        nn.Module.__init__(self)
        self.fast = fast
        self.weight = nn.Parameter(linear.weight.new_empty(0), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        rows = x.reshape(-1, x.shape[-1])
        if not (self.fast and len(rows) <= self.most_rows(x.dtype)):
            return F.linear(x, self.dequantized(), self.bias)
        product = self.product(rows).view(*x.shape[:-1], -1)
        return product if self.bias is None else product + self.bias

    def most_rows(self, dtype: torch.dtype) -> int:
        """For how many rows at most torch's kernel is faster than float matrices."""
        raise NotImplementedError

    def dequantized(self) -> Float[Tensor, "out in"]:
        """The weight that the codes stand for."""
        raise NotImplementedError

    def product(self, x: Float[Tensor, "N in"]) -> Float[Tensor, "N out"]:
        """x Wᵀ by torch's kernel."""
        raise NotImplementedError


class Int8Linear(QuantizedLinear):
    """8 bits a number, and a scale a row. See `quantize_rows`."""

    packed: Tensor
    scale: Tensor

    def __init__(self, linear: Linear, fast: bool | None = None):
        super().__init__(linear, linear.weight.device.type == "cpu" if fast is None else fast)
        codes, scale = quantize_rows(linear.weight.detach())
        self.register_buffer("packed", codes)
        self.register_buffer("scale", scale)

    def most_rows(self, dtype: torch.dtype) -> int:
        """In bfloat16 the kernel is slower from about 64 rows on; in float32 for any but a single one, and
        some 400 times for 512 (384 by 384, torch 2.13).
        """
        return 64 if dtype == torch.bfloat16 else 1

    def dequantized(self) -> Float[Tensor, "out in"]:
        return dequantize_rows(self.packed, self.scale)

    def product(self, x: Float[Tensor, "N in"]) -> Float[Tensor, "N out"]:
        return torch._weight_int8pack_mm(x, self.packed, self.scale)


class Int4Linear(QuantizedLinear):
    """4 bits a number, and a scale and a middle a group. See `quantize_groups`.

    Two codes lie in a byte: in the order of torch's kernel if that is used, else neighbors, the first in the
    lower half. The kernel computes 16 outputs at a time, so their number must be a multiple of that; and in
    float32 it is slower than making the weight anew.
    """

    packed: Tensor
    scale: Tensor
    middle: Tensor

    def __init__(self, linear: Linear, group_size: int = 32, fast: bool | None = None):
        weight = linear.weight.detach()
        good = weight.device.type == "cpu" and weight.dtype == torch.bfloat16
        possible = good and len(weight) % 16 == 0
        super().__init__(linear, possible if fast is None else fast)
        self.group_size = group_size
        codes, scale, middle = quantize_groups(weight, group_size)
        if self.fast:
            packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
        else:
            packed = codes[:, ::2] | codes[:, 1::2] << 4
        self.register_buffer("packed", packed)
        self.register_buffer("scale", scale)
        self.register_buffer("middle", middle)

    def most_rows(self, dtype: torch.dtype) -> int:
        """However many there are: the codes lie in the kernel's own order."""
        return 1 << 30

    def dequantized(self) -> Float[Tensor, "out in"]:
        if self.fast:
            raise RuntimeError("These codes lie in the order of torch's kernel; build with fast=False.")
        codes = torch.stack((self.packed & 15, self.packed >> 4), dim=-1).flatten(1)
        return dequantize_groups(codes, self.scale, self.middle)

    def product(self, x: Float[Tensor, "N in"]) -> Float[Tensor, "N out"]:
        both = torch.stack((self.scale.T, self.middle.T), dim=-1)  # (G, out, 2)
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x, self.packed, self.group_size, both)


class QuantizedExperts(nn.Module):
    """Takes the place of `Experts`: each of its matrices is a layer of its own."""

    def __init__(self, experts: Experts, quantized: Callable[[Linear], QuantizedLinear]):
        super().__init__()
        self.gate_up, self.down = (
            nn.ModuleList(quantized(linear_of(matrix)) for matrix in matrices.detach())
            for matrices in (experts.gate_up, experts.down)
        )

    @staticmethod
    def product(x: Float[Tensor, "N in"], layer: QuantizedLinear) -> Float[Tensor, "N out"]:
        return layer(x)


def linear_of(weight: Float[Tensor, "out in"]) -> Linear:
    linear = Linear(0, 0)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def quantize_linears(
    model: Decoder, scheme: Scheme, group_size: int = 32, fast: bool | None = None
) -> Decoder:
    """Put a quantized layer in the place of every `Linear` of a model, and of every expert's matrix; returns
    the model.

    The output head is one of them; where it shares its weight with the embedding, it gets codes of its own
    and the embedding stays, of which a token reads one row only. Norms, biases and routers stay, too.

    Raises:
        ValueError: an unknown scheme, a matrix that cannot be cut into groups, or matrices that are packed or
            quantized already.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"quantize is {scheme!r}; choose {', '.join(SCHEMES)}, or 'off'.")

    def quantized(linear: Linear) -> QuantizedLinear:
        if linear.packed is not None:
            raise ValueError("The matrices are packed or quantized already: load the model without that.")
        return Int8Linear(linear, fast) if scheme == "int8" else Int4Linear(linear, group_size, fast)

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Linear):
                setattr(parent, name, quantized(child))
            elif isinstance(child, Experts):
                setattr(parent, name, QuantizedExperts(child, quantized))
    return model
