"""fff_backward: gradients within derived bounds of the oracle, finite differences, arguments, and what it refuses.

What libcmm itself promises (every instruction set, threads, guard pages, every status) is in tests/c/backward.c.
"""

from typing import Any

import cmm
import numpy as np
import pytest
import reference
from cmm.typing import Gradients
from numpy.typing import NDArray
from other_library import Other

Array = NDArray[Any]
NAMES = Gradients._fields


class Layer:
    """A layer, tokens, the path that they take, and the gradient of their outputs."""

    def __init__(
        self,
        trees: int,
        depth: int,
        d_in: int,
        d_out: int,
        batch: int,
        dtype: Any,
        activation: str,
        tie: str = "left",
    ) -> None:
        rng = np.random.default_rng(depth * 1000 + d_in)
        nodes = 2 ** (depth + 1) - 1
        self.activation = activation
        self.w_in, self.w_out = (
            (rng.standard_normal((trees, nodes, d)) / d**0.5).astype(dtype) for d in (d_in, d_out)
        )
        self.bias = rng.standard_normal((trees, nodes)).astype(dtype)
        self.x = rng.standard_normal((batch, d_in)).astype(dtype)
        self.dy = rng.standard_normal((batch, d_out)).astype(dtype)
        _, self.nodes, self.logits = cmm.fff_forward(
            self.x, self.w_in, self.w_out, self.bias, activation=activation, tie=tie, return_path=True
        )

    def arguments(self, **changes: Any) -> dict[str, Any]:
        arrays = {name: getattr(self, name) for name in ("x", "w_in", "w_out", "nodes", "logits", "dy")}
        return {**arrays, "activation": self.activation, **changes}

    def backward(self, **changes: Any) -> Gradients:
        return cmm.fff_backward(**self.arguments(**changes))

    def check(self, gradients: Gradients) -> None:
        want = reference.backward(self.x, self.w_in, self.w_out, self.nodes, self.logits, self.dy, self.activation)
        for name in NAMES:
            got = getattr(gradients, name)
            assert got.dtype == self.x.dtype
            reference.worst(got, *want[name], name)


def small(**more: Any) -> Layer:
    shape: dict[str, Any] = {"trees": 2, "depth": 3, "d_in": 7, "d_out": 5, "batch": 11}
    return Layer(**shape | {"dtype": np.float32, "activation": "gelu"} | more)


