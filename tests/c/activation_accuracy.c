/* The activations against references of higher precision, and against each other on every instruction set.
 *
 *     activation_accuracy [--all | --few]
 *
 * float: the error in ulp of every 61st of the 2^32 inputs (of every 4099th with --few, for an emulator; with --all,
 * also of every one, through the best kernel) against the double functions.
 * double: the error of random and of structured inputs against long double, where that is wider than double.
 * Both: the same bits from every kernel that this CPU can run, and from every compiler and architecture, held by a
 * hash; NaNs count as equal. Special values, and every short length.
 * Fails when an error exceeds the bound that activation.h promises. */
#include "activation.h"
#include "activations.inc"
#include "cpu.h"
#include "dispatch.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define ONE_MORE(NUMBER, name, ...) +1
enum { KERNELS = 16, ACTIVATIONS = 0 CMM_ACTIVATIONS(ONE_MORE), BLOCK = 4096, LANES = 16 };

#define NAME_OF(NUMBER, name, ...) #name,
#define BOUND_F32(NUMBER, name, zero_at_zero, ulp_f32, ulp_f64, ...) ulp_f32,
#define BOUND_F64(NUMBER, name, zero_at_zero, ulp_f32, ulp_f64, ...) ulp_f64,
static const char *const names[] = {CMM_ACTIVATIONS(NAME_OF)};
static const double bounds_f32[] = {CMM_ACTIVATIONS(BOUND_F32)};
static const double bounds_f64[] = {CMM_ACTIVATIONS(BOUND_F64)};
#define SLOPE_F32(NUMBER, name, zero_at_zero, ulp_f32, ulp_f64, slope_f32, slope_f64) slope_f32,
#define SLOPE_F64(NUMBER, name, zero_at_zero, ulp_f32, ulp_f64, slope_f32, slope_f64) slope_f64,
static const double slope_bounds_f32[] = {CMM_ACTIVATIONS(SLOPE_F32)};
static const double slope_bounds_f64[] = {CMM_ACTIVATIONS(SLOPE_F64)};

static const cmm_kernel *kernels[KERNELS]; /* those of operation act that this CPU can run, the best last */
static int kernel_count, failures;

static void expect(int good, const char *what, const char *activation, double x, double got)
{
    if (!good && ++failures <= 20)
        printf("FAIL %s: %s(%a) gave %a\n", what, activation, x, got);
}

/* What all results of a fixed set of inputs add up to, from any compiler on any architecture. They change with every
 * change of the formulas or their coefficients; set them anew once the errors have been found to be within bounds. */
static const uint64_t hashes_f32[ACTIVATIONS] = {
    UINT64_C(0x5486b9e4b1aa2832), UINT64_C(0xea74d706d8844464),
    UINT64_C(0xc4211c2f08c7fe17), UINT64_C(0x477507b6f3f2f563),
    UINT64_C(0x659f80bb6f5b10b5),
};
static const uint64_t hashes_f64[ACTIVATIONS] = {
    UINT64_C(0x59da5944a71e9c50), UINT64_C(0xb279c26a0461cc90),
    UINT64_C(0xe708e4320862f862), UINT64_C(0x8d4d83c3201bf4da),
    UINT64_C(0x3560639c34384af7),
};

static const uint64_t slope_hashes_f32[ACTIVATIONS] = {
    UINT64_C(0x066e92cf9c9b39d3), UINT64_C(0x0132c651f4e37508),
    UINT64_C(0x5ccb63cbda106e2d), UINT64_C(0x2c91c766d98fc457),
    UINT64_C(0x31adf31dd6809ba3),
};
static const uint64_t slope_hashes_f64[ACTIVATIONS] = {
    UINT64_C(0xca58f718541d195c), UINT64_C(0x635481e164d932f8),
    UINT64_C(0x049d76700c5de0b2), UINT64_C(0xc6cc070cd29e9d48),
    UINT64_C(0x64fd44917e1ae246),
};

static uint64_t mix(uint64_t hash, uint64_t bits)
{
    return (hash ^ bits ^ bits >> 32) * UINT64_C(0x9e3779b97f4a7c15) + (hash >> 29);
}

