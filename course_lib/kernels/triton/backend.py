"""Where Triton's kernels run: compiled on an NVIDIA GPU, elsewhere in Triton's own interpreter.

The interpreter executes a kernel program by program in NumPy: slow (half a millisecond a program), but the
same source, on any Linux machine. Which of the two it is has to be settled before triton is imported: the
environment's TRITON_INTERPRET says it (1 or 0), and where it says nothing, whether torch finds an NVIDIA GPU.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() and not torch.version.hip else "1")

try:
    import triton
except ImportError as error:
    raise ImportError(
        "course_lib.kernels.triton needs the package triton, which exists for Linux only: on this machine "
        "the same kernels are in kernels_cuda/ and kernels_metal/, and run in course_lib.kernels.lab."
    ) from error

INTERPRETED: bool = triton.knobs.runtime.interpret

if INTERPRETED and isinstance(triton.language.sum, triton.JITFunction):
    raise ImportError(
        "triton was imported before course_lib.kernels.triton, and set up for a GPU that is not here: import "
        "course_lib.kernels.triton first, or set TRITON_INTERPRET=1 before Python starts."
    )


def where() -> str:
    """What runs the kernels, for people."""
    return "Triton's interpreter" if INTERPRETED else torch.cuda.get_device_name()


def tuned(configs: Sequence[triton.Config], key: Sequence[str]) -> Callable[[Any], Any]:
    """`triton.autotune` on a GPU; in the interpreter, whose times mean nothing, the first of the configs.

    key: arguments whose change makes it measure anew.
    """
    if not INTERPRETED:
        return triton.autotune(configs=list(configs), key=list(key), cache_results=True)
    chosen = {name: _constant(value) for name, value in configs[0].kwargs.items()}
    return triton.heuristics(chosen)


def _constant(value: Any) -> Callable[[Any], Any]:
    return lambda _: value


def block_of(size: int, least: int = 16) -> int:
    """The power of two that holds `size` elements: Triton's blocks have no other sizes."""
    return max(least, triton.next_power_of_2(size))


def same_device(**tensors: torch.Tensor) -> None:
    """ValueError unless all lie where the kernels run."""
    device = "cpu" if INTERPRETED else "cuda"
    for name, tensor in tensors.items():
        if tensor.device.type != device:
            raise ValueError(
                f"{name} lies on {tensor.device}, but {where()} runs this kernel: it takes tensors on "
                f"{device}."
            )
