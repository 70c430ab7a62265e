"""Known answers of the authors' own published code, in the folder that CMM_VECTORS names.

Every file whose name begins with training_fff_ or bench_bmm_ is tried: the folder may hold others than the first.
"""

import os
from functools import cache
from pathlib import Path as FilePath
from typing import Any, NamedTuple

import numpy as np
import pytest
from reference import Reference, roundoff
from strategies import TARGETS, Array, Target

FOLDER = os.environ.get("CMM_VECTORS", "")
PATTERNS = ("training_fff_*.npz", "bench_bmm_*.npz")
FILES = [file for pattern in PATTERNS if FOLDER for file in sorted(FilePath(FOLDER).rglob(pattern))]

REASON = "CMM_VECTORS does not name the folder with the known answers"
needs_vectors = pytest.mark.skipif(not FOLDER, reason=REASON)


def skipped(reason: str) -> Any:
    """A parameter in the place of files that are not there."""
    return pytest.param(FilePath(), marks=pytest.mark.skip(reason=reason), id="none")


# The authors' float32 results, summed in an order of their own: "a numpy encoder agrees to 1.5e-6; use 1e-5".
F32_TOLERANCE = 1e-5

every_file = pytest.mark.parametrize("file", FILES or [skipped(REASON)], ids=lambda file: file.stem)
every_target = pytest.mark.parametrize("target", TARGETS, ids=str)


class Vectors(NamedTuple):
    """A layer in this project's layout, tokens in rows, and the recorded answers."""

    x: Array
    w_in: Array
    w_out: Array
    bias: Array | None
    tie: str
    recorded: dict[str, Array]

    def arrays(self, dtype: Any) -> tuple[Array, Array, Array, Array | None]:
        bias = None if self.bias is None else self.bias.astype(dtype)
        return self.x.astype(dtype), self.w_in.astype(dtype), self.w_out.astype(dtype), bias


@cache
def read(file: FilePath) -> Vectors:
    with np.load(file) as archive:
        data = {name: archive[name] for name in archive.files}
    nodes = 2 ** (int(data["depth"]) + 1) - 1
    if file.name.startswith("training_fff_"):
        w_in, w_out = data["linear_in_weight"], data["linear_out_weight"].T
        bias = data.get("linear_in_bias")
    else:
        w_in, w_out, bias = data["w1s"], data["w2s"], None
    trees = len(w_in) // nodes
    assert trees == int(data.get("parallel_size", 1))
    tie = str(data.get("tie_rule", ">" if file.name.startswith("training") else ">="))
    tokens = np.ascontiguousarray(data["x"].reshape(-1, w_in.shape[1]))
    return Vectors(
        tokens,
        w_in.reshape(trees, nodes, -1),
        np.ascontiguousarray(w_out).reshape(trees, nodes, -1),
        None if bias is None else bias.reshape(trees, nodes),
        {">": "left", ">=": "right"}[tie],
        data,
    )


def rows(values: Array, vectors: Vectors) -> Array:
    """Recorded outputs, one row per token."""
    return values.reshape(len(vectors.x), -1)


@needs_vectors
@pytest.mark.parametrize("pattern", PATTERNS)
def test_folder_holds_every_kind_of_layer(pattern: str) -> None:
    assert any(file.match(pattern) for file in FILES), f"CMM_VECTORS is {FOLDER}; it should hold a {pattern}"


@every_file
def test_oracle_agrees(file: FilePath) -> None:
    """Before it judges the levels: the same paths, and outputs to float64's accuracy.

    The authors' float64 run obeys the oracle's bounds for float64, but for its GELU: z/2 (1 + erf(z / sqrt 2)) loses
    digits where erf is near -1, and is off by a few u |z|, here 8, rather than by a few ulp.
    """
    vectors = read(file)
    x, w_in, w_out, bias = vectors.arrays(np.float64)
    oracle = Reference(x, w_in, bias, w_out, vectors.tie)
    assert oracle.path.certain().all(), "the inputs were picked so that no decision is near 0"
    np.testing.assert_array_equal(oracle.path.nodes, vectors.recorded["path_nodes"])
    if "path_logits" in vectors.recorded:
        assert (np.abs(oracle.path.logits - vectors.recorded["path_logits"]) <= oracle.path.bounds).all()
    y, bound = oracle.output(oracle.path, "gelu")
    if "y_ref64" in vectors.recorded:
        tree = np.arange(len(w_in))[:, None]
        cancelled = np.einsum("bkl,bklo->bo", np.abs(oracle.path.logits), np.abs(w_out[tree, oracle.path.nodes]))
        off = np.abs(y - rows(vectors.recorded["y_ref64"], vectors))
        assert (off <= bound + 8 * roundoff(x.dtype) * cancelled).all()
    assert np.abs(y - rows(vectors.recorded["y"], vectors)).max() <= F32_TOLERANCE


@every_file
@every_target
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f32", "f64"])
def test_levels_agree(file: FilePath, target: Target, dtype: Any) -> None:
    vectors = read(file)
    x, w_in, w_out, bias = vectors.arrays(dtype)
    y, nodes, logits = target.fff(x, w_in, w_out, bias, tie=vectors.tie)
    np.testing.assert_array_equal(nodes, vectors.recorded["path_nodes"])
    Reference(x, w_in, bias, w_out, vectors.tie).check("gelu", y, nodes, logits)
    assert np.abs(y - rows(vectors.recorded["y"], vectors)).max() <= F32_TOLERANCE


TIES = [file for file in FILES if "y_if_ge" in read(file).recorded]


@pytest.mark.parametrize(
    "file", TIES or [skipped("no file with y_if_ge" if FILES else REASON)], ids=lambda file: file.stem
)
@every_target
def test_ties_go_the_other_way_when_asked(file: FilePath, target: Target) -> None:
    """In these layers logits are exactly 0; y has ties to the left, y_if_ge to the right."""
    vectors = read(file)
    y, nodes, logits = target.fff(vectors.x, vectors.w_in, vectors.w_out, vectors.bias, tie="right")
    tied = logits[..., :-1] == 0
    assert tied.any()
    assert (nodes[..., 1:] == 2 * nodes[..., :-1] + 2)[tied].all()
    assert np.abs(y - rows(vectors.recorded["y_if_ge"], vectors)).max() <= F32_TOLERANCE
    assert np.abs(y - rows(vectors.recorded["y"], vectors)).max() > 100 * F32_TOLERANCE
