"""Metal in the kernel lab: results, counts, findings, and what is refused."""

import numpy as np
import pytest
import torch

from course_lib.kernels.lab import CompileError, KernelFault, LaunchError, Module, Unsupported

SOURCE = r"""
#include <metal_stdlib>
#include <metal_simdgroup_matrix>
using namespace metal;

constant constexpr uint TILE = 8;  // threadgroup in a comment

kernel void vector_add(device const float* a [[buffer(0)]],
                       device const float* b [[buffer(1)]],
                       device float* c [[buffer(2)]],
                       constant uint& n [[buffer(3)]],
                       uint i [[thread_position_in_grid]]) {
    if (i < n) c[i] = a[i] + b[i];
}

// The numbers of the buffers decide, not their order.
kernel void subtract(uint i [[thread_position_in_grid]], device float* c [[buffer(2)]],
                     device const float* b [[buffer(1)]], device const float* a [[buffer(0)]]) {
    c[i] = a[i] - b[i];
}

kernel void sum(device const float* x, device atomic_float& out, constant uint& n,
                uint i [[thread_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
                uint group [[simdgroup_index_in_threadgroup]], uint groups [[simdgroups_per_threadgroup]]) {
    threadgroup float partial[32];
    float s = simd_sum(i < n ? x[i] : 0.0f);
    if (lane == 0) partial[group] = s;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (group == 0) {
        s = simd_sum(lane < groups ? partial[lane] : 0.0f);
        if (lane == 0) atomic_fetch_add_explicit(&out, s, memory_order_relaxed);
    }
}

float scaled(threadgroup const float4* s, uint i, thread float& last) {
    last = s[i].w;
    return s[i].x;
}

kernel void turned(device float4* y, threadgroup float4* s [[threadgroup(0)]],
                   uint2 at [[thread_position_in_grid]], uint3 size [[threads_per_threadgroup]]) {
    s[at.x] = y[at.x].wzyx * 2;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    uint other = size.x - 1 - at.x;
    float last = 0;
    float first = scaled(s, other, last);
    float4 v = s[other];
    v.xy += v.zw;
    v.zw = float2(first, last);
    y[at.x] = select(v, max(v, float4(0)), true);
}

kernel void product(device const half* a, device const half* b, device float* c, constant uint& n,
                    uint2 group [[threadgroup_position_in_grid]]) {
    simdgroup_float8x8 sum(0);
    simdgroup_half8x8 left, right;
    for (uint k = 0; k < n; k += TILE) {
        simdgroup_load(left, a + group.y * TILE * n + k, n);
        simdgroup_load(right, b + k * n + group.x * TILE, n);
        simdgroup_multiply_accumulate(sum, left, right, sum);
    }
    simdgroup_store(sum, c + group.y * TILE * n + group.x * TILE, n);
}

kernel void scaled_by_diagonal(device const bfloat* a, device float* c) {
    simdgroup_bfloat8x8 left, twice(2);
    simdgroup_float8x8 sum = make_filled_simdgroup_matrix<float, 8, 8>(1);
    simdgroup_load(left, a, 8, ulong2(0, 0), true);
    simdgroup_multiply_accumulate(sum, left, twice, sum);
    simdgroup_store(sum, c, 8);
}

kernel void lanes(device int* y, ushort lane [[thread_index_in_simdgroup]]) {
    int v = lane * lane;
    y[lane] = simd_shuffle_xor(v, 5) + 1000 * simd_prefix_exclusive_sum(int(lane)) + simd_max(v)
        + int(simd_any(lane == 7)) + simd_broadcast(v, 3);
}

kernel void sizes(device uint* y, uint2 i [[thread_position_in_grid]], uint2 n [[threads_per_grid]],
                  uint2 here [[threads_per_threadgroup]], uint2 all [[dispatch_threads_per_threadgroup]]) {
    y[i.y * n.x + i.x] = here.x * 1000000 + here.y * 10000 + all.x * 100 + all.y;
}

kernel void halves(device const half* x, device half* y, constant float& f,
                   uint i [[thread_position_in_grid]]) {
    half h = x[i];
    y[i] = half(h * f + 1.0f) - h;
}

kernel void races(device float* y, uint i [[thread_position_in_threadgroup]]) {
    threadgroup float s[64];
    s[i] = i;
    y[i] = s[63 - i];
}

kernel void past(device float* y, uint i [[thread_position_in_grid]]) { y[i + 1] = 1; }

kernel void apart(device float* y, uint i [[thread_position_in_threadgroup]]) {
    if (i < 16) y[i] = simd_sum(1.0f);
    threadgroup_barrier(mem_flags::mem_threadgroup);
}
"""


