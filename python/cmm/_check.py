"""What a call must be: shapes, dtypes and choices, of arrays of any library. What passes goes to a backend.

The usual call, with NumPy's own arrays of one dtype, takes the short way through each function here.
"""

import re
from collections.abc import Hashable
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from cmm import _call
from cmm._backend import Backend, DenseSpec, Shown, Spec
from cmm._backend.numpy import LARGE, located, no_path
from cmm._backend.numpy import prepare_again as pack_again
from cmm._dispatch import VARIABLES, plan
from cmm._environment import data as environment
from cmm._interop import NUMPY, as_numpy, backend_for, backend_of, keeper_of, library_of
from cmm._native import ACTIVATIONS, DTYPES, TIES, lib
from cmm.errors import ArgumentError, ArrayMemoryError, DtypeError, ShapeError, listed
from cmm.typing import Gradients

_ndarray = np.ndarray
_F32, _F64, _I32 = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.int32)
_DEPTHS = {2 ** (depth + 1) - 1: depth for depth in range(lib.CMM_MAX_DEPTH + 1)}

_Shape: TypeAlias = tuple[int, ...]

# A layer that was prepared: the backend that has its weights, what it is, the weights as that backend wants them, and
# NumPy's dtype where its arrays are to be had without a question.
Prepared: TypeAlias = tuple[Backend, Spec, Any, np.dtype[Any] | None]


# ---- calls ---------------------------------------------------------------------------------------------------------


def fff_forward(
    x: Any,
    w_in: Any,
    w_out: Any,
    bias: Any,
    activation: str,
    tie: str,
    level: str,
    algorithm: str | None,
    threads: int | None,
    out: Any,
    return_path: bool,
    path: Any,
) -> Any:
    """Check a fast feedforward layer and its tokens, and apply it."""
    backend, dtype = NUMPY, _plain(x, w_in, w_out, bias, out)
    if dtype is None:
        backend, dtype, (x, w_in, w_out, bias) = _taken(out, x=x, w_in=w_in, w_out=w_out, bias=bias)
    try:
        spec = _fff_spec(w_in.shape, w_out.shape, None if bias is None else bias.shape, dtype, activation, tie)
    except TypeError as error:
        raise _no_choice(error, activation, tie) from None
    check_tokens(x, spec.d_in)
    if out is not None:
        _check_out(out, x, spec.d_out, backend)
    if path is not None:
        path = _path(path, x, spec, backend)
    weights = backend.bind(spec, w_in, w_out, bias)
    return backend.forward(spec, weights, x, out, level, algorithm, threads, return_path, path)


def fff_backward(
    x: Any,
    w_in: Any,
    w_out: Any,
    nodes: Any,
    logits: Any,
    dy: Any,
    activation: str,
    wanted: dict[str, Any],
    accumulate: bool,
    threads: int | None,
) -> Gradients:
    """Check a backward pass, and do it. wanted: for each gradient True, False, or an array."""
    given = {name: one for name, one in wanted.items() if not isinstance(one, bool | np.bool_)}
    inputs = {"x": x, "w_in": w_in, "w_out": w_out, "logits": logits, "dy": dy}
    backend = backend_of(**inputs, nodes=nodes, **given)
    if not backend.NARROW:
        raise ArgumentError("x is on a GPU; fff_backward is for arrays on a CPU")
    arrays = {name: _array(name, value, backend) for name, value in inputs.items()}
    dtypes = {name: _dtype_of(name, array, backend) for name, array in arrays.items()}
    for name, dtype in dtypes.items():
        if dtype != dtypes["w_in"]:
            raise _mixed(name, arrays[name], dtypes["w_in"])
    x, w_in, w_out, logits, dy = arrays.values()
    try:
        spec = _fff_spec(tuple(w_in.shape), tuple(w_out.shape), None, dtypes["w_in"], activation, "left")
    except TypeError as error:
        raise _no_choice(error, activation, "left") from None
    check_tokens(x, spec.d_in)
    lead = tuple(x.shape[:-1])
    visited = (*lead, spec.trees, spec.depth + 1)
    for name, array, shape in (("logits", logits, visited), ("dy", dy, (*lead, spec.d_out))):
        if tuple(array.shape) != shape:
            raise ShapeError(f"{name} has shape {tuple(array.shape)}; it should be {shape}")
    nodes = as_numpy("nodes", nodes)
    if nodes.shape != visited:
        raise ShapeError(f"nodes has shape {nodes.shape}; it should be {visited}")
    path, _ = _path(nodes, x, spec, backend, "nodes")
    shapes = {"dx": x.shape, "dw_in": w_in.shape, "dbias": w_in.shape[:-1], "dw_out": w_out.shape}
    for name, array in given.items():
        _check_gradient(name, array, tuple(shapes[name]), spec.dtype, backend)
    if not any(one is not False for one in wanted.values()):
        raise ArgumentError("dx, dw_in, dbias and dw_out are all False; at least one should be wanted")
    if not isinstance(accumulate, bool | np.bool_):
        raise ArgumentError(f"accumulate is {accumulate!r}; it should be True or False")
    chosen = {name: bool(one) if isinstance(one, bool | np.bool_) else one for name, one in wanted.items()}
    return Gradients(*backend.backward(spec, x, w_in, w_out, path, logits, dy, chosen, bool(accumulate), threads))


