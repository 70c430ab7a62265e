/* Wrong calls: each has a status of its own, and leaves every output as it was. A call that is wrong in two ways gets
 * the status of what is checked first. */
#include "check.h"
#include "example.h"
#include "reference_blas.h"

/* A good call, to be made wrong. Arrays have room to be misaligned by a few bytes. */
typedef struct call {
    cmm_fff fff;
    cmm_ff ff;
    cmm_run run;
    cmm_blas blas;
    const cmm_fff *fff_pointer;
    const cmm_ff *ff_pointer;
    const cmm_run *run_pointer;
    int64_t batch;
    const void *x;
    void *y, *logits;
    int32_t *nodes;
} call;

enum { DEPTH = 2, NODES = 7, TREES = 3, D_IN = 5, D_OUT = 4, BATCH = 6, STEPS = TREES * (DEPTH + 1), CANARY = 0xA5 };

/* The same layer with room between its rows. END: the elements from the first row's start to the last row's end. */
enum {
    LD_IN = 13, LD_OUT = 11,
    END_IN = (TREES * NODES - 1) * LD_IN + D_IN,
    END_OUT = (TREES * NODES - 1) * LD_OUT + D_OUT
};

/* One block, so that one comparison sees whether anything was written. */
static struct memory {
    double w_in[END_IN + BATCH * STEPS], bias[TREES * NODES + 8], w_out[END_OUT + BATCH * STEPS];
    double x[BATCH * D_IN + 8];
    double y[BATCH * D_OUT + 8], logits[BATCH * STEPS + 8];
    int32_t nodes[BATCH * STEPS + 16], path[BATCH * STEPS + 1], leaves[BATCH * TREES + 1]; /* paths that are none */
} memory;

static int refuse_memory; /* cmm_aligned_alloc() fails: the linker puts this in its place */

void *__real_cmm_aligned_alloc(size_t bytes);
void *__wrap_cmm_aligned_alloc(size_t bytes);
void *__wrap_cmm_aligned_alloc(size_t bytes)
{
    return refuse_memory ? NULL : __real_cmm_aligned_alloc(bytes);
}

static int element; /* bytes of one, of the dtype under test */

/* Into a call that stays where it is, for it points into itself. */
static void good_call(int32_t dtype, call *c)
{
    const call good = {.fff = {.size = sizeof(cmm_fff), .dtype = dtype, .depth = DEPTH, .trees = TREES, .d_in = D_IN,
                               .d_out = D_OUT, .w_in = memory.w_in, .bias = memory.bias, .w_out = memory.w_out},
                       .ff = {.size = sizeof(cmm_ff), .dtype = dtype, .neurons = TREES * NODES, .d_in = D_IN,
                              .d_out = D_OUT, .w_in = memory.w_in, .bias = memory.bias, .w_out = memory.w_out},
                       .run = {.size = sizeof(cmm_run), .threads = 1},
                       .blas = reference_blas,
                       .fff_pointer = &c->fff,
                       .ff_pointer = &c->ff,
                       .run_pointer = &c->run,
                       .batch = BATCH,
                       .x = memory.x,
                       .y = memory.y,
                       .logits = memory.logits,
                       .nodes = memory.nodes};
    *c = good;
    element = (int)element_size(dtype);
}

static void *off_by(const void *pointer, int bytes)
{
    return (char *)(uintptr_t)pointer + bytes;
}

/* ---- the ways to be wrong -------------------------------------------------------------------------------------- */

#define FFF 1 /* to be tried with cmm_fff_forward */
#define CMM 2 /* with cmm_cmm_forward */
#define FF 4  /* with cmm_ff_forward */

/* WRONG(functions, status, what to do to the call c). What is wrong together with another field sets that one too, to
 * what it is in a good call: else a pair of wrongs might put each other right. */
