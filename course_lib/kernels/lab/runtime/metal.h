// The Metal Shading Language on the lab's runtime: what <metal_stdlib> gives a kernel.
#pragma once
#include "runtime.h"

#include <float.h>
#include <limits.h>

#define LAB_LINE int line = __builtin_LINE()
#if defined(__clang__)
#define LAB_INLINE inline __attribute__((always_inline, nodebug))
#else
#define LAB_INLINE inline
#endif
#define KERNEL_LAB 1
#define device
#define constant const
#define thread
#define kernel

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;

// CUDA's names of the C library's functions serve here, too; Metal's overloads stand in namespace metal.
namespace lab_c {
#include "math.inc"
}
#undef isnan
#undef isinf
#undef isfinite
#undef signbit

// vectors

template <class T, int N>
struct lab_vec;
// v.zyx: reads as a vector, and is written member by member.
template <class V, class T, int... I>
struct lab_swizzle {
    T lab_data[4];
    typedef unsigned char lab_bytes __attribute__((vector_size(4 * sizeof(T))));
    LAB_INLINE operator V() const {
        lab_swizzle whole;  // one access, as of the vector itself
        *(lab_bytes*)whole.lab_data = *(const lab_bytes*)lab_data;
        return V(whole.lab_data[I]...);
    }
    lab_swizzle() = default;
    LAB_INLINE lab_swizzle& operator=(const V& v) {
        int k = 0;
        V copy = v;
        ((lab_data[I] = copy[k++]), ...);
        return *this;
    }
    LAB_INLINE lab_swizzle& operator=(const lab_swizzle& o) { return *this = (V)o; }
    LAB_INLINE lab_swizzle& operator+=(const V& v) { return *this = (V)(*this) + v; }
    LAB_INLINE lab_swizzle& operator-=(const V& v) { return *this = (V)(*this) - v; }
    LAB_INLINE lab_swizzle& operator*=(const V& v) { return *this = (V)(*this) * v; }
};

#define LAB_EACH(E) for (int i = 0; i < N; ++i) E
#define LAB_ARITHMETIC(OP)                                                                                   \
    friend LAB_INLINE lab_vec operator OP(lab_vec a, lab_vec b) {                                            \
        lab_vec r;                                                                                           \
        LAB_EACH(r.lab_at[i] = a.lab_at[i] OP b.lab_at[i]);                                                  \
        return r;                                                                                            \
    }                                                                                                        \
    LAB_INLINE lab_vec& operator OP##=(lab_vec b) { return *this = *this OP b; }
#define LAB_COMPARISON(OP)                                                                                   \
    friend LAB_INLINE lab_vec<bool, N> operator OP(lab_vec a, lab_vec b) {                                   \
        lab_vec<bool, N> r;                                                                                  \
        LAB_EACH(r.lab_at[i] = a.lab_at[i] OP b.lab_at[i]);                                                  \
        return r;                                                                                            \
    }
#define LAB_MEMBERS                                                                                          \
    lab_vec() = default;                                                                                     \
    LAB_INLINE lab_vec(T a) { LAB_EACH(lab_at[i] = a); }                                                     \
    template <class U>                                                                                       \
    LAB_INLINE explicit lab_vec(const lab_vec<U, N>& o) {                                                    \
        LAB_EACH(lab_at[i] = (T)o.lab_at[i]);                                                                \
    }                                                                                                        \
    LAB_INLINE T& operator[](int i) { return lab_at[i]; }                                                    \
    LAB_INLINE const T& operator[](int i) const { return lab_at[i]; }                                        \
    LAB_ARITHMETIC(+) LAB_ARITHMETIC(-) LAB_ARITHMETIC(*) LAB_ARITHMETIC(/)                                  \
    LAB_COMPARISON(<) LAB_COMPARISON(>) LAB_COMPARISON(<=) LAB_COMPARISON(>=) LAB_COMPARISON(==)             \
    LAB_COMPARISON(!=)                                                                                       \
    friend LAB_INLINE lab_vec operator-(lab_vec a) {                                                         \
        LAB_EACH(a.lab_at[i] = -a.lab_at[i]);                                                                \
        return a;                                                                                            \
    }
