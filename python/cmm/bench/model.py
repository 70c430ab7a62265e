"""`cmm bench --model`: a whole encoder against its dense twin, on numpy and, where it is installed, in PyTorch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

import cmm
from cmm import _json
from cmm.bench.machine import this_machine
from cmm.bench.table import SCHEMA, grid, threads_text
from cmm.bert.encoder import FFF, Dense
from cmm.bert.model import Model
from cmm.bert.trained import packaged

_BATCHES = ((1, 16), (1, 128), (16, 128))  # sequences, tokens of each
_PASSES = 15
_LEAST = 0.02  # seconds that a pass takes at least; shorter calls are repeated
# Two float32 programs of the same encoder, relative to the largest value: far above what rounding does in a few
# layers, far below what a wrong node does.
_AGREE = 1e-3


@dataclass(frozen=True)
class Line:
    """Microseconds per token of one case: median and quartiles over the passes."""

    what: str
    layers: str
    sequences: int
    length: int
    us: float
    us_q1: float
    us_q3: float


@dataclass(frozen=True)
class _Case:
    what: str
    layers: str
    sequences: int
    length: int
    run: Callable[[], object]


def bench_model(name: str, threads: int, passes: int | None, file: str | None) -> str:
    """Time a model against its twin; return what to print, and write the figures as json where `file` says."""
    model = cmm.bert.load(packaged(name))
    if model.config.trees is None:
        raise cmm.ArgumentError(f"--model {name} has dense layers; its twin would be itself")
    twin, whose = _twin(model, name)
    with _numpy_threads(threads) as numpy_threads, _torch_threads(threads) as torch_version:
        cases = list(_contestants(model, twin, threads, torch_version is not None))
        lines = _measure(cases, passes or _PASSES)
    if file is not None:
        written = {"schema": SCHEMA, "version": cmm.__version__, "table": "model", "model": name, "threads": threads}
        _json.write(file, {**written, "lines": [asdict(line) for line in lines]}, indent=1)
    neurons = twin.config.neurons
    used = model.config.trees * ((model.config.depth or 0) + 1)
    dense = f"dense {neurons}"
    rows = [["sequences x tokens", "what", f"FFF {_shape(model)}", dense, f"{dense} / FFF"]]
    for fff, other in zip(lines[::2], lines[1::2], strict=True):
        times = [f"{line.us:.1f} ({line.us_q1:.1f} to {line.us_q3:.1f})" for line in (fff, other)]
        rows.append([f"{fff.sequences} x {fff.length}", fff.what, *times, f"{other.us / fff.us:.2f}x"])
    installed = f"PyTorch {torch_version}" if torch_version else "PyTorch is not installed (pip install torch)"
    return f"""\
{model!r}
against {whose} with {neurons} neurons in each layer, where the FFF model uses {used} of \
{model.config.trees * model.config.nodes} for a token
{this_machine().cpu}; {threads_text(threads)}; numpy's BLAS: {numpy_threads}; {installed}
Microseconds per token: median (quartiles) of {passes or _PASSES} passes, in turn.

