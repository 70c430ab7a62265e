/* Native, tokens grouped by subtree: a row is read once for all tokens that visit it, while they are in cache.
 *
 * A block of tokens descends a tree depth first. All tokens of a group are at one node; MR of them at a time share
 * its row; then the group is split in two, and first the left and then the right half goes on. So a group's x moves
 * from L2 into L1 as the group shrinks. A group of TAIL tokens or fewer goes on level by level (breadth first), so that
 * there is time for a child's row to be prefetched. At the leaves the tokens lie in the order of their paths, in which
 * neighbours share most rows of w_out as well. Meanwhile the next block's x is prefetched, a row during each tile.
 * Where the plan (plan.c) says so, for a large tree and many tokens, that is done in two phases: blocks
 * of tokens, as they come, through the top levels; a counting sort by the subtree they reach, into buckets; and then,
 * bucket by bucket, blocks of its tokens through the rest, while its rows stay in L2. Where the plan says so, y is
 * written by non-temporal stores.
 * Work:   2 (d_in + d_out) flops per visited neuron.
 * Memory: x twice and y once; each row of the top once per block, each row below about once.
 * Sums:   fff/microkernel.inl; the same bits as every other native kernel.
 * Limit:  reading x from L2 at each level of the descent, and x and y from memory. */
#ifndef CMM_TYPE
#include "native.h"

NATIVE_SUMS

#define CMM_BODY "fff/grouped.inl"
#define CMM_LIST CMM_TYPES

enum {
    TAIL = 8       /* tokens that go down breadth first at the end: their x, of usual widths, fits in L1 */
};

static int is_preferred(const cmm_problem *problem)
{
    return cmm_fff_plan(problem, cmm_cpu_machine(), problem->batch).grouped;
}

#include "../for_each_type.h"

NATIVE_EXPORT(grouped)

#else
#include "microkernel.inl"

/* One tree over one chunk of tokens; tokens are counted from the chunk's first. */
typedef struct {
    const cmm_problem *problem;
    const cmm_context *cpu;
    cmm_plan plan;
    int64_t first, tree;
    int store_mode; /* what becomes of y */
    const W *w_in;  /* of this tree */
    const char *w_out;
    int64_t ld_out; /* bytes from one row of it to the next */
    XNAME(sums_function) *weighted_sums;
    const X *x;
    X *y;
    int64_t ld_x, ld_y; /* elements from one token's to the next's */
    X *x_copy, *y_copy; /* [plan.block] rows that start at cache lines; NULL: not wanted */
    int32_t *permutation; /* [tokens] in the order of their groups */
    int32_t *scratch;     /* [tokens] room for a split or a sort */
    int32_t *node;      /* [tokens] where each token is going to */
    int32_t *undecided; /* [tokens] of a group: those whose logit the exact path computes again */
    X *norm;            /* [tokens] for the exact path */
    int64_t recomputed; /* logits that were */
    X *logit;           /* [tokens][levels] */
    X *c;               /* [plan.block][levels] activations */
    const void **row;   /* [MR][levels] */
    int64_t next, next_end; /* places in `permutation` of the tokens whose x is prefetched meanwhile */
} NAME(tree_state);

/* Elements from one row of a copy to the next, of which each starts a cache line. */
INLINE int64_t NAME(copy_stride)(int64_t d) { return cmm_padded(d * (int64_t)sizeof(X), CMM_ALIGNMENT) / (int64_t)sizeof(X); }

/* Whether rows of d elements from `rows` on are off the cache lines. */
INLINE int NAME(is_off_lines)(const void *rows, int64_t d)
{
    return (uintptr_t)rows % CMM_ALIGNMENT || d * (int64_t)sizeof(X) % CMM_ALIGNMENT;
}

