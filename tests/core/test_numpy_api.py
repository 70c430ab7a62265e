"""The NumPy call: which arrays it takes, what it returns, and that neither layout nor overlap changes a bit.

Comparisons are exact: at level naive the bits of a token's answer depend on the values of its row alone, so any other
way to hand over the same values must give the same bits.
"""

import inspect
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import cmm
import numpy as np
import pytest
from cmm import _libcmm, _native
from cmm._backend import numpy as backend
from cmm._dispatch import CUDA_LEVELS, isas
from numpy.typing import NDArray

Array = NDArray[Any]

TREES, DEPTH, D_IN, D_OUT = 3, 2, 5, 4
NODES = 2 ** (DEPTH + 1) - 1


@pytest.fixture(autouse=True)
def _naive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let "auto" mean naive, whose bits are fixed."""
    monkeypatch.setenv("CMM_LEVEL", "naive")
    monkeypatch.delenv("CMM_ISA", raising=False)


@pytest.fixture(params=[np.float32, np.float64], ids=["f32", "f64"])
def dtype(request: pytest.FixtureRequest) -> Any:
    return request.param


def layer(dtype: Any, batch: int = 6, d_out: int = D_OUT, trees: int = TREES) -> dict[str, Any]:
    """Draw the four arrays of a layer."""
    rng = np.random.default_rng(batch + 10 * d_out)
    shapes = {
        "x": (batch, D_IN),
        "w_in": (trees, NODES, D_IN),
        "w_out": (trees, NODES, d_out),
        "bias": (trees, NODES),
    }
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def same(a: Any, b: Any) -> None:
    """Same type, shape, dtype and bits, for an array or a tuple of them."""
    if isinstance(a, tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            same(one, other)
    else:
        assert (type(a), a.shape, a.dtype) == (type(b), b.shape, b.dtype)
        assert a.tobytes() == b.tobytes()


# ---- the interface -------------------------------------------------------------------------------------------------


def test_signatures() -> None:
    def shown(function: Callable[..., Any]) -> str:
        parameters = inspect.signature(function).parameters.values()
        bare = [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
        return str(inspect.Signature(bare))

    assert shown(cmm.fff_forward) == (
        "(x, w_in, w_out, bias=None, *, activation='gelu', tie='left', level='auto', algorithm=None, threads=None, "
        "out=None, return_path=False, path=None)"
    )
    assert (
        shown(cmm.cmm) == "(x, w_in, bias=None, *, tie='left', level='auto', algorithm=None, threads=None, path=None)"
    )
    assert shown(cmm.ff_forward) == (
        "(x, w_in, w_out, bias=None, *, activation='gelu', level='auto', algorithm=None, threads=None, out=None)"
    )
    assert shown(cmm.FFF) == (
        "(w_in, w_out, bias=None, *, activation='gelu', tie='left', weights=None, exact_path=False)"
    )
    assert shown(cmm.FFF.__call__) == (
        "(self, x, *, level='auto', algorithm=None, threads=None, out=None, return_path=False, path=None)"
    )
    assert shown(cmm.node_usage) == "(nodes, N)"
    assert shown(cmm.dead_subtrees) == "(usage)"


def test_every_public_name_is_there_and_documented() -> None:
    for name in cmm.__all__:
        if name != "__version__":
            assert inspect.getdoc(getattr(cmm, name)), name


def test_exceptions_double_the_builtin_ones() -> None:
    doubles = {
        cmm.ShapeError: ValueError,
        cmm.DtypeError: TypeError,
        cmm.ArgumentError: ValueError,
        cmm.LevelError: ValueError,
        cmm.UnusableError: RuntimeError,
        cmm.ArrayMemoryError: MemoryError,
    }
    for error, builtin in doubles.items():
        assert issubclass(error, cmm.CmmError)
        assert issubclass(error, builtin)


def test_version_is_that_of_header_and_package() -> None:
    header = Path(cmm.get_include(), "cmm.h").read_text(encoding="utf-8")
    parts = [line.split()[-1] for line in header.splitlines() if line.startswith("#define CMM_VERSION_")]
    assert cmm.__version__ == ".".join(parts) == metadata.version("libcmm")


def test_package_holds_header_library_and_typing_marker() -> None:
    assert Path(cmm.get_include(), "cmm.h").is_file()
    package = Path(cmm.get_include()).parent
    assert list(package.glob("lib/libcmm.*"))
    assert (package / "lib" / "cmake" / "cmm" / "cmmConfig.cmake").is_file()
    assert (package / "lib" / "pkgconfig" / "cmm.pc").is_file()
    assert Path(cmm.__file__).with_name("py.typed").is_file()


def test_extension_uses_the_stable_abi() -> None:
    assert Path(_libcmm.__file__).name == "_libcmm.abi3.so"
    wheel = metadata.distribution("libcmm").read_text("WHEEL")
    assert wheel is not None
    assert "Tag: cp311-abi3-" in wheel


def test_import_is_light() -> None:
    """What only some calls need is imported by those."""
    heavy = "{'scipy', 'threadpoolctl', 'tokenizers', 'safetensors', 'matplotlib', 'tqdm', 'ctypes.util'}"
    code = f"import numpy, sys; before = set(sys.modules); import cmm; print(({heavy} & set(sys.modules)) - before)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


# ---- shapes and dtypes of results ----------------------------------------------------------------------------------


@pytest.mark.parametrize("lead", [(), (1,), (6,), (0,), (2, 3), (2, 0, 3), (1, 2, 1, 3)], ids=str)
def test_results_follow_the_shape_of_x(dtype: Any, lead: tuple[int, ...]) -> None:
    arrays = layer(dtype, batch=int(np.prod(lead)))
    flat = cmm.fff_forward(**arrays, return_path=True)
    arrays["x"] = arrays["x"].reshape(*lead, D_IN)
    y, nodes, logits = cmm.fff_forward(**arrays, return_path=True)
    assert (y.shape, y.dtype) == ((*lead, D_OUT), dtype)
    assert (nodes.shape, nodes.dtype) == ((*lead, TREES, DEPTH + 1), np.dtype(np.int32))
    assert (logits.shape, logits.dtype) == ((*lead, TREES, DEPTH + 1), dtype)
    for shaped, plain in zip((y, nodes, logits), flat, strict=True):
        assert shaped.tobytes() == plain.tobytes()
    same(cmm.fff_forward(**arrays), y)
    same(cmm.cmm(arrays["x"], arrays["w_in"], arrays["bias"]), (nodes, logits))


@pytest.mark.parametrize("lead", [(), (4,), (0,), (2, 2)], ids=str)
@pytest.mark.parametrize("neurons", [0, 1, 10])
def test_dense_results_follow_the_shape_of_x(dtype: Any, lead: tuple[int, ...], neurons: int) -> None:
    x, w_in, w_out = np.ones((*lead, 3), dtype), np.ones((neurons, 3), dtype), np.ones((neurons, 2), dtype)
    y = cmm.ff_forward(x, w_in, w_out, activation="identity")
    same(y, np.full((*lead, 2), 3 * neurons, dtype))


def test_one_tree_may_leave_out_its_dimension(dtype: Any) -> None:
    arrays = layer(dtype, trees=1)
    with_k = cmm.fff_forward(**arrays, return_path=True)
    assert with_k[1].shape == (6, 1, DEPTH + 1)
    without = {name: array if name == "x" else array[0] for name, array in arrays.items()}
    same(cmm.fff_forward(**without, return_path=True), with_k)
    same(cmm.cmm(without["x"], without["w_in"], without["bias"]), with_k[1:])


def test_names_mean_what_they_say() -> None:
    """Activations of 1 to 10 digits: 1e-9 is far above their rounding in float64 and far below their differences."""
    of_one = {
        "gelu": 0.8413447461,
        "gelu_tanh": 0.8411919906,
        "relu": 1,
        "silu": 0.7310585786,
        "identity": 1,
    }
    one = np.ones((1, 1))
    for activation, value in of_one.items():
        assert abs(cmm.fff_forward(one, one, one, activation=activation).item() - value) < 1e-9
        assert abs(cmm.ff_forward(one, one, one, activation=activation).item() - value) < 1e-9
        assert abs(cmm.FFF(one, one, activation=activation)(one).item() - value) < 1e-9
    assert cmm.fff_forward(-one, one, one, activation="relu").item() == 0
    assert cmm.fff_forward(-one, one, one, activation="identity").item() == -1
    zeros = np.zeros((3, 1))
    for tie, child in {"left": 1, "right": 2}.items():
        assert cmm.cmm(one, zeros, tie=tie)[0].tolist() == [[[0, child]]]
        assert cmm.fff_forward(one, zeros, zeros, tie=tie, return_path=True)[1].tolist() == [[[0, child]]]
        assert cmm.FFF(zeros, zeros, tie=tie)(one, return_path=True)[1].tolist() == [[[0, child]]]


def test_no_bias_is_a_bias_of_zeros(dtype: Any) -> None:
    arrays = layer(dtype)
    arrays["bias"][:] = 0
    with_zeros = cmm.fff_forward(**arrays, return_path=True)
    del arrays["bias"]
    same(cmm.fff_forward(**arrays, return_path=True), with_zeros)


def test_depth_0_to_20(dtype: Any) -> None:
    for depth in (0, 1, 7, 20):
        nodes = 2 ** (depth + 1) - 1
        w = np.ones((nodes, 1), dtype)  # logit 1 everywhere: always right, and D + 1 outputs of 1
        y, path, logits = cmm.fff_forward(np.ones((2, 1), dtype), w, w, activation="identity", return_path=True)
        assert (y == depth + 1).all()
        assert (logits == 1).all()
        assert path.tolist() == [[[2 ** (level + 1) - 2 for level in range(depth + 1)]]] * 2


# ---- what is accepted ----------------------------------------------------------------------------------------------


class Subclass(np.ndarray[Any, Any]):
    """An ndarray by another name."""


def _misaligned(a: Array) -> Array:
    memory = np.zeros(a.nbytes + 1, np.uint8)
    moved = memory[1:].view(a.dtype).reshape(a.shape)
    moved[...] = a
    assert not moved.flags.aligned
    return moved


def _read_only(a: Array) -> Array:
    copy = a.copy()
    copy.flags.writeable = False
    return copy


def _strided(a: Array) -> Array:
    wider = np.full((*a.shape[:-1], 2 * a.shape[-1]), np.nan, a.dtype)
    wider[..., ::2] = a
    return wider[..., ::2]


LAYOUTS: dict[str, Callable[[Array], Any]] = {
    "fortran order": np.asfortranarray,
    "strided": _strided,
    "reversed": lambda a: np.flip(np.ascontiguousarray(np.flip(a))),
    "transposed": lambda a: np.ascontiguousarray(np.moveaxis(a, 0, -1)).transpose(-1, *range(a.ndim - 1)),
    "misaligned": _misaligned,
    "read-only": _read_only,
    "read-only memory": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
    "subclass": lambda a: a.view(Subclass),
    "unpickled": lambda a: pickle.loads(pickle.dumps(a)),
    "dtype with metadata": lambda a: a.view(np.dtype(a.dtype, metadata={"unit": "m"})),
    "buffer": lambda a: a.data,
}


@pytest.mark.parametrize("name", ["x", "w_in", "w_out", "bias"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_gives_the_same_bits(dtype: Any, name: str, layout: str) -> None:
    arrays = layer(dtype)
    expected = cmm.fff_forward(**arrays, return_path=True)
    changed: dict[str, Any] = {**arrays, name: LAYOUTS[layout](arrays[name])}
    before = np.asarray(changed[name]).copy()
    same(cmm.fff_forward(**changed, return_path=True), expected)
    same(np.asarray(changed[name]).copy(), before)  # an input is not written to
    x = changed.pop("x")
    same(cmm.FFF(**changed)(x, return_path=True), expected)
    same(cmm.cmm(x, changed["w_in"], changed["bias"]), expected[1:])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_gives_the_same_bits_dense(dtype: Any, layout: str) -> None:
    one = {name: array if name == "x" else array[0] for name, array in layer(dtype).items()}
    expected = cmm.ff_forward(**one)
    for name in one:
        same(cmm.ff_forward(**{**one, name: LAYOUTS[layout](one[name])}), expected)


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_matrix_and_memmap(dtype: Any, tmp_path: Path) -> None:
    arrays = layer(dtype, trees=1)
    expected = cmm.fff_forward(**arrays)
    x: Any = np.asmatrix(arrays["x"])
    same(cmm.fff_forward(**{**arrays, "x": x}), expected)
    np.save(tmp_path / "w.npy", arrays["w_in"])
    same(cmm.fff_forward(**{**arrays, "w_in": np.load(tmp_path / "w.npy", mmap_mode="r")}), expected)


def test_broadcast_input(dtype: Any) -> None:
    arrays = layer(dtype)
    one = arrays["x"][:1]
    y = cmm.fff_forward(**{**arrays, "x": np.broadcast_to(one, (6, D_IN))})
    same(y, np.repeat(cmm.fff_forward(**{**arrays, "x": one}), 6, axis=0))


def test_nested_lists_of_floats() -> None:
    """As NumPy converts them: to float64."""
    arrays = layer(np.float64)
    same(cmm.fff_forward(**{name: array.tolist() for name, array in arrays.items()}), cmm.fff_forward(**arrays))
    same(cmm.ff_forward([[2.0]], [[3.0]], [[4.0]], activation="identity"), np.array([[24.0]]))
    assert cmm.cmm([1.0], [[2.0]])[1].tolist() == [[2.0]]


class Wrapped:
    """Not an ndarray, but something that turns into one."""

    def __init__(self, array: Array) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self.array


def test_objects_that_become_arrays(dtype: Any) -> None:
    arrays = layer(dtype)
    same(cmm.fff_forward(**{**arrays, "x": Wrapped(arrays["x"])}), cmm.fff_forward(**arrays))


# ---- out -----------------------------------------------------------------------------------------------------------


def _out_layouts(y: Array) -> dict[str, Array]:
    return {
        "plain": np.empty_like(y),
        "fortran order": np.empty_like(y, order="F"),
        "strided": _strided(y),
        "reversed": np.flip(np.empty_like(y)),
        "misaligned": _misaligned(y),
        "subclass": np.empty_like(y).view(Subclass),
    }


@pytest.mark.parametrize("layout", _out_layouts(np.empty((6, D_OUT))))
def test_out_is_filled_and_returned(dtype: Any, layout: str) -> None:
    arrays = layer(dtype)
    weights = {name: array for name, array in arrays.items() if name != "x"}
    expected = cmm.fff_forward(**arrays, return_path=True)
    out = _out_layouts(expected[0])[layout]
    for call in (cmm.fff_forward, lambda x, **rest: cmm.FFF(**weights)(x, **_but_weights(rest))):
        out[...] = np.nan
        assert call(**arrays, out=out) is out
        same(np.array(out, subok=False), expected[0])
        out[...] = np.nan
        y, nodes, logits = call(**arrays, out=out, return_path=True)
        assert y is out
        same((np.array(out, subok=False), nodes, logits), expected)


def test_large_results_start_at_a_cache_line(dtype: Any) -> None:
    """There alone kernels may store past the caches; NumPy's own arrays start 16 bytes off."""
    for batch in (16384, 20001, 33333):
        arrays = layer(dtype, batch)
        assert cmm.fff_forward(**arrays).ctypes.data % 64 == 0
        assert cmm.FFF(arrays["w_in"], arrays["w_out"], arrays["bias"])(arrays["x"]).ctypes.data % 64 == 0


