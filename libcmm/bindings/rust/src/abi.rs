//! Made by libcmm/bindings/generate.py of libcmm/abi.txt: what libcmm exports. It is the C interface as it is;
//! the crate's own types are safe.

#![allow(non_camel_case_types)]

use std::ffi::{c_char, c_void};
use std::mem::{offset_of, size_of};

pub const CMM_OK: i32 = 0;
pub const CMM_ERROR_LAYER_NULL: i32 = 10;
pub const CMM_ERROR_LAYER_SIZE: i32 = 11;
pub const CMM_ERROR_DTYPE: i32 = 12;
pub const CMM_ERROR_ACTIVATION: i32 = 13;
pub const CMM_ERROR_TIE: i32 = 14;
pub const CMM_ERROR_TREES: i32 = 15;
pub const CMM_ERROR_DEPTH: i32 = 16;
pub const CMM_ERROR_NEURONS: i32 = 17;
pub const CMM_ERROR_D_IN: i32 = 18;
pub const CMM_ERROR_D_OUT: i32 = 19;
pub const CMM_ERROR_LD_IN: i32 = 20;
pub const CMM_ERROR_LD_OUT: i32 = 21;
pub const CMM_ERROR_LAYER_TOO_LARGE: i32 = 22;
pub const CMM_ERROR_RESERVED: i32 = 23;
pub const CMM_ERROR_WEIGHT_DTYPE: i32 = 24;
pub const CMM_ERROR_SCALE: i32 = 25;
pub const CMM_ERROR_EXACT: i32 = 26;
pub const CMM_ERROR_LD_EXACT: i32 = 27;
pub const CMM_ERROR_RUN_SIZE: i32 = 30;
pub const CMM_ERROR_THREADS: i32 = 31;
pub const CMM_ERROR_LEVEL: i32 = 32;
pub const CMM_ERROR_LEVEL_UNUSABLE: i32 = 33;
pub const CMM_ERROR_ISA: i32 = 34;
pub const CMM_ERROR_ISA_UNUSABLE: i32 = 35;
pub const CMM_ERROR_METHOD: i32 = 36;
pub const CMM_ERROR_BLAS_MISSING: i32 = 37;
pub const CMM_ERROR_BLAS_SIZE: i32 = 38;
pub const CMM_ERROR_BLAS_INCOMPLETE: i32 = 39;
pub const CMM_ERROR_LEVEL_WEIGHT_DTYPE: i32 = 40;
pub const CMM_ERROR_PATH_TWICE: i32 = 41;
pub const CMM_ERROR_PATH_DENSE: i32 = 42;
pub const CMM_ERROR_BATCH: i32 = 50;
pub const CMM_ERROR_BATCH_TOO_LARGE: i32 = 51;
pub const CMM_ERROR_W_IN_NULL: i32 = 52;
pub const CMM_ERROR_W_OUT_NULL: i32 = 53;
pub const CMM_ERROR_X_NULL: i32 = 54;
pub const CMM_ERROR_Y_NULL: i32 = 55;
pub const CMM_ERROR_PATH_NULL: i32 = 56;
pub const CMM_ERROR_W_IN_ALIGN: i32 = 57;
pub const CMM_ERROR_BIAS_ALIGN: i32 = 58;
pub const CMM_ERROR_W_OUT_ALIGN: i32 = 59;
pub const CMM_ERROR_X_ALIGN: i32 = 60;
pub const CMM_ERROR_Y_ALIGN: i32 = 61;
pub const CMM_ERROR_NODES_ALIGN: i32 = 62;
pub const CMM_ERROR_LOGITS_ALIGN: i32 = 63;
pub const CMM_ERROR_Y_OVERLAP: i32 = 64;
pub const CMM_ERROR_NODES_OVERLAP: i32 = 65;
pub const CMM_ERROR_LOGITS_OVERLAP: i32 = 66;
pub const CMM_ERROR_SCALE_ALIGN: i32 = 67;
pub const CMM_ERROR_EXACT_ALIGN: i32 = 68;
pub const CMM_ERROR_PATH_ALIGN: i32 = 69;
pub const CMM_ERROR_PATH: i32 = 70;
pub const CMM_ERROR_MEMORY: i32 = 80;
pub const CMM_ERROR_BLAS_NULL: i32 = 90;
pub const CMM_ERROR_BLAS_FILE_NULL: i32 = 91;
pub const CMM_ERROR_BLAS_FILE: i32 = 92;
pub const CMM_ERROR_BLAS_SYMBOLS: i32 = 93;
pub const CMM_ERROR_INDEX: i32 = 100;
pub const CMM_ERROR_INFO_NULL: i32 = 101;
pub const CMM_ERROR_INFO_SIZE: i32 = 102;
pub const CMM_ERROR_MEMORY_NULL: i32 = 103;
pub const CMM_ERROR_MEMORY_ALIGN: i32 = 104;
pub const CMM_ERROR_MEMORY_SIZE: i32 = 105;
pub const CMM_ERROR_PACKED_NULL: i32 = 106;
pub const CMM_ERROR_BYTES_NULL: i32 = 107;
pub const CMM_ERROR_MEMORY_OVERLAP: i32 = 108;
pub const CMM_ERROR_OPTIONS_SIZE: i32 = 109;
pub const CMM_ERROR_ROW_NOT_FINITE: i32 = 110;
pub const CMM_ERROR_SIGMAS: i32 = 111;
pub const CMM_ERROR_CUDA_LAUNCH: i32 = 120;
pub const CMM_ERROR_CUDA_ABSENT: i32 = 121;
pub const CMM_ERROR_CUDA_DEVICE: i32 = 122;
pub const CMM_ERROR_WORKSPACE_NULL: i32 = 123;
pub const CMM_ERROR_WORKSPACE_ALIGN: i32 = 124;
pub const CMM_ERROR_WORKSPACE_SIZE: i32 = 125;
pub const CMM_ERROR_WORKSPACE_OVERLAP: i32 = 126;
pub const CMM_ERROR_GRADIENTS_NULL: i32 = 130;
pub const CMM_ERROR_GRADIENTS_SIZE: i32 = 131;
pub const CMM_ERROR_ACCUMULATE: i32 = 132;
pub const CMM_ERROR_GRADIENTS_NONE: i32 = 133;
pub const CMM_ERROR_LD_DW_IN: i32 = 134;
pub const CMM_ERROR_LD_DW_OUT: i32 = 135;
pub const CMM_ERROR_NODES_NULL: i32 = 136;
pub const CMM_ERROR_LOGITS_NULL: i32 = 137;
pub const CMM_ERROR_DY_NULL: i32 = 138;
pub const CMM_ERROR_DY_ALIGN: i32 = 139;
pub const CMM_ERROR_DX_ALIGN: i32 = 140;
pub const CMM_ERROR_DW_IN_ALIGN: i32 = 141;
pub const CMM_ERROR_DBIAS_ALIGN: i32 = 142;
pub const CMM_ERROR_DW_OUT_ALIGN: i32 = 143;
pub const CMM_ERROR_DX_OVERLAP: i32 = 144;
pub const CMM_ERROR_DW_IN_OVERLAP: i32 = 145;
pub const CMM_ERROR_DBIAS_OVERLAP: i32 = 146;
pub const CMM_ERROR_DW_OUT_OVERLAP: i32 = 147;
pub const CMM_F32: i32 = 0;
pub const CMM_F64: i32 = 1;
pub const CMM_BF16: i32 = 2;
pub const CMM_F16: i32 = 3;
pub const CMM_I8: i32 = 4;
pub const CMM_AS_DTYPE: i32 = -1;
pub const CMM_GELU: i32 = 0;
pub const CMM_GELU_TANH: i32 = 1;
pub const CMM_RELU: i32 = 2;
pub const CMM_SILU: i32 = 3;
pub const CMM_IDENTITY: i32 = 4;
pub const CMM_TIE_LEFT: i32 = 0;
pub const CMM_TIE_RIGHT: i32 = 1;
pub const CMM_MAX_DEPTH: i32 = 30;
pub const CMM_ALIGNMENT: i32 = 64;
pub const CMM_DX: i32 = 1;
pub const CMM_DW_IN: i32 = 2;
pub const CMM_DBIAS: i32 = 4;
pub const CMM_DW_OUT: i32 = 8;

