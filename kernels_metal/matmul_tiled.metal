// Matrix product: c[i][j] = a[i][0] b[0][j] + ... + a[i][depth-1] b[depth-1][j].
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
// Grid     matmul_naive (columns, rows) threads; matmul_tiled (ceil(columns / 16), ceil(rows / 16))
//          threadgroups.
//
// version       tile     threads   bytes read  threadgroup  what it changes
// matmul_naive  32 x 8   (32, 8)   8 P         0            a thread an element, all of it from
//                                                           device memory
// matmul_tiled  16 x 16  (16, 16)  8 P / 16    2048 B       each element that a threadgroup loads
//                                                           serves 16 threads
//
// Two barriers a step of 16 in depth: one until the tile stands, one until all have used it.
// matmul_register_tiled.metal goes on from here.
//
// Source: Metal Shading Language Specification 3.2, section 4.2 (address spaces); CUDA C++
// Programming Guide 13.0, "Shared Memory", for the tiles. Not yet run on a Mac.

#include <metal_stdlib>
using namespace metal;

kernel void matmul_naive(device const float* a [[buffer(0)]], device const float* b [[buffer(1)]],
                         device float* c [[buffer(2)]], constant uint& depth [[buffer(3)]],
                         uint2 place [[thread_position_in_grid]], uint2 grid [[threads_per_grid]]) {
    uint i = place.y, j = place.x, columns = grid.x;
    float sum = 0;
    for (uint k = 0; k < depth; ++k) sum += a[i * depth + k] * b[k * columns + j];
    c[i * columns + j] = sum;
}

constant constexpr uint TILE = 16;

kernel void matmul_tiled(device const float* a [[buffer(0)]], device const float* b [[buffer(1)]],
                         device float* c [[buffer(2)]], constant uint& rows [[buffer(3)]],
                         constant uint& columns [[buffer(4)]], constant uint& depth [[buffer(5)]],
                         uint2 group [[threadgroup_position_in_grid]],
                         uint2 place [[thread_position_in_threadgroup]]) {
    threadgroup float a_tile[TILE][TILE], b_tile[TILE][TILE];
    uint x = place.x, y = place.y, i = group.y * TILE + y, j = group.x * TILE + x;
    float sum = 0;
    for (uint start = 0; start < depth; start += TILE) {
        // Outside the matrices stands 0, which adds nothing.
        a_tile[y][x] = i < rows && start + x < depth ? a[i * depth + start + x] : 0.0f;
        b_tile[y][x] = start + y < depth && j < columns ? b[(start + y) * columns + j] : 0.0f;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint k = 0; k < TILE; ++k) sum += a_tile[y][k] * b_tile[k][x];
        // The next tile overwrites what slower threads still read.
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    if (i < rows && j < columns) c[i * columns + j] = sum;
}
