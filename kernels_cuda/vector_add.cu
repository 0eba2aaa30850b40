// Vector addition: c[i] = a[i] + b[i].
//
// Shapes   a, b, c: (n,) float32.
// CPU      for (int i = 0; i < n; ++i) c[i] = a[i] + b[i];
// Bytes    8n read, 4n written; 1 addition for 12 bytes, so memory alone decides the time.
// Block    256 threads.
//
// version                 grid                 what it changes
// vector_add              ceil(n / block)      an element a thread, neighbors side by side:
//                                              full sectors
// vector_add4             ceil(n / 4 block)    four elements in one 16-byte access: a quarter
//                                              of the requests, the same bytes; pointers must
//                                              be multiples of 16
// vector_add_grid_stride  any                  each thread goes on by the grid's width: one
//                                              launch of a fixed size serves any n
//
// Source: CUDA C++ Programming Guide 13.0, "Programming Model"; M. Harris, "CUDA Pro Tip: Write
// Flexible Kernels with Grid-Stride Loops" (2013).

__global__ void vector_add(const float* a, const float* b, float* c, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) c[i] = a[i] + b[i];
}

__global__ void vector_add4(const float* a, const float* b, float* c, int n) {
    int i = 4 * (blockIdx.x * blockDim.x + threadIdx.x);
    if (i + 3 < n) {
        float4 x = *reinterpret_cast<const float4*>(a + i);
        float4 y = *reinterpret_cast<const float4*>(b + i);
        float4 sum = make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w);
        *reinterpret_cast<float4*>(c + i) = sum;
    } else {
        for (; i < n; ++i) c[i] = a[i] + b[i];  // the last elements, where n is no multiple of 4
    }
}

__global__ void vector_add_grid_stride(const float* a, const float* b, float* c, int n) {
    int width = gridDim.x * blockDim.x;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += width) c[i] = a[i] + b[i];
}
