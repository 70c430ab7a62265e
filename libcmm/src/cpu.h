#ifndef CMM_CPU_H
#define CMM_CPU_H

#include "kernel.h"

/* What this CPU and its operating system can do. Found at the first call, for it takes some milliseconds, and the same for
 * the life of the process. */
const cmm_machine *cmm_cpu_machine(void);

/* Measures cmm_machine.slow_l3 for caches of these sizes. */
int cmm_cpu_l3_is_slow(const cmm_machine *machine);

#endif
