"""How Python hands arrays on a GPU to libcmm_cuda, without either: the "GPU" is the CPU's memory, and libcmm_cuda's
functions are libcmm's. What the real ones compute is tested in tests/gpu.
"""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, get_args

import cmm
import numpy as np
import pytest
from cmm import _dispatch
from cmm._backend import cuda, device_arrays
from cmm._native import NULL, ffi, lib
from cmm.typing import Algorithm

RNG = np.random.default_rng(0)
SHAPES = {"x": (2, 3, 8), "w_in": (3, 7, 8), "w_out": (3, 7, 6), "bias": (3, 7)}
PLAIN = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
WORKSPACE = 64


class Array:
    """An array on GPU 0, of a library whose arrays can be written to."""

    __module__ = "cupy"

    def __init__(self, array: Any) -> None:
        self.array = np.asarray(array)
        self.shape, self.dtype, self.nbytes = self.array.shape, self.array.dtype, self.array.nbytes

    def __dlpack__(self, **how: Any) -> Any:
        raise BufferError("it is on a GPU")

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __getitem__(self, key: Any) -> "Array":
        return Array(self.array[key])


def contiguous(name: str, array: Array) -> Array:
    return array if array.array.flags.c_contiguous else Array(np.ascontiguousarray(array.array))


LIBRARY = device_arrays.Library(
    pointer=lambda array: array.array.ctypes.data,
    contiguous=contiguous,
    empty=lambda shape, dtype: Array(np.full(shape, 77, dtype)),
    finish=lambda array: array,
    stream=lambda: 4711,
    active=nullcontext,
    hold=lambda *arrays: None,
    host=lambda array: array.array,
)


asked: list[str] = []
"""The algorithms that calls asked for."""


def fff(*arguments: Any) -> int:
    """cmm_py_cuda_fff."""
    spec, (w_in, bias, w_out) = arguments[:7], arguments[7:10]
    level, algorithm, stream, workspace, size, batch, x, y, nodes, logits, *path, wants_y, needed = arguments[10:]
    assert (ffi.string(level), stream, wants_y) == (b"cuda", 4711, y != 0)
    if algorithm != NULL:
        asked.append(ffi.string(algorithm).decode())
        if asked[-1] == "small_batch":
            return lib.CMM_ERROR_METHOD
    if needed != NULL:
        needed[0] = WORKSPACE
        return 0
    assert workspace
    assert size == WORKSPACE
    at = [ffi.cast("void *", address) for address in (w_in, bias, w_out, x, y, nodes, logits)]
    run = (1, NULL, NULL, NULL, NULL)
    if not any(path):
        return lib.cmm_py_fff_once(*spec, *at[:3], *run, batch, *at[3:])
    names = ("dtype", "activation", "tie", "depth", "trees", "d_in", "d_out", "w_in", "bias", "w_out")
    fields = dict(zip(names, (*spec, *at[:3]), strict=True))
    layer = ffi.new("cmm_fff *", {"size": ffi.sizeof("cmm_fff"), **fields})
    refused = ffi.new("int64_t[2]")
    c_path = [ffi.cast("void *", address) for address in path]
    status = lib.cmm_py_fff_path(layer, *run, batch, *at[3:], *c_path, refused, NULL)
    found = refused[0] * spec[4] + refused[1] if status == lib.CMM_ERROR_PATH else -1
    ffi.cast("int64_t *", workspace)[0] = found
    return 0 if status == lib.CMM_ERROR_PATH else status


def ff(*arguments: Any) -> int:
    """cmm_py_cuda_ff."""
    spec, (w_in, bias, w_out) = arguments[:5], arguments[5:8]
    batch, x, y, needed = arguments[-4:]
    if needed != NULL:
        needed[0] = 0
        return 0
    at = [ffi.cast("void *", address) for address in (w_in, bias, w_out, x, y)]
    native = ffi.new("char[]", b"naive")
    return lib.cmm_py_ff(*spec, *at[:3], 1, native, NULL, NULL, NULL, batch, *at[3:])


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {name: getattr(lib, name) for name in dir(lib) if not name.startswith("cmm_py_cuda")}
    monkeypatch.setattr(cuda, "lib", SimpleNamespace(**known, cmm_py_cuda_fff=fff, cmm_py_cuda_ff=ff))
    monkeypatch.setattr(cuda, "library_at", lambda place: LIBRARY)
    monkeypatch.setattr(cuda, "why_not", lambda level: "there is none")
    monkeypatch.setattr(_dispatch, "why_not", lambda level: "")
    monkeypatch.delenv("CMM_LEVEL", raising=False)


def on_gpu(**changes: Any) -> dict[str, Any]:
    return {name: Array(array) for name, array in PLAIN.items()} | changes


