"""The oracle itself: against exact arithmetic, and that it refuses what is wrong."""

import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest
from reference import (
    ACTIVATIONS,
    LIPSCHITZ,
    TIES,
    ULPS,
    Reference,
    activate,
    dense,
    gamma,
    goes_right,
    roundoff,
    wide,
    worst,
)
from strategies import DTYPES, Array, Case

every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "f64"])


# ---- the oracle is right -------------------------------------------------------------------------------------------


def fractions(a: Array) -> Any:
    """Exact values, as nested lists."""
    return [fractions(b) for b in a] if a.ndim else Fraction(float(a))


def digits(value: Fraction) -> Decimal:
    """A fraction to the precision of the decimal context."""
    return Decimal(value.numerator) / Decimal(value.denominator)


def exact_erf(x: Decimal) -> Decimal:
    """2/sqrt(pi) sum (-1)^k x^(2k+1) / (k! (2k+1)).

    For |x| <= 27 the terms grow to e^729 = 10^317, and erfc shrinks to 10^-319: 760 digits leave more than 100.
    """
    term = total = x
    k = 0
    while abs(term) > Decimal(10) ** -450:
        k += 1
        term *= -x * x / k
        total += term / (2 * k + 1)
    return 2 * total / exact_pi().sqrt()


@cache
def exact_pi() -> Decimal:
    """Machin's formula."""

    def arctan_of_inverse(n: int) -> Decimal:
        power = Decimal(1) / n
        total, k = power, 1
        while abs(power) > Decimal(10) ** -760:
            power /= -n * n
            k += 2
            total += power / k
        return total

    return 4 * (4 * arctan_of_inverse(5) - arctan_of_inverse(239))


def exact_activation(name: str, z: Fraction) -> Decimal:
    x = digits(z)
    if name == "relu":
        return max(x, Decimal(0))
    if name == "identity":
        return x
    if name == "silu":
        return x / (1 + (-x).exp())
    if name == "gelu_tanh":
        return x / (1 + (-2 * (2 / exact_pi()).sqrt() * (x + Decimal("0.044715") * x**3)).exp())
    return x * (1 + exact_erf(x / Decimal(2).sqrt())) / 2


@pytest.mark.sample(5)
@every_dtype
@pytest.mark.parametrize("tie", TIES)
@pytest.mark.parametrize("kind", ["normal", "integer"])
def test_oracle_follows_algorithm_1_in_exact_arithmetic(dtype: Any, tie: str, kind: str) -> None:
    """Written out as in the paper, token by token; the bounds left when u = v are the oracle's own error."""
    case = Case(batch=12, d_in=5, d_out=3, trees=2, depth=3, kind=kind, seed=7)
    x, w_in, w_out, bias = case.arrays(dtype, with_bias=True)
    assert bias is not None
    oracle = Reference(x, w_in, bias, w_out, tie)
    got = oracle.path
    y, _ = oracle.output(got, "gelu")
    v = Fraction(gamma(case.d_in + 1, roundoff(wide(np.dtype(dtype)))))
    with localcontext(prec=760):
        for t, token in enumerate(fractions(x)):
            total = [Decimal(0)] * case.d_out
            spread = Decimal(0)
            for k in range(case.trees):
                n = 0
                for level in range(case.depth + 1):
                    terms = [w * i for w, i in zip(fractions(w_in[k, n]), token, strict=True)]
                    b = Fraction(float(bias[k, n]))
                    logit = sum(terms, b)
                    assert got.nodes[t, k, level] == n
                    size = sum(map(abs, terms), abs(b))
                    assert abs(as_fraction(got.logits[t, k, level]) - logit) <= v * size
                    a = exact_activation("gelu", logit)
                    spread += digits(size) * 10
                    total = [s + a * digits(w) for s, w in zip(total, fractions(w_out[k, n]), strict=True)]
                    n = 2 * n + 1 + (logit >= 0 if tie == "right" else logit > 0)
            for o in range(case.d_out):
                off = abs(digits(as_fraction(y[t, o])) - total[o])
                assert off <= Decimal(100 * roundoff(wide(np.dtype(dtype)))) * spread


def as_fraction(value: Any) -> Fraction:
    """A float64 or long double, exactly."""
    return Fraction(*value.as_integer_ratio())


@pytest.mark.sample(5)
@every_dtype
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_as_exact_as_they_say(name: str, dtype: Any) -> None:
    real = wide(np.dtype(dtype))
    z = np.concatenate(
        [np.linspace(-12, 12, 97), [-37.5, -25.3, -5.66, -2.83, -1.42, -1e-3, -1e-9, 0, 1e-9, 0.7, 1.41, 1.42, 30]]
    )
    value, slack = activate(name, z.astype(real))
    with localcontext(prec=760):
        for z_i, value_i, slack_i in zip(z, value, slack, strict=True):
            want = exact_activation(name, Fraction(z_i))
            off = abs(digits(as_fraction(value_i)) - want)
            bound = abs(want) * Decimal(float(slack_i) * roundoff(real))
            if slack_i:
                bound += digits(abs(Fraction(z_i)) * as_fraction(np.finfo(real).tiny))
            assert off <= bound, (z_i, value_i, want)


