"""Where the BLAS comes from, in which order, and that it keeps to the threads of the call.

Weights and tokens are small integers, so every sum is exact in every order: all BLAS libraries give the same bits.
"""

import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import cmm
import numpy as np
import pytest
import threadpoolctl
from cmm import blas
from cmm._libcmm import ffi
from numpy.typing import NDArray
from scipy.linalg import cython_blas

LEVELS = ["blas1", "blas2", "blas3"]
SCIPY = cython_blas.__file__


def has_mkl() -> bool:
    try:
        metadata.distribution("mkl")
    except metadata.PackageNotFoundError:
        return False
    return True


needs_mkl = pytest.mark.skipif(not has_mkl(), reason="the package mkl is not installed")


@pytest.fixture(autouse=True)
def _nothing_found_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test searches anew, in a plain environment."""
    for name in ("CMM_BLAS", "CMM_LEVEL", "CMM_ISA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(blas, "_found", {})
    monkeypatch.setattr(blas, "_nowhere", [])


def hide_mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    def files(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", files)


def hide_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.linalg", None)


def layer(dtype: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shapes = {"x": (70, 40), "w_in": (2, 31, 40), "w_out": (2, 31, 24), "bias": (2, 31)}
    return {name: rng.integers(-4, 5, shape).astype(dtype) for name, shape in shapes.items()}


def outputs(dtype: Any, level: str, threads: int | None = None) -> list[NDArray[Any]]:
    """The results of every operation: integers, since the activation is the identity."""
    arrays = layer(dtype)
    one = {name: array if name == "x" else array[0] for name, array in arrays.items()}
    return [
        *cmm.fff_forward(**arrays, activation="identity", level=level, threads=threads, return_path=True),
        cmm.FFF(arrays["w_in"], arrays["w_out"], activation="identity")(arrays["x"], level=level, threads=threads),
        *cmm.cmm(arrays["x"], arrays["w_in"], tie="right", level=level, threads=threads),
        cmm.ff_forward(**one, activation="identity", level=level, threads=threads),
    ]


def agree(level: str) -> None:
    for dtype in (np.float32, np.float64):
        for threads in (1, 2):
            for got, expected in zip(outputs(dtype, level, threads), outputs(dtype, "naive"), strict=True):
                assert got.dtype == expected.dtype
                assert (got == expected).all()


# ---- the search ----------------------------------------------------------------------------------------------------


@needs_mkl
def test_mkl_comes_before_scipy() -> None:
    assert "Math Kernel Library" in blas.current().name
    assert "mkl_rt" in Path(blas.current().file).name


def test_scipy_comes_without_mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_mkl(monkeypatch)
    assert blas.current().file == SCIPY
    assert blas.current().name
    assert blas.available() is blas.current()
    assert all(level.available for level in cmm.levels() if not level.name.startswith("cuda"))


def test_mkl_without_its_library_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "files", lambda name: None)
    assert blas.current().file == SCIPY


@pytest.mark.parametrize("level", LEVELS)
def test_scipy_computes_what_naive_computes(monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    hide_mkl(monkeypatch)
    agree(level)


@needs_mkl
@pytest.mark.parametrize("level", LEVELS)
def test_mkl_computes_what_naive_computes(level: str) -> None:
    agree(level)


def test_it_is_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    searches = []
    search = blas._from_scipy
    hide_mkl(monkeypatch)

    def counted() -> blas.Blas:
        searches.append(1)
        time.sleep(0.1)  # so that the other threads come while this one searches
        return search()

    monkeypatch.setattr(blas, "_from_scipy", counted)
    found: list[blas.Blas] = []
    threads = [threading.Thread(target=lambda: found.append(blas.current())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len({id(one) for one in found}) == 1
    assert len(searches) == 1


def test_only_a_call_that_needs_it_searches() -> None:
    """In a new process, for nothing may be imported yet."""
    code = """
import sys, numpy as np, cmm
w = np.ones((3, 2), np.float32)
cmm.fff_forward(w, w, w, level="naive")
cmm.ff_forward(w, w, w, level="naive")
print("scipy" in sys.modules, bool(cmm.blas._found))
cmm.fff_forward(w, w, w, level="blas1")
print(bool(cmm.blas._found))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False", "True"]


# ---- CMM_BLAS ------------------------------------------------------------------------------------------------------


def test_cmm_blas_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    link = tmp_path / "library with a space.so"
    link.symlink_to(SCIPY)
    default = blas.current()
    monkeypatch.setenv("CMM_BLAS", str(link))
    assert blas.current().file == str(link)
    assert blas.current() is blas.current()
    agree("blas1")
    monkeypatch.setenv("CMM_BLAS", "")
    assert blas.current() is default


