"""Break the code in many small ways, one at a time, and see whether the tests notice: run by hand.

    python tests/support/mutations.py                 # all of them: half an hour on two cores
    python tests/support/mutations.py checks bert     # those whose file or text has one of these words
    python tests/support/mutations.py --new           # those without a result yet, or known to survive
    python tests/support/mutations.py --list

A break of C is put into a copy of the tree, which ninja builds anew as far as it must; then the quick C tests run, up
to the first that fails. A break of Python is put into a copy of the installed package, and a fast part of the Python
tests runs; install the package of this tree first. A test that hangs or crashes has noticed, too.

What survives is a hole in the tests: close it, or say in the table why the two programs are the same. The results are
written to docs/internals/mutations.md; those of breaks that were not run this time stay as they are.
tests/core/test_mutations.py holds that every line of the table still fits the code.
"""

import argparse
import os
import platform
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/internals/mutations.md"

# ---- the files -----------------------------------------------------------------------------------------------------

SRC = "libcmm/src/"
CHECKS, API, CHOICE, RUN, PACK = (SRC + f"{name}.c" for name in ("validate", "api", "dispatch", "run", "pack"))
TYPES, TREE, BLAS_KERNEL = (SRC + f"{name}.h" for name in ("types", "tree", "blas_kernel"))
CPU, BLAS, PLAN = SRC + "cpu.c", SRC + "blas.c", SRC + "plan.c"
POOL, BLAS_THREADS = SRC + "threadpool.c", SRC + "blas_threads.c"
ACTIVATION, FORMULAS, LOOPS = SRC + "activation.h", SRC + "activation/formulas.inl", SRC + "activation/loops.inl"
DENSE_REFERENCE, DENSE_BLAS1, DENSE_BLAS2, DENSE_BLAS3 = (
    SRC + f"dense/{name}.c" for name in ("reference", "blas1", "blas2", "blas3")
)
REFERENCE = SRC + "fff/reference.c"
BLAS1, BLAS2, BLAS3 = (SRC + f"baseline/{name}.c" for name in ("blas1", "blas2", "blas3"))
PER_TOKEN, GROUPED, MICROKERNEL, DOT = (
    SRC + f"fff/{name}.inl" for name in ("per_token", "grouped", "microkernel", "dot")
)
BACKWARD, BY_NODE = SRC + "backward.c", SRC + "fff/by_node.inl"
SCALAR, AVX2, AVX512, FMA = (SRC + f"simd/{name}.h" for name in ("scalar", "avx2", "avx512", "fma"))

PY = "python/cmm/"
BERT = PY + "bert/"
SAFETENSORS, WEIGHT_FILES, CHECKPOINT = (
    BERT + f"{name}.py" for name in ("_safetensors", "weight_files", "checkpoint")
)
CONFIG, NAMES, EXPORT, ERRORS = (BERT + f"{name}.py" for name in ("config", "state_dict_map", "export", "errors"))
LINKS = BERT + "links.py"
FILES = PY + "_files.py"
TOKENIZER, TEXT, ENCODER, MODEL = (BERT + f"{name}.py" for name in ("tokenizer", "text", "encoder", "model"))
DATA_PARALLEL, PATHS = BERT + "data_parallel.py", BERT + "paths.py"
CHECK, DISPATCH, ON_NUMPY, ROUTING = (
    PY + f"{name}.py" for name in ("_check", "_dispatch", "_backend/numpy", "routing_stats")
)

# The C tests that are run for a file, the fastest first: a target without test_, and its arguments.
_INTERFACE = [
    "status",
    "wrong_calls",
    "struct_sizes",
    "scratch",
    "leaks",
    "blas",
    "threads",
    "correctness few",
    "exact_path few",
    "backward few",
]
_PACKING = ["wrong_calls", "struct_sizes", "guard_pages", "narrow_rows few", "exact_path few"]
_ACTIVATIONS = ["same_bits hash", "activation_accuracy --few"]
_KERNELS = ["same_bits hash", "correctness few", "blas", "guard_pages", "narrow_rows few", "exact_path few"]
C_TESTS = {
    **dict.fromkeys([CHECKS, API, CHOICE, RUN, BLAS_KERNEL], _INTERFACE),
    TREE: _KERNELS,
    BACKWARD: ["backward few", "leaks", "struct_sizes"],
    BY_NODE: ["backward few"],
    **dict.fromkeys([PACK, TYPES], _PACKING),
    CPU: ["cpu"],
    PLAN: ["plan"],
    POOL: ["threads", "fork", "leaks", "host_program"],
    BLAS_THREADS: ["leaks", "threads", "fork", "host_program"],
    BLAS: ["blas", "blas_names"],
    **dict.fromkeys([ACTIVATION, FORMULAS, LOOPS], _ACTIVATIONS),
    **dict.fromkeys(
        [DENSE_REFERENCE, DENSE_BLAS1, DENSE_BLAS2, DENSE_BLAS3, REFERENCE, BLAS1, BLAS2, BLAS3], _KERNELS
    ),
    **dict.fromkeys([PER_TOKEN, MICROKERNEL, AVX2, AVX512], _KERNELS),
    GROUPED: [*_KERNELS, "plan", "same_bits few"],
    DOT: [*_KERNELS, "same_bits few"],
    SCALAR: [*_KERNELS, "fma"],
    FMA: [*_KERNELS, "fma"],
}

# The Python tests that are run for a file.
_LOADING = ["bert/test_bert_checkpoint.py", "bert/test_bert_hostile.py"]
PYTHON_TESTS = {
    SAFETENSORS: _LOADING,
    WEIGHT_FILES: _LOADING,
    CHECKPOINT: _LOADING,
    CONFIG: ["bert/test_bert_config.py", *_LOADING],
    NAMES: _LOADING,
    EXPORT: ["bert/test_bert_folders.py", *_LOADING],
    LINKS: ["bert/test_bert_folders.py"],
    FILES: ["core/test_files.py"],
    ERRORS: ["bert/test_bert_config.py", *_LOADING],
    TOKENIZER: ["bert/test_bert_text.py", "bert/test_bert_folders.py"],
    TEXT: ["bert/test_bert_text.py"],
    ENCODER: ["bert/test_bert_encoder.py", "bert/test_bert_text.py"],
    MODEL: [
        "bert/test_bert_encoder.py",
        "bert/test_bert_text.py",
        "bert/test_bert_data_parallel.py",
        "bert/test_bert_folders.py",
        "core/test_objects.py",
    ],
    DATA_PARALLEL: ["bert/test_bert_data_parallel.py", "core/test_objects.py"],
    PATHS: ["bert/test_bert_paths.py"],
    CHECK: ["core/test_numpy_api.py", "core/test_errors.py", "core/test_backward.py"],
    ON_NUMPY: ["core/test_numpy_api.py", "core/test_errors.py", "core/test_backward.py"],
    DISPATCH: ["core/test_errors.py", "core/test_numpy_api.py", "core/test_blas.py", "core/test_threads.py"],
    ROUTING: ["core/test_errors.py", "core/test_numpy_api.py"],
}
_LIMIT = 60  # seconds for a C test, and for a file of Python tests


class Mutant(NamedTuple):
    """A small break of the code."""

    file: str
    was: str  # a text that the file has exactly once
    becomes: str
    equivalent: str = ""  # why the program does the same as before


M = Mutant

# ---- the breaks ----------------------------------------------------------------------------------------------------

