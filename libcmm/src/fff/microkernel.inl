/* The micro-kernels, two register tiles that every native kernel is made of (dot_microkernel in dot.inl,
 * weighted_sum_microkernel below), over the vectors of one instruction set. Rows, of type W, are widened to the tokens' type X as they are loaded; everything
 * else is X.
 *
 * They fix the order of all sums, so that a token's bits depend on nothing but its layer and itself:
 *   dot  LANES lanes start at 0; lane j takes every i = j mod LANES by fused multiply-add, the row and the token being
 *        continued with zeros to a multiple of LANES; then halves are added, lane j + lane j + LANES/2, down to one.
 *   y    each element starts at 0 and takes the visited rows by fused multiply-add, trees in order, root first. */
#ifdef CMM_TYPE

#if MR < 1 || MR > 4
#error "MR is 1 to 4: dots() and outputs() have no case for more"
#endif

#define NR 3 /* of a dot_microkernel, at most */

enum {
    NAME(LANES) = 256 / (int)sizeof(X), /* of a sum, whatever a vector holds: its order is the same on every machine */
    NAME(VECTORS) = NAME(LANES) / XNAME(VL),
    /* Vectors of lanes that one pass over a row keeps in registers for each token: of one row, 4 hide the latency of
     * the fma; of several rows, 2 or 1 leave registers for all of them. */
    NAME(PASS) = NAME(VECTORS) < 4 ? NAME(VECTORS) : 4,
    NAME(PASS_ALONE) = NAME(VECTORS) <= REGISTERS / 2 ? NAME(VECTORS) : NAME(PASS), /* of one row and one token: all */
    NAME(LONG) = 2048 / (int)sizeof(X), /* a row so long that it pays to begin at the tokens' first whole vector */
    NAME(PASS_OF_ROWS) = NAME(VECTORS) < 2 || REGISTERS < 32 ? 1 : 2
};

/* The sum of n <= 16 vectors by halves: v[i] + v[i + n/2], and so on down to one. n is a power of 2 and a constant. */
INLINE XNAME(vec) NAME(pairwise_sum)(const int n, const XNAME(vec) *v)
{
    XNAME(vec) a[8], b[4];
    if (n <= 2)
        return n == 2 ? XNAME(vec_add)(v[0], v[1]) : v[0];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        a[i] = n == 16 ? XNAME(vec_add)(v[i], v[i + 8]) : i < n ? v[i] : v[0];
#pragma GCC unroll 8
    for (int i = 0; i < 4; i++)
        b[i] = n >= 8 ? XNAME(vec_add)(a[i], a[i + 4]) : a[i];
    return XNAME(vec_add)(XNAME(vec_add)(b[0], b[2]), XNAME(vec_add)(b[1], b[3]));
}

/* One row, or NR of them, for up to MR tokens: dots(), of NR rows dot_microkernel(). */
#define SHARED W
#define LOAD_SHARED NAME(load_w)
#define LOAD_SHARED_MASKED NAME(load_w_masked)
#define VARYING X
#define ALIGN_VARYING 1
#define LOAD_VARYING XNAME(vec_load)
#define LOAD_VARYING_MASKED XNAME(vec_load_masked)
#define DOT(a) NAME(a)
#include "dot.inl"

/* ---- logits ---------------------------------------------------------------------------------------------------- */

enum { NAME(SCALED) = W_TYPE == CMM_I8, NAME(NARROW) = W_TYPE != X_TYPE };

/* The logit of a neuron of w_in, by its number in all trees, from its dot product. */
INLINE X NAME(logit)(const cmm_problem *problem, int64_t neuron, X dot)
{
    if (NAME(SCALED))
        dot *= (X)problem->scale_in[neuron];
    return problem->bias ? dot + ((const X *)problem->bias)[neuron] : dot;
}

/* The norm that the exact path goes by: at least, but for the rounding that margins allow for, the token's. Outside of
 * what they are derived for (docs/internals/exact-path.md) it is infinite, which leaves every logit undecided. */
INLINE X NAME(norm)(const X *x, int64_t d)
{
    X squares;
    XNAME(dots)(1, x, &x, d, &squares, NULL);
    return squares >= (X)0x1p-80 && squares <= (X)0x1p80 ? (X)sqrt((double)squares) : (X)INFINITY;
}

/* Whether the exact path computes a logit of an inner node again, whose number among all inner nodes it is: unless it is
 * farther from 0 than the narrow row can be wrong. NaN is not. */
INLINE int NAME(undecided)(const cmm_problem *problem, int64_t inner, X logit, X norm)
{
    return !((X)fabs((double)logit) > (X)problem->margin[inner] * norm);
}

/* ---- weighted sums --------------------------------------------------------------------------------------------- */

/* A whole vector of y. Past the caches `to` is a multiple of its size. */
INLINE void NAME(put)(X *to, XNAME(vec) a, int store_mode)
{
    if (store_mode == Y_STORE_NT)
        XNAME(vec_store_nt)(to, a);
    else
        XNAME(vec_store)(to, a);
}

/* A tile of y: for `tokens` tokens that have their first `shared` of `rows` rows in common, `columns` vectors from element
 * `at` on; with part > 0 the one vector of columns has so many elements, which are the last. With shift > 0 the first
 * multiple of a vector's size lies `shift` elements on in y: what is stored there is joined of two vectors of sums, so that
 * rows are loaded from where they begin. The last one's end is left in `open` for the next tile. */
