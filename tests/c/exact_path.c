/* Rows of int8 with a scale each, the exact path of narrow rows, and a path that is given.
 *
 *     exact_path         all of it
 *     exact_path few         fewer shapes, for an emulator
 *     exact_path few far     and away from the guard pages, for one whose masked loads touch what they skip */
#define _GNU_SOURCE
#include "guard.h"
#include "oracle.h"
#include "small_caches.h"
#include "ways.h"

#include <fenv.h>

static const int32_t types[] = {CMM_F32, CMM_BF16, CMM_F16, CMM_I8};
static const char *const names[] = {[CMM_F32] = "float32", [CMM_BF16] = "bfloat16", [CMM_F16] = "float16",
                                    [CMM_I8] = "int8"};

enum { TYPES = 4 };

/* Whether this way has kernels for rows of a type, and this CPU all that they take. */
static int can(const way *w, int32_t type)
{
    cmm_kernel_info kernel = {.size = sizeof kernel};
    for (int32_t k = 0; cmm_kernel_get(k, &kernel) == CMM_OK; k++)
        if (kernel.available && strcmp(kernel.level, w->run.level) == 0 && strcmp(kernel.w_type, names[type]) == 0 &&
            (strcmp(kernel.isa, "any") == 0 || strcmp(kernel.isa, w->run.isa) == 0))
            return 1;
    return 0;
}

static int64_t far; /* elements between the tokens and their guard page, and 16 times as many bytes behind a layer */

static int same(const void *a, const void *b, int64_t elements, size_t size)
{
    return memcmp(a, b, (size_t)elements * size) == 0;
}

static int32_t type_in(const cmm_fff *layer)
{
    return layer->weight_dtype;
}

static int32_t type_out(const cmm_fff *layer)
{
    return layer->weight_out_dtype == CMM_AS_DTYPE ? CMM_F32
           : layer->weight_out_dtype               ? layer->weight_out_dtype
                                                   : layer->weight_dtype;
}

/* An element of a row by definition, without its scale. */
static double element_of(int32_t type, const void *rows, int64_t i)
{
    if (type == CMM_F32)
        return (double)((const float *)rows)[i];
    if (type == CMM_I8)
        return ((const int8_t *)rows)[i];
    const uint16_t bits = ((const uint16_t *)rows)[i];
    if (type == CMM_BF16) {
        const uint32_t wide = (uint32_t)bits << 16;
        float value;
        memcpy(&value, &wide, sizeof value);
        return (double)value;
    }
    const int exponent = bits >> 10 & 31, significand = bits & 1023; /* of finite ones */
    const double v = exponent ? ldexp(1024 + significand, exponent - 25) : ldexp(significand, -24);
    return bits >> 15 ? -v : v;
}

static double in_row(const cmm_fff *l, int64_t row, int64_t i)
{
    return element_of(type_in(l), l->w_in, row * l->ld_in + i) * (l->scale_in ? (double)l->scale_in[row] : 1);
}

static double out_row(const cmm_fff *l, int64_t row, int64_t i)
{
    return element_of(type_out(l), l->w_out, row * l->ld_out + i) * (l->scale_out ? (double)l->scale_out[row] : 1);
}

/* A layer in memory of its own, which starts or ends at a guard page. */
static cmm_fff pack(const cmm_fff *layer, cmm_pack_options options, int buffer, int at_end)
{
    int64_t bytes = -1;
    cmm_fff packed;
    options.size = sizeof options;
    CHECK(cmm_fff_pack_size_as(layer, &options, &bytes) == CMM_OK, "size");
    char *const memory = guarded(buffer, (bytes + 63) / 64 * 64 + 16 * far, 1, at_end);
    memset(memory, 0xA5, (size_t)bytes);
    const cmm_status status = cmm_fff_pack_as(layer, &options, memory, bytes, &packed);
    CHECK(status == CMM_OK, "%s", cmm_status_name(status));
    return packed;
}

/* ---- quantisation ----------------------------------------------------------------------------------------------- */

static void check_quantised(const float *w, int64_t n, const int8_t *q, float scale, const char *what)
{
    float largest = 0;
    for (int64_t i = 0; i < n; i++)
        largest = fmaxf(largest, fabsf(w[i]));
    float s = largest / 127;
    if (s == 0)
        s = largest == 0 ? 1 : FLT_TRUE_MIN;
    CHECK(s == scale, "%s: scale %a, not %a", what, (double)scale, (double)s);
    for (int64_t i = 0; i < n; i++) {
        const double want = nearbyint((double)(w[i] / s)); /* to even: the test runs in that mode */
        CHECK(q[i] == fmin(fmax(want, -127), 127), "%s: %a becomes %d, not %g", what, (double)w[i], q[i], want);
    }
}

static void check_quantisation(void)
{
    enum { WIDTH = 300, KINDS = 9 };
    static float rows[KINDS][WIDTH];
    uint64_t state = 3;
    for (int i = 0; i < WIDTH; i++) {
        const double u = random_unit(&state);
        rows[0][i] = (float)u;
        rows[1][i] = 0;
        rows[2][i] = (float)(u * 0x1p-140);                 /* subnormal */
        rows[3][i] = (float)(u * 0x1p127);                  /* the largest */
        rows[4][i] = (float)(i - 150) / 2;                  /* half way, if the scale is 1 */
        rows[5][i] = i == 7 ? FLT_TRUE_MIN : 0;             /* a scale that would be 0 */
        rows[6][i] = -0.0f;
        rows[7][i] = (float)(u * u * u);
        rows[8][i] = i == 299 ? -FLT_MAX : FLT_MAX / 3;
    }
    rows[4][0] = 127;
#if defined(__wasm__)
    static const int modes[] = {FE_TONEAREST}; /* there are no others */
#else
    static const int modes[] = {FE_TONEAREST, FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO};
#endif
    for (int width = 1; width <= WIDTH; width += width == 1 ? 32 : width == 33 ? WIDTH - 33 : WIDTH)
        for (int kind = 0; kind < KINDS; kind++)
            for (int m = 0; m < (int)(sizeof modes / sizeof *modes); m++) {
                cmm_fff layer = {.size = sizeof layer, .trees = 1, .d_in = width, .d_out = width, .w_in = rows[kind],
                                 .w_out = rows[kind]};
                char what[64];
                (void)snprintf(what, sizeof what, "row of kind %d, width %d, rounding %d", kind, width, m);
                fesetround(modes[m]); /* the caller's rounding has no say */
                const cmm_fff p = pack(&layer, (cmm_pack_options){.weight_dtype = CMM_I8}, 0, 1);
                fesetround(FE_TONEAREST);
                check_quantised(rows[kind], width, p.w_in, p.scale_in[0], what);
                check_quantised(rows[kind], width, p.w_out, p.scale_out[0], what);
            }
}

