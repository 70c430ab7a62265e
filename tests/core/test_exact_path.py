"""FFF(..., weights="int8", exact_path=...), and weights of two types."""

import copy
import pickle
from typing import Any

import cmm
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from other_library import Other
from strategies import ISAS, Case, forced_isa

NARROW = ["int8", "bfloat16", "float16"]
CASES = [
    Case(batch=300, d_in=33, d_out=1, depth=5, seed=1),
    Case(batch=700, d_in=65, d_out=41, depth=9, seed=2),
    Case(batch=50, d_in=1, d_out=33, trees=13, depth=2, seed=3),
    Case(batch=65, d_in=768, d_out=768, depth=4, seed=4),
    Case(batch=3, d_in=40, d_out=30, trees=3072, depth=0, seed=5),
    Case(batch=7, d_in=3, d_out=2, depth=15, seed=6),
    Case(batch=1, d_in=1000, d_out=1000, trees=2, depth=3, seed=8),
    Case(batch=0, d_in=8, d_out=8, depth=1, seed=7),
]


def quantised(rows: Any) -> tuple[Any, Any]:
    """Return whole numbers and scales by their definition."""
    scale = np.abs(rows).max(-1) / np.float32(127)
    scale = np.where(scale == 0, np.float32(1), scale)
    return np.rint(rows / scale[..., None]).clip(-127, 127), scale


def same(a: Any, b: Any) -> bool:
    return all(one.tobytes() == other.tobytes() for one, other in zip(a, b, strict=True))


def gamma(m: float) -> float:
    return m * 2.0**-24 / (1 - m * 2.0**-24)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("level", ["naive", "native"])
def test_int8_is_the_layer_of_the_widened_rows(case: Case, level: str) -> None:
    """By its definition, in float64 along the path; the same bits for every instruction set, batch and algorithm."""
    x, w_in, w_out, bias = case.arrays(np.float32, with_bias=True)
    layer = cmm.FFF(w_in, w_out, bias, activation="relu", weights="int8")
    wide = []
    for shown, rows in ((layer.w_in, w_in), (layer.w_out, w_out)):
        whole, scale = quantised(rows)
        assert np.array_equal(shown, (whole * scale[..., None]).astype(np.float32))
        wide.append(whole.astype(np.float64) * scale[..., None].astype(np.float64))
    results = []
    for isa in ISAS:
        with forced_isa(isa):
            results.append(layer(x, level=level, return_path=True))
            if level == "native":
                results.append(layer(x, algorithm="per_token", threads=1, return_path=True))
                results.append(layer(x, algorithm="grouped", threads=2, return_path=True))
    assert all(same(results[0], one) for one in results[1:])
    y, nodes, logits = results[0]
    half = case.batch // 2
    assert same((y[half:], nodes[half:], logits[half:]), layer(x[half:], level=level, return_path=True))
    if not case.batch:
        return
    trees = np.arange(case.trees)[:, None]
    rows = wide[0].reshape(case.trees, -1, case.d_in)[trees, nodes]
    offset = bias.reshape(case.trees, -1)[trees, nodes].astype(np.float64)
    exact = np.einsum("bkli,bi->bkl", rows, x.astype(np.float64)) + offset
    size = np.einsum("bkli,bi->bkl", np.abs(rows), np.abs(x.astype(np.float64))) + np.abs(offset)
    assert np.all(np.abs(logits - exact) <= gamma(case.d_in + 3) * size)
    went = nodes[..., 1:] - 2 * nodes[..., :-1] - 1
    assert np.array_equal(went, logits[..., :-1] > 0)
    coefficients = np.maximum(logits.astype(np.float64), 0)
    out = wide[1].reshape(case.trees, -1, case.d_out)[trees, nodes]
    terms = np.einsum("bkl,bklo->bo", coefficients, np.abs(out))
    assert np.all(
        np.abs(y - np.einsum("bkl,bklo->bo", coefficients, out))
        <= gamma(case.trees * (case.depth + 2) + 3) * terms + 1e-40
    )


@pytest.mark.parametrize("weights", [*NARROW, ("int8", "float32"), ("bfloat16", "int8")], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_path_is_float32s(weights: Any, case: Case) -> None:
    """Bit for bit; a logit is float32's where it was computed again, else the narrow one."""
    x, w_in, w_out, bias = case.arrays(np.float32, with_bias=True)
    exact = cmm.FFF(w_in, w_out, bias, weights=weights, exact_path=True)
    narrow, wide = cmm.FFF(w_in, w_out, bias, weights=weights), cmm.FFF(w_in, w_out, bias)
    assert (exact.recomputed, narrow.recomputed, wide.recomputed) == (None, None, None)
    for level in ("naive", "native"):
        _, nodes, logits = exact(x, level=level, return_path=True)
        _, wanted, wide_logits = wide(x, level=level, return_path=True)
        assert np.array_equal(nodes, wanted)
        _, _, narrow_logits = narrow(x, level=level, return_path=True, path=wanted)
        again = logits != narrow_logits
        assert np.array_equal(np.where(again, wide_logits, narrow_logits), logits)
        assert not again[..., -1:].any()
        assert exact.recomputed is not None
        assert again.sum() <= exact.recomputed <= case.batch * case.trees * case.depth
    assert (narrow.recomputed, wide.recomputed) == (None, None)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 17, 64, 65, 200]), st.sampled_from(NARROW))
