/* Memory between two pages that no one may touch; in WebAssembly, which has no such pages, between two of NaN. Files that include it define _GNU_SOURCE first. */
#ifndef GUARD_H
#define GUARD_H

#include "cpu.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>
#undef far /* which it defines, as if there were still such pointers */

#include <io.h>
#include <process.h>
#elif defined(__wasm__)
#include <unistd.h>
#else
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

#ifndef BUFFERS
#define BUFFERS 7
#endif

static struct {
    char *start; /* of the pages that may be touched */
    size_t bytes;
} buffers[BUFFERS];

static char now[256]; /* what is being tried, for when it faults */

static void end_of_a_fault(void)
{
    static const char text[] = "memory outside the arrays was touched by ";
    const long long written = write(1, text, sizeof text - 1) + write(1, now, (unsigned)strlen(now)) + write(1, "\n", 1);
    _exit(written > 0 ? 3 : 4);
}

#if defined(_WIN32)
static LONG CALLBACK on_fault(EXCEPTION_POINTERS *fault)
{
    if (fault->ExceptionRecord->ExceptionCode == EXCEPTION_ACCESS_VIOLATION)
        end_of_a_fault();
    return EXCEPTION_CONTINUE_SEARCH;
}

static void catch_faults(void)
{
    (void)AddVectoredExceptionHandler(1, on_fault);
}

static size_t page_bytes(void)
{
    SYSTEM_INFO info;
    GetSystemInfo(&info);
    return info.dwPageSize;
}

/* So many bytes that may be touched, `before` bytes after the start of more that may not; whole pages. Or NULL. */
static char *part_of_memory(size_t bytes, size_t before, size_t all)
{
    DWORD old;
    char *const memory = VirtualAlloc(NULL, all, MEM_RESERVE | MEM_COMMIT, PAGE_NOACCESS);
    return memory && VirtualProtect(memory + before, bytes, PAGE_READWRITE, &old) ? memory + before : NULL;
}
#elif defined(__wasm__)
/* What is read outside of the arrays and has an effect makes NaN; what is written there is seen at the end. */
static char *guards[BUFFERS][2];

static void look_at_guards(void)
{
    for (int i = 0; i < BUFFERS; i++)
        for (int side = 0; side < 2; side++)
            for (size_t b = 0; guards[i][side] && b < 4096; b++)
                if (guards[i][side][b] != (char)0xff)
                    end_of_a_fault();
}

static void catch_faults(void)
{
    (void)atexit(look_at_guards);
}

static size_t page_bytes(void)
{
    return 4096;
}

static char *part_of_memory(size_t bytes, size_t before, size_t all)
{
    static int made;
    char *const memory = aligned_alloc(4096, all);
    if (!memory)
        return NULL;
    memset(memory, 0xff, all);
    guards[made][0] = memory;
    guards[made++][1] = memory + before + bytes;
    return memory + before;
}
#else
static void on_fault(int signal_number)
{
    (void)signal_number;
    end_of_a_fault();
}

static void catch_faults(void)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_fault;
    (void)sigaction(SIGSEGV, &action, NULL);
    (void)sigaction(SIGBUS, &action, NULL);
}

static size_t page_bytes(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

/* So many bytes that may be touched, `before` bytes after the start of more that may not; whole pages. Or NULL. */
static char *part_of_memory(size_t bytes, size_t before, size_t all)
{
    char *const memory = mmap(NULL, all, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory != MAP_FAILED && mprotect(memory + before, bytes, PROT_READ | PROT_WRITE) == 0 ? memory + before : NULL;
}
#endif

/* Memory for an array in buffer number `which`, at its upper end or its lower. */
static void *guarded(int which, int64_t elements, size_t size, int at_end)
{
    const size_t bytes = (size_t)elements * size;
    if (bytes > buffers[which].bytes) {
        printf("buffer %d is too small\n", which);
        exit(2);
    }
    return buffers[which].start + (at_end ? buffers[which].bytes - bytes : 0);
}

/* BUFFERS of them, of so many bytes; and touching the pages beside them ends the program with what was tried. */
static void make_buffers(size_t bytes)
{
    const size_t page = page_bytes();
    catch_faults();
    bytes = (bytes + page - 1) / page * page;
    for (int i = 0; i < BUFFERS; i++) {
        buffers[i].start = part_of_memory(bytes, page, bytes + 2 * page);
        buffers[i].bytes = bytes;
        if (!buffers[i].start) {
            printf("no memory\n");
            exit(2);
        }
    }
}

/* ---- an emulator that reads too much ---------------------------------------------------------------------------- */

#if defined(__x86_64__) && !defined(_WIN32)
/* A masked load touches no element that is masked off: so says the manual of AVX, and kernels rely on it. QEMU (7.2 at
 * least) loads whole vectors. A child tries it: three floats before a page that no one may touch. */
#include <immintrin.h>
#include <sys/wait.h>

__attribute__((target("avx2"))) static float load_three(const float *p)
{
    const __m256i mask = _mm256_setr_epi32(-1, -1, -1, 0, 0, 0, 0, 0);
    return _mm256_cvtss_f32(_mm256_maskload_ps(p, mask));
}

static inline int reads_masked_elements(void)
{
    if (!(cmm_cpu_machine()->cpu & CMM_CPU_AVX2))
        return 0;
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        (void)signal(SIGSEGV, SIG_DFL);
        _exit(load_three(guarded(0, 3, sizeof(float), 1)) == 0 ? 0 : 1);
    }
    int status = 1;
    return child < 0 || waitpid(child, &status, 0) != child || status != 0;
}
#else
static inline int reads_masked_elements(void)
{
    return 0;
}
#endif

#endif
