"""The picture of `cmm explain`: for each layer, the ways of the tokens through the trees, and what is dead.

The root of a tree is at the top, its leaves at the bottom, each where it lies in the tree, so that a picture shows
how tokens spread. Grey is a dead subtree: no token came there. A few tokens are drawn as one line each, coloured by
their place in the text and named below the leaf where they ended. Many are drawn as one line for each node that was
visited, the wider and darker the more of them went there. Many trees are drawn as a map with a column for each: how
many tokens ended in each leaf, and, of a few tokens, the leaf of each, which tells its way.
"""

import math
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from numpy.typing import NDArray

from cmm._files import replacing
from cmm.bert.paths import Paths

_FEW_TOKENS, _FEW_TREES = 28, 8
_DEAD, _INK, _FAINT = "#e9e9ec", "#222222", "#85858a"
_COUNTS = LinearSegmentedColormap.from_list("counts", ["#9ecae1", "#3182bd", "#08306b"])
# Early tokens blue, late ones red, with no colour too light to read on white.
_PLACES = LinearSegmentedColormap.from_list(
    "places", ["#3b4cc0", "#0a8fa8", "#1a9850", "#b58900", "#e66101", "#b2182b"]
)

_LEAF = mpl.colormaps["viridis"]
_MOST_CELLS = 64  # rows of a map; of more leaves several share one
_MOST_SHAPES = 500  # that a vector file draws one by one: it would grow to megabytes

# Inches.
_WIDE, _NARROW = 9.0, 6.2  # a panel, where there is one column of them, and where there are two
_TREE, _MAP, _BARS = 1.7, 1.2, 0.35  # heights: a tree, a map of leaves, bars
_ROW, _LETTER = 0.12, 0.075  # a row of a map of tokens; a letter of its name
_GAP, _ABOVE, _SIDE, _TOP, _LINE, _BOTTOM = 0.35, 0.3, 0.35, 0.95, 0.24, 0.25
_LEGEND = 2.4
_STRING = 0.15  # from a leaf down to a name
_BUNDLE = 0.4  # all lines of tokens side by side
_POINT = 1 / 72


def draw(paths: Paths, files: Iterable[Path], *, title: str) -> None:
    """Draw paths.

    Parameters
    ----------
    paths : Paths
    files : iterable of Path
        One picture in each; their endings say which format.
    title : str

    Raises
    ------
    OSError
        A file cannot be written.
    """
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "cmm", "font.size": 9, "text.parse_math": False}
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a token may be of any script
        figure = _figure(paths, title)
        for path in files:
            kind = path.suffix.removeprefix(".")
            with replacing(path) as file:
                figure.savefig(file, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)


