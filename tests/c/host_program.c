/* Whatever program libcmm lives in: signals that it waits for, threads that it cancels, a floating-point environment of
 * its own, limits on its threads, forks. A call leaves all of that as it was, and computes the same bits.
 *
 * With the argument "few", for emulators: less of the same, and no threads in a forked child, which QEMU 7.2 does not
 * always survive; what would run there runs in this process. */
#define _GNU_SOURCE
#include "check.h"
#include "example.h"
#include "platform.h"
#include "reference_blas.h"

#include <fenv.h>
#include <pthread.h>
#include <sched.h>
#include <time.h>
#if defined(CMM_PLATFORM_POSIX)
#include <errno.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#else
#include <process.h>
#endif
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

/* Work that is worth several threads: about 10 million flops, and 4 for "few". */
static shape worth = {.depth = 5, .trees = 2, .d_in = 256, .d_out = 192, .batch = 1000, .bias = 1};

/* ---- what the linker puts in the place of libcmm's (--wrap) ------------------------------------------------------- */

static atomic_int refuse_threads;  /* cmm_thread_start() fails */
static atomic_llong allocated;     /* bytes that cmm_aligned_alloc() gave */

int __real_cmm_thread_start(cmm_thread *thread, void (*work)(void *), void *argument);
int __wrap_cmm_thread_start(cmm_thread *thread, void (*work)(void *), void *argument);
int __wrap_cmm_thread_start(cmm_thread *thread, void (*work)(void *), void *argument)
{
    return atomic_load(&refuse_threads) ? 0 : __real_cmm_thread_start(thread, work, argument);
}

void *__real_cmm_aligned_alloc(size_t bytes);
void *__wrap_cmm_aligned_alloc(size_t bytes);
void *__wrap_cmm_aligned_alloc(size_t bytes)
{
    atomic_fetch_add(&allocated, (long long)bytes);
    return __real_cmm_aligned_alloc(bytes);
}

/* ---- a BLAS that tells which threads work, has a thread count, and can be made to wait --------------------------- */

enum { THREADS_SEEN = 512 };

static pthread_t seen[THREADS_SEEN];
static atomic_int seen_count;
static pthread_mutex_t seen_lock = PTHREAD_MUTEX_INITIALIZER;
static void (*on_dot)(void);
static atomic_int blas_threads = 7;

static void see_this_thread(void)
{
    pthread_mutex_lock(&seen_lock);
    int i = 0;
    while (i < atomic_load(&seen_count) && !pthread_equal(seen[i], pthread_self()))
        i++;
    if (i == atomic_load(&seen_count) && i < THREADS_SEEN) {
        seen[i] = pthread_self();
        atomic_fetch_add(&seen_count, 1);
    }
    pthread_mutex_unlock(&seen_lock);
}

static float seeing_sdot(const int32_t *n, const float *x, const int32_t *incx, const float *y, const int32_t *incy)
{
    if (on_dot)
        on_dot();
    return reference_sdot(n, x, incx, y, incy);
}

static void set_threads(int32_t threads) { atomic_store(&blas_threads, threads); }
static int32_t get_threads(void) { return atomic_load(&blas_threads); }

static cmm_blas seeing_blas(void)
{
    cmm_blas blas = reference_blas;
    blas.sdot = seeing_sdot;
    blas.set_threads = set_threads;
    blas.get_threads = get_threads;
    return blas;
}

static atomic_int call; /* counts the calls of threads_of_a_call */

/* Wait for the others a while, once in a call, so that each of several threads gets a piece. */
static void see_and_wait(void)
{
    static _Thread_local int waited;
    see_this_thread();
    for (int i = 0; waited != atomic_load(&call) && i < 500 && atomic_load(&seen_count) < 2; i++)
        (void)nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    waited = atomic_load(&call);
}

