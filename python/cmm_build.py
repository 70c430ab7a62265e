"""Write the C source of the extension cmm._libcmm: ``python cmm_build.py include output.c``.

cffi learns the interface from cmm.h and cmm_blas.h in the folder `include`, from the lines between their two markers;
there is no second copy of it.
"""

import re
import sys
from pathlib import Path

from cffi import FFI

# Functions with plain arguments that build the structs on the stack: a call from Python then costs one conversion per
# argument and no allocation. cmm_py_fff takes a layer that was described before, cmm_py_fff_once one that was not;
# without a w_out that is cmm alone.
SHIMS = """
#define RUN                                                                                                   \\
    const cmm_run run = {.size = sizeof run, .threads = threads, .level = level, .isa = isa,                  \\
                         .algorithm = algorithm, .blas = blas}

static cmm_status cmm_py_fff(const cmm_fff *layer, int32_t threads, const char *level, const char *isa,
                             const char *algorithm, const cmm_blas *blas, int64_t batch, const void *x, void *y,
                             void *nodes, void *logits)
{
    RUN;
    return cmm_fff_forward(layer, &run, batch, x, y, (int32_t *)nodes, logits);
}

/* The same, with a path to take, by its nodes or its leaves, and what only some layers count. */
static cmm_status cmm_py_fff_path(const cmm_fff *layer, int32_t threads, const char *level, const char *isa,
                                  const char *algorithm, const cmm_blas *blas, int64_t batch, const void *x, void *y,
                                  void *nodes, void *logits, const void *path_nodes, const void *path_leaves,
                                  int64_t *refused, int64_t *recomputed)
{
    const cmm_run run = {.size = sizeof run, .threads = threads, .level = level, .isa = isa, .algorithm = algorithm,
                         .blas = blas, .path_nodes = (const int32_t *)path_nodes,
                         .path_leaves = (const int32_t *)path_leaves, .refused = refused, .recomputed = recomputed};
    return y ? cmm_fff_forward(layer, &run, batch, x, y, (int32_t *)nodes, logits)
             : cmm_cmm_forward(layer, &run, batch, x, (int32_t *)nodes, logits);
}

static cmm_status cmm_py_fff_once(int32_t dtype, int32_t activation, int32_t tie, int32_t depth, int64_t trees,
                                  int64_t d_in, int64_t d_out, const void *w_in, const void *bias, const void *w_out,
                                  int32_t threads, const char *level, const char *isa, const char *algorithm,
                                  const cmm_blas *blas, int64_t batch, const void *x, void *y, void *nodes,
                                  void *logits)
{
    const cmm_fff layer = {.size = sizeof layer, .dtype = dtype, .activation = activation, .tie = tie, .depth = depth,
                           .trees = trees, .d_in = d_in, .d_out = d_out, .w_in = w_in, .bias = bias, .w_out = w_out};
    RUN;
    return w_out ? cmm_fff_forward(&layer, &run, batch, x, y, (int32_t *)nodes, logits)
                 : cmm_cmm_forward(&layer, &run, batch, x, (int32_t *)nodes, logits);
}

static cmm_status cmm_py_fff_backward(int32_t dtype, int32_t activation, int32_t tie, int32_t depth, int64_t trees,
                                      int64_t d_in, int64_t d_out, const void *w_in, const void *w_out,
                                      int32_t threads, const char *isa, int64_t batch, const void *x,
                                      const void *nodes, const void *logits, const void *dy, int32_t accumulate,
                                      void *dx, void *dw_in, void *dbias, void *dw_out, int64_t *refused)
{
    const cmm_fff layer = {.size = sizeof layer, .dtype = dtype, .activation = activation, .tie = tie, .depth = depth,
                           .trees = trees, .d_in = d_in, .d_out = d_out, .w_in = w_in, .w_out = w_out};
    const cmm_run run = {.size = sizeof run, .threads = threads, .isa = isa, .refused = refused};
    const cmm_gradients gradients = {.size = sizeof gradients, .accumulate = accumulate, .dx = dx, .dw_in = dw_in,
                                     .dbias = dbias, .dw_out = dw_out};
    return cmm_fff_backward(&layer, &run, batch, x, (const int32_t *)nodes, logits, dy, &gradients);
}

static cmm_status cmm_py_ff(int32_t dtype, int32_t activation, int64_t neurons, int64_t d_in, int64_t d_out,
                            const void *w_in, const void *bias, const void *w_out, int32_t threads, const char *level,
                            const char *isa, const char *algorithm, const cmm_blas *blas, int64_t batch,
                            const void *x, void *y)
{
    const cmm_ff layer = {.size = sizeof layer, .dtype = dtype, .activation = activation, .neurons = neurons,
                          .d_in = d_in, .d_out = d_out, .w_in = w_in, .bias = bias, .w_out = w_out};
    RUN;
    return cmm_ff_forward(&layer, &run, batch, x, y);
}
"""

