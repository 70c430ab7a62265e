"""Arrays of other libraries on a CPU, and what is refused of them, without a GPU.

The library here is one class: as much of an array as the protocols ask for. PyTorch and JAX are tested where they are
installed.
"""

from types import SimpleNamespace
from typing import Any

import cmm
import numpy as np
import pytest
from cmm import _cupy, _dispatch, _interop
from cmm._backend import Place, cuda, dlpack_cpu
from cmm._native import cuda as native_cuda
from cmm._native import lib
from other_library import PLAIN, Other


class Bare:
    """An array of which nothing is known but DLPack's protocol."""

    def __init__(self, array: Any) -> None:
        self._array = np.asarray(array)

    def __dlpack__(self, **how: Any) -> Any:
        return self._array.__dlpack__(**how)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


class Nameless(Bare):
    """One with a shape and a dtype, but without an array namespace."""

    def __init__(self, array: Any) -> None:
        super().__init__(array)
        self.shape, self.dtype = self._array.shape, self._array.dtype


class Listed(Bare):
    """One whose shape and dtype are not as others have them."""

    shape, dtype = [5], "?"


class Old(Bare):
    """One of the protocol before it had arguments."""

    def __dlpack__(self, stream: Any = None) -> Any:
        return self._array.__dlpack__()


def others(**changes: Any) -> dict[str, Any]:
    return {name: Other(array) for name, array in PLAIN.items()} | changes


def test_every_function_takes_and_returns_the_other_kind() -> None:
    want = cmm.fff_forward(**PLAIN, return_path=True)
    arrays = others()
    got = cmm.fff_forward(**arrays, return_path=True)
    assert all(type(a) is Other for a in got)
    assert all(np.array_equal(a.array, b) for a, b in zip(got, want, strict=True))
    layer = cmm.fff_forward(**arrays)
    assert np.array_equal(layer.array, want[0])
    path = cmm.cmm(arrays["x"], arrays["w_in"], arrays["bias"])
    assert all(np.array_equal(a.array, b) for a, b in zip(path, want[1:], strict=True))
    weights = PLAIN["w_in"][0], PLAIN["w_out"][0]
    dense = cmm.ff_forward(arrays["x"], *map(Other, weights))
    assert np.array_equal(dense.array, cmm.ff_forward(PLAIN["x"], *weights))


@pytest.mark.parametrize("kind", [Bare, Nameless, Listed, Old])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_protocol_alone_is_enough_and_gives_numpys_arrays(kind: Any, dtype: Any) -> None:
    plain = {name: array.astype(dtype) for name, array in PLAIN.items()}
    arrays = {name: kind(array) for name, array in plain.items()}
    want = cmm.fff_forward(**plain, return_path=True)

    def check(got: Any, want: Any) -> None:
        for a, b in zip(got, want, strict=True):
            assert type(a) is np.ndarray
            assert np.array_equal(a, b)

    check(cmm.fff_forward(**arrays, return_path=True), want)
    check([cmm.fff_forward(**arrays)], want[:1])
    check(cmm.cmm_forward(arrays["x"], arrays["w_in"], arrays["bias"]), want[1:])
    x = arrays.pop("x")
    layer = cmm.FFF(**arrays)
    check(layer(x, return_path=True), want)
    weights = plain["w_in"][0], plain["w_out"][0]
    check([cmm.ff_forward(x, *map(kind, weights))], [cmm.ff_forward(plain["x"], *weights)])
    memory = np.full((5, 6), np.nan, dtype)
    for call in (lambda out: cmm.fff_forward(x, **arrays, out=out), lambda out: layer(x, out=out)):
        memory[:] = np.nan
        out = kind(memory)
        if kind is Old:  # whose protocol could not say that it may be written to
            with pytest.raises(cmm.ArgumentError, match="out is read-only; it should be writable"):
                call(out)
            continue
        assert call(out) is out
        assert np.array_equal(memory, want[0])
    wrong = kind(np.zeros((5, 6), np.float32 if dtype == np.float64 else np.float64))
    with pytest.raises(cmm.DtypeError, match=r"out has dtype (float32|\?|float64); it should be float"):
        layer(x, out=kind(wrong._array))
    with pytest.raises(cmm.ShapeError, match=r"out has shape \(5, 7\); it should be \(5, 6\)"):
        layer(x, out=Bare(np.zeros((5, 7), dtype)))
    with pytest.raises(cmm.DtypeError, match="x has dtype int64; it should be float32 or float64"):
        layer(kind(np.zeros((5, 8), np.int64)))


