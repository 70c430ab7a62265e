/* Where a BLAS comes from: a shared library by path, or the one that libcmm was linked with. */
#include "cmm.h"

#include "caller.h"
#include "platform.h"
#include "validate.h"

#include <stdio.h>
#include <string.h>

/* A function pointer out of a data pointer: POSIX and Windows grant what ISO C does not. */
#define TAKE(member, symbol)                                                                                         \
    do {                                                                                                             \
        void *const found = symbol;                                                                                  \
        memcpy(&(member), &found, sizeof found);                                                                     \
    } while (0)

/* name, as the library spells it: sgemm_, sgemm, scipy_sgemm_. */
static void *find(void *library, const char *name)
{
    static const char *const spellings[] = {"%s_", "%s", "scipy_%s_"};
    for (size_t i = 0; i < sizeof spellings / sizeof *spellings; i++) {
        char symbol[64];
        (void)snprintf(symbol, sizeof symbol, spellings[i], name);
        void *const found = cmm_library_symbol(library, symbol);
        if (found)
            return found;
    }
    return NULL;
}

static void *find_first(void *library, const char *const *symbols)
{
    for (; *symbols; symbols++) {
        void *const found = cmm_library_symbol(library, *symbols);
        if (found)
            return found;
    }
    return NULL;
}

/* MKL: the sequential layer must be chosen before its first routine runs, for its default layer aborts the process
 * where the OpenMP library is missing. Only MKL's batched routines are used: OpenBLAS's gain nothing over a loop, and
 * those before 0.3.34.481 crash on small matrices. */
static int load_mkl(void *library, cmm_blas *blas)
{
    enum { MKL_THREADING_SEQUENTIAL = 1 };
    int (*set_layer)(int) = NULL;
    void (*version)(char *, int) = NULL;
    TAKE(set_layer, cmm_library_symbol(library, "MKL_Set_Threading_Layer"));
    TAKE(version, cmm_library_symbol(library, "MKL_Get_Version_String"));
    if (!set_layer)
        return 0;
    (void)set_layer(MKL_THREADING_SEQUENTIAL);
    TAKE(blas->sgemv_batch, find(library, "sgemv_batch"));
    TAKE(blas->dgemv_batch, find(library, "dgemv_batch"));
    TAKE(blas->sgemm_batch, find(library, "sgemm_batch"));
    TAKE(blas->dgemm_batch, find(library, "dgemm_batch"));
    (void)snprintf(blas->name, sizeof blas->name, "MKL");
    if (version) {
        char text[256] = "";
        version(text, (int)sizeof text - 1);
        (void)snprintf(blas->name, sizeof blas->name, "%.*s", (int)sizeof blas->name - 1, text);
    }
    return 1;
}

static void load_others(void *library, cmm_blas *blas)
{
    static const char *const set[] = {"openblas_set_num_threads", "scipy_openblas_set_num_threads",
                                      "bli_thread_set_num_threads", "flexiblas_set_num_threads", NULL};
    static const char *const get[] = {"openblas_get_num_threads", "scipy_openblas_get_num_threads",
                                      "bli_thread_get_num_threads", "flexiblas_get_num_threads", NULL};
    static const char *const config[] = {"openblas_get_config", "scipy_openblas_get_config", NULL};
    const char *(*describe)(void) = NULL;
    TAKE(blas->set_threads, find_first(library, set));
    TAKE(blas->get_threads, find_first(library, get));
    TAKE(describe, find_first(library, config));
    if (describe)
        (void)snprintf(blas->name, sizeof blas->name, "%s", describe());
    else
        (void)snprintf(blas->name, sizeof blas->name, "%s",
                       cmm_library_symbol(library, "bli_info_get_version_str") ? "BLIS" : "BLAS");
}

/* Which integers a BLAS counts in does not show in its names: an ILP64 build may call its functions sgemm_ too, and MKL
 * decides at run time. So it is asked, by a dot product of two elements whose count a BLAS with 64-bit integers reads
 * as negative: then there is nothing to do, nothing is read, and the result is 0. The same product tells a BLAS that
 * returns float as double (f2c's convention). On a big-endian machine the first half of a 64-bit count is its upper
 * one, so there is no such count, and the names have to do. */
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define COUNTS_IN_32_BITS(dot, real)                                                                                 \
    static int dot##_counts_in_32_bits(const cmm_blas *blas)                                                         \
    {                                                                                                                \
        static const int64_t count = INT64_MIN + 2, step = 1;                                                        \
        static const real x[] = {3, 5}, y[] = {7, 11};                                                               \
        int32_t n[2], one[2];                                                                                        \
        memcpy(n, &count, sizeof n);                                                                                 \
        memcpy(one, &step, sizeof one);                                                                              \
        const real product = blas->dot(n, x, one, y, one);                                                           \
        return product >= 76 && product <= 76;                                                                       \
    }
