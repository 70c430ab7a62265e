/* The encoder of cmm.bert in WebAssembly, for the page beside this file: what python/cmm/bert/encoder.py computes, for one
 * text at a time. Feedforward layers are libcmm's; the matrix products here, which a dense layer of libcmm takes as its
 * BLAS. They add in another order than a BLAS on a CPU does: logits are the same to 1e-4, not to the bit.
 *
 * A model is made empty, and its parts are filled in from outside. An FFF layer needs not have every node: encode() says
 * so where a token has come to one that is missing. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <wasm_simd128.h>

#include "cmm.h"

#define EXPORT(name) __attribute__((export_name(#name)))

__attribute__((import_module("page"), import_name("now"))) double page_now(void); /* milliseconds */

enum { NORM1_WEIGHT, NORM1_BIAS, QKV, DENSE, NORM2_WEIGHT, NORM2_BIAS, BIAS, W_IN, W_OUT, LAYER_PARTS };
enum { WORD, SCALE, EMBEDDING_WEIGHT, EMBEDDING_BIAS, FINAL_WEIGHT, FINAL_BIAS, POSITIONS, MODEL_PARTS };
enum { OK, NODES_MISSING, REFUSED };

typedef struct {
    int layers, width, heads, vocabulary, limit, trees, depth, neurons; /* trees 0: dense layers */
    float eps;
    float *part[MODEL_PARTS], **layer;          /* layer[index * LAYER_PARTS + part] */
    uint8_t *present;                           /* [layers][neurons] */
    float *x, *normed, *qkv, *context, *scores, *delta, *logits, *path_logits; /* path_logits of one layer */
    int32_t *path;                              /* [layers][tokens][trees][depth + 1] */
    double feedforward_ms;
} model;

#if defined(__wasm_relaxed_simd__)
#define MADD(a, b, c) wasm_f32x4_relaxed_madd(a, b, c)
#else
#define MADD(a, b, c) wasm_f32x4_add(wasm_f32x4_mul(a, b), c)
#endif

static inline float sum_of(v128_t v)
{
    v = wasm_f32x4_add(v, wasm_i32x4_shuffle(v, v, 2, 3, 2, 3));
    return wasm_f32x4_extract_lane(v, 0) + wasm_f32x4_extract_lane(v, 1);
}

/* out[t][r] = dot(rows[r], x[t]) for a tile that is a constant wherever this is inlined. */
static inline __attribute__((always_inline)) void dot_tile(const int tokens, const int rows, int k, const float *w, int ldw,
                                                           const float *x, int ldx, float *out, int ldo)
{
    v128_t sum[3][4];
#pragma clang loop unroll(full)
    for (int t = 0; t < tokens; t++)
#pragma clang loop unroll(full)
        for (int r = 0; r < rows; r++)
            sum[t][r] = wasm_f32x4_const_splat(0);
    int i = 0;
    for (; i + 4 <= k; i += 4) {
        v128_t own[3];
#pragma clang loop unroll(full)
        for (int t = 0; t < tokens; t++)
            own[t] = wasm_v128_load(x + (size_t)t * ldx + i);
#pragma clang loop unroll(full)
        for (int r = 0; r < rows; r++) {
            const v128_t row = wasm_v128_load(w + (size_t)r * ldw + i);
#pragma clang loop unroll(full)
            for (int t = 0; t < tokens; t++)
                sum[t][r] = MADD(row, own[t], sum[t][r]);
        }
    }
#pragma clang loop unroll(full)
    for (int t = 0; t < tokens; t++)
#pragma clang loop unroll(full)
        for (int r = 0; r < rows; r++) {
            float rest = 0;
            for (int j = i; j < k; j++)
                rest += w[(size_t)r * ldw + j] * x[(size_t)t * ldx + j];
            out[(size_t)t * ldo + r] = sum_of(sum[t][r]) + rest;
        }
}

/* out (tokens, rows) = x (tokens, k) w^T, w (rows, k). */
static void multiply_transposed(int tokens, int rows, int k, const float *w, int ldw, const float *x, int ldx, float *out, int ldo)
{
    int r = 0;
    for (; r + 4 <= rows; r += 4) {
        int t = 0;
        for (; t + 3 <= tokens; t += 3)
            dot_tile(3, 4, k, w + (size_t)r * ldw, ldw, x + (size_t)t * ldx, ldx, out + (size_t)t * ldo + r, ldo);
        for (; t < tokens; t++)
            dot_tile(1, 4, k, w + (size_t)r * ldw, ldw, x + (size_t)t * ldx, ldx, out + (size_t)t * ldo + r, ldo);
    }
    for (; r < rows; r++)
        for (int t = 0; t < tokens; t++)
            dot_tile(1, 1, k, w + (size_t)r * ldw, ldw, x + (size_t)t * ldx, ldx, out + (size_t)t * ldo + r, ldo);
}

