"""What machine this is: the processor's name, its caches, its cores, its memory."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

# Where the system does not tell: sizes of a common core, in bytes.
_TYPICAL = {"L1": 32 << 10, "L2": 1 << 20, "L3": 16 << 20}


@dataclass(frozen=True)
class Machine:
    """A processor as this process sees it.

    Attributes
    ----------
    cpu : str
        The processor's name.
    cores : int
        Cores that this process may use.
    caches : dict of str to int
        Bytes of the data caches "L1", "L2", "L3" as one core sees them.
    caches_known : bool
        False where the system does not tell and `caches` holds typical sizes.
    """

    cpu: str
    cores: int
    caches: dict[str, int]
    caches_known: bool

    def cache_text(self) -> str:
        """Return the caches in one line, for people."""
        text = ", ".join(f"{level} {_size(size)}" for level, size in self.caches.items())
        return text if self.caches_known else f"unknown (taken as {text})"


def this_machine() -> Machine:
    """Ask the system."""
    caches = _caches()
    return Machine(_cpu_name(), cores(), caches or dict(_TYPICAL), bool(caches))


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_available() -> int | None:
    """Return the bytes of memory that can be had without swapping, or None where the system does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return _sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine() or "unknown"


def _caches() -> dict[str, int]:
    found: dict[str, int] = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = (
                (index / name).read_text(encoding="utf-8").strip() for name in ("level", "type", "size")
            )
            if kind != "Instruction" and size.endswith("K"):
                found[f"L{level}"] = int(size[:-1]) << 10
        except (OSError, ValueError):
            continue
    for level, name in (("L1", "hw.l1dcachesize"), ("L2", "hw.l2cachesize"), ("L3", "hw.l3cachesize")):
        if not found.get(level) and (size := _sysctl(name)).isdigit() and int(size):
            found[level] = int(size)
    return {level: found[level] for level in _TYPICAL if level in found}


def _sysctl(name: str) -> str:
    if platform.system() != "Darwin":
        return ""
    done = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _size(size: int) -> str:
    return f"{size >> 20} MB" if size % (1 << 20) == 0 else f"{size >> 10} KB"
