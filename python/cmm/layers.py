"""The operations: fff_forward and fff_backward, cmm_forward, the prepared layer FFF, and the dense ff_forward.

In the shapes below K is the number of trees, D their depth in edges, and N = 2^(D+1) - 1 the nodes of one tree.
Weights without the dimension K are those of one tree. ``...`` stands for any dimensions, also none.
"""

from __future__ import annotations

from typing import Any, Literal, Unpack, overload

from numpy.typing import NDArray

from cmm import _call, _check
from cmm._backend import Shown
from cmm._backend.numpy import widened
from cmm.typing import (
    Activation,
    Algorithm,
    Choices,
    Float,
    Gradients,
    LevelName,
    Loose,
    Nodes,
    Path,
    Run,
    Tie,
    Weights,
)

__all__ = ["FFF", "cmm_forward", "ff_forward", "fff_backward", "fff_forward"]


@overload
def fff_forward(  # type: ignore[overload-overlap]
    x: NDArray[Float],
    w_in: NDArray[Float],
    w_out: NDArray[Float],
    bias: NDArray[Float] | None = None,
    *,
    out: NDArray[Float] | None = None,
    return_path: Literal[False] = False,
    path: Path | None = None,
    **how: Unpack[Choices],
) -> NDArray[Float]: ...
@overload
def fff_forward(  # type: ignore[overload-overlap]
    x: NDArray[Float],
    w_in: NDArray[Float],
    w_out: NDArray[Float],
    bias: NDArray[Float] | None = None,
    *,
    out: NDArray[Float] | None = None,
    return_path: Literal[True],
    path: Path | None = None,
    **how: Unpack[Choices],
) -> tuple[NDArray[Float], Nodes, NDArray[Float]]: ...
@overload
def fff_forward(
    x: NDArray[Float],
    w_in: NDArray[Float],
    w_out: NDArray[Float],
    bias: NDArray[Float] | None = None,
    *,
    out: NDArray[Float] | None = None,
    return_path: bool,
    path: Path | None = None,
    **how: Unpack[Choices],
) -> NDArray[Float] | tuple[NDArray[Float], Nodes, NDArray[Float]]: ...
@overload
def fff_forward(
    x: Loose,
    w_in: Loose,
    w_out: Loose,
    bias: Loose | None = None,
    *,
    out: Any = None,
    return_path: bool = False,
    path: Path | None = None,
    **how: Unpack[Choices],
) -> Any: ...
def fff_forward(
    x: Any,
    w_in: Any,
    w_out: Any,
    bias: Any = None,
    *,
    activation: Activation = "gelu",
    tie: Tie = "left",
    level: LevelName = "auto",
    algorithm: Algorithm | None = None,
    threads: int | None = None,
    out: Any = None,
    return_path: bool = False,
    path: Path | None = None,
) -> Any:
    """Apply a fast feedforward layer to tokens.

    A token visits D + 1 nodes of each tree, root to leaf. A node's logit is ``dot(w_in[k, n], x) + bias[k, n]``; its
    activation weighs ``w_out[k, n]`` in the output; its sign decides whether the child 2n+1 (left) or 2n+2 (right)
    comes next. All arrays have one dtype, float32 or float64, in any layout; what is not contiguous is copied.

    The arrays may be CuPy's, or of any library with ``__dlpack__``, such as PyTorch and JAX, all of one library and
    on one device. Results are of the same library, or NumPy's where it has no array namespace. On a GPU the call
    runs on that library's current stream, ``level``
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
    algorithm : {"per_token", "grouped", "generic", "small_batch", "grouped_gemm", "dense_routed"}, optional
        One of level "native": "per_token" takes tokens as they come, "grouped" sorts them by subtree, and both give
        the same bits. Or one of level "cuda", which has all five. None takes the one that suits.
    threads : int, optional
        At most this many threads, the BLAS's included. None means what the environment variable ``CMM_NUM_THREADS``
        says, else ``OMP_NUM_THREADS``, else one for each core that the process may use.
    out : ndarray, shape (..., d_out), optional
        Where to put the output. It may share memory with an input.
    return_path : bool
        Whether to return nodes and logits too.
    path : array_like of int, shape (..., K, D+1) or (..., K), optional
        The path to take, instead of what the logits say: the nodes, as return_path gives them, or their leaves alone,
        numbered within the tree. The logits weigh as ever, and `tie` means nothing. A call's own path gives its bits.
        For arrays on a CPU.

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
        Another argument is not one of its values, out is read-only, or path is none of the trees.
    LevelError
        There is no such level.
    UnusableError
        The level, the instruction set or the BLAS cannot be used here.
    ArrayMemoryError
        There is no memory for the result or a copy. After any error out is as it was.
    """
    return _check.fff_forward(
        x, w_in, w_out, bias, activation, tie, level, algorithm, threads, out, return_path, path
    )


