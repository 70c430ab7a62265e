/* The formulas of the activations, once for float and once for double: activation.h includes this text twice, with
 *     CMM_R      the type; CMM_U the unsigned integer of its size; CMM_F(name) the name for this type
 *     CMM_K(name) the constant of that name for this type; CMM_EITHER(f32, f64) the one of two that is for it
 * See docs/internals/activation.md for the derivation. Each formula is a chain of +, -, *, / and selects. */

CMM_HD static inline CMM_U CMM_F(cmm_bits)(CMM_R x)
{
    CMM_U u;
    memcpy(&u, &x, sizeof u);
    return u;
}

CMM_HD static inline CMM_R CMM_F(cmm_real)(CMM_U u)
{
    CMM_R x;
    memcpy(&x, &u, sizeof x);
    return x;
}

CMM_HD static inline CMM_R CMM_F(cmm_abs)(CMM_R x)
{
    return CMM_F(cmm_real)(CMM_F(cmm_bits)(x) & ~CMM_K(SIGN));
}

/* The upper half of the bits of x's significand: x - upper(x) is exact, and so is a product of two upper halves. */
CMM_HD static inline CMM_R CMM_F(cmm_upper)(CMM_R x)
{
    return CMM_F(cmm_real)(CMM_F(cmm_bits)(x) & CMM_K(UPPER));
}

/* exp(-(v + w)) = (1 + m) * s * t, for v from 0 to 170 (float) or 1400 (double) and a small w with what v lacks.
 * s and t are powers of two and normal numbers, so that y * s * t underflows gradually and is rounded once. */
typedef struct CMM_F(cmm_decay) {
    CMM_R m, s, t;
} CMM_F(cmm_decay);

CMM_HD static inline CMM_F(cmm_decay) CMM_F(cmm_decay_at)(CMM_R v, CMM_R w)
{
    CMM_F(cmm_decay) d;
    /* n, in the low bits of k, leans upwards from the nearest integer: so m is in -0.25 .. 0.5, which loses fewer
     * bits than the symmetric -0.29 .. 0.41. */
    CMM_R k = (v + (w + (CMM_R)0.059)) * CMM_K(LOG2E) + CMM_K(ROUND);
    CMM_R n = k - CMM_K(ROUND);
    CMM_U u = CMM_F(cmm_bits)(k) - CMM_F(cmm_bits)(CMM_K(ROUND));
    CMM_U half = u >> 1;
    CMM_R r0 = n * CMM_K(LN2_UPPER) - v; /* exact */
    CMM_R r1 = n * CMM_K(LN2_LOWER) - w;
    CMM_R r = r0 + r1;
    d.m = r0 + (r1 + r * r * CMM_F(cmm_expm1_tail)(r));
    d.s = CMM_F(cmm_real)((CMM_K(BIAS) - half) << CMM_K(SHIFT));
    d.t = CMM_F(cmm_real)((CMM_K(BIAS) - (u - half)) << CMM_K(SHIFT));
    return d;
}

/* x Phi(x). With a = |x| and Q = 1 - Phi it is x - a Q(a) or -a Q(a), and a Q(a) = exp(-a^2/2) u p, where
 * u = a / (a + shift) and p = (a + shift) exp(a^2/2) Q(a) is smooth. */
CMM_HD static inline CMM_R CMM_F(cmm_act_gelu)(CMM_R x)
{
    CMM_R b = CMM_F(cmm_abs)(x);
    const CMM_R end = CMM_EITHER(14.5f, 38.75); /* from -end down the result is 0 */
    CMM_R a = b > end ? end : b;
    CMM_R h = CMM_F(cmm_upper)(a); /* a^2 = h^2 + (a - h)(a + h), and h^2 is exact */
    CMM_R s = a + CMM_K(MILLS_SHIFT);
    CMM_R e = a - (s - CMM_K(MILLS_SHIFT)); /* what the sum lost */
    CMM_R u = a / s, i = 1 - u;
    CMM_R w = (a - h) * (a + h) + CMM_K(MILLS_LOST) * (e * (i * i)); /* what u lacks for it, and p makes up in part */
    CMM_F(cmm_decay) d = CMM_F(cmm_decay_at)(h * h * (CMM_R)0.5, w * (CMM_R)0.5);
    CMM_R g = CMM_F(cmm_mills)(u - (CMM_R)0.5);
    CMM_R p = CMM_K(MILLS_MIDDLE) + g;
    CMM_R lost = g - (p - CMM_K(MILLS_MIDDLE));
    CMM_R y = u * (p + (p * d.m + lost)) * d.s * d.t;
    return (x < 0 ? x * 0 : x) - y; /* x * 0 is NaN at -inf, as x Phi(x) is */
}

