"""From text to batches: a tokenizer, sequences of equal length, and masks. It needs the package ``tokenizers``.

A text file has a paragraph a line and an empty line after each document, as ``docs/examples/corpus.py`` writes it.
"""

import json
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmm.errors import ArgumentError, UnusableError

#: The special tokens by their parts; their ids are their places here.
SPECIAL = {"pad": "<pad>", "unk": "<unk>", "sep": "<sep>", "cls": "<cls>", "mask": "<mask>"}
SPECIAL_IDS = {part: id for id, part in enumerate(SPECIAL)}
_LINES = 1 << 12  # that are encoded at a time


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise UnusableError("text needs the package tokenizers: pip install tokenizers") from None
    return tokenizers


def train_tokenizer(text: Path, vocab_size: int, folder: Path) -> None:
    """Train a WordPiece tokenizer: lower case, no accents, ASCII only; ``$A <sep>``, ``<cls> $A <sep> $B <sep>``.

    Parameters
    ----------
    text : Path
    vocab_size : int
        Special tokens included.
    folder : Path
        Gets tokenizer.json, tokenizer_config.json and special_tokens_map.json.

    Raises
    ------
    ArgumentError
        There is nothing in the text.
    OSError
        It cannot be read.
    """
    package = _tokenizers()
    with open(text, "rb") as file:
        if not file.read(1):
            raise ArgumentError(f"{text} is empty")
    tokenizer = package.Tokenizer(package.models.WordPiece(unk_token=SPECIAL["unk"]))
    normalizers = package.normalizers
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFD(),
            normalizers.Lowercase(),
            normalizers.StripAccents(),
            normalizers.Replace(package.Regex(r"[^\x00-\x7F]"), ""),
        ]
    )
    tokenizer.pre_tokenizer = package.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = package.decoders.WordPiece()
    trainer = package.trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL.values()), show_progress=False
    )
    tokenizer.train([str(text)], trainer)
    sep, cls = SPECIAL["sep"], SPECIAL["cls"]
    tokenizer.post_processor = package.processors.TemplateProcessing(
        single=["$A", sep],
        pair=[cls, "$A", sep, "$B", sep],
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (sep, cls)],
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    roles = {f"{part}_token": token for part, token in SPECIAL.items()}
    (folder / "special_tokens_map.json").write_text(json.dumps(roles, indent=1) + "\n", encoding="utf-8")
    config = {**roles, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def read_tokenizer(tokenizer: Path) -> Any:
    """Return what is in tokenizer.json, but for a byte order mark at its head, as the package tokenizers has it."""
    return _tokenizers().Tokenizer.from_buffer(tokenizer.read_bytes().removeprefix(BOM_UTF8))


def vocabulary_of(tokenizer: Path) -> int:
    """Return how many tokens tokenizer.json has, special ones included."""
    size: int = read_tokenizer(tokenizer).get_vocab_size()
    return size


def pack(text: Path, tokenizer: Path, length: int) -> NDArray[np.uint16]:
    """Encode every paragraph, put them end to end, and cut them into sequences.

    Parameters
    ----------
    text : Path
    tokenizer : Path
        tokenizer.json; it ends each paragraph with its separator.
    length : int
        Tokens of a sequence. What is left at the end is dropped.

    Returns
    -------
    ndarray of uint16, (sequences, length)

    Raises
    ------
    ArgumentError
        The text is shorter than one sequence or not UTF-8, or the tokenizer has more than 65536 tokens.
    OSError
        It cannot be read.
    """
    encoder = read_tokenizer(tokenizer)
    if encoder.get_vocab_size() > 1 << 16:
        raise ArgumentError(f"{tokenizer} has {encoder.get_vocab_size()} tokens; sequences are packed as uint16")
    parts = [np.empty(0, np.uint16)]
    try:
        with open(text, encoding="utf-8-sig") as file:  # a byte order mark is no part of the text
            for lines in _some(line.strip() for line in file):
                ids = [encoding.ids for encoding in encoder.encode_batch_fast(lines)]
                parts.append(np.array([id for one in ids for id in one], np.uint16))
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{text} is not UTF-8: {error}") from None
    stream = np.concatenate(parts)
    count = len(stream) // length
    if not count:
        raise ArgumentError(f"{text} has {len(stream)} tokens, less than one sequence of {length}")
    return stream[: count * length].reshape(count, length)


def pad(text: Path, tokenizer: Path, length: int, pad_id: int) -> NDArray[np.uint16]:
    """Encode every paragraph, with the special tokens of the tokenizer, as a sequence of its own, cut and filled up.

    Parameters and errors are those of :func:`pack`, but for `pad_id`, the id that fills sequences up.

    Returns
    -------
    ndarray of uint16, (paragraphs, length)
    """
    encoder = read_tokenizer(tokenizer)
    if encoder.get_vocab_size() > 1 << 16:
        raise ArgumentError(f"{tokenizer} has {encoder.get_vocab_size()} tokens; sequences are kept as uint16")
    encoder.no_padding()
    encoder.enable_truncation(length)
    rows = []
    try:
        with open(text, encoding="utf-8-sig") as file:
            for lines in _some(line.strip() for line in file):
                rows += [encoding.ids for encoding in encoder.encode_batch_fast(lines)]
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{text} is not UTF-8: {error}") from None
    if not rows:
        raise ArgumentError(f"{text} has no paragraphs")
    result = np.full((len(rows), length), pad_id, np.uint16)
    for row, ids in zip(result, rows, strict=True):
        row[: len(ids)] = ids
    return result


def _some(lines: Iterator[str]) -> Iterator[list[str]]:
    some: list[str] = []
    for line in lines:
        if line:
            some.append(line)
        if len(some) == _LINES:
            yield some
            some = []
    if some:
        yield some


class Batches:
    """Batches of sequences, a new order in each epoch. Which step gets which follows from the seed alone.

    Parameters
    ----------
    sequences : ndarray of uint16, (n, S)
    size : int
        Sequences of a batch, at most n. What is left of an epoch is dropped.
    seed : int
    device : torch.device
        Where the sequences lie.
    """

    def __init__(self, sequences: NDArray[np.uint16], size: int, seed: int, device: torch.device) -> None:
        if not 1 <= size <= len(sequences):
            raise ArgumentError(
                f"a batch is {size} sequences; it should be from 1 to {len(sequences)}, all there are"
            )
        self.sequences = torch.from_numpy(sequences.astype(np.int32)).to(device)
        self.size, self.seed = size, seed
        self._epoch, self._order = -1, torch.empty(0)

    def __getitem__(self, step: int) -> Tensor:
        """Return the ids of one step, int64, (size, S)."""
        count = len(self.sequences)
        epoch, place = divmod(step, count // self.size)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(count, generator=generator)
            self._epoch, self._order = epoch, order.to(self.sequences.device)
        some = self._order[place * self.size : (place + 1) * self.size]
        return self.sequences[some].long()


class Masked(NamedTuple):
    """Sequences with some of their tokens hidden, and which those were."""

    ids: Tensor  # (B, S)
    places: Tensor  # (B, M)
    labels: Tensor  # (B, M)


def hide(
    ids: Tensor,
    seed: int,
    vocab_size: int,
    share: float = 0.25,
    *,
    special: Tensor | None = None,
    mask_id: int = SPECIAL_IDS["mask"],
) -> Masked:
    """Choose a share of each sequence's tokens; of these 80% become the mask, 10% any token, 10% stay.

    Special tokens are chosen where there is nothing else. The choice follows from the seed alone.

    Parameters
    ----------
    ids : tensor of int64, (B, S)
    seed, vocab_size : int
    share : float, optional
    special : tensor of integers, optional
        The ids of special tokens, 0 to 4 if not given.
    mask_id : int, optional
    """
    generator = torch.Generator(ids.device).manual_seed(seed)
    is_special = ids < len(SPECIAL) if special is None else torch.isin(ids, special)
    chance = torch.rand(ids.shape, generator=generator, device=ids.device) + is_special
    places = chance.topk(max(1, round(share * ids.shape[1])), dim=1, largest=False).indices
    labels = ids.gather(1, places)
    what = torch.rand(places.shape, generator=generator, device=ids.device)
    anything = torch.randint(vocab_size, places.shape, generator=generator, device=ids.device)
    put = torch.where(what < 0.8, mask_id, torch.where(what < 0.9, anything, labels))
    return Masked(ids.scatter(1, places, put), places, labels)
