"""How the kernels of course_lib.kernels.triton are called, and what they move, in float32.

Importing this needs no Triton; `run` does. The formulas are for the tiles that the interpreter uses, the
first of each kernel's CONFIGS, and exact at every shape.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from course_lib.kernels.catalog import problems
from course_lib.kernels.catalog.case import Kernel
from course_lib.kernels.catalog.cuda import ceil
from course_lib.kernels.catalog.problems import EPS, Array, Problem

if TYPE_CHECKING:
    from torch import Tensor

Shape = tuple[Any, ...]
Table = tuple[tuple[str, str, Callable[..., "TritonCase"], tuple[Shape, ...], Shape, Shape], ...]
TILE = 32  # rows and columns of a program's tile


@dataclass(frozen=True)
class TritonCase:
    """One problem, the call that solves it, and the bytes it moves, by the kernel's parameter.

    call: takes the package of kernels and the problem's inputs as tensors; gives the outputs in order.
    """

    problem: Problem
    call: Callable[[Any, dict[str, "Tensor"]], tuple["Tensor", ...]]
    moved: dict[str, int]

    def run(self) -> dict[str, int]:
        """Call it where Triton runs here. Returns the bytes counted, or nothing from a GPU."""
        import torch

        from course_lib.kernels import triton as kernels

        tensors = self.tensors("cpu" if kernels.INTERPRETED else "cuda")
        counted: dict[str, int] = {}
        if kernels.INTERPRETED:
            from course_lib.kernels.triton.watch import watch

            with watch() as seen:
                results = self.call(kernels, tensors)
            counted = dict(seen.bytes)
        else:
            results = self.call(kernels, tensors)
            torch.cuda.synchronize()
        for name, result in zip(self.problem.outputs, results, strict=True):
            self.problem.outputs[name][...] = result.reshape(self.problem.outputs[name].shape).cpu().numpy()
        return counted

    def tensors(self, device: str) -> dict[str, "Tensor"]:
        import torch

        return {
            name: torch.from_numpy(np.ascontiguousarray(a)).to(device)
            for name, a in self.problem.inputs.items()
        }

    def wrong(self) -> str | None:
        return self.problem.wrong()

    def miscounted(self, counted: dict[str, int]) -> list[str]:
        """A sentence for each count that is not as its formula says."""
        return [
            f"{name}: {counted.get(name, 0):,} bytes counted, {self.moved.get(name, 0):,} by the formula."
            for name in sorted(set(counted) | set(self.moved))
            if counted.get(name, 0) != self.moved.get(name, 0)
        ]


def vector_add(_: str, n: int) -> TritonCase:
    return TritonCase(
        problems.vector_add(n),
        lambda kernels, x: (kernels.vector_add(x["a"], x["b"]),),
        {"a": 4 * n, "b": 4 * n, "c": 4 * n},
    )


def softmax(kernel: str, rows: int, columns: int, huge: bool = False) -> TritonCase:
    long, size = kernel == "softmax_long", rows * columns
    return TritonCase(
        problems.softmax(rows, columns, huge),
        lambda kernels, x: (kernels.softmax(x["x"], in_registers=64 if long else 16384),),
        {"x": (8 if long else 4) * size, "y": 4 * size},
    )


def rms_norm(_: str, rows: int, columns: int) -> TritonCase:
    size = 4 * rows * columns
    return TritonCase(
        problems.rms_norm(rows, columns),
        lambda kernels, x: (kernels.rms_norm(x["x"], x["weight"], EPS),),
        {"x": size, "w": size, "y": size},
    )


def layer_norm(_: str, rows: int, columns: int, mean: float = -1.0, block: int = 256) -> TritonCase:
    size = 4 * rows * columns
    return TritonCase(
        problems.layer_norm(rows, columns, mean),
        lambda kernels, x: (kernels.layer_norm(x["x"], x["weight"], x["bias"], EPS, block),),
        {"x": 2 * size, "w": size, "b": size, "y": size},
    )


def matmul(_: str, rows: int, columns: int, depth: int) -> TritonCase:
    moved = {
        "a": 4 * rows * depth * ceil(columns, TILE),
        "b": 4 * depth * columns * ceil(rows, TILE),
        "c": 4 * rows * columns,
    }
    problem = problems.matmul(rows, columns, depth)
    return TritonCase(problem, lambda kernels, x: (kernels.matmul(x["a"], x["b"]),), moved)


def int4_matmul(_: str, tokens: int, outputs: int, depth: int, group: int) -> TritonCase:
    problem = problems.int4_matmul(tokens, outputs, depth, group)
    moved = {name: array.nbytes * ceil(tokens, 16) for name, array in problem.inputs.items()}
    moved |= {"x": problem["x"].nbytes * ceil(outputs, TILE), "y": 4 * tokens * outputs}
    return TritonCase(problem, lambda kernels, x: (kernels.int4_matmul(*x.values()),), moved)


def flash_attention(_: str, heads: int, kv_heads: int, n: int, d: int, spread: float = 1.0) -> TritonCase:
    problem = problems.flash_attention(heads, kv_heads, n, d, spread)
    seen = sum(min(top + TILE, n) for top in range(0, n, TILE))
    row, tiles = 4 * heads * n * d, 4 * heads * seen * d
    return TritonCase(
        problem,
        lambda kernels, x: kernels.flash_attention(x["q"][None], x["k"][None], x["v"][None]),
        {"q": row, "k": tiles, "v": tiles, "out": row, "lse": 4 * heads * n},
    )


def paged_attention(
    kernel: str, lengths: tuple[int, ...], heads: int, kv_heads: int, d: int, size: int
) -> TritonCase:
    parts = 3 if kernel == "paged_attention_split" else 1
    problem = problems.paged_attention(lengths, heads, kv_heads, d, size)
    texts, tokens = len(lengths), sum(lengths)

    def call(kernels: Any, x: dict[str, "Tensor"]) -> tuple["Tensor", ...]:
        return (kernels.paged_attention(*x.values(), parts=parts),)

    q: Array = problem["q"]
    moved = dict.fromkeys(("keys", "values"), 4 * tokens * kv_heads * d)
    moved |= {"tables": 4 * tokens * kv_heads, "lengths": 4 * texts * kv_heads * parts}
    moved |= {"q": q.nbytes * parts, "outs": q.nbytes * parts, "lses": 4 * texts * heads * parts}
    return TritonCase(problem, call, moved)


PAGES = (((1,), 1, 1, 32, 16), ((17, 1, 5), 4, 2, 32, 4), ((31, 64), 6, 2, 64, 16), ((7, 23), 3, 1, 24, 1))
# File, name, how to call it, awkward shapes, the counted shape, the large one.
_TABLE: Table = (
    ("vector_add", "vector_add", vector_add, ((1,), (31,), (2053,)), (4096,), (1 << 26,)),
    ("softmax", "softmax", softmax, ((1, 1), (3, 31), (3, 301, True)), (3, 1024), (16384, 4096)),
    ("softmax", "softmax_long", softmax, ((1, 67), (3, 301, True)), (3, 1024), (512, 131072)),
    ("rms_norm", "rms_norm", rms_norm, ((1, 1), (1, 331), (5, 7)), (8, 512), (16384, 4096)),
    (
        "layer_norm",
        "layer_norm",
        layer_norm,
        ((1, 1), (3, 31), (2, 509), (3, 257, 1e4)),
        (8, 512),
        (16384, 4096, -1.0, 4096),
    ),
    (
        "matmul",
        "matmul",
        matmul,
        ((1, 1, 1), (1, 67, 13), (37, 1, 17), (67, 41, 37)),
        (128, 64, 32),
        (4096, 4096, 4096),
    ),
    (
        "int4_matmul",
        "int4_matmul",
        int4_matmul,
        ((1, 1, 32, 32), (1, 67, 96, 32), (19, 37, 128, 64)),
        (16, 64, 128, 32),
        (16, 16384, 8192, 64),
    ),
    (
        "flash_attention",
        "flash_attention",
        flash_attention,
        ((1, 1, 1, 32), (4, 2, 37, 32), (3, 1, 33, 24), (2, 2, 71, 64), (1, 1, 40, 32, 60.0)),
        (2, 1, 96, 64),
        (16, 4, 4096, 64),
    ),
    *(
        (
            "paged_attention",
            name,
            paged_attention,
            PAGES,
            ((37, 64, 5), 6, 2, 64, 16),
            ((4096,) * 16, 32, 8, 128, 16),
        )
        for name in ("paged_attention", "paged_attention_split")
    ),
)
KERNELS = tuple(
    Kernel(f"course_lib/kernels/triton/{file}.py", name, build, shapes, counted, large)
    for file, name, build, shapes, counted, large in _TABLE
)


def find(name: str) -> Kernel[TritonCase]:
    """The kernel of this name. KeyError lists them."""
    known = {kernel.name: kernel for kernel in KERNELS}
    if name not in known:
        raise KeyError(f"there is no Triton kernel {name!r} in the catalog; it has {', '.join(known)}")
    return known[name]
