"""The operators ``cmm::fff_forward`` and ``cmm::fff_backward``: libcmm in PyTorch's dispatcher.

>>> import torch, cmm.torch
>>> y, nodes, logits = torch.ops.cmm.fff_forward(x, w_in, bias, w_out, trees, "gelu", "left", True)

Weights have a row for each node, tree by tree: ``w_in (K*N, d_in)``, ``bias (K*N,)`` or None, ``w_out (K*N, d_out)``.
With the last argument ``nodes`` and ``logits``, both ``(..., K, D+1)``, are the path; without it they are empty.
Both operators have fake kernels, so that they are traced and compiled as they stand, rules for vmap and autocast, and
the first has a gradient: through visited rows, and through the logits. libcmm is handed addresses and shapes, never a
view by NumPy or DLPack, which would pin a tensor's storage to its size.

Where all neurons are computed on a GPU, by products of PyTorch, what lies between the products is an operator, too:
``cmm::fff_hidden``, with a gradient, from all logits, and ``cmm::fff_hidden_of_path`` from those of a path;
``cmm::fff_visited`` says which nodes are visited.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch._C._functorch import get_interpreter_stack
from torch.nn import Parameter, functional
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from torch.utils.weak import WeakTensorKeyDictionary

from cmm._check import check_choice, check_tokens
from cmm._dispatch import choose, choose_cuda, refused
from cmm._native import ACTIVATIONS, DTYPES, NULL, TIES, failure, ffi, lib
from cmm.errors import ArgumentError, ArrayMemoryError, DtypeError, ShapeError

__all__ = [
    "ACTIVATIONS_OF_TENSORS",
    "CPU_DTYPES",
    "CUDA_DTYPES",
    "Conditional",
    "Recorded",
    "SparseConditional",
    "apply",
    "autocast",
    "fff_backward",
    "fff_forward",
    "fff_hidden",
    "fff_visited",
]

Codes: TypeAlias = tuple[int, ...]

_LIBRARY = torch.library.Library("cmm", "DEF")
_LIBRARY.define(
    "fff_forward(Tensor x, Tensor w_in, Tensor? bias, Tensor w_out, int trees, str activation, str tie, "
    "bool return_path) -> (Tensor y, Tensor nodes, Tensor logits)"
)
_LIBRARY.define(
    "fff_backward(Tensor dy, Tensor x, Tensor w_in, Tensor w_out, Tensor nodes, Tensor logits, int trees, "
    "str activation, bool[] wanted) -> (Tensor dx, Tensor dw_in, Tensor dbias, Tensor dw_out)"
)
_LIBRARY.define(
    "fff_hidden(Tensor logits, int trees, str activation, str tie, bool return_nodes) -> "
    "(Tensor hidden, Tensor nodes)"
)
_LIBRARY.define("fff_hidden_backward(Tensor dhidden, Tensor logits, int trees, str activation, str tie) -> Tensor")
_LIBRARY.define("fff_visited(Tensor logits, int trees, str tie) -> (Tensor visited, Tensor nodes)")
_LIBRARY.define(
    "fff_hidden_of_path(Tensor? dhidden, Tensor nodes, Tensor logits, str activation, ScalarType dtype, "
    "bool wants_hidden) -> (Tensor hidden, Tensor dlogits)"
)
fff_forward = torch.ops.cmm.fff_forward.default
fff_backward = torch.ops.cmm.fff_backward.default
fff_hidden = torch.ops.cmm.fff_hidden.default
fff_hidden_backward = torch.ops.cmm.fff_hidden_backward.default
fff_visited = torch.ops.cmm.fff_visited.default
fff_hidden_of_path = torch.ops.cmm.fff_hidden_of_path.default

# Those that libcmm computes with on a CPU, and libcmm_cuda on a GPU, with the names that its errors have.
CPU_DTYPES = {torch.float32: "float32", torch.float64: "float64"}
CUDA_DTYPES = {**CPU_DTYPES, torch.bfloat16: "bfloat16", torch.float16: "float16"}


# ---- what both check -----------------------------------------------------------------------------------------------


@lru_cache(1024)
def _codes(
    dtype: torch.dtype,
    w_in: torch.Size,
    bias: torch.Size | None,
    w_out: torch.Size,
    trees: int,
    activation: str,
    tie: str,
    is_cuda: bool = False,
) -> Codes:
    """Return a layer of these shapes as libcmm's functions take it, or say what is wrong with it."""
    names = CUDA_DTYPES if is_cuda else CPU_DTYPES
    if dtype not in names:
        known = "float64, float32, bfloat16 or float16 on a GPU" if is_cuda else "float32 or torch.float64 on a CPU"
        raise DtypeError(f"x has dtype {dtype}; it should be torch.{known}")
    depth = _depth(w_in, bias, w_out, trees)
    choices = check_choice("activation", activation, ACTIVATIONS), check_choice("tie", tie, TIES)
    return (DTYPES[names[dtype]], *choices, depth, trees, w_in[1], w_out[1])


@lru_cache(1024)
def _depth(w_in: torch.Size, bias: torch.Size | None, w_out: torch.Size, trees: int) -> int:
    """Return the depth of trees of these shapes, or say what is wrong with one."""
    if trees < 1:
        raise ArgumentError(f"trees is {trees}; it should be at least 1")
    if len(w_in) != 2 or w_in[1] < 1:
        raise ShapeError(f"w_in has shape {tuple(w_in)}; it should be (K*N, d_in), d_in at least 1")
    nodes, rest = divmod(w_in[0], trees)
    depth = (nodes + 1).bit_length() - 2
    if rest or nodes != 2 ** (depth + 1) - 1 or not 0 <= depth <= lib.CMM_MAX_DEPTH:
        raise ShapeError(f"w_in has {w_in[0]} rows; it should have {trees} times 2^(D+1) - 1, trees is {trees}")
    if len(w_out) != 2 or w_out[0] != w_in[0] or w_out[1] < 1:
        raise ShapeError(f"w_out has shape {tuple(w_out)}; it should be ({w_in[0]}, d_out), a row for each of w_in")
    if bias is not None and tuple(bias) != (w_in[0],):
        raise ShapeError(f"bias has shape {tuple(bias)}; it should be ({w_in[0]},), one for each row of w_in")
    return depth


