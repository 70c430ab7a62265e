"""Make text to train on from Debian's documentation packages.

    apt-get download python3.11-doc linux-doc-6.1 postgresql-doc-15 git-doc manpages manpages-dev
    python docs/examples/corpus.py *.deb --out corpus

Writes train.txt and heldout.txt, a paragraph a line and an empty line after each document, and sources.json, which
says what came from which package. HTML is read by lxml, man pages by groff, packages by dpkg-deb. What is kept looks
like English sentences; a paragraph that was there before, up to its numbers, is dropped. Documents, not paragraphs,
are held out, and no paragraph of theirs is in the other file. Documents are in the order of a hash of their names.
"""

import argparse
import gzip
import hashlib
import json
import re
import subprocess
import tempfile
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path

try:
    from lxml import etree, html
except ImportError:
    raise SystemExit("corpus.py needs lxml: pip install lxml") from None

_HELD_OUT = 64  # one document of so many
_NOT_PROSE = ("script", "style", "pre", "nav", "header", "footer", "table", "svg", "math", "head")
_FUNCTION_WORDS = frozenset(
    (
        *("the", "of", "to", "a", "an", "and", "in", "is", "it", "that", "for", "be", "this", "are", "with", "as"),
        *("by", "on", "or", "not", "can", "from", "if", "will", "which", "when", "you", "at"),
    )
)
_LANGUAGE = re.compile(r"[./](?!en\b)[a-z]{2}([-_][A-Za-z]{2,4})?(\.utf8|\.euc-kr)?[./]|html\.[a-z]{2}")
_MANUAL = re.compile(r"/man/man\d\w*/[^/]+\.gz$")


def main() -> None:
    """Read the packages, write the text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="+", type=Path, metavar="DEB", help="packages, as apt-get downloads them")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the folder to make")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes (default 2)")
    options = parser.parse_args()
    for package in options.packages:
        if not package.is_file() or package.stem.count("_") != 2:
            parser.error(f"{package} is no file NAME_VERSION_ARCHITECTURE.deb, as apt-get downloads it")
    options.out.mkdir(parents=True, exist_ok=True)
    documents: list[tuple[str, list[str]]] = []
    sources = {}
    for package in sorted(options.packages):
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
            found = list(read_folder(Path(folder), options.jobs))
        name, version, _ = package.name.split("_")
        documents += [(f"{name}/{place}", paragraphs) for place, paragraphs in found]
        sources[name] = {"version": version.replace("%3a", ":"), "documents": 0, "paragraphs": 0, "words": 0}
        print(f"{name}: {len(found)} documents", flush=True)
    documents.sort(key=lambda document: _digest(document[0]))
    seen: set[bytes] = set()
    # What is held out comes second, so that it keeps only what the other file has not.
    for file, held_out in (("train.txt", False), ("heldout.txt", True)):
        with open(options.out / file, "w", encoding="ascii") as out:
            for name, paragraphs in documents:
                if (int.from_bytes(_digest(name)[-4:], "big") % _HELD_OUT == 0) != held_out:
                    continue
                new = [paragraph for paragraph in paragraphs if is_new(paragraph, seen)]
                if new:
                    out.write("\n".join(new) + "\n\n")
                    count = sources[name.partition("/")[0]]
                    count["documents"] += 1
                    count["paragraphs"] += len(new)
                    count["words"] += sum(len(paragraph.split()) for paragraph in new)
    (options.out / "sources.json").write_text(json.dumps(sources, indent=1) + "\n", encoding="utf-8")


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def is_new(paragraph: str, seen: set[bytes]) -> bool:
    """Whether there was no such paragraph before, numbers and capitals apart; remembers it."""
    key = hashlib.md5(re.sub(r"\d+", "0", paragraph.lower()).encode(), usedforsecurity=False).digest()
    if key in seen:
        return False
    seen.add(key)
    return True


def read_folder(folder: Path, jobs: int = 1) -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the paragraphs of each document of an unpacked package that has any."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and not file.is_symlink()]
    names = [str(file.relative_to(folder)) for file in files]
    with ProcessPoolExecutor(jobs) if jobs > 1 else nullcontext() as pool:
        read = map(read_file, files) if pool is None else pool.map(read_file, files, chunksize=32)
        for name, paragraphs in zip(names, read, strict=True):
            if paragraphs:
                yield name, paragraphs


def read_file(file: Path) -> list[str]:
    """Return the paragraphs of one file; none where it is neither a page nor a manual page, or not English."""
    name = str(file)
    if _LANGUAGE.search(name.partition("/usr/")[2]):
        return []
    if ".html" in file.name:
        raw = from_html(file.read_bytes())
    elif _MANUAL.search(name):
        raw = from_manual(gzip.decompress(file.read_bytes()))
    else:
        return []
    return [paragraph for paragraph in map(plain, raw) if is_prose(paragraph)]


def from_html(page: bytes) -> Iterator[str]:
    """Yield the text of paragraphs and of list items that have no paragraphs in them."""
    try:
        root = html.document_fromstring(page, parser=html.HTMLParser(encoding="utf-8"))
    except etree.ParserError:  # an empty page
        return
    for node in list(root.iter(*_NOT_PROSE)):
        node.drop_tree()
    for node in root.iter("p", "li", "dd", "div"):
        if node.tag == "div" and node.get("class") == "para":  # DocBook's paragraph
            node.tag = "p"
        if node.tag == "p" or (
            node.tag != "div" and all(node.find(f".//{tag}") is None for tag in ("p", "li", "dd"))
        ):
            yield node.text_content()


def from_manual(source: bytes) -> list[str]:
    """Return the paragraphs of a manual page, each set by groff on one long line."""
    groff = ["groff", "-k", "-man", "-Tutf8", "-P-cbou", "-rLL=30000n", "-rHY=0", "-dAD=l"]
    done = subprocess.run(groff, input=source, capture_output=True, check=False)
    return done.stdout.decode("utf-8", "replace").splitlines()


def plain(text: str) -> str:
    """Return a text in ASCII on one line, without marks of links to sections."""
    text = text.replace("\u00b6", "").translate(
        str.maketrans("\u2018\u2019\u201c\u201d\u2013\u2014\u2010", "''\"\"---")
    )
    text = unicodedata.normalize("NFKD", text)
    return " ".join("".join(character for character in text if not unicodedata.combining(character)).split())


def is_prose(text: str) -> bool:
    """Whether a paragraph looks like English sentences."""
    if not text.isascii() or not text[:1].isupper() or text[-1] not in ".!?:":
        return False
    words = text.split()
    bare = [word.strip(".,;:!?()'\"").lower() for word in words]
    alphabetic = sum(word.replace("-", "").replace("'", "").isalpha() for word in bare)
    common = sum(word in _FUNCTION_WORDS for word in bare)
    return 6 <= len(words) <= 500 and alphabetic >= 0.8 * len(words) and common >= 0.2 * len(words)


if __name__ == "__main__":
    main()
