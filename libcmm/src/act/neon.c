/* The activations, for NEON. */
#include "loops.inl"

const cmm_kernel cmm_act_neon = {
    .op = CMM_OP_ACT,
    .name = "neon",
    .level = "",
    .method = "",
    .isa = "neon",
    .cpu = CMM_CPU_NEON,
    .activate_f32 = activate_f32,
    .activate_f64 = activate_f64,
};
