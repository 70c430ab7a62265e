"""The configuration of a model: the architecture block that training writes, read and checked flag by flag.

A flag that would change the mathematics must have the value that ``encoder.py`` computes, or the model is refused by
the flag's name. A flag that this file does not know might change them too, so it is refused as well.
"""

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cmm.bert.errors import CheckpointError, shown, shown_key

#: The largest json text that is parsed. Parsed json takes up to 30 times its size in memory.
JSON_LIMIT = 1 << 20

MAX_DEPTH = 30  # CMM_MAX_DEPTH of cmm.h
_MAX_SIZE = 2**31 - 1

Pooler = Literal["avg", "zero_index", "max", "logsumexp"]
_POOLERS: dict[str, Pooler] = {
    "avg": "avg",
    "zero_index": "zero_index",
    "max": "max",
    "logsumexp": "logsumexp",
    "lse": "logsumexp",  # what the training code calls it
}

# Flags that would change the mathematics, with the one value that is computed here. A flag that is absent has it.
_FIXED: dict[str, object] = {
    "norm": "LayerNorm",
    "norm_scheme": "pre",
    "tie_weights": True,
    "decoder_bias": False,
    "objective_layout": "MLM",
    "ffn_layer_frequency": 1,
    "use_bias": False,
    "final_norm": True,
    "embedding.pos_embedding": "scaled-sinusoidal",
    "embedding.normalization": True,
    "attention.type": "self-attention",
    "attention.causal_attention": False,
    "attention.skip_output_projection": False,
    "attention.qkv_bias": False,
    "attention.rotary_embedding": False,
    "attention.sequence_op": "torch-softmax",
    "classification_head.include_ff_layer": True,
    "classification_head.nonlin": "Tanh",
}

# Flags of training, and of precisions below float32, that do not change inference in float32.
_WITHOUT_EFFECT = {
    "architectures",
    "hidden_dropout_prob",
    "sparse_prediction",
    "loss",
    "init",
    "embedding.dropout_prob",
    "embedding.pad_token_id",
    "embedding.stable_low_precision",
    "attention.dropout_prob",
    "attention.seq_op_in_fp32",
    "attention.high_level_fusion",
    "attention.low_level_fusion",
    "classification_head.classifier_dropout",
}

_READ = {
    "num_transformer_layers",
    "hidden_size",
    "intermed_type",
    "intermed_size",
    "intermed_depth",
    "nonlin",
    "norm_eps",
    "skip_head_transform",
    "num_labels",
    "label_names",
    "embedding",
    "embedding.vocab_size",
    "embedding.embedding_dim",
    "embedding.max_seq_length",
    "attention",
    "attention.num_attention_heads",
    "classification_head",
    "classification_head.pooler",
    "classification_head.head_dim",
}

_FILLED_IN_LATER = ("vocab_size", "num_labels", "label_names")

_BLOCKS = ("embedding", "attention", "classification_head")

#: The configuration of the released model UltraFastBERT-1x11-long, with its vocabulary of 32768 filled in.
ULTRAFASTBERT_1X11_LONG: dict[str, Any] = {
    "architectures": ["ScriptableCrammedBERT"],
    "num_transformer_layers": 16,
    "hidden_size": 768,
    "intermed_type": "fff",
    "intermed_size": 1,
    "intermed_depth": 11,
    "norm": "LayerNorm",
    "norm_eps": 1e-12,
    "norm_scheme": "pre",
    "nonlin": "GELU",
    "tie_weights": True,
    "decoder_bias": False,
    "objective_layout": "MLM",
    "embedding": {
        "vocab_size": 32768,
        "pos_embedding": "scaled-sinusoidal",
        "pad_token_id": 0,
        "max_seq_length": 128,
        "embedding_dim": 768,
        "normalization": True,
        "stable_low_precision": False,
    },
    "attention": {
        "type": "self-attention",
        "causal_attention": False,
        "num_attention_heads": 12,
        "skip_output_projection": False,
        "qkv_bias": False,
        "rotary_embedding": False,
        "seq_op_in_fp32": False,
        "sequence_op": "torch-softmax",
    },
    "ffn_layer_frequency": 1,
    "skip_head_transform": True,
    "use_bias": False,
    "final_norm": True,
    "num_labels": None,
    "classification_head": {"pooler": "avg", "include_ff_layer": True, "head_dim": 1024, "nonlin": "Tanh"},
}


