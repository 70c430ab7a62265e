"""libcmm without Python: its C tests, what it exports, how it builds elsewhere, and how it runs on other CPUs."""

import ctypes
import importlib.util
import json
import platform
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from building import ROOT, Build, build_with_tests, default_build, run, run_in_wine, scratch, tool

LISTED = re.findall(r"^ *cmm_test\((\w+)", (ROOT / "tests/c/CMakeLists.txt").read_text(), re.MULTILINE)
C_TESTS = [name for name in LISTED if name != "single"]
# Those of a libcmm without threads, which are built before tests/c/CMakeLists.txt returns.
SINGLE_TESTS = LISTED[: LISTED.index("single") + 1]
# Those that say something about the instructions of a kernel, as they run in an emulator: each within a minute.
# .ci/run runs every C test there.
EMULATED = ["status", "wrong_calls", "scratch", "same_bits hash", "correctness few", "narrow_rows few far"]
X86_64 = platform.machine() in ("x86_64", "AMD64")
AARCH64_ROOT = "/usr/aarch64-linux-gnu"


def ctest(build: Build, name: str) -> str:
    return run(tool("ctest"), "--test-dir", build.folder, "-R", f"^{name}$", "--no-tests=error", "-V")


# Those that take longest, and what they do of it without CMM_TESTS=full, as they do in an emulator.
IN_SHORT = {"same_bits": "few", "exact_path": "few", "activation_accuracy": "--few", "fma": "few"}


@pytest.mark.parametrize("name", [pytest.param(t, marks=pytest.mark.full) if t in IN_SHORT else t for t in C_TESTS])
def test_c_test_passes(name: str) -> None:
    ctest(default_build(), name)


@pytest.mark.parametrize("name", IN_SHORT)
def test_c_test_passes_in_short(name: str) -> None:
    run(default_build().folder / f"tests/c/test_{name}", IN_SHORT[name])


# ---- what a program may rely on -----------------------------------------------------------------------------------


def exported(library: Path) -> Iterator[str]:
    for line in run(tool("nm"), "--dynamic", "--defined-only", library).splitlines():
        yield f"symbol {line.split()[-1]}"


def word(kind: Any) -> str:
    """A C type in one word, const left out; that of a function is function*."""
    return "function*" if kind.kind == "function" else re.sub(r"_t\b|\s", "", kind.cname)


def fields_of(kind: Any, start: int = 0) -> Iterator[tuple[str, int, str]]:
    """Names, offsets and types of a struct's fields; those of an unnamed union are names of one field."""
    for name, about in kind.fields:
        if name:
            yield name, start + about.offset, word(about.type)
        else:
            yield from fields_of(about.type, start + about.offset)


