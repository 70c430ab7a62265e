const { Layer } = require('./cmm.js');

// One tree of depth 1: three neurons of width 2. Two tokens.
const wIn = Float32Array.of(1, 0, 0, 1, 1, 1);
const wOut = Float32Array.of(1, 2, 3, 4, 5, 6);
const layer = new Layer({ depth: 1, dIn: 2, dOut: 2, activation: 'relu' }, wIn, wOut);
const y = layer.forward(Float32Array.of(1, 2, -1, 3)); // or a CmmError, a RangeError, a TypeError
console.log(...y);
