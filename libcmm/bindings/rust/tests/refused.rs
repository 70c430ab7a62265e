//! What is wrong is an error that says so, and touches nothing.
use cmm::{abi, Activation, Error, Fff, Rows, Run, Shape, Tie};

const SHAPE: Shape = Shape { trees: 1, depth: 1, d_in: 2, d_out: 2 };
const W: [f32; 6] = [1., 0., 0., 1., 1., 1.];

fn layer(shape: Shape, bias: Option<&'static [f32]>) -> Result<Fff<'static, f32>, Error> {
    Fff::new(shape, &W, &W, bias, Activation::Relu, Tie::Left)
}

#[test]
fn sizes_of_a_layer() {
    let status = |shape| layer(shape, None).unwrap_err();
    assert_eq!(status(Shape { trees: 0, ..SHAPE }), Error::Status(abi::CMM_ERROR_TREES));
    assert_eq!(status(Shape { depth: 31, ..SHAPE }), Error::Status(abi::CMM_ERROR_DEPTH));
    assert_eq!(status(Shape { depth: -1, ..SHAPE }), Error::Status(abi::CMM_ERROR_DEPTH));
    assert_eq!(status(Shape { d_in: -2, ..SHAPE }), Error::Status(abi::CMM_ERROR_D_IN));
    assert_eq!(status(Shape { d_in: i64::MAX, ..SHAPE }), Error::Status(abi::CMM_ERROR_LAYER_TOO_LARGE));
    assert_eq!(status(Shape { d_out: 3, ..SHAPE }), Error::Size("w_out", 6, 9));
    assert_eq!(layer(SHAPE, Some(&[0.; 2])).unwrap_err(), Error::Size("bias", 2, 3));
}

#[test]
fn sizes_of_a_batch() {
    let layer = layer(SHAPE, None).unwrap();
    let mut y = [7.; 4];
    assert_eq!(layer.forward(&[1.; 3], &mut y), Err(Error::Tokens(3, 2)));
    assert_eq!(layer.forward(&[1.; 2], &mut y), Err(Error::Size("y", 4, 2)));
    let path: (&mut [i32], &mut [f32]) = (&mut [0; 3], &mut [0.; 4]);
    assert_eq!(layer.forward_as(&[1.; 4], &mut y, Some(path), Run::default()), Err(Error::Size("nodes", 3, 4)));
    assert_eq!(layer.path(&[1.; 2], &mut [0; 2], &mut [], Run::default()), Err(Error::Size("logits", 0, 2)));
    let level = Run { level: Some(c"none"), ..Default::default() };
    assert_eq!(layer.forward_as(&[1.; 4], &mut y, None, level), Err(Error::Status(abi::CMM_ERROR_LEVEL)));
    assert_eq!(y, [7.; 4]);
    layer.forward(&[], &mut []).unwrap();
}

#[test]
fn packed_rows() {
    let layer = layer(SHAPE, None).unwrap();
    let (x, mut y, mut narrow) = ([1., 2., -1., 3.], [0.; 4], [0.; 4]);
    layer.forward(&x, &mut y).unwrap();
    layer.pack(Rows::Bf16).unwrap().layer().forward(&x, &mut narrow).unwrap();
    assert_eq!(narrow, y); // these weights are numbers of 16 bits, too
    let wide = Fff::<f64>::new(SHAPE, &[1.; 6], &[1.; 6], None, Activation::Gelu, Tie::Right).unwrap();
    assert_eq!(wide.pack(Rows::I8).unwrap_err(), Error::Status(abi::CMM_ERROR_WEIGHT_DTYPE));
}