def interface() -> Iterator[str]:
    """All functions, all constants, and all public structs, as cffi lays them out for this machine."""
    from cffi import FFI

    spec = importlib.util.spec_from_file_location("cmm_build", ROOT / "python/cmm_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    include = ROOT / "libcmm/include"
    cuda = (include / "cmm_cuda.h").read_text(encoding="utf-8").split('extern "C" {\n#endif')[1].split("#ifdef")[0]
    declared = module.declarations(include) + cuda.replace("CMM_API ", "")
    ffi = FFI()
    ffi.cdef(declared)
    values = ffi.dlopen(str(default_build().library))
    for name in sorted(re.findall(r"^[a-z][\w \*]*?(cmm_\w+)\(", module.declarations(include), re.MULTILINE)):
        kind = ffi.typeof(getattr(values, name))
        yield f"function {name}: {' '.join(word(part) for part in (kind.result, *kind.args))}"
    for name in re.findall(r"\b(CMM_\w+) = ", declared):
        yield f"constant {name} {getattr(values, name)}"
    for name in sorted(ffi.list_types()[0]):
        kind = ffi.typeof(name)
        if kind.kind == "struct":
            fields = " ".join(f"{field}@{offset}:{of}" for field, offset, of in fields_of(kind))
            yield f"struct {name} {ffi.sizeof(kind)}: {fields}"


def test_abi_is_the_recorded_one() -> None:
    """A line of abi.txt that changes or goes breaks programs built before; a new line is added with the function."""
    if ctypes.sizeof(ctypes.c_void_p) != 8:
        pytest.skip("abi.txt records the structs of 64-bit machines")
    lines = (ROOT / "libcmm/abi.txt").read_text().splitlines()
    recorded = [line for line in lines if line and not line.startswith("#")]
    assert [*sorted(exported(default_build().library)), *interface()] == recorded


def test_the_soname_carries_the_minor_version_while_the_major_is_0() -> None:
    header = (ROOT / "libcmm/include/cmm.h").read_text(encoding="utf-8")
    major, minor = re.findall(r"^#define CMM_VERSION_M\w+ (\d+)", header, re.MULTILINE)
    dynamic = run(tool("readelf"), "-d", default_build().library)
    assert f"Library soname: [libcmm.so.{f'0.{minor}' if major == '0' else major}]" in dynamic


def test_kernel_files_export_one_value_each() -> None:
    """Files with instructions of their own export nothing else, so that the linker can take no function from them."""
    build = default_build()
    table = (build.folder / "libcmm/kernels/kernel_table.inc").read_text()
    listed = {f"cmm_{op}_{name}" for op, name in re.findall(r"^CMM_KERNEL\((\w+), (\w+)\)$", table, re.MULTILINE)}
    found = set()
    for file in (build.folder / "libcmm/CMakeFiles/cmm_objects.dir").rglob("*.o"):
        symbols = [line.split()[-2:] for line in run(tool("nm"), "--extern-only", file).splitlines()]
        defined = {symbol for kind, symbol in symbols if kind not in "Uw"}
        if not defined & listed:
            continue
        assert len(defined) == 1, file
        found |= defined
        # A kernel cannot fail, so it calls nothing that could: the plan of a call is arithmetic, of sizes that the
        # machine was asked for before. (The compiler makes the mem* of loops.)
        called = {symbol for kind, symbol in symbols if kind in "Uw"} - {"cmm_fff_plan", "cmm_cpu_machine"}
        assert called <= {"memcpy", "memmove", "memset", "fma", "_GLOBAL_OFFSET_TABLE_"}, file
    assert found == listed


# ---- other compilers and architectures -----------------------------------------------------------------------------


def test_gcc_or_the_default_compiler_warns_of_nothing() -> None:
    assert "warning:" not in default_build().log


def clang_build() -> Build:
    return build_with_tests("clang", f"-DCMAKE_C_COMPILER={tool('clang')}")


@pytest.mark.full
def test_clang_warns_of_nothing() -> None:
    assert "warning:" not in clang_build().log


@pytest.mark.full
@pytest.mark.parametrize(
    "name", ["status", "wrong_calls", "correctness", "same_bits", "narrow_rows", "fma", "activation_accuracy"]
)
def test_c_test_passes_with_clang(name: str) -> None:
    """Also: clang's bits are gcc's, for same_bits and activation_accuracy hold the same stored hashes."""
    ctest(clang_build(), name)


# ---- flags that would make other numbers ---------------------------------------------------------------------------

FAST_MATH = [
    "-ffast-math",
    "-funsafe-math-optimizations",
    "-ffinite-math-only",
    "-fassociative-math -fno-signed-zeros -fno-trapping-math",
    "-freciprocal-math",
    "-fno-signed-zeros",
    "-ffp-contract=fast",
]
FAST_MATH_GCC = ["-fsingle-precision-constant", "-mfpmath=387"]
FAST_MATH_CLANG = ["-ffp-model=fast", "-fno-honor-nans"]

ARITHMETIC = """
float sum(const float *x, int n) { float s = 0; for (int i = 0; i < n; i++) s += x[i]; return s; }
void divide(float *x, float by, int n) { for (int i = 0; i < n; i++) x[i] /= by; }
void divide_two(float *x, float by) { x[0] /= by; x[1] /= by; x[2] /= by; x[3] /= by; }
float multiply_add(float a, float b, float c) { return a * b + c; }
float tenth(float a) { return a * 0.1; }
int is_nan(float a) { return a != a; }
float zero(float a) { return a + 0.0f; }
"""
"""What each of the flags makes other machine code of."""


def compile_commands(build: Build) -> dict[str, list[str]]:
    """Return how each source of libcmm is compiled: words by its place below libcmm."""
    entries = json.loads((build.folder / "compile_commands.json").read_text())
    words = {entry["file"]: shlex.split(entry["command"]) for entry in entries if "cmm_objects" in entry["command"]}
    return {file.rpartition("libcmm/")[2]: words[file] for file in words}


def with_flags(words: list[str], first: str, last: str) -> list[str]:
    """Return the command of a compiler with flags before all of its own, and after them; it writes to stdout."""
    command = words[Path(words[0]).name == "ccache" :]
    command.remove("-c")
    at = command.index("-o")
    return [command[0], *first.split(), *command[1:at], *command[at + 2 :], *last.split(), "-o", "-"]


def assembly(build: Build, first: str, last: str = "") -> str | None:
    """Return the assembly of ARITHMETIC, compiled as a kernel with fma, or None where the compiler is stopped."""
    source = scratch() / "arithmetic.c"
    source.write_text(ARITHMETIC)
    words = next(command for command in compile_commands(build).values() if "-mfma" in command)
    words = [*with_flags(words, first, f"{last} -S -w"), str(source)]
    words.remove(next(word for word in words if word.endswith(".c")))  # the kernel's own
    done = subprocess.run(words, cwd=build.folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 or "libcmm does not build with" in done.stderr or "libcmm needs" in done.stderr
    return None if done.returncode else re.sub(r"\n\s*\.(file|ident|section)[^\n]*", "", done.stdout)


def check_flags_have_no_effect(build: Build, flags: str) -> None:
    """No effect where CMake puts the user's flags; a great one (or a build that is stopped) where they come last."""
    plain = assembly(build, "")
    assert plain is not None
    assert assembly(build, flags) == plain
    assert assembly(build, "", flags) != plain, "a flag that changes nothing: this test could not fail"


@pytest.mark.skipif(not X86_64, reason="some of the flags are of x86-64")
@pytest.mark.parametrize("flags", FAST_MATH + FAST_MATH_GCC)
def test_fast_math_has_no_effect_with_gcc(flags: str) -> None:
    """In whatever spelling: cmake/arithmetic.cmake takes it back after it."""
    if "GCC" not in (default_build().folder / "libcmm/build/Release.c").read_text():
        pytest.skip("cc is not gcc")
    check_flags_have_no_effect(default_build(), flags)


@pytest.mark.full
@pytest.mark.skipif(not X86_64, reason="the code is that of a kernel of x86-64")
@pytest.mark.parametrize("flags", FAST_MATH + FAST_MATH_CLANG)
def test_fast_math_has_no_effect_with_clang(flags: str) -> None:
    check_flags_have_no_effect(clang_build(), flags)


@pytest.mark.full
def test_a_build_with_fast_math_has_the_right_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the environment, the command line and the linker's flags at once; nor does it flush subnormal numbers."""
    monkeypatch.setenv("CFLAGS", "-ffast-math")
    monkeypatch.setenv("LDFLAGS", "-ffast-math -Ofast")
    tool("cc")
    made = build_with_tests("fast", "-DCMAKE_C_FLAGS_RELEASE=-Ofast -DNDEBUG")
    run(made.program("same_bits"), "hash")
    ctest(made, "status")
    loaded = "import ctypes, sys; ctypes.CDLL(sys.argv[1]); tiny = 5e-310; sys.exit(tiny * 0.5 == 0)"
    run(sys.executable, "-c", loaded, made.library)


def test_fast_math_after_all_flags_stops_every_file() -> None:
    """As a wrapper around the compiler may add it: libcmm/src/arithmetic.h, which no file goes without."""
    folder = default_build().folder
    commands = compile_commands(default_build())
    assert len(commands) > 20
    for source, words in commands.items():
        for flags in ("-ffast-math", "-ffinite-math-only"):
            command = with_flags(words, "", f"{flags} -fsyntax-only")
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
            assert done.returncode != 0, source
            assert "libcmm does not build with -ffast-math or a part of it" in done.stderr, source


@pytest.mark.skipif(not X86_64, reason="some of the flags are of x86-64")
@pytest.mark.parametrize(
    ("compiler", "flags"),
    [("gcc", "-mpc64"), ("clang", "-Xclang -mreassociate"), ("clang", "-Xclang -menable-no-nans")],
)
def test_flags_that_nothing_takes_back_stop_cmake(compiler: str, flags: str, tmp_path: Path) -> None:
    words = [tool("cmake"), "-S", str(ROOT), "-B", str(tmp_path), f"-DCMAKE_C_COMPILER={tool(compiler)}"]
    words += [f"-DCMAKE_C_FLAGS=-O2 {flags}", "-DCMM_CUDA=OFF"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0
    said = " ".join(done.stderr.split())
    assert f"CMAKE_C_FLAGS holds {flags}: libcmm would compute other numbers; build without it" in said


@pytest.mark.full
def test_fast_math_has_no_effect_with_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the front end hands to the compiler and the assembler of the GPU."""
    nvcc = tool("nvcc")
    monkeypatch.setenv("CUDAFLAGS", "--use_fast_math")
    options = ["-DCMM_CUDA=ON", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", "-DCMAKE_CUDA_ARCHITECTURES=80"]
    words = [tool("cmake"), "-S", ROOT, "-B", tmp_path, *options, f"-DCMAKE_CUDA_COMPILER={nvcc}"]
    run(*words, *(["-G", "Ninja"] if shutil.which("ninja") else []))
    entries = json.loads((tmp_path / "compile_commands.json").read_text())
    commands = [shlex.split(entry["command"]) for entry in entries if entry["file"].endswith(".cu")]
    assert commands
    for command in commands:
        assert "--use_fast_math" in command
        said = run(*command[Path(command[0]).name == "ccache" :], "--dryrun")
        for option in ("-ftz=0", "-prec_div=1", "-prec_sqrt=1", "-fmad=0"):
            assert option in said
            assert f"{option[:-1]}{1 - int(option[-1])}" not in said


# ---- other architectures -------------------------------------------------------------------------------------------


class KernelInfo(ctypes.Structure):
    """cmm_kernel_info of cmm.h."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("available", ctypes.c_int32),
        *((name, ctypes.c_char_p) for name in ("operation", "name", "level", "algorithm", "isa", "reason")),
    )


def kernels(build: Build) -> list[tuple[str, str, str]]:
    """Return (name, isa, reason) of the library's kernels; reason is empty for one that is available."""
    library = ctypes.CDLL(str(build.library))
    result = []
    for index in range(library.cmm_kernel_count()):
        info = KernelInfo(size=ctypes.sizeof(KernelInfo))
        assert library.cmm_kernel_get(index, ctypes.byref(info)) == 0
        result.append((info.name.decode(), info.isa.decode(), info.reason.decode()))
    return result


@pytest.mark.full
def test_kernels_of_other_architectures_are_stubs_that_say_so() -> None:
    """A build for a CPU that no kernel was written for: portable kernels alone, and every test of bits holds."""
    build = build_with_tests("other", "-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=riscv64")
    for name, isa, why in kernels(build):
        if isa in ("any", "scalar"):
            assert not why, name
        else:
            assert re.fullmatch(r"it is for (x86_64|aarch64|wasm32) CPUs", why), (name, why)
    ctest(build, "wrong_calls")
    assert " on avx" not in run(build.program("same_bits"), "hash")


@pytest.mark.full
@pytest.mark.skipif(not X86_64, reason="AVX-512 is of x86-64")
def test_kernels_that_the_compiler_cannot_build_are_stubs_that_say_so() -> None:
    """A compiler that refuses the flags of AVX-512: a script in front of cc that does."""
    script = scratch() / "old-cc"
    script.write_text(
        "#!/bin/sh\n"
        'for word in "$@"; do\n'
        '    case "$word" in -mavx512*) echo "error: unrecognized option $word" >&2; exit 1 ;; esac\n'
        "done\n"
        f'exec {tool("cc")} "$@"\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    build = build_with_tests("old", f"-DCMAKE_C_COMPILER={script}")
    whys = {name: why for name, isa, why in kernels(build) if isa == "avx512"}
    assert whys
    for name, why in whys.items():
        assert "does not know the flags" in why, (name, why)
        assert "-mavx512f" in why, (name, why)
    ctest(build, "wrong_calls")
    assert " on avx512" not in run(build.program("same_bits"), "hash")


@pytest.mark.full
@pytest.mark.skipif(not X86_64, reason="the DLL is for x86-64")
def test_the_dll_for_windows() -> None:
    """It exports the interface alone, needs the system alone, and has every bit. (.ci/run runs all C tests.)"""
    mingw, objdump = tool("x86_64-w64-mingw32-gcc"), tool("x86_64-w64-mingw32-objdump")
    build = build_with_tests(
        "windows",
        "-DCMAKE_SYSTEM_NAME=Windows",
        "-DCMAKE_SYSTEM_PROCESSOR=x86_64",
        f"-DCMAKE_C_COMPILER={mingw}",
    )
    assert "warning:" not in build.log
    about = run(objdump, "-p", build.folder / "libcmm/libcmm.dll")
    names = re.findall(r"^\t\[ *\d+\] (?:\+base\[ *\d+\] +\w+ )?(cmm_\w+|\w*[A-Za-z_]\w*)$", about, re.MULTILINE)
    recorded = re.findall(r"^symbol (\w+)$", (ROOT / "libcmm/abi.txt").read_text(), re.MULTILINE)
    assert sorted(names) == sorted(recorded)
    assert set(re.findall(r"DLL Name: (\S+)", about)) == {"KERNEL32.dll", "msvcrt.dll"}
    said = run_in_wine(build.folder / "libcmm/test_same_bits_of_dll.exe", "hash")
    assert ", 0 failures" in said
    assert "native/grouped on avx2" in said or "avx2" not in Path("/proc/cpuinfo").read_text()


# ---- no system at all: CMM_THREADS=OFF -----------------------------------------------------------------------------


def single_build() -> Build:
    return build_with_tests("single", "-DCMM_THREADS=OFF")


@pytest.mark.full
@pytest.mark.parametrize("name", SINGLE_TESTS)
def test_c_test_passes_without_threads(name: str) -> None:
    ctest(single_build(), name)


@pytest.mark.full
def test_without_threads_nothing_of_threads_or_the_loader_is_called() -> None:
    """Nor by the library that another program links, and the usual one calls what is looked for here."""
    wanted = re.compile(r"\b(pthread_\w+|dl\w+|sched_\w+|sysconf|sigfillset)\b")
    folder = single_build().folder
    assert "warning:" not in single_build().log
    for library in ("libcmm.so", "libcmm.a"):
        called = run(tool("nm"), "--undefined-only", folder / "libcmm" / library)
        assert not wanted.findall(called), library
        assert "memcpy" in called
        found = wanted.findall(run(tool("nm"), "--undefined-only", default_build().folder / "libcmm" / library))
        assert {"pthread_create", "dlopen", "dlsym"} <= set(found)
    assert "-lm\n" in (folder / "libcmm/cmm.pc").read_text()
    assert "pthread" not in (folder / "libcmm/cmm.pc").read_text()


# ---- other CPUs, emulated ------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.skipif(not X86_64, reason="the build is not for x86-64")
@pytest.mark.parametrize("test", EMULATED)
@pytest.mark.parametrize(
    ("cpu", "best", "absent"),
    [("qemu64", "scalar", "avx2"), ("Haswell", "avx2", "avx512"), ("Haswell,-f16c", "avx2", "avx512")],
    ids=["qemu64", "Haswell", "Haswell without F16C"],
)
def test_no_instruction_that_the_cpu_lacks(cpu: str, best: str, absent: str, test: str) -> None:
    """One binary, without AVX, without AVX-512, and without F16C too: an instruction too many would end it."""
    emulator = tool("qemu-x86_64")
    program, *arguments = test.split()
    printed = run(emulator, "-cpu", cpu, default_build().program(program), *arguments)
    if program in ("same_bits", "correctness"):
        assert f" on {best}" in printed
        assert f" on {absent}" not in printed


@pytest.mark.full
@pytest.mark.parametrize(
    "test", [*EMULATED, "narrow_rows few", "guard_pages few", "backward few", "activation_accuracy --few", "blas"]
)
def test_aarch64(test: str) -> None:
    """NEON: right, and the same bits as every other machine, for same_bits holds the same stored hashes."""
    compiler, emulator = tool("aarch64-linux-gnu-gcc"), tool("qemu-aarch64")
    build = build_with_tests(
        "aarch64",
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_C_COMPILER={compiler}",
        f"-DCMAKE_CROSSCOMPILING_EMULATOR={emulator};-L;{AARCH64_ROOT}",
    )
    assert "warning:" not in build.log
    program, *arguments = test.split()
    if program == "blas":  # has files for arguments, which ctest knows
        ctest(build, program)
        return
    printed = run(emulator, "-L", AARCH64_ROOT, build.program(program), *arguments)
    assert program not in ("same_bits", "correctness") or " on neon" in printed
