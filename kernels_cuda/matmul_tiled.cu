// Matrix product: c[i][j] = a[i][0] b[0][j] + ... + a[i][depth-1] b[depth-1][j].
//
// Shapes   a: (rows, depth), b: (depth, columns), c: (rows, columns), float32, row-major.
// CPU      for (int i = 0; i < rows; ++i)
//              for (int j = 0; j < columns; ++j) {
//                  float sum = 0;
//                  for (int k = 0; k < depth; ++k) sum += a[i * depth + k] * b[k * columns + j];
//                  c[i * columns + j] = sum;
//              }
// Bytes    4 rows columns written. Read, where P = rows columns depth and sizes are multiples of
//          the tile: see the table; no fewer than 4 depth (rows + columns).
// Grid     (ceil(columns / tile), ceil(rows / tile)).
//
// version       tile     block     bytes read  shared  what it changes
// matmul_naive  32 x 8   (32, 8)   8 P         0       a thread an element, all of it from global
//                                                      memory
// matmul_tiled  16 x 16  (16, 16)  8 P / 16    2048 B  each element that a block loads serves 16
//                                                      threads
//
// It goes on in matmul_register_tiled.cu and matmul_wmma.cu.
// Source: CUDA C++ Programming Guide 13.0, Programming Interface, "Shared Memory".

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