/* Some columns, `vectors` times 4, of out[t] = sum over i of c[t][i] w[i]. */
static inline __attribute__((always_inline)) void sum_tile(const int tokens, const int vectors, int k, const float *w, int ldw,
                                                           const float *c, int ldc, float *out, int ldo)
{
    v128_t sum[3][4];
#pragma clang loop unroll(full)
    for (int t = 0; t < tokens; t++)
#pragma clang loop unroll(full)
        for (int v = 0; v < vectors; v++)
            sum[t][v] = wasm_f32x4_const_splat(0);
    for (int i = 0; i < k; i++) {
        v128_t a[3];
#pragma clang loop unroll(full)
        for (int t = 0; t < tokens; t++)
            a[t] = wasm_v128_load32_splat(c + (size_t)t * ldc + i);
#pragma clang loop unroll(full)
        for (int v = 0; v < vectors; v++) {
            const v128_t row = wasm_v128_load(w + (size_t)i * ldw + 4 * v);
#pragma clang loop unroll(full)
            for (int t = 0; t < tokens; t++)
                sum[t][v] = MADD(a[t], row, sum[t][v]);
        }
    }
#pragma clang loop unroll(full)
    for (int t = 0; t < tokens; t++)
#pragma clang loop unroll(full)
        for (int v = 0; v < vectors; v++)
            wasm_v128_store(out + (size_t)t * ldo + 4 * v, sum[t][v]);
}

/* out (tokens, columns) = c (tokens, k) w, w (k, columns); columns is a multiple of 16. */
static void multiply(int tokens, int columns, int k, const float *w, int ldw, const float *c, int ldc, float *out, int ldo)
{
    for (int j = 0; j < columns; j += 16) { /* a cache line of each row */
        int t = 0;
        for (; t + 3 <= tokens; t += 3)
            sum_tile(3, 4, k, w + j, ldw, c + (size_t)t * ldc, ldc, out + (size_t)t * ldo + j, ldo);
        for (; t < tokens; t++)
            sum_tile(1, 4, k, w + j, ldw, c + (size_t)t * ldc, ldc, out + (size_t)t * ldo + j, ldo);
    }
}

/* The two products that libcmm's dense layer asks of a BLAS: alpha 1, beta 0, b not transposed; row-major here. */
static void sgemm(const char *transa, const char *transb, const int32_t *m, const int32_t *n, const int32_t *k, const float *alpha,
                  const float *a, const int32_t *lda, const float *b, const int32_t *ldb, const float *beta, float *c,
                  const int32_t *ldc)
{
    (void)transb;
    (void)alpha;
    (void)beta;
    if (*transa == 'T')
        multiply_transposed(*n, *m, *k, a, *lda, b, *ldb, c, *ldc);
    else
        multiply(*n, *m, *k, a, *lda, b, *ldb, c, *ldc);
}

/* No dense layer asks for these, but a table must have them for the level. */
static float sdot(const int32_t *n, const float *x, const int32_t *incx, const float *y, const int32_t *incy)
{
    float sum = 0;
    for (int32_t i = 0; i < *n; i++)
        sum += x[i * *incx] * y[i * *incy];
    return sum;
}

static void saxpy(const int32_t *n, const float *alpha, const float *x, const int32_t *incx, float *y, const int32_t *incy)
{
    for (int32_t i = 0; i < *n; i++)
        y[i * *incy] += *alpha * x[i * *incx];
}

static void sgemv(const char *trans, const int32_t *m, const int32_t *n, const float *alpha, const float *a, const int32_t *lda,
                  const float *x, const int32_t *incx, const float *beta, float *y, const int32_t *incy)
{
    (void)trans, (void)m, (void)n, (void)alpha, (void)a, (void)lda, (void)x, (void)incx, (void)beta, (void)y, (void)incy;
    abort();
}

static const cmm_blas blas = {.size = sizeof blas, .sdot = sdot, .saxpy = saxpy, .sgemv = sgemv, .sgemm = sgemm,
                              .name = "encoder.c"};

static float *floats(size_t count)
{
    return calloc(count, sizeof(float));
}

