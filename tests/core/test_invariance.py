"""In naive and native, a token's answer does not depend on its batch, its place, or the threads: bit for bit."""

from typing import Any

import cmm
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import DTYPES, FIXED, ISAS, SMALL, TARGETS, Array, Case, Target, cases, forced_isa

every_target = pytest.mark.parametrize("target", FIXED, ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "f64"])

Result = tuple[Array, Array, Array]

# Large enough for threads to share them and for native to group tokens in two phases; none a multiple of a tile.
CASES = [
    Case(batch=1021, d_in=67, d_out=41, depth=9, seed=1),
    Case(batch=1021, d_in=768, d_out=768, depth=11, seed=2),
    Case(batch=500, d_in=33, d_out=65, trees=13, depth=4, kind="repeated", seed=3),
    Case(batch=300, d_in=40, d_out=30, trees=300, depth=0, seed=4),
    Case(batch=300, d_in=9, d_out=3, trees=70, depth=2, kind="integer", seed=5),
    Case(batch=1021, d_in=5, d_out=300, trees=2, depth=13, seed=6),
]
CASES = [case for case in CASES if case.work <= 2**23] if SMALL else CASES
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def assert_same_bits(got: Result, want: Result, who: object = "") -> None:
    """Bytes, not values: -0 is not 0 here, and NaN would be NaN."""
    for name, a, b in zip(("y", "nodes", "logits"), got, want, strict=True):
        assert a.shape == b.shape
        if a.tobytes() != b.tobytes():
            token = np.argwhere((a.reshape(len(a), -1) != b.reshape(len(b), -1)).any(1))[0, 0]
            raise AssertionError(f"{who} {name} of token {token} has other bits: {a[token]} and {b[token]}")


def rows(result: Result, index: Any) -> Result:
    y, nodes, logits = result
    return np.ascontiguousarray(y[index]), np.ascontiguousarray(nodes[index]), np.ascontiguousarray(logits[index])


@pytest.mark.sample(7)
@every_target
@every_dtype
@every_case
def test_any_batch_any_place(target: Target, dtype: Any, case: Case) -> None:
    """Alone, in pieces of every small size, in another order, and among repetitions of itself."""
    x, w_in, w_out, bias = case.arrays(dtype, with_bias=True)
    whole = target.fff(x, w_in, w_out, bias)
    rng = np.random.default_rng(0)

    order = rng.permutation(len(x))
    assert_same_bits(target.fff(x[order], w_in, w_out, bias), rows(whole, order))

    for size in (1, 2, 3, 4, 5, 7, 8, 9, 15, 17, 31, 63, 65, 127, 129, 257):
        start = int(rng.integers(0, len(x) - size))
        part = slice(start, start + size)
        assert_same_bits(target.fff(x[part], w_in, w_out, bias), rows(whole, part))

    again = rng.integers(0, 5, 200)
    assert_same_bits(target.fff(x[again], w_in, w_out, bias), rows(whole, again))


@pytest.mark.sample(7)
@every_target
@every_dtype
@every_case
def test_any_threads(target: Target, dtype: Any, case: Case) -> None:
    x, w_in, w_out, bias = case.arrays(dtype, with_bias=True)
    one = target.fff(x, w_in, w_out, bias, threads=1)
    for threads in (2, 3, 8, None):
        assert_same_bits(target.fff(x, w_in, w_out, bias, threads=threads), one)


def shifted(array: Array, elements: int) -> Array:
    """A copy that starts so many elements after a multiple of 64 bytes."""
    memory = np.empty(array.nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 64 + elements * array.itemsize
    copy: Array = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@pytest.mark.sample(7)
@every_target
@every_dtype
def test_any_address(target: Target, dtype: Any) -> None:
    """Arrays need no more alignment than their elements."""
    x, w_in, w_out, bias = CASES[-1].arrays(dtype, with_bias=True)
    assert bias is not None
    at_64 = target.fff(*(shifted(a, 0) for a in (x, w_in, w_out, bias)))
    for offsets in ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (3, 2, 1, 5)):
        arrays = [shifted(a, offset) for a, offset in zip((x, w_in, w_out, bias), offsets, strict=True)]
        assert_same_bits(target.fff(*arrays), at_64, offsets)


@every_target
@every_dtype
@given(case=cases(), data=st.data())
def test_any_shape(target: Target, dtype: Any, case: Case, data: st.DataObject) -> None:
    """As above for shapes of every kind: two pieces of a batch, cut anywhere, and threads."""
    x, w_in, w_out, bias = case.arrays(dtype, with_bias=True)
    whole = target.fff(x, w_in, w_out, bias, activation="silu", tie="right", threads=2)
    cut = data.draw(st.integers(0, case.batch), label="cut")
    for part in (slice(0, cut), slice(cut, case.batch)):
        got = target.fff(x[part], w_in, w_out, bias, activation="silu", tie="right", threads=1)
        assert_same_bits(got, rows(whole, part))


