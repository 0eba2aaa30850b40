"""`python -m course_lib.kernels.triton.compile`: compile every kernel for NVIDIA chips, with no GPU at hand.

Triton brings NVIDIA's assembler along, so this goes through PTX to machine code. Printed: bytes of PTX, of
machine code and of shared memory a block, and the tensor-core instruction that PTX has, if any.
"""

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from course_lib.kernels.triton.backend import INTERPRETED
from course_lib.kernels.triton.flash_attention import CONFIGS as FLASH_CONFIGS
from course_lib.kernels.triton.flash_attention import flash_attention_kernel
from course_lib.kernels.triton.int4_matmul import CONFIGS as INT4_CONFIGS
from course_lib.kernels.triton.int4_matmul import int4_matmul_kernel
from course_lib.kernels.triton.layer_norm import layer_norm_kernel
from course_lib.kernels.triton.matmul import CONFIGS as MATMUL_CONFIGS
from course_lib.kernels.triton.matmul import matmul_kernel
from course_lib.kernels.triton.paged_attention import CONFIGS as PAGED_CONFIGS
from course_lib.kernels.triton.paged_attention import paged_attention_kernel
from course_lib.kernels.triton.rms_norm import rms_norm_kernel
from course_lib.kernels.triton.softmax import softmax_kernel, softmax_long_kernel
from course_lib.kernels.triton.vector_add import vector_add_kernel


@dataclass(frozen=True)
class Source:
    """A kernel with the types of its parameters; those that are not named are int32."""

    kernel: Any
    numbers: str  # pointers to the number format
    constants: Mapping[str, Any]
    others: Mapping[str, str] = field(default_factory=dict)
    config: triton.Config = field(default_factory=lambda: triton.Config({}))


ROW = {"BLOCK": 1024}
SOURCES = {
    "vector_add": Source(vector_add_kernel, "a b c", ROW),
    "softmax": Source(softmax_kernel, "x y", ROW),
    "softmax_long": Source(softmax_long_kernel, "x y", ROW),
    "rms_norm": Source(rms_norm_kernel, "x w y", ROW, {"eps": "fp32"}),
    "layer_norm": Source(layer_norm_kernel, "x w b y", ROW, {"eps": "fp32"}),
    "matmul": Source(matmul_kernel, "a b c", {"WIDEN": False}, {}, MATMUL_CONFIGS[0]),
    "int4_matmul": Source(
        int4_matmul_kernel,
        "x scale middle y",
        {"WIDEN": False, "GROUP": 64},
        {"codes": "*u8"},
        INT4_CONFIGS[0],
    ),
    "flash_attention": Source(
        flash_attention_kernel,
        "q k v out",
        {"CAUSAL": True, "WIDEN": False, "D": 64},
        {"lse": "*fp32", "scale": "fp32"},
        FLASH_CONFIGS[0],
    ),
    "paged_attention": Source(
        paged_attention_kernel,
        "q keys values outs",
        {"WIDEN": False, "D": 64, "G": 16},
        {"tables": "*i64", "lengths": "*i64", "lses": "*fp32", "scale": "fp32"},
        PAGED_CONFIGS[0],
    ),
}


@dataclass(frozen=True)
class Compiled:
    kernel: str
    chip: str
    format: str
    ptx: str
    code_bytes: int
    shared_bytes: int

    @property
    def tensor_cores(self) -> str:
        """The instruction that multiplies blocks, or nothing."""
        found = re.search(r"\b(?:wgmma\.mma_async|mma)\.sync\.[\w.]+", self.ptx)
        return found[0] if found else ""


def compile_for(name: str, chip: int, number: str = "fp16") -> Compiled:
    """A kernel of SOURCES for compute capability `chip` (80, 90). RuntimeError in an interpreter."""
    if INTERPRETED:
        raise RuntimeError(
            "set TRITON_INTERPRET=0 before Python starts: kernels are wrapped to be interpreted."
        )
    source = SOURCES[name]
    constants = {**source.config.kwargs, **source.constants}
    function = source.kernel
    while not isinstance(function, triton.JITFunction):  # autotune wraps it
        function = function.fn
    signature = {
        parameter: "constexpr"
        if parameter in constants
        else f"*{number}"
        if parameter in source.numbers.split()
        else source.others.get(parameter, "i32")
        for parameter in function.arg_names
    }
    options = {"num_warps": source.config.num_warps, "num_stages": source.config.num_stages}
    made = triton.compile(
        ASTSource(function, signature, constants, {}), target=GPUTarget("cuda", chip, 32), options=options
    )
    return Compiled(name, f"sm_{chip}", number, made.asm["ptx"], len(made.asm["cubin"]), made.metadata.shared)


def all_compiled(chips: Sequence[int], numbers: Sequence[str]) -> Iterator[Compiled]:
    for name in SOURCES:
        for chip in chips:
            for number in numbers:
                yield compile_for(name, chip, number)


def main(chips: Sequence[int] = (80, 90), numbers: Sequence[str] = ("fp16", "bf16")) -> None:
    print(f"{'kernel':16}{'chip':7}{'format':7}{'PTX':>9}{'code':>9}{'shared':>8}  tensor cores")
    for made in all_compiled(chips, numbers):
        print(
            f"{made.kernel:16}{made.chip:7}{made.format:7}{len(made.ptx):9,}{made.code_bytes:9,}"
            f"{made.shared_bytes:8,}  {made.tensor_cores.removesuffix('.sync')}",
            flush=True,
        )


if __name__ == "__main__":
    if INTERPRETED:  # once more, with kernels that can be compiled
        os.environ["TRITON_INTERPRET"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "course_lib.kernels.triton.compile", *sys.argv[1:]])
    main(numbers=sys.argv[1:] or ("fp16", "bf16"))
