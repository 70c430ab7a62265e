"""What the documentation says is so: links, examples, interfaces, and the tests that it names."""

import doctest
import importlib.util
import inspect
import itertools
import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import cmm
import cmm.bert
import pytest
from building import ROOT, run, tool
from cmm.__main__ import main
from cmm._libcmm import ffi, lib
from cmm.typing import Algorithm

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("python/libcmm-models/**/*.md")])


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)

FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(page: Path | str) -> list[tuple[str, str]]:
    """Language and content of each code block of a page."""
    return [(language, code) for _, language, code in FENCE.findall((ROOT / page).read_text(encoding="utf-8"))]


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def in_backquotes(page: Path) -> Iterator[str]:
    yield from re.findall(r"`([^`\n]+)`", prose(page))


def table(page: str, header: str) -> list[list[str]]:
    """Rows of the table whose first line starts with `header`; cells without their backquotes."""
    lines = text(page).splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith(header))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    assert rows
    return rows


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# ---- links, paths, names -------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The headings of a page, as links name them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    """What a page links to and shows, but for other sites."""
    words = prose(page)
    targets = re.findall(r"\]\(([^)\s]+)\)", words) + re.findall(r"""(?:href|src|srcset)=["']([^"']+)""", words)
    return [target for target in targets if not target.startswith("https://")]


def dead_links(page: Path) -> list[str]:
    """Links of a page to files that are not there, and to headings that their pages have not."""
    dead = []
    for target in links(page):
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if not file.exists() or (anchor and (file.suffix != ".md" or anchor not in anchors(file))):
            dead.append(target)
    return dead


@every_page
def test_links_resolve(page: Path) -> None:
    assert dead_links(page) == []


def test_dead_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A heading: `code`, and more\n\n```sh\n# no heading\n```\n")
    page = tmp_path / "page.md"
    alive = ["other.md", "other.md#a-heading-code-and-more", "#here", "page.md#here", "https://example.org/x#y"]
    dead = ["none.md", "other.md#here", "other.md#no-heading", "#there", "folder/other.md"]
    page.write_text("# Here\n" + "\n".join(f"[a link]({target})" for target in [*alive, *dead]))
    assert dead_links(page) == dead
    page.write_text('<a href="none.md">a link</a> <img src="none.svg"> <source srcset="none.png">')
    assert dead_links(page) == ["none.md", "none.svg", "none.png"]


def test_index_leads_to_every_page() -> None:
    """Each page is one step from the map, and so is each picture from some page."""
    index = ROOT / "docs/index.md"
    named = {(index.parent / target.partition("#")[0]).resolve() for target in links(index)}
    assert {name_of(page) for page in ROOT.glob("docs/**/*.md")} - {name_of(page) for page in named} == {
        "docs/index.md",
        "docs/site/home.md",  # the first page of the site, which takes its place there
    }
    shown = {(page.parent / target.partition("#")[0]).resolve() for page in PAGES for target in links(page)}
    pictures = {file for kind in ("svg", "png") for file in ROOT.glob(f"docs/**/*.{kind}")}
    pictures.remove(ROOT / "docs/site/theme/assets/logo.svg")  # which the site's theme shows
    assert pictures
    assert {name_of(picture) for picture in pictures - shown} == set()


