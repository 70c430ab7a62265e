/* The entry point of the backward pass, and its driver: checks, the order of the tokens, and the pieces of work that are
 * shared out over threads. The arithmetic is a kernel's (fff/by_node.inl).
 *
 * Trees are taken one after the other (those of one node several at once). The tokens are sorted by their leaves in the
 * tree, and those of one leaf stay as they were: then the tokens of every node lie together. Three phases follow, each of
 * pieces that write what no other piece writes: dz, activations and dx by blocks of tokens; zeros in rows of nodes that no
 * token visits; rows of dW by strips of columns, and dbias. So which thread takes which piece changes no bit, and neither
 * does their number. */
#include "caller.h"
#include "cpu.h"
#include "platform.h"
#include "run.h"
#include "scratch.h"
#include "threadpool.h"
#include "validate.h"

#include <stdatomic.h>
#include <string.h>

enum {
    TOKENS = 64,       /* of a piece of the first phase */
    ZEROED_ROWS = 64,  /* of a piece of the second */
    STRIP_BYTES = 3072, /* of a row, in a piece of the third, at most: those of a block of x are to fit in L2 */
    STRIP_BITS = 6,     /* as many elements at least, and a multiple: so that strips share no line of a cache */
    RADIX_BITS = 11
};

/* ---- memory ------------------------------------------------------------------------------------------------------ */

typedef struct places {
    int64_t *order, *spare;
    uint32_t *leaf;
    void *dz, *a;
} places;

static int wants_dz(const cmm_backward *b)
{
    return b->dx || b->dw_in || b->dbias;
}

static int64_t most_trees(const cmm_problem *problem)
{
    return problem->depth > 0 ? 1 : cmm_least(CMM_BACKWARD_ROWS, problem->trees);
}

/* Divide the workspace; with NULL, only say how many bytes that takes. */
static int64_t divide(char *memory, const cmm_backward *b, places *p)
{
    const int64_t batch = b->problem->batch, size = cmm_element_size(b->problem->dtype);
    const int64_t coefficients = batch * most_trees(b->problem) * (b->problem->depth + 1) * size;
    int64_t used = 0;
    p->order = cmm_take(memory, &used, batch * (int64_t)sizeof *p->order);
    p->spare = cmm_take(memory, &used, b->problem->depth > 0 ? batch * (int64_t)sizeof *p->spare : 0);
    p->leaf = cmm_take(memory, &used, batch * (int64_t)sizeof *p->leaf);
    p->dz = cmm_take(memory, &used, wants_dz(b) ? coefficients : 0);
    p->a = cmm_take(memory, &used, b->dw_out ? coefficients : 0);
    return used;
}

/* ---- the order of the tokens ------------------------------------------------------------------------------------- */

static uint32_t leaf_of(const cmm_problem *problem, int64_t token, int64_t tree)
{
    return cmm_given_leaf(problem, token, tree);
}

/* The tokens in the order of their leaves in a tree: a radix sort, which leaves those of one leaf as they were. */
static void sort_tokens(const cmm_problem *problem, int64_t tree, places *p)
{
    const int64_t batch = problem->batch;
    const uint32_t first_leaf = (uint32_t)(problem->nodes / 2);
    for (int64_t token = 0; token < batch; token++)
        p->order[token] = token;
    for (int32_t bit = 0; bit < problem->depth; bit += RADIX_BITS) {
        int64_t count[1 << RADIX_BITS] = {0}, before = 0;
        for (int64_t i = 0; i < batch; i++)
            count[(leaf_of(problem, i, tree) - first_leaf) >> bit & ((1 << RADIX_BITS) - 1)]++;
        for (int i = 0; i < 1 << RADIX_BITS; i++) {
            const int64_t these = count[i];
            count[i] = before;
            before += these;
        }
        for (int64_t i = 0; i < batch; i++) {
            const int64_t token = p->order[i];
            p->spare[count[(leaf_of(problem, token, tree) - first_leaf) >> bit & ((1 << RADIX_BITS) - 1)]++] = token;
        }
        int64_t *const sorted = p->spare;
        p->spare = p->order;
        p->order = sorted;
    }
    for (int64_t i = 0; i < batch; i++)
        p->leaf[i] = leaf_of(problem, p->order[i], tree);
}

/* ---- pieces of work ---------------------------------------------------------------------------------------------- */

typedef struct phase {
    const cmm_backward *b;
    const cmm_kernel *kernel;
    void (*piece)(const struct phase *phase, int64_t index);
    int64_t pieces;
    int64_t strips_in, strips_out, strip; /* of the third phase; strip: columns of one */
    atomic_llong next;
} phase;

static void take_pieces(void *context, int32_t thread)
{
    phase *const p = context;
    (void)thread;
    for (;;) {
        const int64_t index = atomic_fetch_add(&p->next, 1);
        if (index >= p->pieces)
            return;
        p->piece(p, index);
    }
}