INLINE void NAME(weighted_sum_microkernel)(const int tokens, const int columns, int64_t at, int64_t part,
                                           const XNAME(output_args) *s, int store_mode, int64_t shift,
                                           XNAME(vec) *open, int shared, int rows)
{
    enum { VL = XNAME(VL) };
    XNAME(vec) y[MR][COLUMNS_ALONE];
#pragma GCC unroll 16
    for (int t = 0; t < tokens; t++)
#pragma GCC unroll 16
        for (int v = 0; v < columns; v++)
            y[t][v] = store_mode != Y_ADD ? XNAME(vec_zero)()
                      : part > 0          ? XNAME(vec_load_masked)(s[t].y + at, part)
                                          : XNAME(vec_load)(s[t].y + at + v * VL);
    for (int i = 0; i < shared; i++) {
        const W *const row = (const W *)s[0].row[i];
        XNAME(vec) c[MR];
#pragma GCC unroll 16
        for (int t = 0; t < tokens; t++)
            c[t] = XNAME(vec_broadcast)(s[t].c[i]);
#pragma GCC unroll 16
        for (int v = 0; v < columns; v++) {
            const XNAME(vec) w = part > 0 ? NAME(load_w_masked)(row + at, part) : NAME(load_w)(row + at + v * VL);
#pragma GCC unroll 16
            for (int t = 0; t < tokens; t++)
                y[t][v] = XNAME(vec_fma)(c[t], w, y[t][v]);
        }
    }
#pragma GCC unroll 16
    for (int t = 0; t < tokens; t++) {
        for (int i = shared; i < rows; i++) {
            const W *const row = (const W *)s[t].row[i];
            const XNAME(vec) c = XNAME(vec_broadcast)(s[t].c[i]);
#pragma GCC unroll 16
            for (int v = 0; v < columns; v++) {
                const XNAME(vec) w = part > 0 ? NAME(load_w_masked)(row + at, part) : NAME(load_w)(row + at + v * VL);
                y[t][v] = XNAME(vec_fma)(c, w, y[t][v]);
            }
        }
    }
    if (shift > 0) {
#pragma GCC unroll 16
        for (int t = 0; t < tokens; t++) {
            X *const to = s[t].y + at + shift - VL;
            if (at == 0)
                XNAME(vec_store_masked)(s[t].y, y[t][0], shift);
            else
                NAME(put)(to, XNAME(vec_join)(open[t], y[t][0], shift), store_mode);
#pragma GCC unroll 16
            for (int v = 1; v < columns; v++)
                NAME(put)(to + v * VL, XNAME(vec_join)(y[t][v - 1], y[t][v], shift), store_mode);
            open[t] = y[t][columns - 1];
        }
        return;
    }
#pragma GCC unroll 16
    for (int t = 0; t < tokens; t++)
#pragma GCC unroll 16
        for (int v = 0; v < columns; v++) {
            X *const to = s[t].y + at + v * VL;
            if (part > 0)
                XNAME(vec_store_masked)(to, y[t][v], part);
            else
                NAME(put)(to, y[t][v], store_mode);
        }
}

/* Where y is off the multiples of a vector's size, but its rows are whole vectors, so that all of them are off by as much,
 * it is stored at these multiples nevertheless: stores past the caches must be, and others would each write to two lines of
 * the cache. */
INLINE void NAME(weighted_sum_columns)(const int tokens, const int columns, const XNAME(output_args) *s, int64_t d,
                                       int store_mode, int shared, int rows)
{
    enum { VL = XNAME(VL), SIZE = XNAME(VECTOR_BYTES) };
    const int64_t shift = store_mode != Y_ADD && d % VL == 0 ? bytes_to_multiple(s[0].y, SIZE) / (int64_t)sizeof(X) : 0;
    XNAME(vec) open[MR] = {XNAME(vec_zero)()};
    int64_t at = 0;
    for (; at + columns * VL <= d; at += columns * VL)
        NAME(weighted_sum_microkernel)(tokens, columns, at, 0, s, store_mode, shift, open, shared, rows);
    for (; at + VL <= d; at += VL)
        NAME(weighted_sum_microkernel)(tokens, 1, at, 0, s, store_mode, shift, open, shared, rows);
    if (at < d)
        NAME(weighted_sum_microkernel)(tokens, 1, at, d - at, s, store_mode, 0, open, shared, rows);
    for (int t = 0; shift > 0 && t < tokens; t++)
        XNAME(vec_store_masked)(s[t].y + d + shift - VL, XNAME(vec_rotate)(open[t], shift), VL - shift);
}

/* y[d] of 1 <= tokens <= MR tokens, which have their first `shared` rows in common. */
static void NAME(weighted_sums)(int tokens, const XNAME(output_args) *s, int64_t d, int store_mode, int shared, int rows)
{
    switch (tokens) {
#if MR >= 4
    case 4:
        NAME(weighted_sum_columns)(4, COLUMNS, s, d, store_mode, shared, rows);
        return;
#endif
#if MR >= 3
    case 3:
        NAME(weighted_sum_columns)(3, COLUMNS, s, d, store_mode, shared, rows);
        return;
#endif
#if MR >= 2
    case 2:
        NAME(weighted_sum_columns)(2, COLUMNS, s, d, store_mode, shared, rows);
        return;
#endif
    default:
        NAME(weighted_sum_columns)(1, COLUMNS_ALONE, s, d, store_mode, shared, rows);
    }
}

#endif
