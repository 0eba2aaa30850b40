// Softmax of each row: y[i][j] = exp(x[i][j] - max_i) / sum_i, where max_i is the row's maximum and
// sum_i the sum of its exp(x[i][j] - max_i).
//
// Shapes   x, y: (rows, columns) float32, row-major; columns at least 1, values finite.
// CPU      for (int i = 0; i < rows; ++i) {
//              float max = -INFINITY, sum = 0;
//              for (int j = 0; j < columns; ++j) max = fmaxf(max, x[i * columns + j]);
//              for (int j = 0; j < columns; ++j) sum += expf(x[i * columns + j] - max);
//              for (int j = 0; j < columns; ++j)
//                  y[i * columns + j] = expf(x[i * columns + j] - max) / sum;
//          }
// Bytes    4 an element written; read: see the table (a row that fits in a cache is read again
//          from there).
// Grid     rows; block 256 (a power of two from 32 to 1024).
//
// version           bytes read  barriers a block  shared  what it changes
// softmax_two_pass  12          19                1024 B  maximum, then sum, each by a tree, then
//                                                         the quotients
// softmax_warp      12          2                 256 B   shuffles inside the warps; only a number
//                                                         a warp meets in shared memory
// softmax           8           1                 256 B   maximum and sum in one pass: when the
//                                                         maximum rises, the sum so far shrinks
//
// Source: M. Milakov and N. Gimelshein, "Online normalizer calculation for softmax" (2018).

constexpr unsigned ALL = 0xffffffffu;

__global__ void softmax_two_pass(const float* x, float* y, int columns) {
    extern __shared__ float partial[];  // blockDim.x elements
    const float* in = x + blockIdx.x * columns;
    float* out = y + blockIdx.x * columns;
    int thread = threadIdx.x;
    float max = -INFINITY, sum = 0;
    for (int j = thread; j < columns; j += blockDim.x) max = fmaxf(max, in[j]);
    partial[thread] = max;
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (thread < half) partial[thread] = fmaxf(partial[thread], partial[thread + half]);
    }
    __syncthreads();
    max = partial[0];
    for (int j = thread; j < columns; j += blockDim.x) sum += expf(in[j] - max);
    __syncthreads();  // everyone has the maximum: its place is free
    partial[thread] = sum;
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (thread < half) partial[thread] += partial[thread + half];
    }
    __syncthreads();
    sum = partial[0];
    for (int j = thread; j < columns; j += blockDim.x) out[j] = expf(in[j] - max) / sum;
}

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

__global__ void softmax_warp(const float* x, float* y, int columns) {
    __shared__ float maxima[32], sums[32];  // one a warp
    const float* in = x + blockIdx.x * columns;
    float* out = y + blockIdx.x * columns;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    float max = -INFINITY, sum = 0;
    for (int j = threadIdx.x; j < columns; j += blockDim.x) max = fmaxf(max, in[j]);
    max = warp_max(max);
    if (lane == 0) maxima[warp] = max;
    __syncthreads();
    // Every warp combines the warps' numbers for itself: no second barrier to hand out the result.
    max = warp_max(lane < warps ? maxima[lane] : -INFINITY);
    for (int j = threadIdx.x; j < columns; j += blockDim.x) sum += expf(in[j] - max);
    sum = warp_sum(sum);
    if (lane == 0) sums[warp] = sum;
    __syncthreads();
    sum = warp_sum(lane < warps ? sums[lane] : 0.0f);
    for (int j = threadIdx.x; j < columns; j += blockDim.x) out[j] = expf(in[j] - max) / sum;
}

// A maximum, and the sum of exp(value - max) over the values that it is the maximum of.
struct Normalizer {
    float max, sum;
};

__device__ Normalizer combine(Normalizer a, Normalizer b) {
    float max = fmaxf(a.max, b.max);
    if (max == -INFINITY) return {max, 0.0f};  // neither has seen a value
    return {max, a.sum * expf(a.max - max) + b.sum * expf(b.max - max)};
}

__device__ Normalizer warp_combine(Normalizer mine) {
    for (int distance = 16; distance > 0; distance /= 2) {
        Normalizer other = {__shfl_xor_sync(ALL, mine.max, distance),
                            __shfl_xor_sync(ALL, mine.sum, distance)};
        mine = combine(mine, other);
    }
    return mine;
}

__global__ void softmax(const float* x, float* y, int columns) {
    __shared__ float maxima[32], sums[32];  // one a warp
    const float* in = x + blockIdx.x * columns;
    float* out = y + blockIdx.x * columns;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    Normalizer row = {-INFINITY, 0.0f};
    for (int j = threadIdx.x; j < columns; j += blockDim.x) row = combine(row, {in[j], 1.0f});
    row = warp_combine(row);
    if (lane == 0) maxima[warp] = row.max, sums[warp] = row.sum;
    __syncthreads();
    row = {-INFINITY, 0.0f};
    if (lane < warps) row = {maxima[lane], sums[lane]};
    row = warp_combine(row);
    for (int j = threadIdx.x; j < columns; j += blockDim.x)
        out[j] = expf(in[j] - row.max) / row.sum;
}
