"""`cmm bench`: the paper's Table 2 for this machine, or microseconds per token against the batch."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np

import cmm
from cmm import _json
from cmm._quiet import quiet_encodings
from cmm.bench.gpu import COLUMNS, measure_gpu
from cmm.bench.harness import (
    ROUTINGS,
    Case,
    Data,
    Layer,
    dense,
    every_blas,
    measure,
    parse_layer,
    prepare,
    products,
)
from cmm.bench.machine import cores, this_machine
from cmm.bench.roofline import measure_roofline
from cmm.bench.table import Report, curve_text, line, table_text
from cmm.blas import Blas
from cmm.typing import LevelName

_TOKENS, _WIDTH = 16384, 768
_FULL_PASSES = 250
# Seconds that one pass of a dense layer (True) or of trees (False) may take, by --full. What would take longer runs
# on fewer tokens.
_LIMITS = {False: {True: 0.25, False: 1.5}, True: {True: 0.5, False: 60.0}}
_BUDGET = 45.0  # seconds of timing that the default number of passes is chosen for,
_PASSES = (5, 15)  # within these
_WHAT = """\
Measure fast feedforward layers against dense layers at every level, as in the paper's Table 2, on this machine.
Tokens and weights are random, so that paths spread over the leaves; every result is checked before it is timed.
"""
_EXAMPLE = """\
examples:
  cmm bench                              the paper's Table 2 for this machine, in a minute or two
  cmm bench --full --json table.json     the paper's protocol: 16384 tokens, width 768, 250 passes
  cmm bench --routing same               all tokens on one path, as in the published benchmark
  cmm bench --trees 1x11,128x4 --tokens 2048 --threads 2
  cmm bench --trees 1x15 --width 12288 --tokens 1 --levels blas3,native
                                         a layer of GPT-3's size, 13 GB of memory
  cmm bench --model                      the small trained model against its dense twin
  cmm bench --curve --plot curve.png     microseconds per token against the batch, for every level