# Which libcmm the loader has found: LD_LIBRARY_PATH goes before the folder beside the extension.
VERSION_SHIM = """
static const char *cmm_py_loaded_from(void)
{
    Dl_info about;
    return dladdr((void *)cmm_version, &about) && about.dli_fname ? about.dli_fname : "a file unknown";
}
"""

# libcmm_cuda is opened when it is first asked for, so that the extension loads without it. Device pointers and
# streams are integers.
CUDA_SHIMS = """
#include <stdio.h>
#include "cmm_cuda.h"

static struct {
    __typeof__(cmm_cuda_usable) *usable;
    __typeof__(cmm_cuda_fff_workspace) *fff_workspace, *cmm_workspace;
    __typeof__(cmm_cuda_ff_workspace) *ff_workspace;
    __typeof__(cmm_cuda_fff_forward) *fff;
    __typeof__(cmm_cuda_cmm_forward) *cmm;
    __typeof__(cmm_cuda_ff_forward) *ff;
    __typeof__(cmm_cuda_fff_backward) *backward;
    __typeof__(cmm_cuda_fff_backward_workspace) *backward_workspace;
    __typeof__(cmm_cuda_fff_hidden) *hidden;
} cuda;

static cmm_status cmm_py_cuda_load(const char *file, char *why, int32_t size)
{
    void *const library = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    int missing = !library;
#define FIND(field, name) missing = missing || !(*(void **)&cuda.field = dlsym(library, #name))
    FIND(usable, cmm_cuda_usable);
    FIND(fff_workspace, cmm_cuda_fff_workspace);
    FIND(cmm_workspace, cmm_cuda_cmm_workspace);
    FIND(ff_workspace, cmm_cuda_ff_workspace);
    FIND(fff, cmm_cuda_fff_forward);
    FIND(cmm, cmm_cuda_cmm_forward);
    FIND(ff, cmm_cuda_ff_forward);
    FIND(backward, cmm_cuda_fff_backward);
    FIND(backward_workspace, cmm_cuda_fff_backward_workspace);
    FIND(hidden, cmm_cuda_fff_hidden);
    const char *const error = missing ? dlerror() : NULL;
    (void)snprintf(why, (size_t)size, "%s", error ? error : "");
    return missing ? CMM_ERROR_CUDA_ABSENT : cuda.usable();
}

#define CUDA_RUN                                                                                              \\
    cmm_cuda_run run = {.size = sizeof run, .level = level, .algorithm = algorithm,                     \\
                        .stream = (void *)stream, .workspace = (void *)workspace,                             \\
                        .workspace_bytes = workspace_bytes}

/* With needed, only say how much workspace a call needs; without a w_out, cmm alone. */
static cmm_status cmm_py_cuda_fff(int32_t dtype, int32_t activation, int32_t tie, int32_t depth, int64_t trees,
                                  int64_t d_in, int64_t d_out, uintptr_t w_in, uintptr_t bias, uintptr_t w_out,
                                  const char *level, const char *algorithm, uintptr_t stream, uintptr_t workspace,
                                  int64_t workspace_bytes, int64_t batch, uintptr_t x, uintptr_t y, uintptr_t nodes,
                                  uintptr_t logits, uintptr_t path_nodes, uintptr_t path_leaves, int32_t wants_y,
                                  int64_t *needed)
{
    const cmm_fff layer = {.size = sizeof layer, .dtype = dtype, .activation = activation, .tie = tie, .depth = depth,
                           .trees = trees, .d_in = d_in, .d_out = d_out, .w_in = (void *)w_in, .bias = (void *)bias,
                           .w_out = (void *)w_out};
    CUDA_RUN;
    run.path_nodes = (const int32_t *)path_nodes;
    run.path_leaves = (const int32_t *)path_leaves;
    if (needed)
        return (wants_y ? cuda.fff_workspace : cuda.cmm_workspace)(&layer, &run, batch, needed);
    return wants_y ? cuda.fff(&layer, &run, batch, (void *)x, (void *)y, (void *)nodes, (void *)logits)
                   : cuda.cmm(&layer, &run, batch, (void *)x, (void *)nodes, (void *)logits);
}

/* The backward pass; with needed, only how much workspace it needs. Gradients are 0 where they are not wanted. */
static cmm_status cmm_py_cuda_fff_backward(int32_t dtype, int32_t activation, int32_t tie, int32_t depth,
                                           int64_t trees, int64_t d_in, int64_t d_out, uintptr_t w_in,
                                           uintptr_t w_out, uintptr_t stream, uintptr_t workspace,
                                           int64_t workspace_bytes, int64_t batch, uintptr_t x, uintptr_t nodes,
                                           uintptr_t logits, uintptr_t dy, int32_t accumulate, uintptr_t dx,
                                           uintptr_t dw_in, uintptr_t dbias, uintptr_t dw_out, int64_t *needed)
{
    const char *const level = NULL, *const algorithm = NULL;
    const cmm_fff layer = {.size = sizeof layer, .dtype = dtype, .activation = activation, .tie = tie,
                           .depth = depth, .trees = trees, .d_in = d_in, .d_out = d_out, .w_in = (void *)w_in,
                           .w_out = (void *)w_out};
    const cmm_gradients gradients = {.size = sizeof gradients, .accumulate = accumulate, .dx = (void *)dx,
                                     .dw_in = (void *)dw_in, .dbias = (void *)dbias, .dw_out = (void *)dw_out};
    CUDA_RUN;
    if (needed)
        return cuda.backward_workspace(&layer, &run, batch, &gradients, needed);
    return cuda.backward(&layer, &run, batch, (void *)x, (void *)nodes, (void *)logits, (void *)dy, &gradients);
}

/* Between two products: no weights, no workspace. */
static cmm_status cmm_py_cuda_fff_hidden(int32_t dtype, int32_t activation, int32_t tie, int32_t depth, int64_t trees,
                                         uintptr_t stream, int64_t batch, uintptr_t logits, uintptr_t path,
                                         uintptr_t dy, uintptr_t y, uintptr_t dx, uintptr_t visited,
                                         uintptr_t nodes)
{
    const cmm_fff layer = {.size = sizeof layer, .dtype = dtype, .activation = activation, .tie = tie,
                           .depth = depth, .trees = trees, .d_in = 1, .d_out = 1};
    const cmm_cuda_run run = {.size = sizeof run, .stream = (void *)stream};
    return cuda.hidden(&layer, &run, batch, (void *)logits, (void *)path, (void *)dy, (void *)y, (void *)dx,
                       (void *)visited, (void *)nodes);
}

static cmm_status cmm_py_cuda_ff(int32_t dtype, int32_t activation, int64_t neurons, int64_t d_in, int64_t d_out,
                                 uintptr_t w_in, uintptr_t bias, uintptr_t w_out, const char *level,
                                 const char *algorithm, uintptr_t stream, uintptr_t workspace,
                                 int64_t workspace_bytes, int64_t batch, uintptr_t x, uintptr_t y, int64_t *needed)
{
    const cmm_ff layer = {.size = sizeof layer, .dtype = dtype, .activation = activation, .neurons = neurons,
                          .d_in = d_in, .d_out = d_out, .w_in = (void *)w_in, .bias = (void *)bias,
                          .w_out = (void *)w_out};
    CUDA_RUN;
    return needed ? cuda.ff_workspace(&layer, &run, batch, needed)
                  : cuda.ff(&layer, &run, batch, (void *)x, (void *)y);
}
"""


