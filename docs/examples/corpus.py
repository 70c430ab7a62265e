"""Make text to train on from Debian's documentation packages and from the descriptions of all its packages.

    apt-get download python3.11-doc linux-doc-6.1 postgresql-doc-15 git-doc manpages manpages-dev
    /usr/lib/apt/apt-helper cat-file /var/lib/apt/lists/*_main_i18n_Translation-en* > descriptions
    python docs/examples/corpus.py *.deb --descriptions descriptions --hold-out git-doc --out corpus

Writes train.txt, heldout.txt and, of the packages that --hold-out names, heldout-packages.txt: a paragraph a line and
an empty line after each document. sources.json says what came from which package, and the licence that its copyright
file names for most of it. HTML is read by lxml, man pages by groff, packages by dpkg-deb and tar. What is kept looks
like English sentences; a paragraph that was there before, up to its numbers, is dropped. Documents, not paragraphs,
are held out, and no paragraph of theirs is in the other files. Documents are in the order of a hash of their names.
"""

import argparse
import gzip
import hashlib
import json
import re
import subprocess
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

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
_LISTINGS = re.compile(
    r"(_source|-members|-index|genindex|_8[a-z]+|py-modindex)\.html|/_modules/|/class-use/|/src-html/"
)
_MANUAL = re.compile(r"/man/man\d\w*/[^/]+\.gz$")


def main() -> None:
    """Read the packages, write the text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", nargs="+", type=Path, metavar="DEB", help="packages, as apt-get downloads them")
    parser.add_argument("--descriptions", type=Path, metavar="FILE", help="descriptions, as Translation-en has them")
    parser.add_argument(
        "--hold-out", nargs="+", default=[], metavar="NAME", help="packages of which nothing is trained on"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the folder to make")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes (default 2)")
    options = parser.parse_args()
    for package in options.packages:
        if not package.is_file() or package.stem.count("_") != 2:
            parser.error(f"{package} is no file NAME_VERSION_ARCHITECTURE.deb, as apt-get downloads it")
    for missing in sorted({*options.hold_out} - {package.name.partition("_")[0] for package in options.packages}):
        parser.error(f"--hold-out names {missing}, of which there is no package")
    options.out.mkdir(parents=True, exist_ok=True)
    documents: list[tuple[str, list[str]]] = []
    sources: dict[str, dict[str, Any]] = {}
    with ProcessPoolExecutor(options.jobs) if options.jobs > 1 else nullcontext() as pool:
        packages = sorted(options.packages)
        read = (pool.map if pool else map)(read_package, packages)
        for package, (licence, found) in zip(packages, read, strict=True):
            name, version, _ = package.name.split("_")
            documents += [(f"{name}/{place}", paragraphs) for place, paragraphs in found]
            sources[name] = {"version": version.replace("%3a", ":"), "licence": licence}
            print(f"{name}: {len(found)} documents", flush=True)
    if options.descriptions:
        with open(options.descriptions, encoding="utf-8") as lines:
            documents += [(f"{DESCRIPTIONS}/{name}", text) for name, text in read_descriptions(lines)]
        sources[DESCRIPTIONS] = {"version": "of all packages", "licence": "that of each package"}
    write_corpus(options.out, documents, frozenset(options.hold_out), sources)


#: The name of what comes from no documentation package.
DESCRIPTIONS = "package-descriptions"


#: What train.py makes of a corpus, in its folder.
MADE_BY_TRAIN = ("tokenizer.json", "train.npy", "heldout.npy", "heldout-packages.npy")


def write_corpus(
    folder: Path, documents: list[tuple[str, list[str]]], apart: frozenset[str], sources: dict[str, dict[str, Any]]
) -> None:
    """Write the files of text and of sources, in which the documents are counted."""
    for old in ("heldout-packages.txt", *MADE_BY_TRAIN):  # of another text
        (folder / old).unlink(missing_ok=True)
    documents.sort(key=lambda document: _digest(document[0]))
    for count in sources.values():
        count |= {"documents": 0, "paragraphs": 0, "words": 0, "words_held_out": 0}
    seen: set[bytes] = set()
    # What is held out comes last, so that it keeps only what is not in the files before.
    for file in ("train.txt", "heldout.txt", *(["heldout-packages.txt"] if apart else [])):
        with open(folder / file, "w", encoding="ascii") as out:
            for name, paragraphs in documents:
                if goes_to(name, apart) != file:
                    continue
                new = [paragraph for paragraph in paragraphs if is_new(paragraph, seen)]
                if new:
                    out.write("\n".join(new) + "\n\n")
                    count = sources[name.partition("/")[0]]
                    count["documents"] += 1
                    count["paragraphs"] += len(new)
                    words = sum(len(paragraph.split()) for paragraph in new)
                    count["words"] += words
                    count["words_held_out"] += words if file != "train.txt" else 0
    (folder / "sources.json").write_text(json.dumps(sources, indent=1) + "\n", encoding="utf-8")


def goes_to(name: str, apart: frozenset[str]) -> str:
    """Return the file of a document, PACKAGE/PLACE."""
    if name.partition("/")[0] in apart:
        return "heldout-packages.txt"
    return "heldout.txt" if int.from_bytes(_digest(name)[-4:], "big") % _HELD_OUT == 0 else "train.txt"


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def is_new(paragraph: str, seen: set[bytes]) -> bool:
    """Whether there was no such paragraph before, numbers and capitals apart; remembers it."""
    key = hashlib.md5(re.sub(r"\d+", "0", paragraph.lower()).encode(), usedforsecurity=False).digest()
    if key in seen:
        return False
    seen.add(key)
    return True


def read_package(package: Path) -> tuple[str, list[tuple[str, list[str]]]]:
    """Return the licence of a package, and the name and the paragraphs of each of its documents that has any."""
    wanted = ["*.htm", "*.html", "*.html.*", "*/man/man*", "*/copyright"]
    with tempfile.TemporaryDirectory() as folder:
        tar = ["tar", "-x", "-C", folder, "--wildcards", *wanted]
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as content:
            subprocess.run(
                tar, stdin=content.stdout, stderr=subprocess.DEVNULL, check=False
            )  # 2: one matches nothing
        if content.returncode:
            raise SystemExit(f"{package} cannot be unpacked")
        return licence_of(Path(folder)), list(read_folder(Path(folder)))


def licence_of(folder: Path) -> str:
    """Return the short name of the licence of most files, where the copyright file is in Debian's format for that."""
    for file in sorted(folder.glob("usr/share/doc/*/copyright")):
        if file.is_file():
            text = file.read_text(encoding="utf-8", errors="replace")
            licence = re.search(r"^Files:\s*\*\s*$(?:\n.+)*?\nLicen[sc]e:[ \t]*(\S.*)", text, re.MULTILINE)
            if licence:
                return licence[1].strip()
    return "see its copyright file"


