/* naive and native: the bits of a token's result depend on its layer and itself alone. Not on the batch, the place in
 * it, the threads, the instruction set or the algorithm; and not on the machine, which a stored hash holds.
 *
 *     same_bits        all of it
 *     same_bits few    smaller layers, for an emulator
 *     same_bits hash   the hash alone, which takes least time in an emulator */
#include "check.h"
#include "example.h"
#include "small_caches.h"
#include "system.h"
#include "ways.h"

static int few;

static size_t y_bytes(const example *e)
{
    return (size_t)(e->batch * e->layer.d_out) * element_size(e->layer.dtype);
}

static size_t path_bytes(const example *e, size_t element)
{
    return (size_t)(e->batch * e->steps) * element;
}

/* Room for the results of another run, to be compared with e's. y starts at a cache line, as kernels like it best. */
static example results_like(const example *e)
{
    example r = *e;
    r.y = aligned_new(y_bytes(e));
    if (!r.y) {
        printf("out of memory\n");
        exit(2);
    }
    r.nodes = allocate(1, path_bytes(e, sizeof *e->nodes));
    r.logits = allocate(1, path_bytes(e, element_size(e->layer.dtype)));
    example_forget(&r);
    return r;
}

static void results_free(example *r)
{
    aligned_delete(r->y);
    free(r->nodes);
    free(r->logits);
}

static void compare(const example *a, const example *b, const char *way_name, const char *what, long long which)
{
    const size_t size = element_size(a->layer.dtype);
    CHECK(memcmp(a->y, b->y, y_bytes(a)) == 0, "%s: y, %s %lld", way_name, what, which);
    CHECK(memcmp(a->nodes, b->nodes, path_bytes(a, sizeof *a->nodes)) == 0, "%s: nodes, %s %lld", way_name, what,
          which);
    CHECK(memcmp(a->logits, b->logits, path_bytes(a, size)) == 0, "%s: logits, %s %lld", way_name, what, which);
}

static char *at(void *array, int64_t elements, size_t size)
{
    return (char *)array + (size_t)elements * size;
}

/* Tokens first .. first + count - 1 of e, in a call of their own, into the same place of r. */
static void run_part(const example *e, example *r, const cmm_run *run, int64_t first, int64_t count)
{
    const size_t size = element_size(e->layer.dtype);
    const cmm_status status =
        cmm_fff_forward(&e->layer, run, count, at(e->x, first * e->layer.d_in, size),
                        at(r->y, first * e->layer.d_out, size), r->nodes + first * e->steps,
                        at(r->logits, first * e->steps, size));
    CHECK(status == CMM_OK, "%s", cmm_status_name(status));
}

static void check_splits(example *e, const way *w)
{
    static const int64_t counts[] = {1, 2, 3, 5, 127, 300};
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
        example r = results_like(e);
        for (int64_t first = 0; first < e->batch; first += counts[c])
            run_part(e, &r, &w->run, first, counts[c] < e->batch - first ? counts[c] : e->batch - first);
        compare(e, &r, w->name, "batches of", counts[c]);
        results_free(&r);
    }
}

/* The tokens in another order: each result moves with its token. */
static void check_places(example *e, const way *w)
{
    const size_t size = element_size(e->layer.dtype), x_size = (size_t)e->layer.d_in * size;
    const size_t y_size = (size_t)e->layer.d_out * size;
    int64_t step = e->batch / 3 * 2 + 1; /* coprime to the batch: token i goes to place i * step */
    while (e->batch % step == 0 || (step % 7 == 0 && e->batch % 7 == 0))
        step++;
    example r = results_like(e);
    r.x = allocate(e->batch, x_size);
    char *const taken = allocate(e->batch, 1);
    for (int64_t t = 0; t < e->batch; t++)
        taken[t] = 0;
    for (int64_t t = 0; t < e->batch; t++) {
        taken[t * step % e->batch] = 1;
        memcpy(at(r.x, t * step % e->batch, x_size), at(e->x, t, x_size), x_size);
    }
    CHECK(memchr(taken, 0, (size_t)e->batch) == NULL, "the test's permutation is none");
    CHECK(example_run(&r, &w->run) == CMM_OK, "%s", w->name);
    for (int64_t t = 0; t < e->batch; t++) {
        const int64_t place = t * step % e->batch;
        CHECK(memcmp(at(r.y, place, y_size), at(e->y, t, y_size), y_size) == 0, "%s: y of token %lld at place %lld",
              w->name, (long long)t, (long long)place);
        CHECK(memcmp(r.nodes + place * e->steps, e->nodes + t * e->steps, (size_t)e->steps * sizeof *e->nodes) == 0,
              "%s: nodes of token %lld at place %lld", w->name, (long long)t, (long long)place);
    }
    free(taken);
    free(r.x);
    results_free(&r);
}

