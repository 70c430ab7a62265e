"""The distributions: what they are called, how they go together, and what is said where one is missing."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import cmm
import pytest
from building import ROOT

CORE, MODELS = "pyproject.toml", "python/libcmm-models/pyproject.toml"


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
    assert not project(MODELS).get("dependencies")


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
