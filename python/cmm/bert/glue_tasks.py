"""The tasks of GLUE and tasks like them: where TSV files keep texts and labels, and how each task is scored."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmm.bert.tokenizer import Text
from cmm.errors import ArgumentError, UnusableError

Score = Callable[[NDArray[Any], NDArray[Any]], float]


def accuracy(predicted: NDArray[Any], right: NDArray[Any]) -> float:
    """Return the share that is right."""
    return float(np.mean(predicted == right))


def f1(predicted: NDArray[Any], right: NDArray[Any]) -> float:
    """Return the harmonic mean of precision and recall of label 1."""
    both = np.sum((predicted == 1) & (right == 1))
    either = np.sum(predicted == 1) + np.sum(right == 1)
    return float(2 * both / either) if either else 0.0


def matthews(predicted: NDArray[Any], right: NDArray[Any]) -> float:
    """Return Matthews' correlation of two labels, 0 where one of them never appears."""
    if np.ptp(predicted) == 0 or np.ptp(right) == 0:
        return 0.0
    return float(np.corrcoef(predicted, right)[0, 1])


def pearson(predicted: NDArray[Any], right: NDArray[Any]) -> float:
    """Return the linear correlation of scores."""
    return matthews(predicted, right)  # of two labels it is the same formula


def spearman(predicted: NDArray[Any], right: NDArray[Any]) -> float:
    """Return the correlation of ranks."""
    try:
        from scipy.stats import rankdata
    except ImportError:
        raise UnusableError("Spearman's correlation needs the package scipy: pip install scipy") from None
    return pearson(rankdata(predicted), rankdata(right))


class Task(NamedTuple):
    """One task. Columns have names, or numbers where the files have no header."""

    texts: tuple[str | int, ...]
    label: str | int
    labels: tuple[str, ...] | None  # in the order of their numbers; () for a score, None for those of the files
    scores: Mapping[str, Score]
    dev: tuple[str, ...] = ("dev.tsv",)
    epochs: int = 5


_BINARY = ("0", "1")
_RIGHT: Mapping[str, Score] = MappingProxyType({"accuracy": accuracy})
_OF_TWO: Mapping[str, Score] = MappingProxyType({"f1": f1, "matthews": matthews})
_RATED: Mapping[str, Score] = MappingProxyType({"pearson": pearson, "spearman": spearman})
_PAIR = ("sentence1", "sentence2")
_ENTAILED = ("entailment", "not_entailment")

#: GLUE's tasks by the names of their folders, and, in small letters, tasks of the same form with labels of their own.
TASKS = {
    "CoLA": Task((3,), 1, _BINARY, {"matthews": matthews}, epochs=15),
    "SST-2": Task(("sentence",), "label", _BINARY, _RIGHT),
    "MRPC": Task(("#1 String", "#2 String"), "Quality", _BINARY, {**_RIGHT, "f1": f1}),
    "QQP": Task(("question1", "question2"), "is_duplicate", _BINARY, {**_RIGHT, "f1": f1}),
    "STS-B": Task(_PAIR, "score", (), _RATED),
    "MNLI": Task(
        _PAIR,
        "gold_label",
        ("entailment", "neutral", "contradiction"),
        _RIGHT,
        ("dev_matched.tsv", "dev_mismatched.tsv"),
    ),
    "QNLI": Task(("question", "sentence"), "label", _ENTAILED, _RIGHT),
    "RTE": Task(_PAIR, "label", _ENTAILED, _RIGHT),
    "classification": Task(("sentence",), "label", None, _RIGHT),
    "pairs": Task(_PAIR, "label", None, _RIGHT),
    "regression": Task(("sentence",), "label", (), _RATED),
    "pair-regression": Task(_PAIR, "label", (), _RATED),
}


def with_labels(task: Task, labels: Path | Sequence[str]) -> Task:
    """Return a task whose labels are known: its own, or else those given, or those of a file in the order of letters.

    A task of two labels is scored by F1 of the second and by Matthews' correlation too.

    Raises
    ------
    ArgumentError
        As for :func:`read`; or the file has one label only.
    """
    if task.labels is not None:
        return task
    if isinstance(labels, Path):
        found = tuple(sorted({row[-1] for row in _rows(labels, task)}))
        if len(found) < 2:
            raise ArgumentError(f"{labels} has one label only, {found[0]!r}")
    else:
        found = tuple(labels)
    return task._replace(labels=found, scores={**task.scores, **(_OF_TWO if len(found) == 2 else {})})


def scores(task: Task, logits: NDArray[Any], right: NDArray[Any]) -> dict[str, float]:
    """Return the scores of what a classifier says, (texts, labels), where the right labels are known, (texts,)."""
    found = logits.argmax(1) if task.labels else logits[:, 0]
    return {name: score(found, right) for name, score in task.scores.items()}


def read(file: Path, task: Task) -> tuple[list[Text], NDArray[Any]]:
    """Read a TSV file of a task.

    Parameters
    ----------
    file : Path
        UTF-8, a tab between columns, no quoting. A line with too few columns is skipped, as GLUE has some.
    task : Task
        With labels; see :func:`with_labels`.

    Returns
    -------
    texts : list of str or (str, str)
    labels : ndarray of int64, or of float32 for a score

    Raises
    ------
    ArgumentError
        A column is not there, a label is none of the task's, a score is no finite number, the file is not UTF-8, or
        there is nothing in it.
    """
    rows = _rows(file, task)
    return [_text(row[:-1]) for row in rows], _labels(file, task, [row[-1] for row in rows])


def _rows(file: Path, task: Task) -> list[list[str]]:
    """Return the texts and the label of each line."""
    try:
        # Some of GLUE's files begin with a byte order mark, and some texts have what splitlines() takes for an end.
        with open(file, encoding="utf-8-sig") as lines:
            rows = [line.rstrip("\n").split("\t") for line in lines]
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{file} is not UTF-8: {error}") from None
    places = (*task.texts, task.label)
    if isinstance(task.label, str):
        header, rows = (rows or [[]])[0], rows[1:]
        for name in places:
            if name not in header:
                raise ArgumentError(f"{file} has no column {name!r}; it has {', '.join(header) or 'none'}")
        places = tuple(header.index(str(name)) for name in places)
    numbers = [int(place) for place in places]
    rows = [[row[place] for place in numbers] for row in rows if len(row) > max(numbers)]
    if not rows:
        raise ArgumentError(f"{file} has no line with {max(numbers) + 1} columns")
    return rows


def _text(parts: Sequence[str]) -> Text:
    return parts[0] if len(parts) == 1 else (parts[0], parts[1])


def _labels(file: Path, task: Task, found: list[str]) -> NDArray[Any]:
    if task.labels:
        wrong = [label for label in found if label not in task.labels]
        if wrong:
            expected = ", ".join(task.labels)
            raise ArgumentError(f"{file} has a label {wrong[0]!r}; it should be one of the task's, {expected}")
        return np.array([task.labels.index(label) for label in found], np.int64)
    try:
        result = np.array([float(label) for label in found], np.float32)
    except ValueError as error:
        raise ArgumentError(f"{file} has a score that is no number: {error}") from None
    if not np.isfinite(result).all():
        raise ArgumentError(f"{file} has a score {found[int(np.argmin(np.isfinite(result)))]!r}; it should be finite")
    return result