static void check_not_finite(void)
{
    enum { WIDTH = 40, TREES = 3, NODES = 7 };
    static float good[TREES * NODES * WIDTH], w_in[TREES * NODES * WIDTH], w_out[TREES * NODES * WIDTH];
    static _Alignas(CMM_ALIGNMENT) char memory[1 << 14], before[1 << 14];
    static const float bad[] = {INFINITY, -INFINITY, NAN, -NAN};
    int64_t bytes, refused[2];
    cmm_fff layer = {.size = sizeof layer, .trees = TREES, .depth = 2, .d_in = WIDTH, .d_out = WIDTH, .w_in = w_in,
                     .w_out = w_out}, packed;
    const cmm_pack_options options = {.size = sizeof options, .weight_dtype = CMM_I8, .refused = refused};
    CHECK(cmm_fff_pack_size_as(&layer, &options, &bytes) == CMM_OK && bytes <= (int64_t)sizeof memory, "room");
    memset(memory, 0xA5, sizeof memory);
    memcpy(before, memory, sizeof memory);
    for (int64_t row = 0; row < TREES * NODES; row += 4)
        for (int which = 0; which < 2; which++)
            for (int b = 0; b < 4; b++) {
                memcpy(w_in, good, sizeof w_in);
                memcpy(w_out, good, sizeof w_out);
                (which ? w_out : w_in)[row * WIDTH + (b * 13) % WIDTH] = bad[b];
                w_out[(TREES * NODES - 1) * WIDTH] = INFINITY; /* the first one is told */
                refused[0] = refused[1] = -1;
                CHECK(cmm_fff_pack_as(&layer, &options, memory, bytes, &packed) == CMM_ERROR_ROW_NOT_FINITE, "row");
                CHECK(refused[0] == row && refused[1] == which, "%lld %lld", (long long)refused[0], (long long)refused[1]);
                CHECK(same(memory, before, sizeof memory, 1), "memory was written");
            }
    memcpy(w_out, good, sizeof w_out);
    memcpy(w_in, good, sizeof w_in);
    w_in[5] = INFINITY;
    const cmm_pack_options only_out = {.size = sizeof options, .weight_dtype = CMM_BF16, .weight_out_dtype = CMM_I8};
    CHECK(cmm_fff_pack_as(&layer, &only_out, memory, sizeof memory, &packed) == CMM_OK, "rows that stay numbers");
}

/* ---- narrow rows of any two types ------------------------------------------------------------------------------- */

/* The logits and outputs of a packed layer, in double along the path that was reported. What oracle.h says of the
 * bounds holds; a scale is one rounding more for a logit, and one for a coefficient. */
static void check_values(const cmm_fff *l, const example *e, const float *y, const int32_t *nodes, const float *logits,
                         const char *what)
{
    const int32_t levels = l->depth + 1;
    const int64_t all = ((int64_t)2 << l->depth) - 1;
    const double u = roundoff(CMM_F32), v = roundoff(CMM_F64), terms = (double)e->steps + (double)l->trees + 2;
    const double dot_error = gamma_of((double)l->d_in + 2, u) + gamma_of((double)l->d_in + 2, v);
    const double y_error = gamma_of(terms, u) + gamma_of(terms, v), underflow = 8 * terms * (double)FLT_TRUE_MIN;
    double *const want = allocate(l->d_out, sizeof *want), *const size = allocate(l->d_out, sizeof *size);
    for (int64_t token = 0; token < e->batch; token++) {
        const float *const x = (const float *)e->x + token * l->d_in;
        memset(want, 0, (size_t)l->d_out * sizeof *want);
        memset(size, 0, (size_t)l->d_out * sizeof *size);
        for (int64_t step = 0; step < e->steps; step++) {
            const int64_t row = step / levels * all + nodes[token * e->steps + step];
            const double logit = (double)logits[token * e->steps + step];
            double exact = l->bias ? (double)((const float *)l->bias)[row] : 0, sum = fabs(exact);
            for (int64_t i = 0; i < l->d_in; i++) {
                exact += in_row(l, row, i) * (double)x[i];
                sum += fabs(in_row(l, row, i) * (double)x[i]);
            }
            CHECK(fabs(logit - exact) <= dot_error * sum, "%s: token %lld, step %lld: logit %a, not %a", what,
                  (long long)token, (long long)step, logit, exact);
            const double a = activation_of(l->activation, logit), more = activation_error(CMM_F32, l->activation, logit);
            for (int64_t o = 0; o < l->d_out; o++) {
                want[o] += a * out_row(l, row, o);
                size[o] += fabs(a * out_row(l, row, o)) * (y_error * (1 + more) + more);
            }
        }
        for (int64_t o = 0; o < l->d_out; o++)
            CHECK(fabs((double)y[token * l->d_out + o] - want[o]) <= size[o] + underflow, "%s: token %lld, output %lld: %a, not %a",
                  what, (long long)token, (long long)o, (double)y[token * l->d_out + o], want[o]);
    }
    free(want);
    free(size);
}

