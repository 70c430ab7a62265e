/* The value that a native kernel file exports: cmm_fff_<METHOD>_<ISA>. */
#ifndef SUITS
#define SUITS NULL
#endif
const cmm_kernel CMM_JOIN(CMM_JOIN(cmm_fff_, METHOD), CMM_JOIN(_, ISA)) = {
    .op = CMM_OP_FFF,
    .name = CMM_TEXT(METHOD) "_" CMM_TEXT(ISA),
    .level = "native",
    .method = CMM_TEXT(METHOD),
    .isa = CMM_TEXT(ISA),
    .cpu = ISA_CPU,
    .suits = SUITS,
    .scratch = scratch,
    .run = {run_f32, run_f64},
};
