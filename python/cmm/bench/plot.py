"""Figures of what was measured: Table 2 as bars with the paper's beside them, and time against batch as lines."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # a file is written; no window is needed

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from cmm._files import replacing
from cmm.bench.table import PAPER, PAPER_FASTEST, Line, Report, threads_text, where

FORMATS = tuple("." + kind for kind in sorted(Figure().canvas.get_supported_filetypes()))

# Told apart also without colour vision, and in grey; a layer or level keeps its colour in every figure.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
_PAPER, _DENSE, _FLOOR = "#b0b0b0", "#333333", "#999999"
_MARKERS = "osD^vP"


def table(report: Report, file: Path) -> None:
    """Draw the speedups of the trees at each level, over the same level's dense layer and over the fastest one.

    Raises
    ------
    OSError
        Where the file cannot be written.
    """
    (tokens,) = report.tokens
    figure = Figure(figsize=(10, 4.8), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    fastest = report.fastest_dense(report.base, tokens)
    _bars(axes[0], report, tokens, report.over_level, PAPER)
    axes[0].set_title("over the dense layer at the same level (native: over the fastest)", fontsize=10)
    _bars(axes[1], report, tokens, report.over_fastest, PAPER_FASTEST)
    axes[1].set_title(f"over the fastest dense layer ({where(fastest)})" if fastest else "", fontsize=10)
    axes[0].set_ylabel("times faster")
    bars = {label: bar for bar, label in zip(*axes[0].get_legend_handles_labels(), strict=True)}
    figure.legend(bars.values(), bars.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    _title(figure, report, f"Fast feedforward layers against dense ones, {tokens} tokens")
    _save(figure, file)


def curve(report: Report, file: Path) -> None:
    """Draw microseconds per token against the batch, a line for each level, the fastest dense layer and the floor.

    Raises
    ------
    OSError
        Where the file cannot be written.
    """
    layer = report.layers[-1]
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    dense = [one for tokens in report.tokens if (one := report.fastest_dense(report.base, tokens))]
    lines = [(f"dense {report.base}, the fastest", dense, _DENSE, "x")]
    for level, colour, marker in zip(report.levels, _COLOURS * 2, _MARKERS * 2, strict=False):
        found = [one for tokens in report.tokens if (one := report.best(layer, level, tokens))]
        lines.append((f"{layer} {level}", found, colour, marker))
    ends: list[tuple[str, str, float]] = []  # of the lines: name, colour, height
    for name, found, colour, marker in lines:
        batches = [one.tokens for one in found]
        axes.plot(batches, [one.us for one in found], color=colour, marker=marker, markersize=5, linewidth=1.6)
        low, high = [one.us_q1 for one in found], [one.us_q3 for one in found]
        axes.fill_between(batches, low, high, color=colour, alpha=0.2, linewidth=0)
        ends += [(name, colour, one.us) for one in found[-1:]]
    floors = [report.floor(layer, tokens) for tokens in report.tokens]
    axes.plot(report.tokens, floors, color=_FLOOR, linestyle="--", linewidth=1.2)
    ends.append(("this machine's floor", _FLOOR, floors[-1]))
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(report.tokens, [str(tokens) for tokens in report.tokens])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("tokens in one call")
    axes.set_ylabel("microseconds per token (median; shade: quartiles)")
    _plain(axes)
    _name_lines(axes, ends)
    _title(figure, report, f"{layer}: time per token against the batch")
    _save(figure, file)


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix.removeprefix(".").lower(), dpi=150)


def _bars(
    axes: Any,
    report: Report,
    tokens: int,
    ratio: Callable[[Line], float],
    paper: dict[tuple[str, str], float | None],
) -> None:
    """Draw a bar for each layer at each level, ours with the spread of the quartiles, the paper's in grey beside."""
    trees = [layer for layer in report.layers if not layer.startswith("dense")]
    for at, level in enumerate(report.levels):
        bars: list[tuple[str, str, float, float, float]] = []  # label, colour, height and its spread
        for layer, colour in zip(trees, itertools.cycle(_COLOURS)):
            if found := report.best(layer, level, tokens):
                speed = ratio(found)
                spread = speed * found.us / found.us_q3, speed * found.us / found.us_q1
                bars.append((f"{layer}, here", colour, speed, *spread))
            if theirs := paper.get((layer, level)):
                bars.append((f"{layer}, the paper", _PAPER, theirs, theirs, theirs))
        width = 0.8 / max(len(bars), 2)
        for place, (label, colour, speed, low, high) in enumerate(bars):
            x = at + (place - (len(bars) - 1) / 2) * width
            axes.bar(x, speed, width * 0.92, color=colour, label=label)
            axes.vlines(x, low, high, color=_DENSE, linewidth=1)
            axes.annotate(
                f"{speed:.3g}x", (x, high), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=8
            )
    axes.set_yscale("log")
    axes.set_xlim(-0.6, len(report.levels) - 0.4)
    axes.set_xticks(range(len(report.levels)), report.levels)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axes.axhline(1, color=_DENSE, linewidth=1)
    lowest = min(bar.get_height() for bar in axes.patches)
    axes.set_ylim(bottom=1 if lowest > 1 else lowest / 2)  # bars of a log axis grow from its bottom
    _plain(axes)


def _name_lines(axes: Any, ends: list[tuple[str, str, float]]) -> None:
    """Write each line's name at its right end, moved apart where they would overlap."""
    bottom, top = axes.get_ylim()
    place = -math.inf
    for name, colour, height in sorted(ends, key=lambda end: end[2]):
        place = max(math.log(height / bottom) / math.log(top / bottom), place + 0.035)
        axes.text(1.01, place, name, transform=axes.transAxes, color=colour, fontsize=9, va="center")


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)


def _title(figure: Figure, report: Report, title: str) -> None:
    figure.suptitle(f"{title}\n", fontsize=12, fontweight="bold")
    first = report.lines[0]
    where = [report.machine.cpu, threads_text(first.threads), *report.blas]
    case = [f"width {first.d_in}", first.dtype, report.routing_text]
    figure.text(0.5, 0.945, ", ".join(where + case), ha="center", va="top", fontsize=9)
