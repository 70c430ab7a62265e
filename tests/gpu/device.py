"""libcmm_cuda called past the Python functions, to reach its algorithms; arrays are PyTorch's, on the current GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cmm
import torch
from cmm._dispatch import choose_cuda
from cmm._native import ACTIVATIONS, NULL, TIES, failure, ffi, lib
from numpy.typing import NDArray

DTYPES = {
    torch.float32: lib.CMM_F32,
    torch.float64: lib.CMM_F64,
    torch.bfloat16: lib.CMM_BF16,
    torch.float16: lib.CMM_F16,
}
ALGORITHMS = ("generic", "per_token", "small_batch", "grouped", "grouped_gemm", "dense_routed")


def to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """Return the values; those of 16 bits as float32, which holds them exactly."""
    return (tensor.float() if tensor.element_size() == 2 else tensor).cpu().numpy()


def fff(
    x: torch.Tensor,
    w_in: torch.Tensor,
    w_out: torch.Tensor | None,
    bias: torch.Tensor | None = None,
    *,
    level: str = "cuda",
    algorithm: str = "",
    activation: str = "gelu",
    tie: str = "left",
    path: torch.Tensor | None = None,
    verdict: list[int] | None = None,
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor] | None:
    """Return y, nodes, logits; None where the level or the algorithm cannot do this layer.

    path: nodes to take, or leaves; verdict gets what the call says of it.
    """
    if level == "cuda-bmm":
        return None if x.dtype == torch.bfloat16 else _bmm(x, w_in, w_out, bias, activation, tie, path)
    choose_cuda("cuda", None)
    trees, size, d_in = w_in.shape
    depth = size.bit_length() - 1
    sums = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = None if w_out is None else torch.full((len(x), w_out.shape[2]), torch.nan, dtype=x.dtype, device="cuda")
    nodes = torch.full((len(x), trees, depth + 1), -7, dtype=torch.int32, device="cuda")
    logits = torch.full(nodes.shape, torch.nan, dtype=sums, device="cuda")
    at = [0 if a is None else a.data_ptr() for a in (w_in, bias, w_out, x, y, nodes, logits)]
    d_out = 1 if w_out is None else w_out.shape[2]
    layer = (DTYPES[x.dtype], ACTIVATIONS[activation], TIES[tie], depth, trees, d_in, d_out)
    how = (ffi.new("char[]", level.encode()), ffi.new("char[]", algorithm.encode()) if algorithm else NULL)
    needed = ffi.new("int64_t *")
    run = (*layer, *at[:3], *how, torch.cuda.current_stream().cuda_stream)
    by_leaf = path is not None and path.ndim == 2
    given = 0 if path is None else path.data_ptr()
    rest = (len(x), *at[3:], 0 if by_leaf else given, given if by_leaf else 0, w_out is not None)
    status = lib.cmm_py_cuda_fff(*run, 0, 0, *rest, needed)
    workspace = torch.full((needed[0],), 0xA5, dtype=torch.uint8, device="cuda")  # not zeros
    if not status:
        status = lib.cmm_py_cuda_fff(*run, workspace.data_ptr(), needed[0], *rest, NULL)
    if status == lib.CMM_ERROR_METHOD:
        return None
    if status:
        raise failure(status)
    if verdict is not None:
        verdict.append(int(workspace[:8].view(torch.int64)))
    return y, nodes, logits


NAMES = ("dx", "dw_in", "dbias", "dw_out")


def gradients_like(x: torch.Tensor, w_in: torch.Tensor, w_out: torch.Tensor, value: float) -> dict[str, torch.Tensor]:
    """Return arrays for the gradients, those of weights in the type of sums."""
    sums = torch.float64 if x.dtype == torch.float64 else torch.float32
    shapes = {"dx": x.shape, "dw_in": w_in.shape, "dbias": w_in.shape[:2], "dw_out": w_out.shape}
    return {
        name: torch.full(shape, value, dtype=x.dtype if name == "dx" else sums, device="cuda")
        for name, shape in shapes.items()
    }


def backward(
    x: torch.Tensor,
    w_in: torch.Tensor,
    w_out: torch.Tensor,
    nodes: torch.Tensor,
    logits: torch.Tensor,
    dy: torch.Tensor,
    into: dict[str, torch.Tensor],
    *,
    activation: str = "gelu",
    accumulate: int = 0,
    memory: list[torch.Tensor] | None = None,
) -> int:
    """Fill in the gradients that are there; return what the call says of the path.

    memory: workspaces of earlier calls, of which one may do; with it the path is not asked about, which would wait.
    """
    choose_cuda("cuda", None)
    trees, size, d_in = w_in.shape
    codes = (DTYPES[x.dtype], ACTIVATIONS[activation], 0, size.bit_length() - 1, trees, d_in, w_out.shape[2])
    run = (*codes, w_in.data_ptr(), w_out.data_ptr(), torch.cuda.current_stream().cuda_stream)
    given = (one.data_ptr() for one in (x, nodes, logits, dy))
    rest = (len(x), *given, accumulate, *(into[name].data_ptr() if name in into else 0 for name in NAMES))
    needed = ffi.new("int64_t *")
    status = lib.cmm_py_cuda_fff_backward(*run, 0, 0, *rest, needed)
    if status:
        raise failure(status)
    kept = [] if memory is None else memory
    if not kept or kept[-1].numel() < needed[0]:
        kept.append(torch.full((needed[0],), 0xA5, dtype=torch.uint8, device="cuda"))  # not zeros
    status = lib.cmm_py_cuda_fff_backward(*run, kept[-1].data_ptr(), needed[0], *rest, NULL)
    if status:
        raise failure(status)
    return int(kept[-1][:8].view(torch.int64)) if memory is None and needed[0] else -1


def hidden(
    logits: torch.Tensor,
    trees: int,
    depth: int,
    *,
    path: torch.Tensor | None = None,
    dy: torch.Tensor | None = None,
    y: torch.Tensor | None = None,
    dx: torch.Tensor | None = None,
    visited: torch.Tensor | None = None,
    nodes: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
    activation: str = "gelu",
    tie: str = "left",
) -> None:
    """Fill in y, dx, visited and nodes, where they are there, by what lies between two products.

    dtype: of the layer, where logits are of a path.
    """
    choose_cuda("cuda", None)
    codes = (DTYPES[dtype or logits.dtype], ACTIVATIONS[activation], TIES[tie], depth, trees)
    at = (0 if one is None else one.data_ptr() for one in (logits, path, dy, y, dx, visited, nodes))
    status = lib.cmm_py_cuda_fff_hidden(*codes, torch.cuda.current_stream().cuda_stream, len(logits), *at)
    if status:
        raise failure(status)


def plan_of(
    x: torch.Tensor,
    w_in: torch.Tensor,
    w_out: torch.Tensor,
    y: torch.Tensor,
    algorithm: str,
    leaves: torch.Tensor | None = None,
) -> Callable[[], None]:
    """Return a call that only queues kernels, on the stream that is current when it is made."""
    choose_cuda("cuda", None)
    trees, size, d_in = w_in.shape
    layer = (DTYPES[x.dtype], 0, 0, size.bit_length() - 1, trees, d_in, w_out.shape[2])
    how = (ffi.new("char[]", b"cuda"), ffi.new("char[]", algorithm.encode()), torch.cuda.current_stream().cuda_stream)
    run = (*layer, w_in.data_ptr(), 0, w_out.data_ptr(), *how)
    rest = (len(x), x.data_ptr(), y.data_ptr(), 0, 0, 0, 0 if leaves is None else leaves.data_ptr(), True)
    needed = ffi.new("int64_t *")
    status = lib.cmm_py_cuda_fff(*run, 0, 0, *rest, needed)
    workspace = torch.empty(needed[0], dtype=torch.uint8, device="cuda")

    def call() -> None:
        status = lib.cmm_py_cuda_fff(*run, workspace.data_ptr(), needed[0], *rest, NULL)
        if status:
            raise failure(status)

    if status:
        raise failure(status)
    return call


def _bmm(x: Any, w_in: Any, w_out: Any, bias: Any, activation: str, tie: str, path: Any) -> Any:
    if w_out is None:
        return (None, *cmm.cmm(x, w_in, bias, tie=tie, level="cuda-bmm", path=path))
    how = {"activation": activation, "tie": tie, "level": "cuda-bmm", "path": path}
    return cmm.fff_forward(x, w_in, w_out, bias, return_path=True, **how)
