"""The binding to libcmm_cuda, which is loaded when it is first asked for.

That is the file that the environment variable ``CMM_CUDA_LIBRARY`` names, the one that lies beside libcmm where
it was built with this package, or that of the package ``libcmm-cuda13``. Device pointers and streams are integers.
"""

from functools import cache
from pathlib import Path

from cmm._environment import variable
from cmm._native import FOLDER, VERSION, ffi, lib, text

_OWN_LIBRARY = FOLDER / "lib" / "libcmm_cuda.so"


def built() -> bool:
    """Return whether this package was built with a libcmm_cuda of its own."""
    return _OWN_LIBRARY.exists()


def packaged() -> tuple[Path | None, str]:
    """Return the library of the package libcmm-cuda13 and what it is called, or None and why it cannot be used."""
    try:
        import cmm_cuda13
    except ImportError:
        return (
            None,
            "pip install libcmm-cuda13 brings it, pip install . -C cmake.define.CMM_CUDA=ON builds it, with nvcc",
        )
    minor = ".".join(VERSION.split(".")[:2])
    if cmm_cuda13.__version__.split(".")[:2] != minor.split("."):
        return None, (
            f"libcmm-cuda13 is of version {cmm_cuda13.__version__} and libcmm of {VERSION}, "
            f"and both should be of one minor version: pip install 'libcmm-cuda13=={minor}.*'"
        )
    return cmm_cuda13.LIBRARY, f"libcmm-cuda13 {cmm_cuda13.__version__}"


def library() -> tuple[Path | None, str]:
    """Return the library to load, or None and why there is none."""
    if chosen := variable(b"CMM_CUDA_LIBRARY"):
        return Path(chosen), ""
    return (_OWN_LIBRARY, "") if built() else packaged()


@cache
def load() -> tuple[int, str]:
    """Load libcmm_cuda; return its status and, where it cannot be loaded, why."""
    file, absent = library()
    if file is None:
        return lib.CMM_ERROR_CUDA_ABSENT, absent
    why = ffi.new("char[512]")
    return lib.cmm_py_cuda_load(str(file).encode(), why, 512), text(why)


def why_not() -> str:
    """Return why libcmm_cuda cannot be used here, "" where it can."""
    status, why = load()
    if status == lib.CMM_ERROR_CUDA_ABSENT:
        return f"libcmm_cuda is not here: {why}"
    return text(lib.cmm_status_message(status)) if status else ""