/* The unit of the last place of a number of the size of want, in the format with so many bits and this least
 * exponent. Of subnormal numbers it is the least of them, so that the bound holds for gradual underflow too. */
static double unit(double want, int bits, int least)
{
    uint64_t u;
    memcpy(&u, &want, sizeof u);
    int exponent = (int)(u >> 52 & 2047) - 1023;
    return ldexp(1, (exponent < least ? least : exponent) - (bits - 1));
}

/* Errors of float results in ulp against double ones: the largest goes to worst, its index is returned, or -1 when
 * all are below worst. A NaN that is not matched by a NaN is an infinite error. Written for the vectoriser. */
static int compare_f32(const float *got, const double *want, double *worst)
{
    static double error[BLOCK];
    double most[LANES] = {0};
    for (int i = 0; i < BLOCK; i += LANES)
        for (int j = 0; j < LANES; j++) {
            const double g = got[i + j], w = want[i + j];
            uint64_t u;
            memcpy(&u, &w, sizeof u);
            u &= 0x7ff0000000000000;
            const uint64_t least = (uint64_t)(1023 + FLT_MIN_EXP - 1) << 52;
            u = (u < least ? least : u) - ((uint64_t)(FLT_MANT_DIG - 1) << 52);
            double ulp;
            memcpy(&ulp, &u, sizeof ulp);
            const double e = fabs(g - w) / ulp;
            error[i + j] = g == w ? 0 : (g != g) != (w != w) ? (double)INFINITY : e;
            most[j] = error[i + j] > most[j] ? error[i + j] : most[j];
        }
    double m = 0;
    for (int j = 0; j < LANES; j++)
        m = most[j] > m ? most[j] : m;
    if (m <= *worst)
        return -1;
    *worst = m;
    int i = 0;
    while (!(error[i] == m))
        i++;
    return i;
}

static const uint64_t FIRST_STATE = 0x9e3779b97f4a7c15;
static uint64_t random_state;

static uint64_t next_random(void) /* xorshift */
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

/* Inputs by turns: any double; even over where the results are neither 0 nor x; dense around 0; next to numbers where
 * the formulas change their pieces. */
static double next_input(int activation, uint64_t i)
{
    static const double far[ACTIVATIONS] = {39, 22, 1, 755, 1};
    const uint64_t random = next_random();
    double x = (double)(random >> 11) * 0x1p-53;
    switch (i % 4) {
    case 0: memcpy(&x, &random, sizeof x); return x;
    case 1: return far[activation] * (x * 1.25 - 1);
    case 2: return 8 * x - 4;
    default: {
        const double steps[4] = {1, 0.69314718055994530942 / 2, 0.125, ldexp(1, (int)(random & 15) - 12)};
        const double near = steps[i / 4 % 4] * (double)(random >> 4 & 2047);
        const double next = near * (1 + ((double)(random >> 20 & 15) - 8) * DBL_EPSILON);
        return random >> 40 & 1 ? next : -next;
    }
    }
}

/* Every stride-th input, through the kernels from the first-th on. */
static void check_f32(int activation, uint32_t stride, int first)
{
    static float x[BLOCK], z[KERNELS][BLOCK];
    static double want[BLOCK];
    double worst = 0, worst_x = 0, worst_got = 0;
    const uint64_t inputs = ((UINT64_C(1) << 32) + stride - 1) / stride;
    for (uint64_t begin = 0; begin < inputs; begin += BLOCK) {
        for (uint32_t i = 0; i < BLOCK; i++) {
            const uint32_t u = (uint32_t)((begin + i) * stride); /* wraps in the last block: a few inputs twice */
            memcpy(&x[i], &u, sizeof u);
            want[i] = x[i];
        }
        kernels[kernel_count - 1]->activate_f64(activation, BLOCK, want);
        for (int k = first; k < kernel_count; k++) {
            memcpy(z[k], x, sizeof x);
            kernels[k]->activate_f32(activation, BLOCK, z[k]);
        }
        const int at = compare_f32(z[first], want, &worst);
        if (at >= 0)
            worst_x = x[at], worst_got = z[first][at];
        for (int k = first + 1; k < kernel_count; k++)
            if (memcmp(z[first], z[k], sizeof x) != 0)
                for (int i = 0; i < BLOCK; i++)
                    expect((isnan(z[first][i]) && isnan(z[k][i])) || memcmp(&z[first][i], &z[k][i], 4) == 0,
                           kernels[k]->traits.name, names[activation], x[i], z[k][i]);
    }
    printf("%-10s float  %7.4f ulp (at most %.2f), worst at %a, of every %u. input\n", names[activation], worst,
           bounds_f32[activation], worst_x, (unsigned)stride);
    expect(worst <= bounds_f32[activation], "accuracy", names[activation], worst_x, worst_got);
}

