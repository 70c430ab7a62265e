"""docs/examples/corpus.py: what of a page and of a manual page becomes text to train on."""

import gzip
import importlib.util
import shutil

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
