"""A user's program in which each line that ends in a comment is wrong, as type checkers must say: test_typing.py."""

from typing import Any

import cmm
import cmm.bert
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


def rows(x: F32, w: F32, text: str) -> None:
    cmm.FFF(w, w, weights="int4")  # wrong
    cmm.FFF(w, w, weights=text)  # wrong
    cmm.FFF(w, w, weights=("int8", "int4"))  # wrong
    cmm.FFF(w, w, weights=("int8", "int8", "int8"))  # wrong
    cmm.FFF(w, w, weights=["int8", "bfloat16"])  # wrong
    cmm.FFF(w, w, weights="int8", exact_path="yes")  # wrong
    cmm.FFF(w, w).recomputed = 3  # wrong
    share: float = cmm.FFF(w, w, weights="int8", exact_path=True).recomputed  # wrong
    cmm.fff_forward(x, w, w, weights="int8")  # wrong
    cmm.FFF(w, w)(x, weights="int8")  # wrong
    cmm.bert.load("folder", weights="int4")  # wrong
    cmm.bert.trained("fff", exact_path="yes")  # wrong
    print(share)


def paths(x: F32, w: F32, nodes: NDArray[np.int32]) -> None:
    cmm.fff_forward(x, w, w, path=x)  # wrong
    cmm.fff_forward(x, w, w, path=3)  # wrong
    cmm.cmm_forward(x, w, path=x)  # wrong
    cmm.FFF(w, w)(x, path=x)  # wrong
    cmm.FFF(w, w)(x, nodes)  # wrong
    cmm.ff_forward(x, w, w, path=nodes)  # wrong
    y: F32 = cmm.fff_forward(x, w, w, path=nodes, return_path=True)  # wrong
    print(y)


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