{grid(rows, left=2)}"""


def _shape(model: Model) -> str:
    return f"{model.config.trees}x{model.config.depth}"


def _twin(model: Model, name: str) -> tuple[Model, str]:
    """Return the dense model of the same size, and what it is."""
    if packaged(name) is not name:
        return cmm.bert.trained("dense"), "its dense twin, trained alike,"
    assert model.config.trees is not None
    arch = {key: value for key, value in model.config.arch.items() if key != "intermed_depth"}
    arch |= {"intermed_type": "ff", "intermed_size": model.config.trees * model.config.nodes, "num_labels": None}
    arch["embedding"] = {**arch["embedding"], "vocab_size": len(model.weights.word)}
    return cmm.bert.random(arch), "a dense model with random weights"


def _contestants(model: Model, twin: Model, threads: int, with_torch: bool) -> Iterator[_Case]:
    """Yield pairs, the FFF model's first, each checked."""
    vocabulary = min(len(model.weights.word), len(twin.weights.word))
    batches = [(rows, min(length, model.config.max_seq_length)) for rows, length in _BATCHES]
    for batch in dict.fromkeys(batches):
        # Some ids often, most seldom, as words are: the n-th with a probability like 1 / n.
        ids = np.exp(np.random.default_rng(0).uniform(0, np.log(vocabulary), batch)).astype(np.int64) - 1
        for what, of in (("numpy", _on_numpy), ("numpy, feedforward layers alone", _layers_alone)):
            for one, layers in ((model, "fff"), (twin, "dense")):
                yield _Case(what, layers, *batch, of(one, ids, threads))
        if with_torch:
            for one, layers in ((model, "fff"), (twin, "dense")):
                yield _Case("PyTorch", layers, *batch, _in_torch(one, ids))


def _on_numpy(model: Model, ids: Any, threads: int) -> Callable[[], object]:
    return lambda: model(ids, threads=threads)


def _layers_alone(model: Model, ids: Any, threads: int) -> Callable[[], object]:
    inputs = np.ascontiguousarray(model.trace(ids, threads=threads).ffn_in)
    layers = [layer.ffn for layer in model.weights.layers]

    def run() -> None:
        for x, ffn in zip(inputs, layers, strict=True):
            if isinstance(ffn, FFF):
                cmm.fff_forward(x, ffn.w_in, ffn.w_out, ffn.bias, threads=threads)
            else:
                assert isinstance(ffn, Dense)
                cmm.ff_forward(x, ffn.w_in, ffn.w_out, threads=threads)

    return run


def _in_torch(model: Model, ids: Any) -> Callable[[], object]:
    import torch

    from cmm.torch import Encoder, training

    arch = dict(model.config.arch)
    arch["embedding"] = {**arch["embedding"], "vocab_size": len(model.weights.word)}
    encoder = Encoder(arch)
    state = training.state_dict(model)
    encoder.load_state_dict({key[8:]: value for key, value in state.items() if key.startswith("encoder.")})
    encoder.eval()
    tokens = torch.from_numpy(ids)

    def run() -> Any:
        with torch.inference_mode():
            return encoder(tokens)

    expected, found = model(ids), run().numpy()
    if not np.abs(found - expected).max() <= _AGREE * np.abs(expected).max():
        raise cmm.CmmError(f"{model.source}: PyTorch and numpy disagree, so neither is timed")
    return run


def _measure(cases: list[_Case], passes: int) -> list[Line]:
    calls = []
    for case in cases:
        case.run()
        calls.append(max(1, int(_LEAST / _seconds(case.run, 1))))
    times = np.empty((passes, len(cases)))
    for row in times:
        row[:] = [_seconds(case.run, count) for case, count in zip(cases, calls, strict=True)]
    lines = []
    for one, seconds in zip(cases, times.T, strict=True):
        q1, median, q3 = np.percentile(1e6 * seconds / (one.sequences * one.length), (25, 50, 75))
        lines.append(Line(one.what, one.layers, one.sequences, one.length, float(median), float(q1), float(q3)))
    return lines


def _seconds(run: Callable[[], object], calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - began) / calls


@contextmanager
def _numpy_threads(threads: int) -> Iterator[str]:
    """Limit numpy's BLAS; say how many threads it has."""
    if find_spec("threadpoolctl") is None:
        yield f"its own threads, of {os.cpu_count()} (threadpoolctl is not installed)"
        return
    from threadpoolctl import threadpool_limits

    with threadpool_limits(threads):
        yield "as many"


@contextmanager
def _torch_threads(threads: int) -> Iterator[str | None]:
    """Limit PyTorch's threads; give its version, None where it is not installed."""
    if find_spec("torch") is None:
        yield None
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield torch.__version__
    finally:
        torch.set_num_threads(before)
