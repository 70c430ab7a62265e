/* What cmm_fff_plan() chooses, on each side of every border of its rule, for caches of given sizes: nothing here depends on
 * the machine, and nothing is timed. docs/internals/kernels.md has the rule in words. */
#include "check.h"
#include "cpu.h"
#include "dispatch.h"
#include "plan.h"

#include <string.h>

enum { KB = 1 << 10, MB = 1 << 20 };
static const cmm_machine small_l2 = {.l1d = 32 * KB, .l2 = 512 * KB, .l3 = 32 * MB, .slow_l3 = 1};
static const cmm_machine large_l2 = {.l1d = 32 * KB, .l2 = 1 * MB, .l3 = 32 * MB, .slow_l3 = 0};
static const cmm_machine server = {.l1d = 48 * KB, .l2 = 2 * MB, .l3 = 480 * MB, .slow_l3 = 1};

static _Alignas(CMM_ALIGNMENT) char y[2 * CMM_ALIGNMENT]; /* whose address counts, and no more */

static cmm_problem shape(int64_t trees, int32_t depth, int64_t width, int32_t weights)
{
    return (cmm_problem){.dtype = CMM_F32, .weight_dtype = weights, .weight_out_dtype = weights, .depth = depth,
                         .trees = trees, .nodes = ((int64_t)2 << depth) - 1, .d_in = width, .d_out = width,
                         .ld_in = width, .ld_out = width, .y = y};
}

static cmm_plan plan(const cmm_machine *machine, int64_t trees, int32_t depth, int64_t width, int32_t weights,
                     int64_t tokens)
{
    cmm_problem problem = shape(trees, depth, width, weights);
    problem.batch = tokens;
    return cmm_fff_plan(&problem, machine, tokens);
}

/* per_token up to `least` - 1 tokens, grouped from `least` on; never grouped where it is 0. */
static void check_grouped_from(const cmm_machine *machine, int64_t trees, int32_t depth, int64_t width, int32_t weights,
                               int64_t least)
{
    const char *const format = "%lldx%d, width %lld, rows %d, L2 %lld KB, %lld tokens";
#define OF(tokens) format, (long long)trees, depth, (long long)width, weights, (long long)(machine->l2 / KB), tokens
    for (long long tokens = 1; tokens <= 65536; tokens *= 2)
        CHECK(plan(machine, trees, depth, width, weights, tokens).grouped == (least > 0 && tokens >= least), OF(tokens));
    if (least > 0) {
        CHECK(!plan(machine, trees, depth, width, weights, least - 1).grouped, OF((long long)least - 1));
        CHECK(plan(machine, trees, depth, width, weights, least).grouped, OF((long long)least));
    }
#undef OF
}

static void check_algorithm(void)
{
    check_grouped_from(&small_l2, 1, 11, 768, CMM_F32, 85); /* as many as L2 holds of both rows: 512 KB of 6 KB */
    check_grouped_from(&small_l2, 1, 11, 768, CMM_BF16, 170);
    check_grouped_from(&small_l2, 1, 11, 768, CMM_I8, 256); /* 341, but two phases begin at 257 */
    check_grouped_from(&small_l2, 1, 11, 256, CMM_F32, 256);
    check_grouped_from(&small_l2, 1, 11, 260, CMM_F32, 252);
    check_grouped_from(&small_l2, 1, 11, 1024, CMM_F32, 64);
    check_grouped_from(&small_l2, 4, 9, 768, CMM_F32, 21);
    check_grouped_from(&small_l2, 4, 9, 192, CMM_F32, 85);
    check_grouped_from(&small_l2, 8, 8, 192, CMM_F32, 42);
    check_grouped_from(&small_l2, 16, 5, 192, CMM_F32, 42); /* more than 8 trees count as 8 */
    check_grouped_from(&small_l2, 16, 5, 768, CMM_F32, 10);
    check_grouped_from(&small_l2, 16, 5, 8192, CMM_F32, 8);
    check_grouped_from(&small_l2, 1, 11, 65536, CMM_F32, 8);
    check_grouped_from(&server, 1, 11, 768, CMM_F32, 256);
    check_grouped_from(&server, 1, 11, 1024, CMM_F32, 256);
    check_grouped_from(&server, 1, 11, 1025, CMM_F32, 255);
    check_grouped_from(&server, 16, 5, 768, CMM_F32, 42);
    check_grouped_from(&server, 4, 9, 768, CMM_F32, 85);
    check_grouped_from(&large_l2, 1, 11, 768, CMM_F32, 8);
    check_grouped_from(&large_l2, 1, 11, 192, CMM_I8, 8);
    check_grouped_from(&large_l2, 2, 11, 768, CMM_F32, 16);
    check_grouped_from(&large_l2, 128, 4, 768, CMM_F32, 16);
    check_grouped_from(&small_l2, 1, 1, 768, CMM_F32, 0);
    check_grouped_from(&large_l2, 3072, 0, 768, CMM_F32, 0);
    check_grouped_from(&large_l2, 1, 2, 768, CMM_F32, 8);
}

