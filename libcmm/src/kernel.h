/* What a kernel is, and what it sees of a call.
 *
 * The entry point (api.c) checks a call, widens it into a cmm_problem with every default filled in, picks one kernel and
 * gives it a context and scratch memory. A kernel trusts what it is given: it is arithmetic only and cannot fail. */
#ifndef CMM_KERNEL_H
#define CMM_KERNEL_H

#include "cmm.h"
#include "tree.h"

/* What a CPU and its operating system must have for a kernel to run; cpu.c finds out. */
enum {
    CMM_CPU_AVX2 = 1,   /* AVX2 and FMA */
    CMM_CPU_AVX512 = 2, /* AVX-512 F, BW, DQ, VL */
    CMM_CPU_NEON = 4,
    CMM_CPU_F16C = 8,   /* the conversion of float16, for vectors of AVX2 */
    CMM_CPU_WASM_FMA = 16 /* WebAssembly: the multiply-add of relaxed SIMD rounds once */
};

typedef struct cmm_machine {
    uint32_t cpu;        /* CMM_CPU_ bits */
    int64_t l1d, l2, l3; /* bytes of one core's data caches; l3 is shared with other cores */
    int slow_l3;         /* 1: reading what is beyond L2 takes more than 3 times as long as from L2 */
} cmm_machine;

/* Apply an activation (CMM_GELU, ...), or its derivative, to n values in place. Every instruction set gives the same
 * bits. */
typedef void cmm_activate_f32(int32_t activation, int64_t n, float *z);
typedef void cmm_activate_f64(int32_t activation, int64_t n, double *z);

/* A checked call, every default filled in: plain data, which a device may be given as it is. A cmm_ff layer has nodes =
 * neurons, trees = 1 and no path. */
typedef struct cmm_problem {
    int32_t dtype;                          /* of tokens, sums and bias */
    int32_t weight_dtype, weight_out_dtype; /* of the rows of w_in, of w_out */
    int32_t activation, tie, depth;
    int32_t wants_y; /* 0: the path alone is wanted */
    int64_t trees, nodes, d_in, d_out, ld_in, ld_out;
    const void *w_in, *bias, *w_out;
    const float *scale_in, *scale_out; /* of rows of integers; else NULL */
    const void *exact_in;              /* the exact path: rows of the inner nodes; NULL: none */
    const float *margin;
    int64_t ld_exact;
    int64_t batch;
    const int32_t *path; /* the path to take, NULL: that of the logits. For each token and tree path_length numbers, */
    int32_t path_length; /* of which the last is the leaf */
    const void *x;
    void *y;            /* NULL: not wanted */
    int32_t *nodes_out; /* NULL: not wanted */
    void *logits_out;   /* NULL: not wanted */
} cmm_problem;

/* What a CPU's kernels call and go by besides. */
typedef struct cmm_context {
    const cmm_machine *machine;
    const cmm_blas *blas; /* NULL: none */
    cmm_activate_f32 *activate_f32, *differentiate_f32;
    cmm_activate_f64 *activate_f64, *differentiate_f64;
} cmm_context;

/* A checked backward pass (backward.c) at work on some trees of a layer: one, or several of one node each. Its tokens are
 * in an order in which those of each node lie together; what is for a place in that order has `place` as its index. The
 * path is problem->path. Gradients that are NULL are not wanted. */
typedef struct cmm_backward {
    const cmm_problem *problem;
    const cmm_context *cpu;
    const void *dy, *logits;
    void *dx, *dw_in, *dbias, *dw_out;
    int64_t ld_dw_in, ld_dw_out;
    int32_t accumulate; /* CMM_DX, ... */
    int64_t tree, trees;
    int64_t rows;         /* that each token visits in these: trees * (depth + 1) */
    const int64_t *order; /* [place] the token */
    const uint32_t *leaf; /* [place] where it ends */
    void *dz, *a;         /* [place][rows] gradients of the logits, activations; NULL: not wanted */
    void *workspace;      /* that the caller has given; or NULL */
    int64_t workspace_bytes, workspace_needed;
} cmm_backward;

