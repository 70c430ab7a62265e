"""No kernel touches memory outside its arrays: every array lies between two pages that no one may touch.

Once each array ends right before such a page, once it begins right after one. A stray access ends the process, so the
work is done in another one, which this file is when it is run as a program: ``python test_guard_pages.py LEVEL ISA
METHOD``.
"""

import ctypes
import faulthandler
import mmap
import os
import subprocess
import sys
from typing import Any

import direct
import numpy as np
import pytest
from strategies import DTYPES, SMALL, TARGETS, Array, Case, Target

# For this file as a program: pytest has put the folder of the modules that tests share in the path.
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

PAGE = mmap.PAGESIZE
PROT_NONE = 0

# Widths at, below and above every multiple of a vector, and some far from any.
SAMPLE = sorted(
    {w for v in (4, 8, 16, 32, 64, 128, 256) for w in (v - 1, v, v + 1)} | {1, 2, 6, 23, 100, 187, 299, 300}
)
WIDTHS = SAMPLE if SMALL else range(1, 301)


class Arena:
    """Memory for one array at a time, between two pages that no one may touch."""

    def __init__(self, size: int) -> None:
        inner = -(-size // PAGE) * PAGE
        self.memory = mmap.mmap(-1, inner + 2 * PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        mprotect = ctypes.CDLL(None, use_errno=True).mprotect
        mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for guard in (start, start + PAGE + inner):
            if mprotect(guard, PAGE, PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect")
        self.inner = np.frombuffer(self.memory, np.uint8, inner, PAGE)

    def array(self, shape: tuple[int, ...], dtype: Any, at_end: bool) -> Array:
        """Return an array of NaN (or -1) that touches the upper guard, or the lower one."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        assert size <= len(self.inner)
        part = self.inner[len(self.inner) - size :] if at_end else self.inner[:size]
        result: Array = part.view(dtype).reshape(shape)
        result.fill(-1 if np.issubdtype(dtype, np.integer) else np.nan)
        return result

    def copy(self, array: Array, at_end: bool) -> Array:
        copy = self.array(array.shape, array.dtype, at_end)
        copy[...] = array
        return copy


def try_layer(target: Target, arenas: list[Arena], case: Case, dtype: Any, with_bias: bool) -> None:
    """FFF with its path and without, CMM for nodes and logits and for either; each array at each guard."""
    arrays = case.arrays(dtype, with_bias)
    path = case.batch, case.trees, case.depth + 1
    how: dict[str, Any] = target._asdict()
    for at_end in (True, False):
        x, w_in, w_out, bias = (
            None if a is None else arena.copy(a, at_end) for arena, a in zip(arenas, arrays, strict=False)
        )
        assert x is not None
        assert w_in is not None
        y = arenas[4].array((case.batch, case.d_out), dtype, at_end)
        nodes = arenas[5].array(path, np.int32, at_end)
        logits = arenas[6].array(path, dtype, at_end)
        direct.fff(x, w_in, bias, w_out, y, nodes, logits, **how, activation="silu")
        assert np.isfinite(y).all()
        assert np.isfinite(logits).all()
        assert (nodes >= 0).all()
        y.fill(np.nan)
        direct.fff(x, w_in, bias, w_out, y, None, None, **how, threads=2)
        assert np.isfinite(y).all()
        direct.fff(x, w_in, bias, None, None, nodes, logits, **how)
        direct.fff(x, w_in, bias, None, None, nodes, None, **how)
        direct.fff(x, w_in, bias, None, None, None, logits, **how)
        if case.depth == 0:
            w_out = arenas[2].copy(arrays[2][:, 0], at_end)
            w_in = arenas[1].copy(arrays[1][:, 0], at_end)
            bias = None if bias is None else bias.reshape(-1)
            y.fill(np.nan)
            direct.ff(x, w_in, bias, w_out, y, **how)
            assert np.isfinite(y).all()


def try_all(target: Target) -> int:
    """Every width, on either side; both dtypes; trees deep and shallow; then a layer larger than the caches."""
    arenas = [Arena(1 << 22) for _ in range(7)]
    done = 0
    for dtype in DTYPES:
        for width in WIDTHS:
            other = 301 - width
            # Batches and trees that are no multiples of a tile, and just one token.
            for case in (
                Case(batch=1 + 6 * (width % 2), d_in=width, d_out=other, trees=2, depth=3),
                Case(batch=21, d_in=width, d_out=other, depth=2 + width % 3),
                Case(batch=5, d_in=width, d_out=other, trees=9, depth=width % 2),
            ):
                try_layer(target, arenas, case, dtype, with_bias=width % 3 != 0)
                done += 1
    if not SMALL:
        large = Case(batch=515, d_in=300, d_out=767, depth=11)
        arenas = [Arena(2 * large.nodes * large.d_out * 8) for _ in range(7)]
        for dtype in DTYPES:
            try_layer(target, arenas, large, dtype, with_bias=True)
            done += 1
    return done


@pytest.mark.sample(5)
@pytest.mark.skipif(os.name != "posix", reason="the guards are made with mprotect")
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_no_access_outside_any_array(target: Target) -> None:
    run = subprocess.run(
        [sys.executable, __file__, *target],
        capture_output=True,
        text=True,
        timeout=300,
        env=ENVIRONMENT,
    )
    assert run.returncode == 0, f"exit status {run.returncode}\n{run.stdout}{run.stderr}"
    assert int(run.stdout) >= 2 * 3 * len(WIDTHS)


@pytest.mark.skipif(os.name != "posix", reason="the guards are made with mprotect")
@pytest.mark.parametrize("place", ["before", "after"])
def test_guards_guard(place: str) -> None:
    """One byte beyond either end of the memory ends the process."""
    run = subprocess.run(
        [sys.executable, __file__, place], capture_output=True, text=True, timeout=60, env=ENVIRONMENT
    )
    assert run.returncode < 0, run.stdout + run.stderr


def touch(place: str) -> None:
    arena = Arena(PAGE)
    start = arena.inner.ctypes.data
    print(ctypes.string_at(start, PAGE)[:0])
    ctypes.string_at(start - 1 if place == "before" else start + PAGE, 1)


if __name__ == "__main__":
    faulthandler.enable()  # says which call it was
    if len(sys.argv) == 2:
        touch(sys.argv[1])
    else:
        print(try_all(Target(*sys.argv[1:])))
