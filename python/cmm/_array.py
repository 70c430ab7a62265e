"""Arrays: the only file that knows what they are. NumPy arrays come in, and memory that libcmm can use goes out.

An input may be anything that NumPy makes a float32 or float64 array of. libcmm wants it C-contiguous and aligned, so
what is not is copied. An output may be any writable array of the right shape and dtype; where libcmm cannot write to
it, a temporary takes its place and is copied at the end.
"""

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from cmm._call import ffi, lib
from cmm.errors import ArgumentError, ArrayMemoryError, DtypeError, ShapeError

Floats: TypeAlias = NDArray[Any]  # float32 or float64

F32 = np.dtype(np.float32)
F64 = np.dtype(np.float64)
I32 = np.dtype(np.int32)
CODES = {F32: lib.CMM_F32, F64: lib.CMM_F64}

_USABLE = 0x1 | 0x100  # ndarray.flags.num: C-contiguous, aligned
_WRITABLE = 0x400
_FIT = _USABLE | _WRITABLE

# The address of an array. It checks no dtype: only what the functions of this file return may be passed.
address = ffi.from_buffer


# ---- inputs --------------------------------------------------------------------------------------------------------


def floats(name: str, value: ArrayLike) -> Floats:
    """Return an input as libcmm wants it: the array itself where that will do, else a plain, contiguous copy.

    Parameters
    ----------
    name : str
        The argument's name, for the message.
    value : array_like

    Raises
    ------
    DtypeError
        The elements are not native float32 or float64, or some are masked.
    ShapeError
        A nested list is ragged.
    ArrayMemoryError
        There is no memory for a copy.
    """
    if type(value) is np.ndarray:
        dtype = value.dtype
        if (dtype is F32 or dtype is F64) and value.flags.num & _USABLE == _USABLE:
            return value
    return _converted(name, value)


def _converted(name: str, value: ArrayLike) -> Floats:
    array = value if type(value) is np.ndarray else _plain(name, value)
    if array.dtype == F32:  # another object of the same dtype becomes this one, so that `is` can compare them
        array = array.view(F32)
    elif array.dtype == F64:
        array = array.view(F64)
    else:
        raise _dtype_error(name, array.dtype)
    if array.flags.num & _USABLE == _USABLE:
        return array
    try:
        return array.copy()
    except (MemoryError, ValueError) as error:
        raise ArrayMemoryError(f"there is no memory for a contiguous copy of {name}, shape {array.shape}") from error


def _plain(name: str, value: ArrayLike) -> Any:
    if isinstance(value, np.ma.MaskedArray):
        raise DtypeError(f"{name} is a masked array; it should be a plain one: pass {name}.filled(...)")
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ShapeError(f"{name} is a {type(value).__name__} that is no array: {error}") from error
    except MemoryError as error:
        raise ArrayMemoryError(f"there is no memory for {name} as an array") from error
    except Exception as error:
        raise DtypeError(f"{name} is a {type(value).__name__}; it should be a numpy.ndarray: {error}") from error


def _dtype_error(name: str, dtype: np.dtype[Any]) -> DtypeError:
    remedy = f"convert it with {name}.astype(numpy.float32)"
    if not dtype.isnative:
        remedy = f"swap its bytes with {name}.astype({name}.dtype.newbyteorder('='))"
    elif dtype.kind == "c":
        remedy = f"take {name}.real or {name}.imag"
    elif dtype.kind not in "fiub":
        remedy = "make it of real numbers"
    elif dtype.kind == "f" and dtype.itemsize > F64.itemsize:
        remedy = f"convert it with {name}.astype(numpy.float64)"
    return DtypeError(f"{name} has dtype {dtype}; it should be float32 or float64: {remedy}")


def mixed(name: str, array: Floats, other_name: str, dtype: np.dtype[Any]) -> DtypeError:
    """Return the error for two inputs whose dtypes differ: ``a.dtype is not b.dtype``, as both come from floats()."""
    return DtypeError(
        f"{name} has dtype {array.dtype} and {other_name} has dtype {dtype}; they should be the same: "
        f"convert one, say with {name}.astype(numpy.{dtype})"
    )


# ---- memory for packed weights -------------------------------------------------------------------------------------


def aligned(name: str, size: int) -> NDArray[np.uint8]:
    """Return memory of so many bytes that starts at a multiple of CMM_ALIGNMENT."""
    memory: NDArray[np.uint8] = empty(name, (size + lib.CMM_ALIGNMENT,), np.uint8)
    start = -memory.ctypes.data % lib.CMM_ALIGNMENT
    return memory[start : start + size]


def rows(memory: NDArray[np.uint8], start: Any, pitch: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Floats:
    """Return a read-only view of rows in memory: from the C pointer start, pitch elements from one to the next."""
    offset = int(ffi.cast("uintptr_t", start)) - memory.ctypes.data
    steps = [dtype.itemsize, pitch * dtype.itemsize]
    for length in shape[-2:0:-1]:
        steps.append(steps[-1] * length)
    view: Floats = np.ndarray(shape, dtype, memory, offset, steps[len(shape) - 1 :: -1])
    view.flags.writeable = False
    return view


# ---- outputs -------------------------------------------------------------------------------------------------------


_LARGE = 1 << 16  # bytes from which on the lines of the cache matter more than a view's microsecond


def large(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """Return a new array for a result of many rows: one that starts at a cache line, where it is large.

    NumPy's own start 16 bytes off, and every store of a whole line then touches two.
    """
    size = math.prod(shape) * dtype.itemsize
    try:  # empty() takes 0.1 us more
        return np.empty(shape, dtype) if size < _LARGE else aligned(name, size).view(dtype).reshape(shape)
    except (MemoryError, ValueError) as error:
        raise _no_memory(name, shape, dtype) from error


def empty(name: str, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
    """Return a new array for a result."""
    try:
        return np.empty(shape, dtype)
    except (MemoryError, ValueError) as error:
        raise _no_memory(name, shape, dtype) from error


def _no_memory(name: str, shape: tuple[int, ...], dtype: DTypeLike) -> ArrayMemoryError:
    return ArrayMemoryError(f"there is no memory for {name}, shape {shape}, {np.dtype(dtype)}")


def output(out: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Floats:
    """Return what libcmm should write instead of ``out``: itself, or a temporary where it is not contiguous.

    Raises
    ------
    DtypeError
        out is no ndarray, is masked, or has another dtype than the result.
    ShapeError
        out has another shape than the result.
    ArgumentError
        out is read-only.
    """
    if type(out) is np.ndarray and out.dtype is dtype and out.shape == shape and out.flags.num & _FIT == _FIT:
        return out
    if not isinstance(out, np.ndarray) or isinstance(out, np.ma.MaskedArray):
        raise DtypeError(f"out is a {type(out).__name__}; it should be a numpy.ndarray of dtype {dtype}")
    if out.dtype != dtype:
        raise DtypeError(f"out has dtype {out.dtype}; it should be {dtype}, the dtype of x")
    if out.shape != shape:
        raise ShapeError(f"out has shape {out.shape}; it should be {shape}")
    flags = out.flags.num
    if not flags & _WRITABLE:
        raise ArgumentError("out is read-only; it should be writable")
    if flags & _USABLE == _USABLE:
        return np.asarray(out)
    return empty("a temporary in place of out", shape, dtype)  # type: ignore[no-any-return]


def deliver(result: Floats, out: Any) -> Any:
    """Return out, after copying the result into it where that was written to a temporary."""
    if result is not out and not np.may_share_memory(result, out):
        np.copyto(out, result)
    return out