/// The activation of a neuron.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    Gelu = 0,
    GeluTanh = 1,
    Relu = 2,
    Silu = 3,
    Identity = 4,
}

/// Where a logit of exactly 0 goes.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tie {
    Left = 0,
    Right = 1,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct cmm_blas {
    pub size: u32,
    pub reserved: i32,
    pub sdot: Option<unsafe extern "C" fn()>,
    pub ddot: Option<unsafe extern "C" fn()>,
    pub saxpy: Option<unsafe extern "C" fn()>,
    pub daxpy: Option<unsafe extern "C" fn()>,
    pub sgemv: Option<unsafe extern "C" fn()>,
    pub dgemv: Option<unsafe extern "C" fn()>,
    pub sgemm: Option<unsafe extern "C" fn()>,
    pub dgemm: Option<unsafe extern "C" fn()>,
    pub sgemv_batch: Option<unsafe extern "C" fn()>,
    pub dgemv_batch: Option<unsafe extern "C" fn()>,
    pub sgemm_batch: Option<unsafe extern "C" fn()>,
    pub dgemm_batch: Option<unsafe extern "C" fn()>,
    pub set_threads: Option<unsafe extern "C" fn()>,
    pub get_threads: Option<unsafe extern "C" fn()>,
    pub name: [c_char; 128],
}

