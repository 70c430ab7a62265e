"""NumPy's arrays on libcmm. libcmm wants them C-contiguous and aligned, so an input that is not is copied.

An output may be any writable array. Where libcmm cannot write to it, or would overwrite an input, a temporary takes
its place and is copied at the end.
"""

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from cmm._backend import DenseSpec, Spec
from cmm._dispatch import Run, choose, refused
from cmm._native import DTYPES as NUMBERS
from cmm._native import NULL, address, failure, ffi, lib
from cmm.errors import ArgumentError, ArrayMemoryError

Floats: TypeAlias = NDArray[Any]  # float32 or float64

DTYPES: tuple[str, ...] = ("float32", "float64")
NARROW: tuple[str, ...] = ("bfloat16", "float16")

_DTYPES = {name: np.dtype(name) for name in DTYPES}
_HELD = {**_DTYPES, "bfloat16": np.dtype(np.uint16), "float16": np.dtype(np.float16)}  # NumPy has no bfloat16
_I32 = np.dtype(np.int32)

# ndarray.flags.num
_USABLE = 0x1 | 0x100  # C-contiguous, aligned
_OWN = 0x4
_WRITABLE = 0x400

# The weights of a layer: a function of libcmm and its first arguments; the addresses of arrays among these that a
# caller could also pass as `out`; NumPy's dtype; and memory to be kept. Addresses keep their arrays alive. A plain
# tuple, for every call makes one.
_Weights: TypeAlias = tuple[Any, tuple[Any, ...], tuple[Any, ...], np.dtype[Any], Any]


def view(name: str, array: Any) -> Any:
    """Return an array of NumPy as it is."""
    return array


def bind(spec: Spec, w_in: Floats, w_out: Floats | None, bias: Floats | None) -> _Weights:
    """Return the weights of a layer where they are."""
    c_in = address(_usable("w_in", w_in))
    c_bias = NULL if bias is None else address(_usable("bias", bias))
    c_out = NULL if w_out is None else address(_usable("w_out", w_out))
    c_weights = c_in, c_bias, c_out
    return lib.cmm_py_fff_once, spec.codes + c_weights, c_weights, _DTYPES[spec.dtype], None


def prepare(
    spec: Spec, w_in: Floats, w_out: Floats, bias: Floats | None, rows: str
) -> tuple[_Weights, tuple[Floats, Floats, Floats | None]]:
    """Return packed copies of the weights, and read-only views of them, for widened()."""
    w_in, w_out = _usable("w_in", w_in), _usable("w_out", w_out)
    bias = None if bias is None else _usable("bias", bias)
    dtype, activation, tie, *_ = spec.codes
    raw = {
        "size": ffi.sizeof("cmm_fff"),
        "dtype": dtype,
        "activation": activation,
        "tie": tie,
        "trees": spec.trees,
        "depth": spec.depth,
        "d_in": spec.d_in,
        "d_out": spec.d_out,
        "w_in": address(w_in),
        "w_out": address(w_out),
        "bias": NULL if bias is None else address(bias),
    }
    memory, packed = _pack(ffi.new("cmm_fff *", raw), 0 if rows == spec.dtype else NUMBERS[rows])
    element, held = _DTYPES[spec.dtype], _HELD[rows]
    views = (
        _rows(memory, packed.w_in, packed.ld_in, w_in.shape, held),
        _rows(memory, packed.w_out, packed.ld_out, w_out.shape, held),
        None if bias is None else _rows(memory, packed.bias, bias.shape[-1], bias.shape, element),
    )
    return (lib.cmm_py_fff, (packed,), (), element, memory), views


def forward(
    spec: Spec,
    weights: _Weights,
    x: Floats,
    out: Any,
    level: str,
    algorithm: str | None,
    threads: int | None,
    return_path: bool,
) -> Any:
    """Apply a layer to tokens."""
    function, arguments, c_weights, dtype, _ = weights
    d_out = spec.d_out
    if x.flags.num & _USABLE != _USABLE:
        x = _copy("x", x)
    c_x = address(x)
    batch = x.size // spec.d_in
    run = choose(level, algorithm, threads, False)
    y: Any = None
    c_y = c_nodes = c_logits = NULL
    if out is None or return_path:
        lead = x.shape[:-1]
    if out is not None:
        y, c_y = _target(out, dtype, x, c_weights)
    try:  # not by empty(), of which each call takes 0.06 us more
        if d_out and out is None:
            shape = (*lead, d_out)
            y = np.empty(shape, dtype) if batch * d_out * dtype.itemsize < _LARGE else large("y", shape, dtype)
            c_y = address(y)
        if return_path:
            shape = (*lead, spec.trees, spec.depth + 1)
            nodes, logits = np.empty(shape, _I32), np.empty(shape, dtype)
            c_nodes, c_logits = address(nodes), address(logits)
    except (MemoryError, ValueError) as error:
        raise _no_memory("y" if d_out and y is None else "nodes and logits", shape, dtype) from error
    # Adding tuples takes 0.13 us less than unpacking each.
    status = function(*(arguments + run + (batch, c_x, c_y, c_nodes, c_logits)))
    if status:
        raise refused(status, run)
    if out is not None and y is not out:
        np.copyto(out, y)
        y = out
    if not return_path:
        return y
    return (y, nodes, logits) if d_out else (nodes, logits)


