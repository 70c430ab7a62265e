/* What libcmm found out about this CPU is what the operating system says of it: an instruction set that is there and
 * not found costs speed in silence. Where Linux does not say, or the program runs in an emulator whose CPU is another
 * one than the system's, there is nothing to compare with. */
#include "check.h"
#include "cpu.h"
#include "platform.h"

#include <stdlib.h>
#include <string.h>

#if defined(__linux__) && defined(__x86_64__)
#include <cpuid.h>

/* The rest of the first line of a file that starts with `name`, or "". */
static const char *line_of(const char *file, const char *name, char *line, int size)
{
    FILE *const opened = fopen(file, "r");
    while (opened && fgets(line, size, opened))
        if (strncmp(line, name, strlen(name)) == 0) {
            fclose(opened);
            line[strcspn(line, "\n")] = ' ';
            return line + strlen(name);
        }
    if (opened)
        fclose(opened);
    return "";
}

static int is_this_cpu(void)
{
    char line[256];
    unsigned brand[13] = {0};
    for (unsigned i = 0; i < 3; i++)
        if (!__get_cpuid(0x80000002u + i, &brand[4 * i], &brand[4 * i + 1], &brand[4 * i + 2], &brand[4 * i + 3]))
            return 0;
    const char *first = (const char *)brand, *listed = line_of("/proc/cpuinfo", "model name\t: ", line, sizeof line);
    while (*first == ' ')
        first++;
    size_t length = strlen(first);
    while (length > 0 && first[length - 1] == ' ')
        length--;
    return length > 0 && strncmp(listed, first, length) == 0;
}

static int has(const char *flags, const char *flag)
{
    char word[32];
    (void)snprintf(word, sizeof word, " %s ", flag);
    return strstr(flags, word) != NULL;
}

static void check_instructions(const cmm_machine *found)
{
    static char line[1 << 14];
    const char *const flags = line_of("/proc/cpuinfo", "flags\t\t:", line, sizeof line);
    const int avx2 = has(flags, "avx2") && has(flags, "fma");
    const int avx512 = avx2 && has(flags, "avx512f") && has(flags, "avx512bw") && has(flags, "avx512dq") &&
                       has(flags, "avx512vl");
    CHECK(flags[0] != 0, "no flags");
    CHECK(((found->cpu & CMM_CPU_AVX2) != 0) == avx2, "AVX2: %d", avx2);
    CHECK(((found->cpu & CMM_CPU_AVX512) != 0) == avx512, "AVX-512: %d", avx512);
    CHECK((found->cpu & CMM_CPU_NEON) == 0, "NEON");
}

/* Of cores that differ, any may be the one that was asked. */
static void check_caches(const cmm_machine *found)
{
    static const char *const names[] = {"level", "type", "size"};
    const int64_t here[] = {0, found->l1d, found->l2, found->l3};
    int listed[4] = {0}, agree[4] = {0};
    for (int cpu = 0; cpu < 1024; cpu++)
        for (int index = 0; index < 8; index++) {
            char texts[3][80];
            for (int i = 0; i < 3; i++) {
                char file[96], line[80];
                (void)snprintf(file, sizeof file, "/sys/devices/system/cpu/cpu%d/cache/index%d/%s", cpu, index, names[i]);
                (void)snprintf(texts[i], sizeof texts[i], "%s", line_of(file, "", line, sizeof line));
            }
            const int level = atoi(texts[0]);
            if (level < 1 || level > 3 || strncmp(texts[1], "Instruction", 11) == 0)
                continue;
            listed[level] = 1;
            agree[level] |= here[level] == (int64_t)atoll(texts[2]) << (strchr(texts[2], 'K') ? 10 : 0);
        }
    for (int level = 1; level <= 3; level++)
        CHECK(!listed[level] || agree[level], "level %d: %lld bytes", level, (long long)here[level]);
}
#endif

int main(void)
{
    const cmm_machine *const found = cmm_cpu_machine();
    CHECK(found->l1d >= 16 << 10 && found->l2 >= 128 << 10 && found->l3 >= found->l2, "no caches");
    CHECK(found->slow_l3 == 0 || found->slow_l3 == 1, "L3: %d", found->slow_l3);
    cmm_machine within_l2 = *found; /* all that is read lies in L2, so no part of it can take 3 times as long */
    within_l2.l2 = found->l2 / 4;
    within_l2.l3 = found->l2 * 4;
    int fast = found->l2 / 8 <= found->l1d; /* but what L1 holds may */
    for (int attempt = 0; attempt < 20 && !fast; attempt++) /* on a busy machine anything may take long */
        fast = !cmm_cpu_l3_is_slow(&within_l2);
    CHECK(fast, "L2 is slower than itself");
    const double began = cmm_system_seconds();
    const int slow = cmm_cpu_l3_is_slow(found);
    printf("L2 %lld KB, L3 %lld KB, slow: %d, which took %.1f ms\n", (long long)(found->l2 >> 10),
           (long long)(found->l3 >> 10), slow, 1e3 * (cmm_system_seconds() - began));
#if defined(__linux__) && defined(__x86_64__)
    if (is_this_cpu()) {
        check_instructions(found);
        check_caches(found);
    } else {
        printf("this CPU is not the one that Linux describes: nothing to compare with\n");
    }
#endif
    return check_report();
}
