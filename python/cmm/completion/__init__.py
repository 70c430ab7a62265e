"""`cmm completion`: the files beside this one, which make a shell complete the command's options and names of files.

They are made from the command's own parsers by docs/man/make_manual.py.
"""

import argparse
from pathlib import Path

#: The file of each shell.
FILES = {shell: Path(__file__).with_name(f"cmm.{shell}") for shell in ("bash", "zsh")}
_WHAT = """\
Print what makes a shell complete the options of `cmm` and names of files. An installation in /usr has it in the
places where shells look; for any other, evaluate it when a shell starts.
"""
_EXAMPLE = """\
examples:
  eval "$(cmm completion bash)"     in ~/.bashrc
  eval "$(cmm completion zsh)"      in ~/.zshrc, after compinit
"""


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `cmm completion`."""
    parser = commands.add_parser(
        "completion",
        help="print what makes a shell complete this command",
        description=_WHAT,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=tuple(FILES), help="the shell")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print the shell's file."""
    print(FILES[options.shell].read_text(encoding="utf-8"), end="")
