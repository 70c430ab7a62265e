"""Forward and backward of a layer in PyTorch: visited nodes, all nodes, and the dense pair of as many neurons.

    python bench/training_step.py [--shapes 1x11:768,16x5:192] [--tokens 256,4096] [--rounds 9] [--threads 1]
    python bench/training_step.py --device cuda --tokens 16384,65536 [--compile | --graphs] [--models 4x7,dense]

The cases take turns in one process, on random tokens whose paths spread over the leaves; before they are timed their
gradients are compared. Printed are medians in ms, and the medians and quartiles of the ratios of each round. On a GPU
the parameters are float32 and the products bfloat16, by autocast, "visited" is what backward="auto" takes, and a time
is that of a row of steps between two events. With --models whole steps of docs/examples/train.py's model are timed,
too, on random tokens, with weights whose paths spread.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import cmm.torch
import numpy as np
import torch
from cmm.torch import MaskedLanguageModel, training
from cmm.torch import data as text
from torch import Tensor, nn
from torch.nn import functional


class Pair(nn.Module):
    """Two products and a GELU: a dense layer of as many neurons."""

    def __init__(self, width: int, neurons: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, neurons), nn.Linear(neurons, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(functional.gelu(self.first(x)))


def step(layer: nn.Module, x: Tensor, dy: Tensor, call: Callable[..., Tensor] | None = None) -> None:
    layer.zero_grad(set_to_none=True)
    x.grad = None
    with training.autocast(x.device, x.is_cuda):
        y = layer(x) if call is None else call(x)
    y.backward(dy.to(y.dtype))


def made(width: int, trees: int, depth: int, device: str) -> dict[str, nn.Module]:
    way = "visited" if device == "cpu" else "auto"
    visited = cmm.torch.FFF(width, trees, depth, backward=way)
    spread(visited)
    dense = cmm.torch.FFF(width, trees, depth, backward="dense")
    dense.load_state_dict(visited.state_dict())
    layers = {"visited": visited, "dense": dense, "pair": Pair(width, trees * visited.nodes)}
    return {name: layer.to(device) for name, layer in layers.items()}


def spread(layer: cmm.torch.FFF) -> None:
    """Draw weights with which logits of tokens of unit variance have it, too."""
    nn.init.normal_(layer.linear_in.weight, std=layer.d_in**-0.5)
    nn.init.normal_(layer.linear_out.weight, std=layer.d_in**-0.5)


def check(layers: dict[str, nn.Module], x: Tensor, dy: Tensor) -> None:
    """Both ways have the same gradients, but for rounding, and for tokens whose paths part at a tie of 16 bits."""
    found = []
    for name in ("visited", "dense"):
        step(layers[name], x, dy)
        assert x.grad is not None
        found.append([x.grad, *(parameter.grad for parameter in layers[name].parameters())])
    for one, other in zip(*found, strict=True):
        if x.is_cuda:
            assert float((one - other).norm()) < 0.1 * float(other.norm()), "the gradients differ"
        else:
            assert float((one - other).abs().max()) < 1e-3 * float(other.abs().max()), "the gradients differ"


def milliseconds(call: Callable[[], None], device: str) -> float:
    """Return the time of one call, on a GPU of several in a row."""
    if device == "cpu":
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e3
    calls, events = 10, [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    events[0].record()
    for _ in range(calls):
        call()
    events[1].record()
    torch.cuda.synchronize()
    return float(events[0].elapsed_time(events[1])) / calls


def in_turn(calls: dict[str, Callable[[], None]], rounds: int, device: str) -> dict[str, list[float]]:
    """Return the times of each, after one that does not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            took = milliseconds(call, device)
            if number > 0:
                times[name].append(took)
    return times


def replayed(call: Callable[[], None]) -> Callable[[], None]:
    """Return the replay of a CUDA graph of a call."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def models(kinds: list[str], rounds: int, options: argparse.Namespace) -> None:
    """Time a step of the packaged model's encoder, beside the last kind's."""
    calls = {}
    for kind in kinds:
        arch = training.architecture(kind, layers=5, hidden=192, heads=4, vocab_size=6144, length=128)
        model = MaskedLanguageModel(arch).cuda()
        for layer in model.modules():
            if isinstance(layer, cmm.torch.FFF):
                spread(layer)
        optimizer = training.make_optimizer(model, 1e-5)
        mode = "reduce-overhead" if options.graphs else None  # the optimizer's step is not in the graph
        forward = torch.compile(model, mode=mode) if options.compile or options.graphs else model
        ids = torch.randint(len(text.SPECIAL), 6144, (512, 128), device="cuda")
        masked = text.hide(ids, 0, 6144)

        def one(
            model: nn.Module = model,
            forward: Callable[..., Any] = forward,
            optimizer: torch.optim.Optimizer = optimizer,
            masked: text.Masked = masked,
        ) -> None:
            with training.autocast(torch.device("cuda"), True):
                loss, _ = training.masked_loss(forward, masked)
            training.descend(model, optimizer, loss, 1e-5)

        calls[kind] = one
    times = in_turn(calls, rounds, "cuda")
    for kind in kinds:
        ratio = np.array(times[kind]) / times[kinds[-1]]
        print(
            f"model {kind:>10}: {np.median(times[kind]):7.2f} ms, {np.median(ratio):.3f} of {kinds[-1]}", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="1x11:768,16x5:192,64x3:192,128x2:192,4x7:192")
    parser.add_argument("--tokens", default="256,4096")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--cases", default="visited,dense,pair", help="those to time, of these, visited first")
    parser.add_argument("--compile", action="store_true", help="on a GPU: torch.compile the layers")
    parser.add_argument(
        "--graphs", action="store_true", help="as --compile, as CUDA graphs, so that no time of the host is in it"
    )
    parser.add_argument(
        "--models", default="", help="on a GPU: layers of models to train, the last one the yardstick"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    cases = options.cases.split(",")
    ratios = [f"{name} / visited" for name in cases[1:]]
    print(f"{'layer':>10} {'tokens':>6}", *(f"{name:>8}" for name in cases), "", "   ".join(ratios))
    for shape in filter(None, options.shapes.split(",")):
        layer, _, width = shape.partition(":")
        trees, _, depth = layer.partition("x")
        layers = made(int(width), int(trees), int(depth), options.device)
        for tokens in map(int, options.tokens.split(",")):
            x = torch.randn(tokens, int(width), device=options.device).requires_grad_()
            dy = torch.randn(tokens, int(width), device=options.device)
            check(layers, x, dy)
            torch._dynamo.reset()
            calls = {}
            for name, one in ((name, layers[name]) for name in cases):
                call = torch.compile(one, dynamic=False) if options.compile or options.graphs else one
                calls[name] = lambda one=one, call=call, x=x, dy=dy: step(one, x, dy, call)
                if options.graphs:
                    calls[name] = replayed(calls[name])
            times = in_turn(calls, options.rounds, options.device)
            middle = [f"{np.median(times[name]):8.3f}" for name in times]
            ratios = [
                "{:5.2f} ({:.2f} to {:.2f})".format(
                    *np.percentile(np.array(times[name]) / times["visited"], [50, 25, 75])
                )
                for name in list(times)[1:]
            ]
            print(f"{shape:>10} {tokens:6}", *middle, " ", *ratios, flush=True)
    if options.models:
        models(options.models.split(","), options.rounds, options)


if __name__ == "__main__":
    main()