def cmm_forward(
    x: Any, w_in: Any, bias: Any, tie: str, level: str, algorithm: str | None, threads: int | None, path: Any
) -> Any:
    """Check input weights and tokens, and follow the path."""
    backend, dtype = NUMPY, _plain(x, w_in, w_in, bias, None)
    if dtype is None:
        backend, dtype, (x, w_in, bias) = _taken(None, x=x, w_in=w_in, bias=bias)
    try:
        spec = _fff_spec(w_in.shape, None, None if bias is None else bias.shape, dtype, "identity", tie)
    except TypeError as error:
        raise _no_choice(error, "identity", tie) from None
    check_tokens(x, spec.d_in)
    if path is not None:
        path = _path(path, x, spec, backend)
    weights = backend.bind(spec, w_in, None, bias)
    return backend.forward(spec, weights, x, None, level, algorithm, threads, True, path)


def prepare(
    w_in: Any, w_out: Any, bias: Any, activation: str, tie: str, weights: Any, exact_path: Any
) -> tuple[Prepared, tuple[str, str], float | None, Shown]:
    """Check the weights of a layer, and prepare them for many calls.

    Returned are also the types of its rows, its exact path, and the weights for people to look at.
    """
    backend, dtype, (w_in, w_out, bias) = _taken(None, w_in=w_in, w_out=w_out, bias=bias)
    try:
        spec = _fff_spec(w_in.shape, w_out.shape, None if bias is None else bias.shape, dtype, activation, tie)
    except TypeError as error:
        raise _no_choice(error, activation, tie) from None
    rows = _rows_of(weights, dtype, backend)
    exact = _exact_of(exact_path, rows[0], dtype)
    prepared, shown = backend.prepare(spec, w_in, w_out, bias, rows, exact)
    keeper = keeper_of(backend)
    return (keeper, spec, prepared, np.dtype(dtype) if keeper is NUMPY else None), rows, exact, shown


def prepare_again(spec: Spec, rows: tuple[str, str], shown: Shown) -> tuple[Prepared, Shown]:
    """Prepare the weights of a layer from what it showed: of a copy, or of one that was pickled."""
    weights, views = pack_again(spec, shown, rows)
    return (NUMPY, spec, weights, np.dtype(spec.dtype)), views


def bound(prepared: Prepared) -> Any:
    """Return a prepared layer for ``_call.apply()``, which comes to apply() where its own way will not do."""
    backend, _, weights, dtype = prepared
    return _call.bind(prepared, dtype, *(located(weights) if backend is NUMPY else (0, 0)))


