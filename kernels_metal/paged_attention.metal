// Attention of one new token a text (decoding) over keys and values that lie in blocks of a pool:
// token j of text i is row j % size of block tables[i][j / size].
//
// Shapes   q, out: (texts, heads, D); keys, values: (blocks, size, kv_heads, D); of a type T:
//          float, half or bfloat, and float in the first version; tables: (texts, most) int32;
//          lengths: (texts,) int32, at least 1. D: 32, 64 or 128. Query head h reads head h / G of
//          keys and values, where G = heads / kv_heads. Sums are float whatever T is.
// CPU      for each text i and head h, with L = lengths[i]:
//              for (int j = 0; j < L; ++j) score[j] = scale * dot(q[i][h], key(i, j, h / G), D);
//              softmax(score, L);
//              for (int j = 0; j < L; ++j) out[i][h] += score[j] * value(i, j, h / G);
// Elements for a text of L tokens: 4 heads D of q read (by each of four simdgroups), heads D of out
//          written; of keys and values, see the table. No fewer than 2 L kv_heads D: a token's
//          arithmetic is small, and these bytes are the time.
// Threads  128 a threadgroup: four simdgroups, each of which takes every fourth token; one barrier.
//
// version                grid                      keys and values  what it changes
// paged_attention_naive  (texts, heads)            2 L heads D      a threadgroup a query head
// paged_attention        (texts, kv_heads)         2 L kv_heads D   a threadgroup serves all G
//                                                                   heads of a group with what it
//                                                                   reads once
// paged_attention_split  (texts, kv_heads, parts)  2 L kv_heads D   a long text's tokens are shared
//   and merge_parts      (texts, heads)                             out among threadgroups, so that
//                                                                   few texts fill a GPU; costs
//                                                                   8 parts heads (D + 1) bytes a
//                                                                   text (parts are float32)
//
// Source: Kwon et al., "Efficient Memory Management for Large Language Model Serving with
// PagedAttention" (2023), section 4; Dao et al., "Flash-Decoding" (2023), for the parts; MLX's
// sdpa_vector for the simdgroups. Not yet run on a Mac.

#include <metal_stdlib>
using namespace metal;

constant constexpr uint SIMDGROUPS = 4;
constant constexpr float LOWEST = -FLT_MAX / 2;  // no infinity: fast math may rely on that

// What a threadgroup shares of G heads: each simdgroup's part of out, its maximum and its sum.
template <uint D, uint G>
struct Shared {
    float parts[SIMDGROUPS][G][D], maxima[SIMDGROUPS][G], sums[SIMDGROUPS][G];
};

