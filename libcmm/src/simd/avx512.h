/* 512-bit vectors. What each operation means is said in simd/README.md. */
#include <stdint.h>

#include <immintrin.h>

#include "../types.h"

#define ISA avx512
#define ISA_CPU CMM_CPU_AVX512

typedef __m512 vec_f32;
typedef __m512d vec_f64;

static inline void vec_fence(void) { _mm_sfence(); }

enum { VL_f32 = 16, VL_f64 = 8 };
#define REGISTERS 32
#define MR 4
#define COLUMNS 6
#define COLUMNS_ALONE 12

static inline vec_f32 vec_zero_f32(void) { return _mm512_setzero_ps(); }
static inline vec_f32 vec_broadcast_f32(float a) { return _mm512_set1_ps(a); }
static inline vec_f32 vec_load_f32(const float *p) { return _mm512_loadu_ps(p); }
static inline void vec_store_f32(float *p, vec_f32 a) { _mm512_storeu_ps(p, a); }
static inline void vec_store_nt_f32(float *p, vec_f32 a) { _mm512_stream_ps(p, a); }
static inline vec_f32 vec_pin_f32(vec_f32 a)
{
    __asm__("" : "+v"(a));
    return a;
}
static inline vec_f32 vec_add_f32(vec_f32 a, vec_f32 b) { return _mm512_add_ps(a, b); }
static inline vec_f32 vec_fma_f32(vec_f32 a, vec_f32 b, vec_f32 c) { return _mm512_fmadd_ps(a, b, c); }

static inline __mmask16 mask_f32(int64_t n)
{
    return (__mmask16)(n <= 0 ? 0 : n >= 16 ? 0xffffu : (1u << n) - 1);
}
static inline vec_f32 vec_load_masked_f32(const float *p, int64_t n) { return _mm512_maskz_loadu_ps(mask_f32(n), p); }
static inline void vec_store_masked_f32(float *p, vec_f32 a, int64_t n) { _mm512_mask_storeu_ps(p, mask_f32(n), a); }

static inline vec_f32 vec_fma_masked_f32(vec_f32 a, vec_f32 b, vec_f32 c, int64_t n)
{
    return _mm512_mask3_fmadd_ps(a, b, c, mask_f32(n));
}
static inline vec_f32 vec_rotate_f32(vec_f32 a, int64_t n)
{
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_permutexvar_ps(_mm512_add_epi32(lane, _mm512_set1_epi32((int32_t)n)), a);
}
static inline vec_f32 vec_join_f32(vec_f32 a, vec_f32 b, int64_t n)
{
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_permutex2var_ps(a, _mm512_add_epi32(lane, _mm512_set1_epi32((int32_t)n)), b);
}

static inline float vec_reduce_add_f32(vec_f32 a)
{
    const __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    const __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}

static inline vec_f64 vec_zero_f64(void) { return _mm512_setzero_pd(); }
static inline vec_f64 vec_broadcast_f64(double a) { return _mm512_set1_pd(a); }
static inline vec_f64 vec_load_f64(const double *p) { return _mm512_loadu_pd(p); }
static inline void vec_store_f64(double *p, vec_f64 a) { _mm512_storeu_pd(p, a); }
static inline void vec_store_nt_f64(double *p, vec_f64 a) { _mm512_stream_pd(p, a); }
static inline vec_f64 vec_pin_f64(vec_f64 a)
{
    __asm__("" : "+v"(a));
    return a;
}
static inline vec_f64 vec_add_f64(vec_f64 a, vec_f64 b) { return _mm512_add_pd(a, b); }
static inline vec_f64 vec_fma_f64(vec_f64 a, vec_f64 b, vec_f64 c) { return _mm512_fmadd_pd(a, b, c); }

static inline __mmask8 mask_f64(int64_t n)
{
    return (__mmask8)(n <= 0 ? 0 : n >= 8 ? 0xffu : (1u << n) - 1);
}
static inline vec_f64 vec_load_masked_f64(const double *p, int64_t n) { return _mm512_maskz_loadu_pd(mask_f64(n), p); }
static inline void vec_store_masked_f64(double *p, vec_f64 a, int64_t n) { _mm512_mask_storeu_pd(p, mask_f64(n), a); }

static inline vec_f64 vec_fma_masked_f64(vec_f64 a, vec_f64 b, vec_f64 c, int64_t n)
{
    return _mm512_mask3_fmadd_pd(a, b, c, mask_f64(n));
}
static inline vec_f64 vec_rotate_f64(vec_f64 a, int64_t n)
{
    const __m512i lane = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm512_permutexvar_pd(_mm512_add_epi64(lane, _mm512_set1_epi64(n)), a);
}
static inline vec_f64 vec_join_f64(vec_f64 a, vec_f64 b, int64_t n)
{
    const __m512i lane = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm512_permutex2var_pd(a, _mm512_add_epi64(lane, _mm512_set1_epi64(n)), b);
}

static inline double vec_reduce_add_f64(vec_f64 a)
{
    const __m256d b = _mm256_add_pd(_mm512_castpd512_pd256(a), _mm512_extractf64x4_pd(a, 1));
    const __m128d c = _mm_add_pd(_mm256_castpd256_pd128(b), _mm256_extractf128_pd(b, 1));
    return _mm_cvtsd_f64(_mm_add_sd(c, _mm_unpackhi_pd(c, c)));
}

enum { LOAD_CPU_f32_bf16 = 0 };
static inline vec_f32 widen_bf16(__m256i w)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(w), 16));
}
static inline vec_f32 load_w_f32_bf16(const bf16 *p) { return widen_bf16(_mm256_loadu_si256((const __m256i *)p)); }
static inline vec_f32 load_w_masked_f32_bf16(const bf16 *p, int64_t n)
{
    return widen_bf16(_mm256_maskz_loadu_epi16(mask_f32(n), p));
}

enum { LOAD_CPU_f32_i8 = 0 };
static inline vec_f32 widen_i8(__m128i w) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(w)); }
static inline vec_f32 load_w_f32_i8(const i8 *p) { return widen_i8(_mm_loadu_si128((const __m128i *)p)); }
static inline vec_f32 load_w_masked_f32_i8(const i8 *p, int64_t n)
{
    return widen_i8(_mm_maskz_loadu_epi8(mask_f32(n), p));
}

enum { LOAD_CPU_f32_f16 = 0 };
static inline vec_f32 load_w_f32_f16(const f16 *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
static inline vec_f32 load_w_masked_f32_f16(const f16 *p, int64_t n)
{
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask_f32(n), p));
}
