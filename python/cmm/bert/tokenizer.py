"""A model's tokenizer: the file that training leaves, read by the package ``tokenizers``, and nothing assumed of it.

Which token plays which part, and its id, differ from one training run to the next: both come from the files.
"""

import operator
import os
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from cmm._files import given_path
from cmm.bert import data_parallel
from cmm.bert.config import JSON_LIMIT, parse_json, read_json, read_regular
from cmm.bert.errors import CheckpointError, shown
from cmm.bert.links import followed
from cmm.errors import ArgumentError, DtypeError, UnusableError

#: A text, or two that the model reads together.
Text = str | tuple[str, str]

FILE = "tokenizer.json"
#: Files that may say which token plays which part; an earlier one overrules a later one.
ROLE_FILES = ("special_tokens_map.json", "tokenizer_config.json")
ROLES = ("mask", "sep", "cls")

_MANY = 32  # texts from which on several threads are worth their start
_LIMIT = 64 << 20  # bytes of tokenizer.json; one of 32768 entries has 1 MB


class Tokenizer:
    """A tokenizer. A single text becomes ``$A <sep>``, a pair ``<cls> $A <sep> $B <sep>``, if its file says no other.

    Parameters
    ----------
    path : path-like
        ``tokenizer.json``, or the folder where it lies. ``special_tokens_map.json`` and ``tokenizer_config.json``
        beside it say which token is the mask, the separator and so on; where neither is there, the names of the
        special tokens tell (``<mask>``, ``[MASK]``).

    Attributes
    ----------
    file : Path
        The file it came from.
    special : dict of str to int
        The ids of the tokens that play a part: "mask", "sep" and "cls", those that there are.
    ids : ndarray of int
        The ids of all tokens, in order; there may be gaps.

    Raises
    ------
    UnusableError
        The package ``tokenizers`` is not installed.
    CheckpointError
        There is no such file, or it is not a tokenizer's.
    DtypeError
        path is no path.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            import tokenizers
        except ImportError:
            raise UnusableError("text needs the package tokenizers: pip install tokenizers") from None
        path = given_path("path", path).absolute()  # the current folder may be another one when it is copied
        self._file = path / FILE if path.is_dir() else path
        text = read_regular(self.file, _LIMIT)
        with _blaming(self.file, "is not a tokenizer that can be read"):
            # Padding and truncation belong to whoever wrote the file. Here nothing is added, and nothing cut unsaid.
            self._tokenizer: Any = tokenizers.Tokenizer.from_buffer(text.removeprefix(BOM_UTF8))
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        self._tokens = {id: token for token, id in vocabulary.items()}
        self._ids = np.array(sorted(self._tokens), np.intp)
        added: dict[int, Any] = self._tokenizer.get_added_tokens_decoder()
        files = [self.file.parent / name for name in ROLE_FILES]
        named = {file: read_json(file) for file in files if file.exists()}
        special = {token.content: id for id, token in added.items() if token.special}
        self._special = find_roles(ROLES, self.file, named, vocabulary, special)
        silent = {id for id, token in added.items() if token.special} | {*self._special.values()}
        self._silent = silent - {self._special.get("mask")}
        if self._tokenizer.post_processor is None:
            self._tokenizer.post_processor = self._template(tokenizers.processors.TemplateProcessing)

    @property
    def file(self) -> Path:
        """The file it came from."""
        return self._file

    @property
    def special(self) -> dict[str, int]:
        """The ids of the tokens that play a part."""
        return self._special

    @property
    def ids(self) -> NDArray[np.intp]:
        """The ids of all tokens, in order."""
        return self._ids

    def _template(self, make: Any) -> Any:
        """Return what puts special tokens around a text where the file says nothing about it."""
        ids = {role: self.id_of(role) for role in ("sep", "cls")}
        sep, cls = (self._tokens[id] for id in ids.values())
        tokens = list(zip((sep, cls), ids.values(), strict=True))
        return make(single=["$A", sep], pair=[cls, "$A", sep, "$B", sep], special_tokens=tokens)

    def id_of(self, role: str) -> int:
        """Return the id of the token that plays a part: "mask", "sep" or "cls"."""
        if role not in self.special:
            raise CheckpointError(
                self.file, f"has no special token for {role!r}, and {' and '.join(ROLE_FILES)} name none"
            )
        return self.special[role]

    def token(self, id: int) -> str | None:
        """Return the text of a token, or None where there is none of that id."""
        return self._tokens.get(id)

    def id_of_word(self, word: str) -> int | None:
        """Return the id of a word, or of a token as the vocabulary writes it; None where it is no single token."""
        id: int | None = self._tokenizer.token_to_id(word)
        if id is None:
            ids = [one for one in self.encode(word) if one not in self._silent]
            id = ids[0] if len(ids) == 1 else None
        return id

    def says_nothing(self, ids: Sequence[int]) -> bool:
        """Whether there is nothing but special tokens; a mask counts as a word."""
        return self._silent.issuperset(ids)

    @overload
    def encode(  # type: ignore[overload-overlap]  # a text is a sequence of characters
        self, texts: Text, limit: int | None = None
    ) -> list[int]: ...
    @overload
    def encode(self, texts: Sequence[Text], limit: int | None = None) -> list[list[int]]: ...
    def encode(self, texts: Text | Sequence[Text], limit: int | None = None) -> list[int] | list[list[int]]:
        """Return the ids of a text, special tokens included, or of each text of a list.

        Parameters
        ----------
        texts : str, (str, str), or sequence of these
            One text is a string, and a pair a tuple of two; anything else is a sequence of texts.
        limit : int, optional
            At most this many ids: longer texts lose their last words, of a pair the longer text first.

        Returns
        -------
        list of int, or list of list of int

        Raises
        ------
        ArgumentError
            A text is not valid Unicode.
        DtypeError
            That are no texts.
        """
        given = checked_texts(texts, "texts")
        tokenizer = self._tokenizer
        if limit is not None:
            tokenizer = type(tokenizer).from_str(tokenizer.to_str())  # others may be using the one without a limit
            tokenizer.enable_truncation(limit)
        with _blaming(self.file, "cannot encode a text"):  # an unknown word, say, and no token for those
            ids = [encoding.ids for encoding in _encodings(tokenizer, given.items)]
        return ids[0] if given.one else ids

    @overload
    def decode(self, ids: Sequence[int], *, special: bool = False) -> str: ...
    @overload
    def decode(self, ids: Sequence[Sequence[int]], *, special: bool = False) -> list[str]: ...
    def decode(self, ids: Any, *, special: bool = False) -> str | list[str]:
        """Return the text of ids, or of each sequence of ids.

        It need not be the text that ``encode`` was given: what a tokenizer drops, such as capitals, is gone.

        Parameters
        ----------
        ids : sequence of int, or sequence of these
            An array of one or two dimensions is one too.
        special : bool, optional
            Write special tokens too.

        Returns
        -------
        str, or list of str

        Raises
        ------
        ArgumentError
            There is no token of an id.
        DtypeError
            That are no whole numbers.
        """
        values = ids.tolist() if hasattr(ids, "tolist") else ids
        try:
            values = list(values)
            many = bool(values) and not isinstance(values[0], int | np.integer)
            rows = [[*map(operator.index, row)] for row in values] if many else [[*map(operator.index, values)]]
        except TypeError:
            raise DtypeError(f"ids is {_shown(ids)}; it should be whole numbers, or sequences of these") from None
        for row in rows:
            for id in row:
                if id not in self._tokens:
                    raise ArgumentError(f"ids has {id}, of which this tokenizer has no token")
        with _blaming(self.file, "cannot decode ids"):
            texts: list[str] = [self._tokenizer.decode(row, skip_special_tokens=not special) for row in rows]
        return texts if many else texts[0]


def _encodings(tokenizer: Any, texts: Sequence[Text]) -> list[Any]:
    """Encode texts in the package's own threads, or in this one where those are not worth it or are not to be had."""
    if len(texts) >= _MANY and data_parallel.can_start():
        try:
            encodings: list[Any] = tokenizer.encode_batch(texts)
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of Rust, which may have found a thread too few
                raise
        else:
            return encodings
    return [tokenizer.encode(text) if isinstance(text, str) else tokenizer.encode(*text) for text in texts]