/* ---- the references' exp and erfc ------------------------------------------------------------------------------- */

/* Those of the C library where it has them. Where long double has 113 bits some have not: musl's expl() and erfcl(), of
 * which WASI's C library is made, are exp() and erfc() there. So these are used with every C library of that format. */
#if LDBL_MANT_DIG == 113
static long double exp_wide(long double x)
{
    if (!(fabsl(x) < 11300)) /* about where the format ends */
        return x > 0 ? INFINITY : x < 0 ? 0 : x;
    /* exp(x) = 2^k (exp(r / 256))^256 with |r| <= log(2) / 2. The product with log(2) is off by less than 2^-113 |x|;
     * the series is cut off below (2^-9.5)^13 / 13! < 2^-155; what the series is off by, some 2^-112, eight squarings make
     * 2^-104. So for |x| < 1100, where results matter here, the error is below 2^-101 of the result. */
    const int k = (int)(x * 1.4426950408889634L + (x < 0 ? -0.5L : 0.5L));
    const long double r = (x - (long double)k * 0.693147180559945309417232121458176568L) / 256;
    long double sum = 1;
    for (int n = 12; n > 0; n--)
        sum = 1 + sum * r / (long double)n;
    for (int i = 0; i < 8; i++)
        sum *= sum;
    return ldexpl(sum, k);
}

static long double erfc_wide(long double x)
{
    const long double b = fabsl(x);
    if (x < 0)
        return 2 - erfc_wide(b);
    if (b > 106) /* below the least number of the format */
        return 0;
    if (b < 4) {
        /* 1 - erf, by Abramowitz & Stegun 7.1.6: positive terms, so erf is off by less than 2^-100, and that is 2^-74
         * of erfc(4). The terms from the hundredth on come to less than 2^-122 of it. */
        long double term = b, sum = b;
        for (int n = 1; n < 100; n++) {
            term *= 2 * b * b / (long double)(2 * n + 1);
            sum += term;
        }
        return 1 - 1.12837916709551257389615890312154517L * exp_wide(-b * b) * sum;
    }
    /* The continued fraction, 7.1.14, of positive parts. Cut off there it is off by 3e-25 (less than 2^-81) at 4, by
     * less beyond. The square's rounding costs 2^-113 b^2, as above. */
    long double tail = 0;
    for (int n = 40; n > 0; n--)
        tail = (long double)n / 2 / (b + tail);
    return 0.564189583547756286948079451560772586L * exp_wide(-b * b) / (b + tail);
}
#else
static long double exp_wide(long double x)
{
    return expl(x);
}

static long double erfc_wide(long double x)
{
    return erfcl(x);
}
#endif

#if LDBL_MANT_DIG >= 64
/* A reference that is as coarse as double would blame the kernels. So it is compared with values computed to 60 digits
 * (by mpmath): within 2^-60, which adds 1/128 to an error in roundoffs or in ulp of double. */
