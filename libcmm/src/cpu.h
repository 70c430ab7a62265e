#ifndef CMM_CPU_H
#define CMM_CPU_H

#include "kernel.h"

/* What this CPU and its operating system can do. Found at the first call, for it takes some microseconds (a virtual
 * machine traps cpuid), and the same for the life of the process. */
const cmm_machine *cmm_cpu_machine(void);

#endif
