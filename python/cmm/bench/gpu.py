"""The GPU columns of the paper's Table 2: the layers of `cmm bench` on CuPy arrays, timed by the GPU's own clock."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import cmm
from cmm._cupy import import_cupy
from cmm._dispatch import why_not
from cmm.bench import check
from cmm.bench.harness import Data, Layer, sample
from cmm.typing import LevelName

# The paper's columns, and which of our levels is of the kind.
COLUMNS: dict[LevelName, str] = {"cuda": "native fused", "cuda-bmm": "PyTorch BMM", "cuda-naive": "naive CUDA"}
# The paper's Table 2, GPU columns: speedup over BERT-base-4095 in the same column.
PAPER: dict[tuple[str, str], float | None] = {
    ("dense 4095", "cuda"): 1.0,
    ("dense 4095", "cuda-bmm"): 1.0,
    ("dense 4095", "cuda-naive"): 1.0,
    ("dense 3072", "cuda"): 1.33,
    ("dense 3072", "cuda-bmm"): 1.61,
    ("dense 3072", "cuda-naive"): 1.82,
    ("1x11", "cuda"): None,  # "not supported"
    ("1x11", "cuda-bmm"): 39.45,
    ("1x11", "cuda-naive"): 117.83,
}
PAPER_PROTOCOL = "RTX A6000, CUDA 11.7, PyTorch 2.0.1, 16384 tokens, width 768, float32"
_MIN_PASS = 20.0  # milliseconds


@dataclass(frozen=True)
class GpuLine:
    """One layer at one level: microseconds of a call, the median of the passes."""

    layer: str
    dense: bool
    neurons: int
    level: str
    us: float
    passes: int
    aside: int  # tokens of the check's sample that were too close to call


@dataclass(frozen=True)
class GpuReport:
    """What was measured on a GPU, and why not more: a reason for each level, or for all of them under ""."""

    name: str = ""
    base: int = 0
    absent: dict[str, str] = field(default_factory=dict)
    lines: list[GpuLine] = field(default_factory=list)

    def find(self, layer: str, level: str) -> GpuLine | None:
        """Return the line of a layer at a level."""
        return next((found for found in self.lines if (found.layer, found.level) == (layer, level)), None)

    def over_level(self, found: GpuLine) -> float:
        """Return how many times faster than the dense layer with as many neurons at the same level."""
        dense = self.find(f"dense {self.base if found.dense else found.neurons}", found.level)
        return dense.us / found.us if dense else math.nan


def measure_gpu(data: Data, layers: Iterable[Layer], base: int, step: Callable[[], object]) -> GpuReport:
    """Check and time every layer at every level that a GPU here can run.

    Parameters
    ----------
    data : Data
        The tokens and weights of the CPU's levels.
    layers : iterable of Layer
    base : int
        Neurons of the dense layer that other dense layers are compared with.
    step : function
        Called after each.

    Raises
    ------
    cmm.bench.check.WrongResultError
        Where outputs or paths are wrong.
    """
    if why := why_not("cuda-bmm"):  # the arrays are CuPy's
        return GpuReport(absent={"": why})
    cupy = import_cupy("cmm bench")
    reasons = {level: why_not(level) for level in COLUMNS}
    x = cupy.asarray(data.x[: data.tokens])
    out = cupy.empty_like(x)
    lines = []
    for layer in layers:
        w_in, w_out = (cupy.asarray(array) for array in data.weights(layer))
        for level in (level for level, why in reasons.items() if not why):
            function = cmm.ff_forward if layer.dense else cmm.fff_forward

            def call(function: Callable[..., Any] = function, w: Any = (w_in, w_out), level: str = level) -> None:
                function(x, *w, level=level, out=out)

            aside = _check(data, layer, level, x, (w_in, w_out), out, call)
            times = _times(cupy, call)
            lines.append(
                GpuLine(layer.name, layer.dense, layer.neurons, level, statistics.median(times), len(times), aside)
            )
            step()
    name = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)["name"].decode()
    return GpuReport(name, base, {level: why for level, why in reasons.items() if why}, lines)


def _check(
    data: Data, layer: Layer, level: LevelName, x: Any, weights: Any, out: Any, call: Callable[[], None]
) -> int:
    """Hold a sample of tokens against float64; return how many were too close to call."""
    what, nodes, tokens = f"{layer.name} {level}", None, sample(layer, len(x))
    if not layer.dense:
        results: tuple[Any, Any, Any] = cmm.fff_forward(x, *weights, level=level, return_path=True)
        path_y, nodes = (result[tokens].get() for result in results[:2])
    out.fill(np.nan)
    call()
    y, aside = out[tokens].get(), 0
    for at, token in enumerate(tokens):
        reference = data.reference(what, layer, token, None if nodes is None else nodes[at])
        if nodes is not None:
            check.compare(what, path_y[at], reference)
        if reference.close:
            aside += 1
        else:
            check.compare(what, y[at], reference)
    return aside


def _times(cupy: Any, call: Callable[[], None]) -> list[float]:
    """Return microseconds of a call, once for each pass; a pass of short calls is many of them."""

    def timed(calls: int) -> float:
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return float(cupy.cuda.get_elapsed_time(start, end))

    first = timed(1)
    calls = max(1, min(200, math.ceil(_MIN_PASS / first)))
    return [1e3 * timed(calls) / calls for _ in range(2 if first > 500 else 7)]
