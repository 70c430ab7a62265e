/* Structs grow from version to version, by fields at their end; a program and a library of different versions meet in
 * the size that each struct starts with. Every function takes every struct it reads
 *     as short as version 0.1.0 had it: the fields that came later are 0, and nothing behind it is read or written;
 *     longer than this version knows it, where the rest is 0: it asks for nothing unknown;
 * and refuses every other size with the struct's status, before anything is written. */
#include "check.h"
#include "example.h"
#include "reference_blas.h"

enum { LONGER = 64, ROOM = 512, CANARY = 0xA5 };

/* A struct with room for one of a later version, at the end of which everything is CANARY. */
typedef union {
    uint32_t size;
    cmm_fff fff;
    cmm_ff ff;
    cmm_run run;
    cmm_blas blas;
    cmm_level_info level;
    cmm_kernel_info kernel;
    cmm_pack_options options;
    cmm_gradients gradients;
    unsigned char bytes[ROOM];
} any;

/* The structs of a call, of which one is under test. */
typedef struct {
    any fff, ff, run, blas, level, kernel, options, packed, gradients;
} structs;

static example e;
static float dense_y[64];
static _Alignas(CMM_ALIGNMENT) char packed_memory[1 << 14];
static int64_t pack_bytes;
static const cmm_run backward_run = {.size = sizeof(cmm_run), .threads = 1};
static int32_t backward_nodes[64];
static float backward_logits[64], dx[64];

static cmm_status call_fff(structs *s)
{
    example_forget(&e);
    return cmm_fff_forward(&s->fff.fff, &s->run.run, e.batch, e.x, e.y, e.nodes, e.logits);
}

static cmm_status call_cmm(structs *s)
{
    return cmm_cmm_forward(&s->fff.fff, &s->run.run, e.batch, e.x, e.nodes, NULL);
}

static cmm_status call_ff(structs *s)
{
    return cmm_ff_forward(&s->ff.ff, &s->run.run, e.batch, e.x, dense_y);
}

/* The nodes and logits are those of the example's last run; of run, `isa` and `threads` alone are read. */
static cmm_status call_backward(structs *s)
{
    return cmm_fff_backward(&s->fff.fff, &backward_run, e.batch, e.x, backward_nodes, backward_logits, dense_y,
                            &s->gradients.gradients);
}

static cmm_status call_backward_workspace(structs *s)
{
    return cmm_fff_backward_workspace(&s->fff.fff, &backward_run, e.batch, &s->gradients.gradients, &pack_bytes);
}

static cmm_status call_pack_size(structs *s)
{
    return cmm_fff_pack_size(&s->fff.fff, &pack_bytes);
}

static cmm_status call_pack(structs *s)
{
    return cmm_fff_pack(&s->fff.fff, packed_memory, sizeof packed_memory, &s->packed.fff);
}

static cmm_status call_pack_size_as(structs *s)
{
    return cmm_fff_pack_size_as(&s->fff.fff, &s->options.options, &pack_bytes);
}

static cmm_status call_pack_as(structs *s)
{
    return cmm_fff_pack_as(&s->fff.fff, &s->options.options, packed_memory, sizeof packed_memory, &s->packed.fff);
}

static cmm_status call_blas_check(structs *s)
{
    return cmm_blas_check(&s->blas.blas);
}

static cmm_status call_level(structs *s)
{
    return cmm_level_get(0, &s->run.run, &s->level.level);
}

static cmm_status call_kernel(structs *s)
{
    return cmm_kernel_get(0, &s->kernel.kernel);
}

