/* The front door: every check (checks.h), every default, the choice of a kernel. Nothing behind it can fail. */
#include "cmm.h"

#include "blas_threads.h"
#include "caller.h"
#include "checks.h"
#include "cpu.h"
#include "kernel.h"
#include "scratch.h"
#include "threadpool.h"

#include <stdlib.h>
#include <string.h>

/* ---- the table of kernels -------------------------------------------------------------------------------------- */

/* What each kernel file exports: its kernels, one for each pair of types and alike in all else, and a NULL. */
#define CMM_KERNEL(op, name) extern const cmm_kernel *const cmm_##op##_##name[];
#include "kernel_table.inc" /* made by CMake from kernels.inc */
#undef CMM_KERNEL

static const cmm_kernel *const *const files[] = {
#define CMM_KERNEL(op, name) cmm_##op##_##name,
#include "kernel_table.inc"
#undef CMM_KERNEL
};

enum { FILES = (int)(sizeof files / sizeof files[0]) };

static const char *const level_names[] = {"naive", "blas1", "blas2", "blas3", "native"};

enum { LEVELS = (int)(sizeof level_names / sizeof level_names[0]) };

static int is_level(const char *name)
{
    for (int i = 0; i < LEVELS; i++)
        if (strcmp(name, level_names[i]) == 0)
            return 1;
    return 0;
}

/* The instruction sets are those that have activations. */
static int is_isa(const char *name)
{
    for (int i = 0; i < FILES; i++)
        if (files[i][0]->op == CMM_OP_ACT && strcmp(name, files[i][0]->isa) == 0)
            return 1;
    return 0;
}

static int same(const char *wanted, const char *name)
{
    return !wanted || strcmp(wanted, name) == 0;
}

/* Why a kernel cannot run here, or "". */
static const char *why_absent(const cmm_kernel *kernel)
{
    if (kernel->absent)
        return kernel->absent;
    return (kernel->cpu & ~cmm_cpu_machine()->cpu) == 0 ? "" : "this CPU lacks its instructions";
}

static int runs_here(const cmm_kernel *kernel)
{
    return why_absent(kernel)[0] == '\0';
}

/* ---- how to run ------------------------------------------------------------------------------------------------ */

/* A cmm_run with its defaults filled in. */
typedef struct choice {
    const char *level, *isa, *method; /* NULL: any */
    int32_t threads;
    const cmm_blas *blas; /* NULL: none */
    cmm_blas table;       /* what blas points to */
} choice;

static cmm_status choose(const cmm_run *given, choice *chosen)
{
    memset(chosen, 0, offsetof(choice, table));
    if (given) {
        cmm_run read;
        const cmm_run *const run = &read;
        if (!cmm_read_struct(&read, sizeof read, sizeof read, given))
            return CMM_ERROR_RUN_SIZE;
        if (run->threads < 0)
            return CMM_ERROR_THREADS;
        chosen->level = run->level && strcmp(run->level, "auto") != 0 ? run->level : NULL;
        chosen->isa = run->isa;
        chosen->method = run->method;
        chosen->threads = run->threads;
        if (chosen->level && !is_level(chosen->level))
            return CMM_ERROR_LEVEL;
        if (chosen->isa && !is_isa(chosen->isa))
            return CMM_ERROR_ISA;
        if (run->blas && !cmm_read_struct(&chosen->table, sizeof chosen->table, sizeof chosen->table, run->blas))
            return CMM_ERROR_BLAS_SIZE;
        if (run->blas)
            chosen->blas = &chosen->table;
    }
    if (!chosen->blas && cmm_blas_linked(&chosen->table) == CMM_OK)
        chosen->blas = &chosen->table;
    return CMM_OK;
}

/* CMM_OK when the BLAS has what level number 1, 2 or 3 needs. A level uses only functions of its own number or below. */
static cmm_status check_blas(const cmm_blas *blas, int32_t number, int32_t dtype)
{
    if (number == 0)
        return CMM_OK;
    if (!blas)
        return CMM_ERROR_BLAS_MISSING;
    const int f32 = blas->sdot && blas->saxpy && (number < 2 || blas->sgemv) && (number < 3 || blas->sgemm);
    const int f64 = blas->ddot && blas->daxpy && (number < 2 || blas->dgemv) && (number < 3 || blas->dgemm);
    return (dtype == CMM_F32 ? f32 : f64) ? CMM_OK : CMM_ERROR_BLAS_INCOMPLETE;
}

