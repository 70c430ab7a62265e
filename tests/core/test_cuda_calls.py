"""libcmm_cuda refuses wrong calls before it asks for a GPU: these tests need the library, and no device."""

import itertools
import re
from typing import Any

import cmm
import pytest
from building import ROOT, run, tool
from cmm._dispatch import choose_cuda
from cmm._native import NULL, cuda, ffi, lib, text
from cuda_interface import interface

pytestmark = pytest.mark.skipif(
    cuda.load()[0] == lib.CMM_ERROR_CUDA_ABSENT,
    reason="libcmm_cuda is not here (-C cmake.define.CMM_CUDA=ON builds it, or libcmm-cuda13 brings it)",
)

# dtype, activation, tie, depth, trees, d_in, d_out, w_in, bias, w_out, then level, algorithm, stream, workspace and
# its bytes, then batch, x, y, nodes, logits, path_nodes, path_leaves,
# wants_y. Addresses stand for device memory, which is never touched.
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
    "algorithm",
    "stream",
    "workspace",
    "bytes",
    "batch",
    "x",
    "y",
    "nodes",
    "logits",
    "path_nodes",
    "path_leaves",
    "wants_y",
]
GOOD: dict[str, Any] = dict(
    zip(
        NAMES,
        (0, 0, 0, 3, 1, 8, 8, 0x10000, 0, 0x20000, NULL, NULL, 0, 0, 0, 4, 0x30000, 0x40000, 0, 0, 0, 0, 1),
        strict=True,
    )
)


def status(**changes: Any) -> str:
    arguments = {**GOOD, **changes}
    if isinstance(arguments["level"], str):
        arguments["level"] = ffi.new("char[]", arguments["level"].encode())
    return text(lib.cmm_status_name(lib.cmm_py_cuda_fff(*arguments.values(), NULL))).removeprefix("CMM_ERROR_")


GOOD_OUTPUT = {name: GOOD[name] for name in ("d_out", "w_out", "y", "nodes", "logits")}

# What a case needs in order to be wrong is in it too, so that two without a common key do not put each other right.
WRONG_CALLS: list[tuple[dict[str, Any], str]] = [
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
    ({**GOOD_OUTPUT, "wants_y": 0}, "PATH_NULL"),
    ({"dtype": 0, "w_in": 0x10001}, "W_IN_ALIGN"),
    ({"dtype": 2, "w_out": 0x20001}, "W_OUT_ALIGN"),
    ({"dtype": 0, "bias": 0x50002}, "BIAS_ALIGN"),
    ({"dtype": 0, "x": 0x30002}, "X_ALIGN"),
    ({"dtype": 0, "y": 0x40001}, "Y_ALIGN"),
    ({"nodes": 0x50002}, "NODES_ALIGN"),
    ({"dtype": 2, "logits": 0x50002}, "LOGITS_ALIGN"),  # they are float
    ({"y": 0x30020}, "Y_OVERLAP"),
    ({"path_nodes": 0x60000, "path_leaves": 0x70000}, "PATH_TWICE"),
    ({"path_nodes": 0x60002}, "PATH_ALIGN"),
    ({"path_nodes": 0x40000}, "Y_OVERLAP"),
    ({"path_nodes": 0x60000, "logits": 0x6003C}, "LOGITS_OVERLAP"),
    ({"nodes": 0x10000}, "NODES_OVERLAP"),
    ({"nodes": 0x40010}, "NODES_OVERLAP"),
    ({"nodes": 0x50000, "logits": 0x50010}, "LOGITS_OVERLAP"),
]


@pytest.mark.parametrize(("changes", "want"), WRONG_CALLS, ids=str)
def test_wrong_calls(changes: dict[str, Any], want: str) -> None:
    assert status(**changes) == want


