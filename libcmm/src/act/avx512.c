/* The activations, for AVX-512. */
#include "loops.inl"

const cmm_kernel cmm_act_avx512 = {
    .op = CMM_OP_ACT,
    .name = "avx512",
    .level = "",
    .method = "",
    .isa = "avx512",
    .cpu = CMM_CPU_AVX512,
    .activate_f32 = activate_f32,
    .activate_f64 = activate_f64,
};
