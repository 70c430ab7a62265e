"""Layers, data and timing: everything that is measured goes through here, also from `bench/`.

A `Case` is one layer at one level on one batch size. `measure` times cases in turn, round after round,
in one process, so that a slow moment of the machine hits all of them. Tokens and weights are random, and the paths of
the tokens spread over the leaves.
"""

from __future__ import annotations

import itertools
import math
import random
import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple, cast, get_args

import numpy as np
import numpy.typing as npt

import cmm
from cmm._backend.numpy import large
from cmm.bench import check
from cmm.bench.check import Reference
from cmm.bench.machine import memory_available
from cmm.bench.roofline import Work
from cmm.blas import Blas, installed
from cmm.typing import LevelName, Rows

Step = Callable[[], object]
ROUTINGS = ("random", "same")
_MIN_POOL = 4096  # tokens to draw small batches from, so that they do not all walk the same path
_MIN_PASS = 0.02  # seconds: shorter passes repeat the call, on other tokens
_MAX_CALLS = 20000
_FULL_SPEED = 1024  # tokens from which on a dense layer's time per token falls no more
_SAMPLE = {True: 4, False: 32}  # tokens checked of a dense layer, of a tree layer
_BYTES: dict[str, int] = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
_SCALE = 4  # bytes of the scale of a row of int8
# What int8 rounds more: a number as the layer shows it, which it does not compute with, and the product of the scale
# with a sum or an activation.
_SCALE_ROUNDINGS = 2


@dataclass(frozen=True)
class Layer:
    """A shape: `trees` trees of `depth`, or a dense layer with as many neurons as those have."""

    trees: int
    depth: int
    dense: bool = False

    @property
    def nodes(self) -> int:
        """Neurons in one tree."""
        return (2 << self.depth) - 1

    @property
    def neurons(self) -> int:
        """Neurons in all."""
        return self.trees * self.nodes

    @property
    def used(self) -> int:
        """Neurons that one token uses."""
        return self.neurons if self.dense else self.trees * (self.depth + 1)

    @property
    def name(self) -> str:
        """'dense 4095' or '1x11'."""
        return f"dense {self.neurons}" if self.dense else f"{self.trees}x{self.depth}"


def dense(neurons: int) -> Layer:
    """Return a dense layer."""
    return Layer(neurons, 0, dense=True)


def parse_layer(text: str) -> Layer:
    """Return the Layer that '1x11' means; a ValueError says what is wrong."""
    match = re.fullmatch(r"([1-9]\d*)x(\d+)", text.strip())
    if not match or int(match[2]) > 30:
        raise ValueError(f"{text!r} is not KxD, K trees of depth D from 0 to 30, like 1x11")
    return Layer(int(match[1]), int(match[2]))


@dataclass(frozen=True)
class Packing:
    """What a prepared layer keeps its rows in: types of those of w_in and of w_out, and its exact path."""

    rows: tuple[Rows, Rows]
    exact_path: bool | float = False

    @property
    def weights(self) -> str:
        """'int8' or 'int8/bfloat16'."""
        return self.rows[0] if self.rows[0] == self.rows[1] else "/".join(self.rows)

    @property
    def name(self) -> str:
        """'int8', 'int8+exact' or 'int8+6': what parse_packing() takes."""
        exact = "exact" if self.exact_path is True else f"{self.exact_path:g}"
        return f"{self.weights}+{exact}" if self.exact_path else self.weights

    def pair_bytes(self, width: int) -> int:
        """Return the bytes of one row of w_in and one of w_out."""
        return sum(width * _BYTES[rows] + (_SCALE if rows == "int8" else 0) for rows in self.rows)


