"""The operations: fff_forward, cmm, the prepared layer FFF, and the dense ff_forward.

In the shapes below K is the number of trees, D their depth in edges, and N = 2^(D+1) - 1 the nodes of one tree.
Weights without the dimension K are those of one tree. ``...`` stands for any dimensions, also none.
"""

from functools import partial
from importlib import import_module
from typing import Any, Literal, TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cmm._array import CODES, I32, Floats, address, aligned, deliver, empty, floats, large, mixed, output, rows
from cmm._call import ACTIVATIONS, NULL, TIES, code, failure, ffi, lib
from cmm._foreign import is_foreign
from cmm._levels import choose, refused
from cmm.errors import ShapeError

__all__ = ["FFF", "cmm", "ff_forward", "fff_forward"]

Nodes: TypeAlias = NDArray[np.int32]

_DEPTHS = {2 ** (depth + 1) - 1: depth for depth in range(lib.CMM_MAX_DEPTH + 1)}


def _elsewhere() -> Any:
    """Return the module for arrays of other libraries, which is imported when it is first needed."""
    return import_module("cmm._elsewhere")


# ---- checks of shapes ----------------------------------------------------------------------------------------------


def _trees(name: str, array: Any) -> tuple[int, int, int]:
    """Return K, N and the width of weights with one row per node."""
    shape = tuple(array.shape)
    if len(shape) == 2:
        trees, (nodes, width) = 1, shape
    elif len(shape) == 3:
        trees, nodes, width = shape
    else:
        trees = nodes = width = 0
    if trees < 1 or width < 1:
        raise ShapeError(
            f"{name} has shape {shape}; it should be (K, N, width) or (N, width), K and width at least 1"
        )
    return trees, nodes, width


def _no_depth(nodes: int) -> ShapeError:
    fewer = max((n for n in _DEPTHS if n < nodes), default=1)
    return ShapeError(
        f"w_in has N = {nodes} nodes in a tree; N should be 2^(D+1) - 1 for a depth D of 0 to {lib.CMM_MAX_DEPTH}, "
        f"such as {fewer} (D = {_DEPTHS[fewer]}) or {2 * fewer + 1}"
    )


def wrong_x(x: Any, d_in: int) -> ShapeError:
    """Return the error for tokens of another width than the layer's."""
    was = f"shape {tuple(x.shape)}" if x.ndim else "no dimensions"
    return ShapeError(f"x has {was}; it should have shape (..., {d_in}), the width of w_in")


# ---- fast feedforward ----------------------------------------------------------------------------------------------


def _check(w_in: Floats, w_out: Floats | None, bias: Floats | None) -> tuple[int, int, int, int]:
    """Check the weights of a layer, or of CMM alone where there is no w_out; return trees, depth, d_in, d_out."""
    if w_out is not None and w_out.dtype is not w_in.dtype:
        raise mixed("w_out", w_out, "w_in", w_in.dtype)
    if bias is not None and bias.dtype is not w_in.dtype:
        raise mixed("bias", bias, "w_in", w_in.dtype)
    return check_shapes(w_in, w_out, bias)


def check_shapes(w_in: Any, w_out: Any, bias: Any) -> tuple[int, int, int, int]:
    """Check the shapes of a layer's weights, in arrays of any library; w_out and bias may be None."""
    trees, nodes, d_in = _trees("w_in", w_in)
    depth = _DEPTHS.get(nodes)
    if depth is None:
        raise _no_depth(nodes)
    d_out = 1
    if w_out is not None:
        k, n, d_out = _trees("w_out", w_out)
        if n != nodes or k != trees:
            raise ShapeError(
                f"w_out has shape {tuple(w_out.shape)}; it should be ({trees}, {nodes}, d_out), with K and N of w_in"
            )
    if bias is not None:
        shape = tuple(bias.shape)
        if shape != (trees, nodes) and (trees != 1 or shape != (nodes,)):
            expected = f"({trees}, {nodes})" if trees > 1 else f"({nodes},) or (1, {nodes})"
            raise ShapeError(f"bias has shape {shape}; it should be {expected}, with K and N of w_in")
    return trees, depth, d_in, d_out


# What the forward pass needs to know of a layer, whose arrays must be held elsewhere: a function of libcmm, its first
# arguments, dtype, trees, depth, d_in, d_out. A plain tuple, for fff_forward makes one in every call.
_Layer: TypeAlias = tuple[Any, tuple[Any, ...], np.dtype[Any], int, int, int, int]