def _but_weights(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name not in ("w_in", "w_out", "bias")}


@pytest.mark.parametrize("layout", _out_layouts(np.empty((6, D_OUT))))
def test_dense_out_is_filled_and_returned(dtype: Any, layout: str) -> None:
    one = {name: array if name == "x" else array[0] for name, array in layer(dtype).items()}
    expected = cmm.ff_forward(**one)
    out = _out_layouts(expected)[layout]
    out[...] = np.nan
    assert cmm.ff_forward(**one, out=out) is out
    same(np.array(out, subok=False), expected)


def test_strided_out_leaves_what_lies_between(dtype: Any) -> None:
    arrays = layer(dtype)
    wide = np.full((6, 2 * D_OUT), 7, dtype)
    cmm.fff_forward(**arrays, out=wide[:, ::2])
    assert (wide[:, 1::2] == 7).all()
    same(wide[:, ::2].copy(), cmm.fff_forward(**arrays))


@pytest.mark.parametrize("shift", [0, 1, -1, D_IN, 3 * D_IN], ids=lambda s: f"by {s}")
@pytest.mark.parametrize("reverse", [False, True], ids=["forwards", "backwards"])
def test_out_that_overlaps_x(dtype: Any, shift: int, reverse: bool) -> None:
    """out is x itself, or the same memory a few elements on, in either order of rows."""
    arrays = layer(dtype, d_out=D_IN)
    size = arrays["x"].size
    memory = np.zeros(3 * size, dtype)

    def place(offset: int) -> Array:
        return memory[size + offset : 2 * size + offset].reshape(arrays["x"].shape)

    one = {name: array if name == "x" else array[0] for name, array in arrays.items()}
    layer_fff = cmm.FFF(arrays["w_in"], arrays["w_out"], arrays["bias"])
    calls: list[tuple[dict[str, Any], Callable[..., Any]]] = [
        (arrays, cmm.fff_forward),
        (one, cmm.ff_forward),
        (arrays, lambda x, **rest: layer_fff(x, out=rest.get("out"))),
    ]
    for given, call in calls:
        expected = call(**given)
        x, out = place(0), place(shift)
        x[...] = given["x"]
        if reverse:
            out = out[::-1]
        result = call(**{**given, "x": x}, out=out)
        assert result is out
        same(np.ascontiguousarray(out), expected)


