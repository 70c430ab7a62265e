"""Programs in C and C++ against libcmm, found as its users find it: installed, or as sources."""

import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from building import ROOT, Build, build, installed, run, scratch, tool
from consumers import library_folder, packaged

pytestmark = pytest.mark.full

SOURCES = ROOT / "tests/consumers"


# Where the library lies: installed by CMake, and inside the Python package.
PLACES = pytest.mark.parametrize("place", [installed, packaged])


def check(program: Path) -> None:
    assert run(program).endswith(": good\n")


def pkg_config(prefix: Path, *options: str) -> list[str]:
    folder = library_folder(prefix) / "pkgconfig"
    return shlex.split(run(tool("pkg-config"), *options, "cmm", env={"PKG_CONFIG_PATH": str(folder)}))


def by_cmake(name: str, *options: str) -> Build:
    """Build the programs and run them: C11, C++11 and C++20."""
    tool("c++")
    built = build(name, *options, source=SOURCES)
    for language in ("c", "cpp", "cpp20"):
        check(built.folder / f"tiny_{language}")
    return built


@PLACES
def test_cmake(place: Callable[[], Path]) -> None:
    by_cmake(f"consumers-{place.__name__}", f"-DCMAKE_PREFIX_PATH={place()}", "-DCMM_TARGET=cmm::cmm")


def test_cmake_cuda() -> None:
    """cmm::cuda of the package that is installed; its program needs no GPU."""
    if not (packaged() / "lib/libcmm_cuda.so").exists():
        pytest.skip("libcmm_cuda was not built (-C cmake.define.CMM_CUDA=ON builds it)")
    tool("c++")
    folder = build("consumers-packaged", f"-DCMAKE_PREFIX_PATH={packaged()}", "-DCMM_TARGET=cmm::cmm", source=SOURCES)
    check(folder.folder / "tiny_cuda")
    assert "-- cmm_cuda_FOUND: TRUE\n" in find(packaged(), "0.2", "REQUIRED", "COMPONENTS", "cuda")[1]


def test_cmake_static() -> None:
    """Without the shared library: it must bring along all that it needs."""
    by_cmake("consumers-static", f"-DCMAKE_PREFIX_PATH={installed()}", "-DCMM_TARGET=cmm::static")


# As a part of another project. Where BUILD_SHARED_LIBS says nothing, libraries are static there.
PARTS = [
    ("add_subdirectory", "static", ()),
    ("add_subdirectory", "shared", ("-DBUILD_SHARED_LIBS=ON",)),
    ("FetchContent", "static", ("-DBUILD_SHARED_LIBS=OFF",)),
    ("FetchContent", "shared", ("-DBUILD_SHARED_LIBS=ON",)),
]


def part(how: str, kind: str, options: tuple[str, ...]) -> Build:
    return by_cmake(f"consumers-{how}-{kind}", f"-DCMM_FROM={how}", f"-DCMM_ROOT={ROOT}", *options)


@pytest.mark.parametrize(("how", "kind", "options"), PARTS)
def test_part_of_another_project(how: str, kind: str, options: tuple[str, ...]) -> None:
    folder = part(how, kind, options).folder
    needs = "libcmm.so" in run(tool("readelf"), "-d", folder / "tiny_c")
    assert needs == (kind == "shared")
    libraries = {file.name for file in folder.rglob("libcmm.*") if not file.is_symlink()}
    assert libraries == ({"libcmm.so.0.2.0"} if kind == "shared" else {"libcmm.a"})  # what nobody links is not made


def test_part_of_another_project_by_the_name_of_the_static_library() -> None:
    """cmm::static, also where the other project's libraries are shared."""
    folder = part(*PARTS[1]).folder
    cmake = tool("cmake")
    run(cmake, "-S", SOURCES, "-B", folder, "-DCMM_TARGET=cmm::static")
    run(cmake, "--build", folder, "--parallel", "2")
    check(folder / "tiny_cpp20")
    assert "libcmm.so" not in run(tool("readelf"), "-d", folder / "tiny_cpp20")
    run(cmake, "-S", SOURCES, "-B", folder, "-DCMM_TARGET=cmm::cmm")
    run(cmake, "--build", folder, "--parallel", "2")


def test_a_part_is_installed_where_the_other_project_asks_for_it(tmp_path: Path) -> None:
    folder = part(*PARTS[0]).folder
    cmake = tool("cmake")
    run(cmake, "--install", folder, "--prefix", tmp_path / "without")
    assert not (tmp_path / "without").exists()
    run(cmake, "-S", SOURCES, "-B", folder, "-DCMM_INSTALL=ON")
    run(cmake, "--build", folder, "--parallel", "2")
    run(cmake, "--install", folder, "--prefix", tmp_path / "with")
    assert (tmp_path / "with/include/cmm.h").is_file()
    run(cmake, "-S", SOURCES, "-B", folder, "-DCMM_INSTALL=OFF")


