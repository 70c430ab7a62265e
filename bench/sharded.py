"""Measure a layer that is shared by GPUs beside one GPU: ``torchrun --nproc-per-node 2 bench/sharded.py``.

The layer is cmm.torch.ShardedFFF, bfloat16, 1x15 of width 12288 where nothing else is asked for; its tokens are dealt
out evenly. On one GPU the same tokens are computed by the operator of the whole layer, and by a sharded layer of one
rank. Before anything is timed, paths and outputs of some tokens are checked against float64 along the path.

Times are device times, from the start of one call to that of the next by events on the stream: the slowest rank's in
each call, the median of calls and the quartiles. So what the host makes the device wait for is in them.
"""

import argparse
import os
import statistics
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.distributed as dist
from cmm.torch import ShardedFFF
from torch import Tensor

DTYPE = torch.bfloat16
ROUNDOFF = 2.0**-8  # of bfloat16
GELU = 2.0**-14  # how far libcmm_cuda's GELU for coefficients of 16 bits may be off, and that of float32 is not


def times(call: Callable[[], object], rounds: int, alone: bool) -> list[float]:
    """Milliseconds of each call, the slowest rank's."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
    if not alone:
        dist.barrier()
    for mark in marks[:-1]:
        mark.record()
        call()
    marks[-1].record()
    torch.cuda.synchronize()
    found = torch.tensor([a.elapsed_time(b) for a, b in pairwise(marks)], device="cuda")
    if not alone:
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return found.tolist()


def shown(found: list[float]) -> str:
    low, middle, high = statistics.quantiles(found, n=4)
    return f"{middle:.3f} ms ({low:.3f} to {high:.3f})"


def check(x: Tensor, w_in: Tensor, w_out: Tensor, y: Tensor, nodes: Tensor, logits: Tensor) -> str:
    """Paths, logits and outputs against float64 along the path, for x of few tokens and one tree without bias.

    A logit is off by gamma(d_in) of float32 times its terms' magnitudes. Three roundings to bfloat16 act on each term
    of an output: a coefficient's, that of the part it belongs to, and that of the sum of parts.
    """
    nodes, logits = nodes[:, 0], logits[:, 0].double()
    right = nodes[:, 1:] == 2 * nodes[:, :-1] + 1 + (logits[:, :-1] > 0)
    assert bool(right.all()), "a path is not what its logits say"
    u = 2.0**-24
    gamma = x.shape[1] * u / (1 - x.shape[1] * u)
    worst_logit = worst_output = 0.0
    for token in range(len(x)):
        rows = nodes[token].long()
        terms = w_in[rows].double() * x[token].double()
        off = gamma * terms.abs().sum(1)
        share = (logits[token] - terms.sum(1)).abs() / off
        worst_logit = max(worst_logit, float(share.max()))
        a = torch.nn.functional.gelu(logits[token])[:, None]
        weights = w_out[rows].double()
        sizes = ((a.abs() + GELU * (1 + a.abs())) * weights.abs()).sum(0)
        bound = ((1 + ROUNDOFF) ** 3 - 1 + 2 * len(rows) * u) * sizes + GELU * ((1 + a.abs()) * weights.abs()).sum(0)
        worst_output = max(worst_output, float(((y[token].double() - (a * weights).sum(0)).abs() / bound).max()))
    assert max(worst_logit, worst_output) <= 1, (worst_logit, worst_output)
    return f"worst logit {worst_logit:.2f}, worst output {worst_output:.2f} of their bounds"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=12288)
    parser.add_argument("--depth", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=16384, help="of all ranks together")
    parser.add_argument("--top-depths", type=int, nargs="*", default=[1, 2, 3, 4])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--training", type=int, default=4, help="rounds of forward and backward passes; 0 for none")
    options = parser.parse_args()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    solo = dist.new_group([0])
    lines: list[str] = []

    def say(text: str) -> None:
        if rank == 0:
            lines.append(text)
            print(text, flush=True)

    random = torch.Generator(device).manual_seed(0)
    rows, width = 2 ** (options.depth + 1) - 1, options.width
    w_in, w_out = (torch.empty(rows, width, device=device, dtype=DTYPE) for _ in range(2))
    for weight in (w_in, w_out):
        weight.normal_(std=0.02, generator=random)
    x = torch.randn(options.tokens, width, device=device, generator=random, dtype=DTYPE)
    state = {"linear_in.weight": w_in, "linear_out.weight": w_out.t()}
    own = x.tensor_split(ranks)[rank].clone()
    first = sum(len(part) for part in x.tensor_split(ranks)[:rank])

    def whole(tokens: Tensor, wants_path: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor] = torch.ops.cmm.fff_forward(
            tokens, w_in, None, w_out, 1, "gelu", "left", wants_path
        )
        return found

    def made(**how: object) -> ShardedFFF:
        layer = ShardedFFF(width, 1, options.depth, bias=False, device=device, dtype=DTYPE, **how)
        layer.load_full_state_dict(state)
        return layer

    # ---- checks before times
    say(f"{ranks} of {torch.cuda.get_device_name()}, PyTorch {torch.__version__}, NCCL {torch.cuda.nccl.version()}")
    _, all_nodes, _ = whole(x)
    some = torch.arange(0, len(own), max(1, len(own) // 64), device=device)
    with torch.no_grad():
        for top_depth in options.top_depths:
            for overlap in (False, True):
                y, nodes, logits = made(top_depth=top_depth, overlap=overlap)(own, return_path=True)
                said = check(own[some], w_in, w_out, y[some], nodes[some], logits[some])
                parted = (nodes != all_nodes[first : first + len(own)]).any(-1).sum()
                dist.all_reduce(parted)
                said += f"; {int(parted)} other paths than the whole layer's"
                say(f"check: top_depth {top_depth}, overlap {overlap}: {said}")
    dist.barrier()

    # ---- the pieces of the model
    with torch.no_grad():
        half = [len(own) // ranks] * ranks
        half[-1] += len(own) - sum(half)
        into = torch.empty_like(own)
        found = times(lambda: dist.all_to_all_single(into, own, half, half), options.rounds, False)
        say(f"piece: all-to-all of {own.nbytes / 2**20:.0f} MiB a rank, a part of it its own: {shown(found)}")
        order = torch.randperm(len(own), device=device)
        found = times(lambda: own.index_select(0, order), options.rounds, False)
        say(f"piece: rows of as much gathered: {shown(found)}")
        say(f"piece: two tensors of as much added: {shown(times(lambda: own + into, options.rounds, False))}")
        for top_depth in options.top_depths:
            count = 2**top_depth - 1
            how = w_in[:count], None, w_out[:count], 1, "gelu", "left", True
            found = times(lambda how=how: torch.ops.cmm.fff_forward(own, *how), options.rounds, False)
            say(f"piece: top of {top_depth} levels, {len(own)} tokens: {shown(found)}")
            size, tokens = 2 ** (options.depth - top_depth + 1) - 1, options.tokens >> top_depth
            how = w_in[:size], None, w_out[:size], 1, "gelu", "left", True
            found = times(lambda how=how, n=tokens: torch.ops.cmm.fff_forward(x[:n], *how), options.rounds, False)
            say(f"piece: a subtree of {options.depth - top_depth + 1} levels, {tokens} tokens: {shown(found)}")

    # ---- one GPU, then all
    with torch.no_grad():
        alone: dict[str, list[float]] = {}
        if rank == 0:
            alone["the operator"] = times(lambda: whole(x, False), options.rounds, True)
            for top_depth in options.top_depths:
                layer = made(top_depth=top_depth, group=solo)
                alone[f"sharded, one rank, top_depth {top_depth}"] = times(
                    lambda layer=layer: layer(x), options.rounds, True
                )
                del layer
        dist.barrier()
        what = f"1x{options.depth}, width {width}, {options.tokens} tokens"
        say(f"\n| forward, {what} | time | operator / it | best of one GPU / it |")
        say("| --- | --- | ---: | ---: |")
        medians = {name: statistics.median(found) for name, found in alone.items()}
        for name, found in alone.items():
            say(f"| 1 GPU: {name} | {shown(found)} | | |")
        for top_depth in options.top_depths:
            for overlap in (False, True):
                layer = made(top_depth=top_depth, overlap=overlap)
                found = times(lambda layer=layer: layer(own), options.rounds, False)
                if rank == 0:
                    now = statistics.median(found)
                    ratios = f"{medians['the operator'] / now:.2f}x | {min(medians.values()) / now:.2f}x"
                    name = f"top_depth {top_depth}, {2**top_depth / ranks:g} exchanges" + ", overlapped" * overlap
                    say(f"| {ranks} GPUs: {name} | {shown(found)} | {ratios} |")
                del layer

    # ---- with gradients
    if options.training:
        dy = torch.randn(len(own), width, device=device, generator=random, dtype=DTYPE)
        say(f"\n| forward and backward, {options.tokens} tokens | time | of one GPU |")
        say("| --- | --- | ---: |")
        base = 0.0
        for top_depth in [depth for depth in options.top_depths if depth >= 2][:1]:
            for group, overlap in ((solo, True), (None, False), (None, True)):
                is_alone = group is solo
                if is_alone and rank:
                    dist.barrier()
                    continue
                layer = made(top_depth=top_depth, overlap=overlap, group=group)
                tokens = (x if is_alone else own).clone().requires_grad_()
                gradient = torch.cat([dy] * ranks)[: len(x)] if is_alone else dy

                def step(layer: ShardedFFF = layer, tokens: Tensor = tokens, gradient: Tensor = gradient) -> None:
                    layer.zero_grad()
                    tokens.grad = None
                    layer(tokens).backward(gradient)

                found = times(step, options.training, is_alone)
                if is_alone:
                    base = statistics.median(found)
                    dist.barrier()
                name = f"1 GPU, top_depth {top_depth}" if is_alone else f"{ranks} GPUs" + ", overlapped" * overlap
                say(f"| {name} | {shown(found)} | {base / statistics.median(found):.2f}x |")
                del layer, tokens, gradient, step
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
