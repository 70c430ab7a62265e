"""Text in, answers out: what ``Model.fill_mask``, ``Model.embed`` and ``Model.classify`` do.

Texts of equal length run together, so that no text is padded and none needs a mask. What the model says of a text
depends on its neighbours by rounding alone: the products of more texts may add in another order.
"""

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmm.bert.tokenizer import Text, Texts, Tokenizer, checked_texts
from cmm.errors import ArgumentError, DtypeError

Floats = NDArray[np.float32]

# Tokens that run together: enough for the matrix products, few enough for the cache.
_TOKENS = 2048
# Texts that are encoded to ids at a time, so that the ids of a long input are all that it keeps in memory.
_TEXTS = 1 << 14
# Texts that a warning names.
_NAMED = 8


class Prediction(NamedTuple):
    """A token that may stand in place of a mask."""

    token: str
    id: int
    probability: float  # by the softmax over the whole vocabulary
    logit: float


class EmptyTextWarning(UserWarning):
    """Of a text nothing but special tokens is left, so what is said of it says nothing."""


class TruncationWarning(UserWarning):
    """Texts were cut because they are longer than the model reads, as ``truncate=True`` asked for."""


def fill_mask(
    tokenizer: Tokenizer,
    limit: int,
    compute: Callable[[list[int], list[int]], Floats],
    text: Text | Sequence[Text],
    k: int,
    targets: Sequence[str] | None = None,
) -> list[list[Prediction]] | list[list[list[Prediction]]]:
    """Return the k likeliest tokens for each mask of a text, likeliest first, or of each of several texts.

    Each text runs alone, so its predictions have the same bits whatever the others are.

    Parameters
    ----------
    tokenizer : Tokenizer
    limit : int
        Tokens that the model reads at most.
    compute : callable
        Gets the ids of one text and the places of its masks, returns their logits (masks, V).
    text : str, (str, str), or sequence of these
    k : int
    targets : sequence of str, optional
        As for ``Model.fill_mask``.
    """
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ArgumentError(f"k is {k!r}; it should be a whole number, at least 1")
    mask = tokenizer.id_of("mask")
    known = tokenizer.ids  # the decoder may have rows for which there is no token
    if targets is not None:
        known = _ids_of(tokenizer, targets)
        k = len(known)
    given = checked_texts(text, "text")
    encoded = encode(tokenizer, limit, given)
    places = [[place for place, id in enumerate(ids) if id == mask] for ids in encoded]
    if [] in places:
        problem = f"has no mask; the one of this tokenizer is {tokenizer.token(mask)}"
        raise ArgumentError(f"{given.shown(places.index([]))} {problem}")
    result = [_likeliest(tokenizer, compute(*one), k, known) for one in zip(encoded, places, strict=True)]
    return result[0] if given.one else result


def _ids_of(tokenizer: Tokenizer, targets: Sequence[str]) -> NDArray[np.intp]:
    """Return the ids of words, of each once."""
    words = list(targets) if isinstance(targets, Iterable) and not isinstance(targets, str) else [targets]
    if words == [targets] or not all(isinstance(word, str) for word in words):
        raise DtypeError(f"targets is {targets!r}; it should be a sequence of strings")
    ids: dict[int, None] = {}
    for number, word in enumerate(words):
        id = tokenizer.id_of_word(word)
        if id is None:
            tokens = " ".join(str(tokenizer.token(one)) for one in tokenizer.encode(word))
            problem = f"targets[{number}] is {word!r}, which is no single token of this tokenizer"
            raise ArgumentError(f"{problem}, which reads {tokens}")
        ids[id] = None
    if not ids:
        raise ArgumentError("targets is empty; it should have at least one word, or be None for every token")
    return np.array([*ids], np.intp)


def _likeliest(tokenizer: Tokenizer, logits: Floats, k: int, known: NDArray[np.intp]) -> list[list[Prediction]]:
    """Return the k likeliest of the known tokens for each row of logits (masks, V)."""
    result = []
    for row in logits.astype(np.float64):
        best = known[np.argsort(-row[known], kind="stable")[:k]]
        weights = np.exp(row - row.max())
        weights /= weights.sum()
        result.append(
            [Prediction(str(tokenizer.token(id)), int(id), float(weights[id]), float(row[id])) for id in best]
        )
    return result


