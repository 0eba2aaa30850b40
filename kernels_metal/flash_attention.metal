// Causal attention without the row of scores (FlashAttention-2, forward), with grouped heads: query
// head h reads key and value head h / (heads / kv_heads).
//
// Shapes   q, out: (heads, n, D); k, v: (kv_heads, n, D); of a type T: float, half or bfloat. lse:
//          (heads, n) float32, the logarithm of each row's sum of exp(score), which the backward
//          pass starts from. D: 32, 64 or 128. Sums are float whatever T is.
// CPU      for each row: max = LOWEST, sum = 0, out = 0, and for each key j that it sees:
//              score = scale * dot(q, k[j]); higher = fmaxf(max, score);
//              shrink = expf(max - higher); weight = expf(score - higher);
//              sum = sum * shrink + weight; out = out * shrink + weight * v[j]; max = higher;
//          at the end out = out / sum, lse = max + logf(sum).
// Elements a head: n D + n written by both versions, and no other device memory used; n D of q
//          read; of k and v together: see the table, where n is a multiple of the tile B = 32.
// Threads  128 a threadgroup: four simdgroups.
//
// version           grid                   k and v read     barriers         threadgroup (D = 64)
// attention_online  (ceil(n / 4), heads)   n (n + 1) D      0                0
// flash_attention   (ceil(n / B), heads)   n (n + B) D / B  1 + 4 for each   14 336 B for float,
//                                                           tile it reads    10 240 B for half
//
// attention_online gives a simdgroup a row; each key and value passes once, and the scores are
// gone: what attention_naive.metal keeps in 4 n bytes of threadgroup memory is two registers here.
// The bytes read stay. flash_attention gives a threadgroup B rows: a tile of k and of v that it has
// loaded serves all of them, which divides the bytes by nearly B. A simdgroup has 8 of the rows,
// the height of the matrices that the hardware multiplies, and keeps its queries and its part of
// out in registers; queries, keys and values come by the same tile in turn, so that 32 KiB are
// enough for D = 128. Which lane holds which element of a matrix is not documented: scores pass
// through threadgroup memory to the lanes, and a row is shrunk by a product with a diagonal matrix.
//
// Source: T. Dao, "FlashAttention-2" (2023), algorithm 1; Metal Shading Language Specification 3.2,
// section 6.7 (simdgroup_matrix, on M1 and later); llama.cpp's kernel_flash_attn_ext for the
// diagonal matrix, MLX's steel_attention for the shared tile. Not yet run on a Mac.

#include <metal_simdgroup_matrix>
#include <metal_stdlib>
using namespace metal;

constant constexpr uint B = 32, ROWS = 8;  // a tile's rows and keys; rows a simdgroup
constant constexpr float LOWEST = -FLT_MAX / 2;  // no infinity: fast math may rely on that

template <typename T, uint D>
[[kernel]] void attention_online(device const T* q [[buffer(0)]], device const T* k [[buffer(1)]],
                                 device const T* v [[buffer(2)]], device T* out [[buffer(3)]],
                                 device float* lse [[buffer(4)]], constant uint& n [[buffer(5)]],
                                 constant uint& kv_heads [[buffer(6)]],
                                 constant float& scale [[buffer(7)]],
                                 uint2 group [[threadgroup_position_in_grid]],
                                 uint2 groups [[threadgroups_per_grid]],
                                 uint lane [[thread_index_in_simdgroup]],
                                 uint simdgroup [[simdgroup_index_in_threadgroup]]) {
    uint i = group.x * 4 + simdgroup, head = group.y, heads = groups.y;
    if (i >= n) return;  // a whole simdgroup leaves, or none of it
    uint first = head / (heads / kv_heads) * n;  // the first row of its keys and values
    float query[D / 32], mixed[D / 32] = {}, highest = LOWEST, sum = 0;
    for (uint c = 0; c < D / 32; ++c)
        query[c] = float(q[(head * n + i) * D + lane + 32 * c]) * scale;
    for (uint j = 0; j <= i; ++j) {
        float product = 0;
        for (uint c = 0; c < D / 32; ++c)
            product += query[c] * float(k[(first + j) * D + lane + 32 * c]);
        float score = simd_sum(product), higher = max(highest, score);
        float shrink = exp(highest - higher), weight = exp(score - higher);
        for (uint c = 0; c < D / 32; ++c)
            mixed[c] = mixed[c] * shrink + weight * float(v[(first + j) * D + lane + 32 * c]);
        sum = sum * shrink + weight;
        highest = higher;
    }
    for (uint c = 0; c < D / 32; ++c)
        out[(head * n + i) * D + lane + 32 * c] = T(mixed[c] / sum);
    if (lane == 0) lse[head * n + i] = highest + log(sum);
}

// Rows start to start + B - 1 of x (n, D) into the tile, whose rows lie PITCH apart; behind the
// last row stands 0.
template <typename T, uint D, uint PITCH>
void load_tile(device const T* x, threadgroup T* tile, uint start, uint n, uint thread_index) {
    for (uint t = thread_index; t < B * D; t += 128)
        tile[t / D * PITCH + t % D] = start + t / D < n ? x[start * D + t] : T(0.0f);
}

