"""The benchmark of the encoder runs, checks before it times, and says what it should. One layer, for speed."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "bench" / "encoder.py"


def run(*options):
    command = [sys.executable, SCRIPT, "--layers", "1", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout


@pytest.mark.full
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch, the baseline, is not installed")
def test_against_pytorch():
    said = run("--sequences", "3", "--length", "9", "--passes", "2", "--threads", "2")
    assert float(re.search(r"FFF layers within (\S+) of float64", said)[1]) < 5e-5
    assert float(re.search(r"agrees with ours on dense weights within (\S+)", said)[1]) < 1e-3
    assert "3 x 9 tokens, layers: 1, passes of each in turn: 2, threads: 2" in said
    assert float(re.search(r"PyTorch / cmm, pass by pass: (\S+),", said)[1]) > 0
    shares = [float(share) for share in re.findall(r"(\d+\.\d)%$", said, re.MULTILINE)]
    assert len(shares) == 7
    assert sum(shares) == pytest.approx(100, abs=1)  # of two passes the medians are means; rounded to 0.1 each


@pytest.mark.full
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
def test_loading():
    said = run("--load")
    assert re.search(r"model\.safetensors: 1\d\d MB", said)
    memory = re.findall(r"loaded in \S+ s with \d+ MB, (\S+) times its 1\d\d MB", said)
    assert len(memory) == 5
    assert all(float(times) <= 1.1 for times in memory)  # the target, which no other process changes