#define WRONG_CALLS(WRONG)                                                                                           \
    WRONG(FFF | CMM | FF, CMM_ERROR_LAYER_NULL, c->fff_pointer = NULL, c->ff_pointer = NULL)                         \
    WRONG(FFF | CMM | FF, CMM_ERROR_LAYER_SIZE, c->fff.size = 0, c->ff.size = 0)                                     \
    WRONG(FFF | CMM | FF, CMM_ERROR_LAYER_SIZE, c->fff.size += 8, c->ff.size += 8)                                   \
    WRONG(FFF | CMM | FF, CMM_ERROR_LAYER_SIZE, c->fff.size -= 64, c->ff.size -= 8)                                  \
    WRONG(FFF | CMM | FF, CMM_ERROR_DTYPE, c->fff.dtype = c->ff.dtype = -1)                                          \
    WRONG(FFF | CMM | FF, CMM_ERROR_DTYPE, c->fff.dtype = c->ff.dtype = CMM_BF16)                                    \
    WRONG(FFF | CMM | FF, CMM_ERROR_DTYPE, c->fff.dtype = c->ff.dtype = CMM_F16)                                     \
    WRONG(FFF | CMM, CMM_ERROR_WEIGHT_DTYPE, c->fff.weight_dtype = -1)                                               \
    WRONG(FFF | CMM, CMM_ERROR_WEIGHT_DTYPE, c->fff.weight_dtype = 5)                                                \
    WRONG(FFF | CMM | FF, CMM_ERROR_ACTIVATION, c->fff.activation = c->ff.activation = -1)                           \
    WRONG(FFF | CMM | FF, CMM_ERROR_ACTIVATION, c->fff.activation = c->ff.activation = 5)                            \
    WRONG(FFF | CMM, CMM_ERROR_TIE, c->fff.tie = 2)                                                                  \
    WRONG(FFF | CMM, CMM_ERROR_TIE, c->fff.tie = -1)                                                                 \
    WRONG(FFF | CMM, CMM_ERROR_TREES, c->fff.trees = 0)                                                              \
    WRONG(FFF | CMM, CMM_ERROR_TREES, c->fff.trees = INT64_MIN)                                                      \
    WRONG(FFF | CMM, CMM_ERROR_DEPTH, c->fff.depth = -1)                                                             \
    WRONG(FFF | CMM, CMM_ERROR_DEPTH, c->fff.depth = CMM_MAX_DEPTH + 1)                                              \
    WRONG(FFF | CMM, CMM_ERROR_DEPTH, c->fff.depth = INT32_MAX)                                                      \
    WRONG(FF, CMM_ERROR_NEURONS, c->ff.neurons = -1)                                                                 \
    WRONG(FFF | CMM | FF, CMM_ERROR_D_IN, c->fff.d_in = c->ff.d_in = 0)                                              \
    WRONG(FFF | CMM | FF, CMM_ERROR_D_IN, c->fff.d_in = c->ff.d_in = -5)                                             \
    WRONG(FFF | FF, CMM_ERROR_D_OUT, c->fff.d_out = c->ff.d_out = 0)                                                 \
    WRONG(FFF | FF, CMM_ERROR_D_OUT, c->fff.d_out = c->ff.d_out = INT64_MIN)                                         \
    WRONG(FFF | CMM | FF, CMM_ERROR_LD_IN, widths(c), c->fff.ld_in = c->ff.ld_in = D_IN - 1)                         \
    WRONG(FFF | CMM | FF, CMM_ERROR_LD_IN, widths(c), c->fff.ld_in = c->ff.ld_in = -D_IN)                            \
    WRONG(FFF | FF, CMM_ERROR_LD_OUT, widths(c), c->fff.ld_out = c->ff.ld_out = D_OUT - 1)                           \
    WRONG(FFF | FF, CMM_ERROR_LD_OUT, widths(c), c->fff.ld_out = c->ff.ld_out = -1)                                  \
    WRONG(FFF | CMM, CMM_ERROR_LAYER_TOO_LARGE, c->fff.trees = INT64_MAX)                                            \
    WRONG(FFF | CMM, CMM_ERROR_LAYER_TOO_LARGE, widths(c), c->fff.trees = INT64_MAX / NODES / D_IN)                  \
    WRONG(FFF | CMM | FF, CMM_ERROR_LAYER_TOO_LARGE, dense(c), c->fff.d_in = c->ff.d_in = INT64_MAX)                 \
    WRONG(FFF | FF, CMM_ERROR_LAYER_TOO_LARGE, dense(c), c->fff.d_out = c->ff.d_out = INT64_MAX)                     \
    WRONG(FFF | CMM | FF, CMM_ERROR_LAYER_TOO_LARGE, c->fff.ld_in = c->ff.ld_in = INT64_MAX)                         \
    WRONG(FFF | FF, CMM_ERROR_LAYER_TOO_LARGE, widths(c), c->fff.ld_out = c->ff.ld_out = INT64_MAX / 8)              \
    WRONG(FF, CMM_ERROR_LAYER_TOO_LARGE, c->ff.neurons = INT64_MAX)                                                  \
    WRONG(FFF | CMM | FF, CMM_ERROR_RESERVED, c->fff.reserved = c->ff.reserved = 1)                                  \
    WRONG(FFF, CMM_ERROR_WEIGHT_DTYPE, c->fff.weight_out_dtype = 7)                                                  \
    WRONG(FFF, CMM_ERROR_WEIGHT_DTYPE, c->fff.weight_out_dtype = CMM_AS_DTYPE - 1)                                   \
    WRONG(FFF | CMM, CMM_ERROR_SCALE, plain(c), c->fff.scale_in = off_by(memory.x, 0))                               \
    WRONG(FFF, CMM_ERROR_SCALE, plain(c), c->fff.scale_out = off_by(memory.x, 0))                                    \
    WRONG(FFF | CMM, CMM_ERROR_SCALE, plain(c), c->fff.weight_dtype = CMM_I8)                                        \
    WRONG(FFF, CMM_ERROR_SCALE, plain(c), c->fff.weight_out_dtype = CMM_I8)                                          \
    WRONG(FFF | CMM, CMM_ERROR_EXACT, plain(c), c->fff.exact_in = memory.x)                                          \
    WRONG(FFF | CMM, CMM_ERROR_EXACT, plain(c), c->fff.margin = off_by(memory.x, 0))                                 \
    WRONG(FFF | CMM, CMM_ERROR_EXACT, plain(c), c->fff.exact_in = memory.x, c->fff.margin = off_by(memory.x, 0))     \
    WRONG(FFF | CMM | FF, CMM_ERROR_RUN_SIZE, c->run.size = 0)                                                       \
    WRONG(FFF | CMM | FF, CMM_ERROR_RUN_SIZE, c->run.size += 16) /* which reaches into blas */                       \
    WRONG(FFF | CMM | FF, CMM_ERROR_THREADS, c->run.threads = -1)                                                    \
    WRONG(FFF | CMM | FF, CMM_ERROR_THREADS, c->run.threads = INT32_MIN)                                             \
    WRONG(FFF | CMM | FF, CMM_ERROR_PATH_TWICE, c->run.path_nodes = memory.path, c->run.path_leaves = memory.leaves) \
    WRONG(FFF | CMM | FF, CMM_ERROR_LEVEL, c->run.level = "")                                                        \
    WRONG(FFF | CMM | FF, CMM_ERROR_LEVEL, c->run.level = "Naive")                                                   \
    WRONG(FFF | CMM | FF, CMM_ERROR_LEVEL, c->run.level = "blas4")                                                   \
    WRONG(FFF | CMM | FF, CMM_ERROR_ISA, c->run.isa = "")                                                            \
    WRONG(FFF | CMM | FF, CMM_ERROR_ISA, c->run.isa = "sse2")                                                        \
    WRONG(FFF | CMM | FF, CMM_ERROR_ISA, c->run.isa = "any")                                                         \
    WRONG(FFF | CMM | FF, CMM_ERROR_ISA_UNUSABLE, c->run.isa = foreign_isa())                                        \
    WRONG(FFF | CMM, CMM_ERROR_ISA_UNUSABLE, c->run.isa = foreign_isa(), c->run.level = "native")                    \
    WRONG(FFF | CMM | FF, CMM_ERROR_METHOD, c->run.algorithm = "run")                                                \
    WRONG(FFF | CMM, CMM_ERROR_METHOD, c->run.algorithm = "", c->run.level = "native")                               \
    WRONG(FFF | CMM | FF, CMM_ERROR_METHOD, c->run.algorithm = "per_token", c->run.level = "naive")                  \
    WRONG(FFF | CMM | FF, CMM_ERROR_BLAS_MISSING, c->run.level = "blas1", c->run.blas = NULL)                        \
    WRONG(FFF | CMM | FF, CMM_ERROR_BLAS_MISSING, c->run.level = "blas2", c->run.blas = NULL)                        \
    WRONG(FFF | CMM | FF, CMM_ERROR_BLAS_MISSING, c->run.level = "blas3", c->run.blas = NULL)                        \
    WRONG(FFF | CMM | FF, CMM_ERROR_BLAS_SIZE, c->run.blas = &c->blas, c->blas.size = 0)                             \
    WRONG(FFF | CMM | FF, CMM_ERROR_BLAS_SIZE, c->run.blas = &c->blas, c->run.level = "naive", c->blas.size -= 8)    \
    WRONG(FFF | CMM | FF, CMM_ERROR_BLAS_INCOMPLETE, level(c, "blas1"), c->blas.sdot = NULL, c->blas.ddot = NULL)    \
    WRONG(FFF | CMM | FF, CMM_ERROR_BLAS_INCOMPLETE, level(c, "blas1"), c->blas.saxpy = NULL, c->blas.daxpy = NULL)  \
    WRONG(FFF | CMM | FF, CMM_ERROR_BLAS_INCOMPLETE, level(c, "blas2"), c->blas.sgemv = NULL, c->blas.dgemv = NULL)  \
    WRONG(FFF | CMM | FF, CMM_ERROR_BLAS_INCOMPLETE, level(c, "blas3"), c->blas.sgemm = NULL, c->blas.dgemm = NULL)  \
    WRONG(FF, CMM_ERROR_PATH_DENSE, c->run.path_nodes = memory.path, c->run.path_leaves = NULL)                      \
    WRONG(FF, CMM_ERROR_PATH_DENSE, c->run.path_leaves = memory.leaves, c->run.path_nodes = NULL)                    \
    WRONG(FFF | CMM | FF, CMM_ERROR_BATCH, c->batch = -1)                                                            \
    WRONG(FFF | CMM | FF, CMM_ERROR_BATCH, c->batch = INT64_MIN)                                                     \
    WRONG(FFF | CMM | FF, CMM_ERROR_BATCH_TOO_LARGE, c->batch = INT64_MAX)                                           \
    WRONG(FFF | CMM | FF, CMM_ERROR_BATCH_TOO_LARGE, c->batch = INT64_MAX / D_IN)                                    \
    WRONG(FFF | CMM | FF, CMM_ERROR_BATCH_TOO_LARGE, wide_x(c, 1))                                                   \
    WRONG(FFF | FF, CMM_ERROR_BATCH_TOO_LARGE, wide_y(c, 1))                                                         \
    WRONG(FFF | CMM, CMM_ERROR_BATCH_TOO_LARGE, long_path(c, 1))                                                     \
    WRONG(FFF | CMM, CMM_ERROR_BATCH_TOO_LARGE, thin(c), c->batch = INT64_MAX / STEPS + 1)                           \
    WRONG(FFF | CMM | FF, CMM_ERROR_W_IN_NULL, c->fff.w_in = c->ff.w_in = NULL)                                      \
    WRONG(FFF | FF, CMM_ERROR_W_OUT_NULL, c->fff.w_out = c->ff.w_out = NULL)                                         \
    WRONG(FFF | CMM | FF, CMM_ERROR_X_NULL, c->x = NULL)                                                             \
    WRONG(FFF | FF, CMM_ERROR_Y_NULL, c->y = NULL)                                                                   \
    WRONG(CMM, CMM_ERROR_PATH_NULL, c->nodes = NULL, c->logits = NULL)                                               \
    WRONG(FFF | CMM | FF, CMM_ERROR_W_IN_ALIGN, c->fff.w_in = c->ff.w_in = off_by(memory.w_in, 1))                   \
    WRONG(FFF | CMM | FF, CMM_ERROR_BIAS_ALIGN, c->fff.bias = c->ff.bias = off_by(memory.bias, 2))                   \
    WRONG(FFF | FF, CMM_ERROR_W_OUT_ALIGN, c->fff.w_out = c->ff.w_out = off_by(memory.w_out, 3))                     \
    WRONG(FFF | CMM | FF, CMM_ERROR_X_ALIGN, c->x = off_by(memory.x, 1))                                             \
    WRONG(FFF | FF, CMM_ERROR_Y_ALIGN, c->y = off_by(memory.y, 2))                                                   \
    WRONG(FFF | CMM, CMM_ERROR_NODES_ALIGN, c->nodes = off_by(memory.nodes, 2))                                      \
    WRONG(FFF | CMM, CMM_ERROR_LOGITS_ALIGN, c->logits = off_by(memory.logits, 1))                                   \
    WRONG(FFF | CMM, CMM_ERROR_PATH_ALIGN, path(c), c->run.path_leaves = NULL, c->run.path_nodes = off_by(memory.path, 2))\
    WRONG(FFF | CMM, CMM_ERROR_PATH_ALIGN, path(c), c->run.path_nodes = NULL, c->run.path_leaves = off_by(memory.leaves, 1))\
    WRONG(FFF | FF, CMM_ERROR_Y_OVERLAP, c->y = memory.x)                                                            \
    WRONG(FFF | FF, CMM_ERROR_Y_OVERLAP, c->y = off_by(memory.x, BATCH * D_IN * element - element))                  \
    WRONG(FFF | FF, CMM_ERROR_Y_OVERLAP, c->y = off_by(memory.x, element - BATCH * D_OUT * element))                 \
    WRONG(FFF | FF, CMM_ERROR_Y_OVERLAP, c->y = off_by(memory.w_in, 8))                                              \
    WRONG(FFF | FF, CMM_ERROR_Y_OVERLAP, c->y = off_by(memory.bias, TREES * NODES * element - element))              \
    WRONG(FFF | FF, CMM_ERROR_Y_OVERLAP, c->y = memory.w_out)                                                        \
    WRONG(FFF | FF, CMM_ERROR_Y_OVERLAP, strided(c), c->y = off_by(memory.w_in, END_IN * element - element))         \
    WRONG(FFF | FF, CMM_ERROR_Y_OVERLAP, strided(c), c->y = off_by(memory.w_in, (LD_IN + D_IN) * element))           \
    WRONG(FFF | FF, CMM_ERROR_Y_OVERLAP, strided(c), c->y = off_by(memory.w_out, END_OUT * element - element))       \
    WRONG(FFF | FF, CMM_ERROR_Y_OVERLAP, strided(c), c->y = off_by(memory.w_out, (LD_OUT + D_OUT) * element))        \
    WRONG(FFF | CMM, CMM_ERROR_NODES_OVERLAP, c->nodes = off_by(memory.x, 4))                                        \
    WRONG(FFF | CMM, CMM_ERROR_NODES_OVERLAP, c->nodes = off_by(memory.x, 4 - BATCH * STEPS * 4))                    \
    WRONG(FFF | CMM, CMM_ERROR_NODES_OVERLAP, c->nodes = (int32_t *)memory.w_in)                                     \
    WRONG(FFF | CMM, CMM_ERROR_NODES_OVERLAP, c->nodes = (int32_t *)memory.bias)                                     \
    WRONG(FFF, CMM_ERROR_NODES_OVERLAP, c->nodes = (int32_t *)memory.w_out)                                          \
    WRONG(FFF, CMM_ERROR_NODES_OVERLAP, c->nodes = off_by(memory.y, BATCH * D_OUT * element - 4))                    \
    WRONG(FFF | CMM, CMM_ERROR_NODES_OVERLAP, strided(c), c->nodes = off_by(memory.w_in, END_IN * element - 4))      \
    WRONG(FFF | CMM, CMM_ERROR_NODES_OVERLAP, strided(c), c->nodes = off_by(memory.w_in, D_IN * element))            \
    WRONG(FFF, CMM_ERROR_NODES_OVERLAP, strided(c), c->nodes = off_by(memory.w_out, END_OUT * element - 4))          \
    WRONG(FFF, CMM_ERROR_NODES_OVERLAP, strided(c), c->nodes = off_by(memory.w_out, D_OUT * element))                \
    WRONG(FFF | CMM, CMM_ERROR_LOGITS_OVERLAP, c->logits = memory.x)                                                 \
    WRONG(FFF | CMM, CMM_ERROR_LOGITS_OVERLAP, c->logits = off_by(memory.x, element - BATCH * STEPS * element))      \
    WRONG(FFF | CMM, CMM_ERROR_LOGITS_OVERLAP, c->logits = memory.w_in)                                              \
    WRONG(FFF | CMM, CMM_ERROR_LOGITS_OVERLAP, c->logits = memory.bias)                                              \
    WRONG(FFF, CMM_ERROR_LOGITS_OVERLAP, c->logits = memory.w_out)                                                   \
    WRONG(FFF, CMM_ERROR_LOGITS_OVERLAP, c->logits = memory.y)                                                       \
    WRONG(FFF | CMM, CMM_ERROR_LOGITS_OVERLAP, strided(c), c->logits = off_by(memory.w_in, (END_IN - 1) * element))  \
    WRONG(FFF | CMM, CMM_ERROR_LOGITS_OVERLAP, strided(c), c->logits = off_by(memory.w_in, D_IN * element))          \
    WRONG(FFF, CMM_ERROR_LOGITS_OVERLAP, strided(c), c->logits = off_by(memory.w_out, (END_OUT - 1) * element))      \
    WRONG(FFF, CMM_ERROR_LOGITS_OVERLAP, strided(c), c->logits = off_by(memory.w_out, D_OUT * element))              \
    WRONG(FFF | CMM, CMM_ERROR_LOGITS_OVERLAP, c->logits = off_by(memory.nodes, 8))                                  \
    WRONG(FFF, CMM_ERROR_Y_OVERLAP, path(c), c->run.path_leaves = NULL, c->run.path_nodes = (int32_t *)memory.y)     \
    WRONG(FFF | CMM, CMM_ERROR_NODES_OVERLAP, path(c), c->run.path_leaves = NULL, c->run.path_nodes = memory.nodes)  \
    WRONG(FFF | CMM, CMM_ERROR_NODES_OVERLAP, path(c), c->run.path_nodes = NULL, c->run.path_leaves = memory.nodes + BATCH)\
    WRONG(FFF | CMM, CMM_ERROR_LOGITS_OVERLAP, path(c), c->run.path_leaves = NULL, c->run.path_nodes = (int32_t *)memory.logits)\
    WRONG(FFF | CMM, CMM_ERROR_PATH, path(c), c->run.path_leaves = NULL, c->run.path_nodes = memory.path)            \
    WRONG(FFF | CMM, CMM_ERROR_PATH, path(c), c->run.path_nodes = NULL, c->run.path_leaves = memory.leaves)          \
    WRONG(FFF | CMM, CMM_ERROR_MEMORY, c->run.level = "native", refuse_memory = 1)                                   \
    WRONG(FFF | FF, CMM_ERROR_MEMORY, level(c, "blas2"), refuse_memory = 1)

