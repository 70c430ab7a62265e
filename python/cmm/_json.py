"""What `--json FILE` writes, and where a command's other words go: `--json -` keeps the standard output for json."""

import json
import sys
from pathlib import Path
from typing import Any

from cmm._files import is_writable, replacing
from cmm.errors import ArgumentError

STANDARD_OUTPUT = "-"
HELP = "write {} to FILE; - is the standard output, and what else is said goes to the standard error"


def check_target(file: str | None) -> None:
    """Refuse a file that could not be written, before anything is computed.

    Raises
    ------
    ArgumentError
    """
    if file is None or file == STANDARD_OUTPUT:
        return
    folder = Path(file).absolute().parent
    if not folder.is_dir():
        raise ArgumentError(f"{file}: there is no folder {folder}")
    if not is_writable(Path(file)):
        raise ArgumentError(f"{file} cannot be written")


def write(file: str, value: Any, indent: int | None = None) -> None:
    """Write a value as json and a newline, to a file as a whole."""
    text = json.dumps(value, indent=indent)
    if file == STANDARD_OUTPUT:
        print(text)
        return
    with replacing(Path(file)) as out:
        out.write(text.encode() + b"\n")


def say(file: str | None, text: str) -> None:
    """Print what is for people: on the standard error where json has the standard output."""
    if file != STANDARD_OUTPUT:
        print(text)
    elif sys.stderr is not None:
        print(text, file=sys.stderr)
