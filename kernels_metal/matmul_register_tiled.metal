// Matrix product: c[i][j] = a[i][0] b[0][j] + ... + a[i][depth-1] b[depth-1][j], 16 of them a
// thread.
//
// Shapes   a: (rows, depth), b: (depth, columns), c: (rows, columns) float32, row-major.
// CPU      for (int i = 0; i < rows; ++i)
//              for (int j = 0; j < columns; ++j) {
//                  float sum = 0;
//                  for (int k = 0; k < depth; ++k) sum += a[i * depth + k] * b[k * columns + j];
//                  c[i * columns + j] = sum;
//              }
// Bytes    4 rows columns written. Read, where P = rows columns depth and sizes are multiples of
//          the tile: see the table; no fewer than 4 depth (rows + columns).
// Grid     (ceil(columns / 64), ceil(rows / 64)) threadgroups of (16, 16).
//
// version                tile     bytes read  threadgroup  what it changes
// matmul_tiled           16 x 16  8 P / 16    2048 B       (matmul_tiled.metal) an element a thread
// matmul_register_tiled  64 x 64  8 P / 64    8320 B       a thread keeps 4 x 4 sums: bytes of
//                                                          device memory fall by 4, and 8 reads of
//                                                          threadgroup memory feed 16 products, not
//                                                          2 one
//
// Source: V. Volkov, "Better Performance at Lower Occupancy" (GTC 2010); S. Boehm, "How to Optimize
// a CUDA Matmul Kernel" (2022). Not yet run on a Mac.

#include <metal_stdlib>
using namespace metal;

constant constexpr uint SIDE = 64, DEPTH = 16;            // the threadgroup's tile, and its step
constant constexpr uint TILE = 16, EACH = SIDE / TILE;  // threads a side; sums a side of each

kernel void matmul_register_tiled(device const float* a [[buffer(0)]],
                                  device const float* b [[buffer(1)]],
                                  device float* c [[buffer(2)]], constant uint& rows [[buffer(3)]],
                                  constant uint& columns [[buffer(4)]],
                                  constant uint& depth [[buffer(5)]],
                                  uint2 group [[threadgroup_position_in_grid]],
                                  uint2 place [[thread_position_in_threadgroup]]) {
    // a's tile lies turned; two columns of padding spread its columns over the banks.
    threadgroup float a_tile[DEPTH][SIDE + 2], b_tile[DEPTH][SIDE];
    uint x = place.x, y = place.y, thread_index = y * TILE + x;
    uint top = group.y * SIDE, left = group.x * SIDE;
    float sum[EACH][EACH] = {};
    for (uint start = 0; start < depth; start += DEPTH) {
        for (uint t = thread_index; t < SIDE * DEPTH; t += TILE * TILE) {
            uint i = top + t / DEPTH, k = start + t % DEPTH;
            a_tile[t % DEPTH][t / DEPTH] = i < rows && k < depth ? a[i * depth + k] : 0.0f;
        }
        for (uint t = thread_index; t < SIDE * DEPTH; t += TILE * TILE) {
            uint k = start + t / SIDE, j = left + t % SIDE;
            b_tile[t / SIDE][t % SIDE] = k < depth && j < columns ? b[k * columns + j] : 0.0f;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint k = 0; k < DEPTH; ++k) {
            float a_part[EACH], b_part[EACH];
            for (uint u = 0; u < EACH; ++u) a_part[u] = a_tile[k][y + u * TILE];
            for (uint v = 0; v < EACH; ++v) b_part[v] = b_tile[k][x + v * TILE];
            for (uint u = 0; u < EACH; ++u)
                for (uint v = 0; v < EACH; ++v) sum[u][v] += a_part[u] * b_part[v];
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    // The thread's elements lie TILE apart, so that neighbors write neighbors.
    for (uint u = 0; u < EACH; ++u)
        for (uint v = 0; v < EACH; ++v) {
            uint i = top + y + u * TILE, j = left + x + v * TILE;
            if (i < rows && j < columns) c[i * columns + j] = sum[u][v];
        }
}
