"""What was measured, as lines of figures and as the paper's Table 2."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

import cmm
from cmm.bench import gpu as on_gpu
from cmm.bench.harness import Case
from cmm.bench.machine import Machine
from cmm.bench.roofline import Roofline

SCHEMA = 1  # of what --json writes: docs/reference/bench-json.md
# The paper's Table 2, CPU columns: speedup over BERT-base-4095 at the same level, and over the fastest dense layer.
PAPER: dict[tuple[str, str], float | None] = {
    ("dense 4095", "blas1"): 1.0,
    ("dense 4095", "blas2"): 1.0,
    ("dense 4095", "blas3"): 1.0,
    ("dense 3072", "blas1"): 1.55,
    ("dense 3072", "blas2"): 1.74,
    ("dense 3072", "blas3"): 1.39,
    ("1x11", "blas1"): 130.7,
    ("1x11", "blas2"): 255.1,
    ("1x11", "blas3"): None,  # "not supported"
}
PAPER_FASTEST: dict[tuple[str, str], float | None] = {
    ("1x11", "blas1"): 48.0,
    ("1x11", "blas2"): 78.0,
    ("1x11", "blas3"): None,
}
PAPER_PROTOCOL = "i7-6700HQ, MKL 2023.2, 16384 tokens, width 768, float32, 1 thread"


@dataclass(frozen=True)
class Line:
    """One case's figures. Times are microseconds per token: median, quartiles and extremes over the passes."""

    layer: str
    dense: bool
    neurons: int
    used: int
    level: str
    blas: str
    tokens: int  # asked for
    batch: int  # timed; fewer than asked for where a pass would take too long
    calls: int  # in a pass
    pass_tokens: int  # distinct tokens in a pass
    passes: int
    threads: int
    d_in: int
    d_out: int
    dtype: str
    weights: str  # the type of the rows, or those of w_in's and w_out's
    exact_path: bool | float
    us: float
    us_q1: float
    us_q3: float
    us_min: float
    us_max: float
    gflops: float
    weights_gbs: float  # as if each token read its rows itself
    leaves: int  # distinct leaves visited in a pass, 0 of a dense layer
    aside: int
    recomputed: float | None  # share of the inner nodes' logits that an exact path computed again
    off_path: int | None  # tokens of a pass that do not take the path of the rows as they were; of a packing
    flops: float  # of a token
    used_bytes: float  # of the rows that a token uses
    arithmetic_us: float
    copy_us: float
    rows_us: float
    floor_us: float  # the largest of these three
    floor: str  # and which it is: "arithmetic", "copy", "rows"

    @property
    def scaled(self) -> bool:
        """True where fewer tokens were timed than asked for."""
        return self.batch < self.tokens

    @property
    def limit(self) -> float:
        """What arithmetic alone would gain over a dense layer: neurons in all / neurons used."""
        return self.neurons / self.used


def line(case: Case, floors: Roofline, tokens: int) -> Line:
    """Return the figures of a case that has been timed; `tokens` is the batch that was asked for."""
    layer, data, batch = case.layer, case.data, case.batch
    us = 1e6 * np.array(case.seconds)
    low, median, high = np.percentile(us, (25, 50, 75)).tolist()
    work, inner = case.work(), layer.trees * layer.depth
    share = None if case.recomputed is None else case.recomputed / inner if inner else 0.0
    least = floors.floors(work)
    floor = max(least, key=least.__getitem__)
    return Line(
        layer=layer.name,
        dense=layer.dense,
        neurons=layer.neurons,
        used=layer.used,
        level=case.level,
        blas=case.blas_name,
        tokens=tokens,
        batch=batch,
        calls=case.calls,
        pass_tokens=case.pass_tokens,
        passes=len(us),
        threads=case.threads,
        d_in=data.width,
        d_out=data.width,
        dtype=data.dtype.name,
        weights=case.packing.weights if case.packing else data.dtype.name,
        exact_path=case.packing.exact_path if case.packing else False,
        us=median,
        us_q1=low,
        us_q3=high,
        us_min=float(us.min()),
        us_max=float(us.max()),
        gflops=work.flops / median / 1e3,
        weights_gbs=work.used_bytes / median / 1e3,
        leaves=case.leaves,
        aside=case.aside,
        recomputed=share,
        off_path=case.off_path,
        flops=work.flops,
        used_bytes=work.used_bytes,
        **{f"{what}_us": us for what, us in least.items()},
        floor_us=least[floor],
        floor=floor,
    )


