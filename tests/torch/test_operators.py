"""cmm::fff_forward and cmm::fff_backward: what PyTorch asks of an operator, and how a layer behaves with them.

That their numbers are right is in test_torch_layer.py, with derived bounds, and in tests/core.
"""

import copy
import math
import pickle
import re
import shutil
import sys
import threading
from functools import partial

import between_products
import cmm
import numpy as np
import pytest
from cmm._native import ACTIVATIONS, TIES
from ranks import run_ranks

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from cmm.torch import FFF, operators  # noqa: E402
from torch.autograd import forward_ad  # noqa: E402
from torch.func import functional_call, grad, jacrev, jvp, vmap  # noqa: E402
from torch.library import opcheck  # noqa: E402
from torch.optim import optimizer  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

forward, backward = torch.ops.cmm.fff_forward, torch.ops.cmm.fff_backward
TREES, DEPTH, D_IN, D_OUT, TOKENS = 3, 4, 12, 7, 33
ROWS = TREES * (2 ** (DEPTH + 1) - 1)
# PyTorch's compiler and torch.func warn of PyTorch's own deprecations.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
compiles = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler"
)


def make(way="visited", *, trees=TREES, depth=DEPTH, d_in=D_IN, dtype=torch.float64, **options):
    """A layer whose paths spread over the leaves."""
    torch.manual_seed(0)
    layer = FFF(d_in, trees, depth, D_OUT, dtype=dtype, backward=way, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


def tokens(*lead, d_in=D_IN, dtype=torch.float64):
    return torch.randn(*(lead or (TOKENS,)), d_in, dtype=dtype, generator=torch.Generator().manual_seed(1))


def arguments(*, dtype=torch.float64, bias=True, wants=True, x=None):
    """What the forward operator takes."""
    layer, x = make(dtype=dtype, bias=bias), tokens(dtype=dtype) if x is None else x
    tensors = x, layer.linear_in.weight, layer.linear_in.bias, layer.linear_out.weight.t().contiguous()
    tensors = [None if one is None else one.detach().requires_grad_(wants) for one in tensors]
    return (*tensors, TREES, "gelu", "left", True)


def of_backward(*, dtype=torch.float64, wanted=(True,) * 4):
    """What the backward operator takes."""
    x, w_in, _, w_out, *_ = given = arguments(dtype=dtype, wants=False)
    y, nodes, logits = forward(*given)
    return torch.randn_like(y), x, w_in, w_out, nodes, logits, TREES, "gelu", list(wanted)


def gradients(layer, x, call=None):
    """The gradients of a sum of squares, of the tokens and of all parameters."""
    x = x.detach().clone().requires_grad_()
    layer.zero_grad()
    (layer if call is None else call)(x).square().sum().backward()
    return [x.grad, *(parameter.grad.clone() for parameter in layer.parameters())]


def equal(some, others):
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


# ---- as operators --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wants", "bias"), [(True, True), (False, False)])
def test_pytorch_finds_nothing_wrong_with_the_forward_operator(wants, bias):
    opcheck(forward.default, arguments(wants=wants, bias=bias))
    if not wants:
        opcheck(forward.default, (*arguments(wants=False, bias=bias)[:7], False))


@pytest.mark.parametrize("wanted", [(True,) * 4, (True, False, False, False), (False, True, False, True)])
def test_pytorch_finds_nothing_wrong_with_the_backward_operator(wanted):
    opcheck(backward.default, of_backward(wanted=wanted))


def test_they_give_what_cmm_gives():
    x, w_in, bias, w_out, *_ = given = arguments(wants=False)
    shape = (TREES, ROWS // TREES, -1)
    weights = w_in.view(shape), w_out.view(shape)
    assert equal(forward(*given), cmm.fff_forward(x, *weights, bias.view(TREES, -1), return_path=True))
    dy, _, _, _, nodes, logits, *_ = of_backward()
    want = cmm.fff_backward(x, *weights, nodes, logits, dy)
    made = backward(dy, x, w_in, w_out, nodes, logits, TREES, "gelu", [True] * 4)
    assert equal([one.flatten() for one in made], [one.flatten() for one in want])


@pytest.mark.parametrize(
    ("activation", "bias"), [("gelu", True), ("gelu", False), ("gelu_tanh", True), ("silu", True), ("identity", True)]
)
def test_the_gradient_is_the_derivative(activation, bias):
    x, w_in, b, w_out, *_ = arguments(bias=bias, x=tokens(5))
    inputs = [x, w_in, w_out] + [b] * bias

    def y(x, w_in, w_out, b=None):
        return forward(x, w_in, b, w_out, TREES, activation, "left", True)[0]

    def logits(x, w_in, w_out, b=None):
        return forward(x, w_in, b, w_out, TREES, activation, "left", True)[2]

    assert torch.autograd.gradcheck(y, inputs)
    assert torch.autograd.gradcheck(logits, inputs)


def test_the_gradient_of_output_and_logits_together():
    given = arguments(x=tokens(5))
    y, _, logits = forward(*given)
    both = torch.autograd.grad(y.sum() + logits.square().sum(), given[:4])
    y, _, logits = forward(*given)
    one = torch.autograd.grad(y.sum(), given[:4], retain_graph=True)
    other = torch.autograd.grad(logits.square().sum(), given[:3])
    for found, a, b in zip(both, one, [*other, torch.zeros(())], strict=True):
        torch.testing.assert_close(found, a + b, rtol=1e-12, atol=1e-12)


def test_without_a_path_there_is_no_gradient():
    y, _, _ = forward(*arguments()[:7], False)
    with pytest.raises(cmm.ArgumentError, match="return_path is False; for a gradient it should be True"):
        y.sum().backward()


def test_what_is_differentiated_twice_says_so():
    layer, x = make(), tokens().requires_grad_()
    (dx,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)
    with pytest.raises(cmm.ArgumentError, match=r'second derivatives .*: use backward="dense"'):
        dx.sum().backward()
    layer.backward = "dense"
    (dx,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    dx.sum().backward()
    assert x.grad.any()


def test_forward_mode():
    layer, x = make(), tokens(5)
    with pytest.raises(cmm.ArgumentError, match=r'forward-mode derivatives .*: use backward="dense"'):
        jvp(layer, (x,), (x,))
    layer.backward = "dense"
    direction = torch.randn_like(x)
    _, tangent = jvp(layer, (x,), (direction,))
    torch.testing.assert_close(tangent, torch.einsum("abcd,cd->ab", jacrev(layer)(x), direction))


@pytest.mark.parametrize("sparse", [False, True])
def test_forward_mode_is_not_lost_without_gradients(sparse):
    """Neither by a layer that is prepared, nor where weights have the tangents."""
    layer, x = make("auto", sparse=sparse).eval(), tokens(5)
    refused = pytest.raises(cmm.ArgumentError, match=r"forward-mode derivatives")
    parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}
    with torch.no_grad():
        want = layer(x)
        with forward_ad.dual_level():
            assert torch.equal(layer(x), want)
            with refused:
                layer(forward_ad.make_dual(x, x))
            with refused:
                vmap(layer)(forward_ad.make_dual(x, x))
        with refused:
            jvp(layer, (x,), (x,))
        with refused:
            jvp(lambda given: functional_call(layer, given, x), (parameters,), (parameters,))
        if not sparse:
            layer.backward = "dense"
            _, tangent = jvp(layer, (x,), (x,))
            torch.testing.assert_close(tangent, torch.einsum("abcd,cd->ab", jacrev(layer)(x), x))


def test_autocast():
    """float32 inside on a CPU, whatever the tokens are, and whatever PyTorch's products would be."""
    args = [one.bfloat16() if isinstance(one, torch.Tensor) else one for one in arguments(wants=False)]
    with torch.autocast("cpu", torch.bfloat16):
        y, _, logits = forward(*args)
        assert y.dtype == logits.dtype == torch.float32
        layer, x = make(dtype=torch.float32), tokens(dtype=torch.float32)
        found = gradients(layer, x)
        assert torch.equal(layer(x), make(dtype=torch.float32)(x))
    assert equal(found, gradients(layer, x))


@pytest.mark.parametrize("compiler", [None, pytest.param("aot_eager", marks=compiles)])
def test_autocast_with_narrow_weights(compiler):
    """The visited way widens them: gradients are those of float32, rounded to the weights' type."""
    layer, x = make(dtype=torch.bfloat16), tokens(dtype=torch.bfloat16)
    wide = make(dtype=torch.float32)
    wide.load_state_dict({name: one.float() for name, one in layer.state_dict().items()})
    want = [one.bfloat16() for one in gradients(wide, x.float())]
    torch._dynamo.reset()
    with torch.autocast("cpu", torch.bfloat16):
        call = torch.compile(layer, fullgraph=True, backend=compiler) if compiler else layer
        assert equal(gradients(layer, x, call), want)


WRONG = {
    "x of another width": (
        cmm.ShapeError,
        r"x has shape \(33, 5\); it should have shape \(..., 12\)",
        0,
        tokens()[:, :5],
    ),
    "another number of rows": (cmm.ShapeError, r"w_in has 92 rows; it should have 3 times", 1, torch.ones(92, 12)),
    "w_in of one dimension": (
        cmm.ShapeError,
        r"w_in has shape \(93,\); it should be \(K\*N, d_in\)",
        1,
        torch.ones(93),
    ),
    "bias of another shape": (cmm.ShapeError, r"bias has shape \(92,\); it should be \(93,\)", 2, torch.ones(92)),
    "w_out as linear_out has it": (
        cmm.ShapeError,
        r"w_out has shape \(7, 93\); it should be \(93, d_out\)",
        3,
        torch.ones(7, 93),
    ),
    "float32 weights": (
        cmm.DtypeError,
        "w_in has dtype torch.float32 and x has dtype torch.float64",
        1,
        torch.ones(93, 12, dtype=torch.float32),
    ),
    "whole numbers": (
        cmm.DtypeError,
        "x has dtype torch.int64; it should be torch.float32",
        0,
        torch.ones(33, 12, dtype=torch.int64),
    ),
    "no trees": (cmm.ArgumentError, "trees is 0; it should be at least 1", 4, 0),
    "another number of trees": (cmm.ShapeError, "w_in has 93 rows; it should have 2 times", 4, 2),
    "no such activation": (cmm.ArgumentError, "activation is 'tanh'; it should be one of", 5, "tanh"),
    "no such tie": (cmm.ArgumentError, "tie is 'up'; it should be one of", 6, "up"),
}


@pytest.mark.parametrize("what", WRONG)
def test_the_forward_operator_refuses(what):
    error, words, place, value = WRONG[what]
    if isinstance(value, torch.Tensor) and value.dtype is torch.get_default_dtype() and "float32" not in what:
        value = value.double()
    given = list(arguments(wants=False))
    given[place] = value
    with pytest.raises(error, match=words):
        forward(*given)


WRONG_BACKWARD = {
    "dy of another width": (
        cmm.ShapeError,
        r"dy has shape \(33, 6\); it should be \(33, 7\)",
        0,
        lambda dy: dy[:, :6],
    ),
    "nodes of other tokens": (cmm.ShapeError, r"nodes has shape \(32, 3, 5\)", 4, lambda nodes: nodes[:32]),
    "nodes of another dtype": (
        cmm.DtypeError,
        "nodes has dtype torch.int64; it should be torch.int32",
        4,
        lambda n: n.long(),
    ),
    "logits of float32": (cmm.DtypeError, "logits has dtype torch.float32 and x has dtype", 5, lambda z: z.float()),
    "no path": (
        cmm.ArgumentError,
        r"nodes has \[1, .*\] for token 0, tree 0; it should be a path",
        4,
        lambda n: n + 1,
    ),
    "nothing wanted": (cmm.ArgumentError, r"wanted is \[False, .*not all False", 8, lambda _: [False] * 4),
    "too few wanted": (cmm.ArgumentError, r"wanted is \[True\]; it should be four", 8, lambda _: [True]),
}


@pytest.mark.parametrize("what", WRONG_BACKWARD)
def test_the_backward_operator_refuses(what):
    error, words, place, change = WRONG_BACKWARD[what]
    given = list(of_backward())
    given[place] = change(given[place])
    with pytest.raises(error, match=words):
        backward(*given)


def queue_on_cpu(function, x, layer, rest):
    """Stand in for libcmm_cuda: the GPU's memory is the CPU's."""
    *codes, w_in, bias, w_out = layer[:10] if len(layer) > 9 else (*layer[:8], 0, layer[8])
    pointers = [operators.ffi.cast("void *", one) for one in (w_in, bias, w_out)]
    tokens, *at = [operators.ffi.cast("void *", one) if index else one for index, one in enumerate(rest)]
    run = operators.choose("native", None, 1, False)
    if function is operators.lib.cmm_py_cuda_fff:
        assert operators.ffi.string(layer[10]) == b"cuda"
        assert rest[5:] == (0, 0, True)
        run = operators.choose("auto", None, 1, False)
        assert operators.lib.cmm_py_fff_once(*codes, *pointers, *run, tokens, *at[:4]) == 0
        return None
    where = operators.ffi.new("int64_t[2]")
    x_at, nodes, logits, dy, _, *into = at
    status = operators.lib.cmm_py_fff_backward(
        *codes, pointers[0], pointers[2], run[0], run[2], tokens, x_at, nodes, logits, dy, rest[5], *into, where
    )
    return torch.tensor([255 if status == 0 else 0] * 8, dtype=torch.uint8)


def test_the_gpus_passes_take_any_layout_and_refuse_wrong_shapes(monkeypatch):
    """As far as it goes without a GPU: what they hand on, and what they say."""
    monkeypatch.setattr(operators, "_queue", queue_on_cpu)
    monkeypatch.setattr(operators, "choose_cuda", lambda level, algorithm: "cuda")
    x, w_in, bias, w_out, *how = given = arguments()
    want = forward(*given)
    assert equal(operators._forward_cuda(*given), want)
    assert equal(operators._forward_cuda(x, w_in.t().contiguous().t(), bias, w_out.t().contiguous().t(), *how), want)
    assert [one.shape for one in operators._forward_cuda(x, w_in, None, w_out, *how[:3], False)[1:]] == [(0,), (0,)]
    for trees, said in ((0, "trees is 0; it should be"), (2, f"w_in has {ROWS} rows; it should have 2 times")):
        with pytest.raises(cmm.CmmError, match=re.escape(said)):
            operators._forward_cuda(x, w_in, bias, w_out, trees, *how[1:])
    given = of_backward()
    made = operators._backward_cuda(*given)
    assert equal(made, backward(*given))
    turned = [one.t().contiguous().t() if one.ndim == 2 else one for one in given[:4]]
    assert equal(operators._backward_cuda(*turned, *given[4:]), made)
    some = operators._backward_cuda(*given[:-1], [False, True, False, True])
    assert equal([some[1], some[3]], [made[1], made[3]])
    assert [some[0].shape, some[2].shape] == [(0,), (0,)]
    for place, wrong, said in (
        (0, given[0][..., :-1], "dy has shape"),
        (4, given[4].long(), "nodes has dtype torch.int64"),
        (5, given[5].half(), "logits has dtype torch.float16; it should be torch.float"),
        (6, 2, f"w_in has {ROWS} rows; it should have 2 times"),
        (8, [False] * 4, "wanted is"),
    ):
        with pytest.raises(cmm.CmmError, match=re.escape(said)):
            operators._backward_cuda(*given[:place], wrong, *given[place + 1 :])


def hidden_on_cpu(codes, like, *, logits, y=None, dx=None, dy=None, path=None, visited=None, nodes=None):
    """Stand in for cmm_cuda_fff_hidden, of float64."""
    _, activation, tie, depth, trees = codes
    activation, tie = list(ACTIVATIONS)[activation], list(TIES)[tie]
    size = 2 ** (depth + 1) - 1
    for one in (logits, y, dx, dy, path, visited, nodes):
        assert one is None or one.is_contiguous()
    if path is None:
        z = logits.detach().numpy().reshape(-1, trees, size)
        own = between_products.walked(z, tie)
        z = between_products.on_path(z, own)
    else:
        z, own = logits.numpy(), path.numpy()
    if nodes is not None:
        nodes.copy_(torch.from_numpy(own).reshape(nodes.shape))
    values = [(y, between_products.activated(z, activation)), (visited, np.ones_like(z, bool))]
    if dx is not None:
        on_path = between_products.on_path(dy.detach().numpy().reshape(-1, trees, size), own)
        values.append((dx, between_products.sloped(z, on_path, activation)))
    for into, value in values:
        if into is not None:
            into.copy_(torch.from_numpy(between_products.spread(value, own, size)).reshape(into.shape))


@pytest.fixture
def a_gpus_hidden(monkeypatch):
    """Register what a GPU has on the CPU, too, as far as it goes without one."""
    library = torch.library.Library("cmm", "IMPL")
    library.impl("fff_hidden", operators._hidden_cuda, "CPU")
    library.impl("fff_hidden_backward", operators._hidden_backward_cuda, "CPU")
    library.impl("fff_visited", operators._visited_cuda, "CPU")
    monkeypatch.setattr(operators, "_queue_hidden", hidden_on_cpu)
    yield
    library._destroy()


@pytest.mark.parametrize("tie", sorted(TIES))
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_what_lies_between_products_on_a_gpu(a_gpus_hidden, activation, tie):
    """Any layout, leading dimensions, no tokens; gradients, of every order; from all logits and from a path."""
    z = torch.randn(4, 5, ROWS, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    z[0, 0, :4] = 0
    how = TREES, activation, tie
    hidden, nodes = operators.fff_hidden(z, *how, True)
    flat = z.numpy().reshape(20, TREES, -1)
    assert (nodes.numpy().reshape(20, TREES, -1) == between_products.walked(flat, tie)).all()
    visited, same_nodes = operators.fff_visited(z, TREES, tie)
    assert torch.equal(same_nodes, nodes)
    own = nodes.numpy().reshape(20, TREES, -1)
    ones = between_products.spread(np.ones(own.shape, bool), own, ROWS // TREES)
    assert torch.equal(visited, torch.from_numpy(ones).reshape(z.shape))
    again, none = operators.fff_hidden(z.permute(2, 0, 1).contiguous().permute(1, 2, 0), *how, False)
    assert torch.equal(again, hidden)
    assert none.shape == (0,)
    assert operators.fff_hidden(z[:0], *how, True)[1].shape == (0, 5, TREES, DEPTH + 1)
    dy = torch.randn_like(z)
    z.requires_grad_()
    y, _ = operators.fff_hidden(z, *how, False)
    (dz,) = torch.autograd.grad(y, z, dy)
    of_path = torch.from_numpy(between_products.on_path(flat, nodes.numpy().reshape(20, TREES, -1)))
    given = dy.flatten(0, 1), nodes.flatten(0, 1), of_path, activation, torch.float64
    found = operators._hidden_of_path_cuda(*given, True)
    assert equal(found, (hidden.flatten(0, 1), dz.flatten(0, 1)))
    assert equal(operators._hidden_of_path_cuda(*given, False), (hidden.new_empty(0), found[1]))
    assert equal(operators._hidden_of_path_cuda(None, *given[1:], True), (found[0], hidden.new_empty(0)))
    # PyTorch's activations and slopes, which are off by roundings of 1, or of |z|, and times |dy| where it is large.
    roundings = 32 * 2.0**-53 * (1 + z.detach().abs().max()) * (1 + dy.abs().max())
    for one, other in zip(operators.fff_hidden_of_path(*given, True), found, strict=True):
        assert float((one - other).abs().max()) <= roundings
    (dz_again,) = torch.autograd.grad(operators.fff_hidden(z, *how, False)[0], z, dy, create_graph=True)
    assert float((dz_again.detach() - dz).abs().max()) <= roundings
    if activation in ("gelu", "silu"):
        assert torch.autograd.grad(dz_again.sum(), z)[0].any()
    batches = torch.autograd.grad(
        operators.fff_hidden(z, *how, False)[0], z, torch.stack((dy, dy)), is_grads_batched=True
    )
    assert float((batches[0] - dz).abs().max()) <= roundings


OF_PATH = "gelu", torch.float64, True


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda z, **_: operators.fff_hidden(z.int(), TREES, "gelu", "left", True), "logits has dtype torch.int32"),
        (lambda z, **_: operators.fff_hidden(z[:, 1:], TREES, "gelu", "left", True), "rows; it should have 3 times"),
        (lambda z, **_: operators.fff_hidden(z, 0, "gelu", "left", True), "trees is 0"),
        (lambda z, **_: operators.fff_hidden(z, TREES, "tanh", "left", True), "activation is 'tanh'"),
        (lambda z, **_: operators.fff_hidden(z, TREES, "gelu", "up", True), "tie is 'up'"),
        (
            lambda z, dy, **_: operators.fff_hidden_backward(dy.float(), z, TREES, "gelu", "left"),
            "dhidden is (6, 93) of torch.float32; it should be (6, 93) of torch.float64, for logits",
        ),
        (
            lambda dy, path, of_path, **_: operators._hidden_of_path_cuda(dy, path.long(), of_path, *OF_PATH),
            "nodes is (6, 3, 5) of torch.int64; it should be (T, K, D+1) of torch.int32",
        ),
        (
            lambda dy, path, of_path, **_: operators._hidden_of_path_cuda(dy, path, of_path.float(), *OF_PATH),
            "logits is (6, 3, 5) of torch.float32; it should be (6, 3, 5) of torch.float64",
        ),
        (
            lambda dy, path, of_path, **_: operators.fff_hidden_of_path(dy[:, 1:], path, of_path, *OF_PATH),
            "dhidden is (6, 92) of torch.float64; it should be (6, 93)",
        ),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_what_lies_between_products_is_refused(a_gpus_hidden, change, said):
    z, dy = torch.randn(2, 6, ROWS, dtype=torch.float64)
    path = torch.zeros(6, TREES, DEPTH + 1, dtype=torch.int32)
    with pytest.raises(cmm.CmmError, match=re.escape(said)):
        change(z=z, dy=dy, path=path, of_path=torch.zeros(path.shape, dtype=torch.float64))


def test_the_dense_way_by_one_kernel(a_gpus_hidden, monkeypatch):
    """As on a GPU: a layer gives what it gives without, also where it is compiled or weights are not finite."""
    x, dy = tokens(), torch.randn(TOKENS, D_OUT, dtype=torch.float64)
    layer = make("dense")
    with torch.no_grad():
        layer.linear_out.weight[2, 5] = torch.inf
    found = []
    for is_one in (False, True, True):
        monkeypatch.setattr(FFF, "_has_kernel", lambda self, logits, is_one=is_one: is_one)
        torch._dynamo.reset()
        call = torch.compile(layer, fullgraph=True, backend="aot_eager") if len(found) == 2 else layer
        layer.zero_grad()
        x.grad = None
        y = call(x.requires_grad_())
        y.backward(dy)
        found.append([y.detach(), x.grad, *(parameter.grad.clone() for parameter in layer.parameters())])
    assert found[0][0].isnan().any()
    # Activations and slopes are off by few roundings of 1 or of |z|; sums of at most TOKENS or ROWS products follow.
    bound = 64 * (TOKENS + ROWS) * 2.0**-53
    for other in found[1:]:
        for one, want in zip(other, found[0], strict=True):
            assert torch.equal(one.isnan(), want.isnan())
            size = float(want.nan_to_num().abs().max())
            assert float((one - want).nan_to_num().abs().max()) <= bound * (1 + size)


@pytest.mark.parametrize("activation", sorted(operators.ACTIVATIONS_OF_TENSORS))
def test_products_of_all_neurons_have_the_same_gradients(activation):
    """In float64, by sums of at most 100 terms of the order of 1, each of which is rounded at most so often."""
    dy, x, w_in, w_out, nodes, logits, trees, _, wanted = of_backward()
    given = [one.double() for one in (dy, x, w_in, w_out)] + [nodes, logits.double(), trees, activation]
    want = backward(*given, wanted)
    for wanted_now in (wanted, [True, False, False, True], [False, True, True, False]):
        made = operators._gradients_by_products(*given, wanted_now)
        for one, other, is_wanted in zip(made, want, wanted_now, strict=True):
            assert (one is not None) == is_wanted
            if is_wanted:
                assert float((one - other).abs().max()) < 1e-11
    none = [one[:0] if place in (0, 1, 4, 5) else one for place, one in enumerate(given)]
    for one, other in zip(operators._gradients_by_products(*none, wanted), backward(*none, wanted), strict=True):
        assert torch.equal(one, other)
    for place in (0, 1, 4, 5):
        given[place] = given[place][:2]
    hidden = torch.ones(trees, ROWS // trees, dtype=torch.bool)
    hidden[torch.arange(trees)[:, None], given[4].long()] = False
    assert hidden.any()
    some = operators._gradients_by_products(*given, wanted)
    for weight in given[2:4]:
        weight[hidden.flatten()] = torch.nan  # what nobody visits has no influence
    assert equal(operators._gradients_by_products(*given, wanted), some)


def test_any_layout_and_any_address():
    given = arguments(wants=False)
    want = forward(*given)
    spread = [one if not isinstance(one, torch.Tensor) else one.repeat_interleave(2, -1)[..., ::2] for one in given]
    assert not spread[0].is_contiguous()
    assert equal(forward(*spread), want)

    def shifted(tensor):
        room = torch.zeros(tensor.numel() * tensor.element_size() + 1, dtype=torch.uint8).numpy()[1:]
        room[:] = np.frombuffer(tensor.contiguous().numpy().tobytes(), np.uint8)
        with np.errstate(all="ignore"):
            return torch.from_dlpack(Unaligned(room.view(tensor.numpy().dtype).reshape(tensor.shape)))

    moved = [shifted(one) if isinstance(one, torch.Tensor) else one for one in given]
    assert moved[0].data_ptr() % 8
    assert equal(forward(*moved), want)
    dy, x, w_in, w_out, nodes, logits, *rest = of_backward()
    made = backward(dy, x, w_in, w_out, nodes, logits, *rest)
    assert equal(backward(*map(shifted, (dy, x, w_in, w_out)), nodes, logits, *rest), made)
    turned = [one.transpose(0, 1).contiguous().transpose(0, 1) for one in (dy, x, w_in, w_out, nodes, logits)]
    assert equal(backward(*turned, *rest), made)


class Unaligned:
    """An array that PyTorch takes by DLPack, wherever it starts."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **how):
        return self.array.__dlpack__(**how)

    def __dlpack_device__(self):
        return 1, 0


# ---- a layer with them ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trees", "depth", "d_in", "lead"),
    [
        (3, 4, 12, (0,)),
        (3, 4, 12, (1,)),
        (3, 4, 12, ()),
        (3, 4, 12, (2, 3, 5)),
        (3072, 0, 12, (5,)),
        (1, 11, 3, (9,)),
    ],
    ids=["no-tokens", "one-token", "no-dimensions", "many-dimensions", "3072x0", "1x11"],
)
def test_both_ways_have_the_same_gradients(trees, depth, d_in, lead):
    """Tokens and layers of every shape. The numbers themselves are bounded in test_torch_layer.py."""
    x = tokens(*lead, d_in=d_in) if lead else tokens(1, d_in=d_in)[0]
    one, other = (make(way, trees=trees, depth=depth, d_in=d_in) for way in ("visited", "dense"))
    assert one(x).shape == (*x.shape[:-1], D_OUT)
    for found, want in zip(gradients(one, x), gradients(other, x), strict=True):
        assert found.shape == want.shape
        torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9)


def test_only_what_is_wanted_has_a_gradient():
    layer, x = make(), tokens()
    want = gradients(layer, x)
    for name, value in layer.named_parameters():
        value.requires_grad_(name == "linear_in.bias").grad = None
    layer(x).square().sum().backward()
    assert torch.equal(layer.linear_in.bias.grad, want[2])


def test_the_ways_are_chosen():
    """A layer that visits little of itself goes by libcmm; many tokens of one that visits most do not."""

    def by_operators(depth, way, count):
        names, node = set(), make(way, depth=depth)(tokens(count)).grad_fn
        while node is not None:
            names.add(node.name())
            node = next((following for following, _ in node.next_functions if following is not None), None)
        return "RecordedBackward" in names

    assert by_operators(3, "auto", 1000)
    assert by_operators(2, "auto", 64)
    assert not by_operators(2, "auto", 65)
    assert by_operators(0, "visited", 1000)
    assert not by_operators(4, "dense", 1)
    layer = make("auto", dtype=torch.bfloat16)
    assert layer(tokens(dtype=torch.bfloat16)).dtype == torch.bfloat16
    layer.backward = "visited"
    with pytest.raises(cmm.ArgumentError, match=r"x is on cpu and of torch.bfloat16; backward='visited' is for"):
        layer(tokens(dtype=torch.bfloat16))
    layer.backward = "sparse"
    with pytest.raises(cmm.ArgumentError, match="backward is 'sparse'; it should be one of 'auto', 'visited'"):
        layer(tokens())
    with pytest.raises(cmm.ArgumentError, match="backward is None"):
        make(None)
    assert "backward='dense'" in repr(make("dense"))


@pytest.mark.parametrize("way", ["visited", "products", "dense"])
def test_functional_transforms(way, monkeypatch):
    """torch.func: gradients of one token each, and of layers in a stack, are those of calls one by one.

    Also where gradients are products of all neurons, as forests have them on a GPU.
    """
    if way == "products":
        monkeypatch.setattr(operators, "_products_are_faster", lambda *_: True)
    layer, x = make("visited" if way == "products" else way), tokens()
    parameters = {name: value.detach() for name, value in layer.named_parameters()}

    def loss(parameters, x):
        return functional_call(layer, parameters, (x,)).square().sum()

    whole = grad(loss)(parameters, x)
    want = gradients(layer, x)[1:]
    each = vmap(grad(loss), (None, 0))(parameters, x)
    for (name, found), right in zip(whole.items(), want, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-10)
        assert each[name].shape == (TOKENS, *right.shape)
        torch.testing.assert_close(each[name].sum(0), right, rtol=1e-10, atol=1e-10)
    stacked = {name: torch.stack([value, 2 * value]) for name, value in parameters.items()}
    call = partial(functional_call, layer)
    found = vmap(lambda p: call(p, (x,)))(stacked)
    doubled = call({name: 2 * value for name, value in parameters.items()}, (x,))
    torch.testing.assert_close(found, torch.stack([call(parameters, (x,)), doubled]), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        jacrev(layer)(x[:2]).diagonal(dim1=0, dim2=2), vmap(jacrev(layer))(x[:2]).movedim(0, -1)
    )
    layer.eval()
    for context in (torch.no_grad, torch.enable_grad):
        with context():
            assert (
                torch.equal(call({n: 2 * v for n, v in parameters.items()}, (x,)), doubled.detach()) or way == "dense"
            )
            torch.testing.assert_close(vmap(layer)(x), layer(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("way", ["visited", "dense"])
@pytest.mark.filterwarnings("ignore")
def test_one_graph_in_training_and_eval(way):
    """torch.compile(fullgraph=True), as far as the compiler's back end, gives what calls give."""
    layer, x = make(way), tokens()
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    want = gradients(layer, x)
    for found, right in zip(gradients(layer, x, compiled), want, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)
    layer.eval()
    with torch.no_grad():
        assert torch.equal(compiled(x), layer(x))
        assert torch.equal(compiled(x[:5]), layer(x[:5]))
    for found, right in zip(gradients(layer, x, compiled), want, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)


@pytest.mark.full
@compiles
@pytest.mark.parametrize("way", ["visited", "dense"])
@pytest.mark.filterwarnings("ignore")
def test_compiled_code(way):
    """The same with PyTorch's own back end."""
    layer, x = make(way), tokens()
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True)
    for found, right in zip(gradients(layer, x, compiled), gradients(layer, x), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-10)
    layer.eval()
    with torch.no_grad():
        assert torch.equal(compiled(x), layer(x))


def names_of(exported):
    return [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]


@pytest.mark.filterwarnings("ignore")
def test_what_is_exported_computes_visited_nodes():
    layer, x = make("auto").eval(), tokens()
    with torch.no_grad():
        exported = torch.export.export(layer, (x,), dynamic_shapes={"x": {0: torch.export.Dim("tokens", min=1)}})
        operators = [name for name in names_of(exported) if "getitem" not in name]
        assert operators == ["cmm.fff_forward.default"], "the transposed form is a constant of the program"
        for count in (TOKENS, 5, 1):
            assert torch.equal(exported.module()(x[:count]), layer(x[:count]))
    for mode in (False, True):  # where gradients are recorded
        assert "cmm.fff_forward.default" in names_of(torch.export.export(layer.train(mode), (x,)))


@pytest.mark.full
@compiles
@pytest.mark.filterwarnings("ignore")
def test_ahead_of_time(tmp_path):
    """AOTInductor keeps the operator, and calls it."""
    layer, x = make(dtype=torch.float32).eval(), tokens(dtype=torch.float32)
    with torch.no_grad():
        exported = torch.export.export(layer, (x,))
        package = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "layer.pt2"))
        assert torch.equal(torch._inductor.aoti_load_package(package)(x), layer(x))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(reentrant):
    layer, x = make(), tokens()
    assert equal(gradients(layer, x, lambda x: checkpoint(layer, x, use_reentrant=reentrant)), gradients(layer, x))


def test_copies_train_as_the_layer_does():
    layer, x = make(), tokens()
    want = gradients(layer, x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer.eval()).train()):
        assert equal(gradients(other, x), want)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_optimizers(kind, fused):
    """A step changes the layer, in training and in eval() with a gradient, however the optimizer takes it."""
    layer, x = make(), tokens()
    for mode in (True, False):
        layer.train(mode)
        before = layer(x).detach()
        steps = kind(layer.parameters(), lr=0.01, fused=fused)
        layer(x).square().sum().backward()
        steps.step()
        with torch.no_grad():
            after = layer(x)
            assert not torch.equal(after, before)
            rows = layer.linear_out.weight.t().contiguous()
            want = forward(x, layer.linear_in.weight, layer.linear_in.bias, rows, TREES, "gelu", "left", False)[0]
            assert torch.equal(after, want)


