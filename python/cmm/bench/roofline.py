"""The roofline of this machine: what no layer can beat, measured in the same process as the layers.

Everything is measured through NumPy and BLAS calls that do nothing else: `np.copyto` copies, `dot` reads, `gemm`
multiplies and adds. The best of several tries counts, for a floor must not be higher than the machine's own.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from cmm.bench.machine import Machine

_TRIES = 20
_TRAFFIC = 64 << 20  # bytes one try moves at least, so that a try takes milliseconds
_DOT = 8192


@dataclass(frozen=True)
class Work:
    """What a layer needs of a machine for one token: all that floors are derived from.

    Only what cannot be left out is counted, so that a floor is not too high: no activations, no padding of rows, no
    margins of an exact path, and of rows that several tokens of a call use, one reading.

    Attributes
    ----------
    flops : float
        A product and a sum for each element of the rows of a used neuron, and of a row of which a logit is computed
        again.
    token_bytes : int
        Bytes of x; y has as many.
    tokens_set : int
        Bytes of the tokens and outputs that a pass cycles through.
    used_bytes : float
        Bytes of the rows that a token uses.
    rows_bytes : float
        Bytes of the distinct rows that a call uses, divided by its tokens.
    rows_set : float
        Bytes of the distinct rows that a pass uses.
    """

    flops: float
    token_bytes: int
    tokens_set: int
    used_bytes: float
    rows_bytes: float
    rows_set: float


@dataclass(frozen=True)
class Roofline:
    """What this machine does at best with `threads` threads.

    Attributes
    ----------
    gflops : float
        Multiply-adds of the best matrix product, counted as two operations each, in 10^9 a second.
    read, copy : dict of str to float
        10^9 bytes a second from "L1", "L2", "L3" and "memory"; a copied byte counts twice: read and written.
    caches : dict of str to int
        Bytes of each cache level.
    threads : int
        Threads that ran at the same time.
    """

    gflops: float
    read: dict[str, float]
    copy: dict[str, float]
    caches: dict[str, int]
    threads: int

    def or_better(self, other: Roofline) -> Roofline:
        """Return the best of two measurements of the same machine, taken at different moments."""
        return Roofline(
            max(self.gflops, other.gflops),
            {level: max(rate, other.read[level]) for level, rate in self.read.items()},
            {level: max(rate, other.copy[level]) for level, rate in self.copy.items()},
            self.caches,
            self.threads,
        )

    def home(self, size: float) -> str:
        """Return the smallest of "L1", "L2", "L3", "memory" that holds `size` bytes."""
        return next((level for level, capacity in self.caches.items() if size <= capacity), "memory")

    def arithmetic_us(self, flops: float) -> float:
        """Return the microseconds for so many floating-point operations."""
        return flops / self.gflops / 1e3

    def copy_us(self, size: float, working_set: float) -> float:
        """Return the microseconds to read `size` bytes and write as many, cycling through `working_set` bytes."""
        return 2 * size / self.copy[self.home(working_set)] / 1e3

    def read_us(self, size: float, level: str) -> float:
        """Return the microseconds to read `size` bytes from a level."""
        return size / self.read[level] / 1e3

    def floors(self, work: Work) -> dict[str, float]:
        """Return the microseconds that a token takes at least, for its "arithmetic", its "copy" and its "rows"."""
        return {
            "arithmetic": self.arithmetic_us(work.flops),
            "copy": self.copy_us(work.token_bytes, work.tokens_set),
            "rows": self.read_us(work.rows_bytes, self.home(work.rows_set)),
        }


def measure_roofline(
    machine: Machine, threads: int, dtype: np.dtype, products: Iterable[tuple[Callable[[], object], float]]
) -> Roofline:
    """Measure the floors in a second or two.

    Parameters
    ----------
    machine : Machine
        For the sizes of the caches.
    threads : int
        How many threads read and copy at the same time.
    dtype : numpy.dtype
        float32 or float64.
    products : iterable of (function, flops)
        Matrix products to look for the FMA peak in; each is to use `threads` threads itself.
    """
    read, copy = {}, {}
    with ThreadPoolExecutor(threads) as pool:
        for level, size in _working_sets(machine.caches, threads).items():
            read[level] = _read_rate(pool, threads, size, dtype)
            copy[level] = _copy_rate(pool, threads, size, dtype)
    gflops = max(flops / _best(product) / 1e9 for product, flops in products)
    return Roofline(gflops, _no_slower(read), _no_slower(copy), machine.caches, threads)


def _no_slower(rates: dict[str, float]) -> dict[str, float]:
    """Return the rates, nearest level first, with none below that of a farther level.

    A copy within L1 is shorter than the call of Python that starts it, and machines have slow moments; a floor must
    not say that the machine is slower than it is.
    """
    farthest_first = itertools.accumulate(reversed(rates.values()), max)
    return dict(zip(rates, reversed(list(farthest_first)), strict=True))


def _working_sets(caches: dict[str, int], threads: int) -> dict[str, int]:
    """Return one thread's bytes to cycle through, for them to live in each level and not in a smaller one."""
    sizes = {level: size // 2 for level, size in caches.items()}
    all_threads = min(max(4 * max(caches.values()), 64 << 20), 512 << 20)
    sizes["memory"] = max(all_threads // threads, 4 * caches.get("L2", 0))
    if "L3" in sizes:  # shared by the cores
        sizes["L3"] //= threads
    return sizes


def _read_rate(pool: ThreadPoolExecutor, threads: int, size: int, dtype: np.dtype) -> float:
    """Return the 10^9 bytes a second that dot products read.

    One matmul of broadcast arrays repeats the dots inside C. They have 8192 elements at most, for OpenBLAS spreads
    dots of more than 10000 over threads of its own.
    """
    length = min(_DOT, size // 2 // dtype.itemsize)
    dots = size // 2 // dtype.itemsize // length
    repeats = max(1, _TRAFFIC // size)
    pairs = [(np.ones((dots, 1, length), dtype), np.ones((dots, length, 1), dtype)) for _ in range(threads)]

    def read(thread: int) -> None:
        a, b = pairs[thread]
        np.matmul(np.broadcast_to(a, (repeats, *a.shape)), b)

    traffic = threads * repeats * dots * 2 * length * dtype.itemsize
    return traffic / _best(lambda: list(pool.map(read, range(threads)))) / 1e9


def _copy_rate(pool: ThreadPoolExecutor, threads: int, size: int, dtype: np.dtype) -> float:
    """Return the 10^9 bytes a second, read and written, of copies from one half of the working set to the other."""
    count = size // 2 // dtype.itemsize
    repeats = max(1, _TRAFFIC // size)
    pairs = [(np.ones(count, dtype), np.zeros(count, dtype)) for _ in range(threads)]

    def copy(thread: int) -> None:
        source, target = pairs[thread]
        for _ in range(repeats):
            np.copyto(target, source)

    traffic = threads * repeats * 2 * count * dtype.itemsize
    return traffic / _best(lambda: list(pool.map(copy, range(threads)))) / 1e9


def _best(work: Callable[[], object]) -> float:
    """Return the shortest of several wall times, in seconds."""
    times = []
    for _ in range(_TRIES):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)