def _same_dtype(x: Tensor, **others: Tensor | None) -> None:
    for name, other in others.items():
        if other is not None and other.dtype is not x.dtype:
            raise DtypeError(f"{name} has dtype {other.dtype} and x has dtype {x.dtype}; they should be the same")


def _beside(x: Tensor, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != x.device:
            where = "the CPU" if x.is_cpu else x.device
            raise ArgumentError(f"{name} is on {tensor.device}; it should be on {where}, where x is")


def _usable(tensor: Tensor) -> Tensor:
    """Return an input as libcmm reads it: itself where it is contiguous and aligned, else a copy."""
    if tensor.is_contiguous() and not tensor.data_ptr() % tensor.element_size():
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def _at(tensor: Tensor) -> Any:
    """Return the address of a tensor that _usable() has seen."""
    return ffi.cast("void *", tensor.data_ptr())


# ---- the forward pass ----------------------------------------------------------------------------------------------


def apply(
    x: Tensor,
    w_in: Tensor,
    bias: Tensor | None,
    w_out: Tensor,
    trees: int,
    activation: str,
    tie: str,
    nodes: Tensor | None = None,
    logits: Tensor | None = None,
) -> Tensor:
    """Return y on a CPU, and fill in the path where it is wanted: the operator without PyTorch's dispatcher.

    The caller knows that these are plain tensors, and that nobody records or transforms the call.
    """
    dtype = x.dtype
    codes = _codes(dtype, w_in.shape, None if bias is None else bias.shape, w_out.shape, trees, activation, tie)
    _, _, _, _, _, d_in, d_out = codes
    check_tokens(x, d_in)
    if not (w_in.dtype is w_out.dtype is dtype and (bias is None or bias.dtype is dtype)):
        _same_dtype(x, w_in=w_in, bias=bias, w_out=w_out)
    if not (w_in.is_cpu and w_out.is_cpu and (bias is None or bias.is_cpu)):
        _beside(x, w_in=w_in, bias=bias, w_out=w_out)
    x, w_in, w_out = _usable(x), _usable(w_in), _usable(w_out)
    y = x.new_empty((*x.shape[:-1], d_out))
    c_bias = c_nodes = c_logits = NULL
    if bias is not None:
        bias = _usable(bias)
        c_bias = _at(bias)
    if nodes is not None and logits is not None:
        c_nodes, c_logits = _at(nodes), _at(logits)
    run = choose("auto", None, torch.get_num_threads(), False)
    status = lib.cmm_py_fff_once(
        *codes, _at(w_in), c_bias, _at(w_out), *run, x.numel() // d_in, _at(x), _at(y), c_nodes, c_logits
    )
    if status:
        raise refused(status, run)
    return y


def _forward_cpu(
    x: Tensor,
    w_in: Tensor,
    bias: Tensor | None,
    w_out: Tensor,
    trees: int,
    activation: str,
    tie: str,
    return_path: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply a layer on a CPU."""
    bias_shape = None if bias is None else bias.shape
    depth = _codes(x.dtype, w_in.shape, bias_shape, w_out.shape, trees, activation, tie)[3]
    path = (*x.shape[:-1], trees, depth + 1) if return_path else (0,)
    nodes, logits = x.new_empty(path, dtype=torch.int32), x.new_empty(path)
    given = (nodes, logits) if return_path else ()
    return apply(x, w_in, bias, w_out, trees, activation, tie, *given), nodes, logits


def _forward_cuda(
    x: Tensor,
    w_in: Tensor,
    bias: Tensor | None,
    w_out: Tensor,
    trees: int,
    activation: str,
    tie: str,
    return_path: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queue a layer on the current stream of a GPU."""
    bias_shape = None if bias is None else bias.shape
    codes = _codes(x.dtype, w_in.shape, bias_shape, w_out.shape, trees, activation, tie, True)
    _, _, _, depth, _, d_in, d_out = codes
    check_tokens(x, d_in)
    _beside(x, w_in=w_in, bias=bias, w_out=w_out)
    w_in, bias, w_out = (None if one is None else _narrowed(one, x) for one in (w_in, bias, w_out))
    _same_dtype(x, w_in=w_in, bias=bias, w_out=w_out)
    x, w_in, bias, w_out = (None if one is None else _usable(one) for one in (x, w_in, bias, w_out))
    y = x.new_empty((*x.shape[:-1], d_out))
    path = (*x.shape[:-1], trees, depth + 1) if return_path else (0,)
    nodes, logits = x.new_empty(path, dtype=torch.int32), x.new_empty(path, dtype=_sum_dtype(x.dtype))
    level = _LEVELS.get(choose_cuda("auto", None), _LEVELS["cuda"])
    layer = (*codes, w_in.data_ptr(), _address(bias), w_out.data_ptr(), level, NULL)
    found = (nodes.data_ptr(), logits.data_ptr()) if return_path else (0, 0)
    rest = x.numel() // d_in, x.data_ptr(), y.data_ptr(), *found, 0, 0, True
    _queue(lib.cmm_py_cuda_fff, x, layer, rest)
    return y, nodes, logits


# Those of libcmm_cuda, which the environment variable CMM_LEVEL may name.
_LEVELS: dict[str, Any] = {name: ffi.new("char[]", name.encode()) for name in ("cuda-naive", "cuda")}


def _queue(function: Any, x: Tensor, layer: tuple[Any, ...], rest: tuple[Any, ...]) -> Tensor | None:
    """Queue a call of libcmm_cuda on the current stream. Returned is its workspace, where it needs one."""
    choose_cuda("cuda", None)
    needed = ffi.new("int64_t *")
    with torch.cuda.device(x.device):
        stream = torch.cuda.current_stream(x.device).cuda_stream
        memory = None
        status = function(*layer, stream, 0, 0, *rest, needed)
        if not status:
            if needed[0]:
                memory = _workspace(needed[0], x)
            start = 0 if memory is None else memory.data_ptr()
            status = function(*layer, stream, start, needed[0], *rest, NULL)
    if status:
        raise failure(status)
    return memory


def _workspace(size: int, x: Tensor) -> Tensor:
    try:
        return x.new_empty(size, dtype=torch.uint8)
    except torch.cuda.OutOfMemoryError as error:
        raise ArrayMemoryError(
            f"there is no memory for a workspace of {size} bytes on {x.device}: {error}"
        ) from error


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _narrowed(weight: Tensor, x: Tensor) -> Tensor:
    """Return weights in the dtype of x, where they are float32 and x has 16 bits, as under autocast."""
    return weight.to(x.dtype) if weight.dtype is torch.float32 and x.element_size() == 2 else weight


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of logits and of the gradients of weights: float32 where tokens are narrower."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def _forward_fake(
    x: Tensor,
    w_in: Tensor,
    bias: Tensor | None,
    w_out: Tensor,
    trees: int,
    activation: str,
    tie: str,
    return_path: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return tensors like those of the forward pass, with nothing in them."""
    depth = (w_in.shape[0] // max(trees, 1) + 1).bit_length() - 2
    lead = x.shape[:-1]
    path = (*lead, trees, depth + 1) if return_path else (0,)
    nodes = x.new_empty(path, dtype=torch.int32)
    return x.new_empty((*lead, w_out.shape[1])), nodes, x.new_empty(path, dtype=_sum_dtype(x.dtype))


# ---- the backward pass ---------------------------------------------------------------------------------------------


def _backward_cpu(
    dy: Tensor,
    x: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    nodes: Tensor,
    logits: Tensor,
    trees: int,
    activation: str,
    wanted: list[bool],
) -> tuple[Tensor, ...]:
    """Compute the gradients that are wanted, of dx, dw_in, dbias and dw_out; the others are empty."""
    _check_wanted(wanted)
    made = _gradients_like(x, w_in, w_out, wanted)
    into = [one if want else None for one, want in zip(made, wanted, strict=True)]
    _backward_into(into, 0, dy, x, w_in, w_out, nodes, logits, trees, activation)
    return made


def _backward_into(
    into: list[Tensor | None],
    added: int,
    dy: Tensor,
    x: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    nodes: Tensor,
    logits: Tensor,
    trees: int,
    activation: str,
) -> None:
    """Store gradients in new tensors, or add those to them whose bits are set in `added`."""
    codes = _codes(x.dtype, w_in.shape, None, w_out.shape, trees, activation, "left")
    _, _, _, depth, _, d_in, d_out = codes
    check_tokens(x, d_in)
    _same_dtype(x, w_in=w_in, w_out=w_out, logits=logits, dy=dy)
    _check_path(dy, x, w_in, w_out, nodes, logits, (trees, depth + 1), d_out)
    inputs = [_usable(tensor) for tensor in (w_in, w_out, x, nodes, logits, dy)]
    run = choose("native", None, torch.get_num_threads(), False)
    where = ffi.new("int64_t[2]")
    c_in, c_out, *c_tokens = map(_at, inputs)
    c_into = [NULL if one is None else _at(one) for one in into]
    status = lib.cmm_py_fff_backward(
        *codes, c_in, c_out, run[0], run[2], x.numel() // d_in, *c_tokens, added, *c_into, where
    )
    if status == lib.CMM_ERROR_PATH:
        token, tree = where
        found = nodes.reshape(-1, trees, depth + 1)[token, tree].tolist()
        raise ArgumentError(f"nodes has {found} for token {token}, tree {tree}; it should be a path from the root")
    if status:
        raise refused(status, run)


def _check_path(
    dy: Tensor,
    x: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    nodes: Tensor,
    logits: Tensor,
    of_token: tuple[int, int],
    d_out: int,
) -> None:
    _beside(x, dy=dy, w_in=w_in, w_out=w_out, nodes=nodes, logits=logits)
    path = (*x.shape[:-1], *of_token)
    for name, tensor, shape in (
        ("nodes", nodes, path),
        ("logits", logits, path),
        ("dy", dy, (*x.shape[:-1], d_out)),
    ):
        if tuple(tensor.shape) != shape:
            raise ShapeError(f"{name} has shape {tuple(tensor.shape)}; it should be {shape}")
    if nodes.dtype is not torch.int32:
        raise DtypeError(f"nodes has dtype {nodes.dtype}; it should be torch.int32, as the forward pass gives them")


def _check_wanted(wanted: list[bool]) -> None:
    if len(wanted) != 4 or not any(wanted):
        raise ArgumentError(f"wanted is {list(wanted)}; it should be four of True and False, and not all False")


def _backward_cuda(
    dy: Tensor,
    x: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    nodes: Tensor,
    logits: Tensor,
    trees: int,
    activation: str,
    wanted: list[bool],
) -> tuple[Tensor, ...]:
    """Queue the backward pass on the current stream of a GPU. A path that is none trips an assertion there."""
    _check_wanted(wanted)
    codes = _codes(x.dtype, w_in.shape, None, w_out.shape, trees, activation, "left", True)
    _, _, _, depth, _, d_in, d_out = codes
    check_tokens(x, d_in)
    _check_path(dy, x, w_in, w_out, nodes, logits, (trees, depth + 1), d_out)
    w_in, w_out = _narrowed(w_in, x), _narrowed(w_out, x)
    _same_dtype(x, w_in=w_in, w_out=w_out, dy=dy)
    if logits.dtype is not _sum_dtype(x.dtype):
        raise DtypeError(f"logits has dtype {logits.dtype}; it should be {_sum_dtype(x.dtype)}, x is of {x.dtype}")
    made = _gradients_like(x, w_in, w_out, wanted)
    w_in, w_out, x, nodes, logits, dy = inputs = [_usable(one) for one in (w_in, w_out, x, nodes, logits, dy)]
    at = [one.data_ptr() for one in inputs]
    into = [one.data_ptr() if want else 0 for one, want in zip(made, wanted, strict=True)]
    tokens = x.numel() // d_in
    memory = _queue(lib.cmm_py_cuda_fff_backward, x, (*codes, *at[:2]), (tokens, *at[2:], 0, *into))
    if memory is not None:
        # It begins with -1, or with the first path that is none: a positive number, whose highest byte is 0.
        torch._assert_async(memory[7], "nodes has a path that is none; it should be as the forward pass gives it")
    return made


def _gradients_like(x: Tensor, w_in: Tensor, w_out: Tensor, wanted: list[bool]) -> tuple[Tensor, ...]:
    """Return new tensors for the gradients, empty ones for those that are not wanted."""
    shapes = x.shape, w_in.shape, w_in.shape[:1], w_out.shape
    dtypes = x.dtype, *3 * (_sum_dtype(x.dtype),)
    return tuple(
        x.new_empty(shape if want else (0,), dtype=dtype)
        for shape, dtype, want in zip(shapes, dtypes, wanted, strict=True)
    )


def _backward_fake(
    dy: Tensor,
    x: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    nodes: Tensor,
    logits: Tensor,
    trees: int,
    activation: str,
    wanted: list[bool],
) -> tuple[Tensor, ...]:
    """Return tensors like the gradients, with nothing in them."""
    _check_wanted(wanted)
    return _gradients_like(x, w_in, w_out, wanted)


# ---- the gradient --------------------------------------------------------------------------------------------------


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    """Keep for the backward pass what it reads."""
    x, w_in, _, w_out, ctx.trees, ctx.activation, _, ctx.has_path = inputs
    _, nodes, logits = output
    ctx.dtypes = w_in.dtype, w_in.dtype if inputs[2] is None else inputs[2].dtype, w_out.dtype
    ctx.mark_non_differentiable(nodes)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, w_in, w_out, nodes, logits)


def _gradient(ctx: Any, dy: Tensor | None, _: Any, dlogits: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the gradients of the forward pass's arguments."""
    if not ctx.has_path:
        raise ArgumentError("return_path is False; for a gradient it should be True")
    x, w_in, w_out, nodes, logits = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad[:4])
    found: list[Tensor | None] = [None] * 4
    if torch.compiler.is_compiling():
        gradients = fff_backward
    elif torch.is_grad_enabled() or get_interpreter_stack():
        gradients = Backward.apply  # a derivative of this one may be asked for
    else:
        gradients = _backward_now
    if dy is not None and any(wanted):
        # A hook may have made another dtype of it.
        operands = dy.to(x.dtype), x, w_in, w_out, nodes, logits, ctx.trees, ctx.activation, wanted
        if _products_are_faster(x, nodes, len(w_in)):
            made = _gradients_by_products(*operands)
        else:
            made = gradients(*operands)
        found = [one if want else None for one, want in zip(made, wanted, strict=True)]
    if dlogits is not None and any(wanted[:3]):
        through = _through_logits(dlogits, x, w_in, nodes, ctx.trees, wanted, gradients)
        found[:3] = [b if a is None else a if b is None else a + b for a, b in zip(found[:3], through, strict=True)]
    found[1:] = [None if one is None else one.to(its) for one, its in zip(found[1:], ctx.dtypes, strict=True)]
    return *found, None, None, None, None


# The share of a layer's nodes that a token visits, from which on a GPU's products of all of them are faster.
_DENSE_SHARE = 1 / 16


def _products_are_faster(x: Tensor, nodes: Tensor, neurons: int) -> bool:
    """Whether they were on an H100, where docs/internals/performance-gpu.md has the table."""
    return x.is_cuda and nodes.shape[-1] * nodes.shape[-2] >= _DENSE_SHARE * neurons


def _gradients_by_products(
    dy: Tensor,
    x: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    nodes: Tensor,
    logits: Tensor,
    trees: int,
    activation: str,
    wanted: list[bool],
) -> tuple[Tensor | None, ...]:
    """Compute the same gradients by products of all neurons, of which those off the path are 0.

    But for what is not finite: an infinity or NaN of one token's x or dy reaches the gradients of all rows, and
    one of a row of w_in is taken as 0 for dx.
    """
    x, dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    path = len(x), trees, nodes.shape[-1]
    dhidden = dy @ w_out.to(x.dtype).t() if any(wanted[:3]) else None  # (T, K*N)
    how = activation, x.dtype, wanted[3]
    is_in_func = not torch.compiler.is_compiling() and get_interpreter_stack()
    between = HiddenOfPath.apply if is_in_func else fff_hidden_of_path
    hidden, dlogits = between(dhidden, nodes.reshape(path), logits.reshape(path), *how)
    dx = dw_in = dbias = dw_out = None
    if wanted[0]:
        rows = w_in.to(x.dtype)
        dx = (dlogits @ torch.where(torch.isfinite(rows), rows, 0)).reshape(nodes.shape[:-2] + x.shape[-1:])
    if wanted[1]:
        dw_in = dlogits.t() @ x
    if wanted[2]:
        dbias = dlogits.sum(0, dtype=logits.dtype)
    if wanted[3]:
        dw_out = hidden.t() @ dy
    return dx, dw_in, dbias, dw_out


# Each is 0 at 0, which is what nodes that were not visited get.
ACTIVATIONS_OF_TENSORS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
    "identity": lambda z: z,
}
_SLOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": lambda z: torch.ops.aten.gelu_backward(torch.ones_like(z), z),
    "gelu_tanh": lambda z: torch.ops.aten.gelu_backward(torch.ones_like(z), z, approximate="tanh"),
    "relu": lambda z: torch.where(z > 0, 1, torch.where(z <= 0, 0, z)),
    "silu": lambda z: torch.ops.aten.silu_backward(torch.ones_like(z), z),
    "identity": torch.ones_like,
}
assert ACTIVATIONS_OF_TENSORS.keys() == _SLOPES.keys() == ACTIVATIONS.keys()