def parse_packing(text: str) -> Packing:
    """Return the Packing of 'int8', 'int8/bfloat16', 'int8+exact' or 'int8+6'; a ValueError says what is wrong."""
    types, plus, exact = text.strip().partition("+")
    first, slash, second = types.partition("/")
    names = first, second if slash else first
    known = [name for name in get_args(Rows) if name != "float64"]
    if not set(names) <= set(known):
        raise ValueError(
            f"{text!r} is not TYPE or TYPE/TYPE, with or without +exact or +SIGMAS, of {', '.join(known)}"
        )
    rows = cast("tuple[Rows, Rows]", names)
    if not plus:
        return Packing(rows)
    if rows[0] == "float32":
        raise ValueError(f"{text!r} has an exact path for rows of w_in that are float32 as they are")
    if exact == "exact":
        return Packing(rows, True)
    try:
        sigmas = float(exact)
    except ValueError:
        sigmas = math.nan
    if not 0 < sigmas < math.inf:
        raise ValueError(f"{text!r}: after + comes exact, or a positive number of standard deviations")
    return Packing(rows, sigmas)


class Walk(NamedTuple):
    """What the first tokens gave: y, and the nodes and logits of their paths."""

    y: np.ndarray
    nodes: np.ndarray
    logits: np.ndarray


class Data:
    """Tokens and weights of all layers of one benchmark: every layer uses the first rows of the same arrays.

    Parameters
    ----------
    layers : sequence of Layer
        What will run; the largest decides the number of rows.
    tokens : int
        The largest batch.
    width : int
        d_in and d_out.
    dtype : str or numpy.dtype
        float32 or float64.
    routing : {"random", "same"}
        "same" repeats one token, so that all take one path: the condition of the paper's published benchmark.
    seed : int
        Same seed, same arrays.
    packings : int
        How many prepared layers there will be of each layer of trees, for what they take in memory.

    Attributes
    ----------
    x : ndarray (pool, width)
        At least `tokens` tokens.
    out : ndarray (tokens, width)
        Where every case writes: memory such as a call without `out` returns.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        tokens: int,
        width: int = 768,
        dtype: npt.DTypeLike = "float32",
        routing: str = "random",
        seed: int = 0,
        packings: int = 1,
    ) -> None:
        self.dtype = np.dtype(dtype)
        self.tokens, self.width, self.routing = tokens, width, routing
        rows = max(layer.neurons for layer in layers)
        pool = max(tokens, _MIN_POOL)
        prepared = packings * sum(layer.neurons for layer in layers if not layer.dense)
        self._refuse_too_large((pool + tokens + 2 * rows + 2 * prepared) * width * self.dtype.itemsize)
        rng = np.random.default_rng(seed)
        self.x = self._normal(rng, pool)
        if routing == "same":
            self.x[:] = self.x[0]
        self.w_in = self._normal(rng, rows)
        self.w_in *= width**-0.5  # logits of about 1: where GELU bends
        self.w_out = self._normal(rng, rows)
        self.out = large("out", (tokens, width), self.dtype)
        self.out[:] = 0  # no page is new when it is timed
        self._references: dict[tuple[Layer, int, bytes | None], Reference] = {}
        self._prepared: dict[tuple[Layer, str], cmm.FFF] = {}
        self._wide: dict[tuple[Layer, int], tuple[np.ndarray, np.ndarray]] = {}

    def weights(self, layer: Layer) -> tuple[np.ndarray, np.ndarray]:
        """Return `w_in` and `w_out` of a layer: `(neurons, width)`, or `(trees, nodes, width)` of trees."""
        shape = (layer.neurons, self.width) if layer.dense else (layer.trees, layer.nodes, self.width)
        return self.w_in[: layer.neurons].reshape(shape), self.w_out[: layer.neurons].reshape(shape)

    def prepared(self, layer: Layer, packing: Packing | None = None) -> cmm.FFF:
        """Return the prepared layer, which has weights of its own; made once."""
        key = layer, packing.name if packing else ""  # not the packing: True and 1.0 are equal
        if key not in self._prepared:
            how: dict[str, Any] = {}
            if packing is not None:
                how = {"weights": packing.rows, "exact_path": packing.exact_path}
            self._prepared[key] = cmm.FFF(*self.weights(layer), **how)
        return self._prepared[key]

    def wide(self, layer: Layer, tokens: int, threads: int) -> tuple[np.ndarray, np.ndarray]:
        """Return nodes and logits of the first tokens, at level native, with the rows as they are; computed once."""
        key = layer, tokens
        if key not in self._wide:
            w_in, _ = self.weights(layer)
            self._wide[key] = cmm.cmm_forward(self.x[:tokens], w_in, level="native", threads=threads)
        return self._wide[key]

    def reference(self, what: str, layer: Layer, token: int, nodes: check.Nodes | None) -> Reference:
        """Return the token's answer in float64, along the path `nodes` of a tree layer; computed once."""
        key = layer, token, None if nodes is None else nodes.tobytes()
        if key not in self._references:
            x, (w_in, w_out) = self.x[token], self.weights(layer)
            self._references[key] = (
                check.dense(x, w_in, w_out) if nodes is None else check.along_path(what, x, w_in, w_out, nodes)
            )
        return self._references[key]

    def _normal(self, rng: np.random.Generator, rows: int) -> np.ndarray:
        return rng.standard_normal((rows, self.width), np.float32).astype(self.dtype, copy=False)

    @staticmethod
    def _refuse_too_large(size: int) -> None:
        available = memory_available()
        if available is not None and size > available:
            raise cmm.ArrayMemoryError(
                f"the benchmark's arrays take {size / 1e9:.1f} GB, but {available / 1e9:.1f} GB of memory are free: "
                "choose fewer tokens, a smaller width or fewer neurons"
            )


