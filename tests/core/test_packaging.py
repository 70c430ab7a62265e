"""The distributions: what they are called, how they go together, and what is said where one is missing."""

import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import cmm
import pytest
from building import ROOT, run, tool
from cmm._libcmm import ffi, lib
from cmm._native import cuda as native_cuda

CORE = "pyproject.toml"
MODELS, CUDA = (f"python/{name}/pyproject.toml" for name in ("libcmm-models", "libcmm-cuda13"))


def project(name: str) -> Any:
    return tomllib.loads((ROOT / name).read_text(encoding="utf-8"))["project"]


def readable() -> list[Path]:
    """The texts of the repository that a user reads, or that speak to one."""
    folders = [file for folder in ("python", "docs", "bench", "tests", ".ci") for file in (ROOT / folder).rglob("*")]
    kinds = {".py", ".pyi", ".md", ".toml", ".c", ".h", ".txt", ""}
    files = [*ROOT.glob("*.*"), *folders]
    return [file for file in files if file.is_file() and file.suffix in kinds and "__pycache__" not in file.parts]


# The name of another project on the package index. (`pip install libcmm...`, and that of a path, are fine.)
WRONG = re.compile(
    r"""pip3? install (?:-\S+ )*["']?cmm\b|(?<![\w-])cmm\[(?:\w+,)*(?:bert|bench|mkl|cuda|torch|test)\]"""
)


def test_nothing_sends_anyone_to_another_project() -> None:
    for wrong in ("pip " + "install cmm", "pip " + "install 'cmm", "pip install -q " + '"cmm', "cmm" + "[bert]"):
        assert WRONG.search(wrong), wrong
    for right in ("pip install libcmm", "pip install 'libcmm[bert]'", "pip install .", "import cmm[0]"):
        assert not WRONG.search(right), right
    found = [
        f"{file.relative_to(ROOT)}:{number}: {line}"
        for file in readable()
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if WRONG.search(line)
    ]
    assert not found, "\n".join(found)


def test_the_names() -> None:
    assert project(CORE)["name"] == "libcmm"
    assert project(CORE)["scripts"] == {"cmm": "cmm.__main__:main"}
    assert project(CORE)["version"] == cmm.__version__
    assert project(MODELS)["name"] == "libcmm-models"
    assert project(CUDA)["name"] == "libcmm-cuda13"
    assert not project(MODELS).get("dependencies")
    assert not project(CUDA).get("dependencies")
    found = (ROOT / "python/libcmm-cuda13/cmm_cuda13/__init__.py").read_text(encoding="utf-8")
    assert f'__version__ = "{cmm.__version__}"' in found


def test_one_address() -> None:
    """That of the repository, wherever it is named."""
    address = project(CORE)["urls"]["Repository"]
    assert {project(name)["urls"]["Repository"] for name in (MODELS, CUDA)} == {address}
    for url in project(CORE)["urls"].values():
        assert url.startswith(address) or url == "https://arxiv.org/abs/2311.10770"
    owner, name = address.rsplit("/", 2)[1:]
    for file in ("CITATION.cff", "SECURITY.md", "python/libcmm-cuda13/README.md"):
        text = (ROOT / file).read_text(encoding="utf-8")
        assert address in text
        assert set(re.findall(r"https://github.com/([\w-]+/[\w-]+)", text)) == {f"{owner}/{name}"}, file


def test_the_citation() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {cmm.__version__}\n" in text
    assert f"\nlicense: {project(CORE)['license']}\n" in text
    assert "arXiv:2311.10770" in text


def test_the_page_on_the_index_leads_somewhere() -> None:
    """Links and pictures of the README as it is in the metadata of the installed package: each is of a file here."""
    about = metadata.metadata("libcmm")
    page, address = about.get_payload(), project(CORE)["urls"]["Repository"]
    assert isinstance(page, str)
    assert about["Description-Content-Type"] == "text/markdown"
    assert page.startswith("# cmm")
    targets = re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", page)
    assert len(targets) > 15
    for picture, target in targets:
        if target.startswith(address):
            kind, branch, file = target.removeprefix(f"{address}/").split("/", 2)
            assert (kind, branch) == ("raw" if picture else "blob", "main")
            assert (ROOT / file.partition("#")[0]).is_file(), file
        else:
            assert target.startswith("https://"), target
    assert any(picture for picture, _ in targets)


# ---- without the models --------------------------------------------------------------------------------------------

MISSING = (
    "fff is a trained model of the package libcmm-models, which is not installed: "
    "pip install libcmm-models, or in a checkout pip install ./python/libcmm-models"
)


@pytest.fixture
def _no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cmm_models", None)


@pytest.mark.usefixtures("_no_models")
def test_a_missing_model_is_an_error_that_says_how_to_get_it(tmp_path: Path) -> None:
    for call in (cmm.bert.trained, lambda: cmm.bert.export("fff", tmp_path / "a")):
        with pytest.raises(cmm.UnusableError) as caught:
            call()
        assert str(caught.value) == MISSING
    with pytest.raises(cmm.ArgumentError, match="name is 'bert'"):
        cmm.bert.trained("bert")


