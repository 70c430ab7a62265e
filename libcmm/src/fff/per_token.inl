/* Native, by walking: for small batches, and for many small trees.
 *
 * TILE tokens go through a handful of trees whose rows fit in L2. A root's row is shared by the tokens, and they by
 * ROWS roots; below the roots every token walks TILE trees in lockstep, whose rows share the token. Then y takes the
 * rows of all those trees at once, so that it is read and written once per handful and not once per tree. With trees
 * of one node that is a dense layer, and both halves are register-tiled matrix products.
 * Work:   2 (d_in + d_out) flops per visited neuron.
 * Memory: rows once for TILE tokens at roots and once per token below, from L2 where there are many trees, else from
 *         where the tree is; y once per handful of trees.
 * Sums:   fff/microkernel.inl; the same bits as every other native kernel.
 * Limit:  for one token and one tree, depth + 1 dependent row reads; for trees of one node the fused multiply-adds of
 *         both tiles. Sharing rows between tokens below the root (grouped) moves it. */
#ifndef CMM_TYPE
#include "native.h"

#define CMM_BODY "fff/per_token.inl"
#define CMM_LIST CMM_TYPES

enum { BLOCK = 64 }; /* tokens that use a handful of trees while it is in L2 */

#include "../for_each_type.h"

NATIVE_EXPORT(per_token)

#else
#include "microkernel.inl"

/* One token for up to TILE rows: dots_of_token(). */
#define SHARED X
#define LOAD_SHARED XNAME(vec_load)
#define LOAD_SHARED_MASKED XNAME(vec_load_masked)
#define VARYING W
#define LOAD_VARYING NAME(load_w)
#define LOAD_VARYING_MASKED NAME(load_w_masked)
#define DOT(a) NAME(a##_of_token)
#include "dot.inl"

/* Trees of a handful: half of L2, but enough for lockstep, and not more than there are. */
static int64_t NAME(most_trees)(const cmm_problem *task, const cmm_context *cpu)
{
    int64_t trees = cpu->machine->l2 / 2 / (task->nodes * NAME(row_bytes)(task));
    if (trees < TILE)
        trees = TILE;
    if (trees > 256)
        trees = 256;
    return cmm_least(trees, task->trees);
}

static int64_t NAME(scratch)(const cmm_problem *task, const cmm_context *cpu, int64_t count)
{
    (void)count;
    return TILE * NAME(most_trees)(task, cpu) *
           ((task->depth + 1) * (int64_t)(sizeof(void *) + sizeof(X)) + (int64_t)sizeof(int64_t));
}

typedef struct {
    const cmm_problem *task;
    const cmm_context *cpu;
    int64_t tree, trees; /* of the handful */
    const W **row;       /* [TILE][trees][levels] */
    X *c;                /* [TILE][trees][levels] logits, and then activations */
    int64_t *node;       /* [TILE][trees] where each token is going to */
} NAME(handful);

/* out[r][t] = dot(w[r], x[t]) for ROWS rows and 1 <= tokens <= TILE: 12 fused multiply-adds for 7 loads, where dots()
 * has 4 for 5. */
static void NAME(dots_of_rows)(int tokens, const W *const w[ROWS], const X *const *x, int64_t d,
                               X (*out)[TILE], const X *ahead)
{
    switch (tokens) {
#if TILE >= 4
    case 4:
        NAME(dot_tile)(ROWS, 4, w, x, d, out, ahead);
        return;
#endif
#if TILE >= 3
    case 3:
        NAME(dot_tile)(ROWS, 3, w, x, d, out, ahead);
        return;
#endif
#if TILE >= 2
    case 2:
        NAME(dot_tile)(ROWS, 2, w, x, d, out, ahead);
        return;
#endif
    default:
        NAME(dot_tile)(ROWS, 1, w, x, d, out, ahead);
    }
}

/* The token in place t has this logit at `node` of tree k of the handful. Returns the child it goes to. */
static inline int64_t NAME(visit)(const NAME(handful) *h, int64_t token, int64_t t, int64_t k, int32_t level,
                                  int64_t node, X logit)
{
    const cmm_problem *const task = h->task;
    const int64_t levels = task->depth + 1, tree = h->tree + k, at = tree * task->nodes + node;
    const int64_t place = (t * h->trees + k) * levels + level;
    const int64_t step = (token * task->trees + tree) * levels + level;
    if (task->bias)
        logit += ((const X *)task->bias)[at];
    if (task->nodes_out)
        task->nodes_out[step] = (int32_t)node;
    if (task->logits_out)
        ((X *)task->logits_out)[step] = logit;
    h->c[place] = logit;
    if (task->y) {
        h->row[place] = (const W *)task->w_out + at * task->ld_out;
        if (task->depth > 0) /* the rows of trees of one node follow each other */
            NAME(prefetch_head)(h->row[place], task->d_out);
    }
    return XNAME(cmm_child)(node, logit, task->tie);
}