def test_activations_of_what_is_not_finite() -> None:
    z = np.array([np.nan, np.inf, -np.inf])
    for name in ACTIVATIONS:
        of_minus_infinity = {"relu": 0, "identity": -np.inf}.get(name, np.nan)
        for real in (np.float64, np.longdouble):
            np.testing.assert_array_equal(activate(name, z.astype(real))[0], [np.nan, np.inf, of_minus_infinity])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_lipschitz_constants(name: str) -> None:
    """The steepest chord on a fine grid is no steeper than promised, and not much less steep."""
    z = np.linspace(-10, 10, 2_000_001)
    value, _ = activate(name, z)
    steepest = float(np.max(np.abs(np.diff(value) / np.diff(z))))
    assert LIPSCHITZ[name] * 0.998 <= steepest <= LIPSCHITZ[name] * (1 + 1e-9)


def test_header_promises_an_error_for_every_activation() -> None:
    """Of its value in ulps, of its derivative in roundings of the derivative's parts."""
    kinds = ("f32", "f64", "slope f32", "slope f64")
    assert set(ULPS) == {(name, kind) for name in ACTIVATIONS for kind in kinds}
    assert all(0 <= ulp <= 4 for (_, kind), ulp in ULPS.items() if not kind.startswith("slope"))
    assert all(
        (0 < of_slope <= 8) == (name not in ("relu", "identity"))
        for (name, kind), of_slope in ULPS.items()
        if kind.startswith("slope")
    )


def test_fixed_examples_by_hand() -> None:
    """A tree of depth 1 whose logits are 2 and -3, ReLU: y = 2 * 10."""
    x = np.array([[1, 2]], np.float32)
    w_in = np.array([[[0, 1], [5, 5], [1, -2]]], np.float32)
    w_out = np.array([[[10], [20], [30]]], np.float32)
    oracle = Reference(x, w_in, None, w_out)
    assert oracle.path.nodes.tolist() == [[[0, 2]]]
    assert oracle.path.logits.tolist() == [[[2, -3]]]
    assert oracle.output(oracle.path, "relu")[0].tolist() == [[20]]
    assert oracle.output(oracle.path, "identity")[0].tolist() == [[2 * 10 - 3 * 30]]


def test_nan_goes_left() -> None:
    assert not goes_right(np.array([np.nan]), "left")[0]
    assert not goes_right(np.array([np.nan]), "right")[0]
    assert goes_right(np.array([0.0, -0.0]), "right").all()
    assert not goes_right(np.array([0.0, -0.0]), "left").any()


@every_dtype
def test_bounds_hold_for_sums_in_the_worst_order(dtype: Any) -> None:
    """Ascending, descending, of one sign, cancelling, underflowing: sums in the type itself are within the bound."""
    rng = np.random.default_rng(0)
    n = 300
    size = np.exp(rng.uniform(-8, 8, (64, n)))
    mixed = size * rng.choice([-1, 1], size.shape)
    tiny = float(np.finfo(dtype).tiny) ** 0.5  # products just below the normal range, a bias of a few subnormals
    for w, scale in ((size, 1), (np.sort(size), 1), (-np.sort(-size), 1), (mixed, 1), (mixed / size, tiny)):
        w_in = (w * scale).astype(dtype)[:, None, :]
        x = (rng.standard_normal((3, n)) * scale / (1 if scale == 1 else 1 << 22)).astype(dtype)
        bias = (rng.standard_normal((64, 1)) * scale**2).astype(dtype)
        path = Reference(x, w_in, bias, None).path
        total = np.zeros((3, 64), dtype)
        for i in range(n):
            total = total + w_in[:, 0, i] * x[:, i, None]
        assert total.dtype == dtype
        share = worst((total + bias[:, 0])[..., None], path.logits, path.bounds, "logits")
        assert share > 1e-4, "a bound this wide would hold for anything"


# ---- the oracle refuses what is wrong ------------------------------------------------------------------------------

Result = tuple[Array, Array, Array]


def right_answer(oracle: Reference, activation: str) -> Result:
    y, _ = oracle.output(oracle.path, activation)
    path = oracle.path
    return y.astype(oracle.dtype), path.nodes.copy(), path.logits.astype(oracle.dtype)


def wrong_turn(y: Array, nodes: Array, logits: Array) -> None:
    nodes[3, 1, -1] += 1 if nodes[3, 1, -1] % 2 else -1


def wrong_root(y: Array, nodes: Array, logits: Array) -> None:
    nodes[0, 0, 0] = 1


def wrong_logit(y: Array, nodes: Array, logits: Array) -> None:
    logits[5, 1, 2] *= 1.001


def wrong_sign(y: Array, nodes: Array, logits: Array) -> None:
    logits[5, 1, 0] *= -1


def lost_logit(y: Array, nodes: Array, logits: Array) -> None:
    logits[5, 1, 2] = np.nan


