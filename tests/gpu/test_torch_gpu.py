"""cmm.torch.FFF on a GPU: in eval() libcmm_cuda computes it, on the memory of the tensors."""

import cmm
import cmm.torch.operators
import pytest
import torch


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_eval_is_libcmm_cuda(dtype, monkeypatch):
    torch.manual_seed(0)
    layer = cmm.torch.FFF(64, trees=3, depth=4, device="cuda", dtype=dtype).eval()
    x = torch.randn(5, 7, 64, device="cuda", dtype=dtype)
    calls, queue = [], cmm.torch.operators._queue

    def recorded(function, tokens, weights, rest):
        calls.append([rest[1], weights[7]])
        return queue(function, tokens, weights, rest)

    monkeypatch.setattr(cmm.torch.operators, "_queue", recorded)
    w_in = layer.linear_in.weight.detach().view(3, 31, 64)
    bias = layer.linear_in.bias.detach().view(3, 31)
    for _ in range(2):
        w_out = layer.linear_out.weight.detach().t().contiguous().view(3, 31, 64)
        with torch.no_grad():
            assert torch.equal(layer(x), cmm.fff_forward(x, w_in, w_out, bias))
            layer.linear_out.weight.mul_(2)
            layer.eval()
    assert calls == 2 * [[x.data_ptr(), layer.linear_in.weight.data_ptr()]]
    assert layer(x).requires_grad
    assert len(calls) == 3


@pytest.mark.filterwarnings("ignore")  # PyTorch's compiler warns of its own deprecations
def test_the_operator_is_compiled_and_exported():
    torch.manual_seed(0)
    layer = cmm.torch.FFF(64, trees=3, depth=4, device="cuda").eval()
    x = torch.randn(35, 64, device="cuda")
    with torch.no_grad():
        want = layer(x)
        torch._dynamo.reset()
        assert torch.equal(torch.compile(layer, fullgraph=True)(x), want)
        exported = torch.export.export(layer, (x,))
        assert "cmm.fff_forward.default" in [str(node.target) for node in exported.graph.nodes]
        assert torch.equal(exported.module()(x), want)


def made(trees, depth, dtype, way, *, d_in=64, d_out=48):
    """A layer whose paths spread."""
    torch.manual_seed(0)
    layer = cmm.torch.FFF(d_in, trees, depth, d_out, device="cuda", dtype=dtype, backward=way)
    torch.nn.init.normal_(layer.linear_in.weight, std=d_in**-0.5)
    torch.nn.init.normal_(layer.linear_out.weight, std=d_in**-0.5)
    return layer


def gradients(layer, x, dy, call=None):
    x = x.detach().requires_grad_()
    layer.zero_grad()
    y = layer(x) if call is None else call(x)
    y.backward(dy.to(y.dtype))
    return [x.grad, *(parameter.grad for parameter in layer.parameters())]


def largest_difference(some, others):
    """The largest, over the root mean square of the gradient that it is in."""
    found = []
    for one, other in zip(some, others, strict=True):
        one, other = one.detach().double(), other.detach().double()
        found.append(float((one - other).abs().max() / other.square().mean().sqrt()))
    return max(found)