def same(got: Any, want: Any) -> None:
    if isinstance(want, tuple):
        assert len(got) == len(want)
        for one, other in zip(got, want, strict=True):
            same(one, other)
    else:
        assert type(got) is Array
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
        assert np.array_equal(got.array, want)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("with_bias", [True, False])
def test_every_function(dtype: Any, with_bias: bool) -> None:
    plain: dict[str, Any] = {name: array.astype(dtype) for name, array in PLAIN.items()}
    if not with_bias:
        plain["bias"] = None
    arrays = {name: None if array is None else Array(array) for name, array in plain.items()}
    how: dict[str, Any] = {"activation": "relu", "tie": "right"}
    for return_path in (False, True):
        want = cmm.fff_forward(**plain, **how, return_path=return_path)
        same(cmm.fff_forward(**arrays, **how, return_path=return_path), want)
        weights = {name: array for name, array in arrays.items() if name != "x"}
        layer = cmm.FFF(**weights, **how)
        same(layer(arrays["x"], return_path=return_path, threads=3), want)
    assert (layer.trees, layer.depth, layer.nodes, layer.d_in, layer.d_out) == (3, 2, 7, 8, 6)
    assert layer.dtype == np.dtype(dtype).name
    assert layer.w_in is arrays["w_in"]
    nodes, logits = cmm.cmm_forward(plain["x"], plain["w_in"], plain["bias"])
    same(cmm.cmm_forward(arrays["x"], arrays["w_in"], arrays["bias"]), (nodes, logits))
    one = [plain["x"], plain["w_in"][0], plain["w_out"][0], None if not with_bias else plain["bias"][0]]
    want = cmm.ff_forward(*one, level="naive")
    same(cmm.ff_forward(*(None if a is None else Array(a) for a in one)), want)


def test_a_path() -> None:
    """It goes as nodes or as leaves, and what libcmm_cuda finds out about it comes back in the workspace."""
    plain, arrays = PLAIN, on_gpu()
    layer = cmm.FFF(arrays["w_in"], arrays["w_out"], arrays["bias"])
    nodes = cmm.fff_forward(**plain, return_path=True)[1]
    nodes[0, 1, 2] = 0, 2, 5  # wherever it went
    for path in (nodes, nodes[..., -1], np.asfortranarray(nodes)):
        want = cmm.fff_forward(**plain, path=path, return_path=True)
        same(cmm.fff_forward(**arrays, path=Array(path), return_path=True), want)
        same(layer(arrays["x"], path=Array(path), return_path=True), want)
        same(cmm.cmm_forward(arrays["x"], arrays["w_in"], arrays["bias"], path=Array(path)), want[1:])
    nodes[1, 0, 1] = 0, 1, 6
    with pytest.raises(
        cmm.ArgumentError, match=r"^path has \[0, 1, 6\] for token 3, tree 1; it should go from node 0"
    ):
        layer(arrays["x"], path=Array(nodes))
    with pytest.raises(cmm.ArgumentError, match=r"^path has 2 for token 0, tree 0; it should be a leaf, 3 to 6"):
        layer(arrays["x"], path=Array(np.full((2, 3, 3), 2, np.int32)))
    with pytest.raises(cmm.DtypeError, match=r"^path has dtype int64; on a GPU it .* path.astype\('int32'\)"):
        layer(arrays["x"], path=Array(nodes.astype(np.int64)))
    with pytest.raises(cmm.ShapeError, match=r"^path has shape \(2, 3\); it should be \(2, 3, 3, 3\), of nodes, or"):
        layer(arrays["x"], path=Array(np.zeros((2, 3), np.int32)))
    with pytest.raises(cmm.ArgumentError, match=r"^path is a NumPy array"):
        layer(arrays["x"], path=nodes)
    memory = np.zeros(36, np.float32)
    path, out = Array(memory.view(np.int32)[18:].reshape(2, 3, 3)), Array(memory.reshape(2, 3, 6))
    with pytest.raises(cmm.ArgumentError, match=r"^out overlaps path; on a GPU it should be memory of its own"):
        layer(arrays["x"], path=path, out=out)


def test_out_and_layouts() -> None:
    want = cmm.fff_forward(**PLAIN)
    out = Array(np.zeros((2, 3, 6), np.float32))
    arrays = on_gpu(x=Array(np.asfortranarray(PLAIN["x"])))
    assert cmm.fff_forward(**arrays, out=out) is out
    same(out, want)
    layer = cmm.FFF(arrays["w_in"], arrays["w_out"], arrays["bias"])
    out.array[...] = 0
    y, nodes, _ = layer(arrays["x"], out=out, return_path=True)
    assert y is out
    same(out, want)
    assert nodes.dtype == np.int32