impl Default for cmm_blas {
    /// All zero, but for the size.
    fn default() -> Self {
        // SAFETY: zero is a value of every field.
        let mut new: Self = unsafe { std::mem::zeroed() };
        new.size = size_of::<Self>() as u32;
        new
    }
}

const _: () = assert!(size_of::<cmm_blas>() == 248);
const _: () = assert!(offset_of!(cmm_blas, size) == 0);
const _: () = assert!(offset_of!(cmm_blas, reserved) == 4);
const _: () = assert!(offset_of!(cmm_blas, sdot) == 8);
const _: () = assert!(offset_of!(cmm_blas, ddot) == 16);
const _: () = assert!(offset_of!(cmm_blas, saxpy) == 24);
const _: () = assert!(offset_of!(cmm_blas, daxpy) == 32);
const _: () = assert!(offset_of!(cmm_blas, sgemv) == 40);
const _: () = assert!(offset_of!(cmm_blas, dgemv) == 48);
const _: () = assert!(offset_of!(cmm_blas, sgemm) == 56);
const _: () = assert!(offset_of!(cmm_blas, dgemm) == 64);
const _: () = assert!(offset_of!(cmm_blas, sgemv_batch) == 72);
const _: () = assert!(offset_of!(cmm_blas, dgemv_batch) == 80);
const _: () = assert!(offset_of!(cmm_blas, sgemm_batch) == 88);
const _: () = assert!(offset_of!(cmm_blas, dgemm_batch) == 96);
const _: () = assert!(offset_of!(cmm_blas, set_threads) == 104);
const _: () = assert!(offset_of!(cmm_blas, get_threads) == 112);
const _: () = assert!(offset_of!(cmm_blas, name) == 120);

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct cmm_ff {
    pub size: u32,
    pub dtype: i32,
    pub activation: i32,
    pub reserved: i32,
    pub neurons: i64,
    pub d_in: i64,
    pub d_out: i64,
    pub w_in: *mut c_void,
    pub bias: *mut c_void,
    pub w_out: *mut c_void,
    pub ld_in: i64,
    pub ld_out: i64,
}

impl Default for cmm_ff {
    /// All zero, but for the size.
    fn default() -> Self {
        // SAFETY: zero is a value of every field.
        let mut new: Self = unsafe { std::mem::zeroed() };
        new.size = size_of::<Self>() as u32;
        new
    }
}

