// Sum of a vector: out[0] += x[0] + x[1] + ... + x[n-1].
//
// Shapes   x: (n,) float32; out: (1,) float32, zero before the launch. The order of the additions
//          is not the CPU's: compare with a tolerance.
// CPU      float sum = 0; for (int i = 0; i < n; ++i) sum += x[i];
// Bytes    4n read; nothing else matters, if the rest is done well.
// Grid     any (a few blocks a processor; reduce_sum_atomic: ceil(n / block)); block a power of two
//          from 32 to 1024, here 256.
//
// version            atomics         barriers a block  shared  what it changes
// reduce_sum_atomic  one an element  0                 0       all add to one address: they queue
// reduce_sum_tree    one a block     8                 1024 B  partial sums meet in shared memory,
//                                                              halving each time
// reduce_sum         one a block     1                 128 B   the 32 lanes of a warp add by
//                                                              shuffles: one number a warp is left
//
// Source: M. Harris, "Optimizing Parallel Reduction in CUDA" (NVIDIA, 2007); J. Luitjens, "Faster
// Parallel Reductions on Kepler" (NVIDIA, 2014).

__global__ void reduce_sum_atomic(const float* x, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) atomicAdd(out, x[i]);
}

__global__ void reduce_sum_tree(const float* x, float* out, int n) {
    extern __shared__ float partial[];  // blockDim.x elements
    float sum = 0;
    int width = gridDim.x * blockDim.x;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += width) sum += x[i];
    partial[threadIdx.x] = sum;
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        // The first half adds the second: neighbors read neighbors, and no bank is asked twice.
        if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
    }
    if (threadIdx.x == 0) atomicAdd(out, partial[0]);
}

__device__ float warp_sum(float sum) {
    for (int distance = 16; distance > 0; distance /= 2)
        sum += __shfl_down_sync(0xffffffffu, sum, distance);
    return sum;  // in lane 0
}

__global__ void reduce_sum(const float* x, float* out, int n) {
    __shared__ float partial[32];  // one a warp
    float sum = 0;
    int width = gridDim.x * blockDim.x;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += width) sum += x[i];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    sum = warp_sum(sum);
    if (lane == 0) partial[warp] = sum;
    __syncthreads();
    if (warp == 0) {
        sum = warp_sum(lane < blockDim.x / 32 ? partial[lane] : 0.0f);
        if (lane == 0) atomicAdd(out, sum);
    }
}