/* The activation functions: of the forced instruction set, or of the best one. */
static cmm_status find_activation(const choice *chosen, cmm_task *task)
{
    cmm_status status = CMM_ERROR_ISA_UNUSABLE;
    for (int i = 0; i < FILES; i++) {
        const cmm_kernel *const kernel = files[i][0];
        if (kernel->op == CMM_OP_ACT && same(chosen->isa, kernel->isa) && runs_here(kernel)) {
            task->activate_f32 = kernel->activate_f32;
            task->activate_f64 = kernel->activate_f64;
            status = CMM_OK;
        }
    }
    return status;
}

/* Of a file's kernels the one for these types, or NULL. */
static const cmm_kernel *of_types(const cmm_kernel *const *file, int32_t x_type, int32_t w_type)
{
    while (*file && ((*file)->x_type != x_type || (*file)->w_type != w_type))
        file++;
    return *file;
}

/* The kernel for a task: the last one of the list that can run, is what was asked for, can do it and is preferred. */
static cmm_status find_kernel(cmm_op op, const choice *chosen, const cmm_task *task, const cmm_kernel **found)
{
    cmm_status blame = CMM_ERROR_LEVEL_UNUSABLE;
    for (int i = FILES - 1; i >= 0; i--) {
        const cmm_kernel *kernel = files[i][0];
        if (kernel->op != op || !same(chosen->level, kernel->level))
            continue;
        if (strcmp(kernel->isa, "any") != 0 && !same(chosen->isa, kernel->isa))
            continue;
        kernel = of_types(files[i], task->dtype, task->weight_dtype);
        if (!kernel) {
            blame = CMM_ERROR_LEVEL_WEIGHT_DTYPE;
            continue;
        }
        if (!runs_here(kernel)) { /* the instruction set has activations here, but not what these rows take */
            blame = same(chosen->isa, kernel->isa) && chosen->isa ? CMM_ERROR_ISA_UNUSABLE : blame;
            continue;
        }
        if (!same(chosen->method, kernel->method)) {
            blame = CMM_ERROR_METHOD;
            continue;
        }
        if (!chosen->method && kernel->is_preferred && !kernel->is_preferred(task))
            continue;
        cmm_status status = check_blas(chosen->blas, kernel->blas, task->dtype);
        if (status == CMM_OK && kernel->can_implement && !kernel->can_implement(task))
            status = CMM_ERROR_LAYER_TOO_LARGE;
        if (status == CMM_OK) {
            *found = kernel;
            return CMM_OK;
        }
        blame = status;
    }
    return blame;
}

/* ---- running --------------------------------------------------------------------------------------------------- */

/* Waking a thread costs some microseconds; a piece of work below this many flops is not worth it. */
static const double FLOPS_PER_PIECE = 2e6;

typedef struct split {
    const cmm_kernel *kernel;
    const cmm_task *task;
    char *scratch;
    int64_t scratch_stride;
    int32_t pieces;
} split;

static void run_piece(void *context, int32_t index)
{
    const split *const s = context;
    const int64_t batch = s->task->batch;
    const int64_t first = batch / s->pieces * index + (index < batch % s->pieces ? index : batch % s->pieces);
    const int64_t count = batch / s->pieces + (index < batch % s->pieces);
    s->kernel->run(s->task, first, count, s->scratch ? s->scratch + index * s->scratch_stride : NULL);
}

/* How many threads a call is worth: at most `threads`, of which each gets a token and enough work. */
static int32_t worth_threads(const cmm_kernel *kernel, const cmm_task *task, int32_t threads)
{
    const double visited = kernel->op == CMM_OP_FFF ? (double)task->depth + 1 : (double)task->nodes;
    const double flops = 2.0 * visited * (double)task->trees * (double)(task->d_in + task->d_out) * (double)task->batch;
    const double pieces = flops / FLOPS_PER_PIECE;
    if (pieces < 2)
        return 1;
    if (threads == 0)
        threads = cmm_threads_default();
    if (threads > pieces)
        threads = (int32_t)pieces;
    return threads > task->batch ? (int32_t)task->batch : threads;
}

