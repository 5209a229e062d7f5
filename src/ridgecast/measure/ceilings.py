"""A device's real ceilings: what its best library, its memories and its launches reach.

    rates      the fastest library GEMM over a few large squares, for each format
    memory     copy and triad over arrays of 4 times the last-level cache
    l1 l2 l3   reads of an array of half the level's size, so that no faster level holds it
    launch     a kernel that does nothing

A ceiling is the rate of the fast tenth of the runs (p10 of the times): what else runs on a machine
slows a run, nothing makes it faster than the device. Every figure keeps its spread, sample count
and how it was taken; what could not be had is named with the reason. Points go to the first
provider that takes them, by the one protocol.
`device_file.to_hardware_toml` turns the result into a device file. Knows no device itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import numpy as np

from ..errors import MeasurementError, SpecError
from .base import BANDWIDTH_KERNELS, DeviceInfo, Point, Provider
from .device_file import to_hardware_toml
from .protocol import Protocol, measure_point
from .readings import Ceiling, Ceilings

__all__ = ["Ceiling", "Ceilings", "measure_ceilings", "to_hardware_toml"]

_DTYPES = {"cpu": ("fp32", "fp64"),
           "gpu": ("bf16", "fp16", "fp8_e4m3", "tf32", "fp32", "fp64")}  # fmt: skip
_SIZES = {"cpu": (1024, 2048, 4096), "gpu": (4096, 8192)}
_UNKNOWN_CACHE = 64 * 2**20  # bytes, where no cache size is known
_LEAST_ARRAY = 64 * 2**20  # bytes of an array that is read from memory
_RUNS = 12  # runs that a point takes at least: check, warm-up and samples


@dataclass(slots=True)
class _Session:
    """Providers that work, the device, and how much time is left."""

    providers: list[Provider]
    device: DeviceInfo
    rng: np.random.Generator
    protocol: Protocol
    deadline: float
    rows: list[dict[str, Any]]
    missing: dict[str, str]

    def take(self, target: str, point: Point, expected: float = 0.0) -> Ceiling | None:
        """Measure a point for a target, or note why not; `expected` is a run's time in s."""
        left = self.deadline - time.perf_counter()
        if expected * _RUNS > left or left <= 0:
            self.missing.setdefault(target, "no time left in the budget")
            return None
        provider = next((p for p in self.providers if not p.refusal(point)), None)
        if provider is None:
            self.missing.setdefault(target, self.providers[0].refusal(point))
            return None
        protocol = replace(self.protocol, time_cap=min(self.protocol.time_cap, max(left, 1e-3)))
        row = measure_point(provider, point, rng=self.rng, protocol=protocol)
        self.rows.append(row)
        if not row["valid"]:
            self.missing.setdefault(target, str(row["reason"]))
            return None
        return _ceiling(point, row, provider.name)


def _ceiling(point: Point, row: Mapping[str, Any], provider: str) -> Ceiling:
    seconds = float(row["time_p10_s"])
    if point.kernel == "launch":
        value, what = seconds, "launch"
    elif point.kernel in BANDWIDTH_KERNELS:
        value = float(row["moved_bytes"]) / seconds
        what = f"{point.kernel} of {point.m} B arrays"
    else:
        value, what = point.flops / seconds, f"{point.kernel} {point.m}x{point.n}x{point.k}"
    spread = (float(row["time_p90_s"]) - seconds) / float(row["time_s"])
    samples, threads = int(row["samples"]), row.get("threads")
    where = f"{provider} on {threads} threads" if threads else provider
    how = f"{what} through {where}, fast tenth of {samples} runs, spread {100 * spread:.2g} %"
    return Ceiling(value, spread, samples, how)


