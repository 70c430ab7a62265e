"""What the tests compute, and with what: the levels to try, and random layers of every shape."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import cmm
import direct
import numpy as np
from cmm._dispatch import isas, kernels
from hypothesis import note
from hypothesis import strategies as st
from numpy.typing import NDArray

Array = NDArray[Any]

SMALL = os.environ.get("CMM_HYPOTHESIS_PROFILE") == "small"

MAX_WEIGHTS = 2**18 if SMALL else 2**24
"""Elements of w_in and w_out together, in one draw."""
MAX_WORK = 2**17 if SMALL else 2**22
"""Of one draw by Hypothesis: (d_in + d_out + 32) times the visited nodes; 32 stands for the activation."""
MAX_CASE_WORK = {np.float32: 2**20 if SMALL else 2**29, np.float64: 2**20 if SMALL else 2**24}
"""The same for a case that a test names. The oracle is eight times slower in long double than in float64."""


# ---- levels --------------------------------------------------------------------------------------------------------


@contextmanager
def forced_isa(isa: str) -> Iterator[None]:
    """Make every call in a with block use an instruction set."""
    before = os.environ.get("CMM_ISA")
    os.environ["CMM_ISA"] = isa
    try:
        yield
    finally:
        if before is None:
            del os.environ["CMM_ISA"]
        else:
            os.environ["CMM_ISA"] = before


ISAS: list[str] = isas()[1]
"""The instruction sets usable here, best first."""


class Target(NamedTuple):
    """One way to compute a layer: a level, the instruction set to force it to, and one of its algorithms.

    With an algorithm, libcmm is called directly; with "", through the Python functions, and the level chooses.
    """

    level: str
    isa: str
    algorithm: str = ""

    def __str__(self) -> str:
        return "-".join(filter(None, self))

    @property
    def fixed_bits(self) -> bool:
        """Whether it promises the same bits for a token in any batch, at any place, with any threads."""
        return not self.level.startswith("blas")

    def fff(
        self,
        x: Array,
        w_in: Array,
        w_out: Array,
        bias: Array | None = None,
        *,
        activation: Any = "gelu",
        tie: Any = "left",
        threads: int | None = None,
    ) -> tuple[Array, Array, Array]:
        """Return y, nodes and logits."""
        if not self.algorithm:
            how = {"activation": activation, "tie": tie, "level": self.level, "threads": threads}
            with forced_isa(self.isa):
                return cmm.fff_forward(x, w_in, w_out, bias, return_path=True, **how)
        y = np.full((len(x), w_out.shape[2]), np.nan, x.dtype)
        nodes, logits = self._empty_path(x, w_in)
        how = {"activation": activation, "tie": tie, "threads": threads or 0}
        direct.fff(x, w_in, bias, w_out, y, nodes, logits, **self._asdict(), **how)
        return y, nodes, logits

    def fff_y(self, x: Array, w_in: Array, w_out: Array, bias: Array | None = None, **how: Any) -> Array:
        """Return y; the path is not asked for."""
        if not self.algorithm:
            with forced_isa(self.isa):
                return np.asarray(cmm.fff_forward(x, w_in, w_out, bias, level=self.level, **how))
        y = np.full((len(x), w_out.shape[2]), np.nan, x.dtype)
        direct.fff(x, w_in, bias, w_out, y, None, None, **self._asdict(), **how)
        return y

    def cmm(self, x: Array, w_in: Array, bias: Array | None = None, **how: Any) -> tuple[Array, Array]:
        """Return nodes and logits of cmm alone."""
        if not self.algorithm:
            with forced_isa(self.isa):
                return cmm.cmm(x, w_in, bias, level=self.level, **how)
        nodes, logits = self._empty_path(x, w_in)
        direct.fff(x, w_in, bias, None, None, nodes, logits, **self._asdict(), **how)
        return nodes, logits

    def ff(self, x: Array, w_in: Array, w_out: Array, bias: Array | None = None, **how: Any) -> Array:
        """Return y of the dense layer."""
        if not self.algorithm:
            with forced_isa(self.isa):
                return np.asarray(cmm.ff_forward(x, w_in, w_out, bias, level=self.level, **how))
        y = np.full((len(x), w_out.shape[1]), np.nan, x.dtype)
        direct.ff(x, w_in, bias, w_out, y, **self._asdict(), **how)
        return y

    @staticmethod
    def _empty_path(x: Array, w_in: Array) -> tuple[Array, Array]:
        shape = (len(x), w_in.shape[0], w_in.shape[1].bit_length())
        return np.full(shape, -1, np.int32), np.full(shape, np.nan, x.dtype)


TARGETS = [Target(level.name, ISAS[0]) for level in cmm.levels() if level.available and "cuda" not in level.name]
TARGETS += [
    Target(k.level, k.isa, k.algorithm)
    for k in kernels()
    if k.operation == "fff" and k.algorithm and k.available and k.x_type == k.w_type == "float32"
]
"""Every usable level as a user calls it, and every algorithm of it with every instruction set."""

FIXED = [target for target in TARGETS if target.fixed_bits]
DTYPES = (np.float32, np.float64)


# ---- layers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A random layer and tokens for it.

    `kind` is "normal"; "integer", small integers, so that logits are exact and many are exactly 0; or "repeated", at
    most three different tokens.
    """

    batch: int = 31
    d_in: int = 12
    d_out: int = 7
    trees: int = 1
    depth: int = 3
    kind: str = "normal"
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.trees}x{self.depth}-{self.d_in}to{self.d_out}-batch{self.batch}-{self.kind}"

    @property
    def nodes(self) -> int:
        return int(2 ** (self.depth + 1) - 1)

    @property
    def weights(self) -> int:
        return self.trees * self.nodes * (self.d_in + self.d_out)

    @property
    def work(self) -> int:
        return self.batch * self.trees * (self.depth + 1) * (self.d_in + self.d_out + 32)

    def arrays(self, dtype: Any, with_bias: bool) -> tuple[Array, Array, Array, Array | None]:
        """Return x, w_in, w_out and bias, zero-mean so that paths spread over the leaves."""
        rng = np.random.default_rng(self.seed)
        shape = (self.trees, self.nodes)
        w_out = rng.standard_normal((*shape, self.d_out), dtype)
        if self.kind == "integer":
            x = rng.integers(-2, 3, (self.batch, self.d_in)).astype(dtype)
            w_in = rng.integers(-1, 2, (*shape, self.d_in)).astype(dtype)
            bias = rng.integers(-1, 2, shape).astype(dtype)
        else:
            x = rng.standard_normal((self.batch, self.d_in), dtype)
            if self.kind == "repeated":
                x = x[rng.integers(0, min(3, self.batch), self.batch)] if self.batch else x
            w_in = rng.standard_normal((*shape, self.d_in), dtype)
            w_in *= self.d_in**-0.5  # logits of variance 1
            bias = rng.standard_normal(shape, dtype)
            bias *= 0.5
        return x, w_in, w_out, bias if with_bias else None


