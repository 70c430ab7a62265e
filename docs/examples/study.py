"""The trainings of docs/study.md: each row is one command, and what it gave is kept in a file.

    python docs/examples/study.py corpus runs 16x5            # train one row
    python docs/examples/study.py corpus runs --all --jobs 2  # those that have no result yet, two at a time
    python docs/examples/study.py --table                     # docs/study.json as the tables of docs/study.md
    python docs/examples/study.py --command 16x5              # what train.py is called with
    python docs/examples/study.py --times                     # microseconds a token of layers, here, one thread
    python docs/examples/study.py --measure                   # of whole encoders, to docs/study-times.json
    python docs/examples/study.py --measure corpus runs       # the same, and how long a step of training takes
    python docs/examples/study.py --summary                   # README's table, of the two files

A row is a name and options of train.py. What a training leaves is in a folder of that name; --results gets its
options, seed, steps, losses, accuracies, seconds, and how its leaves were used. --measure replaces the times of what
it finds: a CPU, and a GPU where CuPy and libcmm_cuda can use one; train.py says how many steps fit in three seconds.
"""

import argparse
import csv
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE.parent / "study.json"
TIMES = HERE.parent / "study-times.json"
SHORT = 5000  # steps
LONG = 12000

# Rows by the tables that they are in; a row may be in several.
_DENSE = {
    "dense": "--layer dense:1020",
    "dense-2e-3": "--layer dense:1020 --rate 2e-3",
    "dense-4e-3": "--layer dense:1020 --rate 4e-3",
}
_FORESTS = {
    "1x9": "--layer 1x9",
    "4x7": "--layer 4x7",
    "8x6": "--layer 8x6",
    "16x5": "--layer 16x5",
    "32x4": "--layer 32x4",
    "64x3": "--layer 64x3",
}
_OPTIONS = {
    "16x5-hard": "--layer 16x5 --soft-gone 0",
    "16x5-soft-early": "--layer 16x5 --soft-until 0.05 --soft-gone 0.15",
    "16x5-soft-late": "--layer 16x5 --soft-until 0.2 --soft-gone 0.5",
    "16x5-soft-end": "--layer 16x5 --soft-until 0.12 --soft-gone 0.9",
    "16x5-no-balance": "--layer 16x5 --balance 0",
    "16x5-balance-1": "--layer 16x5 --balance 1",
    "16x5-3e-3": "--layer 16x5 --rate 3e-3",
    "16x5-6e-3": "--layer 16x5 --rate 6e-3",
    "16x5-layers-x2": "--layer 16x5 --layer-rate 2",
    "16x5-layers-half": "--layer 16x5 --layer-rate 0.5",
    "16x5-straight-through": "--layer 16x5 --straight-through",
    "16x5-always-on": "--layer 15x5 --always-on 64",
    "16x5-masked": "--layer 16x5 --masked 0.4 --masked-last 0.15",
    "dense-masked": "--layer dense:1020 --masked 0.4 --masked-last 0.15",
    "16x5-linear": "--layer 16x5 --schedule linear",
    "dense-linear": "--layer dense:1020 --schedule linear",
    "16x5-triangle": "--layer 16x5 --schedule triangle --rate 2e-3",
}
_CONTROLS = {
    "dense-96": "--layer dense:96",
    "dense-128": "--layer dense:128",
    "dense-320": "--layer dense:320",
    "dense-464": "--layer dense:464",
    "dense-512": "--layer dense:512",
    "dense-832": "--layer dense:832",
}
_SEEDS = {
    f"{name}-seed-{seed}": f"{options} --seed {seed}"
    for name, options in (
        ("16x5", "--layer 16x5"),
        ("dense", "--layer dense:1020"),
        ("dense-320", "--layer dense:320"),
    )
    for seed in (1, 2)
}
TABLES = {
    "Trees and depth, and the dense twin": {**_FORESTS, **_DENSE},
    "Options of the recipe": {"16x5": "--layer 16x5", **_OPTIONS},
    "Dense layers of fewer neurons": _CONTROLS,
    "Seeds": _SEEDS,
    "Longer": {
        f"{name}-long": f"{options} --steps {LONG}"
        for name, options in (
            ("16x5", "--layer 16x5"),
            ("16x5-straight-through", "--layer 16x5 --straight-through"),
            ("dense", "--layer dense:1020"),
            ("dense-96", "--layer dense:96"),
            ("dense-320", "--layer dense:320"),
        )
    },
    "Wider": {
        "wide": f"--layer 24x5 --hidden 384 --heads 8 --steps {LONG}",
        "wide-dense": f"--layer dense:1536 --hidden 384 --heads 8 --steps {LONG}",
    },
}
ROWS = {name: options for table in TABLES.values() for name, options in table.items()}
ALL = ("--bfloat16", "--compile", "--log-every", "250", "--save-every", "1000")


