// What the kernels use of <metal_stdlib>, declared for clang's C++ for OpenCL. Metal's compiler is a clang,
// too, with the same rules for address spaces: a pointer to threadgroup memory is none to device memory, and
// threadgroup variables stand in kernels. Nothing here has a body that matters: it is only checked.
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#define device __global
#define constant __constant
#define threadgroup __local
#define thread __private
#define FLT_MAX 3.402823466e+38f

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef signed char int8_t;
template <typename T, int N>
using vec = T __attribute__((ext_vector_type(N)));
typedef vec<float, 4> float4;
typedef vec<uint, 2> uint2;
typedef vec<uint, 3> uint3;
typedef vec<uint, 4> uint4;
typedef vec<ulong, 2> ulong2;
typedef vec<signed char, 4> char4;
inline float4 metal_float4(float x) { return (float4)(x); }
inline float4 metal_float4(float x, float y, float z, float w) { return (float4)(x, y, z, w); }
template <typename V>
float4 metal_float4(V v) { return __builtin_convertvector(v, float4); }
#define float4(...) metal_float4(__VA_ARGS__)
#define uint4(...) ((uint4)(__VA_ARGS__))
#define ulong2(...) ((ulong2)(__VA_ARGS__))

float dot(float4, float4);
float exp(float);
float log(float);
float rsqrt(float);
float max(float, float);
uint min(uint, uint);
namespace precise {
float pow(float, float);
float sin(float);
float cos(float);
}  // namespace precise

enum class mem_flags { mem_none, mem_device, mem_threadgroup };
mem_flags operator|(mem_flags, mem_flags);
void threadgroup_barrier(mem_flags);
void simdgroup_barrier(mem_flags);
float simd_sum(float);
float simd_max(float);
float simd_broadcast_first(float);

struct metal_atomic_float {
    float value;
};
#define atomic_float metal_atomic_float
enum memory_order { memory_order_relaxed };
float atomic_fetch_add_explicit(device volatile atomic_float*, float, memory_order);

template <typename T, int R, int C>
struct simdgroup_matrix {
    T elements[2];
};
template <typename T, int R, int C>
simdgroup_matrix<T, R, C> make_filled_simdgroup_matrix(T);
#define METAL_MATRIX_IN(SPACE)                                                                              \
    template <typename T>                                                                                   \
    void simdgroup_load(thread simdgroup_matrix<T, 8, 8>&, const SPACE T*, ulong = 8, ulong2 = 0, bool = false); \
    template <typename T>                                                                                   \
    void simdgroup_store(simdgroup_matrix<T, 8, 8>, SPACE T*, ulong = 8, ulong2 = 0, bool = false);
METAL_MATRIX_IN(device)
METAL_MATRIX_IN(threadgroup)
template <typename D, typename A, typename B, typename S>
void simdgroup_multiply_accumulate(thread simdgroup_matrix<D, 8, 8>&, simdgroup_matrix<A, 8, 8>,
                                   simdgroup_matrix<B, 8, 8>, simdgroup_matrix<S, 8, 8>);
template <typename D, typename A, typename B>
void simdgroup_multiply(thread simdgroup_matrix<D, 8, 8>&, simdgroup_matrix<A, 8, 8>, simdgroup_matrix<B, 8, 8>);
