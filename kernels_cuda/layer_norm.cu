// Layer normalization of each row: y[i][j] = (x[i][j] - mean_i) / sqrt(variance_i + eps) w[j]
// + b[j], where variance_i is the mean of (x[i][j] - mean_i)^2.
//
// Shapes   x, y: (rows, columns) float32, row-major; weight w, bias b: (columns,) float32.
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
// Bytes    4 an element of y written, 8 read of w and b; read of x: see the table.
// Block    256 (a power of two from 32 to 1024).
//
// version              grid                     x read  barriers  shared  what it changes
// layer_norm_two_pass  rows                     12      19        1024 B  mean, then variance,
//                                                                         each by a tree
// layer_norm_warp      ceil(rows / (block/32))  8       0         0       one pass (Welford), a
//                                                                         row a warp: shuffles
//                                                                         need no barrier
// layer_norm           rows                     8       1         384 B   one pass, a row a block:
//                                                                         for long rows, or few
//
// One pass with the sums of x and of x^2 reads as little, but loses every digit of the variance
// where the mean is large: 1e4^2 + 1 is 1e8 in float32. Welford's update never squares the mean.
//
// Source: Ba, Kiros and Hinton, "Layer Normalization" (2016); B. P. Welford, "Note on a Method for
// Calculating Corrected Sums of Squares and Products" (1962); Chan, Golub and LeVeque, "Updating
// Formulae and a Pairwise Algorithm for Computing Sample Variances" (1979), for combine.

constexpr unsigned ALL = 0xffffffffu;

__global__ void layer_norm_two_pass(const float* x, const float* weight, const float* bias,
                                    float* y, int columns, float eps) {
    extern __shared__ float partial[];  // blockDim.x elements
    const float* in = x + blockIdx.x * columns;
    float* out = y + blockIdx.x * columns;
    int thread = threadIdx.x;
    float sum = 0, squares = 0;
    for (int j = thread; j < columns; j += blockDim.x) sum += in[j];
    partial[thread] = sum;
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (thread < half) partial[thread] += partial[thread + half];
    }
    __syncthreads();
    float mean = partial[0] / columns;
    for (int j = thread; j < columns; j += blockDim.x) squares += (in[j] - mean) * (in[j] - mean);
    __syncthreads();  // everyone has the mean: its place is free
    partial[thread] = squares;
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if (thread < half) partial[thread] += partial[thread + half];
    }
    __syncthreads();
    float scale = rsqrtf(partial[0] / columns + eps);
    for (int j = thread; j < columns; j += blockDim.x)
        out[j] = (in[j] - mean) * scale * weight[j] + bias[j];
}

// What is known of some values: how many, their mean, and the sum of their squared distances to it.
struct Moments {
    float count, mean, squares;
};

__device__ Moments with(Moments seen, float value) {
    float count = seen.count + 1, distance = value - seen.mean;
    float mean = seen.mean + distance / count;
    return {count, mean, seen.squares + distance * (value - mean)};
}

__device__ Moments combine(Moments a, Moments b) {
    float count = a.count + b.count, distance = b.mean - a.mean;
    if (count == 0) return a;
    float share = b.count / count;
    return {count, a.mean + distance * share,
            a.squares + b.squares + distance * distance * a.count * share};
}

__device__ Moments warp_combine(Moments mine) {
    for (int distance = 16; distance > 0; distance /= 2) {
        Moments other = {__shfl_xor_sync(ALL, mine.count, distance),
                         __shfl_xor_sync(ALL, mine.mean, distance),
                         __shfl_xor_sync(ALL, mine.squares, distance)};
        mine = combine(mine, other);
    }
    return mine;  // in every lane, up to rounding
}

__global__ void layer_norm_warp(const float* x, const float* weight, const float* bias, float* y,
                                int rows, int columns, float eps) {
    int lane = threadIdx.x % 32, row = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    if (row >= rows) return;  // a whole warp leaves, or none of it
    const float* in = x + row * columns;
    float* out = y + row * columns;
    Moments seen = {0, 0, 0};
    for (int j = lane; j < columns; j += 32) seen = with(seen, in[j]);
    seen = warp_combine(seen);
    float scale = rsqrtf(seen.squares / columns + eps);
    for (int j = lane; j < columns; j += 32)
        out[j] = (in[j] - seen.mean) * scale * weight[j] + bias[j];
}

__global__ void layer_norm(const float* x, const float* weight, const float* bias, float* y,
                           int columns, float eps) {
    __shared__ Moments parts[32];  // one a warp
    const float* in = x + blockIdx.x * columns;
    float* out = y + blockIdx.x * columns;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    Moments seen = {0, 0, 0};
    for (int j = threadIdx.x; j < columns; j += blockDim.x) seen = with(seen, in[j]);
    seen = warp_combine(seen);
    if (lane == 0) parts[warp] = seen;
    __syncthreads();
    seen = {0, 0, 0};
    if (lane < blockDim.x / 32) seen = parts[lane];
    seen = warp_combine(seen);
    float scale = rsqrtf(seen.squares / columns + eps);
    for (int j = threadIdx.x; j < columns; j += blockDim.x)
        out[j] = (in[j] - seen.mean) * scale * weight[j] + bias[j];
}
