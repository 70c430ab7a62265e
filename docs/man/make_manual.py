"""Make the manual page and the shell completion of `cmm` from its parsers: `python docs/man/make_manual.py`.

Needs the installed package, argparse-manpage and shtab. What it writes is part of the repository, and the build
installs it; tests/core/test_manual.py holds that it fits the parsers.
"""

import argparse
import os
import re
from collections.abc import Iterator
from pathlib import Path

import cmm
import shtab
from argparse_manpage.manpage import Manpage
from cmm.__main__ import make_parser
from cmm.completion import FILES

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/man/cmm.1"
# What a shell offers in place of these.
COMPLETE = {"FILE": shtab.FILE, "NAME": shtab.FILE, "MODEL": shtab.DIRECTORY, "SOURCE": shtab.DIRECTORY}
COMPLETE["FOLDER"] = shtab.DIRECTORY


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of the subcommands by name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def manual() -> str:
    """Return the manual page: every subcommand with its options, and all their examples."""
    parser = make_parser()
    examples = []
    for part in [parser, *subparsers(parser).values()]:
        examples.append(re.sub(r"\Aexamples?:\n", "", part.epilog or "").rstrip())
        part.epilog = None
    page = Manpage(parser, format="single-commands-section")
    page.description = "conditional matrix multiplication and fast feedforward layers"
    page.date, page.source, page.manual = "", f"cmm {cmm.__version__}", "User Commands"
    literal = "\n\n".join(examples).replace("\\", r"\e").replace("-", r"\-")
    page.add_section("EXAMPLES", ">", f".nf\n{literal}\n.fi")
    return str(page)


def completion(shell: str) -> str:
    """Return the completion of a shell."""
    parser = make_parser()
    for part in [parser, *subparsers(parser).values()]:
        for action in part._actions:
            if isinstance(action.metavar, str) and action.metavar in COMPLETE:
                action.complete = COMPLETE[action.metavar]  # type: ignore[attr-defined]
    return shtab.complete(parser, shell).rstrip() + "\n"


def pages() -> Iterator[tuple[Path, str]]:
    """Yield every file and what it should hold."""
    os.environ["COLUMNS"] = "80"  # of usage lines
    yield PAGE, manual()
    for shell, file in FILES.items():
        yield ROOT / "python/cmm/completion" / file.name, completion(shell)


if __name__ == "__main__":
    for file, text in pages():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        print(f"wrote {file.relative_to(ROOT)}")
