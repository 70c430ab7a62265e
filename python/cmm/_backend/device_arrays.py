"""Arrays on a GPU: what a call needs of the library that they are of, with pointers and streams as integers."""

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cmm._backend import CUDA, Place
from cmm._cupy import import_cupy
from cmm.errors import ArrayMemoryError, DtypeError


class Library(NamedTuple):
    """What a call needs of a library on one GPU."""

    pointer: Callable[[Any], int]
    contiguous: Callable[[str, Any], Any]
    empty: Callable[[tuple[int, ...], str], Any]
    finish: Callable[[Any], Any]
    """Turn what empty() made into the library's array, once it is filled."""
    stream: Callable[[], int]
    active: Callable[[], AbstractContextManager[Any]]
    """Makes the device current."""
    hold: Callable[..., None]
    """Keeps inputs alive while the stream may still read them."""
    host: Callable[[Any], NDArray[Any]]
    """Waits for the stream, and copies an array to NumPy's."""


def library_at(place: Place) -> Library:
    """Return the library of a place on a GPU."""
    if place.library == "torch":
        return _torch(place.device)
    return _cupy(place, import_cupy(f"{place}"))


def _torch(device: int) -> Library:
    torch = import_module("torch")

    def empty(shape: tuple[int, ...], dtype: str) -> Any:
        try:
            return torch.empty(shape, dtype=getattr(torch, dtype), device=f"cuda:{device}")
        except RuntimeError as error:
            raise ArrayMemoryError(f"there is no memory for a result of shape {shape}, {dtype}: {error}") from error

    def contiguous(name: str, array: Any) -> Any:
        plain = array.detach() if array.requires_grad else array  # under no_grad(); else it has been refused
        return plain.resolve_neg().contiguous()

    return Library(
        pointer=lambda array: int(array.data_ptr()),
        contiguous=contiguous,
        empty=empty,
        finish=lambda array: array,
        stream=lambda: int(torch.cuda.current_stream(device).cuda_stream),
        active=lambda: torch.cuda.device(device),
        hold=_nothing,
        host=lambda array: np.asarray(array.cpu().numpy()),
    )


def _nothing(*arrays: Any) -> None:
    """CuPy and PyTorch give memory back in the order of the stream."""


_holding = Lock()
_held: deque[tuple[Any, tuple[Any, ...]]] = deque()  # inputs of other libraries, each with the event after their call


def _cupy(place: Place, cupy: Any) -> Library:
    """CuPy; and for any other library that has DLPack, CuPy's view of its memory, by the DLPack handshake."""

    def contiguous(name: str, array: Any) -> Any:
        if not isinstance(array, cupy.ndarray):
            try:
                array = cupy.from_dlpack(array)
            except Exception as error:
                kind = getattr(array, "dtype", f"a {type(array).__name__}")
                raise DtypeError(f"{name}, {kind}, cannot become a CuPy array: {error}") from error
        return cupy.ascontiguousarray(array)

    def empty(shape: tuple[int, ...], dtype: str) -> Any:
        if dtype == "bfloat16":
            dtype = import_module("ml_dtypes").bfloat16
        try:
            return cupy.empty(shape, dtype)
        except cupy.cuda.memory.OutOfMemoryError as error:
            raise ArrayMemoryError(f"there is no memory for a result of shape {shape}, {dtype}: {error}") from error

    def finish(array: Any) -> Any:
        if place.library == "cupy":
            return array
        if place.library == "jax":
            return import_module("jax").numpy.from_dlpack(array)
        # A library without one has no way to make an array of its own.
        of_library = getattr(import_module(place.library), "from_dlpack", None)
        return array if of_library is None else of_library(array)

    def hold(*arrays: Any) -> None:
        event = cupy.cuda.Event(disable_timing=True)
        event.record()
        with _holding:
            _held.append((event, arrays))
            while _held and _held[0][0].done:
                _held.popleft()

    return Library(
        pointer=lambda array: int(array.data.ptr),
        contiguous=contiguous,
        empty=empty,
        finish=finish,
        stream=lambda: int(cupy.cuda.get_current_stream().ptr),
        active=lambda: cupy.cuda.Device(place.device) if place.device_type == CUDA else nullcontext(),
        hold=_nothing if place.library == "cupy" else hold,
        host=cupy.asnumpy,
    )
