/* Layers with pseudo-random weights, tokens and room for the results: what most tests run.
 *
 * All numbers are integers times a power of two, made by integer arithmetic: the same bits on every machine. */
#ifndef EXAMPLE_H
#define EXAMPLE_H

#include "cmm.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static inline uint64_t random_bits(uint64_t *state) /* splitmix64 */
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* A multiple of 2^-23 in [-1, 1): exact in float and in double. */
static inline double random_unit(uint64_t *state)
{
    return (double)((int64_t)(random_bits(state) >> 40) - (1 << 23)) * 0x1p-23;
}

static inline size_t element_size(int32_t dtype)
{
    return dtype == CMM_F32 ? sizeof(float) : sizeof(double);
}

static inline double get(int32_t dtype, const void *array, int64_t i)
{
    return dtype == CMM_F32 ? (double)((const float *)array)[i] : ((const double *)array)[i];
}

static inline void put(int32_t dtype, void *array, int64_t i, double value)
{
    if (dtype == CMM_F32)
        ((float *)array)[i] = (float)value;
    else
        ((double *)array)[i] = value;
}

typedef struct shape {
    int32_t dtype, activation, tie, depth;
    int64_t trees, d_in, d_out, batch;
    int32_t bias, padding; /* bias: 0 or 1; padding: elements between the rows of w_in, one more of w_out */
} shape;

typedef struct example {
    cmm_fff layer;
    int64_t rows, batch, steps; /* rows of all trees; steps: trees * (depth + 1) */
    void *w_in, *bias, *w_out, *x, *y, *logits;
    int32_t *nodes;
} example;

static inline void *allocate(int64_t elements, size_t size)
{
    void *const memory = malloc(elements > 0 ? (size_t)elements * size : 1);
    if (!memory) {
        printf("out of memory\n");
        exit(2);
    }
    return memory;
}

static inline int64_t span(int64_t rows, int64_t d, int64_t ld)
{
    return rows ? (rows - 1) * ld + d : 0;
}

static inline void fill_random(int32_t dtype, void *array, int64_t n, double scale, uint64_t *state)
{
    for (int64_t i = 0; i < n; i++)
        put(dtype, array, i, scale * random_unit(state));
}

static inline example example_new(shape s, uint64_t seed)
{
    example e = {.rows = s.trees * (((int64_t)2 << s.depth) - 1), .batch = s.batch, .steps = s.trees * (s.depth + 1)};
    const size_t size = element_size(s.dtype);
    const int64_t ld_in = s.d_in + s.padding, ld_out = s.d_out + (s.padding ? s.padding + 1 : 0);
    e.w_in = allocate(span(e.rows, s.d_in, ld_in), size);
    e.w_out = allocate(span(e.rows, s.d_out, ld_out), size);
    e.bias = s.bias ? allocate(e.rows, size) : NULL;
    e.x = allocate(s.batch * s.d_in, size);
    e.y = allocate(s.batch * s.d_out, size);
    e.nodes = allocate(s.batch * e.steps, sizeof *e.nodes);
    e.logits = allocate(s.batch * e.steps, size);
    fill_random(s.dtype, e.w_in, span(e.rows, s.d_in, ld_in), 1, &seed);
    fill_random(s.dtype, e.w_out, span(e.rows, s.d_out, ld_out), 1, &seed);
    fill_random(s.dtype, e.x, s.batch * s.d_in, 1, &seed);
    if (e.bias)
        fill_random(s.dtype, e.bias, e.rows, 0.25, &seed);
    e.layer = (cmm_fff){.size = sizeof(cmm_fff),
                        .dtype = s.dtype,
                        .activation = s.activation,
                        .tie = s.tie,
                        .depth = s.depth,
                        .trees = s.trees,
                        .d_in = s.d_in,
                        .d_out = s.d_out,
                        .w_in = e.w_in,
                        .bias = e.bias,
                        .w_out = e.w_out,
                        .ld_in = s.padding ? ld_in : 0,
                        .ld_out = s.padding ? ld_out : 0};
    return e;
}

static inline void example_free(example *e)
{
    free(e->w_in);
    free(e->w_out);
    free(e->bias);
    free(e->x);
    free(e->y);
    free(e->nodes);
    free(e->logits);
}

/* What no kernel writes: a NaN of an unusual pattern, and a node that does not exist. */
static inline void example_forget(example *e)
{
    const size_t size = element_size(e->layer.dtype);
    memset(e->y, 0xff, (size_t)(e->batch * e->layer.d_out) * size);
    memset(e->logits, 0xff, (size_t)(e->batch * e->steps) * size);
    memset(e->nodes, 0xff, (size_t)(e->batch * e->steps) * sizeof *e->nodes);
}

static inline cmm_status example_run(example *e, const cmm_run *run)
{
    example_forget(e);
    return cmm_fff_forward(&e->layer, run, e->batch, e->x, e->y, e->nodes, e->logits);
}

#endif