static void run_phase(phase *p, int32_t threads)
{
    atomic_store(&p->next, 0);
    if (p->pieces > 0)
        cmm_threadpool_run(threads, take_pieces, p);
}

static void tokens_piece(const phase *p, int64_t index)
{
    const int64_t first = index * TOKENS;
    p->kernel->back_tokens(p->b, first, cmm_least(TOKENS, p->b->problem->batch - first));
}

/* Whether a token visits a node of a tree: whether one ends in the leaves below it. */
static int is_visited(const cmm_backward *b, int64_t node)
{
    const cmm_problem *const problem = b->problem;
    const int32_t down = problem->depth - (63 - __builtin_clzll((uint64_t)node + 1));
    const int64_t first = cmm_descendant(node, down, 0), last = first + ((int64_t)1 << down) - 1;
    int64_t below = 0, above = problem->batch; /* the first place whose leaf is not before these */
    while (below < above) {
        const int64_t half = below + (above - below) / 2;
        if (b->leaf[half] < first)
            below = half + 1;
        else
            above = half;
    }
    return below < problem->batch && b->leaf[below] <= last;
}

static void zero_row(void *array, int64_t neuron, int64_t d, int64_t ld, int64_t size)
{
    if (array)
        memset((char *)array + neuron * ld * size, 0, (size_t)(d * size));
}

static void zeros_piece(const phase *p, int64_t index)
{
    const cmm_backward *const b = p->b;
    const cmm_problem *const problem = b->problem;
    const int64_t size = cmm_element_size(problem->dtype), nodes = b->trees * problem->nodes;
    const int64_t end = cmm_least((index + 1) * ZEROED_ROWS, nodes);
    for (int64_t node = index * ZEROED_ROWS; node < end; node++) {
        const int64_t neuron = b->tree * problem->nodes + node;
        if (problem->depth == 0 ? problem->batch > 0 : is_visited(b, node))
            continue;
        zero_row(b->accumulate & CMM_DW_IN ? NULL : b->dw_in, neuron, problem->d_in, b->ld_dw_in, size);
        zero_row(b->accumulate & CMM_DW_OUT ? NULL : b->dw_out, neuron, problem->d_out, b->ld_dw_out, size);
        zero_row(b->accumulate & CMM_DBIAS ? NULL : b->dbias, neuron, 1, 1, size);
    }
}

/* dbias comes first, then the strips of dW_in and those of dW_out. */
static void rows_piece(const phase *p, int64_t index)
{
    const cmm_backward *const b = p->b;
    if (b->dbias && index-- == 0) {
        p->kernel->back_bias(b);
        return;
    }
    const int is_out = index >= p->strips_in;
    const int64_t first = (is_out ? index - p->strips_in : index) * p->strip;
    const int64_t d = is_out ? b->problem->d_out : b->problem->d_in;
    p->kernel->back_rows(b, is_out, first, cmm_least(p->strip, d - first));
}

static void run_trees(cmm_backward *b, const cmm_kernel *kernel, places *p, int32_t threads)
{
    const cmm_problem *const problem = b->problem;
    phase work = {.b = b, .kernel = kernel};
    /* A strip for each thread, where it is not too wide. Two for each would share out the work more evenly, but every strip
     * walks the tokens again. */
    const int64_t columns = (b->dw_in ? problem->d_in : 0) + (b->dw_out ? problem->d_out : 0);
    work.strip = cmm_padded((columns + threads - 1) / threads, 1 << STRIP_BITS);
    work.strip = cmm_least(work.strip, STRIP_BYTES / cmm_element_size(problem->dtype));
    work.strips_in = b->dw_in ? (problem->d_in + work.strip - 1) / work.strip : 0;
    work.strips_out = b->dw_out ? (problem->d_out + work.strip - 1) / work.strip : 0;
    for (b->tree = 0; b->tree < problem->trees; b->tree += b->trees) {
        b->trees = cmm_least(most_trees(problem), problem->trees - b->tree);
        b->rows = b->trees * (problem->depth + 1);
        sort_tokens(problem, b->tree, p);
        b->order = p->order;
        b->leaf = p->leaf;
        work.piece = tokens_piece;
        work.pieces = (problem->batch + TOKENS - 1) / TOKENS;
        run_phase(&work, threads);
        work.piece = zeros_piece;
        work.pieces = (b->trees * problem->nodes + ZEROED_ROWS - 1) / ZEROED_ROWS;
        run_phase(&work, threads);
        work.piece = rows_piece;
        work.pieces = problem->batch > 0 ? (b->dbias != NULL) + work.strips_in + work.strips_out : 0;
        run_phase(&work, threads);
    }
}

/* ---- the calls --------------------------------------------------------------------------------------------------- */

