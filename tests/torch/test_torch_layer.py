"""cmm.torch.FFF: the paper's training semantics in PyTorch, and libcmm in eval(), on the memory of the tensors."""

import copy
import math
import pickle

import cmm
import numpy as np
import pytest
from reference import gamma

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from cmm.torch import FFF  # noqa: E402
from torch.nn import functional  # noqa: E402

SHAPES = ((1, 0), (5, 0), (1, 1), (3, 2), (2, 5), (1, 7))
TOKENS, D_IN, D_OUT = 33, 12, 7


def make(trees, depth, *, bias=True, dtype=torch.float64, seed=0, **options):
    """A layer whose paths spread over the leaves."""
    torch.manual_seed(seed)
    layer = FFF(D_IN, trees, depth, D_OUT, bias=bias, dtype=dtype, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


def tokens(dtype=torch.float64, seed=1):
    return torch.randn(TOKENS, D_IN, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def plain_walk(layer, logits):
    """Which neurons each token visits, by loops over tokens and trees."""
    visited = torch.zeros_like(logits, dtype=torch.bool)
    for token in range(len(logits)):
        for tree in range(layer.trees):
            node = 0
            for _ in range(layer.depth + 1):
                row = tree * layer.nodes + node
                visited[token, row] = True
                node = 2 * node + 1 + int(logits[token, row] > 0)
    return visited


def magnitudes(*tensors):
    return [tensor.detach().abs() for tensor in tensors]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize(("trees", "depth"), SHAPES)
@pytest.mark.parametrize("way", ["visited", "dense"])
def test_gradients_against_a_plain_masked_layer(way, trees, depth, bias, dtype):
    """Output and gradients against autograd of the same mathematics, written down plainly in float64.

    The bounds: a sum of n products is off by gamma(n) times the sum of their magnitudes. GELU's first derivative is
    below 1.13 and its second below 0.8 in magnitude; the functions themselves are taken to be good to 16 roundings of
    1, or of |z| where they are near z. Each error goes on through the products after it, by their magnitudes. Where
    the layer is float64 too, so are the reference's errors, and the bound is twice as large.
    """
    layer, x = make(trees, depth, bias=bias, dtype=dtype, backward=way), tokens(dtype).requires_grad_()
    gradient = torch.randn(TOKENS, D_OUT, dtype=dtype)
    y = layer(x)
    y.backward(gradient)

    wide = [p.detach().double().requires_grad_() for p in (x, layer.linear_in.weight, layer.linear_out.weight)]
    x64, w_in, w_out = wide
    b = layer.linear_in.bias.detach().double().requires_grad_() if bias else None
    logits = functional.linear(x64, w_in, b)
    u = torch.finfo(dtype).eps / 2 * (2 if dtype == torch.float64 else 1)
    ax, aw_in, aw_out, ag = magnitudes(x64, w_in, w_out, gradient.double())
    e_logit = gamma(D_IN + 1, u) * (ax @ aw_in.T + (b.detach().abs() if bias else 0))
    visited = plain_walk(layer, logits.detach())
    assert (logits.detach().abs() > e_logit)[visited].all(), "a decision within its bound: choose another seed"
    hidden = functional.gelu(logits) * visited
    expected = hidden @ w_out.T
    expected.backward(gradient.double())

    near = visited.double()
    e_hidden = near * (1.13 * e_logit + 16 * u * logits.detach().abs())
    a_hidden = hidden.detach().abs() + e_hidden
    a_g = near * (ag @ aw_out)
    e_g = gamma(D_OUT, u) * a_g
    e_d = 1.13 * e_g + (a_g + e_g) * (0.8 * e_logit + 16 * u) + 1.2 * u * a_g
    a_d = 1.13 * a_g + e_d
    rows = trees * layer.nodes

    def close(found, right, bound):
        assert ((found.double() - right).abs() <= bound).all()

    close(y.detach(), expected.detach(), gamma(rows, u) * (a_hidden @ aw_out.T) + e_hidden @ aw_out.T)
    close(x.grad, x64.grad, gamma(rows, u) * (a_d @ aw_in) + e_d @ aw_in)
    close(layer.linear_in.weight.grad, w_in.grad, gamma(TOKENS, u) * (a_d.T @ ax) + e_d.T @ ax)
    close(layer.linear_out.weight.grad, w_out.grad, gamma(TOKENS, u) * (ag.T @ a_hidden) + ag.T @ e_hidden)
    if bias:
        close(layer.linear_in.bias.grad, b.grad, gamma(TOKENS, u) * a_d.sum(0) + e_d.sum(0))
    unvisited = ~visited.any(0)
    assert depth < 5 or unvisited.any()
    assert not layer.linear_in.weight.grad[unvisited].any()
    assert not layer.linear_out.weight.grad[:, unvisited].any()


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "silu", "identity"])
@pytest.mark.parametrize("tie", ["left", "right"])
def test_training_computes_what_libcmm_does(activation, tie):
    """The dense way against fff_forward, within bounds of float64; with logits that are exactly 0."""
    layer = make(3, 4, activation=activation, tie=tie, backward="dense")
    with torch.no_grad():
        layer.linear_in.weight[::3] = 0
        layer.linear_in.bias[::3] = 0
    x = tokens()
    y = layer(x)
    w_in, w_out, bias = weights(layer)
    expected, nodes, logits = cmm.fff_forward(
        x.numpy(), w_in, w_out, bias, activation=activation, tie=tie, return_path=True
    )
    assert (logits == 0).any()
    # Two programs' errors, each of at most D_IN + 1 roundings in a logit, 16 in the activation, 15 terms in the sum;
    # no activation's slope is above 1.13.
    sizes = np.abs(logits) + np.abs(x.numpy()).sum(1)[:, None, None] * np.abs(w_in).max() + np.abs(bias).max()
    rows = np.abs(w_out).max(axis=2)[np.arange(3)[:, None], nodes]
    bound = 2 * gamma(D_IN + 1 + 16 + 15, 2.0**-53) * 1.13 * (sizes * rows).sum((1, 2))
    assert (np.abs(y.detach().numpy() - expected) <= bound[:, None]).all()


