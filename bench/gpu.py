"""Build, test, check and measure libcmm_cuda on this machine's GPU: ``python bench/gpu.py [STAGE ...]``.

Stages, each of some minutes at most: build, tests, sanitizers, bench; all of them where none is named. It needs a
GPU, the CUDA toolkit, CMake, PyTorch, pytest and the installed package cmm. The library that is tested is the one
that the stage build makes (in --build), else the package's own. One report in Markdown is written (--report).

Times are device times: a CUDA graph of calls over several buffers in turn, replayed; the median of replays. Inputs
and weights are random, and the paths spread over the leaves. Level cuda-naive is timed by single calls, CuPy's
by calls in a row, for it lets no cuBLAS into a graph.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
WIDTH, NEURONS = 768, 4096


def command(lines: list[str], *words: str, limit: int = 480, **variables: str) -> bool:
    """Run a command, put the end of what it says in the report, and say whether it went well."""
    start = time.monotonic()
    environment = {**os.environ, **variables}
    try:
        done = subprocess.run(words, capture_output=True, encoding="utf-8", timeout=limit, cwd=ROOT, env=environment)
        said, code = done.stdout + done.stderr, done.returncode
    except subprocess.TimeoutExpired:
        said, code = f"stopped after {limit} s", 124
    except OSError as error:  # there is no such program
        said, code = str(error), 127
    said = "\n".join(said.splitlines()[-25:])
    took = time.monotonic() - start
    lines += [f"`{' '.join(words)}`: exit {code}, {took:.0f} s", "", "```", said, "```", ""]
    print("\n".join(lines[-6:]), flush=True)
    return code == 0


def missing() -> str:
    """Return why nothing but a build can be done here, "" where all can."""
    try:
        import torch
    except ImportError as error:
        return f"PyTorch cannot be imported: {error}"
    return "" if torch.cuda.is_available() else "PyTorch finds no GPU"


def build(lines: list[str], folder: Path) -> bool:
    """Build libcmm_cuda alone."""
    options = ("-DCMM_CUDA=ON", "-DCMAKE_BUILD_TYPE=Release", "-G", "Ninja")
    return command(lines, "cmake", "-S", str(ROOT), "-B", str(folder), *options) and command(
        lines, "cmake", "--build", str(folder), "--target", "cmm_cuda"
    )


def tests(lines: list[str]) -> bool:
    """Compare every level with the oracle."""
    words = (sys.executable, "-m", "pytest", "-q", "-x", "tests/gpu", "-p", "no:cacheprovider")
    return command(lines, *words, CMM_TESTS="full")


def sanitizers(lines: list[str]) -> bool:
    """Run small layers of every kind under compute-sanitizer."""
    ok = True
    for tool in ("memcheck", "racecheck", "synccheck", "initcheck"):
        words = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9")
        program = (sys.executable, str(ROOT / "tests/gpu/small.py"))
        ok &= command(lines, *words, *program, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    return ok


# ---- measuring -----------------------------------------------------------------------------------------------------


def timed(call: Callable[[Any], object], buffers: list[Any]) -> float:
    """Return the microseconds of one call."""
    import torch

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for buffer in buffers:
            call(buffer)
    torch.cuda.synchronize()
    turns = max(1, 40 // len(buffers))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):  # the stream whose memory has been taken
        for _ in range(turns):
            for buffer in buffers:
                call(buffer)
    graph.replay()
    times = []
    for _ in range(9):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / (turns * len(buffers)))
    return statistics.median(times)


def queued(call: Callable[[], object], calls: int) -> float:
    """Return the microseconds of one of so many slow calls in a row, of the second time."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(2):
        start.record()
        for _ in range(calls):
            call()
        end.record()
        torch.cuda.synchronize()
    return float(start.elapsed_time(end)) * 1e3 / calls


