"""Arrays on a GPU: the levels ``cuda-naive`` and ``cuda`` on libcmm_cuda, and ``cuda-bmm`` by ``cupy_bmm``."""

import math
from typing import Any

from cmm._backend import DenseSpec, Place, Shown, Spec, cupy_bmm
from cmm._backend.device_arrays import Library, library_at
from cmm._backend.numpy import no_path
from cmm._dispatch import CUDA_ALGORITHMS, CUDA_LEVELS, choose_cuda, why_not
from cmm._native import DTYPES, NULL, failure, ffi, lib
from cmm.errors import ArgumentError

_LEVEL_TEXTS: dict[str, Any] = {name: ffi.new("char[]", name.encode()) for name in CUDA_LEVELS}
_ALGORITHM_TEXTS: dict[str, Any] = {name: ffi.new("char[]", name.encode()) for name in CUDA_ALGORITHMS}


class Backend:
    """A library's arrays on one GPU."""

    DTYPES: tuple[str, ...] = tuple(DTYPES)
    NARROW: tuple[str, ...] = ()

    def __init__(self, place: Place) -> None:
        self.place = place

    def view(self, name: str, array: Any) -> Any:
        """Return CuPy's view of an array of DLPack's protocol alone."""
        library = library_at(self.place)
        with library.active():
            return library.contiguous(name, array)

    def bind(self, spec: Spec, w_in: Any, w_out: Any, bias: Any) -> Any:
        """Return the weights of a layer where they are."""
        return w_in, w_out, bias

    def prepare(
        self, spec: Spec, w_in: Any, w_out: Any, bias: Any, rows: tuple[str, str], exact: float | None
    ) -> Any:
        """Return the weights, contiguous. They stay where they are, so later changes reach the layer."""
        library = library_at(self.place)
        with library.active():
            return _contiguous(library, w_in=w_in, w_out=w_out, bias=bias), Shown(w_in, w_out, bias)

    def forward(
        self,
        spec: Spec,
        weights: Any,
        x: Any,
        out: Any,
        level: str,
        algorithm: str | None,
        threads: int | None,
        return_path: bool,
        path: Any = None,
    ) -> Any:
        """Queue a layer on the current stream; threads mean nothing here. With a path, wait until it is checked."""
        level = choose_cuda(level, algorithm)
        library = library_at(self.place)
        with library.active():
            w_in, w_out, bias = weights
            x, w_in, w_out, bias = inputs = _contiguous(library, x=x, w_in=w_in, w_out=w_out, bias=bias)
            lead, batch = _tokens(x)
            if path is not None:
                path = library.contiguous("path", path[0]), path[1]
                inputs += path[:1]
            y = self.target(library, out, (*lead, spec.d_out), spec.dtype, inputs) if spec.d_out else None
            nodes = logits = None
            if return_path:
                visited = (*lead, spec.trees, spec.depth + 1)
                nodes = library.empty(visited, "int32")
                logits = library.empty(visited, "float64" if spec.dtype == "float64" else "float32")
            arrays = (x, w_in, bias, w_out, y, nodes, logits)
            refused = run_fff(library, self.place, level, algorithm, spec, batch, *arrays, path)
            library.hold(*inputs)
            if refused >= 0:
                token, tree = divmod(refused, spec.trees)
                found = library.host(path[0]).reshape(batch, spec.trees, -1)[token, tree].tolist()
                raise no_path(token, tree, found, spec.depth)
            results = [] if y is None else [library.finish(y) if out is None else out]
            if return_path:
                results += [library.finish(nodes), library.finish(logits)]
            return tuple(results) if return_path else results[0]

    def dense(
        self,
        spec: DenseSpec,
        x: Any,
        w_in: Any,
        w_out: Any,
        bias: Any,
        out: Any,
        level: str,
        algorithm: str | None,
        threads: int | None,
    ) -> Any:
        """Queue a dense layer on the current stream."""
        level = choose_cuda(level, algorithm)
        library = library_at(self.place)
        with library.active():
            x, w_in, w_out, bias = inputs = _contiguous(library, x=x, w_in=w_in, w_out=w_out, bias=bias)
            lead, batch = _tokens(x)
            y = self.target(library, out, (*lead, spec.d_out), spec.dtype, inputs)
            run_ff(library, self.place, level, algorithm, spec, batch, x, w_in, bias, w_out, y)
            library.hold(*inputs)
            return library.finish(y) if out is None else out

    def backward(
        self,
        spec: Spec,
        x: Any,
        w_in: Any,
        w_out: Any,
        nodes: Any,
        logits: Any,
        dy: Any,
        wanted: dict[str, Any],
        accumulate: bool,
        threads: int | None,
    ) -> tuple[Any, ...]:
        """Refuse."""
        raise ArgumentError("x is on a GPU; fff_backward is for arrays on a CPU")

    def target(self, library: Library, out: Any, shape: tuple[int, ...], dtype: str, inputs: tuple[Any, ...]) -> Any:
        """Return where to write: out, which should be memory of its own at every level, or something new."""
        if out is None:
            return library.empty(shape, dtype)
        if self.place.library not in ("cupy", "torch"):
            raise ArgumentError(f"out is {self.place}, which cannot be written to; leave it out")
        if library.contiguous("out", out) is not out:
            raise ArgumentError("out is not contiguous; on a GPU it should be")
        first = library.pointer(out)
        for name, array in zip(("x", "w_in", "w_out", "bias", "path"), inputs, strict=False):
            if array is not None:
                start = library.pointer(array)
                if first < start + array.nbytes and start < first + out.nbytes:
                    raise ArgumentError(f"out overlaps {name}; on a GPU it should be memory of its own")
        return out


