// Attention of one new token a text (decoding) over keys and values that lie in blocks of a pool:
// token j of text i is row j % size of block tables[i][j / size].
//
// Shapes   q, out: (texts, heads, D) float32; keys, values: (blocks, size, kv_heads, D); tables:
//          (texts, most) int32; lengths: (texts,) int32, at least 1. D: 32, 64 or 128. Query head h
//          reads head h / G of keys and values, where G = heads / kv_heads.
// CPU      for each text i and head h, with L = lengths[i]:
//              for (int j = 0; j < L; ++j) score[j] = scale * dot(q[i][h], key(i, j, h / G), D);
//              softmax(score, L);
//              for (int j = 0; j < L; ++j) out[i][h] += score[j] * value(i, j, h / G);
// Bytes    for a text of L tokens: 16 heads D of q read (by each of four warps), 4 heads D of out
//          written; of keys and values, see the table. No fewer than 8 L kv_heads D: a token's
//          arithmetic is small, and these bytes are the time.
// Block    128: four warps, each of which takes every fourth token.
//
// version                grid                      keys and values  what it changes
// paged_attention_naive  (texts, heads)            8 L heads D      a block a query head
// paged_attention        (texts, kv_heads)         8 L kv_heads D   a block serves all G heads of a
//                                                                   group with what it reads once
// paged_attention_split  (texts, kv_heads, parts)  8 L kv_heads D   a long text's tokens are shared
//   and merge_parts      (texts, heads)                             out among blocks, so that few
//                                                                   texts fill a GPU; costs 8 parts
//                                                                   heads (D + 1) bytes a text
//
// Source: Kwon et al., "Efficient Memory Management for Large Language Model Serving with
// PagedAttention" (2023), section 4; Dao et al., "Flash-Decoding" (2023), for the parts.

constexpr unsigned ALL = 0xffffffffu;
constexpr int WARPS = 4;

__device__ float warp_sum(float sum) {
    for (int distance = 16; distance > 0; distance /= 2)
        sum += __shfl_xor_sync(ALL, sum, distance);
    return sum;  // in every lane
}

// G heads over tokens begin to end - 1 of a text: out (G, D), and the logarithms of their sums of
// exp(score), lse (G), where it is not null. `token` is the number of floats between two tokens.
template <int D, int G>
__device__ void attend(const float* q, const float* keys, const float* values, const int* table,
                       int begin, int end, int size, int token, float scale, float* out,
                       float* lse) {
    __shared__ float parts[WARPS][G][D], maxima[WARPS][G], sums[WARPS][G];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float query[G][D / 32], mixed[G][D / 32] = {}, max[G], sum[G] = {};
    for (int g = 0; g < G; ++g) {
        max[g] = -INFINITY;
        for (int c = 0; c < D / 32; ++c) query[g][c] = q[g * D + lane + 32 * c] * scale;
    }
    for (int j = begin + warp; j < end; j += WARPS) {
        long long row = ((long long)table[j / size] * size + j % size) * token;  // a pool is large
        float key[D / 32], value[D / 32];
        for (int c = 0; c < D / 32; ++c) {
            key[c] = keys[row + lane + 32 * c];
            value[c] = values[row + lane + 32 * c];
        }
        for (int g = 0; g < G; ++g) {
            float dot = 0;
            for (int c = 0; c < D / 32; ++c) dot += query[g][c] * key[c];
            float score = warp_sum(dot), higher = fmaxf(max[g], score);
            float shrink = expf(max[g] - higher), weight = expf(score - higher);
            for (int c = 0; c < D / 32; ++c)
                mixed[g][c] = mixed[g][c] * shrink + weight * value[c];
            sum[g] = sum[g] * shrink + weight;
            max[g] = higher;
        }
    }
    for (int g = 0; g < G; ++g) {
        for (int c = 0; c < D / 32; ++c) parts[warp][g][lane + 32 * c] = mixed[g][c];
        if (lane == 0) maxima[warp][g] = max[g], sums[warp][g] = sum[g];
    }
    __syncthreads();
    // The warps' parts, each shrunk to the highest maximum. A warp without a token has -INFINITY.
    for (int t = threadIdx.x; t < G * D; t += 32 * WARPS) {
        int g = t / D;
        float highest = -INFINITY, total = 0, result = 0;
        for (int w = 0; w < WARPS; ++w) highest = fmaxf(highest, maxima[w][g]);
        for (int w = 0; w < WARPS && begin < end; ++w) {
            float shrink = expf(maxima[w][g] - highest);
            total += sums[w][g] * shrink;
            result += parts[w][g][t % D] * shrink;
        }
        out[t] = begin < end ? result / total : 0.0f;
        if (lse != nullptr && t % D == 0) lse[g] = begin < end ? highest + logf(total) : -INFINITY;
    }
}

template <int D>
__global__ void paged_attention_naive(const float* q, const float* keys, const float* values,
                                      const int* tables, const int* lengths, float* out, int most,
                                      int size, int kv_heads, float scale) {
    int text = blockIdx.x, head = blockIdx.y, heads = gridDim.y;
    int offset = head / (heads / kv_heads) * D, place = (text * heads + head) * D;
    attend<D, 1>(q + place, keys + offset, values + offset, tables + text * most, 0,
                 lengths[text], size, kv_heads * D, scale, out + place, nullptr);
}

template <int D, int G>
__global__ void paged_attention(const float* q, const float* keys, const float* values,
                                const int* tables, const int* lengths, float* out, int most,
                                int size, float scale) {
    int text = blockIdx.x, kv_head = blockIdx.y, kv_heads = gridDim.y;
    int place = (text * kv_heads + kv_head) * G * D;
    attend<D, G>(q + place, keys + kv_head * D, values + kv_head * D, tables + text * most, 0,
                 lengths[text], size, kv_heads * D, scale, out + place, nullptr);
}

// outs: (parts, texts, heads, D), lses: (parts, texts, heads).
template <int D, int G>
__global__ void paged_attention_split(const float* q, const float* keys, const float* values,
                                      const int* tables, const int* lengths, float* outs,
                                      float* lses, int most, int size, float scale) {
    int text = blockIdx.x, kv_head = blockIdx.y, kv_heads = gridDim.y, part = blockIdx.z;
    int first = (text * kv_heads + kv_head) * G;             // of the group's heads
    int above = part * gridDim.x * kv_heads * G;             // heads of earlier parts
    int length = lengths[text], tokens = (length + gridDim.z - 1) / gridDim.z;
    int begin = part * tokens, end = begin + tokens < length ? begin + tokens : length;
    attend<D, G>(q + first * D, keys + kv_head * D, values + kv_head * D, tables + text * most,
                 begin, end, size, kv_heads * D, scale, outs + (above + first) * D,
                 lses + above + first);
}

// out = sum over parts of exp(lse - their merged lse) times the part. Block: any.
__global__ void merge_parts(const float* outs, const float* lses, float* out, int parts, int d) {
    int head = blockIdx.x * gridDim.y + blockIdx.y, heads = gridDim.x * gridDim.y;
    float highest = -INFINITY, total = 0;
    for (int p = 0; p < parts; ++p) highest = fmaxf(highest, lses[p * heads + head]);
    for (int p = 0; p < parts; ++p) total += expf(lses[p * heads + head] - highest);
    for (int c = threadIdx.x; c < d; c += blockDim.x) {
        float mixed = 0;
        for (int p = 0; p < parts; ++p)
            mixed += expf(lses[p * heads + head] - highest) * outs[(p * heads + head) * d + c];
        out[head * d + c] = mixed / total;
    }
}