def test_an_algorithm_reaches_libcmm_cuda() -> None:
    arrays, want = on_gpu(), cmm.fff_forward(**PLAIN)
    weights = {name: array for name, array in arrays.items() if name != "x"}
    asked.clear()
    for algorithm in get_args(Algorithm):
        if algorithm == "small_batch":  # the one that the stand-in refuses
            continue
        asked.clear()
        same(cmm.fff_forward(**arrays, algorithm=algorithm), want)
        same(cmm.FFF(**weights)(arrays["x"], algorithm=algorithm), want)
        cmm.cmm_forward(arrays["x"], arrays["w_in"], arrays["bias"], algorithm=algorithm)
        assert set(asked) == {algorithm}
    asked.clear()
    same(cmm.fff_forward(**arrays), want)
    assert not asked


@pytest.mark.parametrize(
    ("error", "said", "changes"),
    [
        (cmm.ArgumentError, "out overlaps x; on a GPU it should be", {"out": "x"}),
        (cmm.ShapeError, r"out has shape \(2, 6\); it should be \(2, 3, 6\)", {"out": np.zeros((2, 6), np.float32)}),
        (cmm.DtypeError, "out has dtype float64; it should be float32", {"out": np.zeros((2, 3, 6))}),
        (cmm.ArgumentError, "out is not contiguous", {"out": np.zeros((2, 3, 12), np.float32)[..., ::2]}),
        (
            cmm.DtypeError,
            r"x has dtype int32; it should be one of float32, float64, bfloat16, float16: convert it with "
            r"x.astype\('float32'\)",
            {"x": PLAIN["x"].astype(np.int32)},
        ),
        (
            cmm.DtypeError,
            r"bias has dtype float64 and w_in has dtype float32; .* say with bias.astype\('float32'\)",
            {"bias": PLAIN["bias"].astype(float)},
        ),
        (cmm.ShapeError, r"x has shape \(2, 3, 7\); it should have shape \(..., 8\)", {"x": PLAIN["x"][..., :7]}),
        (cmm.ShapeError, r"w_out has shape \(3, 3, 6\)", {"w_out": PLAIN["w_out"][:, :3]}),
        (cmm.ArgumentError, "tie is 'up'", {"tie": "up"}),
        (cmm.ArgumentError, r"activation is \[\]", {"activation": []}),
        (cmm.LevelError, "level is 'native'; for arrays on a GPU", {"level": "native"}),
        (cmm.ArgumentError, "algorithm is 'walk'; it should be None or one of 'generic', ", {"algorithm": "walk"}),
        (cmm.ArgumentError, r"algorithm is \[\]; it should be None or", {"algorithm": []}),
        (
            cmm.ArgumentError,
            "algorithm is 'grouped', which is of level 'cuda'; at level 'cuda-bmm' it should be None",
            {"algorithm": "grouped", "level": "cuda-bmm"},
        ),
        (cmm.ArgumentError, "algorithm is 'small_batch', which cannot do this", {"algorithm": "small_batch"}),
    ],
)
def test_refused(error: type[Exception], said: str, changes: dict[str, Any]) -> None:
    arrays = on_gpu()
    wide = Array(np.zeros((2, 3, 8), np.float32))
    if isinstance(changes.get("out"), str):
        changes = {"w_out": Array(np.ones((3, 7, 8), np.float32)), "x": wide, "out": wide}
    else:
        changes = {name: Array(v) if isinstance(v, np.ndarray) else v for name, v in changes.items()}
    with pytest.raises(error, match=said):
        cmm.fff_forward(**arrays | changes)


def test_a_prepared_layer_and_its_tokens_are_in_one_place() -> None:
    arrays = on_gpu()
    layer = cmm.FFF(arrays["w_in"], arrays["w_out"])
    with pytest.raises(cmm.ArgumentError, match="x is a NumPy array, and another argument is an array of another"):
        layer(PLAIN["x"])
    with pytest.raises(cmm.DtypeError, match="x has dtype float64 and w_in has dtype float32"):
        layer(Array(PLAIN["x"].astype(float)))
    elsewhere = Array(PLAIN["x"])
    elsewhere.__class__ = type("Elsewhere", (Array,), {"__dlpack_device__": lambda self: (2, 1)})
    with pytest.raises(
        cmm.ArgumentError, match=r"x is a cupy array on GPU 1 and the layer's weights are .* on GPU 0"
    ):
        layer(elsewhere)
    with pytest.raises(cmm.ArgumentError, match="on GPU 0 and the layer's weights are on the CPU"):
        cmm.FFF(PLAIN["w_in"], PLAIN["w_out"])(arrays["x"])
