/* Windows 7 and newer: slim locks, condition variables, _beginthreadex, LoadLibrary. There is no fork, and nothing
 * cancels a thread. */
#include "platform.h"

#if defined(CMM_PLATFORM_WINDOWS)
#include "cmm.h"

#undef _WIN32_WINNT
#define _WIN32_WINNT 0x0601
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#define PSAPI_VERSION 2 /* its functions are those of kernel32.dll */
#include <windows.h>

#include <malloc.h>
#include <process.h>
#include <psapi.h>
#include <stdlib.h>
#include <string.h>

void *cmm_aligned_alloc(size_t bytes)
{
    return _aligned_malloc(bytes, CMM_ALIGNMENT);
}

void cmm_aligned_free(void *memory)
{
    _aligned_free(memory);
}

/* ---- processors ------------------------------------------------------------------------------------------------ */

/* Of the thread's processor group, which has 64 CPUs at most: the threads that it starts begin there, too. */
int32_t cmm_system_cpus(const char **source)
{
    GROUP_AFFINITY group;
    int32_t cpus = 0;
    if (GetThreadGroupAffinity(GetCurrentThread(), &group))
        for (KAFFINITY mask = group.Mask; mask != 0; mask &= mask - 1)
            cpus++;
    *source = "affinity mask";
    if (cpus > 0)
        return cpus;
    const DWORD online = GetActiveProcessorCount(ALL_PROCESSOR_GROUPS);
    *source = "processors online";
    return online > 0 ? (int32_t)online : 1;
}

int32_t cmm_system_quota(void)
{
    return 0; /* the rate control of job objects is not looked at */
}

void cmm_system_caches(int64_t *l1d, int64_t *l2, int64_t *l3)
{
    int64_t *const caches[] = {NULL, l1d, l2, l3};
    int found[4] = {0}; /* of cores that differ, the first counts */
    DWORD bytes = 0;
    (void)GetLogicalProcessorInformationEx(RelationCache, NULL, &bytes);
    char *const list = bytes > 0 ? malloc(bytes) : NULL;
    if (!list || !GetLogicalProcessorInformationEx(RelationCache, (void *)list, &bytes))
        bytes = 0;
    for (DWORD at = 0; at < bytes;) {
        const SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX *const entry = (const void *)(list + at);
        const int level = entry->Cache.Level;
        if (level >= 1 && level <= 3 && !found[level] &&
            (entry->Cache.Type == CacheData || entry->Cache.Type == CacheUnified)) {
            *caches[level] = (int64_t)entry->Cache.CacheSize;
            found[level] = 1;
        }
        at += entry->Size;
    }
    free(list);
}

/* ---- time ------------------------------------------------------------------------------------------------------ */

double cmm_system_seconds(void)
{
    LARGE_INTEGER now, in_a_second;
    return QueryPerformanceCounter(&now) && QueryPerformanceFrequency(&in_a_second)
               ? (double)now.QuadPart / (double)in_a_second.QuadPart
               : 0;
}

/* ---- threads --------------------------------------------------------------------------------------------------- */

_Static_assert(sizeof(cmm_mutex) == sizeof(SRWLOCK) && sizeof(cmm_condition) == sizeof(CONDITION_VARIABLE) &&
                   sizeof(cmm_once) == sizeof(INIT_ONCE),
               "platform.h takes each of them to be a pointer");

static SRWLOCK *lock_of(cmm_mutex *mutex)
{
    return (SRWLOCK *)&mutex->state;
}

static CONDITION_VARIABLE *variable_of(cmm_condition *condition)
{
    return (CONDITION_VARIABLE *)&condition->state;
}

void cmm_mutex_lock(cmm_mutex *mutex)
{
    AcquireSRWLockExclusive(lock_of(mutex));
}

int cmm_mutex_trylock(cmm_mutex *mutex)
{
    return TryAcquireSRWLockExclusive(lock_of(mutex)) != 0;
}

void cmm_mutex_unlock(cmm_mutex *mutex)
{
    ReleaseSRWLockExclusive(lock_of(mutex));
}

void cmm_mutex_reset(cmm_mutex *mutex)
{
    InitializeSRWLock(lock_of(mutex));
}

void cmm_condition_wait(cmm_condition *condition, cmm_mutex *mutex)
{
    (void)SleepConditionVariableSRW(variable_of(condition), lock_of(mutex), INFINITE, 0);
}