@pytest.mark.parametrize("shape", [(1, 8), (3, 4), (16, 5)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_are_those_of_the_dense_way(shape, dtype):
    """Which stands on PyTorch's products alone. Sums of 2000 terms differ by some hundred roundings of their size."""
    x, dy = torch.randn(2, 1000, 64, device="cuda", dtype=dtype), torch.randn(2, 1000, 48, device="cuda", dtype=dtype)
    want = gradients(made(*shape, dtype, "dense"), x, dy)
    for way in ("auto", "visited"):
        got = gradients(made(*shape, dtype, way), x, dy)
        assert largest_difference(got, want) < 2000 * torch.finfo(dtype).eps


@pytest.mark.parametrize("shape", [(1, 8), (16, 5)], ids=str)
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_and_narrow_weights(shape, weights):
    """Gradients of weights of float32 are sums of float32, those of the layer with rounded operands."""
    x, dy = torch.randn(3000, 64, device="cuda"), torch.randn(3000, 48, device="cuda").bfloat16()
    layer = made(*shape, weights, "auto")
    with torch.autocast("cuda", torch.bfloat16):
        got = gradients(layer, x, dy)
        with torch.no_grad():
            y = layer(x)
            assert y.dtype == torch.bfloat16
            assert torch.equal(layer.eval()(x), y)
    assert [one.dtype for one in got] == [torch.float32, *3 * [weights]]
    operands = (x.bfloat16(), layer.linear_in.weight.bfloat16(), layer.linear_in.bias.bfloat16())
    rows = layer.linear_out.weight.bfloat16().t().contiguous()
    _, nodes, logits = torch.ops.cmm.fff_forward(*operands, rows, shape[0], "gelu", "left", True)
    how = shape[0], "gelu", [True] * 4
    exact = cmm.torch.operators._gradients_by_products(
        *(one.double() for one in (dy, operands[0], operands[1], rows)), nodes, logits.double(), *how
    )
    want = [exact[0], exact[1], exact[2], exact[3].t()]
    # Products of all neurons round coefficients and weights' gradients to bfloat16, whose roundoff is 2^-8.
    loose = weights == torch.bfloat16 or shape[0] == 16
    for one, other, narrow in zip(got, want, (True, loose, loose, loose), strict=True):
        assert largest_difference([one], [other]) < (0.2 if narrow else 1e-4)
    if shape[0] == 1:
        made_now = torch.ops.cmm.fff_backward(dy, *operands[:2], rows, nodes, logits, *how)
        assert [one.dtype for one in made_now] == [torch.bfloat16, *3 * [torch.float32]]
        if weights == torch.float32:
            assert torch.equal(made_now[1], got[1])


@pytest.mark.filterwarnings("ignore")  # PyTorch's compiler warns of its own deprecations
@pytest.mark.parametrize("shape", [(1, 8), (16, 5)], ids=str)
def test_a_training_step_is_compiled_without_a_break(shape):
    x, dy = torch.randn(3000, 64, device="cuda"), torch.randn(3000, 48, device="cuda")
    layer = made(*shape, torch.float32, "auto")
    torch._dynamo.reset()
    with torch.autocast("cuda", torch.bfloat16):
        want = gradients(layer, x, dy)
        got = gradients(layer, x, dy, torch.compile(layer, fullgraph=True))
    assert largest_difference(got, want) < 0.2
    if shape[0] == 1:
        assert all(torch.equal(one, other) for one, other in zip(got, want, strict=True))


def test_a_training_step_is_captured_and_the_same_bits_come_again():
    x, dy = torch.randn(3000, 64, device="cuda"), torch.randn(3000, 48, device="cuda")
    layer = made(1, 8, torch.float32, "visited")
    want = gradients(layer, x, dy)
    assert all(torch.equal(one, other) for one, other in zip(gradients(layer, x, dy), want, strict=True))
    x = x.requires_grad_()
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    inputs = [x, *layer.parameters()]
    with torch.cuda.stream(stream):
        torch.autograd.grad(layer(x), inputs, dy)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        captured = torch.autograd.grad(layer(x), inputs, dy)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(one, other) for one, other in zip(captured, want, strict=True))


def test_gradients_of_logits_and_what_is_refused():
    x = torch.randn(300, 64, device="cuda", dtype=torch.float64)
    found = []
    for way in ("visited", "dense"):
        layer = made(3, 4, torch.float64, way)
        layer.track_routing = True
        layer(x)
        found.append(torch.autograd.grad(layer.balance_loss(), list(layer.parameters())[:2]))
    assert largest_difference(*found) < 1e-9
    layer = made(3, 4, torch.float32, "visited").to(torch.float16)
    with pytest.raises(cmm.ArgumentError, match="it should be on cuda:0, where x is"):
        torch.ops.cmm.fff_forward(
            x, layer.linear_in.weight.cpu(), None, layer.linear_in.weight, 3, "gelu", "left", True
        )
    with pytest.raises(cmm.DtypeError, match=r"w_in has dtype torch.float16 and x has dtype torch.float64"):
        layer(x)
