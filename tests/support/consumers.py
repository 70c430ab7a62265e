"""Where users find libcmm: installed by CMake, and inside the Python package."""

from pathlib import Path

import pytest


def packaged() -> Path:
    """Return the folder of the installed Python package, which holds libcmm, its header and its packages."""
    cmm = pytest.importorskip("cmm", reason="the Python package is not installed")
    return Path(cmm.get_include()).parent


def library_folder(prefix: Path) -> Path:
    """Return the folder of libcmm, which CMake calls lib, lib64 or lib/ARCHITECTURE."""
    (folder,) = {file.parent for file in prefix.glob("lib*/**/libcmm.*")}
    return folder
