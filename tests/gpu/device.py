"""libcmm_cuda called past the Python functions, to reach its methods; arrays are PyTorch's, on the current GPU."""

from __future__ import annotations

from typing import Any

import torch
from cmm import _cuda
from cmm._call import ACTIVATIONS, NULL, TIES, failure, ffi, lib
from numpy.typing import NDArray

DTYPES = {
    torch.float32: lib.CMM_F32,
    torch.float64: lib.CMM_F64,
    torch.bfloat16: lib.CMM_BF16,
    torch.float16: lib.CMM_F16,
}
METHODS = ("block", "walk", "wide", "group")


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
    method: str = "",
    activation: str = "gelu",
    tie: str = "left",
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor] | None:
    """Return y, nodes, logits; None where the method cannot do this layer."""
    _cuda.choose("cuda")
    trees, size, d_in = w_in.shape
    depth = size.bit_length() - 1
    sums = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = None if w_out is None else torch.full((len(x), w_out.shape[2]), torch.nan, dtype=x.dtype, device="cuda")
    nodes = torch.full((len(x), trees, depth + 1), -7, dtype=torch.int32, device="cuda")
    logits = torch.full(nodes.shape, torch.nan, dtype=sums, device="cuda")
    at = [0 if a is None else a.data_ptr() for a in (w_in, bias, w_out, x, y, nodes, logits)]
    d_out = 1 if w_out is None else w_out.shape[2]
    layer = (DTYPES[x.dtype], ACTIVATIONS[activation], TIES[tie], depth, trees, d_in, d_out)
    how = (ffi.new("char[]", level.encode()), ffi.new("char[]", method.encode()) if method else NULL)
    needed = ffi.new("int64_t *")
    run = (*layer, *at[:3], *how, torch.cuda.current_stream().cuda_stream)
    rest = (len(x), *at[3:], w_out is not None)
    status = lib.cmm_py_cuda_fff(*run, 0, 0, *rest, needed)
    workspace = torch.full((needed[0],), 0xA5, dtype=torch.uint8, device="cuda")  # not zeros
    if not status:
        status = lib.cmm_py_cuda_fff(*run, workspace.data_ptr(), needed[0], *rest, NULL)
    if status == lib.CMM_ERROR_METHOD:
        return None
    if status:
        raise failure(status)
    return y, nodes, logits
