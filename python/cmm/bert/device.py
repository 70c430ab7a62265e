"""Where a model lives: the CPU with numpy, or a GPU with CuPy. The only file of the encoder that knows which.

``encoder.py`` gets everything that depends on it from a :class:`Device`: the array module, the one function that is
in no array module, and how much to compute at a time. ``cmm.fff_forward`` and ``cmm.ff_forward`` take the arrays of
either.
"""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from cmm._cupy import import_cupy
from cmm.errors import ArgumentError, UnusableError

Array = Any  # an ndarray, or CuPy's


class Device(NamedTuple):
    """A place for arrays, and the module that computes with them there."""

    name: str  # "cpu", "cuda:0", "cuda:1", ...
    xp: Any
    ndtr: Callable[[Array], Array]  # the standard normal distribution function, which is GELU's factor
    scores_bytes: int  # of attention at a time
    put: Callable[[Any], Array]  # from numpy, or from there
    host: Callable[[Any], Any]  # to numpy; what is no array of the device is returned as it is
    active: Callable[[], AbstractContextManager[Any]]  # makes the device current

    def __reduce__(self) -> tuple[Any, ...]:
        """Let a copy, or what is unpickled, be the device of that name."""
        return find, (self.name,)


def _ndtr(x: Array) -> Array:
    from scipy.special import ndtr  # imported late: most models never need it, and it takes long

    return ndtr(x)


#: The CPU. Scores of as many sequences at a time as stay within a MiB, so that the softmax finds them in L2.
CPU = Device("cpu", np, _ndtr, 1 << 20, np.asarray, lambda value: value, nullcontext)


def find(name: str) -> Device:
    """Return a device.

    Parameters
    ----------
    name : str
        ``"cpu"``, ``"cuda"`` for CuPy's current GPU, or ``"cuda:1"`` for one by its number.

    Raises
    ------
    ArgumentError
        That is no name of a device.
    UnusableError
        There is no CuPy, no GPU, or none of that number.
    """
    if name == "cpu":
        return CPU
    found = re.fullmatch(r"cuda(?::(\d{1,4}))?", name) if isinstance(name, str) else None
    if found is None:
        raise ArgumentError(f"device is {name!r}; it should be 'cpu', 'cuda', or 'cuda:' and a number")
    cupy = import_cupy(f"device {name!r}")
    count = cupy.cuda.runtime.getDeviceCount()
    number = cupy.cuda.runtime.getDevice() if found[1] is None else int(found[1])
    if number >= count:
        raise UnusableError(f"device is {name!r}, and there are {count} GPUs, numbered from 0")
    return Device(
        name=f"cuda:{number}",
        xp=cupy,
        ndtr=lambda x: import_module("cupyx.scipy.special").ndtr(x),
        scores_bytes=1 << 30,
        put=cupy.asarray,
        host=lambda value: cupy.asnumpy(value) if isinstance(value, cupy.ndarray) else value,
        active=lambda: cupy.cuda.Device(number),
    )
