"""The encoder of the released shape: against the same one with dense layers in PyTorch, where its time goes, loading.

    python bench/encoder.py --threads 2       needs PyTorch beside cmm
    python bench/encoder.py --load            needs 700 MB of disk, Linux, and no PyTorch

16 layers, width 768, 12 heads, vocabulary 32768, seeded random weights and tokens, float32. Ours has FFF layers 1x11,
PyTorch's dense ones of 4095 neurons, with the exact GELU in both. Each side is a process of its own, so that threads
of one that wait do not spin through the other's turn. A pass of one is followed by a pass of the other.

Before anything is timed: PyTorch's encoder must agree with ours on dense weights, so that it is the same encoder; and
our FFF layers must agree with float64 along the path that they took, which must follow the signs of its logits.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

NEURONS, VOCABULARY = 4095, 32768
PARTS = ("project", "score", "softmax", "mix", "layer_norm", "feedforward")  # functions of cmm.bert.encoder
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of either side (default 1)")
    parser.add_argument("--passes", type=int, default=9, metavar="N", help="of either side (default 9)")
    parser.add_argument("--sequences", type=int, default=8, metavar="N", help="in a pass (default 8)")
    parser.add_argument("--length", type=int, default=128, metavar="N", help="tokens of a sequence (default 128)")
    parser.add_argument("--layers", type=int, default=16, metavar="N", help="of the encoder (default 16)")
    parser.add_argument("--load", action="store_true", help="measure loading from an exported folder instead")
    options = parser.parse_args()
    for name in THREAD_VARIABLES:  # both sides inherit them
        os.environ[name] = str(options.threads)
    if options.load:
        load(options)
    else:
        compare(options)


def started(side: Callable[..., None], *arguments: object) -> Connection:
    """Start a side in a fresh process."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=side, args=(there, *arguments), daemon=True).start()
    return here


def spread(seconds: list[float]) -> str:
    low, median, high = np.percentile(seconds, (25, 50, 75))
    return f"{median * 1e3:7.0f} ms, quartiles {low * 1e3:.0f} and {high * 1e3:.0f}"


# ---- against PyTorch -----------------------------------------------------------------------------------------------


def compare(options: argparse.Namespace) -> None:
    sides = {"cmm": started(cmm_side, options), "PyTorch": started(torch_side, options)}
    for pipe in sides.values():
        print(pipe.recv(), flush=True)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.passes):
        for name, pipe in sides.items():
            time.sleep(0.2)  # threads of the other side go to sleep
            pipe.send("pass")
            times[name].append(pipe.recv())
    tokens = options.sequences * options.length
    shape = f"{options.sequences} x {options.length} tokens, layers: {options.layers}"
    print(f"\n{shape}, passes of each in turn: {options.passes}, threads: {options.threads}")
    for name, found in times.items():
        print(f"  {name:8} {spread(found)}; {statistics.median(found) / tokens * 1e6:.0f} us a token")
    ratios = [theirs / ours for ours, theirs in zip(times["cmm"], times["PyTorch"], strict=True)]
    low, median, high = np.percentile(ratios, (25, 50, 75))
    print(f"  PyTorch / cmm, pass by pass: {median:.2f}, quartiles {low:.2f} and {high:.2f}")
    sides["cmm"].send("profile")
    print(sides["cmm"].recv())
    for pipe in sides.values():
        pipe.send("")


def config_of(options: argparse.Namespace) -> dict[str, object]:
    import cmm.bert

    return {**cmm.bert.ULTRAFASTBERT_1X11_LONG, "num_transformer_layers": options.layers}


def tokens_of(options: argparse.Namespace) -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCABULARY, (options.sequences, options.length))


def cmm_side(pipe: Connection, options: argparse.Namespace) -> None:
    """Serve passes of our encoder, and its profile."""
    import cmm
    import cmm.bert

    model, ids = cmm.bert.random(config_of(options)), tokens_of(options)
    error = check_layers(model, ids[:2])
    pipe.send(f"cmm {cmm.__version__}, numpy {np.__version__}: FFF layers within {error:.1e} of float64")
    while wanted := pipe.recv():
        if wanted == "profile":
            pipe.send(profile(model, ids, options))
            continue
        began = time.perf_counter()
        model(ids, threads=options.threads)
        pipe.send(time.perf_counter() - began)


def check_layers(model: object, ids: np.ndarray) -> float:
    """Compare every FFF layer with float64 along its path, and the path with its logits; return the largest error."""
    from scipy.special import ndtr

    trace = model.trace(ids)
    largest = 0.0
    for index, layer in enumerate(model.weights.layers):
        x = trace.ffn_in[index].reshape(-1, 768).astype(np.float64)
        nodes, logits = (a[index].reshape(len(x), -1) for a in (trace.path_nodes, trace.path_logits))
        exact = np.einsum("tdh,th->td", layer.ffn.w_in[0][nodes], x) + layer.ffn.bias[0][nodes]
        y = np.einsum("td,tdh->th", exact * ndtr(exact), layer.ffn.w_out[0][nodes])
        assert (nodes[:, 0] == 0).all()
        assert (nodes[:, 1:] == 2 * nodes[:, :-1] + 1 + (logits[:, :-1] > 0)).all()
        largest = max(largest, np.abs(logits - exact).max(), np.abs(trace.ffn_out[index].reshape(y.shape) - y).max())
    # Sums of 768 products of order 1 / sqrt(768): about sqrt(768) * 6e-8, and less than 768 * 6e-8 = 5e-5 in all.
    assert largest < 5e-5, largest
    return float(largest)


