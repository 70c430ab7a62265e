/* Level 3: tokens grouped by subtree, so that a whole group shares rows and its products are matrix products.
 *
 * A tree is cut into tiers of up to TIER levels. In a tier, every token of a group sits at the same node; one gemm
 * gives the logits of all 2^T - 1 nodes of the subtree below it, the tokens walk through those, and a counting sort
 * splits the group by the 2^T nodes they reach. When the leaves are reached, a group shares all its path but the last
 * tier: the output is one gemm of the coefficients with the rows of that path and of the last subtree.
 * Trees of at most SHALLOW levels are computed whole, many trees in one gemm.
 * Work:   up to 2 (2^T - 1) / T times the flops of the visited neurons, at the rate of gemm.
 * Memory: x and y once per tier (gathered and scattered by group); each row once per group.
 * Sums:   those of the BLAS, then the bias.
 * Limit:  logits computed and not visited, and the gathering of x. Kernels that share rows without computing the
 *         unvisited ones (native) move it. */
#ifndef CMM_TYPE
#include "../activations.inc"
#include "../blas_kernel.h"
#include "../scratch.h"
#include "../tree.h"

#include <string.h>

#define CMM_BODY "baseline/blas3.c"
#define CMM_LIST CMM_SAME_TYPES

enum {
    TIER = 3,        /* levels of a tier */
    SHALLOW = 3,     /* whole trees of up to so many levels are cheaper than sorting tokens */
    BLOCK = 48,      /* tokens gathered at a time; their x stays in L2 */
    CHUNK = 16384,   /* tokens grouped at a time; bounds the scratch memory */
    MERGED = 256,    /* rows of many small trees in one gemm */
    SMALL_GROUP = 6, /* fewer tokens than this go on one by one */
    PANEL = (1 << TIER) - 1 + CMM_MAX_DEPTH + 1
};

static int64_t merged_trees(const cmm_problem *problem)
{
    const int64_t trees = MERGED / problem->nodes;
    return cmm_least(trees < 1 ? 1 : trees, problem->trees);
}

static int is_zero_at_zero(int32_t activation)
{
#define IS_ZERO(NUMBER, name, zero_at_zero, ...) [CMM_##NUMBER] = zero_at_zero,
    static const char is_zero[] = {CMM_ACTIVATIONS(IS_ZERO)};
#undef IS_ZERO
    return is_zero[activation];
}

/* Computed whole, a tree has nodes that a token does not visit: their logits are set to 0, and so must what is made of
 * them be. */
static int is_shallow(const cmm_problem *problem)
{
    return problem->depth < SHALLOW && (problem->depth == 0 || is_zero_at_zero(problem->activation));
}

#include "../for_each_type.h"

CMM_EXPORT(cmm_fff_blas3)

#else

typedef struct {
    int32_t *permutation;  /* [CHUNK] tokens of the chunk, in the order of their groups */
    int32_t *sorted;       /* [CHUNK] the order to be */
    int32_t *child;        /* [CHUNK] where each token of a group left the tier */
    int32_t *node;         /* [CHUNK][levels] the path */
    X *logit;           /* [CHUNK][levels], and then the activations */
    X *x;               /* [BLOCK][d_in] gathered */
    X *y;               /* [BLOCK][d_out] to be scattered */
    X *w_in, *w_out;    /* [2^TIER - 1][d_in] and [PANEL][d_out]: the rows of a subtree side by side */
    X *product;         /* [BLOCK][max(PANEL, merged rows)] logits, and then coefficients */
} NAME(work);