// A copy is one wide access, as the hardware's is.
#define LAB_ONE_COPY(BYTES)                                                                                  \
    typedef unsigned char lab_bytes __attribute__((vector_size(BYTES)));                                     \
    LAB_INLINE lab_vec(const lab_vec& o) { *(lab_bytes*)lab_at = *(const lab_bytes*)o.lab_at; }              \
    LAB_INLINE lab_vec& operator=(const lab_vec& o) {                                                        \
        *(lab_bytes*)lab_at = *(const lab_bytes*)o.lab_at;                                                   \
        return *this;                                                                                        \
    }
#define LAB_TWO(V, ...) lab_swizzle<lab_vec<T, 2>, T, __VA_ARGS__>
#define LAB_THREE(V, ...) lab_swizzle<lab_vec<T, 3>, T, __VA_ARGS__>
#define LAB_FOUR(V, ...) lab_swizzle<lab_vec<T, 4>, T, __VA_ARGS__>

template <class T>
struct alignas(2 * sizeof(T)) lab_vec<T, 2> {
    static constexpr int N = 2;
    union {
        T lab_at[2];
        struct {
            T x, y;
        };
        struct {
            T r, g;
        };
    };
    LAB_ONE_COPY(2 * sizeof(T))
    LAB_MEMBERS
    LAB_INLINE lab_vec(T a, T b) : x(a), y(b) {}
};
template <class T>
struct alignas(4 * sizeof(T)) lab_vec<T, 3> {
    static constexpr int N = 3;
    union {
        T lab_at[4];  // the last one is padding, as in Metal
        struct {
            T x, y, z;
        };
        struct {
            T r, g, b;
        };
        LAB_TWO(V, 0, 1) xy;
        LAB_TWO(V, 0, 2) xz;
        LAB_TWO(V, 1, 2) yz;
        LAB_THREE(V, 2, 1, 0) zyx;
        LAB_THREE(V, 1, 2, 0) yzx;
        LAB_THREE(V, 2, 0, 1) zxy;
    };
    LAB_ONE_COPY(4 * sizeof(T))
    LAB_MEMBERS
    LAB_INLINE lab_vec(T a, T b, T c) : x(a), y(b), z(c) {}
    LAB_INLINE lab_vec(lab_vec<T, 2> a, T c) : x(a.x), y(a.y), z(c) {}
};
template <class T>
struct alignas(4 * sizeof(T)) lab_vec<T, 4> {
    static constexpr int N = 4;
    union {
        T lab_at[4];
        struct {
            T x, y, z, w;
        };
        struct {
            T r, g, b, a;
        };
        LAB_TWO(V, 0, 1) xy;
        LAB_TWO(V, 0, 2) xz;
        LAB_TWO(V, 0, 3) xw;
        LAB_TWO(V, 1, 2) yz;
        LAB_TWO(V, 1, 3) yw;
        LAB_TWO(V, 2, 3) zw;
        LAB_TWO(V, 1, 0) yx;
        LAB_TWO(V, 3, 2) wz;
        LAB_THREE(V, 0, 1, 2) xyz;
        LAB_THREE(V, 1, 2, 3) yzw;
        LAB_THREE(V, 2, 1, 0) zyx;
        LAB_THREE(V, 0, 1, 2) rgb;
        LAB_FOUR(V, 3, 2, 1, 0) wzyx;
        LAB_FOUR(V, 1, 0, 3, 2) yxwz;
        LAB_FOUR(V, 2, 3, 0, 1) zwxy;
    };
    LAB_ONE_COPY(4 * sizeof(T))
    LAB_MEMBERS
    LAB_INLINE lab_vec(T a, T b, T c, T d) : x(a), y(b), z(c), w(d) {}
    LAB_INLINE lab_vec(lab_vec<T, 2> a, lab_vec<T, 2> b) : x(a.x), y(a.y), z(b.x), w(b.y) {}
    LAB_INLINE lab_vec(lab_vec<T, 3> a, T d) : x(a.x), y(a.y), z(a.z), w(d) {}
};
template <class T, int N>
struct LabType<lab_vec<T, N>> : LabType<T> {};

