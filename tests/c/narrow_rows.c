/* Rows of weights that are narrower than the tokens: the bits of the same kernel on rows that hold the widened numbers,
 * the oracle on those rows, no byte touched outside the narrow ones, the rounding of packing, and the wrong calls.
 *
 *     narrow_rows        all of it
 *     narrow_rows few        fewer shapes, for an emulator
 *     narrow_rows few far    and away from the guard pages, for one whose masked loads touch what they skip */
#define _GNU_SOURCE
#include "guard.h"
#include "oracle.h"
#include "small_caches.h"
#include "system.h"
#include "ways.h"

/* The formats by definition, in double: sign, exponent, significand. */
typedef struct format {
    int32_t dtype;
    const char *name;
    int exponent_bits, bias, significand_bits;
} format;

static const format formats[] = {
    {CMM_BF16, "bfloat16", 8, 127, 7},
    {CMM_F16, "float16", 5, 15, 10},
};

enum { FORMATS = sizeof formats / sizeof *formats, PATTERNS = 1 << 16 };

static double value_of(const format *f, uint16_t bits)
{
    const int significand = bits & ((1 << f->significand_bits) - 1), sign = bits >> 15;
    const int exponent = bits >> f->significand_bits & ((1 << f->exponent_bits) - 1);
    double v;
    if (exponent == (1 << f->exponent_bits) - 1)
        v = significand ? (double)NAN : (double)INFINITY;
    else if (exponent == 0)
        v = ldexp(significand, 1 - f->bias - f->significand_bits);
    else
        v = ldexp((1 << f->significand_bits) + significand, exponent - f->bias - f->significand_bits);
    return sign ? -v : v;
}

/* The nearest number of the format, ties to even: its spacing at v is a power of two, and nearbyint() rounds to even. */
static uint16_t nearest(const format *f, double v)
{
    const int least = 1 - f->bias, infinite = (1 << f->exponent_bits) - 1;
    const uint16_t sign = signbit(v) ? 0x8000 : 0;
    if (isnan(v))
        return (uint16_t)(sign | infinite << f->significand_bits | 1);
    int exponent = least;
    if (v != 0 && !isinf(v) && ilogb(v) > least)
        exponent = ilogb(v);
    const double steps = nearbyint(ldexp(fabs(v), f->significand_bits - exponent)); /* of the spacing */
    if (!(steps * ldexp(1, exponent - f->significand_bits) < ldexp(1, f->bias + 1)))
        return (uint16_t)(sign | infinite << f->significand_bits);
    /* In the lowest binade and below, the exponent field counts from 0 or 1; a carry from the steps raises it. */
    return (uint16_t)(sign | (((exponent - least) << f->significand_bits) + (int)steps));
}

static int is_nan(const format *f, uint16_t bits)
{
    return isnan(value_of(f, bits));
}

/* Whether the library has kernels for these rows on this way's instruction set, and this CPU all that they take. */
static int can(const way *w, const format *f)
{
    cmm_kernel_info kernel = {.size = sizeof kernel};
    for (int32_t k = 0; cmm_kernel_get(k, &kernel) == CMM_OK; k++)
        if (kernel.available && strcmp(kernel.level, w->run.level) == 0 && strcmp(kernel.w_type, f->name) == 0 &&
            (strcmp(kernel.isa, "any") == 0 || strcmp(kernel.isa, w->run.isa) == 0))
            return 1;
    return 0;
}

/* The bits of results with NaNs made alike: their sign and payload are the hardware's. */
static int same_bits(const float *a, const float *b, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (memcmp(&a[i], &b[i], sizeof *a) != 0 && !(isnan(a[i]) && isnan(b[i])))
            return 0;
    return 1;
}

/* ---- every number ---------------------------------------------------------------------------------------------- */

