"""Where the BLAS of the levels blas1, blas2 and blas3 comes from.

libcmm links no BLAS; it is handed a table of functions with every call. That table comes, in this order, from

1. ``with cmm.blas.use(...)``,
2. the environment variable ``CMM_BLAS``, the path of a shared library,
3. the package ``mkl``, where it is installed (``pip install mkl``),
4. the SciPy that is installed,
5. the BLAS that libcmm itself was linked with, in a build that links one.

It is searched for when a call first needs it, once. While a call runs, its BLAS runs one thread in each of libcmm's.
"""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

from cmm._environment import variable
from cmm._native import failure, ffi, lib, text
from cmm.errors import ArgumentError, UnusableError

__all__ = ["Blas", "current", "load", "use"]


class Blas:
    """A BLAS that is loaded. :func:`load` and :func:`current` make these.

    Attributes
    ----------
    name : str
        What the library says that it is, with its version where it tells.
    file : str
        The shared library that it was loaded from; empty for the one that libcmm was linked with.
    """

    __slots__ = ("__weakref__", "file", "name", "table")

    def __init__(self, file: str, table: Any) -> None:
        self.file = file
        self.table = table  # cmm_blas *
        self.name = text(table.name).strip()

    def __repr__(self) -> str:
        return f"<cmm.blas.Blas {self.name!r} from {self.file!r}>"


def load(path: str | os.PathLike[str]) -> Blas:
    """Load the BLAS in a shared library; it stays loaded for the life of the process.

    Parameters
    ----------
    path : str or path-like
        The library, or a name that the dynamic linker finds. It should have 32-bit integers (LP64).

    Returns
    -------
    Blas

    Raises
    ------
    UnusableError
        The file cannot be loaded, or there is no BLAS in it.
    ArgumentError
        path is not a path.
    """
    return _load("path", path)


def _load(argument: str, path: str | os.PathLike[str]) -> Blas:
    try:
        file = os.fsencode(path)
    except TypeError:
        file = b""
    if not file or b"\0" in file:
        raise ArgumentError(f"{argument} is {path!r}; it should be the path of a BLAS library")
    table = ffi.new("cmm_blas *")
    status = lib.cmm_blas_load(file, table)
    if status:
        raise failure(status, f"{argument} is {os.fsdecode(file)!r}")
    return Blas(os.fsdecode(file), table)


_in_use: ContextVar[Blas | None] = ContextVar("cmm.blas", default=None)


@contextmanager
def use(blas: Blas) -> Iterator[Blas]:
    """Use a BLAS for the calls of a with block, in this thread (or asyncio task) alone.

    Parameters
    ----------
    blas : Blas

    Raises
    ------
    ArgumentError
        blas is not a :class:`Blas`.
    """
    if not isinstance(blas, Blas):
        raise ArgumentError(f"blas is {blas!r}; it should come from cmm.blas.load() or cmm.blas.current()")
    token = _in_use.set(blas)
    try:
        yield blas
    finally:
        _in_use.reset(token)


def current() -> Blas:
    """Return the BLAS that a call in this place would use.

    Raises
    ------
    UnusableError
        ``CMM_BLAS`` names a file that cannot be loaded, or there is no BLAS anywhere.
    """
    blas = _in_use.get()
    if blas is not None:
        return blas
    path = variable(b"CMM_BLAS")
    blas = _found.get(path)
    return blas if blas is not None else _find(path)


def available() -> Blas | None:
    """Return :func:`current`, or None when there is no BLAS anywhere. A wrong CMM_BLAS is still an error."""
    if _nowhere and _in_use.get() is None and variable(b"CMM_BLAS") is None:
        return None
    try:
        return current()
    except UnusableError:
        if variable(b"CMM_BLAS") is not None:
            raise
        return None


_found: dict[str | None, Blas] = {}  # by the value of CMM_BLAS
_nowhere: list[str] = []  # why the search found nothing, where it found nothing
_lock = threading.Lock()


