/* Level 2: pointer-batched matrix-vector products, one batch per tree level over a chunk of tokens.
 * The items of a batch are in the order of their nodes, so that tokens at the same node use its row one after another.
 * Work:   2 (d_in + d_out) flops per visited neuron; two batches per level (gemv_batch, where the BLAS has it; else a
 *         loop over the same pointers: a matrix-vector product with a one-row matrix is a dot, and with a one-column
 *         matrix an axpy).
 * Memory: a chunk's x and y stay in L2; each row visited by the chunk comes from L3 or memory once per chunk.
 * Sums:   those of the BLAS, then the bias; y sums trees, then levels, in order.
 * Limit:  the cost of one item. Real matrix products over groups of tokens (level 3) move it. */
#ifndef CMM_TYPE
#include "../blas_kernel.h"
#include "../tree.h"

#define CMM_BODY "baseline/blas2.c"
#define CMM_LIST CMM_SAME_TYPES
#include "../for_each_type.h"

CMM_EXPORT(cmm_fff_blas2)

#else

/* Tokens of a chunk: their x and y take half of L2. */
static int64_t NAME(chunk_tokens)(const cmm_problem *problem, const cmm_context *cpu)
{
    const int64_t size = sizeof(X);
    const int64_t tokens = cpu->machine->l2 / 2 / ((problem->d_in + problem->d_out) * size);
    return tokens < 16 ? 16 : tokens > 8192 ? 8192 : tokens;
}

/* The items of one batch, all of the same shape; item i belongs to token permutation[i] of the chunk. */
typedef struct {
    const X **row, **x;
    X **y;
    X *logit;
    int32_t *permutation, *next, *node;
} NAME(batch);

/* logit[i] = dot(row[i], x[i]) */
static void NAME(dots)(const cmm_blas *blas, const NAME(batch) *b, int32_t items, int32_t d, int32_t ld)
{
    const int32_t one = 1;
    if (blas->BLAS(gemv_batch)) {
        const X unit = 1, zero = 0;
        for (int32_t i = 0; i < items; i++)
            b->y[i] = &b->logit[i];
        blas->BLAS(gemv_batch)("T", &d, &one, &unit, b->row, &ld, b->x, &one, &zero, b->y, &one, &one, &items);
        return;
    }
    for (int32_t i = 0; i < items; i++)
        b->logit[i] = blas->BLAS(dot)(&d, b->row[i], &one, b->x[i], &one);
}

/* y[i] += logit[i] * row[i] */
static void NAME(axpys)(const cmm_blas *blas, const NAME(batch) *b, int32_t items, int32_t d, int32_t ld)
{
    const int32_t one = 1;
    if (blas->BLAS(gemv_batch)) {
        const X unit = 1;
        for (int32_t i = 0; i < items; i++)
            b->x[i] = &b->logit[i];
        blas->BLAS(gemv_batch)("N", &d, &one, &unit, b->row, &ld, b->x, &one, &unit, b->y, &one, &one, &items);
        return;
    }
    for (int32_t i = 0; i < items; i++)
        blas->BLAS(axpy)(&d, &b->logit[i], b->row[i], &one, b->y[i], &one);
}

/* Move every token to its child, and bring the order from nodes of one level to nodes of the next: within each run of
 * tokens at one node, those that go left come first. */
static void NAME(descend)(const cmm_problem *problem, NAME(batch) *b, int32_t items, int64_t first, int64_t tree,
                          int32_t level)
{
    int32_t to = 0;
    for (int32_t begin = 0, end; begin < items; begin = end) {
        const int32_t node = b->node[b->permutation[begin]];
        for (end = begin; end < items && b->node[b->permutation[end]] == node; end++)
            ;
        for (int32_t i = begin; i < end; i++) {
            const int32_t token = b->permutation[i];
            /* below the deepest leaves it wraps, unused */
            b->node[token] = (int32_t)(cmm_left_child(node) +
                                       CMM_TURNS_RIGHT(problem, first + token, tree, level, b->logit[i]));
        }
        for (int32_t right = 0; right < 2; right++)
            for (int32_t i = begin; i < end; i++)
                if (b->node[b->permutation[i]] == (int32_t)(cmm_left_child(node) + right))
                    b->next[to++] = b->permutation[i];
    }
    int32_t *const permutation = b->permutation;
    b->permutation = b->next;
    b->next = permutation;
}

