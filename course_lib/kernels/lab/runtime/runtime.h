// The contract between a compiled kernel and the runtime that executes it (runtime.cpp).
//
// A kernel calls what is declared here through the headers cuda.h and metal.h; its loads and stores call the
// __tsan_* functions, which the compiler inserts and the runtime defines.
#pragma once
#include <stddef.h>
#include <stdint.h>

#define LAB_API __attribute__((visibility("hidden")))
// Code of the lab's own headers: its loads and stores are not the learner's, and are not reported.
#define LAB_RAW __attribute__((no_sanitize("thread"), noinline))

struct LabIndex {
    uint32_t x, y, z;
};

enum LabSpace : uint32_t { LAB_SHARED_SPACE = 1, LAB_GLOBAL_SPACE = 2, LAB_ALL_SPACES = 3 };
enum LabAccess : uint32_t { LAB_READ = 0, LAB_WRITE = 1, LAB_ATOMIC = 2 };

// What the lanes of a warp do together: called once, when all of them are there, with the argument of each
// lane that takes part (the others' entries are null).
typedef void (*LabTogether)(void** lanes, uint32_t present);

extern "C" {
// Wait for the block, and order its accesses to memory of these spaces; returns how many of its threads came with a predicate that is not zero.
LAB_API uint32_t lab_barrier(uint32_t predicate, int line, uint32_t spaces = LAB_ALL_SPACES);
// Wait for the lanes of `mask`, then go on together. `what` names the operation in messages. An operation does
// not order memory: only a barrier does, that is op == nullptr, for the spaces that `argument` holds.
LAB_API void lab_together(uint32_t mask, const char* what, LabTogether op, void* argument, int line);
LAB_API void* lab_shared(const void* key, const char* name, uint64_t size, uint64_t align, int line);
LAB_API void* lab_dynamic_shared(const char* name, int line);
LAB_API void* lab_threadgroup_argument(uint32_t index, const char* name, int line);
// Tell the runtime of an access that no instrumented instruction makes.
LAB_API void lab_access(const void* address, uint64_t size, uint32_t kind, int line);
LAB_API void lab_fence();
// The thread waits for another one, by polling: let the others run.
LAB_API void lab_yield();
LAB_API void lab_copy_async(void* to, const void* from, uint64_t size, uint64_t zeros, int line);
LAB_API void lab_copy_commit();
LAB_API void lab_copy_wait(uint32_t groups);
LAB_API int lab_printf(const char* format, ...);
// Lane `lane` of the operation under way reads from lane `source`, which is not there.
LAB_API void lab_absent_source(uint32_t lane, uint32_t source, int line);
// A subscript past an array of the thread's own; returns only where the array turns out to be another's.
LAB_API void lab_overrun(const void* array, int64_t index, uint64_t length, const char* name, int line);
[[noreturn]] LAB_API void lab_assertion(const char* text, int line);
[[noreturn]] LAB_API void lab_misuse(const char* text, int line);
LAB_API uint32_t lab_lane();
LAB_API uint32_t lab_live_lanes();

// How Python sees a kernel's parameter.
struct LabParameter {
    uint32_t pointer;   // 1: a pointer to elements, 0: a value
    uint32_t constant;  // 1: what it points to is const
    uint32_t code;      // what an element is: see LabType below
    uint32_t size;      // bytes of the element, or of the value
    uint32_t align;
};
}

