"""A prepared layer's call goes the short way, in C, where that will do, and gives what the long way gives."""

import gc
import sys
import weakref
from collections.abc import Callable
from types import FrameType, FunctionType
from typing import Any

import cmm
import numpy as np
import pytest
from cmm import _call, _check, _dispatch

D_IN, D_OUT, N = 24, 17, 15
Make = Callable[[], dict[str, Any]]


def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def layer(dtype: str = "float32", d_out: int = D_OUT, **how: Any) -> cmm.FFF:
    draw = rng().standard_normal
    w_in, w_out, bias = draw((2, N, D_IN)), draw((2, N, d_out)), draw((2, N))
    return cmm.FFF(w_in.astype(dtype), w_out.astype(dtype), bias.astype(dtype), **how)


def tokens(*shape: int, dtype: Any = "float32") -> np.ndarray[Any, Any]:
    return np.asarray(rng().standard_normal((*shape, D_IN)), dtype)


def called(function: FunctionType, call: Callable[[], object]) -> int:
    """Return how often a function of Python's was called."""
    taken = 0

    def watch(frame: FrameType, event: str, argument: object) -> None:
        nonlocal taken
        taken += event == "call" and frame.f_code is function.__code__

    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    return taken


SHORT: dict[str, Make] = {
    "one token": lambda: {"x": tokens()},
    "no tokens": lambda: {"x": tokens(0)},
    "a row": lambda: {"x": tokens(1)},
    "more dimensions": lambda: {"x": tokens(2, 3, 1)},
    "threads": lambda: {"x": tokens(5), "threads": 2},
    "out": lambda: {"x": tokens(5), "out": np.empty((5, D_OUT), np.float32)},
    "a view as out": lambda: {"x": tokens(5), "out": np.empty((9, D_OUT), np.float32)[2:7]},
    "a view as x": lambda: {"x": tokens(9)[2:7]},
    "read-only x": lambda: {"x": np.frombuffer(tokens(3).tobytes(), np.float32).reshape(3, D_IN)},
}


class Derived(np.ndarray):  # type: ignore[type-arg]
    """A kind of array that may behave otherwise."""


def memory_of_one() -> dict[str, Any]:
    both = np.zeros(5 * (D_IN + D_OUT), np.float32)
    x, out = both[: 5 * D_IN].reshape(5, D_IN), both[5 * D_IN - 1 : 5 * (D_IN + D_OUT) - 1].reshape(5, D_OUT)
    x[:-1] = tokens(4)
    return {"x": x, "out": out}


def misaligned() -> np.ndarray[Any, Any]:
    memory = np.zeros(4 * 5 * D_IN + 1, np.uint8)
    memory[1:] = tokens(5).view(np.uint8).ravel()
    return memory[1:].view(np.float32).reshape(5, D_IN)


LONG: dict[str, Make] = {
    "level": lambda: {"x": tokens(5), "level": "naive"},
    "algorithm": lambda: {"x": tokens(5), "algorithm": "grouped"},
    "path wanted": lambda: {"x": tokens(5), "return_path": True},
    "path given": lambda: {"x": tokens(5), "path": np.full((5, 2), 9, np.int32)},
    "threads of NumPy": lambda: {"x": tokens(5), "threads": np.int64(1)},
    "a derived class": lambda: {"x": tokens(5).view(Derived)},
    "columns": lambda: {"x": np.asfortranarray(tokens(5))},
    "every other row": lambda: {"x": tokens(10)[::2]},
    "a large y": lambda: {"x": tokens(1 << 10)},
    "not aligned": lambda: {"x": misaligned()},
    "out of columns": lambda: {"x": tokens(5), "out": np.empty((D_OUT, 5), np.float32).T},
    "out in x": memory_of_one,
}


def same(found: Any, expected: Any) -> None:
    if isinstance(expected, tuple):
        for one, other in zip(found, expected, strict=True):
            same(one, other)
        return
    assert type(found) is type(expected) is np.ndarray
    assert (found.dtype, found.shape, found.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())


