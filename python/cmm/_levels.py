"""Levels: which there are, which work here, and how a call's ``level`` and ``threads`` reach libcmm."""

import operator
from functools import cache
from typing import Any, NamedTuple

from cmm import _cuda, blas
from cmm._call import NULL, failure, ffi, is_set, lib, listed, text, variable
from cmm.errors import ArgumentError, CmmError, LevelError, UnusableError


class Level(NamedTuple):
    """One way to compute a layer.

    Attributes
    ----------
    name : str
        What to pass as ``level``.
    usable : bool
        Whether a call at this level works here.
    why : str
        Why it does not; empty when usable.
    """

    name: str
    usable: bool
    why: str


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
    on_cpu = [Level(text(info.name), bool(info.usable), text(info.why)) for info in infos]
    reasons = {name: _cuda.why_not(name) for name in _cuda.LEVELS}
    return on_cpu + [Level(name, not why, why) for name, why in reasons.items()]


def isas() -> tuple[list[str], list[str]]:
    """Return the instruction sets that libcmm knows and those that it can use here, each best first."""
    known, usable = [], []
    for kernel in reversed(kernels()):
        if kernel.operation == "act":
            known.append(kernel.isa)
            if kernel.usable:
                usable.append(kernel.isa)
    return known, usable


class Kernel(NamedTuple):
    """One entry of libcmm's list of kernels."""

    operation: str
    name: str
    level: str
    method: str
    isa: str
    usable: bool
    why: str


def kernels() -> list[Kernel]:
    """Return libcmm's list of kernels; within an operation, better ones come later."""
    found = []
    for index in range(lib.cmm_kernel_count()):
        info = ffi.new("cmm_kernel_info *", {"size": ffi.sizeof("cmm_kernel_info")})
        status = lib.cmm_kernel_get(index, info)
        if status:
            raise failure(status)
        operation, name, level = text(info.operation), text(info.name), text(info.level)
        method, isa, why = text(info.method), text(info.isa), text(info.why)
        found.append(Kernel(operation, name, level, method, isa, bool(info.usable), why))
    return found


def _infos(isa: Any, table: Any) -> list[Any]:
    """Return libcmm's description of each level, for an instruction set and a BLAS (both may be NULL)."""
    run = ffi.new("cmm_run *", {"size": ffi.sizeof("cmm_run"), "isa": isa, "blas": table})
    infos = []
    for index in range(lib.cmm_level_count()):
        info = ffi.new("cmm_level *", {"size": ffi.sizeof("cmm_level")})
        status = lib.cmm_level_get(index, run, info)
        if status:
            raise failure(status)
        infos.append(info)
    return infos


def choose(level: str, threads: int | None, dense: bool) -> tuple[int, Any, Any, Any]:
    """Return threads, level, isa and blas as the functions of ``cmm._libcmm`` take them.

    Parameters
    ----------
    level : str
        "auto" gives way to the environment variable CMM_LEVEL.
    threads : int or None
    dense : bool
        The call is ff_forward, whose best level uses a BLAS.

    Raises
    ------
    LevelError, ArgumentError, UnusableError
    """
    key = level, threads, type(threads)  # for True and 1.0 are 1
    try:
        run = None if dense or is_set(b"CMM_LEVEL") or is_set(b"CMM_ISA") else _runs.get(key)
    except TypeError:  # level or threads is not hashable
        run = None
    if run is None:
        run = _choose(level, threads, dense)
        if not (run[2] or run[3] or dense or is_set(b"CMM_LEVEL")) and _native_usable():
            _runs[key] = run
    return run


# What choose() answered where that hangs on its arguments alone: with no variable set, and for no BLAS.
_runs: dict[tuple[str, int | None, type], tuple[int, Any, Any, Any]] = {}


def _choose(level: str, threads: int | None, dense: bool) -> tuple[int, Any, Any, Any]:
    try:
        c_level = _LEVELS[level]
    except (KeyError, TypeError):  # TypeError: level is not hashable
        if isinstance(level, str) and level in _cuda.LEVELS:
            raise UnusableError(f"level is {level!r}, which is for arrays on a GPU, and these are not") from None
        raise LevelError(f"level is {level!r}; it should be one of {listed(_LEVELS)}") from None
    if level == "auto" and is_set(b"CMM_LEVEL") and variable(b"CMM_LEVEL") not in _cuda.LEVELS:
        level = variable(b"CMM_LEVEL") or level
        if level not in _LEVELS:
            raise LevelError(f"CMM_LEVEL is {level!r}; it should be unset or one of {listed(_LEVELS)}")
        c_level = _LEVELS[level]

    if level in _BLAS_LEVELS:
        table = blas.current().table
    elif level != "naive" and (dense or not _native_usable()):
        found = blas.available()
        table = found.table if found is not None else NULL
    else:
        table = NULL
    c_isa = _isa() if is_set(b"CMM_ISA") else NULL
    return 0 if threads is None else _threads(threads), c_level, c_isa, table


def refused(status: int, run: tuple[int, Any, Any, Any]) -> CmmError:
    """Return the exception for a status other than CMM_OK of a call that ran as chosen."""
    _, c_level, c_isa, table = run
    level = text(c_level)
    if status == lib.CMM_ERROR_LEVEL_UNUSABLE:
        why = {name: why for name, _, why in levels()}.get(level) or "this kind of layer has no kernel for it"
        return UnusableError(f"level is {level!r}, which cannot be used here: {why}")
    if status == lib.CMM_ERROR_ISA_UNUSABLE:
        usable = listed(isas()[1])
        return UnusableError(f"CMM_ISA is {text(c_isa)!r}, which cannot be used here; it should be one of {usable}")
    if status in (lib.CMM_ERROR_BLAS_MISSING, lib.CMM_ERROR_BLAS_INCOMPLETE):
        has = text(table.name) if table else "missing"
        return failure(status, f"level is {level!r} and the BLAS is {has}")
    return failure(status)


_ISAS = {name: ffi.new("char[]", name.encode()) for name in isas()[0]}


def _isa() -> Any:
    isa = variable(b"CMM_ISA")
    if isa is None:
        return NULL
    if isa not in _ISAS:
        raise ArgumentError(f"CMM_ISA is {isa!r}; it should be unset or one of {listed(_ISAS)}")
    return _ISAS[isa]


def _threads(threads: int) -> int:
    try:
        count = -1 if isinstance(threads, bool) else operator.index(threads)
    except TypeError:
        count = -1
    if not 1 <= count <= 0x7FFFFFFF:
        raise ArgumentError(f"threads is {threads!r}; it should be None (every core) or an integer of at least 1")
    return count


@cache
def _native_usable() -> bool:
    return any(text(info.name) == "native" and info.usable for info in _infos(NULL, NULL))


_LEVELS = {name: ffi.new("char[]", name.encode()) for name in ["auto", *(text(i.name) for i in _infos(NULL, NULL))]}
_BLAS_LEVELS = frozenset(name for name in _LEVELS if name.startswith("blas"))
