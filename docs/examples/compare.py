"""Fine-tune encoders alike on tasks of tasks.py, on many rates and seeds, and put their scores into a table.

    python docs/examples/tasks.py tasks
    python docs/examples/compare.py encode tasks encoded --model fff
    python docs/examples/compare.py run encoded results --model fff --model dense
    python docs/examples/compare.py table results tasks docs/tasks.md

`encode` needs the package tokenizers, and `run` does not: token ids are stored as uint16. A process of `run` takes a
model and a task: every learning rate with seed 0, then the rate that was best on dev.tsv with the other seeds.
Padding changes nothing but rounding: a padded token is neither attended to nor pooled. What each run says of dev.tsv
and test.tsv is written to the results' folder as soon as it has ended, and runs that are there already are
not repeated. `table` computes the scores from them, as `cmm eval` does, and takes medians.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import cmm.bert
import numpy as np
from cmm.errors import ArgumentError, UnusableError

_FILES = ("train.tsv", "dev.tsv", "test.tsv")
_RATES = (1e-4, 3e-4, 1e-3, 3e-3)
_MULTIPLE = 16  # batches are padded to a multiple of so many tokens
_NAMES = {"fff": "FFF", "dense": "dense twin"}


def main() -> None:
    """Encode, run or make the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(required=True, metavar="STEP")
    step = steps.add_parser("encode", help="texts to token ids")
    step.add_argument("tasks", type=Path, help="the folder that tasks.py made")
    step.add_argument("out", type=Path)
    step.add_argument("--model", default="fff", help="whose tokenizer and length to use (default fff)")
    step.set_defaults(run=encode)
    step = steps.add_parser("run", help="fine-tune")
    step.add_argument("encoded", type=Path)
    step.add_argument("out", type=Path)
    step.add_argument("--model", action="append", required=True, metavar="NAME[=FOLDER]", help="may be repeated")
    step.add_argument("--task", action="append", help="only these")
    step.add_argument("--rates", type=float, nargs="+", default=list(_RATES), metavar="RATE")
    step.add_argument("--seeds", type=int, default=3, metavar="N", help="(default 3)")
    step.add_argument("--epochs", type=int, default=4, metavar="N", help="(default 4)")
    step.add_argument("--batch", type=int, default=32, metavar="N", help="texts of a step (default 32)")
    step.add_argument("--jobs", type=int, default=12, metavar="N", help="processes at once (default 12)")
    step.add_argument("--limit", type=float, default=float("inf"), metavar="SECONDS", help="start nothing later")
    step.add_argument("--device", help="(default a GPU if there is one)")
    step.add_argument("--at-most", type=int, metavar="N", help="use so many texts of a file, to try this out")
    step.add_argument("--keep", default="", metavar="MODEL/TASK", help="keep the weights of the best rate, seed 0")
    step.set_defaults(run=run)
    step = steps.add_parser("table", help="scores from predictions")
    step.add_argument("results", type=Path)
    step.add_argument("tasks", type=Path)
    step.add_argument("page", type=Path, help="the page whose table is replaced, between its two marks")
    step.set_defaults(run=table)
    options = parser.parse_args()
    try:
        options.run(options)
    except (cmm.CmmError, OSError) as error:
        sys.exit(f"compare.py: error: {error}")


# ---- token ids -----------------------------------------------------------------------------------------------------


def encode(options: argparse.Namespace) -> None:
    """Write the ids of each task's texts end to end, their lengths and their labels."""
    from cmm.bert import glue_tasks, text
    from cmm.bert.tokenizer import checked_texts
    from cmm.bert.trained import packaged

    model = cmm.bert.load(packaged(options.model))
    kinds = json.loads((options.tasks / "tasks.json").read_text(encoding="utf-8"))
    options.out.mkdir(parents=True, exist_ok=True)
    for name, kind in kinds.items():
        task = glue_tasks.with_labels(glue_tasks.TASKS[kind], options.tasks / name / _FILES[0])
        arrays: dict[str, Any] = {"labels": np.array(task.labels, str)}
        for file in _FILES:
            texts, right = glue_tasks.read(options.tasks / name / file, task)
            ids = text.encode(model.tokenizer, model.config.max_seq_length, checked_texts(texts, file), truncate=True)
            arrays[f"{file} ids"] = np.concatenate([np.array(one, np.uint16) for one in ids])
            arrays[f"{file} lengths"] = np.array([len(one) for one in ids], np.uint16)
            arrays[f"{file} right"] = right.astype(np.float32 if not task.labels else np.uint8)
        np.savez_compressed(options.out / f"{name}.npz", **arrays)
        print(f"{name}: {len(arrays['train.tsv lengths'])} texts, {len(arrays['train.tsv ids'])} tokens to train on")


