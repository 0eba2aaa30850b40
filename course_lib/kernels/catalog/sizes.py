"""On which sizes the kernels run: those that CUDA's and Metal's share."""

from dataclasses import dataclass
from typing import Any

Shape = tuple[Any, ...]
Shapes = tuple[Shape, ...]


@dataclass(frozen=True)
class Sizes:
    """Arguments of a kernel's problem: awkward `shapes` for its result, one that is `counted` against closed
    formulas, and a `large` one for time on a GPU."""

    shapes: Shapes
    counted: Shape
    large: Shape


SIZES = {
    "vector_add": Sizes(
        shapes=((1,), (31,), (256,), (1003,)),
        counted=(4096,),
        large=(1 << 26,),
    ),
    "transpose": Sizes(
        shapes=((61, 37), (1, 33), (33, 1)),
        counted=(64, 96),
        large=(8192, 8192),
    ),
    "reduce_sum": Sizes(
        shapes=((1,), (97,), (5000,)),
        counted=(4096,),
        large=(1 << 26, 320),
    ),
    "matmul": Sizes(
        shapes=((1, 1, 1), (1, 67, 13), (37, 1, 17), (67, 41, 33)),
        counted=(128, 64, 32),
        large=(4096, 4096, 4096),
    ),
    "softmax": Sizes(
        shapes=((1, 1, 32), (3, 31, 64), (2, 257, 256), (5, 1009, 128), (3, 301, 64, True)),
        counted=(3, 1024),
        large=(16384, 4096),
    ),
    "layer_norm": Sizes(
        shapes=((1, 1, 32), (3, 31, 64), (7, 257, 128), (2, 509, 256), (3, 257, 128, 1e4)),
        counted=(8, 512),
        large=(16384, 4096),
    ),
    "rms_norm": Sizes(
        shapes=((1, 1), (1, 331), (131, 7), (9, 64)),
        counted=(64, 96),
        large=(16384, 4096),
    ),
    "rope": Sizes(
        shapes=((1, 1, 2), (1, 3, 10), (7, 5, 26), (13, 2, 64)),
        counted=(16, 4, 64),
        large=(8192, 32, 128),
    ),
    "attention_naive": Sizes(
        shapes=((1, 1, 1), (2, 37, 13), (1, 131, 24)),
        counted=(2, 64, 32),
        large=(16, 4096, 64),
    ),
    "gemv_int8": Sizes(
        shapes=((1, 4), (1, 1012), (37, 52), (131, 128)),
        counted=(32, 256),
        large=(16384, 8192),
    ),
    "gemv_int4": Sizes(
        shapes=((1, 32), (1, 992), (37, 96), (131, 128)),
        counted=(32, 256),
        large=(16384, 8192),
    ),
}