def _figure(paths: Paths, title: str) -> Figure:
    maps, few = paths.trees > _FEW_TREES, len(paths.tokens) <= _FEW_TOKENS
    columns = 1 if paths.layers < 4 else 2
    width = _WIDE if columns == 1 else _NARROW
    named = few and not maps and len(paths.tokens) * paths.trees * _name_height() < width
    if maps:
        main, below = _MAP, 0.1 + (_ROW * len(paths.tokens) if few else 0)
    else:
        main, below = _TREE, _names_height(paths.tokens) if named else 0.1 if few else _BARS
    rows = math.ceil(paths.layers / columns)
    total = 2 * _SIDE + columns * width + (columns - 1) * _GAP
    words = _flow([_short(token) for token in paths.tokens], total - 2 * _SIDE) if few and not maps else []
    top = _TOP + _LINE * (1 + max((line for line, _, _ in words), default=0 if few and not maps else 1))
    height = top + rows * (_ABOVE + main + below + _GAP) + _BOTTOM
    figure = Figure(figsize=(total, height), facecolor="white")

    def place(x: float, y: float, wide: float, high: float) -> Any:
        """Make axes; inches, from the top left corner."""
        return figure.add_axes((x / total, 1 - (y + high) / height, wide / total, high / height))

    def write(x: float, y: float, text: str, **how: Any) -> None:
        figure.text(x / total, 1 - y / height, text, va="baseline", **{"color": _INK, **how})

    write(_SIDE, 0.32, title, fontsize=13, fontweight="bold")
    tokens, layers = _number(len(paths.tokens), "token"), _number(paths.layers, "layer")
    trees, leaves = _number(paths.trees, "tree"), _number(paths.leaves, "leaf", "leaves")
    write(_SIDE, 0.55, f"{tokens}, {layers}, in each {trees} of {leaves}.", color=_FAINT)
    write(_SIDE, 0.74, _explained(paths, maps, few), color=_FAINT)
    for (line, x, word), colour in zip(words, _place_colours(len(words)), strict=True):
        write(_SIDE + x, _TOP + _LINE * (line + 0.4), word, color=colour, fontsize=10, fontweight="bold")
    counts = _cells(paths) if maps else None
    norm = LogNorm(1, max(2, len(paths.tokens) if counts is None else int(counts.max())))
    which = Normalize(0, max(1, paths.leaves - 1))
    if maps or not few:
        _legend(figure, place(_SIDE, _TOP + 0.12, _LEGEND, 0.09), "tokens", norm, _COUNTS)
    if maps and few:
        _legend(figure, place(_SIDE + _LEGEND + _GAP, _TOP + 0.12, _LEGEND, 0.09), "leaf of a token", which, _LEAF)

    for layer in range(paths.layers):
        row, column = divmod(layer, columns)
        x, y = _SIDE + column * (width + _GAP), top + row * (_ABOVE + main + below + _GAP)
        visited = np.count_nonzero(paths.leaf_usage[layer])
        write(x, y + 0.18, f"layer {layer}", fontweight="bold")
        write(
            x + width, y + 0.18, f"{visited} of {paths.trees * paths.leaves} leaves visited", ha="right", color=_FAINT
        )
        if counts is not None:
            left = _LETTER * (max(len(_short(token)) for token in paths.tokens) + 1) if few else 0.0
            colours: NDArray[np.float64] = _COUNTS(norm(np.maximum(counts[layer], 1)))
            colours[counts[layer] == 0] = mpl.colors.to_rgba(_DEAD)
            _map(place(x + left, y + _ABOVE, width - left, main), colours)
            if few:
                reached = paths.nodes[layer, :, :, -1] - (paths.leaves - 1)  # (T, K)
                axes = place(x + left, y + _ABOVE + main + 0.05, width - left, _ROW * len(paths.tokens))
                _map(axes, _LEAF(which(reached)), [_short(token) for token in paths.tokens])
            continue
        axes = place(x, y + _ABOVE, width, main)
        axes.set_axis_off()
        axes.set_xlim(0, width)
        axes.set_ylim(_TREE, 0)
        _dead(axes, paths, layer, width)
        if not few:
            _counts(axes, paths, layer, width, norm)
            _bars(place(x, y + _ABOVE + main, width, below), paths, layer, width)
            continue
        ends = _lines(axes, paths, layer, width)
        if named:
            _names(place(x, y + _ABOVE + main, width, below), ends, paths.tokens, width)
    return figure