def decoded(file: Path, at_most: int | None) -> tuple[int, dict[str, tuple[list[Any], Any]]]:
    """Return the number of labels, and the ids and labels of each file of a task."""
    with np.load(file) as arrays:
        found = {}
        for part in _FILES:
            ends = np.cumsum(arrays[f"{part} lengths"].astype(np.int64))[:-1]
            right = arrays[f"{part} right"]
            right = right.astype(np.int64 if right.dtype == np.uint8 else np.float32)
            found[part] = (np.split(arrays[f"{part} ids"], ends)[:at_most], right[:at_most])
        return len(arrays["labels"]), found


# ---- fine-tuning ---------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> None:
    """Let processes take a model and a task each."""
    began = time.monotonic()
    tasks = options.task or sorted(file.stem for file in options.encoded.glob("*.npz"))
    if not tasks:
        raise ArgumentError(f"{options.encoded} has no .npz of `encode`")
    options.out.mkdir(parents=True, exist_ok=True)
    if len(tasks) * len(options.model) == 1:
        one_pair(options, options.model[0], tasks[0], began)
        return
    # The long ones first: their processes would be the last ones.
    size = {task: (options.encoded / f"{task}.npz").stat().st_size for task in tasks}
    waiting = [(model, task) for task in sorted(tasks, key=lambda task: -size[task]) for model in options.model]
    running: list[subprocess.Popen[bytes]] = []
    failed = 0
    while waiting or running:
        while waiting and len(running) < options.jobs and time.monotonic() - began < options.limit:
            model, task = waiting.pop(0)
            command = [sys.executable, __file__, "run", str(options.encoded), str(options.out), "--model", model]
            command += ["--task", task, "--rates", *map(str, options.rates), "--seeds", str(options.seeds)]
            command += ["--epochs", str(options.epochs), "--batch", str(options.batch), "--keep", options.keep]
            command += ["--limit", str(options.limit - (time.monotonic() - began))]
            command += ["--device", options.device] if options.device else []
            command += ["--at-most", str(options.at_most)] if options.at_most else []
            running.append(subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}))
        if time.monotonic() - began >= options.limit:
            waiting.clear()
        time.sleep(0.2)
        failed += sum(bool(process.poll()) for process in running)
        running = [process for process in running if process.poll() is None]
    print(f"{time.monotonic() - began:.0f} s in all, {failed} processes failed", flush=True)
    if failed:
        raise SystemExit(1)


