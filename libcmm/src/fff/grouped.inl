/* Native, tokens grouped by subtree: a row is read once for all tokens that visit it, while they are in cache.
 *
 * A block of tokens descends a tree depth first. All tokens of a group are at one node; TILE of them at a time share
 * its row; then the group is split in two, and first the left and then the right half goes on. So a group's x moves
 * from L2 into L1 as the group shrinks. A group of WAVE tokens or fewer goes on level by level (breadth first), so that
 * there is time for a child's row to be prefetched. At the leaves the tokens lie in the order of their paths, in which
 * neighbours share most rows of w_out as well. Meanwhile the next block's x is prefetched, a row during each tile.
 * Where a tree is larger than four times L2 and the tokens are more than two blocks, that is done in two phases: blocks
 * of tokens, as they come, through the top levels; a counting sort by the subtree they reach, into buckets; and then,
 * bucket by bucket, blocks of its tokens through the rest, while its rows stay in L2. Where all of it exceeds L3,
 * there is one tree, and rows of y are whole cache lines, y is written by non-temporal stores (streams()).
 * Work:   2 (d_in + d_out) flops per visited neuron.
 * Memory: x twice and y once; each row of the top once per block, each row below about once.
 * Sums:   fff/microkernel.inl; the same bits as every other native kernel.
 * Limit:  reading x from L2 at each level of the descent, and x and y from memory. */
#ifndef CMM_TYPE
#include "native.h"

#define CMM_BODY "fff/grouped.inl"
#define CMM_LIST CMM_TYPES

enum {
    BLOCK = 128,   /* tokens that descend together: their x, of usual widths, fits in L2 */
    TURN = 1024,   /* tokens taken through one tree of several before the next, while its rows are in cache */
    CHUNK = 16384, /* tokens grouped at a time; bounds the scratch memory */
    BUCKET = 64,   /* tokens that the second phase wants at each subtree */
    WAVE = 8       /* tokens that go down breadth first at the end: their x, of usual widths, fits in L1 */
};

/* Below these sizes there is too little to share. Trees of one or two levels share little but their roots, as per_token
 * does too, and grouping would read and write y once per tree. */
static int is_preferred(const cmm_problem *task)
{
    return task->depth >= 2 && task->batch >= (task->trees == 1 ? 8 : 16);
}

#include "../for_each_type.h"

NATIVE_EXPORT(grouped)

#else
#include "microkernel.inl"

/* Levels of the first phase: 0 when one phase is enough, because the tree is small or the tokens are few. Else as many
 * as leave BUCKET tokens to each subtree, as long as the rows above the subtrees stay in L2. */
static int32_t NAME(split_level)(const cmm_problem *task, const cmm_context *cpu, int64_t tokens)
{
    const int64_t row_in = task->d_in * (int64_t)sizeof(W), l2 = cpu->machine->l2;
    if (task->nodes * NAME(row_bytes)(task) <= 4 * l2 || tokens <= 2 * BLOCK)
        return 0;
    int32_t level = 0;
    while (level < task->depth && tokens >> (level + 1) >= BUCKET && (row_in << (level + 1)) <= l2 / 2)
        level++;
    return level;
}

/* Whether y goes past the caches: it is done with, and would leave them anyway before anyone reads it. */
static int NAME(streams)(const cmm_problem *task, const cmm_context *cpu)
{
    const int64_t y_row = task->d_out * (int64_t)sizeof(X), x_row = task->d_in * (int64_t)sizeof(X);
    return task->trees == 1 && (uintptr_t)task->y % CMM_ALIGNMENT == 0 && y_row % CMM_ALIGNMENT == 0 &&
           task->nodes * NAME(row_bytes)(task) + task->batch * (x_row + y_row) > cpu->machine->l3;
}