#define OF(field, type) offsetof(structs, field), sizeof(type)
static const struct {
    const char *what;
    cmm_status (*call)(structs *s);
    size_t offset, size; /* of the struct under test, today */
    size_t oldest;       /* its size in 0.1.0, on machines of 64 bits */
    cmm_status status;
} tests[] = {
    {"cmm_fff_forward(layer)", call_fff, OF(fff, cmm_fff), 88, CMM_ERROR_LAYER_SIZE},
    {"cmm_cmm_forward(layer)", call_cmm, OF(fff, cmm_fff), 88, CMM_ERROR_LAYER_SIZE},
    {"cmm_fff_pack_size(layer)", call_pack_size, OF(fff, cmm_fff), 88, CMM_ERROR_LAYER_SIZE},
    {"cmm_fff_pack(layer)", call_pack, OF(fff, cmm_fff), 88, CMM_ERROR_LAYER_SIZE},
    {"cmm_fff_pack_size_as(options)", call_pack_size_as, OF(options, cmm_pack_options), 8, CMM_ERROR_OPTIONS_SIZE},
    {"cmm_fff_pack_as(options)", call_pack_as, OF(options, cmm_pack_options), 8, CMM_ERROR_OPTIONS_SIZE},
    {"cmm_ff_forward(layer)", call_ff, OF(ff, cmm_ff), 80, CMM_ERROR_LAYER_SIZE},
    {"cmm_fff_forward(run)", call_fff, OF(run, cmm_run), 40, CMM_ERROR_RUN_SIZE},
    {"cmm_cmm_forward(run)", call_cmm, OF(run, cmm_run), 40, CMM_ERROR_RUN_SIZE},
    {"cmm_ff_forward(run)", call_ff, OF(run, cmm_run), 40, CMM_ERROR_RUN_SIZE},
    {"cmm_level_get(run)", call_level, OF(run, cmm_run), 40, CMM_ERROR_RUN_SIZE},
    {"cmm_fff_forward(run->blas)", call_fff, OF(blas, cmm_blas), 248, CMM_ERROR_BLAS_SIZE},
    {"cmm_cmm_forward(run->blas)", call_cmm, OF(blas, cmm_blas), 248, CMM_ERROR_BLAS_SIZE},
    {"cmm_ff_forward(run->blas)", call_ff, OF(blas, cmm_blas), 248, CMM_ERROR_BLAS_SIZE},
    {"cmm_level_get(run->blas)", call_level, OF(blas, cmm_blas), 248, CMM_ERROR_BLAS_SIZE},
    {"cmm_blas_check", call_blas_check, OF(blas, cmm_blas), 248, CMM_ERROR_BLAS_SIZE},
    {"cmm_fff_backward(layer)", call_backward, OF(fff, cmm_fff), 88, CMM_ERROR_LAYER_SIZE},
    {"cmm_fff_backward_workspace(layer)", call_backward_workspace, OF(fff, cmm_fff), 88, CMM_ERROR_LAYER_SIZE},
    {"cmm_fff_backward(gradients)", call_backward, OF(gradients, cmm_gradients), 72, CMM_ERROR_GRADIENTS_SIZE},
    {"cmm_fff_backward_workspace(gradients)", call_backward_workspace, OF(gradients, cmm_gradients), 72,
     CMM_ERROR_GRADIENTS_SIZE},
    {"cmm_level_get(info)", call_level, OF(level, cmm_level_info), 32, CMM_ERROR_INFO_SIZE},
    {"cmm_kernel_get(info)", call_kernel, OF(kernel, cmm_kernel_info), 56, CMM_ERROR_INFO_SIZE},
};

static void fill(structs *s)
{
    memset(s, CANARY, sizeof *s);
    s->fff.fff = e.layer;
    s->ff.ff = (cmm_ff){.size = sizeof(cmm_ff), .dtype = CMM_F32, .neurons = e.rows, .d_in = e.layer.d_in,
                        .d_out = e.layer.d_out, .w_in = e.w_in, .w_out = e.w_out};
    s->blas.blas = reference_blas;
    s->run.run = (cmm_run){.size = sizeof(cmm_run), .threads = 1, .level = "blas1", .blas = &s->blas.blas};
    s->options.options = (cmm_pack_options){.size = sizeof(cmm_pack_options)};
    s->gradients.gradients = (cmm_gradients){.size = sizeof(cmm_gradients), .dx = dx};
    s->level.level = (cmm_level_info){.size = sizeof(cmm_level_info)};
    s->kernel.kernel = (cmm_kernel_info){.size = sizeof(cmm_kernel_info)};
}

/* A call with the struct `size` bytes long; behind today's fields it goes on with zeros, but for `tail`. Behind that
 * nothing may be read, so that garbage there makes no difference, or written. */
static cmm_status call_with(size_t test, size_t size, unsigned char tail, structs *s)
{
    fill(s);
    any *const a = (any *)((char *)s + tests[test].offset);
    if (size > tests[test].size && size <= ROOM) {
        memset(a->bytes + tests[test].size, 0, size - tests[test].size);
        a->bytes[size - 1] = tail;
    } else if (size < tests[test].size && size >= sizeof a->size) {
        memset(a->bytes + size, CANARY, ROOM - size);
    }
    a->size = (uint32_t)size;
    const structs before = *s;
    const cmm_status status = tests[test].call(s);
    const any *const was = (const any *)((const char *)&before + tests[test].offset);
    CHECK(a->size == size, "%s, size %zu: the size was changed", tests[test].what, size);
    if (status != CMM_OK)
        CHECK(memcmp(s, &before, sizeof before) == 0, "%s, size %zu: written", tests[test].what, size);
    const size_t end = size < ROOM ? size : ROOM;
    CHECK(memcmp(a->bytes + end, was->bytes + end, ROOM - end) == 0, "%s, size %zu: written behind it",
          tests[test].what, size);
    return status;
}