@dataclass(frozen=True)
class Report:
    """Everything that a run of the benchmark found.

    Attributes
    ----------
    base : int
        Neurons of the dense layer that other dense layers are compared with.
    routing : str
        How the tokens spread over the leaves.
    absent : dict of str to str
        Levels that could not run, and why.
    blas : dict of str to str
        Each BLAS by its short name: what it says that it is.
    gpu : GpuReport or None
        What was measured on a GPU; None where that was not asked for.
    table : str
        Which of the command's tables it is.
    """

    machine: Machine
    floors: Roofline
    lines: list[Line]
    base: int
    routing: str
    absent: dict[str, str]
    blas: dict[str, str]
    gpu: on_gpu.GpuReport | None = None
    table: str = "paper"

    @property
    def levels(self) -> list[str]:
        """The levels of the trees, in the library's order."""
        return list(dict.fromkeys(found.level for found in self.lines if not found.dense))

    @property
    def layers(self) -> list[str]:
        """Names, dense layers first."""
        return list(dict.fromkeys(found.layer for found in self.lines))

    @property
    def tokens(self) -> list[int]:
        """The batches asked for, ascending."""
        return sorted({found.tokens for found in self.lines})

    def best(self, layer: str, level: str, tokens: int) -> Line | None:
        """Return the line of a layer at a level, with the BLAS that was faster."""
        return _fastest(f for f in self.lines if (f.layer, f.level, f.tokens) == (layer, level, tokens))

    def fastest_dense(self, neurons: int, tokens: int, width: int | None = None) -> Line | None:
        """Return the fastest dense layer with so many neurons, at any level, with any BLAS; of a width, or of all."""
        return _fastest(
            f
            for f in self.lines
            if f.dense and (f.neurons, f.tokens) == (neurons, tokens) and width in (None, f.d_in)
        )

    def floor(self, layer: str, tokens: int) -> float:
        """Return the microseconds per token that this machine allows a layer."""
        return max(f.floor_us for f in self.lines if (f.layer, f.tokens) == (layer, tokens))

    @property
    def routing_text(self) -> str:
        """How the tokens spread over the leaves, in words."""
        return {"random": "paths spread over the leaves", "same": "ALL TOKENS ON ONE PATH"}[self.routing]

    def over_level(self, found: Line) -> float:
        """Return how many times faster than the same level's dense layer, or the fastest where it has none."""
        if self.table != "paper":  # no level but the fastest is measured
            return self.over_fastest(found)
        neurons = self.base if found.dense else found.neurons
        same = self.best(f"dense {neurons}", found.level, found.tokens)
        return same.us / found.us if same else self.over_fastest(found)

    def over_fastest(self, found: Line) -> float:
        """Return how many times faster than the fastest dense layer of any kind; NaN where none was measured."""
        own = not found.dense or self.table != "paper"  # the paper's dense layers are compared with its largest
        fastest = self.fastest_dense(found.neurons if own else self.base, found.tokens, found.d_in)
        return fastest.us / found.us if fastest else float("nan")

    def as_json(self) -> dict[str, object]:
        """Return plain types, for json.dump."""
        return {
            "schema": SCHEMA,
            "version": cmm.__version__,
            "table": self.table,
            "machine": asdict(self.machine),
            "blas": self.blas,
            "absent": self.absent,
            "routing": self.routing,
            "floors": asdict(self.floors),
            "lines": [
                asdict(found)
                | {
                    "scaled": found.scaled,
                    "over_level": self.over_level(found),
                    "over_fastest": self.over_fastest(found),
                    "limit": found.limit,
                }
                for found in self.lines
            ],
            "paper": [
                {
                    "layer": layer,
                    "level": level,
                    "over_level": over,
                    "over_fastest": PAPER_FASTEST.get((layer, level)),
                }
                for (layer, level), over in PAPER.items()
            ],
            "gpu": None if self.gpu is None else asdict(self.gpu),
        }