def test_overlap_returns_the_path_too(dtype: Any) -> None:
    arrays = layer(dtype, d_out=D_IN)
    expected = cmm.fff_forward(**arrays, return_path=True)
    result = cmm.fff_forward(**arrays, out=arrays["x"], return_path=True)
    assert result[0] is arrays["x"]
    same(result, expected)


@pytest.mark.parametrize("end", [False, True], ids=["first rows", "last rows"])
@pytest.mark.parametrize("name", ["w_in", "w_out", "bias"])
def test_out_that_overlaps_a_weight(dtype: Any, name: str, end: bool) -> None:
    def part(array: Array, like: Array) -> Array:
        flat = array.reshape(-1)
        return (flat[-like.size :] if end else flat[: like.size]).reshape(like.shape)

    arrays = layer(dtype, batch=2)
    expected = cmm.fff_forward(**arrays)
    out = part(arrays[name], expected)
    assert cmm.fff_forward(**arrays, out=out) is out
    same(out.copy(), expected)

    one = {name: array if name == "x" else array[0].copy() for name, array in layer(dtype, batch=1).items()}
    expected = cmm.ff_forward(**one)
    out = part(one[name], expected)
    assert cmm.ff_forward(**one, out=out) is out
    same(out.copy(), expected)


def test_out_between_the_rows_of_a_weight(dtype: Any) -> None:
    arrays = layer(dtype, batch=NODES)
    expected = cmm.fff_forward(**arrays)
    for name in ("w_in", "w_out"):
        width = arrays[name].shape[-1]
        wide = np.zeros((*arrays[name].shape[:-1], width + D_OUT), dtype)
        wide[..., :width] = arrays[name]
        out = wide[0, :, width:]
        assert cmm.fff_forward(**{**arrays, name: wide[..., :width]}, out=out) is out
        same(out.copy(), expected)
        same(wide[..., :width].copy(), arrays[name])


