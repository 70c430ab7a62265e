/* The loops over the activations, for the compiler to vectorise with the flags of the file that includes this one.
 * Blocks have a fixed length, a multiple of every vector's, so that they need no scalar remainder; the last, shorter
 * block goes through a buffer. */
#ifndef REAL
#include "../activation.h"
#include "../kernel.h"
#define CMM_BODY "act/loops.inl"
#include "../each_real.h"

const cmm_kernel CMM_JOIN(cmm_act_, ISA) = {
    .op = CMM_OP_ACT,
    .name = CMM_TEXT(ISA),
    .level = "",
    .method = "",
    .isa = CMM_TEXT(ISA),
    .cpu = ISA_CPU,
    .activate_f32 = activate_f32,
    .activate_f64 = activate_f64,
};
#else

#define LOOP(FUNCTION)                                     \
    {                                                      \
        for (; n >= 64; n -= 64, z += 64)                  \
            for (int i = 0; i < 64; i++)                   \
                z[i] = FUNCTION(z[i]);                     \
        for (; n > 0; n -= 16, z += 16) {                  \
            REAL block[16] = {0};                          \
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

static void NAME(activate)(int32_t activation, int64_t n, REAL *z)
{
    switch (activation) {
    case CMM_GELU: LOOP(NAME(cmm_act_gelu))
    case CMM_GELU_TANH: LOOP(NAME(cmm_act_gelu_tanh))
    case CMM_RELU: LOOP(NAME(cmm_act_relu))
    case CMM_SILU: LOOP(NAME(cmm_act_silu))
    default: break; /* CMM_IDENTITY */
    }
}

#undef LOOP
#endif
