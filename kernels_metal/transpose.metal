// Transpose: out[j][i] = in[i][j].
//
// Shapes   in: (rows, columns) float32, out: (columns, rows) float32, row-major.
// CPU      for (int i = 0; i < rows; ++i)
//              for (int j = 0; j < columns; ++j) out[j * rows + i] = in[i * columns + j];
// Bytes    4 rows columns read, as many written. Ideal: a 32-byte sector for 8 elements, each way.
// Grid     (ceil(columns / 32), ceil(rows / 32)) threadgroups of (32, 8): a thread moves four
//          elements.
//
// version          sectors written  bank conflicts  threadgroup  what it changes
// transpose_naive  8 x ideal        -               0            reads rows, writes columns: 32
//                                                                lanes touch 32 sectors where 4
//                                                                would do
// transpose_tiled  ideal            31 a request    4096 B       a tile turns in threadgroup
//                                                                memory, so that both sides move
//                                                                whole rows; a column of the tile
//                                                                lies in one bank
// transpose        ideal            0               4224 B       a column of padding shifts each
//                                                                row of the tile by a bank
//
// Apple documents no banks. The lab counts 32 of 4 bytes, as NVIDIA has them; a row that is odd in
// length is safe for any power of two.
//
// Source: G. Ruetsch and P. Micikevicius, "Optimizing Matrix Transpose in CUDA" (NVIDIA, 2009).
// Not yet run on a Mac.

#include <metal_stdlib>
using namespace metal;

constant constexpr uint TILE = 32, ROWS = 8;

kernel void transpose_naive(device const float* in [[buffer(0)]], device float* out [[buffer(1)]],
                            constant uint& rows [[buffer(2)]], constant uint& columns [[buffer(3)]],
                            uint2 group [[threadgroup_position_in_grid]],
                            uint2 place [[thread_position_in_threadgroup]]) {
    uint j = group.x * TILE + place.x;
    for (uint k = place.y; k < TILE; k += ROWS) {
        uint i = group.y * TILE + k;
        if (i < rows && j < columns) out[j * rows + i] = in[i * columns + j];
    }
}

// By way of the tile, whose rows lie `width` elements apart.
void transpose_by_tile(device const float* in, device float* out, threadgroup float* tile,
                       uint width, uint rows, uint columns, uint2 group, uint2 place) {
    uint j = group.x * TILE + place.x;
    for (uint k = place.y; k < TILE; k += ROWS) {
        uint i = group.y * TILE + k;
        if (i < rows && j < columns) tile[k * width + place.x] = in[i * columns + j];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    // The same tile, now row by row of the output: place.x runs along i.
    uint i = group.y * TILE + place.x;
    for (uint k = place.y; k < TILE; k += ROWS) {
        uint column = group.x * TILE + k;
        if (i < rows && column < columns) out[column * rows + i] = tile[place.x * width + k];
    }
}

kernel void transpose_tiled(device const float* in [[buffer(0)]], device float* out [[buffer(1)]],
                            constant uint& rows [[buffer(2)]], constant uint& columns [[buffer(3)]],
                            uint2 group [[threadgroup_position_in_grid]],
                            uint2 place [[thread_position_in_threadgroup]]) {
    threadgroup float tile[TILE * TILE];
    transpose_by_tile(in, out, tile, TILE, rows, columns, group, place);
}

kernel void transpose(device const float* in [[buffer(0)]], device float* out [[buffer(1)]],
                      constant uint& rows [[buffer(2)]], constant uint& columns [[buffer(3)]],
                      uint2 group [[threadgroup_position_in_grid]],
                      uint2 place [[thread_position_in_threadgroup]]) {
    threadgroup float tile[TILE * (TILE + 1)];
    transpose_by_tile(in, out, tile, TILE + 1, rows, columns, group, place);
}
