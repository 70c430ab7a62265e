/* Native, the backward pass: every sum of a weight's gradient is that of one node, over its tokens.
 *
 * The driver (backward.c) brings the tokens into the order of their leaves, in which those of each node of a tree lie
 * together: one sort serves all levels. back_tokens() takes MR neighbours at a time, which share the first rows of their
 * paths: dots() with rows of w_out for dz, weighted_sums() of rows of w_in for dx, as the forward pass has them.
 * back_rows() takes BLOCK tokens at a time down the tree, a strip of columns wide: a run of tokens that are all at the same
 * nodes for some levels adds to MR of those rows of dW at once; then it is split in two, and each half goes on.
 * Work:   8 flops for each column of a visited row: 4 (d_in + d_out) in each of the two functions.
 * Memory: rows of both weights about once; x, dy, dx once; in back_rows() x and dy from L2 for the levels of a block, rows
 *         of dW of the top once per block, each row below about once.
 * Sums:   da and dx as in the forward pass; each element of dW and dbias starts at 0, or at what it adds to, and takes its
 *         node's tokens by fused multiply-add (dbias: by addition) in the order of their leaves, those of a leaf in order.
 * Limit:  writing dW, where the tokens are few; else the loads of x and dy from L2. */
#ifndef CMM_TYPE
#include "native.h"

#define CMM_BODY "fff/by_node.inl"
#define CMM_LIST CMM_SAME_TYPES

enum { BLOCK = 16 }; /* tokens whose strips of x stay in cache on their way down */

/* Of depth + 1 levels, how many the paths to two leaves share. */
static inline int64_t shared_levels(uint32_t a, uint32_t b, int32_t depth)
{
    return a == b ? depth + 1 : cmm_shared_prefix(a, b, depth);
}

#include "../for_each_type.h"

CMM_EXPORT(CMM_JOIN(cmm_backward_by_node_, ISA))

#else
#include "microkernel.inl"
#include "many_rows.inl"

/* ---- gradients of tokens ----------------------------------------------------------------------------------------- */

/* The number, among those of all trees, of the row-th neuron of a path: of a node's row, or of a tree of one node. */
INLINE int64_t NAME(neuron)(const cmm_backward *b, const int32_t *node, int64_t row)
{
    return b->problem->depth == 0 ? b->tree + row : b->tree * b->problem->nodes + node[row];
}

/* dz and dx of places first .. first + n - 1, n <= MR. dz holds the derivatives of the activations, [n][rows]. */
static void NAME(group)(const cmm_backward *b, int64_t first, int n, X *dz)
{
    const cmm_problem *const problem = b->problem;
    const int64_t rows = b->rows, levels = problem->depth + 1, d_out = problem->d_out;
    const W *const w_out = problem->w_out;
    const int32_t *node[MR] = {NULL};
    const X *dy[MR];
    for (int t = 0; t < n; t++) {
        const int64_t token = b->order[first + t];
        node[t] = problem->path + (token * problem->trees + b->tree) * levels;
        dy[t] = (const X *)b->dy + token * d_out;
    }
    const int64_t shared =
        problem->depth == 0 ? rows : shared_levels(b->leaf[first], b->leaf[first + n - 1], problem->depth);
    for (int64_t row = 0, m; row < shared; row += m) {
        X da[NR][MR];
        const W *w[NR];
        m = shared - row >= NR ? NR : 1;
        for (int64_t i = 0; i < m; i++)
            w[i] = w_out + NAME(neuron)(b, node[0], row + i) * problem->ld_out;
        if (m == NR)
            NAME(dots_of_rows)(n, w, dy, d_out, da, NULL);
        else
            NAME(dots)(n, w[0], dy, d_out, da[0], NULL);
        for (int64_t i = 0; i < m; i++)
            for (int t = 0; t < n; t++)
                dz[t * rows + row + i] *= da[i][t];
    }
    for (int t = 0; t < n; t++)
        for (int64_t row = shared, m; row < rows; row += m) {
            X da[MR];
            const W *w[MR];
            m = cmm_least(MR, rows - row);
            for (int64_t i = 0; i < m; i++)
                w[i] = w_out + NAME(neuron)(b, node[t], row + i) * problem->ld_out;
            NAME(dots_of_token)((int)m, dy[t], w, d_out, da, NULL);
            for (int64_t i = 0; i < m; i++)
                dz[t * rows + row + i] *= da[i];
        }
    if (!b->dx)
        return;
    const void *row_in[MR][CMM_BACKWARD_ROWS];
    XNAME(output_args) args[MR];
    for (int t = 0; t < n; t++) {
        for (int64_t row = 0; row < rows; row++)
            row_in[t][row] = (const W *)problem->w_in + NAME(neuron)(b, node[t], row) * problem->ld_in;
        args[t] = (XNAME(output_args)){row_in[t], dz + t * rows, (X *)b->dx + b->order[first + t] * problem->d_in};
    }
    const int adds = b->tree > 0 || (b->accumulate & CMM_DX);
    NAME(weighted_sums)(n, args, problem->d_in, adds ? Y_ADD : Y_STORE, (int)shared, (int)rows);
}