def fff_backward(
    x: Any,
    w_in: Any,
    w_out: Any,
    nodes: Any,
    logits: Any,
    dy: Any,
    *,
    activation: Activation = "gelu",
    dx: Any = True,
    dw_in: Any = True,
    dbias: Any = True,
    dw_out: Any = True,
    accumulate: bool = False,
    threads: int | None = None,
) -> Gradients:
    """Return the gradients of a fast feedforward layer, from the path that its forward pass took.

    Only rows that were visited are read, and written. Of each visited node, with ``a = activation(logit)`` and
    ``dz = activation'(logit) * dot(dy, w_out[k, n])``, the token's dx takes ``dz * w_in[k, n]``, dw_in[k, n] takes
    ``dz * x``, dbias[k, n] takes ``dz`` and dw_out[k, n] takes ``a * dy``. The path is taken as it is: there is no
    gradient of the choice of a child. ReLU has the derivative 0 at 0. The same arguments give the same bits, for any
    number of threads.

    The arrays are NumPy's, or of another library with ``__dlpack__`` and on a CPU; all of one dtype, float32 or
    float64, in any layout; an input that is not contiguous is copied.

    Parameters
    ----------
    x : array_like, shape (..., d_in)
        The tokens of the forward pass.
    w_in : array_like, shape (K, N, d_in) or (N, d_in)
    w_out : array_like, shape (K, N, d_out) or (N, d_out)
        Its weights. No bias: the logits have it.
    nodes : array_like of int, shape (..., K, D+1)
    logits : array_like, shape (..., K, D+1)
        What it gave with return_path.
    dy : array_like, shape (..., d_out)
        The gradient with respect to its output.
    activation : {"gelu", "gelu_tanh", "relu", "silu", "identity"}
    dx, dw_in, dbias, dw_out : bool or ndarray
        Which gradients are wanted: True for a new array, False for none, or a writable array to put one into, of the
        shape of x, of w_in, of w_in without its last dimension, of w_out.
    accumulate : bool
        Whether gradients are added to what the arrays hold that are given. New ones are stored in any case.
    threads : int, optional
        As :func:`fff_forward`.

    Returns
    -------
    Gradients
        A named tuple ``(dx, dw_in, dbias, dw_out)``, with None for what is not wanted. Rows of nodes that no token
        visits are 0, or with accumulate as they were.

    Raises
    ------
    ShapeError
        Shapes do not fit each other.
    DtypeError
        An array is not float32 or float64, or they are mixed; or nodes are no integers.
    ArgumentError
        Another argument is not one of its values, nodes are no path of the trees, a gradient's array is read-only or
        shares memory with another one, no gradient is wanted, or the arrays are on a GPU.
    UnusableError
        The instruction set that ``CMM_ISA`` names cannot be used here.
    ArrayMemoryError
        There is no memory for the result or a copy. After any error all arrays are as they were.
    """
    wanted = {"dx": dx, "dw_in": dw_in, "dbias": dbias, "dw_out": dw_out}
    return _check.fff_backward(x, w_in, w_out, nodes, logits, dy, activation, wanted, accumulate, threads)