def main() -> None:
    """Train rows, or show what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("corpus", nargs="?", type=Path, help="the folder of the text")
    add("runs", nargs="?", type=Path, help="the folder of the trainings")
    add("rows", nargs="*", metavar="ROW", help="rows to train, in that order")
    add("--all", action="store_true", help="train all rows that have no result")
    add("--jobs", type=int, default=1, metavar="N", help="trainings at once, on one device (default 1)")
    add("--until", type=float, default=float("inf"), metavar="SECONDS", help="start nothing after so long")
    add("--results", type=Path, default=RESULTS, metavar="FILE", help="(default docs/study.json)")
    add("--table", action="store_true", help="print the results as Markdown")
    add("--times", action="store_true", help="time forests and dense layers on this CPU")
    add("--measure", action="store_true", help="time encoders on this CPU and GPU, and write docs/study-times.json")
    add("--summary", action="store_true", help="print README's table")
    add("--command", metavar="ROW", help="print the command of a row")
    options = parser.parse_args()
    results = json.loads(options.results.read_text()) if options.results.exists() else {}
    if options.command:
        print(shlex.join(command(options.command, Path("corpus"), Path("runs"))))
    elif options.times:
        print(times())
    elif options.table:
        print(tables(results))
    elif options.summary:
        print(summary(results, json.loads(TIMES.read_text(encoding="utf-8"))))
    elif options.measure:
        measured = json.loads(TIMES.read_text(encoding="utf-8")) if TIMES.exists() else {}
        measured |= measure(options.corpus, options.runs)
        TIMES.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(measured, indent=1))
    elif options.runs:
        rows = options.rows or [row for row in ROWS if options.all and row not in results]
        for row in rows:
            if row not in ROWS:
                parser.error(f"there is no row {row}; there are {', '.join(ROWS)}")
        run_all(rows, options, results)
    else:
        parser.error("say a corpus, a folder and rows, or --table, --times, --measure, --summary or --command")


def command(row: str, corpus: Path, runs: Path) -> list[str]:
    """Return the command that trains a row."""
    how = shlex.split(ROWS[row])
    steps = [] if "--steps" in how else ["--steps", str(SHORT)]
    return ["python", os.path.relpath(HERE / "train.py"), str(corpus), str(runs / row), *how, *steps, *ALL]


def run_all(rows: list[str], options: argparse.Namespace, results: dict) -> None:
    """Train rows, some at a time, and write down each when it is done."""
    began, running, waiting = time.monotonic(), {}, list(rows)
    options.runs.mkdir(parents=True, exist_ok=True)
    import train  # beside this file; imported late, for it needs PyTorch

    train.prepare(options.corpus, vocabulary=6144, length=128)  # once, before several trainings look for it
    while running or waiting:
        while waiting and len(running) < options.jobs and time.monotonic() - began < options.until:
            row = waiting.pop(0)
            with open(options.runs / f"{row}.log", "w", encoding="utf-8") as log:
                call = [sys.executable, *command(row, options.corpus, options.runs)[1:]]
                running[row] = subprocess.Popen(call, stdout=log, stderr=subprocess.STDOUT)
            print(f"{time.monotonic() - began:.0f} s: {row} begins", flush=True)
        if not running:
            print(f"not begun: {' '.join(waiting)}", flush=True)
            return
        time.sleep(0.5)
        for row in [row for row, process in running.items() if process.poll() is not None]:
            code = running.pop(row).returncode
            if code:
                for other in running.values():  # they go on from their last state next time
                    other.terminate()
                print((options.runs / f"{row}.log").read_text(encoding="utf-8")[-3000:], flush=True)
                raise SystemExit(f"{row} failed")
            results[row] = collected(options.runs / row)
            options.results.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            found = results[row]["held_out"]
            print(f"{time.monotonic() - began:.0f} s: {row} {found} {results[row]['seconds']} s", flush=True)


def collected(folder: Path) -> dict:
    """Return what a training left: its result, and the held-out loss on the way."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    with open(folder / "log.csv", newline="", encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if row["held_out_loss"]]
    names = {"step": int, "seconds": float, "held_out_loss": float, "held_out_accuracy": float}
    result["log"] = [[kind(row[name]) for name, kind in names.items()] for row in rows]
    return result