def weights(layer):
    """numpy's views of the weights, as cmm.fff_forward takes them."""
    w_in = layer.linear_in.weight.detach().numpy().reshape(layer.trees, layer.nodes, layer.d_in)
    w_out = layer.linear_out.weight.detach().numpy().T.reshape(layer.trees, layer.nodes, layer.d_out)
    bias = layer.linear_in.bias
    return w_in, w_out, None if bias is None else bias.detach().numpy().reshape(layer.trees, layer.nodes)


def by_libcmm(layer, x):
    w_in, w_out, bias = weights(layer)
    return cmm.fff_forward(x.detach().numpy(), w_in, w_out, bias, activation=layer.activation, tie=layer.tie)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize(("trees", "depth"), SHAPES)
def test_eval_is_libcmm(trees, depth, bias, dtype):
    """Bit for bit, for tokens in any number of dimensions."""
    layer, x = make(trees, depth, bias=bias, dtype=dtype).eval(), tokens(dtype)
    expected = by_libcmm(layer, x)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert np.array_equal(layer(x).numpy(), expected)
            assert np.array_equal(layer(x.view(3, 11, D_IN)).numpy(), expected.reshape(3, 11, D_OUT))
            assert np.array_equal(layer(x[0]).numpy(), expected[0])
            assert layer(x[:0]).shape == (0, D_OUT)


def test_eval_uses_the_tensors_own_memory(monkeypatch):
    """libcmm gets the addresses of the activations and of the input weights; only W_out is a copy, and made once."""
    layer, x = make(2, 3).eval(), tokens()
    seen = []
    monkeypatch.setattr("cmm.torch.fff.apply", lambda *arrays: seen.append(arrays) or x)
    with torch.no_grad():
        layer(x)
        layer(x)
    (a, w_in, bias, w_out, *_), (_, _, _, w_out_again, *_) = seen
    assert a.data_ptr() == x.data_ptr()
    assert w_in.data_ptr() == layer.linear_in.weight.data_ptr()
    assert bias.data_ptr() == layer.linear_in.bias.data_ptr()
    assert w_out.data_ptr() == w_out_again.data_ptr() != layer.linear_out.weight.data_ptr()


def test_a_gradient_is_never_lost():
    """In eval() too, as long as anything wants one."""
    layer, x = make(2, 3).eval(), tokens()
    assert layer(x).requires_grad
    layer.requires_grad_(False)
    assert not layer(x).requires_grad
    assert layer(x.requires_grad_()).requires_grad


def test_another_tensor_at_the_same_address():
    """However often the memory of a weight that is gone is used again, its copy is not."""
    layer, x = make(2, 3).eval(), tokens()
    for value in range(20):
        with torch.no_grad():
            assert np.array_equal(layer(x).numpy(), by_libcmm(layer, x))
        layer.linear_out.weight = None
        layer.linear_out.weight = torch.nn.Parameter(torch.full((D_OUT, 30), float(value), dtype=torch.float64))


def test_tensors_that_numpy_cannot_see():
    """PyTorch's lazy negation, and other devices than libcmm's."""
    layer = make(2, 3).eval()
    x = torch.complex(tokens(), tokens(seed=2)).conj().imag
    assert x.is_neg()
    with torch.no_grad():
        assert np.array_equal(layer(x).numpy(), by_libcmm(layer, x.resolve_neg()))
        there = torch.zeros(5, 4, D_IN, dtype=torch.float64, device="meta")
        for mode in (True, False):
            assert layer.to("meta").train(mode)(there).shape == (5, 4, D_OUT)


