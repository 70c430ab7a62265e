"""The library libcmm_cuda, built with CUDA 13, which ``cmm`` looks for here. Nothing is loaded by importing this."""

from pathlib import Path

__version__ = "0.2.0"

#: The library.
LIBRARY = Path(__file__).with_name("libcmm_cuda.so")
