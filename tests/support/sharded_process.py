"""One of some processes that share layers, by gloo: ``python sharded_process.py rank ranks meeting``.

The meeting is a file that all know, and beside which they may write. The last line says that everything was as it
should be. The functions serve a single process too.
"""

import os
import sys
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from cmm.errors import ArgumentError, CmmError, DtypeError, ShapeError
from cmm.torch import FFF, ShardedFFF, balanced_placement, sharded_parameters
from ranks import LAST
from reference import Reference, backward, worst
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

D_IN, D_OUT = 12, 7

# A layer, and how many tokens each rank has of it: the ranks' numbers in turn.
CASES: dict[str, tuple[dict[str, Any], list[int]]] = {
    "one tree": ({"trees": 1, "depth": 5, "top_depth": 2}, [33, 20, 27]),
    "more subtrees than ranks": ({"trees": 1, "depth": 5, "top_depth": 4, "bias": False}, [33, 20, 27]),
    "a forest": ({"trees": 3, "depth": 4, "top_depth": 1, "activation": "silu"}, [9, 40, 1]),
    "ties": ({"trees": 2, "depth": 4, "top_depth": 2, "tie": "right", "activation": "relu"}, [20, 31, 5]),
    "ties, left": ({"trees": 2, "depth": 4, "top_depth": 2, "activation": "gelu_tanh"}, [20, 31, 5]),
    "whole trees": ({"trees": 5, "depth": 3, "top_depth": 0, "activation": "identity"}, [12, 13, 14]),
    "depth 0": ({"trees": 4, "depth": 0}, [12, 13, 14]),
    "leaves": ({"trees": 1, "depth": 3, "top_depth": 3}, [25, 5, 11]),
    "unbalanced": ({"trees": 1, "depth": 5, "top_depth": 2}, [50, 30, 20]),
    "no tokens on a rank": ({"trees": 2, "depth": 3, "top_depth": 1}, [0, 9, 0]),
    "one token": ({"trees": 1, "depth": 4, "top_depth": 2}, [0, 1, 0]),
    "no tokens at all": ({"trees": 1, "depth": 4, "top_depth": 2}, [0, 0, 0]),
    "placed": ({"trees": 1, "depth": 4, "top_depth": 3, "placement": (2, 0, 1, 0, 0, 2, 1, 0)}, [25, 5, 11]),
}


class Case:
    """A layer that every rank knows, all tokens, and which of them are this rank's."""

    def __init__(self, name: str, dtype: torch.dtype, rank: int = 0, ranks: int = 1) -> None:
        options, counts = CASES[name]
        self.options = {**options, "d_in": D_IN, "d_out": D_OUT, "dtype": dtype}
        if "placement" in options:
            self.options["placement"] = [place % ranks for place in options["placement"]]
        random = torch.Generator().manual_seed(3)
        whole = {name: value for name, value in self.options.items() if name not in ("top_depth", "placement")}
        self.layer = FFF(**whole)
        with torch.no_grad():
            for parameter in self.layer.parameters():
                parameter.normal_(generator=random)
            if name.startswith("ties"):
                self.layer.linear_in.weight[::2] = 0
                self.layer.linear_in.bias[::2] = 0
        counts = [sum(counts)] if ranks == 1 else counts[:ranks]
        first = sum(counts[:rank])
        self.x = torch.randn(sum(counts), D_IN, dtype=dtype, generator=random)
        if name == "unbalanced":  # nine in ten tokens are one and the same
            self.x[torch.arange(len(self.x)) % 10 > 0] = self.x[:1].clone()
        self.dy = torch.randn(sum(counts), D_OUT, dtype=dtype, generator=random)
        self.own = slice(first, first + counts[rank])
        self.trees, self.nodes = self.layer.trees, self.layer.nodes
        self.w_in, self.w_out = self.layer.linear_in.weight, self.layer.linear_out.weight.t().contiguous()
        self.bias = self.layer.linear_in.bias

    def sharded(self, **options: Any) -> ShardedFFF:
        layer = ShardedFFF(**{**self.options, **options})
        layer.load_full_state_dict(self.layer.state_dict())
        return layer

    def path(self) -> tuple[Tensor, Tensor]:
        """Of all tokens, by the operator of the unsharded layer."""
        weights = self.w_in, self.bias, self.w_out
        with torch.no_grad():
            how = self.trees, self.layer.activation, self.layer.tie, True
            _, nodes, logits = torch.ops.cmm.fff_forward(self.x, *weights, *how)
        return nodes, logits

    def arrays(self) -> list[np.ndarray | None]:
        """x, w_in, bias and w_out as the oracle takes them."""
        shaped = self.w_in.reshape(self.trees, self.nodes, D_IN), self.w_out.reshape(self.trees, self.nodes, D_OUT)
        bias = None if self.bias is None else self.bias.reshape(self.trees, self.nodes)
        found = self.x, shaped[0], bias, shaped[1]
        return [None if one is None else one.detach().numpy() for one in found]


