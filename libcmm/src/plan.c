#include "plan.h"

#include "validate.h"

/* The three hosts that the limits were measured on, of which docs/internals/performance.md has the figures: one with 512 KB
 * of L2, 256-bit vectors and an L3 that gives 20 to 25 GB/s; one with 1 MB, 512-bit vectors and 72 to 99 GB/s; and one with
 * 2 MB, 512-bit vectors and 17 GB/s, no more than its memory. What tells on which side a machine is, is its L3: slow, or
 * nearly as fast as L2 (cmm_machine.slow_l3). */
enum {
    FEW_LINES = 32 * CMM_ALIGNMENT /* bytes of a row that can be fetched whole without holding up the loads behind */
};

/* Tokens from which on grouped is faster than per_token. With a fast L3: where there is anything to share. With a slow one:
 * grouping shares a row between tokens, and the rows of the top levels, which most tokens share, are in L2 by themselves; so
 * it pays from as many tokens on as L2 holds rows of each tree, or as two phases need, which share more. With more than 8
 * trees x and the tiles count more than where the rows come from. */
static int64_t grouped_from(const cmm_problem *problem, const cmm_machine *machine, int64_t neuron)
{
    if (!machine->slow_l3)
        return problem->trees == 1 ? 8 : 16;
    const int64_t held = cmm_least(machine->l2 / (neuron * cmm_least(problem->trees, 8)), 2 * CMM_BLOCK);
    return held > 8 ? held : 8;
}

/* Whether a tree is walked in two phases. A deep one, at whose last levels the tokens of a block would be alone and share no
 * row, if there is no other. Of several trees, x and y of a block stay in L2 from one to the next in one phase, and two pay
 * only where L2 does not hold the tree's rows, or those of a deep one beside x and y; a fast L3 gives four times as many. */
static int has_two_phases(const cmm_problem *problem, const cmm_machine *machine, int64_t tree)
{
    const int deep = problem->depth >= CMM_LOG2_BLOCK;
    if (deep && problem->trees == 1)
        return 1;
    return tree > (!machine->slow_l3 ? 4 * machine->l2 : deep ? machine->l2 / 2 : machine->l2);
}

/* Levels of the first phase: as many as leave CMM_BUCKET tokens to each subtree and a token of a block to each node, as long
 * as the rows above the subtrees take no more than half of L2. One phase is enough for few tokens. */
static int32_t split_level(const cmm_problem *problem, const cmm_machine *machine, int64_t tokens, int64_t row_in,
                           int64_t tree)
{
    if (!has_two_phases(problem, machine, tree) || tokens <= 2 * CMM_BLOCK)
        return 0;
    int32_t level = 0;
    while (level < problem->depth && tokens >> (level + 1) >= CMM_BUCKET && level < CMM_LOG2_BLOCK &&
           row_in << (level + 1) <= machine->l2 / 2)
        level++;
    return level;
}

/* Several trees, each walked in one phase: a block takes its turn at one after the other, so that a tree's rows are fetched
 * once for all of the block, which is of as many tokens as leave a quarter of L2 beside their x and y, or half of it where
 * what does not fit is fetched from a slow L3. Where even L3 is short of all those rows, blocks are four times as large: x
 * from a fast L3 costs less than rows from memory; from a slow one it does not. x is read once for each level of each tree
 * and y for each tree, so that copies on the cache lines pay. Other blocks are of a size that suits L2, and several share a
 * turn. */
static void forest_blocks(const cmm_problem *problem, const cmm_machine *machine, int64_t tree, int64_t token,
                          cmm_plan *plan)
{
    const int large = problem->trees > machine->l3 / 4 / tree;
    const int64_t room = machine->l2 / 4 * (machine->slow_l3 ? 2 : 3);
    int64_t tokens = room / token * (large ? 4 : 1) / CMM_STEP * CMM_STEP;
    plan->block = CMM_BLOCK;
    plan->turn = CMM_TURN;
    plan->copies = 0;
    if (problem->trees == 1 || has_two_phases(problem, machine, tree) || (large && machine->slow_l3))
        return;
    if (tokens < CMM_BLOCK)
        tokens = CMM_BLOCK;
    plan->block = plan->turn = cmm_least(tokens, CMM_TURN);
    plan->copies = plan->block * token <= 4 * machine->l2;
}

cmm_plan cmm_fff_plan(const cmm_problem *problem, const cmm_machine *machine, int64_t tokens)
{
    const int64_t element = cmm_element_size(problem->dtype);
    const int64_t x_row = problem->d_in * element, y_row = problem->d_out * element;
    const int64_t row_in = problem->d_in * cmm_element_size(problem->weight_dtype);
    const int64_t neuron = row_in + problem->d_out * cmm_element_size(problem->weight_out_dtype); /* both its rows */
    const int64_t tree = problem->nodes * neuron;
    cmm_plan plan;

    /* Trees of one or two levels share little but their roots, as per_token does too, and grouping would read and write
     * y once per tree. */
    plan.grouped = problem->depth >= 2 && tokens >= grouped_from(problem, machine, neuron);

    /* As many trees as half of L2 holds, so that their rows stay there for the tokens to come. */
    plan.trees = machine->l2 / 2 / tree;
    if (plan.trees < 1)
        plan.trees = 1;
    plan.trees = cmm_least(cmm_least(plan.trees, CMM_MOST_TREES), problem->trees);

    /* Rows of a tree that stays in L2 need no fetching. Else a short row is fetched whole, for there is time while other
     * tokens compute; of a long one the head, from where the CPU's own prefetcher goes on, or the whole from a fast L3.
     * A walk leaves long rows alone: it is at them at once. */
    plan.walk_ahead = plan.group_ahead = CMM_PREFETCH_NOTHING;
    if (tree > machine->l2 / 2) {
        plan.walk_ahead = row_in <= FEW_LINES ? CMM_PREFETCH_ROW : CMM_PREFETCH_NOTHING;
        plan.group_ahead = row_in <= FEW_LINES || !machine->slow_l3 ? CMM_PREFETCH_ROW : CMM_PREFETCH_HEAD;
    }

    /* All of a chunk's tokens pass through one tree after the other, twice where that has two phases: of several trees the
     * second finds the x and y of the first in half of L3, of which one core may not have that much where it is slow. */
    plan.chunk = problem->trees > 1 && machine->slow_l3 ? 2 * CMM_TURN : CMM_CHUNK;
    if (problem->trees > 1 && plan.chunk * (x_row + y_row) > machine->l3 / 2)
        plan.chunk = machine->l3 / 2 / (x_row + y_row) / CMM_BLOCK * CMM_BLOCK;
    if (plan.chunk < CMM_TURN)
        plan.chunk = CMM_TURN;
    forest_blocks(problem, machine, tree, x_row + y_row, &plan);
    plan.split = split_level(problem, machine, tokens, row_in, tree);

    /* y is done with, and would leave the caches anyway before anyone reads it; or leave L2 for a slow L3, from which it
     * would be read first. */
    const int64_t tokens_bytes = problem->batch * (x_row + y_row);
    plan.streams = problem->trees == 1 && y_row % CMM_ALIGNMENT == 0 &&
                   (tree + tokens_bytes > machine->l3 || (machine->slow_l3 && tokens_bytes > 2 * machine->l2));
    return plan;
}