/* One tree over one chunk of tokens; tokens are counted from the chunk's first. */
typedef struct {
    const cmm_problem *task;
    const cmm_context *cpu;
    int64_t first, tree;
    int way; /* what becomes of y */
    const W *w_in, *w_out; /* of this tree */
    const X *bias;
    const X *x;
    X *y;
    int32_t *order;     /* [tokens] in the order of their groups */
    int32_t *spare;     /* [tokens] room for a split or a sort */
    int32_t *node;      /* [tokens] where each token is going to */
    X *logit;           /* [tokens][levels] */
    X *c;               /* [TILE][levels] activations */
    const W **row;      /* [TILE][levels] */
    int64_t next, next_end; /* places in `order` of the tokens whose x comes nearer meanwhile */
} NAME(pass);

static int64_t NAME(lay_out)(const cmm_problem *task, int64_t count, char *memory, NAME(pass) *p)
{
    const int64_t tokens = cmm_least(count, CHUNK), levels = task->depth + 1;
    int64_t used = 0;
    p->order = cmm_take(memory, &used, tokens * (int64_t)sizeof(int32_t));
    p->spare = cmm_take(memory, &used, tokens * (int64_t)sizeof(int32_t));
    p->node = cmm_take(memory, &used, tokens * (int64_t)sizeof(int32_t));
    p->logit = cmm_take(memory, &used, tokens * levels * (int64_t)sizeof(X));
    p->c = cmm_take(memory, &used, TILE * levels * (int64_t)sizeof(X));
    p->row = cmm_take(memory, &used, TILE * levels * (int64_t)sizeof(W *));
    return used;
}

static int64_t NAME(scratch)(const cmm_problem *task, const cmm_context *cpu, int64_t count)
{
    (void)cpu;
    return NAME(lay_out)(task, count, NULL, &(NAME(pass)){0});
}

/* Visit `node` with the tokens order[begin .. end), and split them: those that go left come first. Returns their
 * number. */
static int64_t NAME(visit)(NAME(pass) *p, int64_t begin, int64_t end, int64_t node, int32_t level)
{
    const cmm_problem *const task = p->task;
    const int64_t levels = task->depth + 1, d_in = task->d_in;
    const W *const row = p->w_in + node * task->ld_in;
    int64_t left = begin, right = 0;
    for (int64_t i = begin; i < end; i += TILE) {
        const int tokens = (int)cmm_least(TILE, end - i);
        const X *x[TILE];
        X logits[TILE];
        int32_t token[TILE];
        for (int t = 0; t < tokens; t++) {
            token[t] = p->order[i + t];
            x[t] = p->x + token[t] * d_in;
        }
        const X *const ahead = p->next < p->next_end ? p->x + p->order[p->next++] * d_in : NULL;
        NAME(dots)(tokens, row, x, d_in, logits, ahead);
        for (int t = 0; t < tokens; t++) {
            const X logit = p->bias ? logits[t] + p->bias[node] : logits[t];
            const int goes_right = CMM_GOES_RIGHT(logit, task->tie);
            p->logit[token[t] * levels + level] = logit;
            p->order[left] = token[t];
            p->spare[right] = token[t];
            left += !goes_right;
            right += goes_right;
        }
    }
    memcpy(p->order + left, p->spare, (size_t)right * sizeof *p->order);
    return left - begin;
}

/* The few tokens order[begin .. end), all at `node` of `level`, down to level `stop`, level by level: while the others
 * of them visit their nodes, the row that each goes to comes nearer. Their x is in L1 meanwhile. */
static void NAME(wave)(NAME(pass) *p, int64_t begin, int64_t end, int64_t node, int32_t level, int32_t stop)
{
    const cmm_problem *const task = p->task;
    for (int64_t i = begin; i < end; i++)
        p->node[p->order[i]] = (int32_t)node;
    for (; level < stop; level++)
        for (int64_t i = begin, next; i < end; i = next) {
            node = p->node[p->order[i]];
            for (next = i + 1; next < end && p->node[p->order[next]] == node; next++)
                ;
            if (p->y && stop == task->depth + 1) /* needed when this block leaves the tree */
                NAME(prefetch_later)(p->w_out + node * task->ld_out, task->d_out);
            const int64_t left = i + NAME(visit)(p, i, next, node, level);
            for (int64_t t = i; t < next; t++)
                p->node[p->order[t]] = (int32_t)(cmm_left_child(node) + (t >= left));
            if (level + 1 < stop) {
                if (left > i)
                    NAME(prefetch_later)(p->w_in + cmm_left_child(node) * task->ld_in, task->d_in);
                if (left < next)
                    NAME(prefetch_later)(p->w_in + (cmm_left_child(node) + 1) * task->ld_in, task->d_in);
            }
        }
}

