"""The encoder's steps on a GPU: cuBLAS for products with weights, libcmm_cuda for FFF layers, ``kernels.cu`` between.

The hidden state x and all sums are float32. What products read, weights and their other factor, is of the model's
dtype T: float32, bfloat16 or float16. A call's buffers belong to the model, so that the kernels of all layers are one
CUDA graph for a shape of batch, which is captured the second time that a shape comes, and replayed from then on.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from cmm._backend import CUDA, DenseSpec, Place, Spec
from cmm._backend.cuda import run_ff, run_fff
from cmm._backend.device_arrays import library_at
from cmm._dispatch import choose_cuda
from cmm._native import ACTIVATIONS, DTYPES, TIES
from cmm.bert.cublas import WORKSPACE_BYTES, multiplier
from cmm.bert.device import Device
from cmm.bert.encoder import FFF, Array, Call, Dense, Layer, Norm, Weights, run_layers
from cmm.errors import LevelError, UnusableError
from cmm.layers import FFF as Prepared  # noqa: N811

#: What a model's products may be of on a GPU, and what CuPy's arrays of it hold: of bfloat16 the bits.
STORED = {"float32": np.float32, "bfloat16": np.uint16, "float16": np.float16}

_LEAST_CAPABILITY = 80  # that of libcmm_cuda
_THREADS = 256
_WIDEST_MMA = 128  # of a head, in 16 bits
_GRAPHS = 32  # shapes of batch that are remembered; a graph takes some 100 KB
_MOST_SHARED = 48 << 10  # bytes that a block may have without asking

# The weights that products read. The others are few, and stay float32.
_NARROW = (".qkv", ".dense", ".w_in", ".w_out", ".ffn.bias", "embedding.word")


class Buffers(NamedTuple):
    """The arrays of a call. Behind the layers' attention nobody reads qkv, so that delta lies in its memory."""

    normed: Array  # (T, H) of T
    qkv: Array  # (T, 3H) of T
    context: Array  # (T, H) of T
    delta: Array  # (T, H) of T
    mask: Array | None  # bytes, (B, S) or (B, S, S)
    batch: int
    length: int


@cache
def _module(cupy: Any, dtype: str, width: int, head: int) -> Any:
    """Return the source of the kernels, which is compiled for a GPU when a kernel is first asked for there."""
    source = Path(__file__).with_name("kernels.cu").read_text(encoding="utf-8")
    sizes = {"TYPE": list(STORED).index(dtype), "WIDTH": width, "HEAD": head}
    options = ("-std=c++17", *(f"-D{name}={value}" for name, value in sizes.items()))
    return cupy.RawModule(code=source, options=options)


@cache
def _kernel(cupy: Any, device: int, dtype: str, width: int, head: int, name: str, shared: int) -> Any:
    """Return a kernel for the current GPU, of that number, whose blocks may have so many bytes of shared memory."""
    kernel = _module(cupy, dtype, width, head).get_function(name)
    if shared > _MOST_SHARED:
        kernel.max_dynamic_shared_size_bytes = shared
    return kernel