static void NAME(chunk)(const cmm_problem *problem, const cmm_context *cpu, int64_t first, int32_t items,
                        NAME(batch) *b)
{
    const int32_t levels = problem->depth + 1, d_in = (int32_t)problem->d_in, d_out = (int32_t)problem->d_out;
    const X *const x = (const X *)problem->x + first * d_in, *const bias = problem->bias;
    X *const y = problem->y ? (X *)problem->y + first * d_out : NULL;
    for (int64_t i = 0; y && i < (int64_t)items * d_out; i++)
        y[i] = 0;
    for (int64_t tree = 0; tree < problem->trees; tree++) {
        const X *const w_in = (const X *)problem->w_in + tree * problem->nodes * problem->ld_in;
        const X *const w_out = y ? (const X *)problem->w_out + tree * problem->nodes * problem->ld_out : NULL;
        for (int32_t i = 0; i < items; i++) {
            b->permutation[i] = i;
            b->node[i] = 0;
        }
        for (int32_t level = 0; level < levels; level++) {
            for (int32_t i = 0; i < items; i++) {
                b->row[i] = w_in + b->node[b->permutation[i]] * problem->ld_in;
                b->x[i] = x + (int64_t)b->permutation[i] * d_in;
            }
            NAME(dots)(cpu->blas, b, items, d_in, (int32_t)problem->ld_in);
            for (int32_t i = 0; i < items; i++) {
                const int32_t token = b->permutation[i], node = b->node[token];
                const int64_t step = ((first + token) * problem->trees + tree) * levels + level;
                if (bias)
                    b->logit[i] += bias[tree * problem->nodes + node];
                if (problem->nodes_out)
                    problem->nodes_out[step] = node;
                if (problem->logits_out)
                    ((X *)problem->logits_out)[step] = b->logit[i];
                if (y) {
                    b->row[i] = w_out + node * problem->ld_out;
                    b->y[i] = y + (int64_t)token * d_out;
                }
            }
            NAME(descend)(problem, b, items, first, tree, level);
            if (y) {
                cpu->XNAME(activate)(problem->activation, items, b->logit);
                NAME(axpys)(cpu->blas, b, items, d_out, (int32_t)problem->ld_out);
            }
        }
    }
}

static int64_t NAME(run)(const cmm_problem *problem, const cmm_context *cpu, int64_t first, int64_t count, void *memory)
{
    const int64_t limit = NAME(chunk_tokens)(problem, cpu), chunk = limit < count ? limit : count;
    NAME(batch) b;
    b.row = memory;
    b.x = b.row + chunk;
    b.y = (X **)(b.x + chunk);
    b.logit = (X *)(b.y + chunk);
    b.permutation = (int32_t *)(b.logit + chunk);
    b.next = b.permutation + chunk;
    b.node = b.next + chunk;
    for (int64_t done = 0; done < count; done += chunk)
        NAME(chunk)(problem, cpu, first + done, (int32_t)(chunk < count - done ? chunk : count - done), &b);
    return 0;
}

static int64_t NAME(scratch)(const cmm_problem *problem, const cmm_context *cpu, int64_t count)
{
    const int64_t chunk = NAME(chunk_tokens)(problem, cpu) < count ? NAME(chunk_tokens)(problem, cpu) : count;
    return chunk * (int64_t)(3 * sizeof(void *) + sizeof(X) + 3 * sizeof(int32_t));
}

BLAS_KERNEL(FFF, 2, NAME(scratch))

#endif
