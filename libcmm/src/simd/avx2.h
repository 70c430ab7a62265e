/* 256-bit vectors with fused multiply-add. What each operation means is said in simd/README.md. */
#include <stdint.h>

#include <immintrin.h>

#define ISA avx2
#define ISA_CPU CMM_CPU_AVX2

typedef __m256 vec_f32;
typedef __m256d vec_f64;

static inline void vec_fence(void) { _mm_sfence(); }

enum { VL_f32 = 8, VL_f64 = 4 };
#define REGISTERS 16
#define TILE 3
#define COLUMNS 3

static inline vec_f32 vec_zero_f32(void) { return _mm256_setzero_ps(); }
static inline vec_f32 vec_set_f32(float a) { return _mm256_set1_ps(a); }
static inline vec_f32 vec_load_f32(const float *p) { return _mm256_loadu_ps(p); }
static inline void vec_store_f32(float *p, vec_f32 a) { _mm256_storeu_ps(p, a); }
static inline void vec_stream_f32(float *p, vec_f32 a) { _mm256_stream_ps(p, a); }
static inline vec_f32 vec_keep_f32(vec_f32 a)
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
static inline vec_f32 vec_load_part_f32(const float *p, int64_t n) { return _mm256_maskload_ps(p, mask_f32(n)); }
static inline void vec_store_part_f32(float *p, vec_f32 a, int64_t n) { _mm256_maskstore_ps(p, mask_f32(n), a); }

static inline float vec_halve_f32(vec_f32 a)
{
    const __m128 c = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}

static inline vec_f64 vec_zero_f64(void) { return _mm256_setzero_pd(); }
static inline vec_f64 vec_set_f64(double a) { return _mm256_set1_pd(a); }
static inline vec_f64 vec_load_f64(const double *p) { return _mm256_loadu_pd(p); }
static inline void vec_store_f64(double *p, vec_f64 a) { _mm256_storeu_pd(p, a); }
static inline void vec_stream_f64(double *p, vec_f64 a) { _mm256_stream_pd(p, a); }
static inline vec_f64 vec_keep_f64(vec_f64 a)
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
static inline vec_f64 vec_load_part_f64(const double *p, int64_t n) { return _mm256_maskload_pd(p, mask_f64(n)); }
static inline void vec_store_part_f64(double *p, vec_f64 a, int64_t n) { _mm256_maskstore_pd(p, mask_f64(n), a); }

static inline double vec_halve_f64(vec_f64 a)
{
    const __m128d c = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_add_sd(c, _mm_unpackhi_pd(c, c)));
}