class GpuOps:
    """``encoder.Ops`` for one model on one GPU.

    Calls in several threads or streams are queued one after the other, for they share buffers. These are as large as
    the largest batch so far needed.
    """

    def __init__(self, device: Device, dtype: str, width: int, heads: int) -> None:
        self._cupy: Any = device.xp
        self._number = int(device.name.partition(":")[2])
        capability = self._cupy.cuda.Device(self._number).compute_capability
        if int(capability) < _LEAST_CAPABILITY:
            what = f"compute capability {_LEAST_CAPABILITY / 10}, and {device.name} has {int(capability) / 10}"
            raise UnusableError(f"the encoder needs a GPU of {what}")
        self._dtype, self._width, self._head = dtype, width, width // heads
        self._place = Place("cupy", CUDA, self._number)
        self._lock = Lock()
        self._done: Any = None  # the event after the last call
        self._memory: dict[str, Array] = {}
        self._graphs: OrderedDict[tuple[Any, ...], Any] = OrderedDict()  # None: the shape has come once

    # ---- weights ---------------------------------------------------------------------------------------------------

    def stored(self, name: str, tensor: Array) -> Array:
        """Return a float32 tensor as it is kept."""
        tensor = self._cupy.ascontiguousarray(tensor)
        if self._dtype == "float32" or not name.endswith(_NARROW):
            return tensor
        kept = self._cupy.empty(tensor.shape, STORED[self._dtype])
        return self._elementwise("narrow_all", tensor, kept)

    def wide(self, value: Array) -> Array:
        """Return numbers of T as float32, and what is no such array as it is."""
        if self._dtype == "float32" or value.dtype != STORED[self._dtype]:
            return value
        return self._elementwise("widen_all", value, self._cupy.empty(value.shape, np.float32))

    # ---- the steps -------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Wait for the current stream, and for the last call, which may be in another."""
        with self._lock:
            if self._done is not None:
                self._done.synchronize()
            self._cupy.cuda.get_current_stream().synchronize()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the buffers, and have the current stream wait until the last call has passed its own."""
        with self._lock:
            stream = self._cupy.cuda.get_current_stream()
            if self._done is None:
                self._done = self._cupy.cuda.Event(disable_timing=True)
            else:
                stream.wait_event(self._done)
            try:
                yield
            finally:
                self._done.record(stream)

    def begin(
        self, call: Call, weights: Weights, ids: Array, mask: Array | None, positions: Array
    ) -> tuple[Array, Buffers]:
        """Embed into the model's buffers."""
        if choose_cuda(call.level, None) == "cuda-bmm" and self._dtype == "bfloat16":  # raises what else is wrong
            problem = "level is 'cuda-bmm', and the model's dtype is 'bfloat16'"
            raise LevelError(f"{problem}; it should be 'float16' or 'float32' there")
        (batch, length), width, kind = ids.shape, self._width, STORED[self._dtype]
        tokens = batch * length
        x = self._buffer("x", (tokens, width), np.float32)
        qkv = self._buffer("qkv", (tokens, 3 * width), kind)
        normed, context = (self._buffer(name, (tokens, width), kind) for name in ("normed", "context"))
        delta = qkv.reshape(-1)[: tokens * width].reshape(tokens, width)
        held = None
        if mask is not None:
            held = self._buffer("mask", mask.shape, np.uint8)
            held[...] = mask
        ids = ids.astype(np.int32)
        norm = weights.embedding_norm
        arrays = ids, weights.word, weights.scale, positions, np.int32(length), norm.weight, norm.bias
        self._rows("embed", tokens, *arrays, np.float32(call.eps), x)
        return x, Buffers(normed, qkv, context, delta, held, batch, length)

    def layers(self, call: Call, weights: Weights, x: Array, buffers: Buffers) -> None:
        """Replay the graph of this shape, or run the layers, and capture them where the shape has come before."""
        if call.tap is not None or not len(x) or choose_cuda(call.level, None) != "cuda":
            run_layers(call, weights, x, buffers)
            return
        shape = None if buffers.mask is None else buffers.mask.ndim, buffers.batch, buffers.length
        known = shape in self._graphs
        graph = self._graphs.pop(shape, None)
        if graph is None and known:
            graph = self._captured(call, weights, x, buffers)
        if graph is None:
            run_layers(call, weights, x, buffers)  # and so all is loaded and allocated that the capture will need
        else:
            graph.launch(self._cupy.cuda.get_current_stream())
        self._graphs[shape] = graph
        if len(self._graphs) > _GRAPHS:
            self._graphs.popitem(last=False)

    def _captured(self, call: Call, weights: Weights, x: Array, buffers: Buffers) -> Any:
        with self._cupy.cuda.Stream(non_blocking=True) as stream:
            stream.begin_capture()
            try:
                run_layers(call, weights, x, buffers)
            except BaseException:
                with suppress(Exception):
                    stream.end_capture()
                raise
            return stream.end_capture()

    def add_norm(self, call: Call, x: Array, delta: Array | None, norm: Norm, out: Array) -> Array:
        """Add and normalise in one pass over x; out is of T or float32."""
        name = "add_norm" if out.dtype == STORED[self._dtype] else "add_norm_wide"
        at = np.uintp(0) if delta is None else delta
        self._rows(name, len(x), x, at, norm.weight, norm.bias, np.float32(call.eps), out)
        return out

    def attend(self, call: Call, x: Array, layer: Layer, index: int, buffers: Buffers) -> None:
        """Add attention, whose last product adds to x by itself."""
        self._multiply(buffers.normed, layer.qkv, buffers.qkv)
        self._attention(buffers)
        before = None if call.tap is None else x.copy()
        self._multiply(buffers.context, layer.dense, x, add=True)
        if call.tap is not None:
            call.tap("attn_out", index, x - before)

    def feedforward(self, call: Call, ffn: FFF | Dense | Prepared, index: int, buffers: Buffers) -> None:
        """Apply a feedforward layer of libcmm_cuda, or a dense one of cuBLAS."""
        assert not isinstance(ffn, Prepared)  # Model.to() refuses narrow rows
        x, out = buffers.normed, buffers.delta
        if isinstance(ffn, FFF):
            self._fff(call, x, ffn, index, out)
        else:
            self._dense(call, x, ffn, out)

    def decode(self, call: Call, weights: Weights, hidden: Array) -> Array:
        """Apply the masked-language-model head, to what is rounded to T."""
        empty, kind = self._cupy.empty, STORED[self._dtype]
        states = self._cupy.ascontiguousarray(hidden.reshape(-1, self._width))  # (T, H)
        with self.exclusive():
            if weights.transform is not None:
                dense, norm = weights.transform
                wide = empty(states.shape, np.float32)
                self._multiply(self._narrow(states), dense, wide)
                self._elementwise("gelu_wide", wide)
                states = self.add_norm(call, wide, None, norm, out=empty(states.shape, kind))
            logits = empty((len(states), len(weights.word)), np.float32)
            self._multiply(self._narrow(states), weights.word, logits)
        return logits.reshape(*hidden.shape[:-1], len(weights.word))  # (..., V)

    # ---- their parts -----------------------------------------------------------------------------------------------

    def _attention(self, buffers: Buffers) -> None:
        length, head, mask = buffers.length, self._head, buffers.mask
        by_sequence, by_query = 0, 0
        if mask is not None:
            by_sequence, by_query = int(np.prod(mask.shape[1:])), length if mask.ndim == 3 else 0
        if self._dtype != "float32" and head <= _WIDEST_MMA:
            name, warps = "attention_mma", min(8, -(-length // 16))
            threads, queries = 32 * warps, 16 * warps
            shared = 2 * 2 * 64 * (-(-head // 16) * 16 + 8) * 2
        else:
            side = 4 if head <= 128 else 2 if head <= 512 else 1
            name, threads, keys, queries = "attention_fma", 256, 16 * side, 16 * side
            if length > queries:
                name, queries = "attention_fma_tall", 2 * queries
            shared = 4 * (64 * (queries + 4) + 64 * (keys + 4) + keys * (queries + 4))
        if not buffers.batch:
            return
        grid = (buffers.batch * (self._width // head), -(-length // queries))
        sizes = np.int64(by_sequence), np.int64(by_query), np.int32(length), np.float32(head**-0.5)
        arrays = buffers.qkv, buffers.context, np.uintp(0) if mask is None else mask
        self._kernel(name, shared)(grid, (threads,), (*arrays, *sizes), shared_mem=shared)

    def _fff(self, call: Call, x: Array, ffn: FFF, index: int, out: Array) -> None:
        trees, nodes, width = ffn.w_in.shape
        depth = nodes.bit_length() - 1
        codes = (DTYPES[self._dtype], ACTIVATIONS["gelu"], TIES["left"], depth, trees, width, width)
        spec = Spec(trees, depth, width, width, self._dtype, "gelu", "left", codes)
        visited = logits = None
        if call.tap is not None:
            visited, logits = (self._cupy.empty((len(x), trees, depth + 1), kind) for kind in (np.int32, np.float32))
        arrays = x, ffn.w_in, ffn.bias, ffn.w_out, out, visited, logits
        run_fff(self._library(), self._place, choose_cuda(call.level, None), None, spec, len(x), *arrays, None)
        if call.tap is not None:
            call.tap("path_nodes", index, visited)  # (T, K, D + 1)
            call.tap("path_logits", index, logits)  # (T, K, D + 1)

    def _dense(self, call: Call, x: Array, ffn: Dense, out: Array) -> None:
        neurons, inner = len(ffn.w_in), len(ffn.w_out)
        level = choose_cuda(call.level, None)
        if level != "cuda" and neurons == inner:
            codes = (DTYPES[self._dtype], ACTIVATIONS["gelu"], neurons, self._width, self._width)
            spec = DenseSpec(neurons, self._width, self._width, self._dtype, "gelu", codes)
            run_ff(self._library(), self._place, level, None, spec, len(x), x, ffn.w_in, None, ffn.w_out, out)
            return
        kind = STORED[self._dtype]
        h = self._buffer("hidden", (len(x), neurons), kind)
        self._multiply(x, ffn.w_in, h)
        if neurons == inner:
            self._elementwise("gelu", h)
        else:
            gated = self._buffer("gated", (len(x), inner), kind)
            self._launch("gelu_gated", gated.size, h, gated, np.int32(inner))
            h = gated
        self._multiply(h, ffn.w_out, out, transposed=False)

    def _narrow(self, value: Array) -> Array:
        if value.dtype == STORED[self._dtype]:
            return value
        return self._elementwise("narrow_all", value, self._cupy.empty(value.shape, STORED[self._dtype]))

    def _multiply(self, a: Array, b: Array, out: Array, transposed: bool = True, add: bool = False) -> None:
        workspace = self._buffer("cublas", (WORKSPACE_BYTES,), np.uint8)
        multiplier(self._cupy, self._number, self._dtype, workspace)(a, b, out, transposed, add)

    def _library(self) -> Any:
        """Return CuPy for libcmm_cuda, whose workspace is a buffer."""
        workspace = lambda shape, dtype: self._buffer("fff", shape, np.dtype(dtype))  # noqa: E731
        return library_at(self._place)._replace(empty=workspace)

    # ---- kernels and memory ----------------------------------------------------------------------------------------

    def _kernel(self, name: str, shared: int = 0) -> Any:
        return _kernel(self._cupy, self._number, self._dtype, self._width, self._head, name, shared)

    def _rows(self, name: str, tokens: int, *arguments: Any) -> None:
        """Launch a kernel over rows of x, to which it gives the threads that it was compiled for."""
        block, rows = (128, 4) if self._width <= 1024 else (256, 1)
        if tokens:
            self._kernel(name)((-(-tokens // rows),), (block,), (*arguments, np.int64(tokens)))

    def _launch(self, name: str, count: int, *arguments: Any) -> None:
        """Launch a kernel over so many elements."""
        if count:
            self._kernel(name)((-(-count // _THREADS),), (_THREADS,), (*arguments, np.int64(count)))

    def _elementwise(self, name: str, *arrays: Array) -> Array:
        """Launch a kernel over the elements of arrays, and return the last."""
        self._launch(name, arrays[0].size, *arrays)
        return arrays[-1]

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return an array in the model's memory of that name, which grows where it is too small."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = self._memory.get(name)
        if memory is None or memory.nbytes < size:
            if memory is not None and self._done is not None:
                self._done.synchronize()  # another stream may still read it
            self._graphs.clear()  # they have its address
            self._memory.pop(name, None)  # first, so that there need not be room for both
            del memory
            self._memory[name] = memory = library_at(self._place).empty((size,), "uint8")
        return memory[:size].view(dtype).reshape(shape)
