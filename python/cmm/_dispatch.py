"""Levels: which there are, which work here; how a call's ``level``, ``algorithm`` and ``threads`` reach libcmm."""

import operator
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, NamedTuple, cast

from cmm import blas
from cmm._cupy import import_cupy
from cmm._environment import raw, variable
from cmm._native import NULL, failure, ffi, lib, text
from cmm._native import cuda as native_cuda
from cmm.errors import ArgumentError, CmmError, LevelError, UnusableError, listed
from cmm.typing import Algorithm, LevelName

CUDA_LEVELS: tuple[LevelName, ...] = ("cuda-naive", "cuda-bmm", "cuda")
# of level cuda
CUDA_ALGORITHMS: tuple[Algorithm, ...] = (
    "generic",
    "per_token",
    "small_batch",
    "grouped",
    "grouped_gemm",
    "dense_routed",
)

# The environment variables that the way to run a call hangs on.
VARIABLES = b"CMM_LEVEL", b"CMM_ISA", b"CMM_NUM_THREADS", b"OMP_NUM_THREADS"
_LEVEL, _ISA, _NUM_THREADS, _OMP_NUM_THREADS = VARIABLES

# threads, level, isa, algorithm and blas, as the functions of cmm._libcmm take them.
Run = tuple[int, Any, Any, Any, Any]


class Level(NamedTuple):
    """One way to compute a layer.

    Attributes
    ----------
    name : str
        What to pass as ``level``.
    available : bool
        Whether a call at this level works here.
    reason : str
        Why it does not; empty when it does.
    usable, why
        The same, by their names in 0.1.0.
    """

    name: LevelName
    available: bool
    reason: str

    @property
    def usable(self) -> bool:
        """The name of ``available`` in 0.1.0."""
        return self.available

    @property
    def why(self) -> str:
        """The name of ``reason`` in 0.1.0."""
        return self.reason


def levels() -> list[Level]:
    """Return every level that there is, the plainest first; the cuda levels are for arrays on a GPU.

    ``CMM_ISA`` and the BLAS in use are taken into account: the answer is about the call that you would make.

    Returns
    -------
    list of Level

    Raises
    ------
    UnusableError
        ``CMM_BLAS`` names a file that cannot be loaded.
    ArgumentError
        ``CMM_ISA`` names no instruction set.
    """
    found = blas.available()
    infos = _infos(_isa(), found.table if found is not None else NULL)
    on_cpu = [Level(cast(LevelName, text(info.name)), bool(info.available), text(info.reason)) for info in infos]
    reasons = {name: why_not(name) for name in CUDA_LEVELS}
    return on_cpu + [Level(name, not why, why) for name, why in reasons.items()]


def isas() -> tuple[list[str], list[str]]:
    """Return the instruction sets that libcmm knows and those that it can use here, each best first."""
    known, usable = [], []
    for kernel in reversed(kernels()):
        if kernel.operation == "act":
            known.append(kernel.isa)
            if kernel.available:
                usable.append(kernel.isa)
    return known, usable


class Kernel(NamedTuple):
    """One entry of libcmm's list of kernels, for one type of tokens and one of rows ("" where it is for all)."""

    operation: str
    name: str
    level: str
    algorithm: str
    isa: str
    available: bool
    reason: str
    x_type: str
    w_type: str


def kernels() -> list[Kernel]:
    """Return libcmm's list of kernels; within an operation, better ones come later."""
    found = []
    for index in range(lib.cmm_kernel_count()):
        info = ffi.new("cmm_kernel_info *", {"size": ffi.sizeof("cmm_kernel_info")})
        status = lib.cmm_kernel_get(index, info)
        if status:
            raise failure(status)
        operation, name, level = text(info.operation), text(info.name), text(info.level)
        algorithm, isa, reason = text(info.algorithm), text(info.isa), text(info.reason)
        types = text(info.x_type), text(info.w_type)
        found.append(Kernel(operation, name, level, algorithm, isa, bool(info.available), reason, *types))
    return found


def _infos(isa: Any, table: Any) -> list[Any]:
    """Return libcmm's description of each level, for an instruction set and a BLAS (both may be NULL)."""
    run = ffi.new("cmm_run *", {"size": ffi.sizeof("cmm_run"), "isa": isa, "blas": table})
    infos = []
    for index in range(lib.cmm_level_count()):
        info = ffi.new("cmm_level_info *", {"size": ffi.sizeof("cmm_level_info")})
        status = lib.cmm_level_get(index, run, info)
        if status:
            raise failure(status)
        infos.append(info)
    return infos


# ---- on a CPU ------------------------------------------------------------------------------------------------------