typedef struct results {
    float *y, *logits;
    int32_t *nodes;
    int64_t recomputed;
} results;

static results results_new(const example *e)
{
    const results r = {allocate(e->batch * e->layer.d_out, 4), allocate(e->batch * e->steps, 4),
                       allocate(e->batch * e->steps, 4), -1};
    return r;
}

static void results_free(results *r)
{
    free(r->y);
    free(r->logits);
    free(r->nodes);
}

static int same_results(const results *a, const results *b, const example *e)
{
    return same(a->y, b->y, e->batch * e->layer.d_out, 4) && same(a->logits, b->logits, e->batch * e->steps, 4) &&
           same(a->nodes, b->nodes, e->batch * e->steps, 4);
}


static void run(const cmm_fff *layer, cmm_run how, const example *e, results *r)
{
    how.recomputed = &r->recomputed;
    r->recomputed = -1;
    memset(r->y, 0xff, (size_t)(e->batch * e->layer.d_out) * 4);
    const cmm_status status = cmm_fff_forward(layer, &how, e->batch, e->x, r->y, r->nodes, r->logits);
    CHECK(status == CMM_OK, "%s: %s", now, cmm_status_name(status));
    CHECK(r->recomputed >= 0, "%s: recomputed was not set", now);
}

static void check_pairs(shape s)
{
    example e = example_new(s, (uint64_t)(s.d_in * 1000 + s.d_out));
    void *const tokens = e.x;
    e.x = memcpy(guarded(2, e.batch * s.d_in + far, 4, 1), tokens, (size_t)(e.batch * s.d_in) * 4);
    results first = results_new(&e), r = results_new(&e);
    for (int in = 0; in < TYPES; in++)
        for (int out = 0; out < TYPES; out++) {
            const cmm_pack_options options = {.weight_dtype = types[in],
                                              .weight_out_dtype = types[out] == CMM_F32 ? CMM_AS_DTYPE : types[out]};
            const cmm_fff l = pack(&e.layer, options, 0, in % 2);
            CHECK(type_in(&l) == types[in] && type_out(&l) == types[out], "types");
            const char *exact_level = "";
            for (int w = 0; w < way_count; w++) {
                if (!way_is_exact(&ways[w]) || !can(&ways[w], types[in]) || !can(&ways[w], types[out]))
                    continue;
                (void)snprintf(now, sizeof now, "%s, rows of %s and %s, %lldx%d, %lld to %lld, batch %lld", ways[w].name,
                               names[types[in]], names[types[out]], (long long)s.trees, s.depth, (long long)s.d_in,
                               (long long)s.d_out, (long long)s.batch);
                const int new_level = strcmp(exact_level, ways[w].run.level) != 0;
                exact_level = ways[w].run.level;
                run(&l, ways[w].run, &e, new_level ? &first : &r);
                if (new_level)
                    check_values(&l, &e, first.y, first.nodes, first.logits, now);
                else
                    CHECK(same_results(&first, &r, &e), "%s: other bits", now);
                cmm_run threads = ways[w].run;
                threads.threads = 3;
                run(&l, threads, &e, &r);
                CHECK(same_results(&first, &r, &e), "%s: other bits with 3 threads", now);
                CHECK(r.recomputed == 0, "%s: recomputed", now);
            }
        }
    results_free(&first);
    results_free(&r);
    e.x = tokens;
    example_free(&e);
}

/* ---- the exact path --------------------------------------------------------------------------------------------- */

/* Tokens of every kind, and rows that are large, small, zero, or narrow numbers already. */
static void make_special(example *e)
{
    const cmm_fff *const l = &e->layer;
    float *const x = e->x, *const w = e->w_in, *const bias = e->bias;
    uint64_t state = 9;
    for (int64_t token = 0; token < e->batch; token++)
        for (int64_t i = 0; i < l->d_in; i++) {
            float *const at = x + token * l->d_in + i;
            switch (token % 12) {
            case 1: *at = 0; break;
            case 2: *at *= 1e-30f; break;
            case 3: *at *= 1e-41f; break;
            case 4: *at *= 1e30f; break;
            case 5: *at *= 3e38f; break;
            case 6: *at = i == token % l->d_in ? 1 : 0; break;
            case 7: *at = i == token % l->d_in ? INFINITY : *at; break;
            case 8: *at = i == token % l->d_in ? NAN : *at; break;
            case 9: *at = random_bits(&state) & 1 ? 1 : -1; break; /* sums that cancel */
            default: break;
            }
        }
    for (int64_t row = 0; row < e->rows; row++)
        for (int64_t i = 0; i < l->d_in; i++) {
            float *const at = w + row * (l->ld_in ? l->ld_in : l->d_in) + i;
            switch (row % 16) {
            case 3: *at = 0; break;
            case 5: *at *= 0x1p-100f; break;
            case 7: *at *= 0x1p90f; break;
            case 9: *at = (float)(int)(*at * 127) / 64; break; /* narrow as it is, but for int8's scale */
            case 11: *at = i == 0 ? 1 : *at / 4096; break;     /* one element decides the scale */
            case 13: *at = i % 2 ? -w[row * (l->ld_in ? l->ld_in : l->d_in) + i - 1] : *at; break; /* near 0 with ones */
            default: break;
            }
        }
    for (int64_t row = 0; bias && row < e->rows; row++)
        bias[row] *= row % 3 ? 0.05f : 1;
}

