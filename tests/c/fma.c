/* The fused multiply-add that simd/scalar.h makes of separate operations, bit for bit against the C library's fmaf():
 * random numbers, and bit patterns made to fall on the boundaries of every rounding.
 *
 *     fma few    fewer of them, for an emulator */
#undef __FP_FAST_FMAF /* some CPUs would use their own instruction */
#include "simd/scalar.h"

#include "cmm.h"
#include "check.h"
#include "example.h"

static float (*volatile library_fmaf)(float, float, float) = fmaf; /* a call, whatever the compiler knows of fmaf */

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
    const float got = fma_one_f32(a, b, c), want = library_fmaf(a, b, c);
    CHECK(bits_of(got) == bits_of(want) || (got != got && want != want), "fma(%a, %a, %a) gave %a, not %a", (double)a,
          (double)b, (double)c, (double)got, (double)want);
}

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
    return check_report();
}