BATCHES = (1, 2, 31, 0, 257, 16384)
TREES = (1, 2, 3, 64, 3072)


def widths(most: int) -> st.SearchStrategy[int]:
    """Draw 1 to 300, 768 or 1000, but no more than `most`."""
    large = [width for width in (768, 1000) if width <= most]
    small = st.integers(1, min(most, 300))
    return small | st.sampled_from(large) if large else small


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw layers of every shape within MAX_WEIGHTS and MAX_WORK, small ones more often than large ones."""
    weights = MAX_WEIGHTS >> draw(st.integers(0, 12))
    depth = draw(st.integers(0, min(15, weights.bit_length() - 3)))  # one tree of two columns fits
    nodes = 2 ** (depth + 1) - 1
    trees = draw(st.sampled_from([trees for trees in TREES if 2 * trees * nodes <= weights]))
    columns = weights // (trees * nodes)
    d_in = draw(widths(columns - 1))
    d_out = draw(widths(columns - d_in))
    token = Case(1, d_in, d_out, trees, depth).work
    batch = draw(st.sampled_from([batch for batch in BATCHES if batch < 2 or batch * token <= MAX_WORK]))
    kind = draw(st.sampled_from(["normal", "integer", "repeated"]))
    case = Case(batch, d_in, d_out, trees, depth, kind, draw(st.integers(0, 2**32 - 1)))
    note(repr(case))
    return case


EXTREMES = [
    (dtype, case)
    for dtype in DTYPES
    for case in (
        Case(batch=16384, d_in=768, d_out=768, depth=11),
        Case(batch=257, d_in=127, d_out=128, depth=15),  # 2^24 weights, less 65791
        Case(batch=2, d_in=1000, d_out=1000, trees=2, depth=11),
        Case(batch=257, d_in=768, d_out=768, depth=11),
        Case(batch=16384, d_in=1, d_out=300, depth=4),
        Case(batch=16384, d_in=300, d_out=1, trees=2, depth=5, kind="integer"),
        Case(batch=16384, d_in=8, d_out=5, depth=15, kind="repeated"),
        Case(batch=31, d_in=3, d_out=1, trees=64, depth=15),
        Case(batch=257, d_in=4, d_out=3, trees=3072, depth=0),
        Case(batch=1, d_in=300, d_out=1000, trees=3072, depth=1),
        Case(batch=31, d_in=768, d_out=1, trees=64, depth=5),
        Case(batch=257, d_in=2, d_out=1, depth=20),
        Case(batch=31, d_in=1, d_out=1, depth=20),
        Case(batch=0, d_in=768, d_out=1000, trees=64, depth=3),
        Case(batch=0, d_in=1, d_out=1, depth=0),
        Case(batch=257, d_in=1, d_out=1, depth=0),
        Case(batch=257, d_in=300, d_out=300, trees=3, depth=4),
        Case(batch=31, d_in=64, d_out=1, trees=3, depth=9),
    )
    if case.weights <= MAX_WEIGHTS and case.work <= MAX_CASE_WORK[dtype]
]
"""Layers at the ends of every range; under the small profile those that are small."""
