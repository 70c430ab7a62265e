/* Wrong calls: each has a status of its own, and leaves every output as it was. */
#include "check.h"
#include "example.h"
#include "reference_blas.h"

/* A good call, to be made wrong. Arrays have room to be misaligned by a few bytes. */
typedef struct call {
    cmm_fff fff;
    cmm_ff ff;
    cmm_run run;
    cmm_blas blas;
    const cmm_fff *fff_pointer;
    const cmm_ff *ff_pointer;
    const cmm_run *run_pointer;
    int64_t batch;
    const void *x;
    void *y, *logits;
    int32_t *nodes;
} call;

enum { DEPTH = 2, NODES = 7, TREES = 3, D_IN = 5, D_OUT = 4, BATCH = 6, STEPS = TREES * (DEPTH + 1), CANARY = 0xA5 };

/* One block, so that one comparison sees whether anything was written. */
static struct memory {
    double w_in[TREES * NODES * D_IN + 8], bias[TREES * NODES + 8], w_out[TREES * NODES * D_OUT + 8];
    double x[BATCH * D_IN + 8];
    double y[BATCH * D_OUT + 8], logits[BATCH * STEPS + 8];
    int32_t nodes[BATCH * STEPS + 16];
} memory;

static int refuse_memory; /* aligned_alloc() fails */

void *aligned_alloc(size_t alignment, size_t size)
{
    void *block = NULL;
    return refuse_memory || posix_memalign(&block, alignment, size) != 0 ? NULL : block;
}

static call good_call(int32_t dtype)
{
    call c = {.fff = {.size = sizeof(cmm_fff), .dtype = dtype, .depth = DEPTH, .trees = TREES, .d_in = D_IN,
                      .d_out = D_OUT, .w_in = memory.w_in, .bias = memory.bias, .w_out = memory.w_out},
              .ff = {.size = sizeof(cmm_ff), .dtype = dtype, .neurons = TREES * NODES, .d_in = D_IN, .d_out = D_OUT,
                     .w_in = memory.w_in, .bias = memory.bias, .w_out = memory.w_out},
              .run = {.size = sizeof(cmm_run), .threads = 1},
              .blas = reference_blas,
              .batch = BATCH,
              .x = memory.x,
              .y = memory.y,
              .logits = memory.logits,
              .nodes = memory.nodes};
    return c;
}

static void *off_by(const void *pointer, int bytes)
{
    return (char *)(uintptr_t)pointer + bytes;
}

/* ---- the ways to be wrong -------------------------------------------------------------------------------------- */

#define FFF 1 /* to be tried with cmm_fff_forward */
#define CMM 2 /* with cmm_cmm_forward */
#define FF 4  /* with cmm_ff_forward */

