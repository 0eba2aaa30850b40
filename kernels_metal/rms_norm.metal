// RMS normalization of each row: y[i][j] = x[i][j] / sqrt(mean of x[i][0]^2 ... + eps) w[j].
//
// Shapes   x, y, residual: (rows, columns), row-major; weight w: (columns,); of a type T: float,
//          half or bfloat, and float in rms_norm_naive.
// CPU      for (int i = 0; i < rows; ++i) {
//              float squares = 0;
//              for (int j = 0; j < columns; ++j)
//                  squares += x[i * columns + j] * x[i * columns + j];
//              for (int j = 0; j < columns; ++j)
//                  y[i * columns + j] = x[i * columns + j] / sqrtf(squares / columns + eps) * w[j];
//          }
// Bytes    in units of sizeof(T): 2 an element of x read, 1 of w, 1 of y written.
// Grid     rms_norm_naive rows threads; the others ceil(rows / 4) threadgroups, a row a simdgroup.
//          Threadgroup 128.
//
// version              sectors of x and y  what it changes
// rms_norm_naive       8 x ideal           a row a thread: 32 lanes touch 32 rows, a sector each
//                                          for 4 bytes (where columns is 8 or more)
// rms_norm_float,      ideal               a row a simdgroup: 32 lanes touch 32 elements in a row
// _half, _bfloat
// rms_norm_add_float,  ideal               adds the residual stream in the same launch: 5 units an
// _half, _bfloat                           element and 1 of w, where an addition by itself (2
//                                          read, 1 written) and rms_norm move 6 and 1
//
// Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019). Not yet run on a Mac.

#include <metal_stdlib>
using namespace metal;

kernel void rms_norm_naive(device const float* x [[buffer(0)]],
                           device const float* weight [[buffer(1)]], device float* y [[buffer(2)]],
                           constant uint& columns [[buffer(3)]], constant float& eps [[buffer(4)]],
                           uint row [[thread_position_in_grid]]) {
    device const float* in = x + row * columns;
    float squares = 0;
    for (uint j = 0; j < columns; ++j) {
        float value = in[j];
        squares += value * value;
    }
    float scale = rsqrt(squares / columns + eps);
    for (uint j = 0; j < columns; ++j) y[row * columns + j] = in[j] * scale * weight[j];
}

template <typename T>
[[kernel]] void rms_norm(device const T* x [[buffer(0)]], device const T* weight [[buffer(1)]],
                         device T* y [[buffer(2)]], constant uint& rows [[buffer(3)]],
                         constant uint& columns [[buffer(4)]], constant float& eps [[buffer(5)]],
                         uint group [[threadgroup_position_in_grid]],
                         uint lane [[thread_index_in_simdgroup]],
                         uint simdgroup [[simdgroup_index_in_threadgroup]],
                         uint simdgroups [[simdgroups_per_threadgroup]]) {
    uint row = group * simdgroups + simdgroup;
    if (row >= rows) return;  // a whole simdgroup leaves, or none of it
    device const T* in = x + row * columns;
    float squares = 0;
    for (uint j = lane; j < columns; j += 32) {
        float value = float(in[j]);
        squares += value * value;
    }
    float scale = rsqrt(simd_sum(squares) / columns + eps);
    for (uint j = lane; j < columns; j += 32)
        y[row * columns + j] = T(float(in[j]) * scale * float(weight[j]));
}

// residual += x; y = rms_norm(residual).
template <typename T>
[[kernel]] void rms_norm_add(device const T* x [[buffer(0)]], device T* residual [[buffer(1)]],
                             device const T* weight [[buffer(2)]], device T* y [[buffer(3)]],
                             constant uint& rows [[buffer(4)]],
                             constant uint& columns [[buffer(5)]],
                             constant float& eps [[buffer(6)]],
                             uint group [[threadgroup_position_in_grid]],
                             uint lane [[thread_index_in_simdgroup]],
                             uint simdgroup [[simdgroup_index_in_threadgroup]],
                             uint simdgroups [[simdgroups_per_threadgroup]]) {
    uint row = group * simdgroups + simdgroup;
    if (row >= rows) return;
    device T* stream = residual + row * columns;
    float squares = 0;
    for (uint j = lane; j < columns; j += 32) {
        T value = T(float(x[row * columns + j]) + float(stream[j]));
        stream[j] = value;
        squares += float(value) * float(value);
    }
    float scale = rsqrt(simd_sum(squares) / columns + eps);
    // Each lane reads what it wrote itself: no barrier.
    for (uint j = lane; j < columns; j += 32)
        y[row * columns + j] = T(float(stream[j]) * scale * float(weight[j]));
}

#define INSTANTIATE(T)                                                                   \
    template [[host_name("rms_norm_" #T)]] [[kernel]] decltype(rms_norm<T>) rms_norm<T>; \
    template [[host_name("rms_norm_add_" #T)]] [[kernel]]                                \
    decltype(rms_norm_add<T>) rms_norm_add<T>;

INSTANTIATE(float)
INSTANTIATE(half)
INSTANTIATE(bfloat)
