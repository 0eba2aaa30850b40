// Layer normalization of each row: y[i][j] = (x[i][j] - mean_i) / sqrt(variance_i + eps) w[j]
// + b[j], where variance_i is the mean of (x[i][j] - mean_i)^2.
//
// Shapes   x, y: (rows, columns), row-major; weight w, bias b: (columns,); of a type T: float, half
//          or bfloat, and float in the first two versions.
// CPU      for (int i = 0; i < rows; ++i) {
//              float mean = 0, variance = 0;
//              for (int j = 0; j < columns; ++j) mean += x[i * columns + j] / columns;
//              for (int j = 0; j < columns; ++j) {
//                  float d = x[i * columns + j] - mean;
//                  variance += d * d / columns;
//              }
//              for (int j = 0; j < columns; ++j)
//                  y[i * columns + j] =
//                      (x[i * columns + j] - mean) / sqrtf(variance + eps) * w[j] + b[j];
//          }
// Bytes    sizeof(T) an element of y written, twice that read of w and b; read of x: see the table.
// Grid     rows threadgroups of 256 (a power of two from 32 to 1024); layer_norm_simd
//          ceil(rows / (size / 32)), a row a simdgroup.
//
// version              reads of x  barriers  threadgroup  what it changes
// layer_norm_two_pass  3           19        1024 B       mean, then variance, each by a tree
// layer_norm_simd      2           0         0            one pass (Welford), a row a simdgroup:
//                                                         simd_sum needs no barrier
// layer_norm_float,    2           1         384 B        one pass, a row a threadgroup: for long
// _half, _bfloat                                          rows, or few
//
// One pass with the sums of x and of x^2 reads as little, but loses every digit of the variance
// where the mean is large: 1e4^2 + 1 is 1e8 in float32. Welford's update never squares the mean.
//
// Source: Ba, Kiros and Hinton, "Layer Normalization" (2016); B. P. Welford, "Note on a Method for
// Calculating Corrected Sums of Squares and Products" (1962); Chan, Golub and LeVeque, "Updating
// Formulae and a Pairwise Algorithm for Computing Sample Variances" (1979), for together. Not yet
// run on a Mac.

#include <metal_stdlib>
using namespace metal;

kernel void layer_norm_two_pass(device const float* x [[buffer(0)]],
                                device const float* weight [[buffer(1)]],
                                device const float* bias [[buffer(2)]],
                                device float* y [[buffer(3)]], constant uint& columns [[buffer(4)]],
                                constant float& eps [[buffer(5)]],
                                threadgroup float* partial [[threadgroup(0)]],
                                uint row [[threadgroup_position_in_grid]],
                                uint place [[thread_position_in_threadgroup]],
                                uint size [[threads_per_threadgroup]]) {
    device const float* in = x + row * columns;
    device float* out = y + row * columns;
    float sum = 0, squares = 0;
    for (uint j = place; j < columns; j += size) sum += in[j];
    partial[place] = sum;
    for (uint half_size = size / 2; half_size > 0; half_size /= 2) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (place < half_size) partial[place] += partial[place + half_size];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float mean = partial[0] / columns;
    for (uint j = place; j < columns; j += size) squares += (in[j] - mean) * (in[j] - mean);
    threadgroup_barrier(mem_flags::mem_threadgroup);  // everyone has the mean: its place is free
    partial[place] = squares;
    for (uint half_size = size / 2; half_size > 0; half_size /= 2) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
        if (place < half_size) partial[place] += partial[place + half_size];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float scale = rsqrt(partial[0] / columns + eps);
    for (uint j = place; j < columns; j += size)
        out[j] = (in[j] - mean) * scale * weight[j] + bias[j];
}

// What is known of some values: how many, their mean, and the sum of their squared distances to it.
struct Moments {
    float count, mean, squares;
};

Moments with_value(Moments seen, float value) {
    float count = seen.count + 1, distance = value - seen.mean;
    float mean = seen.mean + distance / count;
    return {count, mean, seen.squares + distance * (value - mean)};
}

// What all lanes of a simdgroup have seen together.
Moments together(Moments seen) {
    float count = simd_sum(seen.count);
    // Around one lane's mean: the sum of small differences keeps the digits of a large mean.
    float around = simd_broadcast_first(seen.mean);
    float shift = simd_sum(seen.count * (seen.mean - around)) / max(count, 1.0f);
    float distance = seen.mean - around - shift;
    return {count, around + shift, simd_sum(seen.squares + seen.count * distance * distance)};
}

kernel void layer_norm_simd(device const float* x [[buffer(0)]],
                            device const float* weight [[buffer(1)]],
                            device const float* bias [[buffer(2)]], device float* y [[buffer(3)]],
                            constant uint& rows [[buffer(4)]], constant uint& columns [[buffer(5)]],
                            constant float& eps [[buffer(6)]],
                            uint group [[threadgroup_position_in_grid]],
                            uint lane [[thread_index_in_simdgroup]],
                            uint simdgroup [[simdgroup_index_in_threadgroup]],
                            uint simdgroups [[simdgroups_per_threadgroup]]) {
    uint row = group * simdgroups + simdgroup;
    if (row >= rows) return;  // a whole simdgroup leaves, or none of it
    device const float* in = x + row * columns;
    device float* out = y + row * columns;
    Moments seen = {0, 0, 0};
    for (uint j = lane; j < columns; j += 32) seen = with_value(seen, in[j]);
    seen = together(seen);
    float scale = rsqrt(seen.squares / columns + eps);
    for (uint j = lane; j < columns; j += 32)
        out[j] = (in[j] - seen.mean) * scale * weight[j] + bias[j];
}

template <typename T>
[[kernel]] void layer_norm(device const T* x [[buffer(0)]], device const T* weight [[buffer(1)]],
                           device const T* bias [[buffer(2)]], device T* y [[buffer(3)]],
                           constant uint& columns [[buffer(4)]], constant float& eps [[buffer(5)]],
                           uint row [[threadgroup_position_in_grid]],
                           uint place [[thread_position_in_threadgroup]],
                           uint size [[threads_per_threadgroup]],
                           uint lane [[thread_index_in_simdgroup]],
                           uint simdgroup [[simdgroup_index_in_threadgroup]],
                           uint simdgroups [[simdgroups_per_threadgroup]]) {
    threadgroup Moments parts[32];  // one a simdgroup
    device const T* in = x + row * columns;
    device T* out = y + row * columns;
    Moments seen = {0, 0, 0};
    for (uint j = place; j < columns; j += size) seen = with_value(seen, float(in[j]));
    seen = together(seen);
    if (lane == 0) parts[simdgroup] = seen;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    seen = {0, 0, 0};
    if (lane < simdgroups) seen = parts[lane];
    seen = together(seen);
    float scale = rsqrt(seen.squares / columns + eps);
    for (uint j = place; j < columns; j += size)
        out[j] = T((float(in[j]) - seen.mean) * scale * float(weight[j]) + float(bias[j]));
}

template [[host_name("layer_norm_float")]] [[kernel]] decltype(layer_norm<float>) layer_norm<float>;
template [[host_name("layer_norm_half")]] [[kernel]] decltype(layer_norm<half>) layer_norm<half>;
template [[host_name("layer_norm_bfloat")]] [[kernel]]
decltype(layer_norm<bfloat>) layer_norm<bfloat>;