def dense_calls(w1: Any, b1: Any, w2: Any) -> dict[str, Callable[[Any], object]]:
    """Return the dense layers to choose the fastest of: GELU fused by cuBLASLt (tanh form), and by itself."""
    import torch

    def fused(buffer: Any) -> object:
        return torch.mm(torch._addmm_activation(b1, buffer[0], w1.t(), use_gelu=True), w2, out=buffer[1])

    def apart(buffer: Any) -> object:
        h = torch.nn.functional.gelu(torch.nn.functional.linear(buffer[0], w1), approximate="tanh")
        return torch.mm(h, w2, out=buffer[1])

    return {"fused": fused, "apart": apart}


FORESTS = ((16, 5), (32, 4), (64, 3), (16, 7), (128, 4), (4, 9))
FOREST_TOKENS = (65536, 16384, 4096, 1024, 128)


def forests(lines: list[str]) -> None:
    """Measure forests beside the fastest dense layer with as many neurons, or up to 63 more.

    They take turns, twice, and the smaller times count.
    """
    import cmm
    import torch

    calls: dict[str, Callable[[Any], object]]
    lines += [
        "",
        f"Forests, bfloat16, width {WIDTH}, us, and dense / ours",
        "",
        "| layer | " + " | ".join(f"{tokens} tokens" for tokens in FOREST_TOKENS) + " |",
        "| --- |" + " ---: |" * len(FOREST_TOKENS),
    ]
    for trees, depth in FORESTS:
        nodes = 2 ** (depth + 1) - 1
        shape, kind = (trees, nodes, WIDTH), {"device": "cuda", "dtype": torch.bfloat16}
        w_in, w_out = (torch.randn(shape, device="cuda") * WIDTH**-0.5).to(torch.bfloat16), torch.randn(shape, **kind)
        calls = {}
        for neurons in sorted({trees * nodes, -(-trees * nodes // 64) * 64}):  # cuBLAS is slow at some numbers
            w1, w2 = (torch.randn(neurons, WIDTH, **kind) for _ in range(2))
            layers = dense_calls(w1 * WIDTH**-0.5, torch.zeros(neurons, **kind), w2)
            calls |= {f"{name} {neurons}": call for name, call in layers.items()}
        calls["ours"] = lambda b, w=(w_in, w_out): cmm.fff_forward(b[0], *w, out=b[1])
        found = []
        for tokens in FOREST_TOKENS:
            count = 8 if tokens <= 4096 else 4
            buffers = [[torch.randn(tokens, WIDTH, **kind) for _ in range(2)] for _ in range(count)]
            times = {name: timed(call, buffers) for name, call in calls.items()}
            times = {name: min(times[name], timed(call, buffers)) for name, call in calls.items()}
            ours = times.pop("ours")
            found.append(f"{ours:.1f}: {min(times.values()) / ours:.2f}x")
        lines.append(f"| {trees}x{depth} | " + " | ".join(found) + " |")
        print(lines[-1], flush=True)


def encoders(lines: list[str]) -> bool:
    """Measure passes of the released encoder beside PyTorch's; say whether bfloat16 is as fast as it should be.

    Calls in a row, as a user makes them: of ``cmm.bert`` replays of its graph. 4095 neurons are as many as 1x11 has;
    their rows have odd addresses in 16 bits, for which cuBLAS is slow, so that 4096 stand beside them.
    """
    import cmm.bert
    import cmm.torch
    import numpy as np
    import torch

    fff = cmm.bert.ULTRAFASTBERT_1X11_LONG
    dense = {key: value for key, value in fff.items() if key != "intermed_depth"} | {"intermed_type": "ff"}
    ids = np.random.default_rng(0).integers(0, 32768, (128, 128))
    tokens, kinds = torch.from_numpy(ids).cuda(), (torch.float32, torch.bfloat16, torch.float16)
    times: dict[tuple[str, torch.dtype], float] = {}
    for name, config in (("FFF 1x11", fff), *((f"dense {n}", dense | {"intermed_size": n}) for n in (4095, 4096))):
        here = cmm.bert.random(config)
        for kind in kinds:
            model = here.to("cuda", str(kind).removeprefix("torch."))
            times[f"cmm.bert, {name}", kind] = queued(lambda model=model: model(ids), 5)
            del model
        network = cmm.torch.Encoder(config).cuda().eval()
        with torch.inference_mode():
            for kind in kinds:
                network = network.to(kind)
                times[f"PyTorch, {name}", kind] = queued(lambda network=network: network(tokens), 5)
        del network
    lines += ["", "The encoder, 16 layers, 128 x 128 tokens, ms", "", "| encoder | float32 | bfloat16 | float16 |"]
    lines += ["| --- | ---: | ---: | ---: |"]
    for name in dict.fromkeys(name for name, _ in times):
        lines.append(f"| {name} | " + " | ".join(f"{times[name, kind] / 1e3:.2f}" for kind in kinds) + " |")
    print("\n".join(lines[-7:]), flush=True)
    return times["PyTorch, dense 4095", torch.bfloat16] / times["cmm.bert, FFF 1x11", torch.bfloat16] >= 4.3


DEEP = ((768, 11, (65536, 16384, 4096)), (1024, 12, (65536, 8192)), (4096, 13, (16384, 2048)))


def deep(lines: list[str]) -> None:
    """Measure one deep tree by the algorithm that is chosen and by grouped_gemm, beside the fastest dense layer."""
    import cmm
    import torch

    lines += ["", "One deep tree, bfloat16, us, and dense / ours", ""]
    lines += ["| layer | width | tokens | chosen | grouped_gemm | dense | copy x to y |", "| --- |" + " ---: |" * 6]
    kind = {"device": "cuda", "dtype": torch.bfloat16}
    for width, depth, batches in DEEP:
        shape = (1, 2 ** (depth + 1) - 1, width)
        w_in, w_out = (torch.randn(shape, device="cuda") * width**-0.5).to(torch.bfloat16), torch.randn(shape, **kind)
        w1, w2 = (torch.randn(2 ** (depth + 1), width, **kind) for _ in range(2))
        calls = dense_calls(w1 * width**-0.5, torch.zeros(len(w1), **kind), w2)
        for name, algorithm in (("chosen", None), ("asked", "grouped_gemm")):
            calls[name] = lambda b, w=(w_in, w_out), a=algorithm: cmm.fff_forward(b[0], *w, out=b[1], algorithm=a)
        calls["copy"] = lambda b: b[1].copy_(b[0])
        for tokens in batches:
            buffers = [[torch.randn(tokens, width, **kind) for _ in range(2)] for _ in range(4)]
            times = {name: timed(call, buffers) for name, call in calls.items()}
            best = min(times["fused"], times["apart"])
            found = [f"{times[name]:.1f}: {best / times[name]:.2f}x" for name in ("chosen", "asked")]
            lines.append(
                f"| 1x{depth} | {width} | {tokens} | {' | '.join(found)} | {best:.1f} | {times['copy']:.1f} |"
            )
            print(lines[-1], flush=True)


TARGETS = {("bfloat16", 65536): 7, ("bfloat16", 4096): 4.5, ("bfloat16", 128): 2.5, ("bfloat16", 1): 2.5}


def bench(lines: list[str]) -> bool:
    """Measure the table of targets."""
    import cmm
    import torch

    torch.manual_seed(0)
    lines += [
        f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}; width {WIDTH}, 1x11, {NEURONS} neurons, us; "
        f"a kernel that does nothing takes {timed(lambda _: torch.cuda._sleep(0), [None]):.2f}",
        "",
        "| dtype | tokens | dense | dense tf32 | cuda | dense/cuda | tf32/cuda | copy x to y | target |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    met = True
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        w_in, w_out = (torch.randn(4095, WIDTH, device="cuda") for _ in range(2))
        w_in, w_out = (w_in * WIDTH**-0.5).to(dtype), w_out.to(dtype)
        w1, w2 = (torch.randn(NEURONS, WIDTH, device="cuda").to(dtype) for _ in range(2))
        calls = dense_calls(w1, torch.zeros(NEURONS, device="cuda", dtype=dtype), w2)
        for tokens in (1, 16, 128, 1024, 4096, 16384, 65536):
            count = 8 if tokens <= 4096 else 4
            buffers = [
                (
                    torch.randn(tokens, WIDTH, device="cuda").to(dtype),
                    torch.empty(tokens, WIDTH, device="cuda").to(dtype),
                )
                for _ in range(count)
            ]
            ours = timed(lambda b, w=(w_in, w_out): cmm.fff_forward(b[0], *w, out=b[1]), buffers)
            copy = timed(lambda b: b[1].copy_(b[0]), buffers)
            dense = {}
            for tf32 in (False, True) if dtype == torch.float32 else (False,):
                torch.backends.cuda.matmul.allow_tf32 = tf32
                dense[tf32] = min(timed(call, buffers) for call in calls.values())
            torch.backends.cuda.matmul.allow_tf32 = False
            target = TARGETS.get((name, tokens))
            if (name, tokens) == ("float32", 65536):
                said = "50x, tf32 9x"
                met &= dense[False] / ours >= 50 and dense[True] / ours >= 9
            else:
                said = f"{target}x" if target else ""
                met &= not target or dense[False] / ours >= target
            tf32, ratio = (f"{dense[True]:.1f}", f"{dense[True] / ours:.2f}") if True in dense else ("", "")
            lines.append(
                f"| {name} | {tokens} | {dense[False]:.1f} | {tf32} | {ours:.2f} | {dense[False] / ours:.2f} "
                f"| {ratio} | {copy:.1f} | {said} |"
            )
            print(lines[-1], flush=True)
    lines += ["", "16384 tokens, float32, us", "", "| level | FFF | dense | ratio | the paper's |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    x = torch.randn(16384, WIDTH, device="cuda")
    y = torch.empty_like(x)
    for level, paper in (("cuda-naive", 117.83), ("cuda-bmm", 39.45)):
        calls = 1 if level == "cuda-naive" else 20
        tree = queued(lambda level=level: cmm.fff_forward(x, w_in, w_out, out=y, level=level), calls)
        full = queued(lambda level=level: cmm.ff_forward(x, w1, w2, out=y, level=level), calls)
        met &= full / tree >= paper
        lines.append(f"| {level} | {tree:.0f} | {full:.0f} | {full / tree:.2f} | {paper} |")
        print(lines[-1], flush=True)
    forests(lines)
    deep(lines)
    met &= encoders(lines)
    lines += ["", f"all targets met: {'yes' if met else 'no'}", ""]
    return met


def main() -> int:
    """Run the stages that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    stages = ("build", "tests", "sanitizers", "bench")
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"{', '.join(stages)} (default all)")
    parser.add_argument(
        "--build", type=Path, default=Path(tempfile.gettempdir()) / "cmm_cuda_build", help="folder of the build"
    )
    parser.add_argument("--report", type=Path, default=Path("gpu-report.md"), help="the report to write")
    options = parser.parse_args()
    chosen = options.stages or list(stages)
    lines, ok = ["# libcmm_cuda on this machine", ""], True
    for stage in stages:
        if stage not in chosen:
            continue
        lines += [f"## {stage}", ""]
        if stage == "build":
            ok &= build(lines, options.build)
        built = options.build / "libcmm/src/cuda/libcmm_cuda.so"
        if built.exists():
            os.environ["CMM_CUDA_LIBRARY"] = str(built)
        if stage != "build" and (why := missing()):
            print(f"{stage}: not run: {why}", file=sys.stderr)
            lines += [f"not run: {why}", ""]
            ok = False
        elif stage != "build":
            ok &= {"tests": tests, "sanitizers": sanitizers, "bench": bench}[stage](lines)
        options.report.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
