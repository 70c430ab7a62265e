/* The entry point: every check (validate.h), every default, the choice of a kernel. Nothing behind it can fail. */
#include "blas_kernel.h"
#include "cpu.h"
#include "run.h"
#include "validate.h"

#include <string.h>

/* A dense layer at level native, or at the level of our choice: the best gemm there is. Without a BLAS, or when one of
 * our own algorithms is asked for, it is a forest: as many trees of one node as it has neurons. */
static cmm_op choose_dense(cmm_request *wanted, cmm_problem *problem)
{
    if (wanted->level && strcmp(wanted->level, "native") != 0)
        return CMM_OP_FF;
    if (problem->nodes == 0) {
        wanted->level = "naive";
        wanted->algorithm = NULL; /* naive has no algorithms */
        return CMM_OP_FF;
    }
    if (!wanted->algorithm && cmm_fits_blas(problem) && cmm_check_blas(wanted->blas, 3, problem->dtype) == CMM_OK) {
        wanted->level = "blas3";
        return CMM_OP_FF;
    }
    wanted->level = "native";
    problem->trees = problem->nodes;
    problem->nodes = 1;
    return CMM_OP_FFF;
}

static cmm_status forward(cmm_op op, cmm_problem *problem, const cmm_run *how)
{
    cmm_choice chosen;
    const cmm_traits *kernel;
    cmm_status status = cmm_check_layer(problem, CMM_CPU_DTYPES);
    if (status == CMM_OK)
        status = cmm_choose(how, &chosen);
    if (status == CMM_OK && op == CMM_OP_FF && (chosen.path_nodes || chosen.path_leaves))
        status = CMM_ERROR_PATH_DENSE;
    if (status == CMM_OK) {
        problem->path = chosen.path_nodes ? chosen.path_nodes : chosen.path_leaves;
        problem->path_length = !problem->path ? 0 : chosen.path_nodes ? problem->depth + 1 : 1;
        status = cmm_check_batch(problem);
    }
    if (status == CMM_OK)
        status = cmm_check_arrays(problem);
    if (status == CMM_OK)
        status = cmm_check_path(problem, chosen.refused);
    if (status != CMM_OK)
        return status;
    cmm_context cpu = {.machine = cmm_cpu_machine(), .blas = chosen.wanted.blas};
    if (op == CMM_OP_FF)
        op = choose_dense(&chosen.wanted, problem);
    status = cmm_find_activation(&chosen.wanted, &cpu);
    if (status == CMM_OK)
        status = cmm_find_kernel(op, &chosen.wanted, problem, &kernel);
    if (status != CMM_OK)
        return status;
    if (chosen.recomputed)
        *chosen.recomputed = 0;
    return problem->batch > 0
               ? cmm_run_kernel((const cmm_kernel *)kernel, problem, &cpu, chosen.threads, chosen.recomputed)
               : CMM_OK;
}

static cmm_status fff_forward(const cmm_fff *layer, const cmm_run *how, cmm_problem *problem, int wants_y)
{
    const cmm_status status = cmm_read_fff(layer, wants_y, problem);
    return status == CMM_OK ? forward(CMM_OP_FFF, problem, how) : status;
}

cmm_status cmm_fff_forward(const cmm_fff *layer, const cmm_run *how, int64_t batch, const void *x, void *y,
                           int32_t *nodes, void *logits)
{
    cmm_problem problem = {.batch = batch, .x = x, .y = y, .nodes_out = nodes, .logits_out = logits};
    return fff_forward(layer, how, &problem, 1);
}

cmm_status cmm_cmm_forward(const cmm_fff *layer, const cmm_run *how, int64_t batch, const void *x, int32_t *nodes,
                           void *logits)
{
    cmm_problem problem = {.batch = batch, .x = x, .nodes_out = nodes, .logits_out = logits};
    return fff_forward(layer, how, &problem, 0);
}

cmm_status cmm_ff_forward(const cmm_ff *layer, const cmm_run *how, int64_t batch, const void *x, void *y)
{
    cmm_problem problem = {.batch = batch, .x = x, .y = y};
    const cmm_status status = cmm_read_ff(layer, &problem);
    return status == CMM_OK ? forward(CMM_OP_FF, &problem, how) : status;
}
