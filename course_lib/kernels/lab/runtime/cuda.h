// CUDA C++ on the lab's runtime: what a kernel may use without an #include.
#pragma once
#include "runtime.h"
#include "vectors.h"

#include <float.h>
#include <limits.h>

extern "C" {
void* memcpy(void* to, const void* from, size_t size);
void* memmove(void* to, const void* from, size_t size);
void* memset(void* to, int byte, size_t size);
}

#define __host__
#define __device__
#define __global__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __inline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __grid_constant__
#define KERNEL_LAB 1

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct LabBuiltin {
    unsigned x, y, z;
    operator uint3() const { return make_uint3(x, y, z); }
    operator dim3() const { return dim3(x, y, z); }
};
extern "C" {
LAB_API extern const LabBuiltin threadIdx, blockIdx, blockDim, gridDim;
}
static constexpr int warpSize = 32;

// The line of the call: what a message about the operation names.
#define LAB_LINE int line = __builtin_LINE()

// barriers and fences

inline void __syncthreads(LAB_LINE) { lab_barrier(0, line); }
inline int __syncthreads_count(int predicate, LAB_LINE) { return (int)lab_barrier(predicate != 0, line); }
inline int __syncthreads_or(int predicate, LAB_LINE) { return lab_barrier(predicate != 0, line) != 0; }
inline int __syncthreads_and(int predicate, LAB_LINE) { return lab_barrier(predicate == 0, line) == 0; }
inline void __syncwarp(unsigned mask = 0xffffffffu, LAB_LINE) {
    lab_together(mask, "__syncwarp", nullptr, (void*)(uintptr_t)LAB_ALL_SPACES, line);
}
inline void __threadfence() { lab_fence(); }
inline void __threadfence_block() {}
inline void __threadfence_system() { lab_fence(); }
inline void __nanosleep(unsigned) { lab_yield(); }
#define __trap() lab_assertion("__trap()", __LINE__)
#define assert(condition) ((condition) ? (void)0 : lab_assertion(#condition, __LINE__))
#define printf lab_printf
// What the compiler may assume; here nothing.
#define __builtin_assume(condition) ((void)0)
#define __assume(condition) ((void)0)

// shuffles

template <class T>
struct LabShuffle {
    T value, result;
    int source;  // lane to read from; -1: this lane's own value
    int line;
};
template <class T>
LAB_RAW void lab_shuffle(void** lanes, uint32_t present) {
    for (int i = 0; i < 32; ++i) {
        if (!(present >> i & 1)) continue;
        LabShuffle<T>& mine = *(LabShuffle<T>*)lanes[i];
        if (mine.source >= 0 && !(present >> mine.source & 1)) {
            lab_absent_source((uint32_t)i, (uint32_t)mine.source, mine.line);
            continue;
        }
        mine.result = mine.source < 0 ? mine.value : ((LabShuffle<T>*)lanes[mine.source])->value;
    }
}
template <class T>
LAB_RAW T lab_shuffle_from(unsigned mask, T value, int source, const char* what, int line) {
    LabShuffle<T> s{value, value, source, line};
    lab_together(mask, what, lab_shuffle<T>, &s, line);
    return s.result;
}
template <class T>
LAB_RAW T __shfl_sync(unsigned mask, T value, int lane, int width = 32, LAB_LINE) {
    int base = (int)lab_lane() & ~(width - 1);
    return lab_shuffle_from(mask, value, base + (lane & (width - 1)), "__shfl_sync", line);
}
template <class T>
LAB_RAW T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, LAB_LINE) {
    int me = (int)lab_lane(), from = me - (int)delta;
    return lab_shuffle_from(mask, value, from < (me & ~(width - 1)) ? -1 : from, "__shfl_up_sync", line);
}
template <class T>
LAB_RAW T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, LAB_LINE) {
    int me = (int)lab_lane(), from = me + (int)delta;
    return lab_shuffle_from(mask, value, from > (me | (width - 1)) ? -1 : from, "__shfl_down_sync", line);
}
template <class T>
LAB_RAW T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, LAB_LINE) {
    int me = (int)lab_lane(), from = me ^ lanes;
    // A lane of an earlier segment may be read, one of a later segment not (CUDA C++ programming guide).
    return lab_shuffle_from(mask, value, from > (me | (width - 1)) ? -1 : from, "__shfl_xor_sync", line);
}

