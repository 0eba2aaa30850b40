// Matrix times vector with weights of 4 bits in groups of 32: y[r] = sum over groups g of
// scales[r][g] (sum over the group's columns c of (code[r][c] - 8) x[c]).
//
// Shapes   codes: (rows, columns / 2) uint8, column 2i in the low half of byte i and 2i + 1 in the
//          high half; scales: (rows, columns / 32) float32; x: (columns,), y: (rows,) of a type T:
//          float, half or bfloat, and float in the first version. columns is a multiple of 32.
// CPU      for (int r = 0; r < rows; ++r) {
//              y[r] = 0;
//              for (int c = 0; c < columns; ++c) {
//                  int code = codes[(r * columns + c) / 2] >> (c % 2 * 4) & 15;
//                  y[r] += scales[(r * columns + c) / 32] * (code - 8) * x[c];
//              }
//          }
// Bytes    a weight: 1/2 for its code and 4/32 for its share of a scale, 5 bits in all; float16
//          has 16. Lanes that ask for the same scale share its sector.
// Grid     gemv_int4_naive rows threads; the others ceil(rows / 16) threadgroups. Threadgroup 128.
//
// version            sectors of codes  reads of x, a weight  what it changes
// gemv_int4_naive    32 a request      1                     a row a thread: a sector of 32 bytes
//                                                            for each byte (rows of 32 bytes or
//                                                            more)
// gemv_int4_float,   2 a request       1/4                   four rows a simdgroup; a lane reads
// _half, _bfloat                                             four codes in 2 bytes and four numbers
//                                                            of x at once, so that both lie side by
//                                                            side; x is scaled beforehand, so that
//                                                            masks need no shifts (see below)
//
// A code stands at bit 0, 4, 8 or 12 of its 16 bits: masked, it is 1, 16, 256 or 4096 times too
// large. x / 1, / 16, / 256, / 4096, computed once for four rows, makes up for it, exactly; the 8
// is taken off by the sum of the four x. llama.cpp and MLX do the same.
//
// Source: Frantar et al., "GPTQ" (2022), section 4; llama.cpp's Q4_0 for groups of 32 and the 8,
// and its mul_vec_q_n_f32 for the masks. Not yet run on a Mac.

#include <metal_stdlib>
using namespace metal;

constant constexpr uint GROUP = 32, EACH = 4;  // columns a scale; rows a simdgroup

kernel void gemv_int4_naive(device const uchar* codes [[buffer(0)]],
                            device const float* scales [[buffer(1)]],
                            device const float* x [[buffer(2)]], device float* y [[buffer(3)]],
                            constant uint& columns [[buffer(4)]],
                            uint row [[thread_position_in_grid]]) {
    float sum = 0;
    for (uint c = 0; c < columns; c += 2) {
        int pair = codes[(row * columns + c) / 2];
        float products = ((pair & 15) - 8) * x[c] + ((pair >> 4) - 8) * x[c + 1];
        sum += scales[(row * columns + c) / GROUP] * products;
    }
    y[row] = sum;
}

template <typename T>
[[kernel]] void gemv_int4(device const uchar* codes [[buffer(0)]],
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
        float eights = 8.0f * dot(part, float4(1.0f));
        part *= float4(1.0f, 1.0f / 16, 1.0f / 256, 1.0f / 4096);
        for (uint r = 0; r < EACH && top + r < rows; ++r) {
            uint place = (top + r) * columns + c;
            uint four = *reinterpret_cast<device const ushort*>(codes + place / 2);
            float4 large = float4(uint4(four & 0xfu, four & 0xf0u, four & 0xf00u, four & 0xf000u));
            sum[r] += scales[place / GROUP] * (dot(large, part) - eights);  // of one group
        }
    }
    for (uint r = 0; r < EACH && top + r < rows; ++r) {  // the same for all lanes of a simdgroup
        float total = simd_sum(sum[r]);
        if (lane == 0) y[top + r] = T(total);
    }
}

template [[host_name("gemv_int4_float")]] [[kernel]] decltype(gemv_int4<float>) gemv_int4<float>;
template [[host_name("gemv_int4_half")]] [[kernel]] decltype(gemv_int4<half>) gemv_int4<half>;
template [[host_name("gemv_int4_bfloat")]] [[kernel]] decltype(gemv_int4<bfloat>) gemv_int4<bfloat>;