def apply(
    prepared: Prepared,
    x: Any,
    level: str,
    algorithm: str | None,
    threads: int | None,
    out: Any,
    return_path: bool,
    path: Any,
) -> Any:
    """Check tokens for a layer that was prepared, and apply it."""
    backend, spec, weights, dtype = prepared
    if type(x) is not _ndarray or x.dtype is not dtype or (out is not None and type(out) is not _ndarray):
        backend = backend_for(backend, x, out)
        x = _array("x", x, backend)
        if _dtype_of("x", x, backend) != spec.dtype:
            raise _mixed("x", x, spec.dtype)
    # check_tokens() and _check_out() without their calls, which would take a tenth of a microsecond each.
    shape = x.shape
    if not shape or shape[-1] != spec.d_in:
        raise _wrong_width(shape, spec.d_in)
    if out is not None and (
        type(out) is not _ndarray or out.dtype is not dtype or out.shape != (*shape[:-1], spec.d_out)
    ):
        _check_out(out, x, spec.d_out, backend)
    if path is not None:
        path = _path(path, x, spec, backend)
    return backend.forward(spec, weights, x, out, level, algorithm, threads, return_path, path)


_call.set_up(_ndarray, np.empty, "auto", environment, VARIABLES, plan, apply, LARGE)


def ff_forward(
    x: Any,
    w_in: Any,
    w_out: Any,
    bias: Any,
    activation: str,
    level: str,
    algorithm: str | None,
    threads: int | None,
    out: Any,
) -> Any:
    """Check a dense layer and its tokens, and apply it."""
    backend, dtype = NUMPY, _plain(x, w_in, w_out, bias, out)
    if dtype is None:
        backend, dtype, (x, w_in, w_out, bias) = _taken(out, x=x, w_in=w_in, w_out=w_out, bias=bias)
    try:
        spec = _dense_spec(w_in.shape, w_out.shape, None if bias is None else bias.shape, dtype, activation)
    except TypeError as error:
        raise _no_choice(error, activation, "left") from None
    check_tokens(x, spec.d_in)
    if out is not None:
        _check_out(out, x, spec.d_out, backend)
    return backend.dense(spec, x, w_in, w_out, bias, out, level, algorithm, threads)


def _rows_of(weights: Any, dtype: str, backend: Backend) -> tuple[str, str]:
    """Return the types of the rows of w_in and of w_out that were asked for, where that dtype may have them."""
    if weights is None:
        return dtype, dtype
    pair = tuple(weights) if isinstance(weights, tuple | list) else (weights, weights)
    names = ["float32", *NUMPY.NARROW]
    if len(pair) != 2 or not all(isinstance(one, str) and one in (dtype, *names) for one in pair):
        raise ArgumentError(
            f"weights is {weights!r}; it should be None or one of {listed(names)}, or a pair of them for the rows of "
            "w_in and of w_out"
        )
    if pair != (dtype, dtype):
        if not backend.NARROW:
            where = "which is for arrays on a CPU, and these are on a GPU"
            raise ArgumentError(f"weights is {weights!r}, {where}: there convert all of them, such as to bfloat16")
        if dtype != "float32":
            raise ArgumentError(f"weights is {weights!r}, which is for float32 layers, and this one is {dtype}")
    return pair


def _exact_of(exact_path: Any, rows: str, dtype: str) -> float | None:
    """Return None for no exact path, 0 for a certain one, or the standard deviations of a likely one."""
    if exact_path is None or exact_path is False or (isinstance(exact_path, np.bool_) and not exact_path):
        return None
    if exact_path is True or isinstance(exact_path, np.bool_):
        sigmas = 0.0
    else:
        try:
            sigmas = float(exact_path) if isinstance(exact_path, int | float | np.number) else -1.0
        except (TypeError, OverflowError):
            sigmas = -1.0
        if not 0 < sigmas < float("inf"):
            raise ArgumentError(
                f"exact_path is {exact_path!r}; it should be True, False, or a positive number of standard deviations"
            )
    if rows == dtype:
        raise ArgumentError(
            f"exact_path is {exact_path!r}, which is for rows of w_in that are narrower than its dtype, and they are "
            f"{rows}: weights should be one of {listed(NUMPY.NARROW)}"
        )
    return sigmas


# ---- a path that is given ------------------------------------------------------------------------------------------


