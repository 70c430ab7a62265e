"""The operations for arrays of other libraries: on a CPU as NumPy views, on a GPU with libcmm_cuda.

The functions here take the arguments of their namesakes in fff.py, which hand over what is not NumPy's.
"""

import math
from functools import partial
from typing import Any

from cmm import fff
from cmm._call import ACTIVATIONS, TIES, code
from cmm._cuda import CODES, choose, run_ff, run_fff
from cmm._foreign import Library, Place, as_numpy, common_place, from_numpy, library_at, on_cpu
from cmm.errors import ArgumentError, DtypeError, ShapeError


def fff_forward(
    x: Any,
    w_in: Any,
    w_out: Any,
    bias: Any,
    activation: str,
    tie: str,
    level: str,
    threads: int | None,
    out: Any,
    return_path: bool,
) -> Any:
    """fff_forward for arrays of another library."""
    place = common_place(x=x, w_in=w_in, w_out=w_out, bias=bias, out=out)
    if on_cpu(place):
        arrays = _views(x=x, w_in=w_in, w_out=w_out, bias=bias)
        how: dict[str, Any] = {"activation": activation, "tie": tie, "level": level, "threads": threads}
        how["return_path"] = return_path
        result = fff.fff_forward(*arrays, out=_numpy_out(out, place), **how)
        return _wrap(result, x, place, out)
    level = choose(level)
    library = library_at(place)
    with library.active():
        (w_in, w_out, bias), shape = _weights(library, w_in, w_out, bias)
        return _forward(library, place, level, (activation, tie), shape, x, w_in, bias, w_out, out, return_path)


def cmm(x: Any, w_in: Any, bias: Any, tie: str, level: str, threads: int | None) -> Any:
    """Cmm for arrays of another library."""
    place = common_place(x=x, w_in=w_in, bias=bias)
    if on_cpu(place):
        result = fff.cmm(*_views(x=x, w_in=w_in, bias=bias), tie=tie, level=level, threads=threads)
        return _wrap(result, x, place, None)
    level = choose(level)
    library = library_at(place)
    with library.active():
        (w_in, _, bias), shape = _weights(library, w_in, None, bias)
        return _forward(library, place, level, ("gelu", tie), shape, x, w_in, bias, None, None, True)


def ff_forward(
    x: Any, w_in: Any, w_out: Any, bias: Any, activation: str, level: str, threads: int | None, out: Any
) -> Any:
    """ff_forward for arrays of another library."""
    place = common_place(x=x, w_in=w_in, w_out=w_out, bias=bias, out=out)
    if on_cpu(place):
        arrays = _views(x=x, w_in=w_in, w_out=w_out, bias=bias)
        result = fff.ff_forward(
            *arrays, activation=activation, level=level, threads=threads, out=_numpy_out(out, place)
        )
        return _wrap(result, x, place, out)
    level = choose(level)
    code("activation", activation, ACTIVATIONS)
    library = library_at(place)
    with library.active():
        x, w_in, w_out, bias = (
            _contiguous(library, name, a) for name, a in (("x", x), ("w_in", w_in), ("w_out", w_out), ("bias", bias))
        )
        dtype = _one_dtype(library, x=x, w_in=w_in, w_out=w_out, bias=bias)
        _, _, d_out = fff.check_dense(x, w_in, w_out, bias)
        inputs = {"x": x, "w_in": w_in, "w_out": w_out, "bias": bias}
        y = _result(library, place, out, (*x.shape[:-1], d_out), dtype, inputs)
        run_ff(library, place, level, activation, _count(x), x, w_in, bias, w_out, y)
        library.hold(x, w_in, bias, w_out)
        return library.finish(y) if out is None else out


def weights_on_cpu(w_in: Any, w_out: Any, bias: Any) -> list[Any] | None:
    """Return NumPy views of an FFF's weights, or None where they are on a GPU."""
    place = common_place(w_in=w_in, w_out=w_out, bias=bias)
    return _views(w_in=w_in, w_out=w_out, bias=bias) if on_cpu(place) else None


def call_packed(layer: "fff.FFF", x: Any, level: str, threads: int | None, out: Any, return_path: bool) -> Any:
    """Apply an FFF whose weights are packed, on the CPU, to tokens of another library."""
    place = common_place(x=x, out=out)
    if not on_cpu(place):
        raise ArgumentError(f"x is {place} and the layer's weights are on the CPU; they should be in one place")
    how: dict[str, Any] = {"level": level, "threads": threads, "return_path": return_path}
    return _wrap(layer(as_numpy("x", x), out=_numpy_out(out, place), **how), x, place, out)


class Layer:
    """The weights of an FFF on a GPU, checked once. They stay where they are, so later changes reach the layer."""

    def __init__(self, w_in: Any, w_out: Any, bias: Any, activation: str, tie: str) -> None:
        self.place = common_place(w_in=w_in, w_out=w_out, bias=bias)
        self.how = activation, tie
        code("activation", activation, ACTIVATIONS)
        code("tie", tie, TIES)
        self.library = library_at(self.place)
        with self.library.active():
            (self.w_in, self.w_out, self.bias), self.shape = _weights(self.library, w_in, w_out, bias)
        self.dtype = self.library.dtype(self.w_in)

    def __call__(self, x: Any, level: str, out: Any, return_path: bool) -> Any:
        """Apply the layer to tokens in the same place."""
        place = common_place(x=x, out=out)
        if place != self.place:
            raise ArgumentError(f"x is {place} and the layer's weights are {self.place}; they should be in one place")
        level = choose(level)
        with self.library.active():
            how = (self.library, place, level, self.how, self.shape)
            return _forward(*how, x, self.w_in, self.bias, self.w_out, out, return_path)


