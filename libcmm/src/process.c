/* The only writable globals of libcmm: CPU facts, thread pool, borrowed BLAS thread counts. */
#define _GNU_SOURCE
#include "process.h"

#include "cpu.h"

#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>
#if defined(__linux__)
#include <sched.h>
#endif

/* ---- the CPU -------------------------------------------------------------------------------------------------- */

static cmm_machine machine;
static pthread_once_t machine_once = PTHREAD_ONCE_INIT;

static void machine_find(void)
{
    cmm_cpu_find(&machine);
}

const cmm_machine *cmm_process_machine(void)
{
    pthread_once(&machine_once, machine_find);
    return &machine;
}

int32_t cmm_threads_default(void)
{
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0)
        return CPU_COUNT(&set) > 0 ? CPU_COUNT(&set) : 1;
#endif
    const long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (int32_t)online : 1;
}

/* ---- the pool ------------------------------------------------------------------------------------------------- */

/* Why not OpenMP: a child forked after libgomp has run hangs in its next parallel region, and the thread count of a
 * libgomp that others share by name would leak into ours and ours into theirs. */

enum { POOL_MAX = 255 };

static struct {
    pthread_mutex_t owner; /* held by the call that uses the pool */
    pthread_mutex_t lock;  /* guards what follows */
    pthread_cond_t wake, done;
    int32_t workers; /* threads started */
    int32_t wanted;  /* workers 0 .. wanted - 1 take part in the current job */
    int32_t running; /* of those, how many have not finished it */
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
}

static void blas_forget(void);

static void process_forget(void)
{
    pool_forget();
    blas_forget();
}

static void process_watch_fork(void)
{
    pthread_atfork(NULL, NULL, process_forget);
}

static void pool_take_pieces(void)
{
    const int32_t pieces = pool.pieces;
    for (;;) {
        const int32_t index = atomic_fetch_add_explicit(&pool.next, 1, memory_order_relaxed);
        if (index >= pieces)
            return;
        pool.piece(pool.context, index);
    }
}

static void *pool_worker(void *argument)
{
    const int32_t self = (int32_t)(intptr_t)argument;
    uint64_t seen = 0;
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        while (pool.job == seen || self >= pool.wanted) {
            seen = pool.job;
            pthread_cond_wait(&pool.wake, &pool.lock);
        }
        seen = pool.job;
        pthread_mutex_unlock(&pool.lock);
        pool_take_pieces();
        pthread_mutex_lock(&pool.lock);
        if (--pool.running == 0)
            pthread_cond_signal(&pool.done);
    }
    return NULL;
}

/* Called with pool.lock held. A worker starts with seen = 0, so jobs count from 1. */
static void pool_grow(int32_t workers)
{
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes) != 0)
        return;
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    while (pool.workers < workers) {
        pthread_t thread;
        if (pthread_create(&thread, &attributes, pool_worker, (void *)(intptr_t)pool.workers) != 0)
            break;
        pool.workers++;
    }
    pthread_attr_destroy(&attributes);
}

void cmm_process_run(int32_t threads, int32_t pieces, void (*piece)(void *, int32_t), void *context)
{
    pthread_once(&pool_once, process_watch_fork);
    if (threads > pieces)
        threads = pieces;
    if (threads > POOL_MAX)
        threads = POOL_MAX;
    if (threads <= 1 || pthread_mutex_trylock(&pool.owner) != 0) {
        for (int32_t index = 0; index < pieces; index++)
            piece(context, index);
        return;
    }
    pthread_mutex_lock(&pool.lock);
    pool.wanted = 0;
    pool_grow(threads - 1);
    pool.wanted = threads - 1 < pool.workers ? threads - 1 : pool.workers;
    pool.running = pool.wanted;
    pool.pieces = pieces;
    pool.piece = piece;
    pool.context = context;
    atomic_store_explicit(&pool.next, 0, memory_order_relaxed);
    pool.job++;
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);

    pool_take_pieces();

    pthread_mutex_lock(&pool.lock);
    while (pool.running > 0)
        pthread_cond_wait(&pool.done, &pool.lock);
    pool.wanted = 0;
    pthread_mutex_unlock(&pool.lock);
    pthread_mutex_unlock(&pool.owner);
}

/* ---- the thread counts of the BLAS libraries in use ------------------------------------------------------------ */

enum { BLAS_MAX = 16 };

static struct {
    pthread_mutex_t lock;
    struct {
        void (*set_threads)(int32_t); /* tells one BLAS from another */
        int32_t users, saved;
    } of[BLAS_MAX];
} blas_counts = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void blas_forget(void)
{
    pthread_mutex_init(&blas_counts.lock, NULL);
    for (int32_t i = 0; i < BLAS_MAX; i++)
        blas_counts.of[i].users = 0;
}

/* The slot of a BLAS: its own, else the first free one, else none (more than BLAS_MAX at once: its count stays). */
static int32_t blas_slot(const cmm_blas *blas)
{
    int32_t slot = -1;
    for (int32_t i = BLAS_MAX - 1; i >= 0; i--) {
        if (blas_counts.of[i].users > 0 && blas_counts.of[i].set_threads == blas->set_threads)
            return i;
        if (blas_counts.of[i].users == 0)
            slot = i;
    }
    return slot;
}

void cmm_process_borrow_blas(const cmm_blas *blas)
{
    if (!blas->set_threads || !blas->get_threads)
        return;
    pthread_once(&pool_once, process_watch_fork);
    pthread_mutex_lock(&blas_counts.lock);
    const int32_t slot = blas_slot(blas);
    if (slot >= 0 && blas_counts.of[slot].users++ == 0) {
        blas_counts.of[slot].set_threads = blas->set_threads;
        blas_counts.of[slot].saved = blas->get_threads();
        if (blas_counts.of[slot].saved != 1)
            blas->set_threads(1);
    }
    pthread_mutex_unlock(&blas_counts.lock);
}

void cmm_process_return_blas(const cmm_blas *blas)
{
    if (!blas->set_threads || !blas->get_threads)
        return;
    pthread_mutex_lock(&blas_counts.lock);
    const int32_t slot = blas_slot(blas);
    if (slot >= 0 && blas_counts.of[slot].users > 0 && --blas_counts.of[slot].users == 0 &&
        blas_counts.of[slot].saved != 1)
        blas->set_threads(blas_counts.of[slot].saved);
    pthread_mutex_unlock(&blas_counts.lock);
}