@every_dtype
@every_case
def test_native_has_one_answer(dtype: Any, case: Case) -> None:
    """Every algorithm and every instruction set of level native gives the same bits."""
    natives = [target for target in TARGETS if target.level == "native"]
    x, w_in, w_out, bias = case.arrays(dtype, with_bias=True)
    first, *others = (target.fff(x, w_in, w_out, bias) for target in natives)
    assert others, "there should be several"
    for target, other in zip(natives[1:], others, strict=True):
        assert_same_bits(other, first, target)


@every_dtype
@every_case
def test_algorithm_changes_no_bit(dtype: Any, case: Case) -> None:
    """By the argument of every Python function; a prepared layer is an fff_forward with other rows."""
    x, w_in, w_out, bias = case.arrays(dtype, with_bias=True)
    layer = cmm.FFF(w_in, w_out, bias)
    want = cmm.fff_forward(x, w_in, w_out, bias, level="native", return_path=True)
    for algorithm in ("per_token", "grouped"):
        assert_same_bits(cmm.fff_forward(x, w_in, w_out, bias, algorithm=algorithm, return_path=True), want)
        assert_same_bits(layer(x, algorithm=algorithm, return_path=True), want)
        assert_same_bits((want[0], *cmm.cmm_forward(x, w_in, bias, algorithm=algorithm)), want)


@every_dtype
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "silu", "identity"])
def test_instruction_set_of_the_activation_changes_no_bit(dtype: Any, activation: Any) -> None:
    """Level naive is compiled once; only its activation is of the instruction set."""
    x, w_in, w_out, bias = Case(batch=257, d_in=5, d_out=3, depth=6).arrays(dtype, with_bias=True)
    x *= np.exp(np.linspace(-20, 5, len(x)))[:, None].astype(dtype)
    answers = [Target("naive", isa).fff(x, w_in, w_out, bias, activation=activation) for isa in ISAS]
    for isa, answer in zip(ISAS, answers, strict=True):
        assert_same_bits(answer, answers[0], isa)


@pytest.mark.sample(7)
@every_dtype
@pytest.mark.parametrize("isa", ISAS)
@every_case
def test_prepared_layer_has_the_bits_of_the_raw_call(isa: str, dtype: Any, case: Case) -> None:
    x, w_in, w_out, bias = case.arrays(dtype, with_bias=True)
    layer = cmm.FFF(w_in, w_out, bias, activation="gelu_tanh", tie="right")
    with forced_isa(isa):
        for level in {target.level for target in FIXED}:
            want = cmm.fff_forward(
                x, w_in, w_out, bias, activation="gelu_tanh", tie="right", level=level, return_path=True
            )
            assert_same_bits(layer(x, level=level, return_path=True), want)
            assert_same_bits(layer(x[:3], level=level, return_path=True), rows(want, slice(0, 3)))


@every_dtype
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("level", sorted({target.level for target in FIXED}))
def test_leading_dimensions(isa: str, level: str, dtype: Any) -> None:
    """x of any dimensions is the same tokens in rows."""
    x, w_in, w_out, bias = Case(batch=24, d_in=10, d_out=6, trees=2, depth=4).arrays(dtype, with_bias=True)
    target = Target(level, isa)
    flat = target.fff(x, w_in, w_out, bias)
    deep = target.fff(x.reshape(2, 3, 4, 10), w_in, w_out, bias)
    assert [a.shape[:3] for a in deep] == [(2, 3, 4)] * 3
    assert_same_bits(tuple(a.reshape(b.shape) for a, b in zip(deep, flat, strict=True)), flat)  # type: ignore[arg-type]


# Level native as a user calls it takes the BLAS's gemm for a dense layer, whose sums depend on the batch.
@pytest.mark.parametrize("target", [t for t in FIXED if t.algorithm or t.level == "naive"], ids=str)
@every_dtype
def test_our_own_dense_kernels(target: Target, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((130, 65), dtype)
    w_in, w_out = rng.standard_normal((2, 97, 65), dtype)
    whole = target.ff(x, w_in, w_out)
    for size in (1, 3, 8, 17):
        for threads in (1, 2):
            part = target.ff(x[5 : 5 + size], w_in, w_out, threads=threads)
            assert part.tobytes() == whole[5 : 5 + size].tobytes()
