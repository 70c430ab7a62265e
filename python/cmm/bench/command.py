"""`cmm bench`: the paper's Table 2 for this machine, or microseconds per token against the batch."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TypeVar

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
    Packing,
    dense,
    every_blas,
    measure,
    parse_layer,
    parse_packing,
    prepare,
    products,
)
from cmm.bench.machine import Machine, cores, this_machine
from cmm.bench.roofline import Roofline, measure_roofline
from cmm.bench.table import Report, curve_text, line, rows_text, table_text
from cmm.blas import Blas
from cmm.typing import LevelName

Parsed = TypeVar("Parsed")
_TOKENS, _WIDTH = 16384, 768
_LAYERS = [Layer(1, 11)]
_FULL_PASSES = 250
# Seconds that one pass of a dense layer (True) or of trees (False) may take, by --full. What would take longer runs
# on fewer tokens.
_LIMITS = {False: {True: 0.25, False: 1.5}, True: {True: 0.5, False: 60.0}}
_BUDGET = 45.0  # seconds of timing that the default number of passes is chosen for,
_PASSES = (5, 15)  # within these


@dataclass(frozen=True)
class _Table:
    """What a table other than the paper's measures where the options leave it open, at level native."""

    layers: list[Layer]
    packings: list[Packing]
    widths: list[int]
    batches: list[int]


_TABLES = {
    "narrow": _Table(
        _LAYERS,
        [
            parse_packing(name)
            for name in (
                "float32",
                "bfloat16",
                "float16",
                "int8",
                "bfloat16+exact",
                "float16+exact",
                "int8+exact",
                "int8+6",
            )
        ],
        [_WIDTH],
        [1, 128, 2048, _TOKENS],
    ),
    "forests": _Table(
        [parse_layer(name) for name in ("16x5", "32x4", "64x3", "128x4", "4x9")],
        [parse_packing("float32")],
        [192, _WIDTH],
        [_TOKENS],
    ),
}
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
  cmm bench --table narrow               rows of bfloat16, float16 and int8, with and without the exact path
  cmm bench --table forests --weights float32,int8+exact
                                         layers of many trees, widths 192 and 768
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
    add("--trees", "--depth", type=_layers, metavar="KxD,...", help="trees x depth (default 1x11)")
    add(
        "--table",
        choices=("paper", *_TABLES),
        default="paper",
        help="paper (default); narrow: rows in fewer bits; forests: layers of many trees; these at level native",
    )
    add(
        "--weights",
        type=_packings,
        metavar="TYPE,...",
        help="with --table narrow or forests: types of the rows, such as int8, int8/bfloat16 (of w_in and of w_out), "
        "int8+exact or int8+6 (with the exact path, strict or at so many standard deviations)",
    )
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
    if options.table != "paper":
        for name in ("full", "curve", "plot", "levels"):
            if getattr(options, name):
                raise cmm.ArgumentError(f"--{name} is for the paper's table; leave it or --table out")
        if options.dtype != "float32":
            raise cmm.ArgumentError(f"--table {options.table} is of float32, not of --dtype {options.dtype}")
    elif options.weights is not None:
        raise cmm.ArgumentError(f"--weights goes with --table {' or '.join(_TABLES)}")
    plot = _plot_module(options.plot)
    files = [str(file) for file in (options.json, options.plot) if file]
    for file in files:
        _json.check_target(file)

    report = bench(options) if options.table == "paper" else bench_table(options)
    if options.json:
        _json.write(options.json, report.as_json(), indent=1)
    if plot:
        (plot.curve if options.curve else plot.table)(report, options.plot)
    show = curve_text if options.curve else table_text if options.table == "paper" else rows_text
    _json.say(options.json, show(report))
    for file in files:
        if file != _json.STANDARD_OUTPUT:
            _json.say(options.json, f"\nwrote {file}")


def _run_model(options: argparse.Namespace) -> None:
    from cmm.bench.model import bench_model  # it needs the encoder, which the rest does not

    defaults = {"full": False, "curve": False, "plot": None, "tokens": None, "width": None, "levels": None}
    for name, default in {**defaults, "table": "paper", "weights": None}.items():
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
    trees = options.trees or _LAYERS
    trees = trees[:1] if options.curve else trees
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
    machine, floors = _measure(asked, blases, options, dtype)
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


def bench_table(options: argparse.Namespace) -> Report:
    """Measure a table that is not the paper's, at level native, against the fastest dense layers."""
    table, dtype = _TABLES[options.table], np.dtype("float32")
    layers, packings = options.trees or table.layers, options.weights or table.packings
    batches = [options.tokens] if options.tokens else table.batches
    denses = list(dict.fromkeys(dense(layer.neurons) for layer in layers))
    blases = every_blas()
    asked: dict[Case, int] = {}
    for width in [options.width] if options.width else table.widths:
        data = Data([*denses, *layers], max(batches), width, dtype, options.routing, options.seed, len(packings))
        for batch in batches:
            for layer in denses:
                asked |= {Case(data, layer, "blas3", blas, batch, options.threads): batch for blas in blases.items()}
            for layer in layers:
                for packing in packings:
                    asked[Case(data, layer, "native", None, batch, options.threads, packing)] = batch
    machine, floors = _measure(asked, blases, options, dtype)
    return Report(
        machine=machine,
        floors=floors,
        lines=[line(case, floors, batch) for case, batch in asked.items()],
        base=layers[0].neurons,
        routing=options.routing,
        absent={},
        blas={short: blas.name for short, blas in blases.items()},
        table=options.table,
    )


def _measure(
    cases: Collection[Case], blases: dict[str, Blas], options: argparse.Namespace, dtype: np.dtype
) -> tuple[Machine, Roofline]:
    """Check and time every case, and measure what the machine does at best, before and after."""
    machine = this_machine()
    peak = products(blases.values(), options.threads, dtype)
    floors = measure_roofline(machine, options.threads, dtype, peak)
    with _progress("checking", len(cases)) as step:
        prepare(cases, _LIMITS[options.full], step)
    passes = _FULL_PASSES if options.full else options.passes or _affordable(cases)
    with _progress("timing", len(cases) * passes) as step:
        measure(cases, passes, step)
    return machine, floors.or_better(measure_roofline(machine, options.threads, dtype, peak))


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
    return _parsed(parse_layer, text)


def _packings(text: str) -> list[Packing]:
    return _parsed(parse_packing, text)


def _parsed(parse: Callable[[str], Parsed], text: str) -> list[Parsed]:
    try:
        return [parse(name) for name in _names(text)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