def one_pair(options: argparse.Namespace, named: str, task: str, began: float) -> None:
    """Run every rate with seed 0, then the best with other seeds."""
    try:
        import torch
    except ImportError:
        raise UnusableError("fine-tuning needs PyTorch: pip install torch") from None
    from cmm.bert.trained import packaged
    from finetune import classifier

    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    name, _, folder = named.partition("=")
    pretrained = cmm.bert.load(packaged(folder or name))
    labels, files = decoded(options.encoded / f"{task}.npz", options.at_most)
    states: dict[float, Any] = {}

    def fine_tuned(rate: float, seed: int) -> bool:
        """Run, if it has not been run; whether there was time."""
        out = options.out / f"{name}-{task}-{rate:g}-{seed}.npz"
        if out.exists():
            return True
        if time.monotonic() - began > options.limit:
            return False
        torch.manual_seed(seed)
        model = classifier(pretrained, max(1, labels)).to(device)
        start = time.monotonic()
        steps = train(model, *files["train.tsv"], rate=rate, seed=seed, labels=labels, options=options, began=began)
        if steps is None:
            return False
        seconds = time.monotonic() - start
        found = {part: predict(model, files[part][0]) for part in _FILES[1:]}
        if options.keep == f"{name}/{task}" and seed == 0:
            states[rate] = {key: value.cpu() for key, value in model.state_dict().items()}
        card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        about = {"steps": steps, "seconds": seconds, "card": card, "epochs": options.epochs, "batch": options.batch}
        kept = out.with_suffix(".tmp.npz")
        np.savez(kept, about=json.dumps(about), **found)
        kept.rename(out)
        score = dev_score(found["dev.tsv"], files["dev.tsv"][1], labels)
        print(
            f"{time.monotonic() - began:5.0f} s  {name} {task} rate {rate:g} seed {seed}: dev {score:.4f}, "
            f"{steps} steps of {seconds / steps * 1e3:.1f} ms",
            flush=True,
        )
        return True

    if not all(fine_tuned(rate, 0) for rate in options.rates):
        return
    best = best_rate(options.out, name, task, files["dev.tsv"][1], labels)
    if best in states:
        torch.save(states[best], options.out / f"{name}-{task}-{best:g}-0.pt")
    for seed in range(1, options.seeds):
        fine_tuned(best, seed)


