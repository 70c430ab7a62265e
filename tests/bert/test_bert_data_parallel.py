"""Several threads share out the sequences of a call, and the BLAS does not add its own."""

import os
import sys
import threading
from contextvars import ContextVar

import bert_reference as reference
import cmm
import cmm.bert
import numpy as np
import pytest
from cmm.bert import data_parallel, encoder

threadpoolctl = pytest.importorskip("threadpoolctl", reason="the package threadpoolctl is not installed")

TOLERANCE = 1e-5  # as in test_bert_encoder.py
BLOCKS = {
    "fff": reference.architecture(),
    "dense": reference.architecture(intermed_type="ff", intermed_size=37),
    "gated": reference.architecture(intermed_type="ff", intermed_size=38, nonlin="GELUglu"),
}


@pytest.fixture
def small_is_enough(monkeypatch):
    monkeypatch.setattr(data_parallel, "_LEAST_TOKENS", 1)


def made(name="fff"):
    return cmm.bert.from_state_dict(reference.state_dict(BLOCKS[name]), BLOCKS[name])


def blas_threads():
    """Of numpy's BLAS; libcmm sees to its own."""
    return [one["num_threads"] for one in data_parallel._blas().info()]


def test_every_sequence_is_in_one_share():
    for batch in range(1, 40):
        for threads in range(1, batch + 1):
            parts = data_parallel.shares(batch, 128, threads)
            assert len(parts) == threads
            assert [i for part in parts for i in range(batch)[part]] == list(range(batch))
            sizes = [part.stop - part.start for part in parts]
            assert max(sizes) - min(sizes) <= 1


def test_the_blas_has_what_is_too_little_to_share():
    assert data_parallel.shares(1, 128, 2) is None
    assert data_parallel.shares(2, 128, 8) is None
    assert data_parallel.shares(8, 15, 2) is None
    for batch, length, threads, count in (
        (8, 16, 2, 2),
        (4, 128, 8, 4),
        (16, 128, 64, 16),
        (9, 8, 1, 1),
        (1, 1, 1, 1),
    ):
        assert len(data_parallel.shares(batch, length, threads)) == count


@pytest.mark.parametrize("kind", ["none", "2-d", "3-d"])
@pytest.mark.parametrize("name", BLOCKS)
def test_threads_change_nothing(small_is_enough, monkeypatch, name, kind):
    rng = np.random.default_rng(5)
    ids = rng.integers(0, 50, (7, 9))
    mask = {"none": None, "2-d": rng.random((7, 9)) < 0.7, "3-d": rng.random((7, 9, 9)) < 0.7}[kind]
    model = made(name)
    used, run = [], data_parallel.run
    monkeypatch.setattr(data_parallel, "run", lambda work, parts: (used.append(len(parts)), run(work, parts)))
    expected = model.trace(ids, mask, threads=1)
    for threads in (1, 2, 3, 7):
        found = model.trace(ids, mask, threads=threads)
        np.testing.assert_array_equal(model(ids, mask, threads=threads), found.encoder_out)  # they share out alike
        for tap, value in vars(expected).items():
            if value is None:
                assert getattr(found, tap) is None
            else:
                np.testing.assert_allclose(getattr(found, tap), value, rtol=TOLERANCE, atol=TOLERANCE)
    assert used == [1, 1, 1, 2, 2, 3, 3, 7, 7]
    assert model(np.empty((0, 9), int), threads=1).shape == (0, 9, 24)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of a fork beside threads, which is what is tried
def test_a_child_forked_meanwhile_has_the_blass_threads():
    with threadpoolctl.threadpool_limits(3, user_api="blas"):
        before = blas_threads()
        with data_parallel._one_blas_thread():
            assert blas_threads() == [1] * len(before)
            child = os.fork()
            if child == 0:
                os._exit(0 if blas_threads() == before and data_parallel._setting.acquire(blocking=False) else 1)
            assert os.waitpid(child, 0)[1] == 0
        assert blas_threads() == before


def test_the_blas_is_kept_to_one_thread_and_released(small_is_enough, monkeypatch):
    """Also after an error, and after calls at the same time."""
    seen, real = [], encoder.attention
    together = threading.Barrier(4, timeout=60)
    monkeypatch.setattr(encoder, "attention", lambda *a: (seen.append(blas_threads()), real(*a))[1])
    model, ids = made(), np.zeros((4, 3), int)
    with threadpoolctl.threadpool_limits(3, user_api="blas"):
        before = blas_threads()
        assert 3 in before  # not every BLAS does as it is told
        model(ids, threads=2)
        assert {number for numbers in seen for number in numbers} == {1}
        assert len(seen) == 2 * 2  # parts, layers
        assert blas_threads() == before

        def failing(*_):
            raise RuntimeError("on purpose")

        with monkeypatch.context() as patch:
            patch.setattr(encoder, "attention", failing)
            with pytest.raises(RuntimeError, match="on purpose"):
                model(ids, threads=2)
        assert blas_threads() == before

    def call():
        together.wait()
        for _ in range(20):
            model(ids, threads=2)

    before = blas_threads()
    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 2 * 2 + 4 * 20 * 2 * 2
    assert blas_threads() == before


def test_an_error_of_another_thread_is_raised(small_is_enough):
    def work(part):
        if part.start:
            raise RuntimeError("the second part")

    with pytest.raises(RuntimeError, match="the second part"):
        data_parallel.run(work, [slice(0, 1), slice(1, 2)])


def test_every_thread_has_the_context_of_the_call():
    """By which `cmm.blas.use` says which BLAS."""
    variable, seen = ContextVar("variable", default=0), []
    token = variable.set(5)
    data_parallel.run(lambda part: seen.append(variable.get()), [slice(0, 1), slice(1, 2), slice(2, 3)])
    variable.reset(token)
    assert seen == [5, 5, 5]


def test_without_threadpoolctl(small_is_enough, monkeypatch):
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    monkeypatch.setattr(data_parallel, "_blas", data_parallel._blas.__wrapped__)
    assert data_parallel.shares(8, 128, 2) is None
    ids = np.random.default_rng(5).integers(0, 50, (7, 9))
    one = [made()(ids[i : i + 1])[0] for i in range(7)]
    np.testing.assert_allclose(made()(ids, threads=2), one, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True, 2**31])
def test_wrong_threads(name, threads):
    with pytest.raises(cmm.ArgumentError, match="threads is"):
        made(name)([[1, 2]], threads=threads)
