/* What a call must be, on a CPU and on a GPU: the checks that the entry points of libcmm (api.c) and libcmm_cuda
 * (cuda/api.cu) have in common. Both check in one order, that of docs/reference/status-codes.md, so a call that is
 * wrong in several ways gets the same status from both, and a later version may not change which. */
#ifndef CMM_VALIDATE_H
#define CMM_VALIDATE_H

#include "kernel.h"

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A struct of the caller's starts with its size. cmm_read_struct() copies it, and a shorter one than this version's, down
 * to `oldest`, goes on with zeros; a longer one is accepted where it does, for then it asks for nothing unknown here.
 * Returns 0 for any other size. cmm_write_struct() fills a struct whose size has been read, as far as it goes. */
int cmm_read_struct(void *to, size_t size, size_t oldest, const void *from);
void cmm_write_struct(void *to, size_t size, const void *from);

/* A dtype's name, bytes of an element, and of a logit: the types of 16 bits have logits of float. */
const char *cmm_dtype_name(int32_t dtype);
int64_t cmm_element_size(int32_t dtype);
int64_t cmm_logit_size(int32_t dtype);

/* a * b * c bytes, or -1 when that does not fit in the address space. */
int64_t cmm_bytes_of(int64_t a, int64_t b, int64_t c);

typedef struct cmm_extent {
    uintptr_t first, end;
} cmm_extent;

cmm_extent cmm_extent_of(const void *start, int64_t bytes);

/* Whether two extents have a byte in common: an empty one shares none with anything. */
int cmm_overlap(cmm_extent a, cmm_extent b);
int cmm_misaligned(const void *pointer, int64_t size);

/* Widen a layer into a problem, after the checks of the fields that only cmm_fff or cmm_ff has. */
cmm_status cmm_read_fff(const cmm_fff *layer, int wants_y, cmm_problem *problem);
cmm_status cmm_read_ff(const cmm_ff *layer, cmm_problem *problem);

/* Whether rows of weight_dtype may go with tokens of dtype: the same, or a line of the list of types. */
int cmm_rows_may_be(int32_t dtype, int32_t weight_dtype);

/* Then what both have in common; dtypes: how many of CMM_F32, CMM_F64, CMM_BF16, CMM_F16 are known: to libcmm two. */
enum { CMM_CPU_DTYPES = 2 };
cmm_status cmm_check_layer(const cmm_problem *problem, int32_t dtypes);

/* Then the sizes of the arrays; their pointers and alignment; and that no output overlaps anything. */
cmm_status cmm_check_batch(const cmm_problem *problem);
cmm_status cmm_check_weights(const cmm_problem *problem);
cmm_status cmm_check_arrays(const cmm_problem *problem);

/* Last, that a path which is given is one: from the root to a leaf, for each token and tree. Else `refused`, if it is not
 * NULL, gets the two. */
cmm_status cmm_check_path(const cmm_problem *problem, int64_t *refused);

/* Of a backward pass: read its gradients, into b, whose problem has been checked as a layer; check its arrays; and, once
 * b->workspace_needed is known, a workspace that is given. */
cmm_status cmm_read_gradients(const cmm_gradients *gradients, cmm_backward *b);
cmm_status cmm_check_backward(const cmm_backward *b);
cmm_status cmm_check_backward_workspace(const cmm_backward *b, int64_t alignment);

/* Where the arrays of a problem lie: w_in, w_out, bias, scale_in, scale_out, exact_in, margin; x, the path to take; y,
 * nodes, logits. The rows of a weight lie ld elements apart;
 * all memory from the start of the first row to the end of the last one counts as the weight, what lies between two
 * rows too. */
enum { CMM_WEIGHTS = 7, CMM_INPUTS = 9, CMM_OUTPUTS = 3 };
void cmm_input_extents(const cmm_problem *problem, cmm_extent *inputs);
void cmm_output_extents(const cmm_problem *problem, cmm_extent *outputs);

#ifdef __cplusplus
}
#endif
#endif
