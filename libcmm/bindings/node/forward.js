// Runs the layers in the files that are named, and prints what each token takes and gives: nodes, logits and outputs, the
// numbers as their bits. The format of the files is in tests/support/layer_files.py.
'use strict';

const fs = require('node:fs');
const { Layer, version } = require('./cmm.js');

const ACTIVATIONS = ['gelu', 'gelu_tanh', 'relu', 'silu', 'identity'];
const lines = [`libcmm ${version()}`];

function bits(numbers) {
  const { buffer, byteOffset, length } = numbers;
  const of = numbers instanceof Float32Array ? Uint32Array : BigUint64Array;
  return Array.from(new of(buffer, byteOffset, length), (number) => number.toString(16).padStart(2 * of.BYTES_PER_ELEMENT, '0'));
}

function run(name, type, shape, wIn, wOut, bias, x) {
  const layer = new Layer(shape, wIn, wOut, bias);
  const tokens = x.length / shape.dIn;
  const visits = shape.trees * (shape.depth + 1);
  const [nodes, same] = [new Int32Array(tokens * visits), new Int32Array(tokens * visits)];
  const logits = new type(tokens * visits);
  const y = layer.forward(x, { nodes, logits });
  layer.path(x, { nodes: same, threads: 1, level: 'native', algorithm: 'per_token' });
  if (!nodes.every((node, k) => node === same[k])) {
    throw new Error('the path alone is another');
  }
  for (let token = 0; token < tokens; token++) {
    const [from, to] = [token * visits, (token + 1) * visits];
    const out = y.subarray(token * shape.dOut, (token + 1) * shape.dOut);
    lines.push([name, 'token', token, 'nodes', ...nodes.subarray(from, to), 'logits',
      ...bits(logits.subarray(from, to)), 'y', ...bits(out)].join(' '));
  }
}

// What is refused, and how that is said.
function refused(what, call) {
  try {
    call();
  } catch (error) {
    lines.push(`${what}: ${error.message}`);
    return;
  }
  throw new Error(`${what} was not refused`);
}

for (const name of process.argv.slice(2)) {
  const { buffer, byteOffset, byteLength } = fs.readFileSync(name);
  const file = buffer.slice(byteOffset, byteOffset + byteLength);
  const [trees, depth, dIn, dOut, tokens, activation, tie, hasBias] = Array.from(new BigInt64Array(file, 0, 8), Number);
  let at = 64;
  const take = (count) => {
    const taken = new Float32Array(file, at, count);
    at += 4 * count;
    return taken;
  };
  const shape = { trees, depth, dIn, dOut, activation: ACTIVATIONS[activation], tie: ['left', 'right'][tie] };
  const rows = trees * (2 ** (depth + 1) - 1);
  const [wIn, wOut] = [take(rows * dIn), take(rows * dOut)];
  const bias = hasBias ? take(rows) : null;
  const x = take(tokens * dIn);
  run('float32', Float32Array, shape, wIn, wOut, bias, x);
  run('float64', Float64Array, shape, ...[wIn, wOut, bias, x].map((numbers) => numbers && Float64Array.from(numbers)));

  const layer = new Layer(shape, wIn, wOut, bias);
  refused('depth 31', () => new Layer({ ...shape, depth: 31 }, wIn, wOut));
  refused('threads -1', () => layer.forward(x, { threads: -1 }));
  refused('y', () => layer.forward(x, { y: new Float32Array(tokens * dOut + 1) }));
  refused('w_in', () => new Layer(shape, wIn.subarray(1), wOut));
  refused('kind', () => layer.forward(Float64Array.from(x)));
  refused('trees', () => new Layer({ ...shape, trees: 0 }, wIn, wOut));
}
console.log(lines.join('\n'));
