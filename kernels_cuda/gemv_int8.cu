// Matrix times vector with weights of 8 bits: y[r] = scales[r] (w[r][0] x[0] + w[r][1] x[1] + ...).
//
// Shapes   w: (rows, columns) int8, row-major, columns a multiple of 4; scales, y: (rows,) float32;
//          x: (columns,) float32. A weight is w[r][c] scales[r]: symmetric, a scale a row.
// CPU      for (int r = 0; r < rows; ++r) {
//              float sum = 0;
//              for (int c = 0; c < columns; ++c) sum += w[r * columns + c] * x[c];
//              y[r] = scales[r] * sum;
//          }
// Bytes    a weight: 1, where float32 has 4 and float16 has 2. Decoding reads each weight once a
//          token, so that is the time.
// Grid     gemv_int8_naive ceil(rows / block); gemv_int8_warp ceil(rows / (block / 32)); gemv_int8
//          ceil(rows / (4 block / 32)). Block a multiple of 32, here 128.
//
// version          sectors of w   x, bytes a weight  what it changes
// gemv_int8_naive  32 x the best  4                  a row a thread: a sector of 32 bytes for each
//                                                    byte (rows of 32 bytes or more)
// gemv_int8_warp   the best       4                  a row a warp: 32 lanes read one sector
// gemv_int8        the best       1                  four weights in one access of 4 bytes: a
//                                                    quarter of the requests; four rows a warp: a
//                                                    quarter of the reads of x
//
// Source: Dettmers et al., "LLM.int8()" (2022), section 2, for the scales.

constexpr unsigned ALL = 0xffffffffu;
constexpr int EACH = 4;  // rows a warp

__global__ void gemv_int8_naive(const signed char* w, const float* scales, const float* x,
                                float* y, int rows, int columns) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    float sum = 0;
    for (int c = 0; c < columns; ++c) sum += w[row * columns + c] * x[c];
    y[row] = scales[row] * sum;
}

__device__ float warp_sum(float sum) {
    for (int distance = 16; distance > 0; distance /= 2)
        sum += __shfl_xor_sync(ALL, sum, distance);
    return sum;  // in every lane
}

__global__ void gemv_int8_warp(const signed char* w, const float* scales, const float* x, float* y,
                               int rows, int columns) {
    int lane = threadIdx.x % 32, row = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    if (row >= rows) return;  // a whole warp leaves, or none of it
    float sum = 0;
    for (int c = lane; c < columns; c += 32) sum += w[row * columns + c] * x[c];
    sum = warp_sum(sum);
    if (lane == 0) y[row] = scales[row] * sum;
}

__global__ void gemv_int8(const signed char* w, const float* scales, const float* x, float* y,
                          int rows, int columns) {
    int lane = threadIdx.x % 32, top = (blockIdx.x * blockDim.x + threadIdx.x) / 32 * EACH;
    float sum[EACH] = {};
    for (int c = 4 * lane; c < columns; c += 128) {
        float4 part = *reinterpret_cast<const float4*>(x + c);
        for (int r = 0; r < EACH && top + r < rows; ++r) {
            char4 four = *reinterpret_cast<const char4*>(w + (top + r) * columns + c);
            sum[r] += four.x * part.x + four.y * part.y + four.z * part.z + four.w * part.w;
        }
    }
    for (int r = 0; r < EACH && top + r < rows; ++r) {  // the same for all lanes of a warp
        float total = warp_sum(sum[r]);
        if (lane == 0) y[top + r] = scales[top + r] * total;
    }
}
