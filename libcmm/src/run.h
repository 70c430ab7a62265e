/* Reading how a call is to run, and running it. */
#ifndef CMM_RUN_H
#define CMM_RUN_H

#include "dispatch.h"

/* A cmm_run with its defaults filled in. */
typedef struct cmm_choice {
    cmm_request wanted;
    int32_t threads;
    const int32_t *path_nodes, *path_leaves;
    int64_t *refused, *recomputed;
    cmm_blas table; /* what wanted.blas points to */
} cmm_choice;

/* Fill in the defaults of a caller's cmm_run, of which NULL has none but those. */
cmm_status cmm_choose(const cmm_run *given, cmm_choice *chosen);

/* The activation functions and their derivatives: of the instruction set that is asked for, or of the best one. */
cmm_status cmm_find_activation(const cmm_request *wanted, cmm_context *cpu);

/* How many threads a call is worth: at most `threads` (0: as many as there are cores) and `shares`, each with enough work. */
int32_t cmm_worth_threads(double flops, int64_t shares, int32_t threads);

/* Share a problem's tokens, of which there is one at least, out over at most so many threads; 0: over every core.
 * *recomputed, where it is wanted, becomes the number of logits that the exact path computed again. */
cmm_status cmm_run_kernel(const cmm_kernel *kernel, const cmm_problem *problem, const cmm_context *cpu,
                          int32_t threads, int64_t *recomputed);

#endif