# fmt: off
MUTANTS = [
    # what a call must be
    M(CHECKS, '[CMM_F32] = {"float32", 4}', '[CMM_F32] = {"float32", 8}'),
    M(CHECKS, "given < oldest ||", ""),
    M(CHECKS, "given > LARGEST_STRUCT ||", ""),
    M(CHECKS, "[i] != 0", "[i] > 127"),
    M(CHECKS, "given < size ? given : size);\n    return 1", "size);\n    return 1"),
    M(CHECKS, "dtype == CMM_F64 ? 8 : 4", "dtype == CMM_F64 ? 4 : 4"),
    M(CHECKS, "(uintptr_t)start + (uintptr_t)bytes", "(uintptr_t)start + (uintptr_t)bytes - 1",
      "aligned arrays that share memory share at least the 2 bytes of the smallest element"),
    M(CHECKS, "a.first < b.end", "a.first <= b.end"),
    M(CHECKS, "b.first < a.end", "b.first <= a.end"),
    M(CHECKS, "a.first < a.end && ", ""),
    M(CHECKS, "(uintptr_t)size - 1", "(uintptr_t)size / 2"),
    M(CHECKS, "layer->tie != CMM_TIE_LEFT &&", "layer->tie < CMM_TIE_LEFT &&"),
    M(CHECKS, "layer->depth < 0 || ", ""),
    M(CHECKS, "layer->depth > CMM_MAX_DEPTH", "layer->depth >= CMM_MAX_DEPTH"),
    M(CHECKS, "(int64_t)2 << layer->depth", "(int64_t)1 << layer->depth"),
    M(CHECKS, "wants_y ? layer->d_out : 1", "layer->d_out"),
    M(CHECKS, "wants_y ? layer->ld_out ? layer->ld_out : layer->d_out : 1",
      "layer->ld_out ? layer->ld_out : layer->d_out"),
    M(CHECKS, "layer->neurons < 0", "layer->neurons < 1"),
    M(CHECKS, "problem->dtype >= dtypes", "problem->dtype > dtypes"),
    M(CHECKS, "problem->d_in < 1", "problem->d_in < 0"),
    M(CHECKS, "problem->ld_in < problem->d_in", "problem->ld_in < 0"),
    M(CHECKS, "cmm_bytes_of(rows, problem->ld_in, size_in) < 0", "0"),
    M(CHECKS, "cmm_bytes_of(problem->batch, problem->trees, problem->depth + 1)",
      "cmm_bytes_of(problem->batch, problem->trees, problem->depth)"),
    M(CHECKS, "cmm_bytes_of(problem->batch, problem->d_in, size) < 0 ||", ""),
    M(CHECKS, "(problem->wants_y && cmm_bytes_of(problem->batch, problem->d_out, size) < 0) ||", ""),
    M(CHECKS, "(problem->wants_y && cmm_bytes_of(problem->batch, problem->d_out",
      "(cmm_bytes_of(problem->batch, problem->d_out",
      "without y, cmm_read_fff() has set d_out to 1, and x is then at least as large as such a y"),
    M(CHECKS, "path < 0 ||", "", "of a path that does not fit, which is -1, 8 times as much does not fit either"),
    M(CHECKS, "cmm_bytes_of(path, 8, 1) < 0", "0"),
    M(CHECKS, "problem->nodes > 0 && !problem->w_in", "!problem->w_in"),
    M(CHECKS, "problem->wants_y && !problem->w_out", "!problem->w_out"),
    M(CHECKS, "problem->wants_y && cmm_misaligned(problem->w_out, size_out)",
      "cmm_misaligned(problem->w_out, size_out)"),
    M(CHECKS, "cmm_extent_of(problem->bias, rows * size)", "cmm_extent_of(problem->bias, (rows - 1) * size)"),
    M(CHECKS, "problem->x, problem->batch * problem->d_in * size", "problem->x, problem->d_in * size"),
    M(CHECKS, "path * (int64_t)sizeof(int32_t)", "path"),
    M(CHECKS, "!problem->wants_y && !problem->nodes_out && !problem->logits_out",
      "!problem->wants_y && !problem->nodes_out"),
    M(CHECKS, "if (problem->batch > 0) {", "if (1) {"),
    M(CHECKS, "i < CMM_INPUTS", "i < CMM_WEIGHTS"),
    M(CHECKS, "earlier < o", "earlier < o - 1"),

    # the front door
    M(RUN, 'run->level && strcmp(run->level, "auto") != 0', "run->level"),
    M(CHOICE, "cmm_kernel_files[i][0]->op == CMM_OP_ACT && strcmp(name", "strcmp(name"),
    M(RUN, "run->threads < 0", "run->threads < -1"),
    M(RUN, "wanted->isa && !cmm_is_isa(wanted->isa)", "0"),
    M(RUN, "!cmm_read_struct(&chosen->table, sizeof chosen->table, sizeof chosen->table, run->blas)", "0"),
    M(CHOICE, "(number < 2 || blas->sgemv)", "1"),
    M(CHOICE, "dtype == CMM_F32 ? f32 : f64", "f32 && f64"),
    M(CHOICE, "if (!wanted->algorithm && kernel->is_preferred", "if (kernel->is_preferred"),
    M(CHOICE, 'strcmp(kernel->isa, "any") == 0 || same(', "same("),
    M(CHOICE, "blame = CMM_ERROR_METHOD", "blame = CMM_ERROR_LEVEL_UNUSABLE"),
    M(BLAS_KERNEL, "&& problem->nodes <= INT32_MAX", ""),
    M(CHOICE, "kernel->can_implement && !kernel->can_implement(problem)", "0"),
    M(API, "return problem->batch > 0\n", "return 1\n",
      "of no token every kernel makes nothing: it is only not asked"),
    M(RUN, "(index < batch % s->pieces);", "0;"),
    M(RUN, "free(s.scratch);", ""),
    M(API, "problem->trees = problem->nodes;", ""),
    M(API, "!wanted->algorithm && cmm_fits_blas(problem)", "cmm_fits_blas(problem)"),
    M(PACK, "p->row_in + cmm_padded(", "p->row_in + ("),
    M(PACK, "bytes < p.bytes", "bytes < p.bytes - 1"),
    M(PACK, "i < CMM_WEIGHTS", "i < CMM_WEIGHTS - 1"),
    M(TYPES, "bits + 0x7fff + (bits >> 16 & 1)", "bits + 0x8000"),
    M(TYPES, "bits >> 16 | 0x40", "bits >> 16"),
    M(TYPES, "0x1p-24f", "0x1p-25f"),
    M(TYPES, "exponent < 127 - 25", "exponent < 127 - 24"),
    M(TYPES, "+ 0xfff + (magnitude >> 13 & 1)", "+ 0x1000"),
    M(TYPES, "- 1 + (significand >> shift & 1)", ""),
    M(CHOICE, "(*count)++ == index", "(*count)++ == index + 1"),

    # where a token goes
    M(TREE, "(tie) == CMM_TIE_RIGHT ? (logit) >= 0 : (logit) > 0", "(logit) > 0"),
    M(TREE, "return 2 * node + 1;", "return 2 * node + 2;"),
    M(TREE, "((node + 1) >> up) - 1", "(node >> up) - 1"),
    M(TREE, "((node + 1) << down) - 1 + place", "(node << down) + place"),
    M(TREE, "levels - (31 - __builtin_clz(differ))", "levels - (30 - __builtin_clz(differ))"),

    # the CPU, the threads, a BLAS
    M(CPU, "bits |= CMM_CPU_AVX2", "bits |= 0"),
    M(CPU, "bits |= CMM_CPU_AVX512", "bits |= 0"),
    M(CPU, "->l2 = bytes", "->l3 = bytes"),
    M(CPU, "level = a >> 5 & 7", "level = a >> 4 & 7"),
    M(CPU, "(b >> 22) + 1", "(b >> 22)"),
    M(POOL, "index >= pieces", "index > pieces"),
    M(POOL, "--pool.running == 0", "--pool.running < 0"),
    M(POOL, "pool.workers = 0;\n    pool.wanted = 0;", "pool.wanted = 0;"),
    M(BLAS_THREADS, "blas->set_threads(1)", "blas->set_threads(2)"),
    M(BLAS_THREADS, "blas->set_threads(mine->saved)", "blas->set_threads(1)"),
    M(BLAS_THREADS, "atomic_fetch_add(&mine->users, 1);", "(void)0;"),
    M(BLAS, '"scipy_%s_"', '"scipy_%s"'),
    M(BLAS, 'blas->dgemm, find(library, "dgemm")', 'blas->dgemm, find(library, "sgemm")'),
    M(BLAS, "!blas->daxpy || ", ""),
    M(BLAS, "(void)set_layer(MKL_THREADING_SEQUENTIAL);", ""),
    M(BLAS, 'blas->dgemm_batch, find(library, "dgemm_batch")', 'blas->dgemm_batch, find(library, "sgemm_batch")'),
    M(BLAS, '"scipy_openblas_get_num_threads",', ""),
    M(BLAS, "cmm_library_close(library);", "(void)0;"),

    # activations
    M(ACTIVATION, "f32_MILLS_LOST 0.8649f", "f32_MILLS_LOST 0.7f"),
    M(FORMULAS, "CMM_EITHER(14.5f, 38.75)", "CMM_EITHER(13.0f, 38.75)"),
    M(FORMULAS, "CMM_EITHER(110.0f, 755.0)", "CMM_EITHER(110.0f, 700.0)"),
    M(ACTIVATION, "f64_TANH_C1_LOWER 0x1.26c5a57a4def1p-31", "f64_TANH_C1_LOWER 0x0p0"),
    M(ACTIVATION, "0x1.b439ep-13f", "0x1.a439ep-13f"),
    M(ACTIVATION, "0x1.3df237db8c57cp+0", "0x1.3df237db8c57dp+0"),
    M(FORMULAS, "(CMM_R)0.059", "(CMM_R)0.0"),
    M(FORMULAS, "half = u >> 1", "half = 0"),
    M(FORMULAS, "(x < 0 ? x * 0 : x) - y", "(x < 0 ? 0 : x) - y"),
    M(FORMULAS, "q > end ? end : q", "q"),
    M(FORMULAS, "x < 0 ? x * 0 - y : q", "x < 0 ? -y : q"),
    M(FORMULAS, "(CMM_R)0.6 * power", "(CMM_R)0.1 * power"),
    M(FORMULAS, "+ al * al", ""),
    M(FORMULAS, "x < 0 ? 0 : x;", "x > 0 ? x : 0;"),
    M(LOOPS, "n < 16 ? (int)n : 16", "16"),
    M(LOOPS, "LOOP(XNAME(cmm_act_##name))", "LOOP(XNAME(cmm_act_gelu))"),
    M(LOOPS, "n >= 64; n -= 64", "n > 64; n -= 64", "64 values in four blocks of 16 are the same as in one of 64"),

    # dense layers
    M(DENSE_REFERENCE, "y[o] = 0;", ""),
    M(DENSE_REFERENCE, "row * problem->ld_out + o", "row * problem->d_out + o"),
    M(DENSE_BLAS1, "(bias ? bias[row] : 0)", "0"),
    M(DENSE_BLAS1, "chunk < count - done ? chunk : count - done", "chunk"),
    M(DENSE_BLAS2, "h[i] += bias[row + i]", "h[i] += bias[i]"),
    M(DENSE_BLAS2, "block < problem->nodes - row ? block : problem->nodes - row", "block"),
    M(DENSE_BLAS2, "t = first + done; t <", "t = done; t <"),
    M(DENSE_BLAS3, "h + t * ld_h", "h + t * neurons"),
    M(DENSE_BLAS3, "row[n] += bias[n]", "row[n] += bias[0]"),
    M(DENSE_BLAS3, "neurons == 0 && i < count * d_out", "0"),
    M(DENSE_BLAS3, "chunk < count - done ? chunk : count - done", "chunk"),

    # fast feedforward layers: the definition, and by a BLAS
    M(REFERENCE, "X c = logit;", "X c = logit * (X)1.000001;"),
    M(REFERENCE, "tree * problem->nodes + node", "node"),
    M(BLAS1, "logit += bias[row]", "logit += bias[node]"),
    M(BLAS1, "&logits[level], w_out", "&logits[0], w_out"),
    M(BLAS1, "nodes_out[level] = (int32_t)node", "nodes_out[level] = (int32_t)row"),
    M(BLAS2, "bias[tree * problem->nodes + node]", "bias[node]"),
    M(BLAS2, "b->node[i] = 0;", ""),
    M(BLAS2, "b->y[i] = &b->logit[i];", "b->y[i] = &b->logit[0];"),
    M(BLAS2, "limit < count ? limit : count", "limit"),
    M(BLAS3, "problem->depth < SHALLOW", "problem->depth < SHALLOW - 1",
      "a shallow tree can also go by groups: it is slower"),
    M(BLAS3, "bad |= !(row[i] - row[i] == 0)", "bad = 0"),
    M(BLAS3, "logits[node] + bias[node] : logits[node]", "logits[node] : logits[node]"),
    M(BLAS3, "if (levels > 1)", "if (levels > 2)"),
    M(BLAS3, "tree == 0 ? 0 : 1);", "1);"),
    M(BLAS3, "finite &= NAME(finite)", "(void)NAME(finite)"),
    M(BLAS3, "if (s->tree == 0)", "if (1)"),
    M(BLAS3, "begin = cmm_left_child(begin))", "begin = cmm_left_child(begin) + 1)"),
    M(BLAS3, "+ i] - cmm_descendant(node, i, 0)", "+ i] - cmm_descendant(0, i, 0)"),
    M(BLAS3, "end - begin < SMALL_GROUP", "0", "a small group may go on as a large one does: it is slower"),
    M(BLAS3, "at - cmm_descendant(0, i, 0)", "at"),
    M(BLAS3, "w->child[done + t] = (int32_t)(at - rows)", "w->child[done + t] = 0"),
    M(BLAS3, "y[o] + w->y[t * d_out + o]", "w->y[t * d_out + o]"),

    # and natively
    M(PER_TOKEN, "h->tree > 0 ?", "1 ?"),
    M(PER_TOKEN, "levels == 1 ? (int)rows : 0", "(int)rows"),
    M(PER_TOKEN, "problem->depth > 0",
      "problem->depth > 30", "a row that is not prefetched comes later, and is the same"),
    M(PER_TOKEN, "cmm_least(most, problem->trees - h.tree)", "most"),
    M(GROUPED, "left += !goes_right", "left += goes_right"),
    M(PLAN, "problem->depth >= 2 &&", "problem->depth >= 3 &&"),
    M(PLAN, "problem->trees == 1 ? 8 : 16", "8"),
    M(PLAN, "neuron * cmm_least(problem->trees, 8)", "neuron * problem->trees"),
    M(PLAN, "held > 8 ? held : 8", "held"),
    M(PLAN, "tokens <= 2 * CMM_BLOCK", "tokens < 2 * CMM_BLOCK"),
    M(PLAN, "<= machine->l2 / 2)", "< machine->l2 / 2)"),
    M(PLAN, "tree > machine->l2 / 2)", "tree > machine->l2)"),
    M(PLAN, "problem->depth >= CMM_LOG2_BLOCK", "problem->depth > CMM_LOG2_BLOCK"),
    M(PLAN, "level < CMM_LOG2_BLOCK &&", "level <= CMM_LOG2_BLOCK &&"),
    M(PLAN, "deep ? machine->l2 / 2 : machine->l2", "machine->l2"),
    M(PLAN, "!machine->slow_l3 ? 4 * machine->l2 :", "!machine->slow_l3 ? machine->l2 :"),
    M(PLAN, "return tree > (!machine", "return tree >= (!machine"),
    M(PLAN, "if (!machine->slow_l3)", "if (machine->l2 >= 1 << 20)"),
    M(PLAN, "cmm_least(problem->trees, 8)), 2 * CMM_BLOCK)", "cmm_least(problem->trees, 8)), 4 * CMM_BLOCK)"),
    M(PLAN, "(machine->slow_l3 ? 2 : 3)", "3"),
    M(PLAN, "tokens_bytes > 2 * machine->l2", "tokens_bytes >= 2 * machine->l2"),
    M(PLAN, "problem->trees > 1 && machine->slow_l3 ? 2 * CMM_TURN", "machine->slow_l3 ? 2 * CMM_TURN"),
    M(CPU, "return beyond_time > 3 * PIECES * within_time;", "return 1;"),
    M(PLAN, "plan.walk_ahead = row_in <= FEW_LINES", "plan.walk_ahead = row_in < FEW_LINES"),
    M(PLAN, "row_in <= FEW_LINES || !machine->slow_l3", "row_in <= FEW_LINES"),
    M(PLAN, "machine->l3 / 4 / tree", "machine->l3 / 8 / tree"),
    M(PLAN, "(large ? 4 : 1)", "(large ? 2 : 1)"),
    M(PLAN, " / CMM_STEP * CMM_STEP", ""),
    M(PLAN, "(large && machine->slow_l3)", "large"),
    M(PLAN, "plan->block = plan->turn = cmm_least(tokens, CMM_TURN)", "plan->block = plan->turn = tokens"),
    M(PLAN, "plan->block * token <= 4 * machine->l2", "plan->block * token < 4 * machine->l2"),
    M(DOT, "differ % XNAME(VECTOR_BYTES) ? 0 :", "", "vectors may begin at any address, which takes longer"),
    M(DOT, "int64_t i = head;", "int64_t i = 0;"),
    M(DOT, "d < NAME(LONG) || d % NAME(LANES) ||", "d < NAME(LONG) ||"),
    M(DOT, "sum[r][t][v] = head > 0 ?", "sum[r][t][v] = 0 ?"),
    M(DOT, "LOAD_SHARED_MASKED(shared[0], head), head)", "LOAD_SHARED_MASKED(shared[0], head), 0)"),
    M(DOT, "if (head > 0 && pass == passes - 1)", "if (head > 0)"),
    M(DOT, "(v < vectors - 1 || pass < passes - 1)", "1"),
    M(MICROKERNEL, "d % VL == 0 ?", "1 ?"),
    M(MICROKERNEL, "open[t] = y[t][columns - 1];", "open[t] = y[t][0];"),
    M(MICROKERNEL, "XNAME(vec_store_masked)(s[t].y, y[t][0], shift);", "(void)0;"),
    M(MICROKERNEL, "XNAME(vec_rotate)(open[t], shift), VL - shift)", "open[t], VL - shift)"),
    M(GROUPED, "s->ld_y = NAME(copy_stride)(d_out);", "s->ld_y = d_out;", "a row off the cache lines takes longer"),
    M(GROUPED, "copy_rows)(count, d_in, x,", "copy_rows)(count - 1, d_in, x,"),
    M(GROUPED, "s->first = first + at;", "s->first = first;"),
    M(PLAN, "problem->batch * (x_row + y_row)", "tokens * (x_row + y_row)"),
    M(GROUPED, "cmm_fff_plan(problem, cmm_cpu_machine(), problem->batch).grouped", "problem->batch >= 100"),
    M(GROUPED, "start[b + 1] += start[b]", "start[b + 1] += 0"),
    M(GROUPED, "start[0] = 0;", ""),
    M(GROUPED, "if (left == end - begin)", "if (0)", "where all go left, the right half is empty, and ends at once"),
    M(MICROKERNEL, "i < rows; i++", "i + 1 < rows; i++"),
    M(MICROKERNEL, "int i = shared;", "int i = 0;"),
    # ---- narrow rows, the exact path, a path that is given
    M(CHECKS, "((rows - 1) * ld + d) * size", "((rows - 1) * d + d) * size"),
    M(CHECKS, "rows ? start : NULL, rows ?", "start, 1 ?",
      "without rows the extent ends where it starts, or before: it has no byte in common with any"),
    M(CHECKS, "(wants_y && whole_out != (layer->scale_out != NULL))", "0"),
    M(CHECKS, "(layer->exact_in && problem->weight_dtype == layer->dtype)", "0"),
    M(CHECKS, "problem->exact_in && problem->ld_exact < problem->d_in", "0"),
    M(CHECKS, "cmm_misaligned(problem->margin, float_size)", "0"),
    M(CHECKS, "cmm_extent_of(problem->margin, inner * float_size)", "cmm_extent_of(NULL, 0)"),
    M(CHECKS, "cmm_extent_of(problem->scale_out, rows * float_size)", "cmm_extent_of(problem->scale_out, 0)"),
    M(TREE, "leaf >= leaves - 1 && leaf < 2 * leaves - 1", "leaf < 2 * leaves - 1"),
    M(TREE, "node[level] == cmm_ancestor((uint32_t)leaf, depth - level)", "node[level] >= 0"),
    M(CHECKS, "refused[1] = tree;", "refused[1] = 0;"),
    M(PACK, "memset(to + bytes, 0, (size_t)(padded - bytes));", ""),
    M(PACK, "packed->bias = problem->bias ? biases : NULL", "packed->bias = biases"),
    M(PACK, "packed->ld_out = p.row / p.out.size", "packed->ld_out = p.row / p.in.size"),
    M(PACK, "return size >= sizeof(cmm_fff);", "return 1;"),
    M(PACK, "return size >= offsetof(cmm_fff, exact_in);", "return 1;"),
    M(PACK, "m->type != from_type && (from_type != dtype ||", "m->type != from_type && (0 ||"),
    M(PACK, "memmove(packed, layer, size)", "memmove(packed, layer, sizeof *packed)"),
    M(PACK, "finite &= fabsf(row[k]) <= FLT_MAX;", "finite &= !isinf(row[k]);"),
    M(PACK, "scales[i] = m->scale ? m->scale[i] : scale;", "scales[i] = scale;"),
    M(PACK, "errors += (wide - widened) * (wide - widened);",
      "errors += 0.25 * (wide - widened) * (wide - widened);"),
    M(PACK, "error *= sigmas / sqrt((double)n);", ""),
    M(PACK, "!(norm < 0x1p80) ||", ""),
    M(TYPES, "whole < -127 ? -127 : whole", "whole"),
    M(TYPES, "largest == 0 ? 1 : scale > 0 ? scale : 0x1p-149f", "largest == 0 ? 1 : scale"),
    M(REFERENCE, "CMM_TURNS_RIGHT(problem, token, tree, level, logit)", "(logit > 0)"),
    M(REFERENCE, "logit *= (X)problem->scale_in[row];", ";"),
    M(REFERENCE, "recomputed++;", ""),
    M(BLAS1, "CMM_TURNS_RIGHT(problem, token, tree, level, logit)", "(logit > 0)"),
    M(BLAS2, "CMM_TURNS_RIGHT(problem, first + token, tree, level, b->logit[i])", "(b->logit[i] > 0)"),
    M(PER_TOKEN, "X logit = NAME(logit)(problem, neuron, dot);", "X logit = NAME(logit)(problem, node, dot);"),
    M(PER_TOKEN, "h->scale[place] = (X)problem->scale_out[neuron];",
      "h->scale[place] = (X)problem->scale_out[node];"),
    M(PER_TOKEN, "NAME(undecided)(problem, inner, logit, h->norm[t])",
      "NAME(undecided)(problem, inner, logit, h->norm[0])"),
    M(PER_TOKEN, "CMM_TURNS_RIGHT(problem, token, tree, level, logit)", "(logit > 0)"),
    M(GROUPED, "tree > 0 ? Y_ADD", "tree > 1 ? Y_ADD"),
    M(GROUPED, "s->recomputed += count;", ""),
    M(GROUPED, "problem->exact_in && level < problem->depth)", "problem->exact_in && level + 1 < problem->depth)"),
    M(GROUPED, "s->first + token, s->tree, level, s->logit", "token, s->tree, level, s->logit"),
    M(MICROKERNEL, "store_mode != Y_ADD ? XNAME(vec_zero)", "store_mode == Y_STORE_NT ? XNAME(vec_zero)"),
    M(MICROKERNEL, "(X)problem->margin[inner] * norm", "(X)problem->margin[inner] * norm * (X)0.2"),
    M(MICROKERNEL, "squares >= (X)0x1p-80 &&", ""),
    M(TREE, "(leaf + 1) >> (depth - 1 - level) & 1", "(leaf + 1) >> (depth - level) & 1"),
    M(RUN, "atomic_fetch_add(&s->recomputed, recomputed);", "atomic_store(&s->recomputed, recomputed);"),
    M(API, "*chosen.recomputed = 0;", ""),
    M(CHECKS, "problem->exact_in && cmm_bytes_of(rows, problem->ld_exact, size) < 0", "0"),
    M(PACK, "(error + gamma * norm)", "(0.97 * error + gamma * norm)"),
    M(PACK, "(error + gamma * norm)", "error"),
    M(PACK, "o->exact_path && p->in.conversion < 0 && !problem->exact_in", "o->exact_path && p->in.conversion < 0"),
    M(PACK, "p->exact = o->exact_path || problem->exact_in;", "p->exact = o->exact_path;"),
    M(PACK, "p->exact && p->inner > 0 ?", "p->exact ?",
      "the product with no inner nodes is 0, whatever it was: only a sanitizer notices that the padding overflows"),
    M(PACK, "p->options.refused[1] = which;", "p->options.refused[1] = 0;"),
    M(PACK, "*margin = problem->margin[inner];", "*margin = 0;"),
    M(PACK, "inner * problem->ld_exact * size", "inner * problem->d_in * size"),
    M(REFERENCE, "(X)problem->margin[inner] * norm", "(X)problem->margin[inner] * norm * (X)0.97"),
    M(REFERENCE, "squares >= (X)0x1p-80 &&", ""),
    M(REFERENCE, "exact_in && level < problem->depth &&", "exact_in &&"),
    M(REFERENCE, "c *= (X)problem->scale_out[row];", ";"),
    M(PER_TOKEN, "problem->exact_in && h->tree == 0", "problem->exact_in && h->tree == 0 && token == 0"),
    M(PER_TOKEN, "++*h->recomputed;", ""),
    M(PER_TOKEN, "exact_in + inner * problem->ld_exact", "exact_in + node * problem->ld_exact"),
    M(GROUPED, "s->tree > 0 || level > 0", "level > 0", "the norms of a token are the same in every tree"),
    M(GROUPED, "inner = s->tree * (problem->nodes / 2) + node", "inner = node"),
    M(GROUPED, "s->tree * problem->nodes + node, dots[t]", "node, dots[t]"),
    M(GROUPED, "NAME(measure)(s, at, stop, 0);", ""),
    M(MICROKERNEL, "(X)problem->margin[inner] * norm", "(X)problem->margin[inner] * norm * (X)0.97"),
    M(MICROKERNEL, "squares <= (X)0x1p80", "squares <= (X)INFINITY"),
    M(RUN, "if (run->path_nodes && run->path_leaves)", "if (0)"),
    M(RUN, "offsetof(cmm_run, path_nodes), given", "sizeof read, given"),
    M(API, "op == CMM_OP_FF && (chosen.path_nodes || chosen.path_leaves)", "0"),
    M(API, "chosen.path_nodes ? problem->depth + 1 : 1", "problem->depth + 1"),
    M(FMA, "(lost < 0 || lost > 0) && ", "(lost < 0 || lost > 0) || "),
    M(FMA, "(direction ^ bits) < 0 ? -1 : 1", "1"),
    M(SCALAR, "half = NAME(VL) / 2; half > 0", "half = NAME(VL) / 2; half > 1"),
    M(SCALAR, "p[i] = a.v[i]", "p[i] = a.v[0]"),
    M(AVX2, "n > 8 ? 8 : (int32_t)n", "(int32_t)n", "a mask of 8 lanes has no more of them than 8"),
    M(AVX2, "_mm256_set1_epi64x(n)", "_mm256_set1_epi64x(n + 1)"),
    M(AVX2, "_mm_add_ss(d, _mm_movehdup_ps(d))", "_mm_add_ss(d, d)"),
    M(AVX512, "n >= 16 ? 0xffffu", "n >= 15 ? 0xffffu"),
    M(AVX512, "n >= 8 ? 0xffu", "n >= 8 ? 0x7fu"),
    M(AVX512, "_mm512_extractf64x4_pd(a, 1)", "_mm512_extractf64x4_pd(a, 0)"),

    # the files of a model
    M(SAFETENSORS, "if size < 8:", "if size < 0:"),
    M(SAFETENSORS, "if length > HEADER_LIMIT:", "if False:"),
    M(SAFETENSORS, "if length > size - 8:", "if length > size:"),
    M(SAFETENSORS, 'if text[:1] != b"{":', "if False:"),
    M(SAFETENSORS, "not all(isinstance(text, str) for text in value.values())", "False"),
    M(SAFETENSORS, "value.keys() != {", "not value.keys() >= {"),
    M(SAFETENSORS, "or len(shape) > 8", ""),
    M(SAFETENSORS, "or offsets[0] > offsets[1]", ""),
    M(SAFETENSORS, "bits != 8 * (offsets[1] - offsets[0])", "bits > 8 * (offsets[1] - offsets[0])"),
    M(SAFETENSORS, "entry.end > size", "False"),
    M(SAFETENSORS, "elif entry.start < end:", "elif False:"),
    M(SAFETENSORS, "if end != size:", "if False:"),
    M(SAFETENSORS, "self._data + entry.start", "entry.start"),
    M(SAFETENSORS, "wide <<= 16", "wide <<= 15"),
    M(SAFETENSORS, "result if result.flags.aligned else result.copy()", "result"),
    M(SAFETENSORS, "type(item) is int", "isinstance(item, int)"),
    M(SAFETENSORS, "0 <= item < 2**63", "item < 2**63"),
    M(SAFETENSORS, ".nbytes % ALIGNMENT != 0)", ".nbytes % ALIGNMENT == 0)"),
    M(SAFETENSORS, "(-(8 + len(text)) % ALIGNMENT)", "0"),
    M(SAFETENSORS, '"F16" if array.dtype == np.float16', '"F32" if array.dtype == np.float16'),
    M(WEIGHT_FILES, 'start.startswith(b"\\x80")', "False"),
    M(WEIGHT_FILES, 'or start[8:9] == b"{"', ""),
    M(WEIGHT_FILES, "if short in result:", "if False:"),
    M(WEIGHT_FILES, 'not (hasattr(value, "shape") and hasattr(value, "dtype"))', "False"),
    M(WEIGHT_FILES, "if absent := keys.keys() - opened.tensors.keys():", "if absent := set():"),
    M(WEIGHT_FILES, "if surplus := opened.tensors.keys() - keys.keys():", "if surplus := set():"),
    M(WEIGHT_FILES, "if twice := keys.keys() & tensors.keys():", "if twice := set():"),
    M(WEIGHT_FILES, "or not _is_plain(name) ", ""),
    M(CHECKPOINT, "if state_dict_map.DECODER in tensors or state_dict_map.HEAD_TRANSFORM in tensors:",
      "if state_dict_map.DECODER in tensors:"),
    M(CHECKPOINT, "exported != FORMAT", "False"),
    M(CHECKPOINT, 'metadata.get("decoder") == "yes"', "True"),
    M(CHECKPOINT, "state_dict_map.DECODER in tensors and state_dict_map.WORD not in tensors",
      "state_dict_map.DECODER in tensors"),
    M(CHECKPOINT, "if len(found) == 2:", "if False:"),
    M(CHECKPOINT, "<= factor * 2**-8", "<= factor * 2**-4"),
    M(CHECKPOINT, 'tensor.transposed and checkpoint.layout != "exported"', "tensor.transposed"),
    M(CHECKPOINT, "if tied and not np.array_equal", "if False and not np.array_equal"),
    M(CHECKPOINT, "configured is not None and shape[0] != configured", "False"),
    M(CHECKPOINT, "if dtype not in READABLE:", "if False:"),
    M(CHECKPOINT, "if actual == shape:", "if True:"),
    M(CHECKPOINT, "range(0, flat.size, _CHUNK)", "range(0, flat.size - _CHUNK, _CHUNK)"),
    M(CHECKPOINT, "np.isfinite(chunk.max()) and ", ""),
    M(CHECKPOINT, "if unknown := checkpoint.tensors.keys() - expected:", "if unknown := set():"),
    M(CHECKPOINT, '("model_config.json", "config.json")', '("config.json", "model_config.json")'),
    M(CONFIG, '"logsumexp",  # what the training code', '"max",  # what the training code'),
    M(CONFIG, '"norm_scheme": "pre",\n    "tie', '"tie'),
    M(CONFIG, "if hidden % 2:", "if False:"),
    M(CONFIG, "if embedding_dim != hidden:", "if False:"),
    M(CONFIG, 'fff and nonlin != "GELU"', "False"),
    M(CONFIG, "or isinstance(eps, bool)", "", "True and False are 1 and 0, which are refused as numbers"),
    M(CONFIG, "0 < eps < 1", "0 <= eps < 1"),
    M(CONFIG, "if not np.float32(eps):", "if False:"),
    M(CONFIG, 'not flags.boolean("skip_head_transform", default=True)',
      'flags.boolean("skip_head_transform", default=True)'),
    M(CONFIG, "if size > limit:", "if False:"),
    M(CONFIG, "not stat.S_ISREG(found.st_mode)", "False"),
    M(LINKS, "anywhere or real.is_relative_to(folder)", "True"),
    M(LINKS, 'folder.parent.name == "snapshots" and ', ""),
    M(EXPORT, 'arch["num_labels"] = len(model.weights.classifier.head_bias)', "pass"),
    M(MODEL, "(self._had_tokenizer or os.path.lexists(file))", "os.path.lexists(file)"),
    M(CONFIG, "object_pairs_hook=_unique, ", ""),
    M(CONFIG, "type(value) is not type(expected) or ", ""),
    M(CONFIG, "type(value) is not int or not low", "not isinstance(value, int) or not low"),
    M(CONFIG, "low <= value <= high", "low <= value"),
    M(CONFIG, "name in _FILLED_IN_LATER and ", ""),
    M(NAMES, "if not _WRAPPER.fullmatch(name)", "if not _WRAPPER.match(name)"),
    M(NAMES, "*modules, parameter = key.split(\".\")", "*modules, parameter = *key.split(\".\"), \"\""),
    M(NAMES, "rows // 2 if config.gated else rows", "rows"),
    M(EXPORT, "(not folder.is_dir() or any(folder.iterdir()))", "not folder.is_dir()"),
    M(EXPORT, '"yes" if model.has_decoder', '"no" if model.has_decoder'),
    M(EXPORT, "if not np.isfinite(tensor).all():", "if False:"),
    M(EXPORT, "file.unlink(missing_ok=True)", "pass"),
    M(EXPORT, "parent.rmdir()", "pass"),
    M(EXPORT, "if not _same(tensors, load(made)):", "if False:"),
    M(EXPORT, '"vocab_size": len(model.weights.word)', '"vocab_size": 1'),
    M(ERRORS, "len(text) <= 120", "True"),
    M(ERRORS, "key.isascii() and ", ""),

    # text
    M(TOKENIZER, "self._tokenizer.no_padding()", "pass"),
    M(TOKENIZER, "self._tokenizer.no_truncation()", "pass"),
    M(TOKENIZER, "if token not in vocabulary:", "if False:"),
    M(TOKENIZER, "not isinstance(parse_json(content, file), dict)", "False"),
    M(TOKENIZER, 'ROLE_FILES = ("special_tokens_map.json", "tokenizer_config.json")',
      'ROLE_FILES = ("tokenizer_config.json", "special_tokens_map.json")'),
    M(TOKENIZER, 'pair=[cls, "$A", sep, "$B", sep]', 'pair=["$A", sep, "$B", sep]'),
    M(TOKENIZER, "tokenizer.enable_truncation(limit)", "tokenizer.enable_truncation(limit - 1)"),
    M(
        TOKENIZER,
        "{token.content: id for id, token in added.items() if token.special}",
        "{token.content: id for id, token in added.items()}",
    ),
    M(TOKENIZER, 'silent - {self._special.get("mask")}', "silent"),
    M(TOKENIZER, "one = isinstance(texts, str | tuple)", "one = isinstance(texts, str)"),
    M(TOKENIZER, "item if isinstance(item, tuple) and len(item) == 2", "item if len(item) == 2"),
    M(TEXT, "    if nothing:", "    if False:"),
    M(TEXT, "isinstance(k, bool) or ", ""),
    M(TEXT, "known[np.argsort(-row[known]", "known[np.argsort(row[known]"),
    M(TEXT, "weights /= weights.sum()", "weights /= weights[known].sum()"),
    M(TEXT, "np.diff(np.asarray(lengths)[order])) + 1)", "np.diff(np.asarray(lengths)[order])))"),
    M(TEXT, "range(at_a_time, same.size, at_a_time)", "range(at_a_time, same.size, at_a_time + 1)"),
    M(TEXT, "if empty is not None:", "if False:"),
    M(TEXT, "len(ids) > limit]", "len(ids) >= limit]"),

    # files that are written
    M(FILES, "os.replace(beside, real)", "beside.rename(path)"),
    M(FILES, "beside.unlink(missing_ok=True)", "pass"),
    M(FILES, "os.chmod(beside, stat.S_IMODE(real.stat().st_mode))", "pass"),

    # the encoder
    M(ENCODER, "xp.float32(-10000.0)", "xp.float32(-1.0)"),
    M(ENCODER, "variance += call.eps", ""),
    M(ENCODER, "weights.scale * positions", "positions"),
    M(ENCODER, "q.shape[-1] ** -0.5", "q.shape[-1] ** -0.4"),
    M(ENCODER, "scores -= scores.max(axis=-1, keepdims=True)", ""),
    M(ENCODER, "None if mask is None else mask[some]", "None if mask is None else mask[: some.stop - first]"),
    M(ENCODER, "hidden - largest[:, None]", "hidden"),
    M(MODEL, "if largest >= words:", "if largest > words:"),
    M(MODEL, "tokens.min() < 0 or ", ""),
    M(MODEL, "tokens.shape[1] > max_seq_length", "tokens.shape[1] > max_seq_length + 1"),
    M(MODEL, "if len(positions) < length:", "if len(positions) == 0:"),
    M(MODEL, "return None if ones.all() else ones", "return ones",
      "adding 0 to a score changes nothing; it is only slower"),
    M(MODEL, "if wrong.any():", "if False:"),
    M(DATA_PARALLEL, "batch * length // _LEAST_TOKENS", "batch * length"),
    M(DATA_PARALLEL, "raise one.error", "pass"),
    M(DATA_PARALLEL, "mine.append(part)", "pass"),
    M(MODEL, "_place(tensor) == place", "True"),
    M(MODEL, "setattr(self, name, value)", "pass"),
    M(DATA_PARALLEL, "_blas().limit(limits=1)", "_blas().limit(limits=2)"),
    M(DATA_PARALLEL, "setting.release()", "pass"),
    M(DATA_PARALLEL, "batch * index // count", "batch // count * index"),
    M(PATHS, "(node + 1).bit_length() - 1", "node.bit_length()"),
    M(PATHS, "self.leaves - 1 :", "self.leaves :"),
    M(PATHS, "2 ** (self.depth - depth)", "2 ** self.depth"),

    # the Python functions
    M(CHECK, "if isinstance(value, np.ma.MaskedArray):", "if False:"),
    M(CHECK, "if n != nodes or k != trees:", "if n != nodes:"),
    M(CHECK, "if dtypes[name] != dtypes[\"w_in\"]:", "if False:"),
    M(CHECK, "or out.shape != (*shape[:-1], spec.d_out)", ""),
    M(ON_NUMPY, "if not flags & _WRITABLE:", "if False:"),
    M(ON_NUMPY, " and x is not out", ""),
    M(ON_NUMPY, "if not inputs or not _overlaps(start, inputs):", "if True:"),
    M(ON_NUMPY, "first < end and start < first + len(first)", "first < end"),
    M(DISPATCH, "isinstance(threads, bool)", "False"),
    M(DISPATCH, "if threads is not None and type(threads) is not int:", "if False:"),
    M(DISPATCH, "written.isascii() and ", ""),
    M(DISPATCH, "if find_blas is None else (*run[:4], find_blas())", ""),
    M(ROUTING, "(paths[..., 0] != 0).any()", "False"),
    M(ROUTING, "(counts == 0) & (parents > 0)", "(counts == 0)"),
    # the backward pass: its driver
    M(BACKWARD, "p->order[token] = token;", "p->order[token] = batch - 1 - token;"),
    M(BACKWARD, "bit += RADIX_BITS", "bit += RADIX_BITS + 1"),
    M(BACKWARD, "for (int64_t i = 0; i < batch; i++) {\n            const int64_t token = p->order[i];",
      "for (int64_t i = batch - 1; i >= 0; i--) {\n            const int64_t token = p->order[i];"),
    M(BACKWARD, "p->leaf[i] = leaf_of(problem, p->order[i], tree);", "p->leaf[i] = leaf_of(problem, i, tree);"),
    M(BACKWARD, "cmm_least(CMM_BACKWARD_ROWS, problem->trees)", "problem->trees"),
    M(BACKWARD, "wants_dz(b) ? coefficients : 0", "coefficients"),
    M(BACKWARD, "b->dw_out ? coefficients : 0", "coefficients"),
    M(BACKWARD, "cmm_least(TOKENS, p->b->problem->batch - first)", "TOKENS"),
    M(BACKWARD, "b->leaf[half] < first", "b->leaf[half] < first - 1"),
    M(BACKWARD, "b->leaf[below] <= last", "b->leaf[below] <= last + 1"),
    M(BACKWARD, "below < problem->batch && ", ""),
    M(BACKWARD, "problem->depth == 0 ? problem->batch > 0 : is_visited(b, node)",
      "problem->depth == 0 || is_visited(b, node)"),
    M(BACKWARD, "b->accumulate & CMM_DW_IN ? NULL : b->dw_in", "b->dw_in"),
    M(BACKWARD, "b->accumulate & CMM_DW_OUT ? NULL : b->dw_out", "b->dw_out"),
    M(BACKWARD, "b->accumulate & CMM_DBIAS ? NULL : b->dbias", "b->dbias"),
    M(BACKWARD, "(b->trees * problem->nodes + ZEROED_ROWS - 1) / ZEROED_ROWS",
      "(b->trees * problem->nodes) / ZEROED_ROWS"),
    M(BACKWARD, "(problem->batch + TOKENS - 1) / TOKENS", "problem->batch / TOKENS"),
    M(BACKWARD, "(problem->d_in + work.strip - 1) / work.strip", "problem->d_in / work.strip"),
    M(BACKWARD, "b->dbias && index-- == 0", "b->dbias && index == 0"),
    M(BACKWARD, "cmm_least(p->strip, d - first)", "p->strip"),
    M(BACKWARD, "(chosen->path_nodes || chosen->path_leaves)", "chosen->path_nodes"),
    M(BACKWARD, "bytes ? begin(", "1 ? begin("),
    M(BACKWARD, "!memory && b.workspace_needed > 0", "b.workspace_needed > 0"),
    M(BACKWARD, "memory || b.workspace_needed == 0", "memory"),
    M(BACKWARD, "b.dz = wants_dz(&b) ? p.dz : NULL;", "b.dz = p.dz;"),
    M(BACKWARD, "    cmm_aligned_free(own);\n", ""),
    M(BACKWARD, "status = cmm_check_path(&problem, chosen.refused);", "status = CMM_OK;"),
    # its kernel
    M(BY_NODE, "return a == b ? depth + 1 :", "return a == b ? depth :"),
    M(BY_NODE, "b->leaf[first], b->leaf[first + n - 1]", "b->leaf[first], b->leaf[first]"),
    M(BY_NODE, "*= da[i][t];", "= da[i][t];"),
    M(BY_NODE, "*= da[i];", "= da[i];"),
    M(BY_NODE, "b->tree > 0 || (b->accumulate & CMM_DX)", "b->tree > 0"),
    M(BY_NODE, "b->tree > 0 || (b->accumulate", "(b->accumulate"),
    M(BY_NODE, "r >= fresh ?", "r > fresh ?"),
    M(BY_NODE, "s->b->order[place] * s->d", "place * s->d"),
    M(BY_NODE, "if (at < s->end)", "if (at <= s->end)"),
    M(BY_NODE, "shared_levels(leaf[lo - 1], leaf[lo], depth)", "depth + 1"),
    M(BY_NODE, "lo == 0      ? 0", "lo == 0      ? 1"),
    M(BY_NODE, "cmm_ancestor(leaf[lo], depth - (int32_t)(row + i))", "cmm_ancestor(leaf[lo], depth - (int32_t)row)"),
    M(BY_NODE, "if (leaf[half] < right)", "if (leaf[half] <= right)"),
    M(BY_NODE, "NAME(descend)(s, middle, hi, shared);", "(void)hi;"),
    M(BY_NODE, "is_out ? b->a : b->dz", "b->dz"),
    M(BY_NODE, "is_out ? b->ld_dw_out : b->ld_dw_in", "is_out ? problem->d_out : problem->d_in"),
    M(BY_NODE, "(is_out ? CMM_DW_OUT : CMM_DW_IN)", "CMM_DW_IN"),
    M(BY_NODE, "b->accumulate & CMM_DBIAS ? *out : 0", "0"),
    M(BY_NODE, "b->leaf[place], problem->depth) > row", "b->leaf[place], problem->depth) >= row"),
    # its checks
    M(CHECKS, "b->accumulate & ~(CMM_DX |", "b->accumulate & ~(16 | CMM_DX |"),
    M(CHECKS, "!b->dx && !b->dw_in && !b->dbias && !b->dw_out", "!b->dx && !b->dw_in"),
    M(CHECKS, "b->ld_dw_in < problem->d_in ||", ""),
    M(CHECKS, "|| cmm_bytes_of(rows, b->ld_dw_out, size) < 0", ""),
    M(CHECKS, "!problem->x && b->dw_in", "!problem->x"),
    M(CHECKS, "if (has_tokens) {", "if (1) {"),
    M(CHECKS, "for (int before = 0; before < o; before++)", "for (int before = 1; before < o; before++)"),
    M(CHECKS, "enum { BACKWARD_INPUTS = CMM_INPUTS + 2,", "enum { BACKWARD_INPUTS = CMM_INPUTS + 1,"),
    M(CHECKS, "rows, b->ld_dw_in, problem->d_in, sum_size)", "rows, problem->d_in, problem->d_in, sum_size)"),
    M(BACKWARD, "cmm_check_backward_workspace(&b, CMM_ALIGNMENT)", "cmm_check_backward_workspace(&b, 8)"),
    M(CHECKS, "b->workspace_bytes < b->workspace_needed", "b->workspace_bytes <= b->workspace_needed"),
    M(CHECKS, "if (cmm_overlap(workspace, inputs[i]))", "if (0)"),
    M(CHECKS, "if (cmm_overlap(workspace, outputs[o].extent))", "if (0)"),
    # derivatives of activations
    M(FORMULAS, "(a - h) * (a + h) * (CMM_R)0.5);", "0);"),
    M(FORMULAS, "CMM_EITHER(15.0f, 38.75)", "CMM_EITHER(14.0f, 38.75)"),
    M(FORMULAS, "x > 0 ? 1 : x <= 0 ? 0 : x;", "x >= 0 ? 1 : x < 0 ? 0 : x;"),
    M(FORMULAS, "x > 0 ? 1 : x <= 0 ? 0 : x;", "x > 0 ? 1 : 0;"),
    M(FORMULAS, "3 * c1 * (a * a)", "2 * c1 * (a * a)"),
    M(FORMULAS, "(sum - h) / (sum * sum)", "(sum - h) / sum"),
    M(LOOPS, "CMM_ACTIVATIONS(SLOPE_CASE)", "CMM_ACTIVATIONS(CASE)"),
    # the backward pass in Python
    M(CHECK, '("logits", logits, visited), ', ""),
    M(CHECK, "if nodes.shape != visited:", "if False:"),
    M(CHECK, "if dtype != dtypes[\"w_in\"]:", "if False:"),
    M(CHECK, "if not any(one is not False for one in wanted.values()):", "if False:"),
    M(CHECK, "if not isinstance(accumulate, bool | np.bool_):", "if False:"),
    M(ON_NUMPY, "if not array.flags.writeable:", "if False:"),
    M(ON_NUMPY, "if other != name and np.shares_memory(array, given[other]):", "if False:"),
    M(ON_NUMPY, "for name in given) if accumulate else 0", "for name in given)"),
    M(ON_NUMPY, "and not _overlaps(address(array), c_inputs)", ""),
    M(ON_NUMPY, "    if accumulate:\n        np.copyto(temporary, array)\n", ""),
    M(ON_NUMPY, "        if written[name] is not array:\n            np.copyto(array, written[name])\n", ""),
]
# fmt: on


