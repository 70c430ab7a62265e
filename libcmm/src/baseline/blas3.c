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

static int64_t merged_trees(const cmm_problem *task)
{
    const int64_t trees = MERGED / task->nodes;
    return cmm_least(trees < 1 ? 1 : trees, task->trees);
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
static int is_shallow(const cmm_problem *task)
{
    return task->depth < SHALLOW && (task->depth == 0 || is_zero_at_zero(task->activation));
}

#include "../for_each_type.h"

CMM_EXPORT(cmm_fff_blas3)

#else

typedef struct {
    int32_t *order;        /* [CHUNK] tokens of the chunk, in the order of their groups */
    int32_t *sorted;       /* [CHUNK] the order to be */
    int32_t *child;        /* [CHUNK] where each token of a group left the tier */
    int32_t *node;         /* [CHUNK][levels] the path */
    X *logit;           /* [CHUNK][levels], and then the activations */
    X *x;               /* [BLOCK][d_in] gathered */
    X *y;               /* [BLOCK][d_out] to be scattered */
    X *w_in, *w_out;    /* [2^TIER - 1][d_in] and [PANEL][d_out]: the rows of a subtree side by side */
    X *product;         /* [BLOCK][max(PANEL, merged rows)] logits, and then coefficients */
} NAME(work);

static int64_t NAME(lay_out)(const cmm_problem *task, int64_t count, char *memory, NAME(work) *w)
{
    const int64_t size = sizeof(X), tokens = cmm_least(count, CHUNK), block = cmm_least(count, BLOCK);
    const int64_t merged = merged_trees(task) * task->nodes, levels = task->depth + 1;
    int64_t used = 0;
    w->product = cmm_take(memory, &used, block * (is_shallow(task) ? merged : (int64_t)PANEL) * size);
    if (is_shallow(task))
        return used;
    w->order = cmm_take(memory, &used, tokens * (int64_t)sizeof(int32_t));
    w->sorted = cmm_take(memory, &used, tokens * (int64_t)sizeof(int32_t));
    w->child = cmm_take(memory, &used, tokens * (int64_t)sizeof(int32_t));
    w->node = cmm_take(memory, &used, tokens * levels * (int64_t)sizeof(int32_t));
    w->logit = cmm_take(memory, &used, tokens * levels * size);
    w->x = cmm_take(memory, &used, block * task->d_in * size);
    w->y = cmm_take(memory, &used, block * task->d_out * size);
    w->w_in = cmm_take(memory, &used, ((1 << TIER) - 1) * task->d_in * size);
    w->w_out = cmm_take(memory, &used, (int64_t)PANEL * task->d_out * size);
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
static void NAME(logits_of)(const cmm_problem *task, const cmm_context *cpu, int32_t tokens, const X *x, int32_t rows,
                            const X *w, int64_t ld, X *product)
{
    const int32_t d_in = (int32_t)task->d_in, ld_in = (int32_t)ld;
    const X unit = 1, zero = 0;
    cpu->blas->BLAS(gemm)("T", "N", &rows, &tokens, &d_in, &unit, w, &ld_in, x, &d_in, &zero, product, &rows);
}

/* y[tokens][d_out] = beta y + product[tokens][rows] times the rows of w. */
static void NAME(outputs_of)(const cmm_problem *task, const cmm_context *cpu, int32_t tokens, X *y, int32_t rows,
                             const X *w, int64_t ld, const X *product, X beta)
{
    const int32_t d_out = (int32_t)task->d_out, ld_out = (int32_t)ld;
    const X unit = 1;
    cpu->blas->BLAS(gemm)("N", "N", &d_out, &tokens, &rows, &unit, w, &ld_out, product, &rows, &beta, y, &d_out);
}

/* ---- shallow trees: all their nodes, many trees at once --------------------------------------------------------- */

/* Walk one token through the logits of one whole tree, and leave coefficients in their place: 0 where it was not. */
static void NAME(walk_whole)(const cmm_problem *task, int64_t token, int64_t tree, X *logits)
{
    const int32_t levels = task->depth + 1;
    const X *const bias = task->bias ? (const X *)task->bias + tree * task->nodes : NULL;
    int64_t node = 0, step = (token * task->trees + tree) * levels;
    int32_t visited[SHALLOW];
    X coefficients[SHALLOW];
    for (int32_t level = 0; level < levels; level++, step++) {
        const X logit = bias ? logits[node] + bias[node] : logits[node];
        if (task->nodes_out)
            task->nodes_out[step] = (int32_t)node;
        if (task->logits_out)
            ((X *)task->logits_out)[step] = logit;
        visited[level] = (int32_t)node;
        coefficients[level] = logit;
        node = XNAME(cmm_child)(node, logit, task->tie);
    }
    if (levels > 1)
        memset(logits, 0, (size_t)task->nodes * sizeof(X));
    for (int32_t level = 0; level < levels; level++)
        logits[visited[level]] = coefficients[level];
}

static void NAME(run_shallow)(const cmm_problem *task, const cmm_context *cpu, int64_t first, int64_t count,
                              const NAME(work) *w)
{
    const int64_t nodes = task->nodes, merged = merged_trees(task), d_out = task->d_out;
    const int32_t one = 1, width = (int32_t)d_out;
    for (int64_t done = 0; done < count; done += BLOCK) {
        const int32_t tokens = (int32_t)cmm_least(BLOCK, count - done);
        const X *const x = (const X *)task->x + (first + done) * task->d_in;
        X *const y = task->y ? (X *)task->y + (first + done) * d_out : NULL;
        for (int64_t tree = 0; tree < task->trees; tree += merged) {
            const int64_t trees = cmm_least(merged, task->trees - tree), rows = trees * nodes;
            NAME(logits_of)(task, cpu, tokens, x, (int32_t)rows, (const X *)task->w_in + tree * nodes * task->ld_in,
                            task->ld_in, w->product);
            for (int64_t t = 0; t < tokens; t++)
                for (int64_t k = 0; k < trees; k++)
                    NAME(walk_whole)(task, first + done + t, tree + k, w->product + t * rows + k * nodes);
            if (!y)
                continue;
            cpu->XNAME(activate)(task->activation, tokens * rows, w->product);
            const X *const w_out = (const X *)task->w_out + tree * nodes * task->ld_out;
            int finite = 1;
            for (int64_t r = 0; nodes > 1 && r < rows; r++)
                finite &= NAME(finite)(w_out + r * task->ld_out, d_out);
            if (finite) {
                NAME(outputs_of)(task, cpu, tokens, y, (int32_t)rows, w_out, task->ld_out, w->product,
                                 tree == 0 ? 0 : 1);
                continue;
            }
            memset(y, 0, tree == 0 ? (size_t)(tokens * d_out) * sizeof(X) : 0);
            for (int64_t t = 0; t < tokens; t++)
                for (int64_t r = 0; r < rows; r++)
                    if (w->product[t * rows + r] != 0)
                        cpu->blas->BLAS(axpy)(&width, &w->product[t * rows + r], w_out + r * task->ld_out, &one,
                                               y + t * d_out, &one);
        }
    }
}

/* ---- deep trees: tier by tier, group by group -------------------------------------------------------------------- */

/* One tree over one chunk of tokens. */
typedef struct {
    const cmm_problem *task;
    const cmm_context *cpu;
    const NAME(work) *work;
    int64_t first, tree;
    const X *w_in, *bias, *w_out; /* of this tree */
    const X *x;
    X *y;
} NAME(pass);

/* The first tree finds no output yet. */
static void NAME(clear)(const NAME(pass) *p, int32_t token)
{
    if (p->tree == 0)
        memset(p->y + token * p->task->d_out, 0, (size_t)p->task->d_out * sizeof(X));
}

static void NAME(add_row)(const NAME(pass) *p, int32_t token, int32_t level)
{
    const int32_t one = 1, d_out = (int32_t)p->task->d_out;
    const int64_t step = (int64_t)token * (p->task->depth + 1) + level;
    p->cpu->blas->BLAS(axpy)(&d_out, &p->work->logit[step], p->w_out + p->work->node[step] * p->task->ld_out, &one,
                              p->y + (int64_t)token * d_out, &one);
}

static void NAME(visit)(const NAME(pass) *p, int32_t token, int32_t level, int64_t node, X logit)
{
    const int32_t levels = p->task->depth + 1;
    const int64_t step = ((p->first + token) * p->task->trees + p->tree) * levels + level;
    p->work->node[(int64_t)token * levels + level] = (int32_t)node;
    p->work->logit[(int64_t)token * levels + level] = logit;
    if (p->task->nodes_out)
        p->task->nodes_out[step] = (int32_t)node;
    if (p->task->logits_out)
        ((X *)p->task->logits_out)[step] = logit;
}

/* A token that is nearly alone at a node: to its leaf by dot, and out by axpy. */
static void NAME(finish_alone)(const NAME(pass) *p, int32_t token, int64_t node, int32_t level)
{
    const int32_t one = 1, levels = p->task->depth + 1, d_in = (int32_t)p->task->d_in;
    for (; level < levels; level++) {
        X logit = p->cpu->blas->BLAS(dot)(&d_in, p->w_in + node * p->task->ld_in, &one,
                                              p->x + (int64_t)token * d_in, &one);
        if (p->bias)
            logit += p->bias[node];
        NAME(visit)(p, token, level, node, logit);
        node = XNAME(cmm_child)(node, logit, p->task->tie);
    }
    if (!p->y)
        return;
    NAME(clear)(p, token);
    p->cpu->XNAME(activate)(p->task->activation, levels, p->work->logit + (int64_t)token * levels);
    for (level = 0; level < levels; level++)
        NAME(add_row)(p, token, level);
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
static void NAME(leave)(const NAME(pass) *p, int64_t begin, int64_t end, int64_t node, int32_t level, int32_t tier)
{
    const cmm_problem *const task = p->task;
    const NAME(work) *const w = p->work;
    const int32_t levels = task->depth + 1, rows = level + (1 << tier) - 1;
    const int64_t d_out = task->d_out;
    const int32_t *const path = w->node + (int64_t)w->order[begin] * levels;
    for (int32_t i = 0; i < level; i++)
        memcpy(w->w_out + i * d_out, p->w_out + path[i] * task->ld_out, (size_t)d_out * sizeof(X));
    NAME(copy_subtree)(p->w_out, task->ld_out, d_out, node, tier, w->w_out + level * d_out);
    const int finite = NAME(finite)(w->w_out + level * d_out, (rows - level) * d_out);
    for (int64_t done = begin; done < end; done += BLOCK) {
        const int32_t tokens = (int32_t)cmm_least(BLOCK, end - done);
        memset(w->product, 0, (size_t)(tokens * rows) * sizeof(X));
        for (int32_t t = 0; t < tokens; t++) {
            const int32_t token = w->order[done + t];
            X *const logit = w->logit + (int64_t)token * levels, *const c = w->product + t * rows;
            p->cpu->XNAME(activate)(task->activation, levels, logit);
            for (int32_t i = 0; i < level; i++)
                c[i] = logit[i];
            for (int32_t i = 0; i < tier; i++) {
                const int64_t place = w->node[(int64_t)token * levels + level + i] - cmm_descendant(node, i, 0);
                c[level + cmm_descendant(0, i, place)] = logit[level + i];
            }
        }
        if (finite)
            NAME(outputs_of)(task, p->cpu, tokens, w->y, rows, w->w_out, d_out, w->product, 0);
        for (int32_t t = 0; t < tokens; t++) {
            const int32_t token = w->order[done + t];
            X *const y = p->y + token * d_out;
            if (!finite)
                NAME(clear)(p, token);
            for (int32_t i = 0; !finite && i < levels; i++)
                NAME(add_row)(p, token, i);
            for (int64_t o = 0; finite && o < d_out; o++)
                y[o] = p->tree == 0 ? w->y[t * d_out + o] : y[o] + w->y[t * d_out + o];
        }
    }
}

/* The group order[begin .. end), all at `node` of level `level`: through the tree to its end. */
static void NAME(group)(const NAME(pass) *p, int64_t begin, int64_t end, int64_t node, int32_t level)
{
    const cmm_problem *const task = p->task;
    const NAME(work) *const w = p->work;
    const int32_t left = task->depth + 1 - level, tiers = (left + TIER - 1) / TIER, tier = (left + tiers - 1) / tiers;
    const int32_t rows = (1 << tier) - 1;
    if (end - begin < SMALL_GROUP) {
        for (int64_t i = begin; i < end; i++)
            NAME(finish_alone)(p, w->order[i], node, level);
        return;
    }
    /* The rows below the root lie side by side already. */
    const X *panel = p->w_in;
    int64_t ld = task->ld_in;
    if (level > 0) {
        NAME(copy_subtree)(p->w_in, task->ld_in, task->d_in, node, tier, w->w_in);
        panel = w->w_in;
        ld = task->d_in;
    }
    int64_t starts[(1 << TIER) + 1] = {0};
    for (int64_t done = begin; done < end; done += BLOCK) {
        const int32_t tokens = (int32_t)cmm_least(BLOCK, end - done);
        const X *x = p->x + done * task->d_in; /* at the root the tokens are in their own order */
        if (level > 0) {
            for (int32_t t = 0; t < tokens; t++)
                memcpy(w->x + t * task->d_in, p->x + w->order[done + t] * task->d_in,
                       (size_t)task->d_in * sizeof(X));
            x = w->x;
        }
        NAME(logits_of)(task, p->cpu, tokens, x, rows, panel, ld, w->product);
        for (int32_t t = 0; t < tokens; t++) {
            int64_t at = 0;
            for (int32_t i = 0; i < tier; i++) {
                const int64_t in_tree = cmm_descendant(node, i, at - cmm_descendant(0, i, 0));
                X logit = w->product[t * rows + at];
                if (p->bias)
                    logit += p->bias[in_tree];
                NAME(visit)(p, w->order[done + t], level + i, in_tree, logit);
                at = XNAME(cmm_child)(at, logit, task->tie);
            }
            w->child[done + t] = (int32_t)(at - rows);
            starts[at - rows + 1]++;
        }
    }
    if (tier == left) {
        if (p->y)
            NAME(leave)(p, begin, end, node, level, tier);
        return;
    }
    /* Counting sort by child. */
    starts[0] = begin;
    for (int32_t c = 0; c < 1 << tier; c++)
        starts[c + 1] += starts[c];
    int64_t to[1 << TIER];
    memcpy(to, starts, sizeof to);
    for (int64_t i = begin; i < end; i++)
        w->sorted[to[w->child[i]]++] = w->order[i];
    memcpy(w->order + begin, w->sorted + begin, (size_t)(end - begin) * sizeof *w->order);
    for (int32_t c = 0; c < 1 << tier; c++)
        if (starts[c] < starts[c + 1])
            NAME(group)(p, starts[c], starts[c + 1], cmm_descendant(node, tier, c), level + tier);
}

static void NAME(run)(const cmm_problem *task, const cmm_context *cpu, int64_t first, int64_t count, void *memory)
{
    NAME(work) w = {0};
    (void)NAME(lay_out)(task, count, memory, &w);
    if (is_shallow(task)) {
        NAME(run_shallow)(task, cpu, first, count, &w);
        return;
    }
    for (int64_t done = 0; done < count; done += CHUNK) {
        const int64_t tokens = cmm_least(CHUNK, count - done);
        NAME(pass) p = {.task = task, .cpu = cpu, .work = &w, .first = first + done};
        p.x = (const X *)task->x + p.first * task->d_in;
        p.y = task->y ? (X *)task->y + p.first * task->d_out : NULL;
        for (p.tree = 0; p.tree < task->trees; p.tree++) {
            p.w_in = (const X *)task->w_in + p.tree * task->nodes * task->ld_in;
            p.bias = task->bias ? (const X *)task->bias + p.tree * task->nodes : NULL;
            p.w_out = task->y ? (const X *)task->w_out + p.tree * task->nodes * task->ld_out : NULL;
            for (int64_t i = 0; i < tokens; i++)
                w.order[i] = (int32_t)i;
            NAME(group)(&p, 0, tokens, 0, 0);
        }
    }
}

static int64_t NAME(scratch)(const cmm_problem *task, const cmm_context *cpu, int64_t count)
{
    (void)cpu;
    return NAME(lay_out)(task, count, NULL, &(NAME(work)){0});
}

BLAS_KERNEL(FFF, 3, NAME(scratch))

#endif
