"""Building libcmm and its C tests with CMake, for the tests of the C side. All goes to one temporary folder."""

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def tool(name: str) -> str:
    """Return the path of a program; where it is missing, the test is skipped."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"there is no {name} here")
    return path


def run(*command: str | Path, env: dict[str, str] | None = None, timeout: int = 900) -> str:
    """Run a command and return what it printed; the test fails when the command does."""
    done = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=timeout,
        env=None if env is None else {**os.environ, **env},
    )
    if done.returncode != 0:
        words = " ".join(map(str, command))
        pytest.fail(f"{words} ended with {done.returncode}:\n{done.stdout[-8000:]}", pytrace=False)
    return done.stdout


@functools.cache
def wine() -> tuple[str, dict[str, str]]:
    """Return Wine and the environment to run it in, a prefix of its own; the test is skipped where there is none."""
    path = shutil.which("wine") or tool("wine64")
    env = {"WINEPREFIX": str(scratch() / "wine"), "WINEDEBUG": "-all"}
    run(path, "wineboot", "-i", env=env)
    return path, env


def run_in_wine(*command: str | Path) -> str:
    """Run a program for Windows and return what it printed; the test fails when the program does."""
    path, env = wine()
    return run(path, *command, env=env).replace("\r\n", "\n")


@functools.cache
def scratch() -> Path:
    """Return a folder that lives as long as this process."""
    folder = tempfile.mkdtemp(prefix="cmm-c-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@dataclass(frozen=True)
class Build:
    """A CMake build: its folder, and what the compiler printed."""

    folder: Path
    log: str

    @property
    def library(self) -> Path:
        """The shared library."""
        return self.folder / "libcmm" / "libcmm.so"

    def program(self, test: str) -> Path:
        """The program of a C test."""
        return self.folder / "tests" / "c" / f"test_{test}"


@functools.cache
def build(name: str, *options: str, source: Path = ROOT) -> Build:
    """Configure and build, once per process and name, without CUDA where an option does not ask for it.

    The test is skipped where there is no CMake.
    """
    cmake = tool("cmake")
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    folder = scratch() / name
    always = ["-DCMM_CUDA=OFF", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"]
    run(cmake, "-S", source, "-B", folder, *generator, *always, *options)
    return Build(folder, run(cmake, "--build", folder, "--parallel", "2"))


def build_with_tests(name: str, *options: str) -> Build:
    """Build libcmm and the C tests."""
    return build(name, "-DCMM_BUILD_TESTS=ON", *options)


def default_build() -> Build:
    """Build libcmm and the C tests with the default compiler."""
    tool("cc")
    return build_with_tests("default")


@functools.cache
def installed() -> Path:
    """Build and install libcmm with the default compiler; return the prefix."""
    prefix = scratch() / "prefix"
    run(tool("cmake"), "--install", default_build().folder, "--prefix", prefix)
    return prefix