@pytest.mark.parametrize("value", ["OFF", "AUTO"])
def test_a_part_tries_no_cuda(value: str, tmp_path: Path) -> None:
    """Neither by running a compiler nor by enabling the language, which the other project did not."""
    compiler = tmp_path / "nvcc"
    compiler.write_text(f"#!/bin/sh\ntouch {tmp_path}/tried\nexit 1\n")
    compiler.chmod(0o755)
    options = ["-DCMM_FROM=add_subdirectory", f"-DCMM_ROOT={ROOT}", f"-DCMM_CUDA={value}"]
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CUDACXX": str(compiler)}
    said = run(tool("cmake"), "-S", SOURCES, "-B", tmp_path / "build", *options, env=environment)
    assert re.search(r"^-- languages: (?=.*\bCXX\b)(?!.*CUDA).*$", said, re.MULTILINE), said
    assert not (tmp_path / "tried").exists()
    assert not re.search("CMAKE_CUDA|NVCC", (tmp_path / "build/CMakeCache.txt").read_text())


def test_a_part_of_a_wheel_is_not_the_python_package(tmp_path: Path) -> None:
    """Another project that is built by scikit-build-core wants libcmm alone."""
    options = ["-DCMM_FROM=add_subdirectory", f"-DCMM_ROOT={ROOT}", "-DSKBUILD=2", "-DSKBUILD_PROJECT_NAME=other"]
    run(tool("cmake"), "-S", SOURCES, "-B", tmp_path, *options)
    assert (tmp_path / "libcmm/libcmm").is_dir()
    assert not (tmp_path / "libcmm/python").exists()


# ---- what is installed ---------------------------------------------------------------------------------------------


def installed_as(name: str, *options: str) -> Path:
    """Build and install with these options; return the prefix."""
    prefix = scratch() / f"prefix-{name}"
    run(tool("cmake"), "--install", build(name, *options).folder, "--prefix", prefix)
    return prefix


def names(prefix: Path) -> set[str]:
    return {file.name for file in prefix.rglob("*") if file.is_file() and not file.is_symlink()}


PACKAGE = {"cmmConfig.cmake", "cmmConfigVersion.cmake", "cmmTargets.cmake", "cmmTargets-release.cmake", "cmm.pc"}
ALWAYS = PACKAGE | {"cmm.h", "cmm.hpp", "cmm_blas.h", "LICENSE"}  # cmm_cuda.h comes with libcmm_cuda


def test_what_is_installed() -> None:
    assert names(installed()) == ALWAYS | {"libcmm.so.0.2.0", "libcmm.a"}
    license = installed() / "share/licenses/cmm/LICENSE"
    assert license.read_text() == (ROOT / "LICENSE").read_text()


def test_the_package_has_the_headers_that_were_built() -> None:
    cuda = (packaged() / "lib/libcmm_cuda.so").exists()
    assert {file.name for file in (packaged() / "include").iterdir()} == (
        {"cmm.h", "cmm.hpp", "cmm_blas.h"} | ({"cmm_cuda.h"} if cuda else set())
    )


def test_shared_alone() -> None:
    prefix = installed_as("shared-alone", "-DBUILD_SHARED_LIBS=ON")
    assert names(prefix) == ALWAYS | {"libcmm.so.0.2.0"}
    by_cmake("consumers-shared-alone", f"-DCMAKE_PREFIX_PATH={prefix}")


def test_static_alone() -> None:
    """cmm::cmm and pkg-config without --static are then the static library, with what it needs."""
    prefix = installed_as("static-alone", "-DBUILD_SHARED_LIBS=OFF")
    assert names(prefix) == ALWAYS | {"libcmm.a"}
    by_cmake("consumers-static-alone", f"-DCMAKE_PREFIX_PATH={prefix}")
    program = scratch() / "pc-static-alone"
    run(tool("cc"), "-std=c11", SOURCES / "tiny.c", "-o", program, *pkg_config(prefix, "--cflags", "--libs"))
    check(program)
    assert "-DCMM_STATIC" in pkg_config(prefix, "--cflags")


# ---- find_package(cmm ...) -----------------------------------------------------------------------------------------


