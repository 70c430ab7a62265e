"""libcmm_cuda refuses wrong calls before it asks for a GPU: these tests need the library, and no device."""

import re
from pathlib import Path
from typing import Any

import cmm
import pytest
from building import run, tool
from cmm import _cuda
from cmm._call import NULL, ffi, lib, text

pytestmark = pytest.mark.skipif(
    _cuda._load()[0] == lib.CMM_ERROR_CUDA_ABSENT, reason="libcmm_cuda was not built: there was no CUDA compiler"
)

# dtype, activation, tie, depth, trees, d_in, d_out, w_in, bias, w_out, then level, method, stream, workspace and its
# bytes, then batch, x, y, nodes, logits, wants_y. Addresses stand for device memory, which is never touched.
NAMES = [
    "dtype",
    "activation",
    "tie",
    "depth",
    "trees",
    "d_in",
    "d_out",
    "w_in",
    "bias",
    "w_out",
    "level",
    "method",
    "stream",
    "workspace",
    "bytes",
    "batch",
    "x",
    "y",
    "nodes",
    "logits",
    "wants_y",
]
GOOD: dict[str, Any] = dict(
    zip(
        NAMES,
        (0, 0, 0, 3, 1, 8, 8, 0x10000, 0, 0x20000, NULL, NULL, 0, 0, 0, 4, 0x30000, 0x40000, 0, 0, 1),
        strict=True,
    )
)


def status(**changes: Any) -> str:
    arguments = {**GOOD, **changes}
    if isinstance(arguments["level"], str):
        arguments["level"] = ffi.new("char[]", arguments["level"].encode())
    return text(lib.cmm_status_name(lib.cmm_py_cuda_fff(*arguments.values(), NULL))).removeprefix("CMM_ERROR_")


@pytest.mark.parametrize(
    ("changes", "want"),
    [
        ({"dtype": 4}, "DTYPE"),
        ({"dtype": -1}, "DTYPE"),
        ({"activation": 5}, "ACTIVATION"),
        ({"tie": 2}, "TIE"),
        ({"depth": 31}, "DEPTH"),
        ({"trees": 0}, "TREES"),
        ({"d_in": 0}, "D_IN"),
        ({"d_out": 0}, "D_OUT"),
        ({"trees": 2**62}, "LAYER_TOO_LARGE"),
        ({"level": "native"}, "LEVEL"),
        ({"batch": -1}, "BATCH"),
        ({"batch": 2**62}, "BATCH_TOO_LARGE"),
        ({"w_in": 0}, "W_IN_NULL"),
        ({"w_out": 0}, "W_OUT_NULL"),
        ({"x": 0}, "X_NULL"),
        ({"y": 0}, "Y_NULL"),
        ({"wants_y": 0}, "PATH_NULL"),
        ({"w_in": 0x10001}, "W_IN_ALIGN"),
        ({"dtype": 2, "w_out": 0x20001}, "W_OUT_ALIGN"),
        ({"bias": 0x50002}, "BIAS_ALIGN"),
        ({"x": 0x30002}, "X_ALIGN"),
        ({"y": 0x40001}, "Y_ALIGN"),
        ({"nodes": 0x50002}, "NODES_ALIGN"),
        ({"dtype": 2, "logits": 0x50002}, "LOGITS_ALIGN"),  # they are float
        ({"y": 0x30020}, "Y_OVERLAP"),
        ({"nodes": 0x10000}, "NODES_OVERLAP"),
        ({"nodes": 0x40010}, "NODES_OVERLAP"),
        ({"nodes": 0x50000, "logits": 0x50010}, "LOGITS_OVERLAP"),
    ],
    ids=str,
)
def test_wrong_calls(changes: dict[str, Any], want: str) -> None:
    assert status(**changes) == want


def test_a_level_says_why_it_cannot_be_used() -> None:
    for level in cmm.levels():
        if level.name.startswith("cuda") and not level.usable:
            with pytest.raises(cmm.UnusableError, match="cannot be used here"):
                _cuda.choose(level.name)


def test_the_library_exports_its_functions_and_links_no_other() -> None:
    """Of its own copy of the CUDA run-time library nothing is seen, and cuBLAS is not there."""
    library = Path(cmm.get_include()).parent / "lib/libcmm_cuda.so"
    header = Path(cmm.get_include(), "cmm_cuda.h").read_text()
    exported = {line.split()[-1] for line in run(tool("nm"), "-D", "--defined-only", library).splitlines()}
    assert exported == set(re.findall(r"^CMM_API .*?(cmm_cuda_\w+)\(", header, re.MULTILINE))
    needed = re.findall(r"NEEDED.*\[(.*?)\.so", run(tool("readelf"), "-d", library))
    assert set(needed) <= {"libc", "libm", "libdl", "librt", "libpthread", "libstdc++", "libgcc_s", "ld-linux-x86-64"}
