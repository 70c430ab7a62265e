/* cmm_fff_backward(): every gradient within derived bounds of loops in double along the path that is given; the same bits
 * on every instruction set, for any number of threads and from run to run; nothing touched outside the arrays, which lie
 * between two pages that no one may touch; and wrong calls, each with a status of its own and nothing written.
 *
 *     backward few    fewer shapes, for an emulator */
#define _GNU_SOURCE
#define BUFFERS 16
#if defined(_WIN32) /* whose fma() and fmaf() round twice, while those of libcmm are exact: fma.c */
#include "simd/scalar.h"
#define fma fma_one_f64
#define fmaf fma_one_f32
#endif
#include "guard.h"
#include "oracle.h"

static int few, refuse_memory; /* cmm_aligned_alloc() fails: the linker puts this in its place */
static atomic_int taken;       /* how often it has been called */

void *__real_cmm_aligned_alloc(size_t bytes);
void *__wrap_cmm_aligned_alloc(size_t bytes);
void *__wrap_cmm_aligned_alloc(size_t bytes)
{
    atomic_fetch_add(&taken, 1);
    return refuse_memory ? NULL : __real_cmm_aligned_alloc(bytes);
}

/* ---- what it should be -------------------------------------------------------------------------------------------- */

/* The derivative in double, and the size of its parts that activations.inc gives its error in. */
static double slope_of(int32_t activation, double z, double *size)
{
    const double b = fabs(z);
    *size = 1;
    if (activation == CMM_RELU)
        return z > 0;
    if (activation == CMM_IDENTITY)
        return 1;
    double tail, both;
    if (activation == CMM_GELU) {
        const double q = erfc(b * 0.70710678118654752440) / 2, p = b * exp(-b * b / 2) * 0.39894228040143267794;
        tail = q - p;
        both = q + p;
    } else {
        const double c = 1.59576912160573071176;
        const double v = activation == CMM_SILU ? b : c * (b + 0.044715 * b * b * b);
        const double h = activation == CMM_SILU ? b : b * c * (1 + 3 * 0.044715 * b * b);
        const double e = exp(-v), part = e / ((1 + e) * (1 + e));
        tail = part * (1 + e - h);
        both = part * (1 + e + h);
    }
    *size = z < 0 ? both : 1 + both;
    return z < 0 ? tail : 1 - tail;
}

/* Its error: of activations.inc, and that of slope_of(): 16 operations, and an argument of exp or erfc that is off by 8 of
 * them, which moves it by at most 1 + z^2 (erfc) or the argument itself (exp) times as much. */
static double slope_error(int32_t dtype, int32_t activation, double z, double size)
{
#define SLOPE_F32(NUMBER, name, zero_at_zero, ulp_f32, ulp_f64, slope_f32, slope_f64) slope_f32,
#define SLOPE_F64(NUMBER, name, zero_at_zero, ulp_f32, ulp_f64, slope_f32, slope_f64) slope_f64,
    static const double f32[] = {CMM_ACTIVATIONS(SLOPE_F32)}, f64[] = {CMM_ACTIVATIONS(SLOPE_F64)};
    if (activation == CMM_RELU || activation == CMM_IDENTITY)
        return 0;
    const double argument = 1 + fabs(z) * (activation == CMM_SILU ? 1 : 1.6 + fabs(z) + 0.08 * z * z);
    return size * ((dtype == CMM_F32 ? f32 : f64)[activation] * roundoff(dtype) +
                   (16 + 8 * argument) * roundoff(CMM_F64));
}

typedef struct wanted {
    double *value, *bound;
    int64_t n;
} wanted;

static wanted wanted_new(int64_t n)
{
    wanted w = {calloc((size_t)n + 1, sizeof(double)), calloc((size_t)n + 1, sizeof(double)), n};
    return w;
}

enum { DX, DW_IN, DBIAS, DW_OUT, GRADIENTS };
static const char *const names[GRADIENTS] = {"dx", "dw_in", "dbias", "dw_out"};

/* A backward pass: an example that has run forward, dy, and the gradients' arrays with what they held before. */
typedef struct pass {
    example e;
    void *dy, *gradient[GRADIENTS], *before[GRADIENTS];
    int64_t n[GRADIENTS], rows[GRADIENTS], d[GRADIENTS], ld[GRADIENTS]; /* n: elements from first to last */
    wanted want[2][GRADIENTS];                                          /* stored, accumulated */
    int64_t bytes;                                                      /* of workspace */
} pass;

static cmm_gradients gradients_of(const pass *p, int32_t accumulate)
{
    return (cmm_gradients){.size = sizeof(cmm_gradients), .accumulate = accumulate, .dx = p->gradient[DX],
                           .dw_in = p->gradient[DW_IN], .dbias = p->gradient[DBIAS], .dw_out = p->gradient[DW_OUT],
                           .ld_dw_in = p->ld[DW_IN] == p->d[DW_IN] ? 0 : p->ld[DW_IN],
                           .ld_dw_out = p->ld[DW_OUT] == p->d[DW_OUT] ? 0 : p->ld[DW_OUT]};
}

/* value += a b, where a and b are known up to errors. The sum's own rounding comes later, from the sum of magnitudes. */
static void add(double *value, double *size, double *off, double a, double a_off, double b)
{
    *value += a * b;
    *size += (fabs(a) + a_off) * fabs(b);
    *off += a_off * fabs(b);
}

