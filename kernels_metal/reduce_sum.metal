// Sum of a vector: out[0] += x[0] + x[1] + ... + x[n-1].
//
// Shapes   x: (n,) float32; out: (1,) float32, zero before the launch. The order of the additions
//          is not the CPU's: compare with a tolerance.
// CPU      float sum = 0; for (int i = 0; i < n; ++i) sum += x[i];
// Bytes    4n read; nothing else matters, if the rest is done well.
// Grid     reduce_sum_atomic n threads; the others a few threadgroups a core. Threadgroup a power
//          of two from 32 to 1024, here 256.
//
// version            atomics        barriers a threadgroup  threadgroup  what it changes
// reduce_sum_atomic  an element     0                       0            all add to one address:
//                                                                        they queue
// reduce_sum_tree    a threadgroup  8                       1024 B       partial sums meet in
//                                                                        threadgroup memory,
//                                                                        halving each time
// reduce_sum         a threadgroup  1                       128 B        simd_sum adds 32 lanes: a
//                                                                        number a simdgroup is left
//
// Source: Metal Shading Language Specification 3.2, sections 6.9.2 (simd_sum) and 6.15 (atomics; on
// atomic_float since Metal 3); M. Harris, "Optimizing Parallel Reduction in CUDA" (NVIDIA, 2007).
// Not yet run on a Mac.

#include <metal_stdlib>
using namespace metal;

kernel void reduce_sum_atomic(device const float* x [[buffer(0)]],
                              device atomic_float* out [[buffer(1)]],
                              uint i [[thread_position_in_grid]]) {
    atomic_fetch_add_explicit(out, x[i], memory_order_relaxed);
}

kernel void reduce_sum_tree(device const float* x [[buffer(0)]],
                            device atomic_float* out [[buffer(1)]], constant uint& n [[buffer(2)]],
                            threadgroup float* partial [[threadgroup(0)]],  // an element a thread
                            uint first [[thread_position_in_grid]],
                            uint width [[threads_per_grid]],
                            uint place [[thread_position_in_threadgroup]],
                            uint size [[threads_per_threadgroup]]) {
    float sum = 0;
    for (uint i = first; i < n; i += width) sum += x[i];
    partial[place] = sum;
    for (uint half_size = size / 2; half_size > 0; half_size /= 2) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        // The first half adds the second: neighbors read neighbors.
        if (place < half_size) partial[place] += partial[place + half_size];
    }
    if (place == 0) atomic_fetch_add_explicit(out, partial[0], memory_order_relaxed);
}

kernel void reduce_sum(device const float* x [[buffer(0)]], device atomic_float* out [[buffer(1)]],
                       constant uint& n [[buffer(2)]], uint first [[thread_position_in_grid]],
                       uint width [[threads_per_grid]], uint lane [[thread_index_in_simdgroup]],
                       uint simdgroup [[simdgroup_index_in_threadgroup]],
                       uint simdgroups [[simdgroups_per_threadgroup]]) {
    threadgroup float partial[32];  // one a simdgroup
    float sum = 0;
    for (uint i = first; i < n; i += width) sum += x[i];
    sum = simd_sum(sum);
    if (lane == 0) partial[simdgroup] = sum;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (simdgroup == 0) {
        sum = simd_sum(lane < simdgroups ? partial[lane] : 0.0f);
        if (lane == 0) atomic_fetch_add_explicit(out, sum, memory_order_relaxed);
    }
}
