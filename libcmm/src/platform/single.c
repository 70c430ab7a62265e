/* No system at all: the C library, one thread, no libraries to load. Calls come one at a time, and in no signal handler.
 * A thread is never started, so nothing ever waits. */
#include "platform.h"

#if defined(CMM_PLATFORM_SINGLE)
#include "cmm.h"

#include <stdlib.h>

/* C11's aligned_alloc() is not in every C library. The block that malloc() gave stands before the memory. */
void *cmm_aligned_alloc(size_t bytes)
{
    const size_t more = CMM_ALIGNMENT + sizeof(void *);
    char *const block = bytes <= SIZE_MAX - more ? malloc(bytes + more) : NULL;
    if (!block)
        return NULL;
    const uintptr_t first = (uintptr_t)block + sizeof(void *);
    const size_t skipped = (CMM_ALIGNMENT - first % CMM_ALIGNMENT) % CMM_ALIGNMENT;
    void **const memory = (void **)(void *)(block + sizeof(void *) + skipped);
    memory[-1] = block;
    return memory;
}

void cmm_aligned_free(void *memory)
{
    if (memory)
        free(((void **)memory)[-1]);
}

int32_t cmm_system_cpus(const char **source)
{
    *source = "built without threads";
    return 1;
}

int32_t cmm_system_quota(void)
{
    return 0;
}

void cmm_system_caches(int64_t *l1d, int64_t *l2, int64_t *l3)
{
    (void)l1d;
    (void)l2;
    (void)l3;
}

/* ---- time ------------------------------------------------------------------------------------------------------ */

double cmm_system_seconds(void)
{
    return 0;
}

/* ---- threads --------------------------------------------------------------------------------------------------- */

void cmm_mutex_lock(cmm_mutex *mutex)
{
    mutex->state = mutex;
}

int cmm_mutex_trylock(cmm_mutex *mutex)
{
    if (mutex->state)
        return 0;
    mutex->state = mutex;
    return 1;
}

void cmm_mutex_unlock(cmm_mutex *mutex)
{
    mutex->state = NULL;
}

void cmm_mutex_reset(cmm_mutex *mutex)
{
    mutex->state = NULL;
}

void cmm_condition_wait(cmm_condition *condition, cmm_mutex *mutex)
{
    (void)condition;
    (void)mutex;
}

void cmm_condition_signal(cmm_condition *condition)
{
    (void)condition;
}

void cmm_condition_broadcast(cmm_condition *condition)
{
    (void)condition;
}

void cmm_condition_reset(cmm_condition *condition)
{
    (void)condition;
}

void cmm_once_run(cmm_once *once, void (*function)(void))
{
    if (once->state)
        return;
    once->state = once;
    function();
}

int cmm_thread_start(cmm_thread *thread, void (*work)(void *), void *argument)
{
    (void)thread;
    (void)work;
    (void)argument;
    return 0;
}

void cmm_thread_join(cmm_thread *thread)
{
    (void)thread;
}

void cmm_after_fork(void (*in_child)(void))
{
    (void)in_child;
}

/* ---- libraries ------------------------------------------------------------------------------------------------- */

void *cmm_library_open(const char *file)
{
    (void)file;
    return NULL;
}

void cmm_library_close(void *library)
{
    (void)library;
}

void *cmm_library_of_process(void)
{
    return NULL;
}

void *cmm_library_symbol(void *library, const char *name)
{
    (void)library;
    (void)name;
    return NULL;
}
#endif