def wrong_paths(tmp_path: Path) -> Iterator[str]:
    yield str(tmp_path / "missing.so")
    yield str(tmp_path)
    text = tmp_path / "text.so"
    text.write_text("not a library")
    yield str(text)
    yield str(Path(cmm.get_include()).parent / "lib" / "libcmm.so")  # a library, but no BLAS


def test_a_wrong_cmm_blas_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    w = np.ones((3, 2), np.float32)
    for path in wrong_paths(tmp_path):
        monkeypatch.setenv("CMM_BLAS", path)
        calls: list[Any] = [
            blas.current,
            cmm.levels,
            lambda: cmm.fff_forward(w, w, w, level="blas1"),
            lambda: cmm.ff_forward(w, w, w),  # its best level uses a BLAS
        ]
        for call in calls:
            with pytest.raises(cmm.UnusableError) as caught:
                call()
            assert f"CMM_BLAS is {path!r}" in str(caught.value)
        cmm.fff_forward(w, w, w, level="naive")  # needs none


# ---- load and use --------------------------------------------------------------------------------------------------


def test_load_says_what_is_wrong(tmp_path: Path) -> None:
    for path in wrong_paths(tmp_path):
        with pytest.raises(cmm.UnusableError) as caught:
            blas.load(path)
        assert f"path is {path!r}" in str(caught.value)
    bad: list[Any] = ["", 7, None, "a\0b", b"\0"]
    for path in bad:
        with pytest.raises(cmm.ArgumentError, match=r"path is .*should be the path of a BLAS library"):
            blas.load(path)


def test_load_takes_any_kind_of_path() -> None:
    kinds: list[Any] = [SCIPY, Path(SCIPY), os.fsencode(SCIPY)]
    for path in kinds:
        loaded = blas.load(path)
        assert loaded.file == SCIPY
        assert loaded.name in repr(loaded)


def test_use_lasts_for_its_block_and_its_thread() -> None:
    default = blas.current()
    one, two = blas.load(SCIPY), blas.load(SCIPY)
    elsewhere: list[blas.Blas] = []
    with blas.use(one) as used:
        assert used is one
        assert blas.current() is one
        with blas.use(two):
            assert blas.current() is two
        assert blas.current() is one
        thread = threading.Thread(target=lambda: elsewhere.append(blas.current()))
        thread.start()
        thread.join()
    assert blas.current() is default
    assert elsewhere == [default]
    with pytest.raises(KeyError), blas.use(one):
        raise KeyError
    assert blas.current() is default


def test_use_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMM_BLAS", "/nowhere/lib.so")
    loaded = blas.load(SCIPY)
    with blas.use(loaded):
        assert blas.current() is loaded
        agree("blas2")
        assert all(level.available for level in cmm.levels() if level.name in LEVELS)


def test_use_refuses_what_is_no_blas() -> None:
    bad: Any = SCIPY
    with pytest.raises(cmm.ArgumentError, match=r"blas is .*cmm\.blas\.load"), blas.use(bad):
        pass


def test_a_call_uses_the_table_it_is_given() -> None:
    """A BLAS of our own, whose dot product is always 7."""

    table = ffi.new("cmm_blas *", blas.load(SCIPY).table[0])

    @ffi.callback(ffi.typeof(table.sdot))  # type: ignore[untyped-decorator]
    def sdot(n: Any, x: Any, incx: Any, y: Any, incy: Any) -> float:
        return 7

    table.sdot = sdot
    w = np.zeros((3, 2), np.float32)
    with blas.use(blas.Blas("", table)):
        nodes, logits = cmm.cmm(w[:1], w, level="blas1")
    assert logits.tolist() == [[[7, 7]]]
    assert nodes.tolist() == [[[0, 2]]]


# ---- no BLAS -------------------------------------------------------------------------------------------------------


