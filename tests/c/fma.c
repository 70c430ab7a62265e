/* The fused multiply-adds that simd/fma.h makes of other operations, bit for bit against the C library's fmaf() and
 * fma(), or against the CPU's own on x86-64 where the C library is not known to round once: MinGW's and musl's do not.
 * Random numbers, and bit patterns made to fall on the boundaries of every rounding.
 *
 *     fma few    fewer of them, for an emulator */
#undef __FP_FAST_FMAF /* some CPUs would use their own instruction */
#include "simd/scalar.h"

#include "cmm.h"
#include "check.h"
#include "example.h"

#if defined(__x86_64__) && !defined(__GLIBC__) && !defined(__APPLE__)
#include "cpu.h"

#include <immintrin.h>

__attribute__((target("fma"))) static float cpu_fmaf(float a, float b, float c)
{
    return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c)));
}

__attribute__((target("fma"))) static double cpu_fma(double a, double b, double c)
{
    return _mm_cvtsd_f64(_mm_fmadd_sd(_mm_set_sd(a), _mm_set_sd(b), _mm_set_sd(c)));
}

static int is_known(void) { return (cmm_cpu_machine()->cpu & CMM_CPU_AVX2) != 0; }
#elif defined(__wasm__)
/* WASI's C library makes 0 of a negative product that underflows, where c is 0. It rounds to -0. */
static double cpu_fma(double a, double b, double c) { return c == 0 && a != 0 && b != 0 ? a * b : fma(a, b, c); }
#define cpu_fmaf fmaf
static int is_known(void) { return 1; }
#else
#define cpu_fmaf fmaf
#define cpu_fma fma
static int is_known(void) { return 1; }
#endif

static float (*volatile known_fmaf)(float, float, float) = cpu_fmaf; /* a call, whatever the compiler knows of fmaf */
static double (*volatile known_fma)(double, double, double) = cpu_fma;