// G heads over tokens begin to end - 1 of a text: out (G, D), and the logarithms of their sums of
// exp(score), lse (G), where it is not null. `token` is the number of elements between two tokens.
template <typename T, typename O, uint D, uint G>
void attend(device const T* q, device const T* keys, device const T* values,
            device const int* table, uint begin, uint end, uint size, uint token, float scale,
            device O* out, device float* lse, threadgroup Shared<D, G>* shared, uint lane,
            uint simdgroup) {
    float query[G][D / 32], mixed[G][D / 32] = {}, highest[G], sum[G] = {};
    for (uint g = 0; g < G; ++g) {
        highest[g] = LOWEST;
        for (uint c = 0; c < D / 32; ++c) query[g][c] = float(q[g * D + lane + 32 * c]) * scale;
    }
    for (uint j = begin + simdgroup; j < end; j += SIMDGROUPS) {
        ulong row = (ulong(table[j / size]) * size + j % size) * token;  // a pool is large
        float key[D / 32], value[D / 32];
        for (uint c = 0; c < D / 32; ++c) {
            key[c] = float(keys[row + lane + 32 * c]);
            value[c] = float(values[row + lane + 32 * c]);
        }
        for (uint g = 0; g < G; ++g) {
            float product = 0;
            for (uint c = 0; c < D / 32; ++c) product += query[g][c] * key[c];
            float score = simd_sum(product), higher = max(highest[g], score);
            float shrink = exp(highest[g] - higher), weight = exp(score - higher);
            for (uint c = 0; c < D / 32; ++c)
                mixed[g][c] = mixed[g][c] * shrink + weight * value[c];
            sum[g] = sum[g] * shrink + weight;
            highest[g] = higher;
        }
    }
    for (uint g = 0; g < G; ++g) {
        for (uint c = 0; c < D / 32; ++c) shared->parts[simdgroup][g][lane + 32 * c] = mixed[g][c];
        if (lane == 0) shared->maxima[simdgroup][g] = highest[g];
        if (lane == 0) shared->sums[simdgroup][g] = sum[g];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    // The simdgroups' parts, each shrunk to the highest maximum: without a token it is LOWEST.
    for (uint t = simdgroup * 32 + lane; t < G * D; t += 32 * SIMDGROUPS) {
        uint g = t / D;
        float of_all = LOWEST, total = 0, result = 0;
        for (uint s = 0; s < SIMDGROUPS; ++s) of_all = max(of_all, shared->maxima[s][g]);
        for (uint s = 0; s < SIMDGROUPS; ++s) {
            float shrink = exp(shared->maxima[s][g] - of_all);
            total += shared->sums[s][g] * shrink;
            result += shared->parts[s][g][t % D] * shrink;
        }
        out[t] = begin < end ? O(result / total) : O(0.0f);
        if (lse != nullptr && t % D == 0) lse[g] = begin < end ? of_all + log(total) : LOWEST;
    }
}

template <uint D>
[[kernel]] void paged_attention_naive(
    device const float* q [[buffer(0)]], device const float* keys [[buffer(1)]],
    device const float* values [[buffer(2)]], device const int* tables [[buffer(3)]],
    device const int* lengths [[buffer(4)]], device float* out [[buffer(5)]],
    constant uint& most [[buffer(6)]], constant uint& size [[buffer(7)]],
    constant uint& kv_heads [[buffer(8)]], constant float& scale [[buffer(9)]],
    uint2 group [[threadgroup_position_in_grid]], uint2 groups [[threadgroups_per_grid]],
    uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]]) {
    threadgroup Shared<D, 1> shared;
    uint text = group.x, head = group.y, heads = groups.y;
    uint offset = head / (heads / kv_heads) * D, place = (text * heads + head) * D;
    attend<float, float, D, 1>(q + place, keys + offset, values + offset, tables + text * most, 0,
                               lengths[text], size, kv_heads * D, scale, out + place, nullptr,
                               &shared, lane, simdgroup);
}

template <typename T, uint D, uint G>
[[kernel]] void paged_attention(
    device const T* q [[buffer(0)]], device const T* keys [[buffer(1)]],
    device const T* values [[buffer(2)]], device const int* tables [[buffer(3)]],
    device const int* lengths [[buffer(4)]], device T* out [[buffer(5)]],
    constant uint& most [[buffer(6)]], constant uint& size [[buffer(7)]],
    constant float& scale [[buffer(8)]], uint2 group [[threadgroup_position_in_grid]],
    uint2 groups [[threadgroups_per_grid]], uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
    threadgroup Shared<D, G> shared;
    uint text = group.x, kv_head = group.y, kv_heads = groups.y;
    uint place = (text * kv_heads + kv_head) * G * D;
    attend<T, T, D, G>(q + place, keys + kv_head * D, values + kv_head * D, tables + text * most, 0,
                       lengths[text], size, kv_heads * D, scale, out + place, nullptr, &shared,
                       lane, simdgroup);
}

