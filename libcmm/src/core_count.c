/* How many threads threads = 0 means: one for each CPU that this process may use, by its affinity mask, but not more
 * than its control group's CPU quota pays for. In a container with a quota of 2 on a host of 64, 64 threads would each
 * be stopped for most of every period. */
#include "caller.h"
#include "cmm.h"
#include "platform.h"

static int32_t quota; /* read once, for that takes some ten microseconds */
static cmm_once quota_once = CMM_ONCE_INIT;

static void quota_find(void)
{
    quota = cmm_system_quota();
}

static int32_t threads_default(const char **source)
{
    const cmm_caller caller = cmm_caller_enter(); /* files are read */
    cmm_once_run(&quota_once, quota_find);
    int32_t threads = cmm_system_cpus(source);
    if (quota > 0 && quota < threads) {
        threads = quota;
        *source = "control group's CPU quota";
    }
    cmm_caller_leave(&caller);
    return threads;
}

int32_t cmm_threads_default(void)
{
    const char *source;
    return threads_default(&source);
}

const char *cmm_threads_source(void)
{
    const char *source;
    (void)threads_default(&source);
    return source;
}
