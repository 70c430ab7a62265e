"""How many threads a call without ``threads`` takes: the argument, then two variables, then what libcmm finds."""

import os
import subprocess
import sys
from typing import Any

import cmm
import cmm.bert
import numpy as np
import pytest
from cmm import _dispatch
from cmm._native import lib, text
from cmm.bench import info
from cmm.bert import data_parallel

X = np.ones((3, 2), np.float32)
W = np.ones((1, 2), np.float32)
PREPARED = cmm.FFF(W, W)
CALLS: dict[str, Any] = {
    "fff_forward": lambda **how: cmm.fff_forward(X, W, W, **how),
    "FFF": lambda **how: PREPARED(X, **how),
    "cmm_forward": lambda **how: cmm.cmm_forward(X, W, **how),
    "ff_forward": lambda **how: cmm.ff_forward(X, W, W, **how),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CMM_LEVEL", "CMM_ISA", "CMM_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


def chosen(threads: int | None = None) -> set[int]:
    """What libcmm is told, by every kind of call; 0 leaves it to libcmm."""
    return {_dispatch.choose("auto", None, threads, dense)[0] for dense in (False, True)}


def test_without_a_variable_libcmm_decides() -> None:
    assert chosen() == {0}
    assert _dispatch.default_threads()[0] == _dispatch.thread_count(None) == lib.cmm_threads_default()
    assert chosen(5) == {5}


@pytest.mark.parametrize(
    ("cmm_threads", "omp_threads", "want", "source"),
    [
        ("3", "5", 3, "CMM_NUM_THREADS"),
        (" 3 ", None, 3, "CMM_NUM_THREADS"),
        (None, "5", 5, "OMP_NUM_THREADS"),
        ("", "5", 5, "OMP_NUM_THREADS"),
        (None, "5,2,1", 5, "OMP_NUM_THREADS"),
        (None, " 5 , 2", 5, "OMP_NUM_THREADS"),
        ("2147483647", None, 2147483647, "CMM_NUM_THREADS"),
    ],
)
def test_variables_decide(
    monkeypatch: pytest.MonkeyPatch, cmm_threads: str | None, omp_threads: str | None, want: int, source: str
) -> None:
    for name, value in (("CMM_NUM_THREADS", cmm_threads), ("OMP_NUM_THREADS", omp_threads)):
        if value is not None:
            monkeypatch.setenv(name, value)
    assert chosen() == {want}
    assert _dispatch.default_threads() == (want, source)
    assert _dispatch.thread_count(None) == want
    assert chosen(7) == {7}  # an argument comes first
    assert _dispatch.thread_count(7) == 7


def test_a_change_takes_effect_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("2", "3", "2"):
        monkeypatch.setenv("CMM_NUM_THREADS", value)
        assert chosen() == {int(value)}
    monkeypatch.delenv("CMM_NUM_THREADS")
    assert chosen() == {0}


@pytest.mark.parametrize("value", ["", "0", "-1", "two", "1.5", ",3", "9" * 40, "\u0663"])
def test_a_wrong_number_for_openmp_is_ignored(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert chosen() == {0}
    assert _dispatch.default_threads()[0] == lib.cmm_threads_default()


@every_call
@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "2,3", "9" * 40, "2147483648"])
def test_a_wrong_number_of_ours_is_one_line(monkeypatch: pytest.MonkeyPatch, call: Any, value: str) -> None:
    monkeypatch.setenv("CMM_NUM_THREADS", value)
    with pytest.raises(cmm.ArgumentError) as caught:
        call()
    assert str(caught.value) == f"CMM_NUM_THREADS is {value!r}; it should be unset or an integer of at least 1"
    with pytest.raises(cmm.ArgumentError, match="CMM_NUM_THREADS is"):
        info.facts()
    call(threads=1)  # it does not matter here


@every_call
def test_the_number_reaches_every_call(monkeypatch: pytest.MonkeyPatch, call: Any) -> None:
    seen = []
    real = _dispatch._plan
    monkeypatch.setenv("CMM_NUM_THREADS", "2")
    call()
    monkeypatch.setattr(_dispatch, "_plan", lambda *a: seen.append(real(*a)) or seen[-1])
    monkeypatch.setattr(_dispatch, "_fff_plans", {})
    monkeypatch.setattr(_dispatch, "_dense_plans", {})
    monkeypatch.setenv("CMM_NUM_THREADS", "3")
    call()
    assert [run[0] for run, _ in seen] == [3]


def test_the_encoder_shares_out_among_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(data_parallel, "shares", lambda batch, length, threads: seen.append(threads))
    config = {
        "num_transformer_layers": 1,
        "hidden_size": 8,
        "intermed_type": "fff",
        "intermed_size": 1,
        "intermed_depth": 1,
        "norm_eps": 1e-12,
        "embedding": {"vocab_size": 10, "max_seq_length": 4},
        "attention": {"num_attention_heads": 2},
    }
    model = cmm.bert.random(config)
    model([[1, 2]])
    monkeypatch.setenv("CMM_NUM_THREADS", "3")
    model([[1, 2]])
    model([[1, 2]], threads=2)
    assert seen == [lib.cmm_threads_default(), 3, 2]


def test_cmm_info_says_what_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dict(info.facts())["threads"] == f"{lib.cmm_threads_default()}, from the {text(lib.cmm_threads_source())}"
    monkeypatch.setenv("OMP_NUM_THREADS", "6,2")
    assert dict(info.facts())["threads"] == "6, from OMP_NUM_THREADS"
    monkeypatch.setenv("CMM_NUM_THREADS", "3")
    assert dict(info.facts())["threads"] == "3, from CMM_NUM_THREADS"


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted through /proc")
def test_so_many_threads_there_are() -> None:
    """Of libcmm's pool, after a call that is worth many threads: one less than the call has."""
    code = """
import os, numpy as np, cmm
def count(): return len(os.listdir("/proc/self/task"))
w = np.ones((127, 64), np.float32)
before = count()
cmm.fff_forward(np.ones((20000, 64), np.float32), w, w, level="native")
print(count() - before)
"""
    for value in ("1", "3"):
        environment = {**os.environ, "CMM_NUM_THREADS": value, "OPENBLAS_NUM_THREADS": "1"}
        run = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        assert int(run.stdout) == int(value) - 1