static void level(call *c, const char *name)
{
    c->run.level = name;
    c->run.blas = &c->blas;
}

static void widths(call *c)
{
    c->fff.d_in = c->ff.d_in = D_IN;
    c->fff.d_out = c->ff.d_out = D_OUT;
}

static void dense(call *c)
{
    c->fff.ld_in = c->fff.ld_out = c->ff.ld_in = c->ff.ld_out = 0;
}

static void strided(call *c)
{
    widths(c);
    c->fff.ld_in = c->ff.ld_in = LD_IN;
    c->fff.ld_out = c->ff.ld_out = LD_OUT;
}

/* Of rows that are of the layer's dtype, and have neither scales nor an exact path. */
static void plain(call *c)
{
    c->fff.weight_dtype = c->fff.weight_out_dtype = 0;
    c->fff.scale_in = c->fff.scale_out = c->fff.margin = NULL;
    c->fff.exact_in = NULL;
}

/* Of one size with the batch, so that it lies within the arrays here. */
static void path(call *c)
{
    c->batch = BATCH;
}

static void thin(call *c)
{
    c->fff.d_in = c->fff.d_out = c->ff.d_in = c->ff.d_out = 1;
}

/* The batch at which x, y or the path ends where the address space does, and so many tokens more. */
static void wide_x(call *c, int64_t more)
{
    c->fff.d_in = c->ff.d_in = 1000;
    c->batch = PTRDIFF_MAX / 1000 / element + more;
}

