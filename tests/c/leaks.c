/* A call gives back what it took: scratch memory and the BLAS's thread count, whether it computed or was refused.
 *
 * The linker puts the functions below in the place of those that give libcmm its memory (see CMakeLists.txt). What the
 * C library allocates for itself, such as the stacks of the pool's threads, they do not see. */
#include "check.h"
#include "example.h"
#include "ways.h"

#include <stdatomic.h>

void *__real_cmm_aligned_alloc(size_t bytes);
void *__wrap_cmm_aligned_alloc(size_t bytes);
void __real_cmm_aligned_free(void *block);
void __wrap_cmm_aligned_free(void *block);

static atomic_int taken, given_back;
static int refuse; /* cmm_aligned_alloc() fails */

void *__wrap_cmm_aligned_alloc(size_t bytes)
{
    CHECK(bytes > 0 && bytes % CMM_ALIGNMENT == 0, "cmm_aligned_alloc(%zu)", bytes);
    void *const block = refuse ? NULL : __real_cmm_aligned_alloc(bytes);
    CHECK((uintptr_t)block % CMM_ALIGNMENT == 0, "cmm_aligned_alloc(%zu): %p", bytes, block);
    if (block)
        atomic_fetch_add(&taken, 1);
    return block;
}

void __wrap_cmm_aligned_free(void *block)
{
    if (block)
        atomic_fetch_add(&given_back, 1);
    __real_cmm_aligned_free(block);
}

static int32_t blas_threads = 5;

static void set_threads(int32_t threads)
{
    CHECK(threads == (blas_threads == 5 ? 1 : 5), "the BLAS is to run %d threads", threads);
    blas_threads = threads;
}

static int32_t get_threads(void) { return blas_threads; }

/* What a call took: how many blocks. */
static int check_balance(cmm_status status, cmm_status expected, const char *what)
{
    const int blocks = atomic_exchange(&taken, 0), back = atomic_exchange(&given_back, 0);
    CHECK(status == expected, "%s: %s", what, cmm_status_name(status));
    CHECK(blocks == back, "%s: %d blocks taken, %d given back", what, blocks, back);
    CHECK(blas_threads == 5, "%s: the BLAS is left with %d threads", what, blas_threads);
    return blocks;
}

static void check_way(const way *w, example *e, const cmm_ff *dense, int *with_scratch)
{
    cmm_run run = w->run;
    cmm_blas blas;
    if (run.blas) {
        blas = *run.blas;
        blas.set_threads = set_threads;
        blas.get_threads = get_threads;
        run.blas = &blas;
    }
    atomic_store(&taken, 0); /* the test itself allocates and frees, too */
    atomic_store(&given_back, 0);
    for (run.threads = 1; run.threads <= 3; run.threads += 2) {
        int takes[3] = {0};
        for (refuse = 0; refuse <= 1; refuse++)
            for (int call = 0; call < 3; call++) {
                cmm_status status;
                if (call == 0)
                    status = cmm_fff_forward(&e->layer, &run, e->batch, e->x, e->y, e->nodes, e->logits);
                else if (call == 1)
                    status = cmm_cmm_forward(&e->layer, &run, e->batch, e->x, e->nodes, e->logits);
                else
                    status = cmm_ff_forward(dense, &run, e->batch, e->x, e->y);
                const int blocks = check_balance(status, refuse && takes[call] ? CMM_ERROR_MEMORY : CMM_OK, w->name);
                if (!refuse)
                    takes[call] = blocks;
                *with_scratch += blocks > 0;
            }
        refuse = 0;
        check_balance(cmm_fff_forward(&e->layer, &run, 0, NULL, NULL, NULL, NULL), CMM_OK, w->name);
        check_balance(cmm_fff_forward(&e->layer, &run, -1, e->x, e->y, NULL, NULL), CMM_ERROR_BATCH, w->name);
        check_balance(cmm_fff_forward(&e->layer, &run, e->batch, e->x, (void *)(uintptr_t)e->x, NULL, NULL),
                      CMM_ERROR_Y_OVERLAP, w->name);
    }
}

/* A backward pass takes one block, where it is given none, and none where it is refused. */
static void check_backward(example *e)
{
    const size_t size = element_size(e->layer.dtype);
    void *const x = allocate(e->batch * e->layer.d_in, size), *const w_in = allocate(e->rows * e->layer.d_in, size);
    void *const memory = __real_cmm_aligned_alloc(1 << 20);
    cmm_gradients gradients = {.size = sizeof gradients, .dx = x, .dw_in = w_in};
    CHECK(example_run(e, NULL) == CMM_OK, "forward");
    for (int32_t threads = 1; threads <= 3; threads += 2) {
        const cmm_run run = {.size = sizeof run, .threads = threads};
#define BACKWARD(batch) cmm_fff_backward(&e->layer, &run, batch, e->x, e->nodes, e->logits, e->y, &gradients)
        atomic_store(&taken, 0);
        atomic_store(&given_back, 0);
        gradients.workspace = NULL;
        CHECK(check_balance(BACKWARD(e->batch), CMM_OK, "backward") == 1, "one block");
        refuse = 1;
        CHECK(check_balance(BACKWARD(e->batch), CMM_ERROR_MEMORY, "backward, no memory") == 0, "no block");
        refuse = 0;
        CHECK(check_balance(BACKWARD(0), CMM_OK, "backward, no token") == 0, "no block");
        CHECK(check_balance(BACKWARD(-1), CMM_ERROR_BATCH, "backward, wrong") == 0, "no block");
        gradients.workspace = memory;
        gradients.workspace_bytes = 1 << 20;
        CHECK(check_balance(BACKWARD(e->batch), CMM_OK, "backward, with a workspace") == 0, "no block");
    }
    free(x);
    free(w_in);
    __real_cmm_aligned_free(memory);
}

int main(int argc, char **argv)
{
    const int few = argc > 1 && strcmp(argv[1], "few") == 0; /* for an emulator */
    int with_scratch = 0;
    ways_find();
    for (int32_t dtype = CMM_F32; dtype <= CMM_F64; dtype++) {
        example e = example_new((shape){.dtype = dtype, .depth = 4, .trees = 3, .d_in = 96, .d_out = 80,
                                        .batch = few ? 40 : 300, .bias = 1}, 7);
        const cmm_ff dense = {.size = sizeof dense, .dtype = dtype, .neurons = e.rows, .d_in = 96, .d_out = 80,
                              .w_in = e.w_in, .bias = e.bias, .w_out = e.w_out};
        for (int i = 0; i < way_count; i++)
            check_way(&ways[i], &e, &dense, &with_scratch);
        check_backward(&e);
        example_free(&e);
    }
    printf("%d calls took scratch memory\n", with_scratch);
    CHECK(with_scratch > 20, "%d", with_scratch);
    return check_report();
}