const _: () = assert!(size_of::<cmm_ff>() == 80);
const _: () = assert!(offset_of!(cmm_ff, size) == 0);
const _: () = assert!(offset_of!(cmm_ff, dtype) == 4);
const _: () = assert!(offset_of!(cmm_ff, activation) == 8);
const _: () = assert!(offset_of!(cmm_ff, reserved) == 12);
const _: () = assert!(offset_of!(cmm_ff, neurons) == 16);
const _: () = assert!(offset_of!(cmm_ff, d_in) == 24);
const _: () = assert!(offset_of!(cmm_ff, d_out) == 32);
const _: () = assert!(offset_of!(cmm_ff, w_in) == 40);
const _: () = assert!(offset_of!(cmm_ff, bias) == 48);
const _: () = assert!(offset_of!(cmm_ff, w_out) == 56);
const _: () = assert!(offset_of!(cmm_ff, ld_in) == 64);
const _: () = assert!(offset_of!(cmm_ff, ld_out) == 72);

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct cmm_fff {
    pub size: u32,
    pub dtype: i32,
    pub activation: i32,
    pub tie: i32,
    pub depth: i32,
    pub reserved: i32,
    pub trees: i64,
    pub d_in: i64,
    pub d_out: i64,
    pub w_in: *mut c_void,
    pub bias: *mut c_void,
    pub w_out: *mut c_void,
    pub ld_in: i64,
    pub ld_out: i64,
    pub weight_dtype: i32,
    pub weight_out_dtype: i32,
    pub scale_in: *const f32,
    pub scale_out: *const f32,
    pub exact_in: *mut c_void,
    pub margin: *const f32,
    pub ld_exact: i64,
}

impl Default for cmm_fff {
    /// All zero, but for the size.
    fn default() -> Self {
        // SAFETY: zero is a value of every field.
        let mut new: Self = unsafe { std::mem::zeroed() };
        new.size = size_of::<Self>() as u32;
        new
    }
}

const _: () = assert!(size_of::<cmm_fff>() == 136);
const _: () = assert!(offset_of!(cmm_fff, size) == 0);
const _: () = assert!(offset_of!(cmm_fff, dtype) == 4);
const _: () = assert!(offset_of!(cmm_fff, activation) == 8);
const _: () = assert!(offset_of!(cmm_fff, tie) == 12);
const _: () = assert!(offset_of!(cmm_fff, depth) == 16);
const _: () = assert!(offset_of!(cmm_fff, reserved) == 20);
const _: () = assert!(offset_of!(cmm_fff, trees) == 24);
const _: () = assert!(offset_of!(cmm_fff, d_in) == 32);
const _: () = assert!(offset_of!(cmm_fff, d_out) == 40);
const _: () = assert!(offset_of!(cmm_fff, w_in) == 48);
const _: () = assert!(offset_of!(cmm_fff, bias) == 56);
const _: () = assert!(offset_of!(cmm_fff, w_out) == 64);
const _: () = assert!(offset_of!(cmm_fff, ld_in) == 72);
const _: () = assert!(offset_of!(cmm_fff, ld_out) == 80);
const _: () = assert!(offset_of!(cmm_fff, weight_dtype) == 88);
const _: () = assert!(offset_of!(cmm_fff, weight_out_dtype) == 92);
const _: () = assert!(offset_of!(cmm_fff, scale_in) == 96);
const _: () = assert!(offset_of!(cmm_fff, scale_out) == 104);
const _: () = assert!(offset_of!(cmm_fff, exact_in) == 112);
const _: () = assert!(offset_of!(cmm_fff, margin) == 120);
const _: () = assert!(offset_of!(cmm_fff, ld_exact) == 128);

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct cmm_gradients {
    pub size: u32,
    pub accumulate: i32,
    pub dx: *mut c_void,
    pub dw_in: *mut c_void,
    pub dbias: *mut c_void,
    pub dw_out: *mut c_void,
    pub ld_dw_in: i64,
    pub ld_dw_out: i64,
    pub workspace: *mut c_void,
    pub workspace_bytes: i64,
}

impl Default for cmm_gradients {
    /// All zero, but for the size.
    fn default() -> Self {
        // SAFETY: zero is a value of every field.
        let mut new: Self = unsafe { std::mem::zeroed() };
        new.size = size_of::<Self>() as u32;
        new
    }
}

