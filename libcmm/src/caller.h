/* What a call keeps away from the thread that makes it.
 *
 * Between enter and leave the thread is not cancelled (pthread_cancel), for it would leave locks held and memory taken;
 * and it computes in the default floating-point environment. Both are then as they were. */
#ifndef CMM_CALLER_H
#define CMM_CALLER_H

#include "fp_environment.h"
#include "platform.h"

typedef struct cmm_caller {
    int cancel;
    cmm_fp_environment fp;
} cmm_caller;

static inline cmm_caller cmm_caller_enter(void)
{
    const cmm_caller caller = {cmm_cancel_disable(), cmm_fp_save()};
    cmm_fp_default();
    return caller;
}

static inline void cmm_caller_leave(const cmm_caller *caller)
{
    cmm_fp_restore(caller->fp);
    cmm_cancel_restore(caller->cancel);
}

#endif
