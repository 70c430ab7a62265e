"""docs/examples/train.py in one process that does what two do: ``python train_by_halves.py arguments of train.py``.

Each half of a batch has its own pass forward and back, and the gradients' halves are added: the sums that two
processes make, so the same bits, for halving a number of float32 rounds nothing.
"""

import runpy
from pathlib import Path
from typing import Any

import torch
from cmm.torch import training
from cmm.torch.data import Masked
from torch import Tensor


class _Both:
    """Two losses that are to go down alike."""

    def __init__(self, losses: list[Tensor]) -> None:
        self.losses = losses

    def backward(self) -> None:
        for loss in self.losses:
            (loss / len(self.losses)).backward()


class _ByHalves(training.Objective):
    def forward(self, masked: Masked) -> Any:
        half = len(masked.ids) // 2
        parts = [Masked(*(part[own] for part in masked)) for own in (slice(half), slice(half, None))]
        losses, plain = zip(*(super(_ByHalves, self).forward(part) for part in parts), strict=True)
        return _Both(list(losses)), torch.stack(plain).mean()


if __name__ == "__main__":
    training.Objective = _ByHalves  # type: ignore[misc]
    script = Path(__file__).parents[2] / "docs/examples/train.py"
    runpy.run_path(str(script), run_name="__main__")
