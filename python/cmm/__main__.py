"""The command `cmm`, also `python -m cmm`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import cmm

# Modules with a function add_command(commands) that adds parsers whose default `run` is called with the options.
_COMMANDS = ("cmm.bench.info", "cmm.bench.demo", "cmm.bench.command", "cmm.bert.command")
_EXAMPLE = """\
examples:
  cmm info             this machine, its instruction sets, the levels and the BLAS
  cmm demo             a layer and an encoder of real size, in twenty seconds
  cmm bench            the paper's Table 2 for this machine
  cmm bench --help     what else can be measured

  cmm fill-mask MODEL "The capital of France is <mask>."
  cmm explain MODEL "The cat sat on the mat."
"""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    arguments : sequence of str, optional
        Those of the command line when None.

    Returns
    -------
    int
        0, or 2 after an error, said in one line on stderr.
    """
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
    options = parser.parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print(f"cmm {options.command}: stopped", file=sys.stderr)
        return 130
    except (cmm.CmmError, OSError, MemoryError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"cmm {options.command}: error: {message}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