static void NAME(back_tokens)(const cmm_backward *b, int64_t first, int64_t count)
{
    const cmm_problem *const problem = b->problem;
    const int64_t rows = b->rows, levels = problem->depth + 1;
    X *const dz = b->dz ? (X *)b->dz + first * rows : NULL, *const a = b->a ? (X *)b->a + first * rows : NULL;
    for (int64_t i = 0; i < count; i++) {
        const X *const logits =
            (const X *)b->logits + (b->order[first + i] * problem->trees + b->tree) * levels;
        if (dz)
            memcpy(dz + i * rows, logits, (size_t)rows * sizeof(X));
        if (a)
            memcpy(a + i * rows, logits, (size_t)rows * sizeof(X));
    }
    if (a)
        b->cpu->XNAME(activate)(problem->activation, count * rows, a);
    if (!dz)
        return;
    b->cpu->XNAME(differentiate)(problem->activation, count * rows, dz);
    for (int64_t i = 0; i < count; i += MR) {
        for (int64_t next = i + MR; next < cmm_least(i + 2 * MR, count); next++)
            prefetch_later((const X *)b->dy + b->order[first + next] * problem->d_out,
                           problem->d_out * (int64_t)sizeof(X));
        NAME(group)(b, first + i, (int)cmm_least(MR, count - i), dz + i * rows);
    }
}

/* ---- gradients of rows ------------------------------------------------------------------------------------------- */

/* One of the two weights: out[row] (+)= sum over places of c[place][row] * tokens[order[place]], in a strip of columns. */
typedef struct {
    const cmm_backward *b;
    const X *tokens, *c;
    X *out;
    int64_t d, ld;
    int64_t first, end; /* columns */
    int adds;
} NAME(sums);

/* Columns [at, at + columns vectors) of n rows for places lo .. hi - 1; coefficients c[place][row], ... The rows from `fresh`
 * on start at 0, those before at what is there. The last `part` elements, where part > 0, fill only a part of a vector. */
