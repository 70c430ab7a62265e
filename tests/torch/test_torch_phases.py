"""cmm.torch.FFF in training beyond the plain gradient: softness, balance, the straight-through choice, other modules.

What is compared is float64 against the formulas by loops over tokens, trees and nodes; some thousand roundings of
numbers below 1e3 are less than CLOSE.
"""

import copy
import pickle

import cmm
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from cmm.torch import FFF, set_softness  # noqa: E402
from torch import nn  # noqa: E402
from torch.func import functional_call  # noqa: E402
from torch.nn import functional  # noqa: E402

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
TREES, DEPTH, D_IN, D_OUT, TOKENS = 3, 3, 8, 5, 20
NODES = 2 ** (DEPTH + 1) - 1
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # PyTorch's compiler and quantisation, of themselves
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def make(*, depth=DEPTH, d_out=D_OUT, **options):
    torch.manual_seed(0)
    layer = FFF(D_IN, TREES, depth, d_out, dtype=torch.float64, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer


def tokens(*lead):
    return torch.randn(*(lead or (TOKENS,)), D_IN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def paths(layer, logits):
    """For each token and tree the visited nodes of the tree, by loops."""
    found = []
    for token in logits.detach().reshape(-1, layer.trees, layer.nodes):
        found.append([])
        for z in token:
            node, path = 0, [0]
            for _ in range(layer.depth):
                node = 2 * node + 1 + int(z[node] > 0)
                path.append(node)
            found[-1].append(path)
    return found


def logits_of(layer, x):
    return functional.linear(x, layer.linear_in.weight, layer.linear_in.bias)


# ---- softness ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_softness_lets_all_neurons_act(alpha):
    layer, x = make(), tokens()
    layer.softness = alpha
    assert layer.softness == pytest.approx(alpha, abs=1e-7)  # alpha is float32
    logits = logits_of(layer, x)
    share = torch.full_like(logits, float(layer.alpha))
    for token, trees in enumerate(paths(layer, logits)):
        for tree, path in enumerate(trees):
            share[token, [tree * NODES + node for node in path]] = 1
    want = functional.linear(functional.gelu(logits) * share, layer.linear_out.weight)
    torch.testing.assert_close(layer(x), want, **CLOSE)
    found = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    for one, other in zip(found, torch.autograd.grad(want.square().sum(), list(layer.parameters())), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-7)
    shape = layer(x.reshape(4, 5, D_IN)).shape
    assert shape == (4, 5, D_OUT)


def test_eval_is_always_hard():
    layer, x = make(), tokens()
    with torch.no_grad():
        hard = layer.eval()(x)
        layer.train().softness = 0.5
        assert not torch.allclose(layer(x), hard)
        assert torch.equal(layer.eval()(x), hard)
        layer.train().softness = 0
        torch.testing.assert_close(layer(x), hard, **CLOSE)
    assert "alpha" not in layer.state_dict()
    dense = make(backward="dense").eval()
    hard = dense(x)
    dense.softness = 0.5
    assert torch.equal(dense(x), hard)


def test_two_phases_are_two_graphs():
    """alpha is a number in the graph: a schedule compiles nothing anew."""
    layer, x, graphs = make(), tokens(), []
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend=lambda graph, _: graphs.append(graph) or graph)
    for step, alpha in enumerate((1.0, 0.8, 0.5, 0.1, 0.0, 0.0, 0.2)):
        layer.softness = alpha
        torch.testing.assert_close(compiled(x), layer(x), **CLOSE)
        assert len(graphs) == 1 + (step >= 4)


def test_softness_of_a_model():
    model = nn.Sequential(make(d_out=D_IN), nn.Sequential(make()))
    set_softness(model, 0.5)
    assert (model[0].softness, model[1][0].softness) == (0.5, 0.5)
    for wrong in (-0.1, 1.5, "1", True, float("nan")):
        with pytest.raises(cmm.ArgumentError, match=r"softness is .*; it should be a number from 0 to 1"):
            set_softness(model, wrong)
    assert copy.deepcopy(model)[0].softness == 0.5


def test_visited_nodes_alone_are_not_soft():
    layer, x = make(backward="visited"), tokens()
    layer.softness = 0.5
    with pytest.raises(cmm.ArgumentError, match=r"softness is 0.5, .*; backward should not be 'visited'"):
        layer(x)
    layer.softness = 0
    layer(x)
    layer.straight_through = True
    with pytest.raises(cmm.ArgumentError, match=r"straight_through is True, .*; backward should not be 'visited'"):
        layer(x)
    layer.eval()(x)


# ---- balance and routing -------------------------------------------------------------------------------------------


def balance(layer, x):
    """The formula of the docstring, by loops."""
    logits = logits_of(layer, x).reshape(-1, layer.trees, layer.nodes)
    visited = paths(layer, logits)
    loss = 0
    for tree in range(layer.trees):
        for node in range(2**layer.depth - 1):
            here = [token for token, trees in enumerate(visited) if node in trees[tree]]
            if here:
                p = torch.sigmoid(logits[here, tree, node]).mean()
                loss = loss + len(here) / len(visited) * (2 * p - 1) ** 2 / layer.depth / layer.trees
    return loss


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("way", ["visited", "dense"])
def test_balance(way, compiled):
    layer, x = make(backward=way, track_routing=True), tokens()
    torch._dynamo.reset()
    call = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
    call(x.reshape(4, 5, D_IN))
    found, want = layer.balance_loss(), balance(layer, x)
    torch.testing.assert_close(found, want, **CLOSE)
    of = [layer.linear_in.weight, layer.linear_in.bias]
    for one, other in zip(torch.autograd.grad(found, of), torch.autograd.grad(want, of), strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    y = call(x)
    (y.square().sum() + layer.balance_loss()).backward()
    together = layer.linear_in.weight.grad.clone()
    parts = torch.autograd.grad(layer(x).square().sum(), of)[0] + torch.autograd.grad(balance(layer, x), of)[0]
    torch.testing.assert_close(together, parts, rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("way", ["visited", "dense"])
def test_a_row_off_the_path_that_is_not_finite_is_not_seen(way):
    layer, x = make(backward=way, track_routing=True), tokens()
    with torch.no_grad():
        layer.linear_in.bias.zero_()
        layer.linear_in.bias.view(TREES, NODES)[:, 0] = -1e3  # all go left
        layer.linear_in.weight.view(TREES, NODES, D_IN)[:, 2] = torch.nan
    x.requires_grad_(True)
    y = layer(x)
    loss = y.sum() + layer.balance_loss()
    loss.backward()
    assert loss.isfinite()
    assert x.grad.isfinite().all()
    own = torch.ones(TREES, NODES, dtype=torch.bool)
    own[:, 2] = False
    assert layer.linear_in.weight.grad.view(TREES, NODES, D_IN)[own].isfinite().all()


@pytest.mark.parametrize("way", ["visited", "dense"])
def test_routing(way):
    layer, x = make(backward=way), tokens()
    with pytest.raises(cmm.ArgumentError, match="no forward pass has kept its paths; track_routing should be True"):
        layer.balance_loss()
    layer.track_routing = True
    for mode in (True, False):
        layer.train(mode)
        with torch.no_grad():
            layer(x)
        visited = np.array(paths(layer, logits_of(layer, x)))
        routing = layer.routing()
        assert np.array_equal(routing.counts.numpy(), cmm.node_usage(visited, NODES))
        leaves = routing.counts[:, NODES // 2 :].double()
        assert torch.equal(routing.leaves, (leaves > 0).sum(1))
        share = leaves / TOKENS
        torch.testing.assert_close(
            routing.perplexity.double(), torch.exp(-(share * share.clamp(min=1e-30).log()).sum(1)), rtol=1e-5, atol=0
        )
    layer(x[0])
    assert layer.routing().counts.sum() == TREES * (DEPTH + 1)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        with pytest.raises(cmm.ArgumentError, match="no forward pass has kept its paths"):
            other.routing()


def test_balance_of_little():
    """No tokens, and trees of one node: nothing is out of balance."""
    for layer, x in ((make(track_routing=True), tokens(0)), (make(depth=0, track_routing=True), tokens())):
        layer(x)
        assert layer.balance_loss() == 0
        layer.balance_loss().backward()


# ---- the straight-through choice -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tie", ["left", "right"])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_the_choice_has_a_gradient_straight_through(activation, tie):
    """V by recursion, for each token, tree and visited node."""
    layer, x = make(activation=activation, tie=tie, backward="dense"), tokens().requires_grad_()
    dy = torch.randn(TOKENS, D_OUT, dtype=torch.float64)
    (plain,) = torch.autograd.grad(layer(x), layer.linear_in.bias, dy)
    with torch.no_grad():
        logits = logits_of(layer, x)
        g = dy @ layer.linear_out.weight
        v = getattr(functional, activation)(logits) * g
        want = plain.clone()
        for token, trees in enumerate(paths(layer, logits)):
            for tree, path in enumerate(trees):

                def best(node, token=token, tree=tree):
                    row = tree * NODES + node
                    child = 2 * node + 1 + int(logits[token, row] > 0)
                    return v[token, row] + (best(child) if child < NODES else 0)

                for node in path[:-1]:
                    row = tree * NODES + node
                    slope = torch.sigmoid(logits[token, row]) * (1 - torch.sigmoid(logits[token, row]))
                    want[row] += (best(2 * node + 2) - best(2 * node + 1)) * slope
    hard = layer(x)
    layer.straight_through = True
    assert torch.equal(layer(x), hard)
    (found,) = torch.autograd.grad(layer(x), layer.linear_in.bias, dy)
    torch.testing.assert_close(found, want, **CLOSE)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    (found,) = torch.autograd.grad(compiled(x), layer.linear_in.bias, dy)
    torch.testing.assert_close(found, want, **CLOSE)


# ---- other modules in place of linear_in and linear_out ------------------------------------------------------------


class Adapter(nn.Module):
    """A product of low rank beside a linear layer, as PEFT's LoRA has it: it has the layer's weight and bias too."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base
        self.down = nn.Parameter(torch.randn(2, base.in_features, dtype=torch.float64))
        self.up = nn.Parameter(torch.randn(base.out_features, 2, dtype=torch.float64))

    @property
    def weight(self):
        return self.base_layer.weight

    @property
    def bias(self):
        return self.base_layer.bias

    def forward(self, x):
        return self.base_layer(x) + x @ self.down.T @ self.up.T

    def merged(self):
        layer = copy.deepcopy(self.base_layer)
        with torch.no_grad():
            layer.weight += self.up @ self.down
        return layer


@pytest.mark.parametrize("name", ["linear_in", "linear_out"])
def test_adapters_are_called(name):
    layer, x = make(), tokens()
    layer.eval()(x)
    adapter = Adapter(getattr(layer, name))
    setattr(layer, name, adapter)
    merged = copy.deepcopy(layer)
    setattr(merged, name, adapter.merged())
    for mode in (True, False):
        layer.train(mode), merged.train(mode)
        with torch.no_grad():
            torch.testing.assert_close(layer(x), merged(x), **CLOSE)
    layer(x).sum().backward()
    assert adapter.up.grad.any()
    layer.backward = "visited"
    with pytest.raises(
        cmm.ArgumentError, match=f"{name} is a Adapter that has to be called, .* should not be 'visited'"
    ):
        layer(x)


def test_an_adapter_that_is_merged_in_eval_is_seen():
    layer, x = make().eval(), tokens()
    base, adapter = layer.linear_out, Adapter(layer.linear_out)
    with torch.no_grad():
        layer.linear_out = adapter
        want = layer(x)
        base.weight.data += adapter.up @ adapter.down
        layer.linear_out = base
        torch.testing.assert_close(layer(x), want, **CLOSE)


@pytest.mark.parametrize("name", ["linear_in", "linear_out"])
@pytest.mark.parametrize("mode", [True, False])
def test_hooks_are_called(name, mode):
    layer, x = make().train(mode), tokens()
    with torch.no_grad():
        want = layer(x)
        for register, hook in (
            (getattr(layer, name).register_forward_hook, lambda module, inputs, output: 2 * output),
            (getattr(layer, name).register_forward_pre_hook, lambda module, inputs: (2 * inputs[0],)),
        ):
            handle = register(hook)
            assert not torch.allclose(layer(x), want)
            handle.remove()
        torch.testing.assert_close(layer(x), want, **CLOSE)
        linear, seen = getattr(layer, name), []
        with torch.enable_grad():
            for register in (linear.register_full_backward_hook, linear.register_full_backward_pre_hook):
                handle = register(lambda *_: seen.append(1) and None)
                layer(x.clone().requires_grad_()).sum().backward()
                assert len(seen) == 1
                seen.clear()
                handle.remove()
        linear.forward = lambda x: 0 * nn.Linear.forward(linear, x)
        assert not layer(x).any()


def test_parametrised_weights_are_computed():
    layer, x = make(), tokens()
    nn.utils.parametrizations.weight_norm(layer.linear_in)
    for mode in (True, False):
        with torch.no_grad():
            layer.train(mode)
            before = layer(x)
            layer.linear_in.parametrizations.weight.original0.mul_(3)
            assert not torch.allclose(layer(x), before)
            layer.linear_in.parametrizations.weight.original0.div_(3)


@pytest.mark.filterwarnings("ignore")  # that it is deprecated
def test_quantised_modules_are_called():
    quantization = pytest.importorskip("torch.ao.quantization", reason="this PyTorch has no quantize_dynamic")
    layer, x = make().float().eval(), tokens().float()
    other = quantization.quantize_dynamic(layer, {nn.Linear}, dtype=torch.qint8)
    assert type(other.linear_in) is not nn.Linear
    with torch.no_grad():
        y = other(x)
        hidden = other.linear_in(x)
        visited = torch.zeros_like(hidden, dtype=torch.bool)
        for token, trees in enumerate(paths(layer, hidden)):
            for tree, path in enumerate(trees):
                visited[token, [tree * NODES + node for node in path]] = True
        assert torch.equal(y, other.linear_out(functional.gelu(torch.where(visited, hidden, 0))))


def test_a_module_of_another_width_is_named():
    layer = make()
    layer.linear_in = nn.Sequential(nn.Linear(D_IN, 7, dtype=torch.float64))
    with pytest.raises(cmm.ShapeError, match=r"linear_in has given shape \(20, 7\); it should be \(20, 45\)"):
        layer(tokens())


# ---- recipes of docs/guide/training.md -----------------------------------------------------------------------------


def learns(model, call, width=16):
    """Train to give back something; the last loss is below the first, and eval() gives what training did."""
    torch.manual_seed(0)
    x = torch.randn(4, 6, width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = functional.mse_loss(call(x), x.flip(-1))
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    with torch.no_grad():
        trained = call(x)
        model.eval()
        torch.testing.assert_close(call(x), trained, rtol=1e-4, atol=1e-4)


def test_recipe_for_pytorchs_encoder():
    block = nn.TransformerEncoderLayer(
        16, 4, dim_feedforward=1, activation=nn.Identity(), dropout=0, batch_first=True
    )
    block.linear1, block.linear2, block.dropout = FFF(16, trees=3, depth=4), nn.Identity(), nn.Identity()
    model = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
    learns(model, model)


def test_recipe_for_bert():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed", exc_type=ImportError)
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = transformers.BertModel(config)
    for layer in model.encoder.layer:
        layer.intermediate = FFF(config.hidden_size, trees=3, depth=4)
        layer.output.dense = nn.Identity()
    learns(model, lambda x: model(inputs_embeds=x).last_hidden_state)


@pytest.mark.filterwarnings("ignore")  # of PEFT's own
def test_recipe_for_peft():
    peft = pytest.importorskip("peft", reason="PEFT is not installed", exc_type=ImportError)
    base = nn.Sequential(FFF(16, trees=3, depth=4))
    nn.init.normal_(base[0].linear_in.weight)
    nn.init.normal_(base[0].linear_out.weight)
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["linear_in", "linear_out"]))
    learns(model, model)
    x = torch.randn(5, 16)
    with torch.no_grad():
        adapted = model.eval()(x)
        merged = model.merge_and_unload().eval()
        assert type(merged[0].linear_in) is nn.Linear
        torch.testing.assert_close(merged(x), adapted, rtol=1e-4, atol=1e-4)


def test_functional_call_of_a_soft_layer():
    layer, x = make(), tokens()
    layer.softness = 0.5
    doubled = {name: 2 * value.detach() for name, value in layer.named_parameters()}
    found = functional_call(layer, doubled, (x,))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(2)
    torch.testing.assert_close(found, layer(x), **CLOSE)
