"""This machine's CPU as a device: its name, cores, caches and vector units; and a cache flush.

Reads /proc and /sys on Linux; elsewhere what Python knows, the rest stays unknown (absent from
the facts). Changes nothing on the machine.
"""

from __future__ import annotations

import os
import platform
import re
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..base import DeviceInfo

__all__ = ["CacheFlush", "cpu_device", "flush_cache", "last_level_cache", "usable_cores"]

_FLAGS = ("sse4_2", "avx", "avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "asimd", "sve")
_UNKNOWN_CACHE = 32 * 2**20  # bytes assumed where the last-level cache is not known
_CPUS = Path("/sys/devices/system/cpu")


def usable_cores() -> int:
    """Return how many cores this process may use: its affinity, within its cgroup's quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = _read(Path("/sys/fs/cgroup/cpu.max")).split()
    if len(quota) == 2 and quota[0].isdigit() and int(quota[1]) > 0:
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    return cores


@lru_cache(maxsize=1)
def cpu_device() -> DeviceInfo:
    """Return this CPU; facts hold cores, cache sizes, vector width, flags and clocks where known.

    `l1_bytes`, `l2_bytes` and `l3_bytes` are sums over the instances that the usable cores reach,
    `l1_core_bytes` and `l2_core_bytes` one core's own. `max_frequency_hz` is the highest clock
    that the system admits to, `frequency_hz` the clock it reports now.
    """
    text = _read(Path("/proc/cpuinfo"))
    found = re.search(r"^(?:model name|Model|cpu model)\s*:\s*(.+)$", text, re.MULTILINE)
    name = found.group(1).strip() if found else platform.processor() or platform.machine()
    facts: dict[str, Any] = {"cores": usable_cores(), "logical_cpus": os.cpu_count() or 1}
    facts |= _caches() | _vectors(text) | _clocks(text)
    return DeviceInfo(name=name, kind="cpu", memory=_memory(), facts=facts)


def last_level_cache(info: DeviceInfo) -> int:
    """Return the bytes of the largest known cache, 32 MiB where none is known."""
    sizes = [int(info.facts.get(f"l{level}_bytes", 0)) for level in (1, 2, 3)]
    return max(sizes) or _UNKNOWN_CACHE


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0


def _my_cpus() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _caches() -> dict[str, int]:
    """Cache sizes from /sys: each instance counted once, whichever cores share it."""
    seen: dict[int, set[str]] = {}
    facts: dict[str, int] = {}
    for cpu in _my_cpus():
        for folder in sorted((_CPUS / f"cpu{cpu}" / "cache").glob("index*")):
            if _read(folder / "type").strip() == "Instruction":
                continue
            found = re.fullmatch(r"(\d+)([KM]?)", _read(folder / "size").strip())
            level = _read(folder / "level").strip()
            if not found or not level.isdigit():
                continue
            size = int(found.group(1)) * {"": 1, "K": 2**10, "M": 2**20}[found.group(2)]
            shared = _read(folder / "shared_cpu_list").strip()
            instances = seen.setdefault(int(level), set())
            if shared in instances:
                continue
            instances.add(shared)
            facts[f"l{level}_bytes"] = facts.get(f"l{level}_bytes", 0) + size
            if int(level) < 3:
                facts.setdefault(f"l{level}_core_bytes", size)
    return facts


def _vectors(text: str) -> dict[str, Any]:
    """Vector flags and the width of the widest unit in bits."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    if not found:
        return {}
    flags = set(found.group(1).split())
    bits = 512 if "avx512f" in flags else 256 if "avx2" in flags or "avx" in flags else 128
    return {"simd_bits": bits, "isa": " ".join(f for f in _FLAGS if f in flags)}


def _clocks(text: str) -> dict[str, float]:
    facts: dict[str, float] = {}
    most = _read(_CPUS / "cpu0" / "cpufreq" / "cpuinfo_max_freq").strip()
    if most.isdigit():
        facts["max_frequency_hz"] = int(most) * 1e3  # the file holds kHz
    now = [float(mhz) for mhz in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", text, re.MULTILINE)]
    if now:
        facts["frequency_hz"] = max(now) * 1e6
    return facts


class CacheFlush:
    """Pushes operands out of every cache: each core rewrites its share of twice the last level.

    Shared caches of today do not contain the private ones, so one core's writing would leave
    the others' level 2 as it was.
    """

    def __init__(self, info: DeviceInfo | None = None) -> None:
        info = info or cpu_device()
        cores = int(info.facts.get("cores", 1))
        words = 2 * last_level_cache(info) // 8
        self._parts = np.array_split(np.zeros(words), cores)
        self._pool = ThreadPoolExecutor(cores, "flush") if cores > 1 else None

    def __call__(self) -> None:
        """Rewrite the buffer; returns when every share is done."""
        if self._pool is None:
            _rewrite(self._parts[0])
            return
        wait([self._pool.submit(_rewrite, part) for part in self._parts])

    def close(self) -> None:
        """Give the threads back."""
        if self._pool is not None:
            self._pool.shutdown()


def _rewrite(part: np.ndarray) -> None:
    np.add(part, 1.0, out=part)


def flush_cache() -> None:
    """Push everything out of the caches once; for many runs keep one `CacheFlush`."""
    flush = CacheFlush()
    flush()
    flush.close()
