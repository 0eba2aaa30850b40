"""The kernel lab watches the arrays that a thread has for itself, which no sanitizer tells of."""

import numpy as np
import pytest

from course_lib.kernels.lab import CompileError, KernelFault, Module, local_arrays

SOURCE = r"""
struct Parts { float v[4]; int n; };
constexpr int SQUARES[3] = {1, 4, 9};
__constant__ float WEIGHTS[2][2] = {{1, 2}, {3, 4}};
__global__ void a_row(float* y, int n) { float acc[4] = {}; for (int i = 0; i <= n; ++i) acc[i] = i; }
__global__ void a_matrix(float* y, int n) { float m[4][4] = {}; m[1][n] = 3; y[0] = m[2][0]; }
__global__ void a_member(float* y, int n) { Parts x = {{0}, 3}, *p = &x; p->v[n] = 3; }
__global__ void a_table(float* y, int n) { y[0] = SQUARES[n]; }
__global__ void constants(float* y, int n) { y[0] = WEIGHTS[n - 2][0]; }
__device__ float add(const float (&x)[4], int n) { while (n > 3) n += x[n] - 4; return 0; }
__global__ void a_reference(float* y, int n) { float x[4] = {1, 2, 3, 4}; y[0] = add(x, n); }
__global__ void negative(float* y, int n) { float acc[4] = {}; y[0] = acc[2 - n]; }
template <int N> __global__ void of_a_template(float* y, int n) { float b = 0, acc[N]{}; y[0] = b + acc[n]; }
"""
FAULTS = {
    "a_row": ("acc", 4, 4),
    "a_matrix": ("m", 4, 4),
    "a_member": ("p->v", 4, 4),
    "a_table": ("SQUARES", 4, 3),
    "constants": ("WEIGHTS", 2, 2),
    "a_reference": ("x", 4, 4),
    "negative": ("acc", -2, 4),
    "of_a_template<4>": ("acc", 4, 4),
}
FINE = r"""
#define ELEMENTS 4
constexpr int SQUARES[3] = {1, 4, 9};
__device__ float add(float (&x)[2][4]) { float s = 0; for (int i = 0; i < 8; ++i) s += x[0][i]; return s; }
__device__ float first(float acc[4]) { return acc[0]; }
__global__ void fine(float* y) {
    __shared__ float tile[2][4];
    float acc[ELEMENTS], sum = 0, x[SQUARES[1]] = {1, 2}, last[2]{};
    const int more = SQUARES[2] > acc[3], less = 2;
    for (int i = 0; i < 4; ++i) acc[i] = i + x[i];
    auto get = [&](int i) { return acc[i]; };
    for (int i = 0; i < 4; ++i) sum += get(i);
    float* p = acc;
    tile[threadIdx.x / 4][threadIdx.x % 4] = 1;
    __syncthreads();
    y[threadIdx.x] = sum + add(tile) + p[sizeof(acc) / sizeof(acc[0]) - 1] + first(acc) + last[1] * more;
}
"""


@pytest.fixture(scope="module")
def module() -> Module:
    return Module(SOURCE, name="own.cu")


@pytest.mark.parametrize("kernel", FAULTS)
def test_an_array_of_a_thread_is_not_overrun(module: Module, kernel: str) -> None:
    variable, index, length = FAULTS[kernel]
    where = {"a_reference": "float add("}.get(kernel, f" {kernel.split('<')[0]}(")
    line = next(i for i, text in enumerate(SOURCE.splitlines(), 1) if where in text)
    for level in ("bounds", "races"):
        with pytest.raises(KernelFault) as caught:
            module.launch(kernel, 1, 2, np.zeros(1, np.float32), 4, level=level)
        found = caught.value.findings[0]
        assert (found.kind, found.variable, found.line) == ("array out of bounds", variable, line)
        assert f"thread (0, 0, 0) of block (0, 0, 0) uses {variable}[…] at index {index}" in found.message
        assert f"{length} elements" in found.message


def test_what_is_right_is_left_alone() -> None:
    y = np.zeros(8, np.float32)
    assert Module(FINE).launch("fine", 1, 8, y).ok
    assert (y == (1 + 3 + 2 + 3) + 8 + 3 + 1).all()
    seen = local_arrays.watch(FINE)
    assert seen.count("lab_at<") == 11 and len(seen.splitlines()) == len(FINE.splitlines())


def test_a_thread_does_not_read_what_is_another_threads_own() -> None:
    module = Module(
        """__global__ void lends(float* y) {
    __shared__ float* other;
    float mine[2] = {1, 2};
    if (threadIdx.x == 0) other = mine;
    __syncthreads();
    y[threadIdx.x] = other[1];
    __syncthreads();
}"""
    )
    with pytest.raises(KernelFault, match=r"line 6: lends: thread .1, 0, 0. .* belongs to no array"):
        module.launch("lends", 1, 32, np.zeros(32, np.float32))


def test_messages_speak_of_the_learners_text() -> None:
    with pytest.raises(CompileError) as caught:
        Module("__global__ void k(float* y) {\n    float acc[4];\n    acc[nothing] = 1;\n}")
    assert caught.value.line == 3 and "lab_" not in str(caught.value)