@pytest.mark.parametrize(
    "words",
    [
        ["fill-mask", "a <mask>"],
        ["embed", "fff", "a file"],
        ["classify", "fff", "a file"],
        ["explain", "fff", "--ids", "1,2"],
        ["export", "fff", "a"],
        ["bench", "--model"],
    ],
    ids=" ".join,
)
def test_a_command_without_the_models(tmp_path: Path, words: list[str]) -> None:
    if words[0] == "explain":
        pytest.importorskip("matplotlib", reason="matplotlib, which draws, is not installed")
    code = "import sys; sys.modules['cmm_models'] = None; from cmm.__main__ import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"cmm {words[0]}: error: {MISSING}\n"
    assert not list(tmp_path.iterdir())


# ---- the library for GPUs ------------------------------------------------------------------------------------------

LEVEL = 'print(next(level.reason for level in cmm.levels() if level.name == "cuda"))'


def reason(folder: Path, version: str, library: str) -> str:
    """Why level cuda cannot be used, as cmm says where this libcmm-cuda13 is installed."""
    (folder / "cmm_cuda13.py").write_text(f"__version__ = {version!r}\nLIBRARY = {library!r}\n")
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); import cmm; {LEVEL}"
    environment = {name: value for name, value in os.environ.items() if name != "CMM_CUDA_LIBRARY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.count("\n") == 1
    return done.stdout.strip()


needs_no_cuda = pytest.mark.skipif(native_cuda.built(), reason="this package was built with a libcmm_cuda of its own")


@needs_no_cuda
def test_the_library_is_found_where_it_is_installed(tmp_path: Path) -> None:
    """One that finds no GPU, and says so: it was loaded, and asked."""
    names = re.findall(r"(cmm_cuda_\w+)\(", (ROOT / "libcmm/include/cmm_cuda.h").read_text(encoding="utf-8"))
    assert len(set(names)) == 12
    number = lib.CMM_ERROR_CUDA_DEVICE
    (tmp_path / "a.c").write_text(
        "".join(f"int {name}(void) {{ return {number}; }}\n" for name in sorted(set(names)))
    )
    run(tool("cc"), "-shared", "-fPIC", "-o", tmp_path / "a.so", tmp_path / "a.c")
    said = reason(tmp_path, cmm.__version__, str(tmp_path / "a.so"))
    assert said == ffi.string(lib.cmm_status_message(number)).decode()
    major, minor, _ = cmm.__version__.split(".")
    assert reason(tmp_path, f"{major}.{minor}.99", str(tmp_path / "a.so")) == said
    assert "none.so: cannot open" in reason(tmp_path, cmm.__version__, str(tmp_path / "none.so"))


@needs_no_cuda
@pytest.mark.parametrize("version", ["0.1.0", "1.2.0"])
def test_a_library_of_another_version_is_refused(tmp_path: Path, version: str) -> None:
    minor = cmm.__version__.rpartition(".")[0]
    assert reason(tmp_path, version, "none.so") == (
        f"libcmm_cuda is not here: libcmm-cuda13 is of version {version} and libcmm of {cmm.__version__}, "
        f"and both should be of one minor version: pip install 'libcmm-cuda13=={minor}.*'"
    )


# ---- what is imported, and how long that takes ---------------------------------------------------------------------


def after(code: str) -> str:
    """The last line that a new Python prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "words",
    [
        ["--version"],
        ["info", "--help"],
        ["demo", "--help"],
        ["bench", "--help"],
        ["fill-mask", "a <mask>"],
        ["embed", "fff", "a file"],
        ["info"],  # which lists the BLAS, SciPy's among them
    ],
    ids=" ".join,
)
def test_scipy_waits_until_a_blas_is_asked_for(words: list[str]) -> None:
    if words[0] in ("fill-mask", "embed"):
        pytest.importorskip("cmm_models", reason="the package libcmm-models is not installed")
        pytest.importorskip("tokenizers", reason="the package tokenizers, which text needs, is not installed")
    code = f"import sys\nfrom cmm.__main__ import main\ntry: main({words!r})\nexcept SystemExit: pass\n"
    assert after(code + "print('scipy' in sys.modules)") == str(words == ["info"])


def test_a_layer_needs_no_scipy() -> None:
    """Of level native, which auto is for trees; nor does a machine without SciPy lack it."""
    code = """
import sys
sys.modules["scipy"] = None
import cmm, numpy as np
x, w_in, w_out = (np.ones(shape, np.float32) for shape in ((5, 8), (2, 7, 8), (2, 7, 6)))
print(cmm.fff_forward(x, w_in, w_out).shape, cmm.FFF(w_in, w_out)(x).shape)
"""
    assert after(code) == "(5, 6) (5, 6)"


def test_import_takes_little_more_than_that_of_numpy() -> None:
    """Under 0.15 s, the fastest of five: what a busy machine adds is no property of the package."""
    code = "import time, numpy\nbegan = time.perf_counter()\nimport cmm\nprint(time.perf_counter() - began)"
    assert min(float(after(code)) for _ in range(5)) < 0.15


def test_a_libcmm_of_another_version_is_refused(tmp_path: Path) -> None:
    """In one line, before anything but its version is asked: this one has no other function."""
    (tmp_path / "stub.c").write_text('const char *cmm_version(void) { return "0.1.9"; }\n')
    library = tmp_path / "libcmm.so"
    run(tool("cc"), "-shared", "-fPIC", tmp_path / "stub.c", "-o", library)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", "import cmm"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: libcmm 0.1.9 was loaded from {library}; this package needs {cmm.__version__}: "
        "take that folder out of LD_LIBRARY_PATH"
    )
