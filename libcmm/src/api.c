/* The front door: every check (validate.h), every default, the choice of a kernel. Nothing behind it can fail. */
#include "blas_kernel.h"
#include "cpu.h"
#include "run.h"
#include "validate.h"

#include <string.h>

/* A dense layer at level native, or at the level of our choice: the best gemm there is. Without a BLAS, or when one of
 * our own methods is asked for, it is a forest: as many trees of one node as it has neurons. */
static cmm_op choose_dense(cmm_choice *chosen, cmm_problem *task)
{
    if (chosen->level && strcmp(chosen->level, "native") != 0)
        return CMM_OP_FF;
    if (task->nodes == 0) {
        chosen->level = "naive";
        chosen->method = NULL; /* naive has no methods */
        return CMM_OP_FF;
    }
    if (!chosen->method && cmm_fits_blas(task) && cmm_check_blas(chosen->blas, 3, task->dtype) == CMM_OK) {
        chosen->level = "blas3";
        return CMM_OP_FF;
    }
    chosen->level = "native";
    task->trees = task->nodes;
    task->nodes = 1;
    return CMM_OP_FFF;
}

static cmm_status forward(cmm_op op, cmm_problem *task, const cmm_run *how)
{
    cmm_choice chosen;
    const cmm_kernel *kernel;
    cmm_status status = cmm_check_layer(task, CMM_CPU_DTYPES);
    if (status == CMM_OK)
        status = cmm_choose(how, &chosen);
    if (status == CMM_OK)
        status = cmm_check_batch(task);
    if (status == CMM_OK)
        status = cmm_check_arrays(task);
    if (status != CMM_OK)
        return status;
    cmm_context cpu = {.machine = cmm_cpu_machine(), .blas = chosen.blas};
    if (op == CMM_OP_FF)
        op = choose_dense(&chosen, task);
    status = cmm_find_activation(&chosen, &cpu);
    if (status == CMM_OK)
        status = cmm_find_kernel(op, &chosen, task, &kernel);
    if (status != CMM_OK)
        return status;
    return task->batch > 0 ? cmm_run_kernel(kernel, task, &cpu, chosen.threads) : CMM_OK;
}

static cmm_status fff_forward(const cmm_fff *layer, const cmm_run *how, cmm_problem *task, int wants_y)
{
    const cmm_status status = cmm_read_fff(layer, wants_y, task);
    return status == CMM_OK ? forward(CMM_OP_FFF, task, how) : status;
}

cmm_status cmm_fff_forward(const cmm_fff *layer, const cmm_run *how, int64_t batch, const void *x, void *y,
                           int32_t *nodes, void *logits)
{
    cmm_problem task = {.batch = batch, .x = x, .y = y, .nodes_out = nodes, .logits_out = logits};
    return fff_forward(layer, how, &task, 1);
}

cmm_status cmm_cmm_forward(const cmm_fff *layer, const cmm_run *how, int64_t batch, const void *x, int32_t *nodes,
                           void *logits)
{
    cmm_problem task = {.batch = batch, .x = x, .nodes_out = nodes, .logits_out = logits};
    return fff_forward(layer, how, &task, 0);
}

cmm_status cmm_ff_forward(const cmm_ff *layer, const cmm_run *how, int64_t batch, const void *x, void *y)
{
    cmm_problem task = {.batch = batch, .x = x, .y = y};
    const cmm_status status = cmm_read_ff(layer, &task);
    return status == CMM_OK ? forward(CMM_OP_FF, &task, how) : status;
}
