"""path=: the nodes or leaves to take, instead of what the logits say."""

from collections.abc import Callable
from typing import Any

import cmm
import numpy as np
import pytest
from other_library import PLAIN, Other
from strategies import Case

CASES = [
    Case(batch=300, d_in=33, d_out=1, depth=5, seed=1),
    Case(batch=40, d_in=1, d_out=33, trees=13, depth=2, seed=3),
    Case(batch=3, d_in=40, d_out=30, trees=300, depth=0, seed=5),
    Case(batch=7, d_in=3, d_out=2, depth=15, seed=6),
    Case(batch=1, d_in=8, d_out=8, trees=3, depth=2, seed=7),
    Case(batch=0, d_in=8, d_out=8, depth=1, seed=7),
]
LEVELS = [level.name for level in cmm.levels() if level.available and not level.name.startswith("cuda")]


def same(a: Any, b: Any) -> bool:
    return all(one.tobytes() == other.tobytes() for one, other in zip(a, b, strict=True))


def calls(case: Case, dtype: Any) -> tuple[Any, list[Callable[..., Any]]]:
    """Return tokens, and the three calls that take a path; cmm_forward's results begin with no y."""
    x, w_in, w_out, bias = case.arrays(dtype, with_bias=True)
    layer = cmm.FFF(w_in, w_out, bias)
    return x, [
        lambda **how: cmm.fff_forward(x, w_in, w_out, bias, return_path=True, **how),
        lambda **how: layer(x, return_path=True, **how),
        lambda **how: (np.empty(0), *cmm.cmm_forward(x, w_in, bias, **how)),
    ]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("level", LEVELS)
def test_its_own_path_gives_a_call_its_bits(case: Case, dtype: Any, level: str) -> None:
    _, forward = calls(case, dtype)
    for call in forward:
        y, nodes, logits = call(level=level)
        assert same(call(level=level, path=nodes), (y, nodes, logits))
        assert same(call(level=level, path=nodes[..., -1].astype(np.uint64)), (y, nodes, logits))
        assert same(call(level=level, path=np.asfortranarray(nodes).astype(np.int64)), (y, nodes, logits))
        assert same(call(level=level, path=nodes.tolist() if case.batch else nodes), (y, nodes, logits))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("level", LEVELS)
def test_another_path_is_taken(case: Case, level: str) -> None:
    """Logits and outputs are those of its nodes, and ties mean nothing."""
    x, w_in, w_out, bias = case.arrays(np.float64, with_bias=True)
    leaves = np.random.default_rng(1).integers(2**case.depth - 1, 2 ** (case.depth + 1) - 1, (case.batch, case.trees))
    wanted = np.stack([(leaves + 1 >> case.depth - level) - 1 for level in range(case.depth + 1)], -1)
    how: Any = {"activation": "relu", "level": level, "return_path": True, "path": leaves}
    y, nodes, logits = cmm.fff_forward(x, w_in, w_out, bias, tie="right", **how)
    assert np.array_equal(nodes, wanted)
    trees = np.arange(case.trees)[:, None]
    visited = w_in.reshape(case.trees, -1, case.d_in)[trees, nodes]
    exact = np.einsum("bkli,bi->bkl", visited, x) + bias.reshape(case.trees, -1)[trees, nodes]
    assert np.allclose(logits, exact, rtol=0, atol=1e-11)
    out = w_out.reshape(case.trees, -1, case.d_out)[trees, nodes]
    assert np.allclose(y, np.einsum("bkl,bklo->bo", np.maximum(logits, 0), out), rtol=0, atol=1e-10)


def test_dimensions_of_any_number() -> None:
    x, w_in, w_out, _ = CASES[1].arrays(np.float32, with_bias=False)
    y, nodes, logits = cmm.fff_forward(x.reshape(2, 20, 1), w_in, w_out, return_path=True)
    assert same(cmm.fff_forward(x.reshape(2, 20, 1), w_in, w_out, return_path=True, path=nodes), (y, nodes, logits))
    one = cmm.fff_forward(x[3], w_in, w_out, path=nodes[0, 3, :, -1])
    assert one.tobytes() == y[0, 3].tobytes()