@pytest.fixture(scope="module")
def metal() -> Module:
    return Module(SOURCE, "metal", name="mine.metal")


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def test_a_grid_need_not_be_whole_threadgroups(metal: Module) -> None:
    n = 1003
    a, b = np.random.default_rng(0).random((2, n), dtype=np.float32)
    for how in ({"grid": None, "threads": n}, {"grid": 4}):
        c = zeros(n)
        report = metal.launch("vector_add", how["grid"], 256, a, b, c, n, threads=how.get("threads"))
        assert np.array_equal(c, a + b)
        assert report.sectors == 3 * 126 and report.global_bytes == 12 * n
    with pytest.raises(LaunchError, match="takes a grid"):
        metal.launch("vector_add", 4, 256, a, b, c, n, threads=n)


def test_threads_know_their_sizes_at_the_edge(metal: Module) -> None:
    y = np.zeros((5, 7), np.uint32)
    metal.launch("sizes", None, (4, 2), y, threads=(7, 5))
    for row in range(5):
        for column in range(7):
            here = (4 if column < 4 else 3, 2 if row < 4 else 1)
            assert y[row, column] == here[0] * 1000000 + here[1] * 10000 + 4 * 100 + 2


def test_buffers_come_in_the_order_of_their_numbers(metal: Module) -> None:
    a, b, c = np.arange(8, dtype=np.float32), np.ones(8, np.float32), zeros(8)
    metal.launch("subtract", 1, 8, a, b, c)
    assert np.array_equal(c, a - 1)


def test_simdgroups_reduce(metal: Module) -> None:
    x, out = np.random.default_rng(1).random(1003, dtype=np.float32), zeros(1)
    report = metal.launch("sum", 8, 128, x, out, x.size)
    np.testing.assert_allclose(out[0], x.sum(dtype=np.float64), rtol=1e-5)
    assert report.atomics == 8 and report.barriers == 8 and report.shared_bytes == 128


def test_vectors_swizzle_and_move_at_once(metal: Module) -> None:
    y = np.random.default_rng(2).standard_normal((16, 4)).astype(np.float32)
    want = (2 * y[:, ::-1])[::-1].copy()
    first, last = want[:, 0].copy(), want[:, 3].copy()
    want[:, :2] += want[:, 2:]
    want[:, 2], want[:, 3] = first, last
    report = metal.launch("turned", 1, 16, y, shared_bytes=256)
    np.testing.assert_array_equal(y, np.maximum(want, 0))
    assert report.traffic("y").sectors == 16 and report.traffic("y").requests == 2
    assert [a.name for a in report.shared] == ["s"]
    with pytest.raises(KernelFault, match="shared_bytes="):
        metal.launch("turned", 1, 16, y)


def test_simdgroup_matrices_multiply(metal: Module) -> None:
    n = 24
    a, b = np.random.default_rng(3).standard_normal((2, n, n)).astype(np.float16)
    c = zeros(n, n)
    report = metal.launch("product", (3, 3), 32, a, b, c, n)
    np.testing.assert_allclose(c, a.astype(np.float32) @ b.astype(np.float32), rtol=1e-5, atol=1e-5)
    assert report.traffic("a").bytes == 2 * n * n * 3


def test_a_matrix_of_one_number_is_diagonal(metal: Module) -> None:
    a, c = torch.arange(64).bfloat16(), zeros(8, 8)
    metal.launch("scaled_by_diagonal", 1, 32, a, c)
    assert np.array_equal(c, 1 + 2 * np.arange(64).reshape(8, 8).T)


