"""The kernel lab: CUDA and Metal sources, unmodified, executed on an ordinary CPU, counted and checked.

    from course_lib.kernels.lab import Module

    module = Module("kernels_cuda/vector_add.cu")
    report = module.launch("vector_add", grid, block, a, b, c, n)   # NumPy arrays, changed in place
    print(report)                                                  # traffic by source line and buffer

What the hardware would feel is counted (sectors of global memory, wavefronts and bank conflicts of shared
memory, barriers, atomics); what it would not tell is found (addresses out of bounds, data races, divergent
barriers). The lab knows no time and no cache: for those, run the same source on a GPU.
"""

from course_lib.kernels.lab.chips import CHIPS, Chip
from course_lib.kernels.lab.errors import CompileError, LabError, LaunchError, NoCompiler, Unsupported
from course_lib.kernels.lab.module import Module
from course_lib.kernels.lab.report import Finding, KernelFault, Place, Report, Row, SharedArray, Traffic

__all__ = [
    "CHIPS",
    "Chip",
    "CompileError",
    "Finding",
    "KernelFault",
    "LabError",
    "LaunchError",
    "Module",
    "NoCompiler",
    "Place",
    "Report",
    "Row",
    "SharedArray",
    "Traffic",
    "Unsupported",
]
