/* No kernel touches a byte outside its arrays: every array lies between two pages that no one may touch, once with
 * its last byte at the upper one, once with its first byte at the lower one.
 *
 *     guard_pages few    fewer shapes, for an emulator */
#define _GNU_SOURCE
#include "guard.h"
#include "oracle.h"
#include "small_caches.h"
#include "ways.h"

static int few;

/* e, moved between the guard pages. The rows' padding ends with the last row, so that reading it would fault. */
static example moved(const example *e, int at_end)
{
    example m = *e;
    const cmm_fff *const l = &e->layer;
    const size_t size = element_size(l->dtype);
    const int64_t w_in = span(e->rows, l->d_in, l->ld_in ? l->ld_in : l->d_in);
    const int64_t w_out = span(e->rows, l->d_out, l->ld_out ? l->ld_out : l->d_out);
    m.w_in = guarded(0, w_in, size, at_end);
    m.w_out = guarded(1, w_out, size, at_end);
    m.x = guarded(2, e->batch * l->d_in, size, at_end);
    m.y = guarded(3, e->batch * l->d_out, size, at_end);
    m.nodes = guarded(4, e->batch * e->steps, sizeof *e->nodes, at_end);
    m.logits = guarded(5, e->batch * e->steps, size, at_end);
    memcpy(m.w_in, e->w_in, (size_t)w_in * size);
    memcpy(m.w_out, e->w_out, (size_t)w_out * size);
    memcpy(m.x, e->x, (size_t)(e->batch * l->d_in) * size);
    if (e->bias) {
        m.bias = guarded(6, e->rows, size, at_end);
        memcpy(m.bias, e->bias, (size_t)e->rows * size);
    }
    m.layer.w_in = m.w_in;
    m.layer.w_out = m.w_out;
    m.layer.bias = m.bias;
    return m;
}

static void check_shape(shape s)
{
    example e = example_new(s, (uint64_t)(s.d_in * 1000 + s.d_out));
    for (int at_end = 0; at_end < 2; at_end++) {
        example m = moved(&e, at_end);
        for (int i = 0; i < way_count; i++) {
            (void)snprintf(now, sizeof now, "%s, f%d, %lldx%d, %lld to %lld, batch %lld, %s end", ways[i].name,
                           s.dtype ? 64 : 32, (long long)s.trees, s.depth, (long long)s.d_in, (long long)s.d_out,
                           (long long)s.batch, at_end ? "upper" : "lower");
            CHECK(example_run(&m, &ways[i].run) == CMM_OK, "%s", now);
            if (i == at_end)
                oracle_check(&m, 1, now);
            CHECK(cmm_cmm_forward(&m.layer, &ways[i].run, m.batch, m.x, m.nodes, NULL) == CMM_OK, "%s", now);
            /* As a dense layer: as many neurons as there are rows, where that is not too much work. */
            if (m.rows > 300)
                continue;
            const cmm_ff ff = {.size = sizeof ff,
                               .dtype = s.dtype,
                               .neurons = m.rows,
                               .d_in = s.d_in,
                               .d_out = s.d_out,
                               .w_in = m.w_in,
                               .bias = m.bias,
                               .w_out = m.w_out,
                               .ld_in = m.layer.ld_in,
                               .ld_out = m.layer.ld_out};
            const size_t length = strlen(now);
            (void)snprintf(now + length, sizeof now - length, ", dense");
            CHECK(cmm_ff_forward(&ff, &ways[i].run, m.batch, m.x, m.y) == CMM_OK, "%s", now);
        }
    }
    example_free(&e);
}