# ---- on a CPU ------------------------------------------------------------------------------------------------------


def _views(**arrays: Any) -> list[Any]:
    return [as_numpy(name, array) for name, array in arrays.items()]


def _numpy_out(out: Any, place: Place) -> Any:
    if out is not None and place.library == "jax":
        raise ArgumentError("out is a JAX array, which cannot be written to; leave it out")
    return as_numpy("out", out)


def _wrap(result: Any, like: Any, place: Place, out: Any) -> Any:
    """Give a NumPy result, or a tuple of them, to the library of the inputs."""
    if isinstance(result, tuple):
        y, *rest = result
        return (out if out is not None else from_numpy(y, like, place), *(from_numpy(a, like, place) for a in rest))
    return out if out is not None else from_numpy(result, like, place)


# ---- on a GPU ------------------------------------------------------------------------------------------------------


def _contiguous(library: Library, name: str, array: Any) -> Any:
    return None if array is None else library.contiguous(name, array)


def _one_dtype(library: Library, **arrays: Any) -> str:
    dtypes = {name: library.dtype(array) for name, array in arrays.items() if array is not None}
    (first_name, first), *others = dtypes.items()
    for name, dtype in dtypes.items():
        if dtype not in CODES:
            raise DtypeError(f"{name} has dtype {dtype}; it should be one of {', '.join(CODES)}")
    for name, dtype in others:
        if dtype != first:
            raise DtypeError(f"{name} has dtype {dtype} and {first_name} has dtype {first}; they should be the same")
    return first


def _weights(library: Library, w_in: Any, w_out: Any, bias: Any) -> tuple[tuple[Any, Any, Any], tuple[int, ...]]:
    """Return the weights, contiguous, and trees, depth, d_in, d_out."""
    arrays = [_contiguous(library, name, a) for name, a in (("w_in", w_in), ("w_out", w_out), ("bias", bias))]
    _one_dtype(library, w_in=arrays[0], w_out=arrays[1], bias=arrays[2])
    return (arrays[0], arrays[1], arrays[2]), fff.check_shapes(*arrays)


def _count(x: Any) -> int:
    return math.prod(map(int, x.shape[:-1]))


def _result(
    library: Library, place: Place, out: Any, shape: tuple[int, ...], dtype: str, inputs: dict[str, Any]
) -> Any:
    """Return where to write: out, which should be memory of its own at every level, or something new."""
    if out is None:
        return library.empty(shape, dtype)
    if place.library not in ("cupy", "torch"):
        raise ArgumentError(f"out is {place}, which cannot be written to; leave it out")
    if library.dtype(out) != dtype:
        raise DtypeError(f"out has dtype {library.dtype(out)}; it should be {dtype}, the dtype of x")
    if tuple(out.shape) != shape:
        raise ShapeError(f"out has shape {tuple(out.shape)}; it should be {shape}")
    if library.contiguous("out", out) is not out:
        raise ArgumentError("out is not contiguous; on a GPU it should be")
    first = library.pointer(out)
    for name, array in inputs.items():
        if array is not None:
            start = library.pointer(array)
            if first < start + array.nbytes and start < first + out.nbytes:
                raise ArgumentError(f"out overlaps {name}; on a GPU it should be memory of its own")
    return out


def _forward(
    library: Library,
    place: Place,
    level: str,
    how: tuple[str, str],
    shape: tuple[int, ...],
    x: Any,
    w_in: Any,
    bias: Any,
    w_out: Any,
    out: Any,
    return_path: bool,
) -> Any:
    trees, depth, d_in, d_out = shape
    x = _contiguous(library, "x", x)
    dtype = _one_dtype(library, w_in=w_in, x=x)
    if not x.shape or x.shape[-1] != d_in:
        raise fff.wrong_x(x, d_in)
    lead = tuple(x.shape[:-1])
    inputs = {"x": x, "w_in": w_in, "w_out": w_out, "bias": bias}
    y = None if w_out is None else _result(library, place, out, (*lead, d_out), dtype, inputs)
    nodes = logits = None
    if return_path:
        nodes = library.empty((*lead, trees, depth + 1), "int32")
        logits = library.empty((*lead, trees, depth + 1), "float64" if dtype == "float64" else "float32")
    run = partial(run_fff, library, place, level, *how, (trees, depth, d_in, d_out), _count(x))
    run(x, w_in, bias, w_out, y, nodes, logits)
    library.hold(x, w_in, bias, w_out)
    finished = [library.finish(a) for a in (nodes, logits)] if return_path else []
    if y is None:
        return tuple(finished)
    result = library.finish(y) if out is None else out
    return (result, *finished) if return_path else result