/* WRONG(functions, status, what to do to the call c) */
#define WRONG_CALLS(WRONG)                                                                                           \
    WRONG(FFF | CMM | FF, CMM_ERROR_LAYER_NULL, c->fff_pointer = NULL, c->ff_pointer = NULL)                         \
    WRONG(FFF | CMM | FF, CMM_ERROR_LAYER_SIZE, c->fff.size = 0, c->ff.size = 0)                                     \
    WRONG(FFF | CMM | FF, CMM_ERROR_LAYER_SIZE, c->fff.size += 8, c->ff.size += 8)                                   \
    WRONG(FFF | CMM | FF, CMM_ERROR_LAYER_SIZE, c->fff.size -= 8, c->ff.size -= 8)                                   \
    WRONG(FFF | CMM | FF, CMM_ERROR_DTYPE, c->fff.dtype = c->ff.dtype = -1)                                          \
    WRONG(FFF | CMM | FF, CMM_ERROR_DTYPE, c->fff.dtype = c->ff.dtype = CMM_BF16)                                    \
    WRONG(FFF | CMM | FF, CMM_ERROR_DTYPE, c->fff.dtype = c->ff.dtype = CMM_F16)                                     \
    WRONG(FFF | CMM | FF, CMM_ERROR_ACTIVATION, c->fff.activation = c->ff.activation = -1)                           \
    WRONG(FFF | CMM | FF, CMM_ERROR_ACTIVATION, c->fff.activation = c->ff.activation = 5)                            \
    WRONG(FFF | CMM, CMM_ERROR_TIE, c->fff.tie = 2)                                                                  \
    WRONG(FFF | CMM, CMM_ERROR_TIE, c->fff.tie = -1)                                                                 \
    WRONG(FFF | CMM, CMM_ERROR_TREES, c->fff.trees = 0)                                                              \
    WRONG(FFF | CMM, CMM_ERROR_TREES, c->fff.trees = INT64_MIN)                                                      \
    WRONG(FFF | CMM, CMM_ERROR_DEPTH, c->fff.depth = -1)                                                             \
    WRONG(FFF | CMM, CMM_ERROR_DEPTH, c->fff.depth = CMM_MAX_DEPTH + 1)                                              \
    WRONG(FFF | CMM, CMM_ERROR_DEPTH, c->fff.depth = INT32_MAX)                                                      \
    WRONG(FF, CMM_ERROR_NEURONS, c->ff.neurons = -1)                                                                 \
    WRONG(FFF | CMM | FF, CMM_ERROR_D_IN, c->fff.d_in = c->ff.d_in = 0)                                              \
    WRONG(FFF | CMM | FF, CMM_ERROR_D_IN, c->fff.d_in = c->ff.d_in = -5)                                             \
    WRONG(FFF | FF, CMM_ERROR_D_OUT, c->fff.d_out = c->ff.d_out = 0)                                                 \
    WRONG(FFF | FF, CMM_ERROR_D_OUT, c->fff.d_out = c->ff.d_out = INT64_MIN)                                         \
    WRONG(FFF | CMM | FF, CMM_ERROR_LD_IN, c->fff.ld_in = c->ff.ld_in = D_IN - 1)                                    \
    WRONG(FFF | CMM | FF, CMM_ERROR_LD_IN, c->fff.ld_in = c->ff.ld_in = -D_IN)                                       \
    WRONG(FFF | FF, CMM_ERROR_LD_OUT, c->fff.ld_out = c->ff.ld_out = D_OUT - 1)                                      \
    WRONG(FFF | FF, CMM_ERROR_LD_OUT, c->fff.ld_out = c->ff.ld_out = -1)                                             \
    WRONG(FFF | CMM, CMM_ERROR_LAYER_TOO_LARGE, c->fff.trees = INT64_MAX)                                            \
    WRONG(FFF | CMM, CMM_ERROR_LAYER_TOO_LARGE, c->fff.trees = INT64_MAX / NODES / D_IN)                             \
    WRONG(FFF | CMM | FF, CMM_ERROR_LAYER_TOO_LARGE, c->fff.d_in = c->ff.d_in = INT64_MAX)                           \
    WRONG(FFF | FF, CMM_ERROR_LAYER_TOO_LARGE, c->fff.d_out = c->ff.d_out = INT64_MAX)                               \
    WRONG(FFF | CMM | FF, CMM_ERROR_LAYER_TOO_LARGE, c->fff.ld_in = c->ff.ld_in = INT64_MAX)                         \
    WRONG(FFF | FF, CMM_ERROR_LAYER_TOO_LARGE, c->fff.ld_out = c->ff.ld_out = INT64_MAX / 8)                         \
    WRONG(FF, CMM_ERROR_LAYER_TOO_LARGE, c->ff.neurons = INT64_MAX)                                                  \
    WRONG(FFF | CMM | FF, CMM_ERROR_RESERVED, c->fff.reserved = c->ff.reserved = 1)                                  \
    WRONG(FFF | CMM | FF, CMM_ERROR_RUN_SIZE, c->run.size = 0)                                                       \
    WRONG(FFF | CMM | FF, CMM_ERROR_RUN_SIZE, c->run.size += 8)                                                      \
    WRONG(FFF | CMM | FF, CMM_ERROR_THREADS, c->run.threads = -1)                                                    \
    WRONG(FFF | CMM | FF, CMM_ERROR_THREADS, c->run.threads = INT32_MIN)                                             \
    WRONG(FFF | CMM | FF, CMM_ERROR_LEVEL, c->run.level = "")                                                        \
    WRONG(FFF | CMM | FF, CMM_ERROR_LEVEL, c->run.level = "Naive")                                                   \
    WRONG(FFF | CMM | FF, CMM_ERROR_LEVEL, c->run.level = "blas4")                                                   \
    WRONG(FFF | CMM | FF, CMM_ERROR_ISA, c->run.isa = "")                                                            \
    WRONG(FFF | CMM | FF, CMM_ERROR_ISA, c->run.isa = "sse2")                                                        \
    WRONG(FFF | CMM | FF, CMM_ERROR_ISA_UNUSABLE, c->run.isa = foreign_isa())                                        \
    WRONG(FFF | CMM, CMM_ERROR_ISA_UNUSABLE, c->run.isa = foreign_isa(), c->run.level = "native")                    \
    WRONG(FFF | CMM | FF, CMM_ERROR_METHOD, c->run.method = "run")                                                   \
    WRONG(FFF | CMM, CMM_ERROR_METHOD, c->run.method = "", c->run.level = "native")                                  \
    WRONG(FFF | CMM | FF, CMM_ERROR_METHOD, c->run.method = "walk", c->run.level = "naive")                          \
    WRONG(FFF | CMM | FF, CMM_ERROR_BLAS_MISSING, c->run.level = "blas1")                                            \
    WRONG(FFF | CMM | FF, CMM_ERROR_BLAS_MISSING, c->run.level = "blas2")                                            \
    WRONG(FFF | CMM | FF, CMM_ERROR_BLAS_MISSING, c->run.level = "blas3")                                            \
    WRONG(FFF | CMM | FF, CMM_ERROR_BLAS_SIZE, c->run.blas = &c->blas, c->blas.size = 0)                             \
    WRONG(FFF | CMM | FF, CMM_ERROR_BLAS_SIZE, c->run.blas = &c->blas, c->run.level = "naive", c->blas.size -= 8)    \
    WRONG(FFF | CMM | FF, CMM_ERROR_BLAS_INCOMPLETE, level(c, "blas1"), c->blas.sdot = NULL, c->blas.ddot = NULL)    \
    WRONG(FFF | CMM | FF, CMM_ERROR_BLAS_INCOMPLETE, level(c, "blas1"), c->blas.saxpy = NULL, c->blas.daxpy = NULL)  \
    WRONG(FFF | CMM | FF, CMM_ERROR_BLAS_INCOMPLETE, level(c, "blas2"), c->blas.sgemv = NULL, c->blas.dgemv = NULL)  \
    WRONG(FFF | CMM | FF, CMM_ERROR_BLAS_INCOMPLETE, level(c, "blas3"), c->blas.sgemm = NULL, c->blas.dgemm = NULL)  \
    WRONG(FFF | CMM | FF, CMM_ERROR_BATCH, c->batch = -1)                                                            \
    WRONG(FFF | CMM | FF, CMM_ERROR_BATCH, c->batch = INT64_MIN)                                                     \
    WRONG(FFF | CMM | FF, CMM_ERROR_BATCH_TOO_LARGE, c->batch = INT64_MAX)                                           \
    WRONG(FFF | CMM | FF, CMM_ERROR_BATCH_TOO_LARGE, c->batch = INT64_MAX / D_IN)                                    \
    WRONG(FFF | CMM | FF, CMM_ERROR_W_IN_NULL, c->fff.w_in = c->ff.w_in = NULL)                                      \
    WRONG(FFF | FF, CMM_ERROR_W_OUT_NULL, c->fff.w_out = c->ff.w_out = NULL)                                         \
    WRONG(FFF | CMM | FF, CMM_ERROR_X_NULL, c->x = NULL)                                                             \
    WRONG(FFF | FF, CMM_ERROR_Y_NULL, c->y = NULL)                                                                   \
    WRONG(CMM, CMM_ERROR_PATH_NULL, c->nodes = NULL, c->logits = NULL)                                               \
    WRONG(FFF | CMM | FF, CMM_ERROR_W_IN_ALIGN, c->fff.w_in = c->ff.w_in = off_by(memory.w_in, 1))                   \
    WRONG(FFF | CMM | FF, CMM_ERROR_BIAS_ALIGN, c->fff.bias = c->ff.bias = off_by(memory.bias, 2))                   \
    WRONG(FFF | FF, CMM_ERROR_W_OUT_ALIGN, c->fff.w_out = c->ff.w_out = off_by(memory.w_out, 3))                     \
    WRONG(FFF | CMM | FF, CMM_ERROR_X_ALIGN, c->x = off_by(memory.x, 1))                                             \
    WRONG(FFF | FF, CMM_ERROR_Y_ALIGN, c->y = off_by(memory.y, 2))                                                   \
    WRONG(FFF | CMM, CMM_ERROR_NODES_ALIGN, c->nodes = off_by(memory.nodes, 2))                                      \
    WRONG(FFF | CMM, CMM_ERROR_LOGITS_ALIGN, c->logits = off_by(memory.logits, 1))                                   \
    WRONG(FFF | FF, CMM_ERROR_Y_OVERLAP, c->y = memory.x)                                                            \
    WRONG(FFF | FF, CMM_ERROR_Y_OVERLAP, c->y = off_by(memory.x, BATCH * D_IN * element - element))                  \
    WRONG(FFF | FF, CMM_ERROR_Y_OVERLAP, c->y = off_by(memory.w_in, 8))                                              \
    WRONG(FFF | FF, CMM_ERROR_Y_OVERLAP, c->y = off_by(memory.bias, TREES * NODES * element - element))              \
    WRONG(FFF | FF, CMM_ERROR_Y_OVERLAP, c->y = memory.w_out)                                                        \
    WRONG(FFF | CMM, CMM_ERROR_NODES_OVERLAP, c->nodes = off_by(memory.x, 4))                                        \
    WRONG(FFF | CMM, CMM_ERROR_NODES_OVERLAP, c->nodes = (int32_t *)memory.w_in)                                     \
    WRONG(FFF | CMM, CMM_ERROR_NODES_OVERLAP, c->nodes = (int32_t *)memory.bias)                                     \
    WRONG(FFF, CMM_ERROR_NODES_OVERLAP, c->nodes = (int32_t *)memory.w_out)                                          \
    WRONG(FFF, CMM_ERROR_NODES_OVERLAP, c->nodes = off_by(memory.y, BATCH * D_OUT * element - 4))                    \
    WRONG(FFF | CMM, CMM_ERROR_LOGITS_OVERLAP, c->logits = memory.x)                                                 \
    WRONG(FFF | CMM, CMM_ERROR_LOGITS_OVERLAP, c->logits = memory.w_in)                                              \
    WRONG(FFF | CMM, CMM_ERROR_LOGITS_OVERLAP, c->logits = memory.bias)                                              \
    WRONG(FFF, CMM_ERROR_LOGITS_OVERLAP, c->logits = memory.w_out)                                                   \
    WRONG(FFF, CMM_ERROR_LOGITS_OVERLAP, c->logits = memory.y)                                                       \
    WRONG(FFF | CMM, CMM_ERROR_LOGITS_OVERLAP, c->logits = off_by(memory.nodes, 8))                                  \
    WRONG(FFF | CMM, CMM_ERROR_MEMORY, c->run.level = "native", refuse_memory = 1)                                   \
    WRONG(FFF | FF, CMM_ERROR_MEMORY, level(c, "blas2"), refuse_memory = 1)