// outs: (parts, texts, heads, D), lses: (parts, texts, heads), float32.
template <typename T, uint D, uint G>
[[kernel]] void paged_attention_split(
    device const T* q [[buffer(0)]], device const T* keys [[buffer(1)]],
    device const T* values [[buffer(2)]], device const int* tables [[buffer(3)]],
    device const int* lengths [[buffer(4)]], device float* outs [[buffer(5)]],
    device float* lses [[buffer(6)]], constant uint& most [[buffer(7)]],
    constant uint& size [[buffer(8)]], constant float& scale [[buffer(9)]],
    uint3 group [[threadgroup_position_in_grid]], uint3 groups [[threadgroups_per_grid]],
    uint lane [[thread_index_in_simdgroup]], uint simdgroup [[simdgroup_index_in_threadgroup]]) {
    threadgroup Shared<D, G> shared;
    uint text = group.x, kv_head = group.y, part = group.z, kv_heads = groups.y;
    uint first = (text * kv_heads + kv_head) * G;  // of the group's heads
    uint above = part * groups.x * kv_heads * G;   // heads of earlier parts
    uint length = lengths[text], tokens = (length + groups.z - 1) / groups.z;
    uint begin = part * tokens, end = min(begin + tokens, length);
    attend<T, float, D, G>(q + first * D, keys + kv_head * D, values + kv_head * D,
                           tables + text * most, begin, end, size, kv_heads * D, scale,
                           outs + (above + first) * D, lses + above + first, &shared, lane,
                           simdgroup);
}

// out = sum over parts of exp(lse - their merged lse) times the part. Threadgroup: any.
template <typename T>
[[kernel]] void merge_parts(
    device const float* outs [[buffer(0)]], device const float* lses [[buffer(1)]],
    device T* out [[buffer(2)]], constant uint& parts [[buffer(3)]],
    constant uint& d [[buffer(4)]], uint2 group [[threadgroup_position_in_grid]],
    uint2 groups [[threadgroups_per_grid]], uint2 size [[threads_per_threadgroup]],
    uint first [[thread_index_in_threadgroup]]) {
    uint head = group.x * groups.y + group.y, heads = groups.x * groups.y;
    float of_all = LOWEST, total = 0;
    for (uint p = 0; p < parts; ++p) of_all = max(of_all, lses[p * heads + head]);
    for (uint p = 0; p < parts; ++p) total += exp(lses[p * heads + head] - of_all);
    for (uint c = first; c < d; c += size.x) {
        float mixed = 0;
        for (uint p = 0; p < parts; ++p)
            mixed += exp(lses[p * heads + head] - of_all) * outs[(p * heads + head) * d + c];
        out[head * d + c] = T(mixed / total);
    }
}

#define NAIVE(D)                                                   \
    template [[host_name("paged_attention_naive_" #D)]] [[kernel]] \
    decltype(paged_attention_naive<D>) paged_attention_naive<D>;

#define MERGE(T) \
    template [[host_name("merge_parts_" #T)]] [[kernel]] decltype(merge_parts<T>) merge_parts<T>;

#define INSTANTIATE(T, D, G)                                                     \
    template [[host_name("paged_attention_" #T "_" #D "_" #G)]] [[kernel]]       \
    decltype(paged_attention<T, D, G>) paged_attention<T, D, G>;                 \
    template [[host_name("paged_attention_split_" #T "_" #D "_" #G)]] [[kernel]] \
    decltype(paged_attention_split<T, D, G>) paged_attention_split<T, D, G>;

NAIVE(32)
NAIVE(64)
NAIVE(128)
MERGE(float)
MERGE(half)
MERGE(bfloat)
INSTANTIATE(float, 32, 1)
INSTANTIATE(float, 32, 2)
INSTANTIATE(float, 32, 3)
INSTANTIATE(float, 64, 1)  // GPT-2
INSTANTIATE(float, 64, 3)  // SmolLM2 135M and 360M
INSTANTIATE(float, 64, 4)  // Llama 3.2 1B
INSTANTIATE(float, 128, 2)  // Qwen3 0.6B and 1.7B
INSTANTIATE(float, 128, 4)  // Llama 3.1 8B, Qwen3 8B
INSTANTIATE(half, 64, 1)
INSTANTIATE(half, 64, 3)
INSTANTIATE(half, 64, 4)
INSTANTIATE(half, 128, 2)
INSTANTIATE(half, 128, 4)
INSTANTIATE(bfloat, 64, 1)
INSTANTIATE(bfloat, 64, 3)
INSTANTIATE(bfloat, 64, 4)
INSTANTIATE(bfloat, 128, 2)
INSTANTIATE(bfloat, 128, 4)