def test_no_hook_is_left_in_pytorch():
    """Nothing of the package runs when an optimizer of somebody else does."""
    hooks = optimizer._global_optimizer_post_hooks, optimizer._global_optimizer_pre_hooks
    assert [hook for some in hooks for hook in some.values() if hook.__module__.startswith("cmm")] == []


# ---- more processes ------------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed")
def test_two_processes(tmp_path):
    """FSDP2 and DDP, by gloo: the gradients of the whole batch, and forward passes in training and eval."""
    run_ranks("torch_process.py", 2, tmp_path)


@pytest.mark.parametrize("sparse", [False, True])
def test_results_are_where_the_tokens_are(sparse):
    """Whatever device PyTorch makes new tensors on."""
    layer, x = make("auto", sparse=sparse), tokens()
    want = gradients(layer, x)
    with torch.device("meta"):
        assert layer(x).is_cpu
        found = gradients(layer, x)
        assert all(torch.equal(a.to_dense(), b.to_dense()) for a, b in zip(found, want, strict=True))
        layer.eval()
        with torch.no_grad():
            assert layer(x).is_cpu
    given = arguments(wants=False)
    with torch.device("meta"):
        assert all(one.is_cpu for one in forward(*given))


# ---- the transposed form of linear_out -----------------------------------------------------------------------------


