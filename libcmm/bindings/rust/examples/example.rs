use cmm::{Activation, Error, Fff, Shape, Tie};

fn main() -> Result<(), Error> {
    // One tree of depth 1: three neurons of width 2. Two tokens.
    let (w_in, w_out) = ([1f32, 0., 0., 1., 1., 1.], [1f32, 2., 3., 4., 5., 6.]);
    let x = [1., 2., -1., 3.];
    let mut y = [0.; 4];
    let shape = Shape { trees: 1, depth: 1, d_in: 2, d_out: 2 };
    let layer = Fff::new(shape, &w_in, &w_out, None, Activation::Relu, Tie::Left)?;
    layer.forward(&x, &mut y)?; // Error::Status, or Error::Size for an array of another size
    println!("{} {} {} {}", y[0], y[1], y[2], y[3]);
    Ok(())
}
