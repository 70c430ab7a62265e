"""NumPy's arrays on libcmm. libcmm wants them C-contiguous and aligned, so an input that is not is copied.

An output may be any writable array. Where libcmm cannot write to it, or would overwrite an input, a temporary takes
its place and is copied at the end.
"""

import math
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from cmm._backend import DenseSpec, Shown, Spec
from cmm._dispatch import Run, choose, refused
from cmm._native import NULL, address, failure, ffi, lib
from cmm._native import ROWS as NUMBERS
from cmm.errors import ArgumentError, ArrayMemoryError

Floats: TypeAlias = NDArray[Any]  # float32 or float64

DTYPES: tuple[str, ...] = ("float32", "float64")
NARROW: tuple[str, ...] = ("bfloat16", "float16", "int8")

_DTYPES = {name: np.dtype(name) for name in DTYPES}
_HELD = {  # NumPy has no bfloat16
    **_DTYPES,
    "bfloat16": np.dtype(np.uint16),
    "float16": np.dtype(np.float16),
    "int8": np.dtype(np.int8),
}
_I32, _F32 = np.dtype(np.int32), np.dtype(np.float32)
_POINTERS = {"scale_in": "float *", "scale_out": "float *", "margin": "float *"}

# ndarray.flags.num
_USABLE = 0x1 | 0x100  # C-contiguous, aligned
_OWN = 0x4
_WRITABLE = 0x400


class _Weights(NamedTuple):
    """The weights of a layer. Addresses keep their arrays alive. Where a call binds them, a plain tuple will do."""

    function: Any  # of libcmm
    arguments: tuple[Any, ...]  # its first
    addresses: tuple[Any, ...]  # of arrays among these that a caller could also pass as `out`
    dtype: np.dtype[Any]
    memory: Any = None  # to be kept
    recomputed: Any = None  # where a layer with an exact path counts


def view(name: str, array: Any) -> Any:
    """Return an array of NumPy as it is."""
    return array


def bind(spec: Spec, w_in: Floats, w_out: Floats | None, bias: Floats | None) -> tuple[Any, ...]:
    """Return the weights of a layer where they are."""
    c_in = address(_usable("w_in", w_in))
    c_bias = NULL if bias is None else address(_usable("bias", bias))
    c_out = NULL if w_out is None else address(_usable("w_out", w_out))
    c_weights = c_in, c_bias, c_out
    return lib.cmm_py_fff_once, spec.codes + c_weights, c_weights, _DTYPES[spec.dtype], None, None


def prepare(
    spec: Spec, w_in: Floats, w_out: Floats, bias: Floats | None, rows: tuple[str, str], exact: float | None
) -> tuple[_Weights, Shown]:
    """Return packed copies of the weights, and read-only views of them, for widened()."""
    options = {
        "weight_dtype": 0 if rows[0] == spec.dtype else NUMBERS[rows[0]],
        "weight_out_dtype": lib.CMM_AS_DTYPE if rows[1] == spec.dtype else NUMBERS[rows[1]],
        "exact_path": exact is not None,
        "sigmas": exact or 0.0,
    }
    return _packed(spec, Shown(w_in, w_out, bias), (spec.dtype, spec.dtype), rows, options)


def prepare_again(spec: Spec, shown: Shown, rows: tuple[str, str]) -> tuple[_Weights, Shown]:
    """Return what prepare() did for a layer that shows these arrays."""
    return _packed(spec, shown, rows, rows, {})


def _packed(
    spec: Spec, given: Shown, types: tuple[str, str], rows: tuple[str, str], options: dict[str, Any]
) -> tuple[_Weights, Shown]:
    """Pack weights whose rows are of some types into rows of others."""
    arrays = Shown(*(None if array is None else _usable(name, array) for name, array in given._asdict().items()))
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
        "weight_dtype": 0 if types[0] == spec.dtype else NUMBERS[types[0]],
        "weight_out_dtype": lib.CMM_AS_DTYPE if types[1] == spec.dtype else NUMBERS[types[1]],
    }
    # The views' memory must stay as long as the struct points to it.
    held = {name: address(array) for name, array in arrays._asdict().items() if array is not None}
    raw |= {name: ffi.cast(_POINTERS.get(name, "void *"), start) for name, start in held.items()}
    refused = ffi.new("int64_t[2]")
    memory, packed, status = _pack(ffi.new("cmm_fff *", raw), {**options, "refused": refused})
    if status == lib.CMM_ERROR_ROW_NOT_FINITE:
        tree, node = divmod(refused[0], 2 ** (spec.depth + 1) - 1)
        name = ("w_in", "w_out")[refused[1]]
        raise ArgumentError(
            f"{name} has an infinity or NaN in tree {tree}, node {node}; a row that becomes int8 should be finite"
        )
    if status:
        raise failure(status)
    element, inner = _DTYPES[spec.dtype], (spec.trees, 2**spec.depth - 1)
    lead = arrays.w_in.shape[:-1]
    views = Shown(
        _rows(memory, packed.w_in, packed.ld_in, arrays.w_in.shape, _HELD[rows[0]]),
        _rows(memory, packed.w_out, packed.ld_out, arrays.w_out.shape, _HELD[rows[1]]),
        None if arrays.bias is None else _rows(memory, packed.bias, lead[-1], arrays.bias.shape, element),
        _rows(memory, packed.scale_in, lead[-1], lead, _F32) if packed.scale_in else None,
        _rows(memory, packed.scale_out, lead[-1], lead, _F32) if packed.scale_out else None,
        _rows(memory, packed.exact_in, packed.ld_exact, (*inner, spec.d_in), element) if packed.exact_in else None,
        _rows(memory, packed.margin, inner[1], inner, _F32) if packed.exact_in else None,
    )
    exact = bool(packed.exact_in)
    function = lib.cmm_py_fff_path if exact else lib.cmm_py_fff
    recomputed = ffi.new("int64_t *", -1) if exact else None
    return _Weights(function, (packed,), (), element, memory, recomputed), views


