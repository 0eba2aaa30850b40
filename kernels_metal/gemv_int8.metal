// Matrix times vector with weights of 8 bits: y[r] = scales[r] (w[r][0] x[0] + w[r][1] x[1] + ...).
//
// Shapes   w: (rows, columns) int8, row-major, columns a multiple of 4; scales: (rows,) float32;
//          x: (columns,), y: (rows,) of a type T: float, half or bfloat, and float in the first two
//          versions. A weight is w[r][c] scales[r]: symmetric, a scale a row.
// CPU      for (int r = 0; r < rows; ++r) {
//              float sum = 0;
//              for (int c = 0; c < columns; ++c) sum += w[r * columns + c] * x[c];
//              y[r] = scales[r] * sum;
//          }
// Bytes    a weight: 1, where float32 has 4 and float16 has 2. Decoding reads each weight once a
//          token, so that is the time.
// Grid     gemv_int8_naive rows threads; gemv_int8_simd ceil(rows / 4) threadgroups; the others
//          ceil(rows / 16). Threadgroup 128.
//
// version            sectors of w   reads of x, a weight  what it changes
// gemv_int8_naive    32 x the best  1                     a row a thread: a sector of 32 bytes for
//                                                         each byte (rows of 32 bytes or more)
// gemv_int8_simd     the best       1                     a row a simdgroup: 32 lanes read one
//                                                         sector
// gemv_int8_float,   the best       1/4                   four weights in one access of 4 bytes: a
// _half, _bfloat                                          quarter of the requests; four rows a
//                                                         simdgroup: a quarter of the reads of x
//
// Source: Dettmers et al., "LLM.int8()" (2022), section 2, for the scales. Not yet run on a Mac.

#include <metal_stdlib>
using namespace metal;

kernel void gemv_int8_naive(device const int8_t* w [[buffer(0)]],
                            device const float* scales [[buffer(1)]],
                            device const float* x [[buffer(2)]], device float* y [[buffer(3)]],
                            constant uint& columns [[buffer(4)]],
                            uint row [[thread_position_in_grid]]) {
    float sum = 0;
    for (uint c = 0; c < columns; ++c) sum += w[row * columns + c] * x[c];
    y[row] = scales[row] * sum;
}

kernel void gemv_int8_simd(device const int8_t* w [[buffer(0)]],
                           device const float* scales [[buffer(1)]],
                           device const float* x [[buffer(2)]], device float* y [[buffer(3)]],
                           constant uint& rows [[buffer(4)]], constant uint& columns [[buffer(5)]],
                           uint group [[threadgroup_position_in_grid]],
                           uint lane [[thread_index_in_simdgroup]],
                           uint simdgroup [[simdgroup_index_in_threadgroup]],
                           uint simdgroups [[simdgroups_per_threadgroup]]) {
    uint row = group * simdgroups + simdgroup;
    if (row >= rows) return;  // a whole simdgroup leaves, or none of it
    float sum = 0;
    for (uint c = lane; c < columns; c += 32) sum += w[row * columns + c] * x[c];
    sum = simd_sum(sum);
    if (lane == 0) y[row] = scales[row] * sum;
}

constant constexpr uint EACH = 4;  // rows a simdgroup

template <typename T>
[[kernel]] void gemv_int8(device const int8_t* w [[buffer(0)]],
                          device const float* scales [[buffer(1)]],
                          device const T* x [[buffer(2)]], device T* y [[buffer(3)]],
                          constant uint& rows [[buffer(4)]], constant uint& columns [[buffer(5)]],
                          uint group [[threadgroup_position_in_grid]],
                          uint lane [[thread_index_in_simdgroup]],
                          uint simdgroup [[simdgroup_index_in_threadgroup]],
                          uint simdgroups [[simdgroups_per_threadgroup]]) {
    uint top = (group * simdgroups + simdgroup) * EACH;
    float sum[EACH] = {};
    for (uint c = 4 * lane; c < columns; c += 128) {
        float4 part = float4(*reinterpret_cast<device const vec<T, 4>*>(x + c));
        for (uint r = 0; r < EACH && top + r < rows; ++r) {
            uint place = (top + r) * columns + c;
            char4 four = *reinterpret_cast<device const char4*>(w + place);
            sum[r] += dot(float4(four), part);
        }
    }
    for (uint r = 0; r < EACH && top + r < rows; ++r) {  // the same for all lanes of a simdgroup
        float total = simd_sum(sum[r]);
        if (lane == 0) y[top + r] = T(scales[top + r] * total);
    }
}

template [[host_name("gemv_int8_float")]] [[kernel]] decltype(gemv_int8<float>) gemv_int8<float>;
template [[host_name("gemv_int8_half")]] [[kernel]] decltype(gemv_int8<half>) gemv_int8<half>;
template [[host_name("gemv_int8_bfloat")]] [[kernel]] decltype(gemv_int8<bfloat>) gemv_int8<bfloat>;