def test_the_encoder_and_the_counts_take_the_protocol_alone() -> None:
    import bert_reference
    import cmm.bert

    block = bert_reference.architecture()
    model = cmm.bert.from_state_dict(bert_reference.state_dict(block), block)
    ids, mask = np.array([[1, 2, 3], [4, 5, 6]]), np.array([[1, 1, 0], [1, 0, 1]])
    assert np.array_equal(model(Bare(ids), Bare(mask)), model(ids, mask))
    hidden = model(ids)
    assert np.array_equal(model.decode(Bare(hidden)), model.decode(hidden))
    nodes = cmm.cmm_forward(PLAIN["x"], PLAIN["w_in"])[0]
    usage = cmm.node_usage(Bare(nodes), 7)
    assert np.array_equal(usage, cmm.node_usage(nodes, 7))
    assert np.array_equal(cmm.dead_subtrees(Bare(usage)), cmm.dead_subtrees(usage))


def torch_arrays(torch: Any, dtype: Any = None) -> dict[str, Any]:
    return {name: torch.from_numpy(array.astype(np.float32)).to(dtype) for name, array in PLAIN.items()}


def test_parameters_work_where_no_gradient_is_recorded() -> None:
    torch = pytest.importorskip("torch")
    plain = torch_arrays(torch)
    want = cmm.fff_forward(**plain)
    for name in plain:
        arrays = plain | {name: torch.nn.Parameter(plain[name])}
        for context in (torch.no_grad, torch.inference_mode):
            with context():
                got = cmm.fff_forward(**arrays)
                assert type(got) is torch.Tensor
                assert torch.equal(got, want)
                assert not got.requires_grad
                tokens = arrays.copy()
                assert torch.equal(cmm.FFF(**{n: tokens[n] for n in ("w_in", "w_out", "bias")})(arrays["x"]), want)
        with pytest.raises(cmm.ArgumentError, match=rf"{name} requires grad, .*: pass {name}\.detach\(\)"):
            cmm.fff_forward(**arrays)
    out = torch.nn.Parameter(torch.zeros(5, 6))
    with torch.no_grad(), pytest.raises(cmm.ArgumentError, match=r"out requires grad, .*: pass out\.detach\(\)"):
        cmm.fff_forward(**plain, out=out)
    assert not out.any()
    weights = plain["w_in"][0], plain["w_out"][0]
    with torch.no_grad():
        got = cmm.ff_forward(plain["x"], *map(torch.nn.Parameter, weights))
    assert torch.equal(got, cmm.ff_forward(plain["x"], *weights))


def test_tensors_that_pytorch_negates_when_they_are_read() -> None:
    torch = pytest.importorskip("torch")
    plain = torch_arrays(torch)
    want = cmm.fff_forward(**plain)

    def negated(tensor: Any) -> Any:
        view = torch.complex(torch.zeros_like(tensor), -tensor).conj().imag
        assert view.is_neg()
        assert torch.equal(view, tensor)
        return view

    for name in plain:
        assert torch.equal(cmm.fff_forward(**plain | {name: negated(plain[name])}), want)
    negative = {name: negated(plain[name]) for name in ("w_in", "w_out", "bias")}
    assert torch.equal(cmm.FFF(**negative)(negated(plain["x"])), want)
    with pytest.raises(
        cmm.ArgumentError, match=r"out is a view that PyTorch negates .*; it should be memory of its own"
    ):
        cmm.fff_forward(**plain, out=negated(torch.zeros(5, 6)))


