"""Programs in C, C++, Fortran and Rust against the installed library, found as its users find it."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from building import ROOT, build, installed, run, scratch, tool

pytestmark = pytest.mark.full

SOURCES = ROOT / "tests/consumers"


def packaged() -> Path:
    """Return the folder of the installed Python package, which holds libcmm, its header and its packages."""
    cmm = pytest.importorskip("cmm", reason="the Python package is not installed")
    return Path(cmm.get_include()).parent


# Where the library lies: installed by CMake, and inside the Python package.
PLACES = pytest.mark.parametrize("place", [installed, packaged])


def library_folder(prefix: Path) -> Path:
    """Return the folder of libcmm.so, which CMake calls lib, lib64 or lib/ARCHITECTURE."""
    (file,) = prefix.glob("lib*/**/libcmm.so")
    return file.parent


def check(program: Path) -> None:
    assert run(program).endswith(": good\n")


def pkg_config(prefix: Path, *options: str) -> list[str]:
    folder = library_folder(prefix) / "pkgconfig"
    return shlex.split(run(tool("pkg-config"), *options, "cmm", env={"PKG_CONFIG_PATH": str(folder)}))


def by_cmake(name: str, prefix: Path, target: str) -> None:
    tool("c++")
    folder = build(name, f"-DCMAKE_PREFIX_PATH={prefix}", f"-DCMM_TARGET={target}", source=SOURCES).folder
    check(folder / "tiny_c")
    check(folder / "tiny_cpp")


@PLACES
def test_cmake(place: Callable[[], Path]) -> None:
    by_cmake(f"consumers-{place.__name__}", place(), "cmm::cmm")


def test_cmake_cuda() -> None:
    """cmm::cuda of the package that is installed; its program needs no GPU."""
    if not (packaged() / "lib/libcmm_cuda.so").exists():
        pytest.skip("libcmm_cuda was not built (-C cmake.define.CMM_CUDA=ON builds it)")
    tool("c++")
    folder = build("consumers-packaged", f"-DCMAKE_PREFIX_PATH={packaged()}", "-DCMM_TARGET=cmm::cmm", source=SOURCES)
    check(folder.folder / "tiny_cuda")


def test_cmake_static() -> None:
    """Without the shared library: it must bring along all that it needs."""
    by_cmake("consumers-static", installed(), "cmm::static")


@PLACES
@pytest.mark.parametrize(
    ("compiler", "source"), [("cc", "tiny.c"), ("c++", "tiny.cpp"), ("clang", "tiny.c"), ("clang++", "tiny.cpp")]
)
def test_pkg_config(place: Callable[[], Path], compiler: str, source: str) -> None:
    prefix, program = place(), scratch() / f"pc-{place.__name__}-{compiler}"
    language = ["-std=c11"] if source.endswith(".c") else ["-std=c++11"]
    flags = [*language, "-Wall", "-Wextra", "-Werror", "-pedantic", *pkg_config(prefix, "--cflags", "--libs")]
    run(tool(compiler), SOURCES / source, "-o", program, *flags, f"-Wl,-rpath,{library_folder(prefix)}")
    check(program)


def test_pkg_config_static() -> None:
    prefix, program = installed(), scratch() / "pc-static"
    flags = [
        str(library_folder(prefix) / "libcmm.a") if word == "-lcmm" else word
        for word in pkg_config(prefix, "--static", "--cflags", "--libs")
    ]
    run(tool("cc"), "-std=c11", SOURCES / "tiny.c", "-o", program, "-DCMM_STATIC", *flags)
    check(program)


@PLACES
def test_fortran(place: Callable[[], Path]) -> None:
    prefix, program = place(), scratch() / f"fortran-{place.__name__}"
    folder = library_folder(prefix)
    flags = ["-std=f2008", "-Wall", "-Wextra", "-Werror", f"-L{folder}", "-lcmm", f"-Wl,-rpath,{folder}"]
    modules = scratch() / "modules"
    modules.mkdir(exist_ok=True)
    run(tool("gfortran"), SOURCES / "tiny.f90", "-o", program, "-J", modules, *flags)
    check(program)


@PLACES
def test_rust(place: Callable[[], Path]) -> None:
    prefix, program = place(), scratch() / f"rust-{place.__name__}"
    folder = library_folder(prefix)
    flags = ["--edition=2021", "-D", "warnings", "-L", folder, "-l", "cmm", "-C", f"link-arg=-Wl,-rpath,{folder}"]
    run(tool("rustc"), SOURCES / "tiny.rs", "-o", program, *flags)
    check(program)
