"""Text in, answers out: what ``Model.fill_mask``, ``Model.embed`` and ``Model.classify`` do.

Texts of equal length run together, so that no text is padded and none needs a mask: what the model says of a text
does not depend on its neighbours.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmm.bert.tokenizer import Text, Tokenizer
from cmm.errors import ArgumentError, DtypeError

Floats = NDArray[np.float32]

# Tokens that run together: enough for the matrix products, few enough for the cache.
_TOKENS = 2048
# Texts that are encoded to ids at a time, so that the ids of a long input are all that it keeps in memory.
_TEXTS = 1 << 14


class Prediction(NamedTuple):
    """A token that may stand in place of a mask."""

    token: str
    id: int
    probability: float  # by the softmax over the whole vocabulary
    logit: float


class TruncationWarning(UserWarning):
    """Texts were cut because they are longer than the model reads, as ``truncate=True`` asked for."""


def fill_mask(
    tokenizer: Tokenizer, limit: int, compute: Callable[[list[int], list[int]], Floats], text: Text, k: int
) -> list[list[Prediction]]:
    """Return the k likeliest tokens for each mask of a text, likeliest first.

    Parameters
    ----------
    tokenizer : Tokenizer
    limit : int
        Tokens that the model reads at most.
    compute : callable
        Gets the ids of one text and the places of its masks, returns their logits (masks, V).
    text : str or (str, str)
    k : int
    """
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ArgumentError(f"k is {k!r}; it should be a whole number, at least 1")
    mask = tokenizer.id_of("mask")
    (ids,) = encode(tokenizer, limit, [text])
    places = [place for place, id in enumerate(ids) if id == mask]
    if not places:
        raise ArgumentError(f"text {_shown(text)} has no mask; the one of this tokenizer is {tokenizer.token(mask)}")
    known = tokenizer.ids  # the decoder may have rows for which there is no token
    result = []
    for row in compute(ids, places).astype(np.float64):
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
    texts: Sequence[Text],
    width: int,
    *,
    truncate: bool,
    progress: bool | None,
) -> Floats:
    """Compute a row for each text.

    Parameters
    ----------
    tokenizer : Tokenizer
    limit : int
        Tokens that the model reads at most.
    compute : callable
        Gets the ids (B, S) of texts of equal length, returns (B, width).
    texts : sequence of str or (str, str)
    width : int
    truncate, progress
        As for ``Model.embed``.

    Returns
    -------
    ndarray of float32, (texts, width)
    """
    ids = encode(tokenizer, limit, texts, truncate=truncate)
    result = np.empty((len(ids), width), np.float32)
    with progress_bar(len(ids), progress) as step:
        for some in batches([len(one) for one in ids]):
            result[some] = compute(np.array([ids[index] for index in some], np.intp))
            step(len(some))
    return result


def batches(lengths: Sequence[int]) -> Iterator[NDArray[np.intp]]:
    """Yield the indices of texts that run together, all of one length; the longest first, to fail early if at all."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    for same in np.split(order, np.flatnonzero(np.diff(np.asarray(lengths)[order])) + 1):
        if same.size:
            at_a_time = max(1, _TOKENS // lengths[same[0]])
            yield from np.split(same, range(at_a_time, same.size, at_a_time))


def encode(
    tokenizer: Tokenizer, limit: int, texts: Sequence[Text], *, truncate: bool | None = None
) -> list[list[int]]:
    """Return the ids of texts, every text within the model's limit.

    Parameters
    ----------
    tokenizer : Tokenizer
    limit : int
        Tokens that the model reads at most.
    texts : sequence of str or (str, str)
    truncate : bool or None
        As for ``Model.embed``; None where there is one text and the caller does not offer to cut it.

    Raises
    ------
    ArgumentError
        A text is longer than the limit and truncate is not set, or has no token at all.
    DtypeError
        texts are not a sequence of strings and pairs of strings.
    """
    name = "text" if truncate is None else "texts[{}]"
    texts = checked_texts(texts, name)
    result: list[list[int]] = []
    for start in range(0, len(texts), _TEXTS):
        result += tokenizer.encode(texts[start : start + _TEXTS])
    empty = next((index for index, ids in enumerate(result) if not ids), None)
    if empty is not None:
        raise ArgumentError(f"{name.format(empty)} {_shown(texts[empty])} has no tokens")
    too_long = [index for index, ids in enumerate(result) if len(ids) > limit]
    if not too_long:
        return result
    first = too_long[0]
    what = f"{name.format(first)} {_shown(texts[first])} has {len(result[first])} tokens"
    if not truncate:
        remedy = "" if truncate is None else " (truncate=True cuts longer ones)"
        raise ArgumentError(f"{what}; the model's limit is {limit}{remedy}")
    for index, ids in zip(too_long, tokenizer.encode([texts[index] for index in too_long], limit), strict=True):
        result[index] = ids
    cut = f"{len(too_long)} of {len(texts)} texts were cut to the model's limit of {limit} tokens"
    warnings.warn(f"{cut}; the first of them: {what}", TruncationWarning, stacklevel=4)
    return result


def checked_texts(texts: Any, name: str) -> list[Text]:
    """Return texts as a list of strings and pairs, or say what is wrong with them; name is that of one of them."""
    if isinstance(texts, str | bytes):
        raise DtypeError(f"texts is one {type(texts).__name__}; it should be a sequence of texts: wrap it as [text]")
    try:
        items = list(texts)
    except TypeError:
        raise DtypeError(f"texts is a {type(texts).__name__}; it should be a sequence of strings") from None
    for index, item in enumerate(items):
        parts = item if isinstance(item, tuple | list) and len(item) == 2 else (item,)
        if not all(isinstance(part, str) for part in parts):
            raise DtypeError(f"{name.format(index)} is {_shown(item)}; it should be a string or a pair of strings")
        try:
            for part in parts:
                part.encode()
        except UnicodeEncodeError as error:
            raise ArgumentError(f"{name.format(index)} {_shown(item)} is not valid Unicode: {error.reason}") from None
        items[index] = str(parts[0]) if len(parts) == 1 else (str(parts[0]), str(parts[1]))
    return items


def _shown(text: Any) -> str:
    """Return a text in short, on one line."""
    shown = ascii(text)
    return shown if len(shown) <= 60 else f"{shown[:56]}...{shown[-1]}"


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
    # disable=None: not where stderr is no terminal.
    with tqdm(total=total, unit="text", delay=2, leave=False, disable=False if wanted else None) as bar:
        yield bar.update