/* The bounds of docs/internals/backward.md. */
static void find_wanted(pass *p)
{
    const example *const e = &p->e;
    const cmm_fff *const l = &e->layer;
    const int32_t dtype = l->dtype, levels = l->depth + 1;
    const int64_t nodes = ((int64_t)2 << l->depth) - 1;
    const int64_t ld_in = l->ld_in ? l->ld_in : l->d_in, ld_out = l->ld_out ? l->ld_out : l->d_out;
    const double u = roundoff(dtype), v = roundoff(CMM_F64), least = dtype == CMM_F32 ? (double)FLT_TRUE_MIN : DBL_TRUE_MIN;
    double *size[GRADIENTS], *off[GRADIENTS];
    int64_t *const visits = calloc((size_t)e->rows, sizeof *visits);
    for (int g = 0; g < GRADIENTS; g++) {
        p->want[0][g] = wanted_new(p->n[g]);
        size[g] = calloc((size_t)p->n[g] + 1, sizeof(double));
        off[g] = calloc((size_t)p->n[g] + 1, sizeof(double));
    }
    for (int64_t token = 0; token < e->batch; token++)
        for (int64_t step = 0; step < e->steps; step++) {
            const int64_t row = step / levels * nodes + e->nodes[token * e->steps + step];
            const double z = get(dtype, e->logits, token * e->steps + step);
            visits[row]++;
            double da = 0, da_size = 0, slope_size;
            for (int64_t o = 0; o < l->d_out; o++) {
                const double term = get(dtype, p->dy, token * l->d_out + o) * get(dtype, l->w_out, row * ld_out + o);
                da += term;
                da_size += fabs(term);
            }
            const double da_off = (gamma_of((double)l->d_out, u) + gamma_of((double)l->d_out, v)) * da_size +
                                  (double)l->d_out * least;
            const double slope = slope_of(l->activation, z, &slope_size);
            const double slope_off = slope_error(dtype, l->activation, z, slope_size) + least;
            const double dz = da * slope;
            const double dz_off =
                (fabs(da) * slope_off + fabs(slope) * da_off + da_off * slope_off) * (1 + u) + fabs(dz) * (u + 2 * v) + least;
            const double a = activation_of(l->activation, z);
            const double a_off = fabs(a) * activation_error(dtype, l->activation, z) + 4 * least;
            for (int64_t i = 0; i < l->d_in; i++) {
                const int64_t at = token * l->d_in + i, of = row * p->ld[DW_IN] + i;
                add(&p->want[0][DX].value[at], &size[DX][at], &off[DX][at], dz, dz_off, get(dtype, l->w_in, row * ld_in + i));
                add(&p->want[0][DW_IN].value[of], &size[DW_IN][of], &off[DW_IN][of], dz, dz_off, get(dtype, e->x, at));
            }
            add(&p->want[0][DBIAS].value[row], &size[DBIAS][row], &off[DBIAS][row], dz, dz_off, 1);
            for (int64_t o = 0; o < l->d_out; o++) {
                const int64_t of = row * p->ld[DW_OUT] + o;
                add(&p->want[0][DW_OUT].value[of], &size[DW_OUT][of], &off[DW_OUT][of], a, a_off,
                    get(dtype, p->dy, token * l->d_out + o));
            }
        }
    for (int g = 0; g < GRADIENTS; g++) {
        p->want[1][g] = wanted_new(p->n[g]);
        for (int64_t i = 0; i < p->n[g]; i++) {
            const int64_t terms = g == DX ? e->steps : visits[i / p->ld[g]];
            for (int accumulated = 0; accumulated <= 1; accumulated++) {
                const double old = accumulated ? get(dtype, p->before[g], i) : 0, m = (double)(terms + accumulated);
                p->want[accumulated][g].value[i] = p->want[0][g].value[i] + (accumulated ? old : 0);
                /* (the value of accumulated = 0 comes first and is not changed by the other) */
                p->want[accumulated][g].bound[i] =
                    terms == 0 ? 0
                               : (gamma_of(m, u) + gamma_of(2 * m + 2, v)) * (size[g][i] + fabs(old)) +
                                     off[g][i] * (1 + gamma_of(2 * m, v)) + (double)terms * least;
            }
        }
        free(size[g]);
        free(off[g]);
    }
    free(visits);
}

static int same(const pass *p, int g, int64_t i, const void *than)
{
    const size_t size = element_size(p->e.layer.dtype);
    return memcmp((char *)p->gradient[g] + (size_t)i * size, (const char *)than + (size_t)i * size, size) == 0;
}

/* What is between two rows must be as it was. */
static void check_wanted(const pass *p, int32_t accumulate, int32_t wanted_bits, const char *what)
{
    for (int g = 0; g < GRADIENTS; g++)
        for (int64_t i = 0; i < p->n[g]; i++) {
            if (!(wanted_bits >> g & 1) || i % p->ld[g] >= p->d[g]) {
                CHECK(same(p, g, i, p->before[g]), "%s: %s[%lld] was written", what, names[g], (long long)i);
                continue;
            }
            const wanted *const w = &p->want[accumulate >> g & 1][g];
            const double got = get(p->e.layer.dtype, p->gradient[g], i);
            CHECK(fabs(got - w->value[i]) <= w->bound[i], "%s: %s[%lld] is %a, not %a within %g", what, names[g],
                  (long long)i, got, w->value[i], w->bound[i]);
        }
}

/* ---- the order of the sums ------------------------------------------------------------------------------------------ */

static double fused(int32_t dtype, double a, double b, double c)
{
    return dtype == CMM_F32 ? (double)fmaf((float)a, (float)b, (float)c) : fma(a, b, c);
}

static double rounded(int32_t dtype, double a)
{
    return dtype == CMM_F32 ? (double)(float)a : a;
}

/* A dot product: 256 bytes of lanes, added by halves. (Of floats products and sums in double are exact enough to be rounded
 * to float.) */
