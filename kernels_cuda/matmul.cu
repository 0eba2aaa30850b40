// Matrix product: c[i][j] = a[i][0] b[0][j] + ... + a[i][depth-1] b[depth-1][j].
//
// Shapes   a: (rows, depth), b: (depth, columns), c: (rows, columns), row-major; float32, and
//          float16 for a and b in matmul_wmma, which adds in float32.
// CPU      for (int i = 0; i < rows; ++i)
//              for (int j = 0; j < columns; ++j) {
//                  float sum = 0;
//                  for (int k = 0; k < depth; ++k) sum += a[i * depth + k] * b[k * columns + j];
//                  c[i * columns + j] = sum;
//              }
// Bytes    4 rows columns written by each version. Read, where P = rows columns depth and sizes
//          are multiples of the tile: see the table; no fewer than 4 depth (rows + columns).
// Grid     (ceil(columns / tile), ceil(rows / tile)).
//
// version                tile     block     bytes read   shared  what it changes
// matmul_naive           32 x 8   (32, 8)   8 P          0       a thread an element, all of it
//                                                        from global memory
// matmul_tiled           16 x 16  (16, 16)  8 P / 16     2048 B  each element that a block loads
//                                                        serves 16 threads
// matmul_register_tiled  64 x 64  (16, 16)  8 P / 64     8320 B  a thread keeps 4 x 4 sums: global
//                                                        bytes fall by 4, and 8 reads of shared
//                                                        memory feed 16 products, not 2 one
// matmul_wmma            32 x 32  128       4 P / 32     6912 B  tensor cores multiply 16 x 16
//                                                        tiles of halves, one a warp
//
// Source: CUDA C++ Programming Guide 13.0, sections 3.2.4 and 10.24; V. Volkov, "Better Performance
// at Lower Occupancy" (GTC 2010); S. Boehm, "How to Optimize a CUDA Matmul Kernel" (2022).

#include <cuda_fp16.h>
#include <mma.h>

using namespace nvcuda;

__global__ void matmul_naive(const float* a, const float* b, float* c, int rows, int columns,
                             int depth) {
    int i = blockIdx.y * blockDim.y + threadIdx.y, j = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= rows || j >= columns) return;
    float sum = 0;
    for (int k = 0; k < depth; ++k) sum += a[i * depth + k] * b[k * columns + j];
    c[i * columns + j] = sum;
}

constexpr int TILE = 16;

__global__ void matmul_tiled(const float* a, const float* b, float* c, int rows, int columns,
                             int depth) {
    __shared__ float a_tile[TILE][TILE], b_tile[TILE][TILE];
    int x = threadIdx.x, y = threadIdx.y;
    int i = blockIdx.y * TILE + y, j = blockIdx.x * TILE + x;
    float sum = 0;
    for (int start = 0; start < depth; start += TILE) {
        // Outside the matrices stands 0, which adds nothing.
        a_tile[y][x] = i < rows && start + x < depth ? a[i * depth + start + x] : 0.0f;
        b_tile[y][x] = start + y < depth && j < columns ? b[(start + y) * columns + j] : 0.0f;
        __syncthreads();
        for (int k = 0; k < TILE; ++k) sum += a_tile[y][k] * b_tile[k][x];
        __syncthreads();  // the next tile overwrites what slower threads still read
    }
    if (i < rows && j < columns) c[i * columns + j] = sum;
}

constexpr int SIDE = 64, DEPTH = 16, EACH = SIDE / TILE;