// votes and reductions of a warp

struct LabVote {
    unsigned value, result;
};
template <class F>
LAB_RAW void lab_vote(void** lanes, uint32_t present) {
    unsigned values[32], n = 0, all = 0;
    for (int i = 0; i < 32; ++i)
        if (present >> i & 1) values[n++] = ((LabVote*)lanes[i])->value;
    all = F::of(values, n, lanes, present);
    for (int i = 0; i < 32; ++i)
        if (present >> i & 1) ((LabVote*)lanes[i])->result = all;
}
template <class F>
LAB_RAW unsigned lab_vote_on(unsigned mask, unsigned value, const char* what, int line) {
    LabVote v{value, 0};
    lab_together(mask, what, lab_vote<F>, &v, line);
    return v.result;
}
#define LAB_VOTE(NAME, START, STEP)                                                                          \
    struct NAME {                                                                                            \
        __attribute__((no_sanitize("thread"))) static unsigned of(unsigned* v, unsigned n, void**, uint32_t) { \
            auto all = START;                                                                                \
            for (unsigned i = 0; i < n; ++i) {                                                               \
                decltype(all) x = (decltype(all))v[i];                                                       \
                all = STEP;                                                                                  \
            }                                                                                                \
            return (unsigned)all;                                                                            \
        }                                                                                                    \
    };
LAB_VOTE(LabAll, 1u, all && x)
LAB_VOTE(LabAny, 0u, all || x)
LAB_VOTE(LabSum, 0u, all + x)
LAB_VOTE(LabAnd, 0xffffffffu, all& x)
LAB_VOTE(LabOr, 0u, all | x)
LAB_VOTE(LabXor, 0u, all ^ x)
LAB_VOTE(LabMinInt, 0x7fffffff, x < all ? x : all)
LAB_VOTE(LabMaxInt, (int)0x80000000, x > all ? x : all)
LAB_VOTE(LabMinUnsigned, 0xffffffffu, x < all ? x : all)
LAB_VOTE(LabMaxUnsigned, 0u, x > all ? x : all)
struct LabBallot {
    __attribute__((no_sanitize("thread"))) static unsigned of(unsigned*, unsigned, void** lanes, uint32_t present) {
        unsigned all = 0;
        for (int i = 0; i < 32; ++i)
            if (present >> i & 1 && ((LabVote*)lanes[i])->value) all |= 1u << i;
        return all;
    }
};
inline int __all_sync(unsigned mask, int p, LAB_LINE) { return (int)lab_vote_on<LabAll>(mask, p != 0, "__all_sync", line); }
inline int __any_sync(unsigned mask, int p, LAB_LINE) { return (int)lab_vote_on<LabAny>(mask, p != 0, "__any_sync", line); }
inline unsigned __ballot_sync(unsigned mask, int p, LAB_LINE) {
    return lab_vote_on<LabBallot>(mask, p != 0, "__ballot_sync", line);
}
#define LAB_REDUCE(NAME, T, F)                                                                               \
    inline T NAME(unsigned mask, T value, LAB_LINE) { return (T)lab_vote_on<F>(mask, (unsigned)value, #NAME, line); }
LAB_REDUCE(__reduce_add_sync, unsigned, LabSum)
LAB_REDUCE(__reduce_add_sync, int, LabSum)
LAB_REDUCE(__reduce_min_sync, unsigned, LabMinUnsigned)
LAB_REDUCE(__reduce_min_sync, int, LabMinInt)
LAB_REDUCE(__reduce_max_sync, unsigned, LabMaxUnsigned)
LAB_REDUCE(__reduce_max_sync, int, LabMaxInt)
LAB_REDUCE(__reduce_and_sync, unsigned, LabAnd)
LAB_REDUCE(__reduce_or_sync, unsigned, LabOr)
LAB_REDUCE(__reduce_xor_sync, unsigned, LabXor)
template <class T>
LAB_RAW void lab_match(void** lanes, uint32_t present) {
    for (int i = 0; i < 32; ++i) {
        if (!(present >> i & 1)) continue;
        LabShuffle<T>& mine = *(LabShuffle<T>*)lanes[i];
        mine.source = 0;
        for (int j = 0; j < 32; ++j)
            if (present >> j & 1 && ((LabShuffle<T>*)lanes[j])->value == mine.value) mine.source |= 1 << j;
    }
}
template <class T>
LAB_RAW unsigned __match_any_sync(unsigned mask, T value, LAB_LINE) {
    LabShuffle<T> s{value, value, 0, line};
    lab_together(mask, "__match_any_sync", lab_match<T>, &s, line);
    return (unsigned)s.source;
}

// atomics: threads take turns here, so the plain operation is one

template <class T>
struct LabSame {
    typedef T type;
};
#define LAB_ATOMIC_OP(NAME, EXPRESSION)                                                                      \
    template <class T>                                                                                       \
    LAB_RAW T NAME(T* p, typename LabSame<T>::type v, LAB_LINE) {                                            \
        lab_access((const void*)p, sizeof(T), LAB_ATOMIC, line);                                             \
        T old = *p;                                                                                          \
        *p = (T)(EXPRESSION);                                                                                \
        return old;                                                                                          \
    }                                                                                                        \
    template <class T>                                                                                       \
    inline T NAME##_block(T* p, typename LabSame<T>::type v, LAB_LINE) {                                     \
        return NAME(p, v, line);                                                                             \
    }                                                                                                        \
    template <class T>                                                                                       \
    inline T NAME##_system(T* p, typename LabSame<T>::type v, LAB_LINE) {                                    \
        return NAME(p, v, line);                                                                             \
    }
