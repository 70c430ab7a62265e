"""One of two processes that train a layer together, by FSDP2 and by DDP: ``python torch_process.py rank 2 meeting``.

The meeting is a file that both know. The last line says that everything was as it should be.

Nothing is rounded, so that sums in another order have the same bits. Tokens and weights are -1, 0 and 1,
activations ReLU, and the mean is over a power of two of numbers, all of float64. The largest magnitudes: 10 after
the first layer; 12 * 10 + 1 in a logit of the second, 3 * 5 of them in its output, 1815; 12 * 1815 in a logit of
the third, 2 * 4 of them in its output, 174240 < 2^18. So dy, of the whole batch 2 y / 256, is below g = 2^11, and a
multiple of 2^-8, also where it is halved. The third layer's da is at most 16 g, its dx 8 * 16 g, the second's da 12
* 128 g, its dx 15 * 1536 g. Gradients of weights are sums of at most 16 products, of 16 g by 21780, 1536 g by 121,
23040 g by 10: below 2^23 g, so of 42 bits.
"""

import copy
import os
import sys
from collections.abc import Sequence

import torch
import torch.distributed as dist
from cmm.torch import FFF
from ranks import LAST
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

WORLD = 2


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The gradients of a mean, which the processes' average is the one of the whole batch of."""
    model.zero_grad()
    model(x).square().mean().backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def signs(shape: Sequence[int]) -> Tensor:
    return torch.randint(-1, 2, tuple(shape)).double()


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def train(kind: str, rank: int) -> None:
    """Two steps, and forward passes after each, against a model that one process has alone."""
    torch.manual_seed(0)
    visited = FFF(12, 3, 4, activation="relu", backward="visited")
    dense = FFF(12, 2, 3, 16, bias=False, activation="relu", backward="dense")
    plain = nn.Sequential(nn.Linear(10, 12, bias=False), visited, dense).double()
    for parameter in plain.parameters():
        parameter.data = signs(parameter.shape)
    nn.init.zeros_(visited.linear_in.bias)
    plain[1].linear_out.weight.detach().numpy()  # as many programs look at a parameter
    shared = copy.deepcopy(plain)
    if kind == "fully_shard":
        for layer in shared:
            fully_shard(layer)
        fully_shard(shared)
        model: nn.Module = shared
    else:
        model = DistributedDataParallel(shared)
    data, hidden = signs((8 * WORLD, 10)), signs((5, 12))
    mine = data[rank::WORLD]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(2):
        model.train()
        for one, other in zip(gradients(model, mine), gradients(plain, data), strict=True):
            assert other.any()
            assert torch.equal(whole(one), other)
        optimizer.step()
        with torch.no_grad():
            for own in shared.parameters():
                own.sign_()
            for parameter, own in zip(plain.parameters(), shared.parameters(), strict=True):
                parameter.copy_(whole(own))
        for context in (torch.no_grad, torch.enable_grad):
            with context():
                assert torch.equal(model.eval()(mine), plain.eval()(mine))
                assert torch.equal(shared[1](hidden), plain[1](hidden))
        for layer in shared[1:]:
            assert kind != "fully_shard" or layer._rows_out is None, "a sharded parameter keeps no form"
        plain.train()


def main() -> None:
    rank, ranks, meeting = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    assert ranks == WORLD  # the sums above are theirs
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=WORLD)
    train("fully_shard", rank)
    train("ddp", rank)
    dist.barrier()
    print(LAST, flush=True)
    os._exit(0)  # gloo's own threads sometimes keep a process from its end


if __name__ == "__main__":
    main()