/* y = 1 * row, for a row of every number there is, and for short ones. */
static void check_outputs_of_every_number(const format *f, const way *w)
{
    uint16_t *const all = allocate(PATTERNS, sizeof *all);
    float *const y = allocate(PATTERNS, sizeof *y);
    const float one = 1;
    for (int i = 0; i < PATTERNS; i++)
        all[i] = (uint16_t)i;
    const uint16_t unit = nearest(f, 1);
    cmm_fff layer = {.size = sizeof layer, .activation = CMM_IDENTITY, .trees = 1, .d_in = 1, .w_in = &unit,
                     .weight_dtype = f->dtype};
    for (int64_t d_out = PATTERNS, first = 0; d_out > 0; d_out = d_out == PATTERNS ? 150 : d_out - 1) {
        layer.d_out = d_out;
        layer.w_out = all + first;
        CHECK(cmm_fff_forward(&layer, &w->run, 1, &one, y, NULL, NULL) == CMM_OK, "%s", w->name);
        for (int64_t i = 0; i < d_out; i++) {
            const double want = value_of(f, all[first + i]);
            CHECK(isnan(want) ? isnan(y[i]) : (double)y[i] == want, "%s, %s: 0x%04x of %lld is %a, not %a", w->name,
                  f->name, all[first + i], (long long)d_out, (double)y[i], want);
        }
        first = (first + 977) % (PATTERNS - 200);
    }
    free(all);
    free(y);
}

/* logit = row * 1: a tree of one node and width 1 for every number there is; and places in a wider row. */
static void check_logits_of_every_number(const format *f, const way *w)
{
    enum { WIDTH = 75 };
    uint16_t *const all = calloc((size_t)PATTERNS * WIDTH, sizeof *all);
    float *const logits = allocate(PATTERNS, sizeof *logits), x[WIDTH];
    if (!all)
        exit(2);
    for (int width = 1; width <= WIDTH; width += WIDTH - 1) {
        for (int i = 0; i < PATTERNS; i++) {
            memset(all + (int64_t)i * width, 0, (size_t)width * sizeof *all);
            all[(int64_t)i * width + i % width] = (uint16_t)i;
        }
        for (int i = 0; i < width; i++)
            x[i] = 1;
        const cmm_fff layer = {.size = sizeof layer, .trees = PATTERNS, .d_in = width, .w_in = all,
                               .weight_dtype = f->dtype};
        CHECK(cmm_cmm_forward(&layer, &w->run, 1, x, NULL, logits) == CMM_OK, "%s", w->name);
        for (int i = 0; i < PATTERNS; i++) {
            const double want = value_of(f, (uint16_t)i);
            CHECK(isnan(want) ? isnan(logits[i]) : (double)logits[i] == want, "%s, %s: 0x%04x is %a, not %a", w->name,
                  f->name, i, (double)logits[i], want);
        }
    }
    free(all);
    free(logits);
}

static int64_t margin; /* elements between an array and its guard page */

static void *place(int which, int64_t elements, size_t size, int at_end)
{
    return (char *)guarded(which, elements + margin, size, at_end) + (at_end ? 0 : margin * (int64_t)size);
}

/* ---- layers ---------------------------------------------------------------------------------------------------- */

/* Random narrow rows, and the same numbers as float. One of 50 is among the least there are, or 0. */
static void fill(const format *f, uint16_t *narrow, float *wide, int64_t n, uint64_t *state)
{
    for (int64_t i = 0; i < n; i++) {
        const double v = random_unit(state);
        narrow[i] = random_bits(state) % 50 ? nearest(f, v) : (uint16_t)(random_bits(state) & 0x8003);
        wide[i] = (float)value_of(f, narrow[i]);
    }
}

