"""The exceptions of this package, and the one table from libcmm's status codes to them.

Every exception is a :class:`CmmError` and also the builtin exception that a caller would expect.
"""

from collections.abc import Iterable


def listed(names: Iterable[object]) -> str:
    """Return names as a list for an error message."""
    return ", ".join(repr(name) for name in names)


class CmmError(Exception):
    """Base of all errors that this package raises."""


class ShapeError(CmmError, ValueError):
    """An array has the wrong number of dimensions or the wrong lengths."""


class DtypeError(CmmError, TypeError):
    """An array holds elements that are not float32 or float64, or arrays differ in it, or it is no array at all."""


class ArgumentError(CmmError, ValueError):
    """Another argument has a value that it cannot have: activation, tie, threads, a read-only ``out``, ..."""


class LevelError(CmmError, ValueError):
    """There is no level of that name."""


class UnusableError(CmmError, RuntimeError):
    """A level, an instruction set or a BLAS exists or could exist, but cannot be used here."""


class ArrayMemoryError(CmmError, MemoryError):
    """There is no memory for a result, for a copy of an input or for scratch space."""


# A status that Python's own checks leave no way to reach is a plain CmmError: it reports a defect of this package.
BY_STATUS: dict[str, type[CmmError]] = {
    "CMM_ERROR_LAYER_NULL": CmmError,
    "CMM_ERROR_LAYER_SIZE": CmmError,
    "CMM_ERROR_DTYPE": DtypeError,
    "CMM_ERROR_ACTIVATION": ArgumentError,
    "CMM_ERROR_TIE": ArgumentError,
    "CMM_ERROR_TREES": ShapeError,
    "CMM_ERROR_DEPTH": ShapeError,
    "CMM_ERROR_NEURONS": ShapeError,
    "CMM_ERROR_D_IN": ShapeError,
    "CMM_ERROR_D_OUT": ShapeError,
    "CMM_ERROR_LD_IN": CmmError,
    "CMM_ERROR_LD_OUT": CmmError,
    "CMM_ERROR_LAYER_TOO_LARGE": ShapeError,
    "CMM_ERROR_RESERVED": CmmError,
    "CMM_ERROR_WEIGHT_DTYPE": DtypeError,
    "CMM_ERROR_SCALE": CmmError,
    "CMM_ERROR_EXACT": ArgumentError,
    "CMM_ERROR_LD_EXACT": CmmError,
    "CMM_ERROR_RUN_SIZE": CmmError,
    "CMM_ERROR_THREADS": ArgumentError,
    "CMM_ERROR_LEVEL": LevelError,
    "CMM_ERROR_LEVEL_UNUSABLE": UnusableError,
    "CMM_ERROR_ISA": ArgumentError,
    "CMM_ERROR_ISA_UNUSABLE": UnusableError,
    "CMM_ERROR_METHOD": ArgumentError,
    "CMM_ERROR_BLAS_MISSING": UnusableError,
    "CMM_ERROR_BLAS_SIZE": CmmError,
    "CMM_ERROR_BLAS_INCOMPLETE": UnusableError,
    "CMM_ERROR_LEVEL_WEIGHT_DTYPE": UnusableError,
    "CMM_ERROR_PATH_TWICE": CmmError,
    "CMM_ERROR_PATH_DENSE": CmmError,
    "CMM_ERROR_BATCH": ShapeError,
    "CMM_ERROR_BATCH_TOO_LARGE": ShapeError,
    "CMM_ERROR_W_IN_NULL": CmmError,
    "CMM_ERROR_W_OUT_NULL": CmmError,
    "CMM_ERROR_X_NULL": CmmError,
    "CMM_ERROR_Y_NULL": CmmError,
    "CMM_ERROR_PATH_NULL": CmmError,
    "CMM_ERROR_W_IN_ALIGN": CmmError,
    "CMM_ERROR_BIAS_ALIGN": CmmError,
    "CMM_ERROR_W_OUT_ALIGN": CmmError,
    "CMM_ERROR_X_ALIGN": CmmError,
    "CMM_ERROR_Y_ALIGN": CmmError,
    "CMM_ERROR_NODES_ALIGN": CmmError,
    "CMM_ERROR_LOGITS_ALIGN": CmmError,
    "CMM_ERROR_Y_OVERLAP": CmmError,
    "CMM_ERROR_NODES_OVERLAP": CmmError,
    "CMM_ERROR_LOGITS_OVERLAP": CmmError,
    "CMM_ERROR_SCALE_ALIGN": CmmError,
    "CMM_ERROR_EXACT_ALIGN": CmmError,
    "CMM_ERROR_PATH_ALIGN": CmmError,
    "CMM_ERROR_PATH": ArgumentError,
    "CMM_ERROR_MEMORY": ArrayMemoryError,
    "CMM_ERROR_BLAS_NULL": CmmError,
    "CMM_ERROR_BLAS_FILE_NULL": CmmError,
    "CMM_ERROR_BLAS_FILE": UnusableError,
    "CMM_ERROR_BLAS_SYMBOLS": UnusableError,
    "CMM_ERROR_INDEX": CmmError,
    "CMM_ERROR_INFO_NULL": CmmError,
    "CMM_ERROR_INFO_SIZE": CmmError,
    "CMM_ERROR_MEMORY_NULL": CmmError,
    "CMM_ERROR_MEMORY_ALIGN": CmmError,
    "CMM_ERROR_MEMORY_SIZE": CmmError,
    "CMM_ERROR_PACKED_NULL": CmmError,
    "CMM_ERROR_BYTES_NULL": CmmError,
    "CMM_ERROR_MEMORY_OVERLAP": CmmError,
    "CMM_ERROR_OPTIONS_SIZE": CmmError,
    "CMM_ERROR_ROW_NOT_FINITE": ArgumentError,
    "CMM_ERROR_SIGMAS": ArgumentError,
    "CMM_ERROR_CUDA_LAUNCH": UnusableError,
    "CMM_ERROR_CUDA_ABSENT": UnusableError,
    "CMM_ERROR_CUDA_DEVICE": UnusableError,
    "CMM_ERROR_WORKSPACE_NULL": CmmError,
    "CMM_ERROR_WORKSPACE_ALIGN": CmmError,
    "CMM_ERROR_WORKSPACE_SIZE": CmmError,
    "CMM_ERROR_WORKSPACE_OVERLAP": CmmError,
    "CMM_ERROR_GRADIENTS_NULL": CmmError,
    "CMM_ERROR_GRADIENTS_SIZE": CmmError,
    "CMM_ERROR_ACCUMULATE": CmmError,
    "CMM_ERROR_GRADIENTS_NONE": CmmError,
    "CMM_ERROR_LD_DW_IN": CmmError,
    "CMM_ERROR_LD_DW_OUT": CmmError,
    "CMM_ERROR_NODES_NULL": CmmError,
    "CMM_ERROR_LOGITS_NULL": CmmError,
    "CMM_ERROR_DY_NULL": CmmError,
    "CMM_ERROR_DY_ALIGN": CmmError,
    "CMM_ERROR_DX_ALIGN": CmmError,
    "CMM_ERROR_DW_IN_ALIGN": CmmError,
    "CMM_ERROR_DBIAS_ALIGN": CmmError,
    "CMM_ERROR_DW_OUT_ALIGN": CmmError,
    "CMM_ERROR_DX_OVERLAP": CmmError,
    "CMM_ERROR_DW_IN_OVERLAP": CmmError,
    "CMM_ERROR_DBIAS_OVERLAP": CmmError,
    "CMM_ERROR_DW_OUT_OVERLAP": CmmError,
}
