"""Seconds that each resource of a device needs for some work: the bound of any operation.

Owns the translation of `ops.Work` into time on the units, memory levels and links of a device, and
the analytic time made of it. Fits nothing; knows no operation by name.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from ..dtypes import DTYPES
from ..errors import RidgecastError, UnsupportedError
from ..hardware import Hardware, Link
from ..ops.base import Amount, Work, resident_of
from .bound import Cache, cache_capacity, check_cache

__all__ = [
    "SPECIAL_SHARE",
    "analytic_time",
    "bound_of_parts",
    "cached_memory_time",
    "fixed_parts",
    "link_of",
    "parts_of",
]

F64 = npt.NDArray[np.float64]
SPECIAL_SHARE = 1.0 / 16.0
"""Special functions over fp32 flop/s: 16 results against 128 FMAs a clock and SM (CUDA C++
Programming Guide, table of arithmetic throughput, compute capability 8.6 to 10.0)."""
_NETWORK = Link(50e9, 5e-6)
"""InfiniBand NDR, 400 Gb/s a device; assumed where a device names no network link."""
_PEER_LATENCY = 2e-6  # s a message between devices of a node (assumed)
_STEP = 1.0e-6  # s of a dependent step: a round trip to memory with a barrier (assumed)
_EXPONENT = 4.0  # how sharply resources overlap in the analytic time (assumed)


def link_of(hardware: Hardware, kind: str) -> Link:
    """Return the link that carries messages of a kind: peer, network or host.

    Raises UnsupportedError where the device has none.
    """
    names = {
        "peer": ("nvlink", "xgmi", "xe_link", "pcie"), "host": ("nvlink_c2c", "pcie"),
        "network": ("network",),
    }  # fmt: skip
    for name in names[kind]:
        if name in hardware.links:
            return hardware.links[name]
    if kind == "network":
        return _NETWORK
    raise UnsupportedError(
        f"{hardware.name} has no link to a {kind} ({', '.join(names[kind])}); its links: "
        f"{', '.join(hardware.links) or 'none'}"
    )


def assumed_links(work: Work, hardware: Hardware) -> str:
    """Say which link's numbers are assumed, for a reason; "" where all are the device's own."""
    if "network" in work.links and "network" not in hardware.links:
        return "; network: InfiniBand NDR (50 GB/s, 5 us) assumed"
    return ""


def _vector_rate(hardware: Hardware) -> float:
    """fp32 operations per second on the lanes."""
    try:
        return hardware.rate("fp32", unit="simt")
    except RidgecastError:
        return hardware.rate("fp32") if hardware.supports("fp32") else max(hardware.rates.values())


def parts_of(work: Work, hardware: Hardware, cache: Cache = "hot") -> dict[str, F64]:
    """Seconds [rows] that each resource is busy: compute, vector, special, memory, l2, links.

    Operations in several formats share the matrix unit, so their times add. hot: of the bytes
    moved, the share capacity / footprint stays in cache and does not come from memory (the rule of
    `kernels.bound`). Raises UnsupportedError for a format without a unit or a link that is missing.
    """
    check_cache(cache)
    matrix: Amount = 0.0
    out: dict[str, F64] = {}
    for unit, count in work.flops.items():
        if unit in DTYPES:
            matrix = matrix + np.asarray(count) / hardware.rate(unit)
    rate = _vector_rate(hardware)
    slower = {"vector": rate, "special": rate * SPECIAL_SHARE, "integer": rate / 2.0}
    out["compute"] = np.asarray(matrix, np.float64)
    for unit, speed in slower.items():
        if unit in work.flops:
            out[unit] = np.asarray(work.flops[unit], np.float64) / speed
    moved = np.asarray(work.moved, np.float64)
    missing = moved
    if cache == "hot":
        footprint = resident_of(work) if work.footprint is None else work.footprint
        footprint = np.maximum(np.asarray(footprint, np.float64), 1.0)
        missing = moved * np.clip(1.0 - cache_capacity(hardware) / footprint, 0.0, 1.0)
    out["memory"] = missing / hardware.memory.bandwidth
    source = hardware.sources.get("l2.bandwidth")
    if source is not None and source.kind in ("spec", "measured"):
        out["l2"] = moved / hardware.l2.bandwidth
    for kind, count in work.links.items():
        out[kind] = np.asarray(count, np.float64) / link_of(hardware, kind).bandwidth
    return out


def bound_of_parts(parts: Mapping[str, F64]) -> F64:
    """Speed of light [s]: the busiest resource, all others hidden behind it."""
    found = np.zeros(())
    for value in parts.values():
        found = np.maximum(found, value)
    return np.asarray(found, np.float64)


def fixed_parts(work: Work, hardware: Hardware) -> dict[str, F64]:
    """Seconds that nothing hides: launches, dependent steps, messages (hops)."""
    out = {
        "launch": np.asarray(work.launches, np.float64) * hardware.launch_latency,
        "steps": np.asarray(work.steps, np.float64) * _STEP,
    }
    hops: F64 = np.zeros(())
    for kind, count in work.hops.items():
        latency = link_of(hardware, kind).latency or _PEER_LATENCY
        hops = hops + np.asarray(count, np.float64) * latency
    return {**out, "hops": np.asarray(hops, np.float64)}


def cached_memory_time(work: Work, hardware: Hardware, cache: Cache = "hot") -> F64:
    """Seconds that the bytes take: through the L2 while they fit there, else from memory.

    Runs that follow one another read the same bytes in the same order; an LRU cache then keeps
    all of them or, once they exceed it, none. Between half of the capacity and all of it the share
    from memory rises linearly (assumed: hashing and other traffic blur the edge).
    """
    moved = np.asarray(work.moved, np.float64)
    footprint = resident_of(work) if work.footprint is None else work.footprint
    fill = np.asarray(footprint, np.float64) / cache_capacity(hardware)
    missing = np.clip(2.0 * fill - 1.0, 0.0, 1.0) if cache == "hot" else 1.0
    slow, fast = moved / hardware.memory.bandwidth, moved / hardware.l2.bandwidth
    return np.asarray(missing * slow + (1.0 - missing) * np.minimum(fast, slow), np.float64)


def analytic_time(work: Work, hardware: Hardware, cache: Cache = "hot") -> F64:
    """Analytic time [s]: resources that overlap (a p-norm of their times), and what nothing hides.

    The p-norm with p = 4 lies between the largest part (perfect overlap) and their sum. Unlike in
    the bound, bytes that do not fit in cache come from memory whole (`cached_memory_time`).
    """
    parts = parts_of(work, hardware, cache)
    parts["memory"] = cached_memory_time(work, hardware, cache)
    most = np.maximum(bound_of_parts(parts), 1e-30)  # in units of the largest: nothing overflows
    together = sum(((v / most) ** _EXPONENT for v in parts.values()), start=np.zeros(()))
    return most * together ** (1.0 / _EXPONENT) + sum(
        fixed_parts(work, hardware).values(), start=np.zeros(())
    )
