"""The algorithm dense_routed: what test_gpu.py does not ask of all algorithms alike."""

from __future__ import annotations

import itertools

import pytest
import torch
from device import fff, plan_of
from test_gpu import check, make

HALVES = [torch.bfloat16, torch.float16]

pytestmark = pytest.mark.skipif(
    torch.cuda.get_device_capability() != (9, 0), reason="dense_routed is for compute capability 9.0 alone"
)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("depth", range(8))
def test_every_depth_and_number_of_trees(dtype: torch.dtype, depth: int) -> None:
    """Tiles that are full, that one tree more opens, and that hold a single one."""
    in_tile = (256, 80, 32, 16, 8, 4, 2, 1)[depth]
    for trees, (batch, d_in, d_out) in zip(
        sorted({1, in_tile, in_tile + 1, 2 * in_tile + 3}),
        ((1, 64, 256), (129, 72, 264), (257, 200, 8), (300, 8, 520)),
        strict=False,
    ):
        arrays = make((batch, d_in, d_out, trees, depth), dtype, with_bias=trees % 2 > 0, seed=trees)
        for activation, tie in (("gelu", "left"), ("silu", "right")):
            result = fff(*arrays, algorithm="dense_routed", activation=activation, tie=tie)
            assert result is not None
            check(arrays, result, activation, tie, narrow=True)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_gelu_over_its_whole_range(dtype: torch.dtype) -> None:
    """A coefficient is the activation of its logit, rounded: of every finite number of the type."""
    bits = torch.arange(65536, device="cuda").to(torch.int16).view(dtype)
    x = torch.zeros(65536, 8, dtype=dtype, device="cuda")
    x[:, 0] = torch.where(bits.isfinite(), bits, torch.zeros_like(bits))
    one = torch.zeros(1, 1, 8, dtype=dtype, device="cuda")
    one[0, 0, 0] = 1
    y, _, logits = fff(x, one, one, algorithm="dense_routed")
    assert torch.equal(logits.flatten(), x[:, 0].float())
    z = x[:, 0].double()
    want = z * torch.special.erfc(-z * 0.5**0.5) / 2
    error = (y[:, 0].double() - want).abs()
    roundoff, smallest = {torch.bfloat16: (2.0**-8, 2.0**-133), torch.float16: (2.0**-11, 2.0**-24)}[dtype]
    # of the coefficient, and of y, which is the same number; erfc of PyTorch's has errors of its own
    assert bool((error <= (roundoff + 2.0**-15) * want.abs() + smallest + 2.0**-126).all())


def test_many_tokens_of_which_most_take_one_way() -> None:
    """More than a workspace holds at a time; 90 % of the tokens are alike."""
    arrays = make((70001, 64, 64, 130, 4), torch.bfloat16, with_bias=True)
    arrays[0][torch.rand(70001, device="cuda") < 0.9] = arrays[0][0].clone()
    result = fff(*arrays, algorithm="dense_routed")
    sample = torch.arange(0, 70001, 1013, device="cuda")
    check([arrays[0][sample], *arrays[1:]], [a[sample] for a in result], "gelu", "left", narrow=True)
    alike = (arrays[0] == arrays[0][0]).all(1)
    assert alike.float().mean() > 0.85
    assert bool((result[0][alike] == result[0][0]).all())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_rows_that_no_token_visits_have_no_influence(dtype: torch.dtype) -> None:
    """The product with their coefficient, 0, is NaN: such sums are taken again. NaN of a visited row counts."""
    arrays = make((300, 64, 72, 9, 4), dtype, with_bias=False)
    arrays[0][1:] = arrays[0][0] + arrays[0][1:] * 0.05  # so that there are nodes that none visits
    plain = fff(*arrays, algorithm="dense_routed")
    visited = torch.zeros(9, 31, dtype=torch.bool, device="cuda")
    visited.scatter_(1, plain[1].long().permute(1, 0, 2).flatten(1), True)
    assert 0 < visited.sum() < visited.numel() // 2
    for array, value in itertools.product(arrays[1:3], (torch.nan, torch.inf)):
        array[~visited] = value
        again = fff(*arrays, algorithm="dense_routed")
        assert torch.equal(again[1], plain[1])
        assert torch.equal(again[2], plain[2])
        check(arrays, again, "gelu", "left", narrow=True)
    node = int(plain[1][5, 3, 4])
    arrays[2][3, node, 7] = torch.nan
    y = fff(*arrays, algorithm="dense_routed")[0]
    assert torch.equal(y.isnan()[:, 7], (plain[1][:, 3, 4] == node))
    assert not y.isnan()[:, :7].any()