/* The same whether the path is asked for or not. */
static void check_outputs(example *e, const way *w)
{
    example r = results_like(e);
    CHECK(cmm_fff_forward(&e->layer, &w->run, e->batch, e->x, r.y, NULL, NULL) == CMM_OK, "%s", w->name);
    CHECK(cmm_cmm_forward(&e->layer, &w->run, e->batch, e->x, r.nodes, r.logits) == CMM_OK, "%s", w->name);
    compare(e, &r, w->name, "path and y apart", 0);
    results_free(&r);
}

/* The same wherever x and y begin, together or one of them: on a cache line, or some elements after one. And with rows that
 * each begin on one, as those of a packed layer do. */
static void check_address(example *e, const way *w)
{
    static const size_t elements[] = {0, 1, 4, 15};
    const size_t size = element_size(e->layer.dtype), x_bytes = (size_t)(e->batch * e->layer.d_in) * size;
    char *const x = aligned_new(x_bytes + 15 * size), *const y = aligned_new(y_bytes(e) + 15 * size);
    if (!x || !y) {
        printf("out of memory\n");
        exit(2);
    }
    example r = results_like(e);
    void *const aligned = r.y;
    for (size_t i = 0; i < sizeof elements / sizeof *elements; i++)
        for (size_t j = 0; j < sizeof elements / sizeof *elements; j++) {
            r.x = x + elements[i] * size;
            r.y = y + elements[j] * size;
            memcpy(r.x, e->x, x_bytes);
            example_forget(&r);
            CHECK(example_run(&r, &w->run) == CMM_OK, "%s", w->name);
            compare(e, &r, w->name, "x and y begin after a cache line by elements, 100 x + y",
                    (long long)(100 * elements[i] + elements[j]));
        }
    int64_t bytes = 0;
    CHECK(cmm_fff_pack_size(&e->layer, &bytes) == CMM_OK, "pack size");
    void *const memory = aligned_new((size_t)bytes);
    CHECK(memory && cmm_fff_pack(&e->layer, memory, bytes, &r.layer) == CMM_OK, "pack");
    for (size_t i = 0; i < sizeof elements / sizeof *elements; i++) {
        r.x = x + elements[i] * size;
        r.y = y + elements[i] * size;
        memcpy(r.x, e->x, x_bytes);
        example_forget(&r);
        CHECK(example_run(&r, &w->run) == CMM_OK, "%s", w->name);
        compare(e, &r, w->name, "packed; x and y begin after a cache line by elements", (long long)elements[i]);
    }
    aligned_delete(memory);
    r.y = aligned;
    results_free(&r);
    aligned_delete(x);
    aligned_delete(y);
}

static void check_threads(example *e, const way *w)
{
    for (int32_t threads = 0; threads <= 5; threads += few ? 5 : 1) {
        example r = results_like(e);
        cmm_run run = w->run;
        run.threads = threads;
        CHECK(example_run(&r, &run) == CMM_OK, "%s", w->name);
        compare(e, &r, w->name, "threads", threads);
        results_free(&r);
    }
}

/* e has the results of the first way of a level: every other one of that level gives the same. */
static void check_level(const char *level, shape s)
{
    example e = example_new(s, 31);
    const way *first = NULL;
    for (int i = 0; i < way_count; i++) {
        const way *const w = &ways[i];
        if (strcmp(w->run.level, level) != 0)
            continue;
        if (!first) {
            first = w;
            CHECK(example_run(&e, &w->run) == CMM_OK, "%s", w->name);
        }
        example r = results_like(&e);
        CHECK(example_run(&r, &w->run) == CMM_OK, "%s", w->name);
        compare(&e, &r, w->name, "as the first of its level; way", i);
        results_free(&r);
        check_splits(&e, w);
        check_places(&e, w);
        check_outputs(&e, w);
        check_address(&e, w);
    }
    example_free(&e);
}