// half: the compiler's own 16-bit float, or the software one of CUDA's header.
namespace lab_c {
typedef lab_vec<float, 2> float2;
#define LAB_NAME_HALF(T, KIND)
#define LAB_NAME_HALF2(T2, T)
#include "half.inc"
}
template <>
struct LabType<lab_c::__nv_bfloat16> {
    static constexpr uint32_t code = lab_code('g', 2);
};
#if defined(__FLT16_MAX__)
typedef _Float16 half;
LAB_TYPE(_Float16, 'f')
#else
typedef lab_c::__half half;
LAB_TYPE(lab_c::__half, 'f')
#endif
typedef lab_c::__nv_bfloat16 bfloat;

#define LAB_NAMES(NAME, T)                                                                                   \
    typedef lab_vec<T, 2> NAME##2;                                                                           \
    typedef lab_vec<T, 3> NAME##3;                                                                           \
    typedef lab_vec<T, 4> NAME##4;
LAB_NAMES(float, float)
LAB_NAMES(half, half)
LAB_NAMES(bfloat, bfloat)
LAB_NAMES(int, int)
LAB_NAMES(uint, uint)
LAB_NAMES(long, long)
LAB_NAMES(ulong, ulong)
LAB_NAMES(short, short)
LAB_NAMES(ushort, ushort)
LAB_NAMES(char, signed char)
LAB_NAMES(uchar, uchar)
LAB_NAMES(bool, bool)

// What the launcher makes of an index for the type that the kernel asks for.
template <class T>
struct lab_index {
    static T of(LabIndex i) { return (T)i.x; }
};
template <class T, int N>
struct lab_index<lab_vec<T, N>> {
    static lab_vec<T, N> of(LabIndex i) {
        const uint32_t at[3] = {i.x, i.y, i.z};
        lab_vec<T, N> v;
        for (int k = 0; k < N; ++k) v.lab_at[k] = (T)at[k];
        return v;
    }
};
extern "C" {
LAB_API extern const LabIndex threadIdx, blockIdx, blockDim, gridDim, lab_grid_threads, lab_block_size;
}
#define LAB_QUIET __attribute__((no_sanitize("thread"))) inline
LAB_QUIET LabIndex lab_thread_position_in_threadgroup() { return threadIdx; }
LAB_QUIET LabIndex lab_threadgroup_position_in_grid() { return blockIdx; }
LAB_QUIET LabIndex lab_threads_per_threadgroup() { return blockDim; }
LAB_QUIET LabIndex lab_dispatch_threads_per_threadgroup() { return lab_block_size; }
LAB_QUIET LabIndex lab_threadgroups_per_grid() { return gridDim; }
LAB_QUIET LabIndex lab_thread_position_in_grid() {
    return {blockIdx.x * lab_block_size.x + threadIdx.x, blockIdx.y * lab_block_size.y + threadIdx.y,
            blockIdx.z * lab_block_size.z + threadIdx.z};
}
LAB_QUIET LabIndex lab_threads_per_grid() {
    if (lab_grid_threads.x) return lab_grid_threads;
    return {gridDim.x * blockDim.x, gridDim.y * blockDim.y, gridDim.z * blockDim.z};
}
LAB_QUIET LabIndex lab_thread_index_in_threadgroup() {
    return {threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z), 0, 0};
}
LAB_QUIET LabIndex lab_thread_index_in_simdgroup() { return {lab_thread_index_in_threadgroup().x % 32, 0, 0}; }
LAB_QUIET LabIndex lab_simdgroup_index_in_threadgroup() { return {lab_thread_index_in_threadgroup().x / 32, 0, 0}; }
LAB_QUIET LabIndex lab_threads_per_simdgroup() { return {32, 0, 0}; }
LAB_QUIET LabIndex lab_thread_execution_width() { return {32, 0, 0}; }
LAB_QUIET LabIndex lab_simdgroups_per_threadgroup() {
    return {(blockDim.x * blockDim.y * blockDim.z + 31) / 32, 0, 0};
}

