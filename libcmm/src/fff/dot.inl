/* The micro-kernel of dot products, between shared operands and MR varying ones, each of its own type. microkernel.inl
 * includes it for rows that tokens share, many_rows.inl for a token that rows share. Who includes it defines SHARED and
 * VARYING, the types; LOAD_SHARED, LOAD_VARYING and the same with _MASKED, which load a vector of X from them; and
 * DOT(a), the names. */

/* out[s][v] = dot(shared[s], varying[v]) for n_shared <= NR and n_varying <= MR, which are constants wherever this
 * is inlined. Meanwhile the token `prefetch`, where it is not NULL, is prefetched into L2. */
INLINE void DOT(dot_microkernel)(const int n_shared, const int n_varying, const SHARED *const *shared,
                          const VARYING *const *varying, int64_t d, X (*out)[MR], const X *prefetch)
{
    enum { LINE = CMM_ALIGNMENT / (int)sizeof(X) };
    const int vectors = n_shared > 1 ? NAME(PASS_OF_ROWS) : n_varying > 1 ? NAME(PASS) : NAME(PASS_ALONE);
    const int passes = NAME(VECTORS) / vectors;
    XNAME(vec) lanes[NR][MR][NAME(VECTORS)];
    for (int pass = 0; pass < passes; pass++) { /* vectors pass, pass + passes, ...: those that halving adds first */
        XNAME(vec) sum[NR][MR][NAME(PASS_ALONE)];
#pragma GCC unroll 8
        for (int r = 0; r < n_shared; r++)
#pragma GCC unroll 8
            for (int t = 0; t < n_varying; t++)
#pragma GCC unroll 8
                for (int v = 0; v < vectors; v++)
                    sum[r][t][v] = XNAME(vec_zero)();
        int64_t i = 0;
        for (; i + NAME(LANES) <= d; i += NAME(LANES)) {
            if (prefetch && pass == 0)
#pragma GCC unroll 8
                for (int line = 0; line < NAME(LANES); line += LINE)
                    __builtin_prefetch(prefetch + i + line, 0, 2);
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) {
                const int64_t at = i + (pass + v * passes) * XNAME(VL);
                XNAME(vec) common[NR];
#pragma GCC unroll 8
                for (int r = 0; r < n_shared; r++)
                    common[r] = LOAD_SHARED(shared[r] + at);
#pragma GCC unroll 8
                for (int t = 0; t < n_varying; t++) {
                    XNAME(vec) own = LOAD_VARYING(varying[t] + at);
                    if (n_shared > 1)
                        own = XNAME(vec_pin)(own);
#pragma GCC unroll 8
                    for (int r = 0; r < n_shared; r++)
                        sum[r][t][v] = XNAME(vec_fma)(common[r], own, sum[r][t][v]);
                }
            }
        }
        if (i < d) {
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) {
                const int64_t at = i + (pass + v * passes) * XNAME(VL), left = d - at;
                XNAME(vec) common[NR];
#pragma GCC unroll 8
                for (int r = 0; r < n_shared; r++)
                    common[r] = LOAD_SHARED_MASKED(shared[r] + at, left);
#pragma GCC unroll 8
                for (int t = 0; t < n_varying; t++) {
                    const XNAME(vec) own = LOAD_VARYING_MASKED(varying[t] + at, left);
#pragma GCC unroll 8
                    for (int r = 0; r < n_shared; r++)
                        sum[r][t][v] = XNAME(vec_fma)(common[r], own, sum[r][t][v]);
                }
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < n_shared; r++)
#pragma GCC unroll 8
            for (int t = 0; t < n_varying; t++)
                lanes[r][t][pass] = NAME(pairwise_sum)(vectors, sum[r][t]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < n_shared; r++)
#pragma GCC unroll 8
        for (int t = 0; t < n_varying; t++)
            out[r][t] = XNAME(vec_reduce_add)(NAME(pairwise_sum)(passes, lanes[r][t]));
}

/* out[v] = dot(shared, varying[v]) for 1 <= n <= MR. */
static void DOT(dots)(int n, const SHARED *shared, const VARYING *const *varying, int64_t d, X *out,
                      const X *prefetch)
{
    switch (n) {
#if MR >= 4
    case 4:
        DOT(dot_microkernel)(1, 4, &shared, varying, d, (X(*)[MR])out, prefetch);
        return;
#endif
#if MR >= 3
    case 3:
        DOT(dot_microkernel)(1, 3, &shared, varying, d, (X(*)[MR])out, prefetch);
        return;
#endif
#if MR >= 2
    case 2:
        DOT(dot_microkernel)(1, 2, &shared, varying, d, (X(*)[MR])out, prefetch);
        return;
#endif
    default:
        DOT(dot_microkernel)(1, 1, &shared, varying, d, (X(*)[MR])out, prefetch);
    }
}

#undef SHARED
#undef LOAD_SHARED
#undef LOAD_SHARED_MASKED
#undef VARYING
#undef LOAD_VARYING
#undef LOAD_VARYING_MASKED
#undef DOT