def _path(path: Any, x: Any, spec: Spec, backend: Backend, name: str = "path") -> tuple[Any, bool]:
    """Return a path as libcmm wants it, a contiguous array of int32, and whether it has leaves alone.

    On a GPU the backend makes it contiguous.
    """
    if backend.NARROW:
        array = as_numpy(name, path)
    else:  # it is where the tokens are, and what its numbers are is found out there
        backend_of(x=x, path=path)
        array = _array(name, path, backend)
    lead = tuple(x.shape[:-1])
    nodes, leaves = (*lead, spec.trees, spec.depth + 1), (*lead, spec.trees)
    if tuple(array.shape) not in (nodes, leaves):
        raise ShapeError(
            f"{name} has shape {tuple(array.shape)}; it should be {nodes}, of nodes, or {leaves}, of leaves"
        )
    by_leaf = tuple(array.shape) == leaves
    if not backend.NARROW:
        if _name(array.dtype) != "int32":
            remedy = f"convert it with {_conversion(name, array, 'int32')}"
            raise DtypeError(f"{name} has dtype {array.dtype}; on a GPU it should be int32: {remedy}")
        return array, by_leaf
    if array.dtype == _I32 and array.flags.c_contiguous and array.flags.aligned:
        return array, by_leaf
    if array.dtype.kind not in "iu":
        raise DtypeError(f"{name} has dtype {array.dtype}; it should be of integers, such as int32")
    outside = (array < 0) | (array > np.iinfo(np.int32).max)
    if outside.any():
        flat = outside.reshape(-1, spec.trees, 1 if by_leaf else spec.depth + 1).any(-1)
        token, tree = (int(one) for one in np.argwhere(flat)[0])
        found = array.reshape(*flat.shape, -1)[token, tree].tolist()
        raise no_path(token, tree, found, spec.depth, name)
    return np.ascontiguousarray(array, _I32), by_leaf


# ---- arrays and their dtypes ---------------------------------------------------------------------------------------


def _plain(x: Any, w_in: Any, w_out: Any, bias: Any, out: Any) -> str | None:
    """Return the dtype of NumPy's own arrays where they have one, that libcmm has; None where more is to be asked."""
    if (
        type(x) is type(w_in) is type(w_out) is _ndarray
        and (bias is None or type(bias) is _ndarray)
        and (out is None or type(out) is _ndarray)
    ):
        dtype = x.dtype
        if w_in.dtype is dtype and w_out.dtype is dtype and (bias is None or bias.dtype is dtype):
            return "float32" if dtype is _F32 else "float64" if dtype is _F64 else None
    return None


def _taken(out: Any, **inputs: Any) -> tuple[Backend, str, list[Any]]:
    """Return the backend for any inputs, of which bias may be None; their dtype; and themselves as arrays."""
    backend = backend_of(**inputs, out=out)
    arrays = {
        name: None if name == "bias" and value is None else _array(name, value, backend)
        for name, value in inputs.items()
    }
    dtypes = {name: _dtype_of(name, array, backend) for name, array in arrays.items() if array is not None}
    for name in sorted(dtypes, key="x".__eq__):  # weights among themselves first
        if dtypes[name] != dtypes["w_in"]:
            raise _mixed(name, arrays[name], dtypes["w_in"])
    return backend, dtypes["w_in"], list(arrays.values())


def _array(name: str, value: Any, backend: Backend) -> Any:
    """Return an array of another library as it is, and anything else as NumPy's own kind of array."""
    if type(value) is _ndarray:
        return value
    if backend is not NUMPY:
        if isinstance(getattr(value, "shape", None), tuple) and hasattr(value, "dtype"):
            return value
        return backend.view(name, value)  # it has the protocol alone
    if isinstance(value, np.ma.MaskedArray):
        raise DtypeError(f"{name} is a masked array; it should be a plain one: pass {name}.filled(...)")
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ShapeError(f"{name} is a {type(value).__name__} that is no array: {error}") from error
    except MemoryError as error:
        raise ArrayMemoryError(f"there is no memory for {name} as an array") from error
    except Exception as error:
        raise DtypeError(f"{name} is a {type(value).__name__}; it should be a numpy.ndarray: {error}") from error


