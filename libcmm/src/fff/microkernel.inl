/* The micro-kernels, two register tiles that every native kernel is made of (dot_tile in dot.inl, y_tile below), over
 * the vectors of one instruction set. Rows, of type W, are widened to the tokens' type X as they are loaded; everything
 * else is X.
 *
 * They fix the order of all sums, so that a token's bits depend on nothing but its layer and itself:
 *   dot  LANES lanes start at 0; lane j takes every i = j mod LANES by fused multiply-add, the row and the token being
 *        continued with zeros to a multiple of LANES; then halves are added, lane j + lane j + LANES/2, down to one.
 *   y    each element starts at 0 and takes the visited rows by fused multiply-add, trees in order, root first. */
#ifdef CMM_TYPE

#if TILE < 1 || TILE > 4
#error "TILE is 1 to 4: dots() and outputs() have no case for more"
#endif

#define INLINE static inline __attribute__((always_inline))
#define ROWS 3 /* of a dot_tile, at most */

enum {
    NAME(LANES) = 256 / (int)sizeof(X), /* of a sum, whatever a vector holds: its order is the same on every machine */
    NAME(VECTORS) = NAME(LANES) / XNAME(VL),
    /* Vectors of lanes that one pass over a row keeps in registers for each token: of one row, 4 hide the latency of
     * the fma; of several rows, 2 or 1 leave registers for all of them. */
    NAME(PASS) = NAME(VECTORS) < 4 ? NAME(VECTORS) : 4,
    NAME(PASS_OF_ROWS) = NAME(VECTORS) < 2 || REGISTERS < 32 ? 1 : 2
};

/* The sum of n <= 16 vectors by halves: v[i] + v[i + n/2], and so on down to one. n is a power of 2 and a constant. */
INLINE XNAME(vec) NAME(halves)(const int n, const XNAME(vec) *v)
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

/* One row, or ROWS of them, for up to TILE tokens: dots(), of ROWS rows dot_tile(). */
#define SHARED W
#define LOAD_SHARED NAME(load_w)
#define LOAD_SHARED_MASKED NAME(load_w_masked)
#define VARYING X
#define LOAD_VARYING XNAME(vec_load)
#define LOAD_VARYING_MASKED XNAME(vec_load_masked)
#define DOT(a) NAME(a)
#include "dot.inl"

/* What one token takes from w_out: y (+)= sum over i of c[i] * row[i]. */
typedef struct {
    const W *const *row;
    const X *c;
    X *y;
} NAME(share);

/* What becomes of y: it is stored, added to, or stored past the caches (which needs whole cache lines). */
enum { NAME(Y_STORE), NAME(Y_ADD), NAME(Y_STREAM) };

/* Columns [at, at + columns vectors) of y for `tokens` tokens that have their first `shared` of `rows` rows in common.
 * The last `part` elements, where part > 0, fill only a part of the one vector of columns. */
INLINE void NAME(y_tile)(const int tokens, const int columns, int64_t at, int64_t part, const NAME(share) *s,
                         int way, int shared, int rows)
{
    XNAME(vec) y[TILE][2 * COLUMNS];
#pragma GCC unroll 16
    for (int t = 0; t < tokens; t++)
#pragma GCC unroll 16
        for (int v = 0; v < columns; v++)
            y[t][v] = way != NAME(Y_ADD) ? XNAME(vec_zero)()
                      : part > 0         ? XNAME(vec_load_masked)(s[t].y + at, part)
                                         : XNAME(vec_load)(s[t].y + at + v * XNAME(VL));
    for (int i = 0; i < shared; i++) {
        const W *const row = s[0].row[i] + at;
        XNAME(vec) c[TILE];
#pragma GCC unroll 16
        for (int t = 0; t < tokens; t++)
            c[t] = XNAME(vec_broadcast)(s[t].c[i]);
#pragma GCC unroll 16
        for (int v = 0; v < columns; v++) {
            const XNAME(vec) w = part > 0 ? NAME(load_w_masked)(row, part) : NAME(load_w)(row + v * XNAME(VL));
#pragma GCC unroll 16
            for (int t = 0; t < tokens; t++)
                y[t][v] = XNAME(vec_fma)(c[t], w, y[t][v]);
        }
    }
#pragma GCC unroll 16
    for (int t = 0; t < tokens; t++) {
        for (int i = shared; i < rows; i++) {
            const W *const row = s[t].row[i] + at;
            const XNAME(vec) c = XNAME(vec_broadcast)(s[t].c[i]);
#pragma GCC unroll 16
            for (int v = 0; v < columns; v++) {
                const XNAME(vec) w = part > 0 ? NAME(load_w_masked)(row, part) : NAME(load_w)(row + v * XNAME(VL));
                y[t][v] = XNAME(vec_fma)(c, w, y[t][v]);
            }
        }
    }
#pragma GCC unroll 16
    for (int t = 0; t < tokens; t++)
#pragma GCC unroll 16
        for (int v = 0; v < columns; v++) {
            if (part > 0)
                XNAME(vec_store_masked)(s[t].y + at, y[t][v], part);
            else if (way == NAME(Y_STREAM))
                XNAME(vec_store_nt)(s[t].y + at + v * XNAME(VL), y[t][v]);
            else
                XNAME(vec_store)(s[t].y + at + v * XNAME(VL), y[t][v]);
        }
}

INLINE void NAME(y_tiles)(const int tokens, const int columns, const NAME(share) *s, int64_t d, int way,
                          int shared, int rows)
{
    int64_t at = 0;
    for (; at + columns * XNAME(VL) <= d; at += columns * XNAME(VL))
        NAME(y_tile)(tokens, columns, at, 0, s, way, shared, rows);
    for (; at + XNAME(VL) <= d; at += XNAME(VL))
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

/* Bytes of both rows of one neuron. */
static inline int64_t NAME(row_bytes)(const cmm_problem *task)
{
    return (task->d_in + task->d_out) * (int64_t)sizeof(W);
}

/* Prefetch a row into L2, for use in a while. */
static inline void NAME(prefetch_later)(const W *row, int64_t d)
{
    for (int64_t i = 0; i < d; i += CMM_ALIGNMENT / (int64_t)sizeof(W))
        __builtin_prefetch(row + i, 0, 2);
}

/* Prefetch the beginning of a row; the CPU's own prefetcher goes on from there. */
static inline void NAME(prefetch_head)(const W *row, int64_t d)
{
    const int64_t head = 512 / (int64_t)sizeof(W), end = d < head ? d : head;
    for (int64_t i = 0; i < end; i += CMM_ALIGNMENT / (int64_t)sizeof(W))
        __builtin_prefetch(row + i);
}

#endif