template <typename T, uint D>
[[kernel]] void flash_attention(device const T* q [[buffer(0)]], device const T* k [[buffer(1)]],
                                device const T* v [[buffer(2)]], device T* out [[buffer(3)]],
                                device float* lse [[buffer(4)]], constant uint& n [[buffer(5)]],
                                constant uint& kv_heads [[buffer(6)]],
                                constant float& scale [[buffer(7)]],
                                uint2 group [[threadgroup_position_in_grid]],
                                uint2 groups [[threadgroups_per_grid]],
                                uint thread_index [[thread_index_in_threadgroup]],
                                uint lane [[thread_index_in_simdgroup]],
                                uint simdgroup [[simdgroup_index_in_threadgroup]]) {
    constexpr uint PITCH = D + 16 / sizeof(T), WIDTH = B + 4;  // padded: rows in different banks
    threadgroup T tile[B * PITCH];
    threadgroup float all_scores[B * WIDTH], all_shrinks[B * ROWS];
    threadgroup float* scores = all_scores + simdgroup * ROWS * WIDTH;    // of its rows
    threadgroup float* shrinks = all_shrinks + simdgroup * ROWS * ROWS;  // a diagonal matrix
    uint top = group.x * B, mine = top + simdgroup * ROWS, head = group.y, heads = groups.y;
    uint first = head / (heads / kv_heads) * n;  // the first row of its keys and values
    q += head * n * D, out += head * n * D, lse += head * n, k += first * D, v += first * D;

    load_tile<T, D, PITCH>(q, tile, top, n, thread_index);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    simdgroup_matrix<T, 8, 8> query[D / 8];
    simdgroup_matrix<float, 8, 8> mixed[D / 8];
    for (uint c = 0; c < D / 8; ++c) {
        simdgroup_load(query[c], tile + simdgroup * ROWS * PITCH + 8 * c, PITCH);
        mixed[c] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    }
    float highest[ROWS], sum[ROWS] = {};
    for (uint r = 0; r < ROWS; ++r) highest[r] = LOWEST;
    for (uint t = lane; t < ROWS * ROWS; t += 32) shrinks[t] = 0;

    for (uint start = 0; start <= top; start += B) {  // tiles behind the diagonal are never loaded
        threadgroup_barrier(mem_flags::mem_threadgroup);  // all have read the tile: it is free
        load_tile<T, D, PITCH>(k, tile, start, n, thread_index);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint j = 0; j < B; j += 8) {
            simdgroup_matrix<T, 8, 8> key;
            simdgroup_matrix<float, 8, 8> score = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
            for (uint c = 0; c < D / 8; ++c) {
                simdgroup_load(key, tile + j * PITCH + 8 * c, PITCH, ulong2(0, 0), true);  // turned
                simdgroup_multiply_accumulate(score, query[c], key, score);
            }
            simdgroup_store(score, scores + j, WIDTH);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);  // the keys are read, the scores written
        load_tile<T, D, PITCH>(v, tile, start, n, thread_index);
        for (uint r = 0; r < ROWS; ++r) {  // a lane a key
            float score = scores[r * WIDTH + lane] * scale;
            if (start + lane > mine + r) score = LOWEST;
            float higher = max(highest[r], simd_max(score));
            float shrink = exp(highest[r] - higher), weight = exp(score - higher);
            sum[r] = sum[r] * shrink + simd_sum(weight);
            highest[r] = higher;
            scores[r * WIDTH + lane] = weight;
            if (lane == r) shrinks[r * ROWS + r] = shrink;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        simdgroup_matrix<float, 8, 8> shrink, weight;
        simdgroup_matrix<T, 8, 8> value;
        simdgroup_load(shrink, shrinks, ROWS);
        for (uint c = 0; c < D / 8; ++c) simdgroup_multiply(mixed[c], shrink, mixed[c]);
        for (uint j = 0; j < B; j += 8) {
            simdgroup_load(weight, scores + j, WIDTH);
            for (uint c = 0; c < D / 8; ++c) {
                simdgroup_load(value, tile + j * PITCH + 8 * c, PITCH);
                simdgroup_multiply_accumulate(mixed[c], weight, value, mixed[c]);
            }
        }
    }
    for (uint part = 0; part < D; part += 32) {  // 32 columns of out at a time, by the scores' way
        simdgroup_barrier(mem_flags::mem_threadgroup);
        for (uint j = 0; j < 32; j += 8) simdgroup_store(mixed[(part + j) / 8], scores + j, WIDTH);
        simdgroup_barrier(mem_flags::mem_threadgroup);
        for (uint r = 0; r < ROWS && mine + r < n; ++r)
            out[(mine + r) * D + part + lane] = T(scores[r * WIDTH + lane] / sum[r]);
    }
    for (uint r = 0; r < ROWS && mine + r < n; ++r)
        if (lane == r) lse[mine + r] = highest[r] + log(sum[r]);
}

#define INSTANTIATE(T, D)                                            \
    template [[host_name("attention_online_" #T "_" #D)]] [[kernel]] \
    decltype(attention_online<T, D>) attention_online<T, D>;         \
    template [[host_name("flash_attention_" #T "_" #D)]] [[kernel]]  \
    decltype(flash_attention<T, D>) flash_attention<T, D>;

INSTANTIATE(float, 32)
INSTANTIATE(float, 64)
INSTANTIATE(float, 128)
INSTANTIATE(half, 32)
INSTANTIATE(half, 64)
INSTANTIATE(half, 128)
INSTANTIATE(bfloat, 32)
INSTANTIATE(bfloat, 64)
INSTANTIATE(bfloat, 128)
