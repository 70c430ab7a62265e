"""The files that hold tensors, opened and checked but not yet read: safetensors, and PyTorch's own format."""

import importlib
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmm.bert import names
from cmm.bert._safetensors import SafeTensors
from cmm.bert.config import open_regular
from cmm.bert.errors import CheckpointError, shown, shown_key

Floats = NDArray[np.float32]


class Stored(NamedTuple):
    """A tensor in a file: what its header says, and how to read it."""

    dtype: str  # "F32", "F16", "BF16", or another name
    shape: tuple[int, ...]
    read: Callable[[], Floats]


class Container(NamedTuple):
    """An opened file."""

    tensors: dict[str, Stored]  # by keys without training's prefixes
    layout: str  # "safetensors", "training state" or "state_dict"
    metadata: Mapping[str, str]


def open_weights(file: Path) -> Container:
    """Open a file of either kind; a CheckpointError where it is neither, or broken."""
    with open_regular(file) as opened:
        start = opened.read(9)
    like_safetensors = file.suffix == ".safetensors" or start[8:9] == b"{"
    if not like_safetensors and start.startswith(b"\x80"):
        problem = "is a bare pickle; that might run code, and is not unpickled (PyTorch writes zip files since 1.6)"
        raise CheckpointError(file, problem)
    if like_safetensors or not start.startswith(b"PK\x03\x04"):
        found = SafeTensors(file)
        tensors = {
            key: Stored(entry.dtype, entry.shape, _reader(found, stored))
            for key, stored in _without_prefixes(found.entries, file).items()
            for entry in (found.entries[stored],)
        }
        return Container(tensors, "safetensors", found.metadata)
    state = _torch_load(file)
    if isinstance(state, Mapping) and isinstance(state.get("model"), Mapping):
        return Container(state_tensors(state["model"], file), "training state", {})
    if not isinstance(state, Mapping):
        raise CheckpointError(file, f"holds a {type(state).__name__}; a state_dict or a training state was expected")
    return Container(state_tensors(state, file), "state_dict", {})


def _reader(file: SafeTensors, key: str) -> Callable[[], Floats]:
    return lambda: file.array(key)


def state_tensors(state: Mapping[str, Any], source: object) -> dict[str, Stored]:
    """Return the tensors of a ``state_dict``, PyTorch's or numpy's; what they read is a copy."""
    known = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
    result = {}
    for key, stored in _without_prefixes(state, source).items():
        value = state[stored]
        if not (hasattr(value, "shape") and hasattr(value, "dtype")):
            raise CheckpointError(source, f"is a {type(value).__name__}, not a tensor", shown_key(key))
        dtype = str(value.dtype).removeprefix("torch.")
        shape = tuple(int(length) for length in value.shape)
        result[key] = Stored(known.get(dtype, dtype), shape, _copier(value, source, key))
    return result


def _copier(value: Any, source: object, key: str) -> Callable[[], Floats]:
    def copy() -> Floats:
        try:
            plain = value.detach().cpu().float().numpy() if hasattr(value, "detach") else value
            return np.array(plain, np.float32, order="C")
        except Exception as error:  # sparse, quantized, without storage: whatever else PyTorch calls a tensor
            raise CheckpointError(source, f"is no plain tensor: {_first_line(error)}", shown_key(key)) from None

    return copy


def _without_prefixes(keys: Iterable[Any], source: object) -> dict[str, str]:
    result: dict[str, str] = {}
    for key in keys:
        if not isinstance(key, str):
            raise CheckpointError(source, f"has the key {shown(key)}, which is not a string")
        short = names.without_prefixes(key)
        if short in result:
            raise CheckpointError(source, f"is there twice, the second time as {shown_key(key)}", shown_key(short))
        result[short] = key
    return result


def _torch_load(file: Path) -> Any:
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        raise CheckpointError(file, "is a PyTorch file, and reading it needs PyTorch: pip install torch") from None
    _check_zip(file)
    try:
        # Mapped, so that of a training state only the model is read and not the optimizer's two copies of it.
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever PyTorch's reader makes of a broken file
        problem = f"cannot be read as a PyTorch file: {_first_line(error)}"
        if "weights_only" in str(error) or "Weights only" in str(error):
            problem = "holds more than tensors and plain values; that might run code, and is not unpickled"
        raise CheckpointError(file, problem) from None


def _check_zip(file: Path) -> None:
    """Refuse a zip file that would unpack to more than its own size, or is none."""
    try:
        with zipfile.ZipFile(file) as opened:
            stored = all(member.compress_type == zipfile.ZIP_STORED for member in opened.infolist())
            size = sum(member.file_size for member in opened.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError, struct.error) as error:
        raise CheckpointError(file, f"cannot be read as a PyTorch file: {_first_line(error)}") from None
    if not stored or size > file.stat().st_size:
        raise CheckpointError(file, "is a compressed zip file; PyTorch writes uncompressed ones")


def _first_line(error: Exception) -> str:
    return shown(next(iter(str(error).splitlines()), "") or type(error).__name__)