namespace metal {
using ::uchar;
template <class T, int N>
using vec = lab_vec<T, N>;

// barriers

enum class mem_flags { mem_none = 0, mem_threadgroup = LAB_SHARED_SPACE, mem_device = LAB_GLOBAL_SPACE, mem_texture = 4 };
inline mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags((int)a | (int)b); }
inline void threadgroup_barrier(mem_flags flags, LAB_LINE) { lab_barrier(0, line, (uint32_t)flags); }
inline void simdgroup_barrier(mem_flags flags, LAB_LINE) {
    lab_together(lab_live_lanes(), "simdgroup_barrier", nullptr, (void*)(uintptr_t)flags, line);
}

// mathematics: of numbers, and of vectors element by element

#define LAB_MAP1(F, C)                                                                                       \
    LAB_INLINE float F(float x) { return lab_c::C(x); }                                                      \
    template <class T, int N>                                                                                \
    LAB_INLINE lab_vec<T, N> F(lab_vec<T, N> v) {                                                            \
        LAB_EACH(v.lab_at[i] = (T)lab_c::C((float)v.lab_at[i]));                                             \
        return v;                                                                                            \
    }
#define LAB_MAP2(F, C)                                                                                       \
    LAB_INLINE float F(float x, float y) { return lab_c::C(x, y); }                                          \
    template <class T, int N>                                                                                \
    LAB_INLINE lab_vec<T, N> F(lab_vec<T, N> v, lab_vec<T, N> w) {                                           \
        LAB_EACH(v.lab_at[i] = (T)lab_c::C((float)v.lab_at[i], (float)w.lab_at[i]));                         \
        return v;                                                                                            \
    }
#define LAB_METAL_MATH                                                                                       \
    LAB_MAP1(sqrt, sqrtf) LAB_MAP1(rsqrt, rsqrtf) LAB_MAP1(exp, expf) LAB_MAP1(exp2, exp2f)                  \
    LAB_MAP1(exp10, exp10f) LAB_MAP1(log, logf) LAB_MAP1(log2, log2f) LAB_MAP1(log10, log10f)                \
    LAB_MAP1(sin, sinf) LAB_MAP1(cos, cosf) LAB_MAP1(tan, tanf) LAB_MAP1(asin, asinf) LAB_MAP1(acos, acosf)  \
    LAB_MAP1(atan, atanf) LAB_MAP1(sinh, sinhf) LAB_MAP1(cosh, coshf) LAB_MAP1(tanh, tanhf)                  \
    LAB_MAP1(floor, floorf) LAB_MAP1(ceil, ceilf) LAB_MAP1(trunc, truncf) LAB_MAP1(round, roundf)            \
    LAB_MAP1(rint, rintf) LAB_MAP1(fabs, fabsf) LAB_MAP1(saturate, saturate)                                 \
    LAB_MAP2(pow, powf) LAB_MAP2(powr, powf) LAB_MAP2(atan2, atan2f) LAB_MAP2(fmod, fmodf)                   \
    LAB_MAP2(fmin, fminf) LAB_MAP2(fmax, fmaxf) LAB_MAP2(copysign, copysignf)
LAB_METAL_MATH
namespace precise {
LAB_METAL_MATH
}
namespace fast {
LAB_METAL_MATH
}
LAB_INLINE float fma(float x, float y, float z) { return lab_c::fmaf(x, y, z); }
template <class T, int N>
LAB_INLINE lab_vec<T, N> fma(lab_vec<T, N> x, lab_vec<T, N> y, lab_vec<T, N> z) {
    LAB_EACH(x.lab_at[i] = (T)lab_c::fmaf((float)x.lab_at[i], (float)y.lab_at[i], (float)z.lab_at[i]));
    return x;
}
#define LAB_LESS(T)                                                                                          \
    LAB_INLINE T min(T a, T b) { return b < a ? b : a; }                                                     \
    LAB_INLINE T max(T a, T b) { return a < b ? b : a; }                                                     \
    LAB_INLINE T clamp(T x, T low, T high) { return min(max(x, low), high); }
