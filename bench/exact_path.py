"""Count the tokens whose path with narrow rows is not float32's: none may be with a strict exact path.

    python bench/exact_path.py                    ten million random tokens, one million of the trained model
    python bench/exact_path.py --random 100000 --model 20000

Random: a layer 1x11 of width 768 (with one column of w_out, which has no part in the path), weights and tokens from a
normal distribution, in blocks of 16384.

The model: the trained one of libcmm-models, five layers of width 192 with biases. It reads crops of 128 tokens of
text, of each of which another 15 in 100 are masked or another word. Its float32 encoder computes, and each of its
layers, packed anew, gets the tokens that the encoder's own layer got. The text is at hand: this project's pages
and Python's manual, or the files that --text names.

The exit status is 1 where a strict exact path has let a token go elsewhere.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cmm
import cmm.bert
import numpy as np
from cmm.bench.machine import this_machine

Array = np.ndarray[Any, Any]
BLOCK, LENGTH, MASKED = 16384, 128, 0.15
# What is counted: the type of the rows, and the exact path. Those without show that there is something to count.
KINDS: list[tuple[str, bool | float]] = [
    ("int8", False),
    ("bfloat16", False),
    ("int8", 6.0),
    ("bfloat16", 6.0),
    ("int8", True),
    ("bfloat16", True),
]
DEPTH, WIDTH = 11, 768


@dataclass
class Count:
    """Of one kind: tokens off float32's path in some layer, logits computed again, and inner logits in all."""

    weights: str
    exact_path: bool | float
    layers: list[cmm.FFF] = field(default_factory=list)
    off: int = 0
    again: int = 0
    inner: int = 0

    def add(self, tokens: Sequence[Array], paths: Sequence[Array], threads: int) -> None:
        """Count tokens, given what each of the layers gets and float32's paths there."""
        wrong = np.zeros(len(tokens[0]), bool)
        for layer, x, path in zip(self.layers, tokens, paths, strict=True):
            _, nodes, _ = layer(x, return_path=True, threads=threads)
            wrong |= (nodes != path).any((1, 2))
            self.again += layer.recomputed or 0
            self.inner += len(x) * layer.trees * layer.depth
        self.off += int(wrong.sum())


def packed(w_in: Array, w_out: Array, bias: Array | None, weights: Any, exact_path: bool | float) -> cmm.FFF:
    return cmm.FFF(w_in, w_out, bias, weights=weights, exact_path=exact_path)


def random_tokens(tokens: int, options: argparse.Namespace, step: Callable[[int], object]) -> list[Count]:
    """Count random tokens."""
    rng = np.random.default_rng([options.seed, 0])
    nodes = (2 << DEPTH) - 1
    w_in = rng.standard_normal((nodes, WIDTH), np.float32) * np.float32(WIDTH**-0.5)
    w_out = rng.standard_normal((nodes, 1), np.float32)
    wide = cmm.FFF(w_in, w_out)
    counts = [Count(*kind, [packed(w_in, w_out, None, *kind)]) for kind in KINDS]
    for first in range(0, tokens, BLOCK):
        block = np.random.Generator(np.random.SFC64([options.seed, 1, first]))
        x = block.standard_normal((min(BLOCK, tokens - first), WIDTH), np.float32)
        _, path, _ = wide(x, return_path=True, threads=options.threads)
        for count in counts:
            count.add([x], [path], options.threads)
        step(len(x))
    return counts