static uint32_t bits_of(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static float from_bits(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static void check_one(float a, float b, float c)
{
    const float got = fma_one_f32(a, b, c), want = known_fmaf(a, b, c);
    CHECK(bits_of(got) == bits_of(want) || (got != got && want != want), "fma(%a, %a, %a) gave %a, not %a", (double)a,
          (double)b, (double)c, (double)got, (double)want);
}

#if defined(__SIZEOF_INT128__)
static double from_bits_of_double(uint64_t u)
{
    double x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static void check_double(double a, double b, double c)
{
    const double got = fma_of_integers(a, b, c), want = known_fma(a, b, c);
    CHECK(memcmp(&got, &want, sizeof got) == 0 || (got != got && want != want), "fma(%a, %a, %a) gave %a, not %a", a, b, c,
          got, want);
}

static double double_of(uint64_t r, int64_t exponent)
{
    const uint64_t all = ((uint64_t)1 << 52) - 1, bit = (uint64_t)1 << (r >> 40) % 52;
    const uint64_t fractions[] = {0, all, bit, all ^ bit, bit - 1, (uint64_t)1 << 51 | bit, r >> 8 & all, r >> 9 & all};
    exponent = exponent < 0 ? 0 : exponent > 2047 ? 2047 : exponent;
    return from_bits_of_double((r >> 63) << 63 | (uint64_t)exponent << 52 | fractions[r % 8]);
}

/* The same as of floats below. */
static void check_doubles(int share, uint64_t *state)
{
    for (int i = 0; i < 1000000 / share; i++)
        check_double(from_bits_of_double(random_bits(state)), from_bits_of_double(random_bits(state)),
                     from_bits_of_double(random_bits(state)));
    for (int i = 0; i < 4000000 / share; i++) {
        const uint64_t r = random_bits(state), s = random_bits(state), t = random_bits(state);
        const int64_t ea = (int64_t)(r >> 50 & 2047), eb = (int64_t)(s >> 50 & 2047);
        const int64_t near = ea + eb - 1023 + (int64_t)(t >> 48 & 255) - 128;
        const double a = double_of(r, ea), b = double_of(s, eb);
        check_double(a, b, double_of(t, near));
        /* Cancellation to the last bits. */
        uint64_t product;
        memcpy(&product, &(double){-(a * b)}, sizeof product);
        check_double(a, b, from_bits_of_double(product + t % 5 - 2));
        /* Half a unit of c's last place, or a little more or less. */
        const uint64_t ec = 60 + (t >> 32 & 1023);
        const double half = from_bits_of_double((ec - 53) << 52 | (t >> 5 & 1));
        const double one = from_bits_of_double(((uint64_t)1023 << 52) + (t >> 8 & 3) - 1);
        check_double(half, t & 1 << 10 ? one : -one, double_of(t, (int64_t)ec));
        /* Results around the least numbers, and the greatest. */
        check_double(double_of(r, (int64_t)(r >> 50 & 63)), double_of(s, 960 + (int64_t)(s >> 50 & 127)),
                     double_of(t, (int64_t)(t >> 48 & 3)));
        check_double(double_of(r, 2040 - ea / 2), double_of(s, 1023 + ea / 2), double_of(t, 2040 + (int64_t)(t >> 48 & 7)));
    }
}
#else
static void check_doubles(int share, uint64_t *state)
{
    (void)share;
    (void)state;
}
#endif

/* A fraction with few bits set or clear: 0, all ones, one bit, a run, or any. */
static uint32_t fraction(uint64_t r)
{
    const uint32_t any = (uint32_t)(r >> 8) & 0x7fffff, bit = 1u << (r >> 40) % 23;
    switch (r % 8) {
    case 0: return 0;
    case 1: return 0x7fffff;
    case 2: return bit;
    case 3: return 0x7fffff ^ bit;
    case 4: return bit - 1;
    case 5: return 0x400000 | bit;
    default: return any;
    }
}

static float number(uint64_t r, int32_t exponent)
{
    exponent = exponent < 0 ? 0 : exponent > 255 ? 255 : exponent;
    return from_bits((uint32_t)(r >> 63) << 31 | (uint32_t)exponent << 23 | fraction(r));
}

int main(int argc, char **argv)
{
    const int share = argc > 1 && strcmp(argv[1], "few") == 0 ? 20 : 1;
    uint64_t state = 1;
    if (!is_known()) {
        printf("there is no fma here to compare with\n");
        return 0;
    }
    check_doubles(share, &state);
    for (int i = 0; i < 3000000 / share; i++) /* any bits at all */
        check_one(from_bits((uint32_t)random_bits(&state)), from_bits((uint32_t)random_bits(&state)),
                  from_bits((uint32_t)random_bits(&state)));
    for (int i = 0; i < 12000000 / share; i++) {
        /* c from far below the product to far above it; products down to below the least float. */
        const uint64_t r = random_bits(&state), s = random_bits(&state), t = random_bits(&state);
        const int32_t ea = (int32_t)(r >> 48 & 255), eb = (int32_t)(s >> 48 & 255);
        const int32_t near = ea + eb - 127 + (int32_t)(t >> 48 & 127) - 64;
        const float a = number(r, ea), b = number(s, eb);
        check_one(a, b, number(t, near));
        /* c next to minus the product: cancellation to the last bits. */
        const float product = a * b;
        check_one(a, b, from_bits(bits_of(-product) + (uint32_t)(t % 5) - 2));
        /* A product that is half a unit of c's last place, or a little more or less. */
        const uint32_t c = bits_of(number(t, 30 + (int32_t)(t >> 32 & 127)));
        const float half = from_bits(((c >> 23 & 255) - 24) << 23 | (uint32_t)(t >> 5 & 1));
        const float one = from_bits(0x3f800000u + (uint32_t)(t >> 8 & 3) - 1);
        check_one(half, t & 1 << 10 ? one : -one, from_bits(c));
        /* Results around the least numbers. */
        check_one(from_bits((uint32_t)(r >> 33)), from_bits((uint32_t)(s & 0x3fffffff)),
                  from_bits((uint32_t)(t & 0x80ffffff)));
    }
    static const float special[] = {0.0f, -0.0f, 1, -1, INFINITY, -INFINITY, NAN, 0x1p-149f, -0x1p-149f, 0x1p-126f,
                                    0x1.fffffep127f, -0x1.fffffep127f, 0x1p-75f, 0x1.000002p0f, 0x1.fffffep-1f};
    enum { SPECIAL = sizeof special / sizeof *special };
    for (int i = 0; i < SPECIAL; i++)
        for (int j = 0; j < SPECIAL; j++)
            for (int k = 0; k < SPECIAL; k++)
                check_one(special[i], special[j], special[k]);
#if defined(__SIZEOF_INT128__)
    static const double doubles[] = {0.0, -0.0, 1, -1, INFINITY, -INFINITY, (double)NAN, 0x1p-1074, -0x1p-1074, 0x1p-1022,
                                     0x1.fffffffffffffp1023, -0x1.fffffffffffffp1023, 0x1p-538, 0x1.0000000000001p0,
                                     0x1.fffffffffffffp-1, 0x1p-537};
    enum { DOUBLES = sizeof doubles / sizeof *doubles };
    for (int i = 0; i < DOUBLES; i++)
        for (int j = 0; j < DOUBLES; j++)
            for (int k = 0; k < DOUBLES; k++)
                check_double(doubles[i], doubles[j], doubles[k]);
#endif
    return check_report();
}