static int64_t NAME(lay_out)(const cmm_problem *problem, int64_t count, char *memory, NAME(work) *w)
{
    const int64_t size = sizeof(X), tokens = cmm_least(count, CHUNK), block = cmm_least(count, BLOCK);
    const int64_t merged = merged_trees(problem) * problem->nodes, levels = problem->depth + 1;
    int64_t used = 0;
    w->product = cmm_take(memory, &used, block * (is_shallow(problem) ? merged : (int64_t)PANEL) * size);
    if (is_shallow(problem))
        return used;
    w->permutation = cmm_take(memory, &used, tokens * (int64_t)sizeof(int32_t));
    w->sorted = cmm_take(memory, &used, tokens * (int64_t)sizeof(int32_t));
    w->child = cmm_take(memory, &used, tokens * (int64_t)sizeof(int32_t));
    w->node = cmm_take(memory, &used, tokens * levels * (int64_t)sizeof(int32_t));
    w->logit = cmm_take(memory, &used, tokens * levels * size);
    w->x = cmm_take(memory, &used, block * problem->d_in * size);
    w->y = cmm_take(memory, &used, block * problem->d_out * size);
    w->w_in = cmm_take(memory, &used, ((1 << TIER) - 1) * problem->d_in * size);
    w->w_out = cmm_take(memory, &used, (int64_t)PANEL * problem->d_out * size);
    return used;
}

/* A coefficient of 0 hides a row only if the row is finite. */
static int NAME(finite)(const X *row, int64_t n)
{
    int bad = 0;
    for (int64_t i = 0; i < n; i++)
        bad |= !(row[i] - row[i] == 0);
    return !bad;
}

/* product[tokens][rows] = x[tokens][d_in] times the rows of w, transposed. BLAS is column-major: what it calls
 * rows x tokens is our row-major tokens x rows. */
static void NAME(logits_of)(const cmm_problem *problem, const cmm_context *cpu, int32_t tokens, const X *x,
                            int32_t rows, const X *w, int64_t ld, X *product)
{
    const int32_t d_in = (int32_t)problem->d_in, ld_in = (int32_t)ld;
    const X unit = 1, zero = 0;
    cpu->blas->BLAS(gemm)("T", "N", &rows, &tokens, &d_in, &unit, w, &ld_in, x, &d_in, &zero, product, &rows);
}

/* y[tokens][d_out] = beta y + product[tokens][rows] times the rows of w. */
static void NAME(outputs_of)(const cmm_problem *problem, const cmm_context *cpu, int32_t tokens, X *y, int32_t rows,
                             const X *w, int64_t ld, const X *product, X beta)
{
    const int32_t d_out = (int32_t)problem->d_out, ld_out = (int32_t)ld;
    const X unit = 1;
    cpu->blas->BLAS(gemm)("N", "N", &d_out, &tokens, &rows, &unit, w, &ld_out, product, &rows, &beta, y, &d_out);
}

/* ---- shallow trees: all their nodes, many trees at once --------------------------------------------------------- */

/* Walk one token through the logits of one whole tree, and leave coefficients in their place: 0 where it was not. */
static void NAME(walk_whole)(const cmm_problem *problem, int64_t token, int64_t tree, X *logits)
{
    const int32_t levels = problem->depth + 1;
    const X *const bias = problem->bias ? (const X *)problem->bias + tree * problem->nodes : NULL;
    int64_t node = 0, step = (token * problem->trees + tree) * levels;
    int32_t visited[SHALLOW];
    X coefficients[SHALLOW];
    for (int32_t level = 0; level < levels; level++, step++) {
        const X logit = bias ? logits[node] + bias[node] : logits[node];
        if (problem->nodes_out)
            problem->nodes_out[step] = (int32_t)node;
        if (problem->logits_out)
            ((X *)problem->logits_out)[step] = logit;
        visited[level] = (int32_t)node;
        coefficients[level] = logit;
        node = cmm_left_child(node) + CMM_TURNS_RIGHT(problem, token, tree, level, logit);
    }
    if (levels > 1)
        memset(logits, 0, (size_t)problem->nodes * sizeof(X));
    for (int32_t level = 0; level < levels; level++)
        logits[visited[level]] = coefficients[level];
}

