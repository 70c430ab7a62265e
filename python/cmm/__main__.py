"""The command `cmm`, also `python -m cmm`."""

from __future__ import annotations

import argparse
import errno
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any, NoReturn, TextIO, cast

import cmm

# Modules with a function add_command(commands) that adds parsers whose default `run` is called with the options.
_COMMANDS = (
    "cmm.bench.info",
    "cmm.bench.demo",
    "cmm.bench.command",
    "cmm.bert.command",
    "cmm.bert.convert_command",
    "cmm.completion",
)
_EXAMPLE = """\
examples:
  cmm info             this machine, its instruction sets, the levels and the BLAS
  cmm demo             a layer and an encoder of real size, in twenty seconds
  cmm bench            the paper's Table 2 for this machine
  cmm bench --help     what else can be measured

  cmm fill-mask MODEL "The capital of France is <mask>."
  cmm explain MODEL "The cat sat on the mat."
"""


# What is taken for an option, whether there is such a one or not. Any other word that begins with - is a value.
_OPTION = re.compile(r"--[A-Za-z][\w-]*(=.*)?|-[A-Za-z]=?\d*", re.DOTALL)


# Errors of a file that is open already.
_OF_WRITING = (errno.EBADF, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and which takes a text that begins with - for a text."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")

    def _parse_optional(self, arg_string: str) -> Any:
        # argparse would take "-hello" and "-k and so on" for -h and -k with the rest as their values.
        if arg_string.startswith("-") and not _OPTION.fullmatch(arg_string):
            return None
        return super()._parse_optional(arg_string)

    def _print_message(self, message: str, file: Any = None) -> None:
        # argparse's own leaves an error of writing unsaid.
        if file is sys.stdout:
            file.write(message)
        else:
            _say(message.removesuffix("\n"))


class _Closed(io.TextIOBase):
    """The standard output of a program that was started without one."""

    def write(self, text: str) -> int:
        raise OSError(errno.EBADF, "it is closed")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    arguments : sequence of str, optional
        Those of the command line when None.

    Returns
    -------
    int
        0; 2 after an error and 130 after an interruption, said in one line on stderr.
    """
    name = "cmm"
    with _standard_streams():
        try:
            try:
                options = _parsed(arguments)
                name = f"cmm {options.command}"
                options.run(options)
            finally:
                sys.stdout.flush()  # so that an error of writing is found here
        except BrokenPipeError:  # the reader of our output has had enough
            _drop_output()
        except KeyboardInterrupt:
            _say(f"{name}: stopped")
            return 130
        except (cmm.CmmError, OSError, MemoryError) as error:
            _drop_output()
            message = str(error)
            if isinstance(error, OSError) and error.filename is None and error.errno in _OF_WRITING:
                message = f"the standard output cannot be written to: {error.strerror}"  # files are named
            _say(f"{name}: error: {' '.join(message.split()) or type(error).__name__}")
            return 2
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command, from which its manual and shell completion are made too."""
    parser = _Parser(
        prog="cmm",
        description="Conditional matrix multiplication and fast feedforward layers.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cmm {cmm.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command")
    for module in _COMMANDS:
        import_module(module).add_command(commands)
    return parser


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    take_texts = getattr(options, "take_texts", None)
    if rest and take_texts is not None:  # texts after an option, which argparse does not look for
        before = rest[: rest.index("--")] if "--" in rest else rest
        wrong = [word for word in before if _OPTION.fullmatch(word)]
        if wrong:
            parser.error(f"unrecognized arguments: {' '.join(wrong)} (a text that begins with - goes after --)")
        if "--" in rest:
            rest.remove("--")
        rest = take_texts(options, rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return options


# ---- standard streams ----------------------------------------------------------------------------------------------


@contextmanager
def _standard_streams() -> Iterator[None]:
    """Let what a terminal or a pipe cannot show be escaped, and a closed standard output be one that says so."""
    before = sys.stdout
    for number, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)):
        if stream is None:
            with suppress(OSError):  # or a file that is opened would get its number, and what is written to it
                while os.open(os.devnull, os.O_RDWR) < number:
                    pass
    if before is None:
        sys.stdout = cast(TextIO, _Closed())
    wrapper = before if isinstance(before, io.TextIOWrapper) else None
    errors = None if wrapper is None else wrapper.errors
    if wrapper is not None:
        wrapper.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        if wrapper is not None:
            with suppress(OSError, ValueError):
                wrapper.reconfigure(errors=errors)
        sys.stdout = before


def _drop_output() -> None:
    """Let the interpreter end without another try to write what could not be written."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(line: str) -> None:
    """Print a line on stderr, where there is one that can be written to."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
