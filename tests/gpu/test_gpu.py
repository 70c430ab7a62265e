"""Every GPU level, method and dtype against the oracle of reference.py: paths, logits, outputs."""

from __future__ import annotations

import itertools
from typing import Any

import cmm
import numpy as np
import pytest
import torch
from device import METHODS, fff, to_numpy
from reference import ACTIVATIONS, Reference, dense, worst

# of what is stored
ROUNDOFF = {torch.float32: 0.0, torch.float64: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
TINY = {torch.float32: 0.0, torch.float64: 0.0, torch.bfloat16: 2.0**-133, torch.float16: 2.0**-24}
WAYS = [("cuda-naive", ""), ("cuda", ""), *(("cuda", method) for method in METHODS)]
# batch, d_in, d_out, trees, depth
CASES = [
    (127, 768, 768, 1, 11),
    (1025, 768, 768, 1, 11),
    (1, 768, 768, 1, 11),
    (0, 768, 768, 1, 11),
    (127, 1000, 72, 3, 4),
    (31, 12288, 16, 1, 3),
    (7, 24, 12288, 1, 2),
    (33, 1, 1, 1, 0),
    (65, 33, 77, 3, 5),
    (127, 300, 299, 128, 1),
    (127, 64, 128, 128, 0),
    (5, 128, 64, 3, 9),
    (300, 1024, 1024, 1, 7),
    (257, 8, 8, 1, 15),
    (2, 4, 4, 2, 20),
]


def make(case: tuple[int, ...], dtype: torch.dtype, with_bias: bool, seed: int = 0) -> list[torch.Tensor | None]:
    batch, d_in, d_out, trees, depth = case
    rng = torch.Generator("cuda").manual_seed(seed)
    nodes = 2 ** (depth + 1) - 1

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng, device="cuda")

    bias = normal(trees, nodes) * 0.5 if with_bias else None
    arrays = [normal(batch, d_in), normal(trees, nodes, d_in) * d_in**-0.5, normal(trees, nodes, d_out), bias]
    return [None if a is None else a.to(dtype) for a in arrays]


def check(arrays: list[Any], result: Any, activation: str, tie: str) -> Any:
    """Compare with the oracle; a stored y of 16 bits may be off by its own rounding besides."""
    dtype = arrays[0].dtype
    x, w_in, w_out, bias = (None if a is None else to_numpy(a) for a in arrays)
    y, nodes, logits = (None if a is None else to_numpy(a) for a in result)
    oracle = Reference(x, w_in, bias, w_out, tie)
    report = oracle.check_path(nodes, logits)
    if y is not None:
        want, bound = oracle.output(oracle.along(nodes), activation)
        bound = bound + ROUNDOFF[dtype] * (np.abs(want) + bound) + TINY[dtype]
        worst(y, want, bound.astype(np.float64), "y")
    return report