static void NAME(run_shallow)(const cmm_problem *problem, const cmm_context *cpu, int64_t first, int64_t count,
                              const NAME(work) *w)
{
    const int64_t nodes = problem->nodes, merged = merged_trees(problem), d_out = problem->d_out;
    const int32_t one = 1, width = (int32_t)d_out;
    for (int64_t done = 0; done < count; done += BLOCK) {
        const int32_t tokens = (int32_t)cmm_least(BLOCK, count - done);
        const X *const x = (const X *)problem->x + (first + done) * problem->d_in;
        X *const y = problem->y ? (X *)problem->y + (first + done) * d_out : NULL;
        for (int64_t tree = 0; tree < problem->trees; tree += merged) {
            const int64_t trees = cmm_least(merged, problem->trees - tree), rows = trees * nodes;
            NAME(logits_of)(problem, cpu, tokens, x, (int32_t)rows,
                            (const X *)problem->w_in + tree * nodes * problem->ld_in, problem->ld_in, w->product);
            for (int64_t t = 0; t < tokens; t++)
                for (int64_t k = 0; k < trees; k++)
                    NAME(walk_whole)(problem, first + done + t, tree + k, w->product + t * rows + k * nodes);
            if (!y)
                continue;
            cpu->XNAME(activate)(problem->activation, tokens * rows, w->product);
            const X *const w_out = (const X *)problem->w_out + tree * nodes * problem->ld_out;
            int finite = 1;
            for (int64_t r = 0; nodes > 1 && r < rows; r++)
                finite &= NAME(finite)(w_out + r * problem->ld_out, d_out);
            if (finite) {
                NAME(outputs_of)(problem, cpu, tokens, y, (int32_t)rows, w_out, problem->ld_out, w->product,
                                 tree == 0 ? 0 : 1);
                continue;
            }
            memset(y, 0, tree == 0 ? (size_t)(tokens * d_out) * sizeof(X) : 0);
            for (int64_t t = 0; t < tokens; t++)
                for (int64_t r = 0; r < rows; r++)
                    if (w->product[t * rows + r] != 0)
                        cpu->blas->BLAS(axpy)(&width, &w->product[t * rows + r], w_out + r * problem->ld_out, &one,
                                               y + t * d_out, &one);
        }
    }
}

/* ---- deep trees: tier by tier, group by group -------------------------------------------------------------------- */

/* One tree over one chunk of tokens. */
typedef struct {
    const cmm_problem *problem;
    const cmm_context *cpu;
    const NAME(work) *work;
    int64_t first, tree;
    const X *w_in, *bias, *w_out; /* of this tree */
    const X *x;
    X *y;
} NAME(tree_state);

/* The first tree finds no output yet. */
static void NAME(clear)(const NAME(tree_state) *s, int32_t token)
{
    if (s->tree == 0)
        memset(s->y + token * s->problem->d_out, 0, (size_t)s->problem->d_out * sizeof(X));
}

static void NAME(add_row)(const NAME(tree_state) *s, int32_t token, int32_t level)
{
    const int32_t one = 1, d_out = (int32_t)s->problem->d_out;
    const int64_t step = (int64_t)token * (s->problem->depth + 1) + level;
    s->cpu->blas->BLAS(axpy)(&d_out, &s->work->logit[step], s->w_out + s->work->node[step] * s->problem->ld_out, &one,
                              s->y + (int64_t)token * d_out, &one);
}

static void NAME(visit)(const NAME(tree_state) *s, int32_t token, int32_t level, int64_t node, X logit)
{
    const int32_t levels = s->problem->depth + 1;
    const int64_t step = ((s->first + token) * s->problem->trees + s->tree) * levels + level;
    s->work->node[(int64_t)token * levels + level] = (int32_t)node;
    s->work->logit[(int64_t)token * levels + level] = logit;
    if (s->problem->nodes_out)
        s->problem->nodes_out[step] = (int32_t)node;
    if (s->problem->logits_out)
        ((X *)s->problem->logits_out)[step] = logit;
}

/* A token that is nearly alone at a node: to its leaf by dot, and out by axpy. */
static void NAME(finish_alone)(const NAME(tree_state) *s, int32_t token, int64_t node, int32_t level)
{
    const int32_t one = 1, levels = s->problem->depth + 1, d_in = (int32_t)s->problem->d_in;
    for (; level < levels; level++) {
        X logit = s->cpu->blas->BLAS(dot)(&d_in, s->w_in + node * s->problem->ld_in, &one,
                                              s->x + (int64_t)token * d_in, &one);
        if (s->bias)
            logit += s->bias[node];
        NAME(visit)(s, token, level, node, logit);
        node = cmm_left_child(node) + CMM_TURNS_RIGHT(s->problem, s->first + token, s->tree, level, logit);
    }
    if (!s->y)
        return;
    NAME(clear)(s, token);
    s->cpu->XNAME(activate)(s->problem->activation, levels, s->work->logit + (int64_t)token * levels);
    for (level = 0; level < levels; level++)
        NAME(add_row)(s, token, level);
}

