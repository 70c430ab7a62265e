"""`cmm demo`: a layer and an encoder of real size, and what to see in them, in about twenty seconds."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np

import cmm
from cmm._dispatch import default_threads
from cmm.bench.harness import Case, Data, Layer, dense, every_blas, measure, prepare
from cmm.bench.info import built
from cmm.bench.machine import this_machine
from cmm.bench.table import grid, threads_text
from cmm.bert.encoder import FFF

_TOKENS, _WIDTH, _PASSES = 16384, 768, 3
_TREE = Layer(1, 11)
_SEQUENCES, _LENGTH = 8, 128
_T = TypeVar("_T")


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `cmm demo`."""
    parser = commands.add_parser(
        "demo",
        help="run a layer and an encoder of real size",
        description="Run a fast feedforward layer and an encoder of real size, and say what is to be seen.",
        epilog="example:\n  cmm demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the layer, then the encoder."""
    machine = this_machine()
    print(f"cmm {cmm.__version__} on {machine.cpu}, {machine.cores} cores")
    print(f"built: {built()}\n", flush=True)
    _layer()
    print(flush=True)
    _encoder()
    print(
        "\nNext: `cmm bench` measures the paper's table with all its yardsticks; `cmm info` shows what is used here."
    )


def _layer() -> None:
    data = Data([_TREE], _TOKENS, _WIDTH)
    baseline = dense(_TREE.neurons)
    w_in, w_out = data.weights(_TREE)
    print(f"""\
1. One feedforward layer of BERT's size: {_TOKENS} random tokens, float32, 1 thread

   A dense layer uses all its {baseline.neurons} neurons for every token. A fast feedforward (FFF) layer
   {_TREE.name} has as many, arranged as a binary tree. A token walks from the root to a leaf; the sign
   of each neuron's sum says whether left or right. It uses {_TREE.used} of them, other tokens others.

       y = cmm.fff_forward(x, w_in, w_out)
       x {data.out.shape}, w_in {w_in.shape}, w_out {w_out.shape} -> y {data.out.shape}
""")
    cases = [
        Case(data, layer, level.name, blas, _TOKENS, threads=1)
        for layer in (baseline, _TREE)
        for level in cmm.levels()
        if level.available and (level.name == "blas3" or not layer.dense) and not level.name.startswith("cuda")
        for blas in (every_blas().items() if level.name.startswith("blas") else [None])
    ]
    prepare(cases, {True: 0.25, False: 1.0})
    measure(cases, _PASSES)
    best: dict[tuple[Layer, str], tuple[float, str]] = {}  # us per token, with the BLAS that was faster
    for case in cases:
        found = 1e6 * float(np.median(case.seconds)), case.blas_name
        key = case.layer, case.level
        best[key] = min(best.get(key, found), found)
    yardstick_us, yardstick_blas = best[baseline, "blas3"]
    rows = [["layer", "level", "us per token", "times faster"]]
    for (layer, level), (us, _) in best.items():
        rows.append([layer.name, level, f"{us:.1f}", f"{yardstick_us / us:.1f}x"])
    leaves = cases[-1].leaves
    print(f"""\
   Each result was checked against float64, then timed. The tokens visited {leaves} of the {2**_TREE.depth} leaves,
   so these are the speeds of many different paths. The dense layer is the best there is here: two
   matrix products of {yardstick_blas}.
""")
    print(grid(rows, left=2, indent=7))


def _encoder() -> None:
    config = cmm.bert.ULTRAFASTBERT_1X11_LONG
    began = time.perf_counter()
    model = cmm.bert.random(config, seed=0)
    made = time.perf_counter() - began
    vocabulary = config["embedding"]["vocab_size"]
    # Some ids often, most seldom, as words are: the n-th most frequent one with a probability like 1 / n.
    ranks = np.exp(np.random.default_rng(0).uniform(0, np.log(vocabulary), (_SEQUENCES, _LENGTH)))
    ids = ranks.astype(np.int64) - 1
    took, hidden = _time(lambda: model(ids))

    trace = model.trace(ids)
    ffns = [layer.ffn for layer in model.weights.layers if isinstance(layer.ffn, FFF)]
    inputs = list(zip(ffns, trace.ffn_in, strict=True))
    fff, _ = _time(lambda: [cmm.fff_forward(x, ffn.w_in, ffn.w_out, ffn.bias) for ffn, x in inputs])
    ffn, x = inputs[0]
    one_dense, _ = _time(lambda: cmm.ff_forward(x, ffn.w_in[0], ffn.w_out[0], ffn.bias[0]))
    assert trace.path_nodes is not None  # as it is for dense layers
    leaves = [np.unique(nodes[..., -1]).size for nodes in trace.path_nodes]
    threads = threads_text(default_threads()[0])
    print(f"""\
2. An encoder of the shape of UltraFastBERT-1x11-long: numpy and cmm, {threads}

       model = cmm.bert.random(cmm.bert.ULTRAFASTBERT_1X11_LONG, seed=0)     # {made:.1f} s
       hidden = model(ids)                                                   # {took:.2f} s
       ids {ids.shape}, numbers of words from 0 to {vocabulary - 1} -> hidden {hidden.shape}

   {len(ffns)} layers, {model.parameters / 1e6:.0f} million weights, {took / ids.size * 1e6:.0f} us per token.
   Of the time, the {len(ffns)} FFF layers take {1e3 * fff:.0f} ms; dense layers with as many neurons would take
   {1e3 * one_dense * len(ffns):.0f} ms. What is left is mostly attention.
   The {ids.size} tokens visited {min(leaves)} to {max(leaves)} of the {2**_TREE.depth} leaves in each layer.
   The weights are random, so the output means nothing; cmm.bert.load(folder) reads trained ones.""")


def _time(work: Callable[[], _T]) -> tuple[float, _T]:
    """Run `work` three times and return the shortest time, in seconds, and the result."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        result = work()
        times.append(time.perf_counter() - began)
    return min(times), result
