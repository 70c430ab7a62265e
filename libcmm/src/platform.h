/* What libcmm takes from the system it runs on: memory, processors, threads, libraries. One file for each system defines
 * it; nothing else asks a system, or whether it is this one or that.
 *
 *     platform/posix.c      POSIX threads and dlopen: Linux (whose control groups are read in platform/cgroups.c), macOS
 *     platform/windows.c    Windows
 *     platform/single.c     CMM_NO_THREADS (CMake: CMM_THREADS=OFF): the C library alone, for WebAssembly and small systems
 *
 * All three are compiled everywhere; those of other systems are empty. */
#ifndef CMM_PLATFORM_H
#define CMM_PLATFORM_H

#include <stddef.h>
#include <stdint.h>

#if defined(CMM_NO_THREADS)
#define CMM_PLATFORM_SINGLE 1
#elif defined(_WIN32)
#define CMM_PLATFORM_WINDOWS 1
#else
#define CMM_PLATFORM_POSIX 1
#include <pthread.h>
#endif

/* ---- memory ---------------------------------------------------------------------------------------------------- */

/* So many bytes, a multiple of CMM_ALIGNMENT and aligned to it, or NULL. Only the second function gives them back. */
void *cmm_aligned_alloc(size_t bytes);
void cmm_aligned_free(void *memory);

/* ---- processors ------------------------------------------------------------------------------------------------ */

/* CPUs that the calling thread may run on, at least 1; and who said so, as cmm_threads_source() returns it. */
int32_t cmm_system_cpus(const char **source);

/* CPUs' worth of time that the process is allowed, rounded up, and 0 for no limit. Files may be read. */
int32_t cmm_system_quota(void);

/* Bytes of one core's data caches; what the system does not tell stays as it is. */
void cmm_system_caches(int64_t *l1d, int64_t *l2, int64_t *l3);

#if defined(CMM_PLATFORM_POSIX)
/* CPUs' worth of time that the control groups of this process allow it, rounded up, and 0 where they set no limit.
 * `root` is put before every path: "", or a folder with a made-up system in a test. */
int32_t cmm_cgroup_cpus(const char *root);
#endif

/* ---- time ------------------------------------------------------------------------------------------------------ */

/* Seconds since some moment, by a clock that is not set back; 0 where there is none. */
double cmm_system_seconds(void);

/* ---- threads --------------------------------------------------------------------------------------------------- */

#if defined(CMM_PLATFORM_POSIX)
typedef pthread_mutex_t cmm_mutex;
typedef pthread_cond_t cmm_condition;
typedef pthread_once_t cmm_once;
typedef pthread_t cmm_thread_handle;
#define CMM_MUTEX_INIT PTHREAD_MUTEX_INITIALIZER
#define CMM_CONDITION_INIT PTHREAD_COND_INITIALIZER
#define CMM_ONCE_INIT PTHREAD_ONCE_INIT
/* A function that runs at exit, and before the shared object that libcmm is linked into is unloaded. */
#define CMM_AT_UNLOAD __attribute__((destructor))
#else
/* Windows: SRWLOCK, CONDITION_VARIABLE, INIT_ONCE, HANDLE, which are a pointer each; windows.h stays out of our files.
 * Without threads: nothing but whether a thing was done once. */
typedef struct cmm_mutex {
    void *state;
} cmm_mutex;
typedef struct cmm_condition {
    void *state;
} cmm_condition;
typedef struct cmm_once {
    void *state;
} cmm_once;
typedef void *cmm_thread_handle;
#define CMM_MUTEX_INIT {NULL}
#define CMM_CONDITION_INIT {NULL}
#define CMM_ONCE_INIT {NULL}
/* Nothing is to be done: on Windows, a module whose threads run stays loaded (cmm_thread_start). */
#define CMM_AT_UNLOAD __attribute__((unused))
#endif