static void check_trees_of_a_block(void)
{
    CHECK(plan(&small_l2, 128, 4, 192, CMM_F32, 64).trees == 5, "256 KB hold 5 trees of 46.5 KB");
    CHECK(plan(&large_l2, 128, 4, 192, CMM_F32, 64).trees == 11, "512 KB hold 11");
    CHECK(plan(&small_l2, 128, 4, 192, CMM_I8, 64).trees == 22, "and of 11.6 KB 22");
    CHECK(plan(&small_l2, 4, 4, 192, CMM_F32, 64).trees == 4, "all there are");
    CHECK(plan(&small_l2, 4, 9, 768, CMM_F32, 64).trees == 1, "one that is larger");
    CHECK(plan(&small_l2, 3072, 0, 16, CMM_F32, 64).trees == CMM_MOST_TREES, "the most");
}

/* A block of so many tokens takes its turn at one tree after the other; 0: blocks of CMM_BLOCK share a turn. */
static void check_block(const cmm_machine *machine, int64_t trees, int32_t depth, int64_t width, int32_t weights,
                        int64_t block, int copies)
{
    const cmm_plan p = plan(machine, trees, depth, width, weights, 2048);
    CHECK(p.block == (block ? block : CMM_BLOCK) && p.turn == (block ? block : CMM_TURN) && p.copies == copies,
          "%lldx%d, width %lld, rows %d, L2 %lld KB: blocks of %lld, turns of %lld, copies %d", (long long)trees, depth,
          (long long)width, weights, (long long)(machine->l2 / KB), (long long)p.block, (long long)p.turn, p.copies);
}

static void check_blocks(void)
{
    check_block(&small_l2, 16, 5, 768, CMM_F32, 128, 1); /* 384 KB hold x and y of 64, but 128 are the least */
    check_block(&large_l2, 16, 5, 768, CMM_F32, 128, 1);
    check_block(&small_l2, 16, 5, 192, CMM_F32, 160, 1); /* half of L2 holds those of 170 */
    check_block(&server, 16, 5, 192, CMM_F32, 672, 1);
    check_block(&server, 16, 5, 768, CMM_F32, 160, 1);
    check_block(&server, 128, 4, 768, CMM_F32, 160, 1);
    check_block(&large_l2, 16, 5, 192, CMM_F32, 512, 1);
    check_block(&small_l2, 16, 5, 32, CMM_F32, 1024, 1); /* the most */
    check_block(&large_l2, 16, 5, 191, CMM_F32, 512, 1); /* 514, of which whole steps of 32 */
    check_block(&large_l2, 1, 5, 192, CMM_F32, 0, 0);
    check_block(&large_l2, 2, 5, 192, CMM_F32, 512, 1);
    check_block(&small_l2, 4, 6, 512, CMM_F32, 128, 1); /* 127 neurons of 4 KB: L2 less one */
    check_block(&small_l2, 4, 6, 517, CMM_F32, 0, 0);
    check_block(&small_l2, 4, 7, 128, CMM_F32, 256, 1); /* 255 of 1 KB: half of L2 less one, and deep */
    check_block(&small_l2, 4, 7, 130, CMM_F32, 0, 0);
    check_block(&large_l2, 2, 9, 512, CMM_F32, 192, 1); /* two of 4 MB: a quarter of L3 less 8 KB */
    check_block(&large_l2, 2, 9, 513, CMM_F32, 0, 0);
    check_block(&large_l2, 44, 4, 768, CMM_F32, 128, 1); /* 31 neurons of 6 KB: 44 trees take 8184 KB, a quarter of L3 8192 */
    check_block(&large_l2, 45, 4, 768, CMM_F32, 512, 1);
    check_block(&small_l2, 44, 4, 768, CMM_F32, 128, 1);
    check_block(&small_l2, 45, 4, 768, CMM_F32, 0, 0);
    check_block(&large_l2, 128, 4, 768, CMM_I8, 128, 1);
    check_block(&large_l2, 2, 3, 4096, CMM_F32, 128, 1); /* 128 tokens of 32 KB: 4 times L2 */
    check_block(&large_l2, 2, 3, 4100, CMM_F32, 128, 0);
    cmm_problem problem = shape(2, 0, 512, CMM_F32);
    problem.nodes = 1024; /* of 4 KB: a tree of 4 times L2 */
    CHECK(cmm_fff_plan(&problem, &large_l2, 2048).block == 192, "4 times L2");
    problem.nodes++;
    CHECK(cmm_fff_plan(&problem, &large_l2, 2048).block == CMM_BLOCK, "more");
}