LAB_LESS(int) LAB_LESS(uint) LAB_LESS(short) LAB_LESS(ushort) LAB_LESS(long) LAB_LESS(ulong) LAB_LESS(half)
LAB_LESS(bfloat)
LAB_INLINE float min(float a, float b) { return lab_c::fminf(a, b); }
LAB_INLINE float max(float a, float b) { return lab_c::fmaxf(a, b); }
LAB_INLINE float clamp(float x, float low, float high) { return min(max(x, low), high); }
template <class T, int N>
LAB_INLINE lab_vec<T, N> min(lab_vec<T, N> a, lab_vec<T, N> b) {
    LAB_EACH(a.lab_at[i] = min(a.lab_at[i], b.lab_at[i]));
    return a;
}
template <class T, int N>
LAB_INLINE lab_vec<T, N> max(lab_vec<T, N> a, lab_vec<T, N> b) {
    LAB_EACH(a.lab_at[i] = max(a.lab_at[i], b.lab_at[i]));
    return a;
}
LAB_INLINE int abs(int x) { return x < 0 ? -x : x; }
LAB_INLINE float abs(float x) { return lab_c::fabsf(x); }
LAB_INLINE float sign(float x) { return x > 0 ? 1.0f : x < 0 ? -1.0f : 0.0f; }
LAB_INLINE float mix(float x, float y, float t) { return x + (y - x) * t; }
LAB_INLINE float step(float edge, float x) { return x < edge ? 0.0f : 1.0f; }
LAB_INLINE bool isnan(float x) { return __builtin_isnan(x); }
LAB_INLINE bool isinf(float x) { return __builtin_isinf(x); }
LAB_INLINE bool isfinite(float x) { return __builtin_isfinite(x); }
template <class T>
LAB_INLINE T select(T a, T b, bool c) {
    return c ? b : a;
}
template <class T, int N>
LAB_INLINE T dot(lab_vec<T, N> a, lab_vec<T, N> b) {
    T sum = 0;
    LAB_EACH(sum += a.lab_at[i] * b.lab_at[i]);
    return sum;
}
template <class T, int N>
LAB_INLINE T length(lab_vec<T, N> a) {
    return (T)lab_c::sqrtf((float)dot(a, a));
}
template <class T, int N>
LAB_INLINE bool any(lab_vec<T, N> a) {
    bool r = false;
    LAB_EACH(r = r || a.lab_at[i]);
    return r;
}
template <class T, int N>
LAB_INLINE bool all(lab_vec<T, N> a) {
    bool r = true;
    LAB_EACH(r = r && a.lab_at[i]);
    return r;
}
LAB_INLINE uint popcount(uint x) { return (uint)__builtin_popcount(x); }
LAB_INLINE uint clz(uint x) { return x ? (uint)__builtin_clz(x) : 32; }
LAB_INLINE uint ctz(uint x) { return x ? (uint)__builtin_ctz(x) : 32; }
template <class To, class From>
LAB_INLINE To lab_as_type(From x) {
    return __builtin_bit_cast(To, x);
}

// simdgroups: all lanes of the simdgroup that have not returned must come

