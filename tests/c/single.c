/* A libcmm built with CMM_THREADS=OFF says so, computes with one thread whatever is asked for, to the same bits, and
 * loads no library. */
#include "check.h"
#include "example.h"
#include "threadpool.h"

static void check_answers(void)
{
    CHECK(cmm_threads_default() == 1, "%d threads", cmm_threads_default());
    CHECK(strcmp(cmm_threads_source(), "built without threads") == 0, "%s", cmm_threads_source());
    CHECK(strstr(cmm_build(), "-DCMM_NO_THREADS") != NULL, "%s", cmm_build());
}

static void check_file(void)
{
    cmm_blas blas, before;
    memset(&blas, 0xa5, sizeof blas);
    memcpy(&before, &blas, sizeof blas);
    const cmm_status status = cmm_blas_load("libm.so.6", &blas);
    CHECK(status == CMM_ERROR_BLAS_FILE, "%s", cmm_status_name(status));
    CHECK(strstr(cmm_status_message(status), "CMM_THREADS=OFF") != NULL, "%s", cmm_status_message(status));
    CHECK(memcmp(&blas, &before, sizeof blas) == 0, "the table was written");
}

static void check_threads(void)
{
    static const int32_t threads[] = {0, 2, 64, INT32_MAX};
    const shape s = {.depth = 5, .trees = 2, .d_in = 256, .d_out = 192, .batch = 1000, .bias = 1}; /* worth several */
    example one = example_new(s, 1), many = example_new(s, 1);
    cmm_run run = {.size = sizeof run, .threads = 1, .level = "native"};
    CHECK(cmm_threadpool_acquire(8) == 1, "more threads than there are");
    CHECK(example_run(&one, &run) == CMM_OK, "one thread");
    for (size_t i = 0; i < sizeof threads / sizeof *threads; i++) {
        run.threads = threads[i];
        CHECK(example_run(&many, &run) == CMM_OK, "%d threads", run.threads);
        CHECK(memcmp(one.y, many.y, (size_t)(s.batch * s.d_out) * sizeof(float)) == 0, "%d threads", run.threads);
    }
    example_free(&one);
    example_free(&many);
}

int main(void)
{
    check_answers();
    check_file();
    check_threads();
    return check_report();
}