static void check_reference(void)
{
    static const struct {
        double x;
        long double want;
    } exps[] = {
        {-1, 3.67879441171442321595523770161460867e-1L}, {0.25, 1.28402541668774148407342056806243646L},
        {-36.75, 1.09566500332623672288276449611072361e-16L}, {-372.5, 1.67998533638598675607858231513507557e-162L},
        {-700.125, 8.70113401035398679448914816611291008e-305L}, {11, 5.98741417151978184553264857922577816e+4L},
    }, erfcs[] = {
        {0.1, 8.87537083981715101595287748985695938e-1L}, {-1, 1.84270079294971486934122063508260926L},
        {1.5, 3.38948535246892729330237383540521413e-2L}, {3.75, 1.13727256569796653259076583006608857e-7L},
        {4.25, 1.85057413738674252005583807152872674e-9L}, {12.5, 6.23194278197991100613954912908968737e-70L},
        {26.25, 1.19107677067262300403120588306171872e-301L},
    };
    for (size_t i = 0; i < sizeof exps / sizeof *exps; i++) {
        const long double got = exp_wide(exps[i].x);
        expect(fabsl(got - exps[i].want) <= 0x1p-60L * exps[i].want, "the reference", "exp", exps[i].x, (double)got);
    }
    for (size_t i = 0; i < sizeof erfcs / sizeof *erfcs; i++) {
        const long double got = erfc_wide(erfcs[i].x);
        const int good = fabsl(got - erfcs[i].want) <= 0x1p-60L * erfcs[i].want;
        expect(good, "the reference", "erfc", erfcs[i].x, (double)got);
    }
}

/* Products that need more than long double has. */
#if LDBL_MANT_DIG == 64 && defined(__SIZEOF_FLOAT128__)
__extension__ typedef __float128 wide;
#else
typedef long double wide;
#endif

static long double gelu_wide(double x)
{
    /* 0.5 x erfc(-x / sqrt(2)). Rounding the argument of erfc would cost x^2 / 2 times the rounding error, so what it
     * lost is put right by the derivative of erfc. */
    const wide root = (wide)0xb504f333f9de6484p-64L + (wide)0xb2fb1366ea957d3ep-129L; /* 1 / sqrt(2) */
    const wide z = -root * (wide)x;
    const long double upper = (long double)z, lower = (long double)(z - upper);
    return 0.5L * x * (erfc_wide(upper) - 1.128379167095512573896158903121545172L * exp_wide(-upper * upper) * lower);
}

static long double logistic_wide(double x, wide v) /* x / (1 + exp(-v)) */
{
    const long double upper = (long double)v, lower = (long double)(v - upper);
    return x / (1 + exp_wide(-upper) * (1 - lower));
}

static long double activation_wide(int activation, double x)
{
    if (isnan(x) || activation == CMM_IDENTITY)
        return x;
    if (activation == CMM_RELU)
        return x < 0 ? 0 : x;
    if (x < -1e4 || x > 1e4)
        return x > 0 ? x : isinf(x) ? NAN : 0;
    if (activation == CMM_GELU)
        return gelu_wide(x);
    if (activation == CMM_SILU)
        return logistic_wide(x, x);
    const wide c0 = (wide)0xcc42299ea1b28468p-63L + (wide)0xfcb3c500bab8e2ffp-128L; /* 2 sqrt(2 / pi) */
    const wide c1 = (wide)0x922279526c5a57a5p-67L - (wide)0x843a29d1c7079669p-133L; /* the same times 0.044715 */
    return logistic_wide(x, (wide)x * (c0 + c1 * ((wide)x * (wide)x)));
}

static void check_f64(int activation, uint64_t inputs)
{
    static double x[BLOCK], z[KERNELS][BLOCK];
    double worst = 0, worst_x = 0, worst_got = 0;
    random_state = FIRST_STATE;
    for (uint64_t begin = 0; begin < inputs; begin += BLOCK) {
        for (uint64_t i = 0; i < BLOCK; i++)
            x[i] = next_input(activation, begin + i);
        for (int k = 0; k < kernel_count; k++) {
            memcpy(z[k], x, sizeof x);
            kernels[k]->activate_f64(activation, BLOCK, z[k]);
            for (int i = 0; i < BLOCK; i++)
                expect((isnan(z[0][i]) && isnan(z[k][i])) || memcmp(&z[0][i], &z[k][i], 8) == 0,
                       kernels[k]->traits.name, names[activation], x[i], z[k][i]);
        }
        for (int i = 0; i < BLOCK; i++) {
            const long double want = activation_wide(activation, x[i]);
            double error = (double)(fabsl(z[0][i] - want) / unit((double)want, DBL_MANT_DIG, DBL_MIN_EXP - 1));
            if (isnan(z[0][i]) || isnan(want))
                error = isnan(z[0][i]) && isnan(want) ? 0 : INFINITY;
            else if (z[0][i] == want)
                error = 0;
            if (error > worst)
                worst = error, worst_x = x[i], worst_got = z[0][i];
        }
    }
    printf("%-10s double %7.4f ulp (at most %.2f), worst at %a\n", names[activation], worst, bounds_f64[activation],
           worst_x);
    expect(worst <= bounds_f64[activation], "accuracy", names[activation], worst_x, worst_got);
}
#endif