def times(width: int = 192, rounds: int = 25) -> str:
    """Return a table of microseconds a token, float32, one thread: the best of some passes, all layers in turn."""
    import cmm
    import numpy as np

    rng = np.random.default_rng(0)
    layers = {}
    for name in _FORESTS:
        trees, depth = map(int, name.split("x"))
        w_in, w_out = rng.standard_normal((2, trees, 2 ** (depth + 1) - 1, width), np.float32) / 16
        layers[name] = partial(cmm.FFF(w_in, w_out, np.zeros(w_in.shape[:2], np.float32)), threads=1)
    for neurons in (64, 128, 256, 320, 464, 512, 832, 1020):
        w_in, w_out = rng.standard_normal((2, neurons, width), np.float32) / 16
        layers[f"dense {neurons}"] = partial(cmm.ff_forward, w_in=w_in, w_out=w_out, threads=1)
    lines = [f"| tokens | {' | '.join(layers)} |", f"| --- {'| ---: ' * len(layers)}|"]
    for tokens in (128, 2048):
        inputs = rng.standard_normal((4, tokens, width), np.float32)
        best = dict.fromkeys(layers, float("inf"))
        for number in range(rounds):
            for name, layer in layers.items():
                began = time.perf_counter()
                layer(inputs[number % 4])
                best[name] = min(best[name], 1e6 * (time.perf_counter() - began) / tokens)
        lines.append(f"| {tokens} | {' | '.join(f'{us:.2f}' for us in best.values())} |")
    return "\n".join(lines)


#: README's table: what each of its models is called, its row here, and its name in cmm.bert.trained.
COMPARED = {
    "FFF, 16 trees of depth 5": ("16x5", "fff"),
    "dense twin, 1020 neurons": ("dense", "dense"),
    "dense, 320 neurons: as long per token": ("dense-320", None),
}


def measure(corpus: Path | None, runs: Path | None, passes: int = 15) -> dict:
    """Return what the encoders of README's table take here: median microseconds a token, and milliseconds a step."""
    import cmm.bert
    import numpy as np
    from cmm.bench.machine import this_machine
    from cmm.torch import training
    from threadpoolctl import threadpool_limits

    models = {}
    for row, packaged in COMPARED.values():
        layer = shlex.split(ROWS[row])[1]
        models[row] = cmm.bert.trained(packaged) if packaged else cmm.bert.random(training.architecture(layer))
    words = len(models["dense"].weights.word)
    # Some ids often, most seldom, as words are: the n-th with a probability like 1 / n.
    ids = np.exp(np.random.default_rng(0).uniform(0, np.log(words), (512, 128))).astype(np.int64) - 1
    exact = cmm.bert.trained("fff", weights="int8", exact_path=True)
    with threadpool_limits(1):
        runs_here = {row: partial(model, ids[:16], threads=1) for row, model in models.items()}
        runs_here["16x5, int8"] = partial(exact, ids[:16], threads=1)
        found = {"cpu": {"device": this_machine().cpu, "us": medians(runs_here, 16 * 128, passes)}}
    try:
        on_gpu = {row: model.to("cuda", "bfloat16") for row, model in models.items()}
    except cmm.CmmError as error:
        print(f"no GPU: {error}", file=sys.stderr)
    else:
        import cupy

        def run(model: cmm.bert.Model, tokens: object) -> None:
            model(tokens)
            cupy.cuda.Device().synchronize()

        tokens = cupy.asarray(ids)
        name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
        calls = {row: partial(run, model, tokens) for row, model in on_gpu.items()}
        found["gpu"] = {"device": name, "us": medians(calls, ids.size, passes)}
    if corpus and runs:
        found["step"] = {"device": "", "ms": {}}
        for row, _ in COMPARED.values():
            call = [sys.executable, str(HERE / "train.py"), str(corpus), str(runs / f"step-{row}")]
            call += [*shlex.split(ROWS[row]), "--minutes", "0.05", "--bfloat16", "--compile"]
            subprocess.run(call, check=True, stdout=sys.stderr)
            result = json.loads((runs / f"step-{row}" / "result.json").read_text(encoding="utf-8"))
            found["step"]["device"] = result["device"]
            found["step"]["ms"][row] = round(3000 / result["steps"], 2)
    return found