static void wide_y(call *c, int64_t more)
{
    c->fff.d_out = c->ff.d_out = 1000;
    c->batch = PTRDIFF_MAX / 1000 / element + more;
}

static void long_path(call *c, int64_t more)
{
    c->batch = PTRDIFF_MAX / STEPS / 8 + more; /* a step may take 8 bytes, whatever the dtype */
}

static const char *foreign_isa(void)
{
#if defined(__aarch64__)
    return "avx2";
#else
    return "neon";
#endif
}

#define WRONG(functions, status, ...) {functions, status, #__VA_ARGS__},
static const struct {
    int functions;
    cmm_status status;
    const char *what;
} wrongs[] = {WRONG_CALLS(WRONG)};
#undef WRONG

enum { WRONGS = sizeof wrongs / sizeof *wrongs };

static void make_wrong(call *c, int which)
{
    int at = 0;
#define WRONG(functions, status, ...)                                                                                \
    if (at++ == which)                                                                                               \
        (void)(__VA_ARGS__);
    WRONG_CALLS(WRONG)
#undef WRONG
}

static cmm_status make_call(const call *c, int function)
{
    return function == FFF
               ? cmm_fff_forward(c->fff_pointer, c->run_pointer, c->batch, c->x, c->y, c->nodes, c->logits)
           : function == CMM ? cmm_cmm_forward(c->fff_pointer, c->run_pointer, c->batch, c->x, c->nodes, c->logits)
                             : cmm_ff_forward(c->ff_pointer, c->run_pointer, c->batch, c->x, c->y);
}

