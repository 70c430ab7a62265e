"""The types of the interface: what mypy and pyright accept of a user's program, and what they refuse."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import cmm
import pytest
from building import ROOT
from cmm._dispatch import CUDA_ALGORITHMS, kernels
from cmm._native import ACTIVATIONS, TIES
from cmm.typing import Activation, Algorithm, LevelName, Tie

RIGHT, WRONG = (ROOT / f"tests/consumers/typed/{name}.py" for name in ("right", "wrong"))


def by_mypy(program: Path, folder: Path) -> list[tuple[int, str]]:
    """Return line and message of each error."""
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--cache-dir", str(folder / "cache")]
    # Away from the repository: its settings are not a user's.
    run = subprocess.run([*command, str(program)], cwd=folder, capture_output=True, text=True, check=False)
    assert not run.stderr, run.stderr
    found = re.findall(r"\.py:(\d+): error: (.*)", run.stdout)
    assert bool(found) == bool(run.returncode), run.stdout
    return [(int(line), message) for line, message in found]


def by_pyright(program: Path, folder: Path) -> list[tuple[int, str]]:
    if shutil.which("pyright") is None:
        pytest.skip("pyright is not installed: npm install -g pyright, or pip install pyright where it finds node")
    (folder / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    copy = folder / program.name
    shutil.copy(program, copy)
    command = ["pyright", "--outputjson", "--pythonpath", sys.executable, "--project", str(folder), str(copy)]
    run = subprocess.run(command[:-1], cwd=folder, capture_output=True, text=True, check=False)
    found = json.loads(run.stdout)["generalDiagnostics"]
    return [(one["range"]["start"]["line"] + 1, one["message"]) for one in found if one["severity"] == "error"]


every_checker = pytest.mark.parametrize("check", [by_mypy, by_pyright], ids=["mypy", "pyright"])


@every_checker
def test_a_right_program_is_accepted(check, tmp_path: Path) -> None:
    assert check(RIGHT, tmp_path) == []


@every_checker
def test_every_wrong_line_is_caught(check, tmp_path: Path) -> None:
    lines = WRONG.read_text(encoding="utf-8").splitlines()
    wrong = {number for number, line in enumerate(lines, 1) if line.endswith("# wrong")}
    found = check(WRONG, tmp_path)
    assert {line for line, _ in found} == wrong, found


def test_the_choices_are_those_of_libcmm() -> None:
    assert get_args(Activation) == tuple(ACTIVATIONS)
    assert get_args(Tie) == tuple(TIES)
    of_native = {kernel.algorithm for kernel in kernels() if kernel.algorithm}
    assert set(get_args(Algorithm)) == of_native | set(CUDA_ALGORITHMS)
    listed = (ROOT / "libcmm/src/kernels.inc").read_text(encoding="utf-8")
    of_cuda = re.findall(r"^CMM_CUDA_KERNEL\(fff, (\w+),", listed, re.MULTILINE)
    assert ["naive", *CUDA_ALGORITHMS] == of_cuda
    assert get_args(LevelName) == ("auto", *(level.name for level in cmm.levels()))
