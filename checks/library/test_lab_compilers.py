"""The reference kernels count the same, whichever compiler made them: all launches of the catalog."""

import functools
import os
import shutil

import pytest

from course_lib.kernels.catalog import Kernel, cuda, metal
from course_lib.kernels.lab import Module
from course_lib.kernels.lab.mutants import counts

CLANG = os.environ.get("COURSE_CLANG") or shutil.which("clang++")
# With g++ `x = inside ? a : b` of a class type is two stores, one in each branch: where the lanes of a warp
# differ, as they do at the edges, these are two requests. Accesses and bytes are the same.
TWO_STORES = {"matmul_simdgroup_bfloat"}
# clang loads a vector type whose elements are used one by one as so many single loads.
SPLIT_BY_CLANG = {"layer_norm", "layer_norm_float", "layer_norm_half", "layer_norm_bfloat", "gemv_int8"}


@functools.cache
def module(file: str, compiler: str) -> Module:
    kernel = next(k for k in (*cuda.KERNELS, *metal.KERNELS) if k.file == file)
    return Module(kernel.path, compiler=compiler)


@pytest.mark.skipif(CLANG is None, reason="there is no clang++ here (COURSE_CLANG names one)")
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ here")
@pytest.mark.parametrize("kernel", [*cuda.KERNELS, *metal.KERNELS], ids=lambda k: f"{k.file[8:]}-{k.name}")
def test_counts_are_the_same_from_gcc_and_clang(kernel: Kernel, request: pytest.FixtureRequest) -> None:
    assert CLANG is not None
    if kernel.name in SPLIT_BY_CLANG:
        reason = "clang splits its vector loads, so that it counts more accesses: not mended yet"
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    for shape in (kernel.counted, kernel.shapes[-1]):
        found = []
        for compiler in ("g++", CLANG):
            case = kernel.at(*shape)
            found.append(counts(case.run(module(kernel.file, compiler), time_limit=60.0)))
            assert case.wrong() is None
        if kernel.name in TWO_STORES and shape != kernel.counted:
            found = [{key: of[1:3] for key, of in counted.items()} for counted in found]
        assert found[0] == found[1]
