"""The binding to libcmm: what every call needs. Its functions are in the extension ``cmm._libcmm`` (cmm_build.py).

The extension releases the GIL in every call.
"""

import os
from collections.abc import Callable
from typing import Any

from cmm._libcmm import ffi, lib
from cmm.errors import BY_STATUS, ArgumentError, CmmError

__all__ = ["ACTIVATIONS", "NULL", "TIES", "code", "failure", "ffi", "is_set", "lib", "listed", "text", "variable"]

NULL = ffi.NULL


def text(string: Any) -> str:
    """Return a string of libcmm as a Python string."""
    return str(ffi.string(string).decode())


def failure(status: int, about: str = "") -> CmmError:
    """Return the exception for a status that is not CMM_OK; about says what it is about, in Python's words."""
    error = BY_STATUS.get(text(lib.cmm_status_name(status)), CmmError)
    message = text(lib.cmm_status_message(status))
    return error(f"{about}: {message}" if about else message)


ACTIVATIONS = {
    "gelu": lib.CMM_GELU,
    "gelu_tanh": lib.CMM_GELU_TANH,
    "relu": lib.CMM_RELU,
    "silu": lib.CMM_SILU,
    "identity": lib.CMM_IDENTITY,
}
TIES = {"left": lib.CMM_TIE_LEFT, "right": lib.CMM_TIE_RIGHT}


def code(argument: str, value: str, codes: dict[str, int]) -> int:
    """Return libcmm's number for a named choice: an activation or a tie rule."""
    try:
        return codes[value]
    except (KeyError, TypeError):  # TypeError: value is not hashable
        raise ArgumentError(f"{argument} is {value!r}; it should be one of {listed(codes)}") from None


def listed(names: Any) -> str:
    """Return names as a list for an error message."""
    return ", ".join(repr(name) for name in names)


# os.environ.get() takes 0.7 us for a variable that is not set, because it catches an exception of its own. The
# dictionary that os.environ wraps takes 0.03, which counts: variables are looked up in every call, so that a change
# takes effect at once.
_data: Any = getattr(os.environ, "_data", None)
is_set: Callable[[bytes], bool] = (
    _data.__contains__ if type(_data) is dict and os.name == "posix" else lambda name: name.decode() in os.environ
)


def variable(name: bytes) -> str | None:
    """Return the value of an environment variable, None when it is unset or empty."""
    return os.environ.get(name.decode()) or None if is_set(name) else None
