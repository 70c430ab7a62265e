"""The level ``cuda-bmm`` by CuPy alone: gathers and batched products, as in the paper's simulation.

A dense layer at level ``cuda`` is here too: two products by cuBLAS.
"""

from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from cmm._backend import DenseSpec, Place, Spec
from cmm._cupy import import_cupy
from cmm.errors import DtypeError

# Measured on an H200.
_SHARED_LEVELS = 8
_GATHERED_BYTES = 256 << 20
_TOKENS_AT_ONCE = 16384  # of a dense layer

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
    inputs = "int32 at, int32 levels, bool right, int32 leaf"  # where to go, or -1
    outputs = "int32 node, raw int32 visited, raw T logits"
    keep = (
        "visited[i * levels + l] = node; logits[i * levels + l] = z; node = 2 * node + 1;"
        "if (leaf >= 0) node += l + 1 < levels ? (leaf + 1) >> (levels - 2 - l) & 1 : 0;"
        "else node += right ? z >= 0 : z > 0;"
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


def _cupy_for(place: Place, dtype: str) -> tuple[Any, Any]:
    """CuPy, and a context in which it works on the current stream of the arrays' library."""
    cupy = import_cupy("the level")
    if dtype == "bfloat16":
        raise DtypeError("x has dtype bfloat16; for level 'cuda-bmm' it should be float16, float32 or float64")
    if place.library != "torch":
        return cupy, cupy.cuda.get_current_stream()
    stream = import_module("torch").cuda.current_stream(place.device).cuda_stream
    return cupy, cupy.cuda.ExternalStream(stream) if stream else cupy.cuda.Stream.null


def _first_refused(cupy: Any, spec: Spec, path: Any) -> int:
    """Return the index of the first path, of all tokens and trees in order, that is none, or -1."""
    leaf = path[:, -1:]
    up = cupy.arange(spec.depth, -1, -1, dtype=np.int32)[-path.shape[1] :]
    good = (path == (leaf + 1 >> up) - 1).all(axis=1)
    good &= ((leaf >= 2**spec.depth - 1) & (leaf < 2 ** (spec.depth + 1) - 1))[:, 0]
    return -1 if bool(good.all()) else int(good.argmin())


def fff(place: Place, spec: Spec, batch: int, *arrays: Any) -> int:
    """Walk by gathered rows and their products with the tokens, then add up gathered rows by one batched product.

    The rows of the top levels are few, and multiply all tokens at once. arrays: x, w_in, bias, w_out, y, nodes,
    logits, path, and what is returned, as ``cuda`` has them.
    """
    *inputs, path = arrays
    trees, d_in, d_out, levels, right = spec.trees, spec.d_in, spec.d_out, spec.depth + 1, spec.tie == "right"
    shared = min(levels, _SHARED_LEVELS)
    cupy, stream = _cupy_for(place, spec.dtype)
    with stream:
        x, w_in, bias, w_out, y, nodes, logits = _views(cupy, place, *inputs)
        x = x.reshape(batch, d_in)
        real = cupy.float64 if x.dtype == cupy.float64 else cupy.float32  # of sums
        w_in = w_in.reshape(trees, -1, d_in)
        w_out = None if w_out is None else w_out.reshape(trees, -1, d_out)
        bias = None if bias is None else bias.reshape(trees, -1).astype(real, copy=False)
        leaves = None
        if path is not None and batch:
            given = _views(cupy, place, path[0])[0].reshape(batch * trees, -1)
            refused = _first_refused(cupy, spec, given)
            if refused >= 0:
                return refused
            leaves = given[:, -1].reshape(batch, trees)
        activate, (walk, step) = _activate(spec.activation), _bmm_kernels()
        walking = max(1, _GATHERED_BYTES // (max(d_in, 2**shared) * real().itemsize))  # tokens at a time
        adding = max(1, _GATHERED_BYTES // (levels * max(d_out, 1) * real().itemsize))
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
                leaf = -1 if leaves is None else leaves[part, tree]
                walk(scores, shared, node, levels, right, leaf, node, visited, z)
                for level in range(shared, levels):
                    logit = _products(cupy, _gather(cupy, w_in[tree], node, real), tokens)
                    if bias is not None:
                        logit += bias[tree].take(node)
                    step(logit, level, node, levels, right, leaf, node, visited, z)
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
    return -1


def dense(place: Place, batched: bool, spec: DenseSpec, *arrays: Any) -> None:
    """Apply a dense layer by two products, or batched: every token by products of its own."""
    cupy, stream = _cupy_for(place, spec.dtype)
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
            h = _activate(spec.activation)(z)
            y[part] = cupy.matmul(h, w_out[None])[:, 0] if batched else h @ w_out