# ---- between the products of all neurons ---------------------------------------------------------------------------


def _hidden_cuda(logits: Tensor, trees: int, activation: str, tie: str, return_nodes: bool) -> tuple[Tensor, Tensor]:
    """Walk the trees of all tokens: activations (..., K*N) of visited nodes, 0 elsewhere, and the nodes."""
    codes = _hidden_codes(logits.dtype, logits.shape[-1], trees, activation, tie)
    logits = _usable(logits)
    hidden, nodes = _hidden_fake(logits, trees, activation, tie, return_nodes)
    _queue_hidden(codes, logits, logits=logits, y=hidden, nodes=nodes if return_nodes else None)
    return hidden, nodes


def _hidden_fake(logits: Tensor, trees: int, activation: str, tie: str, return_nodes: bool) -> tuple[Tensor, Tensor]:
    """Return tensors like those, with nothing in them."""
    depth = _depth_of(logits.shape[-1], trees)
    nodes = logits.new_empty((*logits.shape[:-1], trees, depth + 1) if return_nodes else (0,), dtype=torch.int32)
    return torch.empty_like(logits, memory_format=torch.contiguous_format), nodes


def _hidden_backward_cuda(dhidden: Tensor, logits: Tensor, trees: int, activation: str, tie: str) -> Tensor:
    """Walk them again: the gradient of the logits, 0 where they were not visited."""
    codes = _hidden_codes(logits.dtype, logits.shape[-1], trees, activation, tie)
    _check_like(dhidden, logits, "logits", logits.shape, logits.dtype)
    dhidden, logits = _usable(dhidden), _usable(logits)
    dlogits = _hidden_backward_fake(dhidden, logits, trees, activation, tie)
    _queue_hidden(codes, logits, logits=logits, dy=dhidden, dx=dlogits)
    return dlogits