def _contiguous(library: Library, **arrays: Any) -> tuple[Any, ...]:
    return tuple(None if array is None else library.contiguous(name, array) for name, array in arrays.items())


def _tokens(x: Any) -> tuple[tuple[int, ...], int]:
    """Return the leading dimensions of tokens, and how many tokens that is."""
    lead = tuple(map(int, x.shape[:-1]))
    return lead, math.prod(lead)


def run_fff(
    library: Library,
    place: Place,
    level: str,
    algorithm: str | None,
    spec: Spec,
    batch: int,
    x: Any,
    w_in: Any,
    bias: Any,
    w_out: Any,
    y: Any,
    nodes: Any,
    logits: Any,
    path: tuple[Any, bool] | None,
) -> int:
    """Run a layer, or CMM alone where y is None, on contiguous arrays.

    Returned is -1, or where a path is given token * trees + tree of the first that is none; then nothing was written.
    """
    if level == "cuda-bmm":
        return cupy_bmm.fff(place, spec, batch, x, w_in, bias, w_out, y, nodes, logits, path)
    given, by_leaf = (None, False) if path is None else path
    taken = (None, given) if by_leaf else (given, None)
    arrays = (w_in, bias, w_out, x, y, nodes, logits, *taken)
    at = [0 if array is None else library.pointer(array) for array in arrays]
    rest = (*at[3:], y is not None)
    memory = _run(lib.cmm_py_cuda_fff, (*spec.codes, *at[:3]), level, algorithm, batch, rest, library)
    return -1 if path is None or memory is None else int(library.host(memory[:8]).view("int64")[0])


def run_ff(
    library: Library,
    place: Place,
    level: str,
    algorithm: str | None,
    spec: DenseSpec,
    batch: int,
    x: Any,
    w_in: Any,
    bias: Any,
    w_out: Any,
    y: Any,
) -> None:
    """Run a dense layer on contiguous arrays. Level cuda without an algorithm is cuBLAS, where CuPy is here."""
    cublas = level == "cuda" and algorithm is None and spec.dtype != "bfloat16" and not why_not("cuda-bmm")
    if level == "cuda-bmm" or cublas:
        cupy_bmm.dense(place, level == "cuda-bmm", spec, x, w_in, bias, w_out, y)
        return
    at = [0 if array is None else library.pointer(array) for array in (w_in, bias, w_out, x, y)]
    _run(lib.cmm_py_cuda_ff, (*spec.codes, *at[:3]), level, algorithm, batch, tuple(at[3:]), library)


def _run(
    function: Any,
    layer: tuple[Any, ...],
    level: str,
    algorithm: str | None,
    batch: int,
    arrays: tuple[Any, ...],
    library: Library,
) -> Any:
    """Ask how much workspace a call needs, and make it. It is returned, None where none is needed."""
    needed = ffi.new("int64_t *")
    run = (_LEVEL_TEXTS[level], NULL if algorithm is None else _ALGORITHM_TEXTS[algorithm], library.stream())
    status = function(*layer, *run, 0, 0, batch, *arrays, needed)
    memory = None
    if not status:
        memory = library.empty((needed[0],), "uint8") if needed[0] else None
        start = 0 if memory is None else library.pointer(memory)
        status = function(*layer, *run, start, needed[0], batch, *arrays, NULL)
    if status == lib.CMM_ERROR_METHOD:
        raise ArgumentError(f"algorithm is {algorithm!r}, which cannot do this layer; it should be None or 'generic'")
    if status:
        raise failure(status)
    return memory
