"""Every level computes what the oracle says: paths first, then logits, then outputs. reference.py has the bounds."""

from functools import cache, lru_cache
from typing import Any

import cmm
import numpy as np
import pytest
from hypothesis import given, note
from hypothesis import strategies as st
from reference import ACTIVATIONS, TIES, Reference, dense, worst
from strategies import DTYPES, EXTREMES, MAX_WEIGHTS, MAX_WORK, SMALL, TARGETS, Array, Case, Target, cases, widths

every_target = pytest.mark.parametrize("target", TARGETS, ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "f64"])
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
every_tie = pytest.mark.parametrize("tie", TIES)
either_bias = pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "nobias"])


def same_bits(a: Array, b: Array) -> bool:
    return a.tobytes() == b.tobytes()


def compare(target: Target, oracle: Reference, inputs: tuple[Any, ...], activation: str, tie: str) -> None:
    """fff_forward with and without its path, and cmm alone."""
    x, w_in, w_out, bias = inputs
    y, nodes, logits = target.fff(x, w_in, w_out, bias, activation=activation, tie=tie)
    oracle.check(activation, y, nodes, logits)
    y_alone = target.fff_y(x, w_in, w_out, bias, activation=activation, tie=tie)
    nodes_alone, logits_alone = target.cmm(x, w_in, bias, tie=tie)
    if target.fixed_bits:
        assert same_bits(y_alone, y), "return_path changes y"
        assert same_bits(nodes_alone, nodes), "cmm's nodes are not fff_forward's"
        assert same_bits(logits_alone, logits), "cmm's logits are not fff_forward's"
    else:
        oracle.check_output(activation, y_alone)
        oracle.check_path(nodes_alone, logits_alone)


@pytest.mark.sample(5)
@every_target
@every_dtype
@every_activation
@every_tie
@either_bias
@given(case=cases())
def test_fff(target: Target, dtype: Any, activation: str, tie: str, with_bias: bool, case: Case) -> None:
    x, w_in, w_out, bias = case.arrays(dtype, with_bias)
    compare(target, Reference(x, w_in, bias, w_out, tie), (x, w_in, w_out, bias), activation, tie)


@lru_cache(maxsize=1)
def extreme(case: Case, dtype: Any, tie: str) -> tuple[Reference, tuple[Any, ...]]:
    """The oracle's work is the greater part of these tests, so the levels share it, one layer at a time."""
    x, w_in, w_out, bias = case.arrays(dtype, with_bias=True)
    return Reference(x, w_in, bias, w_out, tie), (x, w_in, w_out, bias)


@pytest.mark.sample(5)
@pytest.mark.parametrize(
    ("dtype", "case", "target"),
    [
        pytest.param(dtype, case, target, marks=[pytest.mark.full] if case.work > 2**28 else [])
        for dtype, case in EXTREMES
        for target in TARGETS
    ],
    ids=[f"{np.dtype(dtype).name}-{case}-{target}" for dtype, case in EXTREMES for target in TARGETS],
)
def test_extremes(dtype: Any, case: Case, target: Target) -> None:
    number = case.batch + case.depth  # any choice that gives every activation and tie rule some layers
    tie, activation = TIES[number % 2], ACTIVATIONS[number % len(ACTIVATIONS)]
    oracle, inputs = extreme(case, dtype, tie)
    compare(target, oracle, inputs, activation, tie)


@pytest.mark.skipif(SMALL, reason="the small profile leaves the large layers out")
@every_dtype
def test_extremes_are_extreme(dtype: Any) -> None:
    extremes = [case for case_dtype, case in EXTREMES if case_dtype is dtype]

    def reached(name: str) -> set[int]:
        return {getattr(case, name) for case in extremes}

    assert reached("d_in") >= {1, 300, 768, 1000}
    assert reached("d_out") >= {1, 300, 768, 1000}
    assert reached("depth") >= {0, 15, 20}
    assert reached("trees") >= {1, 2, 3, 64, 3072}
    assert reached("batch") >= {0, 1, 2, 31, 257, 16384}
    assert max(case.weights for case in extremes) > 0.99 * MAX_WEIGHTS


def spreading(dtype: Any, case: Case) -> bool:
    return dtype is np.float32 and case.batch > 200 and case.kind == "normal"


@pytest.mark.parametrize("case", [case for dtype, case in EXTREMES if spreading(dtype, case)], ids=str)
def test_cases_reach_many_leaves(case: Case) -> None:
    """Otherwise the comparisons above would see a corner of each tree only."""
    x, w_in, _, bias = case.arrays(np.float32, with_bias=True)
    nodes = Reference(x, w_in, bias, None).path.nodes
    leaves = sum(len(np.unique(nodes[:, tree, -1])) for tree in range(case.trees))
    possible = case.trees * min(case.batch, 2**case.depth)
    # Tokens of width 1 or 2 fall into few different paths whatever the weights are.
    assert leaves >= possible * (0.25 if case.d_in > 2 else 0.01)


@every_target
@every_dtype
@either_bias
def test_few_decisions_are_set_aside(target: Target, dtype: Any, with_bias: bool) -> None:
    """A level cannot pass by having most of its paths set aside as too close to call.

    A logit here is about normal with variance 1 (1.25 with bias), and S about n E|w x| = 0.64 sqrt(n), plus 0.4: the
    chance that one of D decisions is within gamma(n + 1, u) S of 0 is about 0.8 D n u 0.64 sqrt(n): for D = 9, n = 64
    and float32 1.5e-4, 0.6 of 4096 pairs. At most 8 pairs are allowed.
    """
    case = Case(batch=4096 if not SMALL else 64, d_in=64, d_out=1, depth=9, seed=1)
    x, w_in, w_out, bias = case.arrays(dtype, with_bias)
    result = target.fff(x, w_in, w_out, bias, activation="relu")
    report = Reference(x, w_in, bias, w_out).check("relu", *result)
    assert report.pairs == case.batch
    assert report.aside <= 8, report


