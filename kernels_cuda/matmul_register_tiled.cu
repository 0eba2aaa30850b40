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
// version                tile     block     bytes read  shared  what it changes
// matmul_tiled           16 x 16  (16, 16)  8 P / 16    2048 B  see matmul_tiled.cu
// matmul_register_tiled  64 x 64  (16, 16)  8 P / 64    8320 B  a thread keeps 4 x 4 sums: global
//                                                               bytes fall by 4, and 8 reads of
//                                                               shared memory feed 16 products,
//                                                               where 2 fed one
//
// Source: V. Volkov, "Better Performance at Lower Occupancy" (GTC 2010); S. Boehm, "How to Optimize
// a CUDA Matmul Kernel" (2022).

constexpr int TILE = 16, SIDE = 64, DEPTH = 16, EACH = SIDE / TILE;

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
