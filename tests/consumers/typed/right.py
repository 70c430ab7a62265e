"""A user's program, which type checkers accept: test_typing.py gives it to mypy and to pyright."""

from pathlib import Path
from typing import Any, assert_type

import cmm
import cmm.bert
import numpy as np
from cmm.typing import Activation, LevelName, OtherArray, Rows, Tie, Weights
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


def a_given_path(x: F32, w_in: F32, w_out: F32, nodes: I32, leaves: NDArray[np.int64]) -> None:
    assert_type(cmm.fff_forward(x, w_in, w_out, path=nodes), F32)
    assert_type(cmm.fff_forward(x, w_in, w_out, path=leaves, return_path=True), tuple[F32, I32, F32])
    assert_type(cmm.fff_forward(x, w_in, w_out, path=[[[0, 1, 3]], [[0, 2, 6]]]), F32)
    assert_type(cmm.cmm_forward(x, w_in, path=leaves), tuple[I32, F32])
    layer = cmm.FFF(w_in, w_out)
    assert_type(layer(x, path=nodes, level="native", threads=1), F32)
    assert_type(layer(x, path=None, return_path=True), tuple[F32, I32, F32])


def narrow_rows(x: F32, w_in: F32, w_out: F32, bias: F32, weights: Weights, each: Rows) -> None:
    layer = cmm.FFF(w_in, w_out, bias, weights="int8", exact_path=True)
    assert_type(layer(x), F32)
    assert_type(layer.recomputed, int | None)
    assert_type(layer.exact_path, bool | float)
    assert_type(layer.weights, str | tuple[str, str])
    likely = cmm.FFF(w_in, w_out, weights=("int8", "bfloat16"), exact_path=6.0)
    assert_type(likely(x, return_path=True), tuple[F32, I32, F32])
    for one in (weights, each, (each, each), ("float32", each), None):
        assert_type(cmm.FFF(w_in, w_out, weights=one)(x), F32)


def a_narrow_model(folder: Path, weights: Weights) -> None:
    assert_type(cmm.bert.load(folder, weights="int8", exact_path=True), cmm.bert.Model)
    assert_type(cmm.bert.load(folder, weights=weights, exact_path=6.0), cmm.bert.Model)
    assert_type(cmm.bert.trained("fff", weights=("int8", "bfloat16"), exact_path=True), cmm.bert.Model)


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