COUNTS_IN_32_BITS(sdot, float)
COUNTS_IN_32_BITS(ddot, double)
#undef COUNTS_IN_32_BITS

cmm_status cmm_blas_check(const cmm_blas *given)
{
    cmm_blas read;
    const cmm_blas *const blas = &read;
    if (!given)
        return CMM_ERROR_BLAS_NULL;
    if (!cmm_read_struct(&read, sizeof read, sizeof read, given))
        return CMM_ERROR_BLAS_SIZE;
    const cmm_caller caller = cmm_caller_enter(); /* a BLAS may make itself ready in its first call */
    const int fits = (!blas->sdot || sdot_counts_in_32_bits(blas)) && (!blas->ddot || ddot_counts_in_32_bits(blas));
    cmm_caller_leave(&caller);
    return fits ? CMM_OK : CMM_ERROR_BLAS_SYMBOLS;
}
#else
cmm_status cmm_blas_check(const cmm_blas *blas)
{
    cmm_blas read;
    if (!blas)
        return CMM_ERROR_BLAS_NULL;
    return cmm_read_struct(&read, sizeof read, sizeof read, blas) ? CMM_OK : CMM_ERROR_BLAS_SIZE;
}
#endif

static cmm_status take_all(void *library, cmm_blas *blas)
{
    memset(blas, 0, sizeof *blas);
    blas->size = sizeof *blas;
    TAKE(blas->sdot, find(library, "sdot"));
    TAKE(blas->ddot, find(library, "ddot"));
    TAKE(blas->saxpy, find(library, "saxpy"));
    TAKE(blas->daxpy, find(library, "daxpy"));
    TAKE(blas->sgemv, find(library, "sgemv"));
    TAKE(blas->dgemv, find(library, "dgemv"));
    TAKE(blas->sgemm, find(library, "sgemm"));
    TAKE(blas->dgemm, find(library, "dgemm"));
    if (!blas->sdot || !blas->ddot || !blas->saxpy || !blas->daxpy || !blas->sgemv || !blas->dgemv || !blas->sgemm ||
        !blas->dgemm)
        return CMM_ERROR_BLAS_SYMBOLS;
    if (!load_mkl(library, blas))
        load_others(library, blas);
    return cmm_blas_check(blas);
}

cmm_status cmm_blas_load(const char *file, cmm_blas *blas)
{
    if (!blas)
        return CMM_ERROR_BLAS_NULL;
    if (!file)
        return CMM_ERROR_BLAS_FILE_NULL;
    const cmm_caller caller = cmm_caller_enter(); /* a library's initialisation may do anything */
    cmm_status status = CMM_ERROR_BLAS_FILE;
    void *const library = cmm_library_open(file);
    if (library) {
        cmm_blas found;
        status = take_all(library, &found);
        if (status == CMM_OK)
            *blas = found;
        else
            cmm_library_close(library);
    }
    cmm_caller_leave(&caller);
    return status;
}

#if defined(CMM_BLAS_LINKED)
/* Declared as data to take their addresses without repeating their types; a search of the process would miss
 * libraries that are linked statically. */
#define LINKED(name) extern void name(void)
LINKED(sdot_);
LINKED(ddot_);
LINKED(saxpy_);
LINKED(daxpy_);
LINKED(sgemv_);
LINKED(dgemv_);
LINKED(sgemm_);
LINKED(dgemm_);

static cmm_blas linked;
static cmm_status linked_status;
static cmm_once linked_once = CMM_ONCE_INIT;

static void find_linked(void)
{
    linked.size = sizeof linked;
#define TAKE_LINKED(name)                                                                                            \
    do {                                                                                                             \
        void (*const found)(void) = name##_;                                                                         \
        memcpy(&linked.name, &found, sizeof found);                                                                  \
    } while (0)
    TAKE_LINKED(sdot);
    TAKE_LINKED(ddot);
    TAKE_LINKED(saxpy);
    TAKE_LINKED(daxpy);
    TAKE_LINKED(sgemv);
    TAKE_LINKED(dgemv);
    TAKE_LINKED(sgemm);
    TAKE_LINKED(dgemm);
    void *const self = cmm_library_of_process();
    if (self && !load_mkl(self, &linked))
        load_others(self, &linked);
    linked_status = cmm_blas_check(&linked);
}

cmm_status cmm_blas_linked(cmm_blas *blas)
{
    if (!blas)
        return CMM_ERROR_BLAS_NULL;
    const cmm_caller caller = cmm_caller_enter();
    cmm_once_run(&linked_once, find_linked);
    cmm_caller_leave(&caller);
    if (linked_status == CMM_OK)
        *blas = linked;
    return linked_status;
}
#else
cmm_status cmm_blas_linked(cmm_blas *blas)
{
    return blas ? CMM_ERROR_BLAS_MISSING : CMM_ERROR_BLAS_NULL;
}
#endif
