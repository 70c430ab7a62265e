"""A result is checked before it is timed: a few tokens, in float64, by a rigorous rounding bound.

The reference goes along the path that a level took and shares no code with the levels. With u the unit roundoff of
the layer's dtype and gamma(m) = m u / (1 - m u), a sum of m products in any order, fused or not, is off by at most
gamma(m) times the sum of the absolute values. So:

- a logit (d_in products, a bias) is off by at most    e = gamma(d_in + 1) (sum |w x| + |bias|);
- a step of the path is right when float64's logit has its sign, or lies within e of 0;
- GELU turns e into at most                            a = 1.13 e + 8 u (|logit| + e),
  since |GELU'| < 1.13, libcmm's GELU is good to 4 ulp, an ulp is at most 2 u, and |GELU(z)| <= |z|;
- an output (m visited rows) is off by at most         sum a |w_out| + gamma(m + 1) sum (|gelu| + a) |w_out|.

Rows of int8 are checked as the float32 numbers that the layer shows. That is one rounding more for each number, and
the scale of a row, applied once to a logit and once to an activation, another.

The float64 reference has errors of the same form; its u is added. A token with a decision within e of 0 may take
another path in another call, so it is checked in the call that gave the path, and set aside in the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cmm.errors import CmmError

Array = npt.NDArray[np.floating]
Nodes = npt.NDArray[np.integer]
_SLOPE = 1.13  # the largest |GELU'(z)| is 1.12890..., at z = sqrt(2)


class WrongResultError(CmmError):
    """A level gave an output or a path that no rounding explains."""


@dataclass
class Reference:
    """One token in float64: its output and how far a right one may be off, both `(d_out,)`."""

    y: Array
    bound: Array
    close: bool  # a decision is within rounding of 0


def along_path(
    what: str,
    x: Array,
    w_in: Array,
    w_out: Array,
    nodes: Nodes,
    logits: Array | None = None,
    wide: Array | None = None,
    roundings: int = 0,
) -> Reference:
    """Check a token's path and evaluate the layer along it in float64.

    Parameters
    ----------
    what : str
        Names the case in the error.
    x : ndarray (d_in,)
    w_in, w_out : ndarray (trees, nodes, d_in), (trees, nodes, d_out)
    nodes : integer ndarray (trees, depth + 1)
        The path that the case took.
    logits : ndarray (trees, depth + 1), optional
        The logits that it gave: checked too.
    wide : ndarray (trees, nodes, d_in), optional
        Of a layer with an exact path the rows as they were: a logit of an inner node that fits these was computed
        from these.
    roundings : int
        How many more roundings than the sums' each term of a logit and of an output meets: of int8, for its scales.

    Raises
    ------
    WrongResultError
        Where it is no path, has a step that no rounding explains, or a logit is wrong.
    """
    trees, count, d_in = w_in.shape
    if (nodes[:, 0] != 0).any() or (nodes < 0).any() or (nodes >= count).any():
        raise WrongResultError(f"{what}: a path does not start at the root, or leaves the tree; not timed")
    tree = np.arange(trees)[:, None]
    rows = w_in[tree, nodes].astype(np.float64)  # (trees, depth + 1, d_in)
    x64 = x.astype(np.float64)
    exact = rows @ x64
    error = _gamma(d_in + 1 + roundings, x.dtype) * (np.abs(rows) @ np.abs(x64))
    if wide is not None and logits is not None:
        again = wide[tree, nodes[:, :-1]].astype(np.float64)
        of_wide, error_of_wide = again @ x64, _gamma(d_in + 1, x.dtype) * (np.abs(again) @ np.abs(x64))
        fits = np.abs(logits[:, :-1] - of_wide) <= error_of_wide
        exact[:, :-1] = np.where(fits, of_wide, exact[:, :-1])
        error[:, :-1] = np.where(fits, error_of_wide, error[:, :-1])
    if logits is not None and not (np.abs(logits - exact) <= error).all():
        raise WrongResultError(f"{what}: a logit is not what float64 gives; not timed")
    close = np.abs(exact) <= error
    went = (nodes[:, 1:] - 2 * nodes[:, :-1] - 1).astype(np.int64)  # 0 left, 1 right
    right = np.where(close[:, :-1], (went == 0) | (went == 1), went == (exact[:, :-1] > 0))
    if not right.all():
        raise WrongResultError(f"{what}: a token took another path than float64 does; not timed")
    rows_out = w_out[tree, nodes].reshape(nodes.size, -1)
    y, bound = _output(exact.ravel(), error.ravel(), rows_out, x.dtype, nodes.size + roundings)
    return Reference(y, bound, bool(close[:, :-1].any()))


def dense(x: Array, w_in: Array, w_out: Array) -> Reference:
    """Put one token `x (d_in,)` through dense `w_in (neurons, d_in)`, `w_out (neurons, d_out)`, in float64."""
    neurons, d_in = w_in.shape
    x64 = x.astype(np.float64)
    y, bound = np.zeros(w_out.shape[1]), np.zeros(w_out.shape[1])
    for first in range(0, neurons, 4096):  # a slice at a time: a float64 copy of everything may not fit
        rows = w_in[first : first + 4096].astype(np.float64)
        error = _gamma(d_in + 1, x.dtype) * (np.abs(rows) @ np.abs(x64))
        part, part_bound = _output(rows @ x64, error, w_out[first : first + 4096], x.dtype, neurons)
        y += part
        bound += part_bound
    return Reference(y, bound, False)


def compare(what: str, y: Array, reference: Reference) -> None:
    """Hold one token's output `y (d_out,)` against its reference.

    Raises
    ------
    WrongResultError
        Where it is off by more than the bound.
    """
    excess = np.abs(y.astype(np.float64) - reference.y) - reference.bound
    if not (excess <= 0).all():  # written so that NaN fails
        at = int(np.argmax(np.where(np.isnan(excess), np.inf, excess)))
        right, bound = reference.y[at], reference.bound[at]
        raise WrongResultError(
            f"{what}: an output is {float(y[at]):.9g} where float64 gives {right:.9g} +- {bound:.2g}; not timed"
        )


def _output(logits: Array, error: Array, rows_out: Array, dtype: np.dtype, terms: int) -> tuple[Array, Array]:
    """Return `sum gelu(logit) row` over the rows, and its bound when `terms` products are summed in all."""
    from scipy.special import ndtr  # SciPy takes long to import: not before something is to be checked

    rows64 = rows_out.astype(np.float64)
    active = logits * ndtr(logits)
    active_error = _SLOPE * error + 8 * _unit(dtype) * (np.abs(logits) + error)
    bound = active_error + _gamma(terms + 1, dtype) * (np.abs(active) + active_error)
    return active @ rows64, bound @ np.abs(rows64)


def _unit(dtype: np.dtype) -> float:
    """Return the unit roundoff of `dtype`, plus that of the float64 reference."""
    return float(np.finfo(dtype).eps / 2 + np.finfo(np.float64).eps / 2)


def _gamma(terms: int, dtype: np.dtype) -> float:
    return terms * _unit(dtype) / (1 - terms * _unit(dtype))
