"""Write a model as one folder: one that loads fast, read by memory map, or one that transformers reads too."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmm._files import given_path
from cmm._native import VERSION
from cmm.bert import _safetensors, state_dict_map
from cmm.bert.checkpoint import (
    CONFIG_FILES,
    FORMAT,
    FORMAT_KEY,
    ConfigSource,
    build,
    load,
    open_checkpoint,
    open_state_dict,
)
from cmm.bert.errors import CheckpointError
from cmm.bert.hub import files
from cmm.bert.model import Model
from cmm.bert.tokenizer import stored_files
from cmm.bert.trained import packaged
from cmm.errors import ArgumentError

WEIGHTS = "model.safetensors"


def export(
    source: str | os.PathLike[str] | Mapping[str, Any] | Model,
    folder: str | os.PathLike[str],
    *,
    config: ConfigSource = None,
    tokenizer: str | os.PathLike[str] | None = None,
    dtype: str = "float32",
    transformers: bool = False,
) -> Path:
    """Write a model to a folder that ``load`` opens fast.

    The folder gets ``model.safetensors``, ``model_config.json`` with the sizes of the vocabulary and of the
    classifier filled in, and the tokenizer files of the source. The metadata of ``model.safetensors`` says what it
    was made from. It is read back and compared before the folder gets its name; into a folder that is there, files
    come after that, the weights last. So a folder with weights is always whole. After an error nothing is there that
    was not there before.

    What is copied from the source is small regular json. Links are followed within its folder or hub cache alone.

    Parameters
    ----------
    source : path-like, mapping of str to tensor, or Model
        Anything that ``load`` takes, a live ``state_dict`` of PyTorch tensors or numpy arrays, a model, or ``"fff"``
        or ``"dense"``, a model of the package ``libcmm-models``.
    folder : path-like
        Should not exist, or be empty.
    config : mapping or path-like, optional
        As for ``load``.
    tokenizer : path-like, optional
        ``tokenizer.json``, or its folder, where it does not lie in the folder of the source.
    dtype : {"float32", "float16"}, optional
        How weights are stored. float16 halves the file, rounds every weight, and is computed in float32 as all are.
    transformers : bool, optional
        Write the folder so that also the Auto classes of the package transformers read it, with
        ``trust_remote_code=True``: the weights under training's names, ``W_out`` as training has it, so that ``load``
        has to turn it; ``config.json`` instead of ``model_config.json``; and the code of ``cmm.bert.hub``.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    CheckpointError
        The source cannot be loaded, there is no such tokenizer, what it has is not to be copied or is no longer
        there, or a weight is too large for float16.
    ArgumentError
        dtype is not one of those, or transformers is neither True nor False.
    DtypeError
        An argument is neither a path nor the like.
    FileExistsError
        There is something of that name that is not an empty folder.
    OSError
        It cannot be written.
    """
    if dtype not in _safetensors.WRITABLE:
        raise ArgumentError(f"dtype is {dtype!r}; it should be one of {', '.join(_safetensors.WRITABLE)}")
    if not isinstance(transformers, bool):
        raise ArgumentError(f"transformers is {transformers!r}; it should be True or False")
    folder = given_path("folder", folder)
    if os.path.lexists(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not an empty folder")
    kept = [] if tokenizer is None else stored_files(given_path("tokenizer", tokenizer), named=True)
    model, provenance = _open(source, config)
    tensors = _stored(model, dtype)
    if tokenizer is None and (place := model.tokenizer_file) is not None:
        kept = stored_files(place)
    with _filled(folder) as made:
        if transformers:
            kept = _write_for_transformers(model, tensors, made, provenance, kept, dtype)
        else:
            _write(model, tensors, made, provenance)
        for name, content in kept:
            (made / name).write_bytes(content)
        if not _same(tensors, load(made)):
            raise OSError(f"{folder}: {WEIGHTS} does not read back as it was written")
    return folder


@contextmanager
def _filled(folder: Path) -> Iterator[Path]:
    """Give an empty folder that becomes the one asked for at the end of the block; after an error nothing is left.

    What is there already, perhaps the current folder, a link or another disk, stays and gets the files.
    """
    there = folder.is_dir()
    new: list[Path] = []
    moved: list[Path] = []
    try:
        for parent in reversed([one for one in folder.parents if not one.exists()]):
            parent.mkdir()
            new.append(parent)
        with tempfile.TemporaryDirectory(prefix=".cmm-export-", dir=folder if there else folder.parent) as temporary:
            made = Path(temporary) / "model"
            made.mkdir()
            yield made
            if not there:
                made.rename(folder)
                return
            for file in sorted(made.iterdir(), key=lambda file: file.name == WEIGHTS):
                moved.append(file.rename(folder / file.name))
    except BaseException:
        for file in moved:
            file.unlink(missing_ok=True)
        for parent in reversed(new):
            with suppress(OSError):  # another program may have put something there
                parent.rmdir()
        raise


def _open(source: Any, config: ConfigSource) -> tuple[Model, dict[str, str]]:
    if isinstance(source, Model):
        return source.to("cpu"), {"source": source.source, "source_layout": "model"}
    if isinstance(source, Mapping):
        checkpoint = open_state_dict(source, config)
        return build(checkpoint), {"source": checkpoint.source, "source_layout": checkpoint.layout}
    checkpoint = open_checkpoint(packaged(source), config, argument="source")
    digest = hashlib.sha256()
    for place in checkpoint.files:
        with open(place, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    name = "/".join(Path(checkpoint.source).absolute().parts[-2:])
    provenance = {"source": name, "source_layout": checkpoint.layout, "source_sha256": digest.hexdigest()}
    return build(checkpoint), provenance


def _stored(model: Model, dtype: str) -> dict[str, NDArray[Any]]:
    """Return the tensors as they are to be written."""
    kind = _safetensors.WRITABLE[dtype]
    with np.errstate(over="ignore"):  # looked for below
        tensors = {name: tensor.astype(kind, copy=False) for name, tensor in model.tensors.items()}
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise CheckpointError(model.source, f"has a weight that is too large for {dtype}", name)
    return tensors


def _write(model: Model, tensors: dict[str, NDArray[Any]], folder: Path, provenance: Mapping[str, str]) -> None:
    has_decoder = {"decoder": "yes" if model.has_decoder else "no"}
    _safetensors.write(folder / WEIGHTS, tensors, _metadata(FORMAT, {**has_decoder, **provenance}))
    (folder / CONFIG_FILES[0]).write_text(json.dumps(_arch(model), default=str) + "\n", encoding="utf-8")


def _write_for_transformers(
    model: Model,
    tensors: dict[str, NDArray[Any]],
    folder: Path,
    provenance: Mapping[str, str],
    kept: list[tuple[str, bytes]],
    dtype: str,
) -> list[tuple[str, bytes]]:
    """Write weights and configuration in the layout of the hub; return the other files that belong to it."""
    values = state_dict_map.as_trained(model.config, tensors)
    if model.has_decoder and model.weights.classifier is not None:
        values[state_dict_map.DECODER] = values[state_dict_map.WORD]  # or it would be one without
    _safetensors.write(folder / WEIGHTS, values, _metadata("pt", provenance))
    kept, roles = files.tokenizer_files(kept, model.config.max_seq_length)
    block = files.configuration(model, _arch(model), dtype, roles)
    (folder / CONFIG_FILES[1]).write_text(json.dumps(block, indent=1, default=str) + "\n", encoding="utf-8")
    return [*kept, *files.code()]


def _metadata(format: str, others: Mapping[str, str]) -> dict[str, str]:
    metadata = {FORMAT_KEY: format, "cmm_version": VERSION, **others}
    # Names of files need not be Unicode; json does.
    return {key: text.encode(errors="backslashreplace").decode() for key, text in metadata.items()}


def _arch(model: Model) -> dict[str, Any]:
    """Return the architecture block with the sizes of the vocabulary and of the classifier filled in."""
    arch = model.config.arch
    arch = {**arch, "embedding": {**arch["embedding"], "vocab_size": len(model.weights.word)}}
    if model.weights.classifier is not None:
        arch["num_labels"] = len(model.weights.classifier.head_bias)
    return arch


def _same(tensors: dict[str, NDArray[Any]], other: Model) -> bool:
    """Whether a model has these tensors, bit for bit."""
    return tensors.keys() == other.tensors.keys() and all(
        np.array_equal(tensor.astype(np.float32).view(np.uint32), other.tensors[name].view(np.uint32))
        for name, tensor in tensors.items()
    )