SHAPES = [
    (1, 11, 96, 64, 300),
    (1, 3, 1000, 33, 40),
    (3, 2, 33, 1000, 40),
    (5, 0, 1, 1, 1),
    (1, 15, 3, 2, 500),
    (2, 4, 20, 30, 0),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_gradients_are_within_derived_bounds(shape: tuple[int, ...], activation: str, dtype: Any) -> None:
    layer = Layer(*shape, dtype, activation, "right" if activation == "silu" else "left")
    layer.check(layer.backward())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_layer_of_many_trees_of_one_node(dtype: Any) -> None:
    layer = Layer(3072, 0, 20, 30, 40, dtype, "gelu_tanh")
    layer.check(layer.backward())


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_gradients_are_the_central_differences(activation: str) -> None:
    """Of loss = sum(dy * y) in float64, along the path: the error of a difference is of the order h^2 + u / h."""
    layer = small(dtype=np.float64, activation=activation, batch=6)
    h = 1e-5
    assert activation != "relu" or np.abs(layer.logits).min() > 100 * h

    def loss(**change: Any) -> float:
        arrays = {"x": layer.x, "w_in": layer.w_in, "w_out": layer.w_out, "bias": layer.bias, **change}
        return float((layer.dy * cmm.fff_forward(**arrays, activation=activation, path=layer.nodes)).sum())

    gradients = layer.backward()
    for name in ("x", "w_in", "w_out", "bias"):
        array, got = getattr(layer, name), getattr(gradients, f"d{name}")
        assert got.shape == array.shape
        for at in np.random.default_rng(1).permutation(array.size)[:60]:
            moved = [array.copy() for _ in range(2)]
            for one, by in zip(moved, (h, -h), strict=True):
                one.flat[at] += by
            difference = (loss(**{name: moved[0]}) - loss(**{name: moved[1]})) / (2 * h)
            assert abs(difference - got.flat[at]) < 1e-8, (name, at)


# ---- what comes back, and where ------------------------------------------------------------------------------------


def test_only_what_is_wanted_is_returned() -> None:
    layer = small()
    every = layer.backward()
    for name in NAMES:
        one = layer.backward(**{other: other == name for other in NAMES})
        assert [getattr(one, other) is None for other in NAMES] == [other != name for other in NAMES]
        assert np.array_equal(getattr(one, name), getattr(every, name))


def test_gradients_go_into_given_arrays_or_are_added_to_them() -> None:
    layer = small()
    every = layer.backward()
    given = {name: np.full_like(getattr(every, name), 1024) for name in NAMES}
    stored = layer.backward(**given)
    for name in NAMES:
        assert getattr(stored, name) is given[name]
        assert np.array_equal(given[name], getattr(every, name))
        given[name][...] = 1
    added = layer.backward(**given | {"dbias": True}, accumulate=True)
    assert np.array_equal(added.dbias, every.dbias), "a new array has nothing to be added to"
    visited = np.zeros(layer.w_in.shape[:2], bool)
    visited[np.arange(2)[:, None], layer.nodes] = True
    assert not visited.all()
    for name in ("dx", "dw_in", "dw_out"):
        assert np.allclose(given[name], getattr(every, name) + 1, atol=1e-5)
    assert (every.dw_in[~visited] == 0).all()
    assert (given["dw_in"][~visited] == 1).all()
    assert (given["dw_out"][~visited] == 1).all()


def test_what_is_not_visited_has_no_influence() -> None:
    layer = small()
    want = layer.backward()
    visited = np.zeros(layer.w_in.shape[:2], bool)
    visited[np.arange(2)[:, None], layer.nodes] = True
    layer.w_in[~visited], layer.w_out[~visited] = np.nan, np.inf
    for one, other in zip(want, layer.backward(), strict=True):
        assert np.array_equal(one, other)


def test_any_layout_of_the_arrays_will_do() -> None:
    layer = small()
    want = layer.backward(accumulate=True)
    changes = {
        name: np.asfortranarray(getattr(layer, name)) for name in ("x", "w_in", "w_out", "nodes", "logits", "dy")
    }
    room = np.ones((11, 14), np.float32)
    gradients = layer.backward(**changes, dx=room[:, ::2], accumulate=True)
    assert np.allclose(room[:, ::2], want.dx + 1, atol=1e-6)
    assert (room[:, 1::2] == 1).all()
    assert np.array_equal(gradients.dw_in, want.dw_in)
    alike = layer.backward(nodes=layer.nodes.astype(np.int64))
    assert np.array_equal(alike.dw_out, want.dw_out)


def test_a_gradient_may_take_the_place_of_an_input() -> None:
    layer = small()
    want = layer.backward()
    x = layer.x.copy()
    assert layer.backward(x=x, dx=x).dx is x
    assert np.array_equal(x, want.dx)


def test_leading_dimensions_and_weights_of_one_tree() -> None:
    layer = small(trees=1, batch=12)
    want = layer.backward()
    lead = {
        name: getattr(layer, name).reshape(3, 4, *getattr(layer, name).shape[1:])
        for name in ("x", "nodes", "logits", "dy")
    }
    got = layer.backward(**lead, w_in=layer.w_in[0], w_out=layer.w_out[0])
    assert [one.shape for one in got] == [(3, 4, 7), (15, 7), (15,), (15, 5)]
    for one, other in zip(got, want, strict=True):
        assert np.array_equal(one.ravel(), other.ravel())


def test_arrays_of_another_library() -> None:
    layer = small()
    want = layer.backward()
    names = ("x", "w_in", "w_out", "nodes", "logits", "dy")
    got = layer.backward(**{name: Other(getattr(layer, name)) for name in names})
    for one, other in zip(got, want, strict=True):
        assert isinstance(one, Other)
        assert np.array_equal(np.from_dlpack(one), other)


def test_tensors_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    layer = small()
    want = layer.backward()
    tensors = {
        name: torch.from_numpy(getattr(layer, name)) for name in ("x", "w_in", "w_out", "nodes", "logits", "dy")
    }
    dw_in = torch.ones(tensors["w_in"].shape)
    got = layer.backward(**tensors, dw_in=dw_in, accumulate=True)
    assert got.dw_in is dw_in
    assert torch.equal(got.dx, torch.from_numpy(want.dx))
    assert torch.allclose(dw_in, torch.from_numpy(want.dw_in) + 1, atol=1e-5)


def test_the_same_bits_for_any_number_of_threads_and_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer(1, 8, 200, 150, 700, np.float32, "gelu")
    want = layer.backward(threads=1)
    for threads in (2, 3, 7, None):
        for one, other in zip(layer.backward(threads=threads), want, strict=True):
            assert np.array_equal(one, other)
    monkeypatch.setenv("CMM_ISA", "scalar")
    for one, other in zip(layer.backward(), want, strict=True):
        assert np.array_equal(one, other)


# ---- refused -------------------------------------------------------------------------------------------------------

GOOD = small()
READ_ONLY = np.zeros_like(GOOD.x)
READ_ONLY.flags.writeable = False
PLACE = np.zeros_like(GOOD.w_in)
BROKEN = GOOD.nodes.copy()
BROKEN[4, 1, 2] ^= 1

REFUSED: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "logits of another shape": (
        cmm.ShapeError,
        r"logits has shape \(11, 2, 3\); it should be",
        {"logits": GOOD.logits[..., :3]},
    ),
    "dy of another width": (
        cmm.ShapeError,
        r"dy has shape \(11, 4\); it should be \(11, 5\)",
        {"dy": GOOD.dy[:, :4]},
    ),
    "dy of other tokens": (cmm.ShapeError, r"dy has shape \(10, 5\)", {"dy": GOOD.dy[:10]}),
    "nodes of another shape": (cmm.ShapeError, r"nodes has shape \(10, 2, 4\)", {"nodes": GOOD.nodes[:10]}),
    "leaves alone": (cmm.ShapeError, r"nodes has shape \(11, 2\)", {"nodes": GOOD.nodes[..., -1]}),
    "x of another width": (cmm.ShapeError, "x has shape", {"x": GOOD.x[:, :6]}),
    "w_out of other nodes": (cmm.ShapeError, "w_out has shape", {"w_out": GOOD.w_out[:, :7]}),
    "dx of another shape": (
        cmm.ShapeError,
        r"dx has shape \(3, 7\); it should be \(11, 7\)",
        {"dx": np.zeros((3, 7), "f")},
    ),
    "dbias of another shape": (cmm.ShapeError, "dbias has shape", {"dbias": np.zeros((2, 14), "f")}),
    "mixed dtypes": (
        cmm.DtypeError,
        "dy has dtype float64 and w_in has dtype float32",
        {"dy": GOOD.dy.astype(float)},
    ),
    "logits of float64": (cmm.DtypeError, "logits has dtype float64", {"logits": GOOD.logits.astype(float)}),
    "half precision": (cmm.DtypeError, "x has dtype float16", {"x": GOOD.x.astype(np.float16)}),
    "nodes of floats": (
        cmm.DtypeError,
        "nodes has dtype float32; it should be of integers",
        {"nodes": GOOD.nodes.astype("f")},
    ),
    "dw_in of float64": (
        cmm.DtypeError,
        "dw_in has dtype float64; it should be float32",
        {"dw_in": np.zeros(GOOD.w_in.shape)},
    ),
    "dw_in a list": (cmm.DtypeError, "dw_in is a list; it should be True, False", {"dw_in": [1.0]}),
    "dw_out None": (cmm.DtypeError, "dw_out is a NoneType", {"dw_out": None}),
    "a path that is none": (cmm.ArgumentError, r"nodes has \[.*\] for token 4, tree 1", {"nodes": BROKEN}),
    "nodes that are negative": (
        cmm.ArgumentError,
        "nodes has .* for token 0, tree 0",
        {"nodes": GOOD.nodes - np.int64(1)},
    ),
    "no such activation": (cmm.ArgumentError, "activation is 'tanh'", {"activation": "tanh"}),
    "an activation that is none": (cmm.ArgumentError, r"activation is \[\]", {"activation": []}),
    "accumulate that is no bool": (
        cmm.ArgumentError,
        "accumulate is 1; it should be True or False",
        {"accumulate": 1},
    ),
    "no thread": (cmm.ArgumentError, "threads is 0", {"threads": 0}),
    "read-only": (cmm.ArgumentError, "dx is read-only; it should be writable", {"dx": READ_ONLY}),
    "shared memory": (
        cmm.ArgumentError,
        "dw_in and dbias share memory",
        {"dw_in": PLACE, "dbias": PLACE.ravel()[:30].reshape(2, 15)},
    ),
    "nothing wanted": (cmm.ArgumentError, "at least one should be wanted", dict.fromkeys(NAMES, False)),
    "two libraries": (cmm.ArgumentError, "is an array of another library|another argument", {"x": Other(GOOD.x)}),
    "a gradient of another library": (cmm.ArgumentError, "another argument is an array", {"dx": Other(GOOD.x)}),
}


@pytest.mark.parametrize("what", REFUSED)
def test_fff_backward_refuses(what: str) -> None:
    error, words, changes = REFUSED[what]
    written = {name: np.full_like(one, 3) for name, one in zip(NAMES, GOOD.backward(), strict=True)}
    with pytest.raises(error, match=words):
        GOOD.backward(**written | changes)
    for name, array in written.items():
        assert (array == 3).all(), name


def test_arrays_on_a_gpu_are_refused() -> None:
    class OnGpu(Other):
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

    arrays = {name: OnGpu(getattr(GOOD, name)) for name in ("x", "w_in", "w_out", "nodes", "logits", "dy")}
    with pytest.raises(cmm.ArgumentError, match="x is on a GPU; fff_backward is for arrays on a CPU"):
        GOOD.backward(**arrays)
