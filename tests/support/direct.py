"""libcmm called directly, past the Python functions: instruction sets, thread counts, outputs at any address.

Arrays are passed as they are: C-contiguous, of one dtype, already of the right shapes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from cmm import blas
from cmm._native import ACTIVATIONS, TIES, failure, ffi, lib
from numpy.typing import NDArray

Array = NDArray[Any]


def pointer(array: Array | None) -> Any:
    """Return the address of an array's first element, whatever its size."""
    return ffi.NULL if array is None else ffi.cast("void *", array.ctypes.data)


def _run(level: str, isa: str, algorithm: str, threads: int, with_blas: bool) -> tuple[Any, list[Any]]:
    """A cmm_run, and what must outlive it."""
    found = blas.available() if with_blas else None
    names = {"level": level, "isa": isa, "algorithm": algorithm}
    texts = {field: ffi.new("char[]", name.encode()) if name else ffi.NULL for field, name in names.items()}
    table = found.table if found is not None else ffi.NULL
    run = ffi.new("cmm_run *", {"size": ffi.sizeof("cmm_run"), "threads": threads, **texts, "blas": table})
    return run, [found, texts]


def fff(
    x: Array,
    w_in: Array,
    bias: Array | None,
    w_out: Array | None,
    y: Array | None,
    nodes: Array | None,
    logits: Array | None,
    *,
    level: str,
    isa: str = "",
    algorithm: str = "",
    threads: int = 1,
    activation: str = "gelu",
    tie: str = "left",
) -> None:
    """cmm_fff_forward, or cmm_cmm_forward where y is None.

    Parameters
    ----------
    x : (B, d_in), w_in : (K, N, d_in), bias : (K, N), w_out : (K, N, d_out)
    y : (B, d_out), nodes and logits : (B, K, D+1)
        Written.
    """
    trees, size, d_in = w_in.shape
    layer = ffi.new(
        "cmm_fff *",
        {
            "size": ffi.sizeof("cmm_fff"),
            "dtype": lib.CMM_F32 if x.dtype == np.float32 else lib.CMM_F64,
            "activation": ACTIVATIONS[activation],
            "tie": TIES[tie],
            "depth": size.bit_length() - 1,
            "trees": trees,
            "d_in": d_in,
            "d_out": 0 if w_out is None else w_out.shape[2],
            "w_in": pointer(w_in),
            "bias": pointer(bias),
            "w_out": pointer(w_out),
        },
    )
    run, kept = _run(level, isa, algorithm, threads, with_blas=level.startswith("blas"))
    path = ffi.cast("int32_t *", pointer(nodes)), pointer(logits)
    if y is None:
        status = lib.cmm_cmm_forward(layer, run, len(x), pointer(x), *path)
    else:
        status = lib.cmm_fff_forward(layer, run, len(x), pointer(x), pointer(y), *path)
    del kept
    if status:
        raise failure(status)


def ff(
    x: Array,
    w_in: Array,
    bias: Array | None,
    w_out: Array,
    y: Array,
    *,
    level: str,
    isa: str = "",
    algorithm: str = "",
    threads: int = 1,
    activation: str = "gelu",
) -> None:
    """cmm_ff_forward. A level other than blas1, blas2 and blas3 gets no BLAS, so that native is our own kernels."""
    neurons, d_in = w_in.shape
    layer = ffi.new(
        "cmm_ff *",
        {
            "size": ffi.sizeof("cmm_ff"),
            "dtype": lib.CMM_F32 if x.dtype == np.float32 else lib.CMM_F64,
            "activation": ACTIVATIONS[activation],
            "neurons": neurons,
            "d_in": d_in,
            "d_out": w_out.shape[1],
            "w_in": pointer(w_in),
            "bias": pointer(bias),
            "w_out": pointer(w_out),
        },
    )
    run, kept = _run(level, isa, algorithm, threads, with_blas=level.startswith("blas"))
    status = lib.cmm_ff_forward(layer, run, len(x), pointer(x), pointer(y))
    del kept
    if status:
        raise failure(status)
