"""docs/examples/corpus.py: what of a page and of a manual page becomes text to train on."""

import gzip
import importlib.util
import json
import shutil
import subprocess

import pytest
from building import ROOT

pytest.importorskip("lxml", reason="the package lxml, which reads pages, is not installed")

PAGE = """<html><head><title>No</title></head><body><nav><p>This is the way to the other pages of it.</p></nav>
<p>The <code>open</code> function returns\n a file object that is ready to be read.<a href="#x">\u00b6</a></p>
<pre>The code is not prose and it is never kept.</pre><p>Too short.</p>
<ul><li>An item of a list is kept if it reads like a sentence.</li>
<li><p>This is the paragraph of an item, and is there once.</p></li></ul>
<div class="para">A paragraph of DocBook is a div of its own class.</div><p>1 2 3 4 5 6 7 8 9 10 the of.</p>
<p>La fonction renvoie un objet fichier qui peut servir.</p></body></html>"""

MANUAL = """.TH X 2
.SH DESCRIPTION
The function
.BR open (2)
returns a \\fIfile\\fP descriptor that
is ready to be used.
.PP
The number of it is the lowest that is not in use by the process.
"""


@pytest.fixture(scope="module")
def corpus():
    spec = importlib.util.spec_from_file_location("corpus", ROOT / "docs/examples/corpus.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_page(corpus, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(PAGE, encoding="utf-8")
    assert corpus.read_file(file) == [
        "The open function returns a file object that is ready to be read.",
        "An item of a list is kept if it reads like a sentence.",
        "This is the paragraph of an item, and is there once.",
        "A paragraph of DocBook is a div of its own class.",
    ]
    file.write_text("")
    assert corpus.read_file(file) == []


@pytest.mark.skipif(not shutil.which("groff"), reason="groff, which sets manual pages, is not installed")
def test_a_manual_page(corpus, tmp_path):
    folder = tmp_path / "man/man2"
    folder.mkdir(parents=True)
    (folder / "x.2.gz").write_bytes(gzip.compress(MANUAL.encode()))
    assert [name for name, _ in corpus.read_folder(tmp_path)] == ["man/man2/x.2.gz"]
    assert corpus.read_file(folder / "x.2.gz") == [
        "The function open(2) returns a file descriptor that is ready to be used.",
        "The number of it is the lowest that is not in use by the process.",
    ]


def test_other_languages_by_their_names(corpus, tmp_path):
    for name, kept in (("usr/a/fr/x.html", False), ("usr/a/en-US/x.html", True), ("usr/x.html.de", False)):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("<p>The text of a page that is written in this language.</p>")
        assert bool(corpus.read_file(file)) == kept


def test_listings_are_no_text(corpus, tmp_path):
    """Lists of sources and members are not read."""
    for name, kept in (("x.html", True), ("x.htm", True), ("x_8cpp_source.html", False), ("genindex.html", False)):
        file = tmp_path / "usr" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("<p>The text of a page is read where it is one.</p>")
        assert bool(corpus.read_file(file)) == kept


INDEX = """Package: one
Description-md5: 0
Description-en: a short one
 This is the first paragraph of the description, and it
 goes on in a second line.
 .
 There is a list of what it has in it:
  * An item of the list that reads like a sentence.
  * no sentence

Package: two
Description-en: the other
 Too short.

Package: one
Description-en: an older one
 This is the description of an older version of the package.
"""


def test_descriptions(corpus):
    assert list(corpus.read_descriptions(INDEX.splitlines(keepends=True))) == [
        (
            "one",
            [
                "This is the first paragraph of the description, and it goes on in a second line.",
                "There is a list of what it has in it:",
                "An item of the list that reads like a sentence.",
            ],
        )
    ]


COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: 2001 A
 2002 B
License: MIT or Apache-2.0
 Some text.

Files: debian/*
License: GPL-2+
"""


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="dpkg-deb, which makes packages, is not installed")
def test_packages_that_are_held_out(corpus, tmp_path, monkeypatch):
    """Of them nothing is trained on, and what the other text has is not in theirs."""
    for number, name in enumerate(("kept", "apart")):
        folder = tmp_path / name
        (folder / "DEBIAN").mkdir(parents=True)
        control = f"Package: {name}\nVersion: 1:2.0\nArchitecture: all\nMaintainer: m\nDescription: d\n"
        (folder / "DEBIAN/control").write_text(control)
        pages = folder / f"usr/share/doc/{name}"
        pages.mkdir(parents=True)
        page = f"<p>This is a page of the package, which is called {name}.</p>"
        (pages / "x.html").write_text(page + "<p>This is what both of the packages say.</p>")
        (pages / "copyright").write_text(COPYRIGHT if number else "Copyright by somebody.\n")
        file = tmp_path / f"{name}_1%3a2.0_all.deb"
        subprocess.run(["dpkg-deb", "-b", folder, file], check=True, stdout=subprocess.DEVNULL)
    files = sorted(str(file) for file in tmp_path.glob("*.deb"))
    (tmp_path / "index").write_text(INDEX)
    arguments = ["--hold-out", "apart", "--descriptions", str(tmp_path / "index"), "--jobs", "1"]
    monkeypatch.setattr("sys.argv", ["corpus.py", *files, *arguments, "--out", str(tmp_path / "out")])
    corpus.main()
    text = {name: (tmp_path / "out" / f"{name}.txt").read_text() for name in ("train", "heldout", "heldout-packages")}
    assert "which is called kept." in text["train"] + text["heldout"]
    assert text["heldout-packages"] == "This is a page of the package, which is called apart.\n\n"
    together = text["train"] + text["heldout"]
    assert together.count("This is what both of the packages say.") == 1
    assert "An item of the list" in together
    sources = json.loads((tmp_path / "out/sources.json").read_text())
    assert sources["apart"] == {
        "version": "1:2.0",
        "licence": "MIT or Apache-2.0",
        "documents": 1,
        "paragraphs": 1,
        "words": 11,
        "words_held_out": 11,
    }
    assert sources["kept"]["licence"] == "see its copyright file"
    assert sources[corpus.DESCRIPTIONS]["documents"] == 1
    for made in corpus.MADE_BY_TRAIN:  # of the text that is written anew
        (tmp_path / "out" / made).write_text("")
    monkeypatch.setattr("sys.argv", ["corpus.py", *files, "--jobs", "1", "--out", str(tmp_path / "out")])
    corpus.main()
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["heldout.txt", "sources.json", "train.txt"]


def test_packages_to_hold_out_are_there(corpus, tmp_path, monkeypatch, capsys):
    (tmp_path / "name_1_all.deb").write_text("")
    arguments = [str(tmp_path / "name_1_all.deb"), "--hold-out", "other", "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["corpus.py", *arguments])
    with pytest.raises(SystemExit):
        corpus.main()
    assert "--hold-out names other, of which there is no package" in capsys.readouterr().err


def test_what_was_there_before(corpus):
    seen = set()
    texts = ["In version 2 it was added.", "In Version 31 it was added.", "In no version it was added."]
    assert [corpus.is_new(text, seen) for text in texts] == [True, False, True]


def test_what_is_no_package(corpus, tmp_path, monkeypatch, capsys):
    (tmp_path / "name.deb").write_text("")
    for file in ("missing_1_all.deb", "name.deb"):
        monkeypatch.setattr("sys.argv", ["corpus.py", str(tmp_path / file), "--out", str(tmp_path / "out")])
        with pytest.raises(SystemExit):
            corpus.main()
        assert f"{file} is no file NAME_VERSION_ARCHITECTURE.deb" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
