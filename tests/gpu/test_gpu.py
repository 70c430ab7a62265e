"""Every GPU level, algorithm and dtype against the oracle of reference.py: paths, logits, outputs."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import cmm
import numpy as np
import pytest
import torch
from cmm._backend import cuda
from cmm._native import NULL, ffi, lib
from device import ALGORITHMS, DTYPES, fff, plan_of, to_numpy
from reference import ACTIVATIONS, Path, Reference, dense, worst

# of what is stored
ROUNDOFF = {torch.float32: 0.0, torch.float64: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
TINY = {torch.float32: 0.0, torch.float64: 0.0, torch.bfloat16: 2.0**-133, torch.float16: 2.0**-24}
NARROW = ("grouped_gemm", "dense_routed")  # coefficients are rounded to the layer's type
WAYS = [("cuda-naive", ""), ("cuda-bmm", ""), ("cuda", ""), *(("cuda", algorithm) for algorithm in ALGORITHMS)]
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


def narrowing(oracle: Reference, path: Path, activation: str, dtype: torch.dtype, off: float = 2.0**-15) -> Any:
    """Bound what rounded coefficients add to the error of an output."""
    size, rows = oracle.magnitudes(path, activation)
    smallest = TINY[dtype] + (2.0**-126 if off else 0)
    return (ROUNDOFF[dtype] + off * (1 + ROUNDOFF[dtype])) * size + smallest * rows


def check(
    arrays: list[Any], result: Any, activation: str, tie: str | None, *, narrow: bool = False, off: float = 2.0**-15
) -> Any:
    """Compare with the oracle; a stored y of 16 bits may be off by its own rounding besides.

    tie: None where the path was given, so that no logit decides.

    narrow: the coefficients, too, are rounded to the layer's type, as grouped_gemm and dense_routed do, after an
    activation that is off by so much of its value besides (grouped_gemm: 0).
    """
    dtype = arrays[0].dtype
    x, w_in, w_out, bias = (None if a is None else to_numpy(a) for a in arrays)
    y, nodes, logits = (None if a is None else to_numpy(a) for a in result)
    oracle = Reference(x, w_in, bias, w_out, tie or "left")
    if tie is None:
        own, report = oracle.along(nodes), None
        worst(logits, own.logits, own.bounds, "logits")
    else:
        report = oracle.check_path(nodes, logits)
    if y is not None:
        path = oracle.along(nodes)
        want, bound = oracle.output(path, activation)
        if narrow:
            bound = bound + narrowing(oracle, path, activation, dtype, off)
        bound = bound + ROUNDOFF[dtype] * (np.abs(want) + bound) + TINY[dtype]
        worst(y, want, bound.astype(np.float64), "y")
    return report


def may_be_narrow(arrays: list[Any], algorithm: str) -> bool:
    """Whether the algorithm rounds coefficients, or such a one may have been chosen."""
    if arrays[0].element_size() != 2 or algorithm not in ("", *NARROW):
        return False
    if algorithm:
        return True
    own, *others = (fff(*arrays, algorithm=name) for name in ("", *NARROW))
    return any(other is not None and torch.equal(own[0], other[0]) for other in others)


@pytest.mark.parametrize("dtype", ROUNDOFF, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_oracle(case: tuple[int, ...], dtype: torch.dtype) -> None:
    number = sum(case)
    activation, tie = ACTIVATIONS[number % 5], ("left", "right")[number % 2]
    arrays = make(case, dtype, with_bias=number % 3 > 0)
    if dtype == torch.float64 and case[0] * case[3] * (case[4] + 1) * case[1] > 4e6:
        arrays[0] = arrays[0][:31]
    same: dict[str, Any] = {}
    for level, algorithm in WAYS:
        result = fff(*arrays, level=level, algorithm=algorithm, activation=activation, tie=tie)
        if result is None:
            assert algorithm in ("per_token", "small_batch", "grouped", *NARROW) or level == "cuda-bmm"
            continue
        check(arrays, result, activation, tie, narrow=may_be_narrow(arrays, algorithm))
        alone = fff(arrays[0], arrays[1], None, arrays[3], level=level, algorithm=algorithm, tie=tie)
        assert alone is not None
        if level == "cuda-bmm":
            check(arrays, alone, activation, tie)
        elif algorithm or level == "cuda-naive":
            assert torch.equal(alone[1], result[1])
            assert torch.equal(alone[2], result[2])
        else:  # without outputs another algorithm may suit
            check(arrays, alone, activation, tie)
        if algorithm in ("per_token", "small_batch", "grouped"):
            same[algorithm] = result
    for a, b in itertools.combinations(same.values(), 2):  # they promise each other's bits
        assert all(torch.equal(i, j) for i, j in zip(a, b, strict=True))


@pytest.mark.parametrize("dtype", ROUNDOFF, ids=str)
def test_every_width(dtype: torch.dtype) -> None:
    """Of 1 to 300: every remainder of every vector and warp."""
    for width in range(1, 301):
        arrays = make(
            (5, width, 301 - width, 1 + width % 3, 1 + width % 4), dtype, with_bias=width % 2 > 0, seed=width
        )
        for level, algorithm in WAYS:
            result = fff(*arrays, level=level, algorithm=algorithm)
            if result is not None:
                check(arrays, result, "gelu", "left", narrow=may_be_narrow(arrays, algorithm))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_alignment(dtype: torch.dtype) -> None:
    """Arrays that start anywhere, and rows of a width that no vector divides."""
    for width, offset in itertools.product((64, 67, 128), (0, 1, 2, 3)):
        plain = make((33, width, width, 1, 4), dtype, with_bias=True)
        arrays = []
        for array in plain:
            memory = torch.empty(array.numel() + 4, dtype=dtype, device="cuda")
            moved = memory[offset : offset + array.numel()].view(array.shape)
            arrays.append(moved.copy_(array))
        for level, algorithm in WAYS:
            result = fff(*arrays, level=level, algorithm=algorithm)
            if result is not None:
                check(arrays, result, "gelu", "left", narrow=may_be_narrow(arrays, algorithm))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("batch", [65536, 65536 + 1025])
def test_many_tokens(dtype: torch.dtype, batch: int) -> None:
    """As many tokens as group lists at a time, and more; a sample of them by the oracle."""
    arrays = make((batch, 768, 768, 1, 11), dtype, with_bias=True)
    sample = torch.arange(0, batch, 97, device="cuda")
    bits = []
    for level, algorithm in WAYS:
        result = fff(*arrays, level=level, algorithm=algorithm)
        if result is None:
            continue
        narrow = dtype == torch.bfloat16 and algorithm in ("", *NARROW)
        check([arrays[0][sample], *arrays[1:]], [a[sample] for a in result], "gelu", "left", narrow=narrow)
        if algorithm in ("per_token", "small_batch", "grouped"):
            bits.append(result)
        leaves = result[1][:, 0, -1].unique().numel()
        assert leaves > 1800  # of 2048
    assert len(bits) == 3
    assert all(torch.equal(i, j) for other in bits[1:] for i, j in zip(bits[0], other, strict=True))


@pytest.mark.parametrize("trees", [1, 3, 128])
def test_paths_are_those_of_the_cpu(trees: int) -> None:
    """Except where a decision is inside its bound; both are held against float64 besides."""
    x, w_in, w_out, bias = make((1025, 768, 64, trees, 4), torch.float32, with_bias=True)
    plain = [to_numpy(a) for a in (x, w_in, w_out, bias)]
    _, nodes, _ = cmm.fff_forward(*plain, return_path=True)
    certain = Reference(plain[0], plain[1], plain[3], plain[2]).path.certain()
    assert certain.mean() > 0.99
    for level, algorithm in WAYS:
        result = fff(x, w_in, w_out, bias, level=level, algorithm=algorithm)
        if result is not None:
            same = (to_numpy(result[1]) == nodes).all(-1)
            assert same[certain].all()


def status_of(arrays: list[Any], workspace: int, size: int, stream: int = 0) -> str:
    x, w_in, w_out, _ = arrays
    y = torch.empty(len(x), w_out.shape[2], dtype=x.dtype, device="cuda")
    layer = (DTYPES[x.dtype], 0, 0, 3, 1, x.shape[1], w_out.shape[2], w_in.data_ptr(), 0, w_out.data_ptr())
    how = (ffi.new("char[]", b"cuda-naive"), NULL, stream, workspace, size)
    call = lib.cmm_py_cuda_fff(*layer, *how, len(x), x.data_ptr(), y.data_ptr(), 0, 0, 0, 0, True, NULL)
    return ffi.string(lib.cmm_status_name(call)).decode().removeprefix("CMM_ERROR_")


def test_workspaces_that_will_not_do() -> None:
    arrays = make((100, 8, 8, 1, 3), torch.bfloat16, with_bias=False)
    memory = torch.empty(8192, dtype=torch.uint8, device="cuda")
    at = memory.data_ptr()
    assert at % 256 == 0
    assert status_of(arrays, at, 3200) == "CMM_OK"
    assert status_of(arrays, 0, 3200) == "WORKSPACE_NULL"
    assert status_of(arrays, at + 16, 3200) == "WORKSPACE_ALIGN"
    assert status_of(arrays, at, 3199) == "WORKSPACE_SIZE"
    assert status_of(arrays, arrays[0].data_ptr(), 3200) == "WORKSPACE_OVERLAP"
    torch.cuda.synchronize()


def test_a_launch_that_the_driver_refuses_is_a_status() -> None:
    """Here on the default stream, while a stream that it would wait for is captured."""
    cupy = pytest.importorskip("cupy")
    arrays = make((100, 8, 8, 1, 3), torch.float32, with_bias=False)
    stream = cupy.cuda.Stream(non_blocking=False)
    with stream:
        stream.begin_capture()
        try:
            assert status_of(arrays, 0, 0) == "CUDA_LAUNCH"
        finally:
            with contextlib.suppress(Exception):  # the capture was spoilt
                stream.end_capture()
    assert status_of(arrays, 0, 0) == "CMM_OK"  # the error has been reported, once
    torch.cuda.synchronize()


@pytest.mark.parametrize("algorithm", ["", *ALGORITHMS])
def test_exact_ties_follow_the_rule(algorithm: str) -> None:
    rng = torch.Generator("cuda").manual_seed(0)
    shapes = [((257, 64), -2, 3), ((1, 4095, 64), -1, 2), ((1, 4095, 8), -1, 2)]
    for dtype, tie in itertools.product(ROUNDOFF, ("left", "right")):
        arrays = [torch.randint(a, b, shape, generator=rng, device="cuda").to(dtype) for shape, a, b in shapes]
        result = fff(*arrays, algorithm=algorithm, activation="relu", tie=tie)
        if result is None:
            continue
        report = check([*arrays, None], result, "relu", tie)
        assert report.aside == 0
        assert (result[2][..., :-1] == 0).float().mean() > 0.03


@pytest.mark.parametrize("algorithm", ["", *ALGORITHMS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_that_no_token_visits_have_no_influence(dtype: torch.dtype, algorithm: str) -> None:
    arrays = make((300, 64, 64, 1, 11), dtype, with_bias=False)
    plain = fff(*arrays, algorithm=algorithm)
    if plain is None:
        pytest.skip(f"{algorithm} does not do this layer")
    visited = torch.zeros(4095, dtype=torch.bool, device="cuda")
    visited[plain[1].flatten().long()] = True
    for array in arrays[1:3]:
        array[0, ~visited] = torch.nan
    again = fff(*arrays, algorithm=algorithm)
    narrow = algorithm in NARROW  # such sums are taken again, in another order
    assert all(torch.equal(i, j) for i, j in zip(plain[narrow:], again[narrow:], strict=True))
    if narrow:
        check([*arrays[:3], None], again, "gelu", "left", narrow=True)
    arrays[0][5] = torch.nan  # NaN goes left under both rules
    for tie in ("left", "right"):
        nodes = fff(*arrays, algorithm=algorithm, tie=tie)[1]
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


@pytest.mark.parametrize("algorithm", ["per_token", "small_batch", "grouped", "grouped_gemm"])
@pytest.mark.parametrize(("batch", "width"), [(8192, 8), (3, 64), (37, 64), (300, 768)])
def test_a_call_sees_all_that_the_one_before_wrote(algorithm: str, batch: int, width: int) -> None:
    """Their launches overlap, and a call reads, where its caches hold older data, what others just wrote."""
    x, w_in, w_out, _ = make((batch, width, width, 1, 9), torch.bfloat16, with_bias=False)
    w_out = w_out * 0.5  # so that nothing grows or fades
    want = [x]
    for _ in range(8):
        result = fff(want[-1], w_in, w_out, algorithm=algorithm)
        if result is None:
            pytest.skip(f"{algorithm} does not do this layer")
        want.append(result[0])
        torch.cuda.synchronize()
    assert all(bool(a.isfinite().all()) for a in want)
    assert len({bytes(a.view(torch.uint8).flatten()[:64].tolist()) for a in want}) == len(want)
    a, b, ends = x.clone(), torch.empty_like(x), [torch.empty_like(x) for _ in range(50)]
    plan = [plan_of(source, w_in, w_out, target, algorithm) for source, target in ((a, b), (b, a))]
    for end in ends:  # queued at once
        a.copy_(x)
        for turn in range(8):
            plan[turn % 2]()
        end.copy_(a)
    torch.cuda.synchronize()
    assert all(torch.equal(end, want[8]) for end in ends)


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
        if level == "cuda" and dtype == torch.bfloat16:  # may be dense_routed, neurons as trees of one node
            forest = Reference(to_numpy(x), *(to_numpy(a[:, None]) for a in (w1, b, w2)))
            bound = bound + narrowing(forest, forest.path, activation, dtype)
        worst(to_numpy(y), want, bound + ROUNDOFF[dtype] * (np.abs(want) + bound) + TINY[dtype], "y")


@pytest.mark.parametrize("name", ["torch", "cupy", "jax"])
def test_in_and_out_without_a_copy(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The kernels get the addresses of the caller's arrays, and the caller gets the array that they wrote."""
    library = pytest.importorskip(name)
    tensors = make((65, 48, 40, 1, 5), torch.float32, with_bias=True)
    if name != "torch":
        tensors = [(library if name == "cupy" else library.numpy).from_dlpack(t) for t in tensors]
    address = {
        "torch": lambda a: a.data_ptr(),
        "cupy": lambda a: a.data.ptr,
        "jax": lambda a: a.unsafe_buffer_pointer(),
    }[name]
    seen: list[list[int]] = []
    real = cuda.run_fff

    def run(library: Any, place: Any, level: Any, algorithm: Any, spec: Any, batch: Any, *arrays: Any) -> int:
        seen.append([library.pointer(a) for a in arrays[:-1]])  # the last one is a path
        return real(library, place, level, algorithm, spec, batch, *arrays)

    monkeypatch.setattr(cuda, "run_fff", run)
    x, w_in, w_out, bias = tensors
    result = cmm.fff_forward(x, w_in, w_out, bias, return_path=True)
    assert all(type(a) is type(x) for a in result)
    assert seen == [[address(a) for a in (x, w_in, bias, w_out, *result)]]


def test_cupy_and_jax_streams() -> None:
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
    arrays = [jax.numpy.from_dlpack(t) for t in tensors]
    for _ in range(
        50
    ):  # the input of a call is gone when the call returns, and its memory must not be used again yet
        y = cmm.fff_forward(arrays[0] * 1, *arrays[1:])
        noise = jax.numpy.full((65, 48), np.nan)
        assert isinstance(y, jax.Array)
        assert np.array_equal(np.asarray(y), to_numpy(want))
        del noise


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