def located(weights: _Weights) -> tuple[int, int]:
    """Return the addresses of a packed layer's cmm_fff and of its count of recomputed logits, 0 where it has none."""
    places = weights.arguments[0], NULL if weights.recomputed is None else weights.recomputed
    layer, recomputed = (int(ffi.cast("uintptr_t", place)) for place in places)
    return layer, recomputed


def forward(
    spec: Spec,
    weights: tuple[Any, ...],  # of _Weights, or such a plain tuple
    x: Floats,
    out: Any,
    level: str,
    algorithm: str | None,
    threads: int | None,
    return_path: bool,
    path: Any = None,
) -> Any:
    """Apply a layer to tokens."""
    function, arguments, c_weights, dtype, _, recomputed = weights
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
        y, c_y = _target(out, dtype, x, c_weights if path is None else (*c_weights, address(path[0])))
    try:  # not by empty(), of which each call takes 0.06 us more
        if d_out and out is None:
            shape = (*lead, d_out)
            y = np.empty(shape, dtype) if batch * d_out * dtype.itemsize < LARGE else large("y", shape, dtype)
            c_y = address(y)
        if return_path:
            shape = (*lead, spec.trees, spec.depth + 1)
            nodes, logits = np.empty(shape, _I32), np.empty(shape, dtype)
            c_nodes, c_logits = address(nodes), address(logits)
    except (MemoryError, ValueError) as error:
        raise _no_memory("y" if d_out and y is None else "nodes and logits", shape, dtype) from error
    # Adding tuples takes 0.13 us less than unpacking each.
    if path is None and recomputed is None:
        status = function(*(arguments + run + (batch, c_x, c_y, c_nodes, c_logits)))
    else:
        status = _with_path(spec, weights, run, (batch, c_x, c_y, c_nodes, c_logits), path)
    if status:
        raise refused(status, run)
    if out is not None and y is not out:
        np.copyto(out, y)
        y = out
    if not return_path:
        return y
    return (y, nodes, logits) if d_out else (nodes, logits)


def _with_path(spec: Spec, weights: tuple[Any, ...], run: Run, arrays: tuple[Any, ...], path: Any) -> int:
    """Call libcmm with a path to take, or for a layer that has an exact path; return its status."""
    function, arguments, _, _, _, recomputed = weights
    if function is lib.cmm_py_fff_once:
        dtype, activation, tie, depth, trees, d_in, d_out, w_in, bias, w_out = arguments
        raw = {"size": ffi.sizeof("cmm_fff"), "dtype": dtype, "activation": activation, "tie": tie, "depth": depth}
        raw |= {"trees": trees, "d_in": d_in, "d_out": d_out}
        raw |= {name: ffi.cast("void *", at) for name, at in (("w_in", w_in), ("bias", bias), ("w_out", w_out))}
        arguments = (ffi.new("cmm_fff *", raw),)
    where = ffi.new("int64_t[2]")
    c_path = NULL if path is None else address(path[0])
    by_leaf = path is not None and path[1]
    counted = NULL if recomputed is None else recomputed
    status: int = lib.cmm_py_fff_path(
        *arguments, *run, *arrays, NULL if by_leaf else c_path, c_path if by_leaf else NULL, where, counted
    )
    if status == lib.CMM_ERROR_PATH:
        token, tree = where
        found = path[0].reshape(arrays[0], spec.trees, -1)[token, tree].tolist()
        raise no_path(token, tree, found, spec.depth)
    return status