static int element; /* bytes of one, of the dtype under test */

static void level(call *c, const char *name)
{
    c->run.level = name;
    c->run.blas = &c->blas;
}

static const char *foreign_isa(void)
{
#if defined(__aarch64__)
    return "avx2";
#else
    return "neon";
#endif
}

#define WRONG(functions, status, ...) {functions, status, #__VA_ARGS__},
static const struct {
    int functions;
    cmm_status status;
    const char *what;
} wrongs[] = {WRONG_CALLS(WRONG)};
#undef WRONG

enum { WRONGS = sizeof wrongs / sizeof *wrongs };

static void make_wrong(call *c, int which)
{
    int at = 0;
#define WRONG(functions, status, ...)                                                                                \
    if (at++ == which)                                                                                               \
        (void)(__VA_ARGS__);
    WRONG_CALLS(WRONG)
#undef WRONG
}

static cmm_status make_call(const call *c, int function)
{
    return function == FFF
               ? cmm_fff_forward(c->fff_pointer, c->run_pointer, c->batch, c->x, c->y, c->nodes, c->logits)
           : function == CMM ? cmm_cmm_forward(c->fff_pointer, c->run_pointer, c->batch, c->x, c->nodes, c->logits)
                             : cmm_ff_forward(c->ff_pointer, c->run_pointer, c->batch, c->x, c->y);
}

