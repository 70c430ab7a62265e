/* The loops over the activations, for the compiler to vectorise with the flags of the file that includes this one.
 * Blocks have a fixed length, a multiple of every vector's, so that they need no scalar remainder; the last, shorter
 * block goes through a buffer. */
#ifndef CMM_TYPE
#include "../kernel.h"
#include "../activation.h"
#include "../activations.inc"

#define CMM_BODY "activation/loops.inl"
#define CMM_LIST CMM_SAME_TYPES
#include "../for_each_type.h"

/* One kernel for both types. */
static const cmm_kernel kernel = {
    .traits.op = CMM_OP_ACT,
    .traits.name = CMM_TEXT(ISA),
    .traits.level = "",
    .traits.algorithm = "",
    .traits.isa = CMM_TEXT(ISA),
    .traits.x_type = CMM_EVERY_TYPE,
    .traits.w_type = CMM_EVERY_TYPE,
    .traits.cpu = ISA_CPU,
    .activate_f32 = apply_f32,
    .activate_f64 = apply_f64,
    .differentiate_f32 = apply_slope_f32,
    .differentiate_f64 = apply_slope_f64,
};
const cmm_traits *const CMM_JOIN(cmm_act_, ISA)[] = {&kernel.traits, NULL};

#else

#define CASE(NUMBER, name, ...) \
    case CMM_##NUMBER: LOOP(XNAME(cmm_act_##name))
#define SLOPE_CASE(NUMBER, name, ...) \
    case CMM_##NUMBER: LOOP(XNAME(cmm_slope_##name))
#define LOOP(FUNCTION)                                     \
    {                                                      \
        for (; n >= 64; n -= 64, z += 64)                  \
            for (int i = 0; i < 64; i++)                   \
                z[i] = FUNCTION(z[i]);                     \
        for (; n > 0; n -= 16, z += 16) {                  \
            X block[16] = {0};                             \
            const int count = n < 16 ? (int)n : 16;        \
            for (int i = 0; i < count; i++)                \
                block[i] = z[i];                           \
            for (int i = 0; i < 16; i++)                   \
                block[i] = FUNCTION(block[i]);             \
            for (int i = 0; i < count; i++)                \
                z[i] = block[i];                           \
        }                                                  \
        break;                                             \
    }

static void XNAME(apply)(int32_t activation, int64_t n, X *z)
{
    switch (activation) {
        CMM_ACTIVATIONS(CASE)
    }
}

static void XNAME(apply_slope)(int32_t activation, int64_t n, X *z)
{
    switch (activation) {
        CMM_ACTIVATIONS(SLOPE_CASE)
    }
}

#undef CASE
#undef SLOPE_CASE
#undef LOOP
#endif
