//! Runs the layers in the files that are named, and prints what each token takes and gives: nodes, logits and outputs,
//! the numbers as their bits. The format of the files is in tests/support/layer_files.py.
use cmm::{abi, Activation, Error, Fff, Real, Rows, Run, Shape, Tie};
use std::fmt::LowerHex;

type Failure = Box<dyn std::error::Error>;

const ACTIVATIONS: [Activation; 5] =
    [Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Silu, Activation::Identity];

struct Layer<T> {
    shape: Shape,
    activation: Activation,
    tie: Tie,
    w_in: Vec<T>,
    w_out: Vec<T>,
    bias: Option<Vec<T>>,
    x: Vec<T>,
}

impl<T: Real> Layer<T> {
    fn open(&self) -> Result<Fff<'_, T>, Error> {
        Fff::new(self.shape, &self.w_in, &self.w_out, self.bias.as_deref(), self.activation, self.tie)
    }
}

fn read(name: &str) -> Result<Layer<f32>, Failure> {
    let bytes = std::fs::read(name)?;
    let (header, rest) = bytes.split_at(64);
    let sizes: Vec<i64> = header.chunks_exact(8).map(|c| i64::from_le_bytes(c.try_into().unwrap())).collect();
    let mut numbers = rest.chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().unwrap()));
    let mut take = |count: i64| -> Vec<f32> { numbers.by_ref().take(count as usize).collect() };
    let shape = Shape { trees: sizes[0], depth: sizes[1] as i32, d_in: sizes[2], d_out: sizes[3] };
    let rows = shape.trees * ((2 << shape.depth) - 1);
    let (w_in, w_out) = (take(rows * shape.d_in), take(rows * shape.d_out));
    let bias = (sizes[7] == 1).then(|| take(rows));
    let x = take(sizes[4] * shape.d_in);
    let activation = ACTIVATIONS[sizes[5] as usize];
    let tie = if sizes[6] == abi::CMM_TIE_LEFT.into() { Tie::Left } else { Tie::Right };
    Ok(Layer { shape, activation, tie, w_in, w_out, bias, x })
}

fn widen(layer: &Layer<f32>) -> Layer<f64> {
    let wide = |from: &Vec<f32>| from.iter().map(|&number| f64::from(number)).collect();
    Layer {
        shape: layer.shape,
        activation: layer.activation,
        tie: layer.tie,
        w_in: wide(&layer.w_in),
        w_out: wide(&layer.w_out),
        bias: layer.bias.as_ref().map(wide),
        x: wide(&layer.x),
    }
}

fn print<T, B: LowerHex>(what: &str, numbers: &[T], bits: impl Fn(&T) -> B) {
    print!(" {what}");
    for number in numbers {
        print!(" {:0width$x}", bits(number), width = 2 * std::mem::size_of::<T>());
    }
}

fn run<T, B>(name: &str, layer: &Layer<T>, zero: T, bits: impl Fn(&T) -> B) -> Result<(), Failure>
where
    T: Real + PartialEq,
    B: LowerHex,
{
    let shape = layer.shape;
    let (tokens, d_out) = (layer.x.len() / shape.d_in as usize, shape.d_out as usize);
    let visits = shape.trees as usize * (shape.depth as usize + 1);
    let (mut y, mut logits, mut nodes) =
        (vec![zero; tokens * d_out], vec![zero; tokens * visits], vec![0; tokens * visits]);
    let (mut same, mut same_logits, mut same_nodes) = (y.clone(), logits.clone(), nodes.clone());
    layer.open()?.forward_as(&layer.x, &mut y, Some((&mut nodes, &mut logits)), Run::default())?;
    let packed = layer.open()?.pack(Rows::Same)?;
    packed.layer().forward_as(&layer.x, &mut same, None, Run { threads: 1, ..Default::default() })?;
    layer.open()?.path(&layer.x, &mut same_nodes, &mut same_logits, Run::default())?;
    if same != y || same_nodes != nodes || same_logits != logits {
        return Err("a packed layer, or the path alone, is another".into());
    }
    for token in 0..tokens {
        let path = token * visits..(token + 1) * visits;
        print!("{name} token {token} nodes");
        nodes[path.clone()].iter().for_each(|node| print!(" {node}"));
        print("logits", &logits[path], &bits);
        print("y", &y[token * d_out..(token + 1) * d_out], &bits);
        println!();
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    println!("libcmm {}", cmm::version());
    for name in std::env::args().skip(1) {
        let mut layer = read(&name)?;
        run("float32", &layer, 0f32, |number| number.to_bits())?;
        run("float64", &widen(&layer), 0f64, |number| number.to_bits())?;

        // What is refused, and how that is said.
        let outputs = layer.x.len() / layer.shape.d_in as usize * layer.shape.d_out as usize;
        let depth = layer.shape.depth;
        layer.shape.depth = abi::CMM_MAX_DEPTH + 1;
        println!("depth 31: {}", layer.open().unwrap_err());
        layer.shape.depth = depth;
        let threads = Run { threads: -1, ..Default::default() };
        let refused = layer.open()?.forward_as(&layer.x, &mut vec![0.; outputs], None, threads);
        println!("threads -1: {}", refused.unwrap_err());
        println!("y: {}", layer.open()?.forward(&layer.x, &mut vec![0.; outputs + 1]).unwrap_err());
        layer.w_in.pop();
        println!("w_in: {}", layer.open().unwrap_err());
    }
    Ok(())
}