def in_batches(
    tokenizer: Tokenizer,
    limit: int,
    compute: Callable[[NDArray[np.intp]], Floats],
    texts: Text | Sequence[Text],
    width: int,
    *,
    truncate: bool,
    progress: bool | None,
    batch_size: int | None = None,
) -> Floats:
    """Compute a row for each text, or the row of one text.

    Parameters
    ----------
    tokenizer : Tokenizer
    limit : int
        Tokens that the model reads at most.
    compute : callable
        Gets the ids (B, S) of texts of equal length, returns (B, width).
    texts : str, (str, str), or sequence of these
    width : int
    truncate, progress, batch_size
        As for ``Model.embed``.

    Returns
    -------
    ndarray of float32, (texts, width), or (width,)
    """
    if batch_size is not None and (
        isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1
    ):
        raise ArgumentError(f"batch_size is {batch_size!r}; it should be None or a whole number, at least 1")
    given = checked_texts(texts, "texts")
    ids = encode(tokenizer, limit, given, truncate=truncate)
    result = np.empty((len(ids), width), np.float32)
    with progress_bar(len(ids), progress) as step:
        for some in batches([len(one) for one in ids], batch_size):
            result[some] = compute(np.array([ids[index] for index in some], np.intp))
            step(len(some))
    return np.ascontiguousarray(result[0]) if given.one else result


def batches(lengths: Sequence[int], batch_size: int | None = None) -> Iterator[NDArray[np.intp]]:
    """Yield the indices of texts that run together, all of one length; the longest first, to fail early if at all."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    for same in np.split(order, np.flatnonzero(np.diff(np.asarray(lengths)[order])) + 1):
        if same.size:
            at_a_time = max(1, _TOKENS // lengths[same[0]]) if batch_size is None else int(batch_size)
            yield from np.split(same, range(at_a_time, same.size, at_a_time))


def encode(tokenizer: Tokenizer, limit: int, texts: Texts, *, truncate: bool | None = None) -> list[list[int]]:
    """Return the ids of texts, every text within the model's limit; warn of what is nothing but special tokens.

    Parameters
    ----------
    tokenizer : Tokenizer
    limit : int
        Tokens that the model reads at most.
    texts : Texts
    truncate : bool or None
        As for ``Model.embed``; None where the caller does not offer to cut texts.

    Raises
    ------
    ArgumentError
        A text is longer than the limit and truncate is not set, or has no token at all.
    """
    items = texts.items
    result: list[list[int]] = []
    for start in range(0, len(items), _TEXTS):
        result += tokenizer.encode(items[start : start + _TEXTS])
    empty = next((index for index, ids in enumerate(result) if not ids), None)
    if empty is not None:
        raise ArgumentError(f"{texts.shown(empty)} has no tokens")
    nothing = [index for index, ids in enumerate(result) if tokenizer.says_nothing(ids)]
    if nothing:
        more = f"; so it is of {', '.join(map(texts.name, nothing[1:_NAMED]))}" if len(nothing) > 1 else ""
        more += f" and {len(nothing) - _NAMED} more" if len(nothing) > _NAMED else ""
        _warn(f"{texts.shown(nothing[0])}: nothing but special tokens is left{more}", EmptyTextWarning)
    too_long = [index for index, ids in enumerate(result) if len(ids) > limit]
    if not too_long:
        return result
    first = too_long[0]
    what = f"{texts.shown(first)} has {len(result[first])} tokens"
    if not truncate:
        remedy = "" if truncate is None else " (truncate=True cuts longer ones)"
        raise ArgumentError(f"{what}; the model's limit is {limit}{remedy}")
    for index, ids in zip(too_long, tokenizer.encode([items[index] for index in too_long], limit), strict=True):
        result[index] = ids
    cut = f"{len(too_long)} of {len(items)} texts were cut to the model's limit of {limit} tokens"
    _warn(f"{cut}; the first of them: {what}", TruncationWarning)
    return result


def _warn(message: str, category: type[UserWarning]) -> None:
    """Warn at the line outside of this package that called it."""
    frame, level = inspect.currentframe(), 1
    while frame is not None and frame.f_globals.get("__name__", "").startswith("cmm."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


@contextmanager
def progress_bar(total: int, wanted: bool | None = None) -> Iterator[Callable[[int], object]]:
    """Give the step of a progress bar, which appears after two seconds; does nothing where tqdm is not installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        wanted = False
    if wanted is False:
        yield lambda count: None
        return
    # Without a thread to watch it, for there may be none. disable=None: not where stderr is no terminal.
    bar_type = type("Bar", (tqdm,), {"monitor_interval": 0})
    with bar_type(total=total, unit="text", delay=2, leave=False, disable=False if wanted else None) as bar:
        yield bar.update