def test_an_empty_out_that_lies_in_an_input(dtype: Any) -> None:
    arrays = layer(dtype, batch=0)
    out = arrays["w_in"].reshape(-1)[3:3].reshape(0, D_OUT)
    assert cmm.fff_forward(**arrays, out=out) is out
    assert cmm.ff_forward(arrays["x"], arrays["w_in"][0], arrays["w_out"][0], out=out) is out


@pytest.mark.parametrize("of", ["nothing", "x", "w_in", "w_out", "bias", "a view", "another view"])
def test_whether_out_overlaps_is_decided_once(monkeypatch: pytest.MonkeyPatch, dtype: Any, of: str) -> None:
    """Before the call: libcmm is called once, with out itself where that shares no byte with an input.

    The short way of a prepared layer leaves it to libcmm, and comes here where that refuses.
    """
    arrays = layer(dtype, batch=2, d_out=D_IN)
    size = arrays["x"].size
    out = np.empty_like(arrays["x"])
    if of in arrays:
        out = arrays[of].reshape(-1)[:size].reshape(-1, D_IN)
    elif of != "nothing":  # x and out in one memory, apart or not
        memory = np.empty(2 * size, dtype)
        start = size if of == "a view" else size - 1
        out = memory[start : start + size].reshape(arrays["x"].shape)
        x, arrays["x"] = arrays["x"], memory[:size].reshape(arrays["x"].shape)
        arrays["x"][...] = x
    apart = of in ("nothing", "a view")
    called: list[bool] = []

    class Library:
        def __getattr__(self, name: str) -> Any:
            found = getattr(_native.lib, name)
            if not name.startswith("cmm_py_f"):
                return found
            y = -1 if name == "cmm_py_ff" else -3  # its place among the arguments
            return lambda *a: (called.append(a[y] == _native.address(out)), found(*a))[1]

    monkeypatch.setattr(backend, "lib", Library())
    prepared = cmm.FFF(*(arrays[name] for name in ("w_in", "w_out", "bias")))
    cmm.ff_forward(arrays["x"], *(arrays[name][0] for name in ("w_in", "w_out", "bias")), out=out)
    cmm.fff_forward(**arrays, out=out)
    assert called == [apart, apart]
    prepared(arrays["x"], out=out)
    assert called[2:] == ([False] if of in ("x", "another view") else [])