static void check_exact(shape s, int special)
{
    example e = example_new(s, (uint64_t)(s.d_in + 7 * s.depth));
    if (special)
        make_special(&e);
    const int64_t inner = ((int64_t)1 << s.depth) - 1, levels = s.depth + 1;
    const int64_t ld = e.layer.ld_in ? e.layer.ld_in : s.d_in;
    results wide = results_new(&e), exact = results_new(&e), narrow = results_new(&e), again = results_new(&e);
    for (int t = 1; t < TYPES; t++) {
        const cmm_pack_options options = {.weight_dtype = types[t], .exact_path = 1};
        const cmm_fff l = pack(&e.layer, options, 0, 1);
        const cmm_fff plain = pack(&e.layer, (cmm_pack_options){.weight_dtype = types[t]}, 1, 1);
        for (int64_t row = 0; row < s.trees * inner; row++) { /* what it keeps, and the margins' least */
            const int64_t in_all = row / (inner ? inner : 1) * (2 * inner + 1) + row % (inner ? inner : 1);
            const float *const w = (const float *)e.w_in + in_all * ld;
            double error = 0, norm = 0;
            for (int64_t i = 0; i < s.d_in; i++) {
                const double d = (double)w[i] - in_row(&l, in_all, i);
                error += d * d;
                norm += (double)w[i] * (double)w[i];
            }
            CHECK(same((const float *)l.exact_in + row * l.ld_exact, w, s.d_in, 4), "row %lld is another", (long long)row);
            CHECK((double)l.margin[row] >= sqrt(error) + gamma_of((double)s.d_in, roundoff(CMM_F32)) * sqrt(norm),
                  "margin %lld: %a", (long long)row, (double)l.margin[row]);
        }
        const cmm_fff repacked = pack(&l, (cmm_pack_options){0}, 2, 1);
        int64_t bytes = 0;
        CHECK(cmm_fff_pack_size(&l, &bytes) == CMM_OK && same(l.w_in, repacked.w_in, bytes, 1), "packed again: other bytes");
        const char *exact_level = "";
        int64_t recomputed = -1;
        for (int w = 0; w < way_count; w++) {
            if (!way_is_exact(&ways[w]) || !can(&ways[w], types[t]))
                continue;
            (void)snprintf(now, sizeof now, "exact path, %s, %s, %lldx%d, %lld to %lld, batch %lld%s", ways[w].name,
                           names[types[t]], (long long)s.trees, s.depth, (long long)s.d_in, (long long)s.d_out,
                           (long long)s.batch, special ? ", special" : "");
            run(&e.layer, ways[w].run, &e, &wide);
            run(&l, ways[w].run, &e, &exact);
            CHECK(same(wide.nodes, exact.nodes, e.batch * e.steps, 4), "%s: another path", now);
            cmm_run given = ways[w].run; /* the narrow logits of the same nodes */
            given.path_nodes = wide.nodes;
            run(&plain, given, &e, &narrow);
            int64_t differ = 0;
            for (int64_t i = 0; i < e.batch * e.steps; i++) {
                const int is_wide = same(exact.logits + i, wide.logits + i, 1, 4);
                const int is_narrow = same(exact.logits + i, narrow.logits + i, 1, 4);
                const int both_nan = isnan(exact.logits[i]) && isnan(wide.logits[i]); /* their bits are the hardware's */
                CHECK(i % levels == levels - 1 ? is_narrow || isnan(narrow.logits[i]) : is_wide || is_narrow || both_nan,
                      "%s: logit %lld is %a; float32's %a, the narrow one %a", now, (long long)i,
                      (double)exact.logits[i], (double)wide.logits[i], (double)narrow.logits[i]);
                differ += !is_narrow && !isnan(exact.logits[i]);
            }
            CHECK(exact.recomputed >= differ && exact.recomputed <= e.batch * s.trees * s.depth, "%s: %lld recomputed", now,
                  (long long)exact.recomputed);
            if (strcmp(exact_level, ways[w].run.level) != 0)
                recomputed = exact.recomputed;
            exact_level = ways[w].run.level;
            CHECK(exact.recomputed == recomputed, "%s: %lld recomputed, not %lld", now, (long long)exact.recomputed,
                  (long long)recomputed);
            if (!special && s.d_in > 300 && s.depth > 0)
                CHECK(recomputed > 0 && recomputed < e.batch * s.trees * s.depth / 2, "%s: %lld", now, (long long)recomputed);
            cmm_run threads = ways[w].run;
            threads.threads = 3;
            run(&l, threads, &e, &again);
            CHECK(same(again.nodes, exact.nodes, e.batch * e.steps, 4) && again.recomputed == recomputed, "%s: 3 threads", now);
            run(&repacked, ways[w].run, &e, &again);
            CHECK(same(again.nodes, exact.nodes, e.batch * e.steps, 4) && again.recomputed == recomputed, "%s: packed again", now);
            given.path_nodes = exact.nodes; /* its own path has its bits, recomputed ones too */
            run(&l, given, &e, &again);
            CHECK(special || same_results(&again, &exact, &e), "%s: its own path", now);
            CHECK(again.recomputed == recomputed, "%s: its own path", now);
            int64_t none = -1;
            given.path_nodes = NULL;
            given.recomputed = &none;
            CHECK(cmm_fff_forward(&l, &given, 0, e.x, again.y, NULL, NULL) == CMM_OK && none == 0, "%s: no token", now);
        }
        if (!special && s.depth > 0) { /* a margin for every logit, and one for six deviations */
            float *const margins = allocate(s.trees * inner, sizeof *margins);
            cmm_fff all = l;
            for (int64_t i = 0; i < s.trees * inner; i++)
                margins[i] = INFINITY;
            all.margin = margins;
            run(&all, (cmm_run){.size = sizeof(cmm_run), .threads = 1}, &e, &again);
            CHECK(again.recomputed == e.batch * s.trees * s.depth, "all: %lld", (long long)again.recomputed);
            const cmm_fff likely = pack(&e.layer, (cmm_pack_options){.weight_dtype = types[t], .exact_path = 1, .sigmas = 6}, 3, 1);
            for (int64_t i = 0; i < s.trees * inner; i++)
                CHECK(likely.margin[i] <= l.margin[i] && (s.d_in > 36) == (likely.margin[i] < l.margin[i]), "margin of 6 sigmas");
            free(margins);
        }
    }
    results_free(&wide);
    results_free(&exact);
    results_free(&narrow);
    results_free(&again);
    example_free(&e);
}