# As above, of the backward pass: layer; stream, workspace, its bytes, batch; arrays; accumulate; gradients.
BACKWARD_NAMES = [
    *NAMES[:8],
    "w_out",
    *NAMES[12:16],
    "x",
    "nodes",
    "logits",
    "dy",
    "accumulate",
    "dx",
    "dw_in",
    "dbias",
    "dw_out",
]
GOOD_BACKWARD: dict[str, Any] = dict(
    zip(
        BACKWARD_NAMES,
        (
            *(0, 0, 0, 3, 1, 8, 8, 0x10000, 0x20000, 0, 0, 0, 4),
            *(0x30000, 0x40000, 0x50000, 0x60000, 0, 0x70000, 0x80000, 0x90000, 0xA0000),
        ),
        strict=True,
    )
)
NO_GRADIENTS = {"dx": 0, "dw_in": 0, "dbias": 0, "dw_out": 0}


def backward_status(**changes: Any) -> str:
    arguments = {**GOOD_BACKWARD, **changes}
    code = lib.cmm_py_cuda_fff_backward(*arguments.values(), NULL)
    return text(lib.cmm_status_name(code)).removeprefix("CMM_ERROR_")


WRONG_BACKWARD: list[tuple[dict[str, Any], str]] = [
    ({"dtype": 4}, "DTYPE"),
    ({"activation": 5}, "ACTIVATION"),
    ({"tie": 2}, "TIE"),
    ({"depth": 31}, "DEPTH"),
    ({"trees": 0}, "TREES"),
    ({"d_in": 0}, "D_IN"),
    ({"d_out": 0}, "D_OUT"),
    ({"accumulate": 16}, "ACCUMULATE"),
    (NO_GRADIENTS, "GRADIENTS_NONE"),
    ({"batch": -1}, "BATCH"),
    ({"batch": 2**62}, "BATCH_TOO_LARGE"),
    ({"w_in": 0}, "W_IN_NULL"),
    ({"w_out": 0}, "W_OUT_NULL"),
    ({"dtype": 0, "w_in": 0x10001}, "W_IN_ALIGN"),
    ({"dtype": 2, "w_out": 0x20001}, "W_OUT_ALIGN"),
    ({"x": 0, "dw_in": 0x80000}, "X_NULL"),
    ({"nodes": 0}, "NODES_NULL"),
    ({"logits": 0}, "LOGITS_NULL"),
    ({"dy": 0}, "DY_NULL"),
    ({"dtype": 0, "x": 0x30002}, "X_ALIGN"),
    ({"nodes": 0x40002}, "NODES_ALIGN"),
    ({"dtype": 2, "logits": 0x50002}, "LOGITS_ALIGN"),  # they are float
    ({"dtype": 2, "dy": 0x60001}, "DY_ALIGN"),
    ({"dtype": 0, "dx": 0x70002}, "DX_ALIGN"),
    ({"dtype": 2, "dw_in": 0x80002}, "DW_IN_ALIGN"),  # and so are the gradients of weights
    ({"dtype": 3, "dbias": 0x90002}, "DBIAS_ALIGN"),
    ({"dtype": 1, "dw_out": 0xA0004}, "DW_OUT_ALIGN"),
    ({"dx": 0x30020, "x": 0x30000}, "DX_OVERLAP"),
    ({"dw_in": 0x20000, "w_out": 0x20000}, "DW_IN_OVERLAP"),
    ({"dbias": 0x40020, "nodes": 0x40000}, "DBIAS_OVERLAP"),
    ({"dw_out": 0x50010, "logits": 0x50000}, "DW_OUT_OVERLAP"),
    ({"dw_out": 0x70010, "dx": 0x70000}, "DW_OUT_OVERLAP"),
]


@pytest.mark.parametrize(("changes", "want"), WRONG_BACKWARD, ids=str)
def test_wrong_backward_calls(changes: dict[str, Any], want: str) -> None:
    assert backward_status(**changes) == want


def test_backward_calls_that_are_wrong_in_two_ways() -> None:
    page = (ROOT / "docs/reference/status-codes.md").read_text(encoding="utf-8")
    tables = [page.split(f"| {title} |")[1].split("\n\n")[0] for title in ("checked", "of a backward pass")]
    layer, backward = (re.findall(r"`(\w+)`", table) for table in tables)
    order = layer[: layer.index("BATCH")] + backward
    pairs = 0
    for (one, says_one), (two, says_two) in itertools.combinations(WRONG_BACKWARD, 2):
        if not one.keys() & two.keys():
            assert backward_status(**one, **two) == min(says_one, says_two, key=order.index), (one, two)
            pairs += 1
    assert pairs >= 200