@dataclass(frozen=True)
class Config:
    """What of the architecture block the mathematics needs, checked.

    Attributes
    ----------
    layers, hidden, heads, max_seq_length : int
    eps : float
        Of every LayerNorm.
    trees, depth : int or None
        Of an FFF layer: K trees of depth D. None in a dense model.
    neurons : int or None
        Rows of the first matrix of a dense layer. None in an FFF model.
    gated : bool
        Dense layers are GELUglu.
    vocab_size : int or None
        None where the file does not say: it is the number of rows of the word embedding.
    head_transform : bool
        The masked-language-model head has a dense layer and a norm before the decoder.
    pooler : str or None
        Of the classifier: avg, zero_index, max or logsumexp. None where the file has no classification head.
    head_dim, num_labels : int or None
        Of the classifier.
    arch : dict
        The architecture block as it was read.
    label_names : tuple of str or None
        What fine-tuning called the labels of the classifier, in the order of their numbers.
    """

    layers: int
    hidden: int
    heads: int
    max_seq_length: int
    eps: float
    trees: int | None
    depth: int | None
    neurons: int | None
    gated: bool
    vocab_size: int | None
    head_transform: bool
    pooler: Pooler | None
    head_dim: int | None
    num_labels: int | None
    arch: dict[str, Any]
    label_names: tuple[str, ...] | None = None

    @property
    def nodes(self) -> int:
        """Nodes of one tree, ``2**(depth + 1) - 1``."""
        assert self.depth is not None
        return int(2 ** (self.depth + 1) - 1)

    def differs(self, other: "Config") -> str | None:
        """Return the name of an attribute in which two configurations contradict each other, or None."""
        for name in self.__dataclass_fields__:
            mine, theirs = getattr(self, name), getattr(other, name)
            if name != "arch" and mine != theirs and not (name in _FILLED_IN_LATER and None in (mine, theirs)):
                return name
        return None


def parse(block: Mapping[str, Any], source: object = "config") -> Config:
    """Check an architecture block, or a hub configuration that holds one under ``"arch"``.

    Parameters
    ----------
    block : mapping
        The block as in ``model_config.json``.
    source : object, optional
        The file it came from, for messages.

    Returns
    -------
    Config

    Raises
    ------
    CheckpointError
        A flag is missing, has an impossible value, or asks for mathematics that are not computed here.
    """
    if not isinstance(block, Mapping):
        raise CheckpointError(source, f"should be a json object, but is {shown(block)}")
    if "arch" in block:
        block = block["arch"]
        if not isinstance(block, Mapping):
            raise CheckpointError(source, f"should be a json object, but is {shown(block)}", "arch")
    flags = _Flags(block, source)
    flags.refuse_what_is_not_computed()

    hidden = flags.integer("hidden_size")
    if hidden % 2:
        flags.fail("hidden_size", f"is {hidden}; sine and cosine positions need an even number")
    heads = flags.integer("attention.num_attention_heads")
    if hidden % heads:
        flags.fail("attention.num_attention_heads", f"is {heads}, which does not divide hidden_size {hidden}")
    embedding_dim = flags.integer("embedding.embedding_dim", default=hidden)
    if embedding_dim != hidden:
        flags.fail("embedding.embedding_dim", f"is {embedding_dim}; only hidden_size, {hidden}, is supported")

    nonlin = flags.choice("nonlin", ("GELU", "GELUglu"), default="GELU")
    fff = flags.choice("intermed_type", ("ff", "fff"), default="ff") == "fff"
    size = flags.integer("intermed_size")
    if fff and nonlin != "GELU":
        flags.fail("nonlin", f"is {nonlin!r}; an FFF layer has GELU")
    if nonlin == "GELUglu" and size % 2:
        flags.fail("intermed_size", f"is {size}; GELUglu needs an even number")

    eps = flags.get("norm_eps")
    if not isinstance(eps, int | float) or isinstance(eps, bool) or not 0 < eps < 1:  # NaN fails too
        flags.fail("norm_eps", f"is {shown(eps)}; it should be a number between 0 and 1")
    if not np.float32(eps):
        flags.fail("norm_eps", f"is {shown(eps)}, which is 0 in float32")

    head = block.get("classification_head") is not None
    return Config(
        layers=flags.integer("num_transformer_layers"),
        hidden=hidden,
        heads=heads,
        max_seq_length=flags.integer("embedding.max_seq_length"),
        eps=float(eps),
        trees=size if fff else None,
        depth=flags.integer("intermed_depth", low=0, high=MAX_DEPTH) if fff else None,
        neurons=None if fff else size,
        gated=nonlin == "GELUglu",
        vocab_size=flags.integer("embedding.vocab_size", default=None),
        head_transform=not flags.boolean("skip_head_transform", default=True),
        pooler=_POOLERS[flags.choice("classification_head.pooler", tuple(_POOLERS))] if head else None,
        head_dim=flags.integer("classification_head.head_dim") if head else None,
        num_labels=flags.integer("num_labels", default=None),
        arch=dict(block),
        label_names=flags.names("label_names", flags.integer("num_labels", default=None)),
    )