def test_no_token_leaves_the_path(seed: int, width: int, weights: Any) -> None:
    """Also of tokens that are zero, tiny, huge or not finite, and of rows of very different sizes."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((40, width)).astype(np.float32)
    x *= 10.0 ** rng.integers(-44, 38, (40, 1))
    with np.errstate(over="ignore"):
        x = x.astype(np.float32)
    x[rng.integers(40), rng.integers(width)] = rng.choice([np.inf, -np.inf, np.nan, 0])
    w_in = (rng.standard_normal((2, 15, width)) * 10.0 ** rng.integers(-30, 18, (2, 15, 1))).astype(np.float32)
    if weights == "float16":
        w_in = (w_in / np.abs(w_in).max()).astype(np.float32)
    w_out = rng.standard_normal((2, 15, 3)).astype(np.float32)
    bias = (rng.standard_normal((2, 15)) * 10.0 ** rng.integers(-30, 18, (2, 15))).astype(np.float32)
    layer = cmm.FFF(w_in, w_out, bias, weights=weights, exact_path=True)
    assert np.array_equal(layer(x, return_path=True)[1], cmm.cmm_forward(x, w_in, bias)[0])


def test_fewer_logits_are_computed_again_for_a_likely_path() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((4000, 768), np.float32)
    w_in, w_out = (rng.standard_normal((1023, 768), np.float32) / 28 for _ in range(2))
    share = {}
    for weights, exact_path in (("int8", True), ("int8", 6.0), ("bfloat16", True)):
        layer = cmm.FFF(w_in, w_out, weights=weights, exact_path=exact_path)
        _, nodes, _ = layer(x, return_path=True)
        assert np.array_equal(nodes, cmm.cmm_forward(x, w_in)[0])
        share[weights, exact_path] = layer.recomputed / (4000 * 9)
    # A logit is normal here, of deviation |w| |x| / sqrt(768): so these are probabilities, for errors of s / sqrt(12)
    # in int8, s being the largest of 768 normal numbers / 127.
    assert 0.12 < share["int8", True] < 0.22
    assert 0.02 < share["int8", 6.0] < 0.06
    assert 0.02 < share["bfloat16", True] < 0.07


@pytest.mark.parametrize("weights", [*NARROW, ("float32", "int8"), ("int8", "bfloat16")], ids=str)
@pytest.mark.parametrize("exact_path", [False, True, 4.5])
def test_a_layer_says_what_it_is_and_can_be_copied(weights: Any, exact_path: Any) -> None:
    if exact_path and weights[0] == "float32":
        exact_path = False
    x, w_in, w_out, bias = CASES[1].arrays(np.float32, with_bias=True)
    layer = cmm.FFF(w_in, w_out, bias, weights=weights, exact_path=exact_path)
    assert layer.weights == weights
    assert type(layer.exact_path) is type(exact_path)
    assert layer.exact_path == exact_path
    end = f", weights={weights!r}" + (f", exact_path={exact_path!r})" if exact_path else ")")
    assert repr(layer).endswith(end)
    assert not layer.w_in.flags.writeable
    results = layer(x, return_path=True)
    for again in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer), copy.copy(layer)):
        assert repr(again) == repr(layer)
        assert same(again(x, return_path=True), results)
        assert again.recomputed == layer.recomputed
        assert np.array_equal(again.w_in, layer.w_in)


def test_memory() -> None:
    w = np.ones((4095, 768), np.float32)
    whole = cmm.FFF(w, w)._prepared[2].memory.nbytes
    assert cmm.FFF(w, w, weights="int8")._prepared[2].memory.nbytes <= 0.27 * whole
    assert cmm.FFF(w, w, weights="int8", exact_path=True)._prepared[2].memory.nbytes <= 0.55 * whole


# ---- wrong calls ---------------------------------------------------------------------------------------------------

ONE = np.ones((3, 2), np.float32)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("which", ["w_in", "w_out"])
def test_rows_that_are_not_finite_are_refused_by_tree_and_node(bad: float, which: str) -> None:
    arrays = {"w_in": np.ones((3, 7, 5), np.float32), "w_out": np.ones((3, 7, 4), np.float32)}
    arrays[which][2, 5, 1] = bad
    message = f"^{which} has an infinity or NaN in tree 2, node 5; a row that becomes int8 should be finite$"
    with pytest.raises(cmm.ArgumentError, match=message):
        cmm.FFF(**arrays, weights="int8")
    cmm.FFF(**arrays, weights="bfloat16")


@pytest.mark.parametrize(
    "exact_path", [0, 0.0, -1, np.nan, np.inf, "yes", (), [6.0], 1j, b"6", object(), np.float64(-2)]
)
def test_another_exact_path_is_refused(exact_path: Any) -> None:
    message = r"^exact_path is .*; it should be True, False, or a positive number of standard deviations$"
    with pytest.raises(cmm.ArgumentError, match=message):
        cmm.FFF(ONE, ONE, weights="int8", exact_path=exact_path)


@pytest.mark.parametrize("weights", [None, "float32", ("float32", "int8")], ids=str)
def test_an_exact_path_is_for_narrow_rows(weights: Any) -> None:
    with pytest.raises(cmm.ArgumentError, match=r"^exact_path is True, which is for rows of w_in that are narrower"):
        cmm.FFF(ONE, ONE, weights=weights, exact_path=True)
    with pytest.raises(cmm.ArgumentError, match=r"^weights is 'int8', which is for float32 layers"):
        cmm.FFF(ONE.astype(float), ONE.astype(float), weights="int8", exact_path=True)
    on_gpu = Other(ONE, (2, 0))
    with pytest.raises(cmm.ArgumentError, match=r"^weights is .*, which is for arrays on a CPU"):
        cmm.FFF(on_gpu, on_gpu, weights=("int8", "bfloat16"), exact_path=True)


def test_a_blas_level_takes_none() -> None:
    layer = cmm.FFF(ONE, ONE, weights=("float32", "int8"))
    with pytest.raises(cmm.UnusableError, match="takes no narrow weights"):
        layer(ONE, level="blas1")
