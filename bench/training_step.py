"""Forward and backward of a layer in PyTorch: visited nodes, all nodes, and the dense pair of as many neurons.

    python bench/training_step.py [--shapes 1x11:768,16x5:192] [--tokens 256,4096] [--rounds 9] [--threads 1]

The cases take turns in one process, on random tokens whose paths spread over the leaves; before they are timed their
gradients are compared. Printed are medians in ms, and the medians and quartiles of the ratios of each round.
"""

import argparse
import time

import cmm.torch
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


class Pair(nn.Module):
    """Two products and a GELU: a dense layer of as many neurons."""

    def __init__(self, width: int, neurons: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, neurons), nn.Linear(neurons, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(functional.gelu(self.first(x)))


def step(layer: nn.Module, x: Tensor, dy: Tensor) -> None:
    layer.zero_grad(set_to_none=True)
    x.grad = None
    layer(x).backward(dy)


def made(width: int, trees: int, depth: int) -> dict[str, nn.Module]:
    visited = cmm.torch.FFF(width, trees, depth, backward="visited")
    nn.init.normal_(visited.linear_in.weight, std=width**-0.5)
    nn.init.normal_(visited.linear_out.weight, std=width**-0.5)
    dense = cmm.torch.FFF(width, trees, depth, backward="dense")
    dense.load_state_dict(visited.state_dict())
    return {"visited": visited, "dense": dense, "pair": Pair(width, trees * visited.nodes)}


def check(layers: dict[str, nn.Module], x: Tensor, dy: Tensor) -> None:
    """Both ways have the same gradients, but for rounding."""
    found = []
    for name in ("visited", "dense"):
        step(layers[name], x, dy)
        assert x.grad is not None
        found.append([x.grad, *(parameter.grad for parameter in layers[name].parameters())])
    for one, other in zip(*found, strict=True):
        assert float((one - other).abs().max()) < 1e-3 * float(other.abs().max()), "the gradients differ"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="1x11:768,16x5:192,64x3:192,128x2:192,4x7:192")
    parser.add_argument("--tokens", default="256,4096")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(f"{'layer':>10} {'tokens':>6} {'visited':>8} {'dense':>8} {'pair':>8}  dense / visited   pair / visited")
    for shape in options.shapes.split(","):
        layer, _, width = shape.partition(":")
        trees, _, depth = layer.partition("x")
        layers = made(int(width), int(trees), int(depth))
        for tokens in map(int, options.tokens.split(",")):
            x = torch.randn(tokens, int(width)).requires_grad_()
            dy = torch.randn(tokens, int(width))
            check(layers, x, dy)
            times: dict[str, list[float]] = {name: [] for name in layers}
            for _ in range(options.rounds):
                for name, one in layers.items():
                    start = time.perf_counter()
                    step(one, x, dy)
                    times[name].append((time.perf_counter() - start) * 1e3)
            middle = [f"{np.median(times[name]):8.2f}" for name in layers]
            ratios = [
                "{:5.2f} ({:.2f} to {:.2f})".format(
                    *np.percentile(np.array(times[name]) / times["visited"], [50, 25, 75])
                )
                for name in ("dense", "pair")
            ]
            print(f"{shape:>10} {tokens:6}", *middle, " ", *ratios, flush=True)


if __name__ == "__main__":
    main()
