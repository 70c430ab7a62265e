"""A path as input on a GPU: every level and algorithm, its own path and others; and what is no path."""

from __future__ import annotations

import itertools
from typing import Any

import cmm
import pytest
import torch
from device import fff, plan_of
from test_gpu import ROUNDOFF, WAYS, check, make, may_be_narrow

# batch, d_in, d_out, trees, depth
CASES = [
    (127, 768, 768, 1, 11),
    (1025, 64, 64, 1, 11),
    (257, 136, 264, 9, 4),
    (65, 33, 77, 3, 5),
    (300, 64, 72, 5, 7),
    (33, 24, 8, 100, 1),
    (5, 128, 64, 40, 0),
    (3, 64, 64, 2, 15),
]


def other_path(nodes: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Return another path through each tree: of random leaves."""
    depth = nodes.shape[-1] - 1
    rng = torch.Generator("cuda").manual_seed(seed)
    leaves = torch.randint(2**depth - 1, 2 ** (depth + 1) - 1, nodes.shape[:2], generator=rng, device="cuda")
    up = torch.arange(depth, -1, -1, device="cuda")
    return ((leaves[..., None] + 1 >> up) - 1).int()


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True) if a is not None)


@pytest.mark.parametrize("dtype", ROUNDOFF, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_its_own_path_gives_a_call_its_bits_and_another_is_taken(case: tuple[int, ...], dtype: torch.dtype) -> None:
    """Logits and outputs along another one are held against the oracle; ties mean nothing then."""
    arrays = make(case, dtype, with_bias=case[0] % 2 > 0)
    for level, algorithm in WAYS:
        plain = fff(*arrays, level=level, algorithm=algorithm)
        if plain is None:
            continue
        nodes = plain[1]
        for path in (nodes, nodes[..., -1].contiguous()):
            verdict: list[int] = []
            again = fff(*arrays, level=level, algorithm=algorithm, tie="right", path=path, verdict=verdict)
            if level == "cuda-bmm":  # cuBLAS promises no bits
                assert torch.equal(again[1], nodes)
            else:
                assert verdict == [-1]
                assert same(again, plain), (level, algorithm)
            alone = fff(arrays[0], arrays[1], None, arrays[3], level=level, algorithm=algorithm, path=path)
            assert torch.equal(alone[1], nodes)
        wanted = other_path(nodes)
        got = fff(*arrays, level=level, algorithm=algorithm, path=wanted)
        assert torch.equal(got[1], wanted), (level, algorithm)
        check(arrays, got, "gelu", None, narrow=may_be_narrow(arrays, algorithm))
        by_leaf = fff(*arrays, level=level, algorithm=algorithm, path=wanted[..., -1].contiguous())
        assert level == "cuda-bmm" or same(by_leaf, got)


@pytest.mark.parametrize("way", [way for way in WAYS if way[0] != "cuda-bmm"], ids=str)
def test_what_is_no_path_is_refused_before_anything_is_written(way: tuple[str, str]) -> None:
    arrays = make((300, 64, 64, 3, 5), torch.bfloat16, with_bias=False)
    if way[1].startswith("grouped"):
        dtype = torch.float32 if way[1] == "grouped" else torch.bfloat16
        arrays = make((300, 64, 64, 1, 11), dtype, with_bias=False)
    trees, depth = arrays[1].shape[0], arrays[1].shape[1].bit_length() - 1
    plain = fff(*arrays, level=way[0], algorithm=way[1])
    if plain is None:
        pytest.skip(f"{way[1]} does not do this layer")
    leaves = plain[1][..., -1].contiguous()
    wrong = []
    for token, value in ((0, 2**depth - 2), (299, 2 ** (depth + 1) - 1), (131, -1), (17, 2**31 - 1)):
        path = leaves.clone()
        path[token, trees - 1] = value
        path[token:, trees - 1] = value
        wrong.append((path, token))
    for level, token in itertools.product((0, 1, depth - 1), (0, 200)):
        path = plain[1].clone()
        path[token, trees - 1, level] += 1
        wrong.append((path, token))
    for path, token in wrong:
        verdict: list[int] = []
        y, nodes, logits = fff(*arrays, level=way[0], algorithm=way[1], path=path, verdict=verdict)
        assert verdict == [token * trees + trees - 1]
        assert bool(y.isnan().all())  # as fff() has filled it
        assert bool(logits.isnan().all())
        assert bool((nodes == -7).all())
    assert same(fff(*arrays, level=way[0], algorithm=way[1], path=leaves), plain)


@pytest.mark.parametrize(
    "algorithm", ["generic", "per_token", "small_batch", "grouped", "grouped_gemm", "dense_routed"]
)
def test_a_captured_graph_replays_with_new_paths(algorithm: str) -> None:
    """The call waits for nothing, and each replay checks the path that is there then."""
    case = (300, 64, 64, 1, 11) if algorithm.startswith("grouped") else (300, 64, 64, 3, 5)
    arrays = make(case, torch.bfloat16, with_bias=False)
    nodes = fff(*arrays)[1]
    if fff(*arrays, algorithm=algorithm) is None:
        pytest.skip(f"{algorithm} does not do this layer")
    leaves, y = nodes[..., -1].contiguous(), torch.empty_like(arrays[0])
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.graph(graph, stream=stream):
        plan_of(arrays[0], arrays[1], arrays[2], y, algorithm, leaves)()
    for seed in (1, 2):
        leaves.copy_(other_path(nodes, seed)[..., -1])
        graph.replay()
        assert torch.equal(y, fff(*arrays, algorithm=algorithm, path=leaves)[0])
    leaves[250, 0] = 0
    y.fill_(7)
    graph.replay()
    assert bool((y == 7).all())


def test_python_functions() -> None:
    x, w_in, w_out, bias = make((12, 48, 40, 3, 5), torch.float32, with_bias=True)
    x = x.reshape(2, 6, 48)
    layer = cmm.FFF(w_in, w_out, bias)
    calls = (
        lambda **how: cmm.fff_forward(x, w_in, w_out, bias, return_path=True, **how),
        lambda **how: layer(x, return_path=True, **how),
        lambda **how: (None, *cmm.cmm_forward(x, w_in, bias, **how)),
    )
    for call in calls:
        plain = call()
        nodes = plain[1]
        assert same(call(path=nodes), plain)
        assert same(call(path=nodes[..., -1]), plain)  # it is not contiguous
        for level in ("cuda", "cuda-bmm"):
            wrong = nodes.clone()
            wrong[1, 3, 2, 4] += 1
            found = wrong[1, 3, 2].tolist()
            with pytest.raises(cmm.ArgumentError) as error:
                call(path=wrong, level=level)
            assert f"path has {found} for token 9, tree 2; it should go from node 0 to a leaf, 31 to" in str(
                error.value
            )
            with pytest.raises(cmm.ArgumentError, match=r"path has [3-6] for token 0, tree 0; it should be a leaf"):
                call(path=nodes[..., 2], level=level)
    with pytest.raises(cmm.DtypeError, match=r"path has dtype torch.int64; on a GPU .* path.to\(torch.int32\)"):
        layer(x, path=nodes.long())
    with pytest.raises(cmm.ArgumentError, match="path is a torch array on the CPU and x is a torch array on GPU 0"):
        layer(x, path=nodes.cpu())
    with pytest.raises(cmm.ShapeError, match="path has shape"):
        layer(x, path=nodes[0])


# The kernels that give a token the same bits in every batch and place, each at a layer that it can do.
PROMISES = [
    ("cuda-naive", "", torch.float32, (33, 24, 2, 4)),
    ("cuda", "generic", torch.float32, (33, 24, 2, 4)),
    ("cuda", "generic", torch.bfloat16, (600, 72, 1, 4)),
    *(("cuda", algorithm, dtype, (64, 64, 1, 11))
      for algorithm in ("per_token", "small_batch", "grouped")
      for dtype in (torch.float32, torch.bfloat16, torch.float16)),
    *(("cuda", algorithm, torch.bfloat16, (128, 64, 9, 3)) for algorithm in ("per_token", "small_batch")),
    *(("cuda", "grouped_gemm", dtype, layer)
      for dtype in (torch.bfloat16, torch.float16)
      for layer in ((64, 64, 1, 11), (136, 264, 1, 7), (72, 40, 1, 13))),
    *(("cuda", "dense_routed", dtype, layer)
      for dtype in (torch.bfloat16, torch.float16)
      for layer in ((136, 264, 9, 4), (64, 72, 5, 7), (64, 64, 3, 5), (64, 64, 70, 2))),
]  # fmt: skip


@pytest.mark.parametrize(("level", "algorithm", "dtype", "layer"), PROMISES, ids=str)
def test_same_bits_in_every_batch_and_place(
    level: str, algorithm: str, dtype: torch.dtype, layer: tuple[int, ...]
) -> None:
    """One token, alone and in batches of up to 65536, first, in the middle and last."""
    arrays = make((65536, *layer), dtype, with_bias=True)
    token = arrays[0][17].clone()
    want = fff(token[None], *arrays[1:], level=level, algorithm=algorithm)
    if want is None:
        pytest.skip(f"{algorithm} needs another GPU")
    for batch in (1, 2, 3, 31, 63, 64, 65, 127, 128, 129, 132, 133, 257, 1000, 1024, 4096, 4097, 16384, 65535, 65536):
        x = arrays[0][:batch].clone()
        places = sorted({0, batch // 2, batch - 1})
        x[places] = token
        got = fff(x, *arrays[1:], level=level, algorithm=algorithm)
        for place in places:
            assert all(torch.equal(a[place], b[0]) for a, b in zip(got, want, strict=True)), (batch, place)