/* Divide the memory for `count` tokens up, the most that a call of run() has; the plan is that for as many. */
static int64_t NAME(lay_out)(const cmm_problem *problem, int64_t count, char *memory, NAME(tree_state) *s)
{
    const int64_t tokens = cmm_least(count, s->plan.chunk), levels = problem->depth + 1;
    const int64_t block = cmm_least(s->plan.block, tokens);
    int64_t used = 0;
    s->permutation = cmm_take(memory, &used, tokens * (int64_t)sizeof(int32_t));
    s->scratch = cmm_take(memory, &used, tokens * (int64_t)sizeof(int32_t));
    s->node = cmm_take(memory, &used, tokens * (int64_t)sizeof(int32_t));
    s->logit = cmm_take(memory, &used, tokens * levels * (int64_t)sizeof(X));
    s->c = cmm_take(memory, &used, block * levels * (int64_t)sizeof(X));
    s->row = cmm_take(memory, &used, MR * levels * (int64_t)sizeof(void *));
    if (NAME(NARROW) && problem->exact_in) {
        s->undecided = cmm_take(memory, &used, tokens * (int64_t)sizeof(int32_t));
        s->norm = cmm_take(memory, &used, tokens * (int64_t)sizeof(X));
    }
    if (s->plan.copies && NAME(is_off_lines)(problem->x, problem->d_in))
        s->x_copy = cmm_take(memory, &used, block * NAME(copy_stride)(problem->d_in) * (int64_t)sizeof(X));
    if (s->plan.copies && problem->y && NAME(is_off_lines)(problem->y, problem->d_out))
        s->y_copy = cmm_take(memory, &used, block * NAME(copy_stride)(problem->d_out) * (int64_t)sizeof(X));
    return used;
}

static int64_t NAME(scratch)(const cmm_problem *problem, const cmm_context *cpu, int64_t count)
{
    return NAME(lay_out)(problem, count, NULL, &(NAME(tree_state)){.plan = cmm_fff_plan(problem, cpu->machine, count)});
}

/* The exact path: the norms of tokens that begin their first tree. */
static void NAME(measure)(NAME(tree_state) *s, int64_t begin, int64_t end, int32_t level)
{
    if (!NAME(NARROW) || !s->problem->exact_in || s->tree > 0 || level > 0)
        return;
    for (int64_t i = begin; i < end; i++)
        s->norm[s->permutation[i]] = NAME(norm)(s->x + s->permutation[i] * s->ld_x, s->problem->d_in);
}

/* The exact path: of the tokens permutation[begin .. end), all at `node`, those whose logit the narrow row leaves undecided
 * get it from the row as it was, which they share like any other. */
static void NAME(decide)(NAME(tree_state) *s, int64_t begin, int64_t end, int64_t node, int32_t level)
{
    const cmm_problem *const problem = s->problem;
    const int64_t levels = problem->depth + 1, inner = s->tree * (problem->nodes / 2) + node;
    const X *const row = (const X *)problem->exact_in + inner * problem->ld_exact;
    int64_t count = 0;
    for (int64_t i = begin; i < end; i++) {
        const int32_t token = s->permutation[i];
        s->undecided[count] = token;
        count += NAME(undecided)(problem, inner, s->logit[token * levels + level], s->norm[token]);
    }
    for (int64_t i = 0; i < count; i += MR) {
        const int tokens = (int)cmm_least(MR, count - i);
        const X *x[MR];
        X dots[MR];
        for (int t = 0; t < tokens; t++)
            x[t] = s->x + s->undecided[i + t] * s->ld_x;
        XNAME(dots)(tokens, row, x, problem->d_in, dots, NULL);
        for (int t = 0; t < tokens; t++)
            s->logit[s->undecided[i + t] * levels + level] =
                XNAME(logit)(problem, s->tree * problem->nodes + node, dots[t]);
    }
    s->recomputed += count;
}

/* Split the tokens permutation[begin .. end), all at a node of `level`: those that go left come first. Returns their
 * number. */
static int64_t NAME(partition)(NAME(tree_state) *s, int64_t begin, int64_t end, int32_t level)
{
    const cmm_problem *const problem = s->problem;
    const int64_t levels = problem->depth + 1;
    int64_t left = begin, right = 0;
    for (int64_t i = begin; i < end; i++) {
        const int32_t token = s->permutation[i];
        const int goes_right =
            CMM_TURNS_RIGHT(problem, s->first + token, s->tree, level, s->logit[token * levels + level]);
        s->permutation[left] = token;
        s->scratch[right] = token;
        left += !goes_right;
        right += goes_right;
    }
    memcpy(s->permutation + left, s->scratch, (size_t)right * sizeof *s->permutation);
    return left - begin;
}

/* Visit `node` with the tokens permutation[begin .. end), and split them: those that go left come first. Returns their
 * number. */