enum { CMM_BACKWARD_ROWS = 128 }; /* the most rows that a token may visit in the trees at work */

/* What a kernel computes. */
typedef enum cmm_op { CMM_OP_FFF, CMM_OP_FF, CMM_OP_ACT, CMM_OP_BACKWARD, CMM_OPS } cmm_op;

enum { CMM_EVERY_TYPE = -1 };

/* What the choice of a kernel goes by. A kernel of a CPU and a kernel of a GPU begin with it. One kernel is for one type of
 * tokens and one of rows: a kernel file holds one for each pair of its list of types (for_each_type.h), and they are alike
 * in everything above x_type. */
typedef struct cmm_traits {
    cmm_op op;
    const char *name;      /* its file's name */
    const char *level;     /* "naive", "blas1", ..., "native"; "" for CMM_OP_ACT */
    const char *algorithm; /* of several kernels of one level and isa: "per_token", "grouped"; else "" */
    const char *isa;       /* "any": whatever the compiler chose; else "scalar", "avx2", ...; "cuda" */
    int32_t blas;          /* 0: none; 1: needs dot and axpy; 2: gemv too; 3: gemm too */
    const char *absent;    /* NULL, or why this build left the kernel out */

    int32_t x_type; /* of tokens, bias, sums, logits and outputs: CMM_F32, CMM_F64; CMM_EVERY_TYPE */
    int32_t w_type; /* of rows of w_in and w_out: CMM_F32, ...; CMM_EVERY_TYPE: as the tokens */
    uint32_t cpu;   /* CMM_CPU_ bits that must be there */

    /* Whether this kernel can do a problem of its types at all, and whether it is the one to take where the kernel further
     * up the list could do it too. NULL: always. */
    int (*can_implement)(const cmm_problem *problem);
    int (*is_preferred)(const cmm_problem *problem);
} cmm_traits;

typedef struct cmm_kernel {
    cmm_traits traits;
    /* Bytes of scratch memory that run() needs for count tokens, aligned to CMM_ALIGNMENT. NULL means none. */
    int64_t (*scratch)(const cmm_problem *problem, const cmm_context *cpu, int64_t count);
    /* Do tokens first .. first + count - 1. count is at least 1. Returns how many logits the exact path computed again. */
    int64_t (*run)(const cmm_problem *problem, const cmm_context *cpu, int64_t first, int64_t count, void *scratch);

    /* Of CMM_OP_ACT, whose kernels are for both types of tokens at once. */
    cmm_activate_f32 *activate_f32, *differentiate_f32;
    cmm_activate_f64 *activate_f64, *differentiate_f64;

    /* Of CMM_OP_BACKWARD, instead of run(): dz, a and dx of places first .. first + count - 1; then columns first .. first +
     * count - 1 of dW_in or dW_out, in the rows of nodes that are visited; and dbias of such nodes. */
    void (*back_tokens)(const cmm_backward *b, int64_t first, int64_t count);
    void (*back_rows)(const cmm_backward *b, int is_out, int64_t first, int64_t count);
    void (*back_bias)(const cmm_backward *b);
} cmm_kernel;

static inline int64_t cmm_least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Whether a token goes on to the right from its node of `level` of a tree: as the path says that was given, else as the
 * logit says. */
CMM_HD static inline uint32_t cmm_given_leaf(const cmm_problem *problem, int64_t token, int64_t tree)
{
    return (uint32_t)problem->path[(token * problem->trees + tree + 1) * problem->path_length - 1];
}

#define CMM_TURNS_RIGHT(problem, token, tree, level, logit) \
    ((problem)->path ? cmm_turn_to(cmm_given_leaf(problem, token, tree), level, (problem)->depth) \
                     : CMM_GOES_RIGHT(logit, (problem)->tie))

/* For kernel files whose name and value are made of macros. */
#define CMM_JOIN(a, b) CMM_JOIN_(a, b)
#define CMM_JOIN_(a, b) a##b
#define CMM_TEXT(a) CMM_TEXT_(a)
#define CMM_TEXT_(a) #a

#endif