static void check_call(int32_t dtype, int which, int function)
{
    static struct memory before;
    call c = good_call(dtype);
    c.fff_pointer = &c.fff;
    c.ff_pointer = &c.ff;
    c.run_pointer = &c.run;
    element = (int)element_size(dtype);
    memset(&memory, CANARY, sizeof memory);
    memcpy(&before, &memory, sizeof memory);
    make_wrong(&c, which);
    const cmm_status status = make_call(&c, function);
    refuse_memory = 0;
    const char *const name = function == FFF   ? "cmm_fff_forward"
                             : function == CMM ? "cmm_cmm_forward"
                                               : "cmm_ff_forward";
    CHECK(status == wrongs[which].status, "%s, f%d, %s: %s, not %s", name, element * 8, wrongs[which].what,
          cmm_status_name(status), cmm_status_name(wrongs[which].status));
    CHECK(memcmp(&before, &memory, sizeof memory) == 0, "%s, f%d, %s: memory was written", name, element * 8,
          wrongs[which].what);
}

/* The same calls, not made wrong, are good: otherwise the above would prove nothing. */
static void check_good(int32_t dtype)
{
    for (int function = FFF; function <= FF; function *= 2) {
        call c = good_call(dtype);
        c.fff_pointer = &c.fff;
        c.ff_pointer = &c.ff;
        c.run_pointer = &c.run;
        memset(&memory, 0, sizeof memory);
        CHECK(make_call(&c, function) == CMM_OK, "function %d, f%d", function, dtype);
        c.run.level = "auto";
        CHECK(make_call(&c, function) == CMM_OK, "function %d, f%d", function, dtype);
        c.run_pointer = NULL;
        CHECK(make_call(&c, function) == CMM_OK, "function %d, f%d", function, dtype);
        /* Arrays may touch: y begins where x ends. */
        c.y = off_by(memory.x, BATCH * D_IN * (int)element_size(dtype));
        CHECK(make_call(&c, function) == CMM_OK, "function %d, f%d", function, dtype);
    }
}

