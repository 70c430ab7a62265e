"""Conditional matrix multiplication and fast feedforward layers for NumPy arrays, computed by libcmm.

>>> import cmm, numpy as np
>>> rng = np.random.default_rng(0)
>>> w_in, w_out = rng.standard_normal((2, 4095, 768), np.float32)  # one tree of depth 11
>>> y = cmm.fff_forward(rng.standard_normal((128, 768), np.float32), w_in, w_out)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cmm import blas, typing
from cmm._dispatch import Level, levels
from cmm._native import FOLDER, VERSION
from cmm.errors import (
    ArgumentError,
    ArrayMemoryError,
    CmmError,
    DtypeError,
    LevelError,
    ShapeError,
    UnusableError,
)
from cmm.layers import FFF, cmm_forward, ff_forward, fff_backward, fff_forward
from cmm.routing_stats import dead_subtrees, node_usage

if TYPE_CHECKING:
    from cmm import bert

__all__ = [
    "FFF",
    "ArgumentError",
    "ArrayMemoryError",
    "CmmError",
    "DtypeError",
    "Level",
    "LevelError",
    "ShapeError",
    "UnusableError",
    "__version__",
    "bert",
    "blas",
    "cmm",
    "cmm_forward",
    "dead_subtrees",
    "ff_forward",
    "fff_backward",
    "fff_forward",
    "get_include",
    "levels",
    "node_usage",
    "typing",
]

__version__ = VERSION
"""The version of the package, which is that of libcmm."""

cmm = cmm_forward
"""The name of :func:`cmm.cmm_forward` in 0.1.0, which stays."""


def get_include() -> str:
    """Return the folder of ``cmm.h``; ``libcmm.so`` is in ``lib`` beside it."""
    return str(FOLDER / "include")


def __getattr__(name: str) -> Any:
    if name in ("bert", "torch"):  # imported when it is first used
        return import_module(f"cmm.{name}")
    raise AttributeError(f"module 'cmm' has no attribute {name!r}")
