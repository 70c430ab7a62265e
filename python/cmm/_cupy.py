"""CuPy, where it is installed: imported when it is first asked for, for that takes long."""

from importlib import import_module
from typing import Any

from cmm.errors import UnusableError


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
