// Matrix product: c[i][j] = a[i][0] b[0][j] + ... + a[i][depth-1] b[depth-1][j].
//
// Shapes   a: (rows, depth), b: (depth, columns), c: (rows, columns), row-major; a and b
//          float16, c float32: products are added in float32.
// CPU      for (int i = 0; i < rows; ++i)
//              for (int j = 0; j < columns; ++j) {
//                  float sum = 0;
//                  for (int k = 0; k < depth; ++k) sum += a[i * depth + k] * b[k * columns + j];
//                  c[i * columns + j] = sum;
//              }
// Bytes    4 rows columns written. Read, where P = rows columns depth and sizes are multiples of
//          the tile: see the table; no fewer than 2 depth (rows + columns).
// Grid     (ceil(columns / tile), ceil(rows / tile)).
//
// version                tile     block     bytes read  shared  what it changes
// matmul_register_tiled  64 x 64  (16, 16)  8 P / 64    8320 B  see matmul_register_tiled.cu
// matmul_wmma            32 x 32  128       4 P / 32    6912 B  tensor cores multiply 16 x 16
//                                                               tiles of halves, one a warp
//
// Source: CUDA C++ Programming Guide 13.0, C++ Language Extensions, "Warp Matrix Functions".

#include <cuda_fp16.h>
#include <mma.h>

using namespace nvcuda;

constexpr int TILE = 16;
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
