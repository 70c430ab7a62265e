"""Whose arrays these are, and where: NumPy's, or those of CuPy, PyTorch, JAX and whatever else has ``__dlpack__``.

The answer is a backend, which computes there.
"""

import sys
from typing import Any

import numpy as np

from cmm._backend import CPU, CUDA, Backend, Place, cuda, dlpack_cpu, numpy
from cmm.errors import ArgumentError, DtypeError, ShapeError

NUMPY: Backend = numpy


def backend_of(**arrays: Any) -> Backend:
    """Return the backend for the arrays of a call, by their names; those that are None do not count.

    Raises
    ------
    ArgumentError
        They are of different libraries or on different devices, or one requires grad.
    """
    if not any(map(_is_other, arrays.values())):
        return NUMPY
    place = _common_place(arrays)
    return dlpack_cpu.Backend(place) if place.device_type == CPU else cuda.Backend(place)


def backend_for(weights: Backend, x: Any, out: Any) -> Backend:
    """Return the backend for tokens of a prepared layer, whose weights another one prepared.

    Raises
    ------
    ArgumentError
        They are not where the weights are.
    """
    if not isinstance(weights, cuda.Backend):
        backend = backend_of(x=x, out=out)
        if isinstance(backend, cuda.Backend):
            where = "are on the CPU; they should be in one place"
            raise ArgumentError(f"x is {backend.place} and the layer's weights {where}")
        return backend
    place = _common_place({"x": x, "out": out})
    if place != weights.place:
        raise ArgumentError(f"x is {place} and the layer's weights are {weights.place}; they should be in one place")
    return weights


def keeper_of(backend: Backend) -> Backend:
    """Return the backend of the weights that a backend has prepared: packed ones are NumPy's."""
    return backend if isinstance(backend, cuda.Backend) else NUMPY


def library_of(array: Any) -> str:
    """Return the name of an array's library; a class that a user derived from one of the known counts as that one."""
    names = [kind.__module__.partition(".")[0].replace("jaxlib", "jax") for kind in type(array).__mro__]
    return next((name for name in names if name in ("torch", "cupy", "jax")), names[0])


def as_numpy(name: str, value: Any) -> np.ndarray[Any, Any]:
    """Return an argument of a function that computes with NumPy alone, such as token ids, as NumPy's kind of array.

    Raises
    ------
    ShapeError, DtypeError
        It is no array, or not in the CPU's memory, or of a dtype that NumPy does not have.
    """
    try:
        if not _is_other(value):
            return np.asarray(value)
        if library_of(value) == "torch":
            return dlpack_cpu.torch_view(value)
        return np.asarray(value) if hasattr(value, "__array__") else np.from_dlpack(value)
    except ValueError as error:
        raise ShapeError(f"{name} is not an array: {error}") from None
    except Exception as error:
        if "bfloat16" in str(getattr(value, "dtype", "")):
            remedy = f"convert it with {name}.to(torch.float32)" if library_of(value) == "torch" else "convert it"
            raise DtypeError(f"{name} has dtype {value.dtype}, which NumPy has not: {remedy}") from None
        raise DtypeError(f"{name} is a {type(value).__name__} that is not in the CPU's memory: {error}") from None


def _is_other(array: Any) -> bool:
    """Whether an array is of another library than NumPy."""
    return hasattr(array, "__dlpack__") and not isinstance(array, np.ndarray | np.generic)


def _common_place(arrays: dict[str, Any]) -> Place:
    places = {name: _place(name, array) for name, array in arrays.items() if array is not None}
    (first_name, first), *others = places.items()
    for name, place in others:
        if place != first:
            raise ArgumentError(f"{name} is {place} and {first_name} is {first}; they should be in one place")
    if first.device_type not in (CPU, CUDA):
        raise ArgumentError(f"{first_name} is {first}; it should be on the CPU or on an NVIDIA GPU")
    return first


def _place(name: str, array: Any) -> Place:
    if not _is_other(array):
        kind = "a NumPy array" if isinstance(array, np.ndarray) else f"a {type(array).__name__}"
        raise ArgumentError(f"{name} is {kind}, and another argument is an array of another library: convert one")
    library = library_of(array)
    if library == "torch" and array.requires_grad and (name == "out" or _records_gradients()):
        raise ArgumentError(f"{name} requires grad, and there is no gradient here: pass {name}.detach()")
    try:
        device_type, device = array.__dlpack_device__()
    except Exception as error:
        kind = type(array).__name__
        raise ArgumentError(f"{name}, a {kind}, is on no device that DLPack knows: {error}") from error
    return Place(library, int(device_type), int(device))


def _records_gradients() -> bool:
    """Whether PyTorch would record a gradient now, as it does not under ``no_grad()`` and ``inference_mode()``."""
    torch = sys.modules.get("torch")
    return torch is None or bool(torch.is_grad_enabled())