def test_lanes_exchange_values(metal: Module) -> None:
    y = np.zeros(32, np.int32)
    metal.launch("lanes", 1, 32, y)
    lane = np.arange(32)
    assert np.array_equal(y, (lane ^ 5) ** 2 + 1000 * (lane * (lane - 1) // 2) + 31**2 + 1 + 9)


def test_half_rounds_like_numpys(metal: Module) -> None:
    x = np.random.default_rng(4).standard_normal(64).astype(np.float16)
    y = np.zeros(64, np.float16)
    metal.launch("halves", 2, 32, x, y, 0.3)
    want = (x.astype(np.float32) * np.float32(0.3) + 1).astype(np.float16) - x
    np.testing.assert_array_equal(y, want)


def test_faults_are_found_in_metal_too(metal: Module) -> None:
    says = r"race on byte \d+ of s.*no threadgroup_barrier.mem_flags::mem_threadgroup. between"
    with pytest.raises(KernelFault, match=says):
        metal.launch("races", 1, 64, zeros(64))
    with pytest.raises(KernelFault, match=r"mine.metal, line \d+: past: .* y\[64\]") as caught:
        metal.launch("past", 2, 32, zeros(64))
    assert "y[i + 1] = 1" in SOURCE.splitlines()[caught.value.findings[0].line - 1]
    with pytest.raises(KernelFault, match="simd_sum"):
        metal.launch("apart", 1, 32, zeros(32))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kernel void k(texture2d<float> t [[texture(0)]]) {}", "textures"),
        ("vertex float4 v(uint i [[vertex_id]]) { return 0; }\nkernel void k() {}", "graphics"),
        ("kernel void k(device float* a, uint i [[amplification_id]]) {}", "amplification_id"),
        ("kernel void k(device float* a [[function_constant(flag)]]) {}", "function constants"),
    ],
)
def test_what_is_out_of_scope_is_refused_by_name(text: str, says: str) -> None:
    with pytest.raises(Unsupported, match=says):
        Module(text, "metal")


def test_errors_stand_at_the_learners_line() -> None:
    with pytest.raises(CompileError, match="nothing") as caught:
        Module("using namespace metal;\n\nkernel void k(device float* a) {\n    a[0] = nothing;\n}", "metal")
    assert caught.value.line == 4
    with pytest.raises(CompileError, match="no kernel function"):
        Module("float f() { return 1; }", "metal")


TEMPLATES = r"""
using namespace metal;
template <typename T, uint N = 4>
[[kernel]] void turned(device const T* x, device T* y, constant float& f,
                       uint i [[thread_position_in_grid]]) {
    threadgroup T tile[N * 8];
    tile[i] = x[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    y[i] = T(float(tile[31 - i]) * f);
}
// Named for the host as Apple's specification does it, and as MLX does it.
template [[host_name("turned_float")]] kernel void turned<float>(
    device const float*, device float*, constant float&, uint);
template [[host_name("wide")]] [[kernel]] decltype(turned<float, 8>) turned<float, 8>;
#define INSTANTIATE(T, N) \
    template [[host_name("turned_" #T)]] [[kernel]] \
    decltype(turned<T, N>) turned<T, N>;
INSTANTIATE(half, 4)
INSTANTIATE(bfloat, 6)
kernel void plain(device float* y, uint i [[thread_position_in_grid]]) { y[i] = vec<float, 4>(i).w; }
"""


def test_kernels_of_a_template_are_those_with_a_hosts_name() -> None:
    module = Module(TEMPLATES, "metal", name="mine.metal")
    assert module.kernels == ("turned_float", "wide", "turned_half", "turned_bfloat", "plain")
    dtypes = {"turned_float": torch.float32, "wide": torch.float32, "turned_half": torch.float16}
    for kernel, size in (("turned_float", 128), ("wide", 256), ("turned_half", 64), ("turned_bfloat", 96)):
        x = torch.arange(32).to(dtypes.get(kernel, torch.bfloat16))
        y = torch.zeros_like(x)
        report = module.launch(kernel, 1, 32, x, y, 2.0)
        assert torch.equal(y, 2 * x.flip(0)) and report.shared_bytes == size
    with pytest.raises(KernelFault, match=r"mine.metal, line \d+: turned_half: "):
        module.launch("turned_half", 1, 33, *torch.zeros(2, 33).half(), 1.0)
    with pytest.raises(LaunchError, match="no kernel called 'turned'"):
        module.launch("turned", 1, 32, y, y, 2.0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("template <typename T> kernel void k(device T* a) {}", r"line 1: k is a template.*host_name"),
        ("float f() {\n    threadgroup float s[4];\n    return s[0];\n}\nkernel void k() {}", "line 2: a t"),
        ("threadgroup float s[4];\nkernel void k() {}", "line 1: a threadgroup variable is declared in"),
    ],
)
def test_what_metals_own_compiler_would_refuse(text: str, says: str) -> None:
    with pytest.raises(CompileError, match=says):
        Module(text, "metal")
