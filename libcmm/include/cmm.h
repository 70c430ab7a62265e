/* libcmm: conditional matrix multiplication and fast feedforward layers on the CPU.
 *
 * A fast feedforward (FFF) layer is `trees` balanced binary trees of `depth` edges from root to leaf. A tree has
 * nodes = 2^(depth+1) - 1 neurons in heap order: the root is 0, the children of n are 2n+1 (left) and 2n+2 (right).
 * Neuron n of tree k owns one row of w_in, one bias and one row of w_out. A token x visits depth+1 neurons per tree:
 *
 *     n = 0
 *     for level in 0 .. depth:
 *         logit = dot(w_in[k][n], x) + bias[k][n]
 *         y    += activation(logit) * w_out[k][n]
 *         n     = 2n + 1 + (logit > 0)
 *
 * The outputs of all trees are summed into y. Conditional matrix multiplication (CMM) is the first half alone: it
 * gives the visited nodes and their logits, and no y.
 *
 * A complete program:
 *
 *     cmm_fff layer = {.size = sizeof layer, .dtype = CMM_F32, .activation = CMM_GELU, .tie = CMM_TIE_LEFT,
 *                      .depth = 11, .trees = 1, .d_in = 768, .d_out = 768, .w_in = w_in, .w_out = w_out};
 *     cmm_status status = cmm_fff_forward(&layer, NULL, batch, x, y, NULL, NULL);
 *     if (status != CMM_OK)
 *         fprintf(stderr, "%s\n", cmm_status_message(status));
 *
 * Rules that hold for every function:
 *   - Arrays are row-major and borrowed: libcmm keeps no pointer after a call returns, and frees nothing of yours.
 *   - Everything is checked before anything is written: when a call returns an error, no output has been touched. A
 *     call that is wrong in several ways gets the status of what is checked first, in the order of
 *     docs/reference/status-codes.md.
 *   - Rows that no token visits have no influence: an inf or NaN in them does not reach y.
 *   - Functions may be called from many threads at once, and in a child after fork(); not so where libcmm was built
 *     without threads (CMM_THREADS=OFF): there calls come one at a time.
 *   - Nothing is printed, and no environment variable is read.
 *   - Every struct starts with its own size; set it to sizeof the struct. Zero is the default of every other field, so
 *     designated initializers (or memset) are enough. Structs grow at their end in later versions, and a program and a
 *     library of different versions understand each other: fields that an older struct lacks are 0, and a newer one is
 *     accepted where all of it that this version does not know is 0.
 */
#ifndef CMM_H
#define CMM_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32) && defined(CMM_BUILDING)
#define CMM_API __declspec(dllexport)
#elif defined(_WIN32) && !defined(CMM_STATIC)
#define CMM_API __declspec(dllimport)
#elif defined(__GNUC__)
#define CMM_API __attribute__((visibility("default")))
#else
#define CMM_API
#endif

#define CMM_VERSION_MAJOR 0
#define CMM_VERSION_MINOR 2
#define CMM_VERSION_PATCH 0