def model_tokens(tokens: int, options: argparse.Namespace, step: Callable[[int], object]) -> tuple[list[Count], int]:
    """Count tokens of the trained model; return also how many of them differ in what the first layer gets."""
    model = cmm.bert.trained("fff")
    words = np.concatenate([np.array(model.tokenizer.encode(text)) for text in texts(options.text)])
    if len(words) <= LENGTH:
        raise SystemExit(f"the text has {len(words)} tokens; it should have more than {LENGTH}")
    mask, vocabulary = model.tokenizer.id_of("mask"), len(model.weights.word)
    ffns = [layer.ffn for layer in model.weights.layers]
    counts = [Count(*kind, [packed(ffn.w_in, ffn.w_out, ffn.bias, *kind) for ffn in ffns]) for kind in KINDS]
    seen: set[int] = set()
    for first in range(0, tokens, BLOCK):
        rng = np.random.default_rng([options.seed, 2, first])
        rows = -(-min(BLOCK, tokens - first) // LENGTH)
        starts = rng.integers(0, len(words) - LENGTH, rows)
        ids = words[starts[:, None] + np.arange(LENGTH)]
        other = np.where(rng.random(ids.shape) < 0.8, mask, rng.integers(0, vocabulary, ids.shape))
        ids = np.where(rng.random(ids.shape) < MASKED, other, ids)
        trace = model.trace(ids, threads=options.threads)
        assert trace.path_nodes is not None
        keep = min(BLOCK, tokens - first)
        x = [of_layer.reshape(-1, of_layer.shape[-1])[:keep] for of_layer in trace.ffn_in]
        paths = [of_layer.reshape(-1, *of_layer.shape[-2:])[:keep] for of_layer in trace.path_nodes]
        seen.update(hash(row.tobytes()) for row in x[0])
        for count in counts:
            count.add(x, paths, options.threads)
        step(keep)
    return counts, len(seen)


def texts(files: list[Path]) -> list[str]:
    """Return paragraphs."""
    if files:
        whole = [file.read_text(encoding="utf-8") for file in files]
    else:
        from pydoc_data.topics import topics

        pages = Path(__file__).parents[1]
        whole = [
            page.read_text(encoding="utf-8") for page in sorted([*pages.glob("*.md"), *pages.glob("docs/**/*.md")])
        ]
        whole += topics.values()
    return [part for text in whole for part in text.split("\n\n") if part.strip()]


def table(counts: list[Count], tokens: int) -> str:
    rows = [
        "| rows | exact path | tokens off float32's path | of | logits computed again |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for count in counts:
        exact = {False: "none", True: "strict"}.get(count.exact_path, f"{count.exact_path:g} sigmas")
        again = f"{count.again / max(1, count.inner):.2%}" if count.exact_path else ""
        rows.append(f"| {count.weights} | {exact} | {count.off} | {tokens} | {again} |")
    return "\n".join(rows)


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], object]]:
    """Give a progress bar's step; where tqdm is not installed or stderr is no terminal, it does nothing."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield lambda count: None
        return
    with tqdm(total=total, desc=what, leave=False, disable=None, unit=" tokens") as bar:
        yield bar.update


def main(arguments: list[str] | None = None) -> int:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--random", type=int, default=10_000_000, metavar="N", help="random tokens (default 10000000)"
    )
    parser.add_argument("--model", type=int, default=1_000_000, metavar="N", help="the model's (default 1000000)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of a call (default 1)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all random numbers (default 0)")
    parser.add_argument("--text", type=Path, nargs="+", default=[], metavar="FILE", help="text for the model")
    options = parser.parse_args(arguments)
    print(
        f"{this_machine().cpu}, {platform.system()}, numpy {np.__version__}, cmm {cmm.__version__}, "
        f"seed {options.seed}"
    )
    everything: list[Count] = []
    if options.random > 0:
        began = time.process_time()
        with progress("random", options.random) as step:
            counts = random_tokens(options.random, options, step)
        print(f"\nRandom tokens of 1x{DEPTH}, width {WIDTH} ({time.process_time() - began:.0f} s of CPU):\n")
        print(table(counts, options.random), flush=True)
        everything += counts
    if options.model > 0:
        began = time.process_time()
        with progress("of the model", options.model) as step:
            counts, distinct = model_tokens(options.model, options, step)
        took = time.process_time() - began
        print(f"\nTokens of the trained model, {distinct} distinct, in any of its layers ({took:.0f} s of CPU):\n")
        print(table(counts, options.model))
        everything += counts
    wrong = sum(count.off for count in everything if count.exact_path is True)
    print(f"\nstrict exact paths: {wrong} tokens elsewhere")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
