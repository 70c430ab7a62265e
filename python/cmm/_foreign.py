"""Arrays of other libraries: CuPy, PyTorch, JAX and whatever else has ``__dlpack__``, on a CPU or a GPU.

A library is described by a :class:`Library`: how to look at its arrays, how to make one, on which stream it works.
Nothing is copied but what is not contiguous. On a CPU an array becomes a NumPy view of the same memory.
"""

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from cmm.errors import ArgumentError, ArrayMemoryError, DtypeError, UnusableError

_CPU, _CUDA = 1, 2  # DLPack's device types


class Place(NamedTuple):
    """Where an array is: the name of its library, and DLPack's type and number of its device."""

    library: str
    device_type: int
    device: int

    def __str__(self) -> str:
        if self.device_type == _CPU:
            where = "the CPU"
        else:
            where = f"GPU {self.device}" if self.device_type == _CUDA else f"device type {self.device_type}"
        return f"a {self.library} array on {where}"


class Library(NamedTuple):
    """What a call needs of a library on one GPU. Pointers and streams are integers."""

    pointer: Callable[[Any], int]
    contiguous: Callable[[str, Any], Any]
    dtype: Callable[[Any], str]
    empty: Callable[[tuple[int, ...], str], Any]
    finish: Callable[[Any], Any]
    """Turn what empty() made into the library's array, once it is filled."""
    stream: Callable[[], int]
    active: Callable[[], AbstractContextManager[Any]]
    """Makes the device current."""
    hold: Callable[..., None]
    """Keeps inputs alive while the stream may still read them."""


def is_foreign(*arrays: Any) -> bool:
    """Return whether any array is of another library than NumPy and of a kind that this file knows."""
    for array in arrays:  # noqa: SIM110 (any() would cost half a microsecond in every call)
        if type(array) is not np.ndarray and array is not None and _foreign(array):
            return True
    return False


def _foreign(array: Any) -> bool:
    return hasattr(array, "__dlpack__") and not isinstance(array, np.ndarray | np.generic)


def _library_of(array: Any) -> str:
    """Return the name of an array's library; a class that a user derived from one of the known counts as that one."""
    names = [kind.__module__.partition(".")[0].replace("jaxlib", "jax") for kind in type(array).__mro__]
    return next((name for name in names if name in ("torch", "cupy", "jax")), names[0])


def _place(name: str, array: Any) -> Place:
    if not _foreign(array):
        kind = "a NumPy array" if isinstance(array, np.ndarray) else f"a {type(array).__name__}"
        raise ArgumentError(f"{name} is {kind}, and another argument is an array of another library: convert one")
    library = _library_of(array)
    if library == "torch" and array.requires_grad:
        raise ArgumentError(f"{name} requires grad, and there is no gradient here: pass {name}.detach()")
    try:
        device_type, device = array.__dlpack_device__()
    except Exception as error:
        kind = type(array).__name__
        raise ArgumentError(f"{name}, a {kind}, is on no device that DLPack knows: {error}") from error
    return Place(library, int(device_type), int(device))


def common_place(**arrays: Any) -> Place:
    """Return where all arrays are, None apart.

    Raises
    ------
    ArgumentError
        They are of different libraries or on different devices, or one requires grad.
    """
    places = {name: _place(name, array) for name, array in arrays.items() if array is not None}
    (first_name, first), *others = places.items()
    for name, place in others:
        if place != first:
            raise ArgumentError(f"{name} is {place} and {first_name} is {first}; they should be in one place")
    if first.device_type not in (_CPU, _CUDA):
        raise ArgumentError(f"{first_name} is {first}; it should be on the CPU or on an NVIDIA GPU")
    return first


# ---- on a CPU ------------------------------------------------------------------------------------------------------


def on_cpu(place: Place) -> bool:
    """Return whether arrays there are in the CPU's memory."""
    return place.device_type == _CPU


def as_numpy(name: str, array: Any) -> Any:
    """Return a NumPy view of an array's memory."""
    if array is None:
        return None
    try:
        return array.numpy() if _library_of(array) == "torch" else np.from_dlpack(array)
    except Exception as error:
        raise DtypeError(f"{name}, {array.dtype}, cannot become a NumPy array without a copy: {error}") from error


def from_numpy(array: Any, like: Any, place: Place) -> Any:
    """Return an array of like's library on the memory of a NumPy array."""
    if place.library == "torch":
        return import_module("torch").from_numpy(array)
    if place.library == "jax":
        return import_module("jax").numpy.from_dlpack(array)
    return like.__array_namespace__().from_dlpack(array)


# ---- on a GPU ------------------------------------------------------------------------------------------------------


def import_cupy(what: str) -> Any:
    """Import CuPy, or say in one line why it cannot be used."""
    try:
        cupy = import_module("cupy")
        usable = cupy.cuda.is_available()
    except Exception as error:
        raise UnusableError(f"{what} needs CuPy, which cannot be imported: {error}") from error
    if not usable:
        raise UnusableError(f"{what} needs CuPy and a GPU, and CuPy {cupy.__version__} finds no GPU")
    return cupy


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

    return Library(
        pointer=lambda array: int(array.data_ptr()),
        contiguous=lambda name, array: array.contiguous(),
        dtype=lambda array: str(array.dtype).removeprefix("torch."),
        empty=empty,
        finish=lambda array: array,
        stream=lambda: int(torch.cuda.current_stream(device).cuda_stream),
        active=lambda: torch.cuda.device(device),
        hold=_nothing,
    )


def _nothing(*arrays: Any) -> None:
    """CuPy and PyTorch give memory back in the order of the stream."""


_holding = Lock()
_held: deque[tuple[Any, tuple[Any, ...]]] = deque()  # inputs of other libraries, each with the event after their call


def _cupy(place: Place, cupy: Any) -> Library:
    """CuPy; and for any other library that has DLPack, CuPy's view of its memory, by the DLPack handshake."""

    def contiguous(name: str, array: Any) -> Any:
        if place.library != "cupy":
            try:
                array = cupy.from_dlpack(array)
            except Exception as error:
                raise DtypeError(f"{name}, {array.dtype}, cannot become a CuPy array: {error}") from error
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
        return import_module(place.library).from_dlpack(array)

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
        dtype=lambda array: str(array.dtype),
        empty=empty,
        finish=finish,
        stream=lambda: int(cupy.cuda.get_current_stream().ptr),
        active=lambda: cupy.cuda.Device(place.device) if place.device_type == _CUDA else nullcontext(),
        hold=_nothing if place.library == "cupy" else hold,
    )