static const char *name_of(int function)
{
    return function == FFF ? "cmm_fff_forward" : function == CMM ? "cmm_cmm_forward" : "cmm_ff_forward";
}

/* A call that was made wrong has this status, and has written nothing. */
static void check_refused(const call *c, int function, cmm_status expected, const char *what, const char *and_what)
{
    static struct memory before;
    memset(&memory, CANARY, sizeof memory);
    memcpy(&before, &memory, sizeof memory);
    const cmm_status status = make_call(c, function);
    refuse_memory = 0;
    CHECK(status == expected, "%s, f%d, %s; %s: %s, not %s", name_of(function), element * 8, what, and_what,
          cmm_status_name(status), cmm_status_name(expected));
    CHECK(memcmp(&before, &memory, sizeof memory) == 0, "%s, f%d, %s; %s: memory was written", name_of(function),
          element * 8, what, and_what);
}

static void check_call(int32_t dtype, int which, int function)
{
    call c;
    good_call(dtype, &c);
    make_wrong(&c, which);
    check_refused(&c, function, wrongs[which].status, wrongs[which].what, "alone");
}

/* ---- wrong in two ways ----------------------------------------------------------------------------------------- */

/* The order of the checks, which is promised: that of docs/reference/status-codes.md (tests/core/test_docs.py compares). */
static const cmm_status order_of_checks[] = {
    CMM_ERROR_LAYER_NULL, CMM_ERROR_LAYER_SIZE, CMM_ERROR_RESERVED, CMM_ERROR_SCALE, CMM_ERROR_EXACT,
    CMM_ERROR_TIE, CMM_ERROR_DEPTH, CMM_ERROR_TREES, CMM_ERROR_NEURONS,
    CMM_ERROR_DTYPE, CMM_ERROR_WEIGHT_DTYPE, CMM_ERROR_ACTIVATION, CMM_ERROR_D_IN, CMM_ERROR_D_OUT, CMM_ERROR_LD_IN,
    CMM_ERROR_LD_OUT, CMM_ERROR_LD_EXACT, CMM_ERROR_LAYER_TOO_LARGE,
    CMM_ERROR_RUN_SIZE, CMM_ERROR_THREADS, CMM_ERROR_PATH_TWICE, CMM_ERROR_LEVEL, CMM_ERROR_ISA, CMM_ERROR_BLAS_SIZE,
    CMM_ERROR_PATH_DENSE,
    CMM_ERROR_BATCH, CMM_ERROR_BATCH_TOO_LARGE,
    CMM_ERROR_W_IN_NULL, CMM_ERROR_W_OUT_NULL, CMM_ERROR_W_IN_ALIGN, CMM_ERROR_W_OUT_ALIGN, CMM_ERROR_BIAS_ALIGN,
    CMM_ERROR_SCALE_ALIGN, CMM_ERROR_EXACT_ALIGN,
    CMM_ERROR_X_NULL, CMM_ERROR_Y_NULL, CMM_ERROR_PATH_NULL,
    CMM_ERROR_X_ALIGN, CMM_ERROR_Y_ALIGN, CMM_ERROR_NODES_ALIGN, CMM_ERROR_LOGITS_ALIGN, CMM_ERROR_PATH_ALIGN,
    CMM_ERROR_Y_OVERLAP, CMM_ERROR_NODES_OVERLAP, CMM_ERROR_LOGITS_OVERLAP,
    CMM_ERROR_PATH,
    CMM_ERROR_ISA_UNUSABLE, CMM_ERROR_LEVEL_WEIGHT_DTYPE, CMM_ERROR_METHOD, CMM_ERROR_BLAS_MISSING, CMM_ERROR_BLAS_INCOMPLETE,
    CMM_ERROR_MEMORY,
};

enum { ORDERED = sizeof order_of_checks / sizeof *order_of_checks };

static int place_in_order(cmm_status status)
{
    int place = 0;
    while (place < ORDERED && order_of_checks[place] != status)
        place++;
    CHECK(place < ORDERED, "%s is missing in the order of checks", cmm_status_name(status));
    return place;
}

/* A call as words, with what else a wrong call may change at their end; and which of them a wrong call sets, found by
 * making two calls wrong that have no word in common. */
enum { WORDS = sizeof(call) / sizeof(uint32_t) + 1 };

typedef struct change {
    uint32_t set[WORDS], value[WORDS];
} change;

static void find_change(int32_t dtype, int which, change *found)
{
    static call c; /* one place, so that pointers into it are the same every time */
    uint32_t from[2][WORDS], to[2][WORDS];
    for (int other = 0; other <= 1; other++) {
        good_call(dtype, &c);
        refuse_memory = 2 * other;
        memcpy(from[other], &c, sizeof c);
        from[other][WORDS - 1] = (uint32_t)refuse_memory;
        for (int w = 0; w < WORDS - 1; w++)
            from[other][w] ^= other ? 0x5A5A5A5Au : 0;
        memcpy(&c, from[other], sizeof c);
        make_wrong(&c, which);
        memcpy(to[other], &c, sizeof c);
        to[other][WORDS - 1] = (uint32_t)refuse_memory;
    }
    refuse_memory = 0;
    for (int w = 0; w < WORDS; w++) {
        found->set[w] = to[0][w] != from[0][w] || to[1][w] != from[1][w];
        found->value[w] = to[0][w];
    }
}

static int can_be_combined(const change *a, const change *b)
{
    for (int w = 0; w < WORDS; w++)
        if (a->set[w] && b->set[w] && a->value[w] != b->value[w])
            return 0;
    return 1;
}

/* Every pair of wrongs that do not set one thing to two values: the status of the one that is checked first. */
static void check_pairs(int32_t dtype)
{
    static change changes[WRONGS];
    int pairs = 0;
    for (int which = 0; which < WRONGS; which++)
        find_change(dtype, which, &changes[which]);
    for (int function = FFF; function <= FF; function *= 2)
        for (int one = 0; one < WRONGS; one++)
            for (int two = one + 1; two < WRONGS; two++) {
                if (!(wrongs[one].functions & wrongs[two].functions & function) ||
                    !can_be_combined(&changes[one], &changes[two]))
                    continue;
                call c;
                good_call(dtype, &c);
                make_wrong(&c, one);
                make_wrong(&c, two);
                const int first = place_in_order(wrongs[one].status) <= place_in_order(wrongs[two].status) ? one : two;
                check_refused(&c, function, wrongs[first].status, wrongs[one].what, wrongs[two].what);
                pairs++;
            }
    printf("f%d: %d calls that are wrong in two ways\n", element * 8, pairs);
    CHECK(pairs >= 5000, "%d", pairs);
}

