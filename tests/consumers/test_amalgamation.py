"""libcmm in one file (libcmm/amalgamate.py), compiled as its users do: it is the library that CMake builds."""

import functools
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
from building import ROOT, default_build, run, run_in_wine, scratch, tool

pytestmark = pytest.mark.full

SOURCES = ROOT / "tests/consumers"
LINK = ("-lm", "-ldl", "-pthread")
WARNINGS = ("-Wall", "-Wextra", "-Werror")


@functools.cache
def amalgamation() -> Path:
    """Return the folder of cmm.c and cmm.h."""
    folder = scratch() / "amalgamation"
    run(sys.executable, ROOT / "libcmm/amalgamate.py", folder)
    return folder


# A compiler, and what a user might ask of it that would change numbers: contraction, every instruction of the CPU
# (which zig cc takes by itself).
COMPILERS = {
    "gcc": ("gcc", "-march=native", "-ffp-contract=fast"),
    "clang": ("clang", "-march=native"),
    "zig": (sys.executable, "-m", "ziglang", "cc"),
}


@functools.cache
def compiled(name: str) -> Path:
    """Return the object file, made by a compiler that warned of nothing."""
    command, *options = COMPILERS[name]
    if name == "zig":
        pytest.importorskip("ziglang", reason="there is no zig here (pip install ziglang)")
    else:
        tool(command)
    file = scratch() / f"cmm-{name}.o"
    run(command, *options, "-std=c11", "-O2", *WARNINGS, "-c", amalgamation() / "cmm.c", "-o", file)
    return file


def program(name: str, source: Path, *options: str | Path) -> Path:
    file = scratch() / f"{source.stem}-{name}"
    run(tool("cc"), "-std=gnu11", "-O2", *options, source, compiled(name), "-o", file, *LINK)
    return file


OF_THE_INSIDE = [f"-I{ROOT / folder}" for folder in ("libcmm/src", "libcmm/include", "tests/c")]


@pytest.mark.parametrize("name", COMPILERS)
def test_every_bit(name: str) -> None:
    """The stored hash, by every instruction set of this CPU."""
    said = run(program(name, ROOT / "tests/c/same_bits.c", *OF_THE_INSIDE), "hash")
    assert re.search(r"^\d+ checks, 0 failures$", said, re.MULTILINE)
    ways = re.search(r"^\d+ ways to run: .*$", said, re.MULTILINE)
    assert ways
    assert ways[0] in run(default_build().program("same_bits"), "hash")


@pytest.mark.parametrize("name", COMPILERS)
def test_correctness(name: str) -> None:
    assert ", 0 failures" in run(program(name, ROOT / "tests/c/correctness.c", *OF_THE_INSIDE), "few")


@pytest.mark.parametrize("name", COMPILERS)
def test_the_same_kernels(name: str) -> None:
    """Those of other architectures are the same stubs, too."""
    here = run(program(name, SOURCES / "kernels.c", f"-I{amalgamation()}"))
    library = default_build().folder / "libcmm"
    there = scratch() / "kernels-library"
    options = [f"-I{ROOT}/libcmm/include", f"-L{library}", "-lcmm", f"-Wl,-rpath,{library}"]
    run(tool("cc"), SOURCES / "kernels.c", "-o", there, *options)
    assert here == run(there)
    assert "per_token_avx512" in here
    assert "per_token_neon" in here


@pytest.mark.parametrize("name", COMPILERS)
@pytest.mark.parametrize("standard", ["c++11", "c++20"])
def test_in_a_cpp_program(name: str, standard: str) -> None:
    file = scratch() / f"cpp-{name}-{standard}"
    flags = [f"-std={standard}", *WARNINGS, "-pedantic", f"-I{amalgamation()}"]
    run(tool("c++"), *flags, SOURCES / "tiny.cpp", compiled(name), "-o", file, *LINK)
    assert run(file).endswith(": good\n")


@functools.cache
def for_any_cpu() -> Path:
    """Return the object file that gcc makes without -march."""
    file = scratch() / "cmm-any.o"
    run(tool("gcc"), "-std=c11", "-O1", "-fPIC", *WARNINGS, "-c", amalgamation() / "cmm.c", "-o", file)
    return file


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the CPUs that are emulated are x86-64")
@pytest.mark.parametrize(("cpu", "best"), [("qemu64", "scalar"), ("Haswell", "avx2")])
def test_no_instruction_that_the_cpu_lacks(cpu: str, best: str) -> None:
    """On a CPU without AVX, and on one without AVX-512: an instruction too many would end the program."""
    file = scratch() / f"same_bits-{cpu}"
    run(tool("gcc"), "-O2", *OF_THE_INSIDE, ROOT / "tests/c/same_bits.c", for_any_cpu(), "-o", file, *LINK)
    said = run(tool("qemu-x86_64"), "-cpu", cpu, file, "hash")
    assert ", 0 failures" in said
    assert f"native/grouped on {best}" in said
    assert ("avx2" in said) == (best == "avx2")
    assert "avx512" not in said


