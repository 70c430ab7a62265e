/* A plugin that libcmm is linked into, statically, for plugin_host.c. */
#include "example.h"

#if defined(_WIN32)
__declspec(dllexport) int use(int calls);
#else
__attribute__((visibility("default"))) int use(int calls);
#endif

int use(int calls)
{
    const cmm_run run = {.size = sizeof run, .threads = 3, .level = "native"};
    example e = example_new((shape){.depth = 6, .trees = 1, .d_in = 256, .d_out = 192, .batch = 2000}, 1);
    int failed = 0;
    for (int i = 0; i < calls; i++)
        failed |= example_run(&e, &run) != CMM_OK;
    example_free(&e);
    return failed;
}