def read_json(path: Path) -> Any:
    """Parse a json file, of at most ``JSON_LIMIT`` bytes and with no key twice in an object.

    Raises
    ------
    CheckpointError
        It is no such file.
    """
    return parse_json(read_regular(path, JSON_LIMIT), path)


def read_regular(path: Path, limit: int, *, links: bool = True) -> bytes:
    """Return the bytes of a regular file that is not larger than limit; CheckpointError where it is anything else."""
    with open_regular(path, links=links) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise CheckpointError(path, f"is {size} bytes; json of more than {limit} bytes is not read")
        return bytes(file.read(limit))


def open_regular(path: Path, *, links: bool = True) -> Any:
    """Open a regular file for reading; a folder, a pipe, a device or a missing file is a CheckpointError.

    So is a link, unless ``links`` are followed.
    """
    # Of what takes the file's place after this look, a pipe would be waited for and a link be followed without these.
    flags = getattr(os, "O_NONBLOCK", 0) | (0 if links else getattr(os, "O_NOFOLLOW", 0))

    def check(found: os.stat_result) -> None:
        if not stat.S_ISREG(found.st_mode):
            raise CheckpointError(path, "is not a regular file")

    def opened(name: str, how: int) -> int:
        number = os.open(name, how | flags)
        check(os.fstat(number))
        return number

    try:
        check(os.stat(path, follow_symlinks=links))
        return open(path, "rb", opener=opened)
    except (OSError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CheckpointError(path, f"cannot be read: {reason}") from None


def parse_json(text: bytes, source: object, what: str = "is") -> Any:
    """Parse json strictly: UTF-8, no key twice, no NaN, no number of thousands of digits, no endless nesting.

    A byte order mark, as some editors put at the head of a file, is no part of it.
    """
    try:
        return json.loads(text.decode("utf-8-sig"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        problem = "nested too deeply"
    except UnicodeDecodeError:
        problem = "not UTF-8"
    except ValueError as error:
        problem = f"not valid: {shown(str(error))}"
    raise CheckpointError(source, f"{what} not json that can be read: {problem}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {shown_key(key)} is there twice")
            seen.add(key)
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a json number")


class _Flags:
    """The flags of an architecture block by dotted name, with errors that say where they stood."""

    def __init__(self, block: Mapping[str, Any], source: object) -> None:
        self.source = source
        self.values: dict[str, Any] = {str(key): value for key, value in block.items()}
        for name in _BLOCKS:
            inner = block.get(name)
            if inner is None:
                continue
            if not isinstance(inner, Mapping):
                self.fail(name, f"should be a json object, but is {shown(inner)}")
            self.values.update({f"{name}.{key}": value for key, value in inner.items()})

    def fail(self, name: str, problem: str) -> None:
        raise CheckpointError(self.source, problem, shown_key(name))

    def refuse_what_is_not_computed(self) -> None:
        for name, value in self.values.items():
            if name in _FIXED:
                expected = _FIXED[name]
                if type(value) is not type(expected) or value != expected:
                    self.fail(name, f"is {shown(value)}; this encoder computes {shown(expected)} only")
            elif name not in _READ and name not in _WITHOUT_EFFECT:
                self.fail(
                    name, f"is {shown(value)}; this encoder does not know the flag, which might change the result"
                )

    def get(self, name: str) -> Any:
        value = self.values.get(name)
        if value is None:
            self.fail(name, "is missing")
        return value

    def integer(self, name: str, *, low: int = 1, high: int = _MAX_SIZE, default: Any = ...) -> Any:
        if default is not ... and self.values.get(name) is None:
            return default
        value = self.get(name)
        if type(value) is not int or not low <= value <= high:
            self.fail(name, f"is {shown(value)}; it should be a whole number from {low} to {high}")
        return value

    def names(self, name: str, number: int | None) -> tuple[str, ...] | None:
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            self.fail(name, f"is {shown(value)}; it should be a list of strings")
        if len({*value}) != len(value) or number not in (None, len(value)):
            self.fail(name, f"is {shown(value)}; it should be {number or len(value)} different names")
        return tuple(value)

    def boolean(self, name: str, *, default: bool) -> bool:
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            self.fail(name, f"is {shown(value)}; it should be true or false")
        return bool(value)

    def choice(self, name: str, choices: tuple[Any, ...], default: str | None = None) -> str:
        value = self.get(name) if default is None else self.values.get(name, default)
        if not isinstance(value, str) or value not in choices:
            self.fail(name, f"is {shown(value)}; it should be one of {', '.join(choices)}")
        return str(value)