@every_page
def test_paths_exist(page: Path) -> None:
    """Names in backquotes that start with a folder of the repository; not those of files that a reader is to make."""
    folders = tuple(f"{entry.name}/" for entry in ROOT.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    for name in in_backquotes(page):
        path = name.partition("::")[0]
        if path.startswith(folders) and not re.search(r"example512|lanes|[<{* ]", path):
            assert (ROOT / path).exists(), f"{name_of(page)} names {path}"


@every_page
def test_tests_that_are_named_exist(page: Path) -> None:
    for file, name in re.findall(r"`(tests/[\w/]+\.(?:py|c))::(\w+)", page.read_text(encoding="utf-8")):
        start = rf"^def {name}\(" if file.endswith(".py") else rf"^static [\w ]+\*?\b{name}\("
        assert re.search(start, text(file), re.MULTILINE), f"{name_of(page)} names {file}::{name}"


def test_every_promise_names_a_test_that_runs() -> None:
    programs = re.findall(r"^ *cmm_test\((\w+)", text("tests/c/CMakeLists.txt"), re.MULTILINE)
    promises = [
        line for line in text("docs/internals/reliability.md").splitlines() if re.match(r"\| (?!promise|---)", line)
    ]
    assert len(promises) > 40
    for promise in promises:
        named = re.findall(r"`tests/([\w/]+)\.(?:py|c)::\w+`", promise)
        assert named, promise
        for name in named:
            assert name.rpartition("/")[2].startswith("test_") or name.removeprefix("c/") in programs, promise


# ---- examples ------------------------------------------------------------------------------------------------------


def with_python_examples() -> list[Path]:
    return [page for page in PAGES if any(code.startswith(">>>") for _, code in blocks(page))]


def test_there_are_examples() -> None:
    expected = {"README.md", "docs/guide/operation.md", "docs/reference/python.md", "docs/guide/encoder.md"}
    assert expected <= {name_of(page) for page in with_python_examples()}


@pytest.mark.parametrize("page", with_python_examples(), ids=name_of)
def test_python_examples(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one page, in one session, from top to bottom."""
    for variable in ("CMM_LEVEL", "CMM_ISA", "CMM_BLAS"):
        monkeypatch.delenv(variable, raising=False)
    code = "\n".join(code for language, code in blocks(page) if language == "python" and code.startswith(">>>"))
    examples = doctest.DocTestParser().get_doctest(code, {}, page.name, str(page), 0)
    said: list[str] = []
    result = doctest.DocTestRunner().run(examples, out=said.append)
    assert result.attempted > 3
    assert not result.failed, "".join(said)


def c_examples() -> list[Any]:
    """Each C program and the block after it, which is what it prints."""
    found = []
    for page in PAGES:
        for (language, code), after in itertools.pairwise(blocks(page)):
            if language == "c" and "int main" in code:
                assert after[0] == "text", f"{name_of(page)} should show what its program prints"
                found.append(pytest.param(code, after[1], id=name_of(page)))
    return found


def test_there_are_c_examples() -> None:
    assert [example.id for example in c_examples()] == ["README.md", "docs/reference/c.md"]


@pytest.mark.parametrize(("code", "prints"), c_examples())
def test_c_examples(code: str, prints: str, tmp_path: Path) -> None:
    include = Path(cmm.get_include())
    library = include.parent / "lib"
    (tmp_path / "example.c").write_text(code)
    flags = ["-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Werror", f"-I{include}"]
    link = [f"-L{library}", f"-Wl,-rpath,{library}", "-lcmm"]
    run(tool("cc"), *flags, "-o", tmp_path / "example", tmp_path / "example.c", *link)
    assert run(tmp_path / "example") == prints
    # Also as C++20, which wants designators in the order of the fields. (Those left out are 0, and meant to be.)
    flags = [
        "-std=c++20",
        "-x",
        "c++",
        "-Wall",
        "-Wextra",
        "-Wno-missing-field-initializers",
        "-Werror",
        f"-I{include}",
    ]
    run(tool("c++"), *flags, "-o", tmp_path / "example20", tmp_path / "example.c", *link)
    assert run(tmp_path / "example20") == prints


# ---- commands ------------------------------------------------------------------------------------------------------


def test_the_two_commands_can_be_extracted() -> None:
    readme = text("README.md")
    commands = dict(re.findall(r"^<!-- command: (\w+) -->\n```sh\n([^\n]+)\n```$", readme, re.MULTILINE))
    assert commands == {
        "main": "pip install '.[bert]' ./python/libcmm-models && cmm demo && "
        'cmm fill-mask "The function returns a <mask> of strings."',
        "tests": "pip install '.[test]' ./python/libcmm-models && python -m pytest -n auto",
    }


def test_extras_that_are_named_exist() -> None:
    extras = tomllib.loads(text("pyproject.toml"))["project"]["optional-dependencies"]
    named = {
        extra
        for page in PAGES
        for group in re.findall(r"pip install '[.\w]*\[([\w,]+)\]'", page.read_text(encoding="utf-8"))
        for extra in group.split(",")
    }
    assert "test" in named
    assert named <= set(extras)


def test_subcommands_and_options_that_are_named_exist(capsys: pytest.CaptureFixture[str]) -> None:
    lines = {line for page in PAGES for line in in_backquotes(page)}
    lines |= {line for page in PAGES for _, code in blocks(page) for line in code.splitlines()}
    calls = [found for line in lines for found in re.findall(r"(?:^|&& |=\w+ )cmm ([a-z][\w-]*)([^#&|]*)", line)]
    assert {"info", "demo", "bench"} <= {command for command, _ in calls}
    for command, options in calls:
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0, command
        known = capsys.readouterr().out
        for option in re.findall(r"--[\w-]+", options):
            assert option in known, f"cmm {command} {option}"


def test_every_subcommand_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    there = re.findall(r"^    ([a-z][\w-]*)(?:  |$)", capsys.readouterr().out, re.MULTILINE)
    rows = {
        row[0].strip("`").removeprefix("cmm "): row[1] for row in table("docs/reference/python.md", "| command |")
    }
    assert sorted(there) == sorted(rows)
    for command, what in rows.items():
        with pytest.raises(SystemExit):
            main([command, "--help"])
        known = capsys.readouterr().out
        assert all(option.split()[0] in known for option in quoted(what) if option.startswith("--"))


# ---- interfaces ----------------------------------------------------------------------------------------------------


def shown(name: str, function: Callable[..., Any]) -> str:
    """A signature as the pages show it: without annotations and without self."""
    parameters = inspect.signature(function).parameters.values()
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in parameters if p.name != "self"]
    return f"{name}{inspect.Signature(bare)}"


def test_python_api() -> None:
    page = text("docs/reference/python.md")
    documented = set(re.findall(r"\bcmm\.(\w+)", page)) - {"h", "pc"}  # but for files
    submodules = {"bert", "blas", "typing"}
    assert documented - submodules == set(cmm.__all__) - submodules
    signatures = re.findall(r"^cmm\.(\w+)(\(.*\))$", page, re.MULTILINE)
    assert {
        "fff_forward",
        "fff_backward",
        "cmm_forward",
        "ff_forward",
        "FFF",
        "node_usage",
        "dead_subtrees",
        "levels",
        "get_include",
    } == dict(signatures).keys()
    for name, arguments in signatures:
        assert name + arguments == shown(name, getattr(cmm, name))
    call = re.search(r"`(layer\(x.*?\))`", page, re.DOTALL)
    assert call is not None
    assert " ".join(call[1].split()) == shown("layer", cmm.FFF.__call__)
    assert set(re.findall(r"cmm\.blas\.(\w+)", page)) == set(cmm.blas.__all__)
    of_typing = re.search(r"`cmm\.typing` has the names for annotations: (.*?),\s+an array of", page, re.DOTALL)
    assert of_typing is not None
    assert set(quoted(of_typing[1])) == set(cmm.typing.__all__)


def test_python_errors() -> None:
    for name, builtin, _ in table("docs/reference/python.md", "| exception |"):
        error = getattr(cmm, name.strip("`").removeprefix("cmm."))
        assert builtin.strip("`") in {base.__name__ for base in error.__bases__}
    there = {name for name in cmm.__all__ if name.endswith("Error")}
    assert there == {
        row[0].strip("`").removeprefix("cmm.") for row in table("docs/reference/python.md", "| exception |")
    }


def test_choices() -> None:
    from cmm._native import ACTIVATIONS, TIES

    rows = {quoted(row[0])[0]: quoted(row[1]) for row in table("docs/reference/python.md", "| argument |")}
    assert rows["activation"] == [repr(name) for name in ACTIVATIONS]
    assert rows["tie"] == [repr(name) for name in TIES]
    assert set(get_args(Algorithm)) <= {name.strip("'") for name in rows["algorithm"]}


def test_environment_variables() -> None:
    sources = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "python").rglob("*.py"))
    read = set(re.findall(r"""b"((?:CMM|OMP)_\w+)"|environ(?:\.get\(|\[)"(CMM_\w+)""", sources))
    assert {a or b for a, b in read} == {
        row[0].strip("`") for row in table("docs/reference/python.md", "| variable |")
    }
    sources = "".join(
        file.read_text(encoding="utf-8") for folder in ("tests", "bench") for file in (ROOT / folder).rglob("*.py")
    )
    documented = {row[0].strip("`") for row in table("CONTRIBUTING.md", "| variable |")}
    assert all(f'"{name}"' in sources for name in documented)


def test_levels() -> None:
    names = [level.name for level in cmm.levels()]
    assert [quoted(row[0])[0] for row in table("docs/guide/levels.md", "| level |")] == names
    assert set(names) <= set(in_backquotes(ROOT / "README.md"))


def test_encoder_api() -> None:
    rows = table("docs/guide/encoder.md", "| name |")
    documented = {quoted(row[0])[0].partition("(")[0] for row in rows}
    assert documented == set(cmm.bert.__all__)
    for row in rows:
        signature = quoted(row[0])[0]
        if "(" in signature:
            name = signature.partition("(")[0]
            assert signature == shown(name, getattr(cmm.bert, name))
    methods = [quoted(row[0])[0] for row in table("docs/guide/encoder.md", "| method |")]
    assert methods[0] == shown("model", cmm.bert.Model.__call__)
    public = {
        name for name in vars(cmm.bert.Model) if inspect.isfunction(vars(cmm.bert.Model)[name]) and name[0] != "_"
    }
    assert {re.split(r"[.(]", method)[1] for method in methods[1:]} == public


def prototypes(source: str) -> set[str]:
    """Functions declared, each on one line with single blanks."""
    return {
        " ".join(found.split()) for found in re.findall(r"^[a-z][\w \*]+?cmm_\w+\([^;{]*?\);", source, re.MULTILINE)
    }


def test_c_api() -> None:
    header = (text("libcmm/include/cmm.h") + text("libcmm/include/cmm_blas.h")).replace("CMM_API ", "")
    documented = prototypes("\n".join(code for language, code in blocks("docs/reference/c.md") if language == "c"))
    assert documented == prototypes(header)
    assert {re.search(r"(cmm_\w+)\(", prototype)[1] for prototype in documented} == {  # type: ignore[index]
        name for name in dir(lib) if name.startswith("cmm_") and not name.startswith("cmm_py_")
    }


def test_cuda_api() -> None:
    header = text("libcmm/include/cmm_cuda.h").replace("CMM_API ", "")
    documented = prototypes("\n".join(code for language, code in blocks("docs/guide/gpu.md") if language == "c"))
    assert documented == prototypes(header)
    assert len(documented) == 12
    run_struct = re.search(r"typedef struct cmm_cuda_run \{(.*?)\} cmm_cuda_run;", header, re.DOTALL)
    assert run_struct is not None
    fields = re.findall(r"^ .*?(\w+);", run_struct[1], re.MULTILINE)
    assert [(quoted(row[0])[0], quoted(row[1])) for row in table("docs/guide/gpu.md", "| struct |")] == [
        ("cmm_cuda_run", fields)
    ]
    listed = re.findall(r"^CMM_CUDA_KERNEL\(fff, (\w+),", text("libcmm/src/kernels.inc"), re.MULTILINE)
    assert [quoted(row[0])[0] for row in table("docs/guide/gpu.md", "| algorithm |")] == [
        n for n in listed if n != "naive"
    ]
    assert [quoted(row[0])[0] for row in table("docs/guide/gpu.md", "| level |")] == [
        level.name for level in cmm.levels() if level.name.startswith("cuda")
    ]


def test_c_structs() -> None:
    def names(field: str, about: Any) -> list[str]:
        return [field] if field else [name for name, _ in about.type.fields]  # "": a union, of a name and its alias

    rows = table("docs/reference/c.md", "| struct |")
    documented = {name: quoted(row[1]) for row in rows for name in quoted(row[0]) if name.startswith("cmm_")}
    there = {name: ffi.typeof(name) for name in ffi.list_types()[0]}
    assert documented == {
        name: [alias for field, about in kind.fields for alias in names(field, about)]
        for name, kind in there.items()
        if kind.kind == "struct"
    }


def test_c_constants() -> None:
    documented = [name for row in table("docs/reference/c.md", "| constants |") for name in quoted(row[0])]
    there = [name for name in dir(lib) if re.match(r"CMM_(?!OK|ERROR)", name)]
    assert sorted(documented) == sorted(there)


def test_status_codes() -> None:
    documented = {
        quoted(row[1])[0]: (int(row[0]), row[2]) for row in table("docs/reference/status-codes.md", "| number |")
    }
    there = {
        name: (number, ffi.string(lib.cmm_status_message(number)).decode())
        for name in dir(lib)
        if re.match(r"CMM_(OK|ERROR)", name)
        for number in (getattr(lib, name),)
    }
    assert documented == there


def test_the_order_of_checks_is_the_one_that_is_tested() -> None:
    documented = [
        f"CMM_ERROR_{name}"
        for row in table("docs/reference/status-codes.md", "| checked |")
        for name in quoted(row[1])
    ]
    tested = re.search(r"order_of_checks\[\] = \{(.*?)\}", text("tests/c/wrong_calls.c"), re.DOTALL)
    assert tested is not None
    assert re.findall(r"\w+", tested[1]) == documented


def test_the_order_of_checks_of_a_backward_pass_is_the_one_that_is_tested() -> None:
    documented = [
        f"CMM_ERROR_{name}"
        for row in table("docs/reference/status-codes.md", "| of a backward pass |")
        for name in quoted(row[1])
    ]
    tested = re.findall(r"^    WRONG\((CMM_ERROR_\w+),", text("tests/c/backward.c"), re.MULTILINE)
    assert list(dict.fromkeys(name for name in tested if name in documented)) == documented
    own = {name for name in dir(lib) if name.startswith("CMM_ERROR") and 130 <= getattr(lib, name) < 150}
    assert own < set(documented)


def test_cmake_options() -> None:
    rows = table("docs/guide/building.md", "| CMake option |")
    there = re.findall(r"^(?:set|option)\((CMM_\w+)", text("CMakeLists.txt"), re.MULTILINE)
    assert sorted(quoted(row[0])[0] for row in rows) == sorted([*there, "BUILD_SHARED_LIBS"])


# ---- the rest ------------------------------------------------------------------------------------------------------


def script(name: str, folder: str = "docs/pictures") -> Any:
    """A script that draws pictures or shows results, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{folder}/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Colours of lines that can be seen on light and on dark paper.
BRIGHT = {"#009e73", "#56b4e9", "#cc79a7", "#e69f00"}


def test_the_pictures_are_what_their_scripts_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs/pictures"))
    tree, kernels, machines = script("draw_tree"), script("draw_kernels"), script("draw_machines")
    assert tree.picture() == text("docs/pictures/tree.svg")
    node = 0
    for visited, logit in tree.LOGITS.items():  # and its path is one
        assert visited == node
        node = 2 * node + 1 + (logit > 0)
    for name, draw in kernels.PICTURES.items():
        assert draw() == text(f"docs/pictures/{name}")
    charts = machines.charts()
    assert {file.name for file in machines.OUT.iterdir()} == charts.keys()
    for name, chart in charts.items():
        assert chart == text(f"docs/pictures/machines/{name}"), f"{name}: run docs/pictures/draw_machines.py"
    assert machines.page() == text("docs/machines.md"), "run docs/pictures/draw_machines.py"


def test_each_picture_has_dark_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those in SVG, for all the colours that they have."""
    monkeypatch.syspath_prepend(str(ROOT / "docs/pictures"))
    dark = script("dark")
    pictures = sorted(ROOT.glob("docs/pictures/**/*.svg"))
    assert len(pictures) > 5
    for picture in pictures:
        drawn = re.sub(r"<style>\n@media.*?</style>\n", "", picture.read_text(), flags=re.DOTALL)
        assert dark.with_dark(drawn) == picture.read_text(), f"{name_of(picture)}: run docs/pictures/dark.py"
        assert set(re.findall(r"#[0-9a-f]{6}", drawn)) <= dark.DARK.keys() | BRIGHT, name_of(picture)


def test_the_readme_has_the_figures_of_the_page_of_results() -> None:
    """Its large table is there too, and its small one has some of that one's columns."""
    header = "| AMD EPYC with AVX-512"
    large = table("README.md", header)
    assert large == table("docs/results.md", header)
    measured = {row[0].split()[0]: [row[1], row[6], row[7]] for row in large if "2 threads" not in row[0]}
    small = table("README.md", "| microseconds per token")
    assert [row[0] for row in small] == ["1", "128", "16384"]
    for tokens, *figures in small:
        assert figures == measured[tokens]
    ratios = [int(row[2].removesuffix("x")) for row in measured.values()]
    assert f"{min(ratios)} to {max(ratios)} times" in " ".join(text("README.md").split())


def test_the_study_has_the_results_of_its_rows() -> None:
    """The page shows what its script makes of the file of results, which are of rows that the script has."""
    study = script("study", "docs/examples")
    results = json.loads(text("docs/study.json"))
    assert results
    assert results.keys() <= study.ROWS.keys()
    for name, result in results.items():
        said = study.command(name, Path("corpus"), Path("runs"))
        assert result["options"]["layer"] == said[said.index("--layer") + 1], name
        assert result["steps"] == int(said[said.index("--steps") + 1]), name
    assert study.tables(results) in text("docs/study.md")
    assert study.summary(results, json.loads(text("docs/study-times.json"))) in text("README.md")


def test_the_guide_to_converting_has_the_results_of_its_rows() -> None:
    conversions = script("conversions", "docs/examples")
    results = json.loads(text("docs/conversions.json"))
    assert results.keys() <= conversions.ROWS.keys() | conversions.BERT_ROWS.keys()
    page = text("docs/guide/converting.md")
    assert conversions.table("twin", conversions.ROWS, results) in page
    assert conversions.table("bert", conversions.BERT_ROWS, results) in page


def test_version() -> None:
    assert re.search(rf"^## {re.escape(cmm.__version__)}\b", text("CHANGELOG.md"), re.MULTILINE)


def test_license_is_complete() -> None:
    words = text("LICENSE")
    assert words.lstrip().startswith("Apache License\n")
    assert "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION" in words
    assert "END OF TERMS AND CONDITIONS" in words
    assert tomllib.loads(text("pyproject.toml"))["project"]["license"] == "Apache-2.0"


@every_page
def test_nothing_is_left_to_fill_in(page: Path) -> None:
    assert not re.search(r"\b(XX+|TODO|FIXME|TBD)\b", page.read_text(encoding="utf-8"))


def tracked() -> list[Path]:
    """The files of the repository, or of an unpacked archive of it."""
    git = shutil.which("git")
    if git and (ROOT / ".git").exists():
        listed = subprocess.run([git, "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
        if listed.returncode == 0:
            return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    return [file for file in ROOT.rglob("*") if file.is_file()]


def test_no_paths_of_a_machine() -> None:
    machine = re.compile(rb"(?<![\w.$/])/(?:work|tmp|root|home|Users)/[\w.]")
    assert machine.search(b"see " + b"/home" + b"/someone")
    found = []
    for file in tracked():
        content = file.read_bytes()
        if b"\0" not in content:
            for line in content.splitlines():
                if machine.search(line):
                    found.append(f"{file.relative_to(ROOT)}: {line.decode(errors='replace').strip()}")
    assert not found, "\n".join(found)