/* The roots of the handful: `tokens` tokens share a root's row, ROWS roots the tokens. */
static void NAME(roots)(const NAME(handful) *h, int64_t token, int tokens, const X *const *x)
{
    const cmm_problem *const task = h->task;
    const int64_t stride = task->nodes * task->ld_in;
    const W *const first = (const W *)task->w_in + h->tree * stride;
    for (int64_t k = 0, n; k < h->trees; k += n) {
        X logit[ROWS][TILE];
        if (h->trees - k >= ROWS) {
            const W *const row[ROWS] = {first + k * stride, first + (k + 1) * stride, first + (k + 2) * stride};
            NAME(dots_of_rows)(tokens, row, x, task->d_in, logit, NULL);
            n = ROWS;
        } else {
            NAME(dots)(tokens, first + k * stride, x, task->d_in, logit[0], NULL);
            n = 1;
        }
        for (int64_t i = 0; i < n; i++)
            for (int t = 0; t < tokens; t++)
                h->node[t * h->trees + k + i] = NAME(visit)(h, token + t, t, k + i, 0, 0, logit[i][t]);
    }
}

/* Below their roots: trees k .. k + n - 1 of the handful, for one token in place t. */
static void NAME(lockstep)(const NAME(handful) *h, int64_t token, int64_t t, int64_t k, int n)
{
    const cmm_problem *const task = h->task;
    const X *const x = (const X *)task->x + token * task->d_in;
    int64_t *const node = h->node + t * h->trees + k; /* where it goes to */
    for (int32_t level = 1; level <= task->depth; level++) {
        const W *row[TILE];
        X logit[TILE];
        for (int i = 0; i < n; i++)
            row[i] = (const W *)task->w_in + ((h->tree + k + i) * task->nodes + node[i]) * task->ld_in;
        NAME(dots_of_token)(n, x, row, task->d_in, logit, NULL);
        for (int i = 0; i < n; i++)
            node[i] = NAME(visit)(h, token, t, k + i, level, node[i], logit[i]);
    }
}

/* Tokens token .. token + tokens - 1 through the handful. */
static void NAME(through)(const NAME(handful) *h, int64_t token, int tokens)
{
    const cmm_problem *const task = h->task;
    const int64_t levels = task->depth + 1, rows = h->trees * levels;
    const X *x[TILE];
    for (int t = 0; t < tokens; t++)
        x[t] = (const X *)task->x + (token + t) * task->d_in;
    NAME(roots)(h, token, tokens, x);
    for (int64_t k = 0; k < h->trees && levels > 1; k += TILE)
        for (int t = 0; t < tokens; t++)
            NAME(lockstep)(h, token + t, t, k, (int)cmm_least(TILE, h->trees - k));
    if (!task->y)
        return;
    h->cpu->XNAME(activate)(task->activation, tokens * rows, h->c);
    NAME(share) share[TILE];
    for (int t = 0; t < tokens; t++)
        share[t] = (NAME(share)){h->row + t * rows, h->c + t * rows, (X *)task->y + (token + t) * task->d_out};
    const int shared = levels == 1 ? (int)rows : 0; /* every token visits the roots: trees of one node */
    NAME(outputs)(tokens, share, task->d_out, h->tree > 0 ? NAME(Y_ADD) : NAME(Y_STORE), shared, (int)rows);
}

static void NAME(run)(const cmm_problem *task, const cmm_context *cpu, int64_t first, int64_t count, void *memory)
{
    const int64_t most = NAME(most_trees)(task, cpu);
    NAME(handful) h = {.task = task, .cpu = cpu, .node = memory};
    h.row = (const W **)(h.node + TILE * most);
    h.c = (X *)(h.row + TILE * most * (task->depth + 1));
    for (int64_t begin = first; begin < first + count; begin += BLOCK) {
        const int64_t end = cmm_least(begin + BLOCK, first + count);
        for (h.tree = 0; h.tree < task->trees; h.tree += most) {
            h.trees = cmm_least(most, task->trees - h.tree);
            for (int64_t token = begin; token < end; token += TILE)
                NAME(through)(&h, token, (int)cmm_least(TILE, end - token));
        }
    }
}

NATIVE_KERNEL(per_token, NULL)

#endif