class Texts(NamedTuple):
    """Texts that have been checked."""

    items: list[Text]
    one: bool  # it was one text, and not a sequence of them
    argument: str

    def name(self, index: int) -> str:
        """Return what a user knows a text as."""
        return self.argument if self.one else f"{self.argument}[{index}]"

    def shown(self, index: int) -> str:
        """Return its name and the text in short, on one line."""
        return f"{self.name(index)} {_shown(self.items[index])}"


def checked_texts(texts: Any, argument: str) -> Texts:
    """Return texts, or say what is wrong with them. A string is a text, a tuple a pair, anything else a sequence."""
    one = isinstance(texts, str | tuple)
    if isinstance(texts, bytes):
        raise DtypeError(f"{argument} is bytes; it should be a text or a sequence of texts: {argument}.decode()")
    try:
        items = [texts] if one else list(texts)
    except TypeError:
        raise DtypeError(f"{argument} is a {type(texts).__name__}; it should be a sequence of strings") from None
    result = Texts(items, one, argument)
    for index, item in enumerate(items):
        parts = item if isinstance(item, tuple) and len(item) == 2 else (item,)
        if not all(isinstance(part, str) for part in parts):
            should = "it should be a string or a pair of strings, which is a tuple"
            raise DtypeError(f"{result.name(index)} is {_shown(item)}; {should}")
        try:
            for part in parts:
                part.encode()
        except UnicodeEncodeError as error:
            raise ArgumentError(f"{result.shown(index)} is not valid Unicode: {error.reason}") from None
        items[index] = str(parts[0]) if len(parts) == 1 else (str(parts[0]), str(parts[1]))
    return result