const _: () = assert!(size_of::<cmm_gradients>() == 72);
const _: () = assert!(offset_of!(cmm_gradients, size) == 0);
const _: () = assert!(offset_of!(cmm_gradients, accumulate) == 4);
const _: () = assert!(offset_of!(cmm_gradients, dx) == 8);
const _: () = assert!(offset_of!(cmm_gradients, dw_in) == 16);
const _: () = assert!(offset_of!(cmm_gradients, dbias) == 24);
const _: () = assert!(offset_of!(cmm_gradients, dw_out) == 32);
const _: () = assert!(offset_of!(cmm_gradients, ld_dw_in) == 40);
const _: () = assert!(offset_of!(cmm_gradients, ld_dw_out) == 48);
const _: () = assert!(offset_of!(cmm_gradients, workspace) == 56);
const _: () = assert!(offset_of!(cmm_gradients, workspace_bytes) == 64);

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct cmm_kernel_info {
    pub size: u32,
    pub available: i32,
    pub operation: *const c_char,
    pub name: *const c_char,
    pub level: *const c_char,
    pub algorithm: *const c_char,
    pub isa: *const c_char,
    pub reason: *const c_char,
    pub x_type: *const c_char,
    pub w_type: *const c_char,
}

impl Default for cmm_kernel_info {
    /// All zero, but for the size.
    fn default() -> Self {
        // SAFETY: zero is a value of every field.
        let mut new: Self = unsafe { std::mem::zeroed() };
        new.size = size_of::<Self>() as u32;
        new
    }
}

const _: () = assert!(size_of::<cmm_kernel_info>() == 72);
const _: () = assert!(offset_of!(cmm_kernel_info, size) == 0);
const _: () = assert!(offset_of!(cmm_kernel_info, available) == 4);
const _: () = assert!(offset_of!(cmm_kernel_info, operation) == 8);
const _: () = assert!(offset_of!(cmm_kernel_info, name) == 16);
const _: () = assert!(offset_of!(cmm_kernel_info, level) == 24);
const _: () = assert!(offset_of!(cmm_kernel_info, algorithm) == 32);
const _: () = assert!(offset_of!(cmm_kernel_info, isa) == 40);
const _: () = assert!(offset_of!(cmm_kernel_info, reason) == 48);
const _: () = assert!(offset_of!(cmm_kernel_info, x_type) == 56);
const _: () = assert!(offset_of!(cmm_kernel_info, w_type) == 64);

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct cmm_level_info {
    pub size: u32,
    pub available: i32,
    pub name: *const c_char,
    pub isa: *const c_char,
    pub reason: *const c_char,
}

impl Default for cmm_level_info {
    /// All zero, but for the size.
    fn default() -> Self {
        // SAFETY: zero is a value of every field.
        let mut new: Self = unsafe { std::mem::zeroed() };
        new.size = size_of::<Self>() as u32;
        new
    }
}

const _: () = assert!(size_of::<cmm_level_info>() == 32);
const _: () = assert!(offset_of!(cmm_level_info, size) == 0);
const _: () = assert!(offset_of!(cmm_level_info, available) == 4);
const _: () = assert!(offset_of!(cmm_level_info, name) == 8);
const _: () = assert!(offset_of!(cmm_level_info, isa) == 16);
const _: () = assert!(offset_of!(cmm_level_info, reason) == 24);

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct cmm_pack_options {
    pub size: u32,
    pub weight_dtype: i32,
    pub weight_out_dtype: i32,
    pub exact_path: i32,
    pub sigmas: f64,
    pub refused: *mut i64,
}

impl Default for cmm_pack_options {
    /// All zero, but for the size.
    fn default() -> Self {
        // SAFETY: zero is a value of every field.
        let mut new: Self = unsafe { std::mem::zeroed() };
        new.size = size_of::<Self>() as u32;
        new
    }
}

const _: () = assert!(size_of::<cmm_pack_options>() == 32);
const _: () = assert!(offset_of!(cmm_pack_options, size) == 0);
const _: () = assert!(offset_of!(cmm_pack_options, weight_dtype) == 4);
const _: () = assert!(offset_of!(cmm_pack_options, weight_out_dtype) == 8);
const _: () = assert!(offset_of!(cmm_pack_options, exact_path) == 12);
const _: () = assert!(offset_of!(cmm_pack_options, sigmas) == 16);
const _: () = assert!(offset_of!(cmm_pack_options, refused) == 24);

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct cmm_run {
    pub size: u32,
    pub threads: i32,
    pub level: *const c_char,
    pub isa: *const c_char,
    pub algorithm: *const c_char,
    pub blas: *const cmm_blas,
    pub path_nodes: *mut i32,
    pub path_leaves: *mut i32,
    pub refused: *mut i64,
    pub recomputed: *mut i64,
}

