// Causal attention: out[h][i] = sum over j <= i of w_j v[h][j], where w is the softmax over j <= i
// of scale (q[h][i] . k[h][j]).
//
// Shapes   q, k, v, out: (heads, n, d) float32; d at most 128.
// CPU      for each head h and row i:
//              for (int j = 0; j <= i; ++j) score[j] = scale * dot(q[h][i], k[h][j], d);
//              softmax(score, i + 1);
//              for (int c = 0; c < d; ++c)
//                  for (int j = 0; j <= i; ++j) out[h][i][c] += score[j] * v[h][j][c];
// Elements a head, 4 bytes each: n d of q read, n (n + 1) / 2 d of k and as many of v, since each
//          row reads all that it sees; n d of out written.
// Grid     (n, heads): one row a block; block 128.
//
// version           sectors of k  scores                      what it changes
// attention_global  8 x ideal     n (n + 1) / 2 (3 + d)       a thread a key; scores lie where the
//                                 elements of global memory   CPU has them: written, made weights
//                                 a head                      (read, written), read by d threads
// attention_naive   ideal         4 n bytes of shared memory  scores never leave the block; a warp
//                                 a block                     a key: its lanes read a row of k
//                                                             side by side
//
// The row of scores is what bounds n: 48 KiB of shared memory hold 12 000. flash_attention.cu does
// without it, and reads k and v once for many rows.
//
// Source: Vaswani et al., "Attention Is All You Need" (2017), section 3.2.1.

constexpr unsigned ALL = 0xffffffffu;

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

// The block's maximum and sum, in every thread; `partial` has a place a warp.
__device__ float block_max(float max, float* partial) {
    int lane = threadIdx.x % 32, warps = blockDim.x / 32;
    max = warp_max(max);
    if (lane == 0) partial[threadIdx.x / 32] = max;
    __syncthreads();
    return warp_max(lane < warps ? partial[lane] : -INFINITY);
}

__device__ float block_sum(float sum, float* partial) {
    int lane = threadIdx.x % 32, warps = blockDim.x / 32;
    sum = warp_sum(sum);
    if (lane == 0) partial[threadIdx.x / 32] = sum;
    __syncthreads();
    return warp_sum(lane < warps ? partial[lane] : 0.0f);
}

// scores: (heads, n, n), of which the lower triangle is used.
__global__ void attention_global(const float* q, const float* k, const float* v, float* scores,
                                 float* out, int n, int d, float scale) {
    __shared__ float query[128], maxima[32], sums[32];
    int i = blockIdx.x, head = blockIdx.y, thread = threadIdx.x;
    k += head * n * d, v += head * n * d;
    float* score = scores + (head * n + i) * n;
    for (int c = thread; c < d; c += blockDim.x) query[c] = q[(head * n + i) * d + c];
    __syncthreads();
    float max = -INFINITY, sum = 0;
    for (int j = thread; j <= i; j += blockDim.x) {
        float dot = 0;
        for (int c = 0; c < d; ++c) dot += query[c] * k[j * d + c];
        score[j] = dot * scale;
        max = fmaxf(max, dot * scale);
    }
    max = block_max(max, maxima);
    for (int j = thread; j <= i; j += blockDim.x) {
        float weight = expf(score[j] - max);
        score[j] = weight;
        sum += weight;
    }
    sum = block_sum(sum, sums);  // its barrier also makes the block's weights visible
    for (int c = thread; c < d; c += blockDim.x) {
        float mixed = 0;
        for (int j = 0; j <= i; ++j) mixed += score[j] * v[j * d + c];
        out[(head * n + i) * d + c] = mixed / sum;
    }
}

__global__ void attention_naive(const float* q, const float* k, const float* v, float* out, int n,
                                int d, float scale) {
    extern __shared__ float score[];  // n elements
    __shared__ float query[128], maxima[32], sums[32];
    int i = blockIdx.x, head = blockIdx.y, thread = threadIdx.x;
    int lane = thread % 32, warp = thread / 32, warps = blockDim.x / 32;
    k += head * n * d, v += head * n * d;
    for (int c = thread; c < d; c += blockDim.x) query[c] = q[(head * n + i) * d + c];
    __syncthreads();
    for (int j = warp; j <= i; j += warps) {
        float dot = 0;
        for (int c = lane; c < d; c += 32) dot += query[c] * k[j * d + c];
        dot = warp_sum(dot);
        if (lane == 0) score[j] = dot * scale;
    }
    __syncthreads();
    float max = -INFINITY, sum = 0;
    for (int j = thread; j <= i; j += blockDim.x) max = fmaxf(max, score[j]);
    max = block_max(max, maxima);
    for (int j = thread; j <= i; j += blockDim.x) {
        float weight = expf(score[j] - max);
        score[j] = weight;
        sum += weight;
    }
    sum = block_sum(sum, sums);
    for (int c = thread; c < d; c += blockDim.x) {
        float mixed = 0;
        for (int j = 0; j <= i; ++j) mixed += score[j] * v[j * d + c];
        out[(head * n + i) * d + c] = mixed / sum;
    }
}
