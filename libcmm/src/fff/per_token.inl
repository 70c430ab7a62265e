/* Native, token by token: for small batches, and for many small trees.
 *
 * MR tokens go through a block of trees whose rows fit in L2. A root's row is shared by the tokens, and they by
 * NR roots; below the roots every token descends MR trees in lockstep, whose rows share the token. Then y takes the
 * rows of all those trees at once, so that it is read and written once per block of trees and not once per tree. With
 * trees of one node that is a dense layer, and both products are register-tiled.
 * Work:   2 (d_in + d_out) flops per visited neuron.
 * Memory: rows once for MR tokens at roots and once per token below, from L2 where there are many trees, else from
 *         where the tree is; y once per block of trees.
 * Sums:   fff/microkernel.inl; the same bits as every other native kernel.
 * Limit:  for one token and one tree, depth + 1 dependent row reads; for trees of one node the fused multiply-adds of
 *         both tiles. Sharing rows between tokens below the root (grouped) moves it. */
#ifndef CMM_TYPE
#include "native.h"

NATIVE_SUMS

#define CMM_BODY "fff/per_token.inl"
#define CMM_LIST CMM_TYPES

enum { BLOCK = 64 }; /* tokens that use a block of trees while it is in L2 */

#include "../for_each_type.h"

NATIVE_EXPORT(per_token)

#else
#include "microkernel.inl"
#include "many_rows.inl"

/* Trees of a block: as the plan says, but enough for lockstep, and not more than there are. */
static int64_t NAME(max_trees)(const cmm_problem *problem, const cmm_plan *plan)
{
    return plan->trees < MR ? cmm_least(MR, problem->trees) : plan->trees;
}

static int64_t NAME(scratch)(const cmm_problem *problem, const cmm_context *cpu, int64_t count)
{
    const cmm_plan plan = cmm_fff_plan(problem, cpu->machine, count);
    return MR * NAME(max_trees)(problem, &plan) *
           ((problem->depth + 1) * (int64_t)(sizeof(void *) + 2 * sizeof(X)) + (int64_t)sizeof(int64_t));
}

typedef struct {
    const cmm_problem *problem;
    const cmm_context *cpu;
    const cmm_plan *plan;
    int64_t tree, trees; /* of the block of trees */
    const void **row;    /* [MR][trees][levels] */
    X *c;                /* [MR][trees][levels] logits, and then activations */
    X *scale;            /* [MR][trees][levels] of the rows, if they have any */
    X *norm;             /* [MR] of the tokens, for the exact path */
    int64_t *recomputed; /* logits that the exact path computed again */
    XNAME(sums_function) *weighted_sums;
    int64_t *node;       /* [MR][trees] where each token is going to */
} NAME(tree_block);

/* The token in place t has this dot product at `node` of tree k of the block. Returns the child it goes to. */
static inline int64_t NAME(visit)(const NAME(tree_block) *h, int64_t token, int64_t t, int64_t k, int32_t level,
                                  int64_t node, X dot)
{
    const cmm_problem *const problem = h->problem;
    const int64_t levels = problem->depth + 1, tree = h->tree + k, neuron = tree * problem->nodes + node;
    const int64_t place = (t * h->trees + k) * levels + level;
    const int64_t step = (token * problem->trees + tree) * levels + level;
    X logit = NAME(logit)(problem, neuron, dot);
    if (NAME(NARROW) && problem->exact_in && level < problem->depth) {
        const int64_t inner = tree * (problem->nodes / 2) + node;
        if (NAME(undecided)(problem, inner, logit, h->norm[t])) {
            const X *const x = (const X *)problem->x + token * problem->d_in;
            XNAME(dots)(1, (const X *)problem->exact_in + inner * problem->ld_exact, &x, problem->d_in, &dot, NULL);
            logit = XNAME(logit)(problem, neuron, dot);
            ++*h->recomputed;
        }
    }
    if (problem->nodes_out)
        problem->nodes_out[step] = (int32_t)node;
    if (problem->logits_out)
        ((X *)problem->logits_out)[step] = logit;
    h->c[place] = logit;
    if (problem->y) {
        h->row[place] = (const char *)problem->w_out + neuron * out_bytes(problem, problem->ld_out);
        if (problem->scale_out)
            h->scale[place] = (X)problem->scale_out[neuron];
        if (problem->depth > 0) /* the rows of trees of one node follow each other */
            prefetch_head(h->row[place], out_bytes(problem, problem->d_out));
    }
    return cmm_left_child(node) + CMM_TURNS_RIGHT(problem, token, tree, level, logit);
}