EXPORT(model_new)
model *model_new(int layers, int width, int heads, int vocabulary, int limit, int trees, int depth, int neurons, float eps)
{
    model *const m = calloc(1, sizeof *m);
    *m = (model){.layers = layers, .width = width, .heads = heads, .vocabulary = vocabulary, .limit = limit, .trees = trees,
                 .depth = depth, .neurons = neurons, .eps = eps};
    const size_t w = (size_t)width, l = (size_t)limit, n = (size_t)neurons, steps = (size_t)(trees * (depth + 1));
    const size_t sizes[] = {(size_t)vocabulary * w, 1, w, w, w, w, l * w}, of_layer[] = {w, w, 3 * w * w, w * w, w, w, n, n * w, n * w};
    for (int p = 0; p < MODEL_PARTS; p++)
        m->part[p] = floats(sizes[p]);
    m->layer = calloc((size_t)layers * LAYER_PARTS, sizeof *m->layer);
    for (int p = 0; p < layers * LAYER_PARTS; p++)
        m->layer[p] = floats(of_layer[p % LAYER_PARTS]);
    m->present = calloc((size_t)layers, n);
    m->x = floats(l * w);
    m->normed = floats(l * w);
    m->qkv = floats(3 * l * w);
    m->context = floats(l * w);
    m->delta = floats(l * w);
    m->scores = floats(l * l);
    m->logits = floats((size_t)vocabulary);
    m->path_logits = floats(l * steps + 1);
    m->path = calloc((size_t)layers * l * steps + 1, sizeof *m->path);
    return m;
}

EXPORT(model_part) float *model_part(model *m, int part) { return m->part[part]; }
EXPORT(model_layer) float *model_layer(model *m, int layer, int part) { return m->layer[layer * LAYER_PARTS + part]; }
EXPORT(model_present) uint8_t *model_present(model *m) { return m->present; }
EXPORT(model_path) int32_t *model_path(model *m) { return m->path; }
EXPORT(model_feedforward_ms) double model_feedforward_ms(model *m) { return m->feedforward_ms; }
EXPORT(memory_new) void *memory_new(int bytes) { return malloc((size_t)bytes); }
EXPORT(memory_delete) void memory_delete(void *memory) { free(memory); }

/* float16 as float, exactly. */
EXPORT(widen)
void widen(const uint16_t *from, float *to, int count)
{
    for (int i = 0; i < count; i++) {
        const uint32_t bits = (uint32_t)(from[i] & 0x7fff) << 13, sign = (uint32_t)(from[i] & 0x8000) << 16;
        float value;
        memcpy(&value, &bits, sizeof value);
        value *= 0x1p112f; /* stored models have neither infinity nor NaN */
        to[i] = sign ? -value : value;
    }
}

/* The name of the instruction set whose native kernels run, "wasm" or "scalar". */
EXPORT(instruction_set)
const char *instruction_set(void)
{
    const char *best = "";
    for (int32_t i = 0; i < cmm_kernel_count(); i++) {
        cmm_kernel_info info = {.size = sizeof info};
        if (cmm_kernel_get(i, &info) == CMM_OK && info.available && strcmp(info.level, "native") == 0)
            best = info.isa;
    }
    return best;
}

static void layer_norm(const model *m, int tokens, const float *x, const float *weight, const float *bias, float *out)
{
    const int width = m->width;
    for (int t = 0; t < tokens; t++, x += width, out += width) {
        v128_t sum = wasm_f32x4_const_splat(0);
        for (int i = 0; i < width; i += 4)
            sum = wasm_f32x4_add(sum, wasm_v128_load(x + i));
        const v128_t mean = wasm_f32x4_splat(sum_of(sum) / (float)width);
        sum = wasm_f32x4_const_splat(0);
        for (int i = 0; i < width; i += 4) {
            const v128_t d = wasm_f32x4_sub(wasm_v128_load(x + i), mean);
            wasm_v128_store(out + i, d);
            sum = wasm_f32x4_add(sum, wasm_f32x4_mul(d, d));
        }
        const v128_t scale = wasm_f32x4_splat(1 / sqrtf(sum_of(sum) / (float)width + m->eps));
        for (int i = 0; i < width; i += 4) {
            const v128_t d = wasm_f32x4_mul(wasm_f32x4_mul(wasm_v128_load(out + i), scale), wasm_v128_load(weight + i));
            wasm_v128_store(out + i, wasm_f32x4_add(d, wasm_v128_load(bias + i)));
        }
    }
}

static void add(float *x, const float *delta, int count)
{
    for (int i = 0; i < count; i += 4)
        wasm_v128_store(x + i, wasm_f32x4_add(wasm_v128_load(x + i), wasm_v128_load(delta + i)));
}