static void check_shape(const format *f, shape s)
{
    example e = example_new(s, (uint64_t)(s.d_in * 1000 + s.d_out));
    const cmm_fff *const l = &e.layer;
    const int64_t w_in = span(e.rows, l->d_in, l->ld_in ? l->ld_in : l->d_in);
    const int64_t w_out = span(e.rows, l->d_out, l->ld_out ? l->ld_out : l->d_out);
    uint16_t *const rows_in = allocate(w_in, 2), *const rows_out = allocate(w_out, 2);
    uint64_t state = 17;
    fill(f, rows_in, e.w_in, w_in, &state);
    fill(f, rows_out, e.w_out, w_out, &state);
    for (int at_end = 0; at_end < 2; at_end++) {
        example m = e; /* the narrow layer, between guard pages */
        m.w_in = place(0, w_in, 2, at_end);
        m.w_out = place(1, w_out, 2, at_end);
        m.x = place(2, e.batch * l->d_in, 4, at_end);
        m.y = place(3, e.batch * l->d_out, 4, at_end);
        m.nodes = place(4, e.batch * e.steps, 4, at_end);
        m.logits = place(5, e.batch * e.steps, 4, at_end);
        if (e.bias)
            memcpy(m.bias = place(6, e.rows, 4, at_end), e.bias, (size_t)e.rows * 4);
        memcpy(m.w_in, rows_in, (size_t)w_in * 2);
        memcpy(m.w_out, rows_out, (size_t)w_out * 2);
        memcpy(m.x, e.x, (size_t)(e.batch * l->d_in) * 4);
        m.layer.w_in = m.w_in;
        m.layer.w_out = m.w_out;
        m.layer.bias = m.bias;
        m.layer.weight_dtype = f->dtype;
        for (int i = 0; i < way_count; i++) {
            if (!way_is_exact(&ways[i]) || !can(&ways[i], f))
                continue;
            (void)snprintf(now, sizeof now, "%s, %s rows, %lldx%d, %lld to %lld, batch %lld, %s end", ways[i].name,
                           f->name, (long long)s.trees, s.depth, (long long)s.d_in, (long long)s.d_out,
                           (long long)s.batch, at_end ? "upper" : "lower");
            CHECK(example_run(&e, &ways[i].run) == CMM_OK, "%s", now);
            CHECK(example_run(&m, &ways[i].run) == CMM_OK, "%s", now);
            CHECK(memcmp(e.y, m.y, (size_t)(e.batch * l->d_out) * 4) == 0, "%s: y", now);
            CHECK(memcmp(e.nodes, m.nodes, (size_t)(e.batch * e.steps) * 4) == 0, "%s: nodes", now);
            CHECK(memcmp(e.logits, m.logits, (size_t)(e.batch * e.steps) * 4) == 0, "%s: logits", now);
            if (!at_end) {
                memcpy(e.y, m.y, (size_t)(e.batch * l->d_out) * 4);
                oracle_check(&e, 1, now); /* e's rows hold the widened numbers */
            }
            example_forget(&m);
            CHECK(cmm_cmm_forward(&m.layer, &ways[i].run, m.batch, m.x, m.nodes, m.logits) == CMM_OK, "%s", now);
            CHECK(memcmp(e.nodes, m.nodes, (size_t)(e.batch * e.steps) * 4) == 0, "%s: nodes alone", now);
            CHECK(memcmp(e.logits, m.logits, (size_t)(e.batch * e.steps) * 4) == 0, "%s: logits alone", now);
        }
    }
    free(rows_in);
    free(rows_out);
    example_free(&e);
}

/* ---- packing --------------------------------------------------------------------------------------------------- */

/* Every number of the format, what lies half way to the next one and next to that; both signs; and what is no number
 * of it: all are rounded as the definition says. */
static void check_rounding(const format *f)
{
    enum { KINDS = 4, EXTRA = 12, NANS = 4 };
    static const uint32_t nans[NANS] = {0x7f800001, 0xff800001, 0x7fffffff, 0xffa00000}; /* some lose all bits but these */
    static const float extra[EXTRA] = {INFINITY, -INFINITY, NAN, -NAN, FLT_MAX, -FLT_MAX, FLT_MIN, FLT_TRUE_MIN,
                                       -FLT_TRUE_MIN, 1e-30f, 65504, 65520};
    const int64_t n = (int64_t)PATTERNS * KINDS + EXTRA + NANS;
    float *const row = allocate(n, sizeof *row);
    for (int i = 0; i < PATTERNS; i++) {
        const double v = value_of(f, (uint16_t)i), next = value_of(f, (uint16_t)(i + 1));
        const float middle = (float)(isinf(next) ? v * (1 + ldexp(0.5, -f->significand_bits - 1)) : (v + next) / 2);
        row[i * KINDS] = (float)v;
        row[i * KINDS + 1] = middle;
        row[i * KINDS + 2] = nextafterf(middle, -INFINITY);
        row[i * KINDS + 3] = nextafterf(middle, INFINITY);
    }
    memcpy(row + PATTERNS * KINDS, extra, sizeof extra);
    memcpy(row + PATTERNS * KINDS + EXTRA, nans, sizeof nans);
    const cmm_fff layer = {.size = sizeof layer, .trees = 1, .d_in = n, .d_out = 1, .w_in = row, .w_out = row};
    const cmm_pack_options options = {.size = sizeof options, .weight_dtype = f->dtype};
    int64_t bytes = 0;
    CHECK(cmm_fff_pack_size_as(&layer, &options, &bytes) == CMM_OK, "%s", f->name);
    CHECK(bytes == (2 * n + 63) / 64 * 64 + 64, "%s: %lld bytes", f->name, (long long)bytes);
    void *const memory = aligned_new((size_t)bytes);
    cmm_fff packed;
    CHECK(memory && cmm_fff_pack_as(&layer, &options, memory, bytes, &packed) == CMM_OK, "%s", f->name);
    CHECK(packed.weight_dtype == f->dtype && packed.dtype == CMM_F32, "%s", f->name);
    for (int64_t i = 0; i < n; i++) {
        const uint16_t got = ((const uint16_t *)packed.w_in)[i], want = nearest(f, (double)row[i]);
        const int quiet = got >> (f->significand_bits - 1) & 1;
        CHECK(isnan(row[i]) ? is_nan(f, got) && quiet : got == want, "%s: %a becomes 0x%04x, not 0x%04x", f->name, (double)row[i],
              got, want);
    }
    aligned_delete(memory);
    free(row);
}