def test_weights_made_in_inference_mode():
    with torch.inference_mode():
        layer, x = make(2, 3).eval(), tokens()
        first = layer(x).numpy().copy()
        assert np.array_equal(first, by_libcmm(layer, x))
        layer.linear_out.weight.mul_(2)
        layer.eval()
        assert np.array_equal(layer(x).numpy(), by_libcmm(layer, x))
        assert not np.array_equal(layer(x).numpy(), first)


def test_copies_and_pickles():
    layer, x = make(2, 3).eval(), tokens()
    with torch.no_grad():
        expected = layer(x)
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(other(x), expected)
            other.linear_out.weight.zero_()
            assert not other.eval()(x).any()
        assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("way", ["visited", "dense"])
def test_what_is_not_visited_has_no_influence(way, bad):
    """Not on outputs and not on gradients, whatever another token in the batch visits."""
    layer, x = make(2, 5, backward=way), tokens()
    with torch.no_grad():
        logits = functional.linear(x, layer.linear_in.weight, layer.linear_in.bias)
    visited = plain_walk(layer, logits)
    seldom = visited.sum(0)
    row = int(torch.nonzero((seldom > 0) & (seldom < TOKENS / 4))[0])  # visited by some tokens only
    never = int(torch.nonzero(seldom == 0)[0])
    clean = ~visited[:, row]
    gradient = torch.randn(TOKENS, D_OUT, dtype=torch.float64)
    gradient[~clean] = 0

    def run(layer):
        a = x.clone().requires_grad_()
        y = layer(a)
        y[clean].backward(gradient[clean])
        return y.detach(), a.grad, layer.linear_in.weight.grad, layer.linear_out.weight.grad

    healthy = run(make(2, 5, backward=way))
    for broken_row in (row, never):
        for name in ("linear_in", "linear_out"):
            layer = make(2, 5, backward=way)
            with torch.no_grad():
                if name == "linear_in":
                    layer.linear_in.weight[broken_row, 3] = bad
                else:
                    layer.linear_out.weight[3, broken_row] = bad
            y, dx, dw_in, dw_out = run(layer)
            assert torch.equal(y[clean], healthy[0][clean])
            assert torch.equal(dx[clean], healthy[1][clean])
            others = torch.arange(len(dw_in)) != broken_row
            if broken_row == never:
                assert torch.equal(y, healthy[0])
                others[:] = True
            elif name == "linear_out" and way == "dense":
                assert y[~clean].isnan().all()
            assert torch.equal(dw_in[others], healthy[2][others])
            assert torch.equal(dw_out[:, others], healthy[3][:, others])


def test_autocast():
    """bfloat16 inside, gradients in the parameters' float32; never libcmm, which would compute in float32."""
    layer, x = make(3, 4, dtype=torch.float32), tokens(torch.float32)
    half = copy.deepcopy(layer).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        assert y.dtype == torch.bfloat16
        assert torch.equal(y, half(x.bfloat16()))
        layer.eval()
        with torch.no_grad():
            assert torch.equal(layer(x), y)
        layer.train()
        assert layer.double()(x.double()).dtype == torch.float64  # autocast leaves float64 alone
        layer.float()
    y.float().sum().backward()
    assert {p.grad.dtype for p in layer.parameters()} == {torch.float32}
    assert all(p.grad.isfinite().all() and p.grad.any() for p in layer.parameters())


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated, and tells of conditions on shapes
def test_recorded_layers():
    """What export and trace record of a layer in eval() computes as it does, also another number of tokens."""
    layer, x = make(3, 4).eval(), tokens()
    with torch.no_grad():
        expected = layer(x)
        traced = torch.jit.trace(layer, (x[:5],))
        exported = torch.export.export(layer, (x,)).module()
        for recorded in (traced, exported):
            assert torch.equal(recorded(x), expected)


def test_wrong_calls():
    for arguments in ((0, 1, 2), (8, 0, 2), (8, 1, -1), (8, 1, 31), (8, 1, 2, 0), (8.0, 1, 2)):
        with pytest.raises(cmm.ArgumentError, match="should be a whole number"):
            FFF(*arguments)
    with pytest.raises(cmm.ArgumentError, match="activation is 'swish'"):
        FFF(8, 1, 2, activation="swish")
    with pytest.raises(cmm.ArgumentError, match="tie is 'up'"):
        FFF(8, 1, 2, tie="up")
    for layer in (make(1, 2), make(1, 2).eval()):
        with pytest.raises(cmm.ShapeError, match=r"x has shape \(3, 5\)"):
            layer(torch.zeros(3, 5, dtype=torch.float64))