def _forget() -> None:
    """In the child of a fork: whoever searches is not here to give the lock back."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _find(path: str | None) -> Blas:
    with _lock:
        if path in _found:
            return _found[path]
        if path is not None:
            _found[path] = _load("CMM_BLAS", path)
            return _found[path]
        if not _nowhere:
            reasons = []
            for search in (_from_mkl, _from_scipy, _from_libcmm):
                try:
                    _found[None] = search()
                    return _found[None]
                except (ImportError, UnusableError) as error:
                    reasons.append(str(error))
            _nowhere.extend(reasons)
        raise UnusableError(
            f"there is no BLAS ({'; '.join(_nowhere)}); install scipy or mkl, or set CMM_BLAS to the path of a BLAS"
        )


def installed() -> list[Blas]:
    """Return the BLAS of each installed package that has one, MKL first. For `cmm bench`; not in __all__."""
    found = []
    for search in (_from_mkl, _from_scipy):
        with suppress(ImportError, UnusableError):
            found.append(search())
    return found


def _from_mkl() -> Blas:
    from importlib import metadata

    try:
        files = metadata.files("mkl") or []
    except metadata.PackageNotFoundError:
        raise UnusableError("the package mkl is not installed") from None
    for file in files:
        if re.fullmatch(r"(lib)?mkl_rt(\.\d+)*\.(so|dylib|dll)(\.\d+)*", file.name):
            return _load("the package mkl's library", os.path.realpath(str(file.locate())))
    raise UnusableError("the package mkl is installed without its library libmkl_rt")


def _from_scipy() -> Blas:
    from scipy.linalg import cython_blas

    # A symbol is also looked for in the libraries that a module was linked with, so this finds SciPy's own BLAS, and
    # the functions that set its number of threads.
    try:
        return _load("SciPy's BLAS", cython_blas.__file__)
    except UnusableError:
        return _from_capsules(cython_blas)


def _from_libcmm() -> Blas:
    table = ffi.new("cmm_blas *")
    status = lib.cmm_blas_linked(table)
    if status:
        raise UnusableError("libcmm was built without one")
    return Blas("", table)


# ---- where SciPy's library does not show its symbols ---------------------------------------------------------------

_FUNCTIONS = ("sdot", "ddot", "saxpy", "daxpy", "sgemv", "dgemv", "sgemm", "dgemm")


def _from_capsules(module: Any) -> Blas:
    """Return the functions that scipy.linalg.cython_blas hands to Cython code."""
    import ctypes

    name_of = ctypes.pythonapi.PyCapsule_GetName
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]

    table = ffi.new("cmm_blas *", {"size": ffi.sizeof("cmm_blas"), "name": b"the BLAS of SciPy"})
    types = {name: field.type for name, field in ffi.typeof("cmm_blas").fields}
    for name in _FUNCTIONS:
        capsule = module.__pyx_capi__[name]
        setattr(table, name, ffi.cast(types[name], pointer_of(capsule, name_of(capsule))))
    for name, pointer in _thread_functions(_library_of_scipy(), ctypes.cast, ctypes.c_void_p).items():
        setattr(table, name, ffi.cast(types[name], pointer))
    status = lib.cmm_blas_check(table)
    if status:
        raise failure(status, "SciPy's BLAS")
    return Blas(module.__file__, table)


# Of C, not threadpoolctl's of Python: in the child of a fork libcmm calls them where no Python code can run yet.
_THREAD_FUNCTIONS = [
    (f"{prefix}openblas_set_num_threads{suffix}", f"{prefix}openblas_get_num_threads{suffix}")
    for prefix in ("", "scipy_")
    for suffix in ("", "64_", "_64")
] + [
    ("MKL_Set_Num_Threads", "MKL_Get_Max_Threads"),
    ("bli_thread_set_num_threads", "bli_thread_get_num_threads"),
    ("flexiblas_set_num_threads", "flexiblas_get_num_threads"),
]


def _thread_functions(library: Any, cast: Any, pointer: Any) -> dict[str, int]:
    """Return the addresses of a library's functions that set and get its number of threads; {} where it has none."""
    for set_name, get_name in _THREAD_FUNCTIONS:
        setter, getter = getattr(library, set_name, None), getattr(library, get_name, None)
        if setter is not None and getter is not None:
            return {"set_threads": cast(setter, pointer).value, "get_threads": cast(getter, pointer).value}
    return {}


def _library_of_scipy() -> Any:
    """Return SciPy's BLAS as ctypes opens it, found by threadpoolctl; None without that."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    libraries = ThreadpoolController().select(user_api="blas").lib_controllers
    # NumPy's wheel brings a BLAS too; one that SciPy and NumPy share lies in neither's folder.
    of_scipy = [one for one in libraries if {"scipy", "scipy.libs"} & set(one.filepath.split(os.sep))]
    found = next(iter(of_scipy or libraries), None)
    return None if found is None else found.dynlib