def test_bfloat16_on_a_cpu_names_the_remedy() -> None:
    torch = pytest.importorskip("torch")
    plain = torch_arrays(torch)
    for name in plain:
        remedy = rf"{name} has dtype torch\.bfloat16; it should be float32 or float64: convert it with "
        with pytest.raises(cmm.DtypeError, match=rf"{remedy}{name}\.to\(torch\.float32\)"):
            cmm.fff_forward(**plain | {name: plain[name].bfloat16()})
    with pytest.raises(cmm.DtypeError, match=r"x has dtype torch\.bfloat16; .*x\.to\(torch\.float32\)"):
        cmm.fff_forward(**torch_arrays(torch, torch.bfloat16))
    assert cmm.fff_forward(**{name: array.bfloat16().to(torch.float32) for name, array in plain.items()}).shape == (
        5,
        6,
    )


def test_what_the_encoder_takes_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    import bert_reference
    import cmm.bert

    block = bert_reference.architecture()
    model = cmm.bert.from_state_dict(bert_reference.state_dict(block), block)
    ids, mask = torch.tensor([[1, 2, 3]]), torch.tensor([[1.0, 1.0, 0.0]])
    want = model(ids.numpy(), mask.numpy())
    assert np.array_equal(model(ids, mask.requires_grad_()), want)
    assert np.array_equal(model.decode(torch.from_numpy(want).requires_grad_()), model.decode(want))
    for name, call in (
        ("mask", lambda: model(ids, mask.bfloat16())),
        ("hidden", lambda: model.decode(torch.from_numpy(want).bfloat16())),
        ("ids", lambda: model(ids.bfloat16())),
    ):
        with pytest.raises(
            cmm.DtypeError, match=rf"^{name} has dtype torch\.bfloat16, .*{name}\.to\(torch\.float32\)"
        ):
            call()
    for name, call in (("ids", lambda: model(ids.to("meta"))), ("mask", lambda: model(ids, ids.to("meta")))):
        with pytest.raises(cmm.DtypeError, match=f"^{name} is a Tensor that is not in the CPU's memory"):
            call()


def test_out_is_written_in_place() -> None:
    out = Other(np.full((5, 6), np.nan))
    memory = out.array
    assert cmm.fff_forward(**others(), out=out) is out
    assert out.array is memory
    assert np.array_equal(memory, cmm.fff_forward(**PLAIN))


def test_a_prepared_layer_takes_and_returns_the_other_kind() -> None:
    want = cmm.fff_forward(**PLAIN, return_path=True)
    arrays = others()
    x = arrays.pop("x")
    layer = cmm.FFF(**arrays)
    assert np.array_equal(layer.w_in, PLAIN["w_in"])
    got = layer(x, return_path=True)
    assert all(type(a) is Other for a in got)
    assert all(np.array_equal(a.array, b) for a, b in zip(got, want, strict=True))
    assert np.array_equal(layer(PLAIN["x"]), want[0])  # its weights are its own: tokens may be anyone's
    out = Other(np.empty((5, 6)))
    assert layer(x, out=out) is out
    assert np.array_equal(out.array, want[0])
    with pytest.raises(
        cmm.ArgumentError, match="x is a other_library array on GPU 0 and the layer's weights are on the"
    ):
        layer(Other(PLAIN["x"], (2, 0)))


def test_out_on_a_gpu_shares_no_memory_with_an_input() -> None:
    """At any level, also one that would not notice. The library here says where arrays are, no more."""
    library = SimpleNamespace(
        pointer=lambda array: array.ctypes.data,
        contiguous=lambda name, array: array,
    )
    memory = np.zeros(100)
    inputs = (memory[:40].reshape(5, 8), memory[60:], None, None)
    target = cuda.Backend(Place("cupy", 2, 0)).target
    for start, name in ((0, "x"), (39, "x"), (40, "w_in"), (70, "w_in")):
        with pytest.raises(cmm.ArgumentError, match=f"out overlaps {name}; on a GPU it should be memory of its own"):
            target(library, memory[start : start + 30].reshape(5, 6), (5, 6), "float64", inputs)
    for out in (memory[40:60].reshape(5, 4), np.empty((5, 4))):
        assert target(library, out, (5, 4), "float64", inputs) is out