/* The tokens order[begin .. end), all at `node` of `level`, down to level `stop`, which is not visited: afterwards they
 * are sorted by the node of that level, and p->node[token] is it. */
static void NAME(descend)(NAME(pass) *p, int64_t begin, int64_t end, int64_t node, int32_t level, int32_t stop)
{
    const cmm_problem *const task = p->task;
    for (; level < stop; level++) {
        if (end - begin <= WAVE) {
            NAME(wave)(p, begin, end, node, level, stop);
            return;
        }
        if (level + 1 < stop) {
            NAME(prefetch_head)(p->w_in + cmm_left_child(node) * task->ld_in, task->d_in);
            NAME(prefetch_head)(p->w_in + (cmm_left_child(node) + 1) * task->ld_in, task->d_in);
        }
        if (p->y && stop == task->depth + 1) /* needed when this block leaves the tree */
            NAME(prefetch_later)(p->w_out + node * task->ld_out, task->d_out);
        const int64_t left = NAME(visit)(p, begin, end, node, level);
        node = cmm_left_child(node);
        if (left == end - begin)
            continue;
        if (left > 0)
            NAME(descend)(p, begin, begin + left, node, level + 1, stop);
        begin += left;
        node++;
    }
    for (int64_t i = begin; i < end; i++)
        p->node[p->order[i]] = (int32_t)node;
}

/* The epilogue: path and outputs of the tokens order[begin .. end), which have left the tree and are in the order of
 * their leaves. What the first and the last of a tile share, all of it share. */
static void NAME(leave)(const NAME(pass) *p, int64_t begin, int64_t end)
{
    const cmm_problem *const task = p->task;
    const int32_t levels = task->depth + 1;
    for (int64_t i = begin; i < end; i += TILE) {
        const int tokens = (int)cmm_least(TILE, end - i);
        NAME(share) share[TILE];
        for (int t = 0; t < tokens; t++) {
            const int64_t token = p->order[i + t];
            const uint32_t end_node = (uint32_t)p->node[token]; /* one level below the last visited node */
            const X *const logit = p->logit + token * levels;
            X *const c = p->c + t * levels;
            const W **const row = p->row + t * levels;
            for (int32_t level = 0; level < levels; level++) {
                const int64_t node = cmm_ancestor(end_node, levels - level);
                c[level] = logit[level];
                row[level] = p->y ? p->w_out + node * task->ld_out : NULL;
            }
            const int64_t step = ((p->first + token) * task->trees + p->tree) * levels;
            for (int32_t level = 0; task->nodes_out && level < levels; level++)
                task->nodes_out[step + level] = (int32_t)cmm_ancestor(end_node, levels - level);
            if (task->logits_out)
                memcpy((X *)task->logits_out + step, logit, (size_t)levels * sizeof(X));
            share[t] = (NAME(share)){row, c, p->y ? p->y + token * task->d_out : NULL};
        }
        if (!p->y)
            continue;
        p->cpu->XNAME(activate)(task->activation, tokens * levels, p->c);
        const int shared = cmm_shared_prefix((uint32_t)p->node[p->order[i]],
                                             (uint32_t)p->node[p->order[i + tokens - 1]], levels);
        NAME(outputs)(tokens, share, task->d_out, p->way, shared, levels);
    }
}

/* The tokens order[begin .. end), at `node` of `level`, to the end of the tree. Those of the places after .. last - 1
 * come next, and are prefetched; none where after >= last. */