void cmm_condition_signal(cmm_condition *condition)
{
    WakeConditionVariable(variable_of(condition));
}

void cmm_condition_broadcast(cmm_condition *condition)
{
    WakeAllConditionVariable(variable_of(condition));
}

void cmm_condition_reset(cmm_condition *condition)
{
    InitializeConditionVariable(variable_of(condition));
}

static BOOL CALLBACK run_once(INIT_ONCE *once, void *function, void **context)
{
    (void)once;
    (void)context;
    (*(void (**)(void))function)();
    return TRUE;
}

void cmm_once_run(cmm_once *once, void (*function)(void))
{
    (void)InitOnceExecuteOnce((INIT_ONCE *)&once->state, run_once, &function, NULL);
}

static unsigned __stdcall run_work(void *argument)
{
    const cmm_thread *const self = argument;
    self->work(self->argument);
    return 0;
}

/* A thread cannot be ended while its module is unloaded, for both take the loader's lock. So the module whose code it
 * runs (cmm.dll, or what libcmm is linked into) stays loaded from the first thread on; the end of the process ends all. */
static int keep_this_module(void)
{
    HMODULE module;
    return GetModuleHandleExW(GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_PIN,
                              (const WCHAR *)(uintptr_t)run_work, &module) != 0;
}

int cmm_thread_start(cmm_thread *thread, void (*work)(void *), void *argument)
{
    thread->work = work;
    thread->argument = argument;
    thread->handle = keep_this_module() ? (HANDLE)_beginthreadex(NULL, 0, run_work, thread, 0, NULL) : NULL;
    return thread->handle != NULL;
}

void cmm_thread_join(cmm_thread *thread)
{
    (void)WaitForSingleObject(thread->handle, INFINITE);
    (void)CloseHandle(thread->handle);
}

void cmm_after_fork(void (*in_child)(void))
{
    (void)in_child;
}

/* ---- libraries ------------------------------------------------------------------------------------------------- */

static const char all_modules; /* its address stands for all that is loaded */

/* The path of a file in UTF-16, to be freed: whole where it is a path, and as it is where it is a name to search for. */
static WCHAR *wide_path(const char *file)
{
    const int length = MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, file, -1, NULL, 0);
    WCHAR *const name = length > 0 ? malloc((size_t)length * sizeof *name) : NULL;
    if (!name)
        return NULL;
    (void)MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, file, -1, name, length);
    if (!strpbrk(file, "/\\:"))
        return name;
    const DWORD room = GetFullPathNameW(name, 0, NULL, NULL);
    WCHAR *const path = room > 0 ? malloc(room * sizeof *path) : NULL;
    const DWORD written = path ? GetFullPathNameW(name, room, path, NULL) : 0;
    free(name);
    if (written > 0 && written < room)
        return path;
    free(path);
    return NULL;
}

void *cmm_library_open(const char *file)
{
    WCHAR *const path = wide_path(file);
    DWORD before;
    if (!path)
        return NULL;
    (void)SetThreadErrorMode(SEM_FAILCRITICALERRORS | SEM_NOOPENFILEERRORBOX, &before); /* no window that asks */
    /* A path: the libraries that it needs are searched for beside it. */
    const HMODULE library = LoadLibraryExW(path, NULL, strpbrk(file, "/\\:") ? LOAD_WITH_ALTERED_SEARCH_PATH : 0);
    (void)SetThreadErrorMode(before, NULL);
    free(path);
    return library;
}

void cmm_library_close(void *library)
{
    (void)FreeLibrary(library);
}

void *cmm_library_of_process(void)
{
    return (void *)(uintptr_t)&all_modules;
}

void *cmm_library_symbol(void *library, const char *name)
{
    HMODULE modules[1024];
    DWORD bytes = 0;
    if (library != cmm_library_of_process())
        return (void *)(uintptr_t)GetProcAddress(library, name);
    if (!EnumProcessModules(GetCurrentProcess(), modules, sizeof modules, &bytes))
        return NULL;
    for (size_t i = 0; i < sizeof modules / sizeof *modules && i < bytes / sizeof *modules; i++) {
        void *const found = (void *)(uintptr_t)GetProcAddress(modules[i], name);
        if (found)
            return found;
    }
    return NULL;
}
#endif