static void check_hash(int activation)
{
    enum { STRIDE = 4099, BLOCKS = 256 };
    static float x32[BLOCK];
    static double x64[BLOCK];
    uint64_t hash32 = 0, hash64 = 0;
    random_state = FIRST_STATE;
    for (uint32_t block = 0; block < BLOCKS; block++) {
        for (uint32_t i = 0; i < BLOCK; i++) {
            const uint32_t u = (block * BLOCK + i) * STRIDE;
            memcpy(&x32[i], &u, sizeof u);
            x64[i] = next_input(activation, i);
        }
        kernels[0]->activate_f32(activation, BLOCK, x32);
        kernels[0]->activate_f64(activation, BLOCK, x64);
        for (int i = 0; i < BLOCK; i++) {
            uint32_t u32 = 0x7fc00000;
            uint64_t u64 = UINT64_C(0x7ff8) << 48;
            if (!isnan(x32[i]))
                memcpy(&u32, &x32[i], sizeof u32);
            if (!isnan(x64[i]))
                memcpy(&u64, &x64[i], sizeof u64);
            hash32 = mix(hash32, u32);
            hash64 = mix(hash64, u64);
        }
    }
    if ((hash32 != hashes_f32[activation] || hash64 != hashes_f64[activation]) && ++failures)
        printf("FAIL hash of %s: float 0x%016llx, double 0x%016llx\n", names[activation], (unsigned long long)hash32,
               (unsigned long long)hash64);
}