# ---- the prepared layer --------------------------------------------------------------------------------------------


def test_prepared_layer_is_fff_forward(dtype: Any) -> None:
    for tie in ("left", "right"):
        for activation in ("gelu", "gelu_tanh", "relu", "silu", "identity"):
            arrays = layer(dtype)
            arrays["x"][0] = 0
            arrays["bias"][0] = 0  # ties
            expected = cmm.fff_forward(**arrays, activation=activation, tie=tie, return_path=True)
            x = arrays.pop("x")
            prepared = cmm.FFF(**arrays, activation=activation, tie=tie)
            same(prepared(x, return_path=True), expected)
            same(prepared(x), expected[0])


def test_prepared_layer_owns_its_weights(dtype: Any) -> None:
    arrays = layer(dtype)
    x = arrays.pop("x")
    prepared = cmm.FFF(**arrays)
    before = prepared(x)
    kept = {name: array.copy() for name, array in arrays.items()}
    for array in arrays.values():
        array[...] = np.nan
    same(prepared(x), before)
    for name, array in kept.items():
        own = getattr(prepared, name)
        same(own.copy(), array)
        assert own.ctypes.data % 64 == 0
        assert not own.flags.writeable


def test_prepared_layer_says_what_it_is(dtype: Any) -> None:
    arrays = layer(dtype)
    del arrays["x"]
    prepared = cmm.FFF(**arrays, activation="relu", tie="right")
    sizes = prepared.trees, prepared.depth, prepared.nodes, prepared.d_in, prepared.d_out
    assert sizes == (TREES, DEPTH, NODES, D_IN, D_OUT)
    assert (prepared.dtype, prepared.activation, prepared.tie) == (dtype, "relu", "right")
    name = np.dtype(dtype).name
    assert repr(prepared) == f"FFF(3x2, d_in=5, d_out=4, {name}, bias=yes, activation='relu', tie='right')"
    del arrays["bias"]
    assert cmm.FFF(**arrays).bias is None


