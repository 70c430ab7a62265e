"""Which tests run without CMM_TESTS=full, and what is said of the others."""

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from building import ROOT
from reference import ACTIVATIONS, TIES
from strategies import TARGETS

SOME = """
import pytest

def test_quick():
    pass

@pytest.mark.full
@pytest.mark.parametrize("number", [1, 2])
def test_long(number):
    pass

@pytest.mark.sample(4)
@pytest.mark.parametrize("b", range(4))
@pytest.mark.parametrize("a", range(8))
def test_many(a, b):
    pass
"""

ORACLE = """
class Report:
    def __init__(self, pairs=0, aside=0, parted=0, worst_logit=0.0, worst_output=0.0):
        vars(self).update({name: value for name, value in locals().items() if name != "self"})

    def include(self, other):
        vars(self).update({name: value + vars(other)[name] for name, value in vars(self).items()})

TALLY = Report()
"""
"""Stands for what conftest.py asks of tests/support/reference.py."""


def pytest_(*words: str, folder: Path, tests: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("CMM_TESTS", "PYTEST_ADDOPTS")}
    environment |= {} if tests is None else {"CMM_TESTS": tests}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of 1 quick test, 2 full ones and 32 of which 9 are quick, with the settings of this one."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "tests/conftest.py", folder)
    (folder / "reference.py").write_text(ORACLE)
    settings = (ROOT / "pyproject.toml").read_text().partition("[tool.pytest.ini_options]")
    (folder / "pyproject.toml").write_text(
        settings[1] + settings[2].replace('["tests"]', '["."]').replace('["tests/support"]', '["."]')
    )
    (folder / "test_some.py").write_text(SOME)
    return folder


LEFT = "tests are left to CMM_TESTS=full"


@pytest.mark.sample(4)
@pytest.mark.parametrize(
    ("words", "tests", "passed", "left"),
    [
        ((), None, 10, 25),
        ((), "", 10, 25),
        ((), "quick", 10, 25),
        ((), "full", 35, 0),
        (("test_some.py",), None, 10, 25),
        (("-k", "long or quick"), None, 1, 2),
        (("-m", "full"), None, 25, 0),
        (("test_some.py::test_long",), None, 2, 0),
        (("test_some.py::test_long[2]",), None, 1, 0),
        (("test_some.py::test_many",), None, 32, 0),
    ],
)
def test_what_runs_and_what_is_left(
    some: Path, words: tuple[str, ...], tests: str | None, passed: int, left: int
) -> None:
    done = pytest_(*words, folder=some, tests=tests)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert f" {passed} passed" in lines[-1]
    assert [line for line in lines if line == f"quick tests: {left} {LEFT}"] == lines[-2:-1] * (left > 0)
    assert done.stdout.count(LEFT) == 2 * (left > 0)  # the other before the first test
    first = next(number for number, line in enumerate(lines) if line.startswith("test_some.py "))
    assert "%]" in lines[first]  # progress
    before = [line for line in lines[:first] if LEFT in line or "minutes" in line]
    if words:
        assert before == [f"{left} {LEFT}"] * (left > 0)
    else:
        (line,) = before
        assert line.startswith(
            "all tests, about" if tests == "full" else "the quick part, about 3 minutes on two cores"
        )
        assert f"{left} {LEFT}, which takes about" in line or tests == "full"


def test_several_processes_say_the_same(some: Path, tmp_path: Path) -> None:
    """What each of them left out, and what the oracle saw in all of them together."""
    pytest.importorskip("xdist", reason="the package pytest-xdist is not installed")
    for name in ("conftest.py", "pyproject.toml", "reference.py", "test_some.py"):
        shutil.copy(some / name, tmp_path)
    with (tmp_path / "test_some.py").open("a") as file:
        file.write("""
@pytest.mark.parametrize("number", range(6))
def test_compare(number):
    from reference import TALLY, Report
    TALLY.include(Report(pairs=10, aside=1, worst_logit=0.05))
""")
    done = pytest_("-n", "2", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert " 16 passed" in lines[-1]
    assert f"quick tests: 25 {LEFT}" in lines
    assert any(line.startswith("the quick part, about") for line in lines)
    assert any(
        line.startswith("oracle: 60 paths compared; 6 (10.00%) set aside") and " 30.0%, " in line for line in lines
    )


def test_only_full_tests_were_selected(some: Path) -> None:
    """Nothing runs, and a line says why."""
    done = pytest_("-k", "long", folder=some)
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED
    assert f"quick tests: 2 {LEFT}" in done.stdout.splitlines()


@pytest.mark.parametrize("value", ["ful", "1"])
def test_another_value_is_one_line(some: Path, value: str) -> None:
    done = pytest_(folder=some, tests=value)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    said = f"ERROR: CMM_TESTS is {value!r}; it should be 'quick', the default, or 'full'"
    assert (done.stdout + done.stderr).split("\n") == [said, "", ""][: 2 + (done.stderr.endswith("\n\n"))]


# ---- the tests of this project -------------------------------------------------------------------------------------


@cache
def collected(tests: str) -> list[str]:
    """Return the node ids of the tests that would run."""
    done = pytest_("--collect-only", "-q", folder=ROOT, tests=tests)
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("tests/")]


@pytest.mark.full
def test_samples_have_every_value_of_every_parameter() -> None:
    """Of the sampled tests of the oracle: every level, algorithm, instruction set, activation, tie rule and dtype."""
    for test, values in (
        ("test_fff", [*TARGETS, *ACTIVATIONS, *TIES, "f32", "f64", "bias", "nobias"]),
        ("test_dense", [*TARGETS, *ACTIVATIONS, "f32", "f64", "bias", "nobias"]),
        ("test_extremes", TARGETS),
    ):
        chosen = [f"-{name.partition('[')[2][:-1]}-" for name in collected("quick") if f"::{test}[" in name]
        assert len(chosen) < len([name for name in collected("full") if f"::{test}[" in name]) / 4
        for value in values:
            assert any(f"-{value}-" in name for name in chosen), (test, str(value))


# Promises about other compilers, other CPUs, other builds of libcmm, programs to be built and training, of which the
# quick part has none.
OTHERS = (
    "No instruction that the CPU lacks is executed",
    "A kernel that a build cannot have is a stub that says why",
    "C, C++, Fortran and Rust programs use the installed library",
    "`cmm::cuda` can be linked",
    "Built without threads, libcmm calls no thread",
    "A run that was stopped goes on and ends with the same bits",
)


@pytest.mark.full
def test_the_quick_part_touches_every_promise() -> None:
    """Each line of internals/reliability.md that names a test which is collected here names one that is quick."""
    here, quick = ({name.partition("[")[0] for name in collected(tests)} for tests in ("full", "quick"))
    quick_c = {name.partition("[")[2][:-1] for name in collected("quick") if "::test_c_test_passes" in name}
    lines = [
        line for line in (ROOT / "docs/internals/reliability.md").read_text().splitlines() if line.startswith("| ")
    ]
    without = []
    for line in lines:
        python = {name for name in re.findall(r"`(tests/\w+\.py::\w+)`", line) if name in here}
        c = set(re.findall(r"`tests/c/(\w+)\.c::", line))
        if (python or c) and not python & quick and not c & quick_c:
            without.append(line.strip("| ").partition(" | ")[0])
    assert len(lines) > 50
    assert all(any(line.startswith(f"| {other}") for line in lines) for other in OTHERS)
    assert [promise for promise in without if not promise.startswith(OTHERS)] == []