# ---- results -------------------------------------------------------------------------------------------------------


class Result(NamedTuple):
    """What became of a break."""

    word: str  # killed, survived, equivalent, broken
    by: str  # the test, or the reason


HEAD = """\
# Mutations

Each line is a small break of the code. `python tests/support/mutations.py` puts one at a time into a copy of the tree
and runs the quick C tests or a fast part of the Python tests: **killed** means that a test noticed, and names the
first that did; **equivalent**, that the program does the same as before, and why. The script writes this page; the
breaks are in it. A test that hung was ended after {limit} seconds, and has noticed too.

{summary}

"""
COLUMNS = "| file | what it was | what it becomes | result | by |\n| --- | --- | --- | --- | --- |\n"


def _cell(code: str) -> str:
    code = code.replace("|", "\\|").replace("\n", " ")
    ticks = "``" if "`" in code else "`"
    return f"{ticks}{code}{ticks}" if code else "nothing"


def row_of(mutant: Mutant) -> str:
    """The first three cells of a break's line, which tell it from every other."""
    return f"| `{mutant.file}` | {_cell(mutant.was)} | {_cell(mutant.becomes)} |"


def known() -> dict[str, Result]:
    """The results that the page holds, by their lines' first three cells."""
    found = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines() if PAGE.exists() else []:
        parts = line.removesuffix(" |").rsplit(" | ", 2)
        if line.startswith("| `") and len(parts) == 3:
            found[parts[0] + " |"] = Result(parts[1], parts[2])
    return found


