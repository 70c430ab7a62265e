"""Write a model as one folder that loads fast: ``W_out`` node-major, every tensor aligned, read by memory map."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmm._files import given_path
from cmm._native import VERSION
from cmm.bert import _safetensors
from cmm.bert.checkpoint import FORMAT, FORMAT_KEY, ConfigSource, build, load, open_checkpoint, open_state_dict
from cmm.bert.config import open_regular
from cmm.bert.errors import CheckpointError
from cmm.bert.model import Model
from cmm.bert.tokenizer import FILE, ROLE_FILES
from cmm.errors import ArgumentError


def export(
    source: str | os.PathLike[str] | Mapping[str, Any] | Model,
    folder: str | os.PathLike[str],
    *,
    config: ConfigSource = None,
    tokenizer: str | os.PathLike[str] | None = None,
    dtype: str = "float32",
) -> Path:
    """Write a model to a folder that ``load`` opens fast.

    The folder gets ``model.safetensors``, ``model_config.json`` with the vocabulary's size filled in, and the
    tokenizer files of the source. The metadata of ``model.safetensors`` says what it was made from. It is read back
    and compared before the folder gets its name, so that a folder of that name is always whole.

    Parameters
    ----------
    source : path-like, mapping of str to tensor, or Model
        Anything that ``load`` takes, a live ``state_dict`` of PyTorch tensors or numpy arrays, or a model.
    folder : path-like
        Should not exist, or be empty.
    config : mapping or path-like, optional
        As for ``load``.
    tokenizer : path-like, optional
        ``tokenizer.json``, or its folder, where it does not lie in the folder of the source.
    dtype : {"float32", "float16"}, optional
        How weights are stored. float16 halves the file, rounds every weight, and is computed in float32 as all are.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    CheckpointError
        The source cannot be loaded, there is no such tokenizer, or a weight is too large for float16.
    ArgumentError
        dtype is not one of those.
    FileExistsError
        The folder exists and is not empty.
    OSError
        It cannot be written.
    """
    if dtype not in _safetensors.WRITABLE:
        raise ArgumentError(f"dtype is {dtype!r}; it should be one of {', '.join(_safetensors.WRITABLE)}")
    folder = given_path("folder", folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not an empty folder")
    kept = [] if tokenizer is None else _tokenizer_files(given_path("tokenizer", tokenizer))
    model, provenance = _open(source, config)
    tensors = _stored(model, dtype)
    if tokenizer is None and (place := model.tokenizer_file) is not None:
        kept = _tokenizer_files(place)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        made = Path(temporary) / "model"
        made.mkdir()
        _write(model, tensors, made, provenance)
        for name, file in kept:
            shutil.copyfile(file, made / name)
        if not _same(tensors, load(made)):
            raise OSError(f"{made / 'model.safetensors'} does not read back as it was written")
        if folder.exists():
            folder.rmdir()
        made.rename(folder)
    return folder


def _open(source: Any, config: ConfigSource) -> tuple[Model, dict[str, str]]:
    if isinstance(source, Model):
        return source.to("cpu"), {"source": source.source, "source_layout": "model"}
    if isinstance(source, Mapping):
        checkpoint = open_state_dict(source, config)
        return build(checkpoint), {"source": checkpoint.source, "source_layout": checkpoint.layout}
    checkpoint = open_checkpoint(source, config, argument="source")
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
    metadata = {
        FORMAT_KEY: FORMAT,
        "cmm_version": VERSION,
        "decoder": "yes" if model.has_decoder else "no",
        **provenance,
    }
    _safetensors.write(folder / "model.safetensors", tensors, metadata)
    arch = model.config.arch
    arch = {**arch, "embedding": {**arch["embedding"], "vocab_size": len(model.weights.word)}}
    (folder / "model_config.json").write_text(json.dumps(arch, default=str) + "\n", encoding="utf-8")


def _tokenizer_files(place: Path) -> list[tuple[str, Path]]:
    """Return the names and places of a tokenizer's files; place is its main file or the folder of it."""
    main = place / FILE if place.is_dir() else place
    open_regular(main).close()
    return [(FILE, main), *((name, file) for name in ROLE_FILES if (file := main.parent / name).is_file())]


def _same(tensors: dict[str, NDArray[Any]], other: Model) -> bool:
    """Whether a model has these tensors, bit for bit."""
    return tensors.keys() == other.tensors.keys() and all(
        np.array_equal(tensor.astype(np.float32).view(np.uint32), other.tensors[name].view(np.uint32))
        for name, tensor in tensors.items()
    )
