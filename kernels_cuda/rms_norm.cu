// RMS normalization of each row: y[i][j] = x[i][j] / sqrt(mean of x[i][0]^2 ... + eps) w[j].
//
// Shapes   x, y, residual: (rows, columns) float32, row-major; weight w: (columns,) float32.
// CPU      for (int i = 0; i < rows; ++i) {
//              float squares = 0;
//              for (int j = 0; j < columns; ++j)
//                  squares += x[i * columns + j] * x[i * columns + j];
//              for (int j = 0; j < columns; ++j)
//                  y[i * columns + j] = x[i * columns + j] / sqrtf(squares / columns + eps) * w[j];
//          }
// Bytes    8 an element of x read, 4 of w, 4 of y written.
// Grid     rms_norm_naive ceil(rows / block); the others ceil(rows / (block / 32)), a row a warp.
// Block    a multiple of 32, here 128.
//
// version         sectors of x and y  what it changes
// rms_norm_naive  8 x ideal           a row a thread: 32 lanes touch 32 rows, a sector each for 4
//                                     bytes (where columns is 8 or more)
// rms_norm        ideal               a row a warp: 32 lanes touch 128 bytes in a row
// rms_norm_add    ideal               adds the residual stream in the same launch: 20 bytes an
//                                     element and 4 of w, where an addition by itself (8 read,
//                                     4 written) and rms_norm move 24 and 4
//
// Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019).

constexpr unsigned ALL = 0xffffffffu;

__global__ void rms_norm_naive(const float* x, const float* weight, float* y, int rows,
                               int columns, float eps) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    const float* in = x + row * columns;
    float squares = 0;
    for (int j = 0; j < columns; ++j) {
        float value = in[j];
        squares += value * value;
    }
    float scale = rsqrtf(squares / columns + eps);
    for (int j = 0; j < columns; ++j) y[row * columns + j] = in[j] * scale * weight[j];
}

__device__ float warp_sum(float sum) {
    for (int distance = 16; distance > 0; distance /= 2)
        sum += __shfl_xor_sync(ALL, sum, distance);
    return sum;  // in every lane
}

__global__ void rms_norm(const float* x, const float* weight, float* y, int rows, int columns,
                         float eps) {
    int lane = threadIdx.x % 32, row = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    if (row >= rows) return;  // a whole warp leaves, or none of it
    const float* in = x + row * columns;
    float squares = 0;
    for (int j = lane; j < columns; j += 32) {
        float value = in[j];
        squares += value * value;
    }
    float scale = rsqrtf(warp_sum(squares) / columns + eps);
    for (int j = lane; j < columns; j += 32) y[row * columns + j] = in[j] * scale * weight[j];
}

// residual += x; y = rms_norm(residual).
__global__ void rms_norm_add(const float* x, float* residual, const float* weight, float* y,
                             int rows, int columns, float eps) {
    int lane = threadIdx.x % 32, row = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    if (row >= rows) return;
    float squares = 0;
    for (int j = lane; j < columns; j += 32) {
        float value = x[row * columns + j] + residual[row * columns + j];
        residual[row * columns + j] = value;
        squares += value * value;
    }
    float scale = rsqrtf(warp_sum(squares) / columns + eps);
    // Each lane reads what it wrote itself: no barrier.
    for (int j = lane; j < columns; j += 32)
        y[row * columns + j] = residual[row * columns + j] * scale * weight[j];
}