def write(results: dict[str, Result]) -> None:
    """Write the page: a line for each break of the table whose result is known, from before or now."""
    results = {**known(), **results}
    rows, words = [], []
    for mutant in MUTANTS:
        row = row_of(mutant)
        if row in results:
            words.append(results[row].word)
            rows.append(f"{row} {results[row].word} | {results[row].by} |\n")
    summary = ", ".join(f"{words.count(word)} {word}" for word in sorted(set(words)))
    text = HEAD.format(limit=_LIMIT, summary=f"{len(words)} breaks: {summary}.") + COLUMNS + "".join(rows)
    PAGE.write_text(text, encoding="utf-8")


# ---- running -------------------------------------------------------------------------------------------------------


def _run(command: list[str | Path], log: Path, limit: int = _LIMIT, **more: object) -> bool | None:
    """Whether a command succeeds; None where it hangs. Its whole group ends with it."""
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            **more,  # type: ignore[call-overload]
        )
        try:
            return process.wait(limit) == 0
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            return None


class Place:
    """A copy of what is to be broken, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.build = folder / "build"
        self.package = folder / "package"

    def prepare(self, c: bool, python: bool) -> None:
        """Copy, build, and see the tests pass."""
        self.folder.mkdir()
        if c:
            for name in ("CMakeLists.txt", "cmake", "libcmm", "tests/c"):
                copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
                (self.folder / name).parent.mkdir(exist_ok=True)
                copy(ROOT / name, self.folder / name)
            options = ["-DCMM_BUILD_TESTS=ON", "-DCMM_CUDA=OFF", "-DCMAKE_BUILD_TYPE=None", "-DCMAKE_C_FLAGS=-O1"]
            configure = ["cmake", "-S", self.folder, "-B", self.build, "-G", "Ninja", *options]
            if not _run(configure, self.log) or not _run(
                ["cmake", "--build", self.build, "--parallel", "1"], self.log, limit=20 * _LIMIT
            ):
                sys.exit(self.log.read_text())
        if python:
            import cmm

            shutil.copytree(Path(cmm.__file__).parent, self.package / "cmm")
            shutil.copytree(ROOT / "python/cmm", self.package / "cmm", dirs_exist_ok=True)

    def _build(self, tests: list[str]) -> bool:
        targets = [f"test_{test.split()[0]}" for test in tests]
        return bool(_run(["cmake", "--build", self.build, "--parallel", "1", "--target", *targets], self.log))

    def _c_tests(self, tests: list[str]) -> str:
        for test in tests:
            name, *arguments = test.split()
            if name.startswith("blas"):  # ctest knows their files
                command: list[str | Path] = ["ctest", "--test-dir", self.build, "-R", f"^{name}$", "--no-tests=error"]
            else:
                command = [self.build / f"tests/c/test_{name}", *arguments]
            passed = _run(command, self.log)
            if not passed:
                return f"`tests/c/{name}.c`" + ("" if passed is False else ", which hung")
        return ""

    def _python_tests(self, names: list[str]) -> str:
        settings = {"CMM_TESTS": "full", "CMM_HYPOTHESIS_PROFILE": "small"}
        environment = {**os.environ, "PYTHONPATH": str(self.package), **settings}
        options = [
            "-x",
            "-q",
            "-p",
            "no:cacheprovider",
            "--no-header",
            "-k",
            "not many and not mutated_files and not size5",
        ]
        for name in names:
            command: list[str | Path] = [sys.executable, "-B", "-m", "pytest", *options, ROOT / "tests" / name]
            passed = _run(command, self.log, env=environment, cwd=ROOT)
            if not passed:
                said = self.log.read_text(errors="replace")
                failed = re.search(r"^(?:FAILED|ERROR) tests/(\S+?)(?:\[| - |$)", said, re.MULTILINE)
                return f"`tests/{failed[1] if failed else name}`" + ("" if passed is False else ", which hung")
        return ""

    def whole(self, mutants: list[Mutant]) -> Result:
        """Run the tests of these breaks without any."""
        c = list(dict.fromkeys(test for mutant in mutants for test in C_TESTS.get(mutant.file, [])))
        python = list(dict.fromkeys(test for mutant in mutants for test in PYTHON_TESTS.get(mutant.file, [])))
        by = self._c_tests(c) or self._python_tests(python)
        return Result("killed" if by else "survived", by)

    def broken(self, mutant: Mutant) -> Result:
        """Break the copy, test it and mend it."""
        c = mutant.file in C_TESTS
        place = self.folder / mutant.file if c else self.package / mutant.file.removeprefix("python/")
        before = place.read_text(encoding="utf-8")
        place.write_text(before.replace(mutant.was, mutant.becomes), encoding="utf-8")
        try:
            if c and not self._build(C_TESTS[mutant.file]):
                return Result("broken", "it does not compile")
            by = self._c_tests(C_TESTS[mutant.file]) if c else self._python_tests(PYTHON_TESTS[mutant.file])
            return Result("killed" if by else "survived", by)
        finally:
            place.write_text(before, encoding="utf-8")


def fits(mutant: Mutant) -> bool:
    """Whether the file has the text that is to be changed exactly once."""
    return (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.was) == 1


def selected(words: list[str], new: bool) -> Iterator[Mutant]:
    """The breaks whose file or text has one of the words; with `new`, those of them without a good result."""
    there = known()
    for mutant in MUTANTS:
        if new and there.get(row_of(mutant), Result("", "")).word in ("killed", "equivalent"):
            continue
        if not words or any(word in f"{mutant.file} {mutant.was}" for word in words):
            yield mutant


def run_all(mutants: list[Mutant], jobs: int, report: Callable[[Mutant, Result], None]) -> None:
    """Try breaks in several copies at once."""
    c = any(mutant.file in C_TESTS for mutant in mutants)
    python = any(mutant.file in PYTHON_TESTS for mutant in mutants)
    with tempfile.TemporaryDirectory(prefix="cmm-mutations-") as folder, ThreadPoolExecutor(jobs) as pool:
        places = [Place(Path(folder) / str(job)) for job in range(jobs)]
        list(pool.map(lambda place: place.prepare(c, python), places))
        result = places[0].whole(mutants)
        if result.word == "killed":
            sys.exit(f"{result.by} fails before anything is broken:\n{places[0].log.read_text(errors='replace')}")
        free: queue.Queue[Place] = queue.Queue()
        for place in places:
            free.put(place)
        lock = threading.Lock()

        def one(mutant: Mutant) -> None:
            place = free.get()
            try:
                result = place.broken(mutant)
            finally:
                free.put(place)
            with lock:
                report(mutant, result)

        list(pool.map(one, mutants))


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Break the code in small ways and see whether the tests notice.")
    parser.add_argument("words", nargs="*", help="only breaks whose file or text has one of these words")
    parser.add_argument(
        "--new",
        action="store_true",
        help="only breaks that docs/internals/mutations.md does not know, or knows to survive",
    )
    parser.add_argument("--jobs", type=int, default=2, help="copies that are tried at once (default 2)")
    parser.add_argument("--list", action="store_true", help="say which breaks are selected, and run none")
    arguments = parser.parse_args()
    mutants = list(selected(arguments.words, arguments.new))
    misfits = [mutant for mutant in mutants if not fits(mutant)]
    for mutant in misfits:
        print(f"does not apply: {mutant.file} should have exactly once: {mutant.was!r}")
    if arguments.list:
        for mutant in mutants:
            print(f"{mutant.file}: {mutant.was!r} -> {mutant.becomes!r}")
        print(f"{len(mutants)} breaks")
    if misfits or arguments.list:
        return bool(misfits)
    if platform.machine() not in ("x86_64", "AMD64"):
        print("breaks of AVX2 and AVX-512 code will survive here: this CPU runs none of it")

    results: dict[str, Result] = {}
    began, done, survived = time.monotonic(), 0, 0

    def report(mutant: Mutant, result: Result) -> None:
        nonlocal done, survived
        done += 1
        if result.word == "survived" and mutant.equivalent:
            result = Result("equivalent", mutant.equivalent)
        elif result.word == "killed" and mutant.equivalent:
            result = Result("killed", f"{result.by}, though it was said to be equivalent")
        survived += result.word in ("survived", "broken") or "though" in result.by
        results[row_of(mutant)] = result
        seconds = time.monotonic() - began
        where = f"{mutant.file}: {mutant.was!r} -> {mutant.becomes!r}"
        print(f"{done} of {len(mutants)} at {seconds:.0f} s: {result.word}, {where}: {result.by}", flush=True)
        write(results)

    if mutants:
        run_all(mutants, arguments.jobs, report)
    write(results)
    print(f"{survived} of {done} need a test, or a reason")
    return int(survived > 0)


if __name__ == "__main__":
    sys.exit(main())
