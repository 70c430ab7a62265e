"""The C interface of libcmm_cuda, as a program would use it, past the Python package's own binding."""

from typing import Any

from building import ROOT
from cffi import FFI
from cmm._native import cuda


def interface() -> tuple[FFI, Any]:
    """Return the C interface itself, as a program would use it: the declarations of both headers, and the library."""
    include = ROOT / "libcmm/include"
    c = FFI()
    for name in ("cmm.h", "cmm_blas.h"):
        c.cdef((include / name).read_text().split("/* cffi: ")[1].partition("*/")[2].replace("CMM_API ", ""))
    c.cdef(
        (include / "cmm_cuda.h")
        .read_text()
        .split('extern "C" {\n#endif')[1]
        .split("#ifdef")[0]
        .replace("CMM_API ", "")
    )
    return c, c.dlopen(str(cuda.library()[0]))