// The subscripts of a thread's own arrays, which local_arrays.py puts into lab_at. A reference may be one to
// shared memory, which is watched elsewhere: for these the address decides.
template <class T, int D>
struct LabLength {
    static constexpr uint64_t value = 0;
    static constexpr bool reference = false;
};
template <class T, size_t N>
struct LabLength<T[N], 0> {
    static constexpr uint64_t value = N;
    static constexpr bool reference = false;
};
template <class T, size_t N, int D>
struct LabLength<T[N], D> : LabLength<T, D - 1> {};
template <class T, int D>
struct LabLength<T&, D> : LabLength<T, D> {
    static constexpr bool reference = true;
};
template <class T, int D, class I>
__attribute__((always_inline)) constexpr I lab_at(I index, const void* array, const char* name, int line) {
    if constexpr (LabLength<T, D>::value != 0)
        if (__builtin_expect((uint64_t)(int64_t)index >= LabLength<T, D>::value, 0))
            lab_overrun(array, (int64_t)index, LabLength<T, D>::value, name, line);
    return index;
}
#define LAB_WHERE(name) (LabLength<decltype(name), 0>::reference ? (const void*)&(name) : nullptr)

// Codes are letters as NumPy writes them: kind, then bytes; of vectors, the code of a component.
constexpr uint32_t lab_code(char kind, uint32_t bytes) { return (uint32_t(kind) << 8) | bytes; }
template <class T>
struct LabType {
    static constexpr uint32_t code = 0;
};
#define LAB_TYPE(T, KIND)                                                                                    \
    template <>                                                                                              \
    struct LabType<T> {                                                                                      \
        static constexpr uint32_t code = lab_code(KIND, sizeof(T));                                          \
    };
LAB_TYPE(float, 'f')
LAB_TYPE(double, 'f')
LAB_TYPE(bool, 'b')
LAB_TYPE(char, 'i')
LAB_TYPE(signed char, 'i')
LAB_TYPE(short, 'i')
LAB_TYPE(int, 'i')
LAB_TYPE(long, 'i')
LAB_TYPE(long long, 'i')
LAB_TYPE(unsigned char, 'u')
LAB_TYPE(unsigned short, 'u')
LAB_TYPE(unsigned, 'u')
LAB_TYPE(unsigned long, 'u')
LAB_TYPE(unsigned long long, 'u')

template <class T>
struct LabDescribe {
    static constexpr LabParameter value{0, 0, LabType<T>::code, sizeof(T), alignof(T)};
};
template <class T>
struct LabDescribe<const T> : LabDescribe<T> {};
template <class T>
struct LabDescribe<T*> {
    static constexpr LabParameter value{1, 0, LabType<T>::code, sizeof(T), alignof(T)};
};
template <class T>
struct LabDescribe<const T*> {
    static constexpr LabParameter value{1, 1, LabType<T>::code, sizeof(T), alignof(T)};
};
template <class T>
struct LabDescribe<volatile T*> : LabDescribe<T*> {};
template <class T>
struct LabDescribe<T* const> : LabDescribe<T*> {};
template <>
struct LabDescribe<void*> {
    static constexpr LabParameter value{1, 0, lab_code('v', 1), 1, 1};
};
template <>
struct LabDescribe<const void*> {
    static constexpr LabParameter value{1, 1, lab_code('v', 1), 1, 1};
};

template <int... I>
struct LabInts {};
template <int N, int... I>
struct LabCount : LabCount<N - 1, N - 1, I...> {};
template <int... I>
struct LabCount<0, I...> {
    typedef LabInts<I...> type;
};

template <class T>
struct LabBare {
    typedef T type;
};
template <class T>
struct LabBare<const T> {
    typedef T type;
};

template <class... P, int... I>
__attribute__((no_sanitize("thread"))) inline void lab_invoke(void (*kernel)(P...), void** values, LabInts<I...>) {
    kernel(*(typename LabBare<P>::type*)values[I]...);
}
template <class... P>
__attribute__((no_sanitize("thread"))) inline void lab_invoke(void (*kernel)(P...), void** values) {
    lab_invoke(kernel, values, typename LabCount<sizeof...(P)>::type());
}
template <class... P>
__attribute__((no_sanitize("thread"))) inline const LabParameter* lab_parameters(void (*)(P...), uint32_t* count) {
    static const LabParameter all[] = {LabDescribe<P>::value..., LabParameter{}};
    *count = sizeof...(P);
    return all;
}