/* NaN stays NaN, +inf stays +inf, 0 is 0, -inf is what the formula makes of it, and the ends of the number line. */
static void check_special(int activation)
{
    const double minus_infinity = activation == CMM_RELU ? 0 : activation == CMM_IDENTITY ? -INFINITY : NAN;
    const double cases[][2] = {{NAN, NAN}, {INFINITY, INFINITY}, {-INFINITY, minus_infinity}, {0, 0}, {-0.0, 0},
                               {FLT_MAX, FLT_MAX}, {-FLT_MAX, activation == CMM_IDENTITY ? -FLT_MAX : 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int k = 0; k < kernel_count; k++) {
            const double x = cases[i][0], want = cases[i][1];
            float z32 = (float)x;
            double z64 = x;
            kernels[k]->activate_f32(activation, 1, &z32);
            kernels[k]->activate_f64(activation, 1, &z64);
            expect(isnan(want) ? isnan(z32) : (double)z32 == want, "special float", names[activation], x, z32);
            expect(isnan(want) ? isnan(z64) : z64 == want, "special double", names[activation], x, z64);
        }
}

/* Every short length gives the bits of a long call, and touches nothing beyond its end. */
static void check_lengths(int activation)
{
    enum { MOST = 200 };
    for (int k = 0; k < kernel_count; k++)
        for (int n = 0; n < MOST; n++) {
            float z32[MOST + 1], want32[MOST];
            double z64[MOST + 1], want64[MOST];
            for (int i = 0; i <= MOST; i++)
                z64[i] = z32[i] = 0.0625f * (float)(i - 80);
            memcpy(want32, z32, sizeof want32);
            memcpy(want64, z64, sizeof want64);
            const float next32 = z32[n];
            const double next64 = z64[n];
            kernels[k]->activate_f32(activation, MOST, want32);
            kernels[k]->activate_f64(activation, MOST, want64);
            kernels[k]->activate_f32(activation, n, z32);
            kernels[k]->activate_f64(activation, n, z64);
            const int good32 = memcmp(z32, want32, (size_t)n * 4) == 0 && z32[n] == next32;
            const int good64 = memcmp(z64, want64, (size_t)n * 8) == 0 && z64[n] == next64;
            expect(good32, "of a call of this length, float,", names[activation], n, k);
            expect(good64, "of a call of this length, double,", names[activation], n, k);
        }
}

/* ---- derivatives ------------------------------------------------------------------------------------------------- */

/* The derivative, and the size of its parts: below 0 of the two that cancel at one point, above of 1. See activation.md. */
static long double slope_wide(int activation, double x, long double *size)
{
    const long double b = fabsl((long double)x);
    long double tail;
    *size = 1;
    if (isnan(x) || activation == CMM_IDENTITY || activation == CMM_RELU)
        return isnan(x) && activation != CMM_IDENTITY ? (long double)x : x > 0 || activation == CMM_IDENTITY;
    if (b > 1e4L) {
        *size = x > 0;
        return x > 0;
    }
    if (activation == CMM_GELU) {
        const long double q = erfc_wide(b * 0.707106781186547524400844362104849039L) / 2;
        const long double p = b * exp_wide(-b * b / 2) * 0.398942280401432677939946059934381868L;
        tail = q - p;
        *size = x < 0 ? q + p : 1;
    } else {
        const long double c = 1.595769121605730711759783239737475474L;
        const long double v = activation == CMM_SILU ? b : c * (b + 0.044715L * b * b * b);
        const long double h = activation == CMM_SILU ? b : b * c * (1 + 3 * 0.044715L * b * b);
        const long double e = exp_wide(-v), both = e / ((1 + e) * (1 + e));
        tail = both * (1 + e - h);
        *size = x < 0 ? both * (1 + e + h) : 1;
    }
    return x < 0 ? tail : 1 - tail;
}

/* The error of a derivative in roundoffs of the size of its parts; of the least number where those are that small. */
static double slope_error(int activation, double x, double got, double roundoff, double least)
{
    long double size;
    const long double want = slope_wide(activation, x, &size);
    if (isnan(got) || isnan(want))
        return isnan(got) && isnan(want) ? 0 : INFINITY;
    return got == want ? 0 : (double)(fabsl(got - want) / (roundoff * size + least));
}

static void check_slopes(int activation, uint32_t stride, uint64_t inputs)
{
    static float x32[BLOCK], z32[KERNELS][BLOCK];
    static double x64[BLOCK], z64[KERNELS][BLOCK];
    double worst32 = 0, worst64 = 0, at32 = 0, at64 = 0;
    uint64_t hash32 = 0, hash64 = 0;
    const uint64_t floats = ((UINT64_C(1) << 32) + stride - 1) / stride, most = floats > inputs ? floats : inputs;
    enum { HASHED = 1 << 18 };
    random_state = FIRST_STATE;
    for (uint64_t begin = 0; begin < most; begin += BLOCK) {
        for (uint32_t i = 0; i < BLOCK; i++) {
            /* those of the hash are the same whatever the stride */
            const uint32_t u = (uint32_t)((begin + i) * (begin < HASHED ? 16411 : stride));
            memcpy(&x32[i], &u, sizeof u);
            x64[i] = next_input(activation, begin + i);
        }
        for (int k = 0; k < kernel_count; k++) {
            memcpy(z32[k], x32, sizeof x32);
            memcpy(z64[k], x64, sizeof x64);
            kernels[k]->differentiate_f32(activation, BLOCK, z32[k]);
            kernels[k]->differentiate_f64(activation, BLOCK, z64[k]);
            for (int i = 0; i < BLOCK; i++) {
                expect((isnan(z32[0][i]) && isnan(z32[k][i])) || memcmp(&z32[0][i], &z32[k][i], 4) == 0,
                       kernels[k]->traits.name, names[activation], x32[i], z32[k][i]);
                expect((isnan(z64[0][i]) && isnan(z64[k][i])) || memcmp(&z64[0][i], &z64[k][i], 8) == 0,
                       kernels[k]->traits.name, names[activation], x64[i], z64[k][i]);
            }
        }
        for (int i = 0; i < BLOCK; i++) {
            const double error32 = slope_error(activation, x32[i], z32[0][i], FLT_EPSILON / 2, FLT_TRUE_MIN);
            if (error32 > worst32)
                worst32 = error32, at32 = x32[i];
#if LDBL_MANT_DIG >= 64
            const double error64 = slope_error(activation, x64[i], z64[0][i], DBL_EPSILON / 2, DBL_TRUE_MIN);
            if (error64 > worst64)
                worst64 = error64, at64 = x64[i];
#endif
            uint32_t u32 = 0x7fc00000;
            uint64_t u64 = UINT64_C(0x7ff8) << 48;
            if (!isnan(z32[0][i]))
                memcpy(&u32, &z32[0][i], sizeof u32);
            if (!isnan(z64[0][i]))
                memcpy(&u64, &z64[0][i], sizeof u64);
            hash32 = begin < HASHED ? mix(hash32, u32) : hash32;
            hash64 = begin < HASHED ? mix(hash64, u64) : hash64;
        }
    }
    printf("%-10s derivative: float %.4f (at most %.2f), worst at %a; double %.4f (at most %.2f), worst at %a\n",
           names[activation], worst32, slope_bounds_f32[activation], at32, worst64, slope_bounds_f64[activation], at64);
    expect(worst32 <= slope_bounds_f32[activation], "accuracy of the derivative, float,", names[activation], at32, worst32);
    expect(worst64 <= slope_bounds_f64[activation], "accuracy of the derivative, double,", names[activation], at64, worst64);
    if ((hash32 != slope_hashes_f32[activation] || hash64 != slope_hashes_f64[activation]) && ++failures)
        printf("FAIL hash of the derivative of %s: float 0x%016llx, double 0x%016llx\n", names[activation],
               (unsigned long long)hash32, (unsigned long long)hash64);

    const double cases[][2] = {{NAN, activation == CMM_IDENTITY ? 1 : NAN}, {INFINITY, 1}, {FLT_MAX, 1},
                               {-INFINITY, activation == CMM_IDENTITY}, {-FLT_MAX, activation == CMM_IDENTITY},
                               {0, activation == CMM_RELU ? 0 : activation == CMM_IDENTITY ? 1 : 0.5}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int k = 0; k < kernel_count; k++) {
            const double x = cases[i][0], want = cases[i][1];
            float one32 = (float)x;
            double one64 = x;
            kernels[k]->differentiate_f32(activation, 1, &one32);
            kernels[k]->differentiate_f64(activation, 1, &one64);
            expect(isnan(want) ? isnan(one32) : (double)one32 == want, "special derivative, float", names[activation], x, one32);
            expect(isnan(want) ? isnan(one64) : one64 == want, "special derivative, double", names[activation], x, one64);
        }
}

int main(int argc, char **argv)
{
    const int all = argc > 1 && strcmp(argv[1], "--all") == 0, few = argc > 1 && strcmp(argv[1], "--few") == 0;
    if (argc > 2 || (argc == 2 && !all && !few)) {
        fprintf(stderr, "usage: %s [--all | --few]\n", argv[0]);
        return 2;
    }
    printf("kernels:");
    for (int32_t file = 0; file < cmm_kernel_file_count; file++) {
        const cmm_traits *const kernel = cmm_kernel_files[file][0];
        if (kernel->op == CMM_OP_ACT && cmm_why_absent(kernel, cmm_cpu_machine()->cpu)[0] == '\0') {
            kernels[kernel_count++] = (const cmm_kernel *)kernel;
            printf(" %s", kernel->name);
        }
    }
    printf("\n");
#if LDBL_MANT_DIG >= 64
    check_reference();
#endif
    for (int activation = 0; activation < ACTIVATIONS; activation++) {
        check_special(activation);
        check_lengths(activation);
        check_hash(activation);
        check_f32(activation, few ? 4099 : 61, 0);
        if (all)
            check_f32(activation, 1, kernel_count - 1);
        check_slopes(activation, all ? 61 : few ? 16411 : 4099, all ? 4000000 : few ? 1 << 18 : 400000);
#if LDBL_MANT_DIG >= 64
        check_f64(activation, all ? 4000000 : few ? 40000 : 400000);
#endif
    }
#if LDBL_MANT_DIG < 64
    printf("double: long double is no wider here, so only its special values, lengths and equality were checked\n");
#endif
    if (failures)
        printf("%d failures\n", failures);
    return failures != 0;
}
