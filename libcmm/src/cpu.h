#ifndef CMM_CPU_H
#define CMM_CPU_H

#include "kernel.h"

/* Find out what this CPU and its operating system can do. Costs some microseconds (a virtual machine traps cpuid). */
void cmm_cpu_find(cmm_machine *machine);

/* The name of an instruction set's CMM_CPU_ bits: "avx2", ...; "scalar" for none. */
const char *cmm_cpu_name(uint32_t bits);

#endif