/* Copy the rows of the subtree of `tier` levels below node side by side, in heap order. */
static void NAME(copy_subtree)(const X *w, int64_t ld, int64_t d, int64_t node, int32_t tier, X *panel)
{
    int64_t begin = node;
    for (int32_t level = 0; level < tier; level++, begin = cmm_left_child(begin))
        for (int64_t i = 0; i < (int64_t)1 << level; i++, panel += d)
            memcpy(panel, w + (begin + i) * ld, (size_t)d * sizeof(X));
}

/* The outputs of a group whose tokens share the path down to `node`, at level `level`, and leave the tree `tier` levels
 * further on. */
static void NAME(epilogue)(const NAME(tree_state) *s, int64_t begin, int64_t end, int64_t node, int32_t level,
                           int32_t tier)
{
    const cmm_problem *const problem = s->problem;
    const NAME(work) *const w = s->work;
    const int32_t levels = problem->depth + 1, rows = level + (1 << tier) - 1;
    const int64_t d_out = problem->d_out;
    const int32_t *const path = w->node + (int64_t)w->permutation[begin] * levels;
    for (int32_t i = 0; i < level; i++)
        memcpy(w->w_out + i * d_out, s->w_out + path[i] * problem->ld_out, (size_t)d_out * sizeof(X));
    NAME(copy_subtree)(s->w_out, problem->ld_out, d_out, node, tier, w->w_out + level * d_out);
    const int finite = NAME(finite)(w->w_out + level * d_out, (rows - level) * d_out);
    for (int64_t done = begin; done < end; done += BLOCK) {
        const int32_t tokens = (int32_t)cmm_least(BLOCK, end - done);
        memset(w->product, 0, (size_t)(tokens * rows) * sizeof(X));
        for (int32_t t = 0; t < tokens; t++) {
            const int32_t token = w->permutation[done + t];
            X *const logit = w->logit + (int64_t)token * levels, *const c = w->product + t * rows;
            s->cpu->XNAME(activate)(problem->activation, levels, logit);
            for (int32_t i = 0; i < level; i++)
                c[i] = logit[i];
            for (int32_t i = 0; i < tier; i++) {
                const int64_t place = w->node[(int64_t)token * levels + level + i] - cmm_descendant(node, i, 0);
                c[level + cmm_descendant(0, i, place)] = logit[level + i];
            }
        }
        if (finite)
            NAME(outputs_of)(problem, s->cpu, tokens, w->y, rows, w->w_out, d_out, w->product, 0);
        for (int32_t t = 0; t < tokens; t++) {
            const int32_t token = w->permutation[done + t];
            X *const y = s->y + token * d_out;
            if (!finite)
                NAME(clear)(s, token);
            for (int32_t i = 0; !finite && i < levels; i++)
                NAME(add_row)(s, token, i);
            for (int64_t o = 0; finite && o < d_out; o++)
                y[o] = s->tree == 0 ? w->y[t * d_out + o] : y[o] + w->y[t * d_out + o];
        }
    }
}

