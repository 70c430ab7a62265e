"""The only oracle: the layer in a wider type along a given path, and bounds on what rounding may do.

Everything is evaluated in a type R that is wider than the type under test: float64 for float32, and for float64 the
platform's long double (64-bit significand on x86, 113-bit on aarch64 Linux). Where long double is no wider than
float64 the bounds below stay valid, they are merely about three times as wide, because they contain R's own error.

Notation: u is the unit roundoff of the type under test (2^-24, 2^-53), v that of R, eta the smallest subnormal of the
type under test, and gamma(m, u) = m u / (1 - m u): a product of m factors (1 + d), |d| <= u, is 1 + t with
|t| <= gamma(m, u).

The logit
    s = sum_{i<n} w_i x_i + b. In whatever order a program adds, with or without fma, however many partial sums it
    keeps: a product is rounded at most once when it is formed and at most once in every addition that it takes part
    in. There are n - 1 additions among n products, and one more when there is a bias (adding to a sum that is 0 is
    exact). So each term carries at most m = n factors (1 + d), or m = n + 1 with a bias, and

        |s^ - s|  <=  gamma(m, u) S + n eta,      S = sum |w_i x_i| + |b|.

    The term n eta is gradual underflow: a product below the normal range is off by at most eta / 2, a sum of two
    numbers is exact there, and the later factors (1 + d) do not double it. R's own value is off by gamma(m, v) S, the
    comparison itself rounds once in R, and S is known to a factor 1 +- gamma(m, 2^-53), so the bound used is
    (gamma(m, u) + 2 gamma(m, v)) S (1 + 2 gamma(m, 2^-53)) + n eta.

    The bound is 0 where every partial sum is representable: all terms are integers with S <= 1/u, or all products
    are 0. Then ties are decided, and must follow the tie rule. The bound is infinite where S is beyond half the
    largest finite number: an intermediate sum may overflow, or not. Where an input of the dot product is inf or NaN
    (and the finite rest is far from overflow) the result is inf or NaN alike in any order: the bound is 0, and NaN
    equals NaN.

The path
    A decision is certain when |s| is greater than the bound, or the bound is 0. A (token, tree) pair is certain when
    all decisions on the way to its leaf are; the leaf's own logit decides nothing. On certain pairs the path must be
    R's. On the others ("set aside", counted) a program may take another path, but it must be its own: every step must
    agree with the sign of the logit that the program returned, and those logits must be within the bound of R's
    logits along that same path. So no token goes unchecked.

The output
    y = sum_{t<T} act(s_t) W_t over the T = trees * (depth + 1) visited nodes. Let e_t be the bound of logit t, L the
    largest |act'| anywhere, and A the error of the program's activation in ulp (an ulp of a is at most 2 u |a|, or
    eta). A value a_t = act(s_t) is then off by at most

        d_t = L e_t + 2 A u (|a_t| + L e_t) + A eta,

    and, as above with n = T products and no bias, the sum by

        sum d_t |W_t|  +  gamma(T, u) sum (|a_t| + d_t) |W_t|  +  T eta

    plus the same with v for R itself. Terms whose weight is 0, which a matrix product may add, change nothing. With
    the program's own returned logits in the place of s_t, e_t = 0 and the bound becomes a few ulp: that is the
    sharper of the two checks, and catches a wrong activation at any width. Overflow is treated as for logits. Where a
    visited row of W_out holds inf or NaN, so does y, provided that |a_t| > d_t (otherwise the sign of an infinity is
    open): tests with such rows use activations far from 0.

    A dense layer is the same with T = number of neurons, all of them visited.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path as FilePath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfc as _erfc64

Array = NDArray[Any]
Bounds = NDArray[np.float64]

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu", "identity")
TIES = ("left", "right")

# The largest |act'| over all z, rounded up. gelu' = Phi + z phi is largest at z = sqrt 2, where its derivative
# (2 - z^2) phi is 0: 1.12890. The tanh form has 1.12899 and silu 1.09984; test_reference.py looks at a grid.
LIPSCHITZ = {"gelu": 1.129, "gelu_tanh": 1.129, "relu": 1.0, "silu": 1.1, "identity": 1.0}

# Work on blocks of about this many elements: they stay in cache.
_BLOCK = 1 << 17


def _documented_ulps() -> dict[tuple[str, str], float]:
    """Read the activations' promised errors, in ulp, from the list that promises them."""
    activations = FilePath(__file__).parents[2] / "libcmm" / "src" / "activations.inc"
    pattern = r"^    ACTIVATION\(\w+, (\w+), [01], ([\d.]+), ([\d.]+), ([\d.]+), ([\d.]+)\)"
    lines = re.findall(pattern, activations.read_text(encoding="utf-8"), re.MULTILINE)
    return {(name, kind): float(ulp) for name, *ulps in lines for kind, ulp in zip(_ERRORS, ulps, strict=True)}