/* Enough work for five threads to be worth it (for two, in an emulator): the front door does not split less. */
static void check_level_threads(const char *level, int64_t trees, int64_t d_out)
{
    for (int32_t dtype = CMM_F32; dtype <= CMM_F64; dtype++) {
        const shape s = {.dtype = dtype, .depth = 7, .trees = trees, .d_in = 130, .d_out = d_out,
                         .batch = (few ? 1301 : 3001) / trees, .bias = 1};
        example e = example_new(s, 41);
        for (int i = 0; i < way_count; i++) {
            if (strcmp(ways[i].run.level, level) != 0)
                continue;
            CHECK(example_run(&e, &ways[i].run) == CMM_OK, "%s", ways[i].name);
            check_threads(&e, &ways[i]);
        }
        example_free(&e);
    }
}

/* Sums of -0, which underflowing products give: a zero that is added on the way would make +0 of them. */
static void check_signs_of_zero(int32_t dtype)
{
    const int64_t d_in[] = {512, 768, 528};
    for (size_t i = 0; i < sizeof d_in / sizeof *d_in; i++) {
        example e = example_new((shape){.dtype = dtype, .depth = 3, .trees = 1, .d_in = d_in[i], .d_out = 5, .batch = 9}, 61);
        const double tiny = dtype == CMM_F64 ? 1e-300 : 1e-30;
        for (int64_t j = 0; j < 15 * d_in[i]; j++)
            if (dtype == CMM_F64)
                ((double *)e.w_in)[j] = tiny;
            else
                ((float *)e.w_in)[j] = (float)tiny;
        for (int64_t j = 0; j < e.batch * d_in[i]; j++)
            if (dtype == CMM_F64)
                ((double *)e.x)[j] = -tiny;
            else
                ((float *)e.x)[j] = (float)-tiny;
        const way *first = NULL;
        for (int w = 0; w < way_count; w++) {
            if (strcmp(ways[w].run.level, "native") != 0)
                continue;
            if (!first) {
                first = &ways[w];
                CHECK(example_run(&e, &first->run) == CMM_OK, "%s", first->name);
            }
            example r = results_like(&e);
            CHECK(example_run(&r, &ways[w].run) == CMM_OK, "%s", ways[w].name);
            compare(&e, &r, ways[w].name, "logits of -0, d_in", (long long)d_in[i]);
            results_free(&r);
            check_splits(&e, &ways[w]);
            check_address(&e, &ways[w]);
        }
        example_free(&e);
    }
}

/* ---- the hash of all bits -------------------------------------------------------------------------------------- */

static uint64_t fnv1a(uint64_t hash, const void *bytes, size_t count)
{
    for (size_t i = 0; i < count; i++)
        hash = (hash ^ ((const unsigned char *)bytes)[i]) * 0x100000001b3u;
    return hash;
}

/* All bits of y, nodes and logits of some layers. A little-endian machine is assumed. */
static uint64_t hash_of(const cmm_run *run, int32_t dtype)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (int32_t activation = 0; activation < 5; activation++) {
        const shape shapes[] = {
            {.dtype = dtype, .activation = activation, .depth = 9, .trees = 1, .d_in = 100, .d_out = 77,
             .batch = 150},
            {.dtype = dtype, .activation = activation, .depth = 2, .trees = 5, .d_in = 13, .d_out = 130, .batch = 40,
             .bias = 1, .tie = CMM_TIE_RIGHT}};
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            example e = example_new(shapes[i], 51 + i);
            CHECK(example_run(&e, run) == CMM_OK, "%s", run->level);
            hash = fnv1a(hash, e.y, y_bytes(&e));
            hash = fnv1a(hash, e.nodes, path_bytes(&e, sizeof *e.nodes));
            hash = fnv1a(hash, e.logits, path_bytes(&e, element_size(dtype)));
            example_free(&e);
        }
    }
    return hash;
}

/* What every machine gives. They change when the order of a sum or a formula in activation.h does: then, and only
 * then, take over the values that this test prints. */
