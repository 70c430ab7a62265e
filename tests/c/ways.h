/* Every way to run a layer on this machine: all usable kernels on all usable instruction sets, the BLAS levels with a
 * BLAS of our own. */
#ifndef WAYS_H
#define WAYS_H

#include "check.h"
#include "reference_blas.h"

#include <stdio.h>
#include <string.h>

typedef struct way {
    cmm_run run;
    char name[128];
} way;

enum { WAYS_MAX = 128 };

static int way_count;
static way ways[WAYS_MAX];

static void ways_add(const cmm_kernel_info *kernel, const char *isa, const cmm_blas *blas)
{
    if (way_count == WAYS_MAX) {
        CHECK(0, "more than %d ways to run", WAYS_MAX);
        return;
    }
    way *const w = &ways[way_count++];
    w->run = (cmm_run){.size = sizeof(cmm_run),
                       .threads = 1,
                       .level = kernel->level,
                       .isa = isa,
                       .algorithm = kernel->algorithm[0] ? kernel->algorithm : NULL,
                       .blas = blas};
    (void)snprintf(w->name, sizeof w->name, "%s%s%s on %s%s", kernel->level, kernel->algorithm[0] ? "/" : "",
                   kernel->algorithm, isa, blas == &reference_blas_batched ? ", batched" : "");
}

/* The instruction sets are those that have a kernel of operation act. Where the compiler chose the instructions of a
 * kernel ("any"), its activations are still those of the instruction set that is asked for. */
static void ways_find(void)
{
    cmm_kernel_info act = {.size = sizeof act}, kernel = {.size = sizeof kernel};
    for (int32_t a = 0; cmm_kernel_get(a, &act) == CMM_OK; a++)
        for (int32_t k = 0; act.available && strcmp(act.operation, "act") == 0 && k < cmm_kernel_count(); k++) {
            CHECK(cmm_kernel_get(k, &kernel) == CMM_OK, "kernel %d", k);
            if (!kernel.available || strcmp(kernel.operation, "fff") != 0)
                continue;
            if (strcmp(kernel.x_type, "float32") != 0 || strcmp(kernel.w_type, "float32") != 0)
                continue; /* a way is for all types */
            if (strcmp(kernel.isa, "any") != 0 && strcmp(kernel.isa, act.isa) != 0)
                continue;
            const int needs_blas = strncmp(kernel.level, "blas", 4) == 0;
            ways_add(&kernel, act.isa, needs_blas ? &reference_blas : NULL);
            if (needs_blas && strcmp(kernel.level, "blas1") != 0)
                ways_add(&kernel, act.isa, &reference_blas_batched);
        }
    printf("%d ways to run:", way_count);
    for (int i = 0; i < way_count; i++)
        printf("%s %s", i ? ";" : "", ways[i].name);
    printf("\n");
}

/* Whether every way of its level promises the same bits, on every machine: the BLAS levels do not. */
static inline int way_is_exact(const way *w)
{
    return w->run.blas == NULL;
}

#endif