def test_prepared_layer_can_be_pickled(dtype: Any) -> None:
    arrays = layer(dtype)
    x = arrays.pop("x")
    prepared = cmm.FFF(**arrays, activation="silu", tie="right")
    again = pickle.loads(pickle.dumps(prepared))
    same(again(x, return_path=True), prepared(x, return_path=True))
    assert repr(again) == repr(prepared)


# ---- levels and the environment ------------------------------------------------------------------------------------


def test_levels_lists_what_a_call_can_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CMM_LEVEL")
    arrays = layer(np.float32)
    listed = cmm.levels()
    assert [name for name, _, _ in listed] == ["naive", "blas1", "blas2", "blas3", "native", *CUDA_LEVELS]
    for level in listed:
        assert isinstance(level, cmm.Level)
        name, available, reason = level
        assert type(available) is bool
        assert bool(reason) != available
        if available and name not in CUDA_LEVELS:  # those are for arrays on a GPU
            cmm.fff_forward(**arrays, level=name)
        else:
            with pytest.raises(cmm.UnusableError, match=name):
                cmm.fff_forward(**arrays, level=name)


def test_cmm_level_overrides_auto_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = layer(np.float32)
    prepared = cmm.FFF(arrays["w_in"], arrays["w_out"], arrays["bias"])
    one = {name: array if name == "x" else array[0] for name, array in arrays.items()}
    calls: list[Callable[..., Any]] = [
        lambda **how: cmm.fff_forward(**arrays, **how),
        lambda **how: prepared(arrays["x"], **how),
        lambda **how: cmm.cmm(arrays["x"], arrays["w_in"], **how),
        lambda **how: cmm.ff_forward(**one, **how),
    ]
    for call in calls:
        monkeypatch.setenv("CMM_LEVEL", "nonsense")
        call(level="naive")
        for how in ({}, {"level": "auto"}):
            with pytest.raises(cmm.LevelError, match="CMM_LEVEL is 'nonsense'"):
                call(**how)
        for unset in ("", "auto"):
            monkeypatch.setenv("CMM_LEVEL", unset)
            call()


