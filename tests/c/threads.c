/* Many threads call at once, each with a thread count of its own: right results, and no race (-fsanitize=thread).
 *
 *     threads few    fewer calls, for an emulator */
#define _GNU_SOURCE
#include "check.h"
#include "example.h"
#include "reference_blas.h"

#include <pthread.h>
#include <sched.h>

/* ---- a BLAS that has a thread count and can be made to wait ---------------------------------------------------- */

static atomic_int blas_threads = 7, blas_sets, blas_wrong; /* blas_wrong: calls while the count was not 1 */
static void (*on_dot)(void);                               /* what else a dot does, when set */

static void set_threads(int32_t threads)
{
    atomic_fetch_add(&blas_sets, 1);
    atomic_store(&blas_threads, threads);
}

static int32_t get_threads(void)
{
    return atomic_load(&blas_threads);
}

static float counted_sdot(const int32_t *n, const float *x, const int32_t *incx, const float *y, const int32_t *incy)
{
    if (atomic_load(&blas_threads) != 1)
        atomic_fetch_add(&blas_wrong, 1);
    if (on_dot)
        on_dot();
    return reference_sdot(n, x, incx, y, incy);
}

static cmm_blas counted_blas(void)
{
    cmm_blas blas = reference_blas;
    blas.sdot = counted_sdot;
    blas.set_threads = set_threads;
    blas.get_threads = get_threads;
    return blas;
}

/* ---- many calls at once ---------------------------------------------------------------------------------------- */

enum { CALLERS = 8 };

static int calls = 12; /* of each of them */

/* Work that the front door finds worth several threads: about 10 million flops. */
static const shape stress_shape = {.depth = 5, .trees = 2, .d_in = 256, .d_out = 192, .batch = 1000, .bias = 1};

static example stress;
static cmm_blas stress_blas;
static const char *const stress_levels[] = {"native", "blas1", "naive"};
static void *stress_results[3];

static void *caller(void *argument)
{
    const int self = (int)(intptr_t)argument;
    const size_t y_bytes = (size_t)(stress.batch * stress_shape.d_out) * sizeof(float);
    float *const y = allocate(1, y_bytes);
    for (int i = 0; i < calls; i++) {
        const int level = (self + i) % 3;
        const cmm_run run = {.size = sizeof run, .threads = (self + i) % 6, .level = stress_levels[level],
                             .blas = &stress_blas};
        memset(y, 0xff, y_bytes);
        const cmm_status status = cmm_fff_forward(&stress.layer, &run, stress.batch, stress.x, y, NULL, NULL);
        CHECK(status == CMM_OK, "%s", cmm_status_name(status));
        CHECK(memcmp(y, stress_results[level], y_bytes) == 0, "%s with %d threads", run.level, run.threads);
    }
    free(y);
    return NULL;
}

static void check_stress(void)
{
    const size_t y_bytes = (size_t)(stress_shape.batch * stress_shape.d_out) * sizeof(float);
    stress = example_new(stress_shape, 1);
    stress_blas = counted_blas();
    for (int level = 0; level < 3; level++) {
        const cmm_run run = {.size = sizeof run, .threads = 1, .level = stress_levels[level], .blas = &stress_blas};
        CHECK(example_run(&stress, &run) == CMM_OK, "%s", run.level);
        stress_results[level] = allocate(1, y_bytes);
        memcpy(stress_results[level], stress.y, y_bytes);
    }
    pthread_t threads[CALLERS];
    for (int i = 0; i < CALLERS; i++)
        CHECK(pthread_create(&threads[i], NULL, caller, (void *)(intptr_t)i) == 0, "thread %d", i);
    for (int i = 0; i < CALLERS; i++)
        pthread_join(threads[i], NULL);
    CHECK(atomic_load(&blas_wrong) == 0, "%d calls found the BLAS with other than 1 thread",
          atomic_load(&blas_wrong));
    CHECK(get_threads() == 7, "the BLAS was left with %d threads, and had 7", get_threads());
    for (int level = 0; level < 3; level++)
        free(stress_results[level]);
    example_free(&stress);
}

