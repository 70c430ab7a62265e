/* What cmm_blas_load() finds in a library by its name. The libraries are those of names_library.c; the arguments are
 * their paths: with MKL's batched functions; four with other names of the thread functions; then, each without one of
 * the functions that a BLAS must have. */
#define _GNU_SOURCE
#include "check.h"
#include "cmm.h"
#include "system.h"

enum { THREADED = 2, INCOMPLETE = 6, END = 14 };

#define IS(member, symbol) is(&(member), sizeof(member), library, symbol)

/* Whether a member of the table is the library's function of that name. */
static int is(const void *member, size_t size, void *library, const char *symbol)
{
    void *const found = library_symbol(library, symbol);
    return found && size == sizeof found && memcmp(member, &found, size) == 0;
}

static void check_batched(const char *file)
{
    cmm_blas blas;
    CHECK(cmm_blas_load(file, &blas) == CMM_OK, "%s", file);
    void *const library = library_open(file);
    CHECK(IS(blas.sdot, "sdot") && IS(blas.ddot, "ddot") && IS(blas.saxpy, "saxpy") && IS(blas.daxpy, "daxpy"), "1");
    CHECK(IS(blas.sgemv, "sgemv") && IS(blas.dgemv, "dgemv"), "2");
    CHECK(IS(blas.sgemm, "sgemm") && IS(blas.dgemm, "dgemm"), "3");
    CHECK(IS(blas.sgemv_batch, "sgemv_batch") && IS(blas.dgemv_batch, "dgemv_batch"), "2, batched");
    CHECK(IS(blas.sgemm_batch, "sgemm_batch") && IS(blas.dgemm_batch, "dgemm_batch"), "3, batched");
}

static void check_threaded(const char *file)
{
    cmm_blas blas;
    CHECK(cmm_blas_load(file, &blas) == CMM_OK, "%s", file);
    CHECK(blas.get_threads && blas.get_threads() == 7, "%s: its thread count was 7", file);
    CHECK(blas.set_threads, "%s", file);
    if (blas.set_threads && blas.get_threads) {
        blas.set_threads(4);
        CHECK(blas.get_threads() == 4, "%s", file);
    }
}

static void check_incomplete(const char *file)
{
    cmm_blas blas, before;
    const int unloads = library_unloads(file);
    CHECK(unloads || !SYSTEM_UNLOADS, "%s: it stays", file);
    memset(&blas, 0xa5, sizeof blas);
    memcpy(&before, &blas, sizeof blas);
    CHECK(cmm_blas_load(file, &blas) == CMM_ERROR_BLAS_SYMBOLS, "%s", file);
    CHECK(memcmp(&blas, &before, sizeof blas) == 0, "%s: the table was written", file);
    CHECK(!library_is_loaded(file) || !unloads, "%s: a library that will not do is still loaded", file);
}

int main(int argc, char **argv)
{
    if (argc != END) {
        printf("usage: %s batched, 4 with threads, 8 without a function\n", argv[0]);
        return 2;
    }
    check_batched(argv[1]);
    for (int i = THREADED; i < INCOMPLETE; i++)
        check_threaded(argv[i]);
    for (int i = INCOMPLETE; i < END; i++)
        check_incomplete(argv[i]);
    return check_report();
}