def test_without_any_blas(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_mkl(monkeypatch)
    hide_scipy(monkeypatch)
    w = np.ones((3, 2), np.float32)
    for level in LEVELS:
        for call in (cmm.fff_forward, cmm.ff_forward):
            with pytest.raises(cmm.UnusableError) as caught:
                call(w, w, w, level=level)
            for word in ("there is no BLAS", "mkl is not installed", "scipy", "CMM_BLAS"):
                assert word in str(caught.value)
    usable = {level.name: level for level in cmm.levels()}
    for name in LEVELS:
        assert not usable[name].available
        assert "BLAS" in usable[name].reason
    assert usable["naive"].available
    expected = cmm.fff_forward(w, w, w, level="naive")
    assert (cmm.fff_forward(w, w, w) == expected).all()  # "auto" does without
    cmm.ff_forward(w, w, w)


def test_a_table_that_lacks_a_function() -> None:
    table = ffi.new("cmm_blas *", blas.load(SCIPY).table[0])
    table.sgemm = ffi.NULL
    table.name = b"half a BLAS"
    w = np.ones((3, 2), np.float32)
    with blas.use(blas.Blas("", table)):
        cmm.fff_forward(w, w, w, level="blas2")
        with pytest.raises(cmm.UnusableError, match="level is 'blas3' and the BLAS is half a BLAS"):
            cmm.fff_forward(w, w, w, level="blas3")
        cmm.fff_forward(w.astype(float), w.astype(float), w.astype(float), level="blas3")


# ---- SciPy's functions without its symbols -------------------------------------------------------------------------


@pytest.fixture
def capsules(monkeypatch: pytest.MonkeyPatch) -> blas.Blas:
    """SciPy's BLAS as it is found where its library shows no symbols."""
    hide_mkl(monkeypatch)

    def load(argument: str, path: Any) -> blas.Blas:
        raise cmm.UnusableError("no symbols")

    monkeypatch.setattr(blas, "_load", load)
    return blas.current()


@pytest.mark.parametrize("level", LEVELS)
def test_capsules_compute_what_naive_computes(capsules: blas.Blas, level: str) -> None:
    assert capsules.name == "the BLAS of SciPy"
    assert not capsules.table.sgemv_batch
    agree(level)


class Library:
    """Stands in for a library as ctypes opens it."""

    def __init__(self) -> None:
        self.threads = 5
        self.calls: list[int] = []
        self.openblas_get_num_threads = ctypes.CFUNCTYPE(ctypes.c_int32)(lambda: self.threads)
        self.openblas_set_num_threads = ctypes.CFUNCTYPE(None, ctypes.c_int32)(self.set)

    def set(self, threads: int) -> None:
        self.calls.append(threads)
        self.threads = threads


def test_capsules_set_the_threads_of_scipys_library(capsules: blas.Blas) -> None:
    """By its own functions, for after fork() there is no Python that could be called."""
    library = blas._library_of_scipy()
    assert "/numpy" not in library._name
    functions = blas._thread_functions(library, ctypes.cast, ctypes.c_void_p)
    assert int(ffi.cast("uintptr_t", capsules.table.set_threads)) == functions["set_threads"]
    before = capsules.table.get_threads()
    capsules.table.set_threads(before + 1)
    assert scipys_threads() == [before + 1]
    capsules.table.set_threads(before)
    assert blas._thread_functions(object(), ctypes.cast, ctypes.c_void_p) == {}


def test_capsules_get_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """During the call alone, also when calls overlap."""
    library = Library()
    monkeypatch.setattr(blas, "_library_of_scipy", lambda: library)
    found = blas._from_capsules(cython_blas)

    def call(level: str) -> None:
        with blas.use(found):
            outputs(np.float32, level)

    call("blas3")
    assert library.threads == 5
    assert library.calls == [1, 5] * (len(library.calls) // 2)
    assert library.calls
    threads = [threading.Thread(target=call, args=("blas1",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert library.threads == 5


def test_capsules_without_threadpoolctl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    found = blas._from_capsules(cython_blas)
    assert not found.table.set_threads
    with blas.use(found):
        agree("blas3")


# ---- threads of the BLAS -------------------------------------------------------------------------------------------


def scipys_threads() -> list[int]:
    return [int(one["num_threads"]) for one in threadpoolctl.threadpool_info() if "/scipy.libs/" in one["filepath"]]


def test_the_thread_count_of_scipys_blas_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is 1 while sgemm runs, and afterwards what it was."""
    hide_mkl(monkeypatch)
    found = blas.current()
    during: list[int] = []
    gemm = found.table.sgemm

    @ffi.callback(ffi.typeof(gemm))  # type: ignore[untyped-decorator]
    def spy(*arguments: Any) -> None:
        during.append(found.table.get_threads())
        gemm(*arguments)

    table = ffi.new("cmm_blas *", found.table[0])
    table.sgemm = spy
    with threadpoolctl.threadpool_limits(3, user_api="blas"), blas.use(blas.Blas("", table)):
        before = scipys_threads()
        assert before == [3]
        w = np.ones((15, 8), np.float32)
        cmm.fff_forward(np.ones((300, 8), np.float32), w, w, level="blas3")
        cmm.ff_forward(np.ones((300, 8), np.float32), w, w, level="blas3", threads=2)
        assert scipys_threads() == before
    assert during
    assert set(during) == {1}