def test_in_a_shared_library_nothing_but_the_interface_is_seen() -> None:
    library = scratch() / "libamalgamation.so"
    run(tool("gcc"), "-shared", "-Wl,-z,defs", for_any_cpu(), "-o", library, *LINK)
    names = [line.split()[-1] for line in run(tool("nm"), "-D", "--defined-only", library).splitlines()]
    recorded = re.findall(r"^symbol (\w+)$", (ROOT / "libcmm/abi.txt").read_text(), re.MULTILINE)
    assert sorted(names) == sorted(recorded)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("flag", ["-ffast-math", "-Ofast", "-ffinite-math-only"])
def test_fast_math_stops_the_compiler(compiler: str, flag: str) -> None:
    words = [tool(compiler), "-std=c11", flag, "-fsyntax-only", str(amalgamation() / "cmm.c")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "libcmm does not build with -ffast-math or a part of it" in done.stderr


def test_it_is_one_file() -> None:
    """That needs nothing of ours but its header, which needs nothing."""
    source, header = ((amalgamation() / name).read_text() for name in ("cmm.c", "cmm.h"))
    assert re.findall(r'^# *include "(.*)"', source, re.MULTILINE) == ["cmm.h"]
    assert not re.findall(r'^# *include "', header, re.MULTILINE)
    assert {file.name for file in amalgamation().iterdir()} == {"cmm.c", "cmm.h"}


def test_without_threads() -> None:
    """For small systems: -DCMM_NO_THREADS, and nothing but the C library is called."""
    file, program = scratch() / "cmm-single.o", scratch() / "same_bits-single"
    run(tool("gcc"), "-std=c11", "-O1", "-DCMM_NO_THREADS", *WARNINGS, "-c", amalgamation() / "cmm.c", "-o", file)
    called = run(tool("nm"), "--undefined-only", file)
    assert "memcpy" in called
    assert not re.findall(r"\b(?:pthread_|dl|sched_|sysconf)\w*", called)
    assert "pthread_create" in run(tool("nm"), "--undefined-only", for_any_cpu())
    inside = [*OF_THE_INSIDE, "-DCMM_NO_THREADS"]
    run(tool("gcc"), "-O2", *inside, ROOT / "tests/c/same_bits.c", file, "-o", program, "-lm")
    assert ", 0 failures" in run(program, "hash")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="Wine runs programs for the CPU that it runs on")
@pytest.mark.parametrize("moves", ["aligned", "unaligned"])
def test_for_windows(moves: str) -> None:
    """Every bit, by GCC: with AVX where the assembler is told to take the stack as it is."""
    mingw = tool("x86_64-w64-mingw32-gcc")
    file, program = scratch() / f"cmm-{moves}.obj", scratch() / f"same_bits-{moves}.exe"
    options = ["-Wa,-muse-unaligned-vector-move", "-DCMM_UNALIGNED_VECTOR_MOVE"] if moves == "unaligned" else []
    run(mingw, "-std=c11", "-O1", *WARNINGS, *options, "-c", amalgamation() / "cmm.c", "-o", file)
    inside = [*OF_THE_INSIDE, "-DCMM_STATIC", "-D__USE_MINGW_ANSI_STDIO=1"]
    run(mingw, "-O2", *inside, ROOT / "tests/c/same_bits.c", file, "-o", program)
    said = run_in_wine(program, "hash")
    assert ", 0 failures" in said
    assert "on scalar" in said
    assert ("avx2" in said) == (moves == "unaligned" and "avx2" in Path("/proc/cpuinfo").read_text())


def test_for_another_architecture() -> None:
    """The instruction sets of that one, and stubs for those of this."""
    compiler, emulator = tool("aarch64-linux-gnu-gcc"), tool("qemu-aarch64")
    file = scratch() / "kernels-aarch64"
    options = ["-std=c11", "-O2", *WARNINGS, "-static", f"-I{amalgamation()}"]
    run(compiler, *options, SOURCES / "kernels.c", amalgamation() / "cmm.c", "-o", file, *LINK)
    said = run(emulator, file)
    assert re.search(r"^fff per_token_neon native per_token neon float32 float32 $", said, re.MULTILINE)
    assert re.search(r"^fff per_token_avx2 .* it is for x86_64 CPUs$", said, re.MULTILINE)
    hash_of = scratch() / "same_bits-aarch64"
    options = ["-std=gnu11", "-O2", "-static", *OF_THE_INSIDE]
    run(compiler, *options, ROOT / "tests/c/same_bits.c", amalgamation() / "cmm.c", "-o", hash_of, *LINK)
    assert ", 0 failures" in run(emulator, hash_of, "hash")
