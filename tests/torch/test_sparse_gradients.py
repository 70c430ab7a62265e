"""cmm.torch.FFF(sparse=True): gradients of visited rows alone, which are those without it, bit for bit."""

import copy
import gc
import pickle
import weakref

import cmm
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from cmm.torch import FFF, operators  # noqa: E402
from torch import nn  # noqa: E402

TREES, DEPTH, D_IN, D_OUT = 2, 5, 8, 6
ROWS = TREES * (2 ** (DEPTH + 1) - 1)


def make(sparse=True, d_out=D_OUT, **options):
    layer = FFF(D_IN, TREES, DEPTH, d_out, dtype=torch.float64, sparse=sparse, **options)
    torch.manual_seed(0)
    with torch.no_grad():
        nn.init.normal_(layer.linear_in.weight)
        rows = layer.linear_out.weight if sparse else layer.linear_out.weight.t()
        rows.copy_(torch.randn(ROWS, d_out, dtype=torch.float64))
    return layer


def tokens(*lead, seed=1):
    return torch.randn(*(lead or (9,)), D_IN, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradients(layer, x, loss=lambda layer, y: y.square().sum()):
    """Those of tokens, of w_in, of the bias where there is one, and of w_out, a row for each node."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    loss(layer, layer(x)).backward()
    found = [x.grad, *(parameter.grad for parameter in layer.parameters())]
    last = found[-1]
    return found if layer.sparse or last is None else [*found[:-1], last.t()]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lead", [(9,), (1,), (), (0,), (2, 3, 4)], ids=str)
def test_sparse_gradients_are_those_of_visited_nodes(lead, bias):
    one, other = make(bias=bias), make(sparse=False, bias=bias, backward="visited")
    for seed in (1, 2):  # the second time with what the first one has left
        x = tokens(*lead, seed=seed) if lead else tokens(1, seed=seed)[0]
        assert torch.equal(one(x), other(x))
        found, want = gradients(one, x), gradients(other, x)
        assert torch.equal(found[0], want[0])
        for sparse, dense in zip(found[1:], want[1:], strict=True):
            assert sparse.layout == torch.sparse_coo
            assert torch.equal(sparse.to_dense(), dense)
            visited = one.trees * (DEPTH + 1) * (x.numel() // D_IN)
            rows = sparse.coalesce().indices().shape[1]
            assert sparse._indices().shape[1] == rows <= min(ROWS, visited)


def test_two_layers_of_one_shape():
    one, other = (nn.Sequential(*(make(sparse, d_out=D_IN) for _ in range(2))) for sparse in (True, False))
    for model in (one, other):
        model(tokens()).square().sum().backward()
    for sparse, dense in zip(one.parameters(), other.parameters(), strict=True):
        grad = sparse.grad.to_dense()
        torch.testing.assert_close(grad if grad.shape == dense.shape else grad.t(), dense.grad, rtol=1e-9, atol=1e-9)


def test_sums_are_used_again_and_live_as_long_as_a_layer(monkeypatch):
    made = []
    new = operators._zeros
    monkeypatch.setattr(operators, "_zeros", lambda *given: made.append(new(*given)) or made[-1])
    layers = [make(d_out=11) for _ in range(2)]
    for layer in layers:
        gradients(layer, tokens())
    assert [one.data_ptr() for one in made[:3]] == [one.data_ptr() for one in made[3:]]
    sums = weakref.ref(made[2])
    made.clear()
    gc.collect()
    assert sums() is not None
    del layer, layers
    gc.collect()
    assert sums() is None


def test_with_the_balance_loss():
    one, other = (make(sparse, track_routing=True) for sparse in (True, False))
    for loss in (
        lambda layer, y: y.square().sum() + layer.balance_loss(),
        lambda layer, _: layer.balance_loss(),
    ):
        for sparse, dense in zip(gradients(one, tokens(), loss), gradients(other, tokens(), loss), strict=True):
            if sparse is None or dense is None:  # what the loss does not hang on
                assert not any(bool(each.to_dense().any()) for each in (sparse, dense) if each is not None)
            else:
                torch.testing.assert_close(sparse.to_dense(), dense, rtol=1e-12, atol=1e-12)


def test_only_what_is_wanted_has_a_gradient():
    layer = make()
    want = gradients(layer, tokens())
    for name, place in (("linear_in.weight", 1), ("linear_in.bias", 2), ("linear_out.weight", 3)):
        for own, parameter in layer.named_parameters():
            parameter.requires_grad_(own == name).grad = None
        layer(tokens()).square().sum().backward()
        assert torch.equal(layer.get_parameter(name).grad.to_dense(), want[place].to_dense())
    layer.requires_grad_(False)
    x = tokens().requires_grad_()
    layer(x).square().sum().backward()
    assert torch.equal(x.grad, want[0])


def test_what_is_differentiated_twice_says_so():
    layer, x = make(track_routing=True), tokens().requires_grad_()
    for loss in (layer(x).square().sum(), layer.balance_loss()):
        found = torch.autograd.grad(loss, [x, *layer.linear_in.parameters()], create_graph=True, retain_graph=True)
        with pytest.raises(cmm.ArgumentError, match=r"second derivatives are not computed through visited nodes"):
            found[0].sum().backward(retain_graph=True)
        with pytest.raises(cmm.ArgumentError, match=r"second derivatives are not computed through visited nodes"):
            found[1].to_dense().sum().backward()


def test_sparse_adam_changes_visited_rows_alone():
    layer, x = make(track_routing=True), tokens()
    before = copy.deepcopy(layer.state_dict())
    optimizer = torch.optim.SparseAdam(list(layer.parameters()), lr=0.01)
    losses, visited = [], torch.zeros(ROWS, dtype=torch.bool)
    for _ in range(20):
        optimizer.zero_grad()
        loss = layer(x).square().mean()
        visited |= layer.routing().counts.flatten() > 0
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert not visited.all()
    after = layer.state_dict()
    assert torch.equal(after["linear_in.weight"][~visited], before["linear_in.weight"][~visited])
    assert torch.equal(after["linear_out.weight"][:, ~visited], before["linear_out.weight"][:, ~visited])
    assert not torch.equal(after["linear_out.weight"], before["linear_out.weight"])


@pytest.mark.parametrize("assign", [False, True])
def test_a_state_dict_goes_either_way(assign):
    one, other, x = make(), make(sparse=False), tokens()
    assert one.state_dict()["linear_out.weight"].shape == (D_OUT, ROWS)
    doubled = {name: 2 * value for name, value in one.state_dict().items()}
    for layer in (one, other):
        layer.load_state_dict(doubled, assign=assign)
    assert torch.equal(one(x), other(x))
    assert torch.equal(one.eval()(x), other.eval()(x))
    other.load_state_dict(one.state_dict())
    assert one.linear_out.weight.is_contiguous()
    assert torch.equal(one.linear_out.weight.t(), other.linear_out.weight)


@pytest.mark.filterwarnings("ignore")  # PyTorch's compiler warns of its own deprecations
def test_eval_and_copies():
    layer, x = make(), tokens()
    want = make(sparse=False).eval()
    for other in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        other.eval()
        with torch.no_grad():
            assert torch.equal(other(x), want(x))
            torch.testing.assert_close(other.bfloat16()(x.bfloat16()), want(x).bfloat16(), rtol=0.1, atol=2)
    with torch.no_grad():
        layer = make().eval()
        torch._dynamo.reset()
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), want(x))
    assert f"{ROWS}, {D_OUT}" in repr(make())


def test_eval_elsewhere_and_compiled(monkeypatch):
    """Without a gradient libcmm computes wherever it can: here on a device that stands for a GPU."""
    monkeypatch.setattr("cmm.torch.fff._computable", lambda device, dtype: True)
    monkeypatch.setattr("cmm.torch.fff.fff_forward", lambda x, *_: (x, None, None))
    layer, x = make().eval().to("meta"), tokens().to("meta")
    with torch.no_grad():
        assert layer(x) is x
    with pytest.raises(cmm.ArgumentError, match=r"x is on meta and of torch.float64; sparse=True is for training in"):
        layer(x)
    torch._dynamo.reset()
    compiled = torch.compile(make().eval(), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match=r"sparse=True is for training in .*, without torch.compile"):
        compiled(tokens())


def test_what_sparse_gradients_do_not_go_with():
    with pytest.raises(cmm.ArgumentError, match="backward is 'dense', and sparse is True; it should be 'auto' or"):
        make(backward="dense")
    layer, x = make(), tokens()
    with pytest.raises(cmm.ArgumentError, match=r"x is on cpu and of torch.bfloat16; sparse=True is for training in"):
        layer(x.bfloat16())
    for name, value in (("softness", 0.5), ("straight_through", True), ("backward", "dense")):
        other = make()
        setattr(other, name, value)
        with pytest.raises(cmm.ArgumentError, match="sparse is True, for which backward should not be"):
            other(x)
    layer.linear_in = nn.Sequential(layer.linear_in)
    with pytest.raises(cmm.ArgumentError, match="sparse is True, for which linear_in and linear_out should be as"):
        layer(x)