/* The roots of the block of trees: `tokens` tokens share a root's row, NR roots the tokens. */
static void NAME(roots)(const NAME(tree_block) *h, int64_t token, int tokens, const X *const *x)
{
    const cmm_problem *const problem = h->problem;
    const int64_t stride = problem->nodes * problem->ld_in;
    const W *const first = (const W *)problem->w_in + h->tree * stride;
    for (int64_t k = 0, n; k < h->trees; k += n) {
        X dot[NR][MR];
        if (h->trees - k >= NR) {
            const W *const row[NR] = {first + k * stride, first + (k + 1) * stride, first + (k + 2) * stride};
            NAME(dots_of_rows)(tokens, row, x, problem->d_in, dot, NULL);
            n = NR;
        } else {
            NAME(dots)(tokens, first + k * stride, x, problem->d_in, dot[0], NULL);
            n = 1;
        }
        for (int64_t i = 0; i < n; i++)
            for (int t = 0; t < tokens; t++)
                h->node[t * h->trees + k + i] = NAME(visit)(h, token + t, t, k + i, 0, 0, dot[i][t]);
    }
}

/* Below their roots: trees k .. k + n - 1 of the block of trees, level by level for all the tokens in turn, so that a
 * token's rows are on their way while the others compute. */
static void NAME(lockstep)(const NAME(tree_block) *h, int64_t token, int tokens, const X *const *x, int64_t k, int n)
{
    const cmm_problem *const problem = h->problem;
    for (int32_t level = 1; level <= problem->depth; level++)
        for (int t = 0; t < tokens; t++) {
            int64_t *const node = h->node + t * h->trees + k; /* where it goes to */
            const W *row[MR] = {NULL};
            X dot[MR];
            for (int i = 0; i < n; i++)
                row[i] = (const W *)problem->w_in + ((h->tree + k + i) * problem->nodes + node[i]) * problem->ld_in;
            NAME(dots_of_token)(n, x[t], row, problem->d_in, dot, NULL);
            for (int i = 0; i < n; i++) {
                node[i] = NAME(visit)(h, token + t, t, k + i, level, node[i], dot[i]);
                if (h->plan->walk_ahead && level < problem->depth)
                    prefetch_now((const W *)problem->w_in + ((h->tree + k + i) * problem->nodes + node[i]) * problem->ld_in,
                                 problem->d_in * (int64_t)sizeof(W));
            }
        }
}

/* Tokens token .. token + tokens - 1 through the block of trees. */
static void NAME(process_block)(const NAME(tree_block) *h, int64_t token, int tokens)
{
    const cmm_problem *const problem = h->problem;
    const int64_t levels = problem->depth + 1, rows = h->trees * levels;
    const X *x[MR];
    for (int t = 0; t < tokens; t++)
        x[t] = (const X *)problem->x + (token + t) * problem->d_in;
    if (NAME(NARROW) && problem->exact_in && h->tree == 0)
        for (int t = 0; t < tokens; t++)
            h->norm[t] = NAME(norm)(x[t], problem->d_in);
    NAME(roots)(h, token, tokens, x);
    for (int64_t k = 0; k < h->trees && levels > 1; k += MR)
        NAME(lockstep)(h, token, tokens, x, k, (int)cmm_least(MR, h->trees - k));
    if (!problem->y)
        return;
    h->cpu->XNAME(activate)(problem->activation, tokens * rows, h->c);
    for (int64_t i = 0; problem->scale_out && i < tokens * rows; i++)
        h->c[i] *= h->scale[i];
    XNAME(output_args) args[MR];
    for (int t = 0; t < tokens; t++)
        args[t] = (XNAME(output_args)){h->row + t * rows, h->c + t * rows,
                                      (X *)problem->y + (token + t) * problem->d_out};
    const int shared = levels == 1 ? (int)rows : 0; /* every token visits the roots: trees of one node */
    h->weighted_sums(tokens, args, problem->d_out, h->tree > 0 ? Y_ADD : Y_STORE, shared, (int)rows);
}

static int64_t NAME(run)(const cmm_problem *problem, const cmm_context *cpu, int64_t first, int64_t count, void *memory)
{
    const cmm_plan plan = cmm_fff_plan(problem, cpu->machine, count);
    const int64_t most = NAME(max_trees)(problem, &plan), steps = MR * most * (problem->depth + 1);
    X norm[BLOCK];
    int64_t recomputed = 0;
    NAME(tree_block) h = {.problem = problem, .cpu = cpu, .plan = &plan, .node = memory, .recomputed = &recomputed};
    h.weighted_sums = XNAME(sums_for)(problem->weight_out_dtype);
    h.row = (const void **)(h.node + MR * most);
    h.c = (X *)(h.row + steps);
    h.scale = h.c + steps;
    for (int64_t begin = first; begin < first + count; begin += BLOCK) {
        const int64_t end = cmm_least(begin + BLOCK, first + count);
        for (h.tree = 0; h.tree < problem->trees; h.tree += most) {
            h.trees = cmm_least(most, problem->trees - h.tree);
            for (int64_t token = begin; token < end; token += MR) {
                h.norm = norm + (token - begin); /* which the first trees set, and the others use */
                NAME(process_block)(&h, token, (int)cmm_least(MR, end - token));
            }
        }
    }
    return recomputed;
}

NATIVE_KERNEL(per_token, NULL)

#endif