/* What is too large for a BLAS is found last, when it is known that a BLAS would compute. Where an address has 32 bits
 * such weights are too large for those, which is found before. */
static void check_too_large_for_blas(int32_t dtype)
{
    const int64_t fits = INT32_MAX;
    const int exists = SIZE_MAX > UINT32_MAX;
    for (int64_t more = 0; more <= 1; more++)
        for (int which = 0; which < 5; which++) {
            call c;
            good_call(dtype, &c);
            c.batch = 0; /* there is no such memory, and it is not touched */
            level(&c, "blas3");
            if (which == 0)
                c.fff.d_in = c.ff.d_in = fits + more;
            else if (which == 1)
                c.fff.d_out = c.ff.d_out = fits + more;
            else if (which == 2)
                c.fff.ld_in = c.ff.ld_in = fits + more;
            else if (which == 3)
                c.fff.ld_out = c.ff.ld_out = fits + more;
            else
                c.ff.neurons = fits + more;
            const cmm_status expected = more || !exists ? CMM_ERROR_LAYER_TOO_LARGE : CMM_OK;
            CHECK(make_call(&c, FF) == expected, "f%d: ff, %d", element * 8, which);
            CHECK(which == 4 || make_call(&c, FFF) == expected, "f%d: fff, %d", element * 8, which);
            c.blas.sgemm = NULL;
            c.blas.dgemm = NULL;
            const cmm_status incomplete = exists ? CMM_ERROR_BLAS_INCOMPLETE : expected;
            CHECK(make_call(&c, FF) == incomplete, "f%d: ff, %d", element * 8, which);
            c.run.level = "naive";
            CHECK(make_call(&c, FF) == (exists ? CMM_OK : expected), "f%d: ff, %d", element * 8, which);
        }
}

/* ---- good calls ------------------------------------------------------------------------------------------------ */

static void check_is_good(const call *c, int function, const char *what)
{
    CHECK(make_call(c, function) == CMM_OK, "%s, f%d: %s", name_of(function), element * 8, what);
}

/* The same calls, not made wrong, are good: otherwise the above would prove nothing. And calls that are only just. */
static void check_good(int32_t dtype)
{
    for (int function = FFF; function <= FF; function *= 2) {
        call c;
        good_call(dtype, &c);
        memset(&memory, 0, sizeof memory);
        check_is_good(&c, function, "as it is");
        c.run.level = "auto";
        check_is_good(&c, function, "auto");
        c.run.blas = &c.blas;
        c.run.algorithm = "per_token";
        check_is_good(&c, function, "an algorithm of level native, where there is a BLAS too");
        c.run_pointer = NULL;
        check_is_good(&c, function, "without run");
        c.y = off_by(memory.x, BATCH * D_IN * element);
        check_is_good(&c, function, "y begins where x ends");
        c.y = off_by(memory.x, -BATCH * D_OUT * element);
        check_is_good(&c, function, "y ends where x begins");

        strided(&c);
        c.y = off_by(memory.w_in, END_IN * element);
        check_is_good(&c, function, "y begins where the last row of w_in ends");
        c.y = off_by(memory.w_out, END_OUT * element);
        check_is_good(&c, function, "y begins where the last row of w_out ends");
        c.y = memory.y;
        c.nodes = off_by(memory.w_in, END_IN * element);
        check_is_good(&c, function, "nodes begin where the last row of w_in ends");

        good_call(dtype, &c);
        c.batch = 0;
        c.y = c.logits = memory.w_in;
        c.nodes = (int32_t *)memory.w_in + 1;
        check_is_good(&c, function, "arrays without a token share no memory");
        c.x = c.y = c.logits = c.nodes = NULL;
        check_is_good(&c, function, "arrays without a token may be NULL");
    }

    /* The largest batches are not refused for their size: what is checked next is. */
    static void (*const largest[])(call *, int64_t) = {wide_x, wide_y, long_path};
    for (int which = 0; which < 3; which++)
        for (int function = FFF; function <= FF; function *= 2) {
            if (which == 2 && function == FF)
                continue; /* it has no path, and x would be larger */
            call c;
            good_call(dtype, &c);
            largest[which](&c, which == 1 && function == CMM); /* which has no y: there one more will do, too */
            c.fff.w_in = c.ff.w_in = NULL;
            CHECK(make_call(&c, function) == CMM_ERROR_W_IN_NULL, "%s, f%d: %d", name_of(function), element * 8, which);
        }
}

/* cmm_cmm_forward() does not look at what belongs to the output of a layer. */
static void check_cmm_reads_no_output(int32_t dtype)
{
    static const char *const levels[] = {"naive", "blas1", "blas2", "blas3", "native"};
    static struct memory expected;
    call c;
    for (size_t i = 0; i < sizeof levels / sizeof *levels; i++)
        for (int strange = 0; strange <= 6; strange++) {
            good_call(dtype, &c);
            level(&c, levels[i]);
            memset(&memory, 0, sizeof memory);
            if (strange == 1)
                c.fff.w_out = NULL;
            else if (strange == 2)
                c.fff.w_out = off_by(memory.w_out, 3);
            else if (strange == 3)
                c.fff.w_out = (const void *)(uintptr_t)8; /* nothing lies there */
            else if (strange == 4)
                c.fff.w_out = memory.nodes; /* which is written */
            else if (strange == 5)
                c.fff.d_out = INT64_MIN;
            else if (strange == 6)
                c.fff.ld_out = -1;
            CHECK(make_call(&c, CMM) == CMM_OK, "f%d, %s, strange %d", element * 8, levels[i], strange);
            if (strange == 0)
                expected = memory;
            CHECK(memcmp(&expected, &memory, sizeof memory) == 0, "f%d, %s, strange %d", element * 8, levels[i],
                  strange);
        }
}

