"""Paths that a user gives."""

import os
from pathlib import Path
from typing import Any

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
