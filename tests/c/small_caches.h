/* A machine whose caches hold next to nothing: there small layers reach what the kernels do with large ones, whatever
 * the machine is: groups in two phases, results stored past the caches, many blocks of trees. */
#ifndef SMALL_CACHES_H
#define SMALL_CACHES_H

#include "cpu.h"

#include <stdio.h>

/* For the rest of the process. Call it while no other thread computes. CMM_OUTSIDE says that libcmm is a shared library
 * that was built elsewhere. */
static inline void make_caches_small(void)
{
#if (defined(_WIN32) && !defined(CMM_STATIC)) || defined(CMM_OUTSIDE)
    printf("the caches stay as they are: a shared library does not show its inside\n");
#else
    cmm_machine *const machine = (cmm_machine *)cmm_cpu_machine(); /* the library's own, which is no constant */
    machine->l1d = 1 << 10;
    machine->l2 = 16 << 10;
    machine->l3 = 32 << 10;
    machine->slow_l3 = 0;
#endif
}

#endif