def test_the_life_of_the_transposed_form():
    layer, x = make(), tokens()
    other = {name: 2 * value for name, value in layer.state_dict().items()}

    def check(has_form):
        with torch.no_grad():
            assert (layer._rows_out is not None) == has_form
            rows = layer.linear_out.weight.t().contiguous()
            assert not has_form or torch.equal(layer._rows_out, rows)
            weights = layer.linear_in.weight, layer.linear_in.bias, rows
            assert torch.equal(layer(x), forward(x, *weights, TREES, "gelu", "left", False)[0])

    assert "_rows_out" not in layer.state_dict()
    check(has_form=False)
    layer.eval()
    check(has_form=True)
    layer.load_state_dict(other)
    check(has_form=True)
    layer.load_state_dict({name: 2 * value for name, value in other.items()}, assign=True)
    check(has_form=True)
    layer.float().double()
    check(has_form=True)
    layer.train()
    check(has_form=False)
    layer.load_state_dict(other)
    check(has_form=False)
    layer.eval()
    layer(x).sum().backward()  # whoever asks for its gradient is about to change it
    check(has_form=False)
    layer.eval()
    with torch.no_grad():
        layer.linear_out.weight.mul_(math.e)
    layer.eval()
    check(has_form=True)
    layer.requires_grad_(False)
    layer(x.requires_grad_()).sum().backward()  # of the tokens alone
    check(has_form=True)