static void check_kernels(void)
{
    cmm_kernel_info info = {.size = sizeof info}, untouched;
    const int32_t count = cmm_kernel_count();
    CHECK(cmm_kernel_get(0, NULL) == CMM_ERROR_INFO_NULL, "info NULL");
    memset(&info, CANARY, sizeof info);
    memcpy(&untouched, &info, sizeof info);
    CHECK(cmm_kernel_get(0, &info) == CMM_ERROR_INFO_SIZE, "info size");
    info.size = untouched.size = sizeof info;
    CHECK(cmm_kernel_get(-1, &info) == CMM_ERROR_INDEX, "index -1");
    CHECK(cmm_kernel_get(count, &info) == CMM_ERROR_INDEX, "index %d", count);
    CHECK(memcmp(&info, &untouched, sizeof info) == 0, "info was written");
    for (int32_t i = 0; i < count; i++) {
        CHECK(cmm_kernel_get(i, &info) == CMM_OK, "kernel %d", i);
        CHECK(strstr("fff ff act", info.operation) && info.name[0] && info.isa[0], "kernel %d", i);
        CHECK((info.why[0] == 0) == info.usable, "%s: %d \"%s\"", info.name, info.usable, info.why);
        CHECK(info.usable || strcmp(info.isa, "any") != 0, "%s: %s", info.name, info.why);
        CHECK(info.usable || strcmp(info.isa, "scalar") != 0, "%s: %s", info.name, info.why);
        CHECK(!info.usable || strcmp(info.isa, foreign_isa()) != 0, "%s is usable", info.name);
    }
}