/* A packed layer is that with the rounded rows, to the bit; and packing it again changes nothing. */
static void check_pack(const format *f, shape s)
{
    example e = example_new(s, 5);
    const cmm_pack_options options = {.size = sizeof options, .weight_dtype = f->dtype};
    const cmm_fff original = e.layer;
    int64_t bytes = 0, again = 0;
    CHECK(cmm_fff_pack_size_as(&e.layer, &options, &bytes) == CMM_OK, "%s", f->name);
    char *const memory = place(0, (bytes + 63) / 64 * 64, 1, 1), *const second = place(1, (bytes + 63) / 64 * 64, 1, 1);
    cmm_fff packed, repacked;
    (void)snprintf(now, sizeof now, "cmm_fff_pack_as, %s, %lld to %lld", f->name, (long long)s.d_in, (long long)s.d_out);
    memset(memory, 0xff, (size_t)bytes);
    memset(second, 0xee, (size_t)bytes);
    CHECK(cmm_fff_pack_as(&e.layer, &options, memory, bytes, &packed) == CMM_OK, "%s", now);
    CHECK(cmm_fff_pack_size(&packed, &again) == CMM_OK && again == bytes, "%s: again", now);
    CHECK(cmm_fff_pack_size_as(&packed, &options, &again) == CMM_OK && again == bytes, "%s: again", now);
    CHECK(cmm_fff_pack(&packed, second, bytes, &repacked) == CMM_OK, "%s: again", now);
    CHECK(repacked.weight_dtype == f->dtype && memcmp(memory, second, (size_t)bytes) == 0, "%s: again", now);
    if (s.bias)
        CHECK(memcmp(packed.bias, e.bias, (size_t)e.rows * 4) == 0, "%s: bias", now);
    /* The rounded rows, as float. */
    const int64_t ld_in = original.ld_in ? original.ld_in : s.d_in, ld_out = original.ld_out ? original.ld_out : s.d_out;
    for (int64_t r = 0; r < e.rows; r++) {
        for (int64_t i = 0; i < s.d_in; i++)
            put(CMM_F32, e.w_in, r * ld_in + i, value_of(f, nearest(f, get(CMM_F32, e.w_in, r * ld_in + i))));
        for (int64_t i = 0; i < s.d_out; i++)
            put(CMM_F32, e.w_out, r * ld_out + i, value_of(f, nearest(f, get(CMM_F32, e.w_out, r * ld_out + i))));
    }
    float *const y = allocate(e.batch * s.d_out, sizeof *y);
    for (int i = 0; i < way_count; i++) {
        if (!way_is_exact(&ways[i]) || !can(&ways[i], f))
            continue;
        CHECK(example_run(&e, &ways[i].run) == CMM_OK, "%s", ways[i].name);
        CHECK(cmm_fff_forward(&packed, &ways[i].run, e.batch, e.x, y, NULL, NULL) == CMM_OK, "%s", ways[i].name);
        CHECK(memcmp(y, e.y, (size_t)(e.batch * s.d_out) * sizeof *y) == 0, "%s: %s", now, ways[i].name);
        CHECK(cmm_fff_forward(&repacked, &ways[i].run, e.batch, e.x, y, NULL, NULL) == CMM_OK, "%s", ways[i].name);
        CHECK(memcmp(y, e.y, (size_t)(e.batch * s.d_out) * sizeof *y) == 0, "%s: again, %s", now, ways[i].name);
    }
    free(y);
    example_free(&e);
}

