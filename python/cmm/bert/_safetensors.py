"""A bounds-checked reader and a writer of safetensors files: numpy and a memory map, nothing else.

The format: 8 bytes, little-endian, the length of a json header; the header; the tensors' bytes, back to back. Every
number in the header is checked against the file before anything is made from it, so what a file can make this reader
allocate is bounded by its own size and ``HEADER_LIMIT``. Also reads bfloat16, which numpy does not have.
"""

import json
import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmm.bert.config import JSON_LIMIT as HEADER_LIMIT
from cmm.bert.config import open_regular, parse_json
from cmm.bert.errors import CheckpointError, shown, shown_key

#: Where tensors start in the files that ``write`` makes: the alignment of a cache line.
ALIGNMENT = 64

# Bits of an element, for every dtype that the format has had.
_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E5M2FNUZ", "F8_E4M3FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
READABLE = ("F32", "F16", "BF16")
WRITABLE: dict[str, np.dtype[Any]] = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16)}


class Entry(NamedTuple):
    """One tensor of a file: its dtype as the format names it, its shape, and its place after the header in bytes."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class SafeTensors:
    """An open safetensors file whose header has been checked.

    Parameters
    ----------
    path : Path
    mapped : bool, optional
        Whether the file is mapped, read-only; then it must not be truncated while arrays of it live. Else it is read
        into memory.

    Attributes
    ----------
    entries : dict of str to Entry
    metadata : dict of str to str

    Raises
    ------
    CheckpointError
        It is not a valid safetensors file.
    """

    def __init__(self, path: Path, *, mapped: bool = True) -> None:
        self.path = path
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise CheckpointError(path, f"is truncated: {size} bytes, less than the 8 that a header starts with")
            try:
                self._map = _mapped(file, size) if mapped else _in_memory(file, size)
            except (OSError, ValueError) as error:
                problem = error.strerror if isinstance(error, OSError) else str(error)
                raise CheckpointError(path, f"cannot be {'mapped' if mapped else 'read'}: {problem}") from None
        (length,) = struct.unpack("<Q", self._map[:8])
        if length > HEADER_LIMIT:
            raise CheckpointError(path, f"claims a header of {length} bytes; more than {HEADER_LIMIT} is not read")
        if length > size - 8:
            raise CheckpointError(path, f"is truncated: a header of {length} bytes in a file of {size} bytes")
        text = bytes(self._map[8 : 8 + length])
        if text[:1] != b"{":
            raise CheckpointError(path, "is not a safetensors file: its header does not start with {")
        self._data = 8 + length
        header = parse_json(text, path, "has a header that is")
        self.metadata = self._checked_metadata(header.pop("__metadata__", None))
        self.entries = {name: self._checked_entry(name, value) for name, value in header.items()}
        self._check_layout(size - self._data)

    def _checked_metadata(self, value: Any) -> dict[str, str]:
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
            raise CheckpointError(self.path, "should be an object of strings", "__metadata__")
        return value

    def _checked_entry(self, name: str, value: Any) -> Entry:
        def fail(problem: str) -> CheckpointError:
            return CheckpointError(self.path, problem, shown_key(name))

        if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
            raise fail("should have dtype, shape and data_offsets, and nothing else")
        dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _BITS:
            raise fail(f"unknown dtype {shown(dtype)}")
        if not _are_sizes(shape) or len(shape) > 8:
            raise fail(f"shape is {shown(shape)}; it should be at most 8 numbers, none negative")
        if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise fail(f"data_offsets is {shown(offsets)}; it should be a start and an end")
        bits = _BITS[dtype]
        for length in shape:
            bits *= length
        if bits != 8 * (offsets[1] - offsets[0]):
            raise fail(f"{shown_shape(shape)} {dtype} takes {bits // 8} bytes, but data_offsets is {shown(offsets)}")
        return Entry(dtype, tuple(shape), offsets[0], offsets[1])

    def _check_layout(self, size: int) -> None:
        """Check that the tensors fill the rest of the file: no overlap, no hole, nothing outside, nothing left."""
        end = 0
        for name, entry in sorted(self.entries.items(), key=lambda item: (item[1].start, item[1].end)):
            problem = None
            if entry.end > size:
                problem = f"ends at byte {entry.end} of {size} bytes of data: out of range, or the file is truncated"
            elif entry.start < end:
                problem = f"starts at byte {entry.start}, inside the tensor before it, which ends at {end}"
            elif entry.start > end:
                problem = f"starts at byte {entry.start}, {entry.start - end} bytes after the tensor before it"
            if problem:
                raise CheckpointError(self.path, problem, shown_key(name))
            end = entry.end
        if end != size:
            raise CheckpointError(self.path, f"has {size - end} bytes after its last tensor")

    def array(self, name: str) -> NDArray[np.float32]:
        """Return a tensor as float32: read-only memory of the map where it is float32 already, a copy otherwise.

        Raises
        ------
        CheckpointError
            Its dtype is not one of ``READABLE``.
        """
        entry = self.entries[name]
        if entry.dtype not in READABLE:
            raise CheckpointError(
                self.path, f"dtype {entry.dtype}; it should be one of {', '.join(READABLE)}", shown_key(name)
            )
        stored = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[entry.dtype]
        count = (entry.end - entry.start) // np.dtype(stored).itemsize
        raw = np.frombuffer(self._map, stored, count, self._data + entry.start).reshape(entry.shape)
        if entry.dtype == "BF16":
            wide = raw.astype(np.uint32)
            wide <<= 16  # a bfloat16 is the upper half of a float32
            return wide.view(np.float32)
        result = raw.astype(np.float32, copy=False)
        return result if result.flags.aligned else result.copy()


def _mapped(file: Any, size: int) -> memoryview:
    return memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))


def _in_memory(file: Any, size: int) -> memoryview:
    """Return a copy, which starts at a page as a mapped file does: the same alignment, so the same bits of a BLAS."""
    memory = memoryview(mmap.mmap(-1, size))
    if file.readinto(memory) != size:
        raise ValueError("it was cut while it was read")
    return memory.toreadonly()


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def shown_shape(shape: Any) -> str:
    """Return a shape in short, as in ``(31, 64)``."""
    return shown(tuple(shape))


def write(path: Path, tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Write float32 or float16 tensors, every one aligned to ``ALIGNMENT`` bytes where the sizes allow it.

    The format has no room between tensors, so those whose size is a multiple of the alignment come first.

    Parameters
    ----------
    path : Path
        A file that does not exist yet.
    tensors : mapping of str to ndarray, float32 or float16, C-contiguous
    metadata : mapping of str to str
    """
    names = sorted(tensors, key=lambda name: tensors[name].nbytes % ALIGNMENT != 0)
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name in names:
        array = tensors[name]
        assert array.dtype in WRITABLE.values()
        dtype = "F16" if array.dtype == np.float16 else "F32"
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with open(path, "xb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            file.write(np.ascontiguousarray(tensors[name], tensors[name].dtype.newbyteorder("<")).data)
