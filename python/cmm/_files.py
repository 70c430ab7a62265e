"""Paths that a user gives, and files that are written: whole or not at all."""

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from cmm.errors import DtypeError


def given_path(name: str, value: Any) -> Path:
    """Return an argument as a path; whatever else a user may have in hand is a DtypeError that names the argument."""
    if isinstance(value, str) or (isinstance(value, os.PathLike) and isinstance(value.__fspath__(), str)):
        return Path(value)
    remedy = ""
    if isinstance(value, bytes):
        remedy = f": os.fsdecode({name})"
    elif callable(getattr(value, "read", None)):
        remedy = ": its name instead of the open file"
    raise DtypeError(f"{name} is a {type(value).__name__}; it should be a path, as a str or a pathlib.Path{remedy}")


def is_writable(path: Path) -> bool:
    """Whether ``replacing`` could write this file."""
    real = Path(os.path.realpath(path))
    if path.exists() and not os.access(path, os.W_OK):
        return False
    return not path.is_dir() and (_is_special(path) or os.access(real.parent, os.W_OK))


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write, which takes the place of another at the end of the block, or, after an error, does not.

    It is written beside the other, has its mode, and is renamed. A link stays one. A pipe or a device is written to.

    Raises
    ------
    OSError
        It cannot be written; the message names the path.
    """
    real = Path(os.path.realpath(path))
    try:
        if _is_special(path) or path.is_dir():
            with open(path, "wb") as file:
                yield file
            return
        if real.exists() and not os.access(real, os.W_OK):
            open(real, "ab").close()  # says why
        beside = real.with_name(f".cmm-{secrets.token_hex(8)}")
        try:
            with open(beside, "xb") as file:
                if real.exists():
                    os.chmod(beside, stat.S_IMODE(real.stat().st_mode))
                yield file
            os.replace(beside, real)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
    except OSError as error:
        if error.errno is None:
            raise OSError(f"{path} cannot be written: {error}") from error
        raise OSError(error.errno, error.strerror, str(path)) from error


def _is_special(path: Path) -> bool:
    """Whether a path is no file or folder, or another name of an open one, such as ``/dev/stdout``."""
    if path.absolute().is_relative_to("/dev") or path.absolute().is_relative_to("/proc"):
        return True
    return path.exists() and not path.is_file() and not path.is_dir()
