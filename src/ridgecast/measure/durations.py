"""How long points take to measure: a guess from the protocol and physics, then what was seen.

Owns the expected duration behind --dry-run, the ETA and the budget. All times in seconds.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from ..dtypes import DTYPES
from ..errors import RidgecastError
from .base import BANDWIDTH_KERNELS, DeviceInfo, Point
from .protocol import Protocol

__all__ = ["Durations", "run_times"]

# assumed, where the catalogue does not know the device: flop/s and B/s that kernels reach
_REACHED = {"gpu": (2e13, 1e12), "cpu": (2e10, 1e10)}
_UTILISATION = 0.5  # assumed, of the bound, where it does
_OVERHEAD = 0.3  # s to allocate, fill and compile (assumed)
_REFERENCE = 2e10  # flop/s of the float64 reference on the host (assumed)
_FEW = 3  # points of a group before its median counts

_Group = tuple[str, str, bool, int]


def run_times(points: Sequence[Point], device: DeviceInfo | None) -> np.ndarray:
    """Guess of one run's duration [s] for each point: the bound over an assumed utilisation.

    Without a catalogue entry of the device, assumed rates of its kind.
    """
    hardware = _hardware(device)
    rate, bandwidth = _REACHED[device.kind if device and device.kind in _REACHED else "gpu"]
    out = np.empty(len(points))
    for i, p in enumerate(points):
        if p.kernel in BANDWIDTH_KERNELS:
            out[i] = 3.0 * p.m / (hardware.memory.bandwidth if hardware else bandwidth)
            continue
        width = DTYPES[p.dtype].bits_with_scales / 8.0
        moved = width * p.batch * (p.m * p.k + p.k * p.n + p.m * p.n)
        out[i] = max(p.flops / rate, moved / bandwidth)
    return out if hardware is None else _bounded(points, hardware, out)


def _hardware(device: DeviceInfo | None) -> Any:
    if device is None or not device.hardware:
        return None
    from ..hardware import get

    try:
        return get(device.hardware)
    except RidgecastError:
        return None


def _bounded(points: Sequence[Point], hardware: Any, guess: np.ndarray) -> np.ndarray:
    """Guesses replaced by the speed of light over the assumed utilisation, where it can be said."""
    from ..kernels import bound

    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, p in enumerate(points):
        if p.kernel not in BANDWIDTH_KERNELS:
            groups[p.dtype, p.cache].append(i)
    for (dtype, cache), at in groups.items():
        sizes = np.array([(points[i].m, points[i].n, points[i].k, points[i].batch) for i in at])
        try:
            least = bound(*sizes.T, dtype=dtype, hardware=hardware, cache=cache)  # type: ignore[arg-type]
        except RidgecastError:  # no unit for the format: the provider will refuse the point
            continue
        guess[at] = least / _UTILISATION + hardware.launch_latency
    return guess


class Durations:
    """Expected duration of measuring a point; learns from those that were measured.

    The median over finished points of the same kernel, format and size (within a factor of 4 in
    operations) once there are three; else the guess, scaled by the median of what finished points
    took over their guess.
    """

    def __init__(
        self, points: Sequence[Point], device: DeviceInfo | None, protocol: Protocol
    ) -> None:
        self.run_time = {
            p.key: float(t) for p, t in zip(points, run_times(points, device), strict=True)
        }
        self._protocol = protocol
        self._seen: dict[_Group, list[float]] = defaultdict(list)
        self._ratios: dict[bool, list[float]] = defaultdict(list)

    def told(self, point: Point, row: Mapping[str, Any]) -> None:
        """Learn from a finished row; refusals take no time and teach nothing."""
        elapsed = row.get("elapsed_s")
        if row.get("status") == "refused" or elapsed is None or not elapsed > 0:
            return
        self._seen[_group(point)].append(float(elapsed))
        self._ratios[point.energy].append(float(elapsed) / self.guess(point))

    def guess(self, point: Point, *, caps: bool = False) -> float:
        """Duration by the protocol alone; `caps` when sampling never ends before its cap."""
        protocol, run = self._protocol, self.run_time[point.key]
        warm = max(protocol.warmup, protocol.warmup_runs * run)
        wanted = protocol.time_cap if caps else min(3 * protocol.min_samples * run, 1e9)
        sampling = max(min(wanted, protocol.time_cap), 3 * run)
        verify = run + point.flops / _REFERENCE if protocol.verify else 0.0
        energy = protocol.energy.settle + protocol.energy.window if point.energy else 0.0
        return _OVERHEAD + verify + warm + sampling + energy

    def expected(self, point: Point) -> float:
        """Duration that measuring a point takes."""
        seen = self._seen.get(_group(point), [])
        if len(seen) >= _FEW:
            return median(seen)
        # the guess counts as one observation: the first point pays for compilers and pages
        return self.guess(point) * median([1.0, *self._ratios.get(point.energy, [])])

    def total(self, points: Iterable[Point]) -> float:
        """Duration of all of these points; one look-up a group."""
        first: dict[_Group, Point] = {}
        counts: Counter[_Group] = Counter()
        for point in points:
            group = _group(point)
            first.setdefault(group, point)
            counts[group] += 1
        return sum(counts[group] * self.expected(first[group]) for group in counts)


def _group(point: Point) -> _Group:
    size = point.flops or float(point.m)
    return (point.kernel, point.dtype, point.energy, round(np.log2(size) / 2.0))
