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
#define ROWS 3 /* that may share their tokens */

enum {
    NAME(LANES) = 256 / (int)sizeof(REAL),
    NAME(VECTORS) = NAME(LANES) / NAME(VL),
    /* Vectors of lanes that one pass over a row keeps in registers for each token: of one row, 4 hide the latency of
     * the fma; of several rows, 2 or 1 leave registers for all of them. */
    NAME(PASS) = NAME(VECTORS) < 4 ? NAME(VECTORS) : 4,
    NAME(PASS_OF_ROWS) = NAME(VECTORS) < 2 || REGISTERS < 32 ? 1 : 2
};

/* The sum of n <= 16 vectors by halves: v[i] + v[i + n/2], and so on down to one. n is a power of 2 and a constant. */
INLINE NAME(vec) NAME(halves)(const int n, const NAME(vec) *v)
{
    NAME(vec) a[8], b[4];
    if (n <= 2)
        return n == 2 ? NAME(vec_add)(v[0], v[1]) : v[0];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        a[i] = n == 16 ? NAME(vec_add)(v[i], v[i + 8]) : i < n ? v[i] : v[0];
#pragma GCC unroll 8
    for (int i = 0; i < 4; i++)
        b[i] = n >= 8 ? NAME(vec_add)(a[i], a[i + 4]) : a[i];
    return NAME(vec_add)(NAME(vec_add)(b[0], b[2]), NAME(vec_add)(b[1], b[3]));
}

/* out[r][t] = dot(w[r], x[t]) for `rows` <= ROWS rows and `tokens` <= TILE tokens, which are constants wherever this
 * is inlined. On the way the row `ahead`, where it is not NULL, comes into L2. */
INLINE void NAME(dot_tile)(const int rows, const int tokens, const REAL *const *w, const REAL *const *x, int64_t d,
                           REAL (*out)[TILE], const REAL *ahead)
{
    enum { LINE = CMM_ALIGNMENT / (int)sizeof(REAL) };
    const int vectors = rows == 1 ? NAME(PASS) : NAME(PASS_OF_ROWS), passes = NAME(VECTORS) / vectors;
    NAME(vec) lanes[ROWS][TILE][NAME(VECTORS)];
    for (int pass = 0; pass < passes; pass++) { /* vectors pass, pass + passes, ...: those that halving adds first */
        NAME(vec) sum[ROWS][TILE][NAME(PASS)];
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int t = 0; t < tokens; t++)
#pragma GCC unroll 8
                for (int v = 0; v < vectors; v++)
                    sum[r][t][v] = NAME(vec_zero)();
        int64_t i = 0;
        for (; i + NAME(LANES) <= d; i += NAME(LANES)) {
            if (ahead && pass == 0)
#pragma GCC unroll 8
                for (int line = 0; line < NAME(LANES); line += LINE)
                    __builtin_prefetch(ahead + i + line, 0, 2);
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) {
                const int64_t at = i + (pass + v * passes) * NAME(VL);
                NAME(vec) row[ROWS];
#pragma GCC unroll 8
                for (int r = 0; r < rows; r++)
                    row[r] = NAME(vec_load)(w[r] + at);
#pragma GCC unroll 8
                for (int t = 0; t < tokens; t++) {
                    NAME(vec) token = NAME(vec_load)(x[t] + at);
                    if (rows > 1)
                        token = NAME(vec_keep)(token);
#pragma GCC unroll 8
                    for (int r = 0; r < rows; r++)
                        sum[r][t][v] = NAME(vec_fma)(row[r], token, sum[r][t][v]);
                }
            }
        }
        if (i < d) {
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) {
                const int64_t at = i + (pass + v * passes) * NAME(VL), left = d - at;
                NAME(vec) row[ROWS];
#pragma GCC unroll 8
                for (int r = 0; r < rows; r++)
                    row[r] = NAME(vec_load_part)(w[r] + at, left);
#pragma GCC unroll 8
                for (int t = 0; t < tokens; t++) {
                    const NAME(vec) token = NAME(vec_load_part)(x[t] + at, left);
#pragma GCC unroll 8
                    for (int r = 0; r < rows; r++)
                        sum[r][t][v] = NAME(vec_fma)(row[r], token, sum[r][t][v]);
                }
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int t = 0; t < tokens; t++)
                lanes[r][t][pass] = NAME(halves)(vectors, sum[r][t]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int t = 0; t < tokens; t++)
            out[r][t] = NAME(vec_halve)(NAME(halves)(passes, lanes[r][t]));
}

