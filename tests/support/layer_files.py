"""Layers in files, for the programs of libcmm/bindings; and what these must print of them, by Python.

A file has eight numbers of 64 bits: trees, depth, d_in, d_out, tokens, activation, tie, and 1 where there is a bias,
else 0. Then in float32 w_in, w_out, bias if there is one, and x. All are little-endian, in the order of C.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cmm
import numpy as np
from cmm._libcmm import ffi, lib
from cmm._native import ACTIVATIONS, TIES


@dataclass(frozen=True)
class Case:
    """A layer with random weights of a fixed seed, and its tokens."""

    trees: int
    depth: int
    d_in: int
    d_out: int
    tokens: int
    activation: str
    tie: str
    bias: bool

    def arrays(self) -> tuple[Any, ...]:
        """Return w_in, w_out, bias or None, and x, in float32. The first token is 0, so that ties are met."""
        random = np.random.default_rng(self.d_in)
        rows = self.trees, 2 ** (self.depth + 1) - 1
        w_in, w_out, bias, x = (
            random.standard_normal(shape, dtype=np.float32)
            for shape in ((*rows, self.d_in), (*rows, self.d_out), rows, (self.tokens, self.d_in))
        )
        x[:1] = 0
        bias[:, 0] = 0
        return w_in, w_out, bias if self.bias else None, x


CASES = [
    Case(2, 5, 33, 17, 7, "gelu", "left", True),
    Case(1, 11, 128, 100, 130, "gelu_tanh", "right", False),
    Case(1, 0, 1, 1, 1, "identity", "left", False),
    Case(3, 2, 1000, 5, 0, "relu", "right", True),
    Case(70, 1, 4, 3, 2, "silu", "right", True),
]


def write(case: Case, file: Path) -> None:
    w_in, w_out, bias, x = case.arrays()
    sizes = [case.trees, case.depth, case.d_in, case.d_out, case.tokens]
    sizes += [ACTIVATIONS[case.activation], TIES[case.tie], int(case.bias)]
    parts = [np.array(sizes, "<i8"), *(a.astype("<f4") for a in (w_in, w_out, bias, x) if a is not None)]
    file.write_bytes(b"".join(part.tobytes() for part in parts))


def bits(numbers: Any) -> str:
    size = numbers.dtype.itemsize
    return " ".join(f"{number:0{2 * size}x}" for number in numbers.ravel().view(f"u{size}").tolist())


def lines(case: Case) -> Iterator[str]:
    """What a program prints of a file, but for what it is refused."""
    w_in, w_out, bias, x = case.arrays()
    for name in ("float32", "float64"):
        wide: list[Any] = [None if a is None else a.astype(name) for a in (x, w_in, w_out, bias)]
        how: Any = {"activation": case.activation, "tie": case.tie, "return_path": True}
        y, nodes, logits = cmm.fff_forward(*wide, **how)
        for token in range(case.tokens):
            path = " ".join(map(str, nodes[token].ravel()))
            yield f"{name} token {token} nodes {path} logits {bits(logits[token])} y {bits(y[token])}"


def of_status(status: int) -> str:
    """A status as errors have it."""
    said = [ffi.string(say(status)).decode() for say in (lib.cmm_status_name, lib.cmm_status_message)]
    return f"{said[0]}: {said[1]}"


def refused(case: Case) -> list[str]:
    """What a program is refused, by the number of elements that an array has and should have."""
    w_in, outputs = case.arrays()[0], case.tokens * case.d_out
    return [
        f"depth 31: {of_status(lib.CMM_ERROR_DEPTH)}",
        f"threads -1: {of_status(lib.CMM_ERROR_THREADS)}",
        f"y: y has {outputs + 1} numbers; it should have {outputs}",
        f"w_in: w_in has {w_in.size - 1} numbers; it should have {w_in.size}",
    ]


def refused_shapes(case: Case) -> list[str]:
    """The same where arrays have shapes."""
    nodes, tokens, d_out = 2 ** (case.depth + 1), case.tokens, case.d_out
    return [
        "kind: x has another kind than the weights of the layer",
        f"tie 7: {of_status(lib.CMM_ERROR_TIE)}",
        "no layer: the layer was not created, or that was refused",
        f"threads -1: {of_status(lib.CMM_ERROR_THREADS)}",
        f"y: y has the shape ({d_out}, {tokens + 1}); it should have ({d_out}, {tokens})",
        f"w_in: w_in has {nodes} nodes; it should have 2**(depth+1) - 1",
    ]


def printed(errors: Callable[[Case], list[str]] = refused) -> list[str]:
    """Every line that a program prints of all files."""
    return [f"libcmm {cmm.__version__}", *(line for case in CASES for line in (*lines(case), *errors(case)))]