def medians(runs: dict[str, Callable[[], object]], tokens: int, passes: int) -> dict[str, float]:
    """Return the median microseconds a token of calls, in turn."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(passes + 2):
        for name, call in runs.items():
            began = time.perf_counter()
            call()
            if number >= 2:  # what came before warmed up
                taken[name].append(1e6 * (time.perf_counter() - began) / tokens)
    return {name: float(f"{statistics.median(some):.3g}") for name, some in taken.items()}


def summary(results: dict, times: dict) -> str:
    """Return README's table of the forest, its twin, and a dense layer of equal time."""
    head = ("", f"accuracy, {SHORT} steps: mean of seeds (range)", f"accuracy, {LONG} steps", "bytes", "CPU, float32")
    head += ("CPU, int8 rows, exact path", "GPU, bfloat16", f"GPU-seconds of {LONG} steps")
    head += (f"steps, GPU-seconds to a loss of {TARGET}, in {SHORT} steps",)
    lines = [f"| {' | '.join(head)} |", f"| --- {'| ---: ' * (len(head) - 1)}|"]
    for title, (row, _) in COMPARED.items():
        seeds = [results[name] for name in (row, f"{row}-seed-1", f"{row}-seed-2") if name in results]
        right = [result["held_out"]["accuracy"] for result in seeds]
        mean = f"{statistics.mean(right):.1%} of {len(right)} ({min(right):.1%} to {max(right):.1%})"
        long = results.get(f"{row}-long")
        cells = [title, mean, f"{long['held_out']['accuracy']:.1%}" if long else "not run"]
        cells.append(f"{2 * seeds[0]['parameters'] / 1e6:.2f} MB")
        cells.append(us(times["cpu"]["us"].get(row)))
        cells.append(us(times["cpu"]["us"].get(f"{row}, int8")))
        cells.append(us(times.get("gpu", {}).get("us", {}).get(row)))
        step = times.get("step", {}).get("ms", {}).get(row)
        cells.append(f"{step * LONG / 1000:.0f}" if step else "-")
        reached = at_target(results[row])
        seconds = f", {step * reached / 1000:.0f}" if reached and step else ""
        cells.append(f"{reached or f'not in {SHORT}'}{seconds}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def us(value: float | None) -> str:
    """Return microseconds as a cell, or that there are none."""
    return "-" if value is None else f"{value:.3g} us"


#: The held-out loss that rows are compared by the time to.
TARGET = 2.7
PLATEAU = 4.5  # above which a model knows little more than how frequent tokens are
_HEAD = ("row", "options", "steps", "loss", "accuracy", "other packages", "dead leaves", "plateau to", f"{TARGET} at")


def tables(results: dict) -> str:
    """Return the results as Markdown, and which rows were not run."""
    lines = []
    for title, rows in TABLES.items():
        lines += [f"### {title}", "", f"| {' | '.join(_HEAD)} |", f"| --- | --- {'| ---: ' * (len(_HEAD) - 2)}|"]
        for row, options in rows.items():
            found = cells(results[row]) if row in results else ["not yet run", *[""] * (len(_HEAD) - 3)]
            lines.append(f"| {row} | `{options}` | {' | '.join(found)} |")
        lines.append("")
    return "\n".join(lines)


def cells(result: dict) -> list[str]:
    """Return the cells of a row that was trained."""
    held_out, packages, leaves = result["held_out"], result.get("held_out_packages"), result["leaves"]
    dead = f"{sum(layer['dead'] for layer in leaves)} of {sum(layer['of'] for layer in leaves)}" if leaves else ""
    flat = [step for step, _, loss, _ in result["log"] if loss > PLATEAU]
    return [
        str(result["steps"]),
        f"{held_out['loss']:.3f}",
        f"{held_out['accuracy']:.1%}",
        f"{packages['accuracy']:.1%}" if packages else "",
        dead,
        str(flat[-1]) if flat else "",
        str(at_target(result) or "not reached"),
    ]


def at_target(result: dict) -> int | None:
    """Return the step of the first held-out loss of at most the target."""
    return next((step for step, _, loss, _ in result["log"] if loss <= TARGET), None)


if __name__ == "__main__":
    main()
