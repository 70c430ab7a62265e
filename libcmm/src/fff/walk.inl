/* Native, by walking: for small batches, and for many small trees.
 *
 * TILE tokens go through a handful of trees whose rows fit in L2. A root's row is shared by the tokens; below the root
 * every token walks TILE trees in lockstep, whose rows share the token. Then y takes the rows of all those trees at
 * once, so that it is read and written once per handful and not once per tree. With trees of one node that is a dense
 * layer, and both halves are register-tiled matrix products.
 * Work:   2 (d_in + d_out) flops per visited neuron.
 * Memory: rows once for TILE tokens at roots and once per token below, from L2 where there are many trees, else from
 *         where the tree is; y once per handful of trees.
 * Sums:   fff/tile.inl; the same bits as every other native kernel.
 * Limit:  for one token and one tree, depth + 1 dependent row reads; for trees of one node the loads of the tiles, 5 for
 *         4 fused multiply-adds. Sharing rows between tokens below the root (group) moves it. */
#ifndef REAL
#include "native.h"

#define CMM_BODY "fff/walk.inl"

enum { BLOCK = 64 }; /* tokens that use a handful of trees while it is in L2 */

/* Trees of a handful: half of L2, but enough for lockstep, and not more than there are. */
static int64_t handful(const cmm_task *task, const int tile)
{
    int64_t trees = task->machine->l2 / 2 / (task->nodes * row_bytes(task));
    if (trees < tile)
        trees = tile;
    if (trees > 256)
        trees = 256;
    return least(trees, task->trees);
}

#include "../each_real.h"

static int64_t scratch(const cmm_task *task, int64_t count)
{
    (void)count;
    return TILE * handful(task, TILE) * (task->depth + 1) * (int64_t)(sizeof(void *) + sizeof(double));
}

#define METHOD walk
#include "kernel_value.h"

#else
#include "tile.inl"

typedef struct {
    const cmm_task *task;
    int64_t tree, trees; /* of the handful */
    const REAL **row;    /* [TILE][trees][levels] */
    REAL *c;             /* [TILE][trees][levels] logits, and then activations */
} NAME(handful);

/* The token in place t has this logit at `node` of tree k of the handful. Returns the child it goes to. */
static inline int64_t NAME(visit)(const NAME(handful) *h, int64_t token, int64_t t, int64_t k, int32_t level,
                                  int64_t node, REAL logit)
{
    const cmm_task *const task = h->task;
    const int64_t levels = task->depth + 1, tree = h->tree + k, at = tree * task->nodes + node;
    const int64_t place = (t * h->trees + k) * levels + level;
    const int64_t step = (token * task->trees + tree) * levels + level;
    if (task->bias)
        logit += ((const REAL *)task->bias)[at];
    if (task->nodes_out)
        task->nodes_out[step] = (int32_t)node;
    if (task->logits_out)
        ((REAL *)task->logits_out)[step] = logit;
    h->c[place] = logit;
    if (task->y) {
        h->row[place] = (const REAL *)task->w_out + at * task->ld_out;
        NAME(prefetch_head)(h->row[place], task->d_out);
    }
    return 2 * node + 1 + NAME(goes_right)(task, logit);
}

/* Below their roots: trees k .. k + n - 1 of the handful, for one token. node[i] is where it goes to. */
static void NAME(lockstep)(const NAME(handful) *h, int64_t token, int64_t t, int64_t k, int n, int64_t *node)
{
    const cmm_task *const task = h->task;
    const REAL *const x = (const REAL *)task->x + token * task->d_in;
    for (int32_t level = 1; level <= task->depth; level++) {
        const REAL *row[TILE];
        REAL logit[TILE];
        for (int i = 0; i < n; i++)
            row[i] = (const REAL *)task->w_in + ((h->tree + k + i) * task->nodes + node[i]) * task->ld_in;
        NAME(dots)(n, x, row, task->d_in, logit);
        for (int i = 0; i < n; i++)
            node[i] = NAME(visit)(h, token, t, k + i, level, node[i], logit[i]);
    }
}

/* Tokens token .. token + tokens - 1 through the handful. */
static void NAME(through)(const NAME(handful) *h, int64_t token, int tokens)
{
    const cmm_task *const task = h->task;
    const int64_t levels = task->depth + 1, rows = h->trees * levels;
    const REAL *x[TILE];
    for (int t = 0; t < tokens; t++)
        x[t] = (const REAL *)task->x + (token + t) * task->d_in;
    for (int64_t k = 0; k < h->trees; k += TILE) {
        const int n = (int)least(TILE, h->trees - k);
        int64_t node[TILE][TILE];
        for (int i = 0; i < n; i++) {
            const REAL *const root = (const REAL *)task->w_in + (h->tree + k + i) * task->nodes * task->ld_in;
            REAL logit[TILE];
            NAME(dots)(tokens, root, x, task->d_in, logit);
            for (int t = 0; t < tokens; t++)
                node[t][i] = NAME(visit)(h, token + t, t, k + i, 0, 0, logit[t]);
        }
        for (int t = 0; t < tokens && levels > 1; t++)
            NAME(lockstep)(h, token + t, t, k, n, node[t]);
    }
    if (!task->y)
        return;
    task->NAME(activate)(task->activation, tokens * rows, h->c);
    NAME(share) share[TILE];
    for (int t = 0; t < tokens; t++)
        share[t] = (NAME(share)){h->row + t * rows, h->c + t * rows, (REAL *)task->y + (token + t) * task->d_out};
    NAME(outputs)(tokens, share, task->d_out, h->tree > 0, levels == 1 ? (int)rows : 0, (int)rows);
}

static void NAME(run)(const cmm_task *task, int64_t first, int64_t count, void *memory)
{
    const int64_t most = handful(task, TILE);
    NAME(handful) h = {.task = task, .row = memory};
    h.c = (REAL *)(h.row + TILE * most * (task->depth + 1));
    for (int64_t begin = first; begin < first + count; begin += BLOCK) {
        const int64_t end = least(begin + BLOCK, first + count);
        for (h.tree = 0; h.tree < task->trees; h.tree += most) {
            h.trees = least(most, task->trees - h.tree);
            for (int64_t token = begin; token < end; token += TILE)
                NAME(through)(&h, token, (int)least(TILE, end - token));
        }
    }
}

#endif