def test_coefficients_that_float16_cannot_hold() -> None:
    """Above 65504, beside rows of w_out that are small enough for the sum."""
    arrays = make((130, 64, 64, 5, 3), torch.float16, with_bias=False)
    arrays[0] *= 2000
    arrays[1] *= 100
    arrays[2] *= 2.0**-12
    result = fff(*arrays, algorithm="dense_routed", activation="identity")
    assert bool((result[2].abs() > 65504).any())
    assert bool(result[0].isfinite().all())
    check(arrays, result, "identity", "left", narrow=True)


def test_a_captured_graph_replays_with_new_data() -> None:
    x, w_in, w_out, _ = make((300, 128, 128, 16, 4), torch.bfloat16, with_bias=False)
    static, y = x.clone(), torch.empty_like(x)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.graph(graph, stream=stream):
        plan_of(static, w_in, w_out, y, "dense_routed")()
    for seed in (1, 2):
        static.copy_(torch.randn(x.shape, generator=torch.Generator("cuda").manual_seed(seed), device="cuda"))
        graph.replay()
        assert torch.equal(y, fff(static, w_in, w_out, algorithm="dense_routed")[0])


@pytest.mark.parametrize("batch", [3, 300, 5000])
def test_a_call_sees_all_that_the_one_before_wrote(batch: int) -> None:
    """Its two kernels overlap with each other and with the next call's, and share a workspace."""
    x, w_in, w_out, _ = make((batch, 64, 64, 9, 4), torch.bfloat16, with_bias=False)
    w_out = w_out * 0.1  # so that nothing grows
    want = [x]
    for _ in range(8):
        want.append(fff(want[-1], w_in, w_out, algorithm="dense_routed")[0])
        torch.cuda.synchronize()
    assert all(bool(a.isfinite().all()) for a in want)
    assert not torch.equal(want[7], want[8])
    a, b, ends = x.clone(), torch.empty_like(x), [torch.empty_like(x) for _ in range(50)]
    plan = [plan_of(source, w_in, w_out, target, "dense_routed") for source, target in ((a, b), (b, a))]
    for end in ends:  # queued at once
        a.copy_(x)
        for turn in range(8):
            plan[turn % 2]()
        end.copy_(a)
    torch.cuda.synchronize()
    assert all(torch.equal(end, want[8]) for end in ends)


def test_same_bits_a_thousand_times() -> None:
    arrays = make((1025, 256, 256, 32, 4), torch.bfloat16, with_bias=True)
    first = fff(*arrays, algorithm="dense_routed")
    wrong = torch.zeros((), dtype=torch.int64, device="cuda")
    for _ in range(1000):
        y, nodes, _ = fff(*arrays, algorithm="dense_routed")
        wrong += (y.view(torch.int16) != first[0].view(torch.int16)).sum() + (nodes != first[1]).sum()
    assert wrong.item() == 0


@pytest.mark.parametrize(
    ("case", "chosen"),
    [
        ((132, 768, 768, 8, 7), True),  # 21.8 us by small_batch, 19.7 by it
        ((132, 768, 768, 6, 7), False),  # 16.3, 18.2
        ((133, 768, 768, 4, 4), True),  # 10.4 by per_token, 8.7
        ((133, 768, 768, 3, 4), False),  # 7.8, 8.7
        ((1, 768, 768, 5, 5), True),  # 10.2, 9.7
        ((1, 768, 768, 4, 5), False),  # 8.2, 9.3
        ((65536, 768, 768, 1, 5), False),  # 112, 120
        ((65536, 768, 768, 1, 7), True),  # 149, 120
        ((65536, 768, 768, 3, 8), False),  # no such tree fits in a tile
    ],
    ids=str,
)
def test_the_choice_at_its_borders(case: tuple[int, ...], chosen: bool) -> None:
    """On a GPU of 132 processors, as the rule of docs/internals/kernels.md has it; told apart by the bits."""
    if torch.cuda.get_device_properties(0).multi_processor_count != 132:
        pytest.skip("the borders are those of 132 processors")
    arrays = make(case, torch.bfloat16, with_bias=False)
    own, asked, walked = (fff(*arrays, algorithm=name) for name in ("", "dense_routed", "per_token"))
    assert (asked is None) == (case[4] > 7)
    assert torch.equal(own[0], (asked if chosen else walked)[0])
    assert asked is None or not torch.equal(asked[2], walked[2])


def test_what_it_does_not_do() -> None:
    for case in ((5, 64, 64, 2, 8), (5, 68, 64, 2, 3), (5, 64, 36, 2, 3)):
        assert fff(*make(case, torch.bfloat16, with_bias=False), algorithm="dense_routed") is None
    assert fff(*make((5, 64, 64, 2, 3), torch.float32, with_bias=False), algorithm="dense_routed") is None