__global__ void matmul_register_tiled(const float* a, const float* b, float* c, int rows,
                                      int columns, int depth) {
    // a's tile lies turned; two columns of padding spread its columns over all the banks.
    __shared__ float a_tile[DEPTH][SIDE + 2], b_tile[DEPTH][SIDE];
    int x = threadIdx.x, y = threadIdx.y, thread = y * TILE + x;
    int top = blockIdx.y * SIDE, left = blockIdx.x * SIDE;
    float sum[EACH][EACH] = {};
    for (int start = 0; start < depth; start += DEPTH) {
        for (int t = thread; t < SIDE * DEPTH; t += TILE * TILE) {
            int i = top + t / DEPTH, k = start + t % DEPTH;
            a_tile[t % DEPTH][t / DEPTH] = i < rows && k < depth ? a[i * depth + k] : 0.0f;
        }
        for (int t = thread; t < SIDE * DEPTH; t += TILE * TILE) {
            int k = start + t / SIDE, j = left + t % SIDE;
            b_tile[t / SIDE][t % SIDE] = k < depth && j < columns ? b[k * columns + j] : 0.0f;
        }
        __syncthreads();
        for (int k = 0; k < DEPTH; ++k) {
            float a_part[EACH], b_part[EACH];
            for (int u = 0; u < EACH; ++u) a_part[u] = a_tile[k][y + u * TILE];
            for (int v = 0; v < EACH; ++v) b_part[v] = b_tile[k][x + v * TILE];
            for (int u = 0; u < EACH; ++u)
                for (int v = 0; v < EACH; ++v) sum[u][v] += a_part[u] * b_part[v];
        }
        __syncthreads();
    }
    // The thread's elements lie TILE apart, so that neighbors write neighbors.
    for (int u = 0; u < EACH; ++u)
        for (int v = 0; v < EACH; ++v) {
            int i = top + y + u * TILE, j = left + x + v * TILE;
            if (i < rows && j < columns) c[i * columns + j] = sum[u][v];
        }
}

constexpr int WIDE = 32;  // the block's tile: 2 x 2 warps of 16 x 16

__global__ void matmul_wmma(const half* a, const half* b, float* c, int rows, int columns,
                            int depth) {
    // Tensor cores are fed 8 rows of 16 bytes at a time: 8 halves of padding put the rows into
    // different banks. (The lab takes a fragment element by element, and counts conflicts here.)
    __shared__ __align__(32) half a_tile[WIDE][TILE + 8];
    __shared__ __align__(32) half b_tile[TILE][WIDE + 8];
    __shared__ __align__(32) float c_tile[WIDE][WIDE];
    int thread = threadIdx.x, up = threadIdx.x / 64 * 16, over = threadIdx.x / 32 % 2 * 16;
    int top = blockIdx.y * WIDE, left = blockIdx.x * WIDE;
    wmma::fragment<wmma::matrix_a, 16, 16, 16, half, wmma::row_major> a_part;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, half, wmma::row_major> b_part;
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum;
    wmma::fill_fragment(sum, 0.0f);
    half zero = __float2half(0.0f);
    for (int start = 0; start < depth; start += TILE) {
        for (int t = thread; t < WIDE * TILE; t += 128) {
            int i = top + t / TILE, k = start + t % TILE;
            a_tile[t / TILE][t % TILE] = i < rows && k < depth ? a[i * depth + k] : zero;
        }
        for (int t = thread; t < TILE * WIDE; t += 128) {
            int k = start + t / WIDE, j = left + t % WIDE;
            b_tile[t / WIDE][t % WIDE] = k < depth && j < columns ? b[k * columns + j] : zero;
        }
        __syncthreads();
        wmma::load_matrix_sync(a_part, &a_tile[up][0], TILE + 8);
        wmma::load_matrix_sync(b_part, &b_tile[0][over], WIDE + 8);
        wmma::mma_sync(sum, a_part, b_part, sum);
        __syncthreads();
    }
    // A fragment's elements lie where the hardware likes: through shared memory to c's edges.
    wmma::store_matrix_sync(&c_tile[up][over], sum, WIDE, wmma::mem_row_major);
    __syncthreads();
    for (int t = thread; t < WIDE * WIDE; t += 128) {
        int i = top + t / WIDE, j = left + t % WIDE;
        if (i < rows && j < columns) c[i * columns + j] = c_tile[t / WIDE][t % WIDE];
    }
}
