/* How the native kernels go about a call: one rule, cmm_fff_plan(), for all that may be chosen, since the bits are the same
 * whatever is chosen. What it goes by is the call's shape and the sizes of the caches. */
#ifndef CMM_PLAN_H
#define CMM_PLAN_H

#include "kernel.h"

enum {
    CMM_LOG2_BLOCK = 7,
    CMM_BLOCK = 1 << CMM_LOG2_BLOCK, /* tokens that descend together, at least: their x, of usual widths, fits in L2 */
    CMM_STEP = 32,     /* what larger blocks are multiples of */
    CMM_CHUNK = 16384, /* at most: tokens grouped at a time; bounds the scratch memory */
    CMM_TURN = 1024,   /* at most: tokens taken through one tree of several before the next, while its rows are in cache */
    CMM_BUCKET = 64,   /* tokens that the second phase wants at each subtree */
    CMM_MOST_TREES = 256 /* of a block of trees */
};

/* How much of a row is fetched when it is known that a token goes there, before it is used. */
typedef enum cmm_prefetch { CMM_PREFETCH_NOTHING, CMM_PREFETCH_HEAD, CMM_PREFETCH_ROW } cmm_prefetch;

typedef struct cmm_plan {
    int grouped;   /* 1: the algorithm is grouped, 0: per_token */
    int64_t trees; /* per_token: of a block of trees, unless it walks more in lockstep */
    cmm_prefetch walk_ahead; /* per_token: the child's row of w_in */
    int64_t chunk; /* grouped: tokens grouped at a time */
    int64_t block; /* grouped: tokens that descend together */
    int64_t turn;  /* grouped: tokens taken through one tree before the next */
    int copies;    /* grouped: a block's x and y go through copies, where they are off the cache lines */
    int32_t split; /* grouped: levels of the first of two phases; 0: one phase is enough */
    int streams;   /* grouped: y goes past the caches */
    cmm_prefetch group_ahead; /* grouped: the rows of a few tokens' nodes */
} cmm_plan;

/* The plan for `tokens` tokens of the problem, which are all of a thread's or a part of them. `machine` is read, not this
 * machine: a test may ask what another would do. */
cmm_plan cmm_fff_plan(const cmm_problem *problem, const cmm_machine *machine, int64_t tokens);

#endif
