"""Draw the charts of machines.md, and write its tables: ``python docs/pictures/draw_machines.py``.

Everything is of what ``cmm bench --json`` wrote: docs/machines/MACHINE/TABLE.json. docs/reference/bench-json.md has
its keys. A new machine is a folder of such files and a line in HOSTS.
"""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from dark import with_dark
from draw_tree import FAINT, INK, PAPER, PATH, text

HERE = Path(__file__).parent
MACHINES, PAGE, OUT = HERE.parent / "machines", HERE.parent / "machines.md", HERE / "machines"
TABLES = ("paper", "curve", "narrow", "forests")
# What the files do not say: the name of each machine here, its host, and how quiet it was.
HOSTS = {
    "intel-xeon-emerald-rapids": (
        "Intel Xeon, Emerald Rapids",
        "A virtual machine with two cores of a shared Intel Xeon (family 6, model 207) with AVX-512, whose L3 is "
        "hardly faster than its memory; in November 2026, with all other work on its two cores stopped meanwhile.",
    ),
}
LEVELS = {"native": PATH, "blas3": "#2b6cb0", "blas2": "#2f7d3b", "blas1": "#6b3fa0", "naive": "#999999"}
DENSE, GRID = "#333333", "#e5e5e5"
WIDTH = 760


# ---- reading -------------------------------------------------------------------------------------------------------


def measured() -> dict[str, dict[str, Any]]:
    """Return what was measured: for each machine its tables, in the order of HOSTS."""
    found = {folder.name for folder in MACHINES.iterdir() if folder.is_dir()}
    if found != HOSTS.keys():
        raise SystemExit(f"HOSTS has {sorted(HOSTS)}, and docs/machines has {sorted(found)}: they should be the same")
    machines = {}
    for name in HOSTS:
        files = sorted((MACHINES / name).glob("*.json"))
        machines[name] = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}
        for table, report in machines[name].items():
            if report.get("schema") != 1 or table not in TABLES:
                raise SystemExit(f"docs/machines/{name}/{table}.json should be of schema 1, and one of {TABLES}")
    return machines


