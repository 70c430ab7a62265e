//! Fast feedforward layers on the CPU, by [libcmm](https://github.com/libcmm/libcmm).
//!
//! ```
//! let (w_in, w_out) = ([1., 0., 0., 1., 1., 1.], [1., 2., 3., 4., 5., 6.]);
//! let shape = cmm::Shape { trees: 1, depth: 1, d_in: 2, d_out: 2 };
//! let layer = cmm::Fff::<f32>::new(shape, &w_in, &w_out, None, cmm::Activation::Relu, cmm::Tie::Left)?;
//! let mut y = [0.; 4];
//! layer.forward(&[1., 2., -1., 3.], &mut y)?;
//! assert_eq!(y, [16., 20., 9., 12.]);
//! # Ok::<(), cmm::Error>(())
//! ```
//!
//! Arrays are row-major; a batch is as large as `x` says. Nothing is copied, and everything is checked before anything is
//! written. What is not wrapped is in [`abi`], as in C.
#![warn(missing_docs)]

#[allow(missing_docs)]
pub mod abi;

pub use abi::{Activation, Tie};

use std::alloc::{alloc, dealloc, handle_alloc_error, Layout};
use std::ffi::{c_char, CStr};
use std::fmt;
use std::marker::PhantomData;
use std::ptr::{null, null_mut};

/// Why a call was refused. No output has been touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// A status of libcmm, one of `abi::CMM_ERROR_...`.
    Status(i32),
    /// An array of another size than the layer wants: its name, its size, and what that should be.
    Size(&'static str, usize, usize),
    /// A batch of tokens that ends within one: the numbers there are, and the width of a token.
    Tokens(usize, usize),
}

fn text(string: *const c_char) -> &'static str {
    // SAFETY: libcmm's strings live as long as it, end with 0, and are ASCII.
    unsafe { CStr::from_ptr(string) }.to_str().unwrap_or("")
}

impl fmt::Display for Error {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Error::Status(status) => {
                // SAFETY: any number may be asked for.
                let (name, says) = unsafe { (abi::cmm_status_name(status), abi::cmm_status_message(status)) };
                write!(to, "{}: {}", text(name), text(says))
            }
            Error::Size(name, is, should) => write!(to, "{name} has {is} numbers; it should have {should}"),
            Error::Tokens(is, d_in) => write!(to, "x has {is} numbers; it should have a multiple of {d_in}"),
        }
    }
}

impl std::error::Error for Error {}

fn check(status: i32) -> Result<(), Error> {
    if status == abi::CMM_OK {
        Ok(())
    } else {
        Err(Error::Status(status))
    }
}

fn check_size(name: &'static str, is: usize, should: usize) -> Result<(), Error> {
    if is == should {
        Ok(())
    } else {
        Err(Error::Size(name, is, should))
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

/// The types of tokens: `f32` and `f64`.
pub trait Real: Copy + sealed::Sealed + 'static {
    /// The number that libcmm knows it by.
    const DTYPE: i32;
}

impl Real for f32 {
    const DTYPE: i32 = abi::CMM_F32;
}

impl Real for f64 {
    const DTYPE: i32 = abi::CMM_F64;
}

/// The sizes of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// At least 1.
    pub trees: i64,
    /// Edges from root to leaf, 0 to 30.
    pub depth: i32,
    /// The width of a token.
    pub d_in: i64,
    /// The width of an output.
    pub d_out: i64,
}

/// How to run a call. The default is the best here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Run<'a> {
    /// At most so many threads; 0 means every core that the process may use.
    pub threads: i32,
    /// `c"native"`, ...; `None` picks.
    pub level: Option<&'a CStr>,
    /// Of level native: `c"per_token"`, `c"grouped"`; `None` picks.
    pub algorithm: Option<&'a CStr>,
}

impl Run<'_> {
    fn raw(&self) -> abi::cmm_run {
        abi::cmm_run {
            threads: self.threads,
            level: self.level.map_or(null(), CStr::as_ptr),
            algorithm: self.algorithm.map_or(null(), CStr::as_ptr),
            ..Default::default()
        }
    }
}

/// The type of the rows of a packed layer.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// As they are.
    Same = 0,
    /// bfloat16. With `f32` tokens, as the two that follow.
    Bf16 = abi::CMM_BF16,
    /// float16.
    F16 = abi::CMM_F16,
    /// Whole numbers of 8 bits, with a scale for each row.
    I8 = abi::CMM_I8,
}

/// A fast feedforward layer on borrowed weights. May be used by many threads at once.
#[derive(Debug, Clone)]
pub struct Fff<'a, T: Real> {
    raw: abi::cmm_fff,
    weights: PhantomData<&'a [T]>,
}

// SAFETY: it is never written to after it was made, and what it points to is borrowed as &[T].
unsafe impl<T: Real> Send for Fff<'_, T> {}
unsafe impl<T: Real> Sync for Fff<'_, T> {}

