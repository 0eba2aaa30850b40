"""The kernel lab: results, counts that closed formulas give, and a finding for each kind of fault."""

import itertools
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from course_lib.kernels.lab import (
    CompileError,
    KernelFault,
    LaunchError,
    Module,
    NoCompiler,
    Report,
    Unsupported,
    build,
    on_cuda,
    pictures,
)

KERNELS = Path(__file__).resolve().parents[2] / "kernels_cuda"

COUNTED = r"""
__global__ void copy_strided(const float* x, float* y, int stride) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = x[i * stride];
}
__global__ void copy_offset(const float* x, float* y, int offset) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = x[i + offset];
}
__global__ void broadcast(const float* x, float* y) {
    y[blockIdx.x * blockDim.x + threadIdx.x] = x[blockIdx.x];
}
__global__ void copy_vectors(const float4* x, float4* y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    float4 v = x[i];
    y[i] = v;
}
template <int WIDTH>
__global__ void columns(float* y) {
    __shared__ float tile[32][WIDTH];
    for (int k = 0; k < 32; ++k) tile[k][threadIdx.x] = k;
    __syncthreads();
    for (int k = 0; k < 32; ++k) y[k * 32 + threadIdx.x] = tile[threadIdx.x][k];
}
template <int T>
__global__ void matmul(const float* a, const float* b, float* c, int n) {
    __shared__ float as[T][T], bs[T][T];
    int row = blockIdx.y * T + threadIdx.y, col = blockIdx.x * T + threadIdx.x;
    float sum = 0;
    for (int t = 0; t < n; t += T) {
        as[threadIdx.y][threadIdx.x] = a[row * n + t + threadIdx.x];
        bs[threadIdx.y][threadIdx.x] = b[(t + threadIdx.y) * n + col];
        __syncthreads();
        for (int k = 0; k < T; ++k) sum += as[threadIdx.y][k] * bs[k][threadIdx.x];
        __syncthreads();
    }
    c[row * n + col] = sum;
}
"""


@pytest.fixture(scope="module")
def counted() -> Module:
    return Module(COUNTED)


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


# counts


@pytest.mark.parametrize(("stride", "sectors"), [(1, 4), (2, 8), (4, 16), (8, 32), (16, 32), (33, 32)])
def test_a_stride_spreads_a_warp_over_more_sectors(counted: Module, stride: int, sectors: int) -> None:
    x, y = np.arange(64 * stride, dtype=np.float32), zeros(64)
    report = counted.launch("copy_strided", 2, 32, x, y, stride)
    assert np.array_equal(y, x[::stride])
    read = report.traffic("x", kind="read")
    assert (read.sectors, read.ideal_sectors) == (2 * sectors, 2 * 4)
    assert read.bytes == 64 * 4 and read.requests == 2 and read.accesses == 64
    assert report.traffic("y", kind="write").sectors == 2 * 4


@pytest.mark.parametrize(("offset", "sectors"), [(0, 4), (1, 5), (7, 5), (8, 4)])
def test_a_misaligned_row_costs_one_sector_more(counted: Module, offset: int, sectors: int) -> None:
    x, y = np.arange(40, dtype=np.float32), zeros(32)
    report = counted.launch("copy_offset", 1, 32, x, y, offset)
    assert np.array_equal(y, x[offset : offset + 32])
    assert report.traffic("x").sectors == sectors


def test_lanes_that_read_one_address_share_a_sector(counted: Module) -> None:
    report = counted.launch("broadcast", 3, 64, np.arange(3, dtype=np.float32), zeros(192))
    read = report.traffic("x")
    assert (read.requests, read.sectors, read.ideal_sectors) == (6, 6, 6)


def test_a_vector_moves_in_one_request(counted: Module) -> None:
    x, y = np.arange(256, dtype=np.float32), zeros(256)
    report = counted.launch("copy_vectors", 1, 64, x, y)
    assert np.array_equal(x, y)
    for name in ("x", "y"):
        assert (report.traffic(name).requests, report.traffic(name).sectors) == (2, 32)


@pytest.mark.parametrize(("width", "passes"), [(32, 32), (33, 1), (34, 2), (36, 4), (48, 16), (64, 32)])
def test_the_columns_of_a_tile_conflict_by_its_width(counted: Module, width: int, passes: int) -> None:
    y = zeros(32, 32)
    report = counted.launch(f"columns<{width}>", 1, 32, y)
    assert np.array_equal(y, np.tile(np.arange(32, dtype=np.float32), (32, 1)))
    read, write = (report.traffic("tile", kind=kind) for kind in ("read", "write"))
    assert (read.wavefronts, read.ideal_wavefronts) == (32 * passes, 32)
    assert write.bank_conflicts == 0
    assert report.shared_bytes == 32 * width * 4


