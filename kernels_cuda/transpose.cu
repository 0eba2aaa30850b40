// Transpose: out[j][i] = in[i][j].
//
// Shapes   in: (rows, columns) float32, out: (columns, rows) float32, row-major.
// CPU      for (int i = 0; i < rows; ++i)
//              for (int j = 0; j < columns; ++j) out[j * rows + i] = in[i * columns + j];
// Bytes    4 rows columns read, as many written. Ideal: a 32-byte sector for 8 elements, each way.
// Grid     (ceil(columns / 32), ceil(rows / 32)); block (32, 8): a thread moves four elements.
//
// version          sectors written  bank conflicts  shared  what it changes
// transpose_naive  8 x ideal        -               0       reads rows, writes columns: 32 lanes
//                                                           touch 32 sectors where 4 would do
// transpose_tiled  ideal            31 a request    4096 B  a tile turns in shared memory, so that
//                                                           both sides move whole rows; a column
//                                                           of the tile lies in one bank
// transpose        ideal            0               4224 B  a column of padding shifts each row of
//                                                           the tile by a bank
//
// Source: G. Ruetsch and P. Micikevicius, "Optimizing Matrix Transpose in CUDA" (NVIDIA, 2009).

constexpr int TILE = 32, ROWS = 8;

__global__ void transpose_naive(const float* in, float* out, int rows, int columns) {
    int j = blockIdx.x * TILE + threadIdx.x;
    for (int k = threadIdx.y; k < TILE; k += ROWS) {
        int i = blockIdx.y * TILE + k;
        if (i < rows && j < columns) out[j * rows + i] = in[i * columns + j];
    }
}

// The tile, its rows `WIDTH` elements apart.
template <int WIDTH>
__device__ void transpose_by_tile(const float* in, float* out, int rows, int columns) {
    __shared__ float tile[TILE][WIDTH];
    int j = blockIdx.x * TILE + threadIdx.x;
    for (int k = threadIdx.y; k < TILE; k += ROWS) {
        int i = blockIdx.y * TILE + k;
        if (i < rows && j < columns) tile[k][threadIdx.x] = in[i * columns + j];
    }
    __syncthreads();
    // The same tile, now row by row of the output: threadIdx.x runs along i.
    int i = blockIdx.y * TILE + threadIdx.x;
    for (int k = threadIdx.y; k < TILE; k += ROWS) {
        int column = blockIdx.x * TILE + k;
        if (i < rows && column < columns) out[column * rows + i] = tile[threadIdx.x][k];
    }
}

__global__ void transpose_tiled(const float* in, float* out, int rows, int columns) {
    transpose_by_tile<TILE>(in, out, rows, columns);
}

__global__ void transpose(const float* in, float* out, int rows, int columns) {
    transpose_by_tile<TILE + 1>(in, out, rows, columns);
}