static double dot(int32_t dtype, const void *a, int64_t a_at, const void *b, int64_t b_at, int64_t n)
{
    enum { MOST = 64 };
    const int lanes = 256 / (int)element_size(dtype);
    double lane[MOST] = {0};
    for (int64_t i = 0; i < n; i++)
        lane[i % lanes] = fused(dtype, get(dtype, a, a_at + i), get(dtype, b, b_at + i), lane[i % lanes]);
    for (int half = lanes / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            lane[i] = rounded(dtype, lane[i] + lane[i + half]);
    return lane[0];
}

static double exact_activation(int32_t dtype, int32_t activation, double z)
{
#define ACTIVATION_OF(NUMBER, name, ...) \
    case CMM_##NUMBER: return dtype == CMM_F32 ? (double)cmm_act_##name##_f32((float)z) : cmm_act_##name##_f64(z);
    switch (activation) {
        CMM_ACTIVATIONS(ACTIVATION_OF)
    default: return 0;
    }
}

static double exact_slope(int32_t dtype, int32_t activation, double z)
{
#define SLOPE_OF(NUMBER, name, ...) \
    case CMM_##NUMBER: return dtype == CMM_F32 ? (double)cmm_slope_##name##_f32((float)z) : cmm_slope_##name##_f64(z);
    switch (activation) {
        CMM_ACTIVATIONS(SLOPE_OF)
    default: return 0;
    }
}

static void check_bits(const pass *p, int g, int64_t at, double want, const char *what)
{
    const double got = get(p->e.layer.dtype, p->gradient[g], at);
    CHECK(got == want, "%s: %s[%lld] is %a, and in the documented order %a", what, names[g], (long long)at, got, want);
}

/* All bits of gradients that were stored, by the order of sums that docs/internals/backward.md promises. */
static void check_order(const pass *p, const char *what)
{
    const example *const e = &p->e;
    const cmm_fff *const l = &e->layer;
    const int32_t dtype = l->dtype, levels = l->depth + 1;
    const int64_t nodes = ((int64_t)2 << l->depth) - 1;
    const int64_t ld_in = l->ld_in ? l->ld_in : l->d_in, ld_out = l->ld_out ? l->ld_out : l->d_out;
    double *const dz = allocate(e->batch * e->steps, sizeof *dz), *const a = allocate(e->batch * e->steps, sizeof *a);
    double *const sum = allocate(l->d_in + l->d_out, sizeof *sum);
    for (int64_t token = 0; token < e->batch; token++)
        for (int64_t s = token * e->steps; s < (token + 1) * e->steps; s++) {
            const int64_t row = s % e->steps / levels * nodes + e->nodes[s];
            const double z = get(dtype, e->logits, s);
            const double da = dot(dtype, l->w_out, row * ld_out, p->dy, token * l->d_out, l->d_out);
            dz[s] = rounded(dtype, exact_slope(dtype, l->activation, z) * da);
            a[s] = exact_activation(dtype, l->activation, z);
        }
    for (int64_t token = 0; token < e->batch; token++)
        for (int64_t i = 0; i < l->d_in; i++) {
            double dx = 0;
            for (int64_t s = 0; s < e->steps; s++)
                dx = fused(dtype, dz[token * e->steps + s],
                           get(dtype, l->w_in, (s / levels * nodes + e->nodes[token * e->steps + s]) * ld_in + i), dx);
            check_bits(p, DX, token * l->d_in + i, dx, what);
        }
    for (int64_t tree = 0; tree < l->trees; tree++)
        for (int64_t node = 0; node < nodes; node++) {
            const int32_t level = 63 - __builtin_clzll((uint64_t)node + 1), down = l->depth - level;
            double dbias = 0;
            for (int64_t i = 0; i < l->d_in + l->d_out; i++)
                sum[i] = 0;
            for (int64_t leaf = ((node + 1) << down) - 1; leaf < ((node + 2) << down) - 1; leaf++)
                for (int64_t token = 0; token < e->batch; token++) {
                    const int64_t first = token * e->steps + tree * levels, s = first + level;
                    if (e->nodes[first + l->depth] != leaf)
                        continue;
                    for (int64_t i = 0; i < l->d_in; i++)
                        sum[i] = fused(dtype, dz[s], get(dtype, e->x, token * l->d_in + i), sum[i]);
                    for (int64_t o = 0; o < l->d_out; o++)
                        sum[l->d_in + o] = fused(dtype, a[s], get(dtype, p->dy, token * l->d_out + o), sum[l->d_in + o]);
                    dbias = rounded(dtype, dbias + dz[s]);
                }
            const int64_t row = tree * nodes + node;
            for (int64_t i = 0; i < l->d_in; i++)
                check_bits(p, DW_IN, row * p->ld[DW_IN] + i, sum[i], what);
            for (int64_t o = 0; o < l->d_out; o++)
                check_bits(p, DW_OUT, row * p->ld[DW_OUT] + o, sum[l->d_in + o], what);
            check_bits(p, DBIAS, row, dbias, what);
        }
    free(dz);
    free(a);
    free(sum);
}

/* ---- passes -------------------------------------------------------------------------------------------------------- */

static pass pass_new(shape s, int at_end)
{
    pass p = {.e = example_new(s, (uint64_t)(s.d_in * 977 + s.d_out * 31 + s.depth))};
    example *const e = &p.e;
    const size_t size = element_size(s.dtype);
    uint64_t seed = 5;
    int buffer = 0;
    CHECK(example_run(e, NULL) == CMM_OK, "forward");
    const int64_t ld_in = e->layer.ld_in ? e->layer.ld_in : s.d_in, ld_out = e->layer.ld_out ? e->layer.ld_out : s.d_out;
#define MOVE(array, elements, bytes)                                                                                 \
    do {                                                                                                             \
        void *const to = guarded(buffer++, elements, bytes, at_end);                                                 \
        memcpy(to, array, (size_t)(elements) * (bytes));                                                             \
        free(array);                                                                                                 \
        array = to;                                                                                                  \
    } while (0)
    MOVE(e->w_in, span(e->rows, s.d_in, ld_in), size);
    MOVE(e->w_out, span(e->rows, s.d_out, ld_out), size);
    MOVE(e->x, e->batch * s.d_in, size);
    MOVE(e->nodes, e->batch * e->steps, sizeof *e->nodes);
    MOVE(e->logits, e->batch * e->steps, size);
    e->layer.w_in = e->w_in;
    e->layer.w_out = e->w_out;
    p.dy = guarded(buffer++, e->batch * s.d_out, size, at_end);
    fill_random(s.dtype, p.dy, e->batch * s.d_out, 1, &seed);
    for (int g = 0; g < GRADIENTS; g++) {
        p.rows[g] = g == DX ? e->batch : e->rows;
        p.d[g] = g == DX || g == DW_IN ? s.d_in : g == DBIAS ? 1 : s.d_out;
        p.ld[g] = s.padding && g == DW_IN ? s.d_in + 3 : s.padding && g == DW_OUT ? s.d_out + 2 : p.d[g];
        p.n[g] = span(p.rows[g], p.d[g], p.ld[g]);
        p.before[g] = allocate(p.n[g], size);
        fill_random(s.dtype, p.before[g], p.n[g], 1, &seed);
        p.gradient[g] = guarded(buffer++, p.n[g], size, at_end);
    }
    find_wanted(&p);
    const cmm_gradients all = gradients_of(&p, 0);
    CHECK(cmm_fff_backward_workspace(&e->layer, NULL, e->batch, &all, &p.bytes) == CMM_OK, "workspace");
    return p;
}

static void pass_free(pass *p)
{
    for (int g = 0; g < GRADIENTS; g++) {
        free(p->before[g]);
        for (int i = 0; i < 2; i++) {
            free(p->want[i][g].value);
            free(p->want[i][g].bound);
        }
    }
    free(p->e.y);
    free(p->e.bias);
}

/* In a workspace of just as many bytes, between guard pages; without one where has_workspace is 0. */
static cmm_status run_pass(const pass *p, const char *isa, int32_t threads, int32_t accumulate, int32_t wanted_bits,
                           int has_workspace)
{
    const cmm_run run = {.size = sizeof run, .isa = isa, .threads = threads};
    cmm_gradients gradients = gradients_of(p, accumulate & wanted_bits);
    for (int g = 0; g < GRADIENTS; g++)
        memcpy(p->gradient[g], p->before[g], (size_t)p->n[g] * element_size(p->e.layer.dtype));
    if (!(wanted_bits & CMM_DX))
        gradients.dx = NULL;
    if (!(wanted_bits & CMM_DW_IN))
        gradients.dw_in = NULL;
    if (!(wanted_bits & CMM_DBIAS))
        gradients.dbias = NULL;
    if (!(wanted_bits & CMM_DW_OUT))
        gradients.dw_out = NULL;
    if (has_workspace) {
        int64_t bytes = -1;
        CHECK(cmm_fff_backward_workspace(&p->e.layer, &run, p->e.batch, &gradients, &bytes) == CMM_OK, "workspace");
        CHECK(bytes >= 0 && bytes <= p->bytes && bytes % CMM_ALIGNMENT == 0, "%lld bytes", (long long)bytes);
        gradients.workspace = guarded(10, bytes, 1, 1);
        gradients.workspace_bytes = bytes;
        memset(gradients.workspace, 0xff, (size_t)bytes);
    }
    const int before = atomic_load(&taken);
    const cmm_status status =
        cmm_fff_backward(&p->e.layer, &run, p->e.batch, wanted_bits & CMM_DW_IN ? p->e.x : NULL, p->e.nodes, p->e.logits, p->dy,
                         &gradients);
    CHECK(!has_workspace || atomic_load(&taken) == before, "memory was taken, though there was a workspace");
    return status;
}

static const char *isas[8], *any_isa; /* any_isa: NULL, or where the best one cannot be tried another */
static int isa_count;

static void find_isas(void)
{
    cmm_kernel_info info = {.size = sizeof info};
    for (int32_t i = 0; cmm_kernel_get(i, &info) == CMM_OK; i++)
        if (info.available && strcmp(info.operation, "backward") == 0 && strcmp(info.x_type, "float32") == 0) {
            if (few && strcmp(info.isa, "avx2") == 0 && reads_masked_elements()) {
                printf("this emulator reads elements that a masked load should not touch: AVX2 is left out\n");
                any_isa = "scalar";
                continue;
            }
            isas[isa_count++] = info.isa;
        }
    CHECK(isa_count > 0 && isa_count <= 8, "%d", isa_count);
    for (int i = 0; i < isa_count; i++)
        printf("%s%s", i ? ", " : "backward on ", isas[i]);
    printf("\n");
}

/* All gradients, stored and added; each alone; and all bits the same as those of the first time. */
static void check_shape(shape s)
{
    static char *bits[2][GRADIENTS];
    for (int at_end = 0; at_end <= 1; at_end++) {
        pass p = pass_new(s, at_end);
        const size_t size = element_size(s.dtype);
        for (int i = 0; i < isa_count; i++)
            for (int32_t mixed = 0; mixed <= 3; mixed++) { /* stored, added, some of both */
                static const int32_t some[] = {0, 15, CMM_DX | CMM_DW_OUT, CMM_DW_IN | CMM_DBIAS};
                const int32_t accumulate = some[mixed], threads = 1 + (i + mixed) % 3;
                (void)snprintf(now, sizeof now, "%s, f%d, %s, %lldx%d, %lld to %lld, batch %lld, accumulate %d, %d threads",
                               isas[i], (int)size * 8, s.activation == CMM_GELU ? "gelu" : "another",
                               (long long)s.trees, s.depth, (long long)s.d_in, (long long)s.d_out, (long long)s.batch,
                               accumulate, threads);
                CHECK(run_pass(&p, isas[i], threads, accumulate, 15, mixed != 1) == CMM_OK, "%s", now);
                if (i == 0 && at_end == 0)
                    check_wanted(&p, accumulate, 15, now);
                if (i == 0 && at_end == 0 && mixed == 0 && s.depth < 7) /* the loops there take each leaf for each node */
                    check_order(&p, now);
                for (int g = 0; g < GRADIENTS; g++) {
                    const size_t bytes = (size_t)p.n[g] * size;
                    char **const first = &bits[accumulate >> g & 1][g];
                    if (i == 0 && at_end == 0 && mixed < 2) {
                        free(*first);
                        *first = allocate(1, bytes + 1);
                        memcpy(*first, p.gradient[g], bytes);
                    }
                    CHECK(memcmp(*first, p.gradient[g], bytes) == 0, "%s: other bits in %s", now, names[g]);
                }
            }
        for (int g = 0; g < GRADIENTS && at_end; g++) {
            (void)snprintf(now, sizeof now, "%s alone", names[g]);
            CHECK(run_pass(&p, any_isa, 0, 0, 1 << g, 1) == CMM_OK, "%s", now);
            check_wanted(&p, 0, 1 << g, now);
            CHECK(memcmp(bits[0][g], p.gradient[g], (size_t)p.n[g] * size) == 0, "%s: other bits", now);
        }
        pass_free(&p);
    }
}

/* ---- many threads ---------------------------------------------------------------------------------------------------- */

static void check_threads(shape s)
{
    pass p = pass_new(s, 0);
    const size_t size = element_size(s.dtype);
    char *bits[GRADIENTS];
    for (int32_t threads = 1; threads <= 9; threads++) {
        CHECK(run_pass(&p, any_isa, threads, 0, 15, 0) == CMM_OK, "%d threads", threads);
        for (int g = 0; g < GRADIENTS; g++) {
            if (threads == 1) {
                bits[g] = allocate(p.n[g], size);
                memcpy(bits[g], p.gradient[g], (size_t)p.n[g] * size);
            }
            CHECK(memcmp(bits[g], p.gradient[g], (size_t)p.n[g] * size) == 0, "%d threads: other bits in %s", threads, names[g]);
        }
    }
    for (int g = 0; g < GRADIENTS; g++)
        free(bits[g]);
    pass_free(&p);
}

/* ---- wrong calls ------------------------------------------------------------------------------------------------------ */

enum { DEPTH = 2, NODES = 7, TREES = 3, D_IN = 5, D_OUT = 4, BATCH = 6, STEPS = TREES * (DEPTH + 1), CANARY = 0xA5 };

/* One block, so that one comparison sees whether anything was written. */
static struct memory {
    double w_in[TREES * NODES * D_IN + 8], bias[TREES * NODES + 8], w_out[TREES * NODES * D_OUT + 8], x[BATCH * D_IN + 8];
    double logits[BATCH * STEPS + 8], dy[BATCH * D_OUT + 8], dx[BATCH * D_IN + 8], dw_in[TREES * NODES * 9 + 8];
    double dbias[TREES * NODES + 8], dw_out[TREES * NODES * 9 + 8];
    int32_t nodes[BATCH * STEPS + 16];
    int64_t refused[2];
    _Alignas(CMM_ALIGNMENT) char workspace[1 << 13];
} memory;

typedef struct call {
    cmm_fff fff;
    cmm_run run;
    cmm_gradients gradients;
    const cmm_fff *layer;
    const cmm_run *how;
    const cmm_gradients *where;
    int64_t batch;
    const void *x, *logits, *dy;
    const int32_t *nodes;
} call;

static int32_t none[BATCH * STEPS]; /* a path that is none */
static int element;

static void *off_by(const void *pointer, int64_t bytes)
{
    return (char *)(uintptr_t)pointer + bytes;
}

static void good_call(int32_t dtype, call *c)
{
    *c = (call){.fff = {.size = sizeof(cmm_fff), .dtype = dtype, .depth = DEPTH, .trees = TREES, .d_in = D_IN, .d_out = D_OUT,
                        .w_in = memory.w_in, .bias = memory.bias, .w_out = memory.w_out},
                .run = {.size = sizeof(cmm_run), .threads = 1, .refused = NULL},
                .gradients = {.size = sizeof(cmm_gradients), .dx = memory.dx, .dw_in = memory.dw_in, .dbias = memory.dbias,
                              .dw_out = memory.dw_out, .workspace = memory.workspace,
                              .workspace_bytes = sizeof memory.workspace},
                .layer = &c->fff, .how = &c->run, .where = &c->gradients, .batch = BATCH, .x = memory.x,
                .logits = memory.logits, .dy = memory.dy, .nodes = memory.nodes};
    element = (int)element_size(dtype);
}

static cmm_status make_call(const call *c)
{
    return cmm_fff_backward(c->layer, c->how, c->batch, c->x, c->nodes, c->logits, c->dy, c->where);
}

static const char *foreign_isa(void)
{
#if defined(__aarch64__)
    return "avx2";
#else
    return "neon";
#endif
}

/* WRONG(status, part, what to do to the call c), in the order of the checks, that of docs/reference/status-codes.md. Wrongs
 * of different parts of a call do not put each other right, so that both can be made at once. */
enum { LAYER, LAYER_DTYPE, LAYER_SIZES, RUN, ISA, RUN_LEVEL, STRUCT, ACCUMULATE, WIDTH, BATCHES, W_IN_PART, W_OUT_PART, BIAS_PART,
       X_PART, NODES_PART, LOGITS_PART, DY_PART, DX_PART, DW_IN_PART, DBIAS_PART, DW_OUT_PART, WORKSPACE_PART };
#define WRONG_CALLS(WRONG)                                                                                           \
    WRONG(CMM_ERROR_LAYER_NULL, LAYER, c->layer = NULL)                                                              \
    WRONG(CMM_ERROR_LAYER_SIZE, LAYER, c->fff.size = 0)                                                              \
    WRONG(CMM_ERROR_RESERVED, LAYER_DTYPE, c->fff.reserved = 1)                                                      \
    WRONG(CMM_ERROR_SCALE, LAYER_DTYPE, c->fff.weight_dtype = CMM_I8)                                                \
    WRONG(CMM_ERROR_TIE, LAYER_SIZES, c->fff.tie = 2)                                                                \
    WRONG(CMM_ERROR_DEPTH, LAYER_SIZES, c->fff.depth = CMM_MAX_DEPTH + 1)                                            \
    WRONG(CMM_ERROR_TREES, LAYER_SIZES, c->fff.trees = 0)                                                            \
    WRONG(CMM_ERROR_DTYPE, LAYER_DTYPE, c->fff.dtype = CMM_BF16)                                                     \
    WRONG(CMM_ERROR_WEIGHT_DTYPE, LAYER_DTYPE, c->fff.weight_dtype = 5)                                              \
    WRONG(CMM_ERROR_ACTIVATION, LAYER_SIZES, c->fff.activation = 5)                                                  \
    WRONG(CMM_ERROR_D_IN, LAYER_SIZES, c->fff.d_in = 0)                                                              \
    WRONG(CMM_ERROR_D_OUT, LAYER_SIZES, c->fff.d_out = -1)                                                           \
    WRONG(CMM_ERROR_LD_IN, LAYER_SIZES, c->fff.ld_in = D_IN - 1)                                                     \
    WRONG(CMM_ERROR_LD_OUT, LAYER_SIZES, c->fff.ld_out = D_OUT - 1)                                                  \
    WRONG(CMM_ERROR_LAYER_TOO_LARGE, LAYER_SIZES, c->fff.trees = INT64_MAX / 8)                                      \
    WRONG(CMM_ERROR_RUN_SIZE, RUN, c->run.size = 1)                                                                  \
    WRONG(CMM_ERROR_THREADS, RUN, c->run.threads = -1)                                                               \
    WRONG(CMM_ERROR_LEVEL, RUN_LEVEL, c->run.level = "fast")                                                         \
    WRONG(CMM_ERROR_ISA, ISA, c->run.isa = "mmx")                                                                    \
    WRONG(CMM_ERROR_PATH_TWICE, RUN, c->run.path_nodes = none)                                                       \
    WRONG(CMM_ERROR_PATH_TWICE, RUN, c->run.path_leaves = none)                                                      \
    WRONG(CMM_ERROR_GRADIENTS_NULL, STRUCT, c->where = NULL)                                                         \
    WRONG(CMM_ERROR_GRADIENTS_SIZE, STRUCT, c->gradients.size -= 8)                                                  \
    WRONG(CMM_ERROR_ACCUMULATE, ACCUMULATE, c->gradients.accumulate = 16)                                            \
    WRONG(CMM_ERROR_ACCUMULATE, ACCUMULATE, c->gradients.accumulate = -1)                                            \
    WRONG(CMM_ERROR_GRADIENTS_NONE, STRUCT, c->gradients.dx = c->gradients.dw_in = c->gradients.dbias =              \
                                                c->gradients.dw_out = NULL)                                          \
    WRONG(CMM_ERROR_LD_DW_IN, WIDTH, c->gradients.ld_dw_in = D_IN - 1)                                               \
    WRONG(CMM_ERROR_LD_DW_IN, WIDTH, c->gradients.ld_dw_in = INT64_MAX / 8)                                          \
    WRONG(CMM_ERROR_LD_DW_OUT, WIDTH, c->gradients.ld_dw_out = -D_OUT)                                               \
    WRONG(CMM_ERROR_LD_DW_OUT, WIDTH, c->gradients.ld_dw_out = INT64_MAX / 16)                                       \
    WRONG(CMM_ERROR_BATCH, BATCHES, c->batch = -1)                                                                   \
    WRONG(CMM_ERROR_BATCH_TOO_LARGE, BATCHES, c->batch = INT64_MAX / 2)                                              \
    WRONG(CMM_ERROR_BATCH_TOO_LARGE, BATCHES, c->batch = INT64_MAX / STEPS / 8) /* the workspace's */                \
    WRONG(CMM_ERROR_W_IN_NULL, W_IN_PART, c->fff.w_in = NULL)                                                        \
    WRONG(CMM_ERROR_W_OUT_NULL, W_OUT_PART, c->fff.w_out = NULL)                                                     \
    WRONG(CMM_ERROR_W_IN_ALIGN, W_IN_PART, c->fff.w_in = off_by(memory.w_in, 1))                                     \
    WRONG(CMM_ERROR_W_OUT_ALIGN, W_OUT_PART, c->fff.w_out = off_by(memory.w_out, 2))                                 \
    WRONG(CMM_ERROR_BIAS_ALIGN, BIAS_PART, c->fff.bias = off_by(memory.bias, 1))                                     \
    WRONG(CMM_ERROR_X_NULL, X_PART, c->x = NULL)                                                                     \
    WRONG(CMM_ERROR_NODES_NULL, NODES_PART, c->nodes = NULL)                                                         \
    WRONG(CMM_ERROR_LOGITS_NULL, LOGITS_PART, c->logits = NULL)                                                      \
    WRONG(CMM_ERROR_DY_NULL, DY_PART, c->dy = NULL)                                                                  \
    WRONG(CMM_ERROR_X_ALIGN, X_PART, c->x = off_by(memory.x, 1))                                                     \
    WRONG(CMM_ERROR_NODES_ALIGN, NODES_PART, c->nodes = off_by(memory.nodes, 2))                                     \
    WRONG(CMM_ERROR_LOGITS_ALIGN, LOGITS_PART, c->logits = off_by(memory.logits, 3))                                 \
    WRONG(CMM_ERROR_DY_ALIGN, DY_PART, c->dy = off_by(memory.dy, 2))                                                 \
    WRONG(CMM_ERROR_DX_ALIGN, DX_PART, c->gradients.dx = off_by(memory.dx, 1))                                       \
    WRONG(CMM_ERROR_DW_IN_ALIGN, DW_IN_PART, c->gradients.dw_in = off_by(memory.dw_in, 1))                           \
    WRONG(CMM_ERROR_DBIAS_ALIGN, DBIAS_PART, c->gradients.dbias = off_by(memory.dbias, 1))                           \
    WRONG(CMM_ERROR_DW_OUT_ALIGN, DW_OUT_PART, c->gradients.dw_out = off_by(memory.dw_out, 1))                       \
    WRONG(CMM_ERROR_DX_OVERLAP, DX_PART, c->gradients.dx = memory.x)                                                 \
    WRONG(CMM_ERROR_DX_OVERLAP, DX_PART, c->gradients.dx = off_by(memory.dy, (BATCH * D_OUT - 1) * element))         \
    WRONG(CMM_ERROR_DX_OVERLAP, DX_PART, c->gradients.dx = off_by(memory.logits, (1 - BATCH * D_IN) * element))      \
    WRONG(CMM_ERROR_DX_OVERLAP, DX_PART, c->gradients.dx = off_by(memory.logits, (BATCH * STEPS - 1) * element))     \
    WRONG(CMM_ERROR_DX_OVERLAP, DX_PART, c->nodes = memory.nodes, c->gradients.dx = memory.nodes)                    \
    WRONG(CMM_ERROR_DX_OVERLAP, DX_PART, c->gradients.dx = memory.w_in)                                              \
    WRONG(CMM_ERROR_DW_IN_OVERLAP, DW_IN_PART, c->gradients.dw_in = memory.w_in)                                     \
    WRONG(CMM_ERROR_DW_IN_OVERLAP, DW_IN_PART, c->gradients.dw_in = memory.dy)                                       \
    WRONG(CMM_ERROR_DW_IN_OVERLAP, DW_IN_PART, c->gradients.dw_in = off_by(memory.dx, (BATCH * D_IN - 1) * element)) \
    WRONG(CMM_ERROR_DBIAS_OVERLAP, DBIAS_PART, c->gradients.dbias = memory.bias)                                     \
    WRONG(CMM_ERROR_DBIAS_OVERLAP, DBIAS_PART,                                                                       \
          c->gradients.dbias = off_by(memory.dw_in, (TREES * NODES * D_IN - 1) * element))                           \
    WRONG(CMM_ERROR_DW_OUT_OVERLAP, DW_OUT_PART, c->gradients.dw_out = memory.w_out)                                 \
    WRONG(CMM_ERROR_DW_OUT_OVERLAP, DW_OUT_PART, c->gradients.dw_out = off_by(memory.dbias, (TREES * NODES - 1) * element)) \
    WRONG(CMM_ERROR_DW_OUT_OVERLAP, DW_OUT_PART, c->gradients.ld_dw_in = 9,                                          \
          c->gradients.dw_out = off_by(memory.dw_in, ((TREES * NODES - 1) * 9 + D_IN - 1) * element))                \
    WRONG(CMM_ERROR_WORKSPACE_ALIGN, WORKSPACE_PART, c->gradients.workspace = memory.workspace + 8)                  \
    WRONG(CMM_ERROR_WORKSPACE_SIZE, WORKSPACE_PART, c->gradients.workspace_bytes = needed - 1)                       \
    WRONG(CMM_ERROR_WORKSPACE_SIZE, WORKSPACE_PART, c->gradients.workspace_bytes = -1)                               \
    WRONG(CMM_ERROR_WORKSPACE_OVERLAP, WORKSPACE_PART, c->dy = memory.workspace + 8)                                 \
    WRONG(CMM_ERROR_WORKSPACE_OVERLAP, WORKSPACE_PART, c->gradients.dw_out = memory.workspace + needed - 8)          \
    WRONG(CMM_ERROR_PATH, NODES_PART, c->nodes = none)                                                               \
    WRONG(CMM_ERROR_ISA_UNUSABLE, ISA, c->run.isa = foreign_isa())                                                   \
    WRONG(CMM_ERROR_LEVEL_UNUSABLE, RUN_LEVEL, c->run.level = "naive")                                               \
    WRONG(CMM_ERROR_LEVEL_WEIGHT_DTYPE, LAYER_DTYPE, c->fff.dtype = CMM_F32, c->fff.weight_dtype = CMM_BF16)         \
    WRONG(CMM_ERROR_METHOD, RUN_LEVEL, c->run.algorithm = "grouped")                                                 \
    WRONG(CMM_ERROR_MEMORY, WORKSPACE_PART, c->gradients.workspace = NULL, refuse_memory = 1)

static int64_t needed; /* bytes of workspace */

#define WRONG(status, part, ...) {status, part, #__VA_ARGS__},
static const struct {
    cmm_status status;
    int part;
    const char *what;
} wrongs[] = {WRONG_CALLS(WRONG)};
#undef WRONG
enum { WRONGS = sizeof wrongs / sizeof *wrongs };

static void make_wrong(call *c, int which)
{
    int at = 0;
#define WRONG(status, part, ...)                                                                                     \
    if (at++ == which)                                                                                               \
        (void)(__VA_ARGS__);
    WRONG_CALLS(WRONG)
#undef WRONG
}

static void good_memory(void)
{
    memset(&memory, CANARY, sizeof memory);
    for (int i = 0; i < BATCH * TREES; i++)
        for (int level = 0; level <= DEPTH; level++)
            memory.nodes[i * (DEPTH + 1) + level] = level == 0 ? 0 : 2 * memory.nodes[i * (DEPTH + 1) + level - 1] + 1 + i % 2;
}

static void check_refused(const call *c, cmm_status expected, const char *what, const char *and_what)
{
    static struct memory before;
    good_memory();
    memcpy(&before, &memory, sizeof memory);
    const cmm_status status = make_call(c);
    refuse_memory = 0;
    CHECK(status == expected, "f%d, %s; %s: %s, not %s", element * 8, what, and_what, cmm_status_name(status),
          cmm_status_name(expected));
    CHECK(memcmp(&before, &memory, sizeof memory) == 0, "f%d, %s; %s: memory was written", element * 8, what, and_what);
}

/* What a wrong of the first kind may make a part of: the batch, of what is read, and the like. */
static int can_be_combined(int one, int two)
{
    const cmm_status a = wrongs[one].status, b = wrongs[two].status;
    if (wrongs[one].part == wrongs[two].part || a == CMM_ERROR_WORKSPACE_OVERLAP || b == CMM_ERROR_WORKSPACE_OVERLAP)
        return 0;
    /* gradients that are not wanted, or layers of another width, have no other wrongs */
    if (a == CMM_ERROR_GRADIENTS_NONE || b == CMM_ERROR_GRADIENTS_NONE)
        return 0;
    /* of 4 bytes in a call of 8, arrays are smaller and aligned otherwise */
    if (a == CMM_ERROR_LEVEL_WEIGHT_DTYPE || b == CMM_ERROR_LEVEL_WEIGHT_DTYPE)
        return 0;
    /* the last kernel tried says what is wrong with it: for another level, ISA or algorithm */
    const int kernel = wrongs[one].part == ISA || wrongs[one].part == RUN_LEVEL;
    if (kernel && (wrongs[two].part == ISA || wrongs[two].part == RUN_LEVEL))
        return a == CMM_ERROR_LEVEL || a == CMM_ERROR_ISA || b == CMM_ERROR_LEVEL || b == CMM_ERROR_ISA;
    return 1;
}

static void check_wrong_calls(int32_t dtype)
{
    call c;
    int pairs = 0;
    for (int one = 0; one < WRONGS; one++) {
        good_call(dtype, &c);
        CHECK(cmm_fff_backward_workspace(&c.fff, &c.run, BATCH, &c.gradients, &needed) == CMM_OK, "workspace");
        make_wrong(&c, one);
        check_refused(&c, wrongs[one].status, wrongs[one].what, "alone");
        for (int two = one + 1; two < WRONGS; two++) {
            if (!can_be_combined(one, two))
                continue;
            good_call(dtype, &c);
            make_wrong(&c, two);
            make_wrong(&c, one);
            check_refused(&c, wrongs[one].status, wrongs[one].what, wrongs[two].what);
            pairs++;
        }
    }
    printf("f%d: %d wrong calls, %d that are wrong in two ways\n", element * 8, WRONGS, pairs);
    CHECK(pairs > 1000, "%d", pairs);
}

/* Whose path is none. */
static void check_refused_path(void)
{
    call c;
    good_call(CMM_F32, &c);
    good_memory();
    c.run.refused = memory.refused;
    memory.nodes[4 * STEPS + 2 * (DEPTH + 1) + 1] ^= 3;
    CHECK(make_call(&c) == CMM_ERROR_PATH && memory.refused[0] == 4 && memory.refused[1] == 2, "%lld, %lld",
          (long long)memory.refused[0], (long long)memory.refused[1]);
}

/* Calls that are only just good; and the query of the workspace, which checks what it can. */
static void check_good_calls(int32_t dtype)
{
    call c;
    good_call(dtype, &c);
    memset(&memory, 0, sizeof memory);
    good_memory();
    CHECK(make_call(&c) == CMM_OK, "as it is");
    c.gradients.workspace_bytes = needed;
    c.run.level = "native";
    CHECK(make_call(&c) == CMM_OK, "with just enough workspace");
    c.how = NULL;
    c.gradients.dx = off_by(memory.dy, BATCH * D_OUT * element);
    c.gradients.dbias = off_by(memory.dw_in, TREES * NODES * D_IN * element);
    CHECK(make_call(&c) == CMM_OK, "neighbours");
    c.gradients.workspace = NULL;
    c.gradients.workspace_bytes = 0;
    CHECK(make_call(&c) == CMM_OK, "without a workspace");
    c.gradients.dw_in = NULL;
    c.x = NULL;
    CHECK(make_call(&c) == CMM_OK, "without x");
    c.batch = 0;
    c.nodes = NULL;
    c.logits = c.dy = NULL;
    memset(&memory.dw_out, CANARY, sizeof memory.dw_out);
    CHECK(make_call(&c) == CMM_OK, "without tokens");
    for (int i = 0; i < TREES * NODES * D_OUT; i++)
        CHECK(get(dtype, memory.dw_out, i) == 0, "without tokens, dw_out[%d]", i);

    good_call(dtype, &c);
    int64_t bytes = -77, more = 0, all = 0, one = 0;
    CHECK(cmm_fff_backward_workspace(&c.fff, NULL, BATCH, &c.gradients, &all) == CMM_OK, "all");
    const cmm_gradients tokens = {.size = sizeof tokens, .dx = memory.dx}, rows = {.size = sizeof rows, .dw_out = memory.dw_out};
    CHECK(cmm_fff_backward_workspace(&c.fff, NULL, BATCH, &tokens, &one) == CMM_OK && one < all, "dx alone");
    CHECK(cmm_fff_backward_workspace(&c.fff, NULL, BATCH, &rows, &one) == CMM_OK && one < all, "dw_out alone");
    CHECK(cmm_fff_backward_workspace(&c.fff, NULL, BATCH, &c.gradients, NULL) == CMM_ERROR_BYTES_NULL, "bytes NULL");
    CHECK(cmm_fff_backward_workspace(NULL, NULL, BATCH, &c.gradients, &bytes) == CMM_ERROR_LAYER_NULL, "layer NULL");
    CHECK(cmm_fff_backward_workspace(&c.fff, NULL, -1, &c.gradients, &bytes) == CMM_ERROR_BATCH, "batch");
    CHECK(cmm_fff_backward_workspace(&c.fff, NULL, BATCH, NULL, &bytes) == CMM_ERROR_GRADIENTS_NULL, "gradients NULL");
    c.run.isa = foreign_isa();
    CHECK(cmm_fff_backward_workspace(&c.fff, &c.run, BATCH, &c.gradients, &bytes) == CMM_ERROR_ISA_UNUSABLE, "isa");
    CHECK(bytes == -77, "bytes was written");
    for (int64_t batch = 0; batch < 300; batch++) {
        CHECK(cmm_fff_backward_workspace(&c.fff, NULL, batch, &c.gradients, &bytes) == CMM_OK && bytes >= more, "%lld",
              (long long)batch);
        more = bytes;
    }
}

int main(int argc, char **argv)
{
    few = argc > 1 && strcmp(argv[1], "few") == 0;
    make_buffers((size_t)1 << 22);
    find_isas();
    for (int32_t dtype = CMM_F32; dtype <= CMM_F64; dtype++) {
        check_wrong_calls(dtype);
        check_good_calls(dtype);
    }
    check_refused_path();
    for (int64_t width = 1; width <= 70; width += few ? 13 : 3)
        for (int32_t dtype = CMM_F32; dtype <= CMM_F64; dtype++)
            for (int32_t padding = 0; padding <= 1; padding++)
                check_shape((shape){.dtype = dtype, .activation = (int32_t)width % 5, .depth = padding ? 3 : 4,
                                    .trees = padding ? 3 : 1, .d_in = width, .d_out = padding ? width : 71 - width,
                                    .batch = 1 + width % 9 * 3, .bias = padding, .padding = padding});
    for (int32_t activation = 0; activation < 5; activation++)
        for (int32_t dtype = CMM_F32; dtype <= CMM_F64; dtype++)
            check_shape((shape){.dtype = dtype, .activation = activation, .tie = activation % 2, .depth = 6, .trees = 2,
                                .d_in = 19, .d_out = 23, .batch = 150});
    check_shape((shape){.depth = 0, .trees = 1, .d_in = 1, .d_out = 1, .batch = 1});
    check_shape((shape){.depth = 0, .trees = 300, .d_in = 33, .d_out = 31, .batch = 70, .bias = 1, .padding = 1});
    check_shape((shape){.dtype = CMM_F64, .depth = 1, .trees = 40, .d_in = 33, .d_out = 31, .batch = 40});
    check_shape((shape){.depth = 0, .trees = 3, .d_in = 9, .d_out = 7, .batch = 0});
    check_shape((shape){.depth = 2, .trees = 2, .d_in = 400, .d_out = 1000, .batch = 0});
    check_shape((shape){.depth = 3, .trees = 1, .d_in = 1000, .d_out = 400, .batch = 40, .bias = 1});
    check_shape((shape){.depth = 12, .trees = 1, .d_in = 5, .d_out = 3, .batch = few ? 100 : 700}); /* two passes of the sort */
    check_threads((shape){.depth = 7, .trees = 1, .d_in = 300, .d_out = 200, .batch = few ? 100 : 500, .bias = 1});
    check_threads((shape){.depth = 0, .trees = 300, .d_in = 90, .d_out = 80, .batch = 200});
    return check_report();
}