static void check_struct(size_t test)
{
    const char *const what = tests[test].what;
    const size_t today = tests[test].size, oldest = sizeof(void *) == 8 ? tests[test].oldest : today;
    structs s;
    CHECK(oldest <= today, "%s: %zu bytes are fewer than version 0.1.0 had", what, today);
    for (size_t size = oldest; size <= today + LONGER; size += sizeof(void *)) {
        const cmm_status status = call_with(test, size, 0, &s);
        CHECK(status == CMM_OK, "%s, size %zu: %s", what, size, cmm_status_name(status));
        if (size > today)
            CHECK(call_with(test, size, 1, &s) == tests[test].status, "%s, size %zu, the last byte 1", what, size);
    }
    /* Structs are as long as pointers ask for: on machines of 32 bits, of which no size in 0.1.0 is recorded, 4 bytes. */
    const size_t below = sizeof(void *) == 8 ? oldest - sizeof(void *) : 4, above = today + sizeof(void *) / 2;
    const size_t wrong[] = {0, 4, below, oldest - 1, oldest + 1, above, 1 << 13, UINT32_MAX - 7, UINT32_MAX};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        const cmm_status status = call_with(test, wrong[i], 0, &s);
        CHECK(status == tests[test].status, "%s, size %zu: %s", what, wrong[i], cmm_status_name(status));
    }
}

/* A layer of another version gives the same results, packed or not; what is packed is of that version, too. */
static void check_results(size_t size)
{
    structs s;
    float y[64];
    const size_t bytes = (size_t)(e.batch * e.layer.d_out) * sizeof *y;
    CHECK(call_with(0, sizeof(cmm_fff), 0, &s) == CMM_OK, "today's");
    memcpy(y, e.y, bytes);
    CHECK(call_with(0, size, 0, &s) == CMM_OK && memcmp(y, e.y, bytes) == 0, "size %zu", size);
    CHECK(call_with(3, size, 0, &s) == CMM_OK && s.packed.size == size, "size %zu packed", size);
    CHECK(s.packed.bytes[size] == CANARY, "size %zu: packed was written behind its end", size);
    s.fff = s.packed;
    s.run.run.level = "naive";
    CHECK(call_fff(&s) == CMM_OK, "size %zu packed", size);
    memcpy(y, e.y, bytes);
    s.fff.fff = e.layer;
    CHECK(call_fff(&s) == CMM_OK && memcmp(y, e.y, bytes) == 0, "size %zu packed", size);
}

int main(void)
{
    e = example_new((shape){.depth = 1, .trees = 2, .d_in = 5, .d_out = 4, .batch = 3}, 1);
    CHECK(example_run(&e, NULL) == CMM_OK, "the example");
    memcpy(backward_nodes, e.nodes, (size_t)(e.batch * e.steps) * sizeof *e.nodes);
    memcpy(backward_logits, e.logits, (size_t)(e.batch * e.steps) * sizeof(float));
    for (size_t test = 0; test < sizeof tests / sizeof *tests; test++)
        check_struct(test);
    check_results(sizeof(void *) == 8 ? 88 : sizeof(cmm_fff));
    check_results(sizeof(cmm_fff) + 8);
    /* A size that no struct will ever have was not set, and all that lies behind is not looked at. */
    static _Alignas(cmm_fff) char large[1 << 13];
    memcpy(large, &e.layer, sizeof e.layer);
    ((cmm_fff *)(void *)large)->size = sizeof large;
    CHECK(cmm_fff_pack_size((cmm_fff *)(void *)large, &pack_bytes) == CMM_ERROR_LAYER_SIZE, "%zu", sizeof large);
    /* A descriptor of 0.1.0 cannot say that its rows are narrow. */
    structs s;
    fill(&s);
    s.options.options.weight_dtype = CMM_BF16;
    CHECK(call_pack_as(&s) == CMM_OK && s.packed.fff.weight_dtype == CMM_BF16, "today's");
    s.fff.size = 88;
    CHECK(call_pack_as(&s) == (sizeof(void *) == 8 ? CMM_ERROR_LAYER_SIZE : CMM_OK), "0.1.0's");
    example_free(&e);
    return check_report();
}
