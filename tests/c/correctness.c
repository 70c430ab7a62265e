/* Every way to run a layer, against plain loops in double along the reported path.
 *
 *     correctness        all of it
 *     correctness few    fewer shapes, for an emulator */
#include "oracle.h"
#include "ways.h"

static int few;

static const char *label(const way *w, const example *e)
{
    static char text[160];
    (void)snprintf(text, sizeof text, "%s, f%d, activation %d, tie %d, %lldx%d, %lld to %lld, batch %lld, bias %d",
                   w->name, e->layer.dtype ? 64 : 32, e->layer.activation, e->layer.tie, (long long)e->layer.trees,
                   e->layer.depth, (long long)e->layer.d_in, (long long)e->layer.d_out, (long long)e->batch,
                   e->bias != NULL);
    return text;
}

static void run_and_check(example *e, const char *note)
{
    for (int i = 0; i < way_count; i++) {
        const cmm_status status = example_run(e, &ways[i].run);
        CHECK(status == CMM_OK, "%s%s: %s", note, label(&ways[i], e), cmm_status_name(status));
        oracle_check(e, 1, label(&ways[i], e));
    }
}

static void check_shapes(void)
{
    static const struct {
        int64_t trees, d_in, d_out, batch;
        int32_t depth;
    } sizes[] = {{1, 1, 1, 1, 0},     {3, 1, 33, 5, 0},   {1, 33, 1, 7, 1},    {3, 33, 33, 64, 1},
                 {1, 65, 128, 51, 3}, {3, 33, 1, 9, 11},  {1, 1, 33, 130, 11}, {1, 33, 33, 1, 11},
                 {5, 17, 19, 3, 4},   {70, 9, 11, 50, 1}, {300, 5, 6, 49, 0},  {1, 130, 257, 3, 2},
                 {2, 64, 65, 50, 2},  {2, 100, 70, 40, 5}, {1, 300, 7, 2, 0}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int32_t variant = 0; variant < 10; variant += few ? 3 : 1) {
            const shape s = {.dtype = variant % 2,
                             .activation = variant / 2,
                             .tie = (variant + (int32_t)i) / 2 % 2,
                             .depth = sizes[i].depth,
                             .trees = sizes[i].trees,
                             .d_in = sizes[i].d_in,
                             .d_out = sizes[i].d_out,
                             .batch = sizes[i].batch,
                             .bias = variant / 2 % 2 == 0,
                             .padding = variant % 3 == 1 ? 3 : 0};
            example e = example_new(s, i * 100 + (uint64_t)variant);
            run_and_check(&e, "");
            example_free(&e);
        }
}

/* A tree of 17 MB, several times a core's L2, and a batch that is worth sorting: the two phases of native/group, and
 * several tiers, groups and single tokens in blas3. The second is more than one chunk of tokens. */
static void check_large(void)
{
    const shape shapes[] = {
        {.depth = 13, .trees = 1, .d_in = 150, .d_out = 110, .batch = few ? 300 : 700, .bias = 1},
        {.depth = 9, .trees = 2, .d_in = 5, .d_out = 3, .batch = 16384 + 100, .activation = CMM_SILU},
    };
    for (size_t i = 0; i < (few ? 1 : sizeof shapes / sizeof *shapes); i++) {
        example e = example_new(shapes[i], 7 + i);
        run_and_check(&e, "large: ");
        example_free(&e);
    }
}

/* Widths above what one block of registers holds, at both sides of each multiple of a vector. */
static void check_widths(void)
{
    for (int64_t d = 1; d <= 200; d += d < 40 && !few ? 1 : 13)
        for (int32_t dtype = CMM_F32; dtype <= CMM_F64; dtype++) {
            const shape s = {.dtype = dtype, .depth = 2, .trees = 1, .d_in = d, .d_out = 201 - d, .batch = 9};
            example e = example_new(s, (uint64_t)d);
            run_and_check(&e, "widths: ");
            example_free(&e);
        }
}

