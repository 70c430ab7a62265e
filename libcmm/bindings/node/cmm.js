// Fast feedforward layers on the CPU, by libcmm. Arrays are Float32Array or Float64Array, row-major, and are not copied; a
// batch is as large as x says. What is wrong is a CmmError, a RangeError for an array of another size, or a TypeError for
// one of another kind; then nothing was written.
'use strict';

const koffi = require('koffi');
const { constants, activations, ties, structs, functions } = require('./abi.js');

// The file of the library: CMM_LIBRARY, or where the system looks.
const NAMES = { darwin: 'libcmm.dylib', win32: 'cmm.dll' };
const library = koffi.load(process.env.CMM_LIBRARY || NAMES[process.platform] || 'libcmm.so');

for (const [name, [size, fields]] of Object.entries(structs)) {
  if (koffi.sizeof(koffi.struct(name, fields)) !== size) {
    throw new Error(`${name} is not laid out as on a machine of 64 bits`);
  }
}

// The C interface as it is, by the names that functions have there.
const c = {};
for (const [name, [result, types]] of Object.entries(functions)) {
  c[name] = library.func(name, result, types);
}

// A struct, zero but for its size and these fields.
function struct(name, values) {
  const [size, fields] = structs[name];
  const made = {};
  for (const [field, type] of Object.entries(fields)) {
    made[field] = type.endsWith('*') ? null : 0;
  }
  return Object.assign(made, { size }, values);
}

// A status of libcmm that is not CMM_OK.
class CmmError extends Error {
  constructor(status) {
    super(`${c.cmm_status_name(status)}: ${c.cmm_status_message(status)}`);
    this.name = 'CmmError';
    this.status = status;
    this.code = c.cmm_status_name(status);
  }
}

function check(status) {
  if (status !== constants.CMM_OK) {
    throw new CmmError(status);
  }
}

function checkArray(name, array, type, size) {
  if (!(array instanceof type)) {
    throw new TypeError(`${name} is not a ${type.name}`);
  }
  if (array.length !== size) {
    throw new RangeError(`${name} has ${array.length} numbers; it should have ${size}`);
  }
}

function choose(name, value, choices) {
  if (!Object.hasOwn(choices, value)) {
    throw new TypeError(`${name} is ${value}; it should be ${Object.keys(choices).join(', ')}`);
  }
  return choices[value];
}

function whole(name, value) {
  if (!Number.isSafeInteger(value)) {
    throw new TypeError(`${name} is ${value}; it should be a whole number`);
  }
  return value;
}

function whole32(name, value) {
  if (whole(name, value) !== (value | 0)) {
    throw new RangeError(`${name} is ${value}; it should be a number of 32 bits`);
  }
  return value;
}

// A layer of wIn[trees][nodes][dIn], wOut[trees][nodes][dOut] and, if there is one, bias[trees][nodes], with
// nodes = 2^(depth+1) - 1 in heap order.
class Layer {
  #type;
  #raw;
  #weights;
  #shape;

  constructor({ trees = 1, depth, dIn, dOut, activation = 'gelu', tie = 'left' }, wIn, wOut, bias = null) {
    this.#type = wIn instanceof Float64Array ? Float64Array : Float32Array;
    this.#shape = { trees: whole('trees', trees), depth: whole('depth', depth), dIn: whole('dIn', dIn), dOut: whole('dOut', dOut) };
    if (depth < 0 || depth > constants.CMM_MAX_DEPTH) {
      throw new CmmError(constants.CMM_ERROR_DEPTH); // before it becomes a number of 32 bits
    }
    const bytes = new BigInt64Array(1);
    this.#raw = struct('cmm_fff', {
      dtype: this.#type === Float64Array ? constants.CMM_F64 : constants.CMM_F32,
      activation: choose('activation', activation, activations),
      tie: choose('tie', tie, ties),
      depth,
      trees,
      d_in: dIn,
      d_out: dOut,
      // Any address: sizes are checked before the arrays are looked at, and nothing is read.
      w_in: bytes,
      w_out: bytes,
    });
    check(c.cmm_fff_pack_size(this.#raw, bytes));
    const rows = trees * (2 ** (depth + 1) - 1);
    this.#weights = [
      ['w_in', wIn, rows * dIn],
      ['w_out', wOut, rows * dOut],
      ...(bias === null ? [] : [['bias', bias, rows]]),
    ];
    this.#checkWeights();
    Object.assign(this.#raw, { w_in: wIn, w_out: wOut, bias });
  }

  // Before each call, for their buffers may have been transferred or have shrunk.
  #checkWeights() {
    for (const [name, array, size] of this.#weights) {
      checkArray(name, array, this.#type, size);
    }
  }

  #batch(x) {
    this.#checkWeights();
    const { dIn } = this.#shape;
    checkArray('x', x, this.#type, x.length);
    if (x.length % dIn !== 0) {
      throw new RangeError(`x has ${x.length} numbers; it should have a multiple of ${dIn}`);
    }
    return x.length / dIn;
  }

  #prepare(batch, { nodes = null, logits = null, threads = 0, level = null, algorithm = null }) {
    const visits = batch * this.#shape.trees * (this.#shape.depth + 1);
    if (nodes !== null) {
      checkArray('nodes', nodes, Int32Array, visits);
    }
    if (logits !== null) {
      checkArray('logits', logits, this.#type, visits);
    }
    return [nodes, logits, struct('cmm_run', { threads: whole32('threads', threads), level, algorithm })];
  }

  // Return y[batch][dOut], the layer applied to x[batch][dIn]; it is y if that is given. nodes and logits,
  // [batch][trees][depth+1], receive the path if they are given. threads: at most so many; 0: every core.
  forward(x, { y = null, ...how } = {}) {
    const batch = this.#batch(x);
    const to = y ?? new this.#type(batch * this.#shape.dOut);
    checkArray('y', to, this.#type, batch * this.#shape.dOut);
    const [nodes, logits, run] = this.#prepare(batch, how);
    check(c.cmm_fff_forward(this.#raw, run, batch, x, to, nodes, logits));
    return to;
  }

  // The path alone, to nodes or logits or both.
  path(x, how) {
    const batch = this.#batch(x);
    const [nodes, logits, run] = this.#prepare(batch, how);
    check(c.cmm_cmm_forward(this.#raw, run, batch, x, nodes, logits));
  }
}

module.exports = { Layer, CmmError, constants, c, struct, version: c.cmm_version };