def _shown(text: Any) -> str:
    shown = ascii(text)
    return shown if len(shown) <= 60 else f"{shown[:56]}...{shown[-1]}"


def stored_files(place: Path, *, named: bool = False) -> list[tuple[str, bytes]]:
    """Return the names and contents of a tokenizer's files, to write them elsewhere; nothing else is let through.

    Parameters
    ----------
    place : Path
        ``tokenizer.json``, by this name or another, or the folder where it lies.
    named : bool, optional
        The user has named this very file, which may then be a link to anywhere.

    Raises
    ------
    CheckpointError
        One of them is no json object, no regular file, too large, or a link out of its folder.
    """
    in_folder = place.is_dir()
    main = place / FILE if in_folder else place
    found = [(FILE, main, followed(main, anywhere=named and not in_folder), _LIMIT)]
    for name in ROLE_FILES:
        file = main.parent / name
        if os.path.lexists(file):
            found.append((name, file, followed(file), JSON_LIMIT))
    result = []
    for name, file, real, limit in found:
        try:
            content = read_regular(real, limit, links=False)
        except CheckpointError as error:
            raise CheckpointError(file, error.problem) from None  # not where its links lead
        if not isinstance(parse_json(content, file), dict):
            raise CheckpointError(file, "should be a json object")
        result.append((name, content))
    return result


@contextmanager
def _blaming(file: Path, problem: str) -> Iterator[None]:
    """Turn whatever the package makes of a broken file into a CheckpointError."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic of Rust is no Exception
        raise CheckpointError(file, f"{problem}: {shown(str(error))}") from None


def find_roles(
    roles: Sequence[str],
    file: Path,
    named: Mapping[Path, Any],
    vocabulary: Mapping[str, int],
    special: Mapping[str, int],
) -> dict[str, int]:
    """Return the ids of the tokens that play a part, of those parts that are played.

    Parameters
    ----------
    roles : sequence of str
        As in ``ROLES``.
    file : Path
        Of the tokenizer, for messages.
    named : mapping of Path to json
        The ``ROLE_FILES`` that there are, in their order.
    vocabulary, special : mapping of str to int
        The ids of all tokens, and of those that are special.

    Raises
    ------
    CheckpointError
        A file names a token that there is not, or names none where several might be meant.
    """
    result = {}
    for role in roles:
        for place, block in named.items():
            token = _named(block, role)
            if token is not None:
                if token not in vocabulary:
                    raise CheckpointError(place, f"is {shown(token)}, which {file.name} has not", f"{role}_token")
                result[role] = vocabulary[token]
                break
        else:
            found = [id for token, id in special.items() if _bare(token) == role]
            if len(found) > 1:
                problem = f"has several special tokens for {role!r}; {' or '.join(ROLE_FILES)} should say which"
                raise CheckpointError(file, problem)
            if found:
                result[role] = found[0]
    return result


def _named(block: Any, role: str) -> str | None:
    """Return the token that a file names for a part: a string, or an object with its content."""
    value = block.get(f"{role}_token") if isinstance(block, Mapping) else None
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _bare(token: str) -> str:
    """Return ``mask`` of ``<mask>`` and ``[MASK]``."""
    return token[1:-1].lower() if token[:1] + token[-1:] in ("<>", "[]") else ""