/* The packed layer and nothing else: its memory lies between the pages, and its results are those of the layer. */
static void check_packed(shape s)
{
    example e = example_new(s, 3);
    int64_t bytes = 0;
    cmm_fff packed;
    CHECK(cmm_fff_pack_size(&e.layer, &bytes) == CMM_OK, "pack size");
    const size_t y_bytes = (size_t)(e.batch * s.d_out) * element_size(s.dtype);
    void *const y = allocate(1, y_bytes);
    for (int at_end = 0; at_end < 2; at_end++) {
        /* Memory to pack into must be aligned: its end may be up to CMM_ALIGNMENT - 1 bytes below the page. */
        const int64_t room = at_end ? (bytes + CMM_ALIGNMENT - 1) / CMM_ALIGNMENT * CMM_ALIGNMENT : bytes;
        (void)snprintf(now, sizeof now, "cmm_fff_pack, %lld to %lld", (long long)s.d_in, (long long)s.d_out);
        void *const memory = guarded(0, room, 1, at_end);
        CHECK(cmm_fff_pack(&e.layer, memory, bytes, &packed) == CMM_OK, "%s", now);
        for (int i = 0; i < way_count; i++) {
            (void)snprintf(now, sizeof now, "%s, packed, %lld to %lld", ways[i].name, (long long)s.d_in,
                           (long long)s.d_out);
            CHECK(example_run(&e, &ways[i].run) == CMM_OK, "%s", now);
            memset(y, 0xff, y_bytes);
            CHECK(cmm_fff_forward(&packed, &ways[i].run, e.batch, e.x, y, NULL, NULL) == CMM_OK, "%s", now);
            CHECK(memcmp(y, e.y, y_bytes) == 0, "%s: other bits than without packing", now);
        }
    }
    free(y);
    example_free(&e);
}

/* In such an emulator guard pages say nothing about the instruction set with masked loads; the others remain. */
static void ways_without_masked_loads(void)
{
    if (!reads_masked_elements())
        return;
    int kept = 0;
    for (int i = 0; i < way_count; i++)
        if (strcmp(ways[i].run.isa, "avx2") != 0)
            ways[kept++] = ways[i];
    printf("this emulator reads elements that a masked load should not touch: %d ways with AVX2 are left out\n",
           way_count - kept);
    way_count = kept;
}

int main(int argc, char **argv)
{
    few = argc > 1 && strcmp(argv[1], "few") == 0;
    make_buffers((size_t)1 << 22);
    ways_find();
    if (few)
        ways_without_masked_loads();
    for (int64_t width = 1; width <= 70; width += few ? 5 : 1)
        for (int32_t dtype = CMM_F32; dtype <= CMM_F64; dtype++)
            for (int32_t padding = 0; padding <= 1; padding++) {
                const shape s = {.dtype = dtype, .depth = padding ? 3 : 4, .trees = padding ? 5 : 1, .d_in = width,
                                 .d_out = padding ? width : 71 - width, .batch = 1 + width % 9, .bias = padding,
                                 .padding = padding};
                check_shape(s);
                if (width % 3 == 1)
                    check_packed(s);
            }
    /* Wide, where kernels have other loops; deep, and with groups of many sizes; one neuron for each tree. */
    for (int64_t width = 71; width <= 300; width += few ? 92 : 23)
        check_shape((shape){.depth = 2, .trees = 2, .d_in = width, .d_out = 371 - width, .batch = 5, .bias = 1});
    check_shape((shape){.depth = 11, .trees = 1, .d_in = 35, .d_out = 37, .batch = 300, .bias = 1});
    check_shape((shape){.depth = 0, .trees = 100, .d_in = 33, .d_out = 31, .batch = 70, .bias = 1});
    /* In two phases; and past the caches where the rows of y are whole lines of a cache, else not. */
    make_caches_small();
    for (int32_t dtype = CMM_F32; dtype <= CMM_F64; dtype++)
        for (int64_t d_out = 16; d_out <= 128; d_out += few ? 24 : 8)
            check_shape((shape){.dtype = dtype, .depth = 9, .trees = 1, .d_in = 19, .d_out = d_out, .batch = 290});
    return check_report();
}
