/* A tree, and the rule by which a token goes through it. Plain C, C++ and CUDA include this file.
 *
 * Nodes are numbered in heap order: the root is 0, the children of a node are 2 node + 1, on the left, and 2 node + 2. With
 * 1 added a number is, in binary, a leading 1 and then the way down from the root, a bit for each level: so ancestors are
 * its prefixes. A number of 32 bits without sign also has the level below the leaves of the deepest tree. */
#ifndef CMM_TREE_H
#define CMM_TREE_H

#include "cmm.h"
#include "host_device.h"

/* THE TIE RULE: whether a logit, float or double, sends a token to the right. NaN, which is neither, goes left. */
#define CMM_GOES_RIGHT(logit, tie) ((tie) == CMM_TIE_RIGHT ? (logit) >= 0 : (logit) > 0)

/* The same rule as a number that a float must exceed to go right: under "right" it is the largest number below 0. */
CMM_HD static inline float cmm_threshold_f32(int32_t tie)
{
    return tie == CMM_TIE_RIGHT ? -0x1p-149f : 0.0f;
}

CMM_HD static inline int64_t cmm_left_child(int64_t node)
{
    return 2 * node + 1;
}

/* So many levels above a node. */
CMM_HD static inline int64_t cmm_ancestor(uint32_t node, int32_t up)
{
    return (int64_t)((node + 1) >> up) - 1;
}

/* The so-manieth node, counted from the left, of those that lie `down` levels below a node. */
CMM_HD static inline int64_t cmm_descendant(int64_t node, int32_t down, int64_t place)
{
    return ((node + 1) << down) - 1 + place;
}

/* Where the path to a leaf goes on from its node of a level: 1 to the right, 0 to the left or nowhere. */
CMM_HD static inline int32_t cmm_turn_to(uint32_t leaf, int32_t level, int32_t depth)
{
    return level < depth ? (int32_t)((leaf + 1) >> (depth - 1 - level) & 1) : 0;
}

/* Whether such numbers are a path through a tree: all its nodes, from the root to a leaf, or (length 1) its leaf. */
CMM_HD static inline int cmm_is_path(const int32_t *node, int32_t length, int32_t depth)
{
    const int64_t leaves = (int64_t)1 << depth, leaf = node[length - 1];
    int is_path = leaf >= leaves - 1 && leaf < 2 * leaves - 1;
    for (int32_t level = 0; is_path && length > 1 && level < depth; level++)
        is_path = node[level] == cmm_ancestor((uint32_t)leaf, depth - level);
    return is_path;
}

/* How many of `levels` nodes the paths share that lead to a and b, of which both lie in the level below those. */
static inline int32_t cmm_shared_prefix(uint32_t a, uint32_t b, int32_t levels)
{
    const uint32_t differ = (a + 1) ^ (b + 1);
    return differ ? levels - (31 - __builtin_clz(differ)) : levels;
}

#endif
