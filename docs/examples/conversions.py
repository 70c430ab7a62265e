"""Convert models with different options and collect what was measured: the rows of docs/guide/converting.md.

    python docs/examples/conversions.py corpus runs --all --jobs 3       # those of the packaged dense model
    python docs/examples/conversions.py texts runs minilm-24x5 --bert MODEL
    python docs/examples/conversions.py --pages                          # write the tables into the page

corpus is a folder as docs/examples/train.py leaves it, with train.npy and heldout.npy; texts is one that
`--descriptions FILE --bert MODEL` makes of an index of packages (Translation-en of Debian's), and has train.npy,
heldout.npy and pairs.npz. The pair task: does a short description belong to a long one? The score is the cosine of
the two mean vectors, and what is reported is the area under the ROC curve, which is the chance that a right pair
scores higher than a wrong one. Results are in docs/conversions.json.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs/conversions.json"
PAGE = ROOT / "docs/guide/converting.md"

SHORT, LONG = 1000, 5000
ROWS = {
    "16x5-1000": "--layer 16x5 --steps 1000",
    "16x5-1000-neurons": "--layer 16x5 --steps 1000 --start neurons",
    "16x5-5000": "--layer 16x5 --steps 5000",
    "32x4-1000": "--layer 32x4 --steps 1000",
    "16x5-5000-neurons": "--layer 16x5 --steps 5000 --start neurons",
    "16x5-1000-1e-3": "--layer 16x5 --steps 1000 --rate 1e-3",
    "16x5-1000-4e-3": "--layer 16x5 --steps 1000 --rate 4e-3",
    "32x4-5000": "--layer 32x4 --steps 5000",
    "16x5-1000-seed-1": "--layer 16x5 --steps 1000 --seed 1",
    "16x5-1000-seed-2": "--layer 16x5 --steps 1000 --seed 2",
}
BERT_ROWS = {
    "minilm-24x5": "--layer 24x5 --steps 1000",
    "minilm-48x4": "--layer 48x4 --steps 1000",
    "minilm-24x5-neurons": "--layer 24x5 --steps 1000 --start neurons",
    "minilm-24x5-short": "--layer 24x5 --steps 300 --batch 16 --rate 1e-3",
}
_BATCH, _BERT_BATCH = 256, 128


def main() -> None:
    """Convert, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("text", nargs="?", type=Path, help="the folder of the text")
    add("runs", nargs="?", type=Path, help="the folder of the conversions")
    add("rows", nargs="*", metavar="ROW", help="rows to convert, in that order")
    add("--all", action="store_true", help="convert all rows of the model that have no result")
    add("--bert", type=Path, metavar="FOLDER", help="the BERT of the rows minilm-..., and of --descriptions")
    add("--descriptions", type=Path, metavar="FILE", help="make the texts of an index of packages")
    add("--device", default="cuda", help="(default cuda)")
    add("--compile", action="store_true", help="torch.compile what is trained")
    add("--jobs", type=int, default=1, metavar="N", help="conversions at once, on one device (default 1)")
    add("--until", type=float, default=float("inf"), metavar="SECONDS", help="stop what runs after so long")
    add("--results", type=Path, default=RESULTS, metavar="FILE", help="(default docs/conversions.json)")
    add("--pages", action="store_true", help="write the tables of the results into docs/guide/converting.md")
    options = parser.parse_args()
    results = json.loads(options.results.read_text()) if options.results.exists() else {}
    if options.pages:
        PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
    elif options.descriptions and options.text and options.bert:
        make_texts(options.descriptions, options.bert, options.text)
    elif options.runs:
        known = BERT_ROWS if options.bert else ROWS
        rows = options.rows or [row for row in known if options.all and row not in results]
        for row in rows:
            if row not in known:
                parser.error(f"there is no row {row}; there are {', '.join(known)}")
        run_all(rows, options, results)
    else:
        parser.error("say a folder of text, one of conversions and rows, or --pages, or --descriptions and --bert")


