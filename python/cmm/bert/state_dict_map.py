"""Every tensor of a model: its name here, its key in the files that training leaves, and its shape in both.

This one table serves loading, export and models with random weights.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmm.bert.config import Config

# What wrappers put into keys, each before the names of the module that it wraps, at any depth: torch.compile
# (_orig_mod), DistributedDataParallel and DataParallel (module), FullyShardedDataParallel (_fsdp_wrapped_module,
# _fpw_module), activation checkpointing (_checkpoint_wrapped_module), DeepSpeed and others (_forward_module), and
# classes that have the model as an attribute. No module of this model has such a name.
_WRAPPER = re.compile(r"module|model|_\w*mod(ule)?")

WORD = "encoder.embedding.word_embedding.weight"
DECODER = "decoder.weight"
HEAD_TRANSFORM = "prediction_head.dense.weight"
POOLER = "pooler.dense.weight"
HEAD = "head.weight"


class Tensor(NamedTuple):
    """One tensor."""

    name: str  # here, and in exported files
    shape: tuple[int, ...]  # here, and in exported files
    key: str  # in training's files
    stored: tuple[int, ...]  # in training's files
    transposed: bool = False  # training's rows are our columns


def tensors(config: Config, *, vocab_size: int, num_labels: int | None) -> Iterator[Tensor]:
    """Yield the tensors of a model, in an order in which a missing one is found early.

    Parameters
    ----------
    config : Config
    vocab_size : int
    num_labels : int or None
        None for a model without a classifier.
    """
    width = config.hidden

    def same(name: str, key: str, *shape: int) -> Tensor:
        return Tensor(name, shape, key, shape)

    def norm(name: str, key: str) -> Iterator[Tensor]:
        for part in ("weight", "bias"):
            yield same(f"{name}.{part}", f"{key}.{part}", width)

    yield same("embedding.word", WORD, vocab_size, width)
    yield same("embedding.scale", "encoder.embedding.pos_embedding.scale_factor", 1)
    yield from norm("embedding.norm", "encoder.embedding.norm")
    for index in range(config.layers):
        name, key = f"layers.{index}", f"encoder.layers.{index}"
        yield from norm(f"{name}.norm1", f"{key}.norm1")
        yield same(f"{name}.qkv", f"{key}.attn.self_attention.query_key_value.weight", 3 * width, width)
        yield same(f"{name}.dense", f"{key}.attn.dense.weight", width, width)
        yield from norm(f"{name}.norm2", f"{key}.norm2")
        yield from _feedforward(config, f"{name}.ffn", f"{key}.ffn")
    yield from norm("final_norm", "encoder.final_norm")
    if config.head_transform:
        yield same("transform.dense", HEAD_TRANSFORM, width, width)
        yield from norm("transform.norm", "prediction_head.norm")
    if num_labels is not None:
        assert config.head_dim is not None
        yield same("pooler.weight", POOLER, config.head_dim, width)
        yield same("pooler.bias", "pooler.dense.bias", config.head_dim)
        yield same("head.weight", HEAD, num_labels, config.head_dim)
        yield same("head.bias", "head.bias", num_labels)


def _feedforward(config: Config, name: str, key: str) -> Iterator[Tensor]:
    width = config.hidden
    if config.trees is not None:
        trees, nodes = config.trees, config.nodes
        rows = trees * nodes
        yield Tensor(f"{name}.w_in", (trees, nodes, width), f"{key}.linear_in.weight", (rows, width))
        yield Tensor(f"{name}.bias", (trees, nodes), f"{key}.linear_in.bias", (rows,))
        yield Tensor(f"{name}.w_out", (trees, nodes, width), f"{key}.linear_out.weight", (width, rows), True)
    else:
        assert config.neurons is not None
        rows = config.neurons
        used = rows // 2 if config.gated else rows
        yield Tensor(f"{name}.w_in", (rows, width), f"{key}.dense_in.weight", (rows, width))
        yield Tensor(f"{name}.w_out", (used, width), f"{key}.dense_out.weight", (width, used), True)


def norm_factor_keys(config: Config) -> Iterator[str]:
    """Yield the keys of the buffers that hold ``norm_factor``, one per layer; nothing of ours."""
    for index in range(config.layers):
        yield f"encoder.layers.{index}.attn.self_attention.norm_factor"


def norm_factor(config: Config) -> float:
    """Return what the scores of attention are multiplied by."""
    return float((config.hidden // config.heads) ** -0.5)


def as_trained(config: Config, values: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return a model's tensors, by their names here, as training's files have them; the decoder is left out.

    Parameters
    ----------
    config : Config
    values : mapping of str to ndarray of one dtype
        All of a model. One without a masked-language-model head has no ``transform``.

    Returns
    -------
    dict of str to ndarray
        C-contiguous.
    """
    word, head = values["embedding.word"], values.get("head.bias")
    result = {}
    for tensor in tensors(config, vocab_size=len(word), num_labels=None if head is None else len(head)):
        if tensor.name in values:
            value = values[tensor.name]
            if tensor.transposed:
                value = np.ascontiguousarray(value.reshape(-1, value.shape[-1]).T)
            result[tensor.key] = value.reshape(tensor.stored)
    factor = np.array(norm_factor(config), word.dtype)
    return result | dict.fromkeys(norm_factor_keys(config), factor)


def without_prefixes(key: str) -> str:
    """Return a key without what compilation, distribution and other wrappers put into it."""
    *modules, parameter = key.split(".")
    return ".".join([*(name for name in modules if not _WRAPPER.fullmatch(name)), parameter])
