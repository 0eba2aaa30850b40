"""What each kernel is launched on, what it has to give, and what it may move: tests and bench read it here.

    from course_lib.kernels.catalog import cuda

    kernel = cuda.find("matmul_tiled")
    case = kernel.at(67, 41, 33)               # or *kernel.counted, where its closed formulas hold
    reports = case.run(Module(kernel.path))
    assert case.wrong() is None and not case.miscounted(reports)

`problems` holds the inputs and their float64 results, the same for all languages; `cuda`, `metal` and
`triton` say how their kernels are launched on them.
"""

from course_lib.kernels.catalog.case import Case, Kernel, Launch
from course_lib.kernels.catalog.problems import Problem, Tolerance

__all__ = ["Case", "Kernel", "Launch", "Problem", "Tolerance"]