impl Default for cmm_run {
    /// All zero, but for the size.
    fn default() -> Self {
        // SAFETY: zero is a value of every field.
        let mut new: Self = unsafe { std::mem::zeroed() };
        new.size = size_of::<Self>() as u32;
        new
    }
}

const _: () = assert!(size_of::<cmm_run>() == 72);
const _: () = assert!(offset_of!(cmm_run, size) == 0);
const _: () = assert!(offset_of!(cmm_run, threads) == 4);
const _: () = assert!(offset_of!(cmm_run, level) == 8);
const _: () = assert!(offset_of!(cmm_run, isa) == 16);
const _: () = assert!(offset_of!(cmm_run, algorithm) == 24);
const _: () = assert!(offset_of!(cmm_run, blas) == 32);
const _: () = assert!(offset_of!(cmm_run, path_nodes) == 40);
const _: () = assert!(offset_of!(cmm_run, path_leaves) == 48);
const _: () = assert!(offset_of!(cmm_run, refused) == 56);
const _: () = assert!(offset_of!(cmm_run, recomputed) == 64);

extern "C" {
    pub fn cmm_blas_check(a0: *const cmm_blas) -> i32;
    pub fn cmm_blas_linked(a0: *mut cmm_blas) -> i32;
    pub fn cmm_blas_load(a0: *const c_char, a1: *mut cmm_blas) -> i32;
    pub fn cmm_build() -> *const c_char;
    pub fn cmm_cmm_forward(a0: *const cmm_fff, a1: *const cmm_run, a2: i64, a3: *mut c_void, a4: *mut i32, a5: *mut c_void) -> i32;
    pub fn cmm_ff_forward(a0: *const cmm_ff, a1: *const cmm_run, a2: i64, a3: *mut c_void, a4: *mut c_void) -> i32;
    pub fn cmm_fff_backward(a0: *const cmm_fff, a1: *const cmm_run, a2: i64, a3: *mut c_void, a4: *mut i32, a5: *mut c_void, a6: *mut c_void, a7: *const cmm_gradients) -> i32;
    pub fn cmm_fff_backward_workspace(a0: *const cmm_fff, a1: *const cmm_run, a2: i64, a3: *const cmm_gradients, a4: *mut i64) -> i32;
    pub fn cmm_fff_forward(a0: *const cmm_fff, a1: *const cmm_run, a2: i64, a3: *mut c_void, a4: *mut c_void, a5: *mut i32, a6: *mut c_void) -> i32;
    pub fn cmm_fff_pack(a0: *const cmm_fff, a1: *mut c_void, a2: i64, a3: *mut cmm_fff) -> i32;
    pub fn cmm_fff_pack_as(a0: *const cmm_fff, a1: *const cmm_pack_options, a2: *mut c_void, a3: i64, a4: *mut cmm_fff) -> i32;
    pub fn cmm_fff_pack_size(a0: *const cmm_fff, a1: *mut i64) -> i32;
    pub fn cmm_fff_pack_size_as(a0: *const cmm_fff, a1: *const cmm_pack_options, a2: *mut i64) -> i32;
    pub fn cmm_kernel_count() -> i32;
    pub fn cmm_kernel_get(a0: i32, a1: *mut cmm_kernel_info) -> i32;
    pub fn cmm_level_count() -> i32;
    pub fn cmm_level_get(a0: i32, a1: *const cmm_run, a2: *mut cmm_level_info) -> i32;
    pub fn cmm_status_message(a0: i32) -> *const c_char;
    pub fn cmm_status_name(a0: i32) -> *const c_char;
    pub fn cmm_threads_default() -> i32;
    pub fn cmm_threads_source() -> *const c_char;
    pub fn cmm_version() -> *const c_char;
}
