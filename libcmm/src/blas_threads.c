/* The thread counts of the BLAS libraries in use, borrowed for the time of a call. */
#include "blas_threads.h"

#include "platform.h"

#include <stdatomic.h>

enum { BLAS_MAX = 16 };

typedef struct slot {
    void (*set_threads)(int32_t); /* tells one BLAS from another */
    int32_t saved;
    atomic_int users; /* written last when a slot is taken and when it is given back: a fork sees a whole slot or none */
} slot;

/* Within one page, which a fork copies as it is at one instant. */
static _Alignas(512) slot slots[BLAS_MAX];
static cmm_mutex lock = CMM_MUTEX_INIT;
static cmm_once once = CMM_ONCE_INIT;

/* In the child of a fork nobody is left who would put the counts back. */
static void put_all_back(void)
{
    cmm_mutex_reset(&lock); /* it may have been held */
    for (int i = 0; i < BLAS_MAX; i++) {
        if (atomic_load(&slots[i].users) > 0 && slots[i].saved != 1)
            slots[i].set_threads(slots[i].saved);
        atomic_store(&slots[i].users, 0);
    }
}

static void watch_fork(void)
{
    cmm_after_fork(put_all_back);
}

/* The slot of a BLAS: its own, else the first free one, else none (more than BLAS_MAX at once: its count stays). */
static slot *find_slot(const cmm_blas *blas)
{
    slot *free_slot = NULL;
    for (int i = BLAS_MAX - 1; i >= 0; i--) {
        const int users = atomic_load(&slots[i].users);
        if (users > 0 && slots[i].set_threads == blas->set_threads)
            return &slots[i];
        if (users == 0)
            free_slot = &slots[i];
    }
    return free_slot;
}

static int has_count(const cmm_blas *blas)
{
    return blas->set_threads && blas->get_threads;
}

void cmm_blas_threads_borrow(const cmm_blas *blas)
{
    if (!has_count(blas))
        return;
    cmm_once_run(&once, watch_fork);
    cmm_mutex_lock(&lock);
    slot *const mine = find_slot(blas);
    if (mine && atomic_load(&mine->users) == 0) {
        mine->set_threads = blas->set_threads;
        mine->saved = blas->get_threads();
        atomic_store(&mine->users, 1);
        if (mine->saved != 1)
            blas->set_threads(1);
    } else if (mine)
        atomic_fetch_add(&mine->users, 1);
    cmm_mutex_unlock(&lock);
}

void cmm_blas_threads_return(const cmm_blas *blas)
{
    if (!has_count(blas))
        return;
    cmm_mutex_lock(&lock);
    slot *const mine = find_slot(blas);
    if (mine && atomic_load(&mine->users) > 0) { /* none in a child that was forked from inside the call */
        if (atomic_load(&mine->users) == 1 && mine->saved != 1)
            blas->set_threads(mine->saved);
        atomic_fetch_sub(&mine->users, 1);
    }
    cmm_mutex_unlock(&lock);
}
