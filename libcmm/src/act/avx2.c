/* The activations, for AVX2. */
#include "loops.inl"

const cmm_kernel cmm_act_avx2 = {
    .op = CMM_OP_ACT,
    .name = "avx2",
    .level = "",
    .method = "",
    .isa = "avx2",
    .cpu = CMM_CPU_AVX2,
    .activate_f32 = activate_f32,
    .activate_f64 = activate_f64,
};
