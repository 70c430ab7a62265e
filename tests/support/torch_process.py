"""One of two processes that train a layer together, by FSDP2 and by DDP: ``python torch_process.py rank meeting``.

The meeting is a file that both know. The last line says that everything was as it should be.
"""

import copy
import os
import sys

import torch
import torch.distributed as dist
from cmm.torch import FFF
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

WORLD = 2


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The gradients of a mean, which the processes' average is the one of the whole batch of."""
    model.zero_grad()
    model(x).square().mean().backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def train(kind: str, rank: int) -> None:
    """Two steps, and forward passes after each, against a model that one process has alone."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(10, 12), FFF(12, 3, 4, backward="visited"), FFF(12, 2, 3, backward="dense"))
    for layer in plain[1:]:
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.3)
    plain[1].linear_out.weight.detach().numpy()  # as many programs look at a parameter
    shared = copy.deepcopy(plain)
    if kind == "fully_shard":
        for layer in shared:
            fully_shard(layer)
        fully_shard(shared)
        model: nn.Module = shared
    else:
        model = DistributedDataParallel(shared)
    data, hidden = torch.randn(8 * WORLD, 10), torch.randn(5, 12)
    mine = data[rank::WORLD]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        model.train()
        for one, other in zip(gradients(model, mine), gradients(plain, data), strict=True):
            # The same sums in another order, in float32, of at most 16 * 45 terms.
            assert float((whole(one) - other).abs().max()) <= 1e-4 * float(other.abs().max())
        optimizer.step()
        with torch.no_grad():
            for parameter, own in zip(plain.parameters(), shared.parameters(), strict=True):
                parameter.copy_(whole(own))
        for context in (torch.no_grad, torch.enable_grad):
            with context():
                # PyTorch's products may round otherwise where a weight lies at another address; libcmm does not.
                torch.testing.assert_close(model.eval()(mine), plain.eval()(mine), rtol=1e-4, atol=1e-4)
                assert torch.equal(shared[1](hidden), plain[1](hidden))
        for layer in shared[1:]:
            assert kind != "fully_shard" or layer._rows_out is None, "a sharded parameter keeps no form"
        plain.train()


def main() -> None:
    rank, meeting = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=WORLD)
    train("fully_shard", rank)
    train("ddp", rank)
    dist.barrier()
    print("as it should be", flush=True)
    os._exit(0)  # gloo's own threads sometimes keep a process from its end


if __name__ == "__main__":
    main()
