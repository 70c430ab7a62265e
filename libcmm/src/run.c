/* How a call runs: what the caller asked for, threads, scratch memory. */
#include "run.h"

#include "blas_threads.h"
#include "caller.h"
#include "cpu.h"
#include "platform.h"
#include "scratch.h"
#include "threadpool.h"
#include "validate.h"

#include <stdatomic.h>
#include <string.h>

cmm_status cmm_choose(const cmm_run *given, cmm_choice *chosen)
{
    memset(chosen, 0, offsetof(cmm_choice, table));
    cmm_request *const wanted = &chosen->wanted;
    wanted->cpu = cmm_cpu_machine()->cpu;
    if (given) {
        cmm_run read;
        const cmm_run *const run = &read;
        if (!cmm_read_struct(&read, sizeof read, offsetof(cmm_run, path_nodes), given))
            return CMM_ERROR_RUN_SIZE;
        if (run->threads < 0)
            return CMM_ERROR_THREADS;
        wanted->level = run->level && strcmp(run->level, "auto") != 0 ? run->level : NULL;
        wanted->isa = run->isa;
        wanted->algorithm = run->algorithm;
        chosen->threads = run->threads;
        chosen->path_nodes = run->path_nodes;
        chosen->path_leaves = run->path_leaves;
        chosen->refused = run->refused;
        chosen->recomputed = run->recomputed;
        if (run->path_nodes && run->path_leaves)
            return CMM_ERROR_PATH_TWICE;
        if (wanted->level && !cmm_is_level(wanted->level))
            return CMM_ERROR_LEVEL;
        if (wanted->isa && !cmm_is_isa(wanted->isa))
            return CMM_ERROR_ISA;
        if (run->blas && !cmm_read_struct(&chosen->table, sizeof chosen->table, sizeof chosen->table, run->blas))
            return CMM_ERROR_BLAS_SIZE;
        if (run->blas)
            wanted->blas = &chosen->table;
    }
    if (!wanted->blas && cmm_blas_linked(&chosen->table) == CMM_OK)
        wanted->blas = &chosen->table;
    return CMM_OK;
}

cmm_status cmm_find_activation(const cmm_request *wanted, cmm_context *cpu)
{
    cmm_status status = CMM_ERROR_ISA_UNUSABLE;
    for (int i = 0; i < cmm_kernel_file_count; i++) {
        const cmm_kernel *const kernel = (const cmm_kernel *)cmm_kernel_files[i][0];
        if (kernel->traits.op == CMM_OP_ACT && cmm_is_of_isa(&kernel->traits, wanted->isa) &&
            cmm_why_absent(&kernel->traits, wanted->cpu)[0] == '\0') {
            cpu->activate_f32 = kernel->activate_f32;
            cpu->activate_f64 = kernel->activate_f64;
            cpu->differentiate_f32 = kernel->differentiate_f32;
            cpu->differentiate_f64 = kernel->differentiate_f64;
            status = CMM_OK;
        }
    }
    return status;
}

/* Waking a thread costs some microseconds; a piece of work below this many flops is not worth it. */
static const double FLOPS_PER_PIECE = 2e6;

typedef struct split {
    const cmm_kernel *kernel;
    const cmm_problem *problem;
    const cmm_context *cpu;
    char *scratch;
    int64_t scratch_stride;
    int32_t pieces;
    atomic_llong recomputed; /* by all pieces so far */
} split;

static void run_piece(void *context, int32_t index)
{
    split *const s = context;
    const int64_t batch = s->problem->batch;
    const int64_t first = batch / s->pieces * index + (index < batch % s->pieces ? index : batch % s->pieces);
    const int64_t count = batch / s->pieces + (index < batch % s->pieces);
    char *const scratch = s->scratch ? s->scratch + index * s->scratch_stride : NULL;
    const int64_t recomputed = s->kernel->run(s->problem, s->cpu, first, count, scratch);
    if (recomputed > 0)
        atomic_fetch_add(&s->recomputed, recomputed);
}

int32_t cmm_worth_threads(double flops, int64_t shares, int32_t threads)
{
    const double pieces = flops / FLOPS_PER_PIECE;
    if (pieces < 2)
        return 1;
    if (threads == 0)
        threads = cmm_threads_default();
    if (threads > pieces)
        threads = (int32_t)pieces;
    return threads > shares ? (int32_t)shares : threads;
}

/* How many threads the tokens of a problem are worth. */
static int32_t worth_threads(const cmm_kernel *kernel, const cmm_problem *problem, int32_t threads)
{
    const double visited = kernel->traits.op == CMM_OP_FFF ? (double)problem->depth + 1 : (double)problem->nodes;
    const double width = (double)(problem->d_in + problem->d_out);
    const double flops = 2.0 * visited * (double)problem->trees * width * (double)problem->batch;
    return cmm_worth_threads(flops, problem->batch, threads);
}

/* Share the tokens out over the threads that there are. Scratch memory is taken for these alone. */
static cmm_status run_pieces(const cmm_kernel *kernel, const cmm_problem *problem, const cmm_context *cpu,
                             int32_t threads, int64_t *recomputed)
{
    split s = {kernel, problem, cpu, NULL, 0, threads, 0};
    if (kernel->scratch) {
        const int64_t largest = (problem->batch + threads - 1) / threads;
        s.scratch_stride = cmm_padded(kernel->scratch(problem, cpu, largest), CMM_ALIGNMENT);
        if (s.scratch_stride > 0) {
            s.scratch = cmm_aligned_alloc((size_t)(s.scratch_stride * threads));
            if (!s.scratch)
                return CMM_ERROR_MEMORY;
        }
    }
    if (kernel->traits.blas)
        cmm_blas_threads_borrow(cpu->blas);
    cmm_threadpool_run(threads, run_piece, &s);
    if (kernel->traits.blas)
        cmm_blas_threads_return(cpu->blas);
    cmm_aligned_free(s.scratch);
    if (recomputed)
        *recomputed = atomic_load(&s.recomputed);
    return CMM_OK;
}

cmm_status cmm_run_kernel(const cmm_kernel *kernel, const cmm_problem *problem, const cmm_context *cpu,
                          int32_t threads, int64_t *recomputed)
{
    const cmm_caller caller = cmm_caller_enter();
    threads = cmm_threadpool_acquire(worth_threads(kernel, problem, threads));
    const cmm_status status = run_pieces(kernel, problem, cpu, threads, recomputed);
    cmm_threadpool_release(threads);
    cmm_caller_leave(&caller);
    return status;
}
