"""What ``cmm eval`` measures: how well masked tokens of a text are foretold, and the scores of a classifier's tasks.

Pseudo-perplexity is that of Salazar et al., Masked Language Model Scoring (ACL 2020): each token is masked alone, and
what is exponentiated is the mean of the negative logarithms of the probabilities of those that stood there.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from cmm.bert import glue_tasks
from cmm.bert.checkpoint import load
from cmm.bert.config import read_json
from cmm.bert.model import Model
from cmm.bert.text import progress_bar
from cmm.bert.trained import packaged
from cmm.errors import ArgumentError, UnusableError

_TOKENS = 2048  # that run together

#: Table 1 of the paper: model, neurons, neurons used, the mean of GLUE's dev scores without and with CoLA.
PAPER = (
    ("crammedBERT-3072", 3072, 3072, 83.8, 79.9),
    ("FastBERT-1536x1", 4608, 3072, 83.1, 79.2),
    ("FastBERT-512x2", 3584, 1536, 83.3, 79.2),
    ("FastBERT-256x3", 3840, 1024, 82.7, 78.8),
    ("FastBERT-128x4", 3968, 640, 83.5, 79.3),
    ("FastBERT-64x5", 4032, 384, 83.4, 79.1),
    ("FastBERT-32x6", 4064, 224, 82.8, 78.1),
    ("FastBERT-16x7", 4080, 128, 82.1, 77.6),
    ("FastBERT-8x8", 4088, 72, 81.9, 76.5),
    ("FastBERT-4x9", 4092, 40, 82.0, 76.4),
    ("FastBERT-2x10", 4094, 22, 82.0, 76.9),
    ("UltraFastBERT-1x11", 4095, 12, 82.3, 77.3),
    ("UltraFastBERT-1x11-long", 4095, 12, 83.0, 77.7),
    ("BERT-base", 3072, 3072, 83.0, 79.6),
)


class Foretold(NamedTuple):
    """How well hidden tokens were foretold."""

    tokens: int  # that were hidden
    accuracy: float  # the share of them that was the likeliest
    loss: float  # the mean of the negative natural logarithms of their probabilities


def masked(model: Model, texts: Sequence[str], *, share: float | None = None, seed: int = 0, **how: Any) -> Foretold:
    """Hide tokens behind the mask and look how well the model foretells them; special tokens are never hidden.

    Parameters
    ----------
    model : Model
        With a masked-language-model head and a tokenizer that has a mask.
    texts : sequence of str
        One that is longer than the model's limit is read in pieces.
    share : float, optional
        Hide this share of each piece's tokens at once, at least one, chosen by the seed. None hides each token alone;
        the exponential of the loss is then the pseudo-perplexity.
    seed : int, optional
    **how
        ``level`` and ``threads``, as for calling the model.

    Returns
    -------
    Foretold

    Raises
    ------
    ArgumentError
        There is no token to hide, or share is not above 0 and at most 1.
    UnusableError, CheckpointError
        The model has no such head or no tokenizer, or this no mask.
    """
    if share is not None and not 0 < share <= 1:
        raise ArgumentError(f"share is {share!r}; it should be a number above 0 and at most 1, or None")
    if not model.has_decoder:
        raise UnusableError(f"{model.source} has no masked-language-model head (decoder.weight)")
    mask = model.tokenizer.id_of("mask")
    rng = np.random.default_rng(seed)
    count, right, loss = 0, 0, 0.0
    found = list(_pieces(model, texts))
    with progress_bar(len(found)) as step:
        for ids in found:
            can = np.flatnonzero([not model.tokenizer.says_nothing([id]) for id in ids])
            if share is None:
                places = can[:, None]  # each alone
            else:
                some = rng.permutation(can)[: max(1, round(share * len(can)))] if len(can) else can
                places = np.sort(some)[None, :] if len(can) else can[:, None]
            for rows in np.split(places, range(at_a_time := max(1, _TOKENS // len(ids)), len(places), at_a_time)):
                if not rows.size:
                    continue
                hidden = np.tile(np.array(ids), (len(rows), 1))
                wanted = np.take_along_axis(hidden, rows, 1)
                np.put_along_axis(hidden, rows, mask, 1)
                logits = np.asarray(model.device.host(model.logits(hidden, places=rows, **how)), np.float64)
                top = logits.max(-1)
                mine = np.take_along_axis(logits, wanted[..., None], -1)[..., 0]
                loss += float(np.sum(top + np.log(np.exp(logits - top[..., None]).sum(-1)) - mine))
                right += int(np.sum(logits.argmax(-1) == wanted))
                count += rows.size
            step(1)
    if not count:
        raise ArgumentError("the text has no token that could be hidden")
    return Foretold(count, right / count, loss / count)


def _pieces(model: Model, texts: Sequence[str]) -> Iterator[list[int]]:
    """Yield the ids of texts in pieces that the model can read."""
    limit = model.config.max_seq_length
    for text in texts:
        if text.strip():
            ids = model.tokenizer.encode(text)
            yield from (ids[start : start + limit] for start in range(0, len(ids), limit))


def read_texts(place: Path) -> list[str]:
    """Return the lines of a text file, or of the .txt files of a folder, that are not empty.

    Raises
    ------
    ArgumentError
        There is nothing in it, or a file is not UTF-8.
    OSError
        It cannot be read.
    """
    files = sorted(place.glob("*.txt")) if place.is_dir() else [place]
    lines: list[str] = []
    for file in files:
        try:
            with open(file, encoding="utf-8-sig") as text:
                lines += [line for line in map(str.strip, text) if line]
        except UnicodeDecodeError as error:
            raise ArgumentError(f"{file} is not UTF-8: {error.reason} at byte {error.start}") from None
    if not lines:
        raise ArgumentError(f"{place} has no text" if files else f"{place} has no .txt file")
    return lines


# ---- tasks of a classifier -----------------------------------------------------------------------------------------


def task_of(model: Model, name: str, folder: Path) -> glue_tasks.Task:
    """Return a task with its labels, which are the model's, in whatever order.

    Raises
    ------
    ArgumentError
        The model has another number of labels, or other labels.
    UnusableError
        It has no classifier.
    """
    if model.weights.classifier is None:
        problem = f"{model.source} has no classifier (head.weight, pooler.dense.weight)"
        raise UnusableError(f"{problem}; docs/examples/finetune.py adds one")
    number, names = len(model.weights.classifier.head_bias), model.label_names
    task = glue_tasks.TASKS[name]
    if task.labels is None:
        if names is None and not (folder / "train.tsv").exists():
            problem = f"{model.source} does not say what its {number} labels are called"
            raise ArgumentError(f"{problem}, and {folder} has no train.tsv with them")
        task = glue_tasks.with_labels(task, names or folder / "train.tsv")
    if task.labels and names is not None and set(names) != set(task.labels):
        problem = f"{model.source} has the labels {', '.join(names)}"
        raise ArgumentError(f"{problem}, and {name} has {', '.join(task.labels)}")
    labels = task.labels or ()
    if number != max(1, len(labels)):
        problem = f"{model.source} has a classifier of {number} {'label' if number == 1 else 'labels'}"
        raise ArgumentError(f"{problem}, and {name} has {len(labels) or 'a score, which is one'}")
    return task


def of_task(
    model: Model, name: str, folder: Path, files: Sequence[str] = (), **how: Any
) -> dict[str, dict[str, Any]]:
    """Return, of each file of a task, the number of its texts and the scores of what the model says of them.

    Parameters
    ----------
    model : Model
    name : str
        One of ``glue_tasks.TASKS``.
    folder : Path
    files : sequence of str, optional
        Those in the folder to read, those of the task (``dev.tsv``) if there are none.
    **how
        ``level`` and ``threads``, as for calling the model.

    Returns
    -------
    dict

    Raises
    ------
    ArgumentError
        The model has other labels than the task, or a file is broken; see ``glue_tasks.read``.
    UnusableError
        The model has no classifier or no tokenizer.
    """
    task = task_of(model, name, folder)
    names, result = model.label_names, {}
    for file in files or task.dev:
        texts, right = glue_tasks.read(folder / file, task)
        logits = model.classify(texts, truncate=True, **how)
        if task.labels and names:  # scores mean the task's numbers of labels
            logits = logits[:, [names.index(label) for label in task.labels]]
        result[file] = {"texts": len(texts), **glue_tasks.scores(task, logits, right)}
    return result


# ---- several tasks and seeds ---------------------------------------------------------------------------------------


def kinds_of(data: Path) -> dict[str, str]:
    """Return the tasks of a folder of tasks and how each is read: of ``tasks.json``, or those that GLUE's names tell.

    Raises
    ------
    ArgumentError
        There are none, or tasks.json has one of an unknown kind.
    """
    file = data / "tasks.json"
    if not file.exists():
        kinds = {name: name for name in glue_tasks.TASKS if (data / name).is_dir()}
    else:
        kinds = read_json(file)
        known = isinstance(kinds, dict) and all(
            isinstance(kind, str) and kind in glue_tasks.TASKS for kind in kinds.values()
        )
        if not known:
            raise ArgumentError(f"{file} should say of each task which of {', '.join(glue_tasks.TASKS)} it is")
    if not kinds:
        raise ArgumentError(f"{data} has no tasks.json and no folder of {', '.join(glue_tasks.TASKS)}")
    return kinds


def suite(runs: Path, data: Path, files: Sequence[str] = (), **how: Any) -> dict[str, dict[str, list[float]]]:
    """Return of each model and task the first score of each seed, times 100.

    Parameters
    ----------
    runs : Path
        Has a folder for each model, in this one for each task, and in this one for each seed, whose ``model`` is what
        fine-tuning has written.
    data : Path
        Has a folder for each task; see :func:`kinds_of`.
    files, **how
        As for :func:`of_task`; of several files the mean counts.

    Returns
    -------
    dict of dict of list of float

    Raises
    ------
    ArgumentError
        There are no runs; or as for :func:`of_task`.
    """
    result: dict[str, dict[str, list[float]]] = {}
    for task, kind in kinds_of(data).items():
        for folder in sorted(runs.glob(f"*/{task}/*/model")):
            model = load(packaged(folder))
            found = of_task(model, kind, data / task, files, **how)
            first = next(iter(glue_tasks.TASKS[kind].scores))
            score = 100 * float(np.mean([one[first] for one in found.values()]))
            result.setdefault(folder.parts[-4], {}).setdefault(task, []).append(score)
    if not result:
        raise ArgumentError(f"{runs} has no MODEL/TASK/SEED/model of the tasks {', '.join(kinds_of(data))}")
    return result


def as_table(found: dict[str, dict[str, list[float]]], *, paper: bool) -> str:
    """Return a table in Markdown: medians over the seeds, and their means.

    Of GLUE's tasks, where all are there, means without and with CoLA, as the paper has them; with `paper` its rows.
    """
    tasks = list(dict.fromkeys(task for scores in found.values() for task in scores))
    is_glue = set(tasks) == {name for name in glue_tasks.TASKS if not name.islower()}
    means = ["mean without CoLA", "with CoLA"] if is_glue else [f"mean of {len(tasks)}"]
    rows = [["model", *tasks, *means]]
    for name, scores in found.items():
        medians = {task: median(values) for task, values in scores.items()}
        row = [name]
        for task in tasks:
            row.append(f"{medians[task]:.1f} ({len(scores[task])})" if task in medians else "-")
        for mean in means:
            some = [medians.get(task) for task in tasks if task != "CoLA" or mean != "mean without CoLA"]
            whole = [value for value in some if value is not None]
            row.append(f"{sum(whole) / len(whole):.1f}" if whole and len(whole) == len(some) else "-")
        rows.append(row)
    if paper and is_glue:
        for name, _, used, without, cola in PAPER:
            rows.append([f"{name} ({used} used; paper)", *[""] * len(tasks), f"{without:.1f}", f"{cola:.1f}"])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "| --- |" + " --- |" * (len(rows[0]) - 1))
    return "\n".join(lines)