def torch_side(pipe: Connection, options: argparse.Namespace) -> None:
    """Serve passes of PyTorch's encoder."""
    import cmm.bert
    import torch
    import torch.nn.functional as F  # noqa: N812 (its usual name)

    torch.set_num_threads(options.threads)
    config = {**config_of(options), "intermed_type": "ff", "intermed_size": NEURONS}
    del config["intermed_depth"]
    model, ids = cmm.bert.random(config), tokens_of(options)
    weights, heads, eps = model.weights, model.config.heads, model.config.eps

    def norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, weight.shape, weight, bias, eps)

    words, positions = torch.from_numpy(weights.word), torch.from_numpy(cmm.bert.encoder.position_table(128, 768))
    first, last = (tuple(map(torch.from_numpy, n)) for n in (weights.embedding_norm, weights.final_norm))
    scale = torch.from_numpy(weights.scale)
    layers = []
    for layer in weights.layers:
        norms = [tuple(map(torch.from_numpy, n)) for n in (layer.norm1, layer.norm2)]
        w_out = np.ascontiguousarray(layer.ffn.w_out.T)  # as torch.nn.Linear has it
        layers.append((*norms, *map(torch.from_numpy, (layer.qkv, layer.dense, layer.ffn.w_in, w_out))))

    @torch.inference_mode()
    def forward(ids: torch.Tensor) -> torch.Tensor:
        batch, length = ids.shape
        x = norm(F.embedding(ids, words) + scale * positions[:length], *first)
        for norm1, norm2, qkv, dense, w_in, w_out in layers:
            split = F.linear(norm(x, *norm1), qkv).view(batch, length, heads, 3, -1).permute(3, 0, 2, 1, 4)
            context = F.scaled_dot_product_attention(*split)
            x = x + F.linear(context.transpose(1, 2).reshape(x.shape), dense)
            x = x + F.linear(F.gelu(F.linear(norm(x, *norm2), w_in)), w_out)
        return norm(x, *last)

    error = np.abs(forward(torch.from_numpy(ids[:2])).numpy() - model(ids[:2])).max()
    # Values of order 1 after 16 layers of sums of up to 4095 products: some 1e-5. Another encoder is off by 1.
    assert error < 1e-3, error
    pipe.send(f"PyTorch {torch.__version__}: agrees with ours on dense weights within {error:.1e}")
    tokens = torch.from_numpy(ids)
    forward(tokens)
    while pipe.recv():
        began = time.perf_counter()
        forward(tokens)
        pipe.send(time.perf_counter() - began)


# ---- where the time goes -------------------------------------------------------------------------------------------


def profile(model: object, ids: np.ndarray, options: argparse.Namespace) -> str:
    """Time the parts of a pass, in every thread: medians of the passes, and shares of the time of all threads."""
    from cmm.bert import encoder

    spent: list[tuple[str, float]] = []  # a list, because threads can append to one

    def timed(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **keywords: object) -> object:
            began = time.perf_counter()
            result = function(*arguments, **keywords)
            spent.append((name, time.perf_counter() - began))
            return result

        return call

    for name in ("encode", *PARTS):
        setattr(encoder, name, timed(name, getattr(encoder, name)))
    passes = []
    for _ in range(options.passes):
        spent.clear()
        model(ids, threads=options.threads)
        sums: dict[str, float] = defaultdict(float)
        for name, seconds in spent:
            sums[name] += seconds
        sums["the rest"] = sums["encode"] - sum(sums[name] for name in PARTS)
        passes.append(sums)
    lines = ["\nwhere cmm's time goes, of all threads together:"]
    for name in (*PARTS, "the rest"):
        seconds = statistics.median(one[name] for one in passes)
        share = statistics.median(one[name] / one["encode"] for one in passes)
        lines.append(f"  {name:12} {seconds * 1e3:7.1f} ms  {share:6.1%}")
    return "\n".join(lines)


# ---- loading -------------------------------------------------------------------------------------------------------


def load(options: argparse.Namespace) -> None:
    """Export a model, then load it in fresh processes."""
    import cmm.bert

    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "model"
        cmm.bert.export(cmm.bert.random(config_of(options)), exported)
        size = (exported / "model.safetensors").stat().st_size
        print(f"model.safetensors: {size / 1e6:.0f} MB")
        for _ in range(5):
            print(started(loading_side, exported).recv())


def loading_side(pipe: Connection, folder: Path) -> None:
    import cmm.bert

    def most_memory() -> int:
        """By the system's account, which counts what is mapped and was read."""
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024

    before = most_memory()
    began = time.perf_counter()
    model = cmm.bert.load(folder)
    took = time.perf_counter() - began
    memory = most_memory() - before
    size = 4 * model.parameters
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (1, 128))
    began = time.perf_counter()
    model(ids)
    first = time.perf_counter() - began
    used = f"{memory / 1e6:.0f} MB, {memory / size:.2f} times its {size / 1e6:.0f} MB"
    pipe.send(f"loaded in {took:.3f} s with {used}; first 128 tokens in {first:.2f} s more")


if __name__ == "__main__":
    main()
