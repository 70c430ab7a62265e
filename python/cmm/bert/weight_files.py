"""The files that hold tensors, opened and checked but not yet read: safetensors, and PyTorch's own format.

Either may be in several files, shards, with an index that says which tensor is in which.
"""

import importlib
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmm.bert import state_dict_map
from cmm.bert._safetensors import SafeTensors
from cmm.bert.config import open_regular, read_json
from cmm.bert.errors import CheckpointError, shown, shown_key
from cmm.bert.links import followed

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
    files: tuple[Path, ...]  # that have the tensors


#: How the name of an index ends, and how those of its shards do.
_INDEX = ".index.json"
_SHARDS = (".safetensors", ".bin")


def open_weights(file: Path, *, mapped: bool = True) -> Container:
    """Open a file of either kind, or the index of several; a CheckpointError where it is none, or broken.

    Parameters
    ----------
    file : Path
    mapped : bool, optional
        Whether tensors may stay in the file until they are used. Else they are in memory when this returns.
    """
    return _open_shards(file, mapped) if file.name.endswith(_INDEX) else _open_file(file, mapped)


def _open_shards(index: Path, mapped: bool) -> Container:
    """Open the shards that an index names; every tensor should be where the index says, and nowhere else."""
    ending = Path(index.name.removesuffix(_INDEX)).suffix
    if ending not in _SHARDS:
        raise CheckpointError(index, f"should be named NAME{_SHARDS[0]}{_INDEX} or NAME{_SHARDS[1]}{_INDEX}")
    block = read_json(index)
    places = block.get("weight_map") if isinstance(block, dict) else None
    if not isinstance(places, dict) or not places:
        raise CheckpointError(index, "should be an object with the file of each tensor", "weight_map")
    of_shard: dict[str, set[str]] = {}
    for key, name in places.items():
        if not isinstance(name, str) or not _is_plain(name) or not name.endswith(ending):
            problem = f"is in {shown(name)}; it should be the name of a {ending} file in the folder of the index"
            raise CheckpointError(index, problem, shown_key(key))
        of_shard.setdefault(name, set()).add(key)
    tensors: dict[str, Stored] = {}
    files = []
    for name in sorted(of_shard):
        shard = index.with_name(name)
        opened = _open_file(followed(shard), mapped)
        if opened.layout == "training state":
            raise CheckpointError(shard, "is a training state; a shard holds tensors alone")
        keys = _without_prefixes(of_shard[name], index)
        if absent := keys.keys() - opened.tensors.keys():
            problem = f"is missing, and {index.name} says that it is here"
            raise CheckpointError(shard, problem, shown_key(min(absent)))
        if surplus := opened.tensors.keys() - keys.keys():
            problem = f"is here, and {index.name} does not say so"
            raise CheckpointError(shard, problem, shown_key(min(surplus)))
        if twice := keys.keys() & tensors.keys():
            raise CheckpointError(shard, "is in another shard too", shown_key(min(twice)))
        tensors.update(opened.tensors)
        files.append(shard)
    return Container(tensors, "safetensors" if ending == ".safetensors" else "state_dict", {}, tuple(files))


def _is_plain(name: str) -> bool:
    """Whether a name is that of a file in the same folder, on any system."""
    return name not in ("", ".", "..") and len(name) <= 255 and name.isprintable() and not {*name} & {"/", "\\", ":"}


def _open_file(file: Path, mapped: bool) -> Container:
    with open_regular(file) as opened:
        start = opened.read(9)
    like_safetensors = file.suffix == ".safetensors" or start[8:9] == b"{"
    if not like_safetensors and start.startswith(b"\x80"):
        problem = "is a bare pickle; that might run code, and is not unpickled (PyTorch writes zip files since 1.6)"
        raise CheckpointError(file, problem)
    if like_safetensors or not start.startswith(b"PK\x03\x04"):
        found = SafeTensors(file, mapped=mapped)
        tensors = {
            key: Stored(entry.dtype, entry.shape, _reader(found, stored))
            for key, stored in _without_prefixes(found.entries, file).items()
            for entry in (found.entries[stored],)
        }
        return Container(tensors, "safetensors", found.metadata, (file,))
    state = _torch_load(file, mapped)
    if isinstance(state, Mapping) and isinstance(state.get("model"), Mapping):
        return Container(state_tensors(state["model"], file), "training state", {}, (file,))
    if not isinstance(state, Mapping):
        raise CheckpointError(file, f"holds a {type(state).__name__}; a state_dict or a training state was expected")
    return Container(state_tensors(state, file), "state_dict", {}, (file,))


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
        short = state_dict_map.without_prefixes(key)
        if short in result:
            raise CheckpointError(source, f"is there twice, the second time as {shown_key(key)}", shown_key(short))
        result[short] = key
    return result


def _torch_load(file: Path, mapped: bool) -> Any:
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        raise CheckpointError(file, "is a PyTorch file, and reading it needs PyTorch: pip install torch") from None
    _check_zip(file)
    try:
        # Mapped, so that of a training state only the model is read and not the optimizer's two copies of it.
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
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
