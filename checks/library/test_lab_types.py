"""half, bfloat16, tensor core tiles and asynchronous copies in the kernel lab's CUDA."""

import numpy as np
import pytest

from course_lib.kernels.lab import KernelFault, Module

SOURCE = r"""
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#include <cuda_pipeline.h>
#include <mma.h>
using namespace nvcuda;

__global__ void convert(const float* x, half* h, __nv_bfloat16* b, float* from_h, float* from_b, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    h[i] = __float2half(x[i]);
    b[i] = x[i];
    from_h[i] = __half2float(h[i]);
    from_b[i] = (float)b[i];
}
__global__ void pairs(const half2* x, half2* y, half a) {
    y[threadIdx.x] = __hfma2(__half2half2(a), x[threadIdx.x], y[threadIdx.x]);
}
template <class Layout>
__global__ void product(const half* a, const half* b, float* c, int n) {
    wmma::fragment<wmma::matrix_a, 16, 16, 16, half, wmma::row_major> left;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, half, Layout> right;
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum;
    wmma::fill_fragment(sum, 0.0f);
    int row = blockIdx.y * 16, col = blockIdx.x * 16;
    for (int k = 0; k < n; k += 16) {
        wmma::load_matrix_sync(left, a + row * n + k, n);
        wmma::load_matrix_sync(right, b + col * n + k, n);
        wmma::mma_sync(sum, left, right, sum);
    }
    for (int i = 0; i < sum.num_elements; ++i) sum.x[i] *= 2.0f;
    wmma::store_matrix_sync(c + row * n + col, sum, n, wmma::mem_row_major);
}
__global__ void half_a_warp(const half* a, float* c) {
    wmma::fragment<wmma::matrix_a, 16, 16, 16, half, wmma::row_major> left;
    if (threadIdx.x < 16) wmma::load_matrix_sync(left, a, 16);
    c[threadIdx.x] = 0;
}
__global__ void turned(const float4* x, float4* y) {
    __shared__ float4 s[2][64];
    for (int k = 0; k < 2; ++k) {
        __pipeline_memcpy_async(&s[k][threadIdx.x], &x[64 * k + threadIdx.x], 16);
        __pipeline_commit();
    }
    for (int k = 0; k < 2; ++k) {
        if (k == 0) __pipeline_wait_prior(1);
        else __pipeline_wait_prior(0);
        __syncthreads();
        y[64 * k + threadIdx.x] = s[k][63 - threadIdx.x];
    }
}
__global__ void one_too_early(const float4* x, float4* y) {
    __shared__ float4 s[2][32];
    for (int k = 0; k < 2; ++k) {
        __pipeline_memcpy_async(&s[k][threadIdx.x], &x[32 * k + threadIdx.x], 16);
        __pipeline_commit();
    }
    __pipeline_wait_prior(1);
    y[threadIdx.x] = s[0][threadIdx.x];
    y[32 + threadIdx.x] = s[1][threadIdx.x];
}
__global__ void add_halves(half* sum, const half* x) { atomicAdd(sum, x[threadIdx.x]); }
"""


@pytest.fixture(scope="module")
def module() -> Module:
    return Module(SOURCE)


def numbers() -> np.ndarray:
    """Every half, numbers over all their magnitudes, and those beside the largest half."""
    rng = np.random.default_rng(0)
    every = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    wide = (rng.standard_normal(20000) * 10.0 ** rng.integers(-9, 6, 20000)).astype(np.float32)
    return np.concatenate([every, wide, np.array([65519.996, 65520, 65536, 1e9, -65520], np.float32)])


def test_half_and_bfloat16_round_as_numpy_and_torch_do(module: Module) -> None:
    torch = pytest.importorskip("torch")
    x = numbers()
    n = x.size
    h, from_h, from_b = np.zeros(n, np.float16), np.zeros(n, np.float32), np.zeros(n, np.float32)
    b = torch.zeros(n, dtype=torch.bfloat16)
    module.launch("convert", -(-n // 256), 256, x, h, b, from_h, from_b, n, level="bounds")
    number = ~np.isnan(x)
    with np.errstate(over="ignore"):
        want = x.astype(np.float16)
    np.testing.assert_array_equal(h.view(np.uint16)[number], want.view(np.uint16)[number])
    assert np.isnan(h[~number]).all()
    np.testing.assert_array_equal(from_h[number], want.astype(np.float32)[number])
    wanted = torch.from_numpy(x).bfloat16()
    assert torch.equal(b.view(torch.int16)[number], wanted.view(torch.int16)[number])
    np.testing.assert_array_equal(from_b[number], wanted.float().numpy()[number])


def test_a_pair_of_halves_moves_at_once(module: Module) -> None:
    x, y = np.random.default_rng(1).standard_normal((2, 64)).astype(np.float16)
    want = (x.astype(np.float64) * 0.5 + y).astype(np.float16)
    report = module.launch("pairs", 1, 32, x, y, 0.5)
    np.testing.assert_array_equal(y, want)
    assert report.traffic("x").requests == 1 and report.sectors == 12


@pytest.mark.parametrize("layout", ["row_major", "col_major"])
def test_tiles_multiply(module: Module, layout: str) -> None:
    n = 48
    a, b = np.random.default_rng(2).standard_normal((2, n, n)).astype(np.float16)
    c = np.zeros((n, n), np.float32)
    report = module.launch(f"product<wmma::{layout}>", (3, 3), 32, a, b, c, n)
    if layout == "col_major":
        want = a.astype(np.float32) @ b.astype(np.float32).T
    else:  # the tile of b at (col, k), as it lies
        tiles = b.astype(np.float32).reshape(3, 16, 3, 16).transpose(2, 1, 0, 3).reshape(n, n)
        want = a.astype(np.float32) @ tiles
    np.testing.assert_allclose(c, 2 * want, rtol=1e-4, atol=1e-4)
    assert report.traffic("a").bytes == report.traffic("b").bytes == 2 * n * n * 3
    assert report.sectors == report.ideal_sectors


def test_a_tile_needs_its_whole_warp(module: Module) -> None:
    with pytest.raises(KernelFault, match="wmma needs all 32 lanes"):
        module.launch("half_a_warp", 1, 32, np.zeros(256, np.float16), np.zeros(32, np.float32))


def test_copies_arrive_when_they_are_waited_for(module: Module) -> None:
    x, y = np.arange(512, dtype=np.float32), np.zeros(512, np.float32)
    report = module.launch("turned", 1, 64, x, y)
    np.testing.assert_array_equal(y.reshape(2, 64, 4), x.reshape(2, 64, 4)[:, ::-1])
    assert report.traffic("x").bytes == 2048 and report.traffic("s", kind="write").bytes == 2048
    with pytest.raises(KernelFault, match="s, which no thread") as caught:
        module.launch("one_too_early", 1, 32, x[:256], y[:256])
    assert "s[1][threadIdx.x]" in SOURCE.splitlines()[caught.value.findings[0].line - 1]


def test_halves_are_added_atomically(module: Module) -> None:
    total, x = np.zeros(1, np.float16), np.ones(64, np.float16)
    assert module.launch("add_halves", 1, 64, total, x).atomics == 64
    assert total[0] == 64
