/* 256-bit vectors with fused multiply-add. What each operation means is said in simd/README.md. */
#include <stdint.h>
#include <string.h>

#include <immintrin.h>

#include "../types.h"

#define ISA avx2
#define ISA_CPU CMM_CPU_AVX2

typedef __m256 vec_f32;
typedef __m256d vec_f64;

static inline void vec_fence(void) { _mm_sfence(); }

enum { VL_f32 = 8, VL_f64 = 4 };
#define REGISTERS 16
#define MR 3
#define COLUMNS 3
#define COLUMNS_ALONE 8

static inline vec_f32 vec_zero_f32(void) { return _mm256_setzero_ps(); }
static inline vec_f32 vec_broadcast_f32(float a) { return _mm256_set1_ps(a); }
static inline vec_f32 vec_load_f32(const float *p) { return _mm256_loadu_ps(p); }
static inline void vec_store_f32(float *p, vec_f32 a) { _mm256_storeu_ps(p, a); }
static inline void vec_store_nt_f32(float *p, vec_f32 a) { _mm256_stream_ps(p, a); }
static inline vec_f32 vec_pin_f32(vec_f32 a)
{
    __asm__("" : "+x"(a));
    return a;
}
static inline vec_f32 vec_add_f32(vec_f32 a, vec_f32 b) { return _mm256_add_ps(a, b); }
static inline vec_f32 vec_fma_f32(vec_f32 a, vec_f32 b, vec_f32 c) { return _mm256_fmadd_ps(a, b, c); }

static inline __m256i mask_f32(int64_t n)
{
    const int32_t bound = n < 0 ? 0 : n > 8 ? 8 : (int32_t)n;
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(bound), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
static inline vec_f32 vec_load_masked_f32(const float *p, int64_t n) { return _mm256_maskload_ps(p, mask_f32(n)); }
static inline void vec_store_masked_f32(float *p, vec_f32 a, int64_t n) { _mm256_maskstore_ps(p, mask_f32(n), a); }

static inline vec_f32 vec_fma_masked_f32(vec_f32 a, vec_f32 b, vec_f32 c, int64_t n)
{
    return _mm256_blendv_ps(c, vec_fma_f32(a, b, c), _mm256_castsi256_ps(mask_f32(n)));
}
static inline vec_f32 vec_rotate_f32(vec_f32 a, int64_t n)
{
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_permutevar8x32_ps(a, _mm256_add_epi32(lane, _mm256_set1_epi32((int32_t)n)));
}
static inline vec_f32 vec_join_f32(vec_f32 a, vec_f32 b, int64_t n)
{
    return _mm256_blendv_ps(vec_rotate_f32(b, n), vec_rotate_f32(a, n), _mm256_castsi256_ps(mask_f32(8 - n)));
}

static inline float vec_reduce_add_f32(vec_f32 a)
{
    const __m128 c = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}

static inline vec_f64 vec_zero_f64(void) { return _mm256_setzero_pd(); }
static inline vec_f64 vec_broadcast_f64(double a) { return _mm256_set1_pd(a); }
static inline vec_f64 vec_load_f64(const double *p) { return _mm256_loadu_pd(p); }
static inline void vec_store_f64(double *p, vec_f64 a) { _mm256_storeu_pd(p, a); }
static inline void vec_store_nt_f64(double *p, vec_f64 a) { _mm256_stream_pd(p, a); }
static inline vec_f64 vec_pin_f64(vec_f64 a)
{
    __asm__("" : "+x"(a));
    return a;
}
static inline vec_f64 vec_add_f64(vec_f64 a, vec_f64 b) { return _mm256_add_pd(a, b); }
static inline vec_f64 vec_fma_f64(vec_f64 a, vec_f64 b, vec_f64 c) { return _mm256_fmadd_pd(a, b, c); }

static inline __m256i mask_f64(int64_t n)
{
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
static inline vec_f64 vec_load_masked_f64(const double *p, int64_t n) { return _mm256_maskload_pd(p, mask_f64(n)); }
static inline void vec_store_masked_f64(double *p, vec_f64 a, int64_t n) { _mm256_maskstore_pd(p, mask_f64(n), a); }

static inline vec_f64 vec_fma_masked_f64(vec_f64 a, vec_f64 b, vec_f64 c, int64_t n)
{
    return _mm256_blendv_pd(c, vec_fma_f64(a, b, c), _mm256_castsi256_pd(mask_f64(n)));
}
static inline vec_f64 vec_rotate_f64(vec_f64 a, int64_t n)
{
    return _mm256_castps_pd(vec_rotate_f32(_mm256_castpd_ps(a), 2 * n));
}
static inline vec_f64 vec_join_f64(vec_f64 a, vec_f64 b, int64_t n)
{
    return _mm256_castps_pd(vec_join_f32(_mm256_castpd_ps(a), _mm256_castpd_ps(b), 2 * n));
}

static inline double vec_reduce_add_f64(vec_f64 a)
{
    const __m128d c = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_add_sd(c, _mm_unpackhi_pd(c, c)));
}

/* The first n of 8 numbers of 16 bits, and zeros: AVX2 has no masked load of them. */
static inline __m128i load_16_masked(const void *p, int64_t n)
{
    if (n >= 8)
        return _mm_loadu_si128(p);
    uint64_t low = 0, high = 0;
    const unsigned char *const bytes = p;
    if (n >= 4) {
        memcpy(&low, bytes, 8);
        memcpy(&high, bytes + 2 * n - 8, 8); /* the last four of them, of which low has some */
        high = n > 4 ? high >> 16 * (8 - n) : 0;
    } else {
        for (int64_t i = n - 1; i >= 0; i--) {
            uint16_t number;
            memcpy(&number, bytes + 2 * i, 2);
            low = low << 16 | number;
        }
    }
    return _mm_set_epi64x((int64_t)high, (int64_t)low);
}

enum { LOAD_CPU_f32_bf16 = 0 };
static inline vec_f32 widen_bf16(__m128i w)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(w), 16));
}
static inline vec_f32 load_w_f32_bf16(const bf16 *p) { return widen_bf16(_mm_loadu_si128((const __m128i *)p)); }
static inline vec_f32 load_w_masked_f32_bf16(const bf16 *p, int64_t n) { return widen_bf16(load_16_masked(p, n)); }

enum { LOAD_CPU_f32_f16 = CMM_CPU_F16C };
static inline vec_f32 load_w_f32_f16(const f16 *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
static inline vec_f32 load_w_masked_f32_f16(const f16 *p, int64_t n) { return _mm256_cvtph_ps(load_16_masked(p, n)); }

/* The first n of 8 bytes, and zeros. */
static inline __m128i load_8_masked(const void *p, int64_t n)
{
    uint64_t bytes = 0;
    if (n >= 8)
        memcpy(&bytes, p, 8);
    else
        for (int64_t i = n - 1; i >= 0; i--)
            bytes = bytes << 8 | ((const unsigned char *)p)[i];
    return _mm_cvtsi64_si128((int64_t)bytes);
}

enum { LOAD_CPU_f32_i8 = 0 };
static inline vec_f32 widen_i8(__m128i w) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(w)); }
static inline vec_f32 load_w_f32_i8(const i8 *p) { return widen_i8(_mm_loadl_epi64((const __m128i *)p)); }
static inline vec_f32 load_w_masked_f32_i8(const i8 *p, int64_t n) { return widen_i8(load_8_masked(p, n)); }
