"""A user's program, which type checkers accept: test_typing.py gives it to mypy and to pyright."""

from typing import Any, assert_type

import cmm
import cmm.bert
import numpy as np
from cmm.typing import Activation, LevelName, OtherArray, Tie
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]


def calls(x: F32, w_in: F32, w_out: F32, bias: F32, out: F32, path: bool) -> None:
    assert_type(cmm.fff_forward(x, w_in, w_out), F32)
    assert_type(cmm.fff_forward(x, w_in, w_out, bias, activation="relu", tie="right", level="native", threads=2), F32)
    assert_type(cmm.fff_forward(x, w_in, w_out, bias, out=out, return_path=False), F32)
    assert_type(cmm.fff_forward(x, w_in, w_out, return_path=True), tuple[F32, I32, F32])
    assert_type(cmm.fff_forward(x, w_in, w_out, bias, return_path=path), F32 | tuple[F32, I32, F32])
    assert_type(cmm.cmm_forward(x, w_in, bias), tuple[I32, F32])
    assert_type(cmm.cmm(x, w_in, tie="left", level="auto"), tuple[I32, F32])
    assert_type(cmm.ff_forward(x, w_in, w_out, activation="silu", out=out), F32)


def a_layer(x: F32, w_in: F32, w_out: F32, out: F32, path: bool) -> None:
    layer = cmm.FFF(w_in, w_out, activation="gelu_tanh", tie="right")
    assert_type(layer(x), F32)
    assert_type(layer(x, out=out, threads=1), F32)
    assert_type(layer(x, return_path=True), tuple[F32, I32, F32])
    assert_type(layer(x, level="native", algorithm="grouped"), F32)
    assert_type(cmm.cmm_forward(x, w_in, algorithm=None), tuple[I32, F32])
    assert_type(layer(x, return_path=path, level="naive"), F32 | tuple[F32, I32, F32])
    assert_type(layer.depth, int)


def float64(x: F64, w_in: F64, w_out: F64) -> None:
    assert_type(cmm.fff_forward(x, w_in, w_out), F64)
    assert_type(cmm.ff_forward(x, w_in, w_out), F64)
    cmm.fff_forward([[1.0, 2.0]], [[0.5, -1.0]], w_out)  # NumPy makes float64 of nested lists


def any_dtype(x: NDArray[Any], w: NDArray[Any], shaped: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> None:
    cmm.fff_forward(x, w, w)
    assert_type(cmm.fff_forward(shaped, shaped, shaped), F32)


def of_another_library(x: OtherArray, w_in: OtherArray, w_out: OtherArray) -> None:
    y, nodes, logits = cmm.fff_forward(x, w_in, w_out, return_path=True, out=x)
    y = cmm.FFF(w_in, w_out)(x)
    print(y, nodes, logits, cmm.cmm_forward(x, w_in), cmm.ff_forward(x, w_in, w_out, out=x))


def every_level(x: F32, w: F32, activation: Activation = "gelu", tie: Tie = "left") -> dict[LevelName, F32]:
    how: dict[LevelName, F32] = {}
    for level in cmm.levels():
        if level.available:
            how[level.name] = cmm.fff_forward(x, w, w, activation=activation, tie=tie, level=level.name)
    return how


def usage(nodes: I32, model: cmm.bert.Model, name: LevelName) -> None:
    assert_type(cmm.dead_subtrees(cmm.node_usage(nodes, 7)), NDArray[np.int64])
    assert_type(model.embed(["a text"], level=name), F32)