static int64_t NAME(visit)(NAME(tree_state) *s, int64_t begin, int64_t end, int64_t node, int32_t level)
{
    const cmm_problem *const problem = s->problem;
    const int64_t levels = problem->depth + 1, d_in = problem->d_in, neuron = s->tree * problem->nodes + node;
    const W *const row = s->w_in + node * problem->ld_in;
    for (int64_t i = begin; i < end; i += MR) {
        const int tokens = (int)cmm_least(MR, end - i);
        const X *x[MR];
        X dots[MR];
        for (int t = 0; t < tokens; t++)
            x[t] = s->x + s->permutation[i + t] * s->ld_x;
        const X *const prefetch = s->next < s->next_end ? s->x + s->permutation[s->next++] * s->ld_x : NULL;
        NAME(dots)(tokens, row, x, d_in, dots, prefetch);
        for (int t = 0; t < tokens; t++)
            s->logit[s->permutation[i + t] * levels + level] = NAME(logit)(problem, neuron, dots[t]);
    }
    if (NAME(NARROW) && problem->exact_in && level < problem->depth)
        NAME(decide)(s, begin, end, node, level);
    return NAME(partition)(s, begin, end, level);
}

/* The row of w_out that will be needed when this block leaves the tree, if it is to. */
INLINE void NAME(prefetch_out)(const NAME(tree_state) *s, int64_t node, int32_t stop)
{
    if (s->y && stop == s->problem->depth + 1)
        prefetch_row(s->w_out + node * s->ld_out, out_bytes(s->problem, s->problem->d_out), s->plan.group_ahead);
}

/* The few tokens permutation[begin .. end), all at `node` of `level`, down to level `stop`, level by level: while the
 * others of them visit their nodes, the row that each goes to is prefetched. Their x is in L1 meanwhile. */
static void NAME(breadth_first_tail)(NAME(tree_state) *s, int64_t begin, int64_t end, int64_t node, int32_t level,
                                     int32_t stop)
{
    const cmm_problem *const problem = s->problem;
    const int64_t row_in = problem->d_in * (int64_t)sizeof(W);
    const int64_t row_in_stride = problem->ld_in * (int64_t)sizeof(W);
    const char *const w_in = (const char *)s->w_in;
    for (int64_t i = begin; i < end; i++)
        s->node[s->permutation[i]] = (int32_t)node;
    for (; level < stop; level++)
        for (int64_t i = begin, next; i < end; i = next) {
            node = s->node[s->permutation[i]];
            for (next = i + 1; next < end && s->node[s->permutation[next]] == node; next++)
                ;
            NAME(prefetch_out)(s, node, stop);
            const int64_t left = i + NAME(visit)(s, i, next, node, level);
            for (int64_t t = i; t < next; t++)
                s->node[s->permutation[t]] = (int32_t)(cmm_left_child(node) + (t >= left));
            if (level + 1 < stop) {
                if (left > i)
                    prefetch_row(w_in + cmm_left_child(node) * row_in_stride, row_in, s->plan.group_ahead);
                if (left < next)
                    prefetch_row(w_in + (cmm_left_child(node) + 1) * row_in_stride, row_in, s->plan.group_ahead);
            }
        }
}

/* The tokens permutation[begin .. end), all at `node` of `level`, down to level `stop`, which is not visited: afterwards
 * they are sorted by the node of that level, and s->node[token] is it. */
static void NAME(descend)(NAME(tree_state) *s, int64_t begin, int64_t end, int64_t node, int32_t level, int32_t stop)
{
    const cmm_problem *const problem = s->problem;
    for (; level < stop; level++) {
        if (end - begin <= TAIL) {
            NAME(breadth_first_tail)(s, begin, end, node, level, stop);
            return;
        }
        if (level + 1 < stop && s->plan.group_ahead) {
            prefetch_head(s->w_in + cmm_left_child(node) * problem->ld_in, problem->d_in * (int64_t)sizeof(W));
            prefetch_head(s->w_in + (cmm_left_child(node) + 1) * problem->ld_in, problem->d_in * (int64_t)sizeof(W));
        }
        NAME(prefetch_out)(s, node, stop);
        const int64_t left = NAME(visit)(s, begin, end, node, level);
        node = cmm_left_child(node);
        if (left == end - begin)
            continue;
        if (left > 0)
            NAME(descend)(s, begin, begin + left, node, level + 1, stop);
        begin += left;
        node++;
    }
    for (int64_t i = begin; i < end; i++)
        s->node[s->permutation[i]] = (int32_t)node;
}

/* The epilogue: path and outputs of the tokens permutation[begin .. end), a block at most, which have left the tree and
 * are in the order of their leaves. The activations of all are computed at once. */