def train(
    model: Any, ids: list[Any], right: Any, *, rate: float, seed: int, labels: int, options: Any, began: float
) -> int | None:
    """Train as finetune.py does, on padded batches; return the number of steps, or None where time was over."""
    import torch
    from cmm.torch import training
    from torch.nn import functional

    device = model.head.weight.device
    torch.backends.cuda.matmul.allow_tf32 = True
    optimizer = training.make_optimizer(model, rate)
    rng = np.random.default_rng(seed)
    per_epoch = -(-len(ids) // options.batch)
    total = options.epochs * per_epoch
    step = 0
    for _ in range(options.epochs):
        for some in np.array_split(rng.permutation(len(ids)), per_epoch):
            logits = padded(model, [ids[index] for index in some])
            wanted = torch.from_numpy(right[some]).to(device)
            loss = functional.cross_entropy(logits, wanted) if labels else functional.mse_loss(logits[:, 0], wanted)
            training.descend(model, optimizer, loss, rate * (1 - step / total))
            step += 1
            if step % 50 == 0 and time.monotonic() - began > options.limit + 10:
                return None
    return step


def padded(model: Any, texts: list[Any]) -> Any:
    """Return the logits of texts of any lengths."""
    import torch

    lengths = np.array([len(one) for one in texts])
    width = min(-(-lengths.max() // _MULTIPLE) * _MULTIPLE, model.config.max_seq_length)
    rows = np.zeros((len(texts), width), np.int64)
    real = np.arange(width) < lengths[:, None]
    rows[real] = np.concatenate(texts)
    device = model.head.weight.device
    ids, mask = torch.from_numpy(rows).to(device), torch.from_numpy(real).to(device)
    return model.head(model.pooler(model.encoder(ids, mask), mask))


def predict(model: Any, texts: list[Any]) -> Any:
    """Return logits, (texts, labels), in float32."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    model.eval()
    order = np.argsort([len(one) for one in texts], kind="stable")
    result = np.empty((len(texts), model.head.out_features), np.float32)
    with torch.no_grad():
        for some in np.array_split(order, -(-len(order) // 128)):
            result[some] = padded(model, [texts[index] for index in some]).cpu().numpy()
    model.train()
    return result


def dev_score(found: Any, right: Any, labels: int) -> float:
    """Return what rates are chosen by: accuracy, or Pearson's correlation, 0 of what is everywhere the same."""
    if labels:
        return float(np.mean(found.argmax(1) == right))
    return float(np.corrcoef(found[:, 0], right)[0, 1]) if np.ptp(found) > 0 else 0.0


def best_rate(results: Path, name: str, task: str, right: Any, labels: int) -> float:
    """Return the rate whose run with seed 0 was best on dev.tsv; of equals the smallest."""
    scores = {}
    for file in results.glob(f"{name}-{task}-*-0.npz"):
        rate = float(file.stem.removeprefix(f"{name}-{task}-").removesuffix("-0"))
        with np.load(file) as found:
            scores[rate] = dev_score(found["dev.tsv"], right, labels)
    return max(sorted(scores), key=lambda rate: scores[rate])


# ---- the table -----------------------------------------------------------------------------------------------------

_BEGIN, _END = "<!-- compare.py: the table begins -->\n", "<!-- compare.py: the table ends -->\n"


def table(options: argparse.Namespace) -> None:
    """Replace the table of a page."""
    from cmm.bert import glue_tasks

    page = options.page.read_text(encoding="utf-8")
    if _BEGIN not in page or _END not in page:
        raise ArgumentError(f"{options.page} has not both marks: {_BEGIN.strip()} {_END.strip()}")
    kinds = json.loads((options.tasks / "tasks.json").read_text(encoding="utf-8"))
    known = {file.name.partition("-")[0] for file in options.results.glob("*-*-*-*.npz")}
    names = sorted(known, key=lambda name: (list(_NAMES).index(name) if name in _NAMES else len(_NAMES), name))
    if not names:
        raise ArgumentError(f"{options.results} has no predictions of `run`")
    lines = ["| task | score on test.tsv | " + " | ".join(_NAMES.get(name, name) for name in names) + " | constant |"]
    lines.append("| --- | --- |" + " --- |" * (len(names) + 1))
    chosen, ratios, cards = [], [], set()
    for task_name, kind in kinds.items():
        task = glue_tasks.with_labels(glue_tasks.TASKS[kind], options.tasks / task_name / _FILES[0])
        right = {file: glue_tasks.read(options.tasks / task_name / file, task)[1] for file in _FILES}
        scores: dict[str, list[dict[str, float]]] = {}
        for name in names:
            if not list(options.results.glob(f"{name}-{task_name}-*-0.npz")):
                continue
            rate = best_rate(options.results, name, task_name, right["dev.tsv"], len(task.labels))
            scores[name] = []
            for file in sorted(options.results.glob(f"{name}-{task_name}-{rate:g}-*.npz")):
                with np.load(file) as found:
                    logits = found["test.tsv"]
                    cards.add(json.loads(str(found["about"]))["card"])
                scores[name].append(glue_tasks.scores(task, logits, right["test.tsv"]))
            chosen.append(f"{task_name} {_NAMES.get(name, name)} {rate:g}")
        if not task.labels:
            none = dict.fromkeys(task.scores, 0.0)
        else:
            usual = np.bincount(right["train.tsv"]).argmax()
            same = np.eye(len(task.labels))[np.full(len(right["test.tsv"]), usual)]
            none = glue_tasks.scores(task, same, right["test.tsv"])
        for number, score in enumerate(none):
            cells = []
            for name in names:
                values = [100 * one[score] for one in scores.get(name, [])]
                cells.append(
                    f"**{median(values):.1f}** ({', '.join(f'{value:.1f}' for value in values)})" if values else "-"
                )
            lines.append(
                f"| {task_name if number == 0 else ''} | {score} | "
                + " | ".join(cells)
                + f" | {100 * none[score]:.1f} |"
            )
        first = next(iter(none))
        if all(name in scores for name in names) and len(names) == 2:
            both = [median(one[first] for one in scores[name]) for name in names]
            ratios.append(100 * both[0] / both[1])
    text = "\n".join(lines) + "\n\n"
    if ratios:
        mean = sum(ratios) / len(ratios)
        text += (
            f"The first model has {mean:.1f} % of the second one's score in the mean of {len(ratios)} tasks (the "
            f"first score of each), {min(ratios):.1f} % where it is least.\n"
        )
    text += f"Fine-tuned on: {', '.join(sorted(cards))}. Learning rates chosen on dev.tsv: {', '.join(chosen)}.\n"
    before, _, rest = page.partition(_BEGIN)
    after = rest.partition(_END)[2]
    options.page.write_text(before + _BEGIN + "\n" + text + "\n" + _END + after, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