/* cmm_cmm_forward: the path alone, each half of it alone, and with w_out and d_out left out of the layer. */
static void check_path_alone(void)
{
    for (int32_t dtype = CMM_F32; dtype <= CMM_F64; dtype++)
        for (int32_t depth = 0; depth <= 11; depth += depth < 3 ? 1 : 8) {
            const shape s = {.dtype = dtype, .depth = depth, .trees = 3, .d_in = 33, .d_out = 1, .batch = 60,
                             .bias = 1};
            example e = example_new(s, 11 + (uint64_t)depth);
            const size_t nodes_size = (size_t)(e.batch * e.steps) * sizeof *e.nodes;
            const size_t logits_size = (size_t)(e.batch * e.steps) * element_size(dtype);
            int32_t *const nodes = allocate(e.batch * e.steps, sizeof *nodes);
            void *const logits = allocate(e.batch * e.steps, element_size(dtype));
            e.layer.w_out = NULL;
            e.layer.d_out = 0;
            for (int i = 0; i < way_count; i++) {
                const cmm_run *const run = &ways[i].run;
                example_forget(&e);
                CHECK(cmm_cmm_forward(&e.layer, run, e.batch, e.x, e.nodes, e.logits) == CMM_OK, "%s", ways[i].name);
                oracle_check(&e, 0, label(&ways[i], &e));
                memset(nodes, 0xff, nodes_size);
                memset(logits, 0xff, logits_size);
                CHECK(cmm_cmm_forward(&e.layer, run, e.batch, e.x, nodes, NULL) == CMM_OK, "%s", ways[i].name);
                CHECK(cmm_cmm_forward(&e.layer, run, e.batch, e.x, NULL, logits) == CMM_OK, "%s", ways[i].name);
                CHECK(memcmp(nodes, e.nodes, nodes_size) == 0, "%s: nodes alone", label(&ways[i], &e));
                CHECK(memcmp(logits, e.logits, logits_size) == 0, "%s: logits alone", label(&ways[i], &e));
            }
            free(nodes);
            free(logits);
            example_free(&e);
        }
}

/* Logits of exactly 0, of -0 and NaN, at the root and below: where each tie rule sends them. */
static void check_ties(void)
{
    for (int32_t dtype = CMM_F32; dtype <= CMM_F64; dtype++)
        for (int32_t tie = CMM_TIE_LEFT; tie <= CMM_TIE_RIGHT; tie++) {
            const shape s = {.dtype = dtype, .tie = tie, .depth = 3, .trees = 1, .d_in = 3, .d_out = 2, .batch = 60,
                             .activation = CMM_IDENTITY};
            example e = example_new(s, 5);
            /* w . x = 1 - 1 + 0 = 0 for even tokens, whose logits are all exactly 0; odd ones are NaN. */
            for (int64_t r = 0; r < e.rows; r++)
                for (int64_t i = 0; i < 3; i++)
                    put(dtype, e.w_in, 3 * r + i, i == 1 ? -1 : 1);
            for (int64_t t = 0; t < e.batch; t++)
                for (int64_t i = 0; i < 3; i++)
                    put(dtype, e.x, 3 * t + i, t % 2 ? (double)NAN : i < 2 ? 1 : 0);
            for (int i = 0; i < way_count; i++) {
                CHECK(example_run(&e, &ways[i].run) == CMM_OK, "%s", ways[i].name);
                for (int64_t t = 0; t < e.batch; t++)
                    for (int64_t level = 0, want = 0; level < 4; level++) {
                        CHECK(e.nodes[4 * t + level] == want, "%s: token %lld, level %lld: node %d",
                              label(&ways[i], &e), (long long)t, (long long)level, e.nodes[4 * t + level]);
                        want = 2 * want + 1 + (t % 2 == 0 && tie == CMM_TIE_RIGHT);
                    }
                for (int64_t t = 0; t < e.batch; t++) {
                    const double y = get(dtype, e.y, 2 * t);
                    CHECK(t % 2 ? isnan(y) : y == 0, "%s: token %lld: y is %a", label(&ways[i], &e), (long long)t, y);
                }
            }
            example_free(&e);
        }
}

/* NaN in every row that no token visits: not a trace of it in the result. */
static void check_rows_not_visited(void)
{
    static const int32_t depths[] = {1, 2, 5, 11};
    for (size_t d = 0; d < sizeof depths / sizeof *depths; d++)
        for (int64_t batch = 1; batch <= 100; batch += 33) {
            const shape s = {.depth = depths[d], .trees = 2, .d_in = 20, .d_out = 21, .batch = batch, .bias = 1};
            example e = example_new(s, 21 + d);
            char *const visited = allocate(e.rows, 1);
            memset(visited, 0, (size_t)e.rows);
            cmm_run naive = {.size = sizeof naive, .level = "naive"};
            CHECK(example_run(&e, &naive) == CMM_OK, "naive");
            for (int64_t step = 0; step < batch * e.steps; step++)
                visited[step / (s.depth + 1) % s.trees * (e.rows / s.trees) + e.nodes[step]] = 1;
            for (int64_t r = 0; r < e.rows; r++)
                for (int64_t i = 0; !visited[r] && i < 21; i++) {
                    put(CMM_F32, e.w_out, r * 21 + i, i % 2 ? (double)NAN : (double)INFINITY);
                    put(CMM_F32, e.w_in, r * 20 + i % 20, (double)NAN);
                    put(CMM_F32, e.bias, r, (double)INFINITY);
                }
            run_and_check(&e, "rows not visited: ");
            free(visited);
            example_free(&e);
        }
}

