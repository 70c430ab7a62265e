"""The binding to libcmm_cuda, which is loaded when it is first asked for.

That is the one that lies beside libcmm, or the file that the environment variable ``CMM_CUDA_LIBRARY`` names. Device
pointers and streams are integers.
"""

from functools import cache
from pathlib import Path

from cmm._environment import variable
from cmm._native import FOLDER, ffi, lib, text

_OWN_LIBRARY = FOLDER / "lib" / "libcmm_cuda.so"


def built() -> bool:
    """Return whether this package was built with a libcmm_cuda of its own."""
    return _OWN_LIBRARY.exists()


@cache
def load() -> tuple[int, str]:
    """Load libcmm_cuda; return its status and, where it cannot be loaded, why."""
    chosen = variable(b"CMM_CUDA_LIBRARY")
    file = Path(chosen) if chosen else _OWN_LIBRARY
    if not chosen and not built():
        return lib.CMM_ERROR_CUDA_ABSENT, "it was not built; -C cmake.define.CMM_CUDA=ON builds it"
    why = ffi.new("char[512]")
    return lib.cmm_py_cuda_load(str(file).encode(), why, 512), text(why)


def why_not() -> str:
    """Return why libcmm_cuda cannot be used here, "" where it can."""
    status, why = load()
    if status == lib.CMM_ERROR_CUDA_ABSENT:
        return f"libcmm_cuda is not here: {why}"
    return text(lib.cmm_status_message(status)) if status else ""