def _forward(layer: _Layer, x: ArrayLike, level: str, threads: int | None, out: Any, return_path: bool) -> Any:
    function, arguments, dtype, trees, depth, d_in, d_out = layer
    x = floats("x", x)
    shape = x.shape
    if x.dtype is not dtype:
        raise mixed("x", x, "w_in", dtype)
    if not shape or shape[-1] != d_in:
        raise wrong_x(x, d_in)
    run = choose(level, threads, False)
    lead = shape[:-1]
    y = large("y", (*lead, d_out), dtype) if out is None else output(out, (*lead, d_out), dtype)
    c_nodes = c_logits = NULL
    if return_path:
        visited = (*lead, trees, depth + 1)
        nodes, logits = empty("nodes", visited, I32), empty("logits", visited, dtype)
        c_nodes, c_logits = address(nodes), address(logits)
    # Adding tuples takes 0.13 us less than unpacking each.
    status = function(*(arguments + run + (x.size // d_in, address(x), address(y), c_nodes, c_logits)))
    if status:
        if status != lib.CMM_ERROR_Y_OVERLAP:
            raise refused(status, run)
        # out shares memory with an input: compute elsewhere, as if it did not.
        y, nodes, logits = _forward(layer, x, level, threads, None, True)
    if out is not None:
        y = deliver(y, out)
    return (y, nodes, logits) if return_path else y


@overload
def fff_forward(
    x: ArrayLike,
    w_in: ArrayLike,
    w_out: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    activation: str = "gelu",
    tie: str = "left",
    level: str = "auto",
    threads: int | None = None,
    out: Floats | None = None,
    return_path: Literal[False] = False,
) -> Floats: ...
@overload
def fff_forward(
    x: ArrayLike,
    w_in: ArrayLike,
    w_out: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    activation: str = "gelu",
    tie: str = "left",
    level: str = "auto",
    threads: int | None = None,
    out: Floats | None = None,
    return_path: Literal[True],
) -> tuple[Floats, Nodes, Floats]: ...
def fff_forward(
    x: ArrayLike,
    w_in: ArrayLike,
    w_out: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    activation: str = "gelu",
    tie: str = "left",
    level: str = "auto",
    threads: int | None = None,
    out: Floats | None = None,
    return_path: bool = False,
) -> Any:
    """Apply a fast feedforward layer to tokens.

    A token visits D + 1 nodes of each tree, root to leaf. A node's logit is ``dot(w_in[k, n], x) + bias[k, n]``; its
    activation weighs ``w_out[k, n]`` in the output; its sign decides whether the child 2n+1 (left) or 2n+2 (right)
    comes next. All arrays have one dtype, float32 or float64, in any layout; what is not contiguous is copied.

    The arrays may be CuPy's, or of any library with ``__dlpack__``, such as PyTorch and JAX, all of one library and
    on one device. Results are of the same library. On a GPU the call runs on that library's current stream, ``level``
    is one of the cuda levels, the dtype may also be float16 or bfloat16, with logits of float32, and ``threads``
    means nothing.

    Parameters
    ----------
    x : array_like, shape (..., d_in)
        The tokens.
    w_in : array_like, shape (K, N, d_in) or (N, d_in)
        Input weights, nodes in heap order.
    w_out : array_like, shape (K, N, d_out) or (N, d_out)
        Output weights.
    bias : array_like, shape (K, N) or (N,), optional
    activation : {"gelu", "gelu_tanh", "relu", "silu", "identity"}
        "gelu" is the exact one, "gelu_tanh" its tanh approximation.
    tie : {"left", "right"}
        Where a logit of exactly 0 goes. NaN goes left.
    level : str
        How to compute it, one of :func:`cmm.levels`. "auto" takes what the environment variable ``CMM_LEVEL`` says,
        and where that is not set the best level.
    threads : int, optional
        At most this many threads, the BLAS's included; None means every core that the process may use.
    out : ndarray, shape (..., d_out), optional
        Where to put the output. It may share memory with an input.
    return_path : bool
        Whether to return nodes and logits too.

    Returns
    -------
    y : ndarray, shape (..., d_out), dtype of x
        ``out`` if that was given.
    nodes : ndarray, shape (..., K, D+1), int32
        With return_path: the visited nodes, each numbered within its tree, root first.
    logits : ndarray, shape (..., K, D+1), dtype of x
        With return_path: their logits.

    Raises
    ------
    ShapeError
        Shapes do not fit each other, or N is not 2^(D+1) - 1.
    DtypeError
        An array is not float32 or float64, or they are mixed.
    ArgumentError
        Another argument is not one of its values, or out is read-only.
    LevelError
        There is no such level.
    UnusableError
        The level, the instruction set or the BLAS cannot be used here.
    ArrayMemoryError
        There is no memory for the result or a copy. After any error out is as it was.
    """
    if is_foreign(x, w_in, w_out, bias, out):
        return _elsewhere().fff_forward(x, w_in, w_out, bias, activation, tie, level, threads, out, return_path)
    if bias is not None:
        bias = floats("bias", bias)
    w_in, w_out = floats("w_in", w_in), floats("w_out", w_out)  # held here while the call runs
    trees, depth, d_in, d_out = _check(w_in, w_out, bias)
    dtype = w_in.dtype
    arguments = (
        CODES[dtype],
        code("activation", activation, ACTIVATIONS),
        code("tie", tie, TIES),
        depth,
        trees,
        d_in,
        d_out,
        address(w_in),
        NULL if bias is None else address(bias),
        address(w_out),
    )
    layer = lib.cmm_py_fff_once, arguments, dtype, trees, depth, d_in, d_out
    return _forward(layer, x, level, threads, out, return_path)


def cmm(
    x: ArrayLike,
    w_in: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    tie: str = "left",
    level: str = "auto",
    threads: int | None = None,
) -> tuple[Nodes, Floats]:
    """Multiply conditionally: the path of each token through each tree, without an output.

    Parameters are those of :func:`fff_forward`.

    Parameters
    ----------
    x : array_like, shape (..., d_in)
    w_in : array_like, shape (K, N, d_in) or (N, d_in)
    bias : array_like, shape (K, N) or (N,), optional
    tie : {"left", "right"}
    level : str
    threads : int, optional

    Returns
    -------
    nodes : ndarray, shape (..., K, D+1), int32
        The visited nodes, each numbered within its tree, root first.
    logits : ndarray, shape (..., K, D+1), dtype of x
        Their logits, bias included.

    Raises
    ------
    ShapeError, DtypeError, ArgumentError, LevelError, UnusableError, ArrayMemoryError
        As :func:`fff_forward`.
    """
    if is_foreign(x, w_in, bias):
        return _elsewhere().cmm(x, w_in, bias, tie, level, threads)  # type: ignore[no-any-return]
    if bias is not None:
        bias = floats("bias", bias)
    x, w_in = floats("x", x), floats("w_in", w_in)
    trees, depth, d_in, _ = _check(w_in, None, bias)
    dtype = w_in.dtype
    if x.dtype is not dtype:
        raise mixed("x", x, "w_in", dtype)
    if x.shape[-1:] != (d_in,):
        raise wrong_x(x, d_in)
    c_tie = code("tie", tie, TIES)
    run = choose(level, threads, False)
    shape = (*x.shape[:-1], trees, depth + 1)
    nodes, logits = empty("nodes", shape, I32), empty("logits", shape, dtype)
    c_bias = NULL if bias is None else address(bias)
    layer = CODES[dtype], c_tie, depth, trees, d_in, address(w_in), c_bias
    status = lib.cmm_py_cmm(*layer, *run, x.size // d_in, address(x), address(nodes), address(logits))
    if status:
        raise refused(status, run)
    return nodes, logits


def _pack(raw: Any) -> tuple[NDArray[np.uint8], Any]:
    """Return the memory that a layer was packed into, and the cmm_fff that points into it."""
    size = ffi.new("int64_t *")
    status = lib.cmm_fff_pack_size(raw, size)
    if not status:
        memory = aligned("the packed weights", size[0])
        packed = ffi.new("cmm_fff *")
        status = lib.cmm_fff_pack(raw, address(memory), size[0], packed)
    if status:
        raise failure(status)
    return memory, packed


class FFF:
    """A fast feedforward layer whose weights are checked and packed once, for many calls.

    Calling it is :func:`fff_forward` without the checks of the weights; a call with few tokens gains most. Later
    changes of the arrays that it was made of do not reach it; on a GPU it keeps the arrays themselves, and they do.
    On a CPU the tokens may be of any library, whatever the weights were, and the results are of the tokens' library.

    Parameters
    ----------
    w_in : array_like, shape (K, N, d_in) or (N, d_in)
    w_out : array_like, shape (K, N, d_out) or (N, d_out)
    bias : array_like, shape (K, N) or (N,), optional
    activation : {"gelu", "gelu_tanh", "relu", "silu", "identity"}
    tie : {"left", "right"}

    Attributes
    ----------
    trees, depth, nodes : int
        K, D and N.
    d_in, d_out : int
        The widths of a token and of an output.
    dtype : numpy.dtype
        float32 or float64.
    activation, tie : str
        As given.
    w_in, w_out, bias : ndarray
        The layer's own packed copies, read-only, in the shapes given; bias is None if there is none.

    Raises
    ------
    ShapeError, DtypeError, ArgumentError, ArrayMemoryError
        As :func:`fff_forward`.
    """

    __slots__ = (
        "_elsewhere",
        "_layer",
        "_memory",
        "activation",
        "bias",
        "d_in",
        "d_out",
        "depth",
        "dtype",
        "nodes",
        "tie",
        "trees",
        "w_in",
        "w_out",
    )

    def __init__(
        self,
        w_in: ArrayLike,
        w_out: ArrayLike,
        bias: ArrayLike | None = None,
        *,
        activation: str = "gelu",
        tie: str = "left",
    ) -> None:
        self._elsewhere: Any = None
        if is_foreign(w_in, w_out, bias):
            views = _elsewhere().weights_on_cpu(w_in, w_out, bias)
            if views is None:
                self._elsewhere = layer = _elsewhere().Layer(w_in, w_out, bias, activation, tie)
                self.trees, self.depth, self.d_in, self.d_out = layer.shape
                self.nodes = 2 ** (self.depth + 1) - 1
                self.dtype, self.activation, self.tie = layer.dtype, activation, tie
                self.w_in, self.w_out, self.bias = w_in, w_out, bias
                return
            w_in, w_out, bias = views
        w_in, w_out = floats("w_in", w_in), floats("w_out", w_out)
        if bias is not None:
            bias = floats("bias", bias)
        self.trees, self.depth, self.d_in, self.d_out = trees, depth, d_in, d_out = _check(w_in, w_out, bias)
        self.nodes = 2 ** (depth + 1) - 1
        self.dtype = dtype = w_in.dtype
        self.activation = activation
        self.tie = tie
        raw = {
            "size": ffi.sizeof("cmm_fff"),
            "dtype": CODES[dtype],
            "activation": code("activation", activation, ACTIVATIONS),
            "tie": code("tie", tie, TIES),
            "trees": trees,
            "depth": depth,
            "d_in": d_in,
            "d_out": d_out,
            "w_in": address(w_in),
            "w_out": address(w_out),
            "bias": NULL if bias is None else address(bias),
        }
        self._memory, packed = _pack(ffi.new("cmm_fff *", raw))
        self._layer = lib.cmm_py_fff, (packed,), dtype, trees, depth, d_in, d_out
        self.w_in = rows(self._memory, packed.w_in, packed.ld_in, w_in.shape, dtype)
        self.w_out = rows(self._memory, packed.w_out, packed.ld_out, w_out.shape, dtype)
        self.bias = None if bias is None else rows(self._memory, packed.bias, self.nodes, bias.shape, dtype)

    @overload
    def __call__(
        self,
        x: ArrayLike,
        *,
        level: str = "auto",
        threads: int | None = None,
        out: Floats | None = None,
        return_path: Literal[False] = False,
    ) -> Floats: ...
    @overload
    def __call__(
        self,
        x: ArrayLike,
        *,
        level: str = "auto",
        threads: int | None = None,
        out: Floats | None = None,
        return_path: Literal[True],
    ) -> tuple[Floats, Nodes, Floats]: ...
    def __call__(
        self,
        x: ArrayLike,
        *,
        level: str = "auto",
        threads: int | None = None,
        out: Floats | None = None,
        return_path: bool = False,
    ) -> Any:
        """Apply the layer to tokens: parameters, results and errors of :func:`fff_forward`."""
        if self._elsewhere is not None:
            return self._elsewhere(x, level, out, return_path)
        if type(x) is not np.ndarray and is_foreign(x):
            return _elsewhere().call_packed(self, x, level, threads, out, return_path)
        return _forward(self._layer, x, level, threads, out, return_path)

    def __repr__(self) -> str:
        return (
            f"FFF({self.trees}x{self.depth}, d_in={self.d_in}, d_out={self.d_out}, {self.dtype}, "
            f"bias={'no' if self.bias is None else 'yes'}, activation={self.activation!r}, tie={self.tie!r})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        make = partial(FFF, activation=self.activation, tie=self.tie)
        return make, (self.w_in, self.w_out, self.bias)


# ---- dense feedforward, the yardstick ------------------------------------------------------------------------------


def check_dense(x: Any, w_in: Any, w_out: Any, bias: Any) -> tuple[int, int, int]:
    """Check the shapes of a dense layer and its tokens, in arrays of any library; return neurons, d_in, d_out."""
    if w_in.ndim != 2 or w_in.shape[1] < 1:
        raise ShapeError(f"w_in has shape {tuple(w_in.shape)}; it should be (N, d_in), d_in at least 1")
    neurons, d_in = w_in.shape
    if not x.ndim or x.shape[-1] != d_in:
        raise wrong_x(x, d_in)
    if w_out.ndim != 2 or w_out.shape[0] != neurons or w_out.shape[1] < 1:
        raise ShapeError(f"w_out has shape {tuple(w_out.shape)}; it should be ({neurons}, d_out), with N of w_in")
    if bias is not None and tuple(bias.shape) != (neurons,):
        raise ShapeError(f"bias has shape {tuple(bias.shape)}; it should be ({neurons},), with N of w_in")
    return neurons, d_in, w_out.shape[1]


def ff_forward(
    x: ArrayLike,
    w_in: ArrayLike,
    w_out: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    activation: str = "gelu",
    level: str = "auto",
    threads: int | None = None,
    out: Floats | None = None,
) -> Floats:
    """Apply a dense feedforward layer, ``activation(x @ w_in.T + bias) @ w_out``.

    Parameters
    ----------
    x : array_like, shape (..., d_in)
    w_in : array_like, shape (N, d_in)
        Any N, also 0.
    w_out : array_like, shape (N, d_out)
    bias : array_like, shape (N,), optional
    activation, level, threads, out
        As :func:`fff_forward`.

    Returns
    -------
    ndarray, shape (..., d_out), dtype of x
        ``out`` if that was given.

    Raises
    ------
    ShapeError, DtypeError, ArgumentError, LevelError, UnusableError, ArrayMemoryError
        As :func:`fff_forward`.
    """
    if is_foreign(x, w_in, w_out, bias, out):
        return _elsewhere().ff_forward(  # type: ignore[no-any-return]
            x, w_in, w_out, bias, activation, level, threads, out
        )
    x, w_in, w_out = floats("x", x), floats("w_in", w_in), floats("w_out", w_out)
    if bias is not None:
        bias = floats("bias", bias)
    dtype = x.dtype
    if dtype is not w_in.dtype:
        raise mixed("x", x, "w_in", w_in.dtype)
    if dtype is not w_out.dtype:
        raise mixed("w_out", w_out, "w_in", w_in.dtype)
    if bias is not None and dtype is not bias.dtype:
        raise mixed("bias", bias, "w_in", w_in.dtype)
    neurons, d_in, d_out = check_dense(x, w_in, w_out, bias)
    c_bias = NULL if bias is None else address(bias)
    c_activation = code("activation", activation, ACTIVATIONS)
    run = choose(level, threads, True)
    shape = (*x.shape[:-1], d_out)
    y: Floats = empty("y", shape, dtype) if out is None else output(out, shape, dtype)
    layer = CODES[dtype], c_activation, neurons, d_in, d_out, address(w_in), c_bias, address(w_out)
    status = lib.cmm_py_ff(*layer, *run, x.size // d_in, address(x), address(y))
    if status == lib.CMM_ERROR_Y_OVERLAP:  # out shares memory with an input: compute elsewhere, as if it did not
        y = empty("a temporary in place of out", shape, dtype)
        status = lib.cmm_py_ff(*layer, *run, x.size // d_in, address(x), address(y))
    if status:
        raise refused(status, run)
    return y if out is None else deliver(y, out)