def _number(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def _explained(paths: Paths, maps: bool, few: bool) -> str:
    """Say how to read the picture."""
    if maps:
        each = paths.leaves // min(paths.leaves, _MOST_CELLS)
        cells = f", {each} of them in a cell" if each > 1 else ""
        tokens = " Below: the leaf where each token ended." if few else ""
        return f"A column is a tree, its leaves from top to bottom{cells}; grey: no token came.{tokens}"
    ends = "" if few else " Below: how many tokens ended there."
    return f"Grey: dead subtrees, where no token came.{ends}"


# ---- where things are ----------------------------------------------------------------------------------------------


def _position(paths: Paths, tree: Any, node: Any, width: float) -> Any:
    """Return how far to the right a node lies. Arrays will do."""
    level = np.floor(np.log2(np.asarray(node) + 1.0))
    within = (np.asarray(node) + 1.5) / 2**level - 1  # 0 to 1
    margin = 0.03 if paths.trees > 1 else 0.0
    return width * (np.asarray(tree) + margin + (1 - 2 * margin) * within) / paths.trees


def _height(paths: Paths) -> Any:
    """Return how far down the nodes of each depth lie, in inches. The first steps, which go far apart, are larger."""
    steps = 0.35 + 2.0 ** (-np.arange(paths.depth) / 2.5)
    return _TREE * np.concatenate([[0.0], np.cumsum(steps)]) / max(steps.sum(), 1e-9)


def _curve(x0: Any, y0: Any, x1: Any, y1: Any, points: int = 9) -> Any:
    """Return a line that leaves a node and reaches its child downwards, (..., points, 2)."""
    t = np.linspace(0, 1, points)
    ease = t * t * (3 - 2 * t)
    x0, y0, x1, y1 = (np.asarray(value, float)[..., None] for value in (x0, y0, x1, y1))
    return np.stack([x0 + (x1 - x0) * ease, y0 + (y1 - y0) * t], axis=-1)


def _place_colours(count: int) -> Any:
    return _PLACES(np.linspace(0, 1, count)) if count > 1 else _PLACES(np.zeros(count))


# ---- a layer of trees ----------------------------------------------------------------------------------------------


def _dead(axes: Any, paths: Paths, layer: int, width: float) -> None:
    """Draw dead subtrees as triangles that hang on their parents."""
    triangles, strings, y = [], [], _height(paths)
    for one in paths.dead:
        if one.layer != layer:
            continue
        first = (one.node + 1) * one.leaves - 1  # its leaves, numbered as nodes
        ends = _position(paths, one.tree, np.array([first, first + one.leaves - 1]), width)
        half = width / paths.trees / paths.leaves / 2
        x = float(_position(paths, one.tree, one.node, width))
        triangles.append([(x, y[one.depth]), (ends[0] - half, y[-1]), (ends[1] + half, y[-1])])
        if one.depth:
            above = float(_position(paths, one.tree, (one.node - 1) // 2, width))
            strings.append(_curve(above, y[one.depth - 1], x, y[one.depth]))
    for shapes in (
        LineCollection(strings, colors=_DEAD, linewidths=0.8),
        PolyCollection(triangles, facecolors=_DEAD, edgecolors=_DEAD, linewidths=0.3),
    ):
        shapes.set_rasterized(len(triangles) > _MOST_SHAPES)
        axes.add_collection(shapes)


def _lines(axes: Any, paths: Paths, layer: int, width: float) -> list[tuple[float, int]]:
    """Draw a line for each token; return how far to the right they end, and the number of the token."""
    count = len(paths.tokens)
    lane = min(2.2 * _POINT, _BUNDLE / count, 0.5 * width / paths.trees / count)
    colours = _place_colours(count)
    y = _height(paths)
    ends = []
    for tree in range(paths.trees):
        nodes = paths.nodes[layer, :, tree]  # (T, D + 1)
        order = np.argsort(nodes[:, -1], kind="stable")
        # Tokens in one node lie side by side in the order of their leaves, so that no two lines cross.
        x, side = _position(paths, tree, nodes, width), np.empty(nodes.shape)
        for depth in range(paths.depth + 1):
            _, first, sizes = np.unique(nodes[order, depth], return_index=True, return_counts=True)
            side[order, depth] = lane * (np.arange(count) - np.repeat(first + (sizes - 1) / 2, sizes))
        for token in order:
            parts = _beside(_curve(x[token, :-1], y[:-1], x[token, 1:], y[1:], 17), side[token])
            end = float(x[token, -1] + side[token, -1])
            how = {"color": colours[token], "clip_on": False}
            axes.plot(*parts.T, linewidth=lane / _POINT * 0.8, solid_joinstyle="round", **how)
            axes.plot(end, y[-1], "o", markersize=3.2, **how)
            ends.append((end, int(token)))
    return ends


def _beside(curves: Any, side: Any) -> Any:
    """Return one line, (points, 2), beside curves that follow each other, as far as side says at their ends."""
    steps = np.gradient(curves, axis=1)
    steps /= np.maximum(np.linalg.norm(steps, axis=-1, keepdims=True), 1e-9)
    along = np.linspace(0, 1, curves.shape[1])
    far = side[:-1, None] * (1 - along) + side[1:, None] * along
    # At right angles to the curve in its middle; to the right at its ends, where one curve meets the next.
    middle = np.sin(np.pi * along)
    across = np.stack([1 - middle * (1 - steps[..., 1]), -middle * steps[..., 0]], axis=-1)
    return (curves + far[..., None] * across).reshape(-1, 2)


def _names(axes: Any, ends: Sequence[tuple[float, int]], tokens: Sequence[str], width: float) -> None:
    """Write the tokens' names below their leaves, moved apart where they would overlap."""
    high = _names_height(tokens)
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(high, 0)
    ends = sorted(ends)
    colours = _place_colours(len(tokens))
    for (x, token), at in zip(ends, _apart([x for x, _ in ends], _name_height(), width), strict=True):
        line = _curve(x, 0, at, _STRING)
        axes.add_collection(LineCollection([line], colors=[colours[token]], linewidths=0.6, alpha=0.7))
        name = _short(tokens[token])
        axes.text(at, _STRING + 0.03, name, color=colours[token], rotation=90, ha="center", va="top", fontsize=8)


def _apart(wanted: Sequence[float], gap: float, width: float) -> list[float]:
    """Move sorted places apart by at least a gap, as little as possible, within the width."""
    groups: list[tuple[float, int]] = []  # centre of the members' wishes for the first one's place, size
    for x in wanted:
        centre, size = x, 1
        while groups and centre < (before := groups[-1])[0] + before[1] * gap:
            groups.pop()
            centre = (before[0] * before[1] + (centre - before[1] * gap) * size) / (before[1] + size)
            size += before[1]
        groups.append((centre, size))
    places = [first + gap * index for first, size in groups for index in range(size)]
    for index in range(len(places)):  # first from the left, then from the right edge
        places[index] = max(places[index], gap / 2 + index * gap)
    for index in range(len(places)):
        places[-1 - index] = min(places[-1 - index], width - gap / 2 - index * gap)
    return places


def _counts(axes: Any, paths: Paths, layer: int, width: float, norm: LogNorm) -> None:
    """Draw a line to each visited node, the wider and darker the more tokens went there."""
    trees, nodes = np.nonzero(paths.usage[layer])
    trees, nodes = trees[nodes > 0], nodes[nodes > 0]
    counts = paths.usage[layer, trees, nodes]
    order = np.argsort(counts, kind="stable")
    trees, nodes, counts = trees[order], nodes[order], counts[order]
    depth, y = np.log2(nodes + 1.0).astype(int), _height(paths)
    above, here = _position(paths, trees, (nodes - 1) // 2, width), _position(paths, trees, nodes, width)
    curves = _curve(above, y[depth - 1], here, y[depth], 7)
    widths = 0.35 + 5 * np.sqrt(counts / len(paths.tokens))
    lines = LineCollection(curves, colors=_COUNTS(norm(counts)), linewidths=widths, capstyle="round")
    lines.set_rasterized(len(curves) > _MOST_SHAPES)
    axes.add_collection(lines)


def _bars(axes: Any, paths: Paths, layer: int, width: float) -> None:
    """Draw, below its leaves, how many tokens ended in each part of a tree."""
    axes.set_axis_off()
    axes.set_xlim(0, width)
    bins = min(paths.leaves, 128 // paths.trees)
    counts = paths.leaf_usage[layer].reshape(paths.trees, bins, -1).sum(axis=-1)
    axes.set_ylim(counts.max(), 0)
    margin = 0.03 if paths.trees > 1 else 0.0
    each = (1 - 2 * margin) / bins
    for tree in range(paths.trees):
        left = width * (tree + margin + each * np.arange(bins)) / paths.trees
        axes.bar(left, counts[tree], width * each / paths.trees, align="edge", color="#3182bd", linewidth=0)


# ---- a layer of many trees -----------------------------------------------------------------------------------------


def _cells(paths: Paths) -> Any:
    """Return how many tokens ended in each leaf, or in a few leaves side by side, (L, cells, K)."""
    cells = min(paths.leaves, _MOST_CELLS)
    return paths.leaf_usage.reshape(paths.layers, paths.trees, cells, -1).sum(axis=-1).swapaxes(1, 2)


def _map(axes: Any, colours: Any, names: Sequence[str] = ()) -> None:
    """Draw a column for each tree; names are those of the rows."""
    axes.imshow(colours, aspect="auto", interpolation="nearest")
    axes.set_yticks(range(len(names)), labels=names)
    axes.set_xticks([])
    axes.tick_params(length=0, labelsize=7, colors=_INK, pad=2)
    axes.spines[:].set_visible(False)


# ---- words ---------------------------------------------------------------------------------------------------------


def _legend(figure: Figure, axes: Any, what: str, norm: Any, colours: Any) -> None:
    bar = figure.colorbar(mpl.cm.ScalarMappable(norm, colours), cax=axes, orientation="horizontal")
    powers = range(1, 9) if type(norm) is LogNorm else ()
    between = [10**power for power in powers if 10**power < norm.vmax / 3]
    ticks = [int(norm.vmin), *between, int(norm.vmax)]
    bar.set_ticks(ticks, labels=[str(tick) for tick in ticks])
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=7, length=2, colors=_FAINT)
    bar.ax.set_title(what, fontsize=8, color=_FAINT, pad=2)
    bar.outline.set_visible(False)


def _name_height() -> float:
    """Return the room that a name takes across, in inches."""
    return 9.5 * _POINT


def _names_height(tokens: Sequence[str]) -> float:
    """Return the room below the trees for the names of tokens, in inches."""
    return _STRING + 0.1 + 0.075 * max(len(_short(token)) for token in tokens)


def _short(token: str) -> str:
    token = token if token.isprintable() and token.strip() else ascii(token)[1:-1] or "''"
    return token if len(token) <= 12 else f"{token[:11]}…"


def _flow(words: Sequence[str], width: float) -> list[tuple[int, float, str]]:
    """Return the line of each word and how far to the right it starts, in inches."""
    bold = FontProperties(weight="bold", size=10)
    placed, line, x = [], 0, 0.0
    for word in words:
        wide = text_to_path.get_text_width_height_descent(word, bold, ismath=False)[0] * _POINT
        if x and x + wide > width:
            line, x = line + 1, 0.0
        placed.append((line, x, word))
        x += wide + 0.12
    return placed
