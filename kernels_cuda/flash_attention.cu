// Causal attention without the row of scores (FlashAttention-2, forward), with grouped heads: query
// head h reads key and value head h / (heads / kv_heads).
//
// Shapes   q, out: (heads, n, D) float32; k, v: (kv_heads, n, D); lse: (heads, n), the logarithm of
//          each row's sum of exp(score), which the backward pass starts from. D: 32, 64 or 128.
// CPU      for each row: max = -INFINITY, sum = 0, out = 0, and for each key j that it sees:
//              score = scale * dot(q, k[j]); higher = fmaxf(max, score);
//              shrink = expf(max - higher); weight = expf(score - higher);
//              sum = sum * shrink + weight; out = out * shrink + weight * v[j]; max = higher;
//          at the end out = out / sum, lse = max + logf(sum).
// Elements a head, 4 bytes each: n D + n written by both versions, and no other memory used; n D of
//          q read; of k and v together: see the table, where n is a multiple of the tile B = 32.
// Block    128: four warps.
//
// version           grid                       k and v read      shared (D = 64)
// attention_online  (ceil(n / 4), heads)       n (n + 1) D       0
// flash_attention   (ceil(n / B), heads)       n (n + B) D / B   28 800 B
//
// attention_online gives a warp a row; each key and value passes once, and the scores are gone:
// what attention_naive.cu keeps in 4 n bytes of shared memory is two registers here. The bytes read
// stay. flash_attention gives a block B rows: a tile of k and of v that it has loaded serves all of
// them, which divides the bytes by nearly B. Loads are still of order n^2; what is of order n is
// the memory, and what is written. A group's heads read the same keys and values: distinct bytes
// of k and v fall by heads / kv_heads, and a cache that holds them sees the rest.
//
// Source: T. Dao, "FlashAttention-2" (2023), algorithm 1; Milakov and Gimelshein (2018).

constexpr unsigned ALL = 0xffffffffu;
constexpr int B = 32, WARPS = 4, ROWS = B / WARPS;  // a tile's rows and keys; rows a warp

__device__ float warp_max(float max) {
    for (int distance = 16; distance > 0; distance /= 2)
        max = fmaxf(max, __shfl_xor_sync(ALL, max, distance));
    return max;  // in every lane
}

__device__ float warp_sum(float sum) {
    for (int distance = 16; distance > 0; distance /= 2)
        sum += __shfl_xor_sync(ALL, sum, distance);
    return sum;
}

template <int D>
__global__ void attention_online(const float* q, const float* k, const float* v, float* out,
                                 float* lse, int n, int heads, int kv_heads, float scale) {
    int lane = threadIdx.x % 32, i = blockIdx.x * WARPS + threadIdx.x / 32, head = blockIdx.y;
    if (i >= n) return;  // a whole warp leaves, or none of it
    int first = head / (heads / kv_heads) * n;  // the first row of its keys and values
    float query[D / 32], mixed[D / 32] = {}, max = -INFINITY, sum = 0;
    for (int c = 0; c < D / 32; ++c) query[c] = q[(head * n + i) * D + lane + 32 * c] * scale;
    for (int j = 0; j <= i; ++j) {
        float dot = 0;
        for (int c = 0; c < D / 32; ++c) dot += query[c] * k[(first + j) * D + lane + 32 * c];
        float score = warp_sum(dot), higher = fmaxf(max, score);
        float shrink = expf(max - higher), weight = expf(score - higher);
        for (int c = 0; c < D / 32; ++c)
            mixed[c] = mixed[c] * shrink + weight * v[(first + j) * D + lane + 32 * c];
        sum = sum * shrink + weight;
        max = higher;
    }
    for (int c = 0; c < D / 32; ++c) out[(head * n + i) * D + lane + 32 * c] = mixed[c] / sum;
    if (lane == 0) lse[head * n + i] = max + logf(sum);
}

template <int D>
__global__ void flash_attention(const float* q, const float* k, const float* v, float* out,
                                float* lse, int n, int heads, int kv_heads, float scale) {
    // Dynamic, since 48 KiB of static shared memory end below D = 128. In a padded row of keys,
    // lane j's number c lies in bank (j + c) % 32: no bank is asked twice.
    extern __shared__ float tiles[];
    float* queries = tiles;                // (B, D)
    float* keys = queries + B * D;         // (B, D + 1)
    float* values = keys + B * (D + 1);    // (B, D)
    float* weights = values + B * D;       // (B, B)
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, head = blockIdx.y, top = blockIdx.x * B;
    int first = head / (heads / kv_heads) * n;  // the first row of its keys and values
    for (int t = threadIdx.x; t < B * D; t += 32 * WARPS) {
        bool inside = top + t / D < n;
        queries[t] = inside ? q[(head * n + top) * D + t] * scale : 0.0f;
    }
    float mixed[ROWS][D / 32] = {}, max[ROWS], sum[ROWS] = {};
    for (int r = 0; r < ROWS; ++r) max[r] = -INFINITY;

    for (int start = 0; start <= top; start += B) {  // tiles behind the diagonal are never loaded
        __syncthreads();                             // the last tile has been read by all warps
        for (int t = threadIdx.x; t < B * D; t += 32 * WARPS) {
            bool inside = start + t / D < n;
            keys[t / D * (D + 1) + t % D] = inside ? k[(first + start) * D + t] : 0.0f;
            values[t] = inside ? v[(first + start) * D + t] : 0.0f;
        }
        __syncthreads();
        for (int r = 0; r < ROWS; ++r) {
            int row = warp * ROWS + r;
            float score = 0;  // of the lane's key
            for (int c = 0; c < D; ++c) score += queries[row * D + c] * keys[lane * (D + 1) + c];
            if (start + lane > top + row) score = -INFINITY;
            float higher = fmaxf(max[r], warp_max(score));
            float shrink = expf(max[r] - higher), weight = expf(score - higher);
            sum[r] = sum[r] * shrink + warp_sum(weight);
            max[r] = higher;
            for (int c = 0; c < D / 32; ++c) mixed[r][c] *= shrink;
            weights[row * B + lane] = weight;
        }
        __syncwarp();  // a warp reads only the weights that it wrote
        for (int j = 0; j < B; ++j)
            for (int c = 0; c < D / 32; ++c) {
                float value = values[j * D + lane + 32 * c];  // once for all rows of the warp
                for (int r = 0; r < ROWS; ++r)
                    mixed[r][c] += weights[(warp * ROWS + r) * B + j] * value;
            }
    }
    for (int r = 0; r < ROWS; ++r) {
        int i = top + warp * ROWS + r;
        if (i >= n) break;
        for (int c = 0; c < D / 32; ++c)
            out[(head * n + i) * D + lane + 32 * c] = mixed[r][c] / sum[r];
        if (lane == 0) lse[head * n + i] = max[r] + logf(sum[r]);
    }
}
