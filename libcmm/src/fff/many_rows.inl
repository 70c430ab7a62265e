/* Dot products of several rows at once, over microkernel.inl: with one token, or with up to MR that share the rows. */
#ifdef CMM_TYPE

/* One token for up to MR rows: dots_of_token(). */
#define SHARED X
#define LOAD_SHARED XNAME(vec_load)
#define LOAD_SHARED_MASKED XNAME(vec_load_masked)
#define VARYING W
#define ALIGN_VARYING 0
#define LOAD_VARYING NAME(load_w)
#define LOAD_VARYING_MASKED NAME(load_w_masked)
#define DOT(a) NAME(a##_of_token)
#include "dot.inl"

/* out[r][t] = dot(w[r], x[t]) for NR rows and 1 <= tokens <= MR: 12 fused multiply-adds for 7 loads, where dots()
 * has 4 for 5. */
static void NAME(dots_of_rows)(int tokens, const W *const w[NR], const X *const *x, int64_t d,
                               X (*out)[MR], const X *prefetch)
{
    switch (tokens) {
#if MR >= 4
    case 4:
        NAME(dot_microkernel)(NR, 4, w, x, d, out, prefetch, 0);
        return;
#endif
#if MR >= 3
    case 3:
        NAME(dot_microkernel)(NR, 3, w, x, d, out, prefetch, 0);
        return;
#endif
#if MR >= 2
    case 2:
        NAME(dot_microkernel)(NR, 2, w, x, d, out, prefetch, 0);
        return;
#endif
    default:
        NAME(dot_microkernel)(NR, 1, w, x, d, out, prefetch, 0);
    }
}

#endif
