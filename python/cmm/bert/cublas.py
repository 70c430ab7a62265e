"""Matrix products on a GPU by cuBLAS, called past CuPy, whose own functions refuse to be captured in a graph."""

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from threading import Lock
from typing import Any

from cmm.errors import UnusableError

# cublas_api.h and library_types.h
_AS_IS, _TRANSPOSED = 0, 1
_TYPES = {"float32": 0, "float16": 2, "bfloat16": 14}
_COMPUTE_32F, _DEFAULT_ALGORITHM = 68, -1
_WIDE_REDUCTION = 16  # CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION: else parts of a sum may be added in 16 bits

#: Of a handle; what NVIDIA recommends for its largest GPUs.
WORKSPACE_BYTES = 32 << 20


@cache
def _library(major: int) -> Any:
    """Return cuBLAS, which CuPy has loaded: the loader finds by its name what is there already."""
    name = f"cublas64_{major}.dll" if sys.platform == "win32" else f"libcublas.so.{major}"
    try:
        library = ctypes.CDLL(name)
    except OSError as error:
        raise UnusableError(f"the encoder on a GPU needs cuBLAS, which cannot be loaded: {error}") from error
    size, pointer, number = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int
    matrix = pointer, number, number  # where, type, distance of rows
    library.cublasCreate_v2.argtypes = (pointer,)
    library.cublasSetStream_v2.argtypes = pointer, pointer
    library.cublasSetWorkspace_v2.argtypes = pointer, pointer, size
    library.cublasSetMathMode.argtypes = pointer, number
    library.cublasGemmEx.argtypes = (
        pointer,
        *(number,) * 5,
        pointer,
        *matrix,
        *matrix,
        pointer,
        *matrix,
        number,
        number,
    )
    return library


def _checked(status: int, what: str) -> None:
    if status:
        raise UnusableError(f"cuBLAS refuses {what}: status {status}")


_lock = Lock()  # of all handles: a handle is for one thread at a time


@cache
def _handle(cupy: Any, device: int) -> tuple[Any, Any]:
    """Return the library and a handle for the current GPU, of that number; it lives as long as the process."""
    cupy.cuda.device.get_cublas_handle()  # loads it
    library, handle = _library(cupy.cuda.runtime.runtimeGetVersion() // 1000), ctypes.c_void_p()
    _checked(library.cublasCreate_v2(ctypes.byref(handle)), "a handle")
    _checked(library.cublasSetMathMode(handle, _WIDE_REDUCTION), "sums in float32")
    return library, handle


_ONE, _ZERO = ctypes.c_float(1), ctypes.c_float(0)


def multiplier(cupy: Any, device: int, dtype: str, workspace: Any) -> Callable[..., None]:
    """Return a function that multiplies on CuPy's current stream.

    Parameters
    ----------
    cupy : module
    device : int
        The current GPU.
    dtype : {"float32", "bfloat16", "float16"}
        Of the factors. Sums are float32, without TF32.
    workspace : array of WORKSPACE_BYTES bytes
        For products that follow each other on the device.

    Returns
    -------
    callable
        ``multiply(a, b, out, transposed=True, add=False)``: with a (m, k) and b (n, k), or (k, n) where it is not
        transposed, ``out`` (m, n) becomes their product, or grows by it. Rows of b and out are contiguous; out is
        float32 or of dtype.
    """
    library, handle = _handle(cupy, device)
    kind = _TYPES[dtype]

    def multiply(a: Any, b: Any, out: Any, transposed: bool = True, add: bool = False) -> None:
        (m, k), n = a.shape, out.shape[1]
        if 0 in (m, n, k):
            return
        # cuBLAS takes matrices by columns, where these are their own transposes: out.T = b.T.T a.T, or b.T a.T.
        with _lock:
            _checked(library.cublasSetStream_v2(handle, cupy.cuda.get_current_stream().ptr), "the stream")
            # of the caller, for a graph may take none of cuBLAS's own; a new stream takes it away
            _checked(library.cublasSetWorkspace_v2(handle, workspace.data.ptr, WORKSPACE_BYTES), "its workspace")
            status = library.cublasGemmEx(
                handle,
                _TRANSPOSED if transposed else _AS_IS,
                _AS_IS,
                n,
                m,
                k,
                ctypes.byref(_ONE),
                b.data.ptr,
                kind,
                b.shape[1],
                a.data.ptr,
                kind,
                k,
                ctypes.byref(_ONE if add else _ZERO),
                out.data.ptr,
                _TYPES["float32"] if out.dtype == "float32" else kind,
                n,
                _COMPUTE_32F,
                _DEFAULT_ALGORITHM,
            )
        _checked(status, f"a product of {m} x {k} and {k} x {n} numbers, {dtype}")

    return multiply