@pytest.mark.parametrize("tile", [8, 16, 32])
def test_tiled_matmul_loads_what_the_formula_says(counted: Module, tile: int) -> None:
    n = 64
    a, b = np.random.default_rng(tile).random((2, n, n), dtype=np.float32)
    c = zeros(n, n)
    report = counted.launch(f"matmul<{tile}>", (n // tile, n // tile), (tile, tile), a, b, c, n)
    np.testing.assert_allclose(c, a @ b, rtol=1e-5)
    assert report.traffic("a").bytes == report.traffic("b").bytes == 4 * n**3 // tile
    assert report.traffic("c").bytes == 4 * n * n
    assert report.barriers == (n // tile) ** 2 * 2 * (n // tile)
    assert report.traffic("as", kind="read").accesses == n**3
    assert report.sectors == report.ideal_sectors


def totals(report: Report) -> dict[tuple, tuple]:
    keys = sorted({(r.line, r.variable, r.kind) for r in report.rows})
    found = {}
    for line, variable, kind in keys:
        t = report.traffic(variable, kind=kind, line=line)
        found[line, variable, kind] = (t.requests, t.accesses, t.bytes, t.sectors, t.wavefronts)
    return found


def count_all(module: Module) -> list[dict[tuple, tuple]]:
    n = 32
    a, b = np.random.default_rng(0).random((2, n, n), dtype=np.float32)
    reports = [
        module.launch("matmul<8>", (4, 4), (8, 8), a, b, zeros(n, n), n),
        module.launch("columns<32>", 1, 32, zeros(32, 32)),
        module.launch("copy_vectors", 1, 64, np.arange(256, dtype=np.float32), zeros(256)),
        module.launch("copy_strided", 2, 32, np.arange(192, dtype=np.float32), zeros(64), 3),
    ]
    return [totals(r) for r in reports]


@pytest.mark.parametrize("optimize", ["0", "2", "3"])
def test_counts_do_not_depend_on_the_optimizer(counted: Module, optimize: str) -> None:
    assert count_all(Module(COUNTED, optimize=optimize)) == count_all(counted)


def clang() -> str | None:
    """A clang on this machine, if there is one: clang++, or what COURSE_CLANG names."""
    return os.environ.get("COURSE_CLANG") or shutil.which("clang++")


@pytest.mark.skipif(clang() is None, reason="there is no clang++ here (COURSE_CLANG names one)")
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ here")
def test_counts_are_the_same_from_gcc_and_clang() -> None:
    assert count_all(Module(COUNTED, compiler=clang())) == count_all(Module(COUNTED, compiler="g++"))


def test_the_order_of_the_blocks_is_free(counted: Module) -> None:
    n = 64
    a, b = np.random.default_rng(1).random((2, n, n), dtype=np.float32)
    results, orders = [], []
    for order, seed in (("forward", 0), ("reversed", 0), ("shuffled", 1), ("shuffled", 2)):
        c = zeros(n, n)
        how = {"order": order, "seed": seed}
        report = counted.launch("matmul<16>", (4, 4), (16, 16), a, b, c, n, **how)  # type: ignore[arg-type]
        results.append(c)
        orders.append(report.order.tolist())
    assert all(np.array_equal(results[0], c) for c in results)
    assert len({tuple(o) for o in orders}) == 4 and all(sorted(o) == list(range(16)) for o in orders)


def test_an_order_of_blocks_shows_in_a_kernel_that_depends_on_it() -> None:
    module = Module("__global__ void last(int* x) { x[0] = blockIdx.x; }")
    last = []
    for order in ("forward", "reversed"):
        x = np.zeros(1, np.int32)
        report = module.launch("last", 5, 1, x, order=order, check=False)
        assert [f.kind for f in report.findings] == ["race"]
        last.append(int(x[0]))
    assert last == [4, 0]


# findings: each kernel is wrong in one way

HOSTILE = r"""
__global__ void past_the_end(float* a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    a[i] = 1;
}
__global__ void before_the_beginning(const float* a, float* b) {
    b[threadIdx.x] = a[(int)threadIdx.x - 1];
}
__global__ void past_a_tile(float* a) {
    __shared__ float tile[32];
    tile[threadIdx.x + 1] = 1;
    __syncthreads();
    a[threadIdx.x] = tile[threadIdx.x];
}
__global__ void no_barrier(float* a) {
    __shared__ float tile[64];
    tile[threadIdx.x] = threadIdx.x;
    a[threadIdx.x] = tile[63 - threadIdx.x];
}
__global__ void one_barrier(float* a) {
    __shared__ float tile[64];
    for (int t = 0; t < 2; ++t) {
        tile[threadIdx.x] = t;
        __syncthreads();
        a[threadIdx.x] += tile[63 - threadIdx.x];
    }
}
__global__ void lost_updates(float* a) {
    a[0] += threadIdx.x;
}
__global__ void bytes_of_neighbors(signed char* a) {
    a[threadIdx.x] = 1;
    a[(threadIdx.x + 1) % 64] = 2;
}
__global__ void stencil_in_place(float* a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n - 1) a[i] = 0.5f * (a[i] + a[i + 1]);
}
__global__ void atomic_and_plain(int* a) {
    atomicAdd(a, 1);
    if (threadIdx.x == 33) a[0] = 7;
}
__global__ void two_barriers(float* a) {
    if (threadIdx.x < 16)
        __syncthreads();
    else
        __syncthreads();
    a[threadIdx.x] = 1;
}
__global__ void early_return(float* a, int n) {
    if (threadIdx.x >= n) return;
    __syncthreads();
    a[threadIdx.x] = 1;
}
__global__ void half_a_warp(float* a) {
    float v = threadIdx.x;
    if (threadIdx.x < 16) v = __shfl_down_sync(0xffffffffu, v, 1);
    __syncthreads();
    a[threadIdx.x] = v;
}
__global__ void not_in_the_mask(float* a) {
    a[threadIdx.x] = __shfl_sync(0xffffu, 1.0f, 0);
}
__global__ void from_nowhere(float* a) {
    a[threadIdx.x] = __shfl_down_sync(0xffffffffu, 1.0f, 16);
}
__global__ void misaligned(float* a) {
    *reinterpret_cast<float4*>(a + 1) = make_float4(1, 2, 3, 4);
}
__global__ void null(float* a, const float* b) {
    a[0] = b[0];
}
__global__ void uninitialized(float* a) {
    __shared__ float tile[32];
    a[threadIdx.x] = tile[threadIdx.x];
}
__global__ void polls(volatile int* a) {
    while (a[0] == 0) {
    }
}
__global__ void spins(float* a) {
    for (;;) {
    }
}
__device__ int deeper(int n, int* up) {
    int here[64];
    here[n % 64] = n;
    return deeper(n + 1, here) + up[n % 7];
}
__global__ void recursion(int* a) {
    a[0] = deeper(0, a);
}
__global__ void divides(int* a) {
    a[0] = 10 / a[1];
}
__global__ void asserts(int* a) {
    assert(a[0] == 1);
}
__global__ void writes_const(const float* a) {
    const_cast<float*>(a)[0] = 1;
}
__global__ void too_much(float* a) {
    __shared__ float big[12289];
    big[threadIdx.x] = 1;
    a[threadIdx.x] = big[threadIdx.x];
}
__global__ void forgets_bytes(float* a) {
    extern __shared__ float dynamic[];
    dynamic[threadIdx.x] = 1;
    a[threadIdx.x] = dynamic[threadIdx.x];
}
__global__ void copies_too_early(const float4* a, float4* b) {
    __shared__ float4 tile[32];
    __pipeline_memcpy_async(&tile[threadIdx.x], &a[threadIdx.x], 16);
    __pipeline_commit();
    b[threadIdx.x] = tile[threadIdx.x];
}
"""


@pytest.fixture(scope="module")
def hostile() -> Module:
    return Module(HOSTILE, name="hostile.cu")


def line_of(text: str, kernel: str) -> int:
    """The number of the first line with that text in a kernel of HOSTILE."""
    lines = HOSTILE.splitlines()
    start = next(i for i, line in enumerate(lines) if f" {kernel}(" in line)
    return next(i for i in range(start, len(lines)) if text in lines[i]) + 1


def ints(n: int) -> np.ndarray:
    return np.zeros(n, np.int32)


FAULTS = [
    # kernel, grid, block, arguments, kind, the line's text, variable
    ("past_the_end", 2, 64, (zeros(100), 100), "out of bounds", "a[i] = 1", "a"),
    ("before_the_beginning", 1, 32, (zeros(32), zeros(32)), "out of bounds", "b[threadIdx.x]", "a"),
    ("past_a_tile", 1, 32, (zeros(32),), "shared out of bounds", "tile[threadIdx.x + 1]", "tile"),
    ("no_barrier", 1, 64, (zeros(64),), "race", "tile[threadIdx.x] =", "tile"),
    ("one_barrier", 1, 64, (zeros(64),), "race", "tile[threadIdx.x] =", "tile"),
    ("lost_updates", 1, 64, (zeros(1),), "race", "a[0] +=", "a"),
    ("bytes_of_neighbors", 1, 64, (np.zeros(64, np.int8),), "race", "a[threadIdx.x] = 1", "a"),
    ("stencil_in_place", 2, 64, (zeros(128), 128), "race", "if (i < n - 1)", "a"),
    ("atomic_and_plain", 1, 64, (ints(1),), "race", "a[0] = 7", "a"),
    ("two_barriers", 1, 32, (zeros(32),), "divergent barrier", "__syncthreads", ""),
    ("early_return", 1, 64, (zeros(64), 50), "missing barrier", "__syncthreads", ""),
    ("half_a_warp", 1, 32, (zeros(32),), "absent lanes", "__shfl_down_sync", ""),
    ("not_in_the_mask", 1, 32, (zeros(32),), "absent lanes", "__shfl_sync", ""),
    ("from_nowhere", 1, 24, (zeros(32),), "absent source lane", "__shfl_down_sync", ""),
    ("misaligned", 1, 1, (zeros(8),), "misaligned", "make_float4", "a"),
    ("null", 1, 1, (zeros(1), None), "null", "b[0]", ""),
    ("uninitialized", 1, 32, (zeros(32),), "uninitialized", "a[threadIdx.x]", "tile"),
    ("polls", 1, 32, (ints(1),), "endless loop", "while", ""),
    ("spins", 1, 32, (zeros(1),), "endless loop", "", ""),
    ("recursion", 1, 1, (ints(8),), "stack overflow", "", ""),
    ("divides", 1, 1, (ints(2),), "division by zero", "10 / a[1]", ""),
    ("asserts", 1, 1, (ints(1),), "assertion", "assert(a[0]", ""),
    ("writes_const", 1, 1, (zeros(1),), "write to const", "const_cast", "a"),
    ("too_much", 1, 32, (zeros(32),), "too much shared memory", "big[12289]", ""),
    ("forgets_bytes", 1, 32, (zeros(32),), "misuse", "extern", ""),
    ("copies_too_early", 1, 32, (zeros(128), zeros(128)), "uninitialized", "b[threadIdx.x]", "tile"),
]


@pytest.mark.parametrize(
    ("kernel", "grid", "block", "arguments", "kind", "text", "variable"), FAULTS, ids=[f[0] for f in FAULTS]
)
def test_a_fault_is_found_at_its_line(
    hostile: Module, kernel, grid, block, arguments, kind, text, variable
) -> None:
    with pytest.raises(KernelFault) as caught:
        hostile.launch(kernel, grid, block, *arguments, time_limit=1.0)
    found = caught.value.findings[0]
    assert found.kind == kind and found.kernel == kernel
    assert found.variable == variable
    if text:
        lines = {found.line} | ({found.other.line} if found.other else set())
        assert line_of(text, kernel) in lines, (found, lines)
        assert f"hostile.cu, line {found.line}" in str(caught.value)


def test_every_kernel_of_the_list_is_tried(hostile: Module) -> None:
    assert {f[0] for f in FAULTS} == set(hostile.kernels)


def test_a_finding_names_thread_and_block(hostile: Module) -> None:
    with pytest.raises(KernelFault) as caught:
        hostile.launch("past_the_end", 2, 64, zeros(100), 100)
    found = caught.value.findings[0]
    assert found.place.block == (1, 0, 0) and found.place.thread == (36, 0, 0)
    assert "a[100]" in found.message and "400 bytes" in found.message


def test_a_race_names_both_threads(hostile: Module) -> None:
    with pytest.raises(KernelFault) as caught:
        hostile.launch("no_barrier", 1, 64, zeros(64))
    for found in caught.value.findings:
        assert found.kind == "race" and found.other is not None
        assert found.other.thread != found.place.thread
        assert {found.line, found.other.line} == {
            line_of("tile[threadIdx.x] =", "no_barrier"),
            line_of("63 -", "no_barrier"),
        }


def test_a_kernel_that_stops_leaves_the_arrays_as_they_were(hostile: Module) -> None:
    a = zeros(100)
    with pytest.raises(KernelFault):
        hostile.launch("past_the_end", 2, 64, a, 100)
    assert not a.any()


def test_findings_can_be_read_without_an_exception(hostile: Module) -> None:
    report = hostile.launch("lost_updates", 1, 64, zeros(1), check=False)
    assert not report.ok and {f.kind for f in report.findings} == {"race"}


def test_levels_watch_less_or_more(hostile: Module) -> None:
    assert hostile.launch("lost_updates", 1, 64, zeros(1), level="counts").ok
    report = hostile.launch("lost_updates", 1, 64, zeros(1), level="bounds")
    assert report.ok and not report.rows
    assert hostile.launch("lost_updates", 1, 64, zeros(1), level="off").ok
    with pytest.raises(KernelFault, match="past its 400 bytes"):
        hostile.launch("past_the_end", 2, 64, zeros(100), 100, level="bounds")


def test_threads_may_return_early_where_that_is_asked_for(hostile: Module) -> None:
    a = zeros(64)
    assert hostile.launch("early_return", 1, 64, a, 50, strict=False).ok
    assert a.sum() == 50


def test_races_in_another_order_have_another_fingerprint(hostile: Module) -> None:
    marks = []
    for kernel, grid, block in (("no_barrier", 1, 64), ("lost_updates", 1, 64), ("lost_updates", 2, 1)):
        with pytest.raises(KernelFault) as caught:
            hostile.launch(kernel, grid, block, zeros(64))
        marks.append(caught.value.fingerprint)
    assert marks == [
        "race tile (write after read)",
        "race a (read after write)",
        "race a (read after write in another block)",
    ]


def test_findings_beyond_the_first_three_are_counted() -> None:
    for lines, said in ((3, "is chance\\.$"), (4, "and 1 more finding\\.$"), (5, "and 2 more findings\\.$")):
        text = "".join(f"    a[{i}] = threadIdx.x;\n" for i in range(lines))
        with pytest.raises(KernelFault, match=said):
            Module(f"__global__ void k(float* a) {{\n{text}}}").launch("k", 1, 32, zeros(8))


def test_what_is_declared_has_a_limit_of_its_own() -> None:
    module = Module("__global__ void k(float* a) {\n    __shared__ float s[20000];\n    s[0] = a[0];\n}")
    said = "declares take 80,000 bytes of shared memory, and 49,152 is the most on A100; with dynamic"
    with pytest.raises(KernelFault, match=said):
        module.launch("k", 1, 1, zeros(1))


def test_the_limits_are_those_of_the_chip(hostile: Module) -> None:
    module = Module("__global__ void k(float* a) { extern __shared__ float s[]; s[0] = 1; a[0] = s[0]; }")
    assert module.launch("k", 1, 1, zeros(1), shared_bytes=200 * 1024, chip="sm_90").ok
    with pytest.raises(LaunchError, match="shared memory"):
        module.launch("k", 1, 1, zeros(1), shared_bytes=200 * 1024, chip="sm_80")
    with pytest.raises(ValueError, match="sm_80"):
        module.launch("k", 1, 32, zeros(32), chip="sm_81x")


# what is legal is not reported

LEGAL = r"""
__global__ void last_block_sums(const float* x, float* partial, unsigned* done, float* out, int n) {
    __shared__ bool last;
    float sum = 0;
    if (threadIdx.x == 0) {
        for (int i = blockIdx.x; i < n; i += gridDim.x) sum += x[i];
        partial[blockIdx.x] = sum;
        __threadfence();
        last = atomicAdd(done, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        float all = 0;
        for (int b = 0; b < gridDim.x; ++b) all += partial[b];
        out[0] = all;
    }
}
__global__ void warp_exchange(float* y) {
    __shared__ float s[64];
    s[threadIdx.x] = threadIdx.x;
    __syncwarp();
    y[threadIdx.x] = s[threadIdx.x ^ 1];
}
__global__ void half_warps(float* y) {
    __shared__ float s[32];
    unsigned mine = threadIdx.x < 16 ? 0x0000ffffu : 0xffff0000u;
    s[threadIdx.x] = threadIdx.x;
    __syncwarp(mine);
    float v = s[threadIdx.x ^ 3];
    y[threadIdx.x] = __shfl_xor_sync(mine, v, 3);
}
__global__ void lock(int* mutex, int* count) {
    bool done = false;
    while (!done) {
        if (atomicCAS(mutex, 0, 1) == 0) {
            __threadfence();
            atomicAdd(count, 1);
            __threadfence();
            atomicExch(mutex, 0);
            done = true;
        }
    }
}
__global__ void waits_for_a_neighbor(int* flag, int* y) {
    if (threadIdx.x == 0) {
        while (atomicAdd(flag, 0) == 0) {
        }
        y[0] = 1;
    } else if (threadIdx.x == 40) {
        atomicExch(flag, 1);
    }
}
__global__ void neighbors_bytes(signed char* a) { a[threadIdx.x] = threadIdx.x; }
__global__ void votes(int* y) {
    int lane = threadIdx.x;
    unsigned odd = __ballot_sync(0xffffffffu, lane & 1);
    int sum = __reduce_add_sync(0xffffffffu, lane);
    int any = __any_sync(0xffffffffu, lane == 5), all = __all_sync(0xffffffffu, lane < 32);
    y[lane] = __popc(odd) * 1000 + sum + any + 10000 * all;
}
__global__ void counts_at_a_barrier(int* y) { y[threadIdx.x] = __syncthreads_count(threadIdx.x % 3 == 0); }
__global__ void prints(int n) { printf("%d of %d: %.2f\n", threadIdx.x, n, 0.5 * threadIdx.x); }
"""


@pytest.fixture(scope="module")
def legal() -> Module:
    return Module(LEGAL)


def test_a_fence_and_an_atomic_order_blocks(legal: Module) -> None:
    x, out = np.arange(97, dtype=np.float32), zeros(1)
    legal.launch("last_block_sums", 5, 32, x, zeros(5), np.zeros(1, np.uint32), out, x.size)
    assert out[0] == x.sum()


def test_lanes_that_meet_do_not_race(legal: Module) -> None:
    y = zeros(64)
    legal.launch("warp_exchange", 1, 64, y)
    assert np.array_equal(y, np.arange(64) ^ 1)
    y = zeros(32)
    legal.launch("half_warps", 1, 32, y)
    assert np.array_equal(y, np.arange(32))


def test_threads_may_wait_for_each_other_by_polling(legal: Module) -> None:
    count = ints(1)
    legal.launch("lock", 2, 64, ints(1), count, time_limit=5.0)
    assert count[0] == 128
    y = ints(1)
    legal.launch("waits_for_a_neighbor", 1, 64, ints(1), y, time_limit=5.0)
    assert y[0] == 1


def test_races_are_told_by_the_byte(legal: Module) -> None:
    a = np.zeros(64, np.int8)
    assert legal.launch("neighbors_bytes", 1, 64, a).ok
    assert np.array_equal(a, np.arange(64))


def test_votes_reductions_and_counting_barriers(legal: Module) -> None:
    y = ints(32)
    legal.launch("votes", 1, 32, y)
    assert (y == 16 * 1000 + 496 + 1 + 10000).all()
    y = ints(50)
    legal.launch("counts_at_a_barrier", 1, 50, y)
    assert (y == 17).all()


def test_what_a_kernel_prints_is_kept(legal: Module) -> None:
    report = legal.launch("prints", 1, 3, 7)
    assert report.printed == "0 of 7: 0.00\n1 of 7: 0.50\n2 of 7: 1.00\n"


# arguments

ARGUMENTS = r"""
__global__ void mixed(const float* x, double* y, int n, float scale, bool flip, float2 pair, long long big) {
    if (threadIdx.x < n) y[threadIdx.x] = (flip ? -1 : 1) * scale * x[threadIdx.x] + pair.y + big;
}
__global__ void doubles(float* x, const float* y) { x[threadIdx.x] = 2 * y[threadIdx.x]; }
__global__ void vectors(float4* x) { x[threadIdx.x].y = 1; }
"""


@pytest.fixture(scope="module")
def taking() -> Module:
    return Module(ARGUMENTS)


def test_values_of_every_kind_arrive(taking: Module) -> None:
    x, y = np.arange(5, dtype=np.float32), np.zeros(5)
    taking.launch("mixed", 1, 5, x, y, np.int64(5), 0.5, True, (1, 2), 2**40)
    assert np.array_equal(y, -0.5 * x + 2 + 2.0**40)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((zeros(5), np.zeros(5), 5), "takes 7 arguments"),
        ((zeros(5), zeros(5), 5, 1.0, True, (1, 2), 1), "holds float64; it was given an array of float32"),
        ((zeros(5), np.zeros(5), 5.5, 1.0, True, (1, 2), 1), "n is a value of type int, and was given 5.5"),
        ((zeros(5), np.zeros(5), 2**31, 1.0, True, (1, 2), 1), "n is a value of type int"),
        ((3, np.zeros(5), 5, 1.0, True, (1, 2), 1), "x is a const float\\*, which takes an array"),
        ((zeros(5), np.zeros(5), 5, "one", True, (1, 2), 1), "scale is a value of type float"),
        ((zeros(5), np.zeros(5), 5, 1.0, 2, (1, 2), 1), "flip is a value of type bool"),
        ((zeros(5), np.zeros(5), 5, 1.0, True, (1, 2, 3), 1), "pair is a value of type float2"),
        ((zeros(5), np.zeros(10)[::2], 5, 1.0, True, (1, 2), 1), "not contiguous"),
        ((zeros(5), np.zeros(5), zeros(1), 1.0, True, (1, 2), 1), "n is a value of type int, and was given"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_told(taking: Module, arguments: tuple, says: str) -> None:
    with pytest.raises(LaunchError, match=says):
        taking.launch("mixed", 1, 5, *arguments)


def test_a_read_only_array_is_not_written(taking: Module) -> None:
    x = zeros(4)
    x.flags.writeable = False
    with pytest.raises(LaunchError, match="read-only"):
        taking.launch("doubles", 1, 4, x, zeros(4))
    taking.launch("doubles", 1, 4, zeros(4), x)


def test_arrays_that_share_memory_share_it_in_the_kernel(taking: Module) -> None:
    x = np.arange(8, dtype=np.float32)
    taking.launch("doubles", 1, 8, x, x)
    assert np.array_equal(x, 2 * np.arange(8))
    x = np.arange(8, dtype=np.float32)
    with pytest.raises(KernelFault, match="race"):
        taking.launch("doubles", 1, 6, x[:6], x[2:])


def test_an_array_too_short_for_its_vectors_is_told(taking: Module) -> None:
    with pytest.raises(LaunchError, match="no multiple"):
        taking.launch("vectors", 1, 1, zeros(6))


def test_tensors_are_taken_as_they_are(taking: Module) -> None:
    torch = pytest.importorskip("torch")
    x, y = torch.zeros(4), torch.arange(4.0)
    taking.launch("doubles", 1, 4, x, y)
    assert torch.equal(x, 2 * y)


@pytest.mark.parametrize(
    ("grid", "block", "says"),
    [(0, 32, "grid"), (1, 0, "block"), (1, 2048, "block"), (1, (32, 64), "2,048 threads"),
     (1, (1, 1, 65), "block"), ((1, 70000), 32, "grid"), (1.5, 32, "whole numbers")],
)  # fmt: skip
def test_shapes_that_no_chip_takes_are_told(taking: Module, grid, block, says: str) -> None:
    with pytest.raises(LaunchError, match=says):
        taking.launch("doubles", grid, block, zeros(32), zeros(32))


def test_kernels_are_found_by_name(counted: Module) -> None:
    with pytest.raises(LaunchError, match="has no kernel called 'nothing'"):
        counted.launch("nothing", 1, 1)
    with pytest.raises(LaunchError, match="is a template"):
        counted.launch("columns", 1, 32, zeros(32, 32))


# sources


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("__global__ void k(float* a) {\n    a[0] = nothing;\n}", 2, "nothing"),
        ("__global__ void k(float* a) {\n    a[0] = 1\n}", 2, "';'"),
        ("#include <cuda_runtime.h>\n__global__ void k(float* a) {\n    a[0] = __shared__;\n}", 3, "shared declaration"),  # noqa: E501
        ("void f() {}", 0, "no __global__ function"),
        ("__global__ void k(float* a) {\n    __shared__ float s = 1;\n}", 2, "initial value"),
    ],
)  # fmt: skip
def test_errors_stand_at_the_learners_line(text: str, line: int, says: str) -> None:
    with pytest.raises(CompileError, match=says) as caught:
        Module(text, name="mine.cu")
    assert caught.value.line == line
    assert "mine.cu" in str(caught.value) and "lab_" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('asm("bar.sync 0;");', "PTX"),
        ("cudaMalloc(&a, 4);", "host API"),
        ("k<<<1, 1>>>(a);", "<<<"),
        ("float v = tex2D<float>(t, 1, 2);", "textures"),
        ("auto g = cooperative_groups::this_grid();", "grid synchronization"),
        ("long long t = clock64();", "the clock"),
        ("float* p = new float[4];", "heap"),
        ("unsigned m = __activemask();", "__activemask"),
        ("float v = __shfl_down(a[0], 1);", "deprecated since CUDA 9 and gone from Volta on"),
        ("cuda::barrier<cuda::thread_scope_block> b;", "libcu++"),
        ("__nv_fp8_e4m3 x;", "FP8"),
    ],
)
def test_what_is_out_of_scope_is_refused_by_name(text: str, name: str) -> None:
    comment = "// asm, new and clock() in a comment are harmless"
    with pytest.raises(Unsupported, match=r"line 3: the kernel lab does not run") as caught:
        Module(f"{comment}\n__global__ void k(float* a) {{\n    {text}\n}}")
    assert name in str(caught.value) and caught.value.line == 3