static void NAME(through)(NAME(pass) *p, int64_t begin, int64_t end, int64_t node, int32_t level, int64_t after,
                          int64_t last)
{
    for (int64_t at = begin; at < end; at += BLOCK) {
        const int64_t stop = cmm_least(at + BLOCK, end);
        p->next = stop < end ? stop : after;
        p->next_end = cmm_least(p->next + BLOCK, stop < end ? end : last);
        NAME(descend)(p, at, stop, node, level, p->task->depth + 1);
        NAME(leave)(p, at, stop);
    }
}

/* Sort the chunk's tokens by the node of level `level` that descend() left them at; start[i] is where those of the i-th
 * begin, and start[1 << level] the number of all. */
static void NAME(sort)(const NAME(pass) *p, int64_t tokens, int32_t level, int32_t *start)
{
    const int32_t buckets = 1 << level, first = buckets - 1;
    memset(start, 0, (size_t)(buckets + 1) * sizeof *start);
    for (int64_t i = 0; i < tokens; i++)
        start[p->node[i] - first + 1]++;
    for (int32_t b = 0; b < buckets; b++)
        start[b + 1] += start[b];
    for (int64_t i = 0; i < tokens; i++)
        p->order[start[p->node[i] - first]++] = (int32_t)i;
    memmove(start + 1, start, (size_t)buckets * sizeof *start);
    start[0] = 0;
}

/* Turn p to a tree: its rows, its biases, and how y is stored. */
static void NAME(aim)(NAME(pass) *p, int64_t tree)
{
    const cmm_problem *const task = p->task;
    p->tree = tree;
    p->way = tree > 0 ? NAME(Y_ADD) : NAME(streams)(task, p->cpu) ? NAME(Y_STREAM) : NAME(Y_STORE);
    p->w_in = (const W *)task->w_in + tree * task->nodes * task->ld_in;
    p->bias = task->bias ? (const X *)task->bias + tree * task->nodes : NULL;
    p->w_out = task->y ? (const W *)task->w_out + tree * task->nodes * task->ld_out : NULL;
}

static void NAME(run)(const cmm_problem *task, const cmm_context *cpu, int64_t first, int64_t count, void *memory)
{
    NAME(pass) p = {.task = task, .cpu = cpu};
    (void)NAME(lay_out)(task, count, memory, &p);
    for (int64_t done = 0; done < count; done += CHUNK) {
        const int64_t tokens = cmm_least(CHUNK, count - done);
        const int32_t split = NAME(split_level)(task, cpu, tokens);
        p.first = first + done;
        p.x = (const X *)task->x + p.first * task->d_in;
        p.y = task->y ? (X *)task->y + p.first * task->d_out : NULL;
        if (split == 0) {
            for (int64_t at = 0; at < tokens; at += TURN) {
                const int64_t end = cmm_least(at + TURN, tokens);
                for (int64_t i = at; i < end; i++)
                    p.order[i] = (int32_t)i;
                for (int64_t tree = 0; tree < task->trees; tree++) {
                    NAME(aim)(&p, tree); /* its first block is this one's, but for those that fit in L2 anyway */
                    NAME(through)(&p, at, end, 0, 0, at, tree + 1 < task->trees && end - at > BLOCK ? end : at);
                }
            }
            continue;
        }
        for (int64_t tree = 0; tree < task->trees; tree++) {
            int32_t start[CHUNK / BUCKET + 1]; /* split_level() leaves BUCKET tokens to each of the 1 << split */
            NAME(aim)(&p, tree);
            for (int64_t i = 0; i < tokens; i++)
                p.order[i] = (int32_t)i;
            for (int64_t at = 0; at < tokens; at += BLOCK) {
                p.next = at + BLOCK;
                p.next_end = cmm_least(at + 2 * BLOCK, tokens);
                NAME(descend)(&p, at, cmm_least(at + BLOCK, tokens), 0, 0, split);
            }
            NAME(sort)(&p, tokens, split, start);
            for (int32_t b = 0; b < 1 << split; b++)
                NAME(through)(&p, start[b], start[b + 1], cmm_descendant(0, split, b), split, start[b + 1], tokens);
        }
    }
    vec_fence();
}

NATIVE_KERNEL(grouped, is_preferred)

#endif
