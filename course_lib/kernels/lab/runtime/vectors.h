// Vector types as CUDA names them. A vector of 8 or 16 bytes moves in one wide access, like the hardware's.
#pragma once
#include "runtime.h"

// g++ copies a struct as it stands (with -fno-tree-sra). clang would copy it member by member, so there a copy
// goes through a compiler's vector; `nodebug` gives the access the line of the kernel, not of this header.
#if defined(__clang__)
#define LAB_INLINE inline __attribute__((always_inline, nodebug))
#define LAB_WIDE(NAME, T, BYTES)                                                                             \
    NAME() = default;                                                                                        \
    LAB_INLINE NAME(const NAME& o) : lab_all(o.lab_all) {}                                                   \
    LAB_INLINE NAME& operator=(const NAME& o) {                                                              \
        lab_all = o.lab_all;                                                                                 \
        return *this;                                                                                        \
    }
#define LAB_VECTOR2(NAME, T)                                                                                 \
    struct alignas(2 * sizeof(T)) NAME {                                                                     \
        typedef T lab_vector __attribute__((vector_size(2 * sizeof(T))));                                    \
        union {                                                                                              \
            struct {                                                                                         \
                T x, y;                                                                                      \
            };                                                                                               \
            lab_vector lab_all;                                                                              \
        };                                                                                                   \
        LAB_WIDE(NAME, T, 2 * sizeof(T))                                                                     \
        LAB_INLINE NAME(T a, T b) : x(a), y(b) {}                                                            \
    };
#define LAB_VECTOR4(NAME, T, ALIGN)                                                                          \
    struct alignas(ALIGN) NAME {                                                                             \
        typedef T lab_vector __attribute__((vector_size(4 * sizeof(T))));                                    \
        union {                                                                                              \
            struct {                                                                                         \
                T x, y, z, w;                                                                                \
            };                                                                                               \
            lab_vector lab_all;                                                                              \
        };                                                                                                   \
        LAB_WIDE(NAME, T, 4 * sizeof(T))                                                                     \
        LAB_INLINE NAME(T a, T b, T c, T d) : x(a), y(b), z(c), w(d) {}                                      \
    };
#define LAB_VECTOR3(NAME, T)                                                                                 \
    struct NAME {                                                                                            \
        T x, y, z;                                                                                           \
        NAME() = default;                                                                                    \
        LAB_INLINE NAME(T a, T b, T c) : x(a), y(b), z(c) {}                                                 \
        LAB_INLINE NAME(const NAME& o) : x(o.x), y(o.y), z(o.z) {}                                           \
        LAB_INLINE NAME& operator=(const NAME& o) {                                                          \
            x = o.x, y = o.y, z = o.z;                                                                       \
            return *this;                                                                                    \
        }                                                                                                    \
    };
#else
#define LAB_INLINE inline
#define LAB_VECTOR2(NAME, T)                                                                                 \
    struct alignas(2 * sizeof(T)) NAME {                                                                     \
        T x, y;                                                                                              \
    };
#define LAB_VECTOR4(NAME, T, ALIGN)                                                                          \
    struct alignas(ALIGN) NAME {                                                                             \
        T x, y, z, w;                                                                                        \
    };
#define LAB_VECTOR3(NAME, T)                                                                                 \
    struct NAME {                                                                                            \
        T x, y, z;                                                                                           \
    };
#endif

#define LAB_VECTORS(NAME, T, ALIGN4)                                                                         \
    struct NAME##1 {                                                                                         \
        T x;                                                                                                 \
    };                                                                                                       \
    LAB_VECTOR2(NAME##2, T)                                                                                  \
    LAB_VECTOR3(NAME##3, T)                                                                                  \
    LAB_VECTOR4(NAME##4, T, ALIGN4)                                                                          \
    template <>                                                                                              \
    struct LabType<NAME##1> : LabType<T> {};                                                                 \
    template <>                                                                                              \
    struct LabType<NAME##2> : LabType<T> {};                                                                 \
    template <>                                                                                              \
    struct LabType<NAME##3> : LabType<T> {};                                                                 \
    template <>                                                                                              \
    struct LabType<NAME##4> : LabType<T> {};                                                                 \
    LAB_INLINE NAME##1 make_##NAME##1(T x) { return NAME##1{x}; }                                            \
    LAB_INLINE NAME##2 make_##NAME##2(T x, T y) { return NAME##2{x, y}; }                                    \
    LAB_INLINE NAME##3 make_##NAME##3(T x, T y, T z) { return NAME##3{x, y, z}; }                            \
    LAB_INLINE NAME##4 make_##NAME##4(T x, T y, T z, T w) { return NAME##4{x, y, z, w}; }

LAB_VECTORS(char, signed char, 4)
LAB_VECTORS(uchar, unsigned char, 4)
LAB_VECTORS(short, short, 8)
LAB_VECTORS(ushort, unsigned short, 8)
LAB_VECTORS(int, int, 16)
LAB_VECTORS(uint, unsigned, 16)
LAB_VECTORS(float, float, 16)
// A vector of 32 bytes moves as two of 16.
#define LAB_VECTORS8(NAME, T)                                                                                \
    struct NAME##1 {                                                                                         \
        T x;                                                                                                 \
    };                                                                                                       \
    LAB_VECTOR2(NAME##2, T)                                                                                  \
    template <>                                                                                              \
    struct LabType<NAME##1> : LabType<T> {};                                                                 \
    template <>                                                                                              \
    struct LabType<NAME##2> : LabType<T> {};                                                                 \
    LAB_INLINE NAME##1 make_##NAME##1(T x) { return NAME##1{x}; }                                            \
    LAB_INLINE NAME##2 make_##NAME##2(T x, T y) { return NAME##2{x, y}; }
LAB_VECTORS8(double, double)
LAB_VECTORS8(long, long)
LAB_VECTORS8(ulong, unsigned long)
LAB_VECTORS8(longlong, long long)
LAB_VECTORS8(ulonglong, unsigned long long)