def _dtype_of(name: str, array: Any, backend: Backend) -> str:
    """Return the name of an array's dtype, such as "float32", which is one that the backend computes with."""
    dtype = _name(array.dtype)
    if dtype in backend.DTYPES:
        return dtype
    should = " or ".join(backend.DTYPES) if len(backend.DTYPES) == 2 else f"one of {', '.join(backend.DTYPES)}"
    raise DtypeError(f"{name} has dtype {array.dtype}; it should be {should}: {_remedy(name, array)}")


def _name(dtype: Any) -> str:
    if isinstance(dtype, np.dtype):
        return dtype.name if dtype.isnative else ""
    word = re.search(r"(\w+)\W*$", str(dtype))  # torch.float32, <dtype: 'float32'>, ...
    return "" if word is None else word[1]


def _remedy(name: str, array: Any) -> str:
    dtype = array.dtype
    if isinstance(dtype, np.dtype):
        if not dtype.isnative:
            return f"swap its bytes with {name}.astype({name}.dtype.newbyteorder('='))"
        if dtype.kind == "c":
            return f"take {name}.real or {name}.imag"
        if dtype.kind not in "fiub" and dtype.name not in DTYPES:
            return "make it of real numbers"
        if dtype.kind == "f" and dtype.itemsize > _F64.itemsize:
            return f"convert it with {_conversion(name, array, 'float64')}"
    return f"convert it with {_conversion(name, array, 'float32')}"


def _conversion(name: str, array: Any, dtype: str) -> str:
    library = library_of(array)
    if library == "torch":
        return f"{name}.to(torch.{dtype})"
    return f"{name}.astype({f'numpy.{dtype}' if library == 'numpy' else repr(dtype)})"


def _mixed(name: str, array: Any, dtype: str) -> DtypeError:
    return DtypeError(
        f"{name} has dtype {array.dtype} and w_in has dtype {dtype}; they should be the same: "
        f"convert one, say with {_conversion(name, array, dtype)}"
    )


# ---- tokens and outputs --------------------------------------------------------------------------------------------


def check_tokens(x: Any, d_in: int) -> None:
    """Check the width of tokens."""
    shape = x.shape
    if not shape or shape[-1] != d_in:
        raise _wrong_width(shape, d_in)


def _wrong_width(shape: Any, d_in: int) -> ShapeError:
    was = f"shape {tuple(shape)}" if shape else "no dimensions"
    return ShapeError(f"x has {was}; it should have shape (..., {d_in}), the width of w_in")


def _check_out(out: Any, x: Any, d_out: int, backend: Backend) -> None:
    """Check an output, whose library is that of the tokens."""
    shape = (*x.shape[:-1], d_out)
    if type(out) is _ndarray and out.dtype is x.dtype and out.shape == shape:
        return
    dtype = _name(x.dtype)
    if backend is NUMPY and (not isinstance(out, _ndarray) or isinstance(out, np.ma.MaskedArray)):
        raise DtypeError(f"out is a {type(out).__name__}; it should be a numpy.ndarray of dtype {dtype}")
    array = _array("out", out, backend)
    if _name(array.dtype) != dtype:
        raise DtypeError(f"out has dtype {array.dtype}; it should be {dtype}, the dtype of x")
    if tuple(array.shape) != shape:
        raise ShapeError(f"out has shape {tuple(array.shape)}; it should be {shape}")


def _check_gradient(name: str, array: Any, shape: _Shape, dtype: str, backend: Backend) -> None:
    """Check an array that a gradient is to be put into, whose library is that of the inputs."""
    if backend is NUMPY and (not isinstance(array, _ndarray) or isinstance(array, np.ma.MaskedArray)):
        raise DtypeError(f"{name} is a {type(array).__name__}; it should be True, False or a numpy.ndarray")
    if _name(array.dtype) != dtype:
        raise DtypeError(f"{name} has dtype {array.dtype}; it should be {dtype}, the dtype of x")
    if tuple(array.shape) != shape:
        raise ShapeError(f"{name} has shape {tuple(array.shape)}; it should be {shape}")