def test_inputs_are_seen_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for name in ("bind", "forward"):
        real = getattr(dlpack_cpu.numpy, name)
        monkeypatch.setattr(dlpack_cpu.numpy, name, lambda *a, real=real: (seen.extend(a), real(*a))[1])
    arrays = others()
    cmm.fff_forward(**arrays)
    addresses = {a.ctypes.data for a in seen if isinstance(a, np.ndarray)}
    assert addresses == {a.array.ctypes.data for a in arrays.values()}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"w_in": PLAIN["w_in"]}, "w_in is a NumPy array, and another argument is an array of another library"),
        ({"bias": 3.0}, "bias is a float"),
        ({"w_in": Other(PLAIN["w_in"], (2, 0))}, "w_in is a other_library array on GPU 0 and x is .* on the CPU"),
        ({"x": Other(PLAIN["x"], (10, 0))}, "device type 10"),
    ],
    ids=["numpy", "number", "devices", "device"],
)
def test_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(cmm.ArgumentError, match=said):
        cmm.fff_forward(**others(**changes))


def test_unknown_devices_are_refused() -> None:
    arrays = {name: Other(array, (10, 0)) for name, array in PLAIN.items()}
    with pytest.raises(cmm.ArgumentError, match="it should be on the CPU or on an NVIDIA GPU"):
        cmm.fff_forward(**arrays)


def test_tensors_that_require_grad_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = type("Tensor", (Other,), {"__module__": "torch", "requires_grad": True})
    with pytest.raises(cmm.ArgumentError, match=r"w_in requires grad, .*: pass w_in\.detach\(\)"):
        cmm.fff_forward(**others(w_in=tensor(PLAIN["w_in"])))


def test_a_gpu_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu = {name: Other(array, (2, 0)) for name, array in PLAIN.items()}
    monkeypatch.setattr(_dispatch, "why_not", lambda level: "of a reason")
    with pytest.raises(cmm.UnusableError, match=r"^level is 'cuda', which cannot be used here: of a reason$"):
        cmm.fff_forward(**on_gpu)
    with pytest.raises(
        cmm.LevelError, match="level is 'native'; for arrays on a GPU it should be one of 'auto', 'cuda-n"
    ):
        cmm.fff_forward(**on_gpu, level="native")


def test_without_cupy_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr(_cupy, "import_module", absent)
    assert _dispatch.why_not("cuda-bmm") == "the level needs CuPy, which cannot be imported: No module named 'cupy'"


def test_a_library_that_cannot_be_loaded_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMM_CUDA_LIBRARY", "no/such/libcmm_cuda.so")
    status, why = native_cuda.load.__wrapped__()
    assert status == lib.CMM_ERROR_CUDA_ABSENT
    assert "no/such/libcmm_cuda.so" in why


def test_a_class_derived_from_an_arrays_is_of_its_library() -> None:
    base = type("Tensor", (Other,), {"__module__": "torch"})
    mine = type("Mine", (base,), {"__module__": "mine"})
    assert _interop.library_of(mine(PLAIN["x"])) == "torch"
    assert _interop.library_of(Other(PLAIN["x"])) == "other_library"


def test_an_error_names_the_array_that_is_wrong() -> None:
    class Closed(Other):
        __module__ = Other.__module__  # of the same library

        def __dlpack__(self, **how: Any) -> Any:
            raise BufferError("no")

    for name in ("x", "w_in", "bias"):
        arrays = others()
        arrays.pop("w_out")
        arrays[name] = Closed(PLAIN[name])
        with pytest.raises(cmm.DtypeError, match=f"^{name}, float64, cannot become a NumPy array without a copy: no"):
            cmm.cmm(**arrays)


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_real_libraries_on_the_cpu(name: str) -> None:
    library = pytest.importorskip(name)
    make = library.from_numpy if name == "torch" else library.numpy.asarray
    arrays = {key: make(array.astype(np.float32)) for key, array in PLAIN.items()}
    y = cmm.fff_forward(**arrays)
    assert type(y) is type(arrays["x"])
    assert np.array_equal(np.asarray(y), cmm.fff_forward(**{k: a.astype(np.float32) for k, a in PLAIN.items()}))
    x = arrays.pop("x")
    prepared = cmm.FFF(**arrays)(x)
    assert type(prepared) is type(x)
    assert np.array_equal(np.asarray(prepared), np.asarray(y))