/* How many threads a call with this many really uses (2 stands for 2 and more); each product of the BLAS does `also`. */
static int threads_of_a_call_with(int32_t threads, void (*also)(void))
{
    example e = example_new(worth, 1);
    const cmm_blas blas = seeing_blas();
    const cmm_run run = {.size = sizeof run, .threads = threads, .level = "blas1", .blas = &blas};
    atomic_store(&seen_count, 0);
    atomic_fetch_add(&call, 1);
    on_dot = also;
    CHECK(example_run(&e, &run) == CMM_OK, "a call with %d threads", threads);
    on_dot = NULL;
    example_free(&e);
    return atomic_load(&seen_count);
}

static int few;

#if defined(CMM_PLATFORM_POSIX)
static int blas_is_back(int argument)
{
    (void)argument;
    return get_threads() == 7 ? 0 : 10 + get_threads();
}
#endif

static int threads_of_a_call(int32_t threads)
{
    return threads_of_a_call_with(threads, see_and_wait);
}

/* ---- a process of its own ------------------------------------------------------------------------------------------ */

/* Do the work in a child, which has no thread of the pool yet, and ends with what it returns: 0 is well. Windows has no
 * fork; there the child is this program anew, and main() finds the work by its place in the list. */
#if defined(CMM_PLATFORM_POSIX)
static void in_a_child(int (*work)(int), int argument, const char *what)
{
    fflush(stdout);
    if (few && work != blas_is_back) {
        const int result = work(argument);
        CHECK(result == 0, "%s %d: %d", what, argument, result);
        return;
    }
    const pid_t child = fork();
    if (child == 0) {
        (void)alarm(120);
        _exit(work(argument));
    }
    int status = 0;
    pid_t ended;
    do
        ended = waitpid(child, &status, 0);
    while (ended < 0 && errno == EINTR);
    CHECK(child > 0 && ended == child && WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s %d: %s %d", what, argument,
          WIFSIGNALED(status) ? "died of signal" : "ended with",
          WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
}
#else
static int no_threads_to_be_had(int), started_by_a_flushing_caller(int);
static int (*const works[])(int) = {no_threads_to_be_had, started_by_a_flushing_caller};
static const char *program;

static void in_a_child(int (*work)(int), int argument, const char *what)
{
    char which[16], with[16];
    int i = 0;
    while (works[i] != work)
        i++;
    (void)snprintf(which, sizeof which, "%d", i);
    (void)snprintf(with, sizeof with, "%d", argument);
    fflush(stdout);
    const intptr_t status = _spawnl(_P_WAIT, program, program, few ? "few" : "all", which, with, NULL);
    CHECK(status == 0, "%s %d: ended with %lld", what, argument, (long long)status);
}
#endif

/* ---- the floating-point environment -------------------------------------------------------------------------------- */

#if defined(__SSE2__)
static unsigned int environment(void) { return _mm_getcsr(); }
static void set_environment(unsigned int e) { _mm_setcsr(e); }

/* Flush to zero, subnormals are zero, both; rounding down, up, to zero; some with flags raised; no exception masked. */
static const unsigned int environments[] = {0x1f80 | 0x8000, 0x1f80 | 0x40,          0x1f80 | 0x8040, 0x1f80 | 0x2000,
                                            0x1f80 | 0x4000, 0x1f80 | 0x6000 | 0x3f, 0x0000,          0x1f80 | 0x21};
static const unsigned int default_environment = 0x1f80;
#else
static unsigned int environment(void) { return (unsigned int)fegetround(); }
static void set_environment(unsigned int e) { (void)fesetround((int)e); }
static const unsigned int environments[] = {FE_DOWNWARD, FE_UPWARD, FE_TOWARDZERO};
static const unsigned int default_environment = FE_TONEAREST;
#endif

/* Tokens of which half are subnormal, so that their logits are too. */
static example with_subnormals(int32_t dtype)
{
    shape s = worth;
    s.dtype = dtype;
    s.activation = CMM_IDENTITY;
    s.bias = 0;
    example e = example_new(s, 9);
    for (int64_t i = 0; i < s.batch * s.d_in; i++)
        if (i / s.d_in % 2)
            put(dtype, e.x, i, get(dtype, e.x, i) * (dtype == CMM_F32 ? 0x1p-130 : 0x1p-1030));
    return e;
}

static void check_environment(int32_t dtype, const char *level, const char *algorithm)
{
    example want = with_subnormals(dtype), got = with_subnormals(dtype);
    cmm_run run = {.size = sizeof run, .threads = 1, .level = level, .algorithm = algorithm};
    const size_t y = (size_t)(want.batch * worth.d_out), path = (size_t)(want.batch * want.steps);
    CHECK(example_run(&want, &run) == CMM_OK, "%s", level);
    for (size_t i = 0; i < (few ? 1 : sizeof environments / sizeof *environments); i++)
        for (run.threads = 1; run.threads <= (few ? 2 : 4); run.threads++) {
            set_environment(environments[i]);
            const cmm_status status = example_run(&got, &run);
            const unsigned int after = environment();
            set_environment(default_environment);
            CHECK(status == CMM_OK, "%s", cmm_status_name(status));
            CHECK(after == environments[i], "%x became %x", environments[i], after);
            CHECK(memcmp(want.nodes, got.nodes, path * sizeof *want.nodes) == 0 &&
                      memcmp(want.logits, got.logits, path * element_size(dtype)) == 0 &&
                      memcmp(want.y, got.y, y * element_size(dtype)) == 0,
                  "f%d, %s %s, environment %x, %d threads: other bits", dtype ? 64 : 32, level, algorithm ? algorithm : "",
                  environments[i], run.threads);
        }
    example_free(&want);
    example_free(&got);
}

static void change_environment(void)
{
    see_and_wait();
    set_environment(environments[0]);
}

/* ... and a BLAS that leaves the threads which call it another one. */
static void check_changing_blas(void)
{
    CHECK(threads_of_a_call_with(2, change_environment) == 2, "two threads");
    CHECK(environment() == default_environment, "%x is left to the caller", environment());
    check_environment(CMM_F32, "native", "grouped");
}

/* ... and threads that were started by a caller with an environment of its own. */
static int started_by_a_flushing_caller(int threads)
{
    set_environment(environments[0]);
    const int used = threads_of_a_call(threads);
    set_environment(default_environment);
    check_environment(CMM_F32, "native", "grouped");
    return used < 2 || check_report();
}

/* ---- limits -------------------------------------------------------------------------------------------------------- */

/* Scratch memory is for the threads that take part, not for those asked for; it is given back. The arrays are the same
 * in all calls: how much is taken depends on whether they begin at cache lines, and where malloc() puts them does on the C
 * library. */
static long long scratch_bytes(int32_t threads)
{
    static example e, want;
    shape s = worth;
    s.batch = 3000;
    if (!e.x) {
        e = example_new(s, 5);
        want = example_new(s, 5);
    }
    memset(e.y, 0xff, (size_t)(s.batch * s.d_out) * sizeof(float));
    cmm_run run = {.size = sizeof run, .threads = threads, .level = "native", .algorithm = "grouped"};
    atomic_store(&allocated, 0);
    CHECK(example_run(&e, &run) == CMM_OK, "%d threads", threads);
    const long long bytes = atomic_load(&allocated);
    run.threads = 1;
    CHECK(example_run(&want, &run) == CMM_OK, "one thread");
    CHECK(memcmp(e.y, want.y, (size_t)(s.batch * s.d_out) * sizeof(float)) == 0, "%d threads: other bits", threads);
    return bytes;
}

static int no_threads_to_be_had(int argument)
{
    (void)argument;
    (void)scratch_bytes(1); /* a process's first call has memory of its own to read (cmm_cpu_l3_is_slow) */
    const long long one = scratch_bytes(1);
    atomic_store(&refuse_threads, 1);
    const long long many = scratch_bytes(64);
    const int used = threads_of_a_call(4);
    atomic_store(&refuse_threads, 0);
    const int later = threads_of_a_call(2); /* and when they can be had again, they are */
    return one <= 0 ? 1 : many != one ? 2 : used != 1 ? 3 : later != 2 ? 4 : check_report();
}

static void check_limits(void)
{
    in_a_child(no_threads_to_be_had, 0, "a process that can start no thread");
    const long long one = scratch_bytes(1), all = scratch_bytes(INT32_MAX);
    CHECK(one > 0 && all <= 256 * one, "%lld bytes of scratch, and %lld for one thread", all, one);
}

#if defined(CMM_PLATFORM_POSIX)

/* ---- signals ------------------------------------------------------------------------------------------------------ */

/* A program blocks a signal in all of its threads, and waits for it. A thread that did not block it would get it, and
 * the signal's default action ends the process. */
static int wait_for_signal(int signal_number)
{
    sigset_t wanted, before, after;
    const int threads = threads_of_a_call(4);
    (void)sigemptyset(&wanted);
    (void)sigaddset(&wanted, signal_number);
    (void)pthread_sigmask(SIG_BLOCK, &wanted, &before);
    (void)kill(getpid(), signal_number);
    (void)nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
    const int got = sigtimedwait(&wanted, NULL, &(struct timespec){.tv_sec = 5});
    (void)threads_of_a_call(4);
    (void)pthread_sigmask(SIG_BLOCK, NULL, &after);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    return threads < 2 ? 1 : got != signal_number ? 2 : sigismember(&after, signal_number) != 1 ? 3 : 0;
}

static void check_signals(void)
{
    static const int signals[] = {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2, SIGALRM, SIGPIPE, SIGQUIT, SIGPROF};
    for (size_t i = 0; i < (few ? 1 : sizeof signals / sizeof *signals); i++)
        in_a_child(wait_for_signal, signals[i], "a process that waits for signal");
}

/* The caller's own mask is as it was, also in the call that starts the threads. */
static int mask_is_kept(int argument)
{
    sigset_t mask, before, after;
    (void)argument;
    (void)sigemptyset(&mask);
    (void)sigaddset(&mask, SIGUSR1);
    (void)pthread_sigmask(SIG_SETMASK, &mask, &before);
    (void)threads_of_a_call(3);
    (void)pthread_sigmask(SIG_SETMASK, &before, &after);
    for (int s = 1; s < 32; s++)
        if (sigismember(&after, s) != (s == SIGUSR1))
            return s;
    return 0;
}

/* ---- cancellation -------------------------------------------------------------------------------------------------- */

static atomic_int inside, go_on, finished;
static int cancel_type;

static void wait_inside(void)
{
    atomic_store(&inside, 1);
    while (!atomic_load(&go_on))
        (void)sched_yield();
}

static void *cancelled_caller(void *argument)
{
    int old;
    const cmm_blas blas = seeing_blas();
    const cmm_run run = {.size = sizeof run, .threads = 2, .level = "blas1", .blas = &blas};
    example *const e = argument;
    (void)pthread_setcanceltype(cancel_type, &old);
    if (cmm_fff_forward(&e->layer, &run, e->batch, e->x, e->y, NULL, NULL) == CMM_OK)
        atomic_store(&finished, 1);
    for (;;)
        pthread_testcancel();
    return NULL;
}

/* A thread that is cancelled while it waits for the pool ends its call first: the pool stays whole. Where it may be
 * cancelled at any instant (asynchronously), that is the one in which the call has put everything back. */
static void check_cancel(int type)
{
    example e = example_new(worth, 4);
    pthread_t thread;
    cancel_type = type;
    atomic_store(&inside, 0);
    atomic_store(&go_on, 0);
    atomic_store(&finished, 0);
    on_dot = wait_inside;
    CHECK(pthread_create(&thread, NULL, cancelled_caller, &e) == 0, "thread");
    while (!atomic_load(&inside))
        (void)sched_yield();
    CHECK(pthread_cancel(thread) == 0, "cancel");
    (void)nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    atomic_store(&go_on, 1);
    CHECK(pthread_join(thread, NULL) == 0, "join");
    on_dot = NULL;
    CHECK(atomic_load(&finished) == 1 || type == PTHREAD_CANCEL_ASYNCHRONOUS, "the call was cut short");
    CHECK(get_threads() == 7, "the BLAS was left with %d threads", get_threads());
    CHECK(threads_of_a_call(2) == 2, "no thread but the caller's works after a cancelled call");
    example_free(&e);
}

/* Calls that read files, with a cancellation pending: they return, and it takes effect after. */
static void *pending(void *argument)
{
    cmm_blas blas;
    (void)pthread_cancel(pthread_self());
    (void)cmm_threads_default();
    (void)cmm_blas_load("libcmm-no-such-file.so", &blas);
    (void)cmm_blas_linked(&blas);
    *(int *)argument = 1;
    pthread_testcancel();
    return NULL;
}

static void check_pending(void)
{
    pthread_t thread;
    int reached = 0;
    void *result = NULL;
    CHECK(pthread_create(&thread, NULL, pending, &reached) == 0 && pthread_join(thread, &result) == 0, "thread");
    CHECK(reached == 1 && result == PTHREAD_CANCELED, "a call was a cancellation point");
}

/* ---- fork ---------------------------------------------------------------------------------------------------------- */

/* A child that is forked while another thread has borrowed the BLAS's threads has them back from its first moment. */
static void check_fork(void)
{
    example e = example_new(worth, 6);
    pthread_t thread;
    cancel_type = PTHREAD_CANCEL_DEFERRED;
    atomic_store(&inside, 0);
    atomic_store(&go_on, 0);
    on_dot = wait_inside;
    CHECK(pthread_create(&thread, NULL, cancelled_caller, &e) == 0, "thread");
    while (!atomic_load(&inside))
        (void)sched_yield();
    CHECK(get_threads() == 1, "the BLAS has %d threads during a call", get_threads());
    in_a_child(blas_is_back, 0, "a child forked during a call of the BLAS");
    atomic_store(&go_on, 1);
    (void)pthread_cancel(thread);
    (void)pthread_join(thread, NULL);
    on_dot = NULL;
    CHECK(get_threads() == 7, "the BLAS was left with %d threads", get_threads());
    example_free(&e);
}

/* ---- CPU quotas of control groups, in a made-up system -------------------------------------------------------------- */

static char root[256];

static void put_file(const char *path, const char *text)
{
    char name[1024];
    (void)snprintf(name, sizeof name, "%s%s", root, path);
    for (char *slash = name + strlen(root) + 1; (slash = strchr(slash, '/')) != NULL; *slash++ = '/') {
        *slash = '\0';
        (void)mkdir(name, 0700);
    }
    FILE *const file = fopen(name, "w");
    CHECK(file != NULL, "%s", name);
    if (file) {
        (void)fputs(text, file);
        (void)fclose(file);
    }
}

#define V2 "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
#define V1 "33 32 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"

static void check_quota_is(int32_t want, const char *what)
{
    const int32_t got = cmm_cgroup_cpus(root);
    CHECK(got == want, "%s: %d, not %d", what, got, want);
}

static void check_quotas(void)
{
    (void)snprintf(root, sizeof root, "%s/cmm-cgroups-XXXXXX", P_tmpdir);
    if (!mkdtemp(root)) {
        CHECK(0, "mkdtemp");
        return;
    }
    check_quota_is(0, "a system without /proc");
    put_file("/proc/self/mountinfo", "25 30 0:23 / /sys rw - sysfs sysfs rw\n" V2);
    check_quota_is(0, "no file of the process's group");
    put_file("/proc/self/cgroup", "0::/a.slice/b.scope\n");
    check_quota_is(0, "no file of limits");
    put_file("/sys/fs/cgroup/a.slice/b.scope/cpu.max", "max 100000\n");
    check_quota_is(0, "max");
    put_file("/sys/fs/cgroup/a.slice/b.scope/cpu.max", "300000 100000\n");
    check_quota_is(3, "three CPUs");
    put_file("/sys/fs/cgroup/a.slice/b.scope/cpu.max", "250001 100000\n");
    check_quota_is(3, "two and a half are rounded up");
    put_file("/sys/fs/cgroup/a.slice/b.scope/cpu.max", "1000 100000\n");
    check_quota_is(1, "a hundredth of one");
    put_file("/sys/fs/cgroup/a.slice/b.scope/cpu.max", "nonsense\n");
    check_quota_is(0, "a file with something else");
    put_file("/sys/fs/cgroup/a.slice/b.scope/cpu.max", "900000 100000\n");
    put_file("/sys/fs/cgroup/a.slice/cpu.max", "400000 100000\n");
    check_quota_is(4, "a group that this one is in allows less");
    put_file("/sys/fs/cgroup/cpu.max", "200000 100000\n");
    check_quota_is(2, "the hierarchy's top allows less yet");
    put_file("/sys/fs/cgroup/cpu.max", "9223372036854775807 1\n");
    check_quota_is(4, "a quota of more than an int");
    put_file("/proc/self/cgroup", "0::/\n");
    put_file("/sys/fs/cgroup/cpu.max", "500000 100000\n");
    check_quota_is(5, "in a namespace of its own");
    put_file("/proc/self/cgroup", "0::/../elsewhere\n");
    check_quota_is(5, "a path out of the namespace");

    put_file("/proc/self/mountinfo", V1 "34 32 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n");
    put_file("/proc/self/cgroup", "5:cpuset:/wrong\n4:cpu,cpuacct:/docker/1\n0::/\n");
    put_file("/sys/fs/cgroup/cpu,cpuacct/docker/1/cpu.cfs_quota_us", "-1\n");
    put_file("/sys/fs/cgroup/cpu,cpuacct/docker/1/cpu.cfs_period_us", "100000\n");
    check_quota_is(0, "version 1, no limit");
    put_file("/sys/fs/cgroup/cpu,cpuacct/docker/1/cpu.cfs_quota_us", "150000\n");
    check_quota_is(2, "version 1, one and a half");
    put_file("/proc/self/mountinfo", "33 32 0:29 /docker/1 /sys/fs/cgroup/my\\040cpu rw - cgroup cgroup rw,cpu\n");
    put_file("/sys/fs/cgroup/my cpu/cpu.cfs_quota_us", "600000\n");
    put_file("/sys/fs/cgroup/my cpu/cpu.cfs_period_us", "100000\n");
    check_quota_is(6, "a container that sees its own part of the host's hierarchy, in a folder with a space");
    put_file("/proc/self/mountinfo", "33 32 0:29 /docker/1 /sys/fs/cgroup/my\\040cpu rw - cgroup cgroup rw,cpu\n" V2);
    check_quota_is(5, "both versions: the smaller");

    char command[300];
    (void)snprintf(command, sizeof command, "rm -r %s", root);
    CHECK(system(command) == 0, "%s", command);
}

#endif

int main(int argc, char **argv)
{
    few = argc > 1 && strcmp(argv[1], "few") == 0;
    if (few)
        worth.batch = 400;
#if !defined(CMM_PLATFORM_POSIX)
    program = argv[0];
    if (argc == 4)
        return works[atoi(argv[2])](atoi(argv[3]));
#endif
    check_limits();
#if defined(CMM_PLATFORM_POSIX)
    check_signals();
    in_a_child(mask_is_kept, 0, "the caller's signal mask");
#endif
    for (int32_t dtype = CMM_F32; dtype <= CMM_F64; dtype++) {
        check_environment(dtype, "naive", NULL);
        check_environment(dtype, "native", "per_token");
        check_environment(dtype, "native", "grouped");
    }
    check_changing_blas();
    in_a_child(started_by_a_flushing_caller, 2, "threads started by a caller that flushes subnormals");
#if defined(CMM_PLATFORM_POSIX)
    check_cancel(PTHREAD_CANCEL_DEFERRED);
    check_cancel(PTHREAD_CANCEL_ASYNCHRONOUS);
    check_pending();
    check_fork();
    check_quotas();
#endif
    CHECK(atomic_load(&blas_complaints) == 0, "%d calls of the BLAS with arguments it forbids",
          atomic_load(&blas_complaints));
    return check_report();
}
