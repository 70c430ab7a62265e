"""Build every wheel, and use them as a stranger would: ``python .ci/wheels.py [FOLDER]``.

The wheel of libcmm is under 1 MB, all are what an index accepts (twine check), and in a new environment with nothing
but Python, from a local folder, their installation, the import and one layer take under 10 seconds together, the
better of two times: that is told, not judged, for other work on a machine would decide it. The wheel of
libcmm-cuda13 is built where there is an nvcc, for one architecture, and is found.
Needs pip and twine, and the package index for what the wheels depend on, which is downloaded before time is taken.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 1_000_000  # bytes of libcmm's wheel
LONGEST = 10.0  # seconds
LAYER = """
import time, numpy
began = time.perf_counter()
import cmm
imported = time.perf_counter()
x, w_in, w_out = (numpy.ones(shape, numpy.float32) for shape in ((16, 768), (1, 4095, 768), (1, 4095, 768)))
assert cmm.fff_forward(x, w_in, w_out).shape == x.shape
print(f"of which import cmm, after NumPy, {imported - began:.2f} s, the layer {time.perf_counter() - imported:.2f} s")
"""
INSTALL = ("-m", "pip", "--disable-pip-version-check", "-q", "install", "--no-index", "--find-links")
CUDA = 'import cmm; print(next(level.reason for level in cmm.levels() if level.name == "cuda") or "usable")'


def run(*words: str | Path, quiet: bool = False) -> str:
    """Run a command and return what it printed; its end ends this program."""
    done = subprocess.run([str(word) for word in words], capture_output=quiet, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return str(done.stdout)


def timed(what: str, *words: str | Path) -> float:
    """Run a command and return the seconds it took."""
    began = time.perf_counter()
    said = run(*words, quiet=True)
    took = time.perf_counter() - began
    print(f"  {what}: {took:.2f} s", said.strip())
    return took


def use(environment: Path, wheels: Path) -> float:
    """Make an environment, install the wheels, and run a layer; return the seconds without making it."""
    print("a new environment, from a local folder:")
    timed("python -m venv", sys.executable, "-m", "venv", environment)
    python = environment / "bin/python"
    took = timed("pip install libcmm libcmm-models", python, *INSTALL, wheels, "libcmm", "libcmm-models")
    took += timed("python, its imports, one layer of 4095 neurons", python, "-c", LAYER)
    print(f"  the two together: {took:.2f} s")
    again = ("--no-deps", "--force-reinstall")
    timed(
        "pip install again, without NumPy, SciPy, cffi", python, *INSTALL, wheels, *again, "libcmm", "libcmm-models"
    )
    return took


def main(folder: Path) -> None:
    """Build, look, install, use."""
    wheels = folder / "wheels"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    sources = [".", "./python/libcmm-models"]
    run(*pip, "wheel", "--no-deps", "-w", wheels, *sources)
    if shutil.which("nvcc"):
        one = ("-C", "cmake.define.CMAKE_CUDA_ARCHITECTURES=90a-real")
        run(*pip, "wheel", "--no-deps", "-w", wheels, *one, "./python/libcmm-cuda13")
    else:
        print("no nvcc: the wheel of libcmm-cuda13 is not built")
    built = {file.name.partition("-")[0]: file for file in sorted(wheels.glob("*.whl"))}
    print("wheels:")
    for file in built.values():
        print(f"  {file.name}: {file.stat().st_size} bytes")
    if built["libcmm"].stat().st_size >= LARGEST:
        raise SystemExit(f"libcmm's wheel should be under {LARGEST} bytes")
    print(run(sys.executable, "-m", "twine", "--no-color", "check", "--strict", *built.values(), quiet=True).strip())

    run(*pip, "download", "-d", wheels, built["libcmm"])  # and what it depends on
    took = min(use(folder / f"venv{attempt}", wheels) for attempt in (1, 2))
    if took >= LONGEST:
        print(f"  that should be under {LONGEST:g} s, on a machine that has nothing else to do")
    environment = folder / "venv2"
    for words in (["--version"], ["info"], ["completion", "bash"]):
        run(environment / "bin/cmm", *words, quiet=True)
    share = environment / "share"
    for name in ("man/man1/cmm.1", "bash-completion/completions/cmm", "zsh/site-functions/_cmm"):
        if not (share / name).is_file():
            raise SystemExit(f"there is no share/{name}")
    if "libcmm_cuda13" in built:
        run(environment / "bin/python", *INSTALL, wheels, "libcmm-cuda13", quiet=True)
        os.environ.pop("CMM_CUDA_LIBRARY", None)
        reason = run(environment / "bin/python", "-c", CUDA, quiet=True).strip()
        print(f"  level cuda with libcmm-cuda13: {reason}")
        if "is not here" in reason:
            raise SystemExit("libcmm-cuda13 should be found")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]).resolve())
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder))