/* ---- the first call of a process, from many threads ------------------------------------------------------------ */

static pthread_barrier_t together;

static void *first_caller(void *argument)
{
    (void)argument;
    cmm_kernel_info info = {.size = sizeof info};
    pthread_barrier_wait(&together);
    CHECK(cmm_kernel_get(0, &info) == CMM_OK && cmm_threads_default() > 0, "first call");
    return NULL;
}

static void check_first_call(void)
{
    pthread_t threads[CALLERS];
    pthread_barrier_init(&together, NULL, CALLERS);
    for (int i = 0; i < CALLERS; i++)
        CHECK(pthread_create(&threads[i], NULL, first_caller, NULL) == 0, "thread %d", i);
    for (int i = 0; i < CALLERS; i++)
        pthread_join(threads[i], NULL);
    pthread_barrier_destroy(&together);
}

/* ---- a pool that is busy --------------------------------------------------------------------------------------- */

static example busy; /* the call that holds the pool */
static atomic_int holding, release_pool;

static void hold(void)
{
    atomic_store(&holding, 1);
    while (!atomic_load(&release_pool))
        sched_yield();
}

static void *hold_pool(void *argument)
{
    const cmm_run run = {.size = sizeof run, .threads = 2, .level = "blas1", .blas = argument};
    CHECK(cmm_fff_forward(&busy.layer, &run, busy.batch, busy.x, busy.y, NULL, NULL) == CMM_OK, "the first call");
    return NULL;
}

/* While one call holds the pool, and cannot go on, another with two threads comes to its end: alone. */
static void check_busy(void)
{
    cmm_blas blas = counted_blas();
    pthread_t holder;
    busy = example_new(stress_shape, 1);
    example e = example_new(stress_shape, 2);
    on_dot = hold;
    CHECK(pthread_create(&holder, NULL, hold_pool, &blas) == 0, "thread");
    while (!atomic_load(&holding))
        sched_yield();
    const cmm_run run = {.size = sizeof run, .threads = 2, .level = "native"};
    CHECK(example_run(&e, &run) == CMM_OK, "while the pool is busy");
    CHECK(atomic_load(&release_pool) == 0 && get_threads() == 1, "the first call is still waiting");
    atomic_store(&release_pool, 1);
    pthread_join(holder, NULL);
    on_dot = NULL;
    CHECK(get_threads() == 7, "the BLAS was left with %d threads", get_threads());
    example_free(&e);
    example_free(&busy);
}

/* ---- a call inside a call -------------------------------------------------------------------------------------- */

static example inner, inner_large;
static cmm_blas inner_blas;
static atomic_int inner_calls;

/* In the piece of one call, two more: a small one with the same BLAS, and one that would want the pool. */
static void call_again(void)
{
    static _Thread_local int inside;
    static atomic_int turn;
    if (inside || atomic_fetch_add(&turn, 1) % 5000 != 0)
        return;
    inside = 1;
    atomic_fetch_add(&inner_calls, 1);
    float y[3 * 4];
    const cmm_run run = {.size = sizeof run, .threads = 2, .level = "blas1", .blas = &inner_blas};
    CHECK(cmm_fff_forward(&inner.layer, &run, 3, inner.x, y, NULL, NULL) == CMM_OK, "the inner call");
    CHECK(memcmp(y, inner.y, sizeof y) == 0, "the inner call's result");
    CHECK(get_threads() == 1, "the inner call gave back what the outer one still needs");

    const size_t y_bytes = (size_t)(stress_shape.batch * stress_shape.d_out) * sizeof(float);
    float *const large_y = allocate(1, y_bytes);
    const cmm_run large_run = {.size = sizeof large_run, .threads = 2, .level = "native"};
    CHECK(cmm_fff_forward(&inner_large.layer, &large_run, stress_shape.batch, inner_large.x, large_y, NULL, NULL) ==
              CMM_OK,
          "the large inner call");
    CHECK(memcmp(large_y, inner_large.y, y_bytes) == 0, "the large inner call's result");
    free(large_y);
    inside = 0;
}