def table_text(report: Report) -> str:
    """Return the paper's Table 2 for this machine, and every line behind it."""
    (tokens,) = report.tokens
    return "\n\n".join(
        [
            _head(report, f"{tokens} tokens"),
            _speedups(report, tokens),
            *([_gpu(report.gpu, report.layers, tokens)] if report.gpu else []),
            _lines(report),
            _floors(report),
            *_notes(report),
        ]
    )


def curve_text(report: Report) -> str:
    """Return microseconds per token, one row for each batch, one column for each level."""
    layer = report.layers[-1]
    rows = [["tokens", *report.levels, "dense", "by", "floor"]]
    for tokens in report.tokens:
        found = [report.best(layer, level, tokens) for level in report.levels]
        fastest = report.fastest_dense(report.base, tokens)
        by, floor = where(fastest) if fastest else "", _digits(report.floor(layer, tokens))
        rows.append([str(tokens), *map(_us, found), _us(fastest), by, floor])
    title = f"Microseconds per token of {layer}, and of the fastest dense layer with as many neurons"
    return "\n\n".join(
        [
            _head(report, f"1 .. {report.tokens[-1]} tokens"),
            title + "\n" + grid(rows),
            _floors(report),
            *_notes(report),
        ]
    )


def rows_text(report: Report) -> str:
    """Return one row for each case: of a table that is not the paper's."""
    columns: dict[str, Callable[[Line], str]] = {
        "layer": lambda f: f.layer,
        "rows": lambda f: f.weights,
        "exact path": _exact,
        "width": lambda f: str(f.d_in),
        "tokens": lambda f: str(f.tokens),
        "us/token": _us,
        "quartiles": lambda f: f"{_digits(f.us_q1)}..{_digits(f.us_q3)}",
        "flops": lambda f: _digits(f.arithmetic_us),
        "copy": lambda f: _digits(f.copy_us),
        "read": lambda f: _digits(f.rows_us),
        "floor": lambda f: f"{f.floor_us / f.us:.0%}",
        "x dense": lambda f: f"{report.over_fastest(f):.2f}",
        "of limit": lambda f: "-" if f.dense else f"{report.over_fastest(f) / f.limit:.2f}",
        "again": lambda f: "-" if f.recomputed is None else f"{f.recomputed:.1%}",
        "off path": lambda f: "-" if f.off_path is None else f"{f.off_path}/{f.pass_tokens}",
    }
    order = sorted(report.lines, key=lambda f: (f.d_in, f.tokens))  # which keeps the order of equal ones
    rows = [[show(f) for show in columns.values()] for f in order]
    title = f"""\
Level native, {report.lines[0].passes} passes, taken in turn; ~: scaled from fewer tokens. flops, copy, read: the
floors in us per token, of its arithmetic, of copying x to y and of reading rows; floor: the largest of them as a part
of the time. x dense: over the fastest dense layer with as many neurons; of limit: as a part of neurons in all /
neurons used. again: logits of inner nodes that the exact path computed again. off path: tokens of a pass that take
another path than with float32 rows.
"""
    head = _head(report, f"{', '.join(map(str, report.tokens))} tokens")
    return "\n\n".join([head, title + grid([list(columns), *rows], left=3), _rates(report), *_notes(report)])


def _head(report: Report, tokens: str) -> str:
    first, machine = report.lines[0], report.machine
    threads = threads_text(first.threads)
    widths = ", ".join(dict.fromkeys(str(found.d_in) for found in report.lines))
    rows = [
        ["machine", f"{machine.cpu}, {machine.cores} cores, caches {machine.cache_text()}"],
        ["BLAS", ", ".join(report.blas) or "none"],
        ["case", f"width {widths}, {first.dtype}, {tokens} a call, {threads}, {report.routing_text}"],
    ]
    return grid(rows, left=2)


