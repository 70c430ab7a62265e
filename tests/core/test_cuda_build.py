"""libcmm_cuda is built where that was asked for. With AUTO a broken compiler is a warning, and the rest is built."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import cmm
import pytest
from building import ROOT, tool
from cmm._native import cuda, lib


def configure(folder: Path, nvcc: str, *options: str) -> tuple[int, str, str]:
    """Configure with a program in the place of nvcc; return the exit code, what was said, and the targets."""
    (folder / "bin").mkdir()
    fake = folder / "bin/nvcc"
    fake.write_text(nvcc)
    fake.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CUDA")}
    environment["PATH"] = f"{fake.parent}{os.pathsep}{environment['PATH']}"
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    build = folder / "build"
    words = [tool("cmake"), "-S", str(ROOT), "-B", str(build), *generator, *options]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300, check=False)
    help_words = [tool("cmake"), "--build", str(build), "--target", "help"]
    targets = subprocess.run(help_words, capture_output=True, text=True, timeout=60, check=False).stdout
    return done.returncode, " ".join((done.stdout + done.stderr).split()), targets


# Two ways to be broken: it stops at once, and it does all that is asked but makes nothing.
@pytest.mark.sample(2)
@pytest.mark.parametrize("nvcc", ["#!/bin/sh\necho no >&2\nexit 1\n", "#!/bin/sh\nexit 0\n"], ids=["stops", "idle"])
def test_a_broken_compiler_is_a_warning(tmp_path: Path, nvcc: str) -> None:
    tool("cc")
    code, said, targets = configure(tmp_path, nvcc, "-DCMM_CUDA=AUTO")
    assert code == 0
    assert "CMake Warning" in said
    assert f"{tmp_path}/bin/nvcc does not work" in said
    assert "cmm_cuda" not in targets
    assert "cmm" in targets


@pytest.mark.full
def test_a_broken_compiler_that_was_asked_for_is_an_error(tmp_path: Path) -> None:
    tool("cc")
    assert configure(tmp_path, "#!/bin/sh\nexit 1\n", "-DCMM_CUDA=ON")[0] != 0


@pytest.mark.sample(2)
@pytest.mark.parametrize("options", [[], ["-DCMM_CUDA=OFF"]], ids=["default", "OFF"])
def test_no_compiler_is_tried_where_none_was_asked_for(tmp_path: Path, options: list[str]) -> None:
    tool("cc")
    code, said, targets = configure(tmp_path, f"#!/bin/sh\ntouch {tmp_path}/tried\nexit 1\n", *options)
    assert code == 0
    assert "does not work" not in said
    assert "cmm_cuda" not in targets
    assert not (tmp_path / "tried").exists()


def test_another_value_is_an_error_that_names_those_there_are(tmp_path: Path) -> None:
    tool("cc")
    code, said, _ = configure(tmp_path, "#!/bin/sh\nexit 1\n", "-DCMM_CUDA=maybe")
    assert code != 0
    assert "CMM_CUDA is 'maybe'; it should be OFF, ON or AUTO" in said


def test_the_script_for_gpus_says_what_is_missing(tmp_path: Path) -> None:
    if any(level.available for level in cmm.levels() if level.name == "cuda"):
        pytest.skip("there is a GPU: the script would run")
    report = tmp_path / "report.md"
    words = [sys.executable, str(ROOT / "bench/gpu.py"), "tests", "sanitizers", "bench", "--report", str(report)]
    done = subprocess.run(
        [*words, "--build", str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1
    said = done.stderr.splitlines()
    assert [line.partition(":")[0] for line in said] == ["tests", "sanitizers", "bench"]
    assert all("not run: PyTorch" in line for line in said)
    assert report.read_text().count("not run: PyTorch") == 3


def test_the_package_has_the_library_that_was_asked_for() -> None:
    """Held by .ci/run, which sets the variable for the package that it builds with CMM_CUDA=ON."""
    if not os.environ.get("CMM_EXPECT_CUDA"):
        pytest.skip("CMM_EXPECT_CUDA is not set")
    assert cuda.built()
    status, why = cuda.load()
    assert status != lib.CMM_ERROR_CUDA_ABSENT, why
