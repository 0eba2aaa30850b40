// Rotary position embedding, halves as Llama has them: with d2 = d / 2 and the angle
// a = position base^(-2p / d), the pair (x[p], x[p + d2]) of each head becomes
// (x[p] cos a - x[p + d2] sin a, x[p + d2] cos a + x[p] sin a), in place.
//
// Shapes   x: (tokens, heads, d) of a type T, d even: float, half or bfloat, and float in the first
//          two versions; positions: (tokens,) int32; cosines, sines: (most positions, d / 2)
//          float32, row t for position t.
// CPU      for (int t = 0; t < tokens; ++t)
//              for (int h = 0; h < heads; ++h)
//                  for (int p = 0; p < d / 2; ++p)
//                      rotate(x[t][h], p, positions[t] * powf(base, -2.0f * p / d));
// Bytes    2 sizeof(T) an element of x: read and written; the table: 8 a pair that is looked up.
// Threads  see the table, in a grid of that shape by dispatchThreads. Threadgroup (32, 4, 1).
//
// version       threads                  table read          what it changes
// rope_naive    (d / 2, heads, tokens)   0                   a power, a sine and a cosine a pair
// rope_table    (d / 2, heads, tokens)   4 tokens heads d    looks them up: in float32, half as
//                                                            many bytes again as x moves
// rope_float,   (d / 2, tokens)          4 tokens d          all heads of a token turn by the same
// _half,                                                     angles: 1 / heads of the table's
// _bfloat                                                    bytes
//
// A position in the grid of three numbers is the index of the pair: no thread divides. At position
// 100 000 the angles of the first pairs are near 100 000, where float32 has steps of 0.008: a
// table that is computed in float64 does not lose these digits, rope_naive does. precise:: keeps
// fast math from cutting the sine of a large angle short.
//
// Source: Su et al., "RoFormer" (2021), section 3.4. Not yet run on a Mac.

#include <metal_stdlib>
using namespace metal;

template <typename T>
void rotate(device T* head, uint p, uint d2, float cosine, float sine) {
    float first = float(head[p]), second = float(head[p + d2]);
    head[p] = T(first * cosine - second * sine);
    head[p + d2] = T(second * cosine + first * sine);
}

kernel void rope_naive(device float* x [[buffer(0)]], device const int* positions [[buffer(1)]],
                       constant float& base [[buffer(2)]],
                       uint3 item [[thread_position_in_grid]], uint3 grid [[threads_per_grid]]) {
    uint p = item.x, d2 = grid.x, head = item.z * grid.y + item.y;  // among all tokens' heads
    float angle = positions[item.z] * precise::pow(base, -float(p) / d2);
    rotate(x + head * 2 * d2, p, d2, precise::cos(angle), precise::sin(angle));
}

kernel void rope_table(device float* x [[buffer(0)]], device const int* positions [[buffer(1)]],
                       device const float* cosines [[buffer(2)]],
                       device const float* sines [[buffer(3)]],
                       uint3 item [[thread_position_in_grid]], uint3 grid [[threads_per_grid]]) {
    uint p = item.x, d2 = grid.x, head = item.z * grid.y + item.y;
    uint entry = positions[item.z] * d2 + p;
    rotate(x + head * 2 * d2, p, d2, cosines[entry], sines[entry]);
}

template <typename T>
[[kernel]] void rope(device T* x [[buffer(0)]], device const int* positions [[buffer(1)]],
                     device const float* cosines [[buffer(2)]],
                     device const float* sines [[buffer(3)]], constant uint& heads [[buffer(4)]],
                     uint2 item [[thread_position_in_grid]], uint2 grid [[threads_per_grid]]) {
    uint p = item.x, d2 = grid.x, token = item.y;
    uint entry = positions[token] * d2 + p;
    float cosine = cosines[entry], sine = sines[entry];
    for (uint h = 0; h < heads; ++h) rotate(x + (token * heads + h) * 2 * d2, p, d2, cosine, sine);
}

template [[host_name("rope_float")]] [[kernel]] decltype(rope<float>) rope<float>;
template [[host_name("rope_half")]] [[kernel]] decltype(rope<half>) rope<half>;
template [[host_name("rope_bfloat")]] [[kernel]] decltype(rope<bfloat>) rope<bfloat>;