def choose(level: str, algorithm: str | None, threads: int | None, dense: bool) -> Run:
    """Return threads, level, isa, algorithm and blas as the functions of ``cmm._libcmm`` take them.

    Parameters
    ----------
    level : str
        "auto" gives way to the environment variable CMM_LEVEL.
    algorithm : str or None
        One of level native, which "auto" then means. None leaves the choice to libcmm.
    threads : int or None
        None gives way to CMM_NUM_THREADS and OMP_NUM_THREADS.
    dense : bool
        The call is ff_forward, whose best level uses a BLAS.

    Raises
    ------
    LevelError, ArgumentError, UnusableError
    """
    if threads is not None and type(threads) is not int:
        threads = _threads(threads)  # True and 1.0 are 1, in a dictionary
    # All that a plan hangs on.
    key = (
        level,
        algorithm,
        threads,
        raw(_LEVEL),
        raw(_ISA),
        raw(_NUM_THREADS),
        raw(_OMP_NUM_THREADS),
    )
    plans = _dense_plans if dense else _fff_plans
    try:
        plan = plans.get(key)
    except TypeError:  # level or algorithm is not hashable
        plan = None
    if plan is None:
        plan = _plan(level, algorithm, threads, dense)
        if len(plans) >= _MOST_PLANS:
            plans.clear()
        plans[key] = plan
    run, find_blas = plan
    return run if find_blas is None else (*run[:4], find_blas())


def plan(threads: int | None) -> bytes | None:
    """Return the cmm_run of a call of a fast feedforward layer at level "auto", None where it may want a BLAS.

    Raises
    ------
    LevelError, ArgumentError, UnusableError
    """
    (count, c_level, c_isa, c_algorithm, _), find_blas = _plan("auto", None, threads, False)
    if find_blas is not None:
        return None
    raw_run = {"size": ffi.sizeof("cmm_run"), "threads": count, "level": c_level, "isa": c_isa}
    return bytes(ffi.buffer(ffi.new("cmm_run *", raw_run | {"algorithm": c_algorithm})))


# What _plan() answered. A program that changes its environment all the time does not fill memory with it.
_fff_plans: dict[tuple[Any, ...], tuple[Run, Callable[[], Any] | None]] = {}
_dense_plans: dict[tuple[Any, ...], tuple[Run, Callable[[], Any] | None]] = {}
_MOST_PLANS = 256


def _plan(
    level: str, algorithm: str | None, threads: int | None, dense: bool
) -> tuple[Run, Callable[[], Any] | None]:
    """Return how to run a call, and what finds the BLAS for it, None where it needs none."""
    try:
        c_level = _LEVELS[level]
    except (KeyError, TypeError):  # TypeError: level is not hashable
        if isinstance(level, str) and level in CUDA_LEVELS:
            raise UnusableError(f"level is {level!r}, which is for arrays on a GPU, and these are not") from None
        raise LevelError(f"level is {level!r}; it should be one of {listed(_LEVELS)}") from None
    named = variable(_LEVEL) if level == "auto" else None
    if named is not None and named not in CUDA_LEVELS:
        if named not in _LEVELS:
            raise LevelError(f"CMM_LEVEL is {named!r}; it should be unset or one of {listed(_LEVELS)}")
        level, c_level = named, _LEVELS[named]
    c_algorithm: Any = NULL
    if algorithm is not None:
        c_algorithm, c_level = _algorithm(algorithm, level), _LEVELS["native"]

    find_blas: Callable[[], Any] | None = None
    if level in _BLAS_LEVELS:
        find_blas = _blas_in_use
    elif level != "naive" and algorithm is None and (dense or not _native_usable()):
        find_blas = _blas_if_any
    count = _threads_of_environment()[0] if threads is None else _threads(threads)
    return (count, c_level, _isa(), c_algorithm, NULL), find_blas


def _algorithm(algorithm: str, level: str) -> Any:
    """Return an algorithm of level native for libcmm, where that is the level of a call."""
    if not isinstance(algorithm, str) or algorithm not in _ALGORITHMS:
        if isinstance(algorithm, str) and algorithm in CUDA_ALGORITHMS:
            raise ArgumentError(f"algorithm is {algorithm!r}, which is for arrays on a GPU, and these are not")
        raise _no_algorithm(algorithm, _ALGORITHMS)
    if level not in ("auto", "native"):
        raise _algorithm_of(algorithm, "native", level)
    return _ALGORITHMS[algorithm]


def _no_algorithm(algorithm: object, names: Iterable[str]) -> ArgumentError:
    return ArgumentError(f"algorithm is {algorithm!r}; it should be None or one of {listed(names)}")


def _algorithm_of(algorithm: str, its: str, level: str) -> ArgumentError:
    was = f"algorithm is {algorithm!r}, which is of level {its!r}"
    return ArgumentError(f"{was}; at level {level!r} it should be None")


def _blas_in_use() -> Any:
    return blas.current().table


def _blas_if_any() -> Any:
    found = blas.available()
    return NULL if found is None else found.table


