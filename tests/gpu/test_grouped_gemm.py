"""The algorithm grouped_gemm: what test_gpu.py does not ask of all algorithms alike."""

from __future__ import annotations

import itertools

import pytest
import torch
from device import fff, plan_of
from test_gpu import check, make

HALVES = [torch.bfloat16, torch.float16]
NAME = "grouped_gemm"


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("depth", range(7, 14))
def test_every_depth_and_tile(dtype: torch.dtype, depth: int) -> None:
    """Batches around a warp's, a block's and a chunk's tokens; columns that end within each part of 64."""
    for number, (batch, d_in, d_out) in enumerate(
        ((1, 64, 256), (15, 8, 520), (17, 72, 264), (65, 200, 8), (129, 136, 24), (1000, 24, 48), (9000, 40, 56))
    ):
        arrays = make((batch, d_in, d_out, 1, depth), dtype, with_bias=number % 2 > 0, seed=number)
        for activation, tie in (("gelu", "left"), ("silu", "right")):
            result = fff(*arrays, algorithm=NAME, activation=activation, tie=tie)
            assert result is not None
            assert not any(bool(a.isnan().any()) for a in result)
            assert bool((result[1] >= 0).all())
            sample = torch.arange(0, batch, max(1, batch // 150), device="cuda")
            check([arrays[0][sample], *arrays[1:]], [a[sample] for a in result], activation, tie, narrow=True, off=0)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_width(dtype: torch.dtype) -> None:
    """Of 8 to 304: every remainder of a chunk of 64 columns."""
    for width in range(8, 305, 8):
        arrays = make((40, width, 312 - width, 1, 7 + width // 8 % 3), dtype, with_bias=width % 16 > 0, seed=width)
        result = fff(*arrays, algorithm=NAME)
        assert result is not None
        check(arrays, result, "gelu", "left", narrow=True, off=0)


@pytest.mark.parametrize("batch", [300, 5000, 70001])
def test_trees_out_of_balance(batch: int) -> None:
    """90 % of the tokens in one leaf; and all of them in one; more than a pass holds."""
    arrays = make((batch, 64, 64, 1, 11), torch.bfloat16, with_bias=True)
    few = torch.rand(batch, device="cuda", generator=torch.Generator("cuda").manual_seed(1)) < 0.1
    for keep in (few, torch.zeros_like(few)):
        arrays[0][~keep] = arrays[0][7].clone()
        result = fff(*arrays, algorithm=NAME)
        alike = (arrays[0] == arrays[0][7]).all(1)
        assert alike.float().mean() > 0.85
        assert all(bool((a[alike] == a[7]).all()) for a in result)
        sample = torch.cat((keep.nonzero()[:200, 0], alike.nonzero()[-3:, 0]))
        check([arrays[0][sample], *arrays[1:]], [a[sample] for a in result], "gelu", "left", narrow=True, off=0)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_rows_that_no_token_visits_have_no_influence(dtype: torch.dtype) -> None:
    """The product with their coefficient, 0, is NaN: such sums are taken again. NaN of a visited row counts."""
    arrays = make((300, 64, 72, 1, 9), dtype, with_bias=False)
    arrays[0][1:] = arrays[0][0] + arrays[0][1:] * 0.3  # so that there are nodes that none visits
    plain = fff(*arrays, algorithm=NAME)
    visited = torch.zeros(1023, dtype=torch.bool, device="cuda")
    visited[plain[1].flatten().long()] = True
    assert 20 < visited.sum() < 512
    for array, value in itertools.product(arrays[1:3], (torch.nan, torch.inf)):
        array[0, ~visited] = value
        again = fff(*arrays, algorithm=NAME)
        assert torch.equal(again[1], plain[1])
        assert torch.equal(again[2], plain[2])
        check(arrays, again, "gelu", "left", narrow=True, off=0)
    for level in (1, 9):
        node = int(plain[1][5, 0, level])
        w_out = arrays[2].clone()
        w_out[0, node, 7] = torch.nan
        y = fff(arrays[0], arrays[1], w_out, None, algorithm=NAME)[0]
        assert torch.equal(y.isnan()[:, 7], plain[1][:, 0, level] == node)
        assert not y.isnan()[:, :7].any()


def test_coefficients_that_float16_cannot_hold() -> None:
    """Above 65504, beside rows of w_out that are small enough for the sum."""
    arrays = make((130, 64, 64, 1, 8), torch.float16, with_bias=False)
    arrays[0] *= 2000
    arrays[1] *= 100
    arrays[2] *= 2.0**-12
    result = fff(*arrays, algorithm=NAME, activation="identity")
    assert bool((result[2].abs() > 65504).any())
    assert bool(result[0].isfinite().all())
    check(arrays, result, "identity", "left", narrow=True, off=0)


@pytest.mark.parametrize("batch", [300, 20000])
def test_a_captured_graph_replays_with_new_data(batch: int) -> None:
    x, w_in, w_out, _ = make((batch, 128, 128, 1, 11), torch.bfloat16, with_bias=False)
    static, y = x.clone(), torch.empty_like(x)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.graph(graph, stream=stream):
        plan_of(static, w_in, w_out, y, NAME)()
    for seed in (1, 2):
        static.copy_(torch.randn(x.shape, generator=torch.Generator("cuda").manual_seed(seed), device="cuda"))
        graph.replay()
        assert torch.equal(y, fff(static, w_in, w_out, algorithm=NAME)[0])


def test_same_bits_a_thousand_times() -> None:
    arrays = make((5000, 256, 256, 1, 11), torch.bfloat16, with_bias=True)
    first = fff(*arrays, algorithm=NAME)
    wrong = torch.zeros((), dtype=torch.int64, device="cuda")
    for _ in range(1000):
        y, nodes, _ = fff(*arrays, algorithm=NAME)
        wrong += (y.view(torch.int16) != first[0].view(torch.int16)).sum() + (nodes != first[1]).sum()
    assert wrong.item() == 0


def test_two_streams_at_once() -> None:
    arrays = make((8192, 768, 768, 1, 11), torch.bfloat16, with_bias=False)
    halves = [[arrays[0][:4096], *arrays[1:]], [arrays[0][4096:], *arrays[1:]]]
    want = [fff(*half, algorithm=NAME)[0] for half in halves]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in halves]
    for _ in range(20):
        got = []
        for half, stream in zip(halves, streams, strict=True):
            with torch.cuda.stream(stream):
                got.append(fff(*half, algorithm=NAME)[0])
        torch.cuda.synchronize()
        assert all(torch.equal(i, j) for i, j in zip(got, want, strict=True))


def test_what_it_does_not_do() -> None:
    for case in ((5, 64, 64, 2, 9), (5, 64, 64, 1, 6), (5, 64, 64, 1, 14), (5, 68, 64, 1, 9), (5, 64, 36, 1, 9)):
        assert fff(*make(case, torch.bfloat16, with_bias=False), algorithm=NAME) is None
    assert fff(*make((5, 64, 64, 1, 9), torch.float32, with_bias=False), algorithm=NAME) is None


@pytest.mark.parametrize(
    ("case", "chosen"),
    [
        ((21846, 768, 768, 1, 11), True),  # 24576 tokens: 81.5 us by per_token, 70.8 by it
        ((21845, 768, 768, 1, 11), False),  # 16384: 55.9, 64.9
        ((16384, 24, 1024, 1, 12), True),  # width 1024: 106, 92
        ((16383, 24, 1024, 1, 12), False),  # 8192: 57, 67
        ((65536, 256, 256, 1, 10), True),
        ((65536, 256, 256, 1, 9), False),  # 65536 of width 768: 157, 147
        ((65536, 256, 256, 1, 13), False),  # 272, 296
        ((2048, 1032, 1032, 1, 11), True),  # width 2048: 117 us by generic, 85 by it
        ((2047, 1032, 1032, 1, 11), False),  # 1024: 66, 82
        ((3511, 1032, 1032, 1, 13), True),  # 16384 of width 4096: 1724, 452
        ((3510, 1032, 1032, 1, 13), False),  # 2048: 223, 302
    ],
    ids=str,
)
def test_the_choice_at_its_borders(case: tuple[int, ...], chosen: bool) -> None:
    """As the rule of docs/internals/kernels.md has it; told apart by the bits."""
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("it is chosen on compute capability 9.0 alone")
    arrays = make(case, torch.bfloat16, with_bias=False)
    other = "per_token" if case[2] <= 1024 else "generic"
    own, asked, walked = (fff(*arrays, algorithm=name) for name in ("", NAME, other))
    assert torch.equal(own[0], (asked if chosen else walked)[0])
    assert not torch.equal(asked[2], walked[2])