/* x / (1 + exp(-v)), where v has the sign of x and |v| = v0 + v1. For negative x that is x exp(v) / (1 + exp(v)), in
 * which nothing overflows; below -end it is 0. */
CMM_HD static inline CMM_R CMM_F(cmm_logistic)(CMM_R x, CMM_R v0, CMM_R v1, CMM_R end)
{
    CMM_F(cmm_decay) d = CMM_F(cmm_decay_at)(v0, v1);
    CMM_R f = 1 + d.m;
    CMM_R power = f * d.s * d.t; /* exp(-|v|) */
    CMM_R sum = 1 + power;
    CMM_R lost = power - (sum - 1);
    CMM_R q = CMM_F(cmm_abs)(x) / sum;
    CMM_R a = q > end ? end : q;
    /* f / (sum + lost) is about (f - lost f / sum) / sum, in which f / sum may be a rough one. */
    CMM_R m = d.m - lost * (f * (1 - (CMM_R)0.6 * power));
    CMM_R y = (a + a * m) * d.s * d.t;
    return x < 0 ? x * 0 - y : q;
}

CMM_HD static inline CMM_R CMM_F(cmm_act_silu)(CMM_R x)
{
    CMM_R a = CMM_F(cmm_abs)(x);
    const CMM_R end = CMM_EITHER(110.0f, 755.0);
    return CMM_F(cmm_logistic)(x, a > end ? end : a, 0, end);
}

/* v + w = a (c0 + c1 a^2), for a from 0 to 11 (float) or 22 (double), to nearly twice the precision: every product is split
 * exactly. */
typedef struct CMM_F(cmm_twice) {
    CMM_R v, w;
} CMM_F(cmm_twice);

CMM_HD static inline CMM_F(cmm_twice) CMM_F(cmm_tanh_argument)(CMM_R a)
{
    CMM_F(cmm_twice) twice;
    CMM_R ah = CMM_F(cmm_upper)(a), al = a - ah;
    CMM_R q = a * a; /* q + ql = a^2 */
    CMM_R ql = ((ah * ah - q) + 2 * (ah * al)) + al * al;
    CMM_R qh = CMM_F(cmm_upper)(q);
    CMM_R c = CMM_K(TANH_C1_UPPER) * qh; /* c + cl = c1 a^2, c exact */
    CMM_R cl = CMM_K(TANH_C1_UPPER) * ((q - qh) + ql) + CMM_K(TANH_C1_LOWER) * q;
    CMM_R g = CMM_K(TANH_C0_UPPER) + c; /* g + gl = c0 + c1 a^2 */
    CMM_R gl = (c - (g - CMM_K(TANH_C0_UPPER))) + (cl + CMM_K(TANH_C0_LOWER));
    CMM_R gh = CMM_F(cmm_upper)(g);
    twice.v = a * g;
    twice.w = ((ah * gh - twice.v) + (ah * (g - gh) + al * gh)) + (al * (g - gh) + a * gl);
    return twice;
}

/* 0.5 x (1 + tanh(u)) = x / (1 + exp(-2u)), 2u = x (c0 + c1 x^2). The error of 2u becomes the relative error of the
 * result, and 2u is large, so it is computed to nearly twice the precision. */
CMM_HD static inline CMM_R CMM_F(cmm_act_gelu_tanh)(CMM_R x)
{
    CMM_R b = CMM_F(cmm_abs)(x);
    const CMM_R end = CMM_EITHER(11.0f, 22.0);
    CMM_F(cmm_twice) twice = CMM_F(cmm_tanh_argument)(b > end ? end : b);
    return CMM_F(cmm_logistic)(x, twice.v, twice.w, end);
}

