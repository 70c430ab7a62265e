"""The documentation as a site: it is built without a warning and without a network, and holds together."""

import html
import importlib.util
import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cmm
import cmm.bert
import cmm.blas
import cmm.typing
import pytest
from building import ROOT, tool

LEFT_OUT = ("build", "dist", ".venv", ".git")


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(folder: Path, *, root: Path = ROOT, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*before, sys.executable, str(root / "docs/build_site.py"), str(folder)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, check=False)


def needs_mkdocs() -> None:
    for package in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        if importlib.util.find_spec(package.partition(".")[0]) is None:
            pytest.skip(f"the package {package}, which builds the site, is not installed: pip install '.[docs]'")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built in a network namespace of its own, which has no network, where that is allowed."""
    needs_mkdocs()
    alone = ("unshare", "-rn")
    if not shutil.which("unshare") or subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        alone = ()
    folder = tmp_path_factory.mktemp("site") / "site"
    done = build(folder, before=alone)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert re.fullmatch(r"\d+ pages: no problems\n", done.stdout)
    return folder


def page(site: Path, name: str) -> str:
    return (site / name).read_text(encoding="utf-8")


def words(page: str) -> str:
    """What a page says, without its markup."""
    return html.unescape(re.sub(r"<[^>]+>", "", page))


# ---- the site ------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_every_public_name_is_in_the_reference(site: Path) -> None:
    modules: list[ModuleType] = [cmm, cmm.bert, cmm.blas, cmm.typing]
    expected = set()
    for module in modules:
        for name in module.__all__:
            if inspect.ismodule(getattr(module, name)):
                continue
            expected.add(f"{module.__name__}.{name}")
            kind = getattr(module, name)
            if inspect.isclass(kind) and kind.__module__.startswith("cmm"):
                public = {one for one, it in vars(kind).items() if inspect.isfunction(it) and one[0] != "_"}
                expected |= {f"{module.__name__}.{name}.{one}" for one in public if getattr(kind, one).__doc__}
    source = (ROOT / "python/cmm/torch/__init__.py").read_text(encoding="utf-8")  # PyTorch may not be installed
    listed = re.search(r"^__all__ = \[(.+?)\]$", source, re.MULTILINE | re.DOTALL)
    assert listed is not None
    expected |= {f"cmm.torch.{name}" for name in re.findall(r'"(\w+)"', listed[1])}
    assert len(expected) > 60
    there = {
        found
        for file in (site / "reference/api").glob("*.html")
        for found in re.findall(r'id="(cmm[\w.]*)"', page(site, f"reference/api/{file.name}"))
    }
    assert expected - there == set()


@pytest.mark.full
def test_docstrings_are_shown_as_they_are_written(site: Path) -> None:
    functions = words(page(site, "reference/api/cmm.html"))
    assert "array_like, shape (..., d_in)" in functions
    assert ":func:" not in functions
    assert 'href="#cmm.node_usage"' in page(site, "reference/api/cmm.html")
    assert "(K*N, d_out)" in words(page(site, "reference/api/cmm.torch.html"))
    # Each of the parameters that share a line has its own default.
    dense = functions.partition("Apply a dense feedforward layer")[2].partition("Returns")[0]
    assert re.findall(r"(\w+)\s+\([^)]*default:\s+(\S+)\s*\)", dense) == [
        ("activation", "'gelu'"),
        ("level", "'auto'"),
        ("algorithm", "None"),
        ("threads", "None"),
        ("out", "None"),
    ]


@pytest.mark.full
def test_the_first_page_says_what_the_readme_says(site: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    first = " ".join(words(page(site, "index.html")).split())
    for command in re.findall(r"<!-- command: \w+ -->\n```sh\n(.+)\n```", readme):
        assert command in first
    figures = re.search(r"\*\*(\d+ to \d+ times)", " ".join(readme.split()))
    assert figures is not None
    assert figures[1] in first
    assert "pictures/curve.dark.svg#only-dark" in page(site, "index.html")


@pytest.mark.full
def test_pictures_are_there_in_light_and_dark(site: Path) -> None:
    pictures = [file for file in (site / "pictures").rglob("*.svg") if not file.name.endswith(".dark.svg")]
    assert len(pictures) > 5
    for picture in pictures:
        dark = picture.with_suffix(".dark.svg")
        assert "prefers-color-scheme" not in picture.read_text() + dark.read_text()
        assert picture.read_text() != dark.read_text()


@pytest.mark.full
def test_the_search_knows_docstrings_words_and_options(site: Path) -> None:
    index = page(site, "search/search_index.js").removeprefix("var __index = ")
    found = {entry["location"]: entry["title"] + entry["text"] for entry in json.loads(index)["docs"]}
    assert "subtrees that no token visited" in found["reference/api/cmm.html#cmm.dead_subtrees"]
    assert "router" in found["glossary.html#for-a-reader-who-knows-mixtures-of-experts"]
    assert "--exact-path" in found["reference/command.html#cmm-fill-mask"]
    assert "torchrun" in found["examples/train.html"]


@pytest.mark.full
def test_the_manual_page_is_whole(site: Path) -> None:
    manual = (ROOT / "docs/man/cmm.1").read_text(encoding="utf-8")
    shown = words(page(site, "reference/command.html"))
    options = set(re.findall(r"--[a-z][\w-]+", manual.replace("\\-", "-")))
    assert len(options) > 20
    assert {option for option in options if option not in shown} == set()
    assert not re.findall(r"\\[-f/,&e]", shown)


@pytest.mark.full
def test_nothing_is_asked_of_others(site: Path) -> None:
    """No page has the theme's element that asks a host about the repository; each forbids the browser to ask."""
    pages = [
        file
        for file in site.rglob("*.html")
        if 'http-equiv="refresh"' not in file.read_text() and "demo" not in file.parts
    ]
    assert len(pages) > 40
    for file in pages:
        text = file.read_text(encoding="utf-8")
        assert "default-src 'self'" in text, file
        assert 'data-md-component="source"' not in text, file