@every_target
@every_dtype
@every_tie
def test_exact_ties_follow_the_rule(target: Target, dtype: Any, tie: str) -> None:
    """Small integers: every logit is exact, none is set aside, and many are 0."""
    case = Case(batch=257, d_in=9, d_out=5, trees=3, depth=6, kind="integer")
    x, w_in, w_out, bias = case.arrays(dtype, with_bias=True)
    oracle = Reference(x, w_in, bias, w_out, tie)
    y, nodes, logits = target.fff(x, w_in, w_out, bias, tie=tie)
    report = oracle.check("gelu", y, nodes, logits)
    assert report.aside == 0
    ties = logits[..., :-1] == 0
    assert ties.mean() > 0.05
    assert ((nodes[..., 1:] == 2 * nodes[..., :-1] + 2)[ties] == (tie == "right")).all()
    other = Reference(x, w_in, bias, w_out, "left" if tie == "right" else "right")
    assert (other.path.nodes != nodes).any()


@every_dtype
@pytest.mark.parametrize("batch", [1, 40, 200 if SMALL else 3000])
def test_auto(dtype: Any, batch: int) -> None:
    """The level that a call gets when it asks for none, for batches of every kind."""
    x, w_in, w_out, bias = Case(batch=batch, d_in=33, d_out=17, trees=2, depth=7).arrays(dtype, with_bias=True)
    y, nodes, logits = cmm.fff_forward(x, w_in, w_out, bias, return_path=True)
    oracle = Reference(x, w_in, bias, w_out)
    oracle.check("gelu", y, nodes, logits)
    oracle.check_path(*cmm.cmm(x, w_in, bias))
    assert bias is not None
    want, bound = dense(x, w_in[0], w_out[0], bias[0], "gelu")
    worst(cmm.ff_forward(x, w_in[0], w_out[0], bias[0]), want, bound, "ff")


@st.composite
def dense_cases(draw: st.DrawFn) -> tuple[int, int, int, int, int]:
    """batch, d_in, neurons, d_out and a seed, within MAX_WORK."""
    work = MAX_WORK >> draw(st.integers(0, 10))
    batch = draw(st.sampled_from([batch for batch in (1, 2, 31, 0, 257) if 2 * batch <= work // 32]))
    columns = max(2, min(2000, work // max(batch, 1) // 32))
    d_in = draw(widths(columns - 1))
    d_out = draw(widths(columns - d_in))
    neurons = draw(st.integers(0, max(1, min(4096, work // (max(batch, 1) * (d_in + d_out + 32))))))
    drawn = batch, d_in, neurons, d_out, draw(st.integers(0, 2**32 - 1))
    note(f"batch, d_in, neurons, d_out, seed = {drawn}")
    return drawn


@pytest.mark.sample(5)
@every_target
@every_dtype
@every_activation
@either_bias
@given(case=dense_cases())
def test_dense(
    target: Target, dtype: Any, activation: str, with_bias: bool, case: tuple[int, int, int, int, int]
) -> None:
    batch, d_in, neurons, d_out, seed = case
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, d_in), dtype)
    w_in = rng.standard_normal((neurons, d_in), dtype) / np.sqrt(dtype(d_in))
    w_out = rng.standard_normal((neurons, d_out), dtype)
    bias = rng.standard_normal(neurons, dtype) if with_bias else None
    y = target.ff(x, w_in, w_out, bias, activation=activation)
    assert y.dtype == dtype
    worst(y, *dense(x, w_in, w_out, bias, activation), "y")


@cache
def dense_layer(batch: int, width: int, neurons: int, dtype: Any) -> tuple[tuple[Array, ...], tuple[Array, Array]]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, width), dtype)
    w_in = rng.standard_normal((neurons, width), dtype) / np.sqrt(dtype(width))
    w_out = rng.standard_normal((neurons, width), dtype)
    bias = rng.standard_normal(neurons, dtype)
    return (x, w_in, w_out, bias), dense(x, w_in, w_out, bias, "gelu")


@pytest.mark.sample(4)
@every_target
@every_dtype
@pytest.mark.parametrize("size", [(9, 768, 3072), (2100, 6, 8) if SMALL else (2100, 24, 30)], ids=str)
def test_large_dense_layers(target: Target, dtype: Any, size: tuple[int, int, int]) -> None:
    """A layer of the size of BERT's, and more tokens than a level may take at a time."""
    inputs, (want, bound) = dense_layer(*size, dtype)
    worst(target.ff(*inputs), want, bound, "y")


@every_target
@every_dtype
def test_one_node_trees_are_a_dense_layer(target: Target, dtype: Any) -> None:
    """Nx0 by the oracle of the dense layer: an independent view of the sum over trees."""
    case = Case(batch=31, d_in=20, d_out=9, trees=300, depth=0)
    x, w_in, w_out, bias = case.arrays(dtype, with_bias=True)
    assert bias is not None
    want, bound = dense(x, w_in[:, 0], w_out[:, 0], bias[:, 0], "silu")
    worst(target.fff_y(x, w_in, w_out, bias, activation="silu"), want, bound, "fff")
    worst(target.ff(x, w_in[:, 0], w_out[:, 0], bias[:, 0], activation="silu"), want, bound, "ff")
