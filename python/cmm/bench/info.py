"""`cmm info`: what this installation is and what this machine offers it."""

from __future__ import annotations

import argparse
import os
import platform
from importlib import metadata
from pathlib import Path

import numpy

import cmm
from cmm._dispatch import CUDA_ALGORITHMS, default_threads, isas, kernels
from cmm._native import cuda, lib, text
from cmm.bench.harness import every_blas
from cmm.bench.machine import this_machine
from cmm.bench.table import grid


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register `cmm info`."""
    parser = commands.add_parser(
        "info",
        help="what this installation is and what this machine offers it",
        description="Print the version, the processor and its instruction sets, the levels and the BLAS in use.",
        epilog="example:\n  CMM_LEVEL=naive cmm info     what holds with that variable set",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print the facts."""
    print(grid(facts(), left=2))


def facts() -> list[tuple[str, str]]:
    """Return names and facts, in the order of printing."""
    machine = this_machine()
    rows = [
        ("cmm", f"{cmm.__version__}, in {Path(cmm.__file__).parent}"),
        ("built", built()),
        ("compiler", text(lib.cmm_build())),
        ("python", f"{platform.python_version()}, numpy {numpy.__version__}, scipy {_scipy()}"),
        ("cpu", machine.cpu),
        ("caches", machine.cache_text()),
        ("cores", f"{machine.cores} may be used"),
        ("threads", "{}, from {}".format(*default_threads())),
        ("isa", _isa()),
        ("algorithms", _algorithms()),
        ("types", _types()),
    ]
    found = cmm.levels()
    rows += [
        (f"level {level.name}", "usable" if level.available else f"not usable: {level.reason}") for level in found
    ]
    if chosen := os.environ.get("CMM_LEVEL"):
        rows.append(("level auto", f"{chosen}, for CMM_LEVEL says so"))
    rows += _blas()
    why = next(level.reason for level in found if level.name == "cuda")
    rows.append(("gpu", f"none that can be used: {why}" if why else "usable, by the levels of cuda"))
    return rows


def built() -> str:
    """Return which libraries this installation was built with, and where the other is, or how to have it."""
    if cuda.built():
        said = "libcmm and libcmm_cuda"
    else:
        library, what = cuda.packaged()
        said = f"libcmm; libcmm_cuda is that of {what}" if library else f"libcmm; without libcmm_cuda ({what})"
    chosen = os.environ.get("CMM_CUDA_LIBRARY")
    return f"{said}; {chosen} is used, for CMM_CUDA_LIBRARY says so" if chosen else said


def _scipy() -> str:
    """Return SciPy's version, which is no reason to import it."""
    try:
        return metadata.version("scipy")
    except metadata.PackageNotFoundError:
        return "is not installed"


def _isa() -> str:
    known, usable = isas()
    used = os.environ.get("CMM_ISA")
    absent = [isa for isa in known if isa not in usable]
    return f"{f'{used}, for CMM_ISA says so' if used else usable[0]} is used; usable: {', '.join(usable)}" + (
        f"; not here: {', '.join(absent)}" if absent else ""
    )


def _algorithms() -> str:
    """Return the algorithms of the levels that have several, in the order of the list of kernels."""
    of_native = dict.fromkeys(kernel.algorithm for kernel in kernels() if kernel.algorithm)
    return f"of native: {', '.join(of_native)}; of cuda: {', '.join(CUDA_ALGORITHMS)}"


def _types() -> str:
    """Return what the tokens of native may be, and the rows of weights with each."""
    isa = os.environ.get("CMM_ISA") or isas()[1][0]
    rows: dict[str, list[str]] = {}
    for kernel in kernels():
        if kernel.level == "native" and kernel.isa == isa and kernel.available:
            found = rows.setdefault(kernel.x_type, [])
            found += [kernel.w_type] if kernel.w_type not in found else []
    return "; ".join(f"{tokens} with weights of {', '.join(found)}" for tokens, found in rows.items())


def _blas() -> list[tuple[str, str]]:
    """Return the BLAS in use, and the others that are there."""
    try:
        current = cmm.blas.current()
    except cmm.UnusableError as error:
        return [("blas", f"none: {error}")]
    why = "named by CMM_BLAS" if os.environ.get("CMM_BLAS") else "the first found of the packages mkl and scipy"
    rows = [("blas", current.name), ("", f"in {current.file or 'libcmm itself'}, {why}")]
    others = [blas for blas in every_blas().values() if blas.name != current.name]
    return rows + [("blas too", f"{blas.name}, in {blas.file}") for blas in others]