# ---- a site that is broken is no site ------------------------------------------------------------------------------


BLAS = ("python/cmm/blas.py", '"""Return the BLAS that a call', '"""Return :func:`nothing`, the BLAS that a call')
WRONG = {  # what is added to files, or replaced in them, and what is said of it
    "a dead link": {("docs/start.md", "[a](guide/none.md)"): "start.md links to guide/none.md, and there is no"},
    "another roff": {("docs/man/cmm.1", ".XY"): "docs/man/cmm.1 has '.XY'"},
    "warnings": {
        ("docs/start.md", "[a](guide/levels.md#none)"): "'start.md' contains a link 'guide/levels.md#none'",
        ("CHANGELOG.md", "[a](docs/start.md#none)"): "'changelog.md' contains a link 'start.md#none'",
        ("docs/alone.md", "# A page"): "- alone.md",
        BLAS: "reference/api/cmm.blas.md: from",
    },
    "what the check of links finds": {
        ("docs/pictures/alone.svg", "<svg></svg>"): "no page shows pictures/alone.svg",
        ("docs/start.md", "![a](https://example.org/a.png)"): "start.html loads https://example.org/a.png",
    },
}


@pytest.mark.full
@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_said(tmp_path: Path, wrong: str) -> None:
    needs_mkdocs()
    root = tmp_path / "project"
    shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(*LEFT_OUT, "*.safetensors", "__pycache__", "tests"))
    (root / "tests").mkdir()
    for file, *texts in WRONG[wrong]:
        place = root / file
        before = place.read_text() if place.exists() else ""
        after = before.replace(*texts) if len(texts) == 2 else f"{before}\n{texts[0]}\n"
        assert after != before
        place.write_text(after)
    done = build(tmp_path / "site", root=root)
    assert done.returncode != 0
    for said in WRONG[wrong].values():
        assert said in done.stderr


def test_the_links_of_a_site_are_checked(tmp_path: Path) -> None:
    check = script("docs/site/check_links.py")
    (tmp_path / "index.html").write_text(
        '<h1 id="a">A</h1><a href="b.html#b">b</a><a href="#a"></a><img src="c.svg">'
    )
    (tmp_path / "b.html").write_text(
        '<h1 id="b">B</h1><a href="https://example.org/x">x</a><link rel="next" href="./">'
    )
    (tmp_path / "c.svg").write_text("<svg></svg>")
    (tmp_path / "404.html").write_text('<a href="/b.html">b</a>')
    assert list(check.problems(tmp_path)) == []
    (tmp_path / "b.html").write_text(
        '<h1 id="b">B</h1><a href="none.html"></a><a href="index.html#none"></a><a href="http://example.org/"></a>'
        '<script src="https://example.org/a.js"></script><img srcset="c.svg 1x, d.svg 2x"><a href="../up.html"></a>'
    )
    (tmp_path / "style.css").write_text("a { background: url('https://example.org/b.png') }")
    (tmp_path / "alone.html").write_text('<a href="index.html"></a>')
    (tmp_path / "e.png").write_text("")
    assert list(check.problems(tmp_path)) == [
        "b.html links to none.html, which is not there",
        "b.html links to index.html#none, and index.html has no such anchor",
        "b.html links to http://example.org/, which is not https",
        "b.html links to ../up.html, which is not there",
        "b.html loads https://example.org/a.js, from elsewhere",
        "b.html loads d.svg, which is not there",
        "style.css loads https://example.org/b.png, from elsewhere",
        "no link leads to alone.html",
        "no page shows e.png",
    ]


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    done = build(tmp_path)
    assert done.returncode == 2
    assert "name an empty folder" in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]


# ---- in a browser --------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_a_browser_searches_a_page_that_is_a_file(site: Path) -> None:
    """Without a server or a network: the theme's script runs, and finds what a docstring says."""
    command = [tool("chromium"), "--headless=new", "--no-sandbox", f"--user-data-dir={site.parent / 'profile'}"]
    command += ["--virtual-time-budget=20000", "--dump-dom", f"{(site / 'index.html').as_uri()}?q=dead_subtrees"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "Of 4095 neurons" in done.stdout
    results = re.findall(r'<a href="([^"]+)" class="md-search-result__link"', done.stdout)
    assert any("reference/api/cmm.html" in result and "cmm.dead_subtrees" in result for result in results), results