def command(row: str, text: Path, runs: Path, bert: Path | None, device: str, compiled: bool) -> list[str]:
    """Return the command that converts a row's model."""
    model, batch = ("dense", _BATCH) if bert is None else (str(bert), _BERT_BATCH)
    how = shlex.split((ROWS if bert is None else BERT_ROWS)[row])
    on = ["--device", device, *(["--bfloat16"] if device != "cpu" else []), *(["--compile"] if compiled else [])]
    call = ["cmm", "convert", model, str(runs / row), "--batch", str(batch), *how, *on]
    files = ["--text", str(text / "train.npy"), "--held-out", str(text / "heldout.npy")]
    return [*call, *files, "--json", str(runs / f"{row}.json")]


def run_all(rows: list[str], options: argparse.Namespace, results: dict[str, Any]) -> None:
    """Convert, some at a time, and write down each when it is done."""
    began, running, waiting = time.monotonic(), {}, list(rows)
    options.runs.mkdir(parents=True, exist_ok=True)
    while running or waiting:
        late = time.monotonic() - began > options.until
        while waiting and len(running) < options.jobs and not late:
            row = waiting.pop(0)
            call = command(row, options.text, options.runs, options.bert, options.device, options.compile)
            with open(options.runs / f"{row}.log", "w", encoding="utf-8") as log:
                where = {**os.environ, "PYTHONUNBUFFERED": "1"}
                running[row] = subprocess.Popen(
                    [sys.executable, "-m", *call], stdout=log, stderr=subprocess.STDOUT, env=where
                )
            print(f"{time.monotonic() - began:.0f} s: {row} begins", flush=True)
        if late:
            for process in running.values():
                process.terminate()
            print(f"out of time: {' '.join([*running, *waiting])}", flush=True)
            return
        time.sleep(0.3)
        for row in [row for row, process in running.items() if process.poll() is not None]:
            code = running.pop(row).returncode
            if code:
                print(f"{row} failed:", (options.runs / f"{row}.log").read_text(encoding="utf-8")[-3000:], flush=True)
                continue
            results[row] = json.loads((options.runs / f"{row}.json").read_text(encoding="utf-8"))
            results[row]["device"] = device_name(options.device)
            if options.bert:
                pairs = options.text / "pairs.npz"
                results[row]["pairs"] = pair_task(options.bert, options.runs / row, pairs, options.device)
            options.results.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            print(f"{time.monotonic() - began:.0f} s: {row} {results[row]}", flush=True)


def device_name(device: str) -> str:
    """Return what a device calls itself."""
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


# ---- short and long descriptions -----------------------------------------------------------------------------------


def make_texts(
    index: Path, bert: Path, folder: Path, length: int = 128, tested: int = 2000, most: int = 20000
) -> None:
    """Write ids of descriptions: train.npy and heldout.npy (n, S), and pairs.npz of packages that are in neither.

    Of `most` packages in all, drawn at random, of which `tested` are for the pairs.
    """
    import tokenizers

    found = {}
    name = short = ""
    long: list[str] = []
    for line in [*index.read_text(encoding="utf-8").splitlines(), ""]:
        if line.startswith("Package: "):
            name, short, long = line.split()[1], "", []
        elif line.startswith("Description-en: "):
            short = line.partition(": ")[2]
        elif line.startswith(" ") and short:
            long.append(line.strip().lstrip("."))
        elif not line and short and long:
            found.setdefault(" ".join(long), (name, short))  # one of packages that share their long description
            short = ""
    order = np.random.default_rng(0).permutation(len(found))[:most]
    all_of_them = list(found.items())
    texts = [(short, long) for long, (_, short) in (all_of_them[place] for place in order)]
    encoder = tokenizers.Tokenizer.from_file(str(bert / "tokenizer.json"))
    encoder.enable_padding(length=length)
    encoder.enable_truncation(length)

    def ids(some: list[str]) -> np.ndarray:
        return np.array([one.ids for one in encoder.encode_batch(some)], np.uint16)

    folder.mkdir(parents=True, exist_ok=True)
    pairs, held_out, train = texts[:tested], texts[tested : tested + 500], texts[tested + 500 :]
    for file, some in (("train", train), ("heldout", held_out)):
        np.save(folder / f"{file}.npy", ids([text for pair in some for text in pair]))
    short, long = (ids([pair[side] for pair in pairs]) for side in (0, 1))
    np.savez_compressed(folder / "pairs.npz", short=short, long=long)
    print(f"{len(train)} packages to learn from, {len(held_out)} held out, {len(pairs)} pairs")