LAB_ATOMIC_OP(atomicAdd, old + v)
LAB_ATOMIC_OP(atomicSub, old - v)
LAB_ATOMIC_OP(atomicMin, old < v ? old : v)
LAB_ATOMIC_OP(atomicMax, old > v ? old : v)
LAB_ATOMIC_OP(atomicAnd, old & v)
LAB_ATOMIC_OP(atomicOr, old | v)
LAB_ATOMIC_OP(atomicXor, old ^ v)
LAB_ATOMIC_OP(atomicExch, v)
LAB_ATOMIC_OP(atomicInc, old >= v ? 0 : old + 1)
LAB_ATOMIC_OP(atomicDec, old == 0 || old > v ? v : old - 1)
template <class T>
LAB_RAW T atomicCAS(T* p, typename LabSame<T>::type compare, typename LabSame<T>::type v, LAB_LINE) {
    lab_access((const void*)p, sizeof(T), LAB_ATOMIC, line);
    T old = *p;
    if (old == compare) *p = v;
    return old;
}

// loads with a hint for the cache, which the lab does not have

#define __ldg(p) (*(p))
#define __ldca(p) (*(p))
#define __ldcg(p) (*(p))
#define __ldcs(p) (*(p))
#define __ldcv(p) (*(p))
#define __ldlu(p) (*(p))
#define __stcg(p, v) ((void)(*(p) = (v)))
#define __stcs(p, v) ((void)(*(p) = (v)))
#define __stwb(p, v) ((void)(*(p) = (v)))
#define __stwt(p, v) ((void)(*(p) = (v)))

// cp.async: the copy is made when it is waited for

#define __pipeline_memcpy_async(...) lab_pipeline_copy(__LINE__, __VA_ARGS__)
inline void lab_pipeline_copy(int line, void* to, const void* from, size_t size, size_t zeros = 0) {
    if (size != 4 && size != 8 && size != 16)
        lab_misuse("__pipeline_memcpy_async copies 4, 8 or 16 bytes", line);
    lab_copy_async(to, from, size, zeros, line);
}
#define __pipeline_commit() lab_copy_commit()
#define __pipeline_wait_prior(n) lab_copy_wait(n)

#include "math.inc"
#define LAB_NAME_HALF(T, KIND)                                                                               \
    template <>                                                                                              \
    struct LabType<T> {                                                                                      \
        static constexpr uint32_t code = lab_code(KIND, 2);                                                  \
    };
#define LAB_NAME_HALF2(T2, T)                                                                                \
    template <>                                                                                              \
    struct LabType<T2> : LabType<T> {};
#include "half.inc"
#include "wmma.inc"