def check(name: str, dtype: torch.dtype, rank: int, ranks: int) -> None:
    """Paths of the unsharded layer, bit for bit; outputs and gradients within the bounds of sums in any order."""
    case = Case(name, dtype, rank, ranks)
    nodes, logits = case.path()
    x, w_in, bias, w_out = case.arrays()
    activation, tie = case.layer.activation, case.layer.tie
    if len(x) and len(nodes):
        assert name != "unbalanced" or np.unique(nodes[..., -1].numpy(), return_counts=True)[1].max() >= 0.9 * len(x)
        assert not name.startswith("ties") or bool((logits == 0).any())
    want = backward(x, w_in, w_out, nodes.numpy(), logits.numpy(), case.dy.numpy(), activation)
    first = None
    for overlap in (True, False):
        layer = case.sharded(overlap=overlap, gradients="sum")
        own = case.x[case.own].clone().requires_grad_()
        y, *found = layer(own, return_path=True)
        assert torch.equal(found[0], nodes[case.own]), "another path than the unsharded layer's"
        assert torch.equal(found[1], logits[case.own]), "other logits than the unsharded layer's"
        assert torch.equal(y, layer(own))
        given = x[case.own], w_in, bias, w_out
        Reference(*given, tie).check(activation, y.detach().numpy(), *(one.numpy() for one in found))
        loads = torch.zeros(case.trees, 2**layer.top_depth, dtype=torch.int64)
        for tree in range(case.trees):
            numbers = nodes[:, tree, layer.top_depth].long() - (2**layer.top_depth - 1)
            loads[tree] = torch.bincount(numbers, minlength=loads.shape[1])
        assert torch.equal(layer.loads(), loads.reshape(-1))

        with torch.no_grad():
            assert torch.equal(layer(own), y), "other bits without a gradient"
        averaged = case.sharded(overlap=overlap)
        averaged(case.x[case.own]).backward(case.dy[case.own])
        y.backward(case.dy[case.own])
        for mean, total in zip(averaged.subtrees.parameters(), layer.subtrees.parameters(), strict=True):
            assert torch.equal(mean.grad, total.grad / ranks), "not the gradient of the mean of the ranks' losses"
        sums = gathered_gradients(layer)
        worst(own.grad.numpy(), *(part[case.own] for part in want["dx"]), "dx")
        if rank == 0:
            shape = case.trees, case.nodes
            worst(sums["linear_in.weight"].reshape(*shape, D_IN).numpy(), *want["dw_in"], "dw_in")
            worst(sums["linear_out.weight"].t().reshape(*shape, D_OUT).numpy(), *want["dw_out"], "dw_out")
            if bias is not None:
                worst(sums["linear_in.bias"].reshape(shape).numpy(), *want["dbias"], "dbias")
        if first is None:
            first = y, own.grad
        assert torch.equal(first[0], y), "other outputs without overlap"
        assert torch.equal(first[1], own.grad), "other gradients without overlap"


