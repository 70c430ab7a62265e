"""A library of arrays that is one class, as much of an array as the protocols ask for, and a layer for it."""

from types import SimpleNamespace
from typing import Any

import numpy as np

RNG = np.random.default_rng(0)
SHAPES = {"x": (5, 8), "w_in": (3, 7, 8), "w_out": (3, 7, 6), "bias": (3, 7)}
PLAIN = {name: RNG.standard_normal(shape) for name, shape in SHAPES.items()}


class Other:
    """An array of some library that has DLPack; device: its type and number."""

    def __init__(self, array: Any, device: tuple[int, int] = (1, 0)) -> None:
        self.array, self.device = np.asarray(array), device
        self.shape, self.dtype = self.array.shape, self.array.dtype

    def __dlpack__(self, **how: Any) -> Any:
        return self.array.__dlpack__(**how)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __array_namespace__(self) -> Any:
        return SimpleNamespace(from_dlpack=lambda array: Other(np.from_dlpack(array)))