@pytest.mark.parametrize("dtype", ROUNDOFF, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_oracle(case: tuple[int, ...], dtype: torch.dtype) -> None:
    number = sum(case)
    activation, tie = ACTIVATIONS[number % 5], ("left", "right")[number % 2]
    arrays = make(case, dtype, with_bias=number % 3 > 0)
    if dtype == torch.float64 and case[0] * case[3] * (case[4] + 1) * case[1] > 4e6:
        arrays[0] = arrays[0][:31]
    same: dict[str, Any] = {}
    for level, method in WAYS:
        result = fff(*arrays, level=level, method=method, activation=activation, tie=tie)
        if result is None:
            assert method in ("walk", "wide", "group")
            continue
        check(arrays, result, activation, tie)
        alone = fff(arrays[0], arrays[1], None, arrays[3], level=level, method=method, tie=tie)
        assert alone is not None
        if method or level == "cuda-naive":
            assert torch.equal(alone[1], result[1])
            assert torch.equal(alone[2], result[2])
        else:  # without outputs another method may suit
            check(arrays, alone, activation, tie)
        if method in ("walk", "wide", "group"):
            same[method] = result
    for a, b in itertools.combinations(same.values(), 2):  # they promise each other's bits
        assert all(torch.equal(i, j) for i, j in zip(a, b, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_many_tokens(dtype: torch.dtype) -> None:
    """More tokens than group lists at a time; a sample of them by the oracle, all of them against walk."""
    arrays = make((65536 + 1025, 768, 768, 1, 11), dtype, with_bias=True)
    results = [fff(*arrays, method=method) for method in ("walk", "group")]
    assert all(torch.equal(i, j) for i, j in zip(*results, strict=True))
    sample = torch.arange(0, 65536 + 1025, 97, device="cuda")
    check([arrays[0][sample], *arrays[1:]], [a[sample] for a in results[0]], "gelu", "left")
    leaves = results[0][1][:, 0, -1].unique().numel()
    assert leaves > 1800  # of 2048


@pytest.mark.parametrize("method", ["", *METHODS])
def test_exact_ties_follow_the_rule(method: str) -> None:
    rng = torch.Generator("cuda").manual_seed(0)
    shapes = [((257, 64), -2, 3), ((1, 4095, 64), -1, 2), ((1, 4095, 8), -1, 2)]
    for dtype, tie in itertools.product(ROUNDOFF, ("left", "right")):
        arrays = [torch.randint(a, b, shape, generator=rng, device="cuda").to(dtype) for shape, a, b in shapes]
        result = fff(*arrays, method=method, activation="relu", tie=tie)
        if result is None:
            continue
        report = check([*arrays, None], result, "relu", tie)
        assert report.aside == 0
        assert (result[2][..., :-1] == 0).float().mean() > 0.03


@pytest.mark.parametrize("method", ["", *METHODS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_that_no_token_visits_have_no_influence(dtype: torch.dtype, method: str) -> None:
    arrays = make((300, 64, 64, 1, 11), dtype, with_bias=False)
    plain = fff(*arrays, method=method)
    if plain is None:
        pytest.skip(f"{method} does not do this layer")
    visited = torch.zeros(4095, dtype=torch.bool, device="cuda")
    visited[plain[1].flatten().long()] = True
    for array in arrays[1:3]:
        array[0, ~visited] = torch.nan
    again = fff(*arrays, method=method)
    assert all(torch.equal(i, j) for i, j in zip(plain, again, strict=True))
    arrays[0][5] = torch.nan  # NaN goes left under both rules
    for tie in ("left", "right"):
        nodes = fff(*arrays, method=method, tie=tie)[1]
        assert nodes[5, 0].tolist() == [2**level - 1 for level in range(12)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("batch", [3, 127, 1025, 8192])
def test_same_bits_again_and_beside_other_work(dtype: torch.dtype, batch: int) -> None:
    arrays = make((batch, 768, 768, 1, 11), dtype, with_bias=True)
    first = fff(*arrays)
    other = torch.cuda.Stream()
    a = torch.randn(2048, 2048, device="cuda")
    wrong = torch.zeros((), dtype=torch.int64, device="cuda")
    for _ in range(1000):
        with torch.cuda.stream(other):
            a @ a
        y, nodes, _ = fff(*arrays)
        wrong += (y.view(torch.int16) != first[0].view(torch.int16)).sum() + (nodes != first[1]).sum()
    assert wrong.item() == 0


def test_two_streams_at_once() -> None:
    arrays = make((8192, 768, 768, 1, 11), torch.float32, with_bias=False)
    halves = [[arrays[0][:4096], *arrays[1:]], [arrays[0][4096:], *arrays[1:]]]
    want = [fff(*half)[0] for half in halves]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in halves]
    for _ in range(20):
        got = []
        for half, stream in zip(halves, streams, strict=True):
            with torch.cuda.stream(stream):
                got.append(fff(*half)[0])
        torch.cuda.synchronize()
        assert all(torch.equal(i, j) for i, j in zip(got, want, strict=True))


@pytest.mark.parametrize("batch", [1, 127, 1025, 8192])
def test_a_captured_graph_replays_with_new_data(batch: int) -> None:
    x, w_in, w_out, _ = make((batch, 768, 768, 1, 11), torch.float32, with_bias=False)
    static, y = x.clone(), torch.empty_like(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        cmm.fff_forward(static, w_in, w_out, out=y)
    for seed in (1, 2):
        static.copy_(torch.randn(x.shape, generator=torch.Generator("cuda").manual_seed(seed), device="cuda"))
        graph.replay()
        assert torch.equal(y, cmm.fff_forward(static, w_in, w_out))


@pytest.mark.parametrize("level", ["cuda-naive", "cuda-bmm", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_python_functions(level: str, dtype: torch.dtype) -> None:
    if level == "cuda-bmm" and dtype == torch.bfloat16:
        with pytest.raises(cmm.DtypeError, match="bfloat16"):
            cmm.fff_forward(*make((3, 8, 8, 1, 2), dtype, False)[:3], level=level)
        return
    x, w_in, w_out, bias = make((129, 48, 40, 3, 5), dtype, with_bias=True)
    for activation in ACTIVATIONS:
        result = cmm.fff_forward(x, w_in, w_out, bias, level=level, activation=activation, return_path=True)
        check([x, w_in, w_out, bias], result, activation, "left")
    assert all(torch.equal(i, j) for i, j in zip(cmm.cmm(x, w_in, bias, level=level), result[1:], strict=True))
    out = torch.empty(129, 40, dtype=dtype, device="cuda")
    assert cmm.FFF(w_in, w_out, bias, activation="identity")(x, level=level, out=out) is out
    assert torch.equal(out, result[0])
    w1, w2, b = w_in[0], w_out[0], bias[0]
    for activation in ACTIVATIONS:
        y = cmm.ff_forward(x, w1, w2, b, level=level, activation=activation)
        want, bound = dense(*(to_numpy(a) for a in (x, w1, w2, b)), activation)
        worst(to_numpy(y), want, bound + ROUNDOFF[dtype] * (np.abs(want) + bound) + TINY[dtype], "y")


def test_cupy_and_jax_without_a_copy() -> None:
    cupy, jax = pytest.importorskip("cupy"), pytest.importorskip("jax")
    tensors = make((65, 48, 40, 1, 5), torch.float32, with_bias=True)
    want = cmm.fff_forward(*tensors)
    arrays = [cupy.from_dlpack(t) for t in tensors]
    out = cupy.empty((65, 40), "float32")
    with cupy.cuda.Stream(non_blocking=True) as stream:
        assert cmm.fff_forward(*arrays, out=out) is out
        y, _, _ = cmm.fff_forward(*arrays, return_path=True)
        stream.synchronize()
    assert isinstance(y, cupy.ndarray)
    assert np.array_equal(cupy.asnumpy(y), to_numpy(want))
    assert np.array_equal(cupy.asnumpy(out), to_numpy(want))
    seen: list[int] = []
    library = cmm._foreign.library_at(cmm._foreign.Place("cupy", 2, 0))
    for array in arrays:
        seen.append(library.pointer(library.contiguous("x", array)))
    assert seen == [t.data_ptr() for t in tensors]
    arrays = [jax.numpy.from_dlpack(t) for t in tensors]
    library = cmm._foreign.library_at(cmm._foreign.Place("jax", 2, 0))
    for array in arrays:
        assert library.pointer(library.contiguous("x", array)) == array.unsafe_buffer_pointer()
    y = cmm.fff_forward(*arrays)
    assert isinstance(y, jax.Array)
    assert np.array_equal(np.asarray(y), to_numpy(want))


def test_refusals() -> None:
    x, w_in, w_out, _ = make((5, 8, 8, 1, 2), torch.float32, with_bias=False)
    for wrong, match in (
        ((x.cpu(), w_in, w_out), "x is a torch array on the CPU|w_in is a torch array on GPU"),
        ((x, w_in.cpu().numpy(), w_out), "w_in is a NumPy array"),
        ((x, w_in.clone().requires_grad_(), w_out), "w_in requires grad"),
    ):
        with pytest.raises(cmm.ArgumentError, match=match):
            cmm.fff_forward(*wrong)
    with pytest.raises(cmm.DtypeError, match="should be the same"):
        cmm.fff_forward(x.half(), w_in, w_out)
    with pytest.raises(cmm.DtypeError, match="int32"):
        cmm.fff_forward(x.int(), w_in, w_out)
    with pytest.raises(cmm.LevelError, match="for arrays on a GPU"):
        cmm.fff_forward(x, w_in, w_out, level="native")
    with pytest.raises(cmm.ShapeError, match="x has shape"):
        cmm.fff_forward(x[:, :4], w_in, w_out)
    with pytest.raises(cmm.UnusableError, match="arrays on a GPU"):
        cmm.fff_forward(*(a.cpu().numpy() for a in (x, w_in, w_out)), level="cuda")


def test_pytorch_on_the_cpu() -> None:
    x, w_in, w_out, bias = (a.cpu() for a in make((5, 8, 8, 1, 2), torch.float32, with_bias=True))
    y = cmm.fff_forward(x, w_in, w_out, bias)
    assert isinstance(y, torch.Tensor)
    assert np.array_equal(y.numpy(), cmm.fff_forward(*(a.numpy() for a in (x, w_in, w_out, bias))))
    out = torch.empty(5, 8)
    assert cmm.fff_forward(x, w_in, w_out, bias, out=out) is out
    assert torch.equal(out, y)