_ERRORS = ("f32", "f64", "slope f32", "slope f64")
ULPS = _documented_ulps()


def wide(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """R: the type that values of `dtype` are checked in."""
    return np.dtype(np.float64 if dtype == np.float32 else np.longdouble)


def roundoff(dtype: np.dtype[Any]) -> float:
    """The unit roundoff of a floating-point type: half the distance from 1 to the next number."""
    return float(np.finfo(dtype).eps) / 2


def gamma(m: int, u: float) -> float:
    """The largest |t| in a product of m factors (1 + d) = 1 + t with |d| <= u."""
    assert m * u < 0.5, f"gamma({m}, {u}) says nothing"
    return m * u / (1 - m * u)


def _subnormal(dtype: np.dtype[Any]) -> float:
    return float(np.finfo(dtype).smallest_subnormal)


def _safe_sum(dtype: np.dtype[Any]) -> float:
    """Sums of magnitudes above this may overflow in `dtype`; the factor 2 covers every gamma in use."""
    return float(np.finfo(dtype).max) / 2


def goes_right(logits: Array, tie: str) -> NDArray[np.bool_]:
    """Where the walk turns right. NaN goes left under both rules."""
    with np.errstate(invalid="ignore"):
        right: NDArray[np.bool_] = logits >= 0 if tie == "right" else logits > 0
    return right


# ---- activations ---------------------------------------------------------------------------------------------------


def erfc(x: Array) -> Array:
    """Complementary error function in x's own type, x >= 0.

    float64 comes from SciPy. For long double: below 1, one minus the series 2/sqrt(pi) exp(-x^2) sum 2^k x^(2k+1) /
    (2k+1)!!, whose terms are all positive; from 1 on, the continued fraction exp(-x^2)/sqrt(pi) 1/(x + (1/2)/(x +
    1/(x + (3/2)/(x + ...)))), whose error after many steps k is about exp(-2 x sqrt(2 k)): k = 300 / x^2 gives e^-49,
    and 20 more serve large x. Both carry the rounding of x^2 into exp: a relative error of x^2 v. test_reference.py
    compares with arithmetic of many digits.
    """
    if x.dtype == np.float64:
        return np.asarray(_erfc64(x))
    root_pi = np.sqrt(np.arccos(x.dtype.type(-1)))
    result = x * np.nan
    near = x < 1
    t = x[near]
    term = t.copy()
    total = t.copy()
    for k in range(1, 40):  # the last term is below 2^39 / 79!! < 1e-44
        term = term * (2 * t * t / (2 * k + 1))
        total += term
    result[near] = 1 - 2 / root_pi * np.exp(-t * t) * total
    for low, high in ((1, 2), (2, 4), (4, np.inf)):
        far = (x >= low) & ((x < high) | (high == np.inf))
        t = x[far]
        fraction = t.copy()
        for k in range(300 // low**2 + 20, 0, -1):
            fraction = t + x.dtype.type(k) / 2 / fraction
        result[far] = np.exp(-t * t) / (root_pi * fraction)
    return result


def activate(name: str, z: Array) -> tuple[Array, Array]:
    """Apply an activation in z's own type R.

    Returns
    -------
    value, slack
        The error of `value` is at most slack v |value| + |z| (R's smallest normal number), and 0 where slack is 0.
        That allows for a few roundings, for exponentials that leave R's range, and, where an exponential of a
        negative argument is taken, for the argument's own rounding, which exp turns into a relative error of
        |argument| v. erfc loses up to another factor 1 / erfc(1) = 6.4 below its switch at 1.
    """
    real = z.dtype.type
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        if name == "relu":
            return np.maximum(z, real(0)), np.zeros_like(z)
        if name == "identity":
            return z, np.zeros_like(z)
        if name == "gelu":
            x = np.abs(z) / np.sqrt(real(2))
            half_tail = erfc(x) / 2
            value = z * np.where(z > 0, 1 - half_tail, half_tail)
            argument = x * x
        elif name == "gelu_tanh":
            # 1 + tanh(a) = 2 / (1 + exp(-2 a)), which does not cancel where a is negative
            twice = 2 * np.sqrt(2 / np.arccos(real(-1))) * (z + real("0.044715") * z * z * z)
            value = z / (1 + np.exp(-twice))
            argument = np.abs(twice)
        else:
            assert name == "silu", name
            value = z / (1 + np.exp(-z))
            argument = np.abs(z)
        # At -inf all three are NaN (-inf * 0, -inf / inf), as activation.h says.
        return value, np.where(np.isfinite(z) & (z < 0), 32 + 8 * argument, 32)


def _activation_bounds(name: str, z: Array, error: Bounds, dtype: np.dtype[Any]) -> tuple[Array, Bounds]:
    """act(z) in R, and d_t of the module's text: how far off a program's activation may be.

    It is infinite where `error` is, and 0 where z is known to be infinite or NaN.
    """
    value, slack = activate(name, z)
    ulps = ULPS[name, f"f{8 * dtype.itemsize}"]
    size = np.abs(value).astype(np.float64)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        moved = LIPSCHITZ[name] * error
        off = moved + 2 * ulps * roundoff(dtype) * (size + moved) + ulps * _subnormal(dtype)
        off += slack.astype(np.float64) * roundoff(z.dtype) * size
        off += np.where(slack > 0, np.abs(z), 0).astype(np.float64) * float(np.finfo(z.dtype).tiny)
    off[~np.isfinite(value) & (error == 0)] = 0
    off[np.isnan(off)] = np.inf
    return value, off


# ---- sums ----------------------------------------------------------------------------------------------------------


def _integral(*arrays: Array) -> bool:
    """Whether all finite elements are integers."""
    with np.errstate(invalid="ignore"):
        return all(bool(np.all((a == np.rint(a)) | ~np.isfinite(a))) for a in arrays)


def _dot_bounds(
    magnitude: Bounds, n: int, with_bias: bool, integral: bool, finite: NDArray[np.bool_], dtype: np.dtype[Any]
) -> Bounds:
    """The bound of a logit from S = `magnitude`, as the module's text derives it."""
    u, v = roundoff(dtype), roundoff(wide(dtype))
    m = n + with_bias
    with np.errstate(over="ignore", invalid="ignore"):
        relative = (gamma(m, u) + 2 * gamma(m, v)) * (1 + 2 * gamma(m, roundoff(np.dtype(np.float64))))
        bound = relative * magnitude + n * _subnormal(dtype)
        bound[magnitude >= _safe_sum(dtype)] = np.inf
        if integral:
            bound[magnitude <= 1 / u] = 0
        if v < u:  # R's range is wider too: no product of non-zero factors vanishes in it
            bound[magnitude == 0] = 0
    bound[~finite] = 0
    return bound


def dots(x: Array, rows: Array, bias: Array | None, token: Array, row: Array) -> tuple[Array, Bounds]:
    """Logits of pairs (token[p], row[p]) in R, and their bounds.

    Parameters
    ----------
    x : (B, d_in), rows : (M, d_in), bias : (M,) or None
    token, row : (P,) integer arrays
    """
    dtype = x.dtype
    n = x.shape[1]
    value = np.empty(len(token), wide(dtype))
    bound = np.empty(len(token))
    integral_x = _integral(x)
    step = max(1, _BLOCK // n)
    with np.errstate(all="ignore"):
        for start in range(0, len(token), step):
            part = slice(start, start + step)
            w, t = rows[row[part]], x[token[part]]
            value[part] = np.einsum("pd,pd->p", w.astype(value.dtype), t.astype(value.dtype))
            magnitude = np.einsum("pd,pd->p", np.abs(w).astype(np.float64), np.abs(t).astype(np.float64))
            finite = np.asarray(np.isfinite(w).all(1) & np.isfinite(t).all(1))
            integral = integral_x and _integral(w)
            if bias is not None:
                b = bias[row[part]]
                value[part] += b
                magnitude += np.abs(b)
                finite &= np.isfinite(b)
                integral = integral and _integral(b)
            bound[part] = _dot_bounds(magnitude, n, bias is not None, integral, finite, dtype)
    return value, bound


def _output_bounds(off: Bounds, rounded: Bounds, terms: int, value: Array, dtype: np.dtype[Any]) -> Bounds:
    """The bound of an output from off = sum d_t |W_t| and rounded = sum (|a_t| + d_t) |W_t|."""
    u, v = roundoff(dtype), roundoff(wide(dtype))
    with np.errstate(over="ignore", invalid="ignore"):
        relative = (gamma(terms, u) + 2 * gamma(terms, v)) * (1 + 2 * gamma(terms, roundoff(np.dtype(np.float64))))
        bound = off * (1 + 2 * gamma(terms, roundoff(np.dtype(np.float64)))) + relative * rounded
        bound += terms * _subnormal(dtype)
        bound[~(rounded < _safe_sum(dtype))] = np.inf
    bound[~np.isfinite(value) & np.isfinite(bound)] = 0
    return bound


# ---- the layer -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Path:
    """Visited nodes (B, K, D+1), their logits in R, and the logits' bounds."""

    nodes: NDArray[np.int32]
    logits: Array
    bounds: Bounds

    def certain(self) -> NDArray[np.bool_]:
        """(B, K): whether every decision is farther from 0 than its bound, or exact."""
        size, bound = np.abs(self.logits[..., :-1]), self.bounds[..., :-1]
        with np.errstate(invalid="ignore"):
            return np.asarray(((size > bound) | (bound == 0)).all(-1))


@dataclass
class Report:
    """What a comparison saw."""

    pairs: int = 0
    """(token, tree) pairs compared"""
    aside: int = 0
    """pairs with a decision inside its bound"""
    parted: int = 0
    """pairs, all of them set aside, that took another path than R"""
    worst_logit: float = 0.0
    """largest error of a logit, as a share of its bound"""
    worst_output: float = 0.0
    """largest error of an output, as a share of its sharper bound"""

    def include(self, other: Report) -> None:
        """Add what another comparison saw."""
        self.pairs += other.pairs
        self.aside += other.aside
        self.parted += other.parted
        self.worst_logit = max(self.worst_logit, other.worst_logit)
        self.worst_output = max(self.worst_output, other.worst_output)


TALLY = Report()
"""The sum of all comparisons of this process; conftest.py prints it."""


def worst(got: Array, want: Array, bound: Bounds, what: str) -> float:
    """Check |got - want| <= bound everywhere (NaN equals NaN, an infinity itself), and say how close it came."""
    assert got.shape == want.shape, f"{what}: shape {got.shape}, should be {want.shape}"
    with np.errstate(all="ignore"):
        error = np.abs(got.astype(want.dtype) - want)
        same = np.asarray((got == want) | (np.isnan(got) & np.isnan(want)) | np.isinf(bound))
        right = np.asarray(same | (error <= bound))
        if not right.all():
            at = tuple(int(i) for i in np.argwhere(~right)[0])
            raise AssertionError(
                f"{what}{list(at)} is {got[at]!r}, should be {want[at]!r} within {bound[at]:.3g} "
                f"(off by {float(error[at]):.3g}; {int((~right).sum())} of {right.size} are wrong)"
            )
        share = np.where(same | (bound == 0), 0, error / np.where(bound == 0, 1, bound))
    return float(share.max(initial=0))


class Reference:
    """A fast feedforward layer on given tokens, and checks of what a program made of them.

    Parameters
    ----------
    x : (B, d_in), w_in : (K, N, d_in), bias : (K, N) or None, w_out : (K, N, d_out) or None for CMM alone
        All of one type, float32 or float64.
    tie : "left" or "right"
    """

    def __init__(self, x: Array, w_in: Array, bias: Array | None, w_out: Array | None, tie: str = "left") -> None:
        self.x, self.tie, self.dtype = x, tie, x.dtype
        self.trees, self.size, d_in = w_in.shape
        self.levels = (self.size + 1).bit_length() - 1
        assert self.size == 2**self.levels - 1
        self.w_in = w_in.reshape(-1, d_in)
        self.bias = None if bias is None else bias.reshape(-1)
        self.w_out = None if w_out is None else w_out.reshape(-1, w_out.shape[-1])
        self._outputs: dict[str, tuple[Array, Bounds]] = {}
        self._checked: dict[bytes, Report] = {}

    @cached_property
    def path(self) -> Path:
        """The path that R chooses."""
        batch = len(self.x)
        token = np.repeat(np.arange(batch), self.trees)
        first = np.tile(np.arange(self.trees) * self.size, batch)
        nodes = np.zeros((batch * self.trees, self.levels), np.int32)
        logits = np.empty(nodes.shape, wide(self.dtype))
        bounds = np.empty(nodes.shape)
        for level in range(self.levels):
            n = nodes[:, level]
            logits[:, level], bounds[:, level] = dots(self.x, self.w_in, self.bias, token, first + n)
            if level + 1 < self.levels:
                nodes[:, level + 1] = 2 * n + 1 + goes_right(logits[:, level], self.tie)
        shape = (batch, self.trees, self.levels)
        return Path(nodes.reshape(shape), logits.reshape(shape), bounds.reshape(shape))

    def along(self, nodes: NDArray[np.int32]) -> Path:
        """R's logits along a given path (B, K, D+1)."""
        other = nodes != self.path.nodes
        if not other.any():
            return self.path
        token, tree, _ = np.nonzero(other)
        logits, bounds = self.path.logits.copy(), self.path.bounds.copy()
        logits[other], bounds[other] = dots(self.x, self.w_in, self.bias, token, tree * self.size + nodes[other])
        return Path(nodes, logits, bounds)

    def output(self, path: Path, activation: str) -> tuple[Array, Bounds]:
        """y (B, d_out) in R along a path, and its bounds."""
        if path is self.path and activation in self._outputs:
            return self._outputs[activation]
        assert self.w_out is not None
        terms = self.trees * self.levels
        batch, d_out = len(self.x), self.w_out.shape[1]
        value, off = _activation_bounds(activation, path.logits, path.bounds, self.dtype)
        value, off = value.reshape(batch, terms), off.reshape(batch, terms)
        row = (path.nodes + np.arange(self.trees)[:, None] * self.size).reshape(batch, terms)
        y = np.empty((batch, d_out), value.dtype)
        bound = np.empty((batch, d_out))
        step = max(1, _BLOCK // (terms * d_out))
        with np.errstate(all="ignore"):
            for start in range(0, batch, step):
                part = slice(start, start + step)
                w = self.w_out[row[part]]  # (step, terms, d_out)
                y[part] = np.einsum("bt,bto->bo", value[part], w.astype(value.dtype))
                size = np.abs(w).astype(np.float64)
                size[~np.isfinite(size)] = 0
                a = np.abs(value[part]).astype(np.float64)
                a[~np.isfinite(a) & (off[part] == 0)] = 0
                rounded = np.einsum("bt,bto->bo", a + off[part], size)
                moved = np.einsum("bt,bto->bo", off[part], size)
                bound[part] = _output_bounds(moved, rounded, terms, y[part], self.dtype)
        if path is self.path:
            self._outputs[activation] = y, bound
        return y, bound

    def magnitudes(self, path: Path, activation: str) -> tuple[Bounds, Bounds]:
        """Return sum (|a_t| + d_t) |W_t| and sum |W_t| along a path, each (B, d_out); inf and NaN count as 0.

        A program that rounds its coefficients is off by as much of the first as their type's roundoff, and by as much
        of the second as half its smallest number.
        """
        assert self.w_out is not None
        terms = self.trees * self.levels
        value, off = _activation_bounds(activation, path.logits, path.bounds, self.dtype)
        row = (path.nodes + np.arange(self.trees)[:, None] * self.size).reshape(-1, terms)
        a = (np.abs(value) + off).astype(np.float64).reshape(-1, terms)
        a[~np.isfinite(a)] = 0
        sums = np.empty((2, len(row), self.w_out.shape[1]))
        for token in range(len(row)):
            w = np.abs(self.w_out[row[token]]).astype(np.float64)
            w[~np.isfinite(w)] = 0
            sums[:, token] = a[token] @ w, w.sum(0)
        return sums[0], sums[1]

    def check_path(self, nodes: Array, logits: Array) -> Report:
        """Paths first, then logits: see the module's text."""
        want = self.path
        assert [nodes.dtype, logits.dtype] == [np.dtype(np.int32), self.dtype]
        assert nodes.shape == logits.shape == want.nodes.shape, (nodes.shape, logits.shape, want.nodes.shape)
        assert (nodes[..., 0] == 0).all(), "a path does not start at its root"
        step = nodes[..., 1:] == 2 * nodes[..., :-1] + 1 + goes_right(logits[..., :-1], self.tie)
        assert step.all(), f"[token, tree, level] {np.argwhere(~step)[0]}: the next node is not what the logit says"

        certain = want.certain()
        parted = (nodes != want.nodes).any(-1)
        report = Report(pairs=certain.size, aside=int((~certain).sum()), parted=int(parted.sum()))
        wrong = np.argwhere(parted & certain)
        assert not len(wrong), (
            f"[token, tree] {wrong[0]}: path {nodes[tuple(wrong[0])]}, should be {want.nodes[tuple(wrong[0])]} "
            f"({len(wrong)} of {certain.size} are wrong)"
        )
        own = self.along(nodes)
        report.worst_logit = worst(logits, own.logits, own.bounds, "logits")
        return report

    def check(self, activation: str, y: Array, nodes: Array, logits: Array) -> Report:
        """Path, logits, and the outputs along the program's own path: from R's logits, and from its own.

        A result with all the bits of one that was checked before needs no second look.
        """
        digest = hashlib.sha256(activation.encode())
        for array in (y, nodes, logits):
            digest.update(repr((array.shape, array.dtype)).encode())
            digest.update(np.ascontiguousarray(array).data)
        if digest.digest() not in self._checked:
            self._checked[digest.digest()] = self._check(activation, y, nodes, logits)
        return self._checked[digest.digest()]

    def _check(self, activation: str, y: Array, nodes: Array, logits: Array) -> Report:
        report = self.check_path(nodes, logits)
        assert y.dtype == self.dtype, y.dtype
        worst(y, *self.output(self.along(nodes), activation), "y")
        exact = Path(nodes, logits.astype(wide(self.dtype)), np.zeros(logits.shape))
        report.worst_output = worst(y, *self.output(exact, activation), "y (from the returned logits)")
        TALLY.include(report)
        return report

    def check_output(self, activation: str, y: Array) -> None:
        """An output whose path is not known: on tokens that are certain in every tree."""
        want, bound = self.output(self.path, activation)
        certain = np.asarray(self.path.certain().all(1))
        worst(y[certain], want[certain], bound[certain], "y (certain tokens)")


def dense(x: Array, w_in: Array, w_out: Array, bias: Array | None, activation: str) -> tuple[Array, Bounds]:
    """The dense layer in R, and its bounds.

    Parameters
    ----------
    x : (B, d_in), w_in : (N, d_in), w_out : (N, d_out), bias : (N,) or None

    Returns
    -------
    y, bound : (B, d_out)
    """
    dtype, real = x.dtype, wide(x.dtype)
    with np.errstate(all="ignore"):
        z = x.astype(real) @ w_in.astype(real).T
        magnitude = np.abs(x).astype(np.float64) @ np.abs(w_in).astype(np.float64).T
        finite = np.asarray(np.isfinite(x).all(1))[:, None] & np.asarray(np.isfinite(w_in).all(1))
        if bias is not None:
            z += bias
            magnitude += np.abs(bias)
            finite &= np.isfinite(bias)
        integral = _integral(x, w_in) and (bias is None or _integral(bias))
        error = _dot_bounds(magnitude, x.shape[1], bias is not None, integral, finite, dtype)
        value, off = _activation_bounds(activation, z, error, dtype)
        y = value @ w_out.astype(real)
        size = np.abs(w_out).astype(np.float64)
        size[~np.isfinite(size)] = 0
        a = np.abs(value).astype(np.float64)
        a[~np.isfinite(a) & (off == 0)] = 0
        bound = _output_bounds(off @ size, (a + off) @ size, len(w_in), y, dtype)
    return y, bound


# ---- backward ------------------------------------------------------------------------------------------------------


def slope(name: str, z: Array) -> tuple[Array, Array]:
    """act'(z), and the size of its parts, which its error is a share of (docs/internals/activation.md)."""
    real = z.dtype.type
    b = np.abs(z)
    one = np.ones_like(z)
    if name == "relu":
        return (z > 0).astype(z.dtype), one
    if name == "identity":
        return one, one
    if name == "gelu":
        q, p = erfc(b / np.sqrt(real(2))) / 2, b * np.exp(-b * b / 2) / np.sqrt(2 * np.arccos(real(-1)))
        tail, both = q - p, q + p
    else:
        c = 2 * np.sqrt(real(2) / np.arccos(real(-1)))
        v = b if name == "silu" else c * (b + real("0.044715") * b * b * b)
        h = b if name == "silu" else b * c * (1 + 3 * real("0.044715") * b * b)
        e = np.exp(-v)
        part = e / (1 + e) ** 2
        tail, both = part * (1 + e - h), part * (1 + e + h)
    return np.where(z < 0, tail, 1 - tail), np.where(z < 0, both, 1 + both)


def backward(
    x: Array, w_in: Array, w_out: Array, nodes: NDArray[np.int32], logits: Array, dy: Array, activation: str
) -> dict[str, tuple[Array, Bounds]]:
    """The gradients of a layer in R along a given path, and their bounds, as docs/internals/backward.md derives.

    Parameters
    ----------
    x : (B, d_in), w_in : (K, N, d_in), w_out : (K, N, d_out), nodes, logits : (B, K, D+1), dy : (B, d_out)
    """
    dtype, real = x.dtype, wide(x.dtype)
    u, v, least = roundoff(dtype), roundoff(real), _subnormal(dtype)
    kind = f"f{8 * dtype.itemsize}"
    tree = np.broadcast_to(np.arange(w_in.shape[0])[:, None], nodes.shape)
    rows_out, rows_in = w_out[tree, nodes].astype(real), w_in[tree, nodes].astype(real)
    d_out, z = w_out.shape[-1], logits.astype(real)
    da = np.einsum("bo,bklo->bkl", dy.astype(real), rows_out)
    da_off = (gamma(d_out, u) + gamma(d_out, v)) * np.einsum("bo,bklo->bkl", np.abs(dy), np.abs(rows_out))
    da_off += d_out * least
    s, parts = slope(activation, z)
    s_off = parts * (ULPS[activation, f"slope {kind}"] * u + (32 + 16 * (1 + np.abs(z)) ** 3) * v) + least
    dz = da * s
    dz_off = (np.abs(da) * s_off + np.abs(s) * da_off + da_off * s_off) * (1 + u) + np.abs(dz) * (u + 2 * v) + least
    a, a_off = _activation_bounds(activation, z, np.zeros(z.shape), dtype)

    def sums(c: Array, c_off: Array, factors: Array, into: Array | None, terms: Array | int) -> tuple[Array, Bounds]:
        size = (np.abs(c) + c_off)[..., None] * np.abs(factors)
        off = c_off[..., None] * np.abs(factors)
        found = []
        for part in (c[..., None] * factors, size, off):
            if into is None:
                found.append(part.sum((1, 2)))
            else:
                found.append(np.zeros((*w_in.shape[:2], part.shape[-1]), real))
                np.add.at(found[-1], (tree, nodes), part)
        m = np.asarray(terms, float)
        relative = m * u / (1 - m * u) + 4 * (m + 2) * v
        bound = relative * found[1] + found[2] * (1 + 4 * (m + 2) * v) + m * least
        return found[0], bound.astype(float)

    visits = np.zeros((*w_in.shape[:2], 1))
    np.add.at(visits, (tree, nodes), 1)
    one = np.ones((*z.shape, 1), real)
    tokens = x.astype(real)[:, None, None, :]
    dbias, dbias_bound = sums(dz, dz_off, one, nodes, visits)
    return {
        "dx": sums(dz, dz_off, rows_in, None, z[0].size if len(z) else 0),
        "dw_in": sums(dz, dz_off, tokens * one, nodes, visits),
        "dbias": (dbias[..., 0], dbias_bound[..., 0]),
        "dw_out": sums(a, a_off, dy.astype(real)[:, None, None, :] * one, nodes, visits),
    }
