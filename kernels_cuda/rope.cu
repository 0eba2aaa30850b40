// Rotary position embedding, halves as Llama has them: with d2 = d / 2 and the angle
// a = position base^(-2p / d), the pair (x[p], x[p + d2]) of each head becomes
// (x[p] cos a - x[p + d2] sin a, x[p + d2] cos a + x[p] sin a), in place.
//
// Shapes   x: (tokens, heads, d) float32, d even; positions: (tokens,) int32; cosines, sines:
//          (most positions, d / 2) float32, row t for position t.
// CPU      for (int t = 0; t < tokens; ++t)
//              for (int h = 0; h < heads; ++h)
//                  for (int p = 0; p < d / 2; ++p)
//                      rotate(x[t][h], p, positions[t] * powf(base, -2.0f * p / d));
// Bytes    8 an element of x: 4 read, 4 written; the table: 8 a pair that is looked up.
// Block    any, here 128. An item is what a thread does.
//
// version     items                  table read          what it changes
// rope_naive  tokens heads (d / 2)   0                   a power, a sine and a cosine a pair
// rope_table  tokens heads (d / 2)   4 tokens heads d    looks them up: half as many bytes again
//                                                        as x moves
// rope        tokens (d / 2)         4 tokens d          all heads of a token turn by the same
//                                                        angles: 1 / heads of the table's bytes
//
// At position 100 000 the angles of the first pairs are near 100 000, where float32 has steps of
// 0.008: a table that is computed in float64 does not lose these digits, rope_naive does.
//
// Source: Su et al., "RoFormer" (2021), section 3.4.

__device__ void rotate(float* head, int p, int half, float cosine, float sine) {
    float first = head[p], second = head[p + half];
    head[p] = first * cosine - second * sine;
    head[p + half] = second * cosine + first * sine;
}

__global__ void rope_naive(float* x, const int* positions, int tokens, int heads, int d,
                           float base) {
    int item = blockIdx.x * blockDim.x + threadIdx.x, half = d / 2;
    if (item >= tokens * heads * half) return;
    int p = item % half, head = item / half;  // among the heads of all tokens
    float sine, cosine;
    sincosf(positions[head / heads] * powf(base, -2.0f * p / d), &sine, &cosine);
    rotate(x + head * d, p, half, cosine, sine);
}

__global__ void rope_table(float* x, const int* positions, const float* cosines,
                           const float* sines, int tokens, int heads, int d) {
    int item = blockIdx.x * blockDim.x + threadIdx.x, half = d / 2;
    if (item >= tokens * heads * half) return;
    int p = item % half, head = item / half;
    int entry = positions[head / heads] * half + p;
    rotate(x + head * d, p, half, cosines[entry], sines[entry]);
}

__global__ void rope(float* x, const int* positions, const float* cosines, const float* sines,
                     int tokens, int heads, int d) {
    int item = blockIdx.x * blockDim.x + threadIdx.x, half = d / 2;
    if (item >= tokens * half) return;
    int p = item % half, token = item / half;
    int entry = positions[token] * half + p;
    float cosine = cosines[entry], sine = sines[entry];
    for (int h = 0; h < heads; ++h) rotate(x + (token * heads + h) * d, p, half, cosine, sine);
}