/* Packing: its own wrong arguments, and nothing written by any of them. */
static void check_pack(int32_t dtype)
{
    static _Alignas(CMM_ALIGNMENT) char packed_memory[1 << 14], before[1 << 14];
    static struct memory memory_before;
    const cmm_fff good = good_call(dtype).fff;
    cmm_fff packed, untouched;
    int64_t bytes = -77;
    memset(&packed, CANARY, sizeof packed);
    memset(packed_memory, CANARY, sizeof packed_memory);
    memset(&memory, CANARY, sizeof memory);
    memcpy(&untouched, &packed, sizeof packed);
    memcpy(before, packed_memory, sizeof before);
    memcpy(&memory_before, &memory, sizeof memory);

    cmm_fff wrong = good;
    CHECK(cmm_fff_pack_size(NULL, &bytes) == CMM_ERROR_LAYER_NULL, "layer NULL");
    CHECK(cmm_fff_pack_size(&good, NULL) == CMM_ERROR_BYTES_NULL, "bytes NULL");
    wrong.depth = -1;
    CHECK(cmm_fff_pack_size(&wrong, &bytes) == CMM_ERROR_DEPTH, "depth");
    wrong = good;
    wrong.trees = INT64_MAX / NODES / D_IN / (int64_t)element_size(dtype);
    CHECK(cmm_fff_pack_size(&wrong, &bytes) == CMM_ERROR_LAYER_TOO_LARGE, "padding makes it too large");
    CHECK(bytes == -77, "bytes was written");
    CHECK(cmm_fff_pack_size(&good, &bytes) == CMM_OK && bytes > 0 && bytes < (int64_t)sizeof packed_memory, "bytes");

    CHECK(cmm_fff_pack(NULL, packed_memory, bytes, &packed) == CMM_ERROR_LAYER_NULL, "layer NULL");
    wrong = good;
    wrong.w_out = NULL;
    CHECK(cmm_fff_pack(&wrong, packed_memory, bytes, &packed) == CMM_ERROR_W_OUT_NULL, "w_out NULL");
    wrong = good;
    wrong.w_in = off_by(good.w_in, 1);
    CHECK(cmm_fff_pack(&wrong, packed_memory, bytes, &packed) == CMM_ERROR_W_IN_ALIGN, "w_in misaligned");
    CHECK(cmm_fff_pack(&good, packed_memory, bytes, NULL) == CMM_ERROR_PACKED_NULL, "packed NULL");
    CHECK(cmm_fff_pack(&good, NULL, bytes, &packed) == CMM_ERROR_MEMORY_NULL, "memory NULL");
    CHECK(cmm_fff_pack(&good, packed_memory + 8, bytes, &packed) == CMM_ERROR_MEMORY_ALIGN, "memory misaligned");
    CHECK(cmm_fff_pack(&good, packed_memory, bytes - 1, &packed) == CMM_ERROR_MEMORY_SIZE, "memory too small");
    CHECK(cmm_fff_pack(&good, packed_memory, -1, &packed) == CMM_ERROR_MEMORY_SIZE, "memory too small");
    wrong = good;
    wrong.bias = packed_memory + bytes - 8;
    CHECK(cmm_fff_pack(&wrong, packed_memory, bytes, &packed) == CMM_ERROR_MEMORY_OVERLAP, "memory overlaps bias");
    CHECK(memcmp(&packed, &untouched, sizeof packed) == 0, "packed was written");
    CHECK(memcmp(packed_memory, before, sizeof before) == 0, "memory was written");
    CHECK(memcmp(&memory, &memory_before, sizeof memory) == 0, "the layer was written");

    CHECK(cmm_fff_pack(&good, packed_memory, bytes, &packed) == CMM_OK, "good");
    CHECK(memcmp(packed_memory + bytes, before, sizeof before - (size_t)bytes) == 0, "written beyond its bytes");
}