/* Share the tokens out over the threads that there are. Scratch memory is taken for these alone. */
static cmm_status run_pieces(const cmm_kernel *kernel, const cmm_task *task, int32_t threads)
{
    split s = {kernel, task, NULL, 0, threads};
    if (kernel->scratch) {
        const int64_t largest = (task->batch + threads - 1) / threads;
        s.scratch_stride = cmm_padded(kernel->scratch(task, largest), CMM_ALIGNMENT);
        if (s.scratch_stride > 0) {
            s.scratch = aligned_alloc(CMM_ALIGNMENT, (size_t)(s.scratch_stride * threads));
            if (!s.scratch)
                return CMM_ERROR_MEMORY;
        }
    }
    if (kernel->blas)
        cmm_blas_threads_borrow(task->blas);
    cmm_threadpool_run(threads, run_piece, &s);
    if (kernel->blas)
        cmm_blas_threads_return(task->blas);
    free(s.scratch);
    return CMM_OK;
}

static cmm_status run(const cmm_kernel *kernel, const cmm_task *task, int32_t threads)
{
    const cmm_caller caller = cmm_caller_enter();
    threads = cmm_threadpool_acquire(worth_threads(kernel, task, threads));
    const cmm_status status = run_pieces(kernel, task, threads);
    cmm_threadpool_release(threads);
    cmm_caller_leave(&caller);
    return status;
}

/* A dense layer at level native, or at the level of our choice: the best gemm there is. Without a BLAS, or when one of
 * our own methods is asked for, it is a forest: as many trees of one node as it has neurons. */
static cmm_op choose_dense(choice *chosen, cmm_task *task)
{
    if (chosen->level && strcmp(chosen->level, "native") != 0)
        return CMM_OP_FF;
    if (task->nodes == 0) {
        chosen->level = "naive";
        chosen->method = NULL; /* naive has no methods */
        return CMM_OP_FF;
    }
    if (!chosen->method && cmm_fits_blas(task) && check_blas(chosen->blas, 3, task->dtype) == CMM_OK) {
        chosen->level = "blas3";
        return CMM_OP_FF;
    }
    chosen->level = "native";
    task->trees = task->nodes;
    task->nodes = 1;
    return CMM_OP_FFF;
}

static cmm_status forward(cmm_op op, cmm_task *task, const cmm_run *how, int wants_y)
{
    choice chosen;
    const cmm_kernel *kernel;
    cmm_status status = cmm_check_layer(task, CMM_CPU_DTYPES);
    if (status == CMM_OK)
        status = choose(how, &chosen);
    if (status == CMM_OK)
        status = cmm_check_batch(task, wants_y);
    if (status == CMM_OK)
        status = cmm_check_arrays(task, wants_y);
    if (status != CMM_OK)
        return status;
    task->machine = cmm_cpu_machine();
    task->blas = chosen.blas;
    if (op == CMM_OP_FF)
        op = choose_dense(&chosen, task);
    status = find_activation(&chosen, task);
    if (status == CMM_OK)
        status = find_kernel(op, &chosen, task, &kernel);
    if (status != CMM_OK)
        return status;
    return task->batch > 0 ? run(kernel, task, chosen.threads) : CMM_OK;
}

static cmm_status fff_forward(const cmm_fff *layer, const cmm_run *how, cmm_task *task, int wants_y)
{
    const cmm_status status = cmm_read_fff(layer, wants_y, task);
    return status == CMM_OK ? forward(CMM_OP_FFF, task, how, wants_y) : status;
}

cmm_status cmm_fff_forward(const cmm_fff *layer, const cmm_run *how, int64_t batch, const void *x, void *y,
                           int32_t *nodes, void *logits)
{
    cmm_task task = {.batch = batch, .x = x, .y = y, .nodes_out = nodes, .logits_out = logits};
    return fff_forward(layer, how, &task, 1);
}

cmm_status cmm_cmm_forward(const cmm_fff *layer, const cmm_run *how, int64_t batch, const void *x, int32_t *nodes,
                           void *logits)
{
    cmm_task task = {.batch = batch, .x = x, .nodes_out = nodes, .logits_out = logits};
    return fff_forward(layer, how, &task, 0);
}

