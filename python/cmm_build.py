"""Write the C source of the extension cmm._libcmm: ``python cmm_build.py path/to/cmm.h output.c``.

cffi learns the interface from cmm.h itself, from the lines between its two markers; there is no second copy of it.
"""

import re
import sys
from pathlib import Path

from cffi import FFI

# Functions with plain arguments that build the structs on the stack: a call from Python then costs one conversion per
# argument and no allocation. cmm_py_fff takes a layer that was described before, cmm_py_fff_once one that was not.
SHIMS = """
#define RUN const cmm_run run = {.size = sizeof run, .threads = threads, .level = level, .isa = isa, .blas = blas}

static cmm_status cmm_py_fff(const cmm_fff *layer, int32_t threads, const char *level, const char *isa,
                             const cmm_blas *blas, int64_t batch, const void *x, void *y, void *nodes, void *logits)
{
    RUN;
    return cmm_fff_forward(layer, &run, batch, x, y, (int32_t *)nodes, logits);
}

static cmm_status cmm_py_fff_once(int32_t dtype, int32_t activation, int32_t tie, int32_t depth, int64_t trees,
                                  int64_t d_in, int64_t d_out, const void *w_in, const void *bias, const void *w_out,
                                  int32_t threads, const char *level, const char *isa, const cmm_blas *blas,
                                  int64_t batch, const void *x, void *y, void *nodes, void *logits)
{
    const cmm_fff layer = {.size = sizeof layer, .dtype = dtype, .activation = activation, .tie = tie, .depth = depth,
                           .trees = trees, .d_in = d_in, .d_out = d_out, .w_in = w_in, .bias = bias, .w_out = w_out};
    return cmm_py_fff(&layer, threads, level, isa, blas, batch, x, y, nodes, logits);
}

static cmm_status cmm_py_cmm(int32_t dtype, int32_t tie, int32_t depth, int64_t trees, int64_t d_in, const void *w_in,
                             const void *bias, int32_t threads, const char *level, const char *isa,
                             const cmm_blas *blas, int64_t batch, const void *x, void *nodes, void *logits)
{
    const cmm_fff layer = {.size = sizeof layer, .dtype = dtype, .tie = tie, .depth = depth, .trees = trees,
                           .d_in = d_in, .w_in = w_in, .bias = bias};
    RUN;
    return cmm_cmm_forward(&layer, &run, batch, x, (int32_t *)nodes, logits);
}

static cmm_status cmm_py_ff(int32_t dtype, int32_t activation, int64_t neurons, int64_t d_in, int64_t d_out,
                            const void *w_in, const void *bias, const void *w_out, int32_t threads, const char *level,
                            const char *isa, const cmm_blas *blas, int64_t batch, const void *x, void *y)
{
    const cmm_ff layer = {.size = sizeof layer, .dtype = dtype, .activation = activation, .neurons = neurons,
                          .d_in = d_in, .d_out = d_out, .w_in = w_in, .bias = bias, .w_out = w_out};
    RUN;
    return cmm_ff_forward(&layer, &run, batch, x, y);
}
"""

# Two functions in Python that a cmm_blas may point to, see cmm/blas.py.
PYTHON_DECLARATIONS = """
extern "Python" void cmm_py_set_threads(int32_t);
extern "Python" int32_t cmm_py_get_threads(void);
"""


def declarations(header: str) -> str:
    """Return the part of cmm.h that cffi can read."""
    parts = re.split(r"/\* cffi: (?:begin|end) \*/", header)
    if len(parts) != 3:
        raise SystemExit("cmm.h should have exactly one pair of the markers 'cffi: begin' and 'cffi: end'")
    return parts[1].replace("CMM_API ", "")


def builder(header: Path) -> FFI:
    """Return the FFI that knows all of cmm.h and the shims."""
    ffi = FFI()
    ffi.cdef(declarations(header.read_text(encoding="utf-8")))
    ffi.cdef("".join(match + ";\n" for match in re.findall(r"^static (cmm_status [^{]*)\n\{", SHIMS, re.MULTILINE)))
    ffi.cdef(PYTHON_DECLARATIONS)
    ffi.set_source("cmm._libcmm", '#include "cmm.h"\n' + SHIMS, py_limited_api=True)
    return ffi


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    builder(Path(sys.argv[1])).emit_c_code(sys.argv[2])