@pytest.mark.parametrize(
    "include",
    ['#include "vector_add.cu"', f"#include <{KERNELS}/vector_add.cu>", f'#define F "{KERNELS}"\n#include F',
     '#inc\\\nlude "x"', '%:include "x"', "#include <vector>", "#include_next <stdio.h>",
     "#include <../runtime.h>"],
)  # fmt: skip
def test_nothing_else_is_included(include: str) -> None:
    with pytest.raises(Unsupported):
        Module(f"{include}\n__global__ void k() {{}}")


def test_variables_that_outlive_a_launch_are_refused() -> None:
    with pytest.raises(Unsupported, match="__device__ variables"):
        Module("__device__ int count;\n__global__ void k(int* a) { a[0] = count; }")
    with pytest.raises(Unsupported, match="__constant__ memory"):
        Module("__constant__ float w[4];\n__global__ void k(float* a) { a[0] = w[0]; }")
    module = Module(
        "__constant__ float w[3] = {1, 2, 4};\n__global__ void k(float* a) { int i = threadIdx.x; a[i] = w[i]; }"  # noqa: E501
    )
    a = zeros(3)
    module.launch("k", 1, 3, a)
    assert a.tolist() == [1, 2, 4]


def test_shared_memory_is_declared_in_every_way() -> None:
    module = Module(
        """
constexpr int N = 8;
extern __shared__ float outside[];
struct Pair { int a; float b; };
template <class T, int M> __global__ void k(T* y) {
    __shared__ T one, many[N * M], rows[N][M + 1];
    __shared__ __align__(16) Pair pairs[N];  // a comment; with a semicolon
    __shared__
        float below[N];
    if (threadIdx.x == 0) one = 3;
    many[threadIdx.x] = 1;
    rows[threadIdx.x][1] = 10;
    pairs[threadIdx.x].b = 100;
    below[threadIdx.x] = 1000;
    outside[threadIdx.x] = 10000;
    __syncthreads();
    y[threadIdx.x] = one + many[7 - threadIdx.x] + rows[threadIdx.x][1] + pairs[0].b + below[1] + outside[2];
}
"""
    )
    y = zeros(8)
    report = module.launch("k<float, 2>", 1, 8, y, shared_bytes=32)
    assert (y == 11114).all()
    assert {a.name: a.size for a in report.shared} == {
        "one": 4, "many": 64, "rows": 96, "pairs": 64, "below": 32, "outside": 32,
    }  # fmt: skip
    assert {a.name: a.line for a in report.shared}["below"] == 8


