"""docs/reference/bench-json.md has every key that `cmm bench --json` writes, with its type, and no other."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import bert_reference
import pytest
from building import ROOT
from cmm.__main__ import main
from cmm.bench import command
from cmm.bench.gpu import GpuLine, GpuReport
from cmm.bench.roofline import Roofline
from cmm.bench.table import SCHEMA

PAGE = (ROOT / "docs/reference/bench-json.md").read_text(encoding="utf-8")
SMALL = ["bench", "--tokens", "32", "--width", "16", "--trees", "1x3", "--passes", "1"]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


TYPES = {
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "integer": is_integer,
    "number": is_number,
    "null": lambda value: value is None,
    "object": lambda value: isinstance(value, dict),
    "list of objects": lambda value: isinstance(value, list) and all(isinstance(one, dict) for one in value),
    "object of strings": lambda value: all(isinstance(one, str) for one in value.values()),
    "object of integers": lambda value: all(map(is_integer, value.values())),
    "object of numbers": lambda value: all(map(is_number, value.values())),
}


def documented(section: str) -> dict[str, str]:
    """Return the keys of a section of the page, and their types."""
    rows = [row.split("|")[1:-1] for row in section.splitlines() if row.startswith("| `")]
    assert all(len(row) == 4 for row in rows)
    keys = [row[0].strip(" `") for row in rows]
    assert len(set(keys)) == len(keys)
    return {key: row[1].strip() for key, row in zip(keys, rows, strict=True)}


TABLES, MODEL = (documented(section) for section in PAGE.split("\n## ")[1:])


def values(found: dict[str, Any], types: dict[str, str], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each key as the page writes it, and its value. The names in an `object of ...` are no keys."""
    for name, value in found.items():
        key = above + name
        yield key, value
        if isinstance(value, dict) and " of " not in types.get(key, ""):
            yield from values(value, types, key + ".")
        elif isinstance(value, list):
            for one in value:
                yield from values(one, types, key + "[].")


def compare(written: list[dict[str, Any]], types: dict[str, str]) -> None:
    seen = set()
    for one in written:
        assert one["schema"] == SCHEMA == 1
        for key, value in values(one, types):
            assert key in types, f"{key} is not on the page"
            assert any(TYPES[kind](value) for kind in types[key].split(" or ")), (key, value, types[key])
            seen.add(key)
    assert seen == set(types), "the page has keys that are not written"


@pytest.fixture
def floors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some floors, for they take seconds to measure."""
    rates = {"L1": 9.0, "L2": 8.0, "L3": 7.0, "memory": 6.0}
    some = Roofline(gflops=10.0, read=rates, copy=rates, caches={"L1": 1, "L2": 2, "L3": 3}, threads=1)
    monkeypatch.setattr("cmm.bench.command.measure_roofline", lambda *arguments: some)


def run(tmp_path: Any, *arguments: str) -> dict[str, Any]:
    file = tmp_path / "bench.json"
    assert main([*arguments, "--json", str(file)]) == 0
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_the_page_has_every_key_of_the_tables(floors: None, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = run(tmp_path, *SMALL, "--table", "narrow", "--weights", "float32,int8/bfloat16+exact,int8+6")
    forests = run(tmp_path, *SMALL, "--table", "forests")
    without = run(tmp_path, *SMALL, "--levels", "naive,blas3")
    line = GpuLine("1x3", False, 15, "cuda", 9.0, 7, 0)
    original = command.bench
    gpu = GpuReport("Some GPU", 15, {"cuda-bmm": "a reason"}, [line])
    monkeypatch.setattr(command, "bench", lambda options: replace(original(options), gpu=gpu))
    paper = run(tmp_path, *SMALL, "--levels", "naive,blas3")
    assert [one["table"] for one in (narrow, forests, paper)] == ["narrow", "forests", "paper"]
    assert without["gpu"] is None
    compare([narrow, forests, without, paper], TABLES)


def test_the_page_has_every_key_of_the_model(tmp_path: Any) -> None:
    block = bert_reference.architecture(num_labels=None)
    bert_reference.save_final(tmp_path / "model", block, bert_reference.state_dict(block))
    found = run(tmp_path, "bench", "--model", str(tmp_path / "model"), "--passes", "1")
    assert found["table"] == "model"
    compare([found], MODEL)