def test_cmm_isa_is_read_in_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = layer(np.float32)
    prepared = cmm.FFF(arrays["w_in"], arrays["w_out"], arrays["bias"])
    known, usable = isas()
    for isa in usable:
        monkeypatch.setenv("CMM_ISA", isa)
        for level in ("naive", "native"):
            cmm.fff_forward(**arrays, level=level)
            prepared(arrays["x"], level=level)
    unusable = [isa for isa in known if isa not in usable]
    assert unusable  # no CPU has both AVX2 and NEON
    monkeypatch.setenv("CMM_ISA", unusable[0])
    with pytest.raises(cmm.UnusableError, match=f"CMM_ISA is '{unusable[0]}'"):
        cmm.fff_forward(**arrays)
    monkeypatch.setenv("CMM_ISA", "sse9")
    for call in (lambda: cmm.fff_forward(**arrays), lambda: prepared(arrays["x"]), cmm.levels):
        with pytest.raises(cmm.ArgumentError, match="CMM_ISA is 'sse9'"):
            call()


# ---- threads -------------------------------------------------------------------------------------------------------


def test_threads_do_not_change_a_bit(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    w_in, w_out = rng.standard_normal((2, 2, 127, 64)).astype(dtype)
    x = rng.standard_normal((3000, 64)).astype(dtype)
    expected = cmm.fff_forward(x, w_in, w_out, return_path=True)
    counts: list[Any] = [1, 2, 3, np.int64(5), 1000]
    for threads in counts:
        same(cmm.fff_forward(x, w_in, w_out, threads=threads, return_path=True), expected)


def test_many_python_threads_share_a_layer() -> None:
    rng = np.random.default_rng(0)
    w_in, w_out = rng.standard_normal((2, 255, 32), np.float32)
    x = rng.standard_normal((64, 5000, 32), np.float32)  # so many tokens that one call is worth two threads
    prepared = cmm.FFF(w_in, w_out)
    native: dict[str, Any] = {"level": "native", "threads": 2, "return_path": True}
    expected = [prepared(one, **native) for one in x]
    wrong: list[str] = []

    def work(index: int) -> None:
        try:
            for _ in range(5):
                same(prepared(x[index], **native), expected[index])
                same(cmm.fff_forward(x[index], w_in, w_out, **native), expected[index])
        except BaseException as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(x))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_call_releases_the_gil() -> None:
    """While a long call runs in one thread, another one goes on."""
    w = np.ones((3000, 300), np.float32)
    x = np.ones((100, 300), np.float32)
    span: list[float] = []

    def work() -> None:
        while not span or span[1] - span[0] < 0.1:  # long enough on any machine
            span[:] = [time.perf_counter()]
            cmm.ff_forward(np.repeat(x, 2**work.doublings, 0), w, w, level="naive", threads=1)  # type: ignore[attr-defined]
            span.append(time.perf_counter())
            work.doublings += 1  # type: ignore[attr-defined]

    work.doublings = 0  # type: ignore[attr-defined]
    thread = threading.Thread(target=work)
    ticks = []
    thread.start()
    while thread.is_alive():
        ticks.append(time.perf_counter())
        time.sleep(0.001)
    start, end = span
    assert len([tick for tick in ticks if start + 0.01 < tick < end - 0.01]) >= 3


