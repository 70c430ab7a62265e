"""bench/exact_path.py counts tokens off float32's path: none with a strict exact path, and those that are off."""

import importlib.util
import re
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from building import ROOT

ARGUMENTS = ["--random", "20000", "--model", "1500"]


@pytest.fixture
def script() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("exact_path_script", ROOT / "bench/exact_path.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for its annotations
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def found(out: str) -> list[dict[tuple[str, str], tuple[int, int, str]]]:
    """Return each table: by rows and exact path the tokens off, of how many, and the share computed again."""
    tables = out.split("| rows |")[1:]
    row = re.compile(r"^\| (\w+) \| ([\w ]+) \| (\d+) \| (\d+) \| ([\d.]*)%? \|$", re.MULTILINE)
    return [{(r[1], r[2]): (int(r[3]), int(r[4]), r[5]) for r in row.finditer(table)} for table in tables]


def test_no_token_is_off_a_strict_path(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(ARGUMENTS) == 0
    out = capsys.readouterr().out
    random, model = found(out)
    for counts, tokens in (random, 20000), (model, 1500):
        assert len(counts) == 6
        assert {of for _, of, _ in counts.values()} == {tokens}
        for rows in ("int8", "bfloat16"):
            assert counts[rows, "none"][0] > 0
            assert counts[rows, "none"][2] == ""
            assert counts[rows, "strict"][0] == 0
            assert 0 < float(counts[rows, "6 sigmas"][2]) <= float(counts[rows, "strict"][2]) < 100
    assert float(random["int8", "strict"][2]) == pytest.approx(17, abs=2)
    assert "strict exact paths: 0 tokens elsewhere" in out
    distinct = re.search(r"model, (\d+) distinct", out)
    assert distinct is not None
    assert 1400 < int(distinct[1]) <= 1500


def test_what_is_off_is_counted_and_is_an_error(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = script.packed

    def without(w_in: Any, w_out: Any, bias: Any, weights: Any, exact_path: Any) -> Any:
        return original(w_in, w_out, bias, weights, False)

    monkeypatch.setattr(script, "packed", without)
    assert script.main([*ARGUMENTS[:2], "--model", "0"]) == 1
    (counts,) = found(capsys.readouterr().out)
    assert counts["int8", "strict"][0] == counts["int8", "none"][0] > 0