def _speedups(report: Report, tokens: int) -> str:
    """Return Table 2 proper, the same against the fastest dense layer, and the times behind both."""
    trees = [layer for layer in report.layers if not layer.startswith("dense")]
    fastest = [report.fastest_dense(n, tokens) for n in dict.fromkeys(f.neurons for f in report.lines if not f.dense)]
    yardsticks = [f"{f.layer}: {where(f)}, {_us(f)} us" for f in fastest if f]

    def block(title: str, layers: list[str], show: Callable[[Line], str]) -> str:
        rows = [["layer", *report.levels]]
        for layer in layers:
            found = [report.best(layer, level, tokens) for level in report.levels]
            rows.append([layer, *(show(f) if f else "-" for f in found)])
        return f"{title}\n{grid(rows)}"

    return "\n\n".join(
        [
            block(
                "Speedup over the dense layer with as many neurons at the same level; native: over the fastest.\n"
                f"In brackets the paper's Table 2 ({PAPER_PROTOCOL}).\n"
                f"Neurons in all / neurons used: {_limits(report)}.",
                report.layers,
                lambda f: _times(report.over_level(f), PAPER.get((f.layer, f.level), "")),
            ),
            block(
                "Speedup over the fastest dense layer of any kind:\n" + "\n".join(yardsticks),
                trees,
                lambda f: _times(report.over_fastest(f), PAPER_FASTEST.get((f.layer, f.level), "")),
            ),
            block("Microseconds per token, median (~: scaled from fewer tokens).", report.layers, _us),
        ]
    )


def _gpu(report: on_gpu.GpuReport, layers: list[str], tokens: int) -> str:
    """Return the GPU columns of Table 2, or one line that says why there are none."""
    if not report.lines:
        return "\n".join(f"No GPU columns: {why}." for why in report.absent.values())
    levels = [level for level in on_gpu.COLUMNS if level not in report.absent]
    heads = [f"{level} ({on_gpu.COLUMNS[level]})" for level in levels]

    def block(title: str, show: Callable[[on_gpu.GpuLine], str]) -> str:
        rows = [["layer", *heads]]
        for layer in layers:
            found = [report.find(layer, level) for level in levels]
            rows.append([layer, *(show(f) if f else "-" for f in found)])
        return f"{title}\n{grid(rows)}"

    return "\n\n".join(
        [
            block(
                f"On the GPU, {report.name}: speedup over the dense layer with as many neurons at the same level.\n"
                f"In brackets the paper's Table 2 ({on_gpu.PAPER_PROTOCOL}).",
                lambda f: _times(report.over_level(f), on_gpu.PAPER.get((f.layer, f.level), "")),
            ),
            block(f"Microseconds of a call with {tokens} tokens, device time, median.", lambda f: _digits(f.us)),
            *(f"Level {level} was not measured: {why}." for level, why in report.absent.items()),
        ]
    )


def _limits(report: Report) -> str:
    trees = {f.layer: f.neurons / f.used for f in report.lines if not f.dense}
    return ", ".join(f"{layer} {limit:.1f}x" for layer, limit in trees.items())


def _lines(report: Report) -> str:
    """Return one line for each case."""
    columns: dict[str, Callable[[Line], str]] = {
        "layer": lambda f: f.layer,
        "level": lambda f: f.level,
        "BLAS": lambda f: f.blas or "-",
        "batch": lambda f: str(f.batch),
        "d_in": lambda f: str(f.d_in),
        "d_out": lambda f: str(f.d_out),
        "us/token": lambda f: _digits(f.us),
        "quartiles": lambda f: f"{_digits(f.us_q1)}..{_digits(f.us_q3)}",
        "GFLOP/s": lambda f: f"{f.gflops:.1f}",
        "GB/s": lambda f: f"{f.weights_gbs:.1f}",
        "x dense": lambda f: f"{report.over_fastest(f):.2f}",
        "floor": lambda f: f"{f.floor_us / f.us:.0%} {f.floor}",
        "leaves": lambda f: "-" if f.dense else str(f.leaves),
    }
    title = f"""\
Every measurement, {report.lines[0].passes} passes, taken in turn. batch: tokens in a call. GB/s: of weights, as if
each token read its rows itself. x dense: over the fastest dense layer. floor: the part of the time that this
machine needs in any case, and what for. leaves: how many were visited in a pass.
"""
    return title + grid([list(columns), *([show(f) for show in columns.values()] for f in report.lines)], left=3)