static void check_nested(void)
{
    cmm_blas blas = counted_blas();
    inner_blas = blas;
    inner = example_new((shape){.depth = 1, .trees = 1, .d_in = 5, .d_out = 4, .batch = 3}, 3);
    inner_large = example_new(stress_shape, 6);
    example e = example_new(stress_shape, 4);
    cmm_run run = {.size = sizeof run, .threads = 2, .level = "blas1", .blas = &blas};
    CHECK(example_run(&inner, &run) == CMM_OK, "the inner call, alone");
    CHECK(example_run(&inner_large, &(cmm_run){.size = sizeof(cmm_run), .level = "native"}) == CMM_OK,
          "the large one");
    atomic_store(&blas_sets, 0);
    on_dot = call_again;
    CHECK(example_run(&e, &run) == CMM_OK, "the outer call");
    on_dot = NULL;
    CHECK(atomic_load(&inner_calls) >= 2, "%d inner calls", atomic_load(&inner_calls));
    CHECK(atomic_load(&blas_sets) == 2 && get_threads() == 7, "the count was set %d times, and is %d",
          atomic_load(&blas_sets), get_threads());

    /* A BLAS that has one thread already is left alone; so is one with only half of the functions. */
    set_threads(1);
    atomic_store(&blas_sets, 0);
    CHECK(example_run(&inner, &run) == CMM_OK, "one thread");
    blas.get_threads = NULL;
    CHECK(example_run(&inner, &run) == CMM_OK, "no get_threads");
    CHECK(atomic_load(&blas_sets) == 0 && get_threads() == 1, "the count was set");
    example_free(&e);
    example_free(&inner);
    example_free(&inner_large);
}

/* ---- threads = 0 ----------------------------------------------------------------------------------------------- */

static void check_default(void)
{
#if defined(__linux__)
    cpu_set_t all, one;
    if (sched_getaffinity(0, sizeof all, &all) != 0)
        return;
    CHECK(cmm_threads_default() == CPU_COUNT(&all), "%d, of %d", cmm_threads_default(), CPU_COUNT(&all));
    CPU_ZERO(&one);
    for (size_t cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; cpu++)
        if (CPU_ISSET(cpu, &all))
            CPU_SET(cpu, &one);
    if (sched_setaffinity(0, sizeof one, &one) == 0) {
        CHECK(cmm_threads_default() == 1, "%d where the process may use one core", cmm_threads_default());
        CHECK(sched_setaffinity(0, sizeof all, &all) == 0, "affinity");
    }
#else
    CHECK(cmm_threads_default() >= 1, "%d", cmm_threads_default());
#endif
}

/* More threads than pieces, than cores, than the pool has: same result. */
static void check_many(void)
{
    example e = example_new(stress_shape, 5), r = example_new(stress_shape, 5);
    cmm_run run = {.size = sizeof run, .threads = 1, .level = "native"};
    CHECK(example_run(&e, &run) == CMM_OK, "one thread");
    for (int32_t threads = 2; threads > 0 && threads < INT32_MAX / 8; threads *= 7) {
        run.threads = threads;
        CHECK(example_run(&r, &run) == CMM_OK, "%d threads", threads);
        CHECK(memcmp(e.y, r.y, (size_t)(e.batch * stress_shape.d_out) * sizeof(float)) == 0, "%d threads", threads);
    }
    run.threads = INT32_MAX;
    CHECK(example_run(&r, &run) == CMM_OK, "all threads");
    example_free(&e);
    example_free(&r);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "few") == 0)
        calls = 3; /* each level once */
    check_first_call();
    check_stress();
    check_busy();
    check_nested();
    check_default();
    check_many();
    CHECK(atomic_load(&blas_wrong) == 0, "%d calls found the BLAS with other than 1 thread",
          atomic_load(&blas_wrong));
    return check_report();
}