/* A mutex is unlocked by the thread that locked it. trylock returns 1 where it has locked it, else 0, also where the
 * calling thread itself has it. The reset functions are for the child of a fork, where the state may be anything. A wait
 * may end without a signal. cmm_once_run() runs the function, unless it was run with this value, and returns when it has
 * returned. Between cmm_cancel_disable() and restore, which takes what it returned, the calling thread is not cancelled
 * (pthread_cancel).
 *
 * Every call of libcmm goes through some of these: they are those of POSIX, and not functions around them. */
#if defined(CMM_PLATFORM_POSIX)
static inline void cmm_mutex_lock(cmm_mutex *mutex)
{
    (void)pthread_mutex_lock(mutex);
}

static inline int cmm_mutex_trylock(cmm_mutex *mutex)
{
    return pthread_mutex_trylock(mutex) == 0;
}

static inline void cmm_mutex_unlock(cmm_mutex *mutex)
{
    (void)pthread_mutex_unlock(mutex);
}

static inline void cmm_mutex_reset(cmm_mutex *mutex)
{
    (void)pthread_mutex_init(mutex, NULL);
}

static inline void cmm_condition_wait(cmm_condition *condition, cmm_mutex *mutex)
{
    (void)pthread_cond_wait(condition, mutex);
}

static inline void cmm_condition_signal(cmm_condition *condition)
{
    (void)pthread_cond_signal(condition);
}

static inline void cmm_condition_broadcast(cmm_condition *condition)
{
    (void)pthread_cond_broadcast(condition);
}

static inline void cmm_condition_reset(cmm_condition *condition)
{
    (void)pthread_cond_init(condition, NULL);
}

static inline void cmm_once_run(cmm_once *once, void (*function)(void))
{
    (void)pthread_once(once, function);
}

static inline int cmm_cancel_disable(void)
{
    int before;
    (void)pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before);
    return before;
}

static inline void cmm_cancel_restore(int before)
{
    (void)pthread_setcancelstate(before, NULL);
}
#else
void cmm_mutex_lock(cmm_mutex *mutex);
int cmm_mutex_trylock(cmm_mutex *mutex);
void cmm_mutex_unlock(cmm_mutex *mutex);
void cmm_mutex_reset(cmm_mutex *mutex);
void cmm_condition_wait(cmm_condition *condition, cmm_mutex *mutex);
void cmm_condition_signal(cmm_condition *condition);
void cmm_condition_broadcast(cmm_condition *condition);
void cmm_condition_reset(cmm_condition *condition);
void cmm_once_run(cmm_once *once, void (*function)(void));
static inline int cmm_cancel_disable(void)
{
    return 0;
}

static inline void cmm_cancel_restore(int before)
{
    (void)before;
}
#endif

/* Start a thread that runs work(argument). Returns 1, or 0 where there is none to be had. It takes nothing from the
 * program: where there are signals it blocks them all, from its first instant. *thread stays where it is until it is
 * joined. */
typedef struct cmm_thread {
    cmm_thread_handle handle;
    void (*work)(void *);
    void *argument;
} cmm_thread;
int cmm_thread_start(cmm_thread *thread, void (*work)(void *), void *argument);
void cmm_thread_join(cmm_thread *thread);

/* From now on run the function in every child of a fork, before fork() returns there. Call it once. */
void cmm_after_fork(void (*in_child)(void));

/* ---- libraries ------------------------------------------------------------------------------------------------- */

/* Whether there are any to be loaded. */
#if defined(CMM_PLATFORM_SINGLE)
#define CMM_LOADS_LIBRARIES 0
#else
#define CMM_LOADS_LIBRARIES 1
#endif

/* Load a shared library for its symbols alone. NULL where that fails. */
void *cmm_library_open(const char *file);
void cmm_library_close(void *library);

/* All that is loaded into this process; not to be closed. NULL where the system cannot look into that. */
void *cmm_library_of_process(void);

/* The address of a function, or NULL. */
void *cmm_library_symbol(void *library, const char *name);

#endif
