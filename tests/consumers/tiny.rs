// The same program as tiny.c, in Rust without crates.
use std::ffi::{c_char, c_void, CStr};
use std::mem::size_of;
use std::ptr::{null, null_mut};

#[repr(C)]
struct CmmFff {
    size: u32,
    dtype: i32,
    activation: i32,
    tie: i32,
    depth: i32,
    reserved: i32,
    trees: i64,
    d_in: i64,
    d_out: i64,
    w_in: *const c_void,
    bias: *const c_void,
    w_out: *const c_void,
    ld_in: i64,
    ld_out: i64,
}

extern "C" {
    fn cmm_fff_forward(
        layer: *const CmmFff,
        run: *const c_void,
        batch: i64,
        x: *const c_void,
        y: *mut c_void,
        nodes: *mut i32,
        logits: *mut c_void,
    ) -> i32;
    fn cmm_status_message(status: i32) -> *const c_char;
}

const RELU: i32 = 2;
const ERROR_BATCH: i32 = 50;

fn main() {
    let w_in: [f32; 6] = [1., 0., 0., 1., 1., 1.];
    let w_out: [f32; 6] = [1., 2., 3., 4., 5., 6.];
    let x: [f32; 4] = [1., 2., -1., 3.];
    let mut y = [0f32; 4];
    let mut logits = [0f32; 4];
    let mut nodes = [0i32; 4];
    let layer = CmmFff {
        size: size_of::<CmmFff>() as u32,
        dtype: 0,
        activation: RELU,
        tie: 0,
        depth: 1,
        reserved: 0,
        trees: 1,
        d_in: 2,
        d_out: 2,
        w_in: w_in.as_ptr().cast(),
        bias: null(),
        w_out: w_out.as_ptr().cast(),
        ld_in: 0,
        ld_out: 0,
    };
    let mut forward = |batch| unsafe {
        cmm_fff_forward(
            &layer,
            null(),
            batch,
            x.as_ptr().cast(),
            y.as_mut_ptr().cast(),
            nodes.as_mut_ptr(),
            logits.as_mut_ptr().cast(),
        )
    };
    let (status, refused) = (forward(2), forward(-1));
    let message = unsafe { CStr::from_ptr(cmm_status_message(status)) };
    assert_eq!(status, 0, "{}", message.to_string_lossy());
    assert_eq!(refused, ERROR_BATCH, "a wrong call was not refused");
    assert_eq!(y, [16., 20., 9., 12.]);
    assert_eq!(nodes, [0, 2, 0, 1]);
    assert_eq!(unsafe { cmm_fff_forward(&layer, null(), 0, null(), null_mut(), null_mut(), null_mut()) }, 0);
    println!("libcmm from Rust: good");
}