# Of what lies between two products; codes of a layer, stream, batch, arrays.
GOOD_HIDDEN: dict[str, Any] = {
    **{name: GOOD[name] for name in ("dtype", "activation", "tie", "depth", "trees", "stream", "batch")},
    "logits": 0x30000,
    "path": 0,
    "dy": 0x40000,
    "y": 0x50000,
    "dx": 0x60000,
    "visited": 0,
    "nodes": 0x70000,
}


def hidden_status(**changes: Any) -> str:
    code = lib.cmm_py_cuda_fff_hidden(*{**GOOD_HIDDEN, **changes}.values())
    return text(lib.cmm_status_name(code)).removeprefix("CMM_ERROR_")


WRONG_HIDDEN: list[tuple[dict[str, Any], str]] = [
    ({"dtype": 4}, "DTYPE"),
    ({"activation": 5}, "ACTIVATION"),
    ({"tie": 2}, "TIE"),
    ({"depth": 31}, "DEPTH"),
    ({"trees": 0}, "TREES"),
    ({"path": 0x80000, "nodes": 0x70000}, "PATH_TWICE"),
    ({"batch": -1}, "BATCH"),
    ({"batch": 2**62}, "BATCH_TOO_LARGE"),
    ({"batch": 2**57, "depth": 4}, "BATCH_TOO_LARGE"),  # of a number for each tree, not for each node
    ({"logits": 0}, "LOGITS_NULL"),
    ({"y": 0, "dx": 0}, "Y_NULL"),
    ({"dy": 0}, "DY_NULL"),
    ({"dtype": 0, "logits": 0x30002}, "LOGITS_ALIGN"),
    ({"dtype": 2, "logits": 0x30001}, "LOGITS_ALIGN"),
    ({"dtype": 2, "logits": 0x30002, "path": 0x80000, "nodes": 0}, "LOGITS_ALIGN"),  # they are float
    ({"dtype": 2, "dy": 0x40001}, "DY_ALIGN"),
    ({"path": 0x80002, "nodes": 0}, "PATH_ALIGN"),
    ({"dtype": 1, "y": 0x50004}, "Y_ALIGN"),
    ({"dtype": 3, "dx": 0x60001}, "DX_ALIGN"),
    ({"nodes": 0x70002}, "NODES_ALIGN"),
    ({"y": 0x300EC, "logits": 0x30000}, "Y_OVERLAP"),
    ({"y": 0x40000, "dy": 0x40000}, "Y_OVERLAP"),
    ({"y": 0x8003C, "path": 0x80000, "nodes": 0}, "Y_OVERLAP"),
    ({"dx": 0x40000, "dy": 0x40000}, "DX_OVERLAP"),
    ({"dx": 0x50000, "y": 0x50000}, "DX_OVERLAP"),
    ({"nodes": 0x60010, "dx": 0x60000}, "NODES_OVERLAP"),
    ({"visited": 0x600EF, "dx": 0x60000}, "NODES_OVERLAP"),
    ({"visited": 0x6FFC5, "nodes": 0x70000}, "NODES_OVERLAP"),
]


@pytest.mark.parametrize(("changes", "want"), WRONG_HIDDEN, ids=str)
def test_wrong_calls_between_two_products(changes: dict[str, Any], want: str) -> None:
    assert hidden_status(**changes) == want


def test_calls_between_two_products_that_are_not_wrong() -> None:
    """As far as they go without a GPU: what they do not need, and what lies beside another array."""
    for right in (
        {},
        {"y": 0},
        {"dx": 0, "dy": 0, "nodes": 0},
        {"y": 0, "dx": 0, "visited": 0x80001},
        {"visited": 0x6FFC4},  # 60 bytes
        {"dx": 0, "dy": 0x50000},  # which is not read
        {"dtype": 2, "path": 0x80000, "nodes": 0},
        {"y": 0x300F0},  # 4 tokens, 15 nodes, float
        {"batch": 0, "logits": 0, "dy": 0, "y": 0, "dx": 0, "nodes": 0},
    ):
        assert hidden_status(**right, stream=1) in ("CUDA_DEVICE", "CUDA_LAUNCH", "CMM_OK"), right