def _floors(report: Report) -> str:
    """Return the machine's floors, and what they mean for each layer."""
    floors = report.floors
    needs = [["layer", "arithmetic", "copy x to y", *(f"rows from {level}" for level in floors.read)]]
    for layer in report.layers:
        found = next(f for f in report.lines if f.layer == layer)
        token_bytes = found.d_in * np.dtype(found.dtype).itemsize
        copy = floors.copy_us(token_bytes, 2 * token_bytes * report.tokens[-1])
        rows = [floors.read_us(found.used_bytes, level) for level in floors.read]
        needs.append([layer, *map(_digits, [floors.arithmetic_us(found.flops), copy, *rows])])
    return f"""\
{_rates(report)}
What a token would take at those rates, in us: its arithmetic, copying x to y, reading its rows (less often where
tokens share them):
{grid(needs)}"""


def _rates(report: Report) -> str:
    """Return what the machine does at best."""
    floors = report.floors
    rates = [
        ["", *floors.read],
        ["read", *(f"{rate:.0f}" for rate in floors.read.values())],
        ["copy", *(f"{rate:.0f}" for rate in floors.copy.values())],
    ]
    return f"""\
The floors of this machine, {threads_text(floors.threads)}: {floors.gflops:.0f} GFLOP/s in a matrix product; GB/s that
dot products read and that copies move (read and written), from and to each cache level:
{grid(rates)}"""


def _notes(report: Report) -> list[str]:
    notes = [f"Level {level} was not measured: {why}." for level, why in report.absent.items()]
    notes.append(
        "Before it was timed, each result was checked against float64 along the path, by a rigorous bound;\n"
        f"{sum(f.aside for f in report.lines)} sampled tokens had a decision within rounding of 0 and were set aside."
    )
    if report.routing == "same":
        notes.append(
            "ALL TOKENS TOOK ONE PATH, so the same few rows came from the nearest cache again and again. That was\n"
            "the condition of the published benchmark. Real tokens spread over the leaves: leave out --routing same."
        )
    return notes


def _fastest(lines: Iterable[Line]) -> Line | None:
    return min(lines, key=lambda found: found.us, default=None)


def where(found: Line) -> str:
    """Return level and BLAS of a line."""
    return f"{found.level} {found.blas}".strip()


def threads_text(count: int) -> str:
    """Return '1 thread' or '2 threads'."""
    return f"{count} thread" + "s" * (count > 1)


def _exact(found: Line) -> str:
    if isinstance(found.exact_path, bool):
        return "strict" if found.exact_path else "-"
    return f"{found.exact_path:g} sigmas"


def _us(found: Line | None) -> str:
    return "-" if found is None else ("~" if found.scaled else "") + _digits(found.us)


def _digits(value: float) -> str:
    """Return three significant digits, no exponent."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def _times(value: float, paper: float | str | None) -> str:
    """Return our figure and in brackets the paper's, '(-)' where it has a column but no figure."""
    ours = f"{value:.2f}x" if value < 10 else f"{value:.1f}x"
    return ours if paper == "" else f"{ours} (-)" if paper is None else f"{ours} ({paper:g}x)"


def grid(rows: Sequence[Sequence[str]], left: int = 1, indent: int = 2) -> str:
    """Return columns of equal width, two blanks apart, the first `left` to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def padded(row: Sequence[str]) -> str:
        cells = zip(row, widths, strict=True)
        return "  ".join(cell.ljust(w) if at < left else cell.rjust(w) for at, (cell, w) in enumerate(cells))

    return "\n".join(" " * indent + padded(row).rstrip() for row in rows)
