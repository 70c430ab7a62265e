"""What lies between two products: the same numbers as on a CPU, to the bit, and nothing written beside them."""

from __future__ import annotations

from typing import Any

import cmm.torch
import numpy as np
import pytest
import torch
from between_products import activated, on_path, sloped, spread, walked
from device import DTYPES, hidden, to_numpy
from reference import ACTIVATIONS, TIES
from torch.func import functional_call, grad, vmap
from torch.library import opcheck

# tokens, trees, depth
CASES = [
    (0, 3, 4),
    (1, 16, 5),
    (129, 16, 5),
    (33, 32, 4),
    (257, 4, 7),
    (5, 3072, 0),
    (1001, 1, 0),
    (65, 128, 2),
    (77, 64, 3),
    (1001, 7, 1),
    (37, 1, 10),
    (9, 2, 11),
    (3, 5, 13),
    (2, 1, 16),
]


def drawn(case: tuple[int, int, int], dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and gradients of all neurons, (T, K*N), with what is special among them."""
    tokens, trees, depth = case
    rng = torch.Generator("cuda").manual_seed(seed)
    shape = (tokens, trees * (2 ** (depth + 1) - 1))
    z, dy = ((torch.randn(shape, generator=rng, device="cuda") * 3).to(dtype) for _ in range(2))
    odd = torch.tensor([0.0, -0.0, torch.nan, torch.inf, -torch.inf, 1e-7, -1e-7, 40, -40], device="cuda").to(dtype)
    picks = torch.randint(0, 9, shape, generator=rng, device="cuda")
    return torch.where(torch.rand(shape, generator=rng, device="cuda") < 0.2, odd[picks], z), dy


def expected(
    logits: Any, nodes: Any, dy: Any, case: tuple[int, int, int], activation: str, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return y and dx for logits (T, K, D+1) of a path; each is rounded to the type once they are there."""
    size = 2 ** (case[2] + 1) - 1
    of_path = on_path(dy.reshape(*case[:2], size), nodes)
    values = activated(logits, activation), sloped(logits, of_path, activation)
    made = [torch.from_numpy(spread(one, nodes, size)).to(dtype).cuda().flatten(1) for one in values]
    return made[0], made[1]


def same(found: torch.Tensor, want: torch.Tensor) -> bool:
    return bool(((found == want) | (found.isnan() & want.isnan())).all())


def room(like: torch.Tensor, before: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return memory with guards, and of it what has the shape asked for, so many elements after the start."""
    memory = torch.full((like.numel() + 64,), 7, dtype=like.dtype, device="cuda")
    return memory, memory[before : before + like.numel()].view(like.shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_walks_and_known_paths(case: tuple[int, int, int], dtype: torch.dtype) -> None:
    """Each output alone and with the other, at any alignment."""
    tokens, trees, depth = case
    size, number = 2 ** (depth + 1) - 1, sum(case)
    for tie in TIES:
        activation = ACTIVATIONS[(number + (tie == "left")) % 5]
        how: Any = {"activation": activation, "tie": tie}
        z, dy = drawn(case, dtype, number)
        wide = to_numpy(z).reshape(tokens, trees, size)
        path = walked(wide, tie)
        want_y, want_dx = expected(on_path(wide, path), path, to_numpy(dy), case, activation, dtype)
        want_nodes = torch.from_numpy(path).cuda()
        want_visited = torch.from_numpy(spread(np.ones(path.shape, np.uint8), path, size)).cuda().flatten(1)
        for before in (0, 1, 8):
            bytes_ = torch.empty(z.shape, dtype=torch.uint8)
            places = {"y": room(z, before), "dx": room(z, before), "visited": room(bytes_, before)}
            places["nodes"] = room(want_nodes, before)
            hidden(z, trees, depth, dy=dy, **{name: one for name, (_, one) in places.items()}, **how)
            wanted = {"y": want_y, "dx": want_dx, "visited": want_visited, "nodes": want_nodes}
            for name, want in wanted.items():
                memory, found = places[name]
                assert same(found, want), (name, before)
                assert bool((memory[:before] == 7).all() and (memory[before + found.numel() :] == 7).all()), name
        alone_y, alone_dx = torch.full_like(z, 7), torch.full_like(z, 7)
        hidden(z, trees, depth, y=alone_y, **how)
        hidden(z, trees, depth, dy=dy, dx=alone_dx, **how)
        alone = torch.full(z.shape, 7, dtype=torch.uint8, device="cuda")
        hidden(z, trees, depth, visited=alone, **how)
        assert torch.equal(alone, want_visited)
        assert same(alone_y, want_y)
        assert same(alone_dx, want_dx)
        # With the logits of a path that are not rounded to the type, along a path that they do not decide.
        exact = torch.randn(want_nodes.shape, device="cuda", dtype=torch.promote_types(dtype, torch.float32)) * 3
        want_y, want_dx = expected(to_numpy(exact), path, to_numpy(dy), case, activation, dtype)
        for wants_y, wants_dx in ((True, True), (True, False), (False, True)):
            y, dx = torch.full_like(z, 7), torch.full_like(z, 7)
            into = {"y": y if wants_y else None, "dx": dx if wants_dx else None}
            hidden(exact, trees, depth, path=want_nodes, dy=dy, dtype=dtype, **into, **how)
            assert same(y, want_y if wants_y else torch.full_like(y, 7))
            assert same(dx, want_dx if wants_dx else torch.full_like(y, 7))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_leaf_that_is_none_has_visited_nothing(dtype: torch.dtype) -> None:
    """And nothing is read or written elsewhere: the other trees have what is theirs."""
    case = tokens, trees, depth = (19, 5, 3)
    z, dy = drawn(case, dtype)
    path = walked(to_numpy(z).reshape(tokens, trees, 15), "left")
    logits = torch.randn(path.shape, device="cuda", dtype=torch.promote_types(dtype, torch.float32))
    want = expected(to_numpy(logits), path, to_numpy(dy), case, "silu", dtype)
    for leaf in (-1, 6, 15, 2**31 - 1, -(2**31)):
        nodes = torch.from_numpy(path).cuda()
        nodes[7, 2, depth] = leaf
        y, dx = torch.full_like(z, 7), torch.full_like(z, 7)
        hidden(logits, trees, depth, path=nodes, dy=dy, dtype=dtype, activation="silu", y=y, dx=dx)
        for found, right in zip((y, dx), want, strict=True):
            right = right.view(tokens, trees, 15).clone()
            right[7, 2] = 0
            assert same(found, right.flatten(1)), leaf


def test_large_batches_and_the_same_bits_again() -> None:
    """More pieces than there are blocks at a time; replayed, too."""
    tokens, trees, depth = 70001, 16, 5
    z, dy = (torch.randn(tokens, trees * 63, device="cuda").bfloat16() for _ in range(2))
    y, dx = torch.empty_like(z), torch.empty_like(z)
    nodes = torch.empty(tokens, trees, depth + 1, dtype=torch.int32, device="cuda")
    hidden(z, trees, depth, dy=dy, y=y, dx=dx, nodes=nodes)
    some = np.arange(0, tokens, 1013)
    few = (len(some), trees, depth)
    path = walked(to_numpy(z[some]).reshape(len(some), trees, 63), "left")
    logits = on_path(to_numpy(z[some]).reshape(len(some), trees, 63), path)
    for found, want in zip((y, dx), expected(logits, path, to_numpy(dy[some]), few, "gelu", z.dtype), strict=True):
        assert same(found[some], want)
    assert torch.equal(nodes[some].cpu(), torch.from_numpy(path))
    again = torch.full_like(y, 7)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        hidden(z, trees, depth, y=again)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(again, y)


def layer_of(trees: int, depth: int, dtype: torch.dtype, d_in: int, d_out: int, bias: bool) -> Any:
    torch.manual_seed(3)
    layer = cmm.torch.FFF(d_in, trees, depth, d_out, bias=bias, device="cuda", dtype=dtype, backward="dense")
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=d_in**-0.5)
    return layer


@pytest.mark.filterwarnings("ignore")  # PyTorch's compiler warns of its own deprecations
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(3, 4, 33, 1), (16, 5, 1, 33), (2, 1, 64, 48)], ids=str)
def test_the_dense_way_is_products_and_this(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    """The layer's output and gradients are those of products of PyTorch, to the bit, with this between them."""
    trees, depth, d_in, d_out = shape
    layer = layer_of(trees, depth, dtype, d_in, d_out, bias=True)
    x = torch.randn(77, d_in, device="cuda", dtype=dtype, requires_grad=True)
    dy = torch.randn(77, d_out, device="cuda", dtype=dtype)
    y = layer(x)
    y.backward(dy)
    w_in, w_out = layer.linear_in.weight.detach(), layer.linear_out.weight.detach()
    z = torch.nn.functional.linear(x.detach(), w_in, layer.linear_in.bias.detach())
    a, dz = torch.empty_like(z), torch.empty_like(z)
    hidden(z, trees, depth, y=a)
    assert torch.equal(y, torch.nn.functional.linear(a, w_out))
    hidden(z, trees, depth, dy=dy @ w_out, dx=dz)
    assert torch.equal(x.grad, dz @ w_in)
    assert torch.equal(layer.linear_in.weight.grad, dz.t() @ x.detach())
    assert torch.equal(layer.linear_in.bias.grad, dz.sum(0))
    assert torch.equal(layer.linear_out.weight.grad, dy.t() @ a)
    want = [x.grad, *(parameter.grad for parameter in layer.parameters())]
    x.grad = None
    layer.zero_grad(set_to_none=True)
    torch._dynamo.reset()
    again = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    again.backward(dy)
    assert torch.equal(again, y)
    found = [x.grad, *(parameter.grad for parameter in layer.parameters())]
    assert all(torch.equal(one, other) for one, other in zip(found, want, strict=True))


@pytest.mark.filterwarnings("ignore")
def test_the_operators_are_what_pytorch_asks_of_them() -> None:
    z = torch.randn(6, 21, device="cuda", requires_grad=True)
    some = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    opcheck(torch.ops.cmm.fff_hidden.default, (z, 3, "silu", "right", True), test_utils=some)
    dy = torch.randn(6, 21, device="cuda")
    opcheck(torch.ops.cmm.fff_hidden_backward.default, (dy, z.detach(), 3, "silu", "right"))
    path = torch.zeros(6, 3, 3, dtype=torch.int32, device="cuda")
    path[..., 1:] = torch.tensor([2, 5])
    for given, wants in ((dy, True), (None, True), (dy, False)):
        how = (path, torch.randn(path.shape, device="cuda"), "silu", torch.float32, wants)
        opcheck(torch.ops.cmm.fff_hidden_of_path.default, (given, *how))


def test_the_dense_way_has_second_derivatives_and_forward_mode() -> None:
    layer = layer_of(3, 2, torch.float64, 5, 4, bias=True)
    x = torch.randn(6, 5, device="cuda", dtype=torch.float64, requires_grad=True)
    z = torch.nn.functional.linear(x, layer.linear_in.weight, layer.linear_in.bias)
    assert float(z.detach().abs().min()) > 1e-5  # a step of gradgradcheck crosses no decision
    assert torch.autograd.gradcheck(layer, (x,), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(layer, (x,))


def test_gradients_of_each_token_by_torch_func() -> None:
    """Of a forest whose gradients are products, on small whole numbers, of which no sum is rounded."""
    torch.manual_seed(5)
    layer = cmm.torch.FFF(8, 3, 2, 4, activation="relu", device="cuda", dtype=torch.float64)
    parameters = {name: torch.randint_like(value, -1, 2) for name, value in layer.named_parameters()}
    x = torch.randint(-1, 2, (33, 8), device="cuda").double()

    def total(parameters: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return functional_call(layer, parameters, (x,)).sum()

    whole = grad(total)(parameters, x)
    each = vmap(grad(total), (None, 0))(parameters, x)
    leaves = {name: value.requires_grad_() for name, value in parameters.items()}
    want = torch.autograd.grad(total(leaves, x), list(leaves.values()))
    for name, one in zip(whole, want, strict=True):
        assert one.any()
        assert torch.equal(whole[name], one)
        assert torch.equal(each[name].sum(0), one)
