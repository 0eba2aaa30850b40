// Matrix product: c[i][j] = a[i][0] b[0][j] + ... + a[i][depth-1] b[depth-1][j] by the units that
// multiply matrices of 8 x 8.
//
// Shapes   a: (rows, depth), b: (depth, columns), c: (rows, columns), row-major, of a type T:
//          float, half or bfloat. Sums are float whatever T is.
// CPU      for (int i = 0; i < rows; ++i)
//              for (int j = 0; j < columns; ++j) {
//                  float sum = 0;
//                  for (int k = 0; k < depth; ++k) sum += a[i * depth + k] * b[k * columns + j];
//                  c[i * columns + j] = sum;
//              }
// Numbers  rows columns written. Read, where P = rows columns depth and sizes are multiples of the
//          tile: see the table; no fewer than depth (rows + columns). A number has sizeof(T) bytes.
// Grid     (ceil(columns / 32), ceil(rows / 32)) threadgroups of 128: 2 x 2 simdgroups.
//
// version                  tile     numbers read  threadgroup     what it changes
// matmul_register_tiled    64 x 64  2 P / 64      8320 B          (matmul_register_tiled.metal) a
//                                                                 multiplication an instruction
// matmul_simdgroup_float,  32 x 32  2 P / 32      9472 B, 7040 B  512 multiplications: a simdgroup
// _half, _bfloat                                  for half        keeps 2 x 2 sums of 8 x 8, and
//                                                                 each matrix that it loads serves
//                                                                 two products
//
// Source: Metal Shading Language Specification 3.2, sections 2.4 and 6.7 (simdgroup_matrix, on
// Apple7 and later: M1, A14); MLX's steel/gemm for tiles of 32 x 32 x 16. Not yet run on a Mac.

#include <metal_simdgroup_matrix>
#include <metal_stdlib>
using namespace metal;

constant constexpr uint WIDE = 32, TILE = 16;  // the threadgroup's tile; a simdgroup's, the step

template <typename T>
[[kernel]] void matmul_simdgroup(device const T* a [[buffer(0)]], device const T* b [[buffer(1)]],
                                 device T* c [[buffer(2)]], constant uint& rows [[buffer(3)]],
                                 constant uint& columns [[buffer(4)]],
                                 constant uint& depth [[buffer(5)]],
                                 uint2 group [[threadgroup_position_in_grid]],
                                 uint thread_index [[thread_index_in_threadgroup]],
                                 uint simdgroup [[simdgroup_index_in_threadgroup]]) {
    // Four elements of padding: rows of 8 x 8 matrices begin in different banks.
    threadgroup T a_tile[WIDE * (TILE + 4)], b_tile[TILE * (WIDE + 4)];
    threadgroup float c_tile[WIDE * (WIDE + 4)];
    uint up = simdgroup / 2 * 16, over = simdgroup % 2 * 16;
    uint top = group.y * WIDE, left = group.x * WIDE;
    simdgroup_matrix<float, 8, 8> sum[2][2];
    for (uint u = 0; u < 2; ++u)
        for (uint v = 0; v < 2; ++v) sum[u][v] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    for (uint start = 0; start < depth; start += TILE) {
        for (uint t = thread_index; t < WIDE * TILE; t += 128) {
            uint i = top + t / TILE, k = start + t % TILE;
            a_tile[t / TILE * (TILE + 4) + t % TILE] =
                i < rows && k < depth ? a[i * depth + k] : T(0.0f);
        }
        for (uint t = thread_index; t < TILE * WIDE; t += 128) {
            uint k = start + t / WIDE, j = left + t % WIDE;
            b_tile[t / WIDE * (WIDE + 4) + t % WIDE] =
                k < depth && j < columns ? b[k * columns + j] : T(0.0f);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint k = 0; k < TILE; k += 8) {
            simdgroup_matrix<T, 8, 8> a_part[2], b_part[2];
            for (uint u = 0; u < 2; ++u)
                simdgroup_load(a_part[u], a_tile + (up + 8 * u) * (TILE + 4) + k, TILE + 4);
            for (uint v = 0; v < 2; ++v)
                simdgroup_load(b_part[v], b_tile + k * (WIDE + 4) + over + 8 * v, WIDE + 4);
            for (uint u = 0; u < 2; ++u)
                for (uint v = 0; v < 2; ++v)
                    simdgroup_multiply_accumulate(sum[u][v], a_part[u], b_part[v], sum[u][v]);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    // Which lane holds which element is not documented: through threadgroup memory to c's edges.
    for (uint u = 0; u < 2; ++u)
        for (uint v = 0; v < 2; ++v)
            simdgroup_store(sum[u][v], c_tile + (up + 8 * u) * (WIDE + 4) + over + 8 * v, WIDE + 4);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint t = thread_index; t < WIDE * WIDE; t += 128) {
        uint i = top + t / WIDE, j = left + t % WIDE;
        if (i < rows && j < columns)
            c[i * columns + j] = T(c_tile[t / WIDE * (WIDE + 4) + t % WIDE]);
    }
}

#define INSTANTIATE(T)                                             \
    template [[host_name("matmul_simdgroup_" #T)]] [[kernel]]      \
    decltype(matmul_simdgroup<T>) matmul_simdgroup<T>;

INSTANTIATE(float)
INSTANTIATE(half)
INSTANTIATE(bfloat)