/* Tokens so small that their squares underflow, and no bias that would decide. */
static void check_tiny(void)
{
    for (int power = -40; power >= -130; power -= 15) {
        example e = example_new((shape){.depth = 6, .trees = 1, .d_in = 200, .d_out = 1, .batch = 100}, 77);
        for (int64_t i = 0; i < e.batch * e.layer.d_in; i++)
            ((float *)e.x)[i] = ldexpf(((float *)e.x)[i], power);
        results wide = results_new(&e), exact = results_new(&e);
        const cmm_fff l = pack(&e.layer, (cmm_pack_options){.weight_dtype = CMM_I8, .exact_path = 1}, 0, 1);
        for (int w = 0; w < way_count; w++) {
            if (!way_is_exact(&ways[w]) || !can(&ways[w], CMM_I8))
                continue;
            (void)snprintf(now, sizeof now, "tokens of 2^%d, %s", power, ways[w].name);
            run(&e.layer, ways[w].run, &e, &wide);
            run(&l, ways[w].run, &e, &exact);
            CHECK(same(wide.nodes, exact.nodes, e.batch * e.steps, 4), "%s: another path", now);
        }
        results_free(&wide);
        results_free(&exact);
        example_free(&e);
    }
}

/* A row of elements a and a token of elements b of whose products two in each lane overflow, in float32 alone, to
 * infinities that are NaN together: it goes left, where the sum of whole numbers is positive. */
static void check_overflow(float a, float b)
{
    enum { WIDTH = 128 };
    float w_in[3 * WIDTH] = {0}, w_out[3] = {1, 2, 3}, x[WIDTH] = {0}, y;
    w_in[0] = w_in[64] = a;
    w_in[1] = w_in[65] = -a;
    w_in[2] = a / 127;
    x[0] = x[64] = x[1] = x[65] = x[2] = b;
    const cmm_fff layer = {.size = sizeof layer, .depth = 1, .trees = 1, .d_in = WIDTH, .d_out = 1, .w_in = w_in,
                           .w_out = w_out};
    const cmm_fff l = pack(&layer, (cmm_pack_options){.weight_dtype = CMM_I8, .exact_path = 1}, 0, 1);
    for (int w = 0; w < way_count; w++) {
        if (!way_is_exact(&ways[w]) || !can(&ways[w], CMM_I8))
            continue;
        int32_t wide[2], exact[2];
        CHECK(cmm_fff_forward(&layer, &ways[w].run, 1, x, &y, wide, NULL) == CMM_OK, "%s", ways[w].name);
        CHECK(cmm_fff_forward(&l, &ways[w].run, 1, x, &y, exact, NULL) == CMM_OK, "%s", ways[w].name);
        CHECK(wide[1] == exact[1], "%s: %d, not %d", ways[w].name, exact[1], wide[1]);
        CHECK(strcmp(ways[w].run.level, "native") != 0 || wide[1] == 1, "%s: no overflow", ways[w].name);
    }
}

/* Tokens that lie along a row's error, where Cauchy and Schwarz are equal, and a bias that leaves the float32 logit at
 * most one rounding from 0: the narrow logit is wrong by all that a margin allows but for its roundings. */
static void check_aligned(int64_t width)
{
    enum { TREES = 40, KINDS = 3 };
    example e = example_new((shape){.depth = 1, .trees = TREES, .d_in = width, .d_out = 1, .batch = TREES, .bias = 1},
                            (uint64_t)width);
    float *const x = e.x, *const bias = e.bias;
    results wide = results_new(&e), exact = results_new(&e), narrow = results_new(&e);
    for (int t = 1; t < TYPES; t++)
        for (int w = 0; w < way_count; w++) {
            if (!way_is_exact(&ways[w]) || !can(&ways[w], types[t]))
                continue;
            (void)snprintf(now, sizeof now, "tokens along errors, %s, %s, width %lld", ways[w].name, names[types[t]],
                           (long long)width);
            const cmm_fff rounded = pack(&e.layer, (cmm_pack_options){.weight_dtype = types[t]}, 0, 1);
            for (int64_t tree = 0; tree < TREES; tree++) /* token `tree` is for that tree's root */
                for (int64_t i = 0; i < width; i++)
                    x[tree * width + i] = (float)(((double)((const float *)e.w_in)[3 * tree * width + i] -
                                                   in_row(&rounded, 3 * tree, i)) * (tree % 2 ? 1 : -1));
            memset(bias, 0, (size_t)e.rows * sizeof *bias);
            run(&e.layer, ways[w].run, &e, &wide);
            int64_t fooled = 0;
            for (int kind = 0; kind < KINDS; kind++) { /* the logit is 0, just above, just below */
                for (int64_t tree = 0; tree < TREES; tree++) {
                    const float zero = -wide.logits[(tree * TREES + tree) * 2];
                    bias[3 * tree] = kind == 0 ? zero : nextafterf(zero, kind == 1 ? INFINITY : -INFINITY);
                }
                results again = results_new(&e);
                run(&e.layer, ways[w].run, &e, &again);
                const cmm_fff l = pack(&e.layer, (cmm_pack_options){.weight_dtype = types[t], .exact_path = 1}, 0, 1);
                const cmm_fff plain = pack(&e.layer, (cmm_pack_options){.weight_dtype = types[t]}, 1, 1);
                run(&l, ways[w].run, &e, &exact);
                run(&plain, ways[w].run, &e, &narrow);
                CHECK(same(again.nodes, exact.nodes, e.batch * e.steps, 4), "%s: another path", now);
                for (int64_t tree = 0; tree < TREES; tree++) {
                    const int64_t leaf = (tree * TREES + tree) * 2 + 1;
                    fooled += again.nodes[leaf] != narrow.nodes[leaf];
                }
                results_free(&again);
            }
            CHECK(width < 2 || fooled >= TREES, "%s: the narrow rows alone are wrong %lld times", now,
                  (long long)fooled);
        }
    results_free(&wide);
    results_free(&exact);
    results_free(&narrow);
    example_free(&e);
}