# ---- node_usage ----------------------------------------------------------------------------------------------------


def test_node_usage_counts(dtype: Any) -> None:
    arrays = layer(dtype, batch=300)
    nodes, _ = cmm.cmm(arrays["x"], arrays["w_in"], arrays["bias"])
    usage = cmm.node_usage(nodes, NODES)
    expected = np.zeros((TREES, NODES), np.int64)
    for path in nodes:
        for tree in range(TREES):
            for node in path[tree]:
                expected[tree, node] += 1
    same(usage, expected)
    same(cmm.node_usage(nodes.reshape(10, 30, TREES, DEPTH + 1), NODES), expected)
    same(cmm.node_usage(nodes[0].astype(np.int64), NODES), cmm.node_usage(nodes[:1], NODES))
    same(cmm.node_usage(nodes[:0], NODES), 0 * expected)
    same(cmm.node_usage(nodes.tolist(), NODES), expected)


def test_dead_subtrees_are_the_tops_of_what_no_token_visited() -> None:
    nodes = np.array([[[0, 1, 3], [0, 2, 6]], [[0, 1, 3], [0, 2, 5]]])  # two tokens, two trees of depth 2
    usage = cmm.node_usage(nodes, 7)
    assert cmm.dead_subtrees(usage).tolist() == [[0, 2], [0, 4], [1, 1]]
    assert cmm.dead_subtrees(cmm.node_usage(nodes[:0], 7)).tolist() == [[0, 0], [1, 0]]
    assert cmm.dead_subtrees(np.ones((3, 1), int)).shape == (0, 2)