static void check_kernels(void)
{
    cmm_kernel_info info = {.size = sizeof info}, untouched;
    const int32_t count = cmm_kernel_count();
    CHECK(cmm_kernel_get(0, NULL) == CMM_ERROR_INFO_NULL, "info NULL");
    memset(&info, CANARY, sizeof info);
    memcpy(&untouched, &info, sizeof info);
    CHECK(cmm_kernel_get(0, &info) == CMM_ERROR_INFO_SIZE, "info size");
    info.size = untouched.size = sizeof info;
    CHECK(cmm_kernel_get(-1, &info) == CMM_ERROR_INDEX, "index -1");
    CHECK(cmm_kernel_get(count, &info) == CMM_ERROR_INDEX, "index %d", count);
    CHECK(memcmp(&info, &untouched, sizeof info) == 0, "info was written");
    for (int32_t i = 0; i < count; i++) {
        CHECK(cmm_kernel_get(i, &info) == CMM_OK, "kernel %d", i);
        CHECK(strstr("fff ff act backward", info.operation) && info.name[0] && info.isa[0], "kernel %d", i);
        CHECK((info.reason[0] == 0) == info.available, "%s: %d \"%s\"", info.name, info.available, info.reason);
        CHECK(info.available || strcmp(info.isa, "any") != 0, "%s: %s", info.name, info.reason);
        CHECK(info.available || strcmp(info.isa, "scalar") != 0, "%s: %s", info.name, info.reason);
        CHECK(!info.available || strcmp(info.isa, foreign_isa()) != 0, "%s is usable", info.name);
    }
}

/* Packing: its own wrong arguments, and nothing written by any of them. */
static void check_pack(int32_t dtype)
{
    static _Alignas(CMM_ALIGNMENT) char packed_memory[1 << 14], before[1 << 14];
    static struct memory memory_before;
    call c;
    good_call(dtype, &c);
    const cmm_fff good = c.fff;
    cmm_fff packed, untouched;
    int64_t bytes = -77;
    memset(&packed, CANARY, sizeof packed);
    memset(packed_memory, CANARY, sizeof packed_memory);
    memset(&memory, CANARY, sizeof memory);
    memcpy(&untouched, &packed, sizeof packed);
    memcpy(before, packed_memory, sizeof before);
    memcpy(&memory_before, &memory, sizeof memory);

    cmm_fff wrong = good;
    CHECK(cmm_fff_pack_size(NULL, &bytes) == CMM_ERROR_LAYER_NULL, "layer NULL");
    CHECK(cmm_fff_pack_size(&good, NULL) == CMM_ERROR_BYTES_NULL, "bytes NULL");
    wrong.depth = -1;
    CHECK(cmm_fff_pack_size(&wrong, &bytes) == CMM_ERROR_DEPTH, "depth");
    wrong = good;
    wrong.trees = INT64_MAX / NODES / D_IN / (int64_t)element_size(dtype);
    CHECK(cmm_fff_pack_size(&wrong, &bytes) == CMM_ERROR_LAYER_TOO_LARGE, "padding makes it too large");
    CHECK(bytes == -77, "bytes was written");
    wrong = good;
    wrong.trees = 1;
    wrong.depth = 0;
    wrong.bias = NULL;
    wrong.d_in = wrong.d_out = INT64_MAX / (int64_t)element_size(dtype);
    CHECK(cmm_fff_pack_size(&wrong, &bytes) == CMM_ERROR_LAYER_TOO_LARGE, "padding alone would not fit");
    CHECK(cmm_fff_pack_size(&good, &bytes) == CMM_OK && bytes > 0 && bytes < (int64_t)sizeof packed_memory, "bytes");

    CHECK(cmm_fff_pack(NULL, packed_memory, bytes, &packed) == CMM_ERROR_LAYER_NULL, "layer NULL");
    wrong = good;
    wrong.w_out = NULL;
    CHECK(cmm_fff_pack(&wrong, packed_memory, bytes, &packed) == CMM_ERROR_W_OUT_NULL, "w_out NULL");
    wrong = good;
    wrong.w_in = off_by(good.w_in, 1);
    CHECK(cmm_fff_pack(&wrong, packed_memory, bytes, &packed) == CMM_ERROR_W_IN_ALIGN, "w_in misaligned");
    CHECK(cmm_fff_pack(&good, packed_memory, bytes, NULL) == CMM_ERROR_PACKED_NULL, "packed NULL");
    CHECK(cmm_fff_pack(&good, NULL, bytes, &packed) == CMM_ERROR_MEMORY_NULL, "memory NULL");
    CHECK(cmm_fff_pack(&good, packed_memory + 8, bytes, &packed) == CMM_ERROR_MEMORY_ALIGN, "memory misaligned");
    CHECK(cmm_fff_pack(&good, packed_memory, bytes - 1, &packed) == CMM_ERROR_MEMORY_SIZE, "memory too small");
    CHECK(cmm_fff_pack(&good, packed_memory, -1, &packed) == CMM_ERROR_MEMORY_SIZE, "memory too small");
    wrong = good;
    wrong.bias = packed_memory + bytes - 8;
    CHECK(cmm_fff_pack(&wrong, packed_memory, bytes, &packed) == CMM_ERROR_MEMORY_OVERLAP, "memory overlaps bias");
    for (int out = 0; out <= 1; out++) { /* the last row of a strided layer, and the room between two rows */
        const int64_t last = (TREES * NODES - 1) * 64 * (int64_t)element, width = (out ? D_OUT : D_IN) * element;
        for (int gap = 0; gap <= 1; gap++) {
            wrong = good;
            *(out ? &wrong.ld_out : &wrong.ld_in) = 64;
            char *const start = gap ? packed_memory - width : packed_memory + width - element - last - width;
            *(out ? &wrong.w_out : &wrong.w_in) = start;
            CHECK(cmm_fff_pack(&wrong, packed_memory, bytes, &packed) == CMM_ERROR_MEMORY_OVERLAP,
                  "memory overlaps %s of %s", gap ? "the room between rows" : "the last row", out ? "w_out" : "w_in");
        }
    }
    CHECK(memcmp(&packed, &untouched, sizeof packed) == 0, "packed was written");
    CHECK(memcmp(packed_memory, before, sizeof before) == 0, "memory was written");
    CHECK(memcmp(&memory, &memory_before, sizeof memory) == 0, "the layer was written");

    CHECK(cmm_fff_pack(&good, packed_memory, bytes, &packed) == CMM_OK, "good");
    CHECK(memcmp(packed_memory + bytes, before, sizeof before - (size_t)bytes) == 0, "written beyond its bytes");
}