static const struct {
    const char *level;
    uint64_t hash[2]; /* CMM_F32, CMM_F64 */
} stored[] = {
    {"naive", {0x5141dca83d7002aeu, 0xaf4dd1795829c59cu}},
    {"native", {0xd9edddf5910b0bf4u, 0xa0bbdefcf434c34bu}},
};

static void check_hashes(void)
{
    for (size_t s = 0; s < sizeof stored / sizeof *stored; s++)
        for (int32_t dtype = CMM_F32; dtype <= CMM_F64; dtype++)
            for (int i = 0; i < way_count; i++) {
                if (strcmp(ways[i].run.level, stored[s].level) != 0)
                    continue;
                const uint64_t hash = hash_of(&ways[i].run, dtype);
                printf("hash of %s, f%d: 0x%016llx\n", ways[i].name, dtype ? 64 : 32, (unsigned long long)hash);
                CHECK(hash == stored[s].hash[dtype], "%s: 0x%016llx is stored", ways[i].name,
                      (unsigned long long)stored[s].hash[dtype]);
            }
}

int main(int argc, char **argv)
{
    ways_find();
    check_hashes();
    if (argc > 1 && strcmp(argv[1], "hash") == 0)
        return check_report();
    few = argc > 1 && strcmp(argv[1], "few") == 0;
    static const char *const levels[] = {"naive", "native"};
    for (size_t l = 0; l < 2; l++) {
        for (int32_t dtype = CMM_F32; dtype <= CMM_F64; dtype++) {
            /* Too large for L2 and sorted in two phases; many small trees; one neuron. */
            check_level(levels[l], (shape){.dtype = dtype, .depth = few ? 9 : 13, .trees = 1, .d_in = 150,
                                           .d_out = 110, .batch = few ? 71 : 700});
            check_level(levels[l], (shape){.dtype = dtype, .depth = 3, .trees = few ? 9 : 40, .d_in = 33, .d_out = 50,
                                           .batch = few ? 53 : 301, .bias = 1, .activation = CMM_GELU_TANH});
            check_level(levels[l], (shape){.dtype = dtype, .trees = 1, .d_in = 7, .d_out = 1, .batch = 301});
        }
        check_level_threads(levels[l], 2, 100);
    }
    /* Rows so long that native begins at the first whole vector of x; and those of a tree among several. */
    static const shape wide[] = {
        {.depth = 4, .trees = 1, .d_in = 768, .d_out = 192, .batch = 37},
        {.depth = 3, .trees = 3, .d_in = 512, .d_out = 97, .batch = 41},
        {.depth = 3, .trees = 1, .d_in = 555, .d_out = 130, .batch = 33},
    };
    for (int32_t dtype = CMM_F32; dtype <= CMM_F64; dtype++)
        check_signs_of_zero(dtype);
    for (int32_t dtype = CMM_F32; dtype <= CMM_F64; dtype++)
        for (size_t i = 0; i < sizeof wide / sizeof *wide; i++) {
            shape s = wide[i];
            s.dtype = dtype;
            check_level("native", s);
        }
    /* What native does with large layers: two phases, y past the caches; y that must not go there, for its rows are no
     * whole lines of a cache, or the trees are several; more tokens than are grouped at a time, in as many
     * subtrees as there can be. */
    static const shape large[] = {
        {.depth = 9, .trees = 1, .d_in = 24, .d_out = 112, .batch = 700, .bias = 1},
        {.depth = 9, .trees = 1, .d_in = 33, .d_out = 35, .batch = 700},
        {.depth = 7, .trees = 3, .d_in = 20, .d_out = 16, .batch = 700},
        {.depth = 2, .trees = 3, .d_in = 21, .d_out = 33, .batch = 700}, /* blocks that take turns, through copies */
        {.depth = 9, .trees = 1, .d_in = 3, .d_out = 16, .batch = 16501},
    };
    make_caches_small();
    for (int32_t dtype = CMM_F32; dtype <= CMM_F64; dtype++)
        for (size_t i = 0; i < sizeof large / sizeof *large; i++) {
            shape s = large[i];
            s.dtype = dtype;
            if (few)
                s.batch = s.batch == 700 ? 307 : 0;
            if (s.batch > 0)
                check_level("native", s);
        }
    check_level_threads("native", 1, 112);
    return check_report();
}
