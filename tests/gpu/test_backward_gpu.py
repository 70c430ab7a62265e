"""The backward pass on a GPU: the oracle, bits from run to run, what is wanted, strides, graphs, what is no path."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from cmm._native import lib
from cuda_interface import interface
from device import DTYPES, NAMES, backward, fff, gradients_like, to_numpy
from reference import ACTIVATIONS, gamma, roundoff, worst
from test_gpu import ROUNDOFF, TINY, make

# batch, d_in, d_out, trees, depth
CASES = [
    (127, 768, 768, 1, 11),
    (1, 768, 768, 1, 11),
    (0, 768, 768, 1, 11),
    (127, 1000, 72, 3, 4),
    (31, 12288, 16, 1, 3),
    (7, 24, 4096, 1, 2),
    (33, 1, 1, 1, 0),
    (65, 33, 77, 3, 5),
    (3001, 34, 20, 1, 6),
    (127, 64, 30, 128, 1),
    (127, 64, 128, 128, 0),
    (1500, 24, 16, 30, 0),
    (700, 192, 192, 4, 7),
    (300, 192, 192, 16, 5),
    (257, 8, 8, 1, 15),
    (2, 4, 4, 2, 20),
    (5000, 8, 12, 2, 1),
]
Layer = tuple[torch.Tensor, ...]


def layer_of(case: tuple[int, ...], dtype: torch.dtype, activation: str = "gelu") -> Layer:
    """Return x, w_in, w_out, nodes, logits, dy."""
    x, w_in, w_out, bias = make(case, dtype, with_bias=True)
    w_out *= case[2] ** -0.5
    _, nodes, logits = fff(x, w_in, w_out, bias, activation=activation)
    rng = torch.Generator("cuda").manual_seed(5)
    dy = torch.randn((case[0], case[2]), generator=rng, device="cuda").to(dtype)
    return x, w_in, w_out, nodes, logits, dy


def check(layer: Layer, activation: str, got: dict[str, torch.Tensor], old_dx: float = 0.0) -> None:
    """Hold gradients against the oracle; a stored dx of 16 bits may be off by its own rounding besides.

    old_dx: what dx was added to, which is rounded once with each of the nodes that follow it.
    """
    arrays = [to_numpy(one) for one in layer]
    want = reference.backward(*arrays, activation)
    u, visits = roundoff(arrays[0].dtype), layer[3][0].numel() if len(layer[0]) else 0
    for name, found in got.items():
        value, bound = want[name]
        if name == "dx":
            dtype = layer[0].dtype
            value, bound = value + old_dx, bound + gamma(visits, u) * 1.001 * abs(old_dx)
            bound = bound + ROUNDOFF[dtype] * (np.abs(value) + bound) + TINY[dtype]
        worst(to_numpy(found), value, np.asarray(bound, np.float64), name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_within_derived_bounds(case: tuple[int, ...], dtype: torch.dtype) -> None:
    """And added to what is there where that is asked for: those of weights by one addition at the end."""
    activation = ACTIVATIONS[sum(case) % 5]
    layer = layer_of(case, dtype, activation)
    got = gradients_like(*layer[:3], torch.nan)
    assert backward(*layer, got, activation=activation) == -1
    check(layer, activation, got)
    visited = torch.zeros(layer[1].shape[:2], dtype=torch.bool, device="cuda")
    visited[torch.arange(case[3], device="cuda")[:, None], layer[3].long()] = True
    for name in NAMES[1:]:
        assert bool((got[name][~visited] == 0).all()), name
    added = gradients_like(*layer[:3], 3.0)
    assert backward(*layer, added, activation=activation, accumulate=15) == -1
    check(layer, activation, {"dx": added.pop("dx")}, old_dx=3.0)
    for name, one in added.items():
        assert torch.equal(one, got[name] + 3), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_wanted_and_the_same_bits_again(dtype: torch.dtype) -> None:
    for case in ((16384, 768, 768, 1, 11), (3001, 34, 20, 3, 6), (1500, 24, 16, 30, 0)):
        layer = layer_of(case, dtype)
        every = gradients_like(*layer[:3], torch.nan)
        backward(*layer, every)
        for _ in range(3):
            again = gradients_like(*layer[:3], torch.nan)
            backward(*layer, again)
            assert all(torch.equal(again[name], every[name]) for name in NAMES)
        for name in NAMES:
            one = {name: gradients_like(*layer[:3], torch.nan)[name]}
            backward(*layer, one)
            assert torch.equal(one[name], every[name]), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [(700, 64, 48, 2, 6), (65, 33, 77, 3, 5), (90, 16, 16, 20, 0)], ids=str)
def test_strides_and_what_lies_between_rows(case: tuple[int, ...], dtype: torch.dtype) -> None:
    """By the C interface: rows of weights and of their gradients further apart, and nothing written between them."""
    c, library = interface()
    x, w_in, w_out, nodes, logits, dy = layer = layer_of(case, dtype)
    plain = gradients_like(x, w_in, w_out, torch.nan)
    backward(*layer, plain)
    batch, d_in, d_out, trees, depth = case
    for more in (1, 8):
        wide_in, wide_out = (
            torch.nn.functional.pad(one.reshape(-1, one.shape[-1]), (0, more), value=torch.nan)
            for one in (w_in, w_out)
        )
        into = gradients_like(x, wide_in[None], wide_out[None], 7.0)
        descriptor = c.new("cmm_fff *", {
            "size": c.sizeof("cmm_fff"), "dtype": DTYPES[dtype], "depth": depth, "trees": trees, "d_in": d_in,
            "d_out": d_out, "w_in": c.cast("void *", wide_in.data_ptr()),
            "w_out": c.cast("void *", wide_out.data_ptr()), "ld_in": d_in + more, "ld_out": d_out + more,
        })  # fmt: skip
        gradients = c.new("cmm_gradients *", {
            "size": c.sizeof("cmm_gradients"), "ld_dw_in": d_in + more, "ld_dw_out": d_out + more,
            **{name: c.cast("void *", into[name].data_ptr()) for name in NAMES},
        })  # fmt: skip
        run = c.new("cmm_cuda_run *", {"size": c.sizeof("cmm_cuda_run")})
        run.stream = c.cast("void *", torch.cuda.current_stream().cuda_stream)
        needed = c.new("int64_t *")
        assert library.cmm_cuda_fff_backward_workspace(descriptor, run, batch, gradients, needed) == lib.CMM_OK
        room = torch.full((needed[0] + 4096,), 0xA5, dtype=torch.uint8, device="cuda")
        run.workspace, run.workspace_bytes = c.cast("void *", room.data_ptr()), needed[0]
        at = [c.cast("void *", one.data_ptr()) for one in (x, nodes, logits, dy)]
        status = library.cmm_cuda_fff_backward(
            descriptor, run, batch, at[0], c.cast("int32_t *", nodes.data_ptr()), *at[2:], gradients
        )
        assert status == lib.CMM_OK
        torch.cuda.synchronize()
        assert bool((room[needed[0] :] == 0xA5).all())
        for name, d in (("dw_in", d_in), ("dw_out", d_out)):
            rows = into[name][0]
            assert bool((rows[:, d:] == 7).all()), "something was written between rows"
            into[name] = rows[:, :d]
        into = {name: one.reshape(plain[name].shape) for name, one in into.items()}
        check(layer, "gelu", into)
        if more * x.element_size() % 16 == 0 or d_in % 8:  # the same kernels, which add in the same order
            assert all(torch.equal(into[name], plain[name]) for name in NAMES)


def test_what_is_not_visited_has_no_influence() -> None:
    layer = layer_of((300, 64, 64, 2, 6), torch.float32)
    x, w_in, w_out, nodes = layer[:4]
    want = gradients_like(x, w_in, w_out, torch.nan)
    backward(*layer, want)
    hidden = torch.ones(w_in.shape[:2], dtype=torch.bool, device="cuda")
    hidden[torch.arange(2, device="cuda")[:, None], nodes.long()] = False
    assert bool(hidden.any())
    w_in[hidden], w_out[hidden] = torch.nan, torch.inf
    got = gradients_like(x, w_in, w_out, torch.nan)
    backward(*layer, got)
    assert all(torch.equal(got[name], want[name]) for name in NAMES)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("case", [(300, 64, 64, 3, 5), (300, 64, 64, 3, 0)], ids=str)
def test_what_is_no_path_is_refused_before_anything_is_written(case: tuple[int, ...], dtype: torch.dtype) -> None:
    x, w_in, w_out, nodes, logits, dy = layer_of(case, dtype)
    trees, depth = case[3:]
    for token, level, value in (
        (0, depth, -1),
        (131, 0, 1),
        (299, depth, 2**31 - 1),
        (17, depth, 2 ** (depth + 1) - 1),
    ):
        wrong = nodes.clone()
        wrong[token:, trees - 1, level] = value
        into = gradients_like(x, w_in, w_out, 7.0)
        assert backward(x, w_in, w_out, wrong, logits, dy, into) == token * trees + trees - 1
        assert all(bool((one == 7).all()) for one in into.values())


def test_a_captured_graph_replays_with_new_tokens() -> None:
    """The call waits for nothing, and takes no memory."""
    layer = layer_of((3000, 64, 64, 2, 7), torch.bfloat16)
    other = layer_of((3000, 64, 64, 2, 7), torch.bfloat16)
    other[0].copy_(other[0].flip(0))
    for one in other[3:]:
        one.copy_(one.flip(0))
    into = gradients_like(*layer[:3], torch.nan)
    memory: list[torch.Tensor] = []
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        backward(*layer, into, memory=memory)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        backward(*layer, into, memory=memory)
    for tokens in (layer, other):
        want = gradients_like(*layer[:3], torch.nan)
        backward(*tokens, want)
        for one, new in zip(layer, tokens, strict=True):
            one.copy_(new)
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(into[name], want[name]) for name in NAMES)


def test_a_workspace_serves_again_and_a_smaller_one_does_not() -> None:
    """Its size hangs on the shape alone."""
    layer = layer_of((300, 64, 64, 2, 6), torch.float32)
    into = gradients_like(*layer[:3], 7.0)
    small = [torch.empty(0, dtype=torch.uint8, device="cuda")]
    backward(*layer, into, memory=small)
    assert len(small) == 2
    small[-1] = small[-1][: small[-1].numel() - 1]
    backward(*layer, into, memory=small)
    assert len(small) == 3