def _hidden_backward_fake(dhidden: Tensor, logits: Tensor, trees: int, activation: str, tie: str) -> Tensor:
    """Return a tensor like it, with nothing in it."""
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _visited_cuda(logits: Tensor, trees: int, tie: str) -> tuple[Tensor, Tensor]:
    """Walk the trees of all tokens: which of all nodes are visited, bool (..., K*N), and their numbers."""
    codes = _hidden_codes(logits.dtype, logits.shape[-1], trees, "identity", tie)
    logits = _usable(logits)
    visited, nodes = _visited_fake(logits, trees, tie)
    _queue_hidden(codes, logits, logits=logits, visited=visited, nodes=nodes)
    return visited, nodes


def _visited_fake(logits: Tensor, trees: int, tie: str) -> tuple[Tensor, Tensor]:
    """Return tensors like those, with nothing in them."""
    nodes = logits.new_empty((*logits.shape[:-1], trees, _depth_of(logits.shape[-1], trees) + 1), dtype=torch.int32)
    return torch.empty_like(logits, memory_format=torch.contiguous_format, dtype=torch.bool), nodes


def _hidden_of_path_cuda(
    dhidden: Tensor | None, nodes: Tensor, logits: Tensor, activation: str, dtype: torch.dtype, wants_hidden: bool
) -> tuple[Tensor, Tensor]:
    """Return activations of logits of paths, (T, K, D+1), and gradients, where those of the former are given."""
    _, trees, levels = _check_hidden_path(dhidden, nodes, logits, dtype)
    codes = _hidden_codes(dtype, trees * _nodes_of(levels), trees, activation, "left")
    nodes, logits, dhidden = _usable(nodes), _usable(logits), None if dhidden is None else _usable(dhidden)
    hidden, dlogits = made = _hidden_of_path_fake(dhidden, nodes, logits, activation, dtype, wants_hidden)
    into = {"y": hidden if wants_hidden else None, "dx": None if dhidden is None else dlogits}
    _queue_hidden(codes, nodes, logits=logits, path=nodes, dy=dhidden, **into)
    return made