def find(prefix: Path, *request: str) -> tuple[int, str]:
    """Return how a project with find_package(cmm REQUEST) ended, and what CMake printed, each message on one line."""
    words = [
        tool("cmake"),
        "-S",
        SOURCES / "find",
        "-B",
        scratch() / "find",
        "--fresh",
        f"-DREQUEST={';'.join(request)}",
    ]
    words.append(f"-DCMAKE_PREFIX_PATH={prefix}")
    done = subprocess.run(
        [str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.returncode, re.sub(r"\n(?: {2,}|\n)+", " ", done.stdout)


@pytest.mark.parametrize(
    ("request_", "good"),
    [
        ("0.2", True),
        ("0.2.0", True),
        ("0.2.0 EXACT", True),
        ("0.1", False),
        ("0.3", False),
        ("0.2.1", False),
        ("1", False),
        ("0", False),
        ("0.1...0.2", True),
        ("0.1...0.2.0", True),
        ("0.2...1", True),
        ("0.1...<0.3", True),
        ("0.1...<0.2", False),
        ("0.2.1...1", False),
        ("0.0.1...0.1.9", False),
    ],
)
def test_find_a_version(request_: str, good: bool) -> None:
    """While the major version is 0, the same minor version; and every range that the version lies in."""
    code, said = find(installed(), *request_.split())
    assert code == 0
    assert ("-- cmm_FOUND: 1\n" in said) == good, said
    assert ("-- cmm_VERSION: 0.2.0\n" in said) == good, said


def test_find_components() -> None:
    code, said = find(installed(), "0.2", "REQUIRED", "COMPONENTS", "static", "OPTIONAL_COMPONENTS", "cuda")
    assert code == 0
    assert "-- cmm_static_FOUND: TRUE\n-- cmm_cuda_FOUND: FALSE\n" in said
    assert re.findall(r"there is cmm::(\w+)", said) == ["cmm", "static"]
    assert (
        "-- cmm_static_FOUND: TRUE\n-- cmm_cuda_FOUND: FALSE\n" in find(installed())[1]
    )  # also where none is asked for


@pytest.mark.parametrize(
    ("component", "says"),
    [
        ("cuda", "the libcmm in PREFIX has no component cuda: build libcmm with -DCMM_CUDA=ON"),
        ("static", "the libcmm in PREFIX has no component static: build libcmm without -DBUILD_SHARED_LIBS=ON"),
        ("statics", "libcmm has no component statics; there are static and cuda"),
    ],
)
def test_find_a_component_that_is_absent(component: str, says: str) -> None:
    prefix = installed_as("shared-alone", "-DBUILD_SHARED_LIBS=ON")
    code, said = find(prefix, "REQUIRED", "COMPONENTS", component)
    assert code != 0
    assert f"Reason given by package: {says.replace('PREFIX', str(prefix))} " in said, said
    code, said = find(prefix, "OPTIONAL_COMPONENTS", component)
    assert code == 0
    assert "-- cmm_FOUND: 1\n" in said


# ---- pkg-config ----------------------------------------------------------------------------------------------------


@PLACES
@pytest.mark.parametrize(
    ("compiler", "standard"),
    [("cc", "c11"), ("c++", "c++11"), ("c++", "c++20"), ("clang", "c11"), ("clang++", "c++11"), ("clang++", "c++20")],
)
def test_pkg_config(place: Callable[[], Path], compiler: str, standard: str) -> None:
    prefix, program = place(), scratch() / f"pc-{place.__name__}-{compiler}-{standard}"
    source = "tiny.c" if standard == "c11" else "tiny.cpp"
    flags = [
        f"-std={standard}",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-pedantic",
        *pkg_config(prefix, "--cflags", "--libs"),
    ]
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


@pytest.mark.parametrize("absolute", ["LIBDIR", "INCLUDEDIR", "LIBDIR INCLUDEDIR"])
def test_absolute_folders(absolute: str, tmp_path: Path) -> None:
    """Folders that lie elsewhere than below the prefix, one or both: pkg-config and CMake find what is in them."""
    folder = build("absolute-folders").folder
    elsewhere = {word: tmp_path / word.lower() for word in absolute.split()}
    places = [f"-DCMAKE_INSTALL_{word}={elsewhere.get(word, word.lower()[:-3])}" for word in ("LIBDIR", "INCLUDEDIR")]
    prefix = tmp_path / "prefix"
    run(tool("cmake"), "-S", ROOT, "-B", folder, f"-DCMAKE_INSTALL_PREFIX={prefix}", *places)
    run(tool("cmake"), "--build", folder, "--target", "install")
    library = elsewhere.get("LIBDIR", prefix / "lib")
    header = elsewhere.get("INCLUDEDIR", prefix / "include")
    assert (library / "libcmm.so").is_file()
    assert (header / "cmm.h").is_file()
    flags = shlex.split(
        run(tool("pkg-config"), "--cflags", "--libs", "cmm", env={"PKG_CONFIG_PATH": f"{library}/pkgconfig"})
    )
    program = tmp_path / "program"
    run(tool("cc"), "-std=c11", SOURCES / "tiny.c", "-o", program, *flags, f"-Wl,-rpath,{library}")
    check(program)
    by_cmake(f"consumers-{absolute}".replace(" ", "-"), f"-Dcmm_DIR={library}/cmake/cmm")