/* ---- a path that is given --------------------------------------------------------------------------------------- */

static void check_path(shape s)
{
    example e = example_new(s, (uint64_t)(s.d_in + s.batch));
    const int32_t levels = s.depth + 1;
    results r = results_new(&e), again = results_new(&e);
    int32_t *const leaves = guarded(4, e.batch * s.trees, 4, 1), *const nodes = guarded(5, e.batch * e.steps, 4, 1);
    int32_t *const other = guarded(6, e.batch * e.steps, 4, 1);
    uint64_t state = 5;
    for (int64_t path = 0; path < e.batch * s.trees; path++)
        for (int32_t level = 0, node = 0; level < levels; level++) {
            other[path * levels + level] = node;
            node = 2 * node + 1 + (int32_t)(random_bits(&state) & 1);
        }
    const cmm_fff layers[] = {e.layer, pack(&e.layer, (cmm_pack_options){.weight_dtype = CMM_I8, .exact_path = 1}, 0, 1)};
    for (int which = 0; which < 2; which++)
        for (int w = 0; w < way_count; w++) {
            if (which == 1 && (!way_is_exact(&ways[w]) || !can(&ways[w], CMM_I8)))
                continue;
            (void)snprintf(now, sizeof now, "a path, %s%s, %lldx%d, %lld to %lld, batch %lld", ways[w].name,
                           which ? ", int8 and exact" : "", (long long)s.trees, s.depth, (long long)s.d_in,
                           (long long)s.d_out, (long long)s.batch);
            run(&layers[which], ways[w].run, &e, &r);
            memcpy(nodes, r.nodes, (size_t)(e.batch * e.steps) * 4);
            for (int64_t path = 0; path < e.batch * s.trees; path++)
                leaves[path] = nodes[path * levels + s.depth];
            cmm_fff opposite = layers[which];
            opposite.tie = CMM_TIE_RIGHT - s.tie; /* means nothing */
            cmm_run given = ways[w].run;
            given.path_nodes = nodes;
            run(&opposite, given, &e, &again);
            CHECK(same_results(&r, &again, &e), "%s: nodes given back", now);
            given.path_nodes = NULL;
            given.path_leaves = leaves;
            given.threads = 3;
            run(&opposite, given, &e, &again);
            CHECK(way_is_exact(&ways[w]) ? same_results(&r, &again, &e) : same(r.nodes, again.nodes, e.batch * e.steps, 4),
                  "%s: leaves given back", now);
            given.path_leaves = NULL;
            given.path_nodes = other;
            given.threads = 1;
            run(&layers[which], given, &e, &again);
            CHECK(same(again.nodes, other, e.batch * e.steps, 4), "%s: another path than the given one", now);
            cmm_fff rows = layers[which];
            rows.ld_in = rows.ld_in ? rows.ld_in : s.d_in;
            rows.ld_out = rows.ld_out ? rows.ld_out : s.d_out;
            if (which == 0)
                check_values(&rows, &e, again.y, again.nodes, again.logits, now);
        }
    /* What is no path is told by token and tree, and nothing is written. */
    int64_t refused[2];
    cmm_run bad = {.size = sizeof bad, .refused = refused};
    for (int64_t token = 0; token < e.batch; token += e.batch > 3 ? 3 : 1)
        for (int64_t tree = 0; tree < s.trees; tree += s.trees > 3 ? 3 : 1)
            for (int wrong = 0; wrong < 5; wrong++) {
                int32_t *const leaf = leaves + token * s.trees + tree, good_leaf = *leaf;
                int32_t *const node = other + (token * s.trees + tree) * levels + wrong % levels, good_node = *node;
                const int32_t nodes_in_tree = (int32_t)(((int64_t)2 << s.depth) - 1);
                *leaf = wrong == 0 ? -1 : wrong == 1 ? nodes_in_tree : wrong == 2 ? nodes_in_tree / 2 - 1 : wrong == 3 ? INT32_MIN : INT32_MAX;
                *node += wrong % levels == 0 ? 1 : 2;
                for (int by_leaf = 0; by_leaf < 2; by_leaf++) {
                    bad.path_nodes = by_leaf ? NULL : other;
                    bad.path_leaves = by_leaf ? leaves : NULL;
                    refused[0] = refused[1] = -1;
                    example_forget(&e);
                    memset(again.y, 0xff, (size_t)(e.batch * s.d_out) * 4);
                    CHECK(cmm_fff_forward(&e.layer, &bad, e.batch, e.x, e.y, e.nodes, e.logits) == CMM_ERROR_PATH, "%s: %d", now, wrong);
                    CHECK(refused[0] == token && refused[1] == tree, "%lld %lld", (long long)refused[0], (long long)refused[1]);
                    CHECK(same(e.y, again.y, e.batch * s.d_out, 4) && e.nodes[0] == -1, "something was written");
                }
                *leaf = good_leaf;
                *node = good_node;
            }
    results_free(&r);
    results_free(&again);
    example_free(&e);
}

/* ---- wrong calls ------------------------------------------------------------------------------------------------ */

