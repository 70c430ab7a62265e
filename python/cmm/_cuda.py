"""The binding to libcmm_cuda, and the levels on a GPU: ``cuda-naive``, ``cuda-bmm``, ``cuda``.

libcmm_cuda is loaded when it is first asked for: the one that lies beside libcmm, or the file that the environment
variable ``CMM_CUDA_LIBRARY`` names. ``cuda-bmm`` is CuPy's alone.
"""

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from cmm import _libcmm
from cmm._call import ACTIVATIONS, NULL, TIES, code, failure, ffi, is_set, lib, listed, text, variable
from cmm._foreign import Library, Place, import_cupy
from cmm.errors import DtypeError, LevelError, UnusableError

LEVELS = ("cuda-naive", "cuda-bmm", "cuda")
CODES = {"float32": lib.CMM_F32, "float64": lib.CMM_F64, "bfloat16": lib.CMM_BF16, "float16": lib.CMM_F16}
_LEVEL_TEXTS = {name: ffi.new("char[]", name.encode()) for name in LEVELS}

_OWN_LIBRARY = Path(_libcmm.__file__).parent / "lib" / "libcmm_cuda.so"

# Of cuda-bmm; measured on an H200.
_SHARED_LEVELS = 8
_GATHERED_BYTES = 256 << 20
_TOKENS_AT_ONCE = 16384  # of a dense layer


def built() -> bool:
    """Return whether this package was built with a libcmm_cuda of its own."""
    return _OWN_LIBRARY.exists()


@cache
def _load() -> tuple[int, str]:
    """Load libcmm_cuda; return its status and, where it cannot be loaded, why."""
    chosen = variable(b"CMM_CUDA_LIBRARY")
    file = Path(chosen) if chosen else _OWN_LIBRARY
    if not chosen and not built():
        return lib.CMM_ERROR_CUDA_ABSENT, "it was not built; -C cmake.define.CMM_CUDA=ON builds it"
    why = ffi.new("char[512]")
    return lib.cmm_py_cuda_load(str(file).encode(), why, 512), text(why)


def why_not(level: str) -> str:
    """Return why a level cannot be used here, "" where it can."""
    if level == "cuda-bmm":
        try:
            import_cupy("the level")
        except UnusableError as error:
            return str(error)
        return ""
    status, why = _load()
    if status == lib.CMM_ERROR_CUDA_ABSENT:
        return f"libcmm_cuda is not here: {why}"
    return text(lib.cmm_status_message(status)) if status else ""


def choose(level: str) -> str:
    """Return the level for arrays on a GPU, once it is known to work.

    Raises
    ------
    LevelError, UnusableError
    """
    if level == "auto":
        level = variable(b"CMM_LEVEL") or "auto" if is_set(b"CMM_LEVEL") else "auto"
        if level not in LEVELS:  # it names a level for arrays on a CPU
            level = "cuda"
    if level not in LEVELS:
        raise LevelError(f"level is {level!r}; for arrays on a GPU it should be one of {listed(('auto', *LEVELS))}")
    why = why_not(level)
    if why:
        raise UnusableError(f"level is {level!r}, which cannot be used here: {why}")
    return level


def _run(
    function: Any, layer: tuple[Any, ...], level: str, batch: int, arrays: tuple[Any, ...], library: Library
) -> None:
    """Ask how much workspace a call needs, and make it."""
    needed = ffi.new("int64_t *")
    run = (_LEVEL_TEXTS[level], NULL, library.stream())
    status = function(*layer, *run, 0, 0, batch, *arrays, needed)
    if not status:
        memory = library.empty((needed[0],), "uint8") if needed[0] else None
        start = 0 if memory is None else library.pointer(memory)
        status = function(*layer, *run, start, needed[0], batch, *arrays, NULL)
    if status:
        raise failure(status)


def run_fff(
    library: Library,
    place: Place,
    level: str,
    activation: str,
    tie: str,
    shape: tuple[int, int, int, int],
    batch: int,
    x: Any,
    w_in: Any,
    bias: Any,
    w_out: Any,
    y: Any,
    nodes: Any,
    logits: Any,
) -> None:
    """Run a layer, or CMM alone where y is None, on checked, contiguous arrays. shape: trees, depth, d_in, d_out."""
    c_activation, c_tie = code("activation", activation, ACTIVATIONS), code("tie", tie, TIES)
    if level == "cuda-bmm":
        _bmm_fff(place, activation, tie, shape, batch, x, w_in, bias, w_out, y, nodes, logits)
        return
    trees, depth, d_in, d_out = shape
    at = [0 if array is None else library.pointer(array) for array in (w_in, bias, w_out, x, y, nodes, logits)]
    layer = (CODES[library.dtype(x)], c_activation, c_tie, depth, trees, d_in, d_out, *at[:3])
    _run(lib.cmm_py_cuda_fff, layer, level, batch, (*at[3:], y is not None), library)