def wrong_output(y: Array, nodes: Array, logits: Array) -> None:
    y[7, 2] += y.dtype.type(np.finfo(y.dtype).eps) * 60 * abs(y).max()


def infinite_output(y: Array, nodes: Array, logits: Array) -> None:
    y[7, 2] = np.inf


@every_dtype
@pytest.mark.parametrize(
    "spoil", [wrong_turn, wrong_root, wrong_logit, wrong_sign, lost_logit, wrong_output, infinite_output]
)
def test_oracle_refuses_a_wrong_result(dtype: Any, spoil: Callable[[Array, Array, Array], None]) -> None:
    case = Case(batch=12, d_in=8, d_out=3, trees=2, depth=3)
    x, w_in, w_out, bias = case.arrays(dtype, with_bias=True)
    oracle = Reference(x, w_in, bias, w_out)
    result = right_answer(oracle, "gelu")
    oracle.check("gelu", *result)
    spoil(*result)
    with pytest.raises(AssertionError):
        oracle.check("gelu", *result)


@every_dtype
@pytest.mark.parametrize(("activation", "other"), [("gelu", "gelu_tanh"), ("gelu_tanh", "gelu"), ("silu", "relu")])
@pytest.mark.parametrize("width", [3, 768])
def test_oracle_refuses_a_wrong_activation(dtype: Any, activation: str, other: str, width: int) -> None:
    x, w_in, w_out, bias = Case(batch=31, d_in=width, d_out=3, depth=5).arrays(dtype, with_bias=True)
    oracle = Reference(x, w_in, bias, w_out)
    with pytest.raises(AssertionError, match="y"):
        oracle.check(activation, *right_answer(oracle, other))


def test_oracle_refuses_the_other_tie_rule() -> None:
    x, w_in, w_out, bias = Case(batch=31, depth=5, kind="integer").arrays(np.float32, with_bias=True)
    right = Reference(x, w_in, bias, w_out, "right")
    with pytest.raises(AssertionError, match="logit says"):
        Reference(x, w_in, bias, w_out, "left").check("gelu", *right_answer(right, "gelu"))


def test_a_token_inside_the_bound_is_checked_along_its_own_path() -> None:
    """A root logit of 1e-9, from terms of size 1, may go either way; each way must be followed to the end."""
    x = np.array([[1, 1]], np.float32)
    w_in = np.array([[[1, -1], [3, 4], [5, 6]]], np.float32)
    w_in[0, 0, 0] += np.finfo(np.float32).eps
    w_out = np.array([[[1], [2], [3]]], np.float32)
    oracle = Reference(x, w_in, None, w_out)
    assert oracle.path.nodes.tolist() == [[[0, 2]]]
    assert not oracle.path.certain().any()

    def went_left(leaf_logit: float, y: float) -> Result:
        logits = np.array([[[-1e-8, leaf_logit]]], np.float32)
        return np.array([[y]], np.float32), np.array([[[0, 1]]], np.int32), logits

    report = oracle.check("relu", *went_left(7, 14))
    assert (report.pairs, report.aside, report.parted) == (1, 1, 1)
    with pytest.raises(AssertionError, match="logits"):
        oracle.check("relu", *went_left(11, 22))
    with pytest.raises(AssertionError, match="y"):
        oracle.check("relu", *went_left(7, 33))


def test_dense_oracle_is_that_of_one_node_trees() -> None:
    x, w_in, w_out, bias = Case(batch=9, d_in=5, d_out=4, trees=7, depth=0).arrays(np.float64, with_bias=True)
    assert bias is not None
    oracle = Reference(x, w_in, bias, w_out)
    want, bound = oracle.output(oracle.path, "silu")
    got, dense_bound = dense(x, w_in[:, 0], w_out[:, 0], bias[:, 0], "silu")
    assert float(np.abs(got - want).max()) <= 1e-3 * float(bound.max()) or wide(x.dtype).itemsize == 8
    np.testing.assert_allclose(dense_bound, bound, rtol=1e-6)
    worse = got.astype(np.float64)
    worse[3, 1] += 1e-12
    with pytest.raises(AssertionError, match="dense"):
        worst(worse, got, dense_bound, "dense")


@every_dtype
def test_bounds_of_what_is_not_finite(dtype: Any) -> None:
    """inf and NaN are exact; sums that may overflow are open; all else has a finite bound."""
    big = float(np.finfo(dtype).max) / 2
    x = np.array([[1, 1], [np.inf, 1], [np.nan, 1], [np.inf, -np.inf]], dtype)
    path = Reference(x, np.array([[[1, 2]], [[big, big]], [[1, np.nan]]], dtype), None, None).path
    logits, bounds = path.logits[..., 0], path.bounds[..., 0]
    assert logits[1, 0] == np.inf
    assert np.isnan(logits[[2, 3, 0], [0, 0, 2]]).all()
    assert (bounds[1:, 0] == 0).all()
    assert bounds[0, 1] == math.inf
    assert path.certain().all(), "a leaf's own logit decides nothing"