@pytest.mark.parametrize("how", [*SHORT, *LONG])
@pytest.mark.parametrize("made", [{}, {"weights": "int8", "exact_path": True}], ids=["float32", "int8, exact path"])
def test_both_ways_give_the_same(how: str, made: dict[str, Any]) -> None:
    ffn, other, make = layer(**made), layer(**made), {**SHORT, **LONG}[how]
    assert called(_check.apply, lambda: ffn(**make())) == (how in LONG)
    call = {"level": "auto", "algorithm": None, "threads": None, "out": None, "return_path": False, "path": None}
    call |= make()
    expected = _check.apply(other._prepared, **call)
    given = make()
    found = ffn(**given)
    same(found, expected)
    assert ffn.recomputed == other.recomputed
    if "out" in given:
        assert found is given["out"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_only_tokens_of_the_layers_dtype_take_it(dtype: str) -> None:
    ffn = layer(dtype)
    x = tokens(3, dtype=dtype)
    assert called(_check.apply, lambda: ffn(x)) == 0
    for other in ("float16", "int32", x.dtype.newbyteorder(), "float32" if dtype == "float64" else "float64"):
        with pytest.raises(cmm.DtypeError, match="x has dtype"):
            ffn(x.astype(other))


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"x": tokens(3)[:, 1:]}, cmm.ShapeError, r"x has shape \(3, 23\)"),
        ({"x": np.float32(1)}, cmm.ShapeError, "x has no dimensions"),
        ({"threads": 0}, cmm.ArgumentError, "threads is 0"),
        ({"threads": True}, cmm.ArgumentError, "threads is True"),
        ({"threads": 1 << 70}, cmm.ArgumentError, "threads is 1180591620717411303424"),
        ({"out": np.zeros((3, D_OUT + 1), np.float32)}, cmm.ShapeError, r"out has shape \(3, 18\)"),
        ({"out": np.zeros((1, 3, D_OUT), np.float32)}, cmm.ShapeError, r"out has shape \(1, 3, 17\)"),
        ({"out": np.zeros((4, D_OUT), np.float32)}, cmm.ShapeError, r"out has shape \(4, 17\)"),
        ({"out": np.zeros((3, D_OUT))}, cmm.DtypeError, "out has dtype float64"),
        ({"out": np.frombuffer(bytes(4 * 3 * D_OUT), np.float32).reshape(3, D_OUT)}, cmm.ArgumentError, "read-only"),
    ],
)
def test_an_error_is_that_of_the_long_way_and_writes_nothing(
    wrong: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        layer()(**{"x": tokens(3), **wrong})
    assert not np.any(wrong.get("out", 0))


def test_a_change_of_the_environment_takes_effect_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ffn, x = layer(), tokens(3)
    expected = ffn(x)
    monkeypatch.setenv("CMM_NUM_THREADS", "none")
    with pytest.raises(cmm.ArgumentError, match="CMM_NUM_THREADS is 'none'"):
        ffn(x)
    assert called(_check.apply, lambda: ffn(x, threads=1)) == 0
    monkeypatch.setenv("CMM_NUM_THREADS", "1")
    assert called(_check.apply, lambda: same(ffn(x), expected)) == 0
    for name in ("CMM_ISA", "CMM_LEVEL"):
        monkeypatch.setenv(name, "mmx")
        with pytest.raises(cmm.CmmError, match=f"{name} is 'mmx'"):
            ffn(x)
        monkeypatch.delenv(name)
    monkeypatch.setenv("CMM_LEVEL", "naive")
    assert called(_check.apply, lambda: ffn(x)) == 0
    same(ffn(x), ffn(x, level="naive"))


def test_how_to_run_is_asked_when_it_may_have_changed() -> None:
    ffn, x = layer(), tokens(3)
    for threads in (1, 2, None, 1):
        assert called(_dispatch.plan, lambda threads=threads: ffn(x, threads=threads)) == 1
        assert called(_dispatch.plan, lambda threads=threads: ffn(x, threads=threads)) == 0


def test_nothing_is_kept_of_a_call() -> None:
    ffn, x, out = layer(weights="int8", exact_path=True), tokens(3), np.empty((3, D_OUT), np.float32)

    def counts() -> list[int]:
        gc.collect()
        return [sys.getrefcount(one) for one in (x, out, x.dtype, ffn._prepared)]

    def calls() -> None:
        for _ in range(100):
            ffn(x)
            ffn(x, out=out)
            ffn(x, out=out[:, :])
            for wrong in ({"out": out[:2]}, {"threads": 0}, {"x": x[:, 1:]}):
                with pytest.raises(cmm.CmmError):
                    ffn(**{"x": x, **wrong})

    calls()
    before = counts()
    calls()
    assert counts() == before


def test_a_layer_that_goes_is_gone_but_not_before_its_last_call() -> None:
    ffn = layer()
    memory, kept = weakref.ref(ffn._prepared[2].memory), ffn._bound
    del ffn
    gc.collect()
    assert memory() is not None
    del kept
    gc.collect()
    assert memory() is None


def test_wrong_arguments_of_the_extension_are_errors() -> None:
    with pytest.raises(TypeError, match="takes 8 arguments and was given 1"):
        _call.apply(layer()._bound)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="PyCapsule"):
        _call.apply(None, tokens(3), "auto", None, None, None, False, None)
