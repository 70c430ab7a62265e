"""Wrong calls: each raises its own exception, which says what came and what should have come, and writes nothing."""

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cmm
import numpy as np
import pytest
from cmm import _native, errors
from cmm._backend.numpy import empty, large
from cmm._dispatch import isas
from cmm._native import lib
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

Array = NDArray[Any]

TREES, NODES, D_IN, D_OUT, BATCH = 2, 7, 5, 4, 3
DEPTH = 2


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CMM_LEVEL", "CMM_ISA", "CMM_BLAS"):
        monkeypatch.delenv(name, raising=False)


def ones(*shape: int, dtype: Any = np.float32) -> Array:
    return np.ones(shape, dtype)


def huge(*shape: int) -> Array:
    """An array that needs no memory, but whose copy would need more than there is address space."""
    return as_strided(ones(1), (2**46, *shape), (0,) * (1 + len(shape)))


class Raises:
    """Refuses to become an array."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        raise RuntimeError("no array today")


class Wrong(NamedTuple):
    """One kind of wrong call: what differs from a right one, and words of the message."""

    error: type[Exception]
    words: tuple[str, ...]
    change: dict[str, Any]
    environment: dict[str, str]


def wrong(error: type[Exception], *words: str, environment: dict[str, str] | None = None, **change: Any) -> Wrong:
    return Wrong(error, words, change, environment or {})


READ_ONLY = ones(BATCH, D_OUT)
READ_ONLY.flags.writeable = False
SWAPPED = ones(BATCH, D_IN).astype(np.dtype(np.float32).newbyteorder())
LEVELS = "'auto', 'naive', 'blas1', 'blas2', 'blas3', 'native'"
ACTIVATIONS = "'gelu', 'gelu_tanh', 'relu', 'silu', 'identity'"
FLOATS = "should be float32 or float64"
OTHER_ISA = next(isa for isa in isas()[0] if isa not in isas()[1])

# What is wrong for a fast feedforward layer.
FFF: dict[str, Wrong] = {
    # x
    "x has 0 dimensions": wrong(cmm.ShapeError, "x has no dimensions", f"(..., {D_IN})", x=np.float32(1.0)),
    "x is a float": wrong(
        cmm.ShapeError,
        "x has no dimensions",
        x=1.0,
        w_in=ones(7, 5, dtype=float),
        w_out=ones(7, 4, dtype=float),
        bias=None,
        out=ones(D_OUT, dtype=float),
    ),
    "x is too wide": wrong(cmm.ShapeError, "x has shape (3, 6)", f"(..., {D_IN})", x=ones(3, 6)),
    "x is too narrow": wrong(cmm.ShapeError, "x has shape (4,)", f"(..., {D_IN})", x=ones(4)),
    "x is an empty list": wrong(cmm.DtypeError, "x has dtype float64", "float32", x=[]),
    "x is ragged": wrong(cmm.ShapeError, "x is a list that is no array", x=[[1.0, 2.0], [3.0]]),
    "x is float16": wrong(
        cmm.DtypeError, "x has dtype float16", FLOATS, "x.astype(numpy.float32)", x=ones(3, 5, dtype=np.float16)
    ),
    "x is int64": wrong(
        cmm.DtypeError, "x has dtype int64", FLOATS, "x.astype(numpy.float32)", x=ones(3, 5, dtype=np.int64)
    ),
    "x is a list of ints": wrong(cmm.DtypeError, "x has dtype int64", FLOATS, "x.astype", x=[[1, 2, 3, 4, 5]]),
    "x is bool": wrong(cmm.DtypeError, "x has dtype bool", FLOATS, "x.astype", x=ones(3, 5, dtype=bool)),
    "x is uint8": wrong(cmm.DtypeError, "x has dtype uint8", FLOATS, "x.astype", x=ones(3, 5, dtype=np.uint8)),
    "x is complex": wrong(
        cmm.DtypeError, "x has dtype complex64", FLOATS, "x.real", x=ones(3, 5, dtype=np.complex64)
    ),
    "x is object": wrong(cmm.DtypeError, "x has dtype object", FLOATS, "real numbers", x=ones(3, 5, dtype=object)),
    "x is strings": wrong(cmm.DtypeError, "x has dtype <U3", FLOATS, "real numbers", x=np.full((3, 5), "one")),
    "x is one string": wrong(cmm.DtypeError, "x has dtype <U5", FLOATS, x="token"),
    "x is bytes": wrong(cmm.DtypeError, "x has dtype |S3", FLOATS, x=b"one"),
    "x is dates": wrong(cmm.DtypeError, "x has dtype datetime64", FLOATS, x=np.zeros((3, 5), "M8[s]")),
    "x is structured": wrong(cmm.DtypeError, "x has dtype [('a', '<f4')]", FLOATS, x=np.zeros((3, 5), [("a", "f4")])),
    "x is None": wrong(cmm.DtypeError, "x has dtype object", FLOATS, x=None),
    "x is a dict": wrong(cmm.DtypeError, "x has dtype object", FLOATS, x={"a": 1.0}),
    "x is no array": wrong(cmm.DtypeError, "x is a Raises", "numpy.ndarray", "no array today", x=Raises()),
    "x has the other byte order": wrong(cmm.DtypeError, "x has dtype >f4", FLOATS, "newbyteorder", x=SWAPPED),
    "x is masked": wrong(cmm.DtypeError, "x is a masked array", "x.filled", x=np.ma.masked_array(ones(3, 5))),
    "x alone is float64": wrong(
        cmm.DtypeError,
        "x has dtype float64",
        "w_in has dtype float32",
        "x.astype(numpy.float32)",
        x=ones(3, 5, dtype=float),
    ),
    "x has no copy": wrong(cmm.ArrayMemoryError, "no memory", "x", "shape", x=huge(D_IN), out=None),
    # w_in
    "w_in has 1 dimension": wrong(cmm.ShapeError, "w_in has shape (7,)", "(K, N, width)", w_in=ones(7)),
    "w_in has 4 dimensions": wrong(
        cmm.ShapeError, "w_in has shape (1, 2, 7, 5)", "(K, N, width)", w_in=ones(1, 2, 7, 5)
    ),
    "w_in has no trees": wrong(cmm.ShapeError, "w_in has shape (0, 7, 5)", "at least 1", w_in=ones(0, 7, 5)),
    "w_in has no width": wrong(cmm.ShapeError, "w_in has shape (2, 7, 0)", "at least 1", w_in=ones(2, 7, 0)),
    "w_in has no nodes": wrong(cmm.ShapeError, "N = 0", "2^(D+1) - 1", w_in=ones(2, 0, 5)),
    "N is no tree": wrong(
        cmm.ShapeError,
        "w_in has N = 10",
        "2^(D+1) - 1",
        "7 (D = 2) or 15",
        w_in=ones(2, 10, 5),
        w_out=ones(2, 10, 4),
        bias=ones(2, 10),
    ),
    "N is a power of two": wrong(
        cmm.ShapeError, "w_in has N = 8", "7 (D = 2) or 15", w_in=ones(2, 8, 5), w_out=ones(2, 8, 4), bias=ones(2, 8)
    ),
    "w_in is float64": wrong(
        cmm.DtypeError, "w_out has dtype float32", "w_in has dtype float64", w_in=ones(2, 7, 5, dtype=float)
    ),
    "w_in is float16": wrong(cmm.DtypeError, "w_in has dtype float16", FLOATS, w_in=ones(2, 7, 5, dtype=np.float16)),
    "w_in is integers": wrong(cmm.DtypeError, "w_in has dtype int32", FLOATS, w_in=ones(2, 7, 5, dtype=np.int32)),
    "w_in is masked": wrong(
        cmm.DtypeError, "w_in is a masked array", "w_in.filled", w_in=np.ma.masked_array(ones(2, 7, 5))
    ),
    "w_in is None": wrong(cmm.DtypeError, "w_in has dtype object", FLOATS, w_in=None),
    # bias
    "bias is of other trees": wrong(cmm.ShapeError, "bias has shape (3, 7)", "(2, 7)", bias=ones(3, 7)),
    "bias is of other nodes": wrong(cmm.ShapeError, "bias has shape (2, 15)", "(2, 7)", bias=ones(2, 15)),
    "bias is of one tree": wrong(cmm.ShapeError, "bias has shape (7,)", "(2, 7)", bias=ones(7)),
    "bias is flat": wrong(cmm.ShapeError, "bias has shape (14,)", "(2, 7)", bias=ones(14)),
    "bias is a number": wrong(cmm.ShapeError, "bias has shape ()", "(2, 7)", bias=np.float32(0.0)),
    "bias is of output": wrong(cmm.ShapeError, "bias has shape (4,)", "(2, 7)", bias=ones(D_OUT)),
    "bias is float64": wrong(
        cmm.DtypeError, "bias has dtype float64", "w_in has dtype float32", bias=ones(2, 7, dtype=float)
    ),
    "bias is integers": wrong(cmm.DtypeError, "bias has dtype int64", FLOATS, bias=ones(2, 7, dtype=int)),
    "bias is False": wrong(cmm.DtypeError, "bias has dtype bool", FLOATS, bias=False),
    # choices
    "tie is unknown": wrong(cmm.ArgumentError, "tie is 'up'", "'left', 'right'", tie="up"),
    "tie is no string": wrong(cmm.ArgumentError, "tie is ['left']", "'left', 'right'", tie=["left"]),
    "level is unknown": wrong(cmm.LevelError, "level is 'fast'", LEVELS, level="fast"),
    "level is a number": wrong(cmm.LevelError, "level is 1", LEVELS, level=1),
    "level is None": wrong(cmm.LevelError, "level is None", LEVELS, level=None),
    "level is an array": wrong(cmm.LevelError, "level is array(", LEVELS, level=ones(2)),
    "algorithm is unknown": wrong(
        cmm.ArgumentError, "algorithm is 'fast'", "None or one of", "'per_token', 'grouped'", algorithm="fast"
    ),
    "algorithm is a name of 0.1.0": wrong(cmm.ArgumentError, "algorithm is 'walk'", "'per_token'", algorithm="walk"),
    "algorithm is a list": wrong(cmm.ArgumentError, "algorithm is ['grouped']", "'per_token'", algorithm=["grouped"]),
    "algorithm is of a GPU": wrong(
        cmm.ArgumentError, "algorithm is 'generic'", "for arrays on a GPU", algorithm="generic"
    ),
    "algorithm is of another level": wrong(
        cmm.ArgumentError,
        "'grouped', which is of level 'native'; at level 'naive' it should be None",
        algorithm="grouped",
        level="naive",
    ),
    "algorithm is of another level than CMM_LEVEL": wrong(
        cmm.ArgumentError,
        "'grouped', which is of level 'native'; at level 'blas1' it should be None",
        algorithm="grouped",
        environment={"CMM_LEVEL": "blas1"},
    ),
    "CMM_LEVEL is unknown": wrong(cmm.LevelError, "CMM_LEVEL is 'fast'", LEVELS, environment={"CMM_LEVEL": "fast"}),
    "CMM_ISA is unknown": wrong(cmm.ArgumentError, "CMM_ISA is 'mmx'", "'scalar'", environment={"CMM_ISA": "mmx"}),
    "CMM_ISA is of another CPU": wrong(
        cmm.UnusableError,
        f"CMM_ISA is '{OTHER_ISA}'",
        "cannot be used here",
        "'scalar'",
        environment={"CMM_ISA": OTHER_ISA},
    ),
    "CMM_BLAS is no file": wrong(
        cmm.UnusableError,
        "CMM_BLAS is '/nowhere/lib.so'",
        "path of a shared library",
        level="blas1",
        environment={"CMM_BLAS": "/nowhere/lib.so"},
    ),
    "threads is 0": wrong(cmm.ArgumentError, "threads is 0", "None", "at least 1", threads=0),
    "threads is negative": wrong(cmm.ArgumentError, "threads is -1", "at least 1", threads=-1),
    "threads is too large": wrong(cmm.ArgumentError, "threads is 4294967297", threads=2**32 + 1),
    "threads is a float": wrong(cmm.ArgumentError, "threads is 2.0", "an integer", threads=2.0),
    "threads is a string": wrong(cmm.ArgumentError, "threads is '2'", "an integer", threads="2"),
    "threads is True": wrong(cmm.ArgumentError, "threads is True", "an integer", threads=True),
}

# What is wrong where there is an output.
OUTPUT: dict[str, Wrong] = {
    "w_out is of other trees": wrong(
        cmm.ShapeError, "w_out has shape (3, 7, 4)", "(2, 7, d_out)", w_out=ones(3, 7, 4)
    ),
    "w_out is of other nodes": wrong(
        cmm.ShapeError, "w_out has shape (2, 15, 4)", "(2, 7, d_out)", w_out=ones(2, 15, 4)
    ),
    "w_out is of one tree": wrong(cmm.ShapeError, "w_out has shape (7, 4)", "(2, 7, d_out)", w_out=ones(7, 4)),
    "w_out is transposed": wrong(cmm.ShapeError, "w_out has shape (4, 14)", "(2, 7, d_out)", w_out=ones(4, 14)),
    "w_out has no width": wrong(cmm.ShapeError, "w_out has shape (2, 7, 0)", "at least 1", w_out=ones(2, 7, 0)),
    "w_out has 1 dimension": wrong(cmm.ShapeError, "w_out has shape (7,)", "(K, N, width)", w_out=ones(7)),
    "w_out is float64": wrong(
        cmm.DtypeError, "w_out has dtype float64", "w_in has dtype float32", w_out=ones(2, 7, 4, dtype=float)
    ),
    "w_out is integers": wrong(cmm.DtypeError, "w_out has dtype int64", FLOATS, w_out=ones(2, 7, 4, dtype=int)),
    "w_out is None": wrong(cmm.DtypeError, "w_out has dtype object", FLOATS, w_out=None),
    "activation is unknown": wrong(cmm.ArgumentError, "activation is 'tanh'", ACTIVATIONS, activation="tanh"),
    "activation is in capitals": wrong(cmm.ArgumentError, "activation is 'GELU'", ACTIVATIONS, activation="GELU"),
    "activation is None": wrong(cmm.ArgumentError, "activation is None", ACTIVATIONS, activation=None),
    "activation is a function": wrong(
        cmm.ArgumentError, "activation is <ufunc 'tanh'>", ACTIVATIONS, activation=np.tanh
    ),
    "activation is a dict": wrong(cmm.ArgumentError, "activation is {}", ACTIVATIONS, activation={}),
}

OUT: dict[str, Wrong] = {
    "out has other rows": wrong(cmm.ShapeError, "out has shape (4, 4)", "(3, 4)", out=ones(4, 4)),
    "out has another width": wrong(cmm.ShapeError, "out has shape (3, 5)", "(3, 4)", out=ones(3, 5)),
    "out has more dimensions": wrong(cmm.ShapeError, "out has shape (1, 3, 4)", "(3, 4)", out=ones(1, 3, 4)),
    "out is flat": wrong(cmm.ShapeError, "out has shape (12,)", "(3, 4)", out=ones(12)),
    "out is float64": wrong(cmm.DtypeError, "out has dtype float64", "float32", "x", out=ones(3, 4, dtype=float)),
    "out has the other byte order": wrong(cmm.DtypeError, "out has dtype >f4", "float32", out=SWAPPED[:, :4].copy()),
    "out is read-only": wrong(cmm.ArgumentError, "out is read-only", "writable", out=READ_ONLY),
    "out is a list": wrong(cmm.DtypeError, "out is a list", "numpy.ndarray", out=[[0.0] * 4] * 3),
    "out is masked": wrong(
        cmm.DtypeError, "out is a MaskedArray", "numpy.ndarray", out=np.ma.masked_array(ones(3, 4))
    ),
    "out is bytes": wrong(cmm.DtypeError, "out is a bytearray", "numpy.ndarray", out=bytearray(48)),
}

# What is wrong for a dense layer.
DENSE: dict[str, Wrong] = {
    "x has 0 dimensions": wrong(cmm.ShapeError, "x has no dimensions", f"(..., {D_IN})", x=np.float32(1.0)),
    "x is too wide": wrong(cmm.ShapeError, "x has shape (3, 6)", f"(..., {D_IN})", x=ones(3, 6)),
    "x is integers": wrong(cmm.DtypeError, "x has dtype int64", FLOATS, x=ones(3, 5, dtype=int)),
    "x alone is float64": wrong(
        cmm.DtypeError, "x has dtype float64", "w_in has dtype float32", x=ones(3, 5, dtype=float)
    ),
    "w_in has trees": wrong(cmm.ShapeError, "w_in has shape (2, 7, 5)", "(N, d_in)", w_in=ones(2, 7, 5)),
    "w_in has no width": wrong(cmm.ShapeError, "w_in has shape (7, 0)", "d_in at least 1", w_in=ones(7, 0)),
    "w_in is masked": wrong(cmm.DtypeError, "w_in is a masked array", w_in=np.ma.masked_array(ones(7, 5))),
    "w_out has other rows": wrong(cmm.ShapeError, "w_out has shape (8, 4)", "(7, d_out)", w_out=ones(8, 4)),
    "w_out has trees": wrong(cmm.ShapeError, "w_out has shape (1, 7, 4)", "(7, d_out)", w_out=ones(1, 7, 4)),
    "w_out has no width": wrong(cmm.ShapeError, "w_out has shape (7, 0)", "(7, d_out)", w_out=ones(7, 0)),
    "w_out is float64": wrong(
        cmm.DtypeError, "w_out has dtype float64", "w_in has dtype float32", w_out=ones(7, 4, dtype=float)
    ),
    "bias has another length": wrong(cmm.ShapeError, "bias has shape (8,)", "(7,)", bias=ones(8)),
    "bias is 2-d": wrong(cmm.ShapeError, "bias has shape (1, 7)", "(7,)", bias=ones(1, 7)),
    "bias is float64": wrong(
        cmm.DtypeError, "bias has dtype float64", "w_in has dtype float32", bias=ones(7, dtype=float)
    ),
    "activation is unknown": wrong(cmm.ArgumentError, "activation is 'tanh'", ACTIVATIONS, activation="tanh"),
    "level is unknown": wrong(cmm.LevelError, "level is 'fast'", LEVELS, level="fast"),
    "algorithm is unknown": wrong(
        cmm.ArgumentError, "algorithm is 'fast'", "'per_token', 'grouped'", algorithm="fast"
    ),
    "algorithm is of another level": wrong(
        cmm.ArgumentError,
        "'grouped', which is of level 'native'; at level 'blas3' it should be None",
        algorithm="grouped",
        level="blas3",
    ),
    "CMM_LEVEL is unknown": wrong(cmm.LevelError, "CMM_LEVEL is 'fast'", LEVELS, environment={"CMM_LEVEL": "fast"}),
    "CMM_ISA is unknown": wrong(cmm.ArgumentError, "CMM_ISA is 'mmx'", environment={"CMM_ISA": "mmx"}),
    "threads is 0": wrong(cmm.ArgumentError, "threads is 0", "at least 1", threads=0),
    **OUT,
}


def right_fff() -> dict[str, Any]:
    return {
        "x": ones(BATCH, D_IN),
        "w_in": ones(TREES, NODES, D_IN),
        "w_out": ones(TREES, NODES, D_OUT),
        "bias": ones(TREES, NODES),
        "out": ones(BATCH, D_OUT),
    }


def right_ff() -> dict[str, Any]:
    arrays = right_fff()
    return {name: array[0] if name in ("w_in", "w_out", "bias") else array for name, array in arrays.items()}


def refuse(monkeypatch: pytest.MonkeyPatch, case: Wrong, call: Callable[..., Any], arguments: dict[str, Any]) -> None:
    """Make the right call, then the wrong one."""
    call(**arguments)
    arguments = {
        **arguments,
        **{name: value for name, value in case.change.items() if name in arguments or name in HOW},
    }
    for name, value in case.environment.items():
        monkeypatch.setenv(name, value)
    out = arguments.get("out")
    if isinstance(out, np.ndarray) and out.flags.writeable:
        out[...] = 42
    before = bytes(out) if isinstance(out, bytearray) else np.array(out).tobytes()
    with pytest.raises(case.error) as caught:
        call(**arguments)
    assert type(caught.value) is case.error
    for word in case.words:
        assert word in str(caught.value), f"{word!r} is missing in: {caught.value}"
    assert (bytes(out) if isinstance(out, bytearray) else np.array(out).tobytes()) == before


HOW = ("activation", "tie", "level", "algorithm", "threads")


@pytest.mark.parametrize("name", [*FFF, *OUTPUT, *OUT])
def test_fff_forward_refuses(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    refuse(monkeypatch, {**FFF, **OUTPUT, **OUT}[name], cmm.fff_forward, right_fff())


@pytest.mark.parametrize("name", FFF)
def test_cmm_refuses(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    if name == "w_in is float64":  # here it is compared with the bias first
        case = wrong(cmm.DtypeError, "bias has dtype float32", "w_in has dtype float64", **FFF[name].change)
    else:
        case = FFF[name]
    arguments = right_fff()
    del arguments["w_out"], arguments["out"]
    refuse(monkeypatch, case, cmm.cmm, arguments)


@pytest.mark.parametrize("name", [*FFF, *OUTPUT, *OUT])
def test_prepared_layer_refuses(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def call(x: Any, out: Any, **given: Any) -> Any:
        how = {name: given.pop(name) for name in PREPARED & given.keys()}
        return cmm.FFF(**given)(x, out=out, **how)

    refuse(monkeypatch, {**FFF, **OUTPUT, **OUT}[name], call, right_fff())


@pytest.mark.parametrize("name", DENSE)
def test_ff_forward_refuses(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    refuse(monkeypatch, DENSE[name], cmm.ff_forward, right_ff())


def right_cmm() -> dict[str, Any]:
    arguments = right_fff()
    del arguments["w_out"], arguments["out"]
    return arguments


PREPARED = {"x", "out", "level", "algorithm", "threads"}  # of a call; the others are the layer's


def prepared(**arguments: Any) -> Any:
    call = {name: arguments.pop(name) for name in PREPARED & arguments.keys()}
    return cmm.FFF(**arguments)(**call)


@pytest.mark.parametrize(
    ("call", "cases", "right"),
    [
        (cmm.fff_forward, {**FFF, **OUTPUT, **OUT}, right_fff),
        (prepared, {**FFF, **OUTPUT, **OUT}, right_fff),
        (cmm.cmm, FFF, right_cmm),
        (cmm.ff_forward, DENSE, right_ff),
    ],
    ids=["fff_forward", "FFF", "cmm", "ff_forward"],
)
def test_wrong_in_two_ways(
    monkeypatch: pytest.MonkeyPatch, call: Callable[..., Any], cases: dict[str, Wrong], right: Callable[[], Any]
) -> None:
    """One of the two errors is raised, the same every time, and out is as it was."""
    arguments = right()
    out = arguments.get("out")
    pairs = 0
    for (one_name, one), (two_name, two) in itertools.combinations(cases.items(), 2):
        changes = {
            name: value
            for name, value in [*one.change.items(), *two.change.items()]
            if name in arguments or name in HOW
        }
        if one.change.keys() & two.change.keys() or one.environment.keys() & two.environment.keys():
            continue
        if "level" in changes and "CMM_LEVEL" in one.environment.keys() | two.environment.keys():
            continue  # a level that is given is not looked up
        with monkeypatch.context() as environment:
            for name, value in {**one.environment, **two.environment}.items():
                environment.setenv(name, value)
            said = set()
            for _ in range(2):
                with pytest.raises((one.error, two.error)) as caught:
                    call(**{**arguments, **changes})
                said.add(str(caught.value))
        assert len(said) == 1
        (message,) = said
        fits = [case for case in (one, two) if type(caught.value) is case.error]
        # Of three dtypes any two may be the ones that are said to differ.
        enough = any if "they should be the same" in message else all
        assert any(enough(word in message for word in case.words) for case in fits), (one_name, two_name, message)
        pairs += 1
    assert pairs >= 100
    assert out is None or (out == 1).all()


def test_there_are_many_kinds() -> None:
    assert len({*FFF, *OUTPUT, *OUT}) >= 40


@pytest.mark.parametrize("new", [large, empty])
def test_no_memory_for_a_result_names_its_shape(new: Any) -> None:
    with pytest.raises(cmm.ArrayMemoryError, match=r"y, shape \(1099511627776, 1048576\), float32"):
        new("y", (2**40, 2**20), np.dtype(np.float32))


def test_arguments_after_the_star_are_by_name_alone() -> None:
    arguments = right_fff()
    with pytest.raises(TypeError, match="positional"):
        cmm.fff_forward(*arguments.values(), "gelu")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="unexpected keyword argument 'depth'"):
        cmm.fff_forward(**arguments, depth=2)  # type: ignore[call-overload]


def test_a_layer_that_was_refused_left_no_trace() -> None:
    """The level that a wrong call asked for, its threads and its arrays do not show in the next call."""
    arguments = right_fff()
    expected = cmm.fff_forward(**arguments).copy()
    for case in (*FFF.values(), *OUTPUT.values(), *OUT.values()):
        if not case.environment:
            with pytest.raises(case.error):
                cmm.fff_forward(**{**arguments, **case.change})
            assert (cmm.fff_forward(**arguments) == expected).all()


def test_what_equals_a_number_of_threads_is_none() -> None:
    """Not even after a call with that number."""
    arguments = right_fff()
    for threads in (True, 1.0):
        cmm.fff_forward(**arguments, threads=1)
        with pytest.raises(cmm.ArgumentError, match=f"threads is {threads}"):
            cmm.fff_forward(**arguments, threads=threads)  # type: ignore[call-overload]


# ---- node_usage ----------------------------------------------------------------------------------------------------

PATHS = np.array([[[0, 1, 3], [0, 2, 6]]], np.int32)


@pytest.mark.parametrize(
    ("error", "words", "nodes", "size"),
    [
        (cmm.DtypeError, "nodes has dtype float32", PATHS.astype(np.float32), 7),
        (cmm.DtypeError, "nodes has dtype object", None, 7),
        (cmm.ShapeError, r"nodes has shape \(3,\)", PATHS[0, 0], 7),
        (cmm.ShapeError, r"nodes has shape \(\)", 0, 7),
        (cmm.ShapeError, r"nodes has shape \(2, 0\)", PATHS[0, :, :0], 0),
        (cmm.ShapeError, r"nodes has shape \(1, 40\).*at most 30", np.zeros((1, 40), np.int32), 2**40 - 1),
        (cmm.ShapeError, "N is 15; it should be 7", PATHS, 15),
        (cmm.ShapeError, "N is '7'; it should be 7", PATHS, "7"),
        (cmm.ArgumentError, "does not start at node 0", PATHS + 1, 7),
        (cmm.ArgumentError, "leaves its tree.*children", PATHS * 2, 7),
        (cmm.ArgumentError, "leaves its tree", np.array([[[0, 1, 5]]], np.int32), 7),
        (cmm.ArgumentError, "leaves its tree", np.array([[[0, 1, -1]]], np.int32), 7),
        (cmm.ArgumentError, "leaves its tree", np.array([[[0, 1, 2**63 + 3]]], np.uint64), 7),
    ],
)
def test_node_usage_refuses(error: type[Exception], words: str, nodes: Any, size: Any) -> None:
    assert cmm.node_usage(PATHS, 7).sum() == 6
    with pytest.raises(error, match=words):
        cmm.node_usage(nodes, size)


@pytest.mark.parametrize(
    ("error", "words", "usage"),
    [
        (cmm.DtypeError, r"usage has dtype float64", np.ones((1, 7))),
        (cmm.ShapeError, r"usage has shape \(7,\)", np.ones(7, int)),
        (cmm.ShapeError, r"usage has shape \(1, 6\)", np.ones((1, 6), int)),
        (cmm.ShapeError, r"usage has shape \(1, 0\)", np.ones((1, 0), int)),
    ],
    ids=["floats", "one dimension", "no such N", "no nodes"],
)
def test_dead_subtrees_refuses(error: type[Exception], words: str, usage: Any) -> None:
    with pytest.raises(error, match=words):
        cmm.dead_subtrees(usage)


# ---- the table of statuses -----------------------------------------------------------------------------------------


def statuses() -> list[str]:
    header = Path(cmm.get_include(), "cmm.h").read_text(encoding="utf-8")
    return re.findall(r"^    (CMM_ERROR_\w+) = \d+", header, re.MULTILINE)


def test_every_status_has_its_exception() -> None:
    assert len(statuses()) > 50
    assert set(statuses()) == set(errors.BY_STATUS)


@pytest.mark.parametrize("name", statuses())
def test_a_status_becomes_its_exception(name: str) -> None:
    status = getattr(lib, name)
    error = _native.failure(status, "this call")
    assert type(error) is errors.BY_STATUS[name]
    assert str(error) == f"this call: {_native.text(lib.cmm_status_message(status))}"


def test_an_unknown_status_is_an_error_too() -> None:
    assert type(_native.failure(12345)) is cmm.CmmError