/* A packed layer: every row aligned, the same results, and nothing in it but the layer. */
static void check_packed(int32_t dtype)
{
    static _Alignas(CMM_ALIGNMENT) char one[1 << 14], two[1 << 14];
    for (int32_t bias = 0; bias <= 1; bias++) {
        const shape s = {.dtype = dtype, .depth = 2, .trees = 2, .d_in = 5, .d_out = 19, .batch = 7, .bias = bias};
        example e = example_new(s, 3), from_packed = example_new(s, 3);
        int64_t bytes = 0;
        CHECK(cmm_fff_pack_size(&e.layer, &bytes) == CMM_OK && bytes <= (int64_t)sizeof one, "%lld", (long long)bytes);
        memset(one, CANARY, sizeof one);
        memset(two, 0, sizeof two);
        CHECK(cmm_fff_pack(&e.layer, two, bytes, &from_packed.layer) == CMM_OK, "pack");
        CHECK(cmm_fff_pack(&e.layer, one, bytes, &from_packed.layer) == CMM_OK, "pack");
        CHECK(memcmp(one, two, (size_t)bytes) == 0, "what was in the memory before is still there");
        const cmm_fff *const p = &from_packed.layer;
        CHECK((uintptr_t)p->w_in % CMM_ALIGNMENT == 0 && (uintptr_t)p->w_out % CMM_ALIGNMENT == 0, "the first rows");
        CHECK(p->ld_in == p->ld_out && p->ld_in * (int64_t)element_size(dtype) % CMM_ALIGNMENT == 0, "the others");
        CHECK((p->bias != NULL) == bias, "bias");
        CHECK(example_run(&e, NULL) == CMM_OK && example_run(&from_packed, NULL) == CMM_OK, "run");
        CHECK(memcmp(e.y, from_packed.y, (size_t)(s.batch * s.d_out) * element_size(dtype)) == 0, "other results");
        example_free(&e);
        example_free(&from_packed);
    }
}

/* The functions that do not compute. */
static void check_others(void)
{
    cmm_level_info info = {.size = sizeof info}, untouched;
    const int32_t count = cmm_level_count();
    CHECK(count == 5, "%d levels", count);
    CHECK(cmm_level_get(0, NULL, NULL) == CMM_ERROR_INFO_NULL, "info NULL");
    memset(&info, CANARY, sizeof info);
    memcpy(&untouched, &info, sizeof info);
    CHECK(cmm_level_get(0, NULL, &info) == CMM_ERROR_INFO_SIZE, "info size");
    info.size = untouched.size = sizeof info;
    CHECK(cmm_level_get(-1, NULL, &info) == CMM_ERROR_INDEX, "index -1");
    CHECK(cmm_level_get(count, NULL, &info) == CMM_ERROR_INDEX, "index %d", count);
    CHECK(cmm_level_get(0, &(cmm_run){.size = 1}, &info) == CMM_ERROR_RUN_SIZE, "run size");
    CHECK(cmm_level_get(0, &(cmm_run){.size = sizeof(cmm_run), .isa = "mmx"}, &info) == CMM_ERROR_ISA, "isa");
    CHECK(memcmp(&info, &untouched, sizeof info) == 0, "info was written");

    static const char *const names[] = {"naive", "blas1", "blas2", "blas3", "native"};
    for (int32_t i = 0; i < count; i++) {
        CHECK(cmm_level_get(i, NULL, &info) == CMM_OK && strcmp(info.name, names[i]) == 0, "level %d is %s", i,
              info.name);
        const int blas = strncmp(info.name, "blas", 4) == 0;
        CHECK(info.available == !blas && (info.reason[0] == 0) == !blas && info.isa, "%s: %d \"%s\"", info.name,
              info.available, info.reason);
        const cmm_run with_blas = {.size = sizeof with_blas, .blas = &reference_blas};
        CHECK(cmm_level_get(i, &with_blas, &info) == CMM_OK && info.available && !info.reason[0], "%s: \"%s\"", info.name,
              info.reason);
    }
    const cmm_run foreign = {.size = sizeof foreign, .isa = foreign_isa()};
    CHECK(cmm_level_get(4, &foreign, &info) == CMM_OK && !info.available && strstr(info.reason, " CPUs"), "why: %s",
          info.reason);
    check_kernels();

    cmm_blas blas, before;
    memset(&blas, CANARY, sizeof blas);
    memcpy(&before, &blas, sizeof blas);
    CHECK(cmm_blas_load("libcmm-no-such-file.so", NULL) == CMM_ERROR_BLAS_NULL, "blas NULL");
    CHECK(cmm_blas_load(NULL, &blas) == CMM_ERROR_BLAS_FILE_NULL, "file NULL");
    CHECK(cmm_blas_load("libcmm-no-such-file.so", &blas) == CMM_ERROR_BLAS_FILE, "no such file");
#if defined(CMM_NO_THREADS)
    CHECK(cmm_blas_load("libc.so.6", &blas) == CMM_ERROR_BLAS_FILE, "any library, where none is loaded");
#elif defined(_WIN32)
    CHECK(cmm_blas_load("kernel32.dll", &blas) == CMM_ERROR_BLAS_SYMBOLS, "a library that is no BLAS");
#else
    CHECK(cmm_blas_load("libc.so.6", &blas) == CMM_ERROR_BLAS_SYMBOLS, "a library that is no BLAS");
#endif
    CHECK(cmm_blas_linked(NULL) == CMM_ERROR_BLAS_NULL, "blas NULL");
    CHECK(cmm_blas_linked(&blas) == CMM_ERROR_BLAS_MISSING, "none is linked");
    CHECK(memcmp(&blas, &before, sizeof blas) == 0, "blas was written");
}

int main(void)
{
    int calls = 0, statuses = 0;
    for (int which = 0; which < WRONGS; which++)
        for (int function = FFF; function <= FF; function *= 2) {
            if (!(wrongs[which].functions & function))
                continue;
            calls++;
            check_call(CMM_F32, which, function);
            check_call(CMM_F64, which, function);
        }
    for (int which = 0; which < WRONGS; which++)
        statuses += which == 0 || wrongs[which].status != wrongs[which - 1].status;
    printf("%d kinds of wrong call with %d statuses; %d with the functions they are tried on\n", WRONGS, statuses,
           calls);
    CHECK(statuses >= 40, "%d statuses", statuses);
    for (int32_t dtype = CMM_F32; dtype <= CMM_F64; dtype++) {
        check_pairs(dtype);
        check_too_large_for_blas(dtype);
        check_good(dtype);
        check_cmm_reads_no_output(dtype);
        check_pack(dtype);
        check_packed(dtype);
    }
    check_others();
    return check_report();
}