/* What a call and the query of its workspace have in common. Afterwards b->problem, b->cpu and the gradients are set. */
static cmm_status begin(const cmm_fff *layer, const cmm_run *how, const cmm_gradients *gradients, cmm_problem *problem,
                        cmm_context *cpu, cmm_choice *chosen, cmm_backward *b)
{
    cmm_status status = cmm_read_fff(layer, 1, problem);
    b->problem = problem;
    b->cpu = cpu;
    if (status == CMM_OK)
        status = cmm_check_layer(problem, CMM_CPU_DTYPES);
    if (status == CMM_OK)
        status = cmm_choose(how, chosen);
    if (status == CMM_OK && (chosen->path_nodes || chosen->path_leaves))
        status = CMM_ERROR_PATH_TWICE;
    if (status == CMM_OK)
        status = cmm_read_gradients(gradients, b);
    if (status == CMM_OK)
        status = cmm_check_batch(problem);
    places p;
    if (status == CMM_OK) {
        /* at most so many bytes: of order, spare, leaf; dz and a; what is lost to alignment */
        const int64_t each = 24 + 16 * most_trees(problem) * (problem->depth + 1);
        const int64_t bytes = cmm_bytes_of(problem->batch, each, 1);
        status = bytes < 0 || bytes > INT64_MAX - 5 * CMM_ALIGNMENT ? CMM_ERROR_BATCH_TOO_LARGE : CMM_OK;
    }
    if (status == CMM_OK)
        b->workspace_needed = divide(NULL, b, &p);
    return status;
}

static cmm_status find_kernel(const cmm_choice *chosen, const cmm_problem *problem, cmm_context *cpu,
                              const cmm_kernel **kernel)
{
    const cmm_traits *found = NULL;
    cmm_status status = cmm_find_activation(&chosen->wanted, cpu);
    if (status == CMM_OK)
        status = cmm_find_kernel(CMM_OP_BACKWARD, &chosen->wanted, problem, &found);
    *kernel = (const cmm_kernel *)found;
    return status;
}

cmm_status cmm_fff_backward_workspace(const cmm_fff *layer, const cmm_run *run, int64_t batch,
                                      const cmm_gradients *gradients, int64_t *bytes)
{
    cmm_problem problem = {.batch = batch};
    cmm_context cpu = {.machine = cmm_cpu_machine()};
    cmm_choice chosen;
    cmm_backward b = {0};
    const cmm_kernel *kernel;
    cmm_status status = bytes ? begin(layer, run, gradients, &problem, &cpu, &chosen, &b) : CMM_ERROR_BYTES_NULL;
    if (status == CMM_OK)
        status = find_kernel(&chosen, &problem, &cpu, &kernel);
    if (status == CMM_OK)
        *bytes = b.workspace_needed;
    return status;
}

cmm_status cmm_fff_backward(const cmm_fff *layer, const cmm_run *run, int64_t batch, const void *x,
                            const int32_t *nodes, const void *logits, const void *dy, const cmm_gradients *gradients)
{
    cmm_problem problem = {.batch = batch, .x = x};
    cmm_context cpu = {.machine = cmm_cpu_machine()};
    cmm_choice chosen;
    cmm_backward b = {.dy = dy, .logits = logits};
    const cmm_kernel *kernel;
    cmm_status status = begin(layer, run, gradients, &problem, &cpu, &chosen, &b);
    if (status == CMM_OK) {
        problem.path = nodes;
        problem.path_length = problem.depth + 1;
        status = cmm_check_backward(&b);
    }
    if (status == CMM_OK && b.workspace)
        status = cmm_check_backward_workspace(&b, CMM_ALIGNMENT);
    if (status == CMM_OK)
        status = cmm_check_path(&problem, chosen.refused);
    if (status == CMM_OK)
        status = find_kernel(&chosen, &problem, &cpu, &kernel);
    if (status != CMM_OK)
        return status;

    const cmm_caller caller = cmm_caller_enter();
    char *own = NULL, *memory = b.workspace;
    if (!memory && b.workspace_needed > 0)
        memory = own = cmm_aligned_alloc((size_t)b.workspace_needed);
    if (memory || b.workspace_needed == 0) {
        places p;
        (void)divide(memory, &b, &p);
        b.dz = wants_dz(&b) ? p.dz : NULL;
        b.a = b.dw_out ? p.a : NULL;
        /* 8 flops for each column of a visited row; and writing a row takes as long as some */
        const double visited = (double)problem.depth + 1, rows = (double)problem.nodes;
        const double width = (double)(problem.d_in + problem.d_out), trees = (double)problem.trees;
        const int32_t threads = cmm_threadpool_acquire(cmm_worth_threads(
            trees * width * (4 * visited * (double)problem.batch + (b.dw_in || b.dw_out ? rows : 0)), INT32_MAX,
            chosen.threads));
        run_trees(&b, kernel, &p, threads);
        cmm_threadpool_release(threads);
    } else
        status = CMM_ERROR_MEMORY;
    cmm_aligned_free(own);
    cmm_caller_leave(&caller);
    return status;
}