def read_descriptions(lines: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each package that an index describes, and the paragraphs of its long description."""
    name, parts, seen = "", [""], set()
    for line in (*lines, ""):
        if line.startswith("Package: "):
            name, parts = line.split()[1], [""]
        elif line.startswith(" ") and name:
            bare = line.strip()
            if bare == "." or bare[:2] in ("* ", "- ", "+ ", "o "):  # the end of a paragraph, an item of a list
                parts.append("" if bare == "." else bare[2:])
            else:
                parts[-1] += " " + bare
        elif not line.strip():
            text = [part for part in map(plain, parts) if part and is_prose(part)]
            if text and name not in seen:  # the newest comes first
                yield name, text
            seen.add(name)
            name = ""


def read_folder(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the paragraphs of each document of an unpacked package that has any."""
    for file in sorted(folder.rglob("*")):
        if file.is_file() and not file.is_symlink():
            paragraphs = read_file(file)
            if paragraphs:
                yield str(file.relative_to(folder)), paragraphs


def read_file(file: Path) -> list[str]:
    """Return the paragraphs of one file; none where it is neither a page nor a manual page, or not English."""
    name = str(file)
    place = "/" + name.partition("/usr/")[2]
    if _LANGUAGE.search(place) or _LISTINGS.search(place):
        return []
    is_page = ".htm" in file.name
    if not is_page and not _MANUAL.search(name):
        return []
    content = file.read_bytes()
    if file.suffix == ".gz":
        content = gzip.decompress(content)
    raw = from_html(content) if is_page else from_manual(content)
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
    groff = ["groff", "-k", "-mandoc", "-Tutf8", "-P-cbou", "-rLL=30000n", "-rHY=0", "-dAD=l"]
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