/* No token, and NULL for everything that has no elements. */
static void check_no_tokens(void)
{
    example e = example_new((shape){.depth = 2, .trees = 2, .d_in = 5, .d_out = 4, .batch = 1}, 1);
    for (int i = 0; i < way_count; i++) {
        CHECK(cmm_fff_forward(&e.layer, &ways[i].run, 0, NULL, NULL, NULL, NULL) == CMM_OK, "%s", ways[i].name);
        CHECK(cmm_cmm_forward(&e.layer, &ways[i].run, 0, NULL, NULL, NULL) == CMM_OK, "%s", ways[i].name);
    }
    CHECK(cmm_fff_forward(&e.layer, NULL, 0, NULL, NULL, NULL, NULL) == CMM_OK, "defaults");
    CHECK(cmm_fff_forward(&e.layer, NULL, 1, e.x, e.y, NULL, NULL) == CMM_OK, "defaults");
    example_free(&e);
}

/* The deepest tree there may be, 2^31 - 1 nodes of one number each: memory that is reserved and hardly used. Every
 * token finds its own way down, for the rows it visits are made on the way. */
#if defined(__unix__) && UINTPTR_MAX > UINT32_MAX
#include <sys/mman.h>

static void check_deepest(void)
{
    enum { BATCH = 60 };
    const int64_t rows = ((int64_t)2 << CMM_MAX_DEPTH) - 1;
    /* A page more, for the masked loads of some emulators touch what they skip. */
    const size_t bytes = (size_t)(rows + 1024) * sizeof(float);
    float *const w = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (w == MAP_FAILED) {
        printf("the deepest tree was not checked: 8 GiB of address space are not to be had\n");
        return;
    }
    example e = example_new((shape){.depth = 0, .trees = 1, .d_in = 1, .d_out = 1, .batch = 1}, 1);
    example_free(&e);
    e.batch = BATCH;
    e.steps = CMM_MAX_DEPTH + 1;
    e.x = allocate(BATCH, sizeof(float));
    e.y = allocate(BATCH, sizeof(float));
    e.nodes = allocate(BATCH * e.steps, sizeof *e.nodes);
    e.logits = allocate(BATCH * e.steps, sizeof(float));
    e.layer.depth = CMM_MAX_DEPTH;
    e.layer.w_in = e.layer.w_out = w;
    e.layer.bias = NULL;
    uint64_t state = 3;
    for (int64_t t = 0; t < BATCH; t++) {
        /* The first two go all the way left and all the way right, the latter to the last row of all. */
        const double x = t == 0 ? -1 : t == 1 ? 1 : random_unit(&state);
        put(CMM_F32, e.x, t, x);
        for (int64_t level = 0, node = 0; level < e.steps; level++) {
            if (w[node] == 0)
                w[node] = t < 2 ? 1 : (float)random_unit(&state);
            node = 2 * node + 1 + (x * (double)w[node] > 0);
        }
    }
    run_and_check(&e, "deepest: ");
    CHECK(e.nodes[2 * e.steps - 1] == rows - 1, "the last node of all is %d", e.nodes[2 * e.steps - 1]);
    free(e.x);
    free(e.y);
    free(e.nodes);
    free(e.logits);
    munmap(w, bytes);
}
#else
static void check_deepest(void)
{
    printf("the deepest tree was not checked: it needs mmap and 64-bit addresses\n");
}
#endif

/* ---- dense ----------------------------------------------------------------------------------------------------- */

/* The hidden values are not reported, so the bound of y has the logits' errors in it; no activation is steeper than
 * 1.13 (GELU, at sqrt(2)). */
