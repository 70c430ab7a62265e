/* fork() in the middle of everything: the child computes with threads of its own and ends, the parent goes on.
 *
 *     fork few    fewer forks, for an emulator, and none while others compute
 *
 * QEMU's emulation of one program has locks of its own, and a thread takes them when it comes to new code. A child that
 * is forked meanwhile finds one held by a thread that it has not, and waits in the emulator for ever; our code has no
 * part in it. So with "few" all other threads sleep when the process forks. */
#define _GNU_SOURCE
#include "check.h"
#include "example.h"
#include "reference_blas.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CHILD_SECONDS = 60 };

static int few;
static int rounds = 20;

static const shape work = {.depth = 5, .trees = 2, .d_in = 256, .d_out = 192, .batch = 1000, .bias = 1};
static example good; /* with the right results, */
static int known;    /* once they are known */
static atomic_int stop;

static int32_t blas_threads = 5;
static void set_threads(int32_t threads) { blas_threads = threads; }
static int32_t get_threads(void) { return blas_threads; }

static int is_good(const char *level, int32_t threads)
{
    cmm_blas blas = reference_blas;
    blas.set_threads = set_threads;
    blas.get_threads = get_threads;
    const size_t y_bytes = (size_t)(work.batch * work.d_out) * sizeof(float);
    float *const y = allocate(1, y_bytes);
    const cmm_run run = {.size = sizeof run, .threads = threads, .level = level, .blas = &blas};
    const int ok = cmm_fff_forward(&good.layer, &run, work.batch, good.x, y, NULL, NULL) == CMM_OK &&
                   (!known || strcmp(level, "native") != 0 || memcmp(y, good.y, y_bytes) == 0);
    free(y);
    return ok;
}

/* The threads of the pool have ended their last job before the call returns; soon they wait for the next one. */
static void let_threads_sleep(void)
{
    if (few)
        (void)usleep(100000);
}

/* In the child: calls with threads, and the end. A child that hangs is ended by its alarm. */
static void fork_once(const char *when)
{
    fflush(stdout);
    let_threads_sleep();
    const pid_t child = fork();
    if (child == 0) {
        (void)alarm(CHILD_SECONDS);
        const int ok = is_good("native", 2) && is_good("native", 4) && is_good("blas1", 2) && is_good("native", 0);
        _exit(ok ? 0 : 1);
    }
    CHECK(child > 0, "%s: fork failed", when);
    int status = 0;
    pid_t ended;
    do
        ended = waitpid(child, &status, 0);
    while (ended < 0 && errno == EINTR);
    CHECK(ended == child && WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s: the child ended with %s %d", when,
          WIFSIGNALED(status) ? "signal" : "status", WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
}

static void *compute(void *argument)
{
    (void)argument;
    while (!atomic_load(&stop))
        CHECK(is_good("native", 3), "a call beside the forks");
    return NULL;
}

static void *fork_often(void *argument)
{
    (void)argument;
    for (int i = 0; i < rounds; i++)
        fork_once("from a thread, while others compute");
    return NULL;
}

/* A child's child. */
static void check_twice(void)
{
    fflush(stdout);
    let_threads_sleep();
    const pid_t child = fork();
    if (child == 0) {
        (void)alarm(CHILD_SECONDS);
        if (!is_good("native", 2))
            _exit(1);
        let_threads_sleep();
        const pid_t grandchild = fork();
        if (grandchild == 0) {
            (void)alarm(CHILD_SECONDS);
            _exit(is_good("native", 2) ? 0 : 1);
        }
        int status = 1;
        (void)waitpid(grandchild, &status, 0);
        _exit(status == 0 && is_good("native", 2) ? 0 : 1);
    }
    int status = 1;
    CHECK(waitpid(child, &status, 0) == child && status == 0, "a child of a child: %d", status);
}

#if defined(__has_feature)
#define HAS_FEATURE(x) __has_feature(x)
#else
#define HAS_FEATURE(x) 0
#endif

#if defined(__SANITIZE_ADDRESS__) || HAS_FEATURE(address_sanitizer)
/* AddressSanitizer's own allocator does not survive this: a child finds it locked by a thread that it has not. */
static void check_while_computing(void)
{
    (void)compute;
    (void)fork_often;
    printf("AddressSanitizer: not forked while others compute\n");
}
#else
static void check_while_computing(void)
{
    pthread_t computing[2], forking;
    for (int i = 0; i < 2; i++)
        CHECK(pthread_create(&computing[i], NULL, compute, NULL) == 0, "thread");
    CHECK(pthread_create(&forking, NULL, fork_often, NULL) == 0, "thread");
    for (int i = 0; i < rounds; i++)
        fork_once("while others compute");
    pthread_join(forking, NULL);
    atomic_store(&stop, 1);
    for (int i = 0; i < 2; i++)
        pthread_join(computing[i], NULL);
}
#endif

int main(int argc, char **argv)
{
    few = argc > 1 && strcmp(argv[1], "few") == 0;
    if (few)
        rounds = 5;
    good = example_new(work, 1);
    fork_once("before the first call of the process");
    const cmm_run serial = {.size = sizeof serial, .threads = 1, .level = "native"};
    CHECK(example_run(&good, &serial) == CMM_OK, "serial");
    known = 1;
    for (int i = 0; i < rounds; i++) {
        CHECK(is_good("native", 2), "between forks");
        fork_once("between calls");
    }
    check_twice();

    if (few)
        printf("in an emulator: not forked while others compute\n");
    else
        check_while_computing();
    CHECK(is_good("native", 2), "after all forks");
    CHECK(is_good("blas1", 2) && get_threads() == 5, "the BLAS has %d threads", get_threads());
    example_free(&good);
    return check_report();
}
