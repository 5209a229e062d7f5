"""Speed of light of a GEMM: no kernel on this device can be faster.

Owns the roofline with the rule of what may stay in cache. Knows no tile.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from ..errors import SpecError
from ..hardware import Hardware
from .problem import Problem, problem

__all__ = ["CLOSEST", "Cache", "bound", "bound_of", "cache_capacity"]

Cache = Literal["hot", "cold"]
FloatArray = npt.NDArray[np.float64]
CLOSEST = 1.003
"""Least measured time over its hot bound in the bf16 tables of nine devices (derived; arc_b60)."""
CHUNK = 8192  # rows at a time: the temporaries then stay in the CPU's L2


def cache_capacity(hardware: Hardware) -> float:
    """Bytes that can survive from one run to the next: the L2 and, where there is one, the L3."""
    return hardware.l2.capacity + (hardware.l3.capacity if hardware.l3 else 0.0)


def _l2_is_known(hardware: Hardware) -> bool:
    source = hardware.sources.get("l2.bandwidth")
    return source is not None and source.kind in ("spec", "measured")


def check_cache(cache: str) -> None:
    """Raise SpecError unless `cache` is hot or cold."""
    if cache not in ("hot", "cold"):
        raise SpecError(f"cache: got {cache!r}, allowed: hot, cold")


def bound_of(p: Problem, hardware: Hardware, cache: Cache = "hot") -> FloatArray:
    """Return the least time [s] of each problem; see `bound`."""
    check_cache(cache)
    unique = p.bytes
    compute = p.flops * (1.0 / hardware.rate(p.dtype))
    if cache == "cold":
        return np.maximum(compute, unique * (1.0 / hardware.memory.bandwidth))
    missing = np.maximum(unique - cache_capacity(hardware), 0.0)
    time = np.maximum(compute, missing * (1.0 / hardware.memory.bandwidth))
    if _l2_is_known(hardware):
        time = np.maximum(time, unique * (1.0 / hardware.l2.bandwidth))
    return time


def bound(
    m: npt.ArrayLike,
    n: npt.ArrayLike,
    k: npt.ArrayLike,
    batch: npt.ArrayLike = 1,
    dtype: str | npt.ArrayLike = "bf16",
    *,
    hardware: Hardware,
    cache: Cache = "hot",
) -> FloatArray:
    """Return the speed-of-light time [s] of GEMMs whose sizes broadcast.

    cold: max(flops / rate, unique bytes / memory bandwidth). hot: only the bytes that cannot
    have stayed in cache, max(0, unique - capacity), must come from memory; every unique byte
    still crosses the L2, which counts where the L2 bandwidth is a spec or measured, not assumed.
    Launch and latency are not part of it. `dtype` is one format or one per row.
    Raises SpecError for sizes below 1, UnsupportedError for a format without a unit.
    Source: Williams, Waterman, Patterson 2009, Roofline, CACM 52(4).

    >>> from ridgecast.hardware import get
    >>> float(bound(4096, 4096, 4096, hardware=get("h200_sxm")).round(7))
    0.0001389
    """
    names = np.asarray(dtype)
    if names.ndim == 0:
        return _chunked(m, n, k, batch, str(names), hardware, cache)
    kinds, which = np.unique(names.astype(str), return_inverse=True)
    arrays = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in (m, n, k, batch)), which)
    time = np.empty(arrays[0].shape)
    for code, kind in enumerate(kinds):
        rows = arrays[4] == code
        a = [x[rows] for x in arrays[:4]]
        time[rows] = _chunked(a[0], a[1], a[2], a[3], str(kind), hardware, cache)
    return time


def _chunked(
    m: npt.ArrayLike, n: npt.ArrayLike, k: npt.ArrayLike, batch: npt.ArrayLike,
    dtype: str, hardware: Hardware, cache: Cache,
) -> FloatArray:  # fmt: skip
    p = problem(m, n, k, batch, dtype=dtype)
    if p.m.ndim != 1 or p.m.size <= CHUNK:
        return np.asarray(bound_of(p, hardware, cache))
    time = np.empty(p.m.shape)
    for start in range(0, p.m.size, CHUNK):
        rows = slice(start, start + CHUNK)
        time[rows] = bound_of(p[rows], hardware, cache)
    return time