def gathered_gradients(layer: ShardedFFF) -> dict[str, Tensor]:
    """Return, on rank 0, the gradients of the sum of all ranks' losses, by the names of an unsharded layer.

    The layer's weights are not what they were after that.
    """
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
            if name.startswith("top.") and layer.ranks > 1:
                dist.all_reduce(gradient)
            parameter.copy_(gradient)
    return layer.full_state_dict()


def raises(kind: type[CmmError], words: str, call: Any) -> None:
    """Every rank is told the same, in one line."""
    try:
        call()
    except kind as error:
        said = str(error)
    else:
        raise AssertionError(f"no error that says {words!r}")
    assert words in said, said
    assert "\n" not in said, said
    if dist.is_initialized():
        everybody: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everybody, said)
        assert set(everybody) == {said}, everybody


def check_errors(rank: int, ranks: int) -> None:
    """What is wrong on one rank is an error on all, and the group can be used afterwards."""
    last = rank == ranks - 1
    raises(
        ArgumentError,
        f"there are {ranks} ranks and 1 subtrees, of 1 trees of depth 0 with top_depth 0; there should be at "
        "least one for each rank",
        lambda: ShardedFFF(8, 1, 0),
    )
    raises(ArgumentError, "placement has 3 ranks; it should have 4", lambda: ShardedFFF(8, 4, 0, placement=[0, 1, 0]))
    raises(
        ArgumentError,
        "placement has no subtree on rank 1; it should have one on each rank",
        lambda: ShardedFFF(8, 4, 0, placement=[0, 0, 0, 0]),
    )
    raises(
        ArgumentError,
        f"rank {ranks - 1}: depth is -1; it should be a whole number from 0 to",
        lambda: ShardedFFF(8, 4, -1 if last else 3),
    )
    raises(
        ArgumentError,
        f"rank {ranks - 1} has another layer than rank 0; all should have the same arguments",
        lambda: ShardedFFF(8, 4, 3, activation="relu" if last else "gelu"),
    )
    layer = ShardedFFF(8, 4, 3, dtype=torch.float32)
    x = torch.randn(5, 8)
    where = f"rank {ranks - 1}: x "
    raises(ShapeError, f"{where}has shape (5, 7); it should have shape", lambda: layer(x[:, 1:] if last else x))
    raises(
        DtypeError,
        f"{where}has dtype torch.float64 on cpu; it should be torch.float32",
        lambda: layer(x.double() if last else x),
    )
    raises(ArgumentError, f"{where}is a list; it should be a tensor", lambda: layer([] if last else x))
    differs = "the dtype of x, return_path, or whether gradients are recorded is not the same on all ranks"
    raises(ArgumentError, differs, lambda: layer(x, return_path=last))
    with torch.set_grad_enabled(last):
        raises(ArgumentError, differs, lambda: layer(x))
    raises(
        ArgumentError,
        f"rank {ranks - 1}: placement is 5; it should be 'contiguous' or a whole number for each subtree",
        lambda: ShardedFFF(8, 4, 0, placement=5 if last else "contiguous"),
    )
    assert layer(x).shape == x.shape


def check_gradients_asked_for_by_one(rank: int) -> None:
    """A backward pass takes place on all ranks where one rank's tensors alone ask for a gradient."""
    layer = ShardedFFF(8, 1, 3, top_depth=2).requires_grad_(rank == 0)
    x = torch.randn(5, 8)
    layer(x).sum().backward()
    assert all((parameter.grad is not None) == (rank == 0) for parameter in layer.parameters())
    assert x.grad is None


