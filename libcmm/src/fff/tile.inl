/* The two register tiles that every native kernel is made of, over the vectors of one instruction set.
 *
 * They fix the order of all sums, so that a token's bits depend on nothing but its layer and itself:
 *   dot  LANES lanes start at 0; lane j takes every i = j mod LANES by fused multiply-add, the row and the token being
 *        continued with zeros to a multiple of LANES; then halves are added, lane j + lane j + LANES/2, down to one.
 *   y    each element starts at 0 and takes the visited rows by fused multiply-add, trees in order, root first. */
#ifdef REAL

#if TILE < 1 || TILE > 4
#error "TILE is 1 to 4: dots() and outputs() have no case for more"
#endif

#define INLINE static inline __attribute__((always_inline))

enum {
    NAME(LANES) = 256 / (int)sizeof(REAL),
    NAME(VECTORS) = NAME(LANES) / NAME(VL),
    /* Vectors of lanes that one pass over a row keeps in registers for each token; 4 hide the latency of the fma. */
    NAME(PASS) = NAME(VECTORS) < 4 ? NAME(VECTORS) : 4
};

/* out[t] = dot(w, x[t]) for `tokens` <= TILE tokens; tokens is a constant wherever this is inlined. */
INLINE void NAME(dot_tile)(const int tokens, const REAL *w, const REAL *const *x, int64_t d, REAL *out)
{
    NAME(vec) lanes[TILE][NAME(VECTORS)];
    for (int pass = 0; pass < NAME(VECTORS); pass += NAME(PASS)) {
        NAME(vec) sum[TILE][NAME(PASS)];
#pragma GCC unroll 8
        for (int t = 0; t < tokens; t++)
#pragma GCC unroll 8
            for (int v = 0; v < NAME(PASS); v++)
                sum[t][v] = NAME(vec_zero)();
        int64_t i = pass * NAME(VL);
        for (; i + (NAME(LANES) - pass * NAME(VL)) <= d; i += NAME(LANES)) {
#pragma GCC unroll 8
            for (int v = 0; v < NAME(PASS); v++) {
                const NAME(vec) row = NAME(vec_load)(w + i + v * NAME(VL));
#pragma GCC unroll 8
                for (int t = 0; t < tokens; t++)
                    sum[t][v] = NAME(vec_fma)(row, NAME(vec_load)(x[t] + i + v * NAME(VL)), sum[t][v]);
            }
        }
        if (i - pass * NAME(VL) < d) {
#pragma GCC unroll 8
            for (int v = 0; v < NAME(PASS); v++) {
                const int64_t at = i + v * NAME(VL), left = d - at;
                const NAME(vec) row = NAME(vec_load_part)(w + at, left);
#pragma GCC unroll 8
                for (int t = 0; t < tokens; t++)
                    sum[t][v] = NAME(vec_fma)(row, NAME(vec_load_part)(x[t] + at, left), sum[t][v]);
            }
        }
#pragma GCC unroll 8
        for (int t = 0; t < tokens; t++)
#pragma GCC unroll 8
            for (int v = 0; v < NAME(PASS); v++)
                lanes[t][pass + v] = sum[t][v];
    }
#pragma GCC unroll 8
    for (int t = 0; t < tokens; t++) {
#pragma GCC unroll 8
        for (int half = NAME(VECTORS) / 2; half > 0; half /= 2)
#pragma GCC unroll 8
            for (int v = 0; v < half; v++)
                lanes[t][v] = NAME(vec_add)(lanes[t][v], lanes[t][v + half]);
        out[t] = NAME(vec_halve)(lanes[t][0]);
    }
}

/* out[t] = dot(w, x[t]) for 1 <= tokens <= TILE. */
static void NAME(dots)(int tokens, const REAL *w, const REAL *const *x, int64_t d, REAL *out)
{
    switch (tokens) {
#if TILE >= 4
    case 4:
        NAME(dot_tile)(4, w, x, d, out);
        return;
#endif
#if TILE >= 3
    case 3:
        NAME(dot_tile)(3, w, x, d, out);
        return;
#endif
#if TILE >= 2
    case 2:
        NAME(dot_tile)(2, w, x, d, out);
        return;
#endif
    default:
        NAME(dot_tile)(1, w, x, d, out);
    }
}

/* What one token takes from w_out: y (+)= sum over i of c[i] * row[i]. */
typedef struct {
    const REAL *const *row;
    const REAL *c;
    REAL *y;
} NAME(share);

/* Columns [at, at + columns vectors) of y for `tokens` tokens that have their first `shared` of `rows` rows in common.
 * The last `part` elements, where part > 0, fill only a part of the one vector of columns. */