CMM_HD static inline CMM_R CMM_F(cmm_act_relu)(CMM_R x)
{
    return x < 0 ? 0 : x;
}

CMM_HD static inline CMM_R CMM_F(cmm_act_identity)(CMM_R x)
{
    return x;
}

/* ---- derivatives ------------------------------------------------------------------------------------------------ */

/* With a = |x| each of the smooth ones is tail(a) below 0, and 1 - tail(a) above, where tail is the derivative at -a. Its
 * error is a few ulps of the size of its two parts, which cancel at one point: docs/internals/activation.md. NaN gives NaN,
 * -inf 0 and +inf 1, but the identity's derivative is 1 throughout. That of ReLU is 0 at 0, as in PyTorch. */

/* x Phi(x): tail(a) = Q(a) - a exp(-a^2/2) / sqrt(2 pi), and Q(a) = exp(-a^2/2) p / (a + shift) as above. */
CMM_HD static inline CMM_R CMM_F(cmm_slope_gelu)(CMM_R x)
{
    CMM_R b = CMM_F(cmm_abs)(x);
    const CMM_R end = CMM_EITHER(15.0f, 38.75); /* from there on the tail is 0 */
    CMM_R a = b > end ? end : b;
    CMM_R h = CMM_F(cmm_upper)(a);
    CMM_R s = a + CMM_K(MILLS_SHIFT);
    CMM_F(cmm_decay) d = CMM_F(cmm_decay_at)(h * h * (CMM_R)0.5, (a - h) * (a + h) * (CMM_R)0.5);
    CMM_R p = CMM_K(MILLS_MIDDLE) + CMM_F(cmm_mills)(a / s - (CMM_R)0.5);
    CMM_R q = p / s - a * (CMM_R)0.398942280401432677939946;
    CMM_R tail = (q + q * d.m) * d.s * d.t;
    return x < 0 ? tail : 1 - tail;
}

/* x / (1 + exp(-v(x))), with the slope h = |x| v'(x): e = exp(-|v|), tail = e (1 + e - h) / (1 + e)^2. */
CMM_HD static inline CMM_R CMM_F(cmm_slope_logistic)(CMM_R x, CMM_R v0, CMM_R v1, CMM_R h)
{
    CMM_F(cmm_decay) d = CMM_F(cmm_decay_at)(v0, v1);
    CMM_R f = 1 + d.m;
    CMM_R sum = 1 + f * d.s * d.t;
    CMM_R q = (sum - h) / (sum * sum);
    CMM_R tail = f * q * d.s * d.t;
    return x < 0 ? tail : 1 - tail;
}

CMM_HD static inline CMM_R CMM_F(cmm_slope_silu)(CMM_R x)
{
    CMM_R b = CMM_F(cmm_abs)(x);
    const CMM_R end = CMM_EITHER(112.0f, 760.0);
    CMM_R a = b > end ? end : b;
    return CMM_F(cmm_slope_logistic)(x, a, 0, a);
}

CMM_HD static inline CMM_R CMM_F(cmm_slope_gelu_tanh)(CMM_R x)
{
    CMM_R b = CMM_F(cmm_abs)(x);
    const CMM_R end = CMM_EITHER(11.0f, 22.0);
    CMM_R a = b > end ? end : b;
    CMM_F(cmm_twice) twice = CMM_F(cmm_tanh_argument)(a);
    CMM_R c1 = CMM_K(TANH_C1_UPPER) + CMM_K(TANH_C1_LOWER), c0 = CMM_K(TANH_C0_UPPER) + CMM_K(TANH_C0_LOWER);
    return CMM_F(cmm_slope_logistic)(x, twice.v, twice.w, a * (c0 + 3 * c1 * (a * a)));
}

CMM_HD static inline CMM_R CMM_F(cmm_slope_relu)(CMM_R x)
{
    return x > 0 ? 1 : x <= 0 ? 0 : x; /* NaN stays */
}

CMM_HD static inline CMM_R CMM_F(cmm_slope_identity)(CMM_R x)
{
    (void)x;
    return 1;
}