"""


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `cmm bench`."""
    parser = commands.add_parser(
        "bench",
        help="measure the paper's Table 2 on this machine",
        description=_WHAT,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--tokens", type=_count, metavar="N", help=f"tokens in a call (default {_TOKENS})")
    add("--width", type=_count, metavar="N", help=f"d_in and d_out (default {_WIDTH})")
    add("--trees", "--depth", type=_layers, default="1x11", metavar="KxD,...", help="trees x depth (default 1x11)")
    add("--levels", type=_names, metavar="NAME,...", help="CPU levels to measure (default all, and the GPU's)")
    add("--threads", type=_threads, default=1, metavar="N", help="threads of each call (default 1)")
    add("--dtype", choices=("float32", "float64"), default="float32", help="(default float32)")
    add("--routing", choices=ROUTINGS, default="random", help="same: all tokens take one path (default random)")
    add("--passes", type=_count, metavar="N", help="how often each is timed (default: as often as time allows)")
    add("--seed", type=_seed, default=0, metavar="N", help="seed of the random tokens and weights (default 0)")
    add("--full", action="store_true", help=f"the paper's: {_TOKENS} tokens, width {_WIDTH}, {_FULL_PASSES} passes")
    add("--curve", action="store_true", help="time per token against the batch, 1 to --tokens, of the first KxD")
    add(
        "--model",
        nargs="?",
        const="fff",
        metavar="MODEL",
        help="a whole encoder against its dense twin, on numpy and in PyTorch; a folder, or fff (the default)",
    )
    add("--json", metavar="FILE", help=_json.HELP.format("every figure"))
    add("--plot", type=Path, metavar="FILE", help="draw the table, or the curve, to FILE (.png, .svg, .pdf)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Measure as the options say, and print."""
    if options.model is not None:
        _run_model(options)
        return
    if options.full:
        for name in ("tokens", "width", "passes"):
            if getattr(options, name) is not None:
                raise cmm.ArgumentError(f"--full is the paper's protocol and settles --{name}; leave one of them out")
    plot = _plot_module(options.plot)
    files = [str(file) for file in (options.json, options.plot) if file]
    for file in files:
        _json.check_target(file)

    report = bench(options)
    if options.json:
        _json.write(options.json, report.as_json(), indent=1)
    if plot:
        (plot.curve if options.curve else plot.table)(report, options.plot)
    _json.say(options.json, curve_text(report) if options.curve else table_text(report))
    for file in files:
        if file != _json.STANDARD_OUTPUT:
            _json.say(options.json, f"\nwrote {file}")


def _run_model(options: argparse.Namespace) -> None:
    from cmm.bench.model import bench_model  # it needs the encoder, which the rest does not

    defaults = {"full": False, "curve": False, "plot": None, "tokens": None, "width": None, "levels": None}
    for name, default in defaults.items():
        if getattr(options, name) != default:
            raise cmm.ArgumentError(f"--model goes with --threads, --passes and --json, not with --{name}")
    _json.check_target(options.json)
    _json.say(options.json, bench_model(options.model, options.threads, options.passes, options.json))
    if options.json not in (None, _json.STANDARD_OUTPUT):
        print(f"\nwrote {options.json}")


def bench(options: argparse.Namespace) -> Report:
    """Measure as the options say."""
    tokens, width, dtype = options.tokens or _TOKENS, options.width or _WIDTH, np.dtype(options.dtype)
    blases = every_blas()
    levels, absent = _usable(options.levels)
    trees = options.trees[:1] if options.curve else options.trees
    denses = dict.fromkeys(dense(layer.neurons) for layer in trees)
    batches = [tokens]
    if options.curve:  # 1, 4, 16, ...
        batches = [4**power for power in range(13) if 4**power < tokens] + [tokens]
    else:
        denses[dense(3072)] = None
    layers = [*denses, *trees]
    data = Data(layers, tokens, width, dtype, options.routing, options.seed)

    asked = {
        Case(data, layer, level, blas, batch, options.threads): batch
        for batch in batches
        for layer in layers
        for level in (_dense_levels(levels, options.curve) if layer.dense else levels)
        for blas in _choices(blases, level, layer)
    }
    machine = this_machine()
    peak = products(blases.values(), options.threads, dtype)
    floors = measure_roofline(machine, options.threads, dtype, peak)
    with _progress("checking", len(asked)) as step:
        prepare(asked, _LIMITS[options.full], step)
    passes = _FULL_PASSES if options.full else options.passes or _affordable(asked)
    with _progress("timing", len(asked) * passes) as step:
        measure(asked, passes, step)
    floors = floors.or_better(measure_roofline(machine, options.threads, dtype, peak))
    gpu = None
    if not options.curve and not options.levels:
        with _progress("on the GPU", len(layers) * len(COLUMNS)) as step:
            gpu = measure_gpu(data, layers, trees[0].neurons, step)
    return Report(
        machine=machine,
        floors=floors,
        lines=[line(case, floors, batch) for case, batch in asked.items()],
        base=trees[0].neurons,
        routing=options.routing,
        absent=absent,
        blas={short: blas.name for short, blas in blases.items()},
        gpu=gpu,
    )


def _plot_module(file: Path | None) -> ModuleType | None:
    """Return the module that draws, found before anything is measured."""
    if file is None:
        return None
    try:
        with quiet_encodings():  # of matplotlib's list of fonts
            from cmm.bench import plot
    except ImportError as error:
        raise cmm.UnusableError(f"--plot needs matplotlib: pip install matplotlib ({error})") from None
    if file.suffix.lower() not in plot.FORMATS:
        raise cmm.ArgumentError(f"--plot {file}: the name should end in one of {' '.join(plot.FORMATS)}")
    return plot


def _usable(wanted: list[str] | None) -> tuple[list[LevelName], dict[str, str]]:
    """Return the CPU levels to measure, and why others cannot be."""
    known = {level.name: level for level in cmm.levels() if not level.name.startswith("cuda")}
    for name in wanted or []:
        if name not in known:
            raise cmm.LevelError(f"--levels names {name!r}; it should be some of {', '.join(known)}")
        if not known[name].available:
            raise cmm.UnusableError(f"--levels names {name!r}, which cannot be used here: {known[name].reason}")
    chosen = [level for level in known.values() if not wanted or level.name in wanted]
    return [level.name for level in chosen if level.available], {
        lv.name: lv.reason for lv in chosen if not lv.available
    }


def _dense_levels(levels: list[LevelName], curve: bool) -> list[LevelName]:
    """Return the levels to measure dense layers at: always blas3, the baseline; never native, which has none."""
    usable, _ = _usable(None)
    wanted = {"blas2", "blas3"} if curve else {*levels, "blas3"}
    return [level for level in usable if level in wanted and level != "native"]


def _choices(blases: dict[str, Blas], level: str, layer: Layer) -> Sequence[tuple[str, Blas] | None]:
    """Return every BLAS for a dense layer, the baseline; for trees too, unless CMM_BLAS chooses one."""
    if not level.startswith("blas"):
        return [None]
    chosen = bool(os.environ.get("CMM_BLAS")) and not layer.dense
    return [*blases.items()][: 1 if chosen else None]


def _affordable(cases: Iterable[Case]) -> int:
    """Return as many passes as fit in the budget."""
    one_round = sum(case.time_pass() * case.batch * case.calls for case in cases)
    fewest, most = _PASSES
    return max(fewest, min(int(_BUDGET / one_round), most))


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[], object]]:
    """Give a progress bar's step; where tqdm is not installed or stderr is no terminal, it does nothing."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda: None
        return
    with tqdm(total=total, desc=what, leave=False, disable=None) as bar:
        yield bar.update


def _count(text: str, least: int = 1, most: int = 1 << 24) -> int:
    if not text.isdecimal() or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
    return int(text)


def _threads(text: str) -> int:
    return _count(text, most=cores())  # more would measure how they get in each other's way


def _seed(text: str) -> int:
    return _count(text, least=0)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _layers(text: str) -> list[Layer]:
    try:
        return [parse_layer(name) for name in _names(text)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