static void NAME(epilogue)(const NAME(tree_state) *s, int64_t begin, int64_t end)
{
    const cmm_problem *const problem = s->problem;
    const int32_t levels = problem->depth + 1;
    for (int64_t i = begin; i < end; i++) {
        const int64_t token = s->permutation[i], step = ((s->first + token) * problem->trees + s->tree) * levels;
        const X *const logit = s->logit + token * levels;
        memcpy(s->c + (i - begin) * levels, logit, (size_t)levels * sizeof(X));
        for (int32_t level = 0; problem->nodes_out && level < levels; level++)
            problem->nodes_out[step + level] = (int32_t)cmm_ancestor((uint32_t)s->node[token], levels - level);
        if (problem->logits_out)
            memcpy((X *)problem->logits_out + step, logit, (size_t)levels * sizeof(X));
    }
    if (!s->y)
        return;
    s->cpu->XNAME(activate)(problem->activation, (end - begin) * levels, s->c);
    /* Past the caches only whole lines go. A row of y that is off them begins and ends in lines that it shares with its
     * neighbours, which are read before they are written to. */
    const int has_ends = s->store_mode == Y_STORE_NT && (uintptr_t)s->y % CMM_ALIGNMENT != 0;
    for (int64_t i = begin; i < end; i += MR) {
        const int tokens = (int)cmm_least(MR, end - i);
        for (int64_t t = i + MR; has_ends && t < end && t < i + 2 * MR; t++) {
            const X *const y = s->y + s->permutation[t] * s->ld_y;
            __builtin_prefetch(y, 1);
            __builtin_prefetch(y + problem->d_out - 1, 1);
        }
        XNAME(output_args) args[MR];
        for (int t = 0; t < tokens; t++) {
            const int64_t token = s->permutation[i + t];
            X *const c = s->c + (i + t - begin) * levels;
            const void **const row = s->row + t * levels;
            for (int32_t level = 0; level < levels; level++) {
                const int64_t node = cmm_ancestor((uint32_t)s->node[token], levels - level);
                row[level] = s->w_out + node * s->ld_out;
                if (problem->scale_out)
                    c[level] *= (X)problem->scale_out[s->tree * problem->nodes + node];
            }
            args[t] = (XNAME(output_args)){row, c, s->y + token * s->ld_y};
        }
        /* what the first and the last share, all of a tile share */
        const int shared = cmm_shared_prefix((uint32_t)s->node[s->permutation[i]],
                                             (uint32_t)s->node[s->permutation[i + tokens - 1]], levels);
        s->weighted_sums(tokens, args, problem->d_out, s->store_mode, shared, levels);
    }
}

/* The tokens permutation[begin .. end), at `node` of `level`, to the end of the tree. Those of the places after ..
 * last - 1 come next, and are prefetched; none where after >= last. */
static void NAME(process_blocks)(NAME(tree_state) *s, int64_t begin, int64_t end, int64_t node, int32_t level,
                                 int64_t after,
                          int64_t last)
{
    const int64_t block = s->plan.block;
    for (int64_t at = begin; at < end; at += block) {
        const int64_t stop = cmm_least(at + block, end);
        s->next = stop < end ? stop : after;
        s->next_end = cmm_least(s->next + block, stop < end ? end : last);
        NAME(measure)(s, at, stop, level);
        NAME(descend)(s, at, stop, node, level, s->problem->depth + 1);
        NAME(epilogue)(s, at, stop);
    }
}

/* Sort the chunk's tokens by the node of level `level` that descend() left them at; start[i] is where those of the i-th
 * begin, and start[1 << level] the number of all. */
static void NAME(sort)(const NAME(tree_state) *s, int64_t tokens, int32_t level, int32_t *start)
{
    const int32_t buckets = 1 << level, first = buckets - 1;
    memset(start, 0, (size_t)(buckets + 1) * sizeof *start);
    for (int64_t i = 0; i < tokens; i++)
        start[s->node[i] - first + 1]++;
    for (int32_t b = 0; b < buckets; b++)
        start[b + 1] += start[b];
    for (int64_t i = 0; i < tokens; i++)
        s->permutation[start[s->node[i] - first]++] = (int32_t)i;
    memmove(start + 1, start, (size_t)buckets * sizeof *start);
    start[0] = 0;
}

/* Bind s to a tree: its rows, and how y is stored. */
static void NAME(bind_tree)(NAME(tree_state) *s, int64_t tree)
{
    const cmm_problem *const problem = s->problem;
    s->tree = tree;
    s->store_mode = tree > 0 ? Y_ADD : s->plan.streams ? Y_STORE_NT : Y_STORE;
    s->w_in = (const W *)problem->w_in + tree * problem->nodes * problem->ld_in;
    s->ld_out = out_bytes(problem, problem->ld_out);
    s->w_out = problem->y ? (const char *)problem->w_out + tree * problem->nodes * s->ld_out : NULL;
}