static void check_chunks(void)
{
    CHECK(plan(&large_l2, 1, 11, 768, CMM_F32, 16384).chunk == CMM_CHUNK, "one tree");
    CHECK(plan(&server, 1, 11, 768, CMM_F32, 16384).chunk == CMM_CHUNK, "one tree, a slow L3");
    CHECK(plan(&server, 2, 11, 768, CMM_F32, 16384).chunk == 2048, "several, a slow L3");
    CHECK(plan(&small_l2, 2, 9, 1024, CMM_F32, 16384).chunk == 2048, "16 MB hold x and y of 2048 tokens");
    CHECK(plan(&small_l2, 2, 9, 1025, CMM_F32, 16384).chunk == 1920, "and of fewer that are wider");
    CHECK(plan(&large_l2, 4, 9, 768, CMM_F32, 16384).chunk == 2688, "16 MB hold x and y of 2730 tokens, 21 blocks");
    CHECK(plan(&large_l2, 4, 9, 128, CMM_F32, 16384).chunk == CMM_CHUNK, "16384 of 1 KB");
    CHECK(plan(&large_l2, 4, 9, 129, CMM_F32, 16384).chunk == 16256, "16256 of 1032 bytes, 127 blocks");
    CHECK(plan(&large_l2, 2, 9, 4096, CMM_F32, 16384).chunk == CMM_TURN, "512 of 32 KB, but a turn is the least");
}

static void check_phases(void)
{
    CHECK(plan(&small_l2, 1, 11, 768, CMM_F32, 256).split == 0, "two blocks");
    CHECK(plan(&small_l2, 1, 11, 768, CMM_F32, 257).split == 2, "64 tokens to each of 4 subtrees");
    CHECK(plan(&small_l2, 1, 11, 768, CMM_F32, 2048).split == 5, "of 32");
    CHECK(plan(&small_l2, 1, 11, 768, CMM_F32, 16384).split == 6, "64 rows of 3 KB in half of L2");
    CHECK(plan(&small_l2, 1, 11, 1024, CMM_F32, 16384).split == 6, "64 rows of 4 KB are just half of L2");
    CHECK(plan(&large_l2, 1, 11, 768, CMM_F32, 16384).split == 7, "128 in half of a larger one");
    CHECK(plan(&server, 1, 11, 768, CMM_F32, 16384).split == 7, "256 would fit, but of a block each node has one token");
    CHECK(plan(&small_l2, 1, 11, 768, CMM_I8, 16384).split == 7, "likewise");
    CHECK(plan(&small_l2, 1, 11, 768, CMM_I8, 8191).split == 6, "less than 64 tokens to each of 128 subtrees");
    CHECK(plan(&server, 1, 7, 192, CMM_F32, 16384).split == 7, "128 leaves for a block of 128 tokens");
    CHECK(plan(&server, 1, 6, 192, CMM_F32, 16384).split == 0, "two tokens to a leaf, and L2 holds the tree");
    CHECK(plan(&server, 4, 7, 192, CMM_F32, 16384).split == 0, "several trees, in L2");
    CHECK(plan(&server, 4, 9, 192, CMM_F32, 16384).split == 7, "1.5 MB leave no room in 2 MB for x and y");
    cmm_problem problem = shape(1, 2, 1024, CMM_F32);
    problem.nodes = 512; /* of 8 KB: 4 times a large L2 */
    CHECK(cmm_fff_plan(&problem, &large_l2, 16384).split == 0, "4 times L2");
    problem.nodes++;
    CHECK(cmm_fff_plan(&problem, &large_l2, 16384).split == 2, "more, down to the leaves");
    problem.nodes = 64;
    CHECK(cmm_fff_plan(&problem, &small_l2, 16384).split == 0, "all of a small L2");
    problem.nodes++;
    CHECK(cmm_fff_plan(&problem, &small_l2, 16384).split == 2, "more than that, which L3 gives slowly");
}