def run_ff(
    library: Library,
    place: Place,
    level: str,
    activation: str,
    batch: int,
    x: Any,
    w_in: Any,
    bias: Any,
    w_out: Any,
    y: Any,
) -> None:
    """Run a dense layer on checked, contiguous arrays. Level cuda is cuBLAS through CuPy, where that is here."""
    c_activation = code("activation", activation, ACTIVATIONS)
    dtype = library.dtype(x)
    if level == "cuda-bmm" or (level == "cuda" and dtype != "bfloat16" and not why_not("cuda-bmm")):
        _products_ff(place, level == "cuda-bmm", activation, x, w_in, bias, w_out, y)
        return
    at = [0 if array is None else library.pointer(array) for array in (w_in, bias, w_out, x, y)]
    layer = (CODES[dtype], c_activation, w_in.shape[0], w_in.shape[1], w_out.shape[1], *at[:3])
    _run(lib.cmm_py_cuda_ff, layer, level, batch, tuple(at[3:]), library)


# ---- cuda-bmm: gathers and batched products, as in the paper's simulation ------------------------------------------

_FORMULAS = {  # evaluated in double and rounded once
    "gelu": "a = v * normcdf(v)",
    "gelu_tanh": "a = v / (1 + exp(-2 * 0.7978845608028654 * (v + 0.044715 * v * v * v)))",
    "relu": "a = v < 0 ? 0.0 : v",
    "silu": "a = v / (1 + exp(-v))",
    "identity": "a = v",
}


@cache
def _activate(activation: str) -> Any:
    cupy = import_cupy("the level")
    name = f"cmm_{activation}"
    return cupy.ElementwiseKernel("T z", "T out", f"double v = z, a; {_FORMULAS[activation]}; out = (T)a;", name)


@cache
def _bmm_kernels() -> tuple[Any, Any]:
    """Return the walk of the top levels, given their logits, and a step from one level to the next."""
    cupy = import_cupy("the level")
    inputs, outputs = "int32 at, int32 levels, bool right", "int32 node, raw int32 visited, raw T logits"
    keep = (
        "visited[i * levels + l] = node; logits[i * levels + l] = z;node = 2 * node + 1 + (right ? z >= 0 : z > 0);"
    )
    walk = f"node = at; for (int l = 0; l < top; l++) {{ T z = scores[i * ((1 << top) - 1) + node]; {keep} }}"
    return (
        cupy.ElementwiseKernel(f"raw T scores, int32 top, {inputs}", outputs, walk, "cmm_bmm_walk"),
        cupy.ElementwiseKernel(f"T z, int32 l, {inputs}", outputs, f"node = at; {keep}", "cmm_bmm_step"),
    )


# CuPy moves an element at a time, so rows are seen as elements of 16 bytes where they fit.


def _of_16_bytes(*matrices: Any) -> bool:
    return all(m.shape[1] * m.itemsize % 16 == 0 and m.data.ptr % 16 == 0 for m in matrices)


@cache
def _dot(real: str, large: bool) -> Any:
    """Return products of a row with a token each, which cuBLAS is slow at."""
    count = 16 // np.dtype(real).itemsize if large else 1
    return import_cupy("the level").ReductionKernel(
        "T a, T b",
        f"{real} y",
        f"cmm_dot((const {real} *)&a, (const {real} *)&b)".replace("float32", "float").replace("float64", "double"),
        "a + b",
        "y = a",
        "0",
        f"cmm_bmm_dot_{real}_{count}",
        reduce_type=real.replace("float32", "float").replace("float64", "double"),
        preamble="template <typename R> __device__ R cmm_dot(const R *a, const R *b) {"
        f"R s = 0; for (int i = 0; i < {count}; i++) s += a[i] * b[i]; return s; }}",
    )


def _products(cupy: Any, rows: Any, tokens: Any) -> Any:
    large = _of_16_bytes(rows, tokens)
    views = [m.view(cupy.complex128) if large else m for m in (rows, tokens)]
    return _dot(str(rows.dtype), large)(*views, axis=1)


def _gather(cupy: Any, rows: Any, index: Any, dtype: Any) -> Any:
    """Return the rows of a matrix with these indices."""
    if _of_16_bytes(rows):
        return rows.view(cupy.complex128).take(index, axis=0).view(rows.dtype).astype(dtype, copy=False)
    return rows.take(index, axis=0).astype(dtype, copy=False)


def _views(cupy: Any, place: Place, *arrays: Any) -> list[Any]:
    """Return arrays as CuPy's; torch's are seen through DLPack, those of others came as CuPy's already."""
    return [cupy.from_dlpack(a) if a is not None and place.library == "torch" else a for a in arrays]