def check_states(folder: str, rank: int, ranks: int) -> None:
    """To and from an unsharded layer, and through PyTorch's checkpoints to another placement."""
    case = Case("a forest", torch.float32)
    layer = case.sharded()
    state, want = layer.full_state_dict(), case.layer.state_dict()
    if rank == 0:
        assert state.keys() == want.keys()
        assert all(torch.equal(state[name], want[name]) for name in want)
    else:
        assert state == {}
    dcp.save(layer.state_dict(), checkpoint_id=folder)
    reversed_placement = [ranks - 1 - place for place in layer.placement]
    other = ShardedFFF(**case.options, placement=reversed_placement)
    loaded = other.state_dict()
    dcp.load(loaded, checkpoint_id=folder)
    other.load_state_dict(loaded)
    state = other.full_state_dict()
    assert rank or all(torch.equal(state[name], want[name]) for name in want)

    torch.manual_seed(rank)  # new weights are rank 0's, whatever the others' state and the placement
    drawn = ShardedFFF(**case.options, placement=reversed_placement).full_state_dict()
    torch.manual_seed(rank)
    again = ShardedFFF(**case.options).full_state_dict()
    assert all(torch.equal(drawn[name], again[name]) for name in drawn)
    if rank == 0:
        rows = drawn["linear_in.weight"]
        assert len(torch.unique(rows, dim=0)) == len(rows), "two subtrees began alike"

    broken = dict(case.layer.state_dict(), extra=torch.zeros(1))
    words = "it should have ['linear_in.bias', 'linear_in.weight', 'linear_out.weight']"
    raises(ArgumentError, words, lambda: layer.load_full_state_dict(broken))
    cut = dict(case.layer.state_dict(), **{"linear_in.bias": torch.zeros(1)})
    raises(ShapeError, "linear_in.bias has shape (1,); it should be (93,)", lambda: layer.load_full_state_dict(cut))


def check_ddp(rank: int, ranks: int) -> None:
    """DistributedDataParallel averages the gradients of what every rank has, and leaves the subtrees alone."""
    case = Case("one tree", torch.float32, rank, ranks)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(D_IN, D_IN), case.sharded())
    x, dy = case.x[case.own], case.dy[case.own]
    model(x).backward(dy)
    want = {}
    for name, parameter in model.named_parameters():
        want[name] = parameter.grad
        parameter.grad = None
    ignored = sharded_parameters(model)
    assert set(ignored) == {name for name in want if ".subtrees." in name}
    careless = DistributedDataParallel(
        ShardedFFF(D_IN, ranks, 2)
    )  # with other numbers on each rank it refuses itself
    words = "rank 0: DistributedDataParallel treats subtrees.0.w_in as the same on all ranks; before it wraps"
    raises(ArgumentError, words, lambda: careless(x))
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ignored)
    wrapped = DistributedDataParallel(model)
    wrapped(x).backward(dy)
    for name, parameter in model.named_parameters():
        if name in ignored:
            assert torch.equal(parameter.grad, want[name]), name
        else:
            dist.all_reduce(want[name])
            # One division of a sum of ranks, in either order: two roundings a term.
            off = 4 * ranks * torch.finfo(torch.float32).eps * want[name].abs().max()
            assert (parameter.grad - want[name] / ranks).abs().max() <= off, name


def check_balanced(rank: int, ranks: int) -> None:
    """A placement by the loads that were measured, on the layer that it was measured on."""
    case = Case("more subtrees than ranks", torch.float64, rank, ranks)
    layer = case.sharded()
    y = layer(case.x[case.own])
    placed = case.sharded(placement=balanced_placement(layer.loads(), ranks))
    assert torch.equal(placed(case.x[case.own]), y)
    assert torch.equal(placed.loads(), layer.loads())


def main() -> None:
    rank, ranks, meeting = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    check_errors(rank, ranks)
    for name in CASES:
        for dtype in (torch.float32, torch.float64):
            check(name, dtype, rank, ranks)
    check_gradients_asked_for_by_one(rank)
    check_states(f"{meeting}.checkpoint", rank, ranks)
    check_ddp(rank, ranks)
    check_balanced(rank, ranks)
    dist.barrier()
    print(LAST, flush=True)
    os._exit(0)  # gloo's own threads sometimes keep a process from its end


if __name__ == "__main__":
    main()