def refused(status: int, run: Run) -> CmmError:
    """Return the exception for a status other than CMM_OK of a call that ran as chosen."""
    _, c_level, c_isa, c_algorithm, table = run
    level = text(c_level)
    if status == lib.CMM_ERROR_LEVEL_UNUSABLE:
        why = (
            next((one.reason for one in levels() if one.name == level), "")
            or "this kind of layer has no kernel for it"
        )
        return UnusableError(f"level is {level!r}, which cannot be used here: {why}")
    if status == lib.CMM_ERROR_ISA_UNUSABLE:
        usable = listed(isas()[1])
        return UnusableError(f"CMM_ISA is {text(c_isa)!r}, which cannot be used here; it should be one of {usable}")
    if status in (lib.CMM_ERROR_BLAS_MISSING, lib.CMM_ERROR_BLAS_INCOMPLETE):
        has = text(table.name) if table else "missing"
        return failure(status, f"level is {level!r} and the BLAS is {has}")
    if status == lib.CMM_ERROR_METHOD:
        return ArgumentError(f"algorithm is {text(c_algorithm)!r}, which cannot do this layer; it should be None")
    if status == lib.CMM_ERROR_LEVEL_WEIGHT_DTYPE:
        return UnusableError(f"level is {level!r}, which takes no narrow weights; it should be auto, naive or native")
    return failure(status)


_ISAS = {name: ffi.new("char[]", name.encode()) for name in isas()[0]}


def _isa() -> Any:
    isa = variable(_ISA)
    if isa is None:
        return NULL
    if isa not in _ISAS:
        raise ArgumentError(f"CMM_ISA is {isa!r}; it should be unset or one of {listed(_ISAS)}")
    return _ISAS[isa]


@cache
def _native_usable() -> bool:
    return any(text(info.name) == "native" and info.available for info in _infos(NULL, NULL))


_LEVELS = {name: ffi.new("char[]", name.encode()) for name in ["auto", *(text(i.name) for i in _infos(NULL, NULL))]}
_ALGORITHMS = {
    kernel.algorithm: ffi.new("char[]", kernel.algorithm.encode()) for kernel in kernels() if kernel.algorithm
}
_BLAS_LEVELS = frozenset(name for name in _LEVELS if name.startswith("blas"))


# ---- threads -------------------------------------------------------------------------------------------------------

_MOST_THREADS = 0x7FFFFFFF


def default_threads() -> tuple[int, str]:
    """Return the threads of a call without ``threads``, and what decided their number, in words.

    Raises
    ------
    ArgumentError
        ``CMM_NUM_THREADS`` is no number of threads.
    """
    count, source = _threads_of_environment()
    return (count, source) if count else _threads_of_libcmm()


def thread_count(threads: int | None) -> int:
    """Return the threads that a call uses at most."""
    return default_threads()[0] if threads is None else _threads(threads)


def _threads_of_environment() -> tuple[int, str]:
    """Return the threads that variables ask for, and which one did; 0 where none does."""
    chosen = variable(_NUM_THREADS)
    if chosen is not None:
        count = _number(chosen)
        if count is None:
            raise ArgumentError(f"CMM_NUM_THREADS is {chosen!r}; it should be unset or an integer of at least 1")
        return count, "CMM_NUM_THREADS"
    # Of OpenMP's list, one number for each level of nesting, the first. OpenMP's own runtimes ignore what is wrong.
    count = _number((variable(_OMP_NUM_THREADS) or "").partition(",")[0])
    return (0, "") if count is None else (count, "OMP_NUM_THREADS")


def _threads_of_libcmm() -> tuple[int, str]:
    return lib.cmm_threads_default(), f"the {text(lib.cmm_threads_source())}"


def _number(written: str) -> int | None:
    written = written.strip()
    valid = written.isascii() and written.isdigit() and len(written) <= 10 and 1 <= int(written) <= _MOST_THREADS
    return int(written) if valid else None


def _threads(threads: int) -> int:
    try:
        count = -1 if isinstance(threads, bool) else operator.index(threads)
    except TypeError:
        count = -1
    if not 1 <= count <= _MOST_THREADS:
        raise ArgumentError(f"threads is {threads!r}; it should be None (the default) or an integer of at least 1")
    return count


# ---- on a GPU ------------------------------------------------------------------------------------------------------


def why_not(level: str) -> str:
    """Return why a level for arrays on a GPU cannot be used here, "" where it can."""
    if level != "cuda-bmm":
        return native_cuda.why_not()
    try:
        import_cupy("the level")
    except UnusableError as error:
        return str(error)
    return ""


def choose_cuda(level: str, algorithm: str | None) -> str:
    """Return the level for arrays on a GPU, once it is known to work and to have the algorithm.

    Raises
    ------
    LevelError, ArgumentError, UnusableError
    """
    if level == "auto":
        level = variable(_LEVEL) or "auto"
        if level not in CUDA_LEVELS:  # it names a level for arrays on a CPU
            level = "cuda"
    if level not in CUDA_LEVELS:
        choices = listed(("auto", *CUDA_LEVELS))
        raise LevelError(f"level is {level!r}; for arrays on a GPU it should be one of {choices}")
    if algorithm is not None:
        if not isinstance(algorithm, str) or algorithm not in CUDA_ALGORITHMS:
            raise _no_algorithm(algorithm, CUDA_ALGORITHMS)
        if level != "cuda":
            raise _algorithm_of(algorithm, "cuda", level)
    why = why_not(level)
    if why:
        raise UnusableError(f"level is {level!r}, which cannot be used here: {why}")
    return level