/* Infinities and NaNs: those in rows that are visited come out as they do of float32 rows, others have no influence. */
static void check_special(const format *f)
{
    const uint16_t infinite = nearest(f, (double)INFINITY), nan = nearest(f, (double)NAN), one = nearest(f, 1);
    uint16_t w_in[3 * 2] = {one, one, nan, infinite, one, one}, w_out[3 * 2] = {one, infinite, nan, nan, nan, one};
    float wide_in[6], wide_out[6], y[2], wide_y[2];
    const float x[2] = {1, 2}; /* goes right: row 1, of infinities and NaNs, is not visited */
    for (int i = 0; i < 6; i++) {
        wide_in[i] = (float)value_of(f, w_in[i]);
        wide_out[i] = (float)value_of(f, w_out[i]);
    }
    cmm_fff layer = {.size = sizeof layer, .activation = CMM_IDENTITY, .depth = 1, .trees = 1, .d_in = 2, .d_out = 2,
                     .w_in = w_in, .w_out = w_out, .weight_dtype = f->dtype};
    cmm_fff wide = layer;
    wide.w_in = wide_in;
    wide.w_out = wide_out;
    wide.weight_dtype = 0;
    for (int i = 0; i < way_count; i++) {
        if (!way_is_exact(&ways[i]) || !can(&ways[i], f))
            continue;
        CHECK(cmm_fff_forward(&layer, &ways[i].run, 1, x, y, NULL, NULL) == CMM_OK, "%s", ways[i].name);
        CHECK(cmm_fff_forward(&wide, &ways[i].run, 1, x, wide_y, NULL, NULL) == CMM_OK, "%s", ways[i].name);
        CHECK(same_bits(y, wide_y, 2) && isnan(y[0]) && isinf(y[1]), "%s, %s: %a %a", ways[i].name, f->name,
              (double)y[0], (double)y[1]);
    }
}

/* ---- wrong calls ----------------------------------------------------------------------------------------------- */

