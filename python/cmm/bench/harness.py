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

import numpy as np
import numpy.typing as npt

import cmm
from cmm._backend.numpy import large
from cmm.bench import check
from cmm.bench.machine import memory_available
from cmm.blas import Blas, installed
from cmm.typing import LevelName

Step = Callable[[], object]
ROUTINGS = ("random", "same")
_MIN_POOL = 4096  # tokens to draw small batches from, so that they do not all walk the same path
_MIN_PASS = 0.02  # seconds: shorter passes repeat the call, on other tokens
_MAX_CALLS = 20000
_FULL_SPEED = 1024  # tokens from which on a dense layer's time per token falls no more
_SAMPLE = {True: 4, False: 32}  # tokens checked of a dense layer, of a tree layer


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
    ) -> None:
        self.dtype = np.dtype(dtype)
        self.tokens, self.width, self.routing = tokens, width, routing
        rows = max(layer.neurons for layer in layers)
        pool = max(tokens, _MIN_POOL)
        prepared = sum(layer.neurons for layer in layers if not layer.dense)
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
        self._references: dict[tuple[Layer, int, bytes | None], check.Reference] = {}
        self._prepared: dict[Layer, cmm.FFF] = {}

    def weights(self, layer: Layer) -> tuple[np.ndarray, np.ndarray]:
        """Return `w_in` and `w_out` of a layer: `(neurons, width)`, or `(trees, nodes, width)` of trees."""
        shape = (layer.neurons, self.width) if layer.dense else (layer.trees, layer.nodes, self.width)
        return self.w_in[: layer.neurons].reshape(shape), self.w_out[: layer.neurons].reshape(shape)

    def prepared(self, layer: Layer) -> cmm.FFF:
        """Return the prepared layer, which has weights of its own; made once."""
        if layer not in self._prepared:
            self._prepared[layer] = cmm.FFF(*self.weights(layer))
        return self._prepared[layer]

    def reference(self, what: str, layer: Layer, token: int, nodes: check.Nodes | None) -> check.Reference:
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
    calls: int = 1  # in one pass, each on other tokens
    seconds: list[float] = field(default_factory=list)  # per token, one entry for each pass
    leaves: int = 0  # distinct (tree, leaf) visited in one pass
    rows: int = 0  # distinct neurons used in one call
    pass_rows: int = 0  # the same in one pass
    aside: int = 0  # tokens of the check's sample that were too close to call

    @property
    def name(self) -> str:
        """For messages and test ids."""
        return " ".join(filter(None, (self.layer.name, self.level, self.blas_name)))

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
            call = self.data.prepared(self.layer)
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
        y, nodes = self.data.out[:batch], None
        with self._using():
            if not layer.dense:
                path_y, nodes = self._walk(batch)
            y[:] = np.nan
            self.forward(self.data.x[:batch])
            seen = self._walk(self.pass_tokens)[1] if nodes is not None and self.pass_tokens > batch else nodes
        for token in sample(layer, batch):
            reference = self.data.reference(self.name, layer, token, None if nodes is None else nodes[token])
            if nodes is not None:
                check.compare(self.name, path_y[token], reference)
            if reference.close:
                self.aside += 1
            else:
                check.compare(self.name, y[token], reference)
        self.rows = self.pass_rows = layer.neurons
        if nodes is not None and seen is not None:
            first = layer.nodes * np.arange(layer.trees)[:, None]  # flat number of each tree's root
            self.rows, self.pass_rows = np.unique(nodes + first).size, np.unique(seen + first).size
            self.leaves = np.unique((seen + first)[..., -1]).size

    def _walk(self, tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the outputs and the visited nodes of the first tokens."""
        y, nodes, _ = cmm.fff_forward(
            self.data.x[:tokens],
            *self.data.weights(self.layer),
            level=self.level,
            threads=self.threads,
            return_path=True,
        )
        return y, nodes

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
