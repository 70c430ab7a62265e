"""The threads of a call: each computes some of the sequences, from the first layer to the last.

numpy computes all but matrix products in one thread, and its BLAS's threads, when they have nothing to do, spin for a
while where libcmm's should run. So where there is enough for every thread, a call shares the sequences out and keeps
the BLAS to one thread in each.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from functools import cache
from itertools import pairwise
from typing import Any

# With fewer tokens to a thread, reading the weights is most of the work, and the BLAS's threads share that better.
_LEAST_TOKENS = 64


# Held by the call that has set the BLAS's threads, which are one number for the whole process.
_setting = threading.Lock()


@cache
def _blas() -> Any:
    """Return what sets the threads of every BLAS that is loaded, or None without threadpoolctl."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController().select(user_api="blas")


def shares(batch: int, length: int, threads: int) -> list[slice] | None:
    """Return the sequences of each thread, or None where the BLAS should use its own threads instead.

    Parameters
    ----------
    batch, length : int
        Sequences, and tokens in each.
    threads : int
        At most this many.
    """
    count = max(1, min(threads, batch, batch * length // _LEAST_TOKENS))
    # The BLAS's threads leave a quarter of the work to one of them: 4 * threads / (threads + 3) times as fast as one.
    if count * (threads + 3) < 4 * threads or _blas() is None:
        return None
    bounds = [batch * index // count for index in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]


def run(work: Callable[[slice], None], parts: list[slice]) -> None:
    """Call work with every part, each in a thread, the first one in this thread; the BLAS does not add its own."""
    with _one_blas_thread():
        if len(parts) == 1:
            work(parts[0])
            return
        with ThreadPoolExecutor(len(parts) - 1) as others:
            # The context has the BLAS of `cmm.blas.use`.
            running = [others.submit(copy_context().run, work, part) for part in parts[1:]]
            work(parts[0])
        for one in running:
            one.result()


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    if not _setting.acquire(blocking=False):  # another call has set it; it may end before us, which costs speed alone
        yield
        return
    try:
        with _blas().limit(limits=1):
            yield
    finally:
        _setting.release()
