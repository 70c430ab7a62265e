"""The binding to libcmm: its functions, and what every call of them needs.

The functions are in the extension ``cmm._libcmm`` (cmm_build.py), which releases the GIL in every call. Those of
libcmm_cuda are there too, once ``_native.cuda`` has loaded it.
"""

from pathlib import Path
from typing import Any, get_args

from cmm import _libcmm
from cmm._libcmm import ffi, lib
from cmm.errors import BY_STATUS, CmmError
from cmm.typing import Activation, Tie

__all__ = [
    "ACTIVATIONS",
    "DTYPES",
    "FOLDER",
    "NULL",
    "ROWS",
    "TIES",
    "VERSION",
    "address",
    "failure",
    "ffi",
    "lib",
    "text",
]

NULL = ffi.NULL

# The folder of the extension, which has lib/ and include/ of libcmm.
FOLDER = Path(_libcmm.__file__).parent

# The address of an array. It checks no dtype: only what a backend has checked may be passed.
address = ffi.from_buffer


def text(string: Any) -> str:
    """Return a string of libcmm as a Python string."""
    return str(ffi.string(string).decode())


VERSION = text(lib.cmm_version())


def check_version() -> None:
    """Raise ImportError where the libcmm that was loaded is not the one that this package was built with."""
    needed = f"{lib.CMM_VERSION_MAJOR}.{lib.CMM_VERSION_MINOR}.{lib.CMM_VERSION_PATCH}"
    if needed != VERSION:
        raise ImportError(
            f"libcmm {VERSION} was loaded from {text(lib.cmm_py_loaded_from())}; this package needs {needed}: "
            "take that folder out of LD_LIBRARY_PATH"
        )


check_version()  # before anything else of it is called


def failure(status: int, about: str = "") -> CmmError:
    """Return the exception for a status that is not CMM_OK; about says what it is about, in Python's words."""
    error = BY_STATUS.get(text(lib.cmm_status_name(status)), CmmError)
    message = text(lib.cmm_status_message(status))
    return error(f"{about}: {message}" if about else message)


# libcmm's numbers of what has a name.
DTYPES = {"float32": lib.CMM_F32, "float64": lib.CMM_F64, "bfloat16": lib.CMM_BF16, "float16": lib.CMM_F16}
ROWS = {**DTYPES, "int8": lib.CMM_I8}  # of rows alone
ACTIVATIONS: dict[str, int] = {name: getattr(lib, f"CMM_{name.upper()}") for name in get_args(Activation)}
TIES: dict[str, int] = {name: getattr(lib, f"CMM_TIE_{name.upper()}") for name in get_args(Tie)}
