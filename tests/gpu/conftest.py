"""These tests need a GPU, PyTorch and libcmm_cuda; where one is missing they say so and are not collected."""

import sys
from pathlib import Path

import cmm

sys.path.insert(0, str(Path(__file__).parent))  # device.py
collect_ignore_glob: list[str] = []

_why = {level.name: level.reason for level in cmm.levels()}["cuda"]
try:
    import torch

    if not _why and not torch.cuda.is_available():
        _why = "PyTorch finds no GPU"
except ImportError:
    _why = _why or "PyTorch is not installed"
if _why:
    collect_ignore_glob.append("test_*.py")


def pytest_report_header() -> str:
    return f"GPU tests: {'not run: ' + _why if _why else 'run'}"
