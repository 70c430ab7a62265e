/* The thread pool. It starts when it is first needed, and a child after fork() starts its own.
 *
 * Why not OpenMP: a child forked after libgomp has run hangs in its next parallel region, and the thread count of a
 * libgomp that others share by name would leak into ours and ours into theirs.
 *
 * The threads take nothing from the program that they live in: they block all signals, so that a signal which the
 * program has blocked to wait for (sigwait, signalfd) is not delivered to one of them; each piece of work starts from
 * the default floating-point environment; and they end before the code that they run is unloaded, or keep it loaded. */
#include "threadpool.h"

#include "fp_environment.h"
#include "platform.h"

#include <stdatomic.h>

enum { POOL_MAX = 255 };

static struct {
    cmm_mutex owner; /* held by the call that uses the pool */
    cmm_mutex lock;  /* guards what follows */
    cmm_condition wake, done;
    cmm_thread thread[POOL_MAX];
    int32_t workers; /* threads started */
    int32_t wanted;  /* workers 0 .. wanted - 1 take part in the current job */
    int32_t running; /* of those, how many have not finished it */
    int32_t stopping;
    uint64_t job;    /* counts jobs */
    int32_t pieces;
    void (*piece)(void *, int32_t);
    void *context;
    atomic_int next; /* the next piece that nobody has taken */
} pool = {.owner = CMM_MUTEX_INIT,
          .lock = CMM_MUTEX_INIT,
          .wake = CMM_CONDITION_INIT,
          .done = CMM_CONDITION_INIT};
static cmm_once pool_once = CMM_ONCE_INIT;

/* The child of a fork has none of the workers, and the locks may have been held: start over. */
static void pool_forget(void)
{
    cmm_mutex_reset(&pool.owner);
    cmm_mutex_reset(&pool.lock);
    cmm_condition_reset(&pool.wake);
    cmm_condition_reset(&pool.done);
    pool.workers = 0;
    pool.wanted = 0;
    pool.running = 0;
    pool.stopping = 0;
}

static void pool_watch_fork(void)
{
    cmm_after_fork(pool_forget);
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

static void work(void *argument)
{
    const int32_t self = (int32_t)(intptr_t)argument;
    uint64_t seen = 0;
    cmm_mutex_lock(&pool.lock);
    for (;;) {
        while (!pool.stopping && (pool.job == seen || self >= pool.wanted)) {
            seen = pool.job;
            cmm_condition_wait(&pool.wake, &pool.lock);
        }
        if (pool.stopping)
            break;
        seen = pool.job;
        cmm_mutex_unlock(&pool.lock);
        take_pieces(pool.pieces, pool.piece, pool.context);
        cmm_mutex_lock(&pool.lock);
        if (--pool.running == 0)
            cmm_condition_signal(&pool.done);
    }
    cmm_mutex_unlock(&pool.lock);
}

/* Called with pool.lock held. A worker starts with seen = 0, so jobs count from 1. */
static void grow(int32_t workers)
{
    while (pool.workers < workers &&
           cmm_thread_start(&pool.thread[pool.workers], work, (void *)(intptr_t)pool.workers))
        pool.workers++;
}

int32_t cmm_threadpool_acquire(int32_t threads)
{
    cmm_once_run(&pool_once, pool_watch_fork);
    if (threads > POOL_MAX + 1)
        threads = POOL_MAX + 1;
    if (threads <= 1 || !cmm_mutex_trylock(&pool.owner))
        return 1;
    cmm_mutex_lock(&pool.lock);
    pool.wanted = 0; /* a new worker finds no job to take part in */
    grow(threads - 1);
    if (threads > pool.workers + 1)
        threads = pool.workers + 1;
    cmm_mutex_unlock(&pool.lock);
    if (threads == 1)
        cmm_mutex_unlock(&pool.owner);
    return threads;
}

void cmm_threadpool_release(int32_t threads)
{
    if (threads > 1)
        cmm_mutex_unlock(&pool.owner);
}

void cmm_threadpool_run(int32_t threads, void (*piece)(void *, int32_t), void *context)
{
    if (threads == 1) {
        cmm_fp_default();
        piece(context, 0);
        return;
    }
    cmm_mutex_lock(&pool.lock);
    pool.wanted = pool.running = threads - 1;
    pool.pieces = threads;
    pool.piece = piece;
    pool.context = context;
    atomic_store_explicit(&pool.next, 0, memory_order_relaxed);
    pool.job++;
    cmm_condition_broadcast(&pool.wake);
    cmm_mutex_unlock(&pool.lock);

    take_pieces(threads, piece, context);

    cmm_mutex_lock(&pool.lock);
    while (pool.running > 0)
        cmm_condition_wait(&pool.done, &pool.lock);
    pool.wanted = 0;
    cmm_mutex_unlock(&pool.lock);
}

/* End the workers before their code goes: at exit, and when a plugin that libcmm is linked into is unloaded. Where a
 * call is under way (exit() from another thread, or from inside a piece) they are left to the end of the process. */
CMM_AT_UNLOAD static void stop(void)
{
    if (!cmm_mutex_trylock(&pool.owner))
        return;
    cmm_mutex_lock(&pool.lock);
    pool.stopping = 1;
    cmm_condition_broadcast(&pool.wake);
    cmm_mutex_unlock(&pool.lock);
    for (int32_t i = 0; i < pool.workers; i++)
        cmm_thread_join(&pool.thread[i]);
    pool.workers = 0; /* a call after this, in another destructor, starts the pool again */
    pool.stopping = 0;
    cmm_mutex_unlock(&pool.owner);
}