template <class T>
struct lab_lane_value {
    T value, result;
    int source, line;
};
template <class T>
LAB_RAW void lab_exchange(void** lanes, uint32_t present) {
    for (int i = 0; i < 32; ++i) {
        if (!(present >> i & 1)) continue;
        auto& mine = *(lab_lane_value<T>*)lanes[i];
        if (mine.source < 0 || mine.source > 31 || !(present >> mine.source & 1)) {
            lab_absent_source((uint32_t)i, (uint32_t)mine.source, mine.line);
            continue;
        }
        mine.result = ((lab_lane_value<T>*)lanes[mine.source])->value;
    }
}
template <class T>
LAB_RAW T lab_from_lane(T value, int source, const char* what, int line) {
    lab_lane_value<T> v{value, value, source, line};
    lab_together(lab_live_lanes(), what, lab_exchange<T>, &v, line);
    return v.result;
}
template <class T>
inline T simd_shuffle(T v, ushort lane, LAB_LINE) {
    return lab_from_lane(v, lane, "simd_shuffle", line);
}
// Past the simdgroup's end a lane keeps its own value (Metal leaves it undefined).
template <class T>
inline T simd_shuffle_down(T v, ushort delta, LAB_LINE) {
    int me = (int)lab_lane(), from = me + delta;
    return lab_from_lane(v, from > 31 || !(lab_live_lanes() >> from & 1) ? me : from, "simd_shuffle_down", line);
}
template <class T>
inline T simd_shuffle_up(T v, ushort delta, LAB_LINE) {
    int me = (int)lab_lane(), from = me - (int)delta;
    return lab_from_lane(v, from < 0 ? me : from, "simd_shuffle_up", line);
}
template <class T>
inline T simd_shuffle_xor(T v, ushort mask, LAB_LINE) {
    return lab_from_lane(v, (int)lab_lane() ^ mask, "simd_shuffle_xor", line);
}
template <class T>
inline T simd_broadcast(T v, ushort lane, LAB_LINE) {
    return lab_from_lane(v, lane, "simd_broadcast", line);
}
template <class T>
inline T simd_broadcast_first(T v, LAB_LINE) {
    return lab_from_lane(v, __builtin_ctz(lab_live_lanes()), "simd_broadcast_first", line);
}
// Reductions and prefixes: `source` says which one.
enum { lab_sum, lab_product, lab_max, lab_min, lab_prefix_inclusive, lab_prefix_exclusive, lab_and, lab_or };
template <class T>
LAB_RAW void lab_reduce(void** lanes, uint32_t present) {
    T all = T();
    bool first = true;
    for (int i = 0; i < 32; ++i) {
        if (!(present >> i & 1)) continue;
        auto& l = *(lab_lane_value<T>*)lanes[i];
        if (l.source == lab_prefix_exclusive) l.result = first ? T(0) : all;
        switch (first ? -1 : l.source) {
            case -1: all = l.value; break;
            case lab_product: all = all * l.value; break;
            case lab_max: all = all < l.value ? l.value : all; break;
            case lab_min: all = l.value < all ? l.value : all; break;
            case lab_and: all = (T)(all && l.value); break;
            case lab_or: all = (T)(all || l.value); break;
            default: all = all + l.value;
        }
        first = false;
        if (l.source == lab_prefix_inclusive) l.result = all;
    }
    for (int i = 0; i < 32; ++i) {
        auto* l = (lab_lane_value<T>*)lanes[i];
        if (present >> i & 1 && l->source != lab_prefix_inclusive && l->source != lab_prefix_exclusive) l->result = all;
    }
}
#define LAB_SIMD(NAME, WHICH)                                                                                \
    template <class T>                                                                                       \
    LAB_RAW T NAME(T value, LAB_LINE) {                                                                      \
        lab_lane_value<T> v{value, value, WHICH, line};                                                      \
        lab_together(lab_live_lanes(), #NAME, lab_reduce<T>, &v, line);                                      \
        return v.result;                                                                                     \
    }
LAB_SIMD(simd_sum, lab_sum)
LAB_SIMD(simd_product, lab_product)
LAB_SIMD(simd_max, lab_max)
LAB_SIMD(simd_min, lab_min)
LAB_SIMD(simd_prefix_inclusive_sum, lab_prefix_inclusive)
LAB_SIMD(simd_prefix_exclusive_sum, lab_prefix_exclusive)
LAB_SIMD(simd_all, lab_and)
LAB_SIMD(simd_any, lab_or)
inline bool simd_is_first() { return lab_lane() == (uint32_t)__builtin_ctz(lab_live_lanes()); }

// atomics

enum memory_order { memory_order_relaxed, memory_order_acquire, memory_order_release };
template <class T>
struct atomic {
    T lab_value;
};
template <class T>
LAB_RAW T atomic_load_explicit(const volatile atomic<T>* p, memory_order, LAB_LINE) {
    lab_access((const void*)p, sizeof(T), LAB_ATOMIC, line);
    return ((const atomic<T>*)p)->lab_value;
}
template <class T>
struct lab_plain {
    typedef T type;
};
#define LAB_METAL_ATOMIC(NAME, EXPRESSION)                                                                   \
    template <class T>                                                                                       \
    LAB_RAW T NAME(volatile atomic<T>* p, typename lab_plain<T>::type v, memory_order, LAB_LINE) {           \
        lab_access((const void*)p, sizeof(T), LAB_ATOMIC, line);                                             \
        T& at = ((atomic<T>*)p)->lab_value;                                                                  \
        T old = at;                                                                                          \
        at = (T)(EXPRESSION);                                                                                \
        return old;                                                                                          \
    }
LAB_METAL_ATOMIC(atomic_store_explicit, v)
LAB_METAL_ATOMIC(atomic_exchange_explicit, v)
LAB_METAL_ATOMIC(atomic_fetch_add_explicit, old + v)
LAB_METAL_ATOMIC(atomic_fetch_sub_explicit, old - v)
LAB_METAL_ATOMIC(atomic_fetch_min_explicit, old < v ? old : v)
LAB_METAL_ATOMIC(atomic_fetch_max_explicit, old > v ? old : v)
LAB_METAL_ATOMIC(atomic_fetch_and_explicit, (uint)old & (uint)v)
LAB_METAL_ATOMIC(atomic_fetch_or_explicit, (uint)old | (uint)v)
template <class T>
LAB_RAW bool atomic_compare_exchange_weak_explicit(
    volatile atomic<T>* p, T* expected, typename lab_plain<T>::type v, memory_order, memory_order, LAB_LINE) {
    lab_access((const void*)p, sizeof(T), LAB_ATOMIC, line);
    T& at = ((atomic<T>*)p)->lab_value;
    bool same = at == *expected;
    if (same) at = v;
    else *expected = at;
    return same;
}

// simdgroup_matrix: 8x8. Lane l holds row l / 4, columns 2 (l % 4) and the next.

template <class T, int R, int C>
struct simdgroup_matrix {
    static_assert(R == 8 && C == 8, "a simdgroup_matrix is 8x8");
    T lab_x[2];
    simdgroup_matrix() = default;
    // A diagonal matrix. (A filled one is made by make_filled_simdgroup_matrix.)
    explicit simdgroup_matrix(T v) {
        uint32_t row = lab_lane() / 4, column = lab_lane() % 4 * 2;
        lab_x[0] = row == column ? v : T(0), lab_x[1] = row == column + 1 ? v : T(0);
    }
    T* thread_elements() { return lab_x; }
};
template <class T, int R, int C>
inline simdgroup_matrix<T, R, C> make_filled_simdgroup_matrix(T v) {
    simdgroup_matrix<T, R, C> m;
    m.lab_x[0] = m.lab_x[1] = v;
    return m;
}
template <class T>
LAB_RAW void lab_matrix_memory(T* x, T* p, ulong row, ulong column, ulong ld, bool turned, bool load, int line) {
    lab_together(0xffffffffu, load ? "simdgroup_load" : "simdgroup_store", nullptr, nullptr, line);
    if (lab_live_lanes() != 0xffffffffu) lab_misuse("a simdgroup_matrix needs all 32 lanes of a simdgroup", line);
    uint32_t l = lab_lane();
    T* at = p + row * ld + column;
    lab_access(at + (l / 4) * ld + l % 4 * 2, 2 * sizeof(T), load ? LAB_READ : LAB_WRITE, line);
    for (uint32_t i = 0; i < 2; ++i) {
        uint32_t r = l / 4, c = l % 4 * 2 + i;
        T& place = at[turned ? c * ld + r : r * ld + c];
        if (load) x[i] = place;
        else place = x[i];
    }
    lab_together(0xffffffffu, load ? "simdgroup_load" : "simdgroup_store", nullptr, nullptr, line);
}
template <class T>
inline void simdgroup_load(simdgroup_matrix<T, 8, 8>& m, const T* p, ulong ld = 8, lab_vec<ulong, 2> origin = 0,
                           bool transpose = false, LAB_LINE) {
    lab_matrix_memory(m.lab_x, (T*)p, origin.y, origin.x, ld, transpose, true, line);
}
template <class T>
inline void simdgroup_store(const simdgroup_matrix<T, 8, 8>& m, T* p, ulong ld = 8, lab_vec<ulong, 2> origin = 0,
                            bool transpose = false, LAB_LINE) {
    lab_matrix_memory((T*)m.lab_x, p, origin.y, origin.x, ld, transpose, false, line);
}
template <class D, class A, class B, class C>
struct lab_matrices {
    D* d;
    const A* a;
    const B* b;
    const C* c;
};
template <class D, class A, class B, class C>
LAB_RAW void lab_multiply(void** lanes, uint32_t present) {
    typedef lab_matrices<D, A, B, C> All;
    float a[8][8], b[8][8];
    if (present != 0xffffffffu) return;
    for (int l = 0; l < 32; ++l)
        for (int i = 0; i < 2; ++i) {
            A left = ((All*)lanes[l])->a[i];  // a bfloat's conversion is watched: here it reads a copy
            B right = ((All*)lanes[l])->b[i];
            a[l / 4][l % 4 * 2 + i] = (float)left, b[l / 4][l % 4 * 2 + i] = (float)right;
        }
    for (int l = 0; l < 32; ++l)
        for (int i = 0; i < 2; ++i) {
            const C* c = ((All*)lanes[l])->c;
            C before = c ? c[i] : C(0);
            float sum = (float)before;
            for (int k = 0; k < 8; ++k) sum += a[l / 4][k] * b[k][l % 4 * 2 + i];
            ((All*)lanes[l])->d[i] = (D)sum;
        }
}
template <class D, class A, class B, class C>
inline void simdgroup_multiply_accumulate(
    simdgroup_matrix<D, 8, 8>& d, const simdgroup_matrix<A, 8, 8>& a, const simdgroup_matrix<B, 8, 8>& b,
    const simdgroup_matrix<C, 8, 8>& c, LAB_LINE) {
    if (lab_live_lanes() != 0xffffffffu) lab_misuse("a simdgroup_matrix needs all 32 lanes of a simdgroup", line);
    lab_matrices<D, A, B, C> all{d.lab_x, a.lab_x, b.lab_x, c.lab_x};
    lab_together(0xffffffffu, "simdgroup_multiply_accumulate", lab_multiply<D, A, B, C>, &all, line);
}
template <class D, class A, class B>
inline void simdgroup_multiply(
    simdgroup_matrix<D, 8, 8>& d, const simdgroup_matrix<A, 8, 8>& a, const simdgroup_matrix<B, 8, 8>& b, LAB_LINE) {
    if (lab_live_lanes() != 0xffffffffu) lab_misuse("a simdgroup_matrix needs all 32 lanes of a simdgroup", line);
    lab_matrices<D, A, B, D> all{d.lab_x, a.lab_x, b.lab_x, nullptr};
    lab_together(0xffffffffu, "simdgroup_multiply", lab_multiply<D, A, B, D>, &all, line);
}

typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;
typedef atomic<bool> atomic_bool;
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;
}  // namespace metal
#define as_type metal::lab_as_type
template <class T>
struct LabType<metal::atomic<T>> : LabType<T> {};
struct packed_float3 {
    float x, y, z;
    operator float3() const { return float3(x, y, z); }
};
template <>
struct LabType<packed_float3> : LabType<float> {};