static void check_wrong(const format *f)
{
    static _Alignas(CMM_ALIGNMENT) char memory[1 << 14], before[1 << 14];
    example e = example_new((shape){.depth = 2, .trees = 2, .d_in = 5, .d_out = 4, .batch = 3, .bias = 1}, 1);
    cmm_fff l = e.layer, packed, untouched;
    int64_t bytes = -7;
    cmm_pack_options options = {.size = sizeof options, .weight_dtype = f->dtype};
    l.weight_dtype = f->dtype; /* the rows' bytes are read as numbers of the format, which does no harm */
    example_forget(&e);
#define FORWARD(run) cmm_fff_forward(&l, run, e.batch, e.x, e.y, e.nodes, e.logits)
#define WRONG(status, call, ...)                                                                      \
    do {                                                                                              \
        const cmm_fff good = l;                                                                       \
        __VA_ARGS__;                                                                                  \
        const cmm_status got = call;                                                                  \
        CHECK(got == (status), "%s: %s: %s", f->name, #__VA_ARGS__, cmm_status_name(got));            \
        l = good;                                                                                     \
    } while (0)
    static const int32_t unknown[] = {-1, 5, 100, INT32_MIN, INT32_MAX, CMM_F64};
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++) {
        WRONG(CMM_ERROR_WEIGHT_DTYPE, FORWARD(NULL), l.weight_dtype = unknown[i]);
        WRONG(CMM_ERROR_WEIGHT_DTYPE, cmm_cmm_forward(&l, NULL, e.batch, e.x, e.nodes, NULL), l.weight_dtype = unknown[i]);
        WRONG(CMM_ERROR_WEIGHT_DTYPE, cmm_fff_pack_size(&l, &bytes), l.weight_dtype = unknown[i]);
        options.weight_dtype = unknown[i];
        WRONG(CMM_ERROR_WEIGHT_DTYPE, cmm_fff_pack_size_as(&l, &options, &bytes), l.weight_dtype = 0);
        WRONG(CMM_ERROR_WEIGHT_DTYPE, cmm_fff_pack_size_as(&l, &options, &bytes), (void)0);
    }
    for (const format *other = formats; other < formats + FORMATS; other++) {
        options.weight_dtype = other->dtype; /* rows that are narrow already are no float32 rows */
        if (other != f)
            WRONG(CMM_ERROR_WEIGHT_DTYPE, cmm_fff_pack_size_as(&l, &options, &bytes), (void)0);
    }
    options.weight_dtype = f->dtype;
    WRONG(CMM_ERROR_WEIGHT_DTYPE, FORWARD(NULL), l.dtype = CMM_F64);
    WRONG(CMM_ERROR_WEIGHT_DTYPE, cmm_fff_pack_size_as(&l, &options, &bytes), l.dtype = CMM_F64, l.weight_dtype = 0);
    WRONG(CMM_ERROR_SCALE, FORWARD(NULL), l.scale_in = e.x);
    WRONG(CMM_ERROR_SCALE, FORWARD(NULL), l.scale_out = e.x);
    WRONG(CMM_ERROR_SCALE, FORWARD(NULL), l.weight_dtype = 0, l.scale_out = e.x);
    WRONG(CMM_ERROR_WEIGHT_DTYPE, FORWARD(NULL), l.weight_out_dtype = CMM_F64);
    WRONG(CMM_ERROR_WEIGHT_DTYPE, FORWARD(NULL), l.weight_out_dtype = CMM_AS_DTYPE - 1);
    WRONG(CMM_ERROR_W_IN_ALIGN, FORWARD(NULL), l.w_in = (const char *)l.w_in + 1);
    WRONG(CMM_ERROR_W_OUT_ALIGN, FORWARD(NULL), l.w_out = (const char *)l.w_out + 1);
    WRONG(CMM_ERROR_BIAS_ALIGN, FORWARD(NULL), l.bias = (const char *)l.bias + 2);
    WRONG(CMM_ERROR_LAYER_TOO_LARGE, FORWARD(NULL), l.trees = INT64_MAX / 7 / 5);
    WRONG(CMM_ERROR_LAYER_TOO_LARGE, FORWARD(NULL), l.trees = INT64_MAX / 7 / 2, l.d_in = l.d_out = 1);
    static const char *const levels[] = {"blas1", "blas2", "blas3"};
    for (int i = 0; i < 3; i++) {
        const cmm_run run = {.size = sizeof run, .level = levels[i], .blas = &reference_blas};
        WRONG(CMM_ERROR_LEVEL_WEIGHT_DTYPE, FORWARD(&run), (void)0);
        WRONG(CMM_ERROR_LEVEL_WEIGHT_DTYPE, cmm_cmm_forward(&l, &run, e.batch, e.x, e.nodes, NULL), (void)0);
    }
    for (int i = 0; i < way_count; i++)
        if (way_is_exact(&ways[i]) && !can(&ways[i], f))
            WRONG(CMM_ERROR_ISA_UNUSABLE, FORWARD(&ways[i].run), (void)0);
    /* y touches the last number of a narrow row: just within it and just behind it. */
    const int64_t end = e.rows * l.d_out * 2;
    WRONG(CMM_ERROR_Y_OVERLAP, cmm_fff_forward(&l, NULL, 1, e.x, (char *)e.w_out + end - 4, NULL, NULL), (void)0);
    for (int64_t i = 0; i < e.batch * l.d_out; i++) /* bytes of 0xff are a NaN */
        CHECK(isnan(((const float *)e.y)[i]), "y was written");
    CHECK(bytes == -7, "bytes was written");

    memset(&packed, 0xA5, sizeof packed);
    memset(memory, 0xA5, sizeof memory);
    memcpy(&untouched, &packed, sizeof packed);
    memcpy(before, memory, sizeof memory);
    l.weight_dtype = 0;
    CHECK(cmm_fff_pack_size_as(&l, &options, &bytes) == CMM_OK && bytes == e.rows * 128 + e.rows * 4, "%lld",
          (long long)bytes);
#define PACK(room) cmm_fff_pack_as(&l, &options, memory, room, &packed)
    WRONG(CMM_ERROR_BYTES_NULL, cmm_fff_pack_size_as(&l, &options, NULL), (void)0);
    WRONG(CMM_ERROR_MEMORY_SIZE, PACK(bytes - 1), (void)0);
    WRONG(CMM_ERROR_PACKED_NULL, cmm_fff_pack_as(&l, &options, memory, bytes, NULL), (void)0);
    WRONG(CMM_ERROR_MEMORY_NULL, cmm_fff_pack_as(&l, &options, NULL, bytes, &packed), (void)0);
    WRONG(CMM_ERROR_MEMORY_ALIGN, cmm_fff_pack_as(&l, &options, memory + 2, bytes, &packed), (void)0);
    WRONG(CMM_ERROR_MEMORY_OVERLAP, PACK(bytes), l.bias = memory);
    WRONG(CMM_ERROR_W_IN_NULL, PACK(bytes), l.w_in = NULL);
    WRONG(CMM_ERROR_LAYER_NULL, cmm_fff_pack_as(NULL, &options, memory, bytes, &packed), (void)0);
    CHECK(memcmp(&packed, &untouched, sizeof packed) == 0, "packed was written");
    CHECK(memcmp(memory, before, sizeof memory) == 0, "memory was written");
    CHECK(PACK(bytes) == CMM_OK && memcmp(memory + bytes, before, sizeof before - (size_t)bytes) == 0, "good");
    example_free(&e);
}