def measure_ceilings(
    provider: Provider | Sequence[Provider],
    *,
    budget: float = 60.0,
    rng: np.random.Generator | None = None,
    protocol: Protocol | None = None,
) -> Ceilings:
    """Measure what a device reaches, in about `budget` seconds.

    On a CPU give the providers numba and blas, in this order: the one has bandwidths on all cores,
    the other the library. Memory and launch come first, then caches, then GEMMs from small to
    large as time allows. Raises SpecError for a budget that is not above 0 and MeasurementError
    when no provider works here.
    """
    if not budget > 0:
        raise SpecError(f"ceilings.budget: got {budget}, need seconds above 0")
    given = list(provider) if isinstance(provider, Sequence) else [provider]
    probes = {p.name: p.probe() for p in given}
    missing = {f"provider {n}": f"{p.reason}. {p.cure}" for n, p in probes.items() if not p.ok}
    working = [p for p in given if probes[p.name].ok]
    device = next((d for p in working if (d := probes[p.name].device)), None)
    if device is None:
        told = "; ".join(f"{name}: {why}" for name, why in missing.items()) or "no provider given"
        raise MeasurementError(f"no ceilings can be measured here: {told}")
    base = protocol or Protocol()
    plan = _SIZES[device.kind], _DTYPES[device.kind]
    cap = max(budget / (len(plan[0]) * len(plan[1]) + 8), 0.05)
    session = _Session(
        working, device, rng or np.random.default_rng(0),
        replace(base, time_cap=min(base.time_cap, cap)),
        time.perf_counter() + budget, [], missing,
    )  # fmt: skip
    begun = datetime.now(UTC).isoformat(timespec="seconds")
    memory, launch, caches = _memory(session), session.take("launch", _micro("launch", 8)), {}
    for level, point in _ladder(device):
        found = session.take(level, point)
        caches |= {level: found} if found else {}
    rates = _rates(session)
    return Ceilings(
        device, begun, rates, memory, MappingProxyType(caches), launch,
        MappingProxyType(session.missing), tuple(session.rows),
    )  # fmt: skip


def _micro(kernel: str, size: float) -> Point:
    return Point(kernel, max(8, int(size) // 64 * 64))


def _sizes(device: DeviceInfo) -> dict[str, int]:
    """Known cache sizes in bytes, by level."""
    return {
        level: int(device.facts[f"{level}_bytes"])
        for level in ("l1", "l2", "l3")
        if device.facts.get(f"{level}_bytes")
    }


def _memory(session: _Session) -> Ceiling | None:
    """Return the better of copy and triad over arrays that no cache holds."""
    last = max(_sizes(session.device).values(), default=_UNKNOWN_CACHE)
    size = max(4 * last, _LEAST_ARRAY)
    if session.device.memory:
        size = min(size, session.device.memory // 16)  # three arrays, and room for everything else
    found = [session.take("memory", _micro(kernel, size)) for kernel in ("copy", "triad")]
    known = [c for c in found if c]
    if known:
        session.missing.pop("memory", None)
    return max(known, key=lambda c: c.value, default=None)


def _ladder(device: DeviceInfo) -> Iterator[tuple[str, Point]]:
    """Yield an array of half of each level, where that is more than the level above holds."""
    below = 0
    for level, size in _sizes(device).items():
        if size // 2 > below:
            yield level, _micro("l2_read", size // 2)
        below = size


def _rates(session: _Session) -> Mapping[str, Ceiling]:
    """Return the best rate of each format; larger squares are tried while time allows."""
    best: dict[str, Ceiling] = {}
    for size in _SIZES[session.device.kind]:
        for dtype in _DTYPES[session.device.kind]:
            point = Point("library", size, size, size, dtype=dtype)
            if size > _SIZES[session.device.kind][0] and dtype not in best:
                continue  # refused or failed before
            expected = point.flops / best[dtype].value if dtype in best else 0.0
            found = session.take(f"rates.{dtype}", point, expected)
            if found and (dtype not in best or found.value > best[dtype].value):
                best[dtype] = found
    for dtype in best:
        session.missing.pop(f"rates.{dtype}", None)
    return MappingProxyType(best)