def fastest(lines: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the line with the least time, None where there is none."""
    return min(lines, key=lambda line: line["us"], default=None)


def figure(value: float) -> str:
    """Return a number with three digits."""
    if value == 0:
        return "0"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


# ---- drawing -------------------------------------------------------------------------------------------------------


def line(x0: float, y0: float, x1: float, y1: float, color: str, more: str = "") -> str:
    """Return a line."""
    return f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="{color}"{more}/>'


def bar(x: float, y: float, width: float, height: float, color: str) -> str:
    """Return a bar."""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height:.1f}" fill="{color}"/>'


def words(x: float, y: float, said: str, **how: Any) -> str:
    """Return words at a place."""
    return text(round(x, 1), round(y, 1), said, **{"size": 13, "anchor": "start", **how})


def sheet(height: float, title: str, about: str, parts: list[str]) -> str:
    """Return a chart with its title, and a line about its host."""
    return with_dark(
        "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" '
                'font-family="sans-serif">',
                f"<title>{title}; {about}</title>",
                f'<rect width="{WIDTH}" height="{height:.0f}" rx="6" fill="{PAPER}"/>',
                words(20, 28, title, size=15),
                words(20, 47, about, size=12),
                *parts,
                "</svg>",
                "",
            ]
        )
    )


def log_scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Return where values from low to high are, on a logarithmic axis between two places."""
    return lambda value: start + (end - start) * math.log(value / low) / math.log(high / low)


def powers(low: float, high: float) -> list[float]:
    """Return the powers of ten between two numbers."""
    return [10.0**n for n in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]


def case(report: dict[str, Any]) -> str:
    """Return what was measured, on what."""
    first = report["lines"][0]
    threads = f"{first['threads']} thread{'s' if first['threads'] > 1 else ''}"
    return f"{threads}, width {first['d_in']}, {first['dtype']}, {' and '.join(report['blas'])}"


def curve(name: str, report: dict[str, Any]) -> str:
    """Return the time of a token against the tokens of a call, of every level."""
    lines = report["lines"]
    tokens = sorted({one["tokens"] for one in lines})
    layer = next(one["layer"] for one in lines if not one["dense"])

    def best(dense: bool, level: str | None = None) -> list[dict[str, Any]]:
        of = [one for one in lines if one["dense"] == dense and level in (None, one["level"])]
        found = [fastest(one for one in of if one["tokens"] == number) for number in tokens]
        return [one for one in found if one]

    series = [(f"dense {lines[0]['neurons']}", DENSE, best(dense=True))]
    series += [(level, color, best(dense=False, level=level)) for level, color in LEVELS.items()]
    series = [one for one in series if one[2]]
    floors = best(dense=False, level="native")
    low = min(one["floor_us"] for one in floors) / 1.3
    high = max(one["us_q3"] for one in series[0][2]) * 1.3
    left, right, top, bottom = 62, WIDTH - 118, 66, 400
    x, y = log_scale(tokens[0], tokens[-1], left, right), log_scale(low, high, bottom, top)
    parts = [line(left, y(power), right, y(power), GRID) for power in powers(low, high)]
    parts += [words(left - 8, y(power) + 4, f"{power:g}", anchor="end", size=12) for power in powers(low, high)]
    parts += [words(x(number), bottom + 20, str(number), anchor="middle", size=12) for number in tokens]
    parts.append(words((left + right) / 2, bottom + 42, "tokens in one call", anchor="middle", size=12))
    ends: list[tuple[float, str, str]] = []
    for label, color, found in series:
        shade = [(x(one["tokens"]), y(one["us_q1"])) for one in found]
        shade += [(x(one["tokens"]), y(one["us_q3"])) for one in reversed(found)]
        points = " ".join(f"{px:.1f},{py:.1f}" for px, py in shade)
        parts.append(f'<polygon points="{points}" fill="{color}" opacity="0.18"/>')
        points = " ".join(f"{x(one['tokens']):.1f},{y(one['us']):.1f}" for one in found)
        width = 2.6 if label == "native" else 1.6
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="{width}"/>')
        parts += [f'<circle cx="{x(o["tokens"]):.1f}" cy="{y(o["us"]):.1f}" r="2.6" fill="{color}"/>' for o in found]
        ends.append((y(found[-1]["us"]), label, color))
    points = " ".join(f"{x(one['tokens']):.1f},{y(one['floor_us']):.1f}" for one in floors)
    parts.append(f'<polyline points="{points}" fill="none" stroke="{FAINT}" stroke-dasharray="5 4"/>')
    ends.append((y(floors[-1]["floor_us"]), "its floor", "#999999"))
    at = math.inf
    for height, label, color in sorted(ends, reverse=True):
        at = min(height, at - 15)
        parts.append(words(right + 10, at + 4, label, color=color))
    title = f"{layer}: microseconds per token against the tokens of a call (shade: quartiles)"
    return sheet(456, title, f"{HOSTS[name][0]}; {case(report)}", parts)


def ratios(machines: dict[str, dict[str, Any]]) -> str:
    """Return how many times faster than the fastest dense layer each level is, on every machine, 16384 tokens."""
    rows: list[tuple[str, str, float, str]] = []
    about = []
    for name, tables in machines.items():
        if "paper" not in tables:
            continue
        report = tables["paper"]
        about.append(case(report))
        for level, color in LEVELS.items():
            found = fastest(one for one in report["lines"] if not one["dense"] and one["level"] == level)
            if found:
                rows.append((HOSTS[name][0], level, found["over_fastest"], color))
        gpu = report.get("gpu") or {"lines": []}
        dense = fastest(one for one in gpu["lines"] if one["dense"] and one["neurons"] == gpu["base"])
        for level, color in (("cuda", PATH), ("cuda-bmm", "#2b6cb0"), ("cuda-naive", "#999999")):
            found = fastest(one for one in gpu["lines"] if not one["dense"] and one["level"] == level)
            if found and dense:
                rows.append((gpu["name"], level, dense["us"] / found["us"], color))
    left, right, top, step = 110, WIDTH - 70, 74, 24
    groups = list(dict.fromkeys(row[0] for row in rows))
    x = log_scale(1, max(row[2] for row in rows) * 1.1, left, right)
    height = top + step * len(rows) + 30 * len(groups) + 12
    parts = [line(x(v), top, x(v), height - 24, GRID) for v in (1, 3, 10, 30, 100) if x(v) <= right]
    parts += [
        words(x(v), height - 8, f"{v}x", anchor="middle", size=12) for v in (1, 3, 10, 30, 100) if x(v) <= right
    ]
    y = float(top)
    for group in groups:
        parts.append(words(20, y + 14, group, size=13))
        y += 24
        for _, level, ratio, color in (row for row in rows if row[0] == group):
            parts.append(words(left - 8, y + 14, level, anchor="end"))
            parts.append(bar(left, y + 2, x(ratio) - left, step - 7, color))
            parts.append(words(x(ratio) + 6, y + 14, f"{figure(ratio)}x"))
            y += step
        y += 6
    title = "1x11, 16384 tokens: times faster than the fastest dense layer of 4095 neurons"
    return sheet(height, title, "; ".join(dict.fromkeys(about)), parts)


def narrow(name: str, report: dict[str, Any]) -> str:
    """Return the time of a token with narrow rows, a panel for each size of call."""
    lines = [one for one in report["lines"] if not one["dense"]]
    tokens = sorted({one["tokens"] for one in lines})

    def kind(one: dict[str, Any]) -> str:
        exact = one["exact_path"]
        return one["weights"] + ("" if exact is False else ", exact" if exact is True else f", {exact:g} sigmas")

    kinds = list(dict.fromkeys(map(kind, lines)))
    colors = {"float32": "#999999", "bfloat16": "#2b6cb0", "float16": "#2f7d3b", "int8": PATH}
    left, top, step, panel = 130, 84, 24, (WIDTH - 150) / len(tokens)
    parts = [words(left - 10, top + step * at + 16, kind, anchor="end") for at, kind in enumerate(kinds)]
    for at, number in enumerate(tokens):
        here = [one for one in lines if one["tokens"] == number]
        x0, longest = left + panel * at, max(one["us"] for one in here)
        parts.append(words(x0, top - 8, f"{number} token{'s' if number > 1 else ''}", size=12))
        for one in here:
            y = top + step * kinds.index(kind(one))
            width = (panel - 62) * one["us"] / longest
            parts.append(bar(x0, y + 4, width, step - 8, colors[one["weights"]]))
            parts.append(words(x0 + width + 6, y + 17, figure(one["us"]), size=12))
    title = f"{lines[0]['layer']} with rows of fewer bits: microseconds per token, level native"
    return sheet(top + step * len(kinds) + 16, title, f"{HOSTS[name][0]}; {case(report)}", parts)


def forests(name: str, report: dict[str, Any]) -> str:
    """Return how many times faster than dense layers forests are, beside what arithmetic alone would gain."""
    lines = [one for one in report["lines"] if not one["dense"] and one["exact_path"] is False]
    lines = [one for one in lines if one["weights"] == "float32"]
    limits = {one["layer"]: one["limit"] for one in lines}
    layers = sorted(limits, key=lambda layer: (limits[layer], layer))
    widths = sorted({one["d_in"] for one in lines})
    left, right, top, step = 84, WIDTH - 60, 84, 18
    x = log_scale(0.8, max(one["limit"] for one in lines) * 1.15, left, right)
    block = step * len(widths) + 14
    height = top + block * len(layers) + 26
    parts = [line(x(v), top - 6, x(v), height - 26, GRID) for v in (1, 3, 10, 30)]
    parts += [words(x(v), height - 9, f"{v}x", anchor="middle", size=12) for v in (1, 3, 10, 30)]
    colors = dict(zip(widths, (PATH, "#2b6cb0", "#2f7d3b"), strict=False))
    for at, layer in enumerate(layers):
        y = top + block * at
        parts.append(words(left - 8, y + block / 2, layer, anchor="end"))
        for n, width in enumerate(widths):
            one = next(o for o in lines if o["layer"] == layer and o["d_in"] == width)
            parts.append(bar(x(1), y + step * n, x(one["over_fastest"]) - x(1), step - 3, colors[width]))
            parts.append(
                words(
                    max(x(one["over_fastest"]), x(1)) + 6,
                    y + step * n + 13,
                    f"{figure(one['over_fastest'])}x",
                    size=12,
                )
            )
        limit = x(one["limit"])
        parts.append(line(limit, y - 3, limit, y + step * len(widths), INK, ' stroke-width="2"'))
    place: float = WIDTH - 330
    for width in widths:
        parts += [bar(place, 60, 11, 11, colors[width]), words(place + 17, 70, f"width {width}", size=12)]
        place += 92
    parts += [
        line(place + 5, 59, place + 5, 72, INK, ' stroke-width="2"'),
        words(place + 14, 70, "neurons / used", size=12),
    ]
    first = report["lines"][0]
    title = f"Forests, {lines[0]['tokens']} tokens: times faster than the dense layer with as many neurons"
    about = f"{HOSTS[name][0]}; {first['threads']} thread, {first['dtype']}, {' and '.join(report['blas'])}"
    return sheet(height, title, about, parts)


def charts() -> dict[str, str]:
    """Return every chart by the name of its file."""
    machines = measured()
    drawn = {"ratios.svg": ratios(machines)}
    draw = {"curve": curve, "narrow": narrow, "forests": forests}
    for name, tables in machines.items():
        drawn |= {f"{name}-{table}.svg": draw[table](name, tables[table]) for table in tables if table in draw}
    return drawn


# ---- the page ------------------------------------------------------------------------------------------------------

MARK = "<!-- From here on, docs/pictures/draw_machines.py writes this page. -->\n"


def size(count: int) -> str:
    """Return a number of bytes as caches have them."""
    return f"{count // 2**20} MB" if count >= 2**20 else f"{count // 2**10} KB"


def about_machine(name: str, tables: dict[str, Any]) -> list[str]:
    """Return the part of the page about a machine."""
    title, host = HOSTS[name]
    report = tables.get("curve") or tables["paper"]
    machine, floors = report["machine"], report["floors"]
    parts = [f"## {title}", host]
    rows = [
        ("processor, as the system names it", machine["cpu"]),
        ("cores of the process", str(machine["cores"])),
        ("caches", ", ".join(f"{cache} {size(count)}" for cache, count in machine["caches"].items())),
        ("BLAS", ", ".join(report["blas"])),
        ("matrix product, 1 thread", f"{floors['gflops']:.0f} GFLOP/s"),
        ("dot products read", ", ".join(f"{where} {rate:.0f}" for where, rate in floors["read"].items()) + " GB/s"),
        ("version of cmm", report["version"]),
        ("files", ", ".join(f"[{table}](machines/{name}/{table}.json)" for table in TABLES if table in tables)),
    ]
    parts.append("\n".join(["| | |", "| --- | --- |", *(f"| {what} | {value} |" for what, value in rows)]))
    if "curve" in tables:
        lines = tables["curve"]["lines"]
        layer = next(one["layer"] for one in lines if not one["dense"])
        what = ["fastest dense layer, us/token", "with", "`native`, us/token", "ratio", "floor, us/token"]
        head = f"| {layer}, tokens in a call | {' | '.join(what)} |"
        rows_ = [head, "| ---: | ---: | --- | ---: | ---: | ---: |"]
        for number in sorted({one["tokens"] for one in lines}):
            at = [one for one in lines if one["tokens"] == number]
            dense = fastest(o for o in at if o["dense"])
            ours = fastest(o for o in at if o["level"] == "native" and not o["dense"])
            if dense and ours:
                by, ratio = f"`{dense['level']}`, {dense['blas']}", f"{figure(dense['us'] / ours['us'])}x"
                cells = [str(number), figure(dense["us"]), by, figure(ours["us"]), ratio, figure(ours["floor_us"])]
                rows_.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join(rows_))
    shown = {
        "curve": "Microseconds per token against the tokens of a call, for every level and the dense layer",
        "narrow": "Microseconds per token with rows of fewer bits, with and without the exact path",
        "forests": "Times faster than dense layers, of layers of many trees",
    }
    parts += [
        f"![{about}: {title}](pictures/machines/{name}-{table}.svg)"
        for table, about in shown.items()
        if table in tables
    ]
    return parts


def page() -> str:
    """Return machines.md: what was written by hand, and what follows from the files."""
    machines = measured()
    parts = [
        "![Times faster than the fastest dense layer, for every level](pictures/machines/ratios.svg)",
    ]
    for name, tables in machines.items():
        parts += about_machine(name, tables)
    return PAGE.read_text(encoding="utf-8").partition(MARK)[0] + MARK + "\n" + "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    for name, chart in charts().items():
        (OUT / name).write_text(chart, encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")