@overload
def cmm_forward(
    x: NDArray[Float],
    w_in: NDArray[Float],
    bias: NDArray[Float] | None = None,
    *,
    tie: Tie = "left",
    path: Path | None = None,
    **how: Unpack[Run],
) -> tuple[Nodes, NDArray[Float]]: ...
@overload
def cmm_forward(
    x: Loose,
    w_in: Loose,
    bias: Loose | None = None,
    *,
    tie: Tie = "left",
    path: Path | None = None,
    **how: Unpack[Run],
) -> Any: ...
def cmm_forward(
    x: Any,
    w_in: Any,
    bias: Any = None,
    *,
    tie: Tie = "left",
    level: LevelName = "auto",
    algorithm: Algorithm | None = None,
    threads: int | None = None,
    path: Path | None = None,
) -> Any:
    """Multiply conditionally: the path of each token through each tree, without an output.

    Parameters are those of :func:`fff_forward`.

    Parameters
    ----------
    x : array_like, shape (..., d_in)
    w_in : array_like, shape (K, N, d_in) or (N, d_in)
    bias : array_like, shape (K, N) or (N,), optional
    tie : {"left", "right"}
    level : str
    algorithm : str, optional
    threads : int, optional
    path : array_like of int, shape (..., K, D+1) or (..., K), optional

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
    return _check.cmm_forward(x, w_in, bias, tie, level, algorithm, threads, path)


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
    weights : {"float32", "bfloat16", "float16", "int8"} or a pair of these, optional
        What the layer keeps its rows of `w_in` and `w_out` in, where they are float32 and on a CPU; a pair is one for
        each. bfloat16 and float16 take half the memory; each number is rounded to the nearest, ties to even. int8
        takes a quarter: whole numbers from -127 to 127, and for each row what they are multiples of, its largest
        magnitude / 127. Tokens, bias, sums and results stay float32. The layer is then the one with the rounded
        numbers. For levels "naive" and "native".
    exact_path : bool or float, optional
        Whether each token takes the path that the same layer with float32 rows gives it, bit for bit, when rows of
        `w_in` are narrow: the layer then also keeps the float32 rows of the inner nodes, and computes a logit again
        from those where the narrow row leaves its sign open. A number: as likely as that a normal error stays within
        so many standard deviations, which costs less.

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
    weights : str or tuple of two str
        The type of the rows; a pair where those of w_in and of w_out are of different ones.
    exact_path : bool or float
        As given.
    recomputed : int or None
        How many logits the last call that has returned computed again, of any thread. None before, and without an
        exact path.
    w_in, w_out, bias : ndarray
        The layer's own packed copies, read-only, in the shapes given; bias is None if there is none. Of narrow rows
        `w_in` and `w_out` are float32 arrays of the rounded numbers, made anew each time.

    All of them can only be read. A layer can be copied and pickled; so can one of a derived class, with what it adds.

    Raises
    ------
    ShapeError, DtypeError, ArgumentError, ArrayMemoryError
        As :func:`fff_forward`; ArgumentError also where `weights` cannot be had.
    """

    __slots__ = ("__weakref__", "_bound", "_exact", "_prepared", "_rows", "_shown")

    @overload
    def __init__(
        self,
        w_in: NDArray[Float],
        w_out: NDArray[Float],
        bias: NDArray[Float] | None = None,
        *,
        activation: Activation = "gelu",
        tie: Tie = "left",
        weights: Weights | None = None,
        exact_path: bool | float = False,
    ) -> None: ...
    @overload
    def __init__(
        self,
        w_in: Loose,
        w_out: Loose,
        bias: Loose | None = None,
        *,
        activation: Activation = "gelu",
        tie: Tie = "left",
        weights: Weights | None = None,
        exact_path: bool | float = False,
    ) -> None: ...
    def __init__(
        self,
        w_in: Any,
        w_out: Any,
        bias: Any = None,
        *,
        activation: Activation = "gelu",
        tie: Tie = "left",
        weights: Weights | None = None,
        exact_path: bool | float = False,
    ) -> None:
        self._prepared, self._rows, self._exact, self._shown = _check.prepare(
            w_in, w_out, bias, activation, tie, weights, exact_path
        )
        self._bound = _check.bound(self._prepared)

    @property
    def trees(self) -> int:
        """K."""
        return self._prepared[1].trees

    @property
    def depth(self) -> int:
        """D."""
        return self._prepared[1].depth

    @property
    def nodes(self) -> int:
        """N."""
        return int(2 ** (self.depth + 1) - 1)

    @property
    def d_in(self) -> int:
        """The width of a token."""
        return self._prepared[1].d_in

    @property
    def d_out(self) -> int:
        """The width of an output."""
        return self._prepared[1].d_out

    @property
    def dtype(self) -> Any:
        """Of weights and outputs."""
        return self._prepared[3] or self._prepared[1].dtype

    @property
    def activation(self) -> str:
        """As given."""
        return self._prepared[1].activation

    @property
    def tie(self) -> str:
        """As given."""
        return self._prepared[1].tie

    @property
    def weights(self) -> str | tuple[str, str]:
        """The type of the rows, or those of w_in and of w_out."""
        return self._rows[0] if self._rows[0] == self._rows[1] else self._rows

    @property
    def exact_path(self) -> bool | float:
        """Whether tokens take the path of float32 rows, or how likely."""
        return self._exact or self._exact is not None

    @property
    def recomputed(self) -> int | None:
        """How many logits the last call computed again for the exact path."""
        counted = getattr(self._prepared[2], "recomputed", None)
        return None if counted is None or counted[0] < 0 else int(counted[0])

    @property
    def w_in(self) -> Any:
        """The rows of the first half, in the layer's dtype."""
        return widened(self._shown.w_in, self._shown.scale_in)

    @property
    def w_out(self) -> Any:
        """The rows of the second half, in the layer's dtype."""
        return widened(self._shown.w_out, self._shown.scale_out)

    @property
    def bias(self) -> Any:
        """The biases of the nodes, or None."""
        return self._shown.bias

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self,
        x: NDArray[Float],
        *,
        out: NDArray[Float] | None = None,
        return_path: Literal[False] = False,
        path: Path | None = None,
        **how: Unpack[Run],
    ) -> NDArray[Float]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]
        self,
        x: NDArray[Float],
        *,
        out: NDArray[Float] | None = None,
        return_path: Literal[True],
        path: Path | None = None,
        **how: Unpack[Run],
    ) -> tuple[NDArray[Float], Nodes, NDArray[Float]]: ...
    @overload
    def __call__(
        self,
        x: NDArray[Float],
        *,
        out: NDArray[Float] | None = None,
        return_path: bool,
        path: Path | None = None,
        **how: Unpack[Run],
    ) -> NDArray[Float] | tuple[NDArray[Float], Nodes, NDArray[Float]]: ...
    @overload
    def __call__(
        self,
        x: Loose,
        *,
        out: Any = None,
        return_path: bool = False,
        path: Path | None = None,
        **how: Unpack[Run],
    ) -> Any: ...
    def __call__(
        self,
        x: Any,
        *,
        level: LevelName = "auto",
        algorithm: Algorithm | None = None,
        threads: int | None = None,
        out: Any = None,
        return_path: bool = False,
        path: Path | None = None,
    ) -> Any:
        """Apply the layer to tokens: parameters, results and errors of :func:`fff_forward`."""
        return _call.apply(self._bound, x, level, algorithm, threads, out, return_path, path)

    def __repr__(self) -> str:
        rows = "" if self._rows == (str(self.dtype),) * 2 else f", weights={self.weights!r}"
        exact = f", exact_path={self.exact_path!r}" if self.exact_path else ""
        return (
            f"FFF({self.trees}x{self.depth}, d_in={self.d_in}, d_out={self.d_out}, {self.dtype}, "
            f"bias={'no' if self.bias is None else 'yes'}, activation={self.activation!r}, tie={self.tie!r}"
            f"{rows}{exact})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        if "int8" in self._rows or self.exact_path:  # whose rows, made again of what they hold, could be others
            shown = tuple(None if array is None else array.copy() for array in self._shown)
            return _made_again, (type(self), self._prepared[1], self._rows, self._exact, shown), self.__getstate__()
        made_of = type(self), self.w_in, self.w_out, self.bias, self.activation, self.tie, self.weights
        return _made, made_of, self.__getstate__()

    def __getstate__(self) -> object:
        """Return what a derived class has added: attributes, and those that it has in slots."""
        state = super().__getstate__()
        own, slots = state if isinstance(state, tuple) else (state, {})
        slots = {name: value for name, value in slots.items() if name not in FFF.__slots__}
        return (own, slots) if slots else own


def _made_again(kind: type[FFF], spec: Any, rows: Any, exact: float | None, shown: Any) -> FFF:
    """Make a layer of the arrays that another one shows."""
    layer = object.__new__(kind)
    layer._rows, layer._exact = rows, exact
    layer._prepared, layer._shown = _check.prepare_again(spec, rows, Shown(*shown))
    layer._bound = _check.bound(layer._prepared)
    return layer


def _made(kind: type[FFF], w_in: Any, w_out: Any, bias: Any, activation: Activation, tie: Tie, weights: Any) -> FFF:
    """Make a layer for copy and pickle, whatever a derived class wants to be made of."""
    layer = object.__new__(kind)
    FFF.__init__(layer, w_in, w_out, bias, activation=activation, tie=tie, weights=weights)
    return layer


@overload
def ff_forward(
    x: NDArray[Float],
    w_in: NDArray[Float],
    w_out: NDArray[Float],
    bias: NDArray[Float] | None = None,
    *,
    activation: Activation = "gelu",
    out: NDArray[Float] | None = None,
    **how: Unpack[Run],
) -> NDArray[Float]: ...
@overload
def ff_forward(
    x: Loose,
    w_in: Loose,
    w_out: Loose,
    bias: Loose | None = None,
    *,
    activation: Activation = "gelu",
    out: Any = None,
    **how: Unpack[Run],
) -> Any: ...
def ff_forward(
    x: Any,
    w_in: Any,
    w_out: Any,
    bias: Any = None,
    *,
    activation: Activation = "gelu",
    level: LevelName = "auto",
    algorithm: Algorithm | None = None,
    threads: int | None = None,
    out: Any = None,
) -> Any:
    """Apply a dense feedforward layer, ``activation(x @ w_in.T + bias) @ w_out``.

    Parameters
    ----------
    x : array_like, shape (..., d_in)
    w_in : array_like, shape (N, d_in)
        Any N, also 0.
    w_out : array_like, shape (N, d_out)
    bias : array_like, shape (N,), optional
    activation, level, algorithm, threads, out
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
    return _check.ff_forward(x, w_in, w_out, bias, activation, level, algorithm, threads, out)
