/* What a layer should give: plain loops in double along the path that was reported, and bounds on the rounding. */
#ifndef ORACLE_H
#define ORACLE_H

#include "activation.h"
#include "activations.inc"
#include "check.h"
#include "example.h"

#include <float.h>

/* gamma(m) bounds the relative error of m rounded operations in a row (Higham, Accuracy and Stability, lemma 3.1). */
static inline double gamma_of(double m, double u)
{
    return m * u / (1 - m * u);
}

static inline double roundoff(int32_t dtype)
{
    return dtype == CMM_F32 ? (double)FLT_EPSILON / 2 : DBL_EPSILON / 2;
}

static inline double activation_of(int32_t activation, double z)
{
    switch (activation) {
    case CMM_GELU: return 0.5 * z * erfc(-z * 0.70710678118654752440);
    case CMM_GELU_TANH: return z / (1 + exp(-1.59576912160573071176 * (z + 0.044715 * z * z * z)));
    case CMM_RELU: return z < 0 ? 0 : z;
    case CMM_SILU: return z / (1 + exp(-z));
    default: return z;
    }
}

/* Relative error of an activation against activation_of at the same z: the ulps that activation.h promises (an ulp is
 * at most 2 u), and those of activation_of in double. There the functions of libm and the last operations make at
 * most 16 u, and the argument of erfc or exp is off by at most 8 roundings; a relative error e of that argument moves
 * the result by at most m e, where m is the argument itself for exp, and below 1 + z^2 for erfc(z / sqrt(2)). */
static inline double activation_error(int32_t dtype, int32_t activation, double z)
{
#define ULP_F32(NUMBER, name, zero_at_zero, ulp_f32, ulp_f64, ...) ulp_f32,
#define ULP_F64(NUMBER, name, zero_at_zero, ulp_f32, ulp_f64, ...) ulp_f64,
    static const double ulps_f32[] = {CMM_ACTIVATIONS(ULP_F32)}, ulps_f64[] = {CMM_ACTIVATIONS(ULP_F64)};
    const double m = activation == CMM_GELU   ? 1 + z * z
                     : activation == CMM_SILU ? fabs(z)
                                              : 1.6 * fabs(z) * (1 + 0.045 * z * z);
    return activation == CMM_RELU || activation == CMM_IDENTITY
               ? 0
               : (dtype == CMM_F32 ? ulps_f32 : ulps_f64)[activation] * 2 * roundoff(dtype) +
                     (16 + 8 * m) * roundoff(CMM_F64);
}

/* Check the path, the logits and, unless e->y is not wanted, the outputs of an example that has run.
 *
 * The path must follow from the reported logits exactly, and each logit lie within its dot product's bound: so a
 * token may leave the exact path only where its exact logit is within that bound of 0. The activations are those of
 * the reported logits, so the bound of y has no share of the logits' errors in it. */
static inline void oracle_check(const example *e, int wants_y, const char *what)
{
    const cmm_fff *const l = &e->layer;
    const int32_t dtype = l->dtype, levels = l->depth + 1;
    const int64_t nodes = ((int64_t)2 << l->depth) - 1;
    const int64_t ld_in = l->ld_in ? l->ld_in : l->d_in, ld_out = l->ld_out ? l->ld_out : l->d_out;
    const double u = roundoff(dtype), v = roundoff(CMM_F64);
    /* The products, their sum and the bias; once as computed, once more for the loop here. */
    const double dot_error = gamma_of((double)l->d_in + 1, u) + gamma_of((double)l->d_in + 1, v);
    /* A term is rounded as a product, then once per addition: of the terms, and of the trees where they are summed
     * apart. Adding 0 for a row that was not visited is exact. */
    const double terms = (double)e->steps + (double)l->trees + 1;
    const double y_error = gamma_of(terms, u) + gamma_of(terms, v);
    /* Below the normal numbers errors are absolute: 4 of the least number for each activation and each product. */
    const double underflow = 8 * terms * (dtype == CMM_F32 ? (double)FLT_TRUE_MIN : DBL_TRUE_MIN);
    double *const want = allocate(l->d_out, sizeof *want), *const size = allocate(l->d_out, sizeof *size);
    double *const slack = allocate(l->d_out, sizeof *slack);
    for (int64_t token = 0; token < e->batch; token++) {
        for (int64_t o = 0; o < l->d_out; o++)
            want[o] = size[o] = slack[o] = 0;
        for (int64_t tree = 0; tree < l->trees; tree++) {
            int64_t node = 0;
            for (int32_t level = 0; level < levels; level++) {
                const int64_t step = token * e->steps + tree * levels + level, row = tree * nodes + node;
                const double logit = get(dtype, e->logits, step);
                CHECK(e->nodes[step] == node, "%s: token %lld, tree %lld, level %d: node %d, not %lld", what,
                      (long long)token, (long long)tree, level, e->nodes[step], (long long)node);
                double exact = l->bias ? get(dtype, l->bias, row) : 0, sum = fabs(exact);
                for (int64_t i = 0; i < l->d_in; i++) {
                    const double term = get(dtype, l->w_in, row * ld_in + i) * get(dtype, e->x, token * l->d_in + i);
                    exact += term;
                    sum += fabs(term);
                }
                CHECK(fabs(logit - exact) <= dot_error * sum, "%s: token %lld, tree %lld, level %d: logit %a, not %a",
                      what, (long long)token, (long long)tree, level, logit, exact);
                const double a = activation_of(l->activation, logit);
                const double a_error = activation_error(dtype, l->activation, logit);
                for (int64_t o = 0; wants_y && o < l->d_out; o++) {
                    const double w = get(dtype, l->w_out, row * ld_out + o);
                    want[o] += a * w;
                    size[o] += fabs(a * w) * (1 + a_error);
                    slack[o] += fabs(a * w) * a_error;
                }
                node = 2 * node + 1 + (l->tie == CMM_TIE_RIGHT ? logit >= 0 : logit > 0);
            }
        }
        for (int64_t o = 0; wants_y && o < l->d_out; o++) {
            const double y = get(dtype, e->y, token * l->d_out + o);
            CHECK(fabs(y - want[o]) <= y_error * size[o] + slack[o] + underflow,
                  "%s: token %lld, output %lld: %a, not %a", what, (long long)token, (long long)o, y, want[o]);
        }
    }
    free(want);
    free(size);
    free(slack);
}

#endif