cmm_status cmm_ff_forward(const cmm_ff *layer, const cmm_run *how, int64_t batch, const void *x, void *y)
{
    cmm_task task = {.batch = batch, .x = x, .y = y};
    const cmm_status status = cmm_read_ff(layer, &task);
    return status == CMM_OK ? forward(CMM_OP_FF, &task, how, 1) : status;
}

/* ---- what there is --------------------------------------------------------------------------------------------- */

int32_t cmm_level_count(void)
{
    return LEVELS;
}

/* Why no kernel of the level can run; the last reason found, in the order of the list. */
static const char *why_not(const char *level, const choice *chosen, const char **isa)
{
    const char *why = "this build has no kernel for it";
    for (int i = FILES - 1; i >= 0; i--) {
        const cmm_kernel *const kernel = files[i][0];
        if (kernel->op != CMM_OP_FFF || strcmp(kernel->level, level) != 0)
            continue;
        if (chosen->isa && strcmp(kernel->isa, "any") != 0 && strcmp(kernel->isa, chosen->isa) != 0)
            continue;
        if (!runs_here(kernel))
            why = why_absent(kernel);
        else if (check_blas(chosen->blas, kernel->blas, CMM_F32) != CMM_OK)
            why = chosen->blas ? "the BLAS lacks functions it needs" : "no BLAS: none is linked, and none was given";
        else {
            *isa = kernel->isa;
            return "";
        }
    }
    return why;
}

cmm_status cmm_level_get(int32_t index, const cmm_run *how, cmm_level_info *info)
{
    choice chosen;
    cmm_level_info found;
    if (!info)
        return CMM_ERROR_INFO_NULL;
    if (!cmm_read_struct(&found, sizeof found, sizeof found, info))
        return CMM_ERROR_INFO_SIZE;
    if (index < 0 || index >= LEVELS)
        return CMM_ERROR_INDEX;
    const cmm_status status = choose(how, &chosen);
    if (status != CMM_OK)
        return status;
    found.name = level_names[index];
    found.isa = "any";
    found.why = why_not(found.name, &chosen, &found.isa);
    found.usable = found.why[0] == '\0';
    cmm_write_struct(info, sizeof found, &found);
    return CMM_OK;
}

/* Kernel number `index` of all files, or NULL with the number of all kernels. */
static const cmm_kernel *kernel_at(int32_t index, int32_t *count)
{
    *count = 0;
    for (int i = 0; i < FILES; i++)
        for (const cmm_kernel *const *kernel = files[i]; *kernel; kernel++)
            if ((*count)++ == index)
                return *kernel;
    return NULL;
}

int32_t cmm_kernel_count(void)
{
    int32_t count;
    (void)kernel_at(-1, &count);
    return count;
}

cmm_status cmm_kernel_get(int32_t index, cmm_kernel_info *info)
{
    static const char *const operations[CMM_OPS] = {"fff", "ff", "act"};
    cmm_kernel_info found;
    int32_t count;
    if (!info)
        return CMM_ERROR_INFO_NULL;
    if (!cmm_read_struct(&found, sizeof found, offsetof(cmm_kernel_info, x_type), info))
        return CMM_ERROR_INFO_SIZE;
    const cmm_kernel *const kernel = kernel_at(index, &count);
    if (!kernel)
        return CMM_ERROR_INDEX;
    found.operation = operations[kernel->op];
    found.name = kernel->name;
    found.level = kernel->op == CMM_OP_ACT ? "" : kernel->level;
    found.method = kernel->method;
    found.isa = kernel->isa;
    found.why = why_absent(kernel);
    found.usable = found.why[0] == '\0';
    found.x_type = kernel->op == CMM_OP_ACT ? "" : cmm_dtype_name(kernel->x_type);
    found.w_type = kernel->op == CMM_OP_ACT ? "" : cmm_dtype_name(kernel->w_type);
    cmm_write_struct(info, sizeof found, &found);
    return CMM_OK;
}

const char *cmm_version(void)
{
#define TEXT(x) #x
#define VERSION(major, minor, patch) TEXT(major) "." TEXT(minor) "." TEXT(patch)
    return VERSION(CMM_VERSION_MAJOR, CMM_VERSION_MINOR, CMM_VERSION_PATCH);
}