/* The group permutation[begin .. end), all at `node` of level `level`: through the tree to its end. */
static void NAME(group)(const NAME(tree_state) *s, int64_t begin, int64_t end, int64_t node, int32_t level)
{
    const cmm_problem *const problem = s->problem;
    const NAME(work) *const w = s->work;
    const int32_t left = problem->depth + 1 - level, tiers = (left + TIER - 1) / TIER,
        tier = (left + tiers - 1) / tiers;
    const int32_t rows = (1 << tier) - 1;
    if (end - begin < SMALL_GROUP) {
        for (int64_t i = begin; i < end; i++)
            NAME(finish_alone)(s, w->permutation[i], node, level);
        return;
    }
    /* The rows below the root lie side by side already. */
    const X *panel = s->w_in;
    int64_t ld = problem->ld_in;
    if (level > 0) {
        NAME(copy_subtree)(s->w_in, problem->ld_in, problem->d_in, node, tier, w->w_in);
        panel = w->w_in;
        ld = problem->d_in;
    }
    int64_t starts[(1 << TIER) + 1] = {0};
    for (int64_t done = begin; done < end; done += BLOCK) {
        const int32_t tokens = (int32_t)cmm_least(BLOCK, end - done);
        const X *x = s->x + done * problem->d_in; /* at the root the tokens are in their own order */
        if (level > 0) {
            for (int32_t t = 0; t < tokens; t++)
                memcpy(w->x + t * problem->d_in, s->x + w->permutation[done + t] * problem->d_in,
                       (size_t)problem->d_in * sizeof(X));
            x = w->x;
        }
        NAME(logits_of)(problem, s->cpu, tokens, x, rows, panel, ld, w->product);
        for (int32_t t = 0; t < tokens; t++) {
            int64_t at = 0;
            for (int32_t i = 0; i < tier; i++) {
                const int64_t in_tree = cmm_descendant(node, i, at - cmm_descendant(0, i, 0));
                X logit = w->product[t * rows + at];
                if (s->bias)
                    logit += s->bias[in_tree];
                NAME(visit)(s, w->permutation[done + t], level + i, in_tree, logit);
                at = cmm_left_child(at) +
                     CMM_TURNS_RIGHT(problem, s->first + w->permutation[done + t], s->tree, level + i, logit);
            }
            w->child[done + t] = (int32_t)(at - rows);
            starts[at - rows + 1]++;
        }
    }
    if (tier == left) {
        if (s->y)
            NAME(epilogue)(s, begin, end, node, level, tier);
        return;
    }
    /* Counting sort by child. */
    starts[0] = begin;
    for (int32_t c = 0; c < 1 << tier; c++)
        starts[c + 1] += starts[c];
    int64_t to[1 << TIER];
    memcpy(to, starts, sizeof to);
    for (int64_t i = begin; i < end; i++)
        w->sorted[to[w->child[i]]++] = w->permutation[i];
    memcpy(w->permutation + begin, w->sorted + begin, (size_t)(end - begin) * sizeof *w->permutation);
    for (int32_t c = 0; c < 1 << tier; c++)
        if (starts[c] < starts[c + 1])
            NAME(group)(s, starts[c], starts[c + 1], cmm_descendant(node, tier, c), level + tier);
}

static int64_t NAME(run)(const cmm_problem *problem, const cmm_context *cpu, int64_t first, int64_t count, void *memory)
{
    NAME(work) w = {0};
    (void)NAME(lay_out)(problem, count, memory, &w);
    if (is_shallow(problem)) {
        NAME(run_shallow)(problem, cpu, first, count, &w);
        return 0;
    }
    for (int64_t done = 0; done < count; done += CHUNK) {
        const int64_t tokens = cmm_least(CHUNK, count - done);
        NAME(tree_state) s = {.problem = problem, .cpu = cpu, .work = &w, .first = first + done};
        s.x = (const X *)problem->x + s.first * problem->d_in;
        s.y = problem->y ? (X *)problem->y + s.first * problem->d_out : NULL;
        for (s.tree = 0; s.tree < problem->trees; s.tree++) {
            s.w_in = (const X *)problem->w_in + s.tree * problem->nodes * problem->ld_in;
            s.bias = problem->bias ? (const X *)problem->bias + s.tree * problem->nodes : NULL;
            s.w_out = problem->y ? (const X *)problem->w_out + s.tree * problem->nodes * problem->ld_out : NULL;
            for (int64_t i = 0; i < tokens; i++)
                w.permutation[i] = (int32_t)i;
            NAME(group)(&s, 0, tokens, 0, 0);
        }
    }
    return 0;
}

static int64_t NAME(scratch)(const cmm_problem *problem, const cmm_context *cpu, int64_t count)
{
    (void)cpu;
    return NAME(lay_out)(problem, count, NULL, &(NAME(work)){0});
}

BLAS_KERNEL(FFF, 3, NAME(scratch))

#endif