def _hidden_of_path_cpu(
    dhidden: Tensor | None, nodes: Tensor, logits: Tensor, activation: str, dtype: torch.dtype, wants_hidden: bool
) -> tuple[Tensor, Tensor]:
    """Compute the same by operations of PyTorch."""
    _, trees, levels = _check_hidden_path(dhidden, nodes, logits, dtype)
    made = _hidden_of_path_fake(dhidden, nodes, logits, activation, dtype, wants_hidden)
    visited = _flat(nodes, trees, trees * _nodes_of(levels)).long()
    hidden, dlogits = (one.zero_() for one in made)
    z = logits.reshape(visited.shape)
    if wants_hidden:
        hidden.scatter_(1, visited, ACTIVATIONS_OF_TENSORS[activation](z).to(dtype))
    if dhidden is not None:
        slope = _SLOPES[activation](z)
        dlogits.scatter_(1, visited, (dhidden.gather(1, visited).to(z.dtype) * slope).to(dtype))
    return hidden, dlogits


def _hidden_of_path_fake(
    dhidden: Tensor | None, nodes: Tensor, logits: Tensor, activation: str, dtype: torch.dtype, wants_hidden: bool
) -> tuple[Tensor, Tensor]:
    """Return tensors like both, with nothing in them."""
    tokens, trees, levels = nodes.shape
    all_neurons = tokens, trees * _nodes_of(levels)
    made = [
        logits.new_empty(all_neurons if is_wanted else (0,), dtype=dtype)
        for is_wanted in (wants_hidden, dhidden is not None)
    ]
    return made[0], made[1]