def declarations(include: Path) -> str:
    """Return the parts of cmm.h and cmm_blas.h that cffi can read."""
    found = []
    for name in ("cmm.h", "cmm_blas.h"):
        parts = re.split(r"/\* cffi: (?:begin|end) \*/", (include / name).read_text(encoding="utf-8"))
        if len(parts) != 3:
            raise SystemExit(f"{name} should have exactly one pair of the markers 'cffi: begin' and 'cffi: end'")
        found.append(parts[1].replace("CMM_API ", ""))
    return "".join(found)


def builder(include: Path) -> FFI:
    """Return the FFI that knows all of cmm.h, cmm_blas.h and the shims."""
    ffi = FFI()
    shims = SHIMS + VERSION_SHIM + CUDA_SHIMS
    declared = declarations(include)
    ffi.cdef(declared)
    ffi.cdef("".join(f"#define CMM_VERSION_{part} ...\n" for part in ("MAJOR", "MINOR", "PATCH")))
    ffi.cdef(
        "".join(match + ";\n" for match in re.findall(r"^static ([\w *]*cmm_py_[^{]*)\n\{", shims, re.MULTILINE))
    )
    # Python resolves every symbol when it loads an extension. Weak ones may be missing, so that a libcmm that lacks a
    # function is loaded, and refused for its version (cmm._native) and not by the loader for that function.
    functions = sorted(
        {*re.findall(r"\b(cmm_\w+)\(", re.sub(r"/\*.*?\*/", "", declared, flags=re.DOTALL))} - {"cmm_version"}
    )
    weak = "".join(f"#pragma weak {name}\n" for name in functions)
    ffi.set_source("cmm._libcmm", f'#include <dlfcn.h>\n#include "cmm.h"\n{weak}{shims}', py_limited_api=True)
    return ffi


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    builder(Path(sys.argv[1])).emit_c_code(sys.argv[2])
