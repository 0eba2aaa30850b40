"""What interpreted kernels read and write: bytes by parameter, and an error where a mask lets one stray.

    with watch() as seen:
        matmul(a, b)
    seen.bytes["a"]

Triton's interpreter makes every access through two methods of its builder, with the addresses and the mask as
NumPy arrays; here they are looked at on the way. (The interpreter's inside is Triton's own affair: this is
written for the version that pyproject.toml names, and tested with it.)
"""

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
from triton.runtime import interpreter


class OutOfBounds(Exception):
    """A program read or wrote where no tensor of its launch lies."""


@dataclass
class Seen:
    """Bytes that programs asked for, masked lanes left out, by the kernel's parameter."""

    reads: Counter[str] = field(default_factory=Counter)
    writes: Counter[str] = field(default_factory=Counter)
    spans: list[tuple[str, int, int]] = field(
        default_factory=list
    )  # of the launch: name, first and end address

    @property
    def bytes(self) -> Counter[str]:
        return self.reads + self.writes

    def begin(self, arguments: dict[str, Any]) -> None:
        """A launch starts: remember where its tensors lie."""
        self.spans = []
        for name, tensor in arguments.items():
            if isinstance(tensor, torch.Tensor) and tensor.numel():
                last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
                start = tensor.data_ptr()
                self.spans.append((name, start, start + (last + 1) * tensor.itemsize))

    def add(self, counts: Counter[str], addresses: np.ndarray, mask: np.ndarray, size: int) -> None:
        """Count one access of `size` bytes a lane. OutOfBounds if an address is in no tensor."""
        active = addresses[np.broadcast_to(mask, addresses.shape)]
        if not active.size:
            return
        lowest, highest = int(active.min()), int(active.max()) + size
        for name, start, end in self.spans:
            if start <= lowest and highest <= end:
                counts[name] += active.size * size
                return
        near = min(self.spans, key=lambda span: abs(span[1] - lowest))
        raise OutOfBounds(
            f"{active.size} lanes touch bytes {lowest - near[1]} to {highest - 1 - near[1]} of {near[0]}, "
            f"which has {near[2] - near[1]}: a mask is missing or wrong."
        )


@contextmanager
def watch() -> Iterator[Seen]:
    """Count what all kernels do that are launched inside, in the interpreter."""
    seen, builder, launch = Seen(), interpreter.interpreter_builder, interpreter.GridExecutor.__call__

    def watched_launch(self: Any, *arguments: Any, **named: Any) -> Any:
        known = {
            name: value for name, value in named.items() if name in inspect.signature(self.fn).parameters
        }
        seen.begin(inspect.getcallargs(self.fn, *arguments, **known))
        return launch(self, *arguments, **named)

    def watched(access: Callable[..., Any], counts: Counter[str], mask_at: int) -> Callable[..., Any]:
        @functools.wraps(access)
        def call(pointers: Any, *rest: Any) -> Any:
            size = np.dtype(interpreter._get_np_dtype(pointers.get_element_ty())).itemsize
            seen.add(counts, pointers.data, rest[mask_at].data, size)
            return access(pointers, *rest)

        return call

    with (
        mock.patch.object(interpreter.GridExecutor, "__call__", watched_launch),
        mock.patch.object(builder, "create_masked_load", watched(builder.create_masked_load, seen.reads, 0)),
        mock.patch.object(
            builder, "create_masked_store", watched(builder.create_masked_store, seen.writes, 1)
        ),
    ):
        yield seen