/* Rows of d elements, from one place to another. */
static void NAME(copy_rows)(int64_t rows, int64_t d, const X *from, int64_t ld_from, X *to, int64_t ld_to)
{
    for (int64_t i = 0; i < rows; i++)
        memcpy(to + i * ld_to, from + i * ld_from, (size_t)d * sizeof(X));
}

/* One phase: a turn of tokens through one tree after the other. What is off the cache lines goes through copies on them,
 * while it is a block that takes its turn. */
static void NAME(one_phase)(NAME(tree_state) *s, int64_t tokens)
{
    const cmm_problem *const problem = s->problem;
    const int64_t first = s->first, d_in = problem->d_in, d_out = problem->d_out;
    for (int64_t at = 0; at < tokens; at += s->plan.turn) {
        const int64_t count = cmm_least(s->plan.turn, tokens - at);
        const X *const x = (const X *)problem->x + (first + at) * d_in;
        X *const y = problem->y ? (X *)problem->y + (first + at) * d_out : NULL;
        s->first = first + at;
        s->x = x;
        s->y = y;
        if (s->x_copy) {
            s->ld_x = NAME(copy_stride)(d_in);
            NAME(copy_rows)(count, d_in, x, d_in, s->x_copy, s->ld_x);
            s->x = s->x_copy;
        }
        if (s->y_copy) {
            s->ld_y = NAME(copy_stride)(d_out);
            s->y = s->y_copy;
        }
        for (int64_t tree = 0; tree < problem->trees; tree++) {
            NAME(bind_tree)(s, tree);
            for (int64_t i = 0; i < count; i++)
                s->permutation[i] = (int32_t)i;
            /* its first block is this one's, but for those that fit in L2 anyway */
            NAME(process_blocks)(s, 0, count, 0, 0, 0, tree + 1 < problem->trees && count > s->plan.block ? count : 0);
        }
        if (s->y_copy)
            NAME(copy_rows)(count, d_out, s->y_copy, s->ld_y, y, d_out);
    }
}

/* Two phases: blocks of tokens through the top of the tree, and then the subtrees' tokens through the rest. */
static void NAME(two_phases)(NAME(tree_state) *s, int64_t tokens)
{
    const cmm_problem *const problem = s->problem;
    const int32_t split = s->plan.split;
    int32_t start[CMM_CHUNK / CMM_BUCKET + 1]; /* the plan leaves a bucket of tokens to each of the 1 << split */
    for (int64_t tree = 0; tree < problem->trees; tree++) {
        NAME(bind_tree)(s, tree);
        for (int64_t i = 0; i < tokens; i++)
            s->permutation[i] = (int32_t)i;
        for (int64_t at = 0; at < tokens; at += s->plan.block) {
            const int64_t stop = cmm_least(at + s->plan.block, tokens);
            s->next = stop;
            s->next_end = cmm_least(stop + s->plan.block, tokens);
            NAME(measure)(s, at, stop, 0);
            NAME(descend)(s, at, stop, 0, 0, split);
        }
        NAME(sort)(s, tokens, split, start);
        for (int32_t b = 0; b < 1 << split; b++)
            NAME(process_blocks)(s, start[b], start[b + 1], cmm_descendant(0, split, b), split, start[b + 1], tokens);
    }
}

static int64_t NAME(run)(const cmm_problem *problem, const cmm_context *cpu, int64_t first, int64_t count, void *memory)
{
    NAME(tree_state) s = {.problem = problem, .cpu = cpu, .plan = cmm_fff_plan(problem, cpu->machine, count)};
    s.weighted_sums = XNAME(sums_for)(problem->weight_out_dtype);
    (void)NAME(lay_out)(problem, count, memory, &s);
    const int64_t chunk = s.plan.chunk;
    for (int64_t done = 0; done < count; done += chunk) {
        const int64_t tokens = cmm_least(chunk, count - done);
        s.plan = cmm_fff_plan(problem, cpu->machine, tokens);
        s.first = first + done;
        s.ld_x = problem->d_in;
        s.ld_y = problem->d_out;
        s.x = (const X *)problem->x + s.first * problem->d_in;
        s.y = problem->y ? (X *)problem->y + s.first * problem->d_out : NULL;
        if (s.plan.split == 0)
            NAME(one_phase)(&s, tokens);
        else
            NAME(two_phases)(&s, tokens);
    }
    vec_fence();
    return s.recomputed;
}

NATIVE_KERNEL(grouped, is_preferred)

#endif
