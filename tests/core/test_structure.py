"""How the files of the package import each other: in one direction, and no other file's private names."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import get_args

import pytest
import reference
from building import ROOT
from cmm._native import ACTIVATIONS
from cmm.typing import Activation

PACKAGE = ROOT / "python/cmm"

# What functions import, for it is optional, or slow and rarely needed. Of this package: the parts that need the
# encoder or PyTorch, where a command asks for them.
LATE = {
    "cmm.bench.model",
    "cmm.bench.plot",
    "cmm.bert.paths",
    "cmm.bert.plot_paths",
    "cmm.torch",
    "cmm.torch.convert",
    "cmm.torch.training",
    "cmm_cuda13",
    "cmm_models",
    "ctypes",
    "cupy",
    "cupyx.scipy.special",
    "importlib.metadata",
    "jax",
    "ml_dtypes",
    "safetensors.torch",
    "scipy.linalg",
    "scipy.special",
    "scipy.stats",
    "threadpoolctl",
    "tokenizers",
    "torch",
    "tqdm",
    "transformers",
}

# Names with an underscore that other packages document, or that classes of theirs want.
OF_OTHERS = {"_SubParsersAction", "_apply", "_asdict", "_assert_async", "_replace"} | {
    f"_{when}_hooks" for when in ("forward", "forward_pre", "backward", "backward_pre")
}


def modules(package: Path) -> dict[str, ast.Module]:
    found = {}
    for file in sorted([*package.rglob("*.py"), *package.rglob("*.pyi")]):  # a .pyi: of an extension
        parts = file.relative_to(package.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(file.read_text(encoding="utf-8"), str(file))
    return found


MODULES = modules(PACKAGE)


def imported(tree: ast.AST, known: dict[str, ast.Module]) -> Iterator[str]:
    """Every module that code names in an import or import_module(), wherever that stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, "imports should be absolute"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in known or name == "importlib.metadata" else node.module for name in whole)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("import_module", "importlib.import_module"):
            yield from (argument.value for argument in node.args if isinstance(argument, ast.Constant))


def circle(known: dict[str, ast.Module]) -> list[str]:
    """The modules of a circle of imports, function-level ones and those for type checkers included; [] if none."""
    graph = {name: set(imported(tree, known)) & known.keys() - {name} for name, tree in known.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def foreign_privates(name: str, tree: ast.Module, known: dict[str, ast.Module]) -> Iterator[str]:
    """Names with an underscore that a file uses and does not define. Modules may be private to their package."""
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            own.add(node.id if isinstance(node, ast.Name) else node.attr)

    def private(word: str) -> bool:
        return word.startswith("_") and not word.endswith("__")

    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and private(node.attr) and node.attr not in own | OF_OTHERS:
            if f"{ast.unparse(node.value)}.{node.attr}" not in known:
                yield f"{name}:{node.lineno} {ast.unparse(node)}"
        elif isinstance(node, ast.ImportFrom):
            for word in (alias.name for alias in node.names):
                if private(word) and f"{node.module}.{word}" not in known:
                    yield f"{name}:{node.lineno} from {node.module} import {word}"
    for target in set(imported(tree, known)) & known.keys():
        parent, _, last = target.rpartition(".")
        if private(last) and not f"{name}.".startswith(f"{parent}."):
            yield f"{name} imports {target}"


def test_no_circle_of_imports() -> None:
    assert circle(MODULES) == []


@pytest.mark.parametrize("name", MODULES)
def test_a_private_name_is_used_in_its_own_file_alone(name: str) -> None:
    assert list(foreign_privates(name, MODULES[name], MODULES)) == []


@pytest.mark.parametrize("name", MODULES)
def test_functions_import_only_what_is_optional_or_slow(name: str) -> None:
    for function in ast.walk(MODULES[name]):
        if isinstance(function, ast.FunctionDef):
            assert set(imported(function, MODULES)) <= LATE, function.name


def test_every_late_import_is_one() -> None:
    functions = [f for tree in MODULES.values() for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)]
    assert set().union(*(imported(function, MODULES) for function in functions)) == LATE


def test_a_call_goes_down_through_the_files() -> None:
    """The files that x of fff_forward comes through, each of which imports none above it."""
    road = ["layers", "_check", "_interop", "_backend.dlpack_cpu", "_backend.numpy", "_dispatch", "_native"]
    road = [f"cmm.{name}" for name in road]
    for place, name in enumerate(road):
        assert not set(imported(MODULES[name], MODULES)) & set(road[: place + 1]), name


def test_these_tests_see_what_they_look_for() -> None:
    wrong = {
        "p": ast.parse("from p import a"),
        "p.a": ast.parse("def f():\n    from p.b import g, _h\n    import p.q._r"),
        "p.b": ast.parse(
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p import a\nprint(x._y, a._z)"
        ),
        "p.q._r": ast.parse("def _s(): pass\n_s()"),
    }
    assert set(circle(wrong)) == {"p.a", "p.b"}
    assert list(foreign_privates("p.a", wrong["p.a"], wrong)) == ["p.a:2 from p.b import _h", "p.a imports p.q._r"]
    assert list(foreign_privates("p.b", wrong["p.b"], wrong)) == ["p.b:4 x._y", "p.b:4 a._z"]
    assert list(foreign_privates("p.q._r", wrong["p.q._r"], wrong)) == []


def test_the_activations_are_those_of_the_list() -> None:
    text = (ROOT / "libcmm/src/activations.inc").read_text(encoding="utf-8")
    listed = re.findall(r"^    ACTIVATION\((\w+), (\w+),", text, re.MULTILINE)
    assert listed
    assert all(number.lower() == name for number, name in listed)
    names = [name for _, name in listed]
    assert list(get_args(Activation)) == names == list(reference.ACTIVATIONS)
    assert [ACTIVATIONS[name] for name in names] == list(range(len(names)))