impl<'a, T: Real> Fff<'a, T> {
    /// A layer of `w_in[trees][nodes][d_in]`, `w_out[trees][nodes][d_out]` and `bias[trees][nodes]`, or none, with
    /// nodes = 2^(depth+1) - 1 in heap order.
    pub fn new(
        shape: Shape,
        w_in: &'a [T],
        w_out: &'a [T],
        bias: Option<&'a [T]>,
        activation: Activation,
        tie: Tie,
    ) -> Result<Self, Error> {
        let mut raw = abi::cmm_fff {
            dtype: T::DTYPE,
            activation: activation as i32,
            tie: tie as i32,
            depth: shape.depth,
            trees: shape.trees,
            d_in: shape.d_in,
            d_out: shape.d_out,
            ..Default::default()
        };
        // Any address: the sizes are checked before the arrays are looked at, and nothing is read.
        raw.w_in = std::ptr::addr_of_mut!(raw).cast();
        raw.w_out = raw.w_in;
        let mut bytes = 0;
        // SAFETY: the size of a packed layer depends on no weight.
        check(unsafe { abi::cmm_fff_pack_size(&raw, &mut bytes) })?;
        let rows = shape.trees as usize * ((2 << shape.depth) - 1);
        check_size("w_in", w_in.len(), rows * shape.d_in as usize)?;
        check_size("w_out", w_out.len(), rows * shape.d_out as usize)?;
        check_size("bias", bias.map_or(rows, <[T]>::len), rows)?;
        raw.w_in = w_in.as_ptr() as *mut _;
        raw.w_out = w_out.as_ptr() as *mut _;
        raw.bias = bias.map_or(null_mut(), |b| b.as_ptr() as *mut _);
        Ok(Self { raw, weights: PhantomData })
    }

    fn batch(&self, x: &[T]) -> Result<usize, Error> {
        let d_in = self.raw.d_in as usize;
        if x.len() % d_in != 0 {
            return Err(Error::Tokens(x.len(), d_in));
        }
        Ok(x.len() / d_in)
    }

    fn check_path(&self, batch: usize, nodes: &[i32], logits: &[T]) -> Result<(), Error> {
        let visits = batch * self.raw.trees as usize * (self.raw.depth as usize + 1);
        check_size("nodes", nodes.len(), visits)?;
        check_size("logits", logits.len(), visits)
    }

    /// `y[batch][d_out]` = the layer applied to `x[batch][d_in]`.
    pub fn forward(&self, x: &[T], y: &mut [T]) -> Result<(), Error> {
        self.forward_as(x, y, None, Run::default())
    }

    /// The same, in the way that `run` says. The path, nodes and logits of `[batch][trees][depth+1]`, goes to `path`.
    pub fn forward_as(
        &self,
        x: &[T],
        y: &mut [T],
        path: Option<(&mut [i32], &mut [T])>,
        run: Run<'_>,
    ) -> Result<(), Error> {
        let batch = self.batch(x)?;
        check_size("y", y.len(), batch * self.raw.d_out as usize)?;
        let (mut nodes, mut logits) = (null_mut(), null_mut());
        if let Some((n, l)) = path {
            self.check_path(batch, n, l)?;
            (nodes, logits) = (n.as_mut_ptr(), l.as_mut_ptr());
        }
        let (x, y) = (x.as_ptr() as *mut _, y.as_mut_ptr().cast());
        // SAFETY: the arrays have the sizes of the layer and the batch, and the borrows that they come from live.
        check(unsafe { abi::cmm_fff_forward(&self.raw, &run.raw(), batch as i64, x, y, nodes, logits.cast()) })
    }

    /// The path alone: which nodes the tokens visit, and their logits.
    pub fn path(&self, x: &[T], nodes: &mut [i32], logits: &mut [T], run: Run<'_>) -> Result<(), Error> {
        let batch = self.batch(x)?;
        self.check_path(batch, nodes, logits)?;
        let (x, nodes, logits) = (x.as_ptr() as *mut _, nodes.as_mut_ptr(), logits.as_mut_ptr().cast());
        // SAFETY: as above.
        check(unsafe { abi::cmm_cmm_forward(&self.raw, &run.raw(), batch as i64, x, nodes, logits) })
    }

    /// A layer that owns its weights, packed for many calls, of the type that `rows` says.
    pub fn pack(&self, rows: Rows) -> Result<Packed<T>, Error> {
        let how = abi::cmm_pack_options { weight_dtype: rows as i32, ..Default::default() };
        let mut bytes = 0;
        // SAFETY: the layer is one that was checked.
        check(unsafe { abi::cmm_fff_pack_size_as(&self.raw, &how, &mut bytes) })?;
        let layout = Layout::from_size_align(bytes as usize, abi::CMM_ALIGNMENT as usize)
            .map_err(|_| Error::Status(abi::CMM_ERROR_MEMORY))?;
        // SAFETY: a packed layer has rows, so its size is not 0.
        let memory = unsafe { alloc(layout) };
        if memory.is_null() {
            handle_alloc_error(layout);
        }
        let raw = abi::cmm_fff::default();
        let mut packed = Packed { layer: Fff { raw, weights: PhantomData }, memory, layout };
        // SAFETY: the memory has the size and alignment that it should.
        check(unsafe { abi::cmm_fff_pack_as(&self.raw, &how, memory.cast(), bytes, &mut packed.layer.raw) })?;
        Ok(packed)
    }
}

/// A layer with its own weights, which are freed with it. [`Packed::layer`] is used.
#[derive(Debug)]
pub struct Packed<T: Real> {
    layer: Fff<'static, T>, // not to be had but for as long as this is borrowed
    memory: *mut u8,
    layout: Layout,
}

// SAFETY: the memory is its own, and nothing writes to it after it was made.
unsafe impl<T: Real> Send for Packed<T> {}
unsafe impl<T: Real> Sync for Packed<T> {}

impl<T: Real> Packed<T> {
    /// The layer, for as long as its weights live.
    pub fn layer(&self) -> &Fff<'_, T> {
        &self.layer
    }
}

impl<T: Real> Drop for Packed<T> {
    fn drop(&mut self) {
        // SAFETY: it was allocated so.
        unsafe { dealloc(self.memory, self.layout) }
    }
}

/// The version of the library that is running.
pub fn version() -> &'static str {
    // SAFETY: it takes nothing.
    text(unsafe { abi::cmm_version() })
}
