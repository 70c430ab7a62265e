/* The activations, for the baseline of the architecture. */
#include "loops.inl"

const cmm_kernel cmm_act_scalar = {
    .op = CMM_OP_ACT,
    .name = "scalar",
    .level = "",
    .method = "",
    .isa = "scalar",
    .cpu = 0,
    .activate_f32 = activate_f32,
    .activate_f64 = activate_f64,
};