def dense(
    spec: DenseSpec,
    x: Floats,
    w_in: Floats,
    w_out: Floats,
    bias: Floats | None,
    out: Any,
    level: str,
    algorithm: str | None,
    threads: int | None,
) -> Any:
    """Apply a dense layer to tokens."""
    dtype = _DTYPES[spec.dtype]
    x = _usable("x", x)
    c_x, c_in, c_out = address(x), address(_usable("w_in", w_in)), address(_usable("w_out", w_out))
    c_bias = NULL if bias is None else address(_usable("bias", bias))
    run: Run = choose(level, algorithm, threads, True)
    if out is None:
        y = empty("y", (*x.shape[:-1], spec.d_out), dtype)
        c_y = address(y)
    else:
        y, c_y = _target(out, dtype, x, (c_in, c_out, c_bias))
    status = lib.cmm_py_ff(*spec.codes, c_in, c_bias, c_out, *run, x.size // spec.d_in, c_x, c_y)
    if status:
        raise refused(status, run)
    if out is not None and y is not out:
        np.copyto(out, y)
        return out
    return y


# ---- inputs --------------------------------------------------------------------------------------------------------


def _usable(name: str, array: Floats) -> Floats:
    """Return an input as libcmm wants it: the array itself where that will do, else a copy."""
    return array if array.flags.num & _USABLE == _USABLE else _copy(name, array)


def _copy(name: str, array: Floats) -> Floats:
    try:
        return array.copy()
    except (MemoryError, ValueError) as error:
        raise ArrayMemoryError(f"there is no memory for a contiguous copy of {name}, shape {array.shape}") from error


# ---- packed weights ------------------------------------------------------------------------------------------------


def widened(held: Any) -> Any:
    """Return rows of a prepared layer in its dtype: themselves, or a new array of what narrow ones hold."""
    if not isinstance(held, np.ndarray) or held.dtype.itemsize != 2:
        return held
    wide = (held.astype(np.uint32) << 16).view(np.float32) if held.dtype == np.uint16 else held.astype(np.float32)
    wide.flags.writeable = False
    return wide


def _pack(raw: Any, weight_dtype: int) -> tuple[NDArray[np.uint8], Any]:
    """Return the memory that a layer was packed into, and the cmm_fff there; weight_dtype 0: the layer's own."""
    size = ffi.new("int64_t *")
    options = ffi.new("cmm_pack_options *", {"size": ffi.sizeof("cmm_pack_options"), "weight_dtype": weight_dtype})
    status = lib.cmm_fff_pack_size_as(raw, options, size)
    if not status:
        memory = _aligned("the packed weights", size[0])
        packed = ffi.new("cmm_fff *")
        status = lib.cmm_fff_pack_as(raw, options, address(memory), size[0], packed)
    if status:
        raise failure(status)
    return memory, packed


def _aligned(name: str, size: int) -> NDArray[np.uint8]:
    """Return memory of so many bytes that starts at a multiple of CMM_ALIGNMENT."""
    memory: NDArray[np.uint8] = empty(name, (size + lib.CMM_ALIGNMENT,), np.uint8)
    start = -memory.ctypes.data % lib.CMM_ALIGNMENT
    return memory[start : start + size]


def _rows(memory: NDArray[np.uint8], start: Any, pitch: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Floats:
    """Return a read-only view of rows in memory: from the C pointer start, pitch elements from one to the next."""
    offset = int(ffi.cast("uintptr_t", start)) - memory.ctypes.data
    steps = [dtype.itemsize, pitch * dtype.itemsize]
    for length in shape[-2:0:-1]:
        steps.append(steps[-1] * length)
    view: Floats = np.ndarray(shape, dtype, memory, offset, steps[len(shape) - 1 :: -1])
    view.flags.writeable = False
    return view


# ---- outputs -------------------------------------------------------------------------------------------------------

_LARGE = 1 << 16  # bytes from which on the lines of the cache matter more than a view's microsecond


def large(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """Return a new array for a result of many rows, which starts at a cache line.

    NumPy's own start 16 bytes off, and every store of a whole line then touches two.
    """
    try:
        return _aligned(name, math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)
    except (MemoryError, ValueError) as error:
        raise _no_memory(name, shape, dtype) from error


def empty(name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
    """Return a new array for a result."""
    try:
        return np.empty(shape, dtype)
    except (MemoryError, ValueError) as error:
        raise _no_memory(name, shape, dtype) from error


def _no_memory(name: str, shape: tuple[int, ...], dtype: DTypeLike) -> ArrayMemoryError:
    return ArrayMemoryError(f"there is no memory for {name}, shape {shape}, {np.dtype(dtype)}")


def _target(out: Any, dtype: np.dtype[Any], x: Floats, c_weights: tuple[Any, ...]) -> tuple[Any, Any]:
    """Return what libcmm should write instead of ``out``, and its address: out itself where that will do.

    libcmm writes to no memory that it reads, so out will not do where it shares bytes with x or with weights.
    """
    flags = out.flags.num
    if not flags & _WRITABLE:
        raise ArgumentError("out is read-only; it should be writable")
    if flags & _USABLE == _USABLE:
        start = address(out)
        # Two arrays that each own their memory share none, which takes less time to see than addresses do.
        apart = flags & _OWN and x.base is None and x is not out
        inputs = c_weights if apart else (address(x), *c_weights)
        if not inputs or not _overlaps(start, inputs):
            return out, start
    temporary = empty("a temporary in place of out", out.shape, dtype)
    return temporary, address(temporary)


def _overlaps(start: Any, inputs: tuple[Any, ...]) -> bool:
    """Whether memory shares bytes with an input, or lies in one and is empty, which does not matter."""
    end = start + len(start)
    for first in inputs:  # noqa: SIM110 (any() would take half a microsecond more)
        if first is not NULL and first < end and start < first + len(first):
            return True
    return False