def test_between_two_products_a_run_is_a_stream() -> None:
    """As a program would call it: other fields of the run are refused, and layers of other versions are read."""
    c, library = interface()
    logits, y, path = (c.cast("void *", at) for at in (0x30000, 0x50000, 0x80000))

    def code(run: Any = None, **changes: Any) -> str:
        layer = {"size": c.sizeof("cmm_fff"), "depth": 3, "trees": 1, "d_in": 1, "d_out": 1, **changes}
        how = c.NULL if run is None else c.new("cmm_cuda_run *", {"size": c.sizeof("cmm_cuda_run"), **run})
        arrays = logits, c.NULL, c.NULL, y, c.NULL, c.NULL, c.NULL
        found = library.cmm_cuda_fff_hidden(c.new("cmm_fff *", layer), how, 4, *arrays)
        return text(lib.cmm_status_name(found)).removeprefix("CMM_ERROR_")

    assert library.cmm_cuda_fff_hidden(*[c.NULL] * 2, 4, *[c.NULL] * 7) == lib.CMM_ERROR_LAYER_NULL
    assert code(size=72) == "LAYER_SIZE"
    assert code(run={"size": 8}) == "RUN_SIZE"
    for field in ("path_nodes", "path_leaves"):
        assert code(run={field: c.cast("int32_t *", path)}) == "PATH_TWICE"
    assert code(weight_dtype=lib.CMM_BF16) == "LEVEL_WEIGHT_DTYPE"
    assert code(run={"algorithm": c.new("char[]", b"grouped")}) in ("METHOD", "CUDA_DEVICE")


def test_wrong_in_two_ways() -> None:
    """The status is that of what is checked first, in the order that docs/reference/status-codes.md promises."""
    table = (
        (ROOT / "docs/reference/status-codes.md").read_text(encoding="utf-8").split("| checked |")[1].split("\n\n")[0]
    )
    order = re.findall(r"`(\w+)`", table)
    pairs = 0
    for (one, says_one), (two, says_two) in itertools.combinations(WRONG_CALLS, 2):
        if not one.keys() & two.keys():
            assert status(**one, **two) == min(says_one, says_two, key=order.index), (one, two)
            pairs += 1
    assert pairs >= 250