def test_without_a_compiler_the_mend_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    build.find_compiler.cache_clear()
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("COURSE_CXX", raising=False)
    with pytest.raises(NoCompiler, match="apt-get install g"):
        Module("__global__ void k() {}")
    build.find_compiler.cache_clear()


def test_a_module_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COURSE_KERNELS", str(tmp_path))
    text = "__global__ void k(float* a) { a[0] = 1; }"
    Module(text)
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", None)  # nothing is compiled again
        Module(text)
    Module(text + "\n")
    assert len(list(tmp_path.glob("*.so"))) == 2


# the kernels of the first files


@pytest.mark.parametrize("n", [1, 31, 256, 1003])
def test_vector_add(n: int) -> None:
    module = Module(KERNELS / "vector_add.cu")
    a, b = np.random.default_rng(n).standard_normal((2, n), dtype=np.float32)
    for kernel, per in (("vector_add", 1), ("vector_add4", 4), ("vector_add_grid_stride", 2)):
        c = zeros(n)
        report = module.launch(kernel, -(-n // (256 * per)), 256, a, b, c, n)
        assert np.array_equal(c, a + b)
        assert report.global_bytes == 12 * n
        assert report.sectors == report.ideal_sectors
        if kernel != "vector_add4":
            assert report.sectors == 3 * -(-n // 8)


@pytest.mark.parametrize(("rows", "columns"), [(64, 96), (61, 37), (1, 33), (33, 1)])
def test_transpose(rows: int, columns: int) -> None:
    module = Module(KERNELS / "transpose.cu")
    x = np.random.default_rng(rows).random((rows, columns), dtype=np.float32)
    reports = {}
    for kernel in module.kernels:
        y = zeros(columns, rows)
        grid = (-(-columns // 32), -(-rows // 32))
        reports[kernel] = module.launch(kernel, grid, (32, 8), x, y, rows, columns)
        assert np.array_equal(y, x.T)
    if rows % 32 == columns % 32 == 0:
        ideal = rows * columns // 8
        assert reports["transpose_naive"].traffic("out").sectors == 8 * ideal
        assert reports["transpose_tiled"].sectors == reports["transpose"].sectors == 2 * ideal
        requests = reports["transpose_tiled"].traffic("tile", kind="read").requests
        assert reports["transpose_tiled"].bank_conflicts == 31 * requests
        assert reports["transpose"].bank_conflicts == 0


@pytest.mark.parametrize("n", [1, 97, 5000])
def test_reduce_sum(n: int) -> None:
    module = Module(KERNELS / "reduce_sum.cu")
    x = np.random.default_rng(n).random(n, dtype=np.float32)
    blocks = 4
    for kernel, shared, atomics, barriers in (
        ("reduce_sum_atomic", 0, n, 0),
        ("reduce_sum_tree", 1024, blocks, 8 * blocks),
        ("reduce_sum", 0, blocks, blocks),
    ):
        out = zeros(1)
        grid = -(-n // 256) if kernel == "reduce_sum_atomic" else blocks
        report = module.launch(kernel, grid, 256, x, out, n, shared_bytes=shared)
        np.testing.assert_allclose(out[0], x.sum(dtype=np.float64), rtol=1e-5)
        assert (report.atomics, report.barriers) == (atomics, barriers)
        assert report.bank_conflicts == 0


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc here")
@pytest.mark.parametrize(
    ("source", "chip"),
    [
        pytest.param(p, c, id=f"{p.stem}-{c}")
        for p, c in itertools.product(sorted(KERNELS.glob("*.cu")), ("sm_80", "sm_90"))
    ],
)
def test_nvcc_compiles_every_source(source: Path, chip: str, tmp_path: Path) -> None:
    command = ["nvcc", f"-arch={chip}", "-cubin", "-o", str(tmp_path / "kernel.cubin"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# real hardware: what can be told without it


def test_a_backend_that_is_not_there_says_so(taking: Module) -> None:
    if on_cuda.driver() is None:
        with pytest.raises(LaunchError, match="no NVIDIA GPU"):
            taking.launch("doubles", 1, 4, zeros(4), zeros(4), backend="cuda")
        assert taking.launch("doubles", 1, 4, zeros(4), zeros(4), backend="auto").ran == "kernel lab"
    with pytest.raises(LaunchError, match="does not run on the backend 'metal'"):
        taking.launch("doubles", 1, 4, zeros(4), zeros(4), backend="metal")


@pytest.mark.skipif(
    on_cuda.nvrtc() is None and shutil.which("nvcc") is None, reason="there is no CUDA compiler"
)
def test_a_gpu_gets_the_same_source_compiled() -> None:
    source = "template <int N> __global__ void k(float* a) {\n    a[threadIdx.x] = N;\n}\n"
    code, name = on_cuda.compile_cubin(source, "k.cu", "k<16>", "sm_90")
    assert code[:4] == b"\x7fELF" and name == "_Z1kILi16EEvPf"
    with pytest.raises(CompileError, match='line 2: identifier "N" is undefined'):
        on_cuda.compile_cubin(source.replace("template <int N> ", ""), "k.cu", "k", "sm_90")


# pictures


def test_a_trace_holds_what_one_warp_touched() -> None:
    module = Module(KERNELS / "transpose.cu")
    x = np.arange(64 * 64, dtype=np.float32)
    arguments = (x.reshape(64, 64), zeros(64, 64), 64, 64)
    report = module.launch("transpose_naive", (2, 2), (32, 8), *arguments, trace=((1, 0), 2))
    reads = pictures.accesses(report, "in")
    assert len(reads) == 4  # this warp's four rows of the tile: 2, 10, 18, 26
    for turn, group in enumerate(reads):
        assert group[:, 0].tolist() == list(range(32))
        assert group[:, 1].tolist() == [4 * (64 * (2 + 8 * turn) + 32 + lane) for lane in range(32)]
    writes = pictures.accesses(report, "out", kind="write")
    assert (np.diff(writes[0][:, 1]) == 4 * 64).all()
    with pytest.raises(ValueError, match="no write of 'in'"):
        pictures.accesses(report, "in", kind="write")


def test_pictures_say_what_the_counts_say() -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    module = Module(KERNELS / "transpose.cu")
    report = module.launch("transpose_tiled", 1, (32, 8), zeros(32, 32), zeros(32, 32), 32, 32, trace=(0, 0))
    titles = []
    for draw in (
        lambda ax: pictures.access_map(ax, report, "in"),
        lambda ax: pictures.bank_map(ax, report, "tile"),
        lambda ax: pictures.traffic_by_line(ax, report),
        lambda ax: pictures.waves(ax, report, 4),
    ):
        fig, ax = plt.subplots()
        titles.append(draw(ax).get_title())
        plt.close(fig)
    assert titles == [
        "4 sectors for 128 bytes",
        "tile: 128 passes for 4 requests",
        "256 sectors, 256 needed",
        "1 waves, 25% full",
    ]
