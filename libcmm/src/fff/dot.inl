/* The micro-kernel of dot products, between shared operands and MR varying ones, each of its own type. microkernel.inl
 * includes it for rows that tokens share, many_rows.inl for a token that rows share. Who includes it defines SHARED and
 * VARYING, the types; LOAD_SHARED, LOAD_VARYING and the same with _MASKED, which load a vector of X from them;
 * ALIGN_VARYING, whether vectors of varying operands begin at multiples of their size, if they are long; and DOT(a), the
 * names. */

/* out[s][v] = dot(shared[s], varying[v]) for n_shared <= NR and n_varying <= MR, which are constants wherever this
 * is inlined. Meanwhile the token `prefetch`, where it is not NULL, is prefetched into L2. With head > 0, less than a vector,
 * the vectors of the varying operands begin `head` elements on, and what comes before is summed first, in the last lanes of
 * the last vector: every lane of a sum is `head` lanes lower, cyclically, which halving does not see. For n_shared == 1,
 * and d a multiple of LANES: a row is continued with no zeros then, of which each would make +0 of a lane's -0. */
INLINE void DOT(dot_microkernel)(const int n_shared, const int n_varying, const SHARED *const *shared,
                          const VARYING *const *varying, int64_t d, X (*out)[MR], const X *prefetch, int64_t head)
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
        if (head > 0 && pass == passes - 1) { /* the pass that has the last vector */
            const XNAME(vec) first = XNAME(vec_rotate)(LOAD_SHARED_MASKED(shared[0], head), head);
#pragma GCC unroll 8
            for (int t = 0; t < n_varying; t++) {
                const XNAME(vec) own = XNAME(vec_rotate)(LOAD_VARYING_MASKED(varying[t], head), head);
                sum[0][t][vectors - 1] = XNAME(vec_fma)(first, own, sum[0][t][vectors - 1]);
            }
        }
        int64_t i = head;
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
        if (prefetch && pass == 0) { /* the lines that the loop leaves out: of the rest, and both ends' */
            for (int64_t rest = i; rest < d; rest += LINE)
                __builtin_prefetch(prefetch + rest, 0, 2);
            __builtin_prefetch(prefetch + d - 1, 0, 2);
            if (head > 0)
                __builtin_prefetch(prefetch, 0, 2);
        }
        if (i < d) {
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) {
                const int64_t at = i + (pass + v * passes) * XNAME(VL), left = d - at;
                if (head > 0 && (v < vectors - 1 || pass < passes - 1)) { /* only the last vector is not whole then */
                    const XNAME(vec) whole = LOAD_SHARED(shared[0] + at);
#pragma GCC unroll 8
                    for (int t = 0; t < n_varying; t++)
                        sum[0][t][v] = XNAME(vec_fma)(whole, LOAD_VARYING(varying[t] + at), sum[0][t][v]);
                    continue;
                }
                XNAME(vec) common[NR];
#pragma GCC unroll 8
                for (int r = 0; r < n_shared; r++)
                    common[r] = LOAD_SHARED_MASKED(shared[r] + at, left);
#pragma GCC unroll 8
                for (int t = 0; t < n_varying; t++) {
                    const XNAME(vec) own = LOAD_VARYING_MASKED(varying[t] + at, left);
#pragma GCC unroll 8
                    for (int r = 0; r < n_shared; r++)
                        sum[r][t][v] = head > 0 ? XNAME(vec_fma_masked)(common[r], own, sum[r][t][v], left)
                                                : XNAME(vec_fma)(common[r], own, sum[r][t][v]);
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

/* How many elements of these come before the first at a multiple of a vector's size: 0 where that is not the same for all
 * of them, or is not worth it: of vectors of a quarter of a cache line few cross one; and one alone gains no more than the
 * shared operand loses, unless that is off by as much. */
INLINE int64_t DOT(head)(int n, const SHARED *shared, const VARYING *const *varying, int64_t d)
{
    uintptr_t differ = n == 1 ? (uintptr_t)shared ^ (uintptr_t)varying[0] : 0;
    if (!ALIGN_VARYING || d < NAME(LONG) || d % NAME(LANES) || (int)XNAME(VECTOR_BYTES) < CMM_ALIGNMENT / 2)
        return 0;
    for (int i = 1; i < n; i++)
        differ |= (uintptr_t)varying[i] ^ (uintptr_t)varying[0];
    return differ % XNAME(VECTOR_BYTES) ? 0 : bytes_to_multiple(varying[0], XNAME(VECTOR_BYTES)) / (int64_t)sizeof(X);
}

/* out[v] = dot(shared, varying[v]) for 1 <= n <= MR. */
static void DOT(dots)(int n, const SHARED *shared, const VARYING *const *varying, int64_t d, X *out,
                      const X *prefetch)
{
    const int64_t head = DOT(head)(n, shared, varying, d);
    switch (n) {
#if MR >= 4
    case 4:
        DOT(dot_microkernel)(1, 4, &shared, varying, d, (X(*)[MR])out, prefetch, head);
        return;
#endif
#if MR >= 3
    case 3:
        DOT(dot_microkernel)(1, 3, &shared, varying, d, (X(*)[MR])out, prefetch, head);
        return;
#endif
#if MR >= 2
    case 2:
        DOT(dot_microkernel)(1, 2, &shared, varying, d, (X(*)[MR])out, prefetch, head);
        return;
#endif
    default:
        DOT(dot_microkernel)(1, 1, &shared, varying, d, (X(*)[MR])out, prefetch, head);
    }
}

#undef SHARED
#undef LOAD_SHARED
#undef LOAD_SHARED_MASKED
#undef VARYING
#undef LOAD_VARYING
#undef LOAD_VARYING_MASKED
#undef DOT
#undef ALIGN_VARYING
