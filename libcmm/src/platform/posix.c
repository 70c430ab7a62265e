/* POSIX: threads, fork, cancellation, signals; and what systems with POSIX have besides: dlopen, affinity masks. */
#define _GNU_SOURCE
#include "platform.h"

#if defined(CMM_PLATFORM_POSIX)
#include "cmm.h"

#include <dlfcn.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#if defined(__linux__)
#include <errno.h>
#include <sched.h>
#endif

void *cmm_aligned_alloc(size_t bytes)
{
    return aligned_alloc(CMM_ALIGNMENT, bytes);
}

void cmm_aligned_free(void *memory)
{
    free(memory);
}

/* ---- processors ------------------------------------------------------------------------------------------------ */

/* CPUs in the affinity mask of the calling thread, or 0 where the system does not tell. */
static int32_t affinity_cpus(void)
{
#if defined(__linux__)
    for (size_t cpus = CPU_SETSIZE; cpus <= 1 << 20; cpus *= 2) { /* the kernel refuses a mask shorter than its own */
        cpu_set_t *const set = CPU_ALLOC(cpus);
        if (!set)
            return 0;
        const int failed = sched_getaffinity(0, CPU_ALLOC_SIZE(cpus), set), too_short = failed && errno == EINVAL;
        const int count = failed ? 0 : CPU_COUNT_S(CPU_ALLOC_SIZE(cpus), set);
        CPU_FREE(set);
        if (!too_short)
            return count;
    }
#endif
    return 0;
}

int32_t cmm_system_cpus(const char **source)
{
    const int32_t cpus = affinity_cpus();
    *source = "affinity mask";
    if (cpus > 0)
        return cpus;
    const long online = sysconf(_SC_NPROCESSORS_ONLN);
    *source = "processors online";
    return online > 0 ? (int32_t)online : 1;
}

int32_t cmm_system_quota(void)
{
    return cmm_cgroup_cpus("");
}

void cmm_system_caches(int64_t *l1d, int64_t *l2, int64_t *l3)
{
#if defined(_SC_LEVEL1_DCACHE_SIZE)
    *l1d = sysconf(_SC_LEVEL1_DCACHE_SIZE);
    *l2 = sysconf(_SC_LEVEL2_CACHE_SIZE);
    *l3 = sysconf(_SC_LEVEL3_CACHE_SIZE);
#else
    (void)l1d;
    (void)l2;
    (void)l3;
#endif
}

/* ---- time ------------------------------------------------------------------------------------------------------ */

double cmm_system_seconds(void)
{
    struct timespec now;
    return clock_gettime(CLOCK_MONOTONIC, &now) == 0 ? (double)now.tv_sec + 1e-9 * (double)now.tv_nsec : 0;
}

/* ---- threads --------------------------------------------------------------------------------------------------- */

static void *run_work(void *argument)
{
    const cmm_thread *const self = argument;
    self->work(self->argument);
    return NULL;
}

int cmm_thread_start(cmm_thread *thread, void (*work)(void *), void *argument)
{
    sigset_t all, callers;
    thread->work = work;
    thread->argument = argument;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &callers); /* a new thread inherits the mask, from its first instant */
    const int started = pthread_create(&thread->handle, NULL, run_work, thread) == 0;
    (void)pthread_sigmask(SIG_SETMASK, &callers, NULL);
    return started;
}

void cmm_thread_join(cmm_thread *thread)
{
    (void)pthread_join(thread->handle, NULL);
}

void cmm_after_fork(void (*in_child)(void))
{
    (void)pthread_atfork(NULL, NULL, in_child);
}

/* ---- libraries ------------------------------------------------------------------------------------------------- */

void *cmm_library_open(const char *file)
{
    return dlopen(file, RTLD_NOW | RTLD_LOCAL);
}

void cmm_library_close(void *library)
{
    (void)dlclose(library);
}

void *cmm_library_of_process(void)
{
    return dlopen(NULL, RTLD_NOW);
}

void *cmm_library_symbol(void *library, const char *name)
{
    return dlsym(library, name);
}
#endif