static void check_wrong(void)
{
    static _Alignas(64) char memory[1 << 14];
    example e = example_new((shape){.depth = 2, .trees = 2, .d_in = 5, .d_out = 4, .batch = 3, .bias = 1}, 1);
    const cmm_fff good = pack(&e.layer, (cmm_pack_options){.weight_dtype = CMM_I8, .exact_path = 1}, 0, 0);
    cmm_fff l = good, packed;
    int64_t bytes;
#define WRONG(status, call, ...)                                                          \
    do {                                                                                  \
        __VA_ARGS__;                                                                      \
        example_forget(&e);                                                               \
        const cmm_status got = call;                                                      \
        CHECK(got == (status), "%s: %s", #__VA_ARGS__, cmm_status_name(got));             \
        CHECK(e.nodes[0] == -1 && isnan(((const float *)e.y)[0]), "%s: written", #__VA_ARGS__); \
        l = good;                                                                         \
    } while (0)
#define FORWARD cmm_fff_forward(&l, NULL, e.batch, e.x, e.y, e.nodes, e.logits)
#define INTO(pointer) cmm_fff_forward(&l, NULL, e.batch, e.x, (void *)(uintptr_t)(pointer), NULL, NULL)
    WRONG(CMM_ERROR_SCALE, FORWARD, l.scale_in = NULL);
    WRONG(CMM_ERROR_SCALE, FORWARD, l.scale_out = NULL);
    WRONG(CMM_ERROR_SCALE, FORWARD, l.weight_dtype = CMM_BF16);
    WRONG(CMM_ERROR_SCALE, FORWARD, l.weight_out_dtype = CMM_AS_DTYPE);
    WRONG(CMM_ERROR_EXACT, FORWARD, l.margin = NULL);
    WRONG(CMM_ERROR_EXACT, FORWARD, l.exact_in = NULL);
    WRONG(CMM_ERROR_WEIGHT_DTYPE, FORWARD, l.dtype = CMM_F64);
    WRONG(CMM_ERROR_LD_EXACT, FORWARD, l.ld_exact = l.d_in - 1);
    WRONG(CMM_ERROR_LD_EXACT, FORWARD, l.ld_exact = -1);
    WRONG(CMM_ERROR_LAYER_TOO_LARGE, FORWARD, l.ld_exact = INT64_MAX / 8);
    WRONG(CMM_ERROR_SCALE_ALIGN, FORWARD, l.scale_in = (const float *)(const void *)((const char *)l.scale_in + 1));
    WRONG(CMM_ERROR_SCALE_ALIGN, FORWARD, l.scale_out = (const float *)(const void *)((const char *)l.scale_out + 2));
    WRONG(CMM_ERROR_SCALE_ALIGN, FORWARD, l.margin = (const float *)(const void *)((const char *)l.margin + 3));
    WRONG(CMM_ERROR_EXACT_ALIGN, FORWARD, l.exact_in = (const char *)l.exact_in + 2);
    WRONG(CMM_ERROR_Y_OVERLAP, INTO(l.scale_in), (void)0);
    WRONG(CMM_ERROR_Y_OVERLAP, INTO(l.scale_out + e.rows - 1), (void)0);
    WRONG(CMM_ERROR_Y_OVERLAP, INTO(l.margin + 5), (void)0);
    float *const apart = allocate(e.rows + 16, sizeof *apart); /* with nothing of the layer behind it */
    memcpy(apart, good.scale_out, (size_t)e.rows * sizeof *apart);
    WRONG(CMM_ERROR_Y_OVERLAP, INTO(l.scale_out + e.rows - 1), l.scale_out = apart);
    memcpy(apart, good.scale_in, (size_t)e.rows * sizeof *apart);
    WRONG(CMM_ERROR_Y_OVERLAP, INTO(l.scale_in + e.rows - 1), l.scale_in = apart);
    memcpy(apart, good.margin, 6 * sizeof *apart);
    WRONG(CMM_ERROR_Y_OVERLAP, INTO(l.margin + 5), l.margin = apart);
    free(apart);
    WRONG(CMM_ERROR_Y_OVERLAP, INTO((const char *)l.exact_in + (5 * l.ld_exact + 4) * 4), (void)0);
    static const char *const levels[] = {"blas1", "blas2", "blas3"};
    for (int i = 0; i < 3; i++) {
        const cmm_run blas = {.size = sizeof blas, .level = levels[i], .blas = &reference_blas};
        WRONG(CMM_ERROR_LEVEL_WEIGHT_DTYPE, cmm_fff_forward(&l, &blas, e.batch, e.x, e.y, e.nodes, e.logits), (void)0);
        WRONG(CMM_ERROR_LEVEL_WEIGHT_DTYPE, cmm_fff_forward(&l, &blas, e.batch, e.x, e.y, e.nodes, e.logits),
              l = e.layer, l.weight_out_dtype = CMM_BF16);
    }
    /* Packing. */
    cmm_pack_options o = {.size = sizeof o, .weight_dtype = CMM_I8, .exact_path = 1};
#define SIZE cmm_fff_pack_size_as(&e.layer, &o, &bytes)
#define WRONG_OPTIONS(status, ...)                                          \
    do {                                                                    \
        const cmm_pack_options keep = o;                                    \
        __VA_ARGS__;                                                        \
        const cmm_status got = SIZE;                                        \
        CHECK(got == (status), "%s: %s", #__VA_ARGS__, cmm_status_name(got)); \
        o = keep;                                                           \
    } while (0)
    WRONG_OPTIONS(CMM_OK, (void)0);
    WRONG_OPTIONS(CMM_ERROR_EXACT, o.exact_path = 2);
    WRONG_OPTIONS(CMM_ERROR_EXACT, o.exact_path = -1);
    WRONG_OPTIONS(CMM_ERROR_EXACT, o.weight_dtype = 0);
    WRONG_OPTIONS(CMM_ERROR_SIGMAS, o.sigmas = -1);
    WRONG_OPTIONS(CMM_ERROR_SIGMAS, o.sigmas = (double)NAN);
    WRONG_OPTIONS(CMM_ERROR_SIGMAS, o.exact_path = 0, o.sigmas = 6);
    WRONG_OPTIONS(CMM_ERROR_WEIGHT_DTYPE, o.weight_out_dtype = 9);
    WRONG_OPTIONS(CMM_ERROR_WEIGHT_DTYPE, o.weight_out_dtype = -2);
#if SIZE_MAX > UINT32_MAX /* with addresses of 32 bits there is no such layer */
    cmm_fff wide = e.layer; /* whose size alone is asked for: no inner node, and a row as long as there are bytes */
    wide.depth = 0;
    wide.trees = 1;
    wide.bias = NULL;
    wide.d_in = wide.ld_in = INT64_MAX / 4;
    CHECK(cmm_fff_pack_size_as(&wide, &o, &bytes) == CMM_OK && bytes == INT64_MAX / 4 / 64 * 64 + 64 + 64 + 8,
          "as wide as memory: %lld", (long long)bytes);
#endif
    CHECK(cmm_fff_pack_size_as(&good, &o, &bytes) == CMM_OK, "narrow already, and exact already");
    o.sigmas = 6;
    CHECK(cmm_fff_pack_size_as(&good, &o, &bytes) == CMM_ERROR_SIGMAS, "margins that are there already");
    o.sigmas = 0;
    o.weight_dtype = CMM_BF16;
    CHECK(cmm_fff_pack_size_as(&good, &o, &bytes) == CMM_ERROR_WEIGHT_DTYPE, "from one narrow type to another");
    /* A struct of an older version could not say what the packed layer is. */
    cmm_fff old = e.layer;
    const struct {
        uint32_t size;
        cmm_pack_options options;
        cmm_status status;
    } versions[] = {
        {offsetof(cmm_fff, weight_dtype), {.weight_dtype = 0}, CMM_OK},
        {offsetof(cmm_fff, weight_dtype), {.weight_dtype = CMM_BF16}, CMM_ERROR_LAYER_SIZE},
        {offsetof(cmm_fff, scale_in), {.weight_dtype = CMM_BF16}, CMM_OK},
        {offsetof(cmm_fff, scale_in), {.weight_dtype = CMM_BF16, .weight_out_dtype = CMM_AS_DTYPE}, CMM_OK},
        {offsetof(cmm_fff, scale_in), {.weight_dtype = CMM_I8}, CMM_ERROR_LAYER_SIZE},
        {offsetof(cmm_fff, scale_in), {.weight_out_dtype = CMM_I8}, CMM_ERROR_LAYER_SIZE},
        {offsetof(cmm_fff, exact_in), {.weight_dtype = CMM_I8}, CMM_OK},
        {offsetof(cmm_fff, exact_in), {.weight_dtype = CMM_I8, .exact_path = 1}, CMM_ERROR_LAYER_SIZE},
        {sizeof(cmm_fff), {.weight_dtype = CMM_I8, .exact_path = 1}, CMM_OK},
    };
    for (size_t i = 0; i < sizeof versions / sizeof *versions; i++) {
        cmm_pack_options options = versions[i].options;
        options.size = sizeof options;
        old.size = versions[i].size;
        memset(&packed, 0xA5, sizeof packed);
        const cmm_status got = cmm_fff_pack_as(&old, &options, memory, sizeof memory, &packed);
        CHECK(got == versions[i].status, "size %u: %s", old.size, cmm_status_name(got));
        const unsigned char *const behind = (const unsigned char *)&packed + old.size;
        for (size_t k = 0; k < sizeof packed - old.size; k++)
            CHECK(behind[k] == 0xA5, "size %u: written behind the struct", old.size);
    }
    example_free(&e);
}

int main(int argc, char **argv)
{
    const int few = argc > 1 && strcmp(argv[1], "few") == 0;
    far = argc > 2 && strcmp(argv[2], "far") == 0 ? 64 : 0;
    make_buffers((size_t)1 << 25);
    ways_find();
    check_quantisation();
    check_not_finite();
    check_wrong();
    check_tiny();
    check_overflow(0x1p100f, 0x1p27f); /* too large a row */
    check_overflow(0x1p77f, 0x1p62f);  /* too large a token */
    for (int64_t width = 1; width <= 512; width *= 8)
        check_aligned(width);
    static const shape shapes[] = {
        {.depth = 0, .trees = 1, .d_in = 1, .d_out = 1, .batch = 1},
        {.depth = 3, .trees = 1, .d_in = 1, .d_out = 33, .batch = 9, .bias = 1},
        {.depth = 4, .trees = 2, .d_in = 33, .d_out = 1, .batch = 17, .tie = CMM_TIE_RIGHT, .padding = 1},
        {.depth = 2, .trees = 5, .d_in = 13, .d_out = 130, .batch = 40, .bias = 1, .activation = CMM_GELU_TANH},
        {.depth = 5, .trees = 1, .d_in = 768, .d_out = 100, .batch = 600, .bias = 1}, /* enough for three threads */
        {.depth = 9, .trees = 1, .d_in = 35, .d_out = 37, .batch = 300, .activation = CMM_SILU},
        {.depth = 0, .trees = 100, .d_in = 33, .d_out = 31, .batch = 70, .bias = 1},
        {.depth = 3, .trees = 3, .d_in = 1000, .d_out = 1000, .batch = 21, .padding = 3},
        {.depth = 0, .trees = 3072, .d_in = 9, .d_out = 10, .batch = 5},
        {.depth = 15, .trees = 1, .d_in = 3, .d_out = 2, .batch = 60, .activation = CMM_RELU},
    };
    const int count = far ? 4 : few ? 5 : (int)(sizeof shapes / sizeof *shapes);
    for (int i = 0; i < count; i++) {
        check_pairs(shapes[i]);
        check_exact(shapes[i], 0);
        check_exact(shapes[i], 1);
        check_path(shapes[i]);
    }
    if (!far) { /* two phases: the norms of the first serve the second, and the next tree, in which tokens are sorted */
        static const shape two_phases = {.depth = 7, .trees = 2, .d_in = 256, .d_out = 3, .batch = 300, .bias = 1};
        make_caches_small();
        check_exact(two_phases, 0);
        check_exact(two_phases, 1);
        check_path(two_phases);
    }
    return check_report();
}
