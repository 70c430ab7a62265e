"""NaN, infinities, signed zeros, subnormal and extreme numbers; layers and batches at the ends of their ranges."""

from itertools import product
from typing import Any

import cmm
import numpy as np
import pytest
from reference import ACTIVATIONS, TIES, Reference
from strategies import DTYPES, FIXED, TARGETS, Array, Case, Target

every_target = pytest.mark.parametrize("target", TARGETS, ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "f64"])
every_tie = pytest.mark.parametrize("tie", TIES)
either_bias = pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "nobias"])

SHAPES = [
    Case(batch=300, d_in=19, d_out=13, trees=1, depth=6),
    Case(batch=300, d_in=19, d_out=13, trees=5, depth=2),
    Case(batch=2000, d_in=67, d_out=130, trees=1, depth=11),
    Case(batch=7, d_in=67, d_out=3, trees=40, depth=3),
]
every_shape = pytest.mark.parametrize("case", SHAPES, ids=str)


# ---- what is not visited has no influence --------------------------------------------------------------------------


NOT_FINITE = (np.nan, np.inf, -np.inf)


@pytest.mark.sample(11)
@every_target
@every_dtype
@every_shape
@pytest.mark.parametrize("array", ["w_in", "bias", "w_out"])
def test_poison_reaches_only_those_who_visit_it(target: Target, dtype: Any, case: Case, array: str) -> None:
    """One number in some rows is not finite. Tokens beside each other in a batch visit such rows, and do not."""
    x, w_in, w_out, bias = case.arrays(dtype, with_bias=True)
    assert bias is not None
    clean = Reference(x, w_in, bias, w_out).path.nodes
    rng = np.random.default_rng(1)
    poisoned = rng.random((case.trees, case.nodes)) < 0.3 / case.trees / (case.depth + 1)
    poisoned[0, -1] = True
    poisoned[0, clean[0, 0, -1]] = True  # at least the first token meets one
    spoiled = {"w_in": w_in[..., case.d_in // 2], "bias": bias, "w_out": w_out[..., case.d_out // 2]}[array]
    for value in NOT_FINITE:
        spoiled[poisoned] = value
        y, nodes, logits = target.fff(x, w_in, w_out, bias, activation="silu")
        Reference(x, w_in, bias, w_out).check("silu", y, nodes, logits)
        met = poisoned[np.arange(case.trees)[:, None], nodes].any((1, 2))
        assert met.any()
        assert not met.all()
        np.testing.assert_array_equal(np.isfinite(y).all(1), ~met, err_msg=f"{value} in {array}")


@every_target
@every_dtype
@every_tie
@pytest.mark.parametrize("depth", [0, 1, 4, 9])
def test_all_rows_but_the_path_may_be_nan(target: Target, dtype: Any, tie: str, depth: int) -> None:
    """Also where a whole batch takes one path, so that whole subtrees are poisoned."""
    case = Case(batch=1, d_in=21, d_out=9, trees=3, depth=depth)
    x, w_in, w_out, bias = case.arrays(dtype, with_bias=True)
    assert bias is not None
    x = np.repeat(x, 50, axis=0)
    want = target.fff(x, w_in, w_out, bias, tie=tie)
    visited = np.zeros(bias.shape, bool)
    visited[np.arange(case.trees)[:, None], want[1][0]] = True
    for weights in (w_in, w_out, bias):
        weights[~visited] = np.nan
    got = target.fff(x, w_in, w_out, bias, tie=tie)
    assert np.isfinite(got[0]).all()
    Reference(x, w_in, bias, w_out, tie).check("gelu", *got)
    if target.fixed_bits:
        assert [a.tobytes() for a in got] == [a.tobytes() for a in want]


@pytest.mark.sample(11)
@every_target
@every_dtype
@every_shape
def test_a_poisoned_token_harms_no_other(target: Target, dtype: Any, case: Case) -> None:
    x, w_in, w_out, bias = case.arrays(dtype, with_bias=True)
    bad = np.arange(len(x)) % 3 == 1
    for value in NOT_FINITE:
        x[bad, case.d_in // 2] = value
        y, nodes, logits = target.fff(x, w_in, w_out, bias, activation="silu")
        Reference(x, w_in, bias, w_out).check("silu", y, nodes, logits)
        assert np.isfinite(y[~bad]).all(), value
        assert not np.isfinite(y[bad]).any(), value


@pytest.mark.parametrize("target", FIXED, ids=str)
@every_dtype
def test_zero_times_a_visited_infinity_is_nan(target: Target, dtype: Any) -> None:
    """As the definition has it. A BLAS may skip terms whose factor is 0, so its levels promise nothing here."""
    x = np.full((5, 3), -1, dtype)
    w_in, w_out = np.ones((1, 3, 3), dtype), np.ones((1, 3, 2), dtype)
    w_out[0, 0, 0] = np.inf
    y = target.fff_y(x, w_in, w_out, activation="relu")
    np.testing.assert_array_equal(y, np.tile([np.nan, 0], (5, 1)).astype(dtype))


# ---- NaN and infinite logits ---------------------------------------------------------------------------------------


@every_target
@every_dtype
@every_tie
@either_bias
def test_nan_goes_left(target: Target, dtype: Any, tie: str, with_bias: bool) -> None:
    case = Case(batch=40, d_in=11, d_out=4, trees=3, depth=5)
    x, w_in, w_out, bias = case.arrays(dtype, with_bias)
    x[::2, 3] = np.nan
    y, nodes, logits = target.fff(x, w_in, w_out, bias, tie=tie)
    assert (nodes[::2] == 2 ** np.arange(case.depth + 1) - 1).all()
    assert np.isnan(logits[::2]).all()
    assert np.isnan(y[::2]).all()
    Reference(x, w_in, bias, w_out, tie).check("gelu", y, nodes, logits)


@every_target
@every_dtype
@every_tie
def test_infinite_logits_go_their_way(target: Target, dtype: Any, tie: str) -> None:
    """+inf goes right, -inf left; inf - inf is NaN and goes left."""
    x = np.array([[np.inf, 1], [-np.inf, 1], [np.inf, np.inf], [1, 1]], dtype)
    w_in = np.array([[[1, -1], [1, 1], [1, 2]]], dtype)
    w_out = np.array([[[1], [2], [3]]], dtype)
    right_at_0 = tie == "right"
    for activation in ACTIVATIONS:
        y, nodes, logits = target.fff(x, w_in, w_out, activation=activation, tie=tie)
        assert nodes[:, 0].tolist() == [[0, 2], [0, 1], [0, 1], [0, 2 if right_at_0 else 1]]
        np.testing.assert_array_equal(logits[:, 0, 0], [np.inf, -np.inf, np.nan, 0])
        np.testing.assert_array_equal(logits[:, 0, 1], [np.inf, -np.inf, np.inf, 3 if right_at_0 else 2])
        Reference(x, w_in, None, w_out, tie).check(activation, y, nodes, logits)


# ---- zeros ---------------------------------------------------------------------------------------------------------


@every_target
@every_dtype
@every_tie
def test_signed_zeros_are_ties(target: Target, dtype: Any, tie: str) -> None:
    """Whatever the sign of the zeros that are summed, of the weights, and of the bias."""
    case = Case(batch=35, d_in=18, d_out=5, trees=2, depth=4)
    _, w_in, w_out, _ = case.arrays(dtype, with_bias=False)
    level = np.arange(case.depth + 1)
    for zero, sign, bias_zero in product((0.0, -0.0), (1, -1), (None, 0.0, -0.0)):
        x = np.full((case.batch, case.d_in), zero, dtype)
        bias = None if bias_zero is None else np.full(w_in.shape[:2], bias_zero, dtype)
        y, nodes, logits = target.fff(x, np.copysign(w_in, sign), w_out, bias, tie=tie)
        assert (nodes == (2 ** (level + 1) - 2 if tie == "right" else 2**level - 1)).all(), (zero, sign, bias_zero)
        assert (logits == 0).all(), (zero, sign, bias_zero)
        assert (y == 0).all(), (zero, sign, bias_zero)


@every_target
@every_dtype
@every_tie
def test_sums_that_cancel_to_zero_are_ties(target: Target, dtype: Any, tie: str) -> None:
    """Large and small integers that sum to exactly 0 in any order; the bias takes part."""
    rng = np.random.default_rng(0)
    half = rng.integers(-1000, 1001, (50, 20))
    x = np.concatenate([half, half], axis=1).astype(dtype)
    w = rng.integers(-8, 9, 20)
    w_in = np.tile(np.concatenate([w, -w]), (1, 7, 1)).astype(dtype)
    x, w_in = np.append(x, np.ones((50, 1), dtype), axis=1), np.append(w_in, np.full((1, 7, 1), 5, dtype), axis=2)
    bias = np.full((1, 7), -5, dtype)
    w_out = np.ones((1, 7, 3), dtype)
    y, nodes, logits = target.fff(x, w_in, w_out, bias, tie=tie)
    assert (logits == 0).all()
    assert (nodes == ([0, 2, 6] if tie == "right" else [0, 1, 3])).all()
    assert (y == 0).all()


# ---- small and large numbers ---------------------------------------------------------------------------------------


@every_target
@every_dtype
@pytest.mark.parametrize("small_x", [True, False], ids=["subnormal-x", "subnormal-product"])
def test_subnormal_numbers_are_not_flushed(target: Target, dtype: Any, small_x: bool) -> None:
    """Sums of few powers of two, subnormal but exact: positive ones go right, negative ones left."""
    tiny = float(np.finfo(dtype).smallest_subnormal)
    rng = np.random.default_rng(0)
    units = rng.integers(1, 20, (60, 33)) * rng.choice([-1, 1], (60, 1))
    if small_x:
        x, weight = (units * dtype(tiny)).astype(dtype), dtype(1)
    else:
        root = dtype(2.0 ** (np.log2(tiny) // 2))
        x, weight = (units * root).astype(dtype), dtype(tiny / float(root))
    assert float(weight) * float(x[0, 0]) == units[0, 0] * tiny
    w_in = np.full((1, 3, 33), weight, dtype)
    w_out = np.ones((1, 3, 5), dtype)
    y, nodes, logits = target.fff(x, w_in, w_out, activation="identity")
    sums = units.sum(1)
    np.testing.assert_array_equal(logits, np.tile((sums * tiny).astype(dtype)[:, None, None], (1, 1, 2)))
    np.testing.assert_array_equal(nodes[:, 0, 1], np.where(sums > 0, 2, 1))
    np.testing.assert_array_equal(y, np.tile((2 * sums * tiny).astype(dtype)[:, None], (1, 5)))


@pytest.mark.sample(4)
@every_target
@every_dtype
@every_tie
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_numbers_of_every_size(target: Target, dtype: Any, tie: str, activation: str) -> None:
    """Tokens and rows of w_in from subnormal to huge, and rows of w_out over half the range."""
    case = Case(batch=400, d_in=23, d_out=6, trees=2, depth=6)
    x, w_in, w_out, bias = case.arrays(dtype, with_bias=True)
    assert bias is not None
    exponent = np.log2(float(np.finfo(dtype).max))
    rng = np.random.default_rng(0)

    def scales(shape: tuple[int, ...], low: float, high: float) -> Array:
        return np.asarray(2.0 ** (exponent * rng.uniform(low, high, shape)), dtype)

    x *= scales((case.batch, 1), -0.9, 0.4)
    with np.errstate(under="ignore"):
        w_in *= scales((*w_in.shape[:2], 1), -0.9, 0.4)
    bias *= scales(bias.shape, -0.9, 0.3)
    w_out *= scales((*w_out.shape[:2], 1), -0.4, 0.1)
    oracle = Reference(x, w_in, bias, w_out, tie)
    assert np.isfinite(oracle.path.bounds).all()
    assert oracle.path.certain().mean() > 0.5
    oracle.check(activation, *target.fff(x, w_in, w_out, bias, activation=activation, tie=tie))


@every_target
@every_dtype
def test_overflow_is_infinite_and_decides(target: Target, dtype: Any) -> None:
    """Products beyond the largest number: +inf goes right, -inf left, and y is infinite."""
    big = float(np.finfo(dtype).max) ** 0.75
    x = np.array([[big] * 9, [-big] * 9], dtype)
    w_in, w_out = np.full((1, 3, 9), big, dtype), np.ones((1, 3, 4), dtype)
    y, nodes, logits = target.fff(x, w_in, w_out, activation="identity")
    assert nodes.tolist() == [[[0, 2]], [[0, 1]]]
    assert logits.tolist() == [[[np.inf, np.inf]], [[-np.inf, -np.inf]]]
    np.testing.assert_array_equal(y, np.array([[np.inf] * 4, [-np.inf] * 4], dtype))


# ---- the ends of the ranges ----------------------------------------------------------------------------------------

LEVELS = sorted({target.level for target in TARGETS})


@pytest.mark.parametrize("level", LEVELS)
@every_dtype
@pytest.mark.parametrize("trees", [None, 1, 4])
@pytest.mark.parametrize("depth", [0, 3])
def test_shapes(level: Any, dtype: Any, trees: int | None, depth: int) -> None:
    """Nodes and logits have a dimension of trees also for a single tree, given with it or without."""
    tokens, w_in, w_out, bias = Case(batch=24, trees=trees or 1, depth=depth).arrays(dtype, with_bias=True)
    assert bias is not None
    if trees is None:
        w_in, w_out, bias = w_in[0], w_out[0], bias[0]
    leadings: tuple[tuple[int, ...], ...] = ((), (1,), (4,), (0,), (2, 3), (2, 0, 3))
    for leading in leadings:
        x = tokens[: int(np.prod(leading))].reshape(*leading, tokens.shape[1])
        y, nodes, logits = cmm.fff_forward(x, w_in, w_out, bias, level=level, return_path=True)
        assert y.shape == (*leading, w_out.shape[-1])
        assert nodes.shape == logits.shape == (*leading, trees or 1, depth + 1)
        assert [y.dtype, nodes.dtype, logits.dtype] == [np.dtype(dtype), np.dtype(np.int32), np.dtype(dtype)]
        assert cmm.fff_forward(x, w_in, w_out, bias, level=level).shape == y.shape
        alone = cmm.cmm(x, w_in, bias, level=level)
        assert [a.shape for a in alone] == [nodes.shape, logits.shape]
        if trees is None:
            assert cmm.ff_forward(x, w_in, w_out, bias, level=level).shape == y.shape


@every_target
@every_dtype
def test_empty_batch_touches_nothing(target: Target, dtype: Any) -> None:
    """No token, but a layer full of NaN."""
    x = np.empty((0, 5), dtype)
    w_in, w_out = np.full((2, 7, 5), np.nan, dtype), np.full((2, 7, 3), np.nan, dtype)
    y, nodes, logits = target.fff(x, w_in, w_out)
    assert (y.shape, nodes.shape, logits.shape) == ((0, 3), (0, 2, 3), (0, 2, 3))
    assert target.ff(x, w_in[0], w_out[0]).shape == (0, 3)


@every_target
@every_dtype
@either_bias
def test_dense_layer_without_neurons_is_zero(target: Target, dtype: Any, with_bias: bool) -> None:
    x = np.ones((4, 5), dtype)
    bias = np.empty(0, dtype) if with_bias else None
    y = target.ff(x, np.empty((0, 5), dtype), np.empty((0, 3), dtype), bias)
    np.testing.assert_array_equal(y, np.zeros((4, 3), dtype))


@pytest.mark.sample(11)
@every_target
@every_dtype
@either_bias
@pytest.mark.parametrize("batch", [1, 37])
def test_3072_trees_of_one_node(target: Target, dtype: Any, with_bias: bool, batch: int) -> None:
    case = Case(batch=batch, d_in=24, d_out=10, trees=3072, depth=0)
    x, w_in, w_out, bias = case.arrays(dtype, with_bias)
    y, nodes, logits = target.fff(x, w_in, w_out, bias)
    assert nodes.shape == (batch, 3072, 1)
    assert not nodes.any()
    Reference(x, w_in, bias, w_out).check("gelu", y, nodes, logits)


@every_target
@every_dtype
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_at_special_points(target: Target, dtype: Any, activation: str) -> None:
    """One tree of one node with weight 1: y is the activation of x, over its whole range and at its ends."""
    top = float(np.finfo(dtype).max) / 4
    points = [
        0,
        -0.0,
        1e-30,
        -1e-30,
        0.5,
        -0.5,
        6,
        -6,
        13,
        -13,
        40,
        -40,
        120,
        -120,
        800,
        -800,
        top,
        -top,
        np.inf,
        np.nan,
    ]
    x = np.array([*points, -np.inf], dtype)[:, None]
    one = np.ones((1, 1, 1), dtype)
    y, nodes, logits = target.fff(x, one, one, activation=activation)
    np.testing.assert_array_equal(logits[:, 0], x)
    Reference(x, one, None, one).check(activation, y, nodes, logits)
    assert y[points.index(0), 0] == 0
    assert np.isposinf(y[points.index(np.inf), 0])


@every_target
@every_dtype
def test_inputs_stay_as_they_were(target: Target, dtype: Any) -> None:
    x, w_in, w_out, bias = SHAPES[0].arrays(dtype, with_bias=True)
    assert bias is not None
    inputs = x, w_in, w_out, bias
    before = [a.copy() for a in inputs]
    for a in inputs:
        a.flags.writeable = False
    target.fff(x, w_in, w_out, bias)
    target.cmm(x, w_in, bias)
    target.ff(x, w_in[0], w_out[0], bias[0])
    assert [a.tobytes() for a in inputs] == [a.tobytes() for a in before]