# ---- the shapes of a layer -----------------------------------------------------------------------------------------


@lru_cache(1024)
def _fff_spec(w_in: _Shape, w_out: _Shape | None, bias: _Shape | None, dtype: str, activation: str, tie: str) -> Spec:
    """Return what a layer of these shapes is, or say what is wrong with them; without w_out for the path alone."""
    trees, nodes, d_in = _trees("w_in", w_in)
    depth = _DEPTHS.get(nodes)
    if depth is None:
        fewer = max((n for n in _DEPTHS if n < nodes), default=1)
        raise ShapeError(
            f"w_in has N = {nodes} nodes in a tree; N should be 2^(D+1) - 1 for a depth D of 0 to "
            f"{lib.CMM_MAX_DEPTH}, such as {fewer} (D = {_DEPTHS[fewer]}) or {2 * fewer + 1}"
        )
    d_out = 0
    if w_out is not None:
        k, n, d_out = _trees("w_out", w_out)
        if n != nodes or k != trees:
            raise ShapeError(
                f"w_out has shape {tuple(w_out)}; it should be ({trees}, {nodes}, d_out), with K and N of w_in"
            )
    if bias is not None and bias != (trees, nodes) and (trees != 1 or bias != (nodes,)):
        expected = f"({trees}, {nodes})" if trees > 1 else f"({nodes},) or (1, {nodes})"
        raise ShapeError(f"bias has shape {tuple(bias)}; it should be {expected}, with K and N of w_in")
    choices = check_choice("activation", activation, ACTIVATIONS), check_choice("tie", tie, TIES)
    codes = (DTYPES[dtype], *choices, depth, trees, d_in, d_out)
    return Spec(trees, depth, d_in, d_out, dtype, activation, tie, codes)


def _trees(name: str, shape: _Shape) -> tuple[int, int, int]:
    """Return K, N and the width of weights with one row per node."""
    trees, nodes, width = shape if len(shape) == 3 else (1, *shape) if len(shape) == 2 else (0, 0, 0)
    if trees < 1 or width < 1:
        raise ShapeError(
            f"{name} has shape {tuple(shape)}; it should be (K, N, width) or (N, width), K and width at least 1"
        )
    return trees, nodes, width


@lru_cache(1024)
def _dense_spec(w_in: _Shape, w_out: _Shape, bias: _Shape | None, dtype: str, activation: str) -> DenseSpec:
    """Return what a dense layer of these shapes is, or say what is wrong with them."""
    if len(w_in) != 2 or w_in[1] < 1:
        raise ShapeError(f"w_in has shape {tuple(w_in)}; it should be (N, d_in), d_in at least 1")
    neurons, d_in = w_in
    if len(w_out) != 2 or w_out[0] != neurons or w_out[1] < 1:
        raise ShapeError(f"w_out has shape {tuple(w_out)}; it should be ({neurons}, d_out), with N of w_in")
    if bias is not None and bias != (neurons,):
        raise ShapeError(f"bias has shape {tuple(bias)}; it should be ({neurons},), with N of w_in")
    d_out = w_out[1]
    codes = (DTYPES[dtype], check_choice("activation", activation, ACTIVATIONS), neurons, d_in, d_out)
    return DenseSpec(neurons, d_in, d_out, dtype, activation, codes)


def check_choice(argument: str, value: str, codes: dict[str, int]) -> int:
    """Return libcmm's number for a named choice: an activation or a tie rule."""
    try:
        return codes[value]
    except (KeyError, TypeError):  # TypeError: value is not hashable
        raise _wrong_choice(argument, value, codes) from None


def _wrong_choice(argument: str, value: object, codes: dict[str, int]) -> ArgumentError:
    return ArgumentError(f"{argument} is {value!r}; it should be one of {listed(codes)}")


def _no_choice(error: TypeError, activation: Any, tie: Any) -> Exception:
    """Return the error for a choice that is not even hashable, as the caches of this file want it."""
    if not isinstance(activation, Hashable):
        return _wrong_choice("activation", activation, ACTIVATIONS)
    return error if isinstance(tie, Hashable) else _wrong_choice("tie", tie, TIES)