def test_out_may_share_memory_with_the_path() -> None:
    x, w_in, w_out, _ = CASES[0].arrays(np.float32, with_bias=False)
    y, nodes, _ = cmm.fff_forward(x, w_in, w_out, return_path=True)
    memory = np.ascontiguousarray(nodes[..., -1])
    out = memory.view(np.float32)
    cmm.fff_forward(x, w_in, w_out, path=memory, out=out)
    assert out.tobytes() == y.tobytes()


def test_arrays_of_another_library() -> None:
    x, w_in, w_out = (PLAIN[name].astype(np.float32) for name in ("x", "w_in", "w_out"))
    y, nodes, _ = cmm.fff_forward(x, w_in, w_out, return_path=True)
    for path in (nodes, Other(nodes)):
        got = cmm.fff_forward(Other(x), Other(w_in), Other(w_out), path=path)
        assert np.from_dlpack(got).tobytes() == y.tobytes()
    on_gpu = [Other(array, (2, 0)) for array in (x, w_in, w_out)]
    with pytest.raises(
        cmm.ArgumentError, match=r"^path is a NumPy array, and another argument is an array of another"
    ):
        cmm.fff_forward(*on_gpu, path=nodes)


# ---- wrong calls ---------------------------------------------------------------------------------------------------

X, W = np.ones((4, 2), np.float32), np.ones((3, 7, 2), np.float32)
GOOD = cmm.cmm_forward(X, W)[0]


def changed(value: int, *place: int) -> Any:
    path = GOOD.copy()
    path[place] = value
    return path


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        (
            GOOD[:3],
            cmm.ShapeError,
            r"path has shape \(3, 3, 3\); it should be \(4, 3, 3\), of nodes, or \(4, 3\), of lea",
        ),
        (GOOD[..., :2], cmm.ShapeError, "path has shape"),
        (3, cmm.ShapeError, r"path has shape \(\)"),
        (GOOD.astype(float), cmm.DtypeError, "path has dtype float64; it should be of integers, such as int32"),
        (GOOD > 2, cmm.DtypeError, "path has dtype bool"),
        (GOOD.astype("O"), cmm.DtypeError, "path has dtype object"),
        (
            changed(1, 2, 1, 0),
            cmm.ArgumentError,
            r"path has \[1, 2, 6\] for token 2, tree 1; it should go from node 0",
        ),
        (changed(3, 3, 2, 1), cmm.ArgumentError, r"path has \[0, 3, 6\] for token 3, tree 2"),
        (changed(7, 0, 0, 2), cmm.ArgumentError, r"path has \[0, 2, 7\] for token 0, tree 0; .* a leaf, 3 to 6"),
        (
            changed(7, 1, 2, 2)[..., 2],
            cmm.ArgumentError,
            "path has 7 for token 1, tree 2; it should be a leaf, 3 to 6",
        ),
        (changed(2, 1, 2, 2)[..., 2], cmm.ArgumentError, "path has 2 for token 1, tree 2"),
        (changed(-1, 1, 2, 2)[..., 2], cmm.ArgumentError, "path has -1 for token 1, tree 2"),
        (GOOD.astype(np.int64) + 2**32, cmm.ArgumentError, r"path has \[4294967296, .*\] for token 0, tree 0"),
        (changed(-5, 3, 0, 1).astype(np.int64), cmm.ArgumentError, r"path has \[0, -5, 6\] for token 3, tree 0"),
    ],
)
def test_what_is_no_path_is_refused(path: Any, error: type[Exception], message: str) -> None:
    """By token and tree, before anything is written."""
    out = np.full((4, 2), np.float32(7))
    with pytest.raises(error, match=f"^{message}"):
        cmm.fff_forward(X, W, W, path=path, out=out)
    with pytest.raises(error, match=f"^{message}"):
        cmm.FFF(W, W)(X, path=path, out=out)
    with pytest.raises(error, match=f"^{message}"):
        cmm.cmm_forward(X, W, path=path)
    assert (out == 7).all()
