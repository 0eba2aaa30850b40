// Vector addition: c[i] = a[i] + b[i].
//
// Shapes   a, b, c: (n,) float32.
// CPU      for (int i = 0; i < n; ++i) c[i] = a[i] + b[i];
// Bytes    8n read, 4n written; 1 addition for 12 bytes, so memory alone decides the time.
// Threads  dispatchThreads: the grid is counted in threads, and Metal itself cuts the last
//          threadgroup to size. Threadgroup 256.
//
// version                 threads        what it changes
// vector_add              n              an element a thread, neighbors side by side: full
//                                        sectors; no thread is past the end, and none asks
// vector_add4             ceil(n / 4)    four elements in one 16-byte access: a quarter of the
//                                        requests, the same bytes; offsets multiples of 16
// vector_add_grid_stride  any            each thread goes on by the grid's width: one launch of
//                                        a fixed size serves any n
//
// Source: Metal Shading Language Specification 3.2, section 5.2.3; Apple, "Calculating Threadgroup
// and Grid Sizes". Not yet run on a Mac.

#include <metal_stdlib>
using namespace metal;

kernel void vector_add(device const float* a [[buffer(0)]], device const float* b [[buffer(1)]],
                       device float* c [[buffer(2)]], uint i [[thread_position_in_grid]]) {
    c[i] = a[i] + b[i];
}

kernel void vector_add4(device const float* a [[buffer(0)]], device const float* b [[buffer(1)]],
                        device float* c [[buffer(2)]], constant uint& n [[buffer(3)]],
                        uint item [[thread_position_in_grid]]) {
    uint i = 4 * item;
    if (i + 3 < n) {
        float4 x = *reinterpret_cast<device const float4*>(a + i);
        float4 y = *reinterpret_cast<device const float4*>(b + i);
        *reinterpret_cast<device float4*>(c + i) = x + y;
    } else {
        for (; i < n; ++i) c[i] = a[i] + b[i];  // the last elements, where n is no multiple of 4
    }
}

kernel void vector_add_grid_stride(device const float* a [[buffer(0)]],
                                   device const float* b [[buffer(1)]],
                                   device float* c [[buffer(2)]], constant uint& n [[buffer(3)]],
                                   uint first [[thread_position_in_grid]],
                                   uint width [[threads_per_grid]]) {
    for (uint i = first; i < n; i += width) c[i] = a[i] + b[i];
}
