"""Types for annotations of code that calls this package.

>>> from cmm.typing import Activation
>>> def layer(activation: Activation = "gelu") -> None: ...
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["Activation", "Algorithm", "Gradients", "LevelName", "OtherArray", "Rows", "Tie", "Weights"]

Activation: TypeAlias = Literal["gelu", "gelu_tanh", "relu", "silu", "identity"]
Tie: TypeAlias = Literal["left", "right"]
Rows: TypeAlias = Literal["float32", "float64", "bfloat16", "float16", "int8"]
Weights: TypeAlias = Rows | tuple[Rows, Rows]
Algorithm: TypeAlias = Literal["per_token", "grouped", "generic", "small_batch", "grouped_gemm", "dense_routed"]
LevelName: TypeAlias = Literal["auto", "naive", "blas1", "blas2", "blas3", "native", "cuda-naive", "cuda-bmm", "cuda"]


class OtherArray(Protocol):
    """An array of another library that has DLPack: of CuPy, PyTorch, JAX, ...

    NumPy's has DLPack too, but cannot be hashed: so a type checker does not take it for one of these.
    """

    def __dlpack__(self) -> Any:
        """Hand over the memory."""

    def __dlpack_device__(self) -> tuple[Any, int]:
        """Say where it is."""

    def __hash__(self) -> int:
        """Return anything."""


Float = TypeVar("Float", np.float32, np.float64)
Nested: TypeAlias = "float | Sequence[Nested]"
# What a call takes besides NumPy's arrays of one dtype; NumPy makes float64 of nested lists.
Loose: TypeAlias = "OtherArray | NDArray[np.float64] | Nested"
Nodes: TypeAlias = NDArray[np.int32]
Path: TypeAlias = "NDArray[np.integer[Any]] | OtherArray | Sequence[Any]"


class Run(TypedDict, total=False):
    """How to run a call."""

    level: LevelName
    algorithm: Algorithm | None
    threads: int | None


class Choices(Run, total=False):
    """What to compute, and how."""

    activation: Activation
    tie: Tie


class Gradients(NamedTuple):
    """What :func:`cmm.fff_backward` returns; None for a gradient that was not wanted."""

    dx: Any
    dw_in: Any
    dbias: Any
    dw_out: Any
