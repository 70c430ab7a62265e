/* What the tests take from the system and ISO C has not: aligned memory, libraries that are loaded at run time. */
#ifndef SYSTEM_H
#define SYSTEM_H

#include "cmm.h"

#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>

#include <malloc.h>

/* So many bytes and a little more, aligned to CMM_ALIGNMENT, or NULL. */
static inline void *aligned_new(size_t bytes)
{
    return _aligned_malloc((bytes / CMM_ALIGNMENT + 1) * CMM_ALIGNMENT, CMM_ALIGNMENT);
}

static inline void aligned_delete(void *memory)
{
    _aligned_free(memory);
}

static inline void *library_open(const char *file)
{
    return LoadLibraryA(file);
}

static inline int library_close(void *library)
{
    return FreeLibrary(library) != 0;
}

static inline void *library_symbol(void *library, const char *name)
{
    return (void *)(uintptr_t)GetProcAddress(library, name);
}

/* Whether a library is loaded already. */
static inline int library_is_loaded(const char *file)
{
    return GetModuleHandleA(file) != NULL;
}
#else
static inline void *aligned_new(size_t bytes)
{
    return aligned_alloc(CMM_ALIGNMENT, (bytes / CMM_ALIGNMENT + 1) * CMM_ALIGNMENT);
}

static inline void aligned_delete(void *memory)
{
    free(memory);
}

#if !defined(CMM_NO_THREADS)
#include <dlfcn.h>

static inline void *library_open(const char *file)
{
    return dlopen(file, RTLD_NOW | RTLD_LOCAL);
}

static inline int library_close(void *library)
{
    return dlclose(library) == 0;
}

static inline void *library_symbol(void *library, const char *name)
{
    return dlsym(library, name);
}

static inline int library_is_loaded(const char *file)
{
    void *const library = dlopen(file, RTLD_NOW | RTLD_NOLOAD);
    return library && dlclose(library) == 0;
}
#endif
#endif

#if !defined(CMM_NO_THREADS)
/* Whether the system takes a library away that was opened and closed, and of which nothing was called. musl says so of
 * none: there dlclose() leaves it where it is. Where the system is known to, a test has to check that this is true. */
static inline int library_unloads(const char *file)
{
    void *const library = library_open(file);
    return library && library_close(library) && !library_is_loaded(file);
}

#if defined(_WIN32) || defined(__GLIBC__)
#define SYSTEM_UNLOADS 1
#else
#define SYSTEM_UNLOADS 0
#endif
#endif

#endif