@dataclass(eq=False)
class Case:
    """One layer at one level, on `batch` tokens a call.

    `check` must pass before `time_pass` is worth anything.
    """

    data: Data
    layer: Layer
    level: LevelName
    blas: tuple[str, Blas] | None  # its short name, and itself
    batch: int
    threads: int
    packing: Packing | None = None  # of a prepared layer at level native; None: its rows are as they are
    calls: int = 1  # in one pass, each on other tokens
    seconds: list[float] = field(default_factory=list)  # per token, one entry for each pass
    leaves: int = 0  # distinct (tree, leaf) visited in one pass
    rows: int = 0  # distinct neurons used in one call
    pass_rows: int = 0  # the same in one pass
    recomputed: float | None = None  # logits that a token has computed again, of an exact path
    rows_again: float = 0.0  # distinct rows for these in one call, on average
    pass_rows_again: int = 0  # the same in one pass
    off_path: int | None = None  # tokens of a pass whose path is not that of the rows as they were; of narrow ones
    aside: int = 0  # tokens of the check's sample that were too close to call

    @property
    def name(self) -> str:
        """For messages and test ids."""
        packing = self.packing.name if self.packing else ""
        return " ".join(filter(None, (self.layer.name, self.level, self.blas_name, packing)))

    @property
    def blas_name(self) -> str:
        """Short name of the BLAS, empty where none is used."""
        return self.blas[0] if self.blas else ""

    def _using(self) -> AbstractContextManager[object]:
        return using(self.blas[1] if self.blas else None)

    @cached_property
    def forward(self) -> Callable[..., object]:
        """The call that is timed, but for its tokens."""
        w_in, w_out = self.data.weights(self.layer)
        call: Callable[..., object]
        if self.layer.dense:
            call = partial(cmm.ff_forward, w_in=w_in, w_out=w_out)
        elif self.level == "native":
            call = self.data.prepared(self.layer, self.packing)
        else:
            call = partial(cmm.fff_forward, w_in=w_in, w_out=w_out)
        return partial(call, level=self.level, threads=self.threads, out=self.data.out[: self.batch])

    @property
    def pass_tokens(self) -> int:
        """Distinct tokens in one pass."""
        return min(self.calls, len(self.data.x) // self.batch) * self.batch

    def tokens(self) -> list[np.ndarray]:
        """Return the tokens of one pass, call by call."""
        starts = itertools.cycle(range(0, self.pass_tokens, self.batch))
        return [self.data.x[start : start + self.batch] for start in itertools.islice(starts, self.calls)]

    def time_pass(self) -> float:
        """Run one pass and return seconds per token."""
        forward, tokens = self.forward, self.tokens()
        with self._using():
            begin = time.perf_counter()
            for x in tokens:
                forward(x)
            return (time.perf_counter() - begin) / (self.calls * self.batch)

    def calibrate(self, limit: float) -> None:
        """Choose the batch and the calls of a pass: the whole batch, or as many of its tokens as fit in `limit` s."""
        largest = self.batch
        least = _FULL_SPEED if self.layer.dense and self.level == "blas3" else 16
        self._resize(min(largest, least))
        self.time_pass()  # wakes up whatever sleeps: threads, pages, clocks
        while (seconds := self.time_pass() * self.batch) * 2 < limit and self.batch < largest:
            self._resize(min(2 * self.batch, largest))
        while seconds < _MIN_PASS and self.calls < _MAX_CALLS:
            self.calls = min(_MAX_CALLS, self.calls * min(16, math.ceil(1.2 * _MIN_PASS / seconds)))
            seconds = self.time_pass() * self.batch * self.calls

    def check(self) -> None:
        """Hold the first call of a pass against float64, and count what a pass visits.

        Raises
        ------
        cmm.bench.check.WrongResultError
            Where outputs or paths are wrong.
        """
        layer, batch = self.layer, self.batch
        y, walk = self.data.out[:batch], None
        with self._using():
            if not layer.dense:
                walk = self._walk(batch)
            y[:] = np.nan
            self.forward(self.data.x[:batch])
            seen = self._walk(self.pass_tokens) if walk is not None and self.pass_tokens > batch else walk
        if walk is not None and seen is not None and self.packing is not None:
            self._compare_with_wide(self.packing, seen)
        reference_of = self._references(walk)
        for token in sample(layer, batch):
            reference = reference_of(token)
            if walk is not None:
                check.compare(self.name, walk.y[token], reference)
            if reference.close:
                self.aside += 1
            else:
                check.compare(self.name, y[token], reference)
        self.rows = self.pass_rows = layer.neurons
        if walk is not None and seen is not None:
            first = layer.nodes * np.arange(layer.trees)[:, None]  # flat number of each tree's root
            self.rows, self.pass_rows = np.unique(walk.nodes + first).size, np.unique(seen.nodes + first).size
            self.leaves = np.unique((seen.nodes + first)[..., -1]).size

    def work(self) -> Work:
        """Return what the case needs of a machine, once it has been checked."""
        layer, width, itemsize = self.layer, self.data.width, self.data.dtype.itemsize
        pair = self.packing.pair_bytes(width) if self.packing else 2 * width * itemsize
        again = self.recomputed or 0.0
        return Work(
            flops=4 * layer.used * width + 2 * again * width,
            token_bytes=width * itemsize,
            tokens_set=width * itemsize * (self.pass_tokens + self.batch),
            used_bytes=layer.used * pair + again * width * itemsize,
            rows_bytes=(self.rows * pair + self.rows_again * width * itemsize) / self.batch,
            rows_set=self.pass_rows * pair + self.pass_rows_again * width * itemsize,
        )

    def _references(self, walk: Walk | None) -> Callable[[int], Reference]:
        """Return what gives the reference of a token."""
        layer, data, packing = self.layer, self.data, self.packing
        if packing is None or walk is None:
            return lambda token: data.reference(self.name, layer, token, None if walk is None else walk.nodes[token])
        shown, wide = data.prepared(layer, packing), data.weights(layer)[0] if packing.exact_path else None
        w_in, w_out = shown.w_in, shown.w_out
        roundings = _SCALE_ROUNDINGS if "int8" in packing.rows else 0
        return lambda token: check.along_path(
            self.name, data.x[token], w_in, w_out, walk.nodes[token], walk.logits[token], wide, roundings
        )

    def _compare_with_wide(self, packing: Packing, seen: Walk) -> None:
        """Count the tokens that take another path than with the rows as they were, and the logits computed again."""
        tokens, layer = len(seen.nodes), self.layer
        nodes, logits = self.data.wide(layer, tokens, self.threads)
        there = (seen.nodes == nodes).all((1, 2))
        off = tokens - int(there.sum())
        if off and (packing.exact_path is True or packing.rows[0] == "float32"):
            raise check.WrongResultError(f"{self.name}: {off} tokens of {tokens} are off float32's path; not timed")
        self.off_path = off
        if not packing.exact_path:
            return
        counted = self.data.prepared(layer, packing).recomputed or 0  # its last call had these tokens
        # Which ones they were is not told. They have the bits of the wide rows' logits, as few others have.
        again = there[:, None, None] & (seen.logits == logits)[..., :-1]
        if not off and again.sum() < counted:
            raise check.WrongResultError(f"{self.name}: a logit computed again is not float32's; not timed")
        self.recomputed = counted / tokens
        token, tree, level = np.nonzero(again)
        rows = seen.nodes[token, tree, level] + layer.nodes * tree
        self.rows_again = np.unique(token // self.batch * layer.neurons + rows).size / max(1, tokens // self.batch)
        self.pass_rows_again = np.unique(rows).size

    def _walk(self, tokens: int) -> Walk:
        """Return what the first tokens give, with their paths."""
        x, weights = self.data.x[:tokens], self.data.weights(self.layer)
        call: Callable[..., Any] = partial(cmm.fff_forward, w_in=weights[0], w_out=weights[1])
        if self.packing is not None:
            call = self.data.prepared(self.layer, self.packing)
        return Walk(*call(x, level=self.level, threads=self.threads, return_path=True))

    def _resize(self, batch: int) -> None:
        self.batch = batch
        self.__dict__.pop("forward", None)  # it is bound to the old batch


def sample(layer: Layer, batch: int) -> list[int]:
    """Return the tokens of a batch that are checked."""
    return [int(token) for token in np.unique(np.linspace(0, batch - 1, _SAMPLE[layer.dense]).astype(int))]


def using(blas: Blas | None) -> AbstractContextManager[object]:
    """Make `blas` the one that the BLAS levels use, for as long as this is entered."""
    return nullcontext() if blas is None else cmm.blas.use(blas)


def every_blas() -> dict[str, Blas]:
    """Return each BLAS that can be had, by a short name: the current one, the MKL wheel's, SciPy's.

    Raises
    ------
    cmm.UnusableError
        Where there is none, or CMM_BLAS names what is none.
    """
    found: dict[str, Blas] = {}
    for blas in [cmm.blas.current(), *installed()]:
        if blas.name not in {other.name for other in found.values()}:
            maker = "MKL" if "Math Kernel Library" in blas.name else blas.name.split()[0]
            version = re.search(r"\d+(\.\d+)+", blas.name)
            short = f"{maker} {version[0]}" if version else maker
            found[short if short not in found else blas.file] = blas
    return found


def products(blases: Iterable[Blas], threads: int, dtype: np.dtype) -> list[tuple[Callable[[], object], float]]:
    """Return calls that are little but matrix products, and their operations, for the floors' FMA peak."""
    # Long enough for full speed, and short enough, about 4 ms, to fit between two interruptions of a busy machine.
    tokens, neurons, width = 384 * threads, 384, 768
    x, w, out = (np.ones((rows, width), dtype) for rows in (tokens, neurons, tokens))

    def product(blas: Blas) -> None:
        with using(blas):
            cmm.ff_forward(x, w, w, activation="identity", level="blas3", threads=threads, out=out)

    return [(partial(product, blas), 4.0 * tokens * neurons * width) for blas in blases]


def prepare(cases: Iterable[Case], limits: dict[bool, float], step: Step = lambda: None) -> None:
    """Calibrate and check every case.

    Parameters
    ----------
    cases : iterable of Case
    limits : dict
        Seconds that one pass may take, of dense layers (True) and of trees (False).
    step : function
        Called after each.
    """
    for case in cases:
        case.calibrate(limits[case.layer.dense])
        case.check()
        step()


def measure(cases: Iterable[Case], passes: int, step: Step = lambda: None) -> None:
    """Time every case `passes` times, all of them once in each round, each round in another order."""
    order = list(cases)
    for turn in range(passes):
        random.Random(turn).shuffle(order)
        for case in order:
            case.seconds.append(case.time_pass())
            step()