static void check_prefetch(const cmm_machine *machine, int32_t depth, int64_t width, cmm_prefetch walk, cmm_prefetch group)
{
    const cmm_plan p = plan(machine, 1, depth, width, CMM_F32, 64);
    CHECK(p.walk_ahead == walk && p.group_ahead == group, "1x%d, width %lld, L2 %lld KB: %d, %d", depth,
          (long long)width, (long long)(machine->l2 / KB), p.walk_ahead, p.group_ahead);
}

static void check_prefetches(void)
{
    check_prefetch(&small_l2, 11, 768, CMM_PREFETCH_NOTHING, CMM_PREFETCH_HEAD);
    check_prefetch(&small_l2, 11, 512, CMM_PREFETCH_ROW, CMM_PREFETCH_ROW); /* 2 KB */
    check_prefetch(&small_l2, 11, 513, CMM_PREFETCH_NOTHING, CMM_PREFETCH_HEAD);
    check_prefetch(&large_l2, 11, 513, CMM_PREFETCH_NOTHING, CMM_PREFETCH_ROW);
    check_prefetch(&large_l2, 11, 768, CMM_PREFETCH_NOTHING, CMM_PREFETCH_ROW);
    check_prefetch(&small_l2, 6, 256, CMM_PREFETCH_NOTHING, CMM_PREFETCH_NOTHING); /* 127 neurons of 2 KB: half of L2 */
    check_prefetch(&small_l2, 6, 260, CMM_PREFETCH_ROW, CMM_PREFETCH_ROW);
    check_prefetch(&large_l2, 6, 260, CMM_PREFETCH_NOTHING, CMM_PREFETCH_NOTHING);
    check_prefetch(&server, 11, 512, CMM_PREFETCH_ROW, CMM_PREFETCH_ROW);
    check_prefetch(&server, 11, 513, CMM_PREFETCH_NOTHING, CMM_PREFETCH_HEAD);
}

static void check_streams(void)
{
    cmm_problem problem = shape(1, 1, 1024, CMM_F32); /* 24 KB of weights */
    problem.batch = (32 * MB - 24 * KB) / (8 * KB);
    CHECK(!cmm_fff_plan(&problem, &large_l2, 100).streams, "all of it in L3");
    problem.batch++;
    CHECK(cmm_fff_plan(&problem, &large_l2, 100).streams, "a token more, of the call and not of this thread");
    CHECK(cmm_fff_plan(&problem, &small_l2, 100).streams, "with a slow L3, too");
    problem.batch = 2 * 2 * MB / (8 * KB);
    CHECK(!cmm_fff_plan(&problem, &server, 100).streams, "x and y are twice L2");
    problem.batch++;
    CHECK(cmm_fff_plan(&problem, &server, 100).streams, "a token more, which a slow L3 would have");
    CHECK(!cmm_fff_plan(&problem, &large_l2, 100).streams, "but a fast one may");
    problem.y = y + 16;
    CHECK(cmm_fff_plan(&problem, &server, 100).streams, "y off a cache line: the kernel brings its stores there");
    problem.y = y;
    problem.d_out = 1025;
    CHECK(!cmm_fff_plan(&problem, &server, 100).streams, "rows that are no whole lines");
    problem.d_out = 1024;
    problem.trees = 2;
    CHECK(!cmm_fff_plan(&problem, &server, 100).streams, "several trees");
}

/* The dispatcher goes by the plan, for the caches of this machine, whatever they are. */
static void check_dispatch(void)
{
    const cmm_request wanted = {.cpu = cmm_cpu_machine()->cpu, .level = "native"};
    int both = 0;
    for (int64_t tokens = 1; tokens <= 4096; tokens++) {
        cmm_problem problem = shape(1, 11, 768, CMM_F32);
        problem.batch = tokens;
        const cmm_traits *found = NULL;
        CHECK(cmm_find_kernel(CMM_OP_FFF, &wanted, &problem, &found) == CMM_OK && found, "no kernel");
        if (!found)
            return;
        const int grouped = strcmp(found->algorithm, "grouped") == 0;
        CHECK(grouped == cmm_fff_plan(&problem, cmm_cpu_machine(), tokens).grouped, "%lld tokens: %s", (long long)tokens,
              found->name);
        both |= 1 << grouped;
    }
    CHECK(both == 3, "both algorithms");
}

int main(void)
{
    check_algorithm();
    check_trees_of_a_block();
    check_blocks();
    check_chunks();
    check_phases();
    check_prefetches();
    check_streams();
    check_dispatch();
    return check_report();
}
