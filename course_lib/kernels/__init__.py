"""Kernels: attention by backend, and the lab that runs CUDA and Metal sources on any machine."""

from course_lib.lazy import lazy_exports

__getattr__ = lazy_exports(
    __name__,
    {
        "course_lib.kernels.paged": ["paged_attention"],
        "course_lib.kernels.paged_torch": ["gathered_attention"],
    },
)
