"""Conditional matrix multiplication and fast feedforward layers for NumPy arrays, computed by libcmm.

>>> import cmm, numpy as np
>>> rng = np.random.default_rng(0)
>>> w_in, w_out = rng.standard_normal((2, 4095, 768), np.float32)  # one tree of depth 11
>>> y = cmm.fff_forward(rng.standard_normal((128, 768), np.float32), w_in, w_out)
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmm import _libcmm, blas
from cmm._call import lib, text
from cmm._levels import Level, levels
from cmm.errors import (
    ArgumentError,
    ArrayMemoryError,
    CmmError,
    DtypeError,
    LevelError,
    ShapeError,
    UnusableError,
)
from cmm.fff import FFF, cmm, ff_forward, fff_forward
from cmm.usage import dead_subtrees, node_usage

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
    "dead_subtrees",
    "ff_forward",
    "fff_forward",
    "get_include",
    "levels",
    "node_usage",
]

__version__ = text(lib.cmm_version())


def get_include() -> str:
    """Return the folder of ``cmm.h``; ``libcmm.so`` is in ``lib`` beside it."""
    return str(Path(_libcmm.__file__).parent / "include")


def __getattr__(name: str) -> Any:
    if name in ("bert", "torch"):  # imported when it is first used
        return import_module(f"cmm.{name}")
    raise AttributeError(f"module 'cmm' has no attribute {name!r}")
