"""A user's program in which each line that ends in a comment is wrong, as type checkers must say: test_typing.py."""

from typing import Any

import cmm
import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


def choices(x: F32, w: F32, text: str) -> None:
    cmm.fff_forward(x, w, w, activation="tanh")  # wrong
    cmm.fff_forward(x, w, w, activation=text)  # wrong
    cmm.fff_forward(x, w, w, tie="up")  # wrong
    cmm.fff_forward(x, w, w, level="fast")  # wrong
    cmm.fff_forward(x, w, w, threads="2")  # wrong
    cmm.fff_forward(x, w, w, depth=2)  # wrong
    cmm.cmm_forward(x, w, activation="gelu")  # wrong
    cmm.ff_forward(x, w, w, tie="left")  # wrong
    cmm.FFF(w, w, tie="up")  # wrong
    cmm.FFF(w, w)(x, level="fast")  # wrong
    cmm.FFF(w, w)(x, algorithm="walk")  # wrong
    cmm.fff_forward(x, w, w, algorithm="fast")  # wrong


def dtypes(x: F32, w: F32, d: F64, i: NDArray[np.int64], h: NDArray[np.float16]) -> None:
    cmm.fff_forward(x, w, d)  # wrong
    cmm.fff_forward(d, w, w)  # wrong
    cmm.fff_forward(x, w, w, d)  # wrong
    cmm.fff_forward(x, w, w, out=d)  # wrong
    cmm.fff_forward(i, i, i)  # wrong
    cmm.fff_forward(h, h, h)  # wrong
    cmm.cmm_forward(x, d)  # wrong
    cmm.ff_forward(x, w, d)  # wrong
    cmm.FFF(w, d)  # wrong
    cmm.FFF(w, w)(i)  # wrong
    cmm.fff_forward("x", w, w)  # wrong


def results(x: F32, w: F32, path: bool) -> None:
    a: F64 = cmm.fff_forward(x, w, w)  # wrong
    b: F32 = cmm.fff_forward(x, w, w, return_path=True)  # wrong
    c: F32 = cmm.fff_forward(x, w, w, return_path=path)  # wrong
    d, e = cmm.fff_forward(x, w, w, return_path=True)  # wrong
    f: F64 = cmm.FFF(w, w)(x)  # wrong
    print(a, b, c, d, e, f)


def right(x: NDArray[Any], w: F32) -> None:
    print(cmm.fff_forward(x, w, w), cmm.fff_forward(w, w, w, level="naive"))