def test_every_function_refuses_wrong_structs() -> None:
    """As a program that was built with another header would call it."""
    c, library = interface()
    bytes_ = c.new("int64_t *", 77)

    def calls(kind: str, layer: Any, run: Any) -> set[str]:
        """Every function that takes a layer of this kind."""
        x, y, none = c.cast("void *", 0x30000), c.cast("void *", 0x40000), c.NULL
        if kind == "cmm_ff":
            codes = [
                library.cmm_cuda_ff_workspace(layer, run, 4, bytes_),
                library.cmm_cuda_ff_forward(layer, run, 4, x, y),
            ]
        else:
            codes = [
                library.cmm_cuda_fff_workspace(layer, run, 4, bytes_),
                library.cmm_cuda_cmm_workspace(layer, run, 4, bytes_),
                library.cmm_cuda_fff_forward(layer, run, 4, x, y, none, none),
                library.cmm_cuda_cmm_forward(layer, run, 4, x, c.cast("int32_t *", 0x50000), none),
            ]
        return {text(lib.cmm_status_name(code)).removeprefix("CMM_ERROR_") for code in codes}

    weights = {"w_in": c.cast("void *", 0x10000), "w_out": c.cast("void *", 0x20000), "d_in": 8, "d_out": 8}
    for kind, more in (("cmm_fff", {"depth": 3, "trees": 1}), ("cmm_ff", {"neurons": 15})):
        good = {"size": c.sizeof(kind), **weights, **more}

        def said(kind: str = kind, good: Any = good, run: Any = None, **changes: Any) -> set[str]:
            how = c.NULL if run is None else c.new("cmm_cuda_run *", {"size": c.sizeof("cmm_cuda_run"), **run})
            return calls(kind, c.new(f"{kind} *", {**good, **changes}), how)

        assert calls(kind, c.NULL, c.NULL) == {"LAYER_NULL"}
        assert said(size=72) == {"LAYER_SIZE"}
        assert said(reserved=1) == {"RESERVED"}
        assert said(ld_in=7) == {"LD_IN"}
        assert said(run={"size": 8}) == {"RUN_SIZE"}
        assert said(run={"reserved": 1}) == {"RESERVED"}
        for field in ("path_nodes", "path_leaves"):
            path = {field: c.cast("int32_t *", 0x60002)}
            assert said(run=path) == {"PATH_DENSE"} if kind == "cmm_ff" else "PATH_ALIGN" in said(run=path)
        level = c.new("char[]", b"cuda-bmm")  # it is Python's alone
        assert said(run={"level": level}) == {"LEVEL"}
        # The rows of a strided layer: the last one, the room between two, and the first byte after them.
        room = 4 * 8 * 4  # bytes of y
        far = 0x10000  # elements from row to row
        rows, y = 15, 0x40000000
        algorithm = c.new("char[]", b"run")
        no_such_method = c.new("cmm_cuda_run *", {"size": c.sizeof("cmm_cuda_run"), "algorithm": algorithm})
        for weight, ld in (("w_in", "ld_in"), ("w_out", "ld_out")):
            end = ((rows - 1) * far + 8) * 4
            for start, want in (
                (y - end + 4, {"Y_OVERLAP"}),
                (y - 3 * far * 4 - 32, {"Y_OVERLAP"}),
                (y + room - 4, {"Y_OVERLAP"}),
                (y - end, {"METHOD", "CUDA_DEVICE"}),
                (y + room, {"METHOD", "CUDA_DEVICE"}),
            ):
                layer = c.new(f"{kind} *", {**good, weight: c.cast("void *", start), ld: far})
                arrays = c.cast("void *", 0x30000), c.cast("void *", y)
                if kind == "cmm_ff":
                    code = library.cmm_cuda_ff_forward(layer, no_such_method, 4, *arrays)
                else:
                    code = library.cmm_cuda_fff_forward(layer, no_such_method, 4, *arrays, c.NULL, c.NULL)
                assert text(lib.cmm_status_name(code)).removeprefix("CMM_ERROR_") in want, (kind, weight, start)
    # CMM alone looks at nothing that belongs to the output.
    good = {"size": c.sizeof("cmm_fff"), **weights, "depth": 3, "trees": 1}
    for strange in ({"w_out": c.NULL}, {"w_out": c.cast("void *", 0x50003)}, {"d_out": -1}, {"ld_out": -1}):
        layer = c.new("cmm_fff *", {**good, **strange})
        nodes = c.cast("int32_t *", 0x50000)
        code = library.cmm_cuda_cmm_forward(layer, no_such_method, 4, c.cast("void *", 0x30000), nodes, c.NULL)
        assert text(lib.cmm_status_name(code)).removeprefix("CMM_ERROR_") in ("METHOD", "CUDA_DEVICE"), strange
    assert said(neurons=-1) == {"NEURONS"}
    narrow = {"size": c.sizeof("cmm_fff"), **weights, "depth": 3, "trees": 1}
    assert said("cmm_fff", narrow, weight_dtype=lib.CMM_BF16) == {"LEVEL_WEIGHT_DTYPE"}
    assert said("cmm_fff", narrow, dtype=lib.CMM_F16, weight_dtype=lib.CMM_BF16) == {"WEIGHT_DTYPE"}
    assert said("cmm_fff", narrow, scale_in=c.cast("float *", 0x50000)) == {"SCALE"}
    assert bytes_[0] == 77  # nothing was written
    assert library.cmm_cuda_fff_workspace(c.NULL, c.NULL, 4, c.NULL) == lib.CMM_ERROR_BYTES_NULL
    info = c.new("cmm_kernel_info *")
    assert library.cmm_cuda_kernel_get(0, c.NULL) == lib.CMM_ERROR_INFO_NULL
    assert library.cmm_cuda_kernel_get(0, info) == lib.CMM_ERROR_INFO_SIZE
    info.size = c.sizeof("cmm_kernel_info")
    count = library.cmm_cuda_kernel_count()
    assert [library.cmm_cuda_kernel_get(i, info) for i in (-1, count)] == [lib.CMM_ERROR_INDEX] * 2
    assert library.cmm_cuda_kernel_get(count - 1, info) == lib.CMM_OK