def _nodes_of(levels: int) -> int:
    return int(2**levels) - 1


def _depth_of(neurons: int, trees: int) -> int:
    return (neurons // max(trees, 1) + 1).bit_length() - 2


def _hidden_codes(dtype: torch.dtype, neurons: int, trees: int, activation: str, tie: str) -> Codes:
    """Return what libcmm_cuda takes of a layer with so many neurons, or say what is wrong with it."""
    if dtype not in CUDA_DTYPES:
        raise DtypeError(f"logits has dtype {dtype}; it should be torch.float64, float32, bfloat16 or float16")
    shape = torch.Size((neurons, 1))
    dtype_code, *choices = _codes(dtype, shape, None, shape, trees, activation, tie, True)[:5]
    return (dtype_code, *choices)


def _check_like(tensor: Tensor, other: Tensor, name: str, shape: torch.Size, dtype: torch.dtype) -> None:
    if tensor.shape != shape or tensor.dtype is not dtype:
        found = f"{tuple(tensor.shape)} of {tensor.dtype}"
        raise ShapeError(f"dhidden is {found}; it should be {tuple(shape)} of {dtype}, for {name}")
    _beside(other, dhidden=tensor)


def _check_hidden_path(dhidden: Tensor | None, nodes: Tensor, logits: Tensor, dtype: torch.dtype) -> torch.Size:
    """Return T, K, D+1."""
    if nodes.ndim != 3 or nodes.dtype is not torch.int32:
        raise ShapeError(f"nodes is {tuple(nodes.shape)} of {nodes.dtype}; it should be (T, K, D+1) of torch.int32")
    if logits.shape != nodes.shape or logits.dtype is not _sum_dtype(dtype):
        found, should = f"{tuple(logits.shape)} of {logits.dtype}", f"{tuple(nodes.shape)} of {_sum_dtype(dtype)}"
        raise ShapeError(f"logits is {found}; it should be {should}")
    _beside(nodes, logits=logits)
    if dhidden is not None:
        shape = torch.Size((nodes.shape[0], nodes.shape[1] * _nodes_of(nodes.shape[2])))
        _check_like(dhidden, nodes, "nodes", shape, dtype)
    return nodes.shape


def _queue_hidden(codes: Codes, like: Tensor, **arrays: Tensor | None) -> None:
    """Queue what lies between the products on the current stream of a GPU."""
    choose_cuda("cuda", None)
    at = [_address(arrays.get(name)) for name in ("logits", "path", "dy", "y", "dx", "visited", "nodes")]
    elements = like.shape[-1] * (like.shape[-2] if "path" in arrays else 1)
    tokens = like.numel() // elements
    with torch.cuda.device(like.device):
        stream = torch.cuda.current_stream(like.device).cuda_stream
        status = lib.cmm_py_cuda_fff_hidden(*codes, stream, tokens, *at)
    if status:
        raise failure(status)


def _keep_hidden(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keep for the backward pass what it reads."""
    logits, *ctx.how, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(logits)


def _gradient_of_hidden(ctx: Any, dhidden: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    """Return the gradient of the logits; where it is to have one itself, or batches of it, by operations that can."""
    (logits,) = ctx.saved_tensors
    trees, activation, tie = ctx.how
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() or get_interpreter_stack()):
        dlogits = fff_hidden_backward(dhidden, logits, trees, activation, tie)
    else:
        _, nodes = fff_hidden(logits.detach(), trees, activation, tie, True)
        rows = _flat(nodes, trees, logits.shape[-1]).long().reshape(*logits.shape[:-1], -1)
        visited = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, rows, 1)
        wants_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            hidden = ACTIVATIONS_OF_TENSORS[activation](torch.where(visited, logits, 0))
            (dlogits,) = torch.autograd.grad(hidden, logits, dhidden, create_graph=wants_graph)
    return dlogits, None, None, None, None


def _through_logits(
    dlogits: Tensor, x: Tensor, w_in: Tensor, nodes: Tensor, trees: int, wanted: list[bool], gradients: Any
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return what a gradient with respect to the logits themselves adds to dx, dw_in and dbias."""
    rows = _flat(nodes, trees, len(w_in))
    dz = dlogits.reshape(rows.shape)
    dx = dw_in = dbias = None
    if wanted[0]:
        factors = dz.to(x.dtype)
        dx = functional.embedding_bag(rows, w_in.to(x.dtype), per_sample_weights=factors, mode="sum").reshape(x.shape)
    if wanted[1]:
        *_, dw_in = gradients(*_as_dw_out(dlogits, x, w_in, nodes), trees, "identity", [False, False, False, True])
    if wanted[2]:
        dbias = dz.new_zeros(len(w_in)).index_add(0, rows.reshape(-1), dz.reshape(-1))
    return dx, dw_in, dbias


def _as_dw_out(
    dlogits: Tensor, x: Tensor, w_in: Tensor, nodes: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return tensors of a backward pass whose dw_out is what dlogits adds to dw_in.

    dw_out[n] is the sum of activation(logit) dy over the tokens at n: with the identity, dlogits in the place of the
    logits and x in that of dy, the sum of dlogits x.
    """
    return x, x, w_in, w_in, nodes, dlogits.to(_sum_dtype(x.dtype))


def _flat(nodes: Tensor, trees: int, rows: int) -> Tensor:
    """Return the rows of visited nodes, (T, K*(D+1))."""
    first = torch.arange(trees, device=nodes.device)[:, None] * (rows // trees)
    return (nodes + first).reshape(-1, nodes.shape[-1] * trees)


_NO_FORWARD_MODE = 'forward-mode derivatives are not computed through visited nodes: use backward="dense"'
_NO_SECOND = 'second derivatives are not computed through visited nodes: use backward="dense"'


class Recorded(torch.autograd.Function):
    """The forward pass with its gradient, outside of torch.func and of forward mode."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Apply a layer."""
        output = _forward_now(*inputs)
        _keep(ctx, inputs, output)
        return output

    backward = staticmethod(_gradient)


def _forward_now(x: Tensor, w_in: Tensor, bias: Tensor | None, w_out: Tensor, *how: Any) -> Any:
    """Call the operator, and where nobody looks on past PyTorch's dispatcher, which takes as long as some kernels."""
    if not _is_plain(x, w_in, bias, w_out):
        return fff_forward(x, w_in, bias, w_out, *how)
    return (_forward_cuda if x.is_cuda else _forward_cpu)(x, w_in, bias, w_out, *how)


def _backward_now(
    dy: Tensor, x: Tensor, w_in: Tensor, w_out: Tensor, nodes: Tensor, logits: Tensor, *how: Any
) -> tuple[Tensor, ...]:
    """Call the operator likewise."""
    operands = dy, x, w_in, w_out, nodes, logits
    if not _is_plain(*operands):
        found: tuple[Tensor, ...] = fff_backward(*operands, *how)
        return found
    return (_backward_cuda if x.is_cuda else _backward_cpu)(*operands, *how)


def _is_plain(*tensors: Tensor | None) -> bool:
    """Whether these are tensors on a CPU or a GPU, as they are in memory, and no mode wants to see what is called."""
    return not is_in_torch_dispatch_mode() and all(
        one is None or (type(one) in (Tensor, Parameter) and (one.is_cpu or one.is_cuda) and not one.is_neg())
        for one in tensors
    )


class Conditional(torch.autograd.Function):
    """The forward pass with its gradient, for torch.func too, which cannot see that of an operator."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Apply a layer."""
        return fff_forward(*inputs)

    setup_context = staticmethod(_keep)
    backward = staticmethod(_gradient)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """Refuse."""
        raise ArgumentError(_NO_FORWARD_MODE)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
        """Apply a layer to a batch of batches."""
        return _forward_vmap(info, in_dims, *inputs, call=Conditional.apply)


class Backward(torch.autograd.Function):
    """The backward pass, of which there is no derivative."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        """Compute gradients."""
        return fff_backward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep nothing."""

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """Refuse."""
        raise ArgumentError(_NO_SECOND)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
        """Compute the gradients of each of a batch."""
        return _one_by_one(Backward.apply, info, in_dims, inputs)


class HiddenOfPath(Backward):
    """What lies between products of all neurons, for torch.func, which cannot see an operator's gradient."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        """Compute activations and gradients."""
        return fff_hidden_of_path(*inputs)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
        """Compute those of a batch of batches as of one: each token has its own."""
        tokens = [
            one
            if one is None
            else (one.expand(info.batch_size, *one.shape) if dim is None else one.movedim(dim, 0)).flatten(0, 1)
            for one, dim in zip(inputs[:3], in_dims[:3], strict=True)
        ]
        found = HiddenOfPath.apply(*tokens, *inputs[3:])
        return tuple(one.unflatten(0, (info.batch_size, -1)) for one in found), (0, 0)


class SparseConditional(Conditional):
    """The forward pass whose gradients of weights and bias are sparse: COO, of visited rows alone."""

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, _: Any, dlogits: Tensor | None) -> tuple[Tensor | None, ...]:
        """Compute gradients at the cost of the visited rows, and of a look at one bit for each row."""
        wanted = ctx.needs_input_grad[:4]
        found = SparseBackward.apply(dy, dlogits, *ctx.saved_tensors, ctx.trees, ctx.activation, wanted)
        return *found, None, None, None, None


class SparseBackward(Backward):
    """Its backward pass, of which there is no derivative."""

    @staticmethod
    def forward(
        dy: Tensor | None,
        dlogits: Tensor | None,
        x: Tensor,
        w_in: Tensor,
        w_out: Tensor,
        nodes: Tensor,
        logits: Tensor,
        trees: int,
        activation: str,
        wanted: tuple[bool, ...],
    ) -> tuple[Tensor | None, ...]:
        """Compute gradients."""
        visited = x.new_zeros(len(w_in), dtype=torch.bool)
        visited[_flat(nodes, trees, len(w_in)).reshape(-1)] = True
        (rows,) = visited.nonzero(as_tuple=True)
        shapes = w_in.shape, w_in.shape[:1], w_out.shape
        free = [_sums_of(w_in, shape, x) for shape in shapes]
        sums = [
            _zeros(its, shape, x) if want else None for its, shape, want in zip(free, shapes, wanted[1:], strict=True)
        ]
        dx = None
        if dy is not None and any(wanted):
            dx = torch.empty_like(x, memory_format=torch.contiguous_format) if wanted[0] else None
            bits = lib.CMM_DW_IN * wanted[1] | lib.CMM_DBIAS * wanted[2] | lib.CMM_DW_OUT * wanted[3]
            _backward_into([dx, *sums], bits, dy, x, w_in, w_out, nodes, logits, trees, activation)
        if dlogits is not None:
            through = [wanted[0], False, wanted[2]]
            more, _, dbias = _through_logits(dlogits, x, w_in, nodes, trees, through, None)
            dx = more if dx is None else dx if more is None else dx + more
            if wanted[1]:
                into = [None, None, None, sums[0]]
                _backward_into(into, lib.CMM_DW_OUT, *_as_dw_out(dlogits, x, w_in, nodes), trees, "identity")
            if sums[1] is not None:
                sums[1] += dbias
        values = [None if one is None else one[rows] for one in sums]
        for one, its in zip(sums, free, strict=True):
            if one is not None:
                one[rows] = 0
                its.append(one)
        sparse = [
            None
            if one is None
            else torch.sparse_coo_tensor(rows[None], one, shape, is_coalesced=True, check_invariants=False)
            for one, shape in zip(values, shapes, strict=True)
        ]
        return dx, *sparse


class _Sums(list[Tensor]):
    """Zeros of all rows of one shape, for sums whose visited rows are taken out and set to 0 again."""


# Layers share them. They live as long as a weight that has used them.
_sums: WeakValueDictionary[tuple[torch.Size, torch.dtype, torch.device], _Sums] = WeakValueDictionary()
_users = WeakTensorKeyDictionary()


def _sums_of(weight: Tensor, shape: torch.Size, like: Tensor) -> _Sums:
    """Return what is free for a weight."""
    kind = shape, like.dtype, like.device
    found = _sums.setdefault(kind, _Sums())
    _users.setdefault(weight, {})[kind] = found
    return found


def _zeros(free: _Sums, shape: torch.Size, like: Tensor) -> Tensor:
    """Return zeros that are free, or new ones."""
    try:
        return free.pop()
    except IndexError:
        return like.new_zeros(shape)


def _no_second(ctx: Any, *gradients: Any) -> Any:
    raise ArgumentError(_NO_SECOND)


# ---- vmap ----------------------------------------------------------------------------------------------------------


def _forward_vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any, call: Any = fff_forward) -> Any:
    """Tokens have any leading dimensions, so theirs is one more; other weights for each are so many calls."""
    x, *weights = inputs[:4]
    if any(dim is not None for dim in in_dims[1:4]):
        return _one_by_one(call, info, in_dims, inputs)
    found = call(x.movedim(in_dims[0], 0), *weights, *inputs[4:])
    return found, (0, 0, 0) if inputs[7] else (0, None, None)


def _one_by_one(call: Any, info: Any, in_dims: tuple[Any, ...], inputs: tuple[Any, ...]) -> Any:
    found = []
    for place in range(info.batch_size):
        some = [
            one if dim is None or not isinstance(one, Tensor) else one.select(dim, place)
            for one, dim in zip(inputs, in_dims, strict=True)
        ]
        found.append(call(*some))
    return tuple(torch.stack(each) for each in zip(*found, strict=True)), (0,) * len(found[0])


def _backward_vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
    return _one_by_one(fff_backward, info, in_dims, inputs)


# ---- autocast ------------------------------------------------------------------------------------------------------


def _forward_autocast_cuda(x: Tensor, *others: Any) -> Any:
    """Narrow the tokens alone: weights of float32 are narrowed beside them, and have gradients of float32."""
    x = autocast(x)
    with torch.autocast("cuda", enabled=False):
        return fff_forward(x, *others)


def autocast(x: Tensor) -> Tensor:
    """Return tokens as autocast has libcmm compute with them: on a GPU in its dtype, on a CPU in float32."""
    if x.dtype is torch.float64 or not x.is_floating_point():  # which is refused later, by its name
        return x
    return x.to(torch.get_autocast_dtype("cuda") if x.is_cuda else torch.float32)


# ---- what the dispatcher is told -----------------------------------------------------------------------------------

_LIBRARY.impl("fff_forward", _forward_cpu, "CPU")
_LIBRARY.impl("fff_forward", _forward_cuda, "CUDA")
_LIBRARY.impl("fff_backward", _backward_cpu, "CPU")
_LIBRARY.impl("fff_backward", _backward_cuda, "CUDA")
_LIBRARY.impl("fff_hidden", _hidden_cuda, "CUDA")
_LIBRARY.impl("fff_hidden_backward", _hidden_backward_cuda, "CUDA")
_LIBRARY.impl("fff_visited", _visited_cuda, "CUDA")
_LIBRARY.impl("fff_hidden_of_path", _hidden_of_path_cuda, "CUDA")
_LIBRARY.impl("fff_hidden_of_path", _hidden_of_path_cpu, "CPU")
torch.library.register_fake("cmm::fff_hidden", _hidden_fake, lib=_LIBRARY)
torch.library.register_fake("cmm::fff_hidden_backward", _hidden_backward_fake, lib=_LIBRARY)
torch.library.register_fake("cmm::fff_visited", _visited_fake, lib=_LIBRARY)
torch.library.register_fake("cmm::fff_hidden_of_path", _hidden_of_path_fake, lib=_LIBRARY)
torch.library.register_autograd("cmm::fff_hidden", _gradient_of_hidden, setup_context=_keep_hidden, lib=_LIBRARY)
torch.library.register_autograd("cmm::fff_hidden_backward", _no_second, lib=_LIBRARY)
torch.library.register_autograd("cmm::fff_hidden_of_path", _no_second, lib=_LIBRARY)
torch.library.register_fake("cmm::fff_forward", _forward_fake, lib=_LIBRARY)
torch.library.register_fake("cmm::fff_backward", _backward_fake, lib=_LIBRARY)
torch.library.register_autograd("cmm::fff_forward", _gradient, setup_context=_keep, lib=_LIBRARY)
torch.library.register_autograd("cmm::fff_backward", _no_second, lib=_LIBRARY)
torch.library.register_vmap("cmm::fff_forward", _forward_vmap, lib=_LIBRARY)
torch.library.register_vmap("cmm::fff_backward", _backward_vmap, lib=_LIBRARY)
# On a CPU libcmm has no narrow tokens, and float32 is what it is fast in.
torch.library.register_autocast("cmm::fff_forward", "cpu", torch.float32, lib=_LIBRARY)
_LIBRARY.impl("fff_forward", _forward_autocast_cuda, "AutocastCUDA")
