/* What this CPU and its operating system can do. The compiler's own __builtin_cpu_supports is not used: under some
 * compilers it reports nothing. */
#include "cpu.h"

#include "platform.h"

#include <math.h>
#include <string.h>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>

static uint64_t xgetbv0(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static uint32_t find_bits(void)
{
    uint32_t a, b, c, d, bits = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d))
        return 0;
    const uint32_t osxsave_avx_fma = 1u << 27 | 1u << 28 | 1u << 12;
    if ((c & osxsave_avx_fma) != osxsave_avx_fma)
        return 0;
    const uint32_t f16c = c & 1u << 29 ? CMM_CPU_F16C : 0;
    const uint64_t saved = xgetbv0(); /* register state that the operating system saves on a switch */
    if ((saved & 0x6) != 0x6 || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(b & 1u << 5))
        return 0;
    bits |= CMM_CPU_AVX2 | f16c;
    const uint32_t f_dq_bw_vl = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
    if ((saved & 0xe6) == 0xe6 && (b & f_dq_bw_vl) == f_dq_bw_vl)
        bits |= CMM_CPU_AVX512;
    return bits;
}

/* Intel's leaf 4 and AMD's leaf 0x8000001d describe the caches in the same format. */
static void find_caches(cmm_machine *found)
{
    uint32_t a, b, c, d;
    const uint32_t leaf = (uint32_t)__get_cpuid_max(0x80000000u, NULL) >= 0x8000001du &&
                                  __get_cpuid_count(0x8000001du, 0, &a, &b, &c, &d) && (a & 31)
                              ? 0x8000001du
                              : 4;
    for (uint32_t i = 0; i < 16; i++) {
        if (!__get_cpuid_count(leaf, i, &a, &b, &c, &d) || (a & 31) == 0)
            return;
        const int64_t bytes = ((int64_t)(b >> 22) + 1) * ((int64_t)(b >> 12 & 1023) + 1) *
                              ((int64_t)(b & 4095) + 1) * ((int64_t)c + 1);
        const uint32_t type = a & 31, level = a >> 5 & 7;
        if (type == 2)
            continue; /* instructions */
        if (level == 1)
            found->l1d = bytes;
        else if (level == 2)
            found->l2 = bytes;
        else if (level == 3)
            found->l3 = bytes;
    }
}
#else
#if defined(__wasm_relaxed_simd__)
#include <wasm_simd128.h>
#endif

static uint32_t find_bits(void)
{
#if defined(__aarch64__)
    return CMM_CPU_NEON; /* part of the architecture */
#elif defined(__wasm_relaxed_simd__)
    /* The engine chooses whether it fuses, once for all; so (1 + 2^-12) (1 - 2^-12) - 1 is asked, -2^-24 or 0. What the
     * compiler knows it would compute itself. For doubles it might choose apart. */
    volatile float e = 0x1p-12f, one = 1;
    volatile double d = 0x1p-30, unit = 1;
    const v128_t f32 = wasm_f32x4_relaxed_madd(wasm_f32x4_splat(one + e), wasm_f32x4_splat(one - e), wasm_f32x4_splat(-one));
    const v128_t f64 = wasm_f64x2_relaxed_madd(wasm_f64x2_splat(unit + d), wasm_f64x2_splat(unit - d), wasm_f64x2_splat(-unit));
    const int fuses = wasm_f32x4_extract_lane(f32, 0) == -0x1p-24f && wasm_f64x2_extract_lane(f64, 0) == -0x1p-60;
    return fuses ? CMM_CPU_WASM_FMA : 0;
#else
    return 0;
#endif
}

static void find_caches(cmm_machine *found)
{
    cmm_system_caches(&found->l1d, &found->l2, &found->l3);
}
#endif

static volatile uint64_t sum_read; /* so that memory is read */

/* The time to read memory once, a word of each cache line, or the least that it took before. */
static double reading_time(const char *memory, int64_t bytes, double before)
{
    enum { AT_ONCE = 8 * CMM_ALIGNMENT };
    const double began = cmm_system_seconds();
    uint64_t sums[8] = {0};
    for (const char *at = memory; at < memory + bytes; at += AT_ONCE)
        for (int line = 0; line < 8; line++)
            sums[line] += *(const uint64_t *)(const void *)(at + line * CMM_ALIGNMENT);
    for (int line = 0; line < 8; line++)
        sum_read = sums[line];
    const double took = cmm_system_seconds() - began;
    return took < before ? took : before;
}

/* Of L3 the size says little: on some servers it is nearly as fast as L2, on others no faster than memory, and some have
 * none. So what lies beyond L2 is read, which takes some milliseconds, and compared with what half of L2 holds. On a busy
 * machine any reading may be held up: each is short, and its least time of several counts, that of L2, where less is needed
 * for a large share of it, of many. */
int cmm_cpu_l3_is_slow(const cmm_machine *found)
{
    enum { PIECES = 4, ROUNDS = 5, TIMES = 6 };
    const int64_t within = found->l2 / 2 / 4096 * 4096, beyond = PIECES * within;
    char *const memory = cmm_aligned_alloc((size_t)beyond);
    if (!memory)
        return 0;
    memset(memory, 1, (size_t)beyond); /* pages that were never written are one page of zeros */
    double piece_time[PIECES] = {HUGE_VAL, HUGE_VAL, HUGE_VAL, HUGE_VAL}, within_time = HUGE_VAL, beyond_time = 0;
    for (int round = 0; round < ROUNDS; round++) {
        for (int piece = 0; piece < PIECES; piece++)
            piece_time[piece] = reading_time(memory + piece * within, within, piece_time[piece]);
        for (int time = 0; time < TIMES; time++) /* what was read last is in L2 */
            within_time = reading_time(memory + (PIECES - 1) * within, within, within_time);
    }
    cmm_aligned_free(memory);
    for (int piece = 0; piece < PIECES; piece++)
        beyond_time += piece_time[piece];
    return beyond_time > 3 * PIECES * within_time;
}

static cmm_machine machine;
static cmm_once machine_once = CMM_ONCE_INIT;

static void machine_find(void)
{
    machine.cpu = find_bits();
    find_caches(&machine);
    /* What a CPU does not tell is taken to be small, which costs a little speed and nothing else. */
    if (machine.l1d < 16 << 10)
        machine.l1d = 32 << 10;
    if (machine.l2 < 128 << 10)
        machine.l2 = 256 << 10;
    if (machine.l3 < machine.l2)
        machine.l3 = machine.l2;
    machine.slow_l3 = cmm_cpu_l3_is_slow(&machine);
}

const cmm_machine *cmm_cpu_machine(void)
{
    cmm_once_run(&machine_once, machine_find);
    return &machine;
}