@pytest.mark.parametrize(
    ("kind", "oldest"), [("cmm_fff", 88), ("cmm_ff", 80), ("cmm_cuda_run", 48), ("cmm_kernel_info", 56)]
)
def test_structs_of_other_versions(kind: str, oldest: int) -> None:
    """A size that is accepted shows in the check that comes after it. No call gets as far as the GPU."""
    c, library = interface()
    memory = c.new("char[]", 512)
    struct = c.cast(f"{kind} *", memory)
    bytes_, today = c.new("int64_t *"), c.sizeof(kind)
    level = c.new("char[]", b"cuda-bmm")

    def call(size: int, tail: int = 0) -> str:
        c.memmove(memory, bytes(512), 512)
        layer = {"trees": 1, "neurons": 1, "d_in": 8, "d_out": 8, "ld_in": 7}
        for name in {name for name, _ in c.typeof(kind).fields} & layer.keys():
            setattr(struct, name, layer[name])
        struct.size = size
        if tail:
            memory[size - 1] = bytes([tail])
        if kind == "cmm_fff":
            code = library.cmm_cuda_fff_workspace(struct, c.NULL, 4, bytes_)
        elif kind == "cmm_ff":
            code = library.cmm_cuda_ff_workspace(struct, c.NULL, 4, bytes_)
        elif kind == "cmm_cuda_run":
            struct.level = level
            good = {"size": c.sizeof("cmm_fff"), "trees": 1, "d_in": 8, "d_out": 8}
            code = library.cmm_cuda_fff_workspace(c.new("cmm_fff *", good), struct, 4, bytes_)
        else:
            code = library.cmm_cuda_kernel_get(0, struct)
        return text(lib.cmm_status_name(code)).removeprefix("CMM_ERROR_")

    accepted = {"cmm_fff": "LD_IN", "cmm_ff": "LD_IN", "cmm_cuda_run": "LEVEL", "cmm_kernel_info": "CMM_OK"}[kind]
    refused = {"cmm_cuda_run": "RUN_SIZE", "cmm_kernel_info": "INFO_SIZE"}.get(kind, "LAYER_SIZE")
    sizes = range(oldest, today + 65, 8)
    assert {call(size) for size in sizes} == {accepted}
    assert {call(size, tail=1) for size in sizes if size > today} == {refused}
    assert {call(size) for size in (0, oldest - 8, oldest + 1, 1 << 13, 2**32 - 1)} == {refused}


def test_a_level_says_why_it_cannot_be_used() -> None:
    for level in cmm.levels():
        if level.name.startswith("cuda") and not level.available:
            with pytest.raises(cmm.UnusableError, match="cannot be used here"):
                choose_cuda(level.name, None)


def test_the_library_exports_its_functions_and_links_no_other() -> None:
    """Of its own copy of the CUDA run-time library nothing is seen, and cuBLAS is not there."""
    library = cuda.library()[0]
    assert library is not None
    header = (ROOT / "libcmm/include/cmm_cuda.h").read_text()
    exported = {line.split()[-1] for line in run(tool("nm"), "-D", "--defined-only", library).splitlines()}
    assert exported == set(re.findall(r"^CMM_API .*?(cmm_cuda_\w+)\(", header, re.MULTILINE))
    needed = re.findall(r"NEEDED.*\[(.*?)\.so", run(tool("readelf"), "-d", library))
    assert set(needed) <= {"libc", "libm", "libdl", "librt", "libpthread", "libstdc++", "libgcc_s", "ld-linux-x86-64"}
