#ifndef CMM_CORE_COUNT_H
#define CMM_CORE_COUNT_H

#include <stdint.h>

/* CPUs' worth of time that the control groups of this process allow it, rounded up, and 0 where they set no limit.
 * `root` is put before every path: "", or a folder with a made-up system in a test. */
int32_t cmm_cgroup_cpus(const char *root);

#endif