/* The functions that do not compute. */
static void check_others(void)
{
    cmm_level info = {.size = sizeof info}, untouched;
    const int32_t count = cmm_level_count();
    CHECK(count == 5, "%d levels", count);
    CHECK(cmm_level_get(0, NULL, NULL) == CMM_ERROR_INFO_NULL, "info NULL");
    memset(&info, CANARY, sizeof info);
    memcpy(&untouched, &info, sizeof info);
    CHECK(cmm_level_get(0, NULL, &info) == CMM_ERROR_INFO_SIZE, "info size");
    info.size = untouched.size = sizeof info;
    CHECK(cmm_level_get(-1, NULL, &info) == CMM_ERROR_INDEX, "index -1");
    CHECK(cmm_level_get(count, NULL, &info) == CMM_ERROR_INDEX, "index %d", count);
    CHECK(cmm_level_get(0, &(cmm_run){.size = 1}, &info) == CMM_ERROR_RUN_SIZE, "run size");
    CHECK(cmm_level_get(0, &(cmm_run){.size = sizeof(cmm_run), .isa = "mmx"}, &info) == CMM_ERROR_ISA, "isa");
    CHECK(memcmp(&info, &untouched, sizeof info) == 0, "info was written");

    static const char *const names[] = {"naive", "blas1", "blas2", "blas3", "native"};
    for (int32_t i = 0; i < count; i++) {
        CHECK(cmm_level_get(i, NULL, &info) == CMM_OK && strcmp(info.name, names[i]) == 0, "level %d is %s", i,
              info.name);
        const int blas = strncmp(info.name, "blas", 4) == 0;
        CHECK(info.usable == !blas && (info.why[0] == 0) == !blas && info.isa, "%s: %d \"%s\"", info.name,
              info.usable, info.why);
        const cmm_run with_blas = {.size = sizeof with_blas, .blas = &reference_blas};
        CHECK(cmm_level_get(i, &with_blas, &info) == CMM_OK && info.usable && !info.why[0], "%s: \"%s\"", info.name,
              info.why);
    }
    const cmm_run foreign = {.size = sizeof foreign, .isa = foreign_isa()};
    CHECK(cmm_level_get(4, &foreign, &info) == CMM_OK && !info.usable && strstr(info.why, " CPUs"), "why: %s",
          info.why);
    check_kernels();

    cmm_blas blas, before;
    memset(&blas, CANARY, sizeof blas);
    memcpy(&before, &blas, sizeof blas);
    CHECK(cmm_blas_load("libcmm-no-such-file.so", NULL) == CMM_ERROR_BLAS_NULL, "blas NULL");
    CHECK(cmm_blas_load(NULL, &blas) == CMM_ERROR_BLAS_FILE_NULL, "file NULL");
    CHECK(cmm_blas_load("libcmm-no-such-file.so", &blas) == CMM_ERROR_BLAS_FILE, "no such file");
    CHECK(cmm_blas_load("libc.so.6", &blas) == CMM_ERROR_BLAS_SYMBOLS, "a library that is no BLAS");
    CHECK(cmm_blas_linked(NULL) == CMM_ERROR_BLAS_NULL, "blas NULL");
    CHECK(cmm_blas_linked(&blas) == CMM_ERROR_BLAS_MISSING, "none is linked");
    CHECK(memcmp(&blas, &before, sizeof blas) == 0, "blas was written");
}

int main(void)
{
    int calls = 0, statuses = 0;
    for (int which = 0; which < WRONGS; which++)
        for (int function = FFF; function <= FF; function *= 2) {
            if (!(wrongs[which].functions & function))
                continue;
            calls++;
            check_call(CMM_F32, which, function);
            check_call(CMM_F64, which, function);
        }
    for (int which = 0; which < WRONGS; which++)
        statuses += which == 0 || wrongs[which].status != wrongs[which - 1].status;
    printf("%d kinds of wrong call with %d statuses; %d with the functions they are tried on\n", WRONGS, statuses,
           calls);
    CHECK(statuses >= 40, "%d statuses", statuses);
    check_good(CMM_F32);
    check_good(CMM_F64);
    check_pack(CMM_F32);
    check_pack(CMM_F64);
    check_others();
    return check_report();
}
