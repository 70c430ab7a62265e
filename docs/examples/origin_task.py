"""Make a small task of this repository's own texts, in the format of GLUE's SST-2: C or Python.

    python docs/examples/origin_task.py . origin
    python docs/examples/finetune.py run-16x5 SST-2 origin origin-run

Label 1: a sentence of a comment in C or CUDA. Label 0: one of Python's docstrings. Whole files, not sentences, go to
dev.tsv: one of so many, by the order of their names.
"""

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

_DEV = 4  # one file of so many
_NOT_ITS_OWN = ("build", "site-packages")  # folders, and those whose names begin with a dot
_WORDS = (5, 60)  # of a sentence that is kept


def main() -> None:
    """Write train.tsv and dev.tsv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path, help="the root of this repository, or of another one")
    parser.add_argument("out", type=Path, help="the folder to make")
    options = parser.parse_args()
    lines: dict[bool, dict[str, int]] = {False: {}, True: {}}
    for label, patterns in ((1, ("*.c", "*.h", "*.inl", "*.cu", "*.cuh")), (0, ("*.py",))):
        files = sorted(file for pattern in patterns for file in sources(options.repository, pattern))
        for number, file in enumerate(files):
            read = comments if label else docstrings
            for text in read(file.read_text(encoding="utf-8")):
                lines[number % _DEV == _DEV - 1].update(dict.fromkeys(sentences(text), label))
    if not lines[False] or not lines[True]:
        parser.error(f"{options.repository} has too few sentences in files of C and Python")
    options.out.mkdir(parents=True, exist_ok=True)
    for sentence in lines[False]:
        lines[True].pop(sentence, None)
    for name, held_out in (("train.tsv", False), ("dev.tsv", True)):
        rows = [f"{sentence}\t{label}\n" for sentence, label in lines[held_out].items()]
        (options.out / name).write_text("sentence\tlabel\n" + "".join(rows), encoding="utf-8")
        counts = list(lines[held_out].values())
        print(f"{name}: {len(counts)} sentences, {sum(counts)} of them from C")


def sources(folder: Path, pattern: str) -> Iterator[Path]:
    """Yield the files of a repository, without those of environments and builds in it."""
    for file in folder.rglob(pattern):
        parts = file.relative_to(folder).parts
        if not any(part.startswith(".") or part in _NOT_ITS_OWN for part in parts):
            yield file


def comments(source: str) -> list[str]:
    """Return the comments of a C program."""
    found = re.findall(r"/\*(.*?)\*/|((?:^[ \t]*//.*\n)+)", source, re.DOTALL | re.MULTILINE)
    return [re.sub(r"^\s*(\*|//)", "", block or lines, flags=re.MULTILINE) for block, lines in found]


def docstrings(source: str) -> Iterator[str]:
    """Yield the docstrings of a Python module, paragraph by paragraph."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield from re.split(r"\n\s*\n|\n-+\n", ast.get_docstring(node) or "")


def sentences(text: str) -> list[str]:
    """Return the sentences of a text that look like prose, without what gives their language away."""
    plain = re.sub(r"[`*]+", "", " ".join(text.split()))
    found = re.split(r"(?<=[.!?:]) (?=[A-Z])", plain)
    least, most = _WORDS
    return [one for one in found if least <= len(one.split()) <= most and one[0].isupper() and one[-1] in ".!?:"]


if __name__ == "__main__":
    main()