def no_path(token: int, tree: int, found: list[int], depth: int, name: str = "path") -> ArgumentError:
    """Return the error for what was given as a path and is none."""
    leaves = f"a leaf, {2**depth - 1} to {2 ** (depth + 1) - 2}"
    if len(found) == 1 and depth:
        return ArgumentError(f"{name} has {found[0]} for token {token}, tree {tree}; it should be {leaves}")
    return ArgumentError(
        f"{name} has {found} for token {token}, tree {tree}; it should go from node 0 to {leaves}, "
        "from each node n to 2n+1 or 2n+2"
    )


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


def backward(
    spec: Spec,
    x: Floats,
    w_in: Floats,
    w_out: Floats,
    nodes: NDArray[np.int32],
    logits: Floats,
    dy: Floats,
    wanted: dict[str, Any],
    accumulate: bool,
    threads: int | None,
) -> tuple[Any, ...]:
    """Return the gradients of a layer: for each what is wanted, None or an array."""
    dtype = _DTYPES[spec.dtype]
    inputs = {"w_in": w_in, "w_out": w_out, "x": x, "nodes": nodes, "logits": logits, "dy": dy}
    usable = {name: _usable(name, array) for name, array in inputs.items()}
    c_in, c_out, *c_tokens = c_inputs = tuple(map(address, usable.values()))
    run = choose("native", None, threads, False)
    shapes = {"dx": x.shape, "dw_in": w_in.shape, "dbias": w_in.shape[:-1], "dw_out": w_out.shape}
    given = {name: one for name, one in wanted.items() if not isinstance(one, bool)}
    for name, array in given.items():
        if not array.flags.writeable:
            raise ArgumentError(f"{name} is read-only; it should be writable")
        for other in given:
            if other != name and np.shares_memory(array, given[other]):
                raise ArgumentError(f"{name} and {other} share memory; each should be memory of its own")
    written: dict[str, Any] = {}
    for name, one in wanted.items():
        if name in given:
            written[name] = _gradient(name, one, c_inputs, accumulate)
        elif one:
            written[name] = large(name, shapes[name], dtype)
    bits = {"dx": lib.CMM_DX, "dw_in": lib.CMM_DW_IN, "dbias": lib.CMM_DBIAS, "dw_out": lib.CMM_DW_OUT}
    added = sum(bits[name] for name in given) if accumulate else 0
    c_outputs = [address(written[name]) if name in written else NULL for name in wanted]
    where = ffi.new("int64_t[2]")
    count, _, isa, *_ = run
    status = lib.cmm_py_fff_backward(
        *spec.codes, c_in, c_out, count, isa, x.size // spec.d_in, *c_tokens, added, *c_outputs, where
    )
    if status == lib.CMM_ERROR_PATH:
        token, tree = where
        found = usable["nodes"].reshape(-1, spec.trees, spec.depth + 1)[token, tree].tolist()
        raise no_path(token, tree, found, spec.depth, "nodes")
    if status:
        raise refused(status, run)
    for name, array in given.items():
        if written[name] is not array:
            np.copyto(array, written[name])
            written[name] = array
    return tuple(written.get(name) for name in wanted)


def _gradient(name: str, array: Any, c_inputs: tuple[Any, ...], accumulate: bool) -> Any:
    """Return what libcmm should write instead of a gradient's array: itself where that will do."""
    if array.flags.num & _USABLE == _USABLE and not _overlaps(address(array), c_inputs):
        return array
    temporary = empty(f"a temporary in place of {name}", array.shape, array.dtype)
    if accumulate:
        np.copyto(temporary, array)
    return temporary


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


def widened(held: Any, scale: Any = None) -> Any:
    """Return rows of a prepared layer in its dtype: themselves, or a new array of what narrow ones hold."""
    if not isinstance(held, np.ndarray) or held.dtype.itemsize > 2:
        return held
    if scale is not None:
        wide = held * scale[..., None]
    elif held.dtype == np.uint16:
        wide = (held.astype(np.uint32) << 16).view(np.float32)
    else:
        wide = held.astype(np.float32)
    wide.flags.writeable = False
    return wide


def _pack(raw: Any, options: dict[str, Any]) -> tuple[NDArray[np.uint8], Any, int]:
    """Return the memory that a layer was packed into, the cmm_fff there, and libcmm's status."""
    size, packed = ffi.new("int64_t *"), ffi.new("cmm_fff *")
    how = ffi.new("cmm_pack_options *", {"size": ffi.sizeof("cmm_pack_options"), **options})
    status = lib.cmm_fff_pack_size_as(raw, how, size)
    memory = _aligned("the packed weights", 0 if status else size[0])
    if not status:
        packed.size = raw.size
        status = lib.cmm_fff_pack_as(raw, how, address(memory), size[0], packed)
    return memory, packed, status


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

LARGE = 1 << 16  # bytes from which on the lines of the cache matter more than a view's microsecond


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