static void check_dense(int32_t dtype, int32_t activation, int64_t neurons, int64_t d_in, int64_t d_out,
                        int64_t batch, int bias, int64_t padding)
{
    uint64_t state = (uint64_t)(neurons * 7 + d_in);
    const int64_t ld_in = d_in + padding, ld_out = d_out + 2 * padding;
    void *const w_in = allocate(span(neurons, d_in, ld_in), element_size(dtype));
    void *const w_out = allocate(span(neurons, d_out, ld_out), element_size(dtype));
    void *const b = bias ? allocate(neurons, element_size(dtype)) : NULL;
    void *const x = allocate(batch * d_in, element_size(dtype));
    void *const y = allocate(batch * d_out, element_size(dtype));
    fill_random(dtype, w_in, span(neurons, d_in, ld_in), 1, &state);
    fill_random(dtype, w_out, span(neurons, d_out, ld_out), 1, &state);
    fill_random(dtype, b, bias ? neurons : 0, 0.25, &state);
    fill_random(dtype, x, batch * d_in, 1, &state);
    const cmm_ff layer = {.size = sizeof layer, .dtype = dtype, .activation = activation, .neurons = neurons,
                          .d_in = d_in, .d_out = d_out, .w_in = neurons ? w_in : NULL, .bias = b,
                          .w_out = neurons ? w_out : NULL, .ld_in = padding ? ld_in : 0,
                          .ld_out = padding ? ld_out : 0};
    double *const want = allocate(d_out, sizeof *want), *const size = allocate(d_out, sizeof *size);
    double *const slack = allocate(d_out, sizeof *slack);
    const double u = roundoff(dtype), v = roundoff(CMM_F64);
    const double dot_error = gamma_of((double)d_in + 1, u) + gamma_of((double)d_in + 1, v);
    const double y_error = gamma_of((double)neurons + 1, u) + gamma_of((double)neurons + 1, v);
    for (int i = 0; i < way_count; i++) {
        cmm_run with_threads = ways[i].run;
        with_threads.threads = 3; /* the large ones are shared out */
        const cmm_run *const run = &with_threads;
        memset(y, 0xff, (size_t)(batch * d_out) * element_size(dtype));
        const cmm_status status = cmm_ff_forward(&layer, run, batch, x, y);
        CHECK(status == CMM_OK, "dense %s: %s", ways[i].name, cmm_status_name(status));
        for (int64_t t = 0; t < batch; t++) {
            for (int64_t o = 0; o < d_out; o++)
                want[o] = size[o] = slack[o] = 0;
            for (int64_t n = 0; n < neurons; n++) {
                double z = b ? get(dtype, b, n) : 0, sum = fabs(z);
                for (int64_t k = 0; k < d_in; k++) {
                    const double term = get(dtype, w_in, n * ld_in + k) * get(dtype, x, t * d_in + k);
                    z += term;
                    sum += fabs(term);
                }
                /* The kernel's activation is that of its own logit, which lies within dot_error of z. */
                const double a = activation_of(activation, z), at = fabs(z) + dot_error * sum;
                const double error = 1.13 * dot_error * sum +
                                     (fabs(a) + 1.13 * dot_error * sum) * activation_error(dtype, activation, at);
                for (int64_t o = 0; o < d_out; o++) {
                    const double w = get(dtype, w_out, n * ld_out + o);
                    want[o] += a * w;
                    size[o] += (fabs(a) + error) * fabs(w);
                    slack[o] += error * fabs(w);
                }
            }
            for (int64_t o = 0; o < d_out; o++) {
                const double got = get(dtype, y, t * d_out + o);
                CHECK(fabs(got - want[o]) <= y_error * size[o] + slack[o], "dense %s, %lld neurons: %a, not %a",
                      ways[i].name, (long long)neurons, got, want[o]);
            }
        }
    }
    free(w_in);
    free(w_out);
    free(b);
    free(x);
    free(y);
    free(want);
    free(size);
    free(slack);
}

int main(int argc, char **argv)
{
    few = argc > 1 && strcmp(argv[1], "few") == 0;
    ways_find();
    check_shapes();
    check_large();
    check_widths();
    check_path_alone();
    check_ties();
    check_rows_not_visited();
    check_no_tokens();
    check_deepest();
    static const int64_t neurons[] = {0, 1, 2, 33, 300};
    for (size_t n = 0; n < sizeof neurons / sizeof *neurons; n++)
        for (int32_t activation = 0; activation < 5; activation++)
            check_dense((activation + (int32_t)n) % 2, activation, neurons[n], n % 2 ? 33 : 1, n % 2 ? 17 : 40,
                        n == 3 ? 300 : 5, activation % 2, n == 4 ? 3 : 0);
    /* More neurons than half of L2 holds; more tokens than a chunk. */
    check_dense(CMM_F32, CMM_GELU, 1500, 300, 290, 3, 1, 0);
    check_dense(CMM_F64, CMM_SILU, 1500, 300, 290, 3, 1, 0);
    check_dense(CMM_F32, CMM_RELU, 5, 3, 2, 1100, 1, 0);
    CHECK(atomic_load(&blas_complaints) == 0, "%d calls of the BLAS with arguments it forbids",
          atomic_load(&blas_complaints));
    return check_report();
}