def _cupy_for(place: Place, x: Any) -> tuple[Any, Any]:
    """CuPy, and a context in which it works on the current stream of the arrays' library."""
    cupy = import_cupy("the level")
    dtype = str(x.dtype).removeprefix("torch.")
    if dtype == "bfloat16":
        raise DtypeError("x has dtype bfloat16; for level 'cuda-bmm' it should be float16, float32 or float64")
    if place.library != "torch":
        return cupy, cupy.cuda.get_current_stream()
    stream = import_module("torch").cuda.current_stream(place.device).cuda_stream
    return cupy, cupy.cuda.ExternalStream(stream) if stream else cupy.cuda.Stream.null


def _bmm_fff(
    place: Place,
    activation: str,
    tie: str,
    shape: tuple[int, int, int, int],
    batch: int,
    *arrays: Any,
) -> None:
    """Walk by gathered rows and their products with the tokens, then add up gathered rows by one batched product.

    The rows of the top levels are few, and multiply all tokens at once.
    """
    trees, depth, d_in, d_out = shape
    levels, right = depth + 1, tie == "right"
    shared = min(levels, _SHARED_LEVELS)
    cupy, stream = _cupy_for(place, arrays[0])
    with stream:
        x, w_in, bias, w_out, y, nodes, logits = _views(cupy, place, *arrays)
        x = x.reshape(batch, d_in)
        real = cupy.float64 if x.dtype == cupy.float64 else cupy.float32  # of sums
        w_in = w_in.reshape(trees, -1, d_in)
        w_out = None if w_out is None else w_out.reshape(trees, -1, d_out)
        bias = None if bias is None else bias.reshape(trees, -1).astype(real, copy=False)
        activate, (walk, step) = _activate(activation), _bmm_kernels()
        walking = max(1, _GATHERED_BYTES // (max(d_in, 2**shared) * real().itemsize))  # tokens at a time
        adding = max(1, _GATHERED_BYTES // (levels * d_out * real().itemsize))
        for start in range(0, batch, walking):
            part = slice(start, min(start + walking, batch))
            tokens = x[part].astype(real, copy=False)
            count = len(tokens)
            if w_out is not None:
                y_part = y.reshape(batch, d_out)[part]
                total = y_part if y.dtype == real else cupy.empty((count, d_out), real)
            for tree in range(trees):
                node = cupy.zeros(count, cupy.int32)
                visited, z = cupy.empty((count, levels), cupy.int32), cupy.empty((count, levels), real)
                scores = tokens @ w_in[tree, : 2**shared - 1].astype(real, copy=False).T
                if bias is not None:
                    scores += bias[tree, : 2**shared - 1]
                walk(scores, shared, node, levels, right, node, visited, z)
                for level in range(shared, levels):
                    logit = _products(cupy, _gather(cupy, w_in[tree], node, real), tokens)
                    if bias is not None:
                        logit += bias[tree].take(node)
                    step(logit, level, node, levels, right, node, visited, z)
                if nodes is not None:
                    nodes.reshape(batch, trees, levels)[part, tree] = visited
                if logits is not None:
                    logits.reshape(batch, trees, levels)[part, tree] = z
                if w_out is None:
                    continue
                coefficients = activate(z)[:, None, :]
                for first in range(0, count, adding):
                    some = slice(first, first + adding)
                    rows = _gather(cupy, w_out[tree], visited[some], real)
                    if tree == 0:
                        cupy.matmul(coefficients[some], rows, out=total[some, None])
                    else:
                        total[some] += cupy.matmul(coefficients[some], rows)[:, 0]
            if w_out is not None and total is not y_part:
                y_part[...] = total


def _products_ff(place: Place, batched: bool, activation: str, *arrays: Any) -> None:
    cupy, stream = _cupy_for(place, arrays[0])
    with stream:
        x, w_in, bias, w_out, y = _views(cupy, place, *arrays)
        x, y = x.reshape(-1, w_in.shape[1]), y.reshape(-1, w_out.shape[1])
        real = cupy.float64 if x.dtype == cupy.float64 else cupy.float32
        w_in_t, w_out = w_in.astype(real, copy=False).T, w_out.astype(real, copy=False)
        for start in range(0, x.shape[0], _TOKENS_AT_ONCE):
            part = slice(start, start + _TOKENS_AT_ONCE)
            tokens = x[part].astype(real, copy=False)
            # batched: every token is a product of its own with the weights
            z = cupy.matmul(tokens[:, None, :], w_in_t[None]) if batched else tokens @ w_in_t
            if bias is not None:
                z += bias
            h = _activate(activation)(z)
            y[part] = cupy.matmul(h, w_out[None])[:, 0] if batched else h @ w_out