INLINE void NAME(y_tile)(const int tokens, const int columns, int64_t at, int64_t part, const NAME(share) *s, int add,
                         int shared, int rows)
{
    NAME(vec) y[TILE][2 * COLUMNS];
#pragma GCC unroll 16
    for (int t = 0; t < tokens; t++)
#pragma GCC unroll 16
        for (int v = 0; v < columns; v++)
            y[t][v] = !add     ? NAME(vec_zero)()
                      : part > 0 ? NAME(vec_load_part)(s[t].y + at, part)
                               : NAME(vec_load)(s[t].y + at + v * NAME(VL));
    for (int i = 0; i < shared; i++) {
        const REAL *const row = s[0].row[i] + at;
        NAME(vec) c[TILE];
#pragma GCC unroll 16
        for (int t = 0; t < tokens; t++)
            c[t] = NAME(vec_set)(s[t].c[i]);
#pragma GCC unroll 16
        for (int v = 0; v < columns; v++) {
            const NAME(vec) w = part > 0 ? NAME(vec_load_part)(row, part) : NAME(vec_load)(row + v * NAME(VL));
#pragma GCC unroll 16
            for (int t = 0; t < tokens; t++)
                y[t][v] = NAME(vec_fma)(c[t], w, y[t][v]);
        }
    }
#pragma GCC unroll 16
    for (int t = 0; t < tokens; t++) {
        for (int i = shared; i < rows; i++) {
            const REAL *const row = s[t].row[i] + at;
            const NAME(vec) c = NAME(vec_set)(s[t].c[i]);
#pragma GCC unroll 16
            for (int v = 0; v < columns; v++) {
                const NAME(vec) w = part > 0 ? NAME(vec_load_part)(row, part) : NAME(vec_load)(row + v * NAME(VL));
                y[t][v] = NAME(vec_fma)(c, w, y[t][v]);
            }
        }
    }
#pragma GCC unroll 16
    for (int t = 0; t < tokens; t++)
#pragma GCC unroll 16
        for (int v = 0; v < columns; v++) {
            if (part > 0)
                NAME(vec_store_part)(s[t].y + at, y[t][v], part);
            else
                NAME(vec_store)(s[t].y + at + v * NAME(VL), y[t][v]);
        }
}

INLINE void NAME(y_tiles)(const int tokens, const int columns, const NAME(share) *s, int64_t d, int add, int shared,
                          int rows)
{
    int64_t at = 0;
    for (; at + columns * NAME(VL) <= d; at += columns * NAME(VL))
        NAME(y_tile)(tokens, columns, at, 0, s, add, shared, rows);
    for (; at + NAME(VL) <= d; at += NAME(VL))
        NAME(y_tile)(tokens, 1, at, 0, s, add, shared, rows);
    if (at < d)
        NAME(y_tile)(tokens, 1, at, d - at, s, add, shared, rows);
}

/* y[d] of 1 <= tokens <= TILE tokens, which have their first `shared` rows in common; add: to what y holds. */
static void NAME(outputs)(int tokens, const NAME(share) *s, int64_t d, int add, int shared, int rows)
{
    switch (tokens) {
#if TILE >= 4
    case 4:
        NAME(y_tiles)(4, COLUMNS, s, d, add, shared, rows);
        return;
#endif
#if TILE >= 3
    case 3:
        NAME(y_tiles)(3, COLUMNS, s, d, add, shared, rows);
        return;
#endif
#if TILE >= 2
    case 2:
        NAME(y_tiles)(2, COLUMNS, s, d, add, shared, rows);
        return;
#endif
    default:
        NAME(y_tiles)(1, 2 * COLUMNS, s, d, add, shared, rows);
    }
}

static inline int NAME(goes_right)(const cmm_task *task, REAL logit)
{
    return task->tie == CMM_TIE_RIGHT ? logit >= 0 : logit > 0;
}

/* Prefetch a row into L2, for use in a while. */
static inline void NAME(prefetch_later)(const REAL *row, int64_t d)
{
    for (int64_t i = 0; i < d; i += CMM_ALIGNMENT / (int64_t)sizeof(REAL))
        __builtin_prefetch(row + i, 0, 2);
}

/* Prefetch the beginning of a row; the CPU's own prefetcher goes on from there. */
static inline void NAME(prefetch_head)(const REAL *row, int64_t d)
{
    const int64_t head = 512 / (int64_t)sizeof(REAL), end = d < head ? d : head;
    for (int64_t i = 0; i < end; i += CMM_ALIGNMENT / (int64_t)sizeof(REAL))
        __builtin_prefetch(row + i);
}

#endif
