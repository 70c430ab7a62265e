"""From any file that training leaves to a model; nothing is executed, guessed or half-loaded.

The order of the checks: the container (``weight_files.py``), the configuration (``config.py``), then every key, dtype
and shape, and last the values. What is wrong is a :class:`CheckpointError`.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from cmm._files import given_path
from cmm.bert import state_dict_map
from cmm.bert._safetensors import READABLE, shown_shape
from cmm.bert.config import Config, parse, read_json
from cmm.bert.errors import CheckpointError, shown, shown_key
from cmm.bert.model import Model
from cmm.bert.weight_files import Stored, open_weights, state_tensors
from cmm.errors import DtypeError
from cmm.typing import Weights

#: The mark of exported files in the metadata of ``model.safetensors``, and its only value so far.
FORMAT_KEY, FORMAT = "format", "cmm.bert 1"

# In a folder the first of these that is there has the weights, and the configuration is in one of those.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "intermediate_state.pth",
    "model.pth",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
CONFIG_FILES = ("model_config.json", "config.json")

ConfigSource = Mapping[str, Any] | str | os.PathLike[str] | None


class Checkpoint(NamedTuple):
    """A checkpoint whose container has been opened and whose configuration has been checked."""

    source: str  # the file, for messages and provenance
    layout: str  # "exported", "final", "hub", "legacy", "training state" or "state_dict"
    folder: Path | None  # where a tokenizer may lie
    config: Config
    tensors: Mapping[str, Stored]
    has_decoder: bool
    files: tuple[Path, ...] = ()  # that the tensors are in

    def fail(self, key: str, problem: str) -> NoReturn:
        """Raise a CheckpointError about a tensor."""
        raise CheckpointError(self.source, problem, shown_key(key))


def load(
    path: str | os.PathLike[str],
    *,
    config: ConfigSource = None,
    mmap: bool = True,
    weights: Weights | None = None,
    exact_path: bool | float = False,
) -> Model:
    """Load a model from a folder or a file.

    Parameters
    ----------
    path : path-like
        A folder as training or ``export`` leaves it, or one file: safetensors, or PyTorch's own format, which is read
        with PyTorch's ``weights_only`` and needs PyTorch; or the index of several, ``model.safetensors.index.json``.
    config : mapping or path-like, optional
        The architecture block, or a json file with it. Needed where no ``model_config.json`` or ``config.json`` lies
        beside the weights; used instead of them where they do.
    mmap : bool, optional
        Whether float32 arrays may stay in the file and be read as they are needed. Then the file must not change
        while the model lives: the process dies when it reads what somebody has cut off. False reads everything now,
        which takes memory of the file's size.
    weights : {"float32", "bfloat16", "float16", "int8"} or a pair of these, optional
        What to keep the rows of the FFF layers in, see :class:`cmm.FFF`. The model then stays on the CPU.
    exact_path : bool or float, optional
        Whether tokens take the paths of float32 rows nevertheless.

    Returns
    -------
    Model

    Raises
    ------
    CheckpointError
        The file or the configuration is missing, broken, or not of a model that is computed here.
    DtypeError
        path or config is neither a path nor, for config, a mapping.
    ArgumentError
        weights or exact_path is none of its values, or the model has dense layers.
    """
    return build(open_checkpoint(path, config, mapped=bool(mmap)), weights, exact_path)


def from_state_dict(state: Mapping[str, Any], config: Mapping[str, Any] | str | os.PathLike[str]) -> Model:
    """Make a model of a live ``state_dict``.

    Parameters
    ----------
    state : mapping of str to tensor
        PyTorch tensors or numpy arrays by training's keys, with or without what wrappers put into these, such as
        ``_orig_mod.`` and ``module.``. Copied.
    config : mapping or path-like
        The architecture block, or a json file with it.

    Returns
    -------
    Model

    Raises
    ------
    CheckpointError, DtypeError
        As in ``load``.
    """
    return build(open_state_dict(state, config))


def open_state_dict(state: Any, config: ConfigSource) -> Checkpoint:
    """Check the configuration of a ``state_dict`` and wrap it."""
    if not isinstance(state, Mapping):
        remedy = ": its state_dict()" if hasattr(state, "state_dict") else ""
        raise DtypeError(f"state is a {type(state).__name__}; it should be a mapping of names to tensors{remedy}")
    if config is None:
        raise CheckpointError("state_dict", "has no configuration: give config=, a dict or a json file")
    parsed = _given(config)
    tensors = state_tensors(state, "state_dict")
    layout = "legacy" if _is_legacy(tensors) else "state_dict"
    return Checkpoint("state_dict", layout, None, parsed, tensors, _has_decoder(tensors))


def open_checkpoint(
    path: str | os.PathLike[str], config: ConfigSource = None, *, argument: str = "path", mapped: bool = True
) -> Checkpoint:
    """Find weights and configuration, check the container and the configuration, read no weights.

    Parameters
    ----------
    path : path-like
    config : mapping or path-like, optional
    argument : str, optional
        What the caller's user knows the path as.
    mapped : bool, optional
        As for ``open_weights``.
    """
    path = given_path(argument, path)
    folder = path if path.is_dir() else path.parent
    file = _weights_in(path) if path.is_dir() else path
    tensors, layout, metadata, files = open_weights(file, mapped=mapped)
    exported = metadata.get(FORMAT_KEY, "")
    if exported.startswith("cmm.bert") and exported != FORMAT:
        raise CheckpointError(file, f"was exported as {shown(exported)}; this version of cmm reads {FORMAT!r}")
    parsed, beside = _config_in(folder, file) if config is None else (_given(config), "")
    folder = folder.absolute()  # the tokenizer is looked for later, when the current folder may be another one
    if exported == FORMAT:
        has_decoder = metadata.get("decoder") == "yes"
        return Checkpoint(str(file), "exported", folder, parsed, tensors, has_decoder, files)
    if layout == "safetensors":
        layout = "hub" if beside == "config.json" else "final"
    if _is_legacy(tensors):
        layout = "legacy"
    return Checkpoint(str(file), layout, folder, parsed, tensors, _has_decoder(tensors), files)


def _is_legacy(tensors: Mapping[str, Stored]) -> bool:
    return state_dict_map.DECODER in tensors and state_dict_map.WORD not in tensors


def _has_decoder(tensors: Mapping[str, Stored]) -> bool:
    """Whether tensors by training's keys have a masked-language-model head.

    Its last matrix is the word embedding, and a writer that stores shared memory once leaves it out: only a file with
    a classifier may be without that head.
    """
    if state_dict_map.DECODER in tensors or state_dict_map.HEAD_TRANSFORM in tensors:
        return True
    return not tensors.keys() & {state_dict_map.HEAD, state_dict_map.POOLER}


def _weights_in(folder: Path) -> Path:
    for name in WEIGHT_FILES:
        if os.path.exists(folder / name):
            return folder / name
    raise CheckpointError(folder, f"has no weights: none of {', '.join(WEIGHT_FILES)} is there")


def _given(config: Mapping[str, Any] | str | os.PathLike[str]) -> Config:
    if isinstance(config, Mapping):
        return parse(config)
    path = given_path("config", config)
    return parse(read_json(path), path)


def _config_in(folder: Path, file: Path) -> tuple[Config, str]:
    """Return the configuration that lies beside the weights, and the name of its file."""
    found = [folder / name for name in CONFIG_FILES if os.path.exists(folder / name)]
    if not found:
        beside = f"has no configuration beside it ({' or '.join(CONFIG_FILES)})"
        raise CheckpointError(file, f"{beside}: give config=, a dict or a json file")
    first = parse(read_json(found[0]), found[0])
    if len(found) == 2:
        # Only a hub configuration says anything about this model; other tools write files of that name too.
        block = read_json(found[1])
        if isinstance(block, dict) and "arch" in block and (name := first.differs(parse(block, found[1]))):
            raise CheckpointError(folder, f"{found[0].name} and {found[1].name} contradict each other", name)
    return first, found[0].name


def build(checkpoint: Checkpoint, weights: Weights | None = None, exact_path: bool | float = False) -> Model:
    """Check every key, dtype and shape, then every value, and make the model."""
    table = _table(checkpoint)
    buffers = {} if checkpoint.layout == "exported" else _buffers(checkpoint)
    expected = {*table, *buffers}
    tied = state_dict_map.WORD in table and state_dict_map.DECODER in checkpoint.tensors
    if tied:
        _check(checkpoint, state_dict_map.DECODER, table[state_dict_map.WORD].stored)
        expected.add(state_dict_map.DECODER)
    if unknown := checkpoint.tensors.keys() - expected:
        checkpoint.fail(min(unknown), "is unknown: no such tensor belongs to this configuration")

    for key, factor in buffers.items():
        found = float(checkpoint.tensors[key].read())
        if not abs(found - factor) <= factor * 2**-8:  # bfloat16 rounds by at most 2^-9 of a value; NaN fails too
            checkpoint.fail(key, f"is {found!r}, but heads of this width need {factor!r}")
    values = {}
    for key, tensor in table.items():
        value = _read(checkpoint, key)
        if tensor.transposed and checkpoint.layout != "exported":
            value = np.ascontiguousarray(value.T)
        values[tensor.name] = value.reshape(tensor.shape)
    if tied and not np.array_equal(_read(checkpoint, state_dict_map.DECODER), values["embedding.word"]):
        checkpoint.fail(state_dict_map.DECODER, f"differs from {state_dict_map.WORD}; they should be tied")
    source, folder = checkpoint.source, checkpoint.folder
    return Model(
        checkpoint.config,
        values,
        has_decoder=checkpoint.has_decoder,
        source=source,
        folder=folder,
        weights=weights,
        exact_path=exact_path,
    )


def _table(checkpoint: Checkpoint) -> dict[str, state_dict_map.Tensor]:
    """Return the tensors that this model should have by their keys in the file, all there and of the right shape."""
    config, keys = checkpoint.config, checkpoint.tensors.keys()
    exported = checkpoint.layout == "exported"
    word = "embedding.word" if exported else state_dict_map.WORD
    if checkpoint.layout == "legacy":
        word = state_dict_map.DECODER  # which is the embedding too
    vocab_size = _rows(checkpoint, word, config.vocab_size, "embedding.vocab_size")

    num_labels = None
    if state_dict_map.HEAD in keys or state_dict_map.POOLER in keys or config.num_labels is not None:
        num_labels = _rows(checkpoint, state_dict_map.HEAD, config.num_labels, "num_labels")
        if config.pooler is None:
            checkpoint.fail("classification_head", "is missing from the configuration, but the file has a classifier")
    elif not checkpoint.has_decoder:
        checkpoint.fail(state_dict_map.HEAD, "is missing, and so is a masked-language-model head")

    table = {}
    for tensor in state_dict_map.tensors(config, vocab_size=vocab_size, num_labels=num_labels):
        if tensor.name.startswith("transform.") and not checkpoint.has_decoder:
            continue
        key = tensor.name if exported else word if tensor.key == state_dict_map.WORD else tensor.key
        _check(checkpoint, key, tensor.shape if exported else tensor.stored)
        table[key] = tensor
    return table


def _rows(checkpoint: Checkpoint, key: str, configured: int | None, flag: str) -> int:
    """Return the rows of a matrix whose number the configuration may leave open."""
    if key not in checkpoint.tensors:
        checkpoint.fail(key, "is missing")
    shape = checkpoint.tensors[key].shape
    if len(shape) != 2 or shape[0] < 1:
        checkpoint.fail(key, f"shape {shown_shape(shape)}; it should have rows and columns")
    if configured is not None and shape[0] != configured:
        checkpoint.fail(key, f"shape {shown_shape(shape)}, but {flag} is {configured}")
    return shape[0]


def _check(checkpoint: Checkpoint, key: str, shape: tuple[int, ...]) -> None:
    """Check one tensor's presence, dtype and shape."""
    if key not in checkpoint.tensors:
        checkpoint.fail(key, f"is missing; its shape should be {shown_shape(shape)}")
    dtype, actual, _ = checkpoint.tensors[key]
    if dtype not in READABLE:
        checkpoint.fail(key, f"dtype {shown(dtype)}; it should be one of {', '.join(READABLE)}")
    if actual == shape:
        return
    problem = f"shape {shown_shape(actual)}; it should be {shown_shape(shape)}"
    trees, depth = checkpoint.config.trees, checkpoint.config.depth
    if trees is not None and depth is not None and ".ffn." in key:
        nodes = trees * checkpoint.config.nodes
        problem += (
            f", for intermed_size {trees} and intermed_depth {depth} are {trees} * (2^{depth + 1} - 1) = {nodes}"
        )
        problem += " nodes"
    checkpoint.fail(key, problem)


def _buffers(checkpoint: Checkpoint) -> dict[str, float]:
    """Return the keys of the scales of the attention's scores, and what their value should be."""
    factor = state_dict_map.norm_factor(checkpoint.config)
    keys = list(state_dict_map.norm_factor_keys(checkpoint.config))
    for key in keys:
        _check(checkpoint, key, ())
    return dict.fromkeys(keys, factor)


# Elements that are looked at in one go: 1 MiB, which stays in cache between the two looks.
_CHUNK = 1 << 18


def _read(checkpoint: Checkpoint, key: str) -> NDArray[np.float32]:
    """Read one tensor and check that every value is finite."""
    value = checkpoint.tensors[key].read()
    flat = value.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        chunk = flat[start : start + _CHUNK]
        # Maximum and minimum hand on a NaN, and need no array of answers.
        if not (np.isfinite(chunk.max()) and np.isfinite(chunk.min())):
            where = start + int(np.argmin(np.isfinite(chunk)))
            place = shown_shape(tuple(int(i) for i in np.unravel_index(where, value.shape)))
            checkpoint.fail(key, f"is {flat[where]} at {place}; every weight should be finite")
    return value
