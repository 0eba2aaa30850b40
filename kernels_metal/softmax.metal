// Softmax of each row: y[i][j] = exp(x[i][j] - max_i) / sum_i, where max_i is the row's maximum and
// sum_i the sum of its exp(x[i][j] - max_i).
//
// Shapes   x, y: (rows, columns), row-major, of a type T: float, half or bfloat, and float in the
//          first two versions. columns at least 1, values finite and above LOWEST.
// CPU      for (int i = 0; i < rows; ++i) {
//              float max = LOWEST, sum = 0;
//              for (int j = 0; j < columns; ++j) max = fmaxf(max, x[i * columns + j]);
//              for (int j = 0; j < columns; ++j) sum += expf(x[i * columns + j] - max);
//              for (int j = 0; j < columns; ++j)
//                  y[i * columns + j] = expf(x[i * columns + j] - max) / sum;
//          }
// Bytes    sizeof(T) an element written; read: see the table (a row that fits in a cache is read
//          again from there).
// Grid     rows threadgroups of 256 (a power of two from 32 to 1024).
//
// version           reads  barriers  threadgroup  what it changes
// softmax_two_pass  3      19        1024 B       maximum, then sum, each by a tree, then the
//                                                 quotients
// softmax_simd      3      2         256 B        simd_max and simd_sum inside the simdgroups; only
//                                                 a number each meets in threadgroup memory
// softmax_float,    2      1         256 B        maximum and sum in one pass: when the maximum
// _half, _bfloat                                  rises, the sum so far shrinks; sums are float
//                                                 whatever T is
//
// Metal compiles with fast math unless told otherwise, and may then take it that no number is
// infinite: a maximum begins with LOWEST, and LOWEST - LOWEST is 0, not NaN.
//
// Source: M. Milakov and N. Gimelshein, "Online normalizer calculation for softmax" (2018); Metal
// Shading Language Specification 3.2, section 1.6.3 (fast math). Not yet run on a Mac.

#include <metal_stdlib>
using namespace metal;

constant constexpr float LOWEST = -FLT_MAX / 2;

kernel void softmax_two_pass(device const float* x [[buffer(0)]], device float* y [[buffer(1)]],
                             constant uint& columns [[buffer(2)]],
                             threadgroup float* partial [[threadgroup(0)]],  // an element a thread
                             uint row [[threadgroup_position_in_grid]],
                             uint place [[thread_position_in_threadgroup]],
                             uint size [[threads_per_threadgroup]]) {
    device const float* in = x + row * columns;
    device float* out = y + row * columns;
    float highest = LOWEST, sum = 0;
    for (uint j = place; j < columns; j += size) highest = max(highest, in[j]);
    partial[place] = highest;
    for (uint half_size = size / 2; half_size > 0; half_size /= 2) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (place < half_size) partial[place] = max(partial[place], partial[place + half_size]);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    highest = partial[0];
    for (uint j = place; j < columns; j += size) sum += exp(in[j] - highest);
    threadgroup_barrier(mem_flags::mem_threadgroup);  // all have the maximum: its place is free
    partial[place] = sum;
    for (uint half_size = size / 2; half_size > 0; half_size /= 2) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (place < half_size) partial[place] += partial[place + half_size];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    sum = partial[0];
    for (uint j = place; j < columns; j += size) out[j] = exp(in[j] - highest) / sum;
}

kernel void softmax_simd(device const float* x [[buffer(0)]], device float* y [[buffer(1)]],
                         constant uint& columns [[buffer(2)]],
                         uint row [[threadgroup_position_in_grid]],
                         uint place [[thread_position_in_threadgroup]],
                         uint size [[threads_per_threadgroup]],
                         uint lane [[thread_index_in_simdgroup]],
                         uint simdgroup [[simdgroup_index_in_threadgroup]],
                         uint simdgroups [[simdgroups_per_threadgroup]]) {
    threadgroup float maxima[32], sums[32];  // one a simdgroup
    device const float* in = x + row * columns;
    device float* out = y + row * columns;
    float highest = LOWEST, sum = 0;
    for (uint j = place; j < columns; j += size) highest = max(highest, in[j]);
    highest = simd_max(highest);
    if (lane == 0) maxima[simdgroup] = highest;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    // Every simdgroup combines all their numbers for itself: no second barrier to hand them out.
    highest = simd_max(lane < simdgroups ? maxima[lane] : LOWEST);
    for (uint j = place; j < columns; j += size) sum += exp(in[j] - highest);
    sum = simd_sum(sum);
    if (lane == 0) sums[simdgroup] = sum;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    sum = simd_sum(lane < simdgroups ? sums[lane] : 0.0f);
    for (uint j = place; j < columns; j += size) out[j] = exp(in[j] - highest) / sum;
}

template <typename T>
[[kernel]] void softmax(device const T* x [[buffer(0)]], device T* y [[buffer(1)]],
                        constant uint& columns [[buffer(2)]],
                        uint row [[threadgroup_position_in_grid]],
                        uint place [[thread_position_in_threadgroup]],
                        uint size [[threads_per_threadgroup]],
                        uint lane [[thread_index_in_simdgroup]],
                        uint simdgroup [[simdgroup_index_in_threadgroup]],
                        uint simdgroups [[simdgroups_per_threadgroup]]) {
    threadgroup float maxima[32], sums[32];  // one a simdgroup
    device const T* in = x + row * columns;
    device T* out = y + row * columns;
    float highest = LOWEST, sum = 0;  // of what the thread has seen
    for (uint j = place; j < columns; j += size) {
        float value = float(in[j]), higher = max(highest, value);
        sum = sum * exp(highest - higher) + exp(value - higher);
        highest = higher;
    }
    float of_all = simd_max(highest);
    sum = simd_sum(sum * exp(highest - of_all));
    if (lane == 0) maxima[simdgroup] = of_all, sums[simdgroup] = sum;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    highest = lane < simdgroups ? maxima[lane] : LOWEST;
    sum = lane < simdgroups ? sums[lane] : 0.0f;
    of_all = simd_max(highest);
    sum = simd_sum(sum * exp(highest - of_all));
    for (uint j = place; j < columns; j += size) out[j] = T(exp(float(in[j]) - of_all) / sum);
}

template [[host_name("softmax_float")]] [[kernel]] decltype(softmax<float>) softmax<float>;
template [[host_name("softmax_half")]] [[kernel]] decltype(softmax<half>) softmax<half>;
template [[host_name("softmax_bfloat")]] [[kernel]] decltype(softmax<bfloat>) softmax<bfloat>;
