"""The measurements of `cmm bench` for pytest-benchmark: run `pytest bench`.

Every level of the layer 1x11 and of the dense layer with as many neurons, and layers of many trees at the best level,
on the data of `cmm bench`, checked before they are timed. One round is one call, each on other tokens.
`--benchmark-json=FILE` also gets, as extra_info, what `cmm bench --json` would say of a line: us per token, GFLOP/s,
leaves visited, the machine's floor.

pytest-benchmark finishes one case before it starts the next, so compare cases across a quiet machine only;
`cmm bench` takes them in turn. CMM_BENCH_THREADS sets the threads of a call (default 1).
"""

import itertools
import os
from dataclasses import asdict
from functools import cache

import cmm
import pytest
from cmm.bench.harness import Case, Data, Layer, dense, every_blas, products, using
from cmm.bench.machine import this_machine
from cmm.bench.roofline import measure_roofline
from cmm.bench.table import line

TREES, WIDTH, TOKENS = [Layer(1, 11), Layer(32, 6), Layer(128, 4), Layer(3072, 0)], 768, 16384
THREADS = int(os.environ.get("CMM_BENCH_THREADS", "1"))
BLAS = every_blas()
# The most tokens of a dense layer, and of a layer of many trees, for a call of it to take about 0.1 s.
DENSE_TOKENS = {"naive": 16, "blas1": 128, "blas2": 128, "blas3": 1024}
MANY_TREES_TOKENS = 128


def cases():
    levels = [level.name for level in cmm.levels() if level.available and not level.name.startswith("cuda")]
    layers = [(level, layer) for level in levels for layer in (dense(TREES[0].neurons), TREES[0])]
    layers += [(levels[-1], layer) for layer in TREES[1:]]
    for level, layer in layers:
        most = DENSE_TOKENS.get(level, 0) if layer.dense else TOKENS if layer.trees == 1 else MANY_TREES_TOKENS
        for blas in BLAS.items() if level.startswith("blas") else [None]:
            for batch in sorted({min(batch, most) for batch in (1, 128, 2048, TOKENS)} - {0}):
                words = [layer.name, level, blas[0] if blas else "", f"{batch} tokens"]
                yield pytest.param(layer, level, blas, batch, id=" ".join(filter(None, words)))


@cache
def data():
    return Data(TREES, TOKENS, WIDTH)


@cache
def floors():
    return measure_roofline(this_machine(), THREADS, data().dtype, products(BLAS.values(), THREADS, data().dtype))


@pytest.mark.benchmark(min_rounds=5, max_time=0.5, warmup=True, warmup_iterations=2)
@pytest.mark.parametrize(("layer", "level", "blas", "batch"), list(cases()))
def test_layer(benchmark, layer, level, blas, batch):
    case = Case(data(), layer, level, blas, batch, THREADS, calls=max(1, 4096 // batch))
    case.check()
    forward, tokens = case.forward, itertools.cycle(case.tokens())
    benchmark.group = f"{batch} tokens"
    with using(blas[1] if blas else None):
        benchmark(lambda: forward(next(tokens)))
    if benchmark.stats:  # none with --benchmark-disable
        case.seconds = [seconds / batch for seconds in benchmark.stats.stats.data]
        benchmark.extra_info.update(asdict(line(case, floors(), batch)))
