/* Portable C for any CPU. What each operation means is said in simd/README.md. */
#include <stdint.h>
#include <string.h>

#include "../types.h"
#include "fma.h"

#define ISA scalar
#define ISA_CPU 0

static inline void vec_fence(void) {}

enum { VL_f32 = 4, VL_f64 = 2 };
#define REGISTERS 16
#define MR 1
#define COLUMNS 4
#define COLUMNS_ALONE 8

typedef struct {
    float v[VL_f32];
} vec_f32;
typedef struct {
    double v[VL_f64];
} vec_f64;

#define OPERATIONS(X, NAME)                                                                                          \
    static inline NAME(vec) NAME(vec_broadcast)(X a)                                                                       \
    {                                                                                                                \
        NAME(vec) r;                                                                                                 \
        for (int i = 0; i < NAME(VL); i++)                                                                           \
            r.v[i] = a;                                                                                              \
        return r;                                                                                                    \
    }                                                                                                                \
    static inline NAME(vec) NAME(vec_zero)(void) { return NAME(vec_broadcast)(0); }                                        \
    static inline NAME(vec) NAME(vec_load)(const X *p)                                                               \
    {                                                                                                                \
        NAME(vec) r;                                                                                                 \
        memcpy(r.v, p, sizeof r.v);                                                                                  \
        return r;                                                                                                    \
    }                                                                                                                \
    static inline void NAME(vec_store)(X *p, NAME(vec) a) { memcpy(p, a.v, sizeof a.v); }                            \
    static inline void NAME(vec_store_nt)(X *p, NAME(vec) a) { NAME(vec_store)(p, a); }                                \
    static inline NAME(vec) NAME(vec_pin)(NAME(vec) a) { return a; }                                                \
    static inline NAME(vec) NAME(vec_load_masked)(const X *p, int64_t n)                                               \
    {                                                                                                                \
        NAME(vec) r = NAME(vec_zero)();                                                                              \
        for (int i = 0; i < NAME(VL) && i < n; i++)                                                                  \
            r.v[i] = p[i];                                                                                           \
        return r;                                                                                                    \
    }                                                                                                                \
    static inline void NAME(vec_store_masked)(X *p, NAME(vec) a, int64_t n)                                            \
    {                                                                                                                \
        for (int i = 0; i < NAME(VL) && i < n; i++)                                                                  \
            p[i] = a.v[i];                                                                                           \
    }                                                                                                                \
    static inline NAME(vec) NAME(vec_add)(NAME(vec) a, NAME(vec) b)                                                  \
    {                                                                                                                \
        for (int i = 0; i < NAME(VL); i++)                                                                           \
            a.v[i] += b.v[i];                                                                                        \
        return a;                                                                                                    \
    }                                                                                                                \
    static inline NAME(vec) NAME(vec_fma)(NAME(vec) a, NAME(vec) b, NAME(vec) c)                                     \
    {                                                                                                                \
        for (int i = 0; i < NAME(VL); i++)                                                                           \
            c.v[i] = NAME(fma_one)(a.v[i], b.v[i], c.v[i]);                                                          \
        return c;                                                                                                    \
    }                                                                                                                \
    static inline NAME(vec) NAME(vec_fma_masked)(NAME(vec) a, NAME(vec) b, NAME(vec) c, int64_t n)                   \
    {                                                                                                                \
        for (int64_t i = 0; i < NAME(VL) && i < n; i++)                                                              \
            c.v[i] = NAME(fma_one)(a.v[i], b.v[i], c.v[i]);                                                          \
        return c;                                                                                                    \
    }                                                                                                                \
    static inline NAME(vec) NAME(vec_rotate)(NAME(vec) a, int64_t n)                                                 \
    {                                                                                                                \
        NAME(vec) b;                                                                                                 \
        for (int64_t i = 0; i < NAME(VL); i++)                                                                       \
            b.v[i] = a.v[(i + n) % NAME(VL)];                                                                        \
        return b;                                                                                                    \
    }                                                                                                                \
    static inline NAME(vec) NAME(vec_join)(NAME(vec) a, NAME(vec) b, int64_t n)                                      \
    {                                                                                                                \
        NAME(vec) c;                                                                                                 \
        for (int64_t i = 0; i < NAME(VL); i++)                                                                       \
            c.v[i] = i + n < NAME(VL) ? a.v[i + n] : b.v[i + n - NAME(VL)];                                          \
        return c;                                                                                                    \
    }                                                                                                                \
    static inline X NAME(vec_reduce_add)(NAME(vec) a)                                                                     \
    {                                                                                                                \
        for (int half = NAME(VL) / 2; half > 0; half /= 2)                                                           \
            for (int i = 0; i < half; i++)                                                                           \
                a.v[i] += a.v[i + half];                                                                             \
        return a.v[0];                                                                                               \
    }
#define F32(x) x##_f32
#define F64(x) x##_f64
OPERATIONS(float, F32)
OPERATIONS(double, F64)
#undef OPERATIONS
#undef F32
#undef F64

/* Rows that are narrower, element by element: TYPE is a line of the list of types, SUFFIX its X. */
#define LOAD_W(TYPE, SUFFIX, W)                                                                                      \
    enum { LOAD_CPU_##TYPE = 0 };                                                                                    \
    static inline vec_##SUFFIX load_w_masked_##TYPE(const W *p, int64_t n)                                           \
    {                                                                                                                \
        vec_##SUFFIX r = vec_zero_##SUFFIX();                                                                        \
        for (int i = 0; i < VL_##SUFFIX && i < n; i++)                                                               \
            r.v[i] = widen_##TYPE(p[i]);                                                                             \
        return r;                                                                                                    \
    }                                                                                                                \
    static inline vec_##SUFFIX load_w_##TYPE(const W *p) { return load_w_masked_##TYPE(p, VL_##SUFFIX); }
LOAD_W(f32_bf16, f32, bf16)
LOAD_W(f32_f16, f32, f16)
LOAD_W(f32_i8, f32, i8)
#undef LOAD_W
