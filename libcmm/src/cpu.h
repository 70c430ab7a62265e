#ifndef CMM_CPU_H
#define CMM_CPU_H

#include "kernel.h"

/* Find out what this CPU and its operating system can do. Costs some microseconds (a virtual machine traps cpuid). */
void cmm_cpu_find(cmm_machine *machine);

#endif