/* out[t] = dot(w, x[t]) for 1 <= tokens <= TILE. */
static void NAME(dots)(int tokens, const REAL *w, const REAL *const *x, int64_t d, REAL out[TILE], const REAL *ahead)
{
    switch (tokens) {
#if TILE >= 4
    case 4:
        NAME(dot_tile)(1, 4, &w, x, d, (REAL(*)[TILE])out, ahead);
        return;
#endif
#if TILE >= 3
    case 3:
        NAME(dot_tile)(1, 3, &w, x, d, (REAL(*)[TILE])out, ahead);
        return;
#endif
#if TILE >= 2
    case 2:
        NAME(dot_tile)(1, 2, &w, x, d, (REAL(*)[TILE])out, ahead);
        return;
#endif
    default:
        NAME(dot_tile)(1, 1, &w, x, d, (REAL(*)[TILE])out, ahead);
    }
}

/* What one token takes from w_out: y (+)= sum over i of c[i] * row[i]. */
typedef struct {
    const REAL *const *row;
    const REAL *c;
    REAL *y;
} NAME(share);

/* What becomes of y: it is stored, added to, or stored past the caches (which needs whole cache lines). */
enum { NAME(Y_STORE), NAME(Y_ADD), NAME(Y_STREAM) };

/* Columns [at, at + columns vectors) of y for `tokens` tokens that have their first `shared` of `rows` rows in common.
 * The last `part` elements, where part > 0, fill only a part of the one vector of columns. */
INLINE void NAME(y_tile)(const int tokens, const int columns, int64_t at, int64_t part, const NAME(share) *s,
                         int way, int shared, int rows)
{
    NAME(vec) y[TILE][2 * COLUMNS];
#pragma GCC unroll 16
    for (int t = 0; t < tokens; t++)
#pragma GCC unroll 16
        for (int v = 0; v < columns; v++)
            y[t][v] = way != NAME(Y_ADD) ? NAME(vec_zero)()
                      : part > 0         ? NAME(vec_load_part)(s[t].y + at, part)
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
            else if (way == NAME(Y_STREAM))
                NAME(vec_stream)(s[t].y + at + v * NAME(VL), y[t][v]);
            else
                NAME(vec_store)(s[t].y + at + v * NAME(VL), y[t][v]);
        }
}

INLINE void NAME(y_tiles)(const int tokens, const int columns, const NAME(share) *s, int64_t d, int way,
                          int shared, int rows)
{
    int64_t at = 0;
    for (; at + columns * NAME(VL) <= d; at += columns * NAME(VL))
        NAME(y_tile)(tokens, columns, at, 0, s, way, shared, rows);
    for (; at + NAME(VL) <= d; at += NAME(VL))
        NAME(y_tile)(tokens, 1, at, 0, s, way, shared, rows);
    if (at < d)
        NAME(y_tile)(tokens, 1, at, d - at, s, way, shared, rows);
}

/* y[d] of 1 <= tokens <= TILE tokens, which have their first `shared` rows in common. */
static void NAME(outputs)(int tokens, const NAME(share) *s, int64_t d, int way, int shared, int rows)
{
    switch (tokens) {
#if TILE >= 4
    case 4:
        NAME(y_tiles)(4, COLUMNS, s, d, way, shared, rows);
        return;
#endif
#if TILE >= 3
    case 3:
        NAME(y_tiles)(3, COLUMNS, s, d, way, shared, rows);
        return;
#endif
#if TILE >= 2
    case 2:
        NAME(y_tiles)(2, COLUMNS, s, d, way, shared, rows);
        return;
#endif
    default:
        NAME(y_tiles)(1, 2 * COLUMNS, s, d, way, shared, rows);
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
