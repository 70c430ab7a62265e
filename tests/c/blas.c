/* Where a BLAS comes from, and what a level asks of it. The libraries are those of blas_library.c; their paths are
 * the program's arguments: underscore, plain, scipy, openblas, mkl, partial, ilp64, double. */
#define _GNU_SOURCE
#include "check.h"
#include "example.h"
#include "reference_blas.h"
#include "system.h"

static const char *const levels[] = {"blas1", "blas2", "blas3"};

/* Run at every level up to `most` with `blas`: the bits are those of the reference BLAS, which it is. */
static void check_levels(const cmm_blas *blas, int most, int32_t dtype, const char *what)
{
    const shape s = {.dtype = dtype, .depth = 4, .trees = 2, .d_in = 9, .d_out = 11, .batch = 33, .bias = 1};
    example want = example_new(s, 1), got = example_new(s, 1);
    for (int level = 0; level < most; level++) {
        cmm_run run = {.size = sizeof run, .level = levels[level], .blas = &reference_blas};
        CHECK(example_run(&want, &run) == CMM_OK, "%s", levels[level]);
        run.blas = blas;
        const cmm_status status = example_run(&got, &run);
        CHECK(status == CMM_OK, "%s, %s, f%d: %s", what, levels[level], dtype ? 64 : 32, cmm_status_name(status));
        CHECK(memcmp(want.y, got.y, (size_t)(s.batch * s.d_out) * element_size(dtype)) == 0, "%s, %s, f%d", what,
              levels[level], dtype ? 64 : 32);
        const cmm_ff dense = {.size = sizeof dense, .dtype = dtype, .neurons = want.rows, .d_in = s.d_in,
                              .d_out = s.d_out, .w_in = want.w_in, .w_out = want.w_out};
        CHECK(cmm_ff_forward(&dense, &run, s.batch, got.x, got.y) == CMM_OK, "%s, dense %s", what, levels[level]);
    }
    example_free(&want);
    example_free(&got);
}

static cmm_blas check_library(const char *file, const char *name)
{
    cmm_blas blas;
    memset(&blas, 0xff, sizeof blas);
    const cmm_status status = cmm_blas_load(file, &blas);
    CHECK(status == CMM_OK, "%s: %s", file, cmm_status_name(status));
    CHECK(blas.size == sizeof blas && blas.reserved == 0, "%s", file);
    CHECK(memchr(blas.name, 0, sizeof blas.name) != NULL, "%s: the name does not end", file);
    CHECK(strncmp(blas.name, name, strlen(name)) == 0, "%s: it is named %s", file, blas.name);
    check_levels(&blas, 3, CMM_F32, file);
    check_levels(&blas, 3, CMM_F64, file);
    return blas;
}

static void check_openblas(const char *file)
{
    const cmm_blas blas = check_library(file, "a stand-in for OpenBLAS");
    CHECK(blas.set_threads && blas.get_threads && blas.get_threads() == 3, "its thread count was 3");
    CHECK(!blas.sgemv_batch && !blas.sgemm_batch, "its batched functions are not used");
}

static void check_mkl(const char *file)
{
    const cmm_blas blas = check_library(file, "MMMM");
    CHECK(blas.sgemv_batch && !blas.dgemv_batch && !blas.sgemm_batch, "the batched functions that it has are used");
    void *const library = library_open(file);
    int (*layer)(void) = NULL;
    void *const symbol = library ? library_symbol(library, "threading_layer") : NULL;
    memcpy(&layer, &symbol, sizeof layer);
    CHECK(layer && layer() == 1, "MKL's threading layer should be the sequential one");
}

static void check_refused(const char *file, const char *what)
{
    cmm_blas blas, before;
    memset(&blas, 0xa5, sizeof blas);
    memcpy(&before, &blas, sizeof blas);
    CHECK(cmm_blas_load(file, &blas) == CMM_ERROR_BLAS_SYMBOLS, "a library %s", what);
    CHECK(memcmp(&blas, &before, sizeof blas) == 0, "the table was written");
}

/* A table filled by hand is asked, too, of what it has. */
static int64_t sdot_calls;

static float ilp64_sdot(const int32_t *n, const float *x, const int32_t *incx, const float *y, const int32_t *incy)
{
    int64_t count;
    memcpy(&count, n, sizeof count);
    sdot_calls++;
    return count < 0 ? 0 : reference_sdot(&(int32_t){2}, x, incx, y, incy);
}

static void check_tables(void)
{
    cmm_blas blas = reference_blas;
    CHECK(cmm_blas_check(&blas) == CMM_OK, "the reference");
    CHECK(cmm_blas_check(NULL) == CMM_ERROR_BLAS_NULL, "NULL");
    blas.size = 8;
    CHECK(cmm_blas_check(&blas) == CMM_ERROR_BLAS_SIZE, "size");
    blas.size = sizeof blas;
    blas.sdot = ilp64_sdot;
    CHECK(cmm_blas_check(&blas) == CMM_ERROR_BLAS_SYMBOLS && sdot_calls == 1, "64-bit integers in sdot");
    blas.sdot = NULL;
    CHECK(cmm_blas_check(&blas) == CMM_OK, "double alone");
    blas.ddot = NULL;
    CHECK(cmm_blas_check(&blas) == CMM_OK, "neither");
}

/* A level needs the functions of its own number and below, of the layer's dtype: nothing else. */
static void check_partial_tables(void)
{
    cmm_blas blas = {.size = sizeof blas, .sdot = reference_blas.sdot, .saxpy = reference_blas.saxpy};
    check_levels(&blas, 1, CMM_F32, "dot and axpy alone");
    blas.sgemv = reference_blas.sgemv;
    check_levels(&blas, 2, CMM_F32, "up to gemv");
    blas.sgemm = reference_blas.sgemm;
    check_levels(&blas, 3, CMM_F32, "float alone");
    blas = (cmm_blas){.size = sizeof blas, .ddot = reference_blas.ddot, .daxpy = reference_blas.daxpy};
    check_levels(&blas, 1, CMM_F64, "dot and axpy alone");
    blas.dgemv = reference_blas.dgemv;
    check_levels(&blas, 2, CMM_F64, "up to gemv");
    blas.dgemm = reference_blas.dgemm;
    check_levels(&blas, 3, CMM_F64, "double alone");
    check_levels(&reference_blas_batched, 3, CMM_F32, "batched");
    check_levels(&reference_blas_batched, 3, CMM_F64, "batched");
}

int main(int argc, char **argv)
{
    if (argc != 9) {
        printf("usage: %s underscore plain scipy openblas mkl partial ilp64 double\n", argv[0]);
        return 2;
    }
    for (int i = 1; i <= 3; i++)
        (void)check_library(argv[i], "BLAS");
    check_openblas(argv[4]);
    check_mkl(argv[5]);
    check_refused(argv[6], "without dgemm");
    check_refused(argv[7], "that counts in 64 bits");
    check_refused(argv[8], "that returns float as double");
    check_tables();
    check_partial_tables();
    CHECK(atomic_load(&blas_complaints) == 0, "%d calls of the BLAS with arguments it forbids",
          atomic_load(&blas_complaints));
    return check_report();
}
