/* The thread pool. It starts when it is first needed, and a child after fork() starts its own.
 *
 * Why not OpenMP: a child forked after libgomp has run hangs in its next parallel region, and the thread count of a
 * libgomp that others share by name would leak into ours and ours into theirs.
 *
 * The threads take nothing from the program that they live in: they block all signals, so that a signal which the
 * program has blocked to wait for (sigwait, signalfd) is not delivered to one of them; each piece of work starts from
 * the default floating-point environment; and they end before the code that they run is unloaded. */
#define _GNU_SOURCE
#include "threadpool.h"

#include "fp_environment.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

enum { POOL_MAX = 255 };

static struct {
    pthread_mutex_t owner; /* held by the call that uses the pool */
    pthread_mutex_t lock;  /* guards what follows */
    pthread_cond_t wake, done;
    pthread_t thread[POOL_MAX];
    int32_t workers; /* threads started */
    int32_t wanted;  /* workers 0 .. wanted - 1 take part in the current job */
    int32_t running; /* of those, how many have not finished it */
    int32_t stopping;
    uint64_t job;    /* counts jobs */
    int32_t pieces;
    void (*piece)(void *, int32_t);
    void *context;
    atomic_int next; /* the next piece that nobody has taken */
} pool = {.owner = PTHREAD_MUTEX_INITIALIZER,
          .lock = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER,
          .done = PTHREAD_COND_INITIALIZER};
static pthread_once_t pool_once = PTHREAD_ONCE_INIT;

/* The child of a fork has none of the workers, and the locks may have been held: start over. */
static void pool_forget(void)
{
    pthread_mutex_init(&pool.owner, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.wake, NULL);
    pthread_cond_init(&pool.done, NULL);
    pool.workers = 0;
    pool.wanted = 0;
    pool.running = 0;
    pool.stopping = 0;
}

static void pool_watch_fork(void)
{
    pthread_atfork(NULL, NULL, pool_forget);
}

static void take_pieces(int32_t pieces, void (*piece)(void *, int32_t), void *context)
{
    for (;;) {
        const int32_t index = atomic_fetch_add_explicit(&pool.next, 1, memory_order_relaxed);
        if (index >= pieces)
            return;
        cmm_fp_default(); /* for each: a BLAS may have changed it */
        piece(context, index);
    }
}

static void *work(void *argument)
{
    const int32_t self = (int32_t)(intptr_t)argument;
    uint64_t seen = 0;
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        while (!pool.stopping && (pool.job == seen || self >= pool.wanted)) {
            seen = pool.job;
            pthread_cond_wait(&pool.wake, &pool.lock);
        }
        if (pool.stopping)
            break;
        seen = pool.job;
        pthread_mutex_unlock(&pool.lock);
        take_pieces(pool.pieces, pool.piece, pool.context);
        pthread_mutex_lock(&pool.lock);
        if (--pool.running == 0)
            pthread_cond_signal(&pool.done);
    }
    pthread_mutex_unlock(&pool.lock);
    return NULL;
}

/* Called with pool.lock held. A worker starts with seen = 0, so jobs count from 1. */
static void grow(int32_t workers)
{
    sigset_t all, callers;
    if (pool.workers >= workers)
        return;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &callers); /* a new thread inherits the mask, from its first instant */
    while (pool.workers < workers &&
           pthread_create(&pool.thread[pool.workers], NULL, work, (void *)(intptr_t)pool.workers) == 0)
        pool.workers++;
    (void)pthread_sigmask(SIG_SETMASK, &callers, NULL);
}

int32_t cmm_threadpool_acquire(int32_t threads)
{
    pthread_once(&pool_once, pool_watch_fork);
    if (threads > POOL_MAX + 1)
        threads = POOL_MAX + 1;
    if (threads <= 1 || pthread_mutex_trylock(&pool.owner) != 0)
        return 1;
    pthread_mutex_lock(&pool.lock);
    pool.wanted = 0; /* a new worker finds no job to take part in */
    grow(threads - 1);
    if (threads > pool.workers + 1)
        threads = pool.workers + 1;
    pthread_mutex_unlock(&pool.lock);
    if (threads == 1)
        pthread_mutex_unlock(&pool.owner);
    return threads;
}

void cmm_threadpool_release(int32_t threads)
{
    if (threads > 1)
        pthread_mutex_unlock(&pool.owner);
}

void cmm_threadpool_run(int32_t threads, void (*piece)(void *, int32_t), void *context)
{
    if (threads == 1) {
        cmm_fp_default();
        piece(context, 0);
        return;
    }
    pthread_mutex_lock(&pool.lock);
    pool.wanted = pool.running = threads - 1;
    pool.pieces = threads;
    pool.piece = piece;
    pool.context = context;
    atomic_store_explicit(&pool.next, 0, memory_order_relaxed);
    pool.job++;
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);

    take_pieces(threads, piece, context);

    pthread_mutex_lock(&pool.lock);
    while (pool.running > 0)
        pthread_cond_wait(&pool.done, &pool.lock);
    pool.wanted = 0;
    pthread_mutex_unlock(&pool.lock);
}

/* End the workers before their code goes: at exit, and when a plugin that libcmm is linked into is unloaded. Where a
 * call is under way (exit() from another thread, or from inside a piece) they are left to the end of the process. */
__attribute__((destructor)) static void stop(void)
{
    if (pthread_mutex_trylock(&pool.owner) != 0)
        return;
    pthread_mutex_lock(&pool.lock);
    pool.stopping = 1;
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
    for (int32_t i = 0; i < pool.workers; i++)
        (void)pthread_join(pool.thread[i], NULL);
    pool.workers = 0; /* a call after this, in another destructor, starts the pool again */
    pool.stopping = 0;
    pthread_mutex_unlock(&pool.owner);
}