int main(int argc, char **argv)
{
    const int few = argc > 1 && strcmp(argv[1], "few") == 0;
    margin = argc > 2 && strcmp(argv[2], "far") == 0 ? 64 : 0;
    make_buffers((size_t)1 << 24);
    ways_find();
    static const shape shapes[] = {
        {.depth = 0, .trees = 1, .d_in = 1, .d_out = 1, .batch = 1},
        {.depth = 3, .trees = 1, .d_in = 1, .d_out = 33, .batch = 9, .bias = 1},
        {.depth = 4, .trees = 2, .d_in = 33, .d_out = 1, .batch = 17, .tie = CMM_TIE_RIGHT, .padding = 1},
        {.depth = 11, .trees = 1, .d_in = 35, .d_out = 37, .batch = 300, .activation = CMM_SILU},
        {.depth = 0, .trees = 100, .d_in = 33, .d_out = 31, .batch = 70, .bias = 1},
        {.depth = 2, .trees = 5, .d_in = 13, .d_out = 130, .batch = 40, .bias = 1, .activation = CMM_GELU_TANH},
        {.depth = 5, .trees = 1, .d_in = 768, .d_out = 768, .batch = 50, .bias = 1},
        {.depth = 3, .trees = 3, .d_in = 1000, .d_out = 1000, .batch = 21, .padding = 3},
        {.depth = 15, .trees = 1, .d_in = 3, .d_out = 2, .batch = 60, .activation = CMM_RELU},
        {.depth = 0, .trees = 3072, .d_in = 65, .d_out = 66, .batch = 2},
        {.depth = 9, .trees = 1, .d_in = 768, .d_out = 1000, .batch = 130},
    };
    for (const format *f = formats; f < formats + FORMATS; f++) {
        for (int i = 0; i < way_count; i++)
            if (way_is_exact(&ways[i]) && can(&ways[i], f)) {
                check_outputs_of_every_number(f, &ways[i]);
                if (!few)
                    check_logits_of_every_number(f, &ways[i]);
            }
        check_rounding(f);
        check_special(f);
        check_wrong(f);
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes - (few ? 3 : 0); i++)
            check_shape(f, shapes[i]);
        for (int64_t width = 1; width <= (few ? 12 : 150); width++)
            check_shape(f, (shape){.depth = 2, .trees = 1, .d_in = width, .d_out = 151 - width, .batch = 3 + width % 7,
                                   .padding = width % 3 == 0});
        check_pack(f, (shape){.depth = 3, .trees = 2, .d_in = 33, .d_out = 50, .batch = 20, .bias = 1});
        check_pack(f, (shape){.depth = 4, .trees = 1, .d_in = 1, .d_out = 129, .batch = 5, .padding = 2});
    }
    /* In two phases, and past the caches where the rows of y are whole lines of a cache. */
    make_caches_small();
    const int64_t batch = few ? 307 : 700;
    for (const format *f = formats; f < formats + FORMATS; f++) {
        check_shape(f, (shape){.depth = 9, .trees = 1, .d_in = 24, .d_out = 112, .batch = batch, .bias = 1});
        check_shape(f, (shape){.depth = 9, .trees = 1, .d_in = 33, .d_out = 35, .batch = batch});
        check_shape(f, (shape){.depth = 7, .trees = 3, .d_in = 20, .d_out = 16, .batch = batch});
        check_shape(f, (shape){.depth = 2, .trees = 40, .d_in = 70, .d_out = 33, .batch = 9});
    }
    return check_report();
}