INLINE void NAME(row_sum_microkernel)(const int n, const int columns, const NAME(sums) *s, int64_t at, int64_t part,
                                      int64_t lo, int64_t hi, int64_t row, X *const *out, int64_t fresh)
{
    const int64_t rows = s->b->rows;
    XNAME(vec) sum[MR][COLUMNS_ALONE];
#pragma GCC unroll 16
    for (int r = 0; r < n; r++)
#pragma GCC unroll 16
        for (int v = 0; v < columns; v++)
            sum[r][v] = r >= fresh ? XNAME(vec_zero)()
                        : part > 0 ? XNAME(vec_load_masked)(out[r] + at, part)
                                   : XNAME(vec_load)(out[r] + at + v * XNAME(VL));
    for (int64_t place = lo; place < hi; place++) {
        const X *const token = s->tokens + s->b->order[place] * s->d + at, *const c = s->c + place * rows + row;
        XNAME(vec) weight[MR];
#pragma GCC unroll 16
        for (int r = 0; r < n; r++)
            weight[r] = XNAME(vec_broadcast)(c[r]);
#pragma GCC unroll 16
        for (int v = 0; v < columns; v++) {
            const XNAME(vec) x = part > 0 ? XNAME(vec_load_masked)(token, part) : XNAME(vec_load)(token + v * XNAME(VL));
#pragma GCC unroll 16
            for (int r = 0; r < n; r++)
                sum[r][v] = XNAME(vec_fma)(weight[r], x, sum[r][v]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < n; r++)
#pragma GCC unroll 16
        for (int v = 0; v < columns; v++) {
            if (part > 0)
                XNAME(vec_store_masked)(out[r] + at, sum[r][v], part);
            else
                XNAME(vec_store)(out[r] + at + v * XNAME(VL), sum[r][v]);
        }
}

INLINE void NAME(row_sum_columns)(const int n, const int columns, const NAME(sums) *s, int64_t lo, int64_t hi,
                                  int64_t row, X *const *out, int64_t fresh)
{
    int64_t at = s->first;
    for (; at + columns * XNAME(VL) <= s->end; at += columns * XNAME(VL))
        NAME(row_sum_microkernel)(n, columns, s, at, 0, lo, hi, row, out, fresh);
    for (; at + XNAME(VL) <= s->end; at += XNAME(VL))
        NAME(row_sum_microkernel)(n, 1, s, at, 0, lo, hi, row, out, fresh);
    if (at < s->end)
        NAME(row_sum_microkernel)(n, 1, s, at, s->end - at, lo, hi, row, out, fresh);
}

static void NAME(row_sums)(int n, const NAME(sums) *s, int64_t lo, int64_t hi, int64_t row, X *const *out, int64_t fresh)
{
    switch (n) {
#if MR >= 4
    case 4:
        NAME(row_sum_columns)(4, COLUMNS, s, lo, hi, row, out, fresh);
        return;
#endif
#if MR >= 3
    case 3:
        NAME(row_sum_columns)(3, COLUMNS, s, lo, hi, row, out, fresh);
        return;
#endif
#if MR >= 2
    case 2:
        NAME(row_sum_columns)(2, COLUMNS, s, lo, hi, row, out, fresh);
        return;
#endif
    default:
        NAME(row_sum_columns)(1, COLUMNS_ALONE, s, lo, hi, row, out, fresh);
    }
}

/* Places lo .. hi - 1, all of which are at one node of `level`, from there down. */
static void NAME(descend)(const NAME(sums) *s, int64_t lo, int64_t hi, int64_t level)
{
    const cmm_backward *const b = s->b;
    const int32_t depth = b->problem->depth;
    const int64_t rows = b->rows;
    const uint32_t *const leaf = b->leaf;
    const int64_t shared = depth == 0 ? rows : shared_levels(leaf[lo], leaf[hi - 1], depth);
    /* the first level whose node has no token before these */
    const int64_t begins = s->adds        ? rows
                           : lo == 0      ? 0
                           : depth == 0   ? rows
                                          : shared_levels(leaf[lo - 1], leaf[lo], depth);
    for (int64_t row = level; row < shared; row += MR) {
        const int n = (int)cmm_least(MR, shared - row);
        X *out[MR];
        for (int i = 0; i < n; i++) {
            const int64_t neuron = depth == 0 ? b->tree + row + i
                                              : b->tree * b->problem->nodes +
                                                    cmm_ancestor(leaf[lo], depth - (int32_t)(row + i));
            out[i] = s->out + neuron * s->ld;
        }
        NAME(row_sums)(n, s, lo, hi, row, out, begins - row);
    }
    if (shared == rows)
        return;
    /* the first place whose path turns right where the paths part */
    const uint32_t right = (uint32_t)cmm_descendant(
        cmm_left_child(cmm_ancestor(leaf[lo], depth - (int32_t)shared + 1)) + 1, depth - (int32_t)shared, 0);
    int64_t below = lo, middle = hi;
    while (below < middle) {
        const int64_t half = below + (middle - below) / 2;
        if (leaf[half] < right)
            below = half + 1;
        else
            middle = half;
    }
    NAME(descend)(s, lo, middle, shared);
    NAME(descend)(s, middle, hi, shared);
}

static void NAME(back_rows)(const cmm_backward *b, int is_out, int64_t first, int64_t count)
{
    const cmm_problem *const problem = b->problem;
    const NAME(sums) s = {.b = b,
                          .tokens = is_out ? b->dy : problem->x,
                          .c = is_out ? b->a : b->dz,
                          .out = is_out ? b->dw_out : b->dw_in,
                          .d = is_out ? problem->d_out : problem->d_in,
                          .ld = is_out ? b->ld_dw_out : b->ld_dw_in,
                          .first = first,
                          .end = first + count,
                          .adds = (b->accumulate & (is_out ? CMM_DW_OUT : CMM_DW_IN)) != 0};
    for (int64_t lo = 0; lo < problem->batch; lo += BLOCK)
        NAME(descend)(&s, lo, cmm_least(lo + BLOCK, problem->batch), 0);
}

static void NAME(back_bias)(const cmm_backward *b)
{
    const cmm_problem *const problem = b->problem;
    const X *const dz = b->dz;
    for (int64_t row = 0; row < b->rows; row++)
        for (int64_t place = 0, neuron; place < problem->batch;) {
            const int64_t first = b->leaf[place];
            neuron = problem->depth == 0 ? b->tree + row
                                         : b->tree * problem->nodes + cmm_ancestor((uint32_t)first, problem->depth - (int32_t)row);
            X *const out = (X *)b->dbias + neuron;
            X sum = b->accumulate & CMM_DBIAS ? *out : 0;
            do
                sum += dz[place * b->rows + row];
            while (++place < problem->batch && (problem->depth == 0 || shared_levels((uint32_t)first, b->leaf[place], problem->depth) > row));
            *out = sum;
        }
}

static const cmm_kernel NAME(kernel) = {
    .traits.op = CMM_OP_BACKWARD,
    .traits.name = "by_node_" CMM_TEXT(ISA),
    .traits.level = "native",
    .traits.algorithm = "",
    .traits.isa = CMM_TEXT(ISA),
    .traits.x_type = X_TYPE,
    .traits.w_type = W_TYPE,
    .traits.cpu = ISA_CPU,
    .back_tokens = NAME(back_tokens),
    .back_rows = NAME(back_rows),
    .back_bias = NAME(back_bias),
};

#endif