def pair_task(dense: Path, converted: Path, file: Path, device: str) -> dict[str, float]:
    """Return the area under the ROC curve of the pair task, each text with its own and 9 others, of two models.

    And how often a short text finds its own long one among all.
    """
    import torch
    import transformers
    from cmm.torch.convert import load_bert

    pairs = np.load(file)
    found = {}
    models = {
        "dense": transformers.BertModel.from_pretrained(dense, add_pooling_layer=False).float().eval(),
        "converted": load_bert(converted),
    }
    for name, model in models.items():
        model.to(device)
        vectors = []
        for side in ("short", "long"):
            parts = []
            for some in torch.from_numpy(pairs[side].astype(np.int64)).split(256):
                ids = some.to(device)
                mask = (ids != model.config.pad_token_id).long()
                with torch.no_grad():
                    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
                mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
                parts.append(torch.nn.functional.normalize(mean, dim=1).double().cpu())
            vectors.append(torch.cat(parts))
        right = (vectors[0] * vectors[1]).sum(1)
        wrong = torch.cat([(vectors[0] * vectors[1].roll(shift, 0)).sum(1) for shift in range(1, 10)])
        found[name] = round(area(right.numpy(), wrong.numpy()), 5)
        first = (vectors[0] @ vectors[1].t()).argmax(1) == torch.arange(len(right))
        found[f"{name} first"] = round(float(first.double().mean()), 5)
    return found


def area(right: np.ndarray, wrong: np.ndarray) -> float:
    """Return the chance that a right score is higher than a wrong one, ties as half."""
    wrong = np.sort(wrong)
    below = np.searchsorted(wrong, right, "left") + np.searchsorted(wrong, right, "right")
    return float(below.mean() / 2 / len(wrong))


# ---- the page ------------------------------------------------------------------------------------------------------

_BEGIN, _END = "<!-- conversions: {} -->\n", "<!-- end -->"


def with_tables(page: str, results: dict[str, Any]) -> str:
    """Return a page with the tables of the results between its marks."""
    for name, rows in (("twin", ROWS), ("bert", BERT_ROWS)):
        before, begin, rest = page.partition(_BEGIN.format(name))
        _, end, after = rest.partition(_END)
        page = before + begin + "\n" + table(name, rows, results) + "\n" + end + after
    return page


def table(name: str, rows: dict[str, str], results: dict[str, Any]) -> str:
    """Return the results of some rows as Markdown."""
    twin = name == "twin"
    head = ["options", "R2 at the start", "R2 distilled", "distilled, not finished", "converted", "dense"]
    head += ["lost"] if twin else ["pair task", "of dense", "short finds long", "of dense"]
    lines = [f"| {' | '.join(head)} |", f"| --- {'| ---: ' * (len(head) - 1)}|"]
    for row, how in rows.items():
        if row not in results:
            lines.append(f"| `{how}` | not yet run {'| ' * (len(head) - 2)}|")
            continue
        found = results[row]
        kinds = [[layer[kind] for layer in found["layers"]] for kind in ("start", "distilled")]
        cells = [f"`{how}`", *(f"{min(kind):.2f} to {max(kind):.2f}" for kind in kinds)]
        if twin:
            dense, start, end = (found[part]["accuracy"] for part in ("dense", "start", "converted"))
            cells += [f"{start:.1%}", f"{end:.1%}", f"{dense:.1%}", f"{100 * (dense - end):.1f} points"]
        else:
            pairs = found["pairs"]
            cells += [f"{found['start']['cosine']:.3f}", f"{found['converted']['cosine']:.3f}", "1"]
            cells += [f"{pairs['converted']:.4f}", f"{pairs['dense']:.4f}"]
            cells += [f"{pairs['converted first']:.1%}", f"{pairs['dense first']:.1%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