@pytest.mark.parametrize("how", ["load", "convert", "write"])
def test_the_form_of_a_weight_that_was_written_to(how):
    """By way of the child alone, and where what was there before is free again."""
    layer, x = make(dtype=torch.float32).eval(), tokens(dtype=torch.float32)
    with torch.no_grad():
        before = layer(x)
        if how == "load":
            layer.linear_out.load_state_dict({"weight": 2 * layer.linear_out.weight})
        elif how == "convert":
            layer.linear_out.half().float()
        else:
            layer.linear_out.weight.mul_(2)
        want = copy.deepcopy(layer).eval()(x)
        assert not torch.equal(want, before)
        for _ in range(2):
            assert torch.equal(layer(x), want)
        assert torch.equal(layer._rows_out, layer.linear_out.weight.t())
        layer.linear_out.weight.mul_(2)
        assert torch.equal(vmap(layer)(x), layer.eval()(x))


def test_the_form_made_in_inference_mode_has_gradients():
    layer, x = make(), tokens()
    layer.linear_out.requires_grad_(False)
    (want,) = torch.autograd.grad(layer(x.requires_grad_()).sum(), x)
    with torch.inference_mode():
        layer.eval()
    (found,) = torch.autograd.grad(layer(x).sum(), x)
    assert torch.equal(found, want)


def test_the_form_while_another_thread_drops_it():
    """A forward pass reads it once: what is dropped at any point of it has no effect."""
    layer, x = make().eval(), tokens()
    with torch.no_grad():
        want, done = layer(x), threading.Event()

        def switch():
            while not done.is_set():
                layer._drop()
                layer._prepare()

        thread = threading.Thread(target=switch)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        thread.start()
        try:
            for _ in range(500):
                assert torch.equal(layer(x), want)
        finally:
            done.set()
            thread.join()
            sys.setswitchinterval(interval)


def test_another_parameter_has_not_the_form_of_the_one_before():
    layer, x = make().eval(), tokens()
    with torch.no_grad():
        want = 2 * layer(x)
        layer.linear_out.weight = torch.nn.Parameter(2 * layer.linear_out.weight)
        torch.testing.assert_close(layer(x), want, rtol=1e-14, atol=0)
