"""The threads of a call: each computes some of the sequences, from the first layer to the last.

numpy computes all but matrix products in one thread, and its BLAS's threads, when they have nothing to do, spin for a
while where libcmm's should run. So where there is enough for every thread, a call shares the sequences out and keeps
the BLAS to one thread in each.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from functools import cache
from itertools import pairwise
from typing import Any

# With fewer tokens to a thread, reading the weights is most of the work, and the BLAS's threads share that better.
_LEAST_TOKENS = 64


# Held by the call that has set the BLAS's threads, which are one number for the whole process.
_setting = threading.Lock()
_limit: Any = None  # what that call set, and how to put it back


def _forget() -> None:
    """In the child of a fork, where that call does not go on: put the BLAS's threads back."""
    global _setting, _limit
    _setting = threading.Lock()
    if _limit is not None:
        _limit.restore_original_limits()
        _limit = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


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
    """Share out the work as ``share`` does; the BLAS does not add threads of its own."""
    with _one_blas_thread():
        share(work, parts)


def share(work: Callable[[slice], None], parts: list[slice]) -> None:
    """Call work with every part, each in a thread, the first one and what there are no threads for in this one."""
    mine, running = parts[:1], []
    for part in parts[1:]:
        try:
            running.append(_Running(work, part))
        except RuntimeError:  # no thread is to be had, by a limit of the system or because the interpreter is ending
            mine.append(part)
    try:
        for part in mine:
            work(part)
    finally:
        for one in running:
            one.join()
    for one in running:
        if one.error is not None:
            raise one.error


def can_start() -> bool:
    """Whether a thread is to be had."""
    try:
        _Running(lambda _: None, slice(0)).join()
    except RuntimeError:
        return False
    return True


class _Running(threading.Thread):
    """A thread that does a part of the work, from its making on. Its context has the BLAS of `cmm.blas.use`.

    Unlike those of a pool it can be had in an ``atexit`` handler too.
    """

    def __init__(self, work: Callable[[slice], None], part: slice) -> None:
        super().__init__(name="cmm.bert", target=copy_context().run, args=(self._attempt, work, part))
        self.error: BaseException | None = None
        self.start()

    def _attempt(self, work: Callable[[slice], None], part: slice) -> None:
        try:
            work(part)
        except BaseException as error:
            self.error = error


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    global _limit
    setting = _setting
    if not setting.acquire(blocking=False):  # another call has set it; it may end before us, which costs speed alone
        yield
        return
    try:
        with _blas().limit(limits=1) as _limit:
            yield
    finally:
        _limit = None
        setting.release()