#ifdef __cplusplus
extern "C" {
#endif

/* The lines between the two markers are also read by cffi: plain declarations only. */
/* cffi: begin */

/* What a call reports. The numbers are permanent. cmm_status_message() says each in one sentence. */
typedef int32_t cmm_status;
enum {
    CMM_OK = 0,

    /* the layer: cmm_fff or cmm_ff */
    CMM_ERROR_LAYER_NULL = 10,      /* layer is NULL */
    CMM_ERROR_LAYER_SIZE = 11,      /* layer->size is none that the struct has or could have */
    CMM_ERROR_DTYPE = 12,           /* dtype is not a CMM_F.. value */
    CMM_ERROR_ACTIVATION = 13,      /* activation is not one of the CMM_.. activations */
    CMM_ERROR_TIE = 14,             /* tie is not CMM_TIE_LEFT or CMM_TIE_RIGHT */
    CMM_ERROR_TREES = 15,           /* trees is less than 1 */
    CMM_ERROR_DEPTH = 16,           /* depth is not in 0 .. CMM_MAX_DEPTH */
    CMM_ERROR_NEURONS = 17,         /* neurons is negative */
    CMM_ERROR_D_IN = 18,            /* d_in is less than 1 */
    CMM_ERROR_D_OUT = 19,           /* d_out is less than 1 */
    CMM_ERROR_LD_IN = 20,           /* ld_in is neither 0 nor at least d_in */
    CMM_ERROR_LD_OUT = 21,          /* ld_out is neither 0 nor at least d_out */
    CMM_ERROR_LAYER_TOO_LARGE = 22, /* the weights would not fit in the address space */
    CMM_ERROR_RESERVED = 23,        /* a reserved field is not 0 */
    CMM_ERROR_WEIGHT_DTYPE = 24,    /* weight_dtype is neither 0 nor a type of rows that goes with this dtype */
    CMM_ERROR_SCALE = 25,           /* scale_in or scale_out is NULL with rows of CMM_I8, or is not with other rows */
    CMM_ERROR_EXACT = 26,           /* exact_in and margin: one without the other, or with rows that are not narrow */
    CMM_ERROR_LD_EXACT = 27,        /* ld_exact is neither 0 nor at least d_in */

    /* how to run: cmm_run, cmm_blas */
    CMM_ERROR_RUN_SIZE = 30,        /* run->size is none that the struct has or could have */
    CMM_ERROR_THREADS = 31,         /* threads is negative */
    CMM_ERROR_LEVEL = 32,           /* there is no level of that name */
    CMM_ERROR_LEVEL_UNUSABLE = 33,  /* the level exists, but not in this build or not on this machine */
    CMM_ERROR_ISA = 34,             /* there is no instruction set of that name */
    CMM_ERROR_ISA_UNUSABLE = 35,    /* the instruction set exists, but not in this build or not on this CPU */
    CMM_ERROR_METHOD = 36,          /* the level has no algorithm of that name, or it cannot do this layer */
    CMM_ERROR_BLAS_MISSING = 37,    /* the level needs a BLAS: run->blas is NULL and none is linked */
    CMM_ERROR_BLAS_SIZE = 38,       /* blas->size is none that the struct has or could have */
    CMM_ERROR_BLAS_INCOMPLETE = 39, /* blas lacks one of dot, axpy, gemv, gemm for this dtype */
    CMM_ERROR_LEVEL_WEIGHT_DTYPE = 40, /* the level has no kernel for rows of this weight_dtype */
    CMM_ERROR_PATH_TWICE = 41,      /* path_nodes and path_leaves are both given; or one, where nodes are too */
    CMM_ERROR_PATH_DENSE = 42,      /* a path is given for a dense layer, which has none */

    /* the arrays of a call */
    CMM_ERROR_BATCH = 50,           /* batch is negative */
    CMM_ERROR_BATCH_TOO_LARGE = 51, /* x, y or the path would not fit in the address space */
    CMM_ERROR_W_IN_NULL = 52,
    CMM_ERROR_W_OUT_NULL = 53,
    CMM_ERROR_X_NULL = 54,
    CMM_ERROR_Y_NULL = 55,
    CMM_ERROR_PATH_NULL = 56,       /* cmm_cmm_forward() with neither nodes nor logits */
    CMM_ERROR_W_IN_ALIGN = 57,      /* an array does not start at a multiple of its element's size */
    CMM_ERROR_BIAS_ALIGN = 58,
    CMM_ERROR_W_OUT_ALIGN = 59,
    CMM_ERROR_X_ALIGN = 60,
    CMM_ERROR_Y_ALIGN = 61,
    CMM_ERROR_NODES_ALIGN = 62,
    CMM_ERROR_LOGITS_ALIGN = 63,
    CMM_ERROR_Y_OVERLAP = 64,       /* y shares memory with an input */
    CMM_ERROR_NODES_OVERLAP = 65,   /* nodes shares memory with an input or with y */
    CMM_ERROR_LOGITS_OVERLAP = 66,  /* logits shares memory with an input, with y or with nodes */
    CMM_ERROR_SCALE_ALIGN = 67,     /* scale_in, scale_out, margin do not start at a multiple of 4 bytes */
    CMM_ERROR_EXACT_ALIGN = 68,
    CMM_ERROR_PATH_ALIGN = 69,      /* path_nodes or path_leaves */
    CMM_ERROR_PATH = 70,            /* what is given is no path from a root to a leaf; run->refused says whose */

    /* what the machine refused */
    CMM_ERROR_MEMORY = 80,          /* no memory for the scratch space of this call */

    /* cmm_blas_load(), cmm_blas_linked() and cmm_blas_check() */
    CMM_ERROR_BLAS_NULL = 90,       /* the table to fill is NULL */
    CMM_ERROR_BLAS_FILE_NULL = 91,  /* file is NULL */
    CMM_ERROR_BLAS_FILE = 92,       /* file is not a shared library that this process can load */
    CMM_ERROR_BLAS_SYMBOLS = 93,    /* no BLAS with 32-bit integers: functions are missing, or count in 64 bits */

    /* cmm_level_get(), cmm_kernel_get(), cmm_fff_pack() */
    CMM_ERROR_INDEX = 100,          /* index is not in 0 .. count - 1 */
    CMM_ERROR_INFO_NULL = 101,      /* info is NULL */
    CMM_ERROR_INFO_SIZE = 102,      /* info->size is none that the struct has or could have */
    CMM_ERROR_MEMORY_NULL = 103,    /* memory is NULL */
    CMM_ERROR_MEMORY_ALIGN = 104,   /* memory does not start at a multiple of CMM_ALIGNMENT */
    CMM_ERROR_MEMORY_SIZE = 105,    /* memory is smaller than cmm_fff_pack_size() */
    CMM_ERROR_PACKED_NULL = 106,    /* packed is NULL */
    CMM_ERROR_BYTES_NULL = 107,     /* bytes is NULL */
    CMM_ERROR_MEMORY_OVERLAP = 108, /* memory shares bytes with the layer's weights */
    CMM_ERROR_OPTIONS_SIZE = 109,   /* options->size is none that the struct has or could have */
    CMM_ERROR_ROW_NOT_FINITE = 110, /* a row that would be one of CMM_I8 holds an infinity or NaN; see options->refused */
    CMM_ERROR_SIGMAS = 111,         /* sigmas is negative or NaN, or given without an exact path */

    /* libcmm_cuda, see cmm_cuda.h */
    CMM_ERROR_CUDA_LAUNCH = 120,       /* the driver did not accept a kernel */
    CMM_ERROR_CUDA_ABSENT = 121,       /* libcmm_cuda was not built, or cannot be loaded */
    CMM_ERROR_CUDA_DEVICE = 122,       /* there is no GPU or driver that can run libcmm_cuda's kernels */
    CMM_ERROR_WORKSPACE_NULL = 123,    /* workspace is NULL, and the call needs one */
    CMM_ERROR_WORKSPACE_ALIGN = 124,   /* workspace does not start at a multiple of CMM_CUDA_ALIGNMENT; libcmm: CMM_ALIGNMENT */
    CMM_ERROR_WORKSPACE_SIZE = 125,    /* workspace is smaller than what the call's .._workspace() says */
    CMM_ERROR_WORKSPACE_OVERLAP = 126, /* workspace shares memory with an input or an output */

    /* cmm_fff_backward(), which has those of the workspace too */
    CMM_ERROR_GRADIENTS_NULL = 130,  /* gradients is NULL */
    CMM_ERROR_GRADIENTS_SIZE = 131,  /* gradients->size is none that the struct has or could have */
    CMM_ERROR_ACCUMULATE = 132,      /* accumulate has other bits than CMM_DX, CMM_DW_IN, CMM_DBIAS, CMM_DW_OUT */
    CMM_ERROR_GRADIENTS_NONE = 133,  /* no gradient is wanted */
    CMM_ERROR_LD_DW_IN = 134,        /* ld_dw_in is neither 0 nor at least d_in, or too large for the address space */
    CMM_ERROR_LD_DW_OUT = 135,       /* ld_dw_out is neither 0 nor at least d_out, or too large */
    CMM_ERROR_NODES_NULL = 136,
    CMM_ERROR_LOGITS_NULL = 137,
    CMM_ERROR_DY_NULL = 138,
    CMM_ERROR_DY_ALIGN = 139,
    CMM_ERROR_DX_ALIGN = 140,
    CMM_ERROR_DW_IN_ALIGN = 141,
    CMM_ERROR_DBIAS_ALIGN = 142,
    CMM_ERROR_DW_OUT_ALIGN = 143,
    CMM_ERROR_DX_OVERLAP = 144,      /* dx shares memory with an input */
    CMM_ERROR_DW_IN_OVERLAP = 145,   /* a later gradient does, or shares memory with an earlier one */
    CMM_ERROR_DBIAS_OVERLAP = 146,
    CMM_ERROR_DW_OUT_OVERLAP = 147
};

/* Element types. `dtype` is that of input, bias, output and logits, and sums are accumulated in it: CMM_F32 or CMM_F64;
 * the types of 16 bits are libcmm_cuda's alone (cmm_cuda.h). `weight_dtype` is that of the rows of weights. */
enum { CMM_F32 = 0, CMM_F64 = 1, CMM_BF16 = 2, CMM_F16 = 3, CMM_I8 = 4 };

/* weight_out_dtype of a layer whose rows of w_out are of its dtype, when those of w_in are narrower. */
enum { CMM_AS_DTYPE = -1 };

/* The activation of a neuron. GELU is the exact one: z * Phi(z). GELU_TANH is its tanh approximation. */
enum { CMM_GELU = 0, CMM_GELU_TANH = 1, CMM_RELU = 2, CMM_SILU = 3, CMM_IDENTITY = 4 };

/* Where a logit of exactly 0 goes: left (right means logit > 0) or right (right means logit >= 0). NaN goes left. */
enum { CMM_TIE_LEFT = 0, CMM_TIE_RIGHT = 1 };

enum { CMM_MAX_DEPTH = 30, CMM_ALIGNMENT = 64 };

/* A fast feedforward layer; nodes = 2^(depth+1) - 1. */
typedef struct cmm_fff {
    uint32_t size;       /* sizeof(cmm_fff) */
    int32_t dtype;       /* of tokens, bias, outputs: CMM_F32, CMM_F64 */
    int32_t activation;  /* CMM_GELU, ... */
    int32_t tie;         /* CMM_TIE_LEFT, CMM_TIE_RIGHT */
    int32_t depth;       /* edges from root to leaf, 0 .. CMM_MAX_DEPTH */
    int32_t reserved;    /* 0 */
    int64_t trees;       /* at least 1 */
    int64_t d_in;        /* width of a token, at least 1 */
    int64_t d_out;       /* width of an output, at least 1 (not read by cmm_cmm_forward) */
    const void *w_in;    /* [trees][nodes] rows of d_in elements */
    const void *bias;    /* [trees][nodes], or NULL for none */
    const void *w_out;   /* [trees][nodes] rows of d_out elements (not read by cmm_cmm_forward) */
    int64_t ld_in;       /* elements from one row of w_in to the next; 0 means d_in */
    int64_t ld_out;      /* the same of w_out; 0 means d_out (not read by cmm_cmm_forward) */
    /* since 0.2.0 */
    int32_t weight_dtype;   /* of the rows of w_in; 0 means dtype. With CMM_F32 also CMM_BF16, CMM_F16, CMM_I8 */
    union {
        int32_t weight_out_dtype; /* of the rows of w_out; 0 means weight_dtype, CMM_AS_DTYPE dtype */
        int32_t reserved_2;       /* its name where it was 0 */
    };
    const float *scale_in;  /* [trees][nodes]: what the elements of each row of w_in are multiples of. For CMM_I8 alone */
    const float *scale_out; /* the same of w_out */
    const void *exact_in;   /* [trees][nodes / 2] rows of d_in elements of dtype, w_in of the inner nodes before it was
                               narrowed; or NULL. See cmm_fff_pack_as() */
    const float *margin;    /* [trees][nodes / 2]: a logit no farther from 0 than so many norms of its token is computed
                               again from exact_in; or NULL */
    int64_t ld_exact;       /* elements from one row of exact_in to the next; 0 means d_in */
} cmm_fff;

/* How to pack a layer. NULL, or all zero after the size: its rows stay as they are. */
typedef struct cmm_pack_options {
    uint32_t size;        /* sizeof(cmm_pack_options) */
    int32_t weight_dtype; /* of the packed rows; 0 means that of the layer. Other rows are rounded to it */
    int32_t weight_out_dtype; /* of those of w_out; 0 means weight_dtype, CMM_AS_DTYPE dtype */
    int32_t exact_path;   /* 1: keep the rows of w_in of the inner nodes as they are, too, for the exact path; else 0 */
    double sigmas;        /* 0: the exact path is certain. Else as likely as a normal error below so many standard
                             deviations */
    int64_t *refused;     /* NULL, or where CMM_ERROR_ROW_NOT_FINITE puts the number of the row, tree * nodes + node,
                             and 0 for w_in, 1 for w_out: two numbers */
} cmm_pack_options;

/* A dense feedforward layer, the baseline: y = activation(x w_in^T + bias) w_out. */
typedef struct cmm_ff {
    uint32_t size;       /* sizeof(cmm_ff) */
    int32_t dtype;
    int32_t activation;
    int32_t reserved;    /* 0 */
    int64_t neurons;     /* 0 or more */
    int64_t d_in;
    int64_t d_out;
    const void *w_in;    /* [neurons] rows of d_in elements */
    const void *bias;    /* [neurons], or NULL for none */
    const void *w_out;   /* [neurons] rows of d_out elements */
    int64_t ld_in;       /* elements from one row of w_in to the next; 0 means d_in */
    int64_t ld_out;      /* elements from one row of w_out to the next; 0 means d_out */
} cmm_ff;

/* A table of BLAS functions, for the levels that use one: cmm_blas.h, which this header includes. */
typedef struct cmm_blas cmm_blas;

/* How to run a call. NULL, or all zero after the size: the best this machine has. */
typedef struct cmm_run {
    uint32_t size;        /* sizeof(cmm_run) */
    int32_t threads;      /* at most this many threads; 0 means every core this process may use */
    const char *level;    /* "naive", "blas1", "blas2", "blas3", "native"; NULL or "auto" picks */
    const char *isa;      /* "avx2", ... (see cmm_kernel_get); NULL picks the best that the CPU has */
    union {
        const char *algorithm; /* of level "native": "per_token", "grouped"; NULL takes the one that suits */
        const char *method;    /* its name in 0.1.0, whose values "walk" and "group" are still taken */
    };
    const cmm_blas *blas; /* for the blas levels; NULL means the BLAS that libcmm was linked with, if any */
    /* since 0.2.0 */
    const int32_t *path_nodes;  /* [batch][trees][depth+1], or NULL: the path to take, as `nodes` of a call gives it */
    const int32_t *path_leaves; /* [batch][trees], or NULL: the same by its last nodes */
    int64_t *refused;           /* NULL, or where CMM_ERROR_PATH puts the token and the tree: two numbers */
    int64_t *recomputed;        /* NULL, or where a call puts the number of logits that the exact path computed again */
} cmm_run;

/* Bits of cmm_gradients.accumulate. */
enum { CMM_DX = 1, CMM_DW_IN = 2, CMM_DBIAS = 4, CMM_DW_OUT = 8 };

/* Where the gradients of cmm_fff_backward() go, each NULL where it is not wanted. */
typedef struct cmm_gradients {
    uint32_t size;       /* sizeof(cmm_gradients) */
    int32_t accumulate;  /* CMM_DX, ... of those that are added to what their arrays hold; 0: all are stored */
    void *dx;            /* [batch][d_in] */
    void *dw_in;         /* [trees][nodes] rows of d_in elements */
    void *dbias;         /* [trees][nodes]; may be wanted of a layer without a bias, too */
    void *dw_out;        /* [trees][nodes] rows of d_out elements */
    int64_t ld_dw_in;    /* elements from one row of dw_in to the next; 0 means d_in */
    int64_t ld_dw_out;   /* the same of dw_out; 0 means d_out */
    void *workspace;     /* cmm_fff_backward_workspace() bytes that start at a multiple of CMM_ALIGNMENT; NULL: they are
                            taken for the call and given back */
    int64_t workspace_bytes;
} cmm_gradients;

/* One entry of the list of levels (cmm_level_get). The strings live as long as the library. */
typedef struct cmm_level {
    uint32_t size;      /* sizeof(cmm_level_info) */
    union {
        int32_t available; /* 1 or 0 */
        int32_t usable;    /* its name in 0.1.0 */
    };
    const char *name;   /* "naive", ... */
    const char *isa;    /* the instruction set that a call would use, "any" where the compiler chose */
    union {
        const char *reason; /* why it is not available; "" when it is */
        const char *why;    /* its name in 0.1.0 */
    };
} cmm_level_info;
typedef cmm_level_info cmm_level; /* its name in 0.1.0 */

/* One entry of the list of kernels (cmm_kernel_get). The strings live as long as the library. */
typedef struct cmm_kernel_info {
    uint32_t size;         /* sizeof(cmm_kernel_info) */
    union {
        int32_t available; /* 1 or 0; kernels of the BLAS levels also need a BLAS */
        int32_t usable;    /* its name in 0.1.0 */
    };
    const char *operation; /* "fff", "backward", "ff" (dense), "act" (activations) */
    const char *name;      /* "per_token_avx2", ... */
    const char *level;     /* "native", ...; "" for activations */
    union {
        const char *algorithm; /* "per_token", ...; "" where the level has only one */
        const char *method;    /* its name in 0.1.0 */
    };
    const char *isa;       /* "avx2", ...; "any" where the compiler chose */
    union {
        const char *reason; /* why it is not available; "" when it is */
        const char *why;    /* its name in 0.1.0 */
    };
    const char *x_type;    /* of tokens, sums and outputs: "float32", ...; "" where one kernel is for every type */
    const char *w_type;    /* of the rows of weights: "float32", ...; "" likewise */
} cmm_kernel_info;

/* y[batch][d_out] = the layer applied to x[batch][d_in].
 * nodes[batch][trees][depth+1] and logits[batch][trees][depth+1], each optional (NULL), receive the path: the heap
 * index within its tree of every visited node, root first, and its logit, bias included.
 * run may be NULL. batch may be 0. No output may overlap an input or another output. */
CMM_API cmm_status cmm_fff_forward(const cmm_fff *layer, const cmm_run *run, int64_t batch, const void *x, void *y,
                                   int32_t *nodes, void *logits);

/* The gradients of cmm_fff_forward(): from the tokens x, the nodes and logits that it gave for them, and dy[batch][d_out],
 * the gradient of a loss with respect to y. With a = activation(logit) and dz = activation'(logit) <dy, w_out[n]> of each
 * node n that a token visits:
 *
 *     dx += dz w_in[n]       dw_in[n] += dz x       dbias[n] += dz       dw_out[n] += a dy
 *
 * dx sums the nodes of a token's paths, the others the tokens that visit a node; what no token visits gets 0 where its
 * gradient is stored, and stays as it is where it is accumulated. The path is taken as it is: no gradient goes through
 * the choice of a child, and layer->tie means nothing. ReLU has the derivative 0 at 0.
 * Rows must be of the layer's dtype, CMM_F32 or CMM_F64. x may be NULL where dw_in is not wanted. Of run, threads and isa
 * count, and refused; level is NULL, "auto" or "native". No gradient may overlap an input or another gradient, and the
 * workspace nothing. The same call has the same bits on every CPU and for any number of threads; it depends on which
 * tokens are in a batch, and on their order, for sums have one: that of docs/internals/backward.md. */
CMM_API cmm_status cmm_fff_backward(const cmm_fff *layer, const cmm_run *run, int64_t batch, const void *x,
                                    const int32_t *nodes, const void *logits, const void *dy,
                                    const cmm_gradients *gradients);

/* How much workspace that takes, for as many tokens or fewer. Of gradients it counts which are not NULL. */
CMM_API cmm_status cmm_fff_backward_workspace(const cmm_fff *layer, const cmm_run *run, int64_t batch,
                                              const cmm_gradients *gradients, int64_t *bytes);

/* Conditional matrix multiplication alone: nodes and logits as above, of which one may be NULL. */
CMM_API cmm_status cmm_cmm_forward(const cmm_fff *layer, const cmm_run *run, int64_t batch, const void *x,
                                   int32_t *nodes, void *logits);

/* y[batch][d_out] = the dense layer applied to x[batch][d_in]. */
CMM_API cmm_status cmm_ff_forward(const cmm_ff *layer, const cmm_run *run, int64_t batch, const void *x, void *y);

/* Pack a layer for many calls: its rows move into `memory`, which the caller owns, each aligned to CMM_ALIGNMENT, a
 * neuron's row of w_in beside its row of w_out. `packed` becomes an ordinary descriptor of the same layer on that
 * memory, for every level, with the same results to the bit; the weights it was made from may go. Where the memory
 * comes in huge pages (madvise, or an aligned allocation of a few MiB), a visited row costs no address translation. */
CMM_API cmm_status cmm_fff_pack_size(const cmm_fff *layer, int64_t *bytes);
CMM_API cmm_status cmm_fff_pack(const cmm_fff *layer, void *memory, int64_t bytes, cmm_fff *packed);

/* The same, and rows of the layer's dtype become rows of options->weight_dtype: each number is rounded to the nearest,
 * ties to even, beyond the largest to infinity as IEEE 754 has it, and NaN stays NaN. The bias stays as it is. The packed
 * layer is the one with those rows: its results have the bits of a layer that holds the rounded numbers in its dtype.
 * A row of CMM_I8 is whole numbers from -127 to 127, multiples of its largest magnitude / 127 (of 1 for a row of zeros),
 * each rounded to the nearest, ties to even; the logit is multiplied once by the multiple, after the sum, and so is a
 * neuron's activation before it meets its row of w_out. A row that is not finite is refused.
 * With options->exact_path every token takes the path that the same kernel takes on the layer itself: a logit that the
 * narrow row leaves undecided is computed again from the row as it was (docs/internals/exact-path.md). */
CMM_API cmm_status cmm_fff_pack_size_as(const cmm_fff *layer, const cmm_pack_options *options, int64_t *bytes);
CMM_API cmm_status cmm_fff_pack_as(const cmm_fff *layer, const cmm_pack_options *options, void *memory, int64_t bytes,
                                   cmm_fff *packed);

/* What this library and this machine can do: levels 0 .. cmm_level_count() - 1. run may be NULL; its blas and isa are
 * taken into account, so that the answer is about the call you would make. Set info->size first. */
CMM_API int32_t cmm_level_count(void);
CMM_API cmm_status cmm_level_get(int32_t index, const cmm_run *run, cmm_level_info *info);

/* The list of kernels that the levels are made of: 0 .. cmm_kernel_count() - 1. A kernel's name is its file's name, and
 * a file has one kernel for each pair of types that it is for. Every instruction set has one kernel of operation "act",
 * and within an operation better ones come later. Set info->size first. */
CMM_API int32_t cmm_kernel_count(void);
CMM_API cmm_status cmm_kernel_get(int32_t index, cmm_kernel_info *info);

/* The number of threads that threads = 0 means in this process: the CPUs in the affinity mask of the calling thread, or
 * fewer where the CPU quota of a control group allows fewer (rounded up; read once). And which of the two it was, for
 * people: "affinity mask", "control group's CPU quota", or where a system has neither, "processors online". A library
 * that was built without threads says 1, and "built without threads": its calls run on the thread that makes them. */
CMM_API int32_t cmm_threads_default(void);
CMM_API const char *cmm_threads_source(void);

/* The name ("CMM_ERROR_DTYPE") and one sentence for a status; never NULL, whatever the number. */
CMM_API const char *cmm_status_name(cmm_status status);
CMM_API const char *cmm_status_message(cmm_status status);

/* The version of the library that is running, "major.minor.patch". */
CMM_API const char *cmm_version(void);

/* The compiler and the flags that built it, for people: "GCC 12.2.0: -O3 -DNDEBUG ...". Of a path in them stands "...". */
CMM_API const char *cmm_build(void);

/* cffi: end */

#ifdef __cplusplus
}
#endif

#include "cmm_blas.h"

#endif