/* Head a owns rows [q_a | k_a | v_a] of qkv. */
static void attention(model *m, int tokens, const float *qkv_weight, const float *dense)
{
    const int width = m->width, head = width / m->heads, row = 3 * width;
    const float scale = 1 / sqrtf((float)head);
    multiply_transposed(tokens, row, width, qkv_weight, width, m->normed, width, m->qkv, row);
    for (int a = 0; a < m->heads; a++) {
        const float *const q = m->qkv + a * 3 * head, *const k = q + head, *const v = k + head;
        multiply_transposed(tokens, tokens, head, k, row, q, row, m->scores, tokens);
        for (int t = 0; t < tokens; t++) {
            float *const s = m->scores + t * tokens, largest = -INFINITY, sum = 0;
            for (int i = 0; i < tokens; i++) {
                s[i] *= scale;
                largest = s[i] > largest ? s[i] : largest;
            }
            for (int i = 0; i < tokens; i++)
                sum += s[i] = expf(s[i] - largest);
            for (int i = 0; i < tokens; i++)
                s[i] /= sum;
        }
        multiply(tokens, head, tokens, v, row, m->scores, tokens, m->context + a * head, width);
    }
    multiply_transposed(tokens, width, width, dense, width, m->context, width, m->delta, width);
}

static int feedforward(model *m, int tokens, int index)
{
    float *const *const part = m->layer + index * LAYER_PARTS;
    const double began = page_now();
    cmm_status status;
    int result = OK;
    if (m->trees == 0) {
        const cmm_ff layer = {.size = sizeof layer, .dtype = CMM_F32, .activation = CMM_GELU, .neurons = m->neurons,
                              .d_in = m->width, .d_out = m->width, .w_in = part[W_IN], .w_out = part[W_OUT]};
        const cmm_run how = {.size = sizeof how, .threads = 1, .level = "blas3", .blas = &blas};
        status = cmm_ff_forward(&layer, &how, tokens, m->normed, m->delta);
    } else {
        const int steps = m->trees * (m->depth + 1), of_tree = m->neurons / m->trees;
        const cmm_fff layer = {.size = sizeof layer, .dtype = CMM_F32, .activation = CMM_GELU, .depth = m->depth,
                               .trees = m->trees, .d_in = m->width, .d_out = m->width, .w_in = part[W_IN],
                               .bias = part[BIAS], .w_out = part[W_OUT]};
        const cmm_run how = {.size = sizeof how, .threads = 1, .level = "native"};
        int32_t *const path = m->path + (size_t)index * (size_t)(tokens * steps);
        status = cmm_fff_forward(&layer, &how, tokens, m->normed, m->delta, path, m->path_logits);
        const uint8_t *const present = m->present + (size_t)index * (size_t)m->neurons;
        for (int i = 0; i < tokens * steps; i++)
            if (!present[i % steps / (m->depth + 1) * of_tree + path[i]])
                result = NODES_MISSING;
    }
    m->feedforward_ms += page_now() - began;
    return status == CMM_OK ? result : REFUSED;
}

/* Run the encoder. m->x becomes the hidden states, m->path the paths, [layers][tokens][trees][depth + 1]. */
EXPORT(encode)
int encode(model *m, const int32_t *ids, int tokens)
{
    const int width = m->width, count = tokens * width;
    if (tokens < 1 || tokens > m->limit)
        return REFUSED;
    m->feedforward_ms = 0;
    for (int t = 0; t < tokens; t++) {
        if (ids[t] < 0 || ids[t] >= m->vocabulary)
            return REFUSED;
        for (int i = 0; i < width; i++)
            m->delta[t * width + i] = m->part[WORD][ids[t] * width + i] + m->part[SCALE][0] * m->part[POSITIONS][t * width + i];
    }
    layer_norm(m, tokens, m->delta, m->part[EMBEDDING_WEIGHT], m->part[EMBEDDING_BIAS], m->x);
    for (int index = 0; index < m->layers; index++) {
        float *const *const part = m->layer + index * LAYER_PARTS;
        layer_norm(m, tokens, m->x, part[NORM1_WEIGHT], part[NORM1_BIAS], m->normed);
        attention(m, tokens, part[QKV], part[DENSE]);
        add(m->x, m->delta, count);
        layer_norm(m, tokens, m->x, part[NORM2_WEIGHT], part[NORM2_BIAS], m->normed);
        const int status = feedforward(m, tokens, index);
        if (status != OK)
            return status;
        add(m->x, m->delta, count);
    }
    layer_norm(m, tokens, m->x, m->part[FINAL_WEIGHT], m->part[FINAL_BIAS], m->x);
    return OK;
}

/* The logits of one token after encode(), [vocabulary]. */
EXPORT(decode)
float *decode(model *m, int token)
{
    multiply_transposed(1, m->vocabulary, m->width, m->part[WORD], m->width, m->x + token * m->width, m->width, m->logits,
                        m->vocabulary);
    return m->logits;
}
