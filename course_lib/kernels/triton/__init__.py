"""Kernels in Triton: a file each, with a function that takes and gives torch tensors.

Compiled where there is an NVIDIA GPU; elsewhere on Linux Triton's interpreter runs the same sources, slowly.
`backend` decides, before triton is imported, and says why where triton cannot be had.
"""

from course_lib.kernels.triton.backend import INTERPRETED, where  # first: it decides

# isort: split
from course_lib.kernels.triton.flash_attention import flash_attention
from course_lib.kernels.triton.int4_matmul import int4_matmul
from course_lib.kernels.triton.layer_norm import layer_norm
from course_lib.kernels.triton.matmul import matmul
from course_lib.kernels.triton.paged_attention import paged_attention
from course_lib.kernels.triton.rms_norm import rms_norm
from course_lib.kernels.triton.softmax import softmax
from course_lib.kernels.triton.vector_add import vector_add

__all__ = [
    "INTERPRETED",
    "flash_attention",
    "int4_matmul",
    "layer_norm",
    "matmul",
    "paged_attention",
    "rms_norm",
    "softmax",
    "vector_add",
    "where",
]
