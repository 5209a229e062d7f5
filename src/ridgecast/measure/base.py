"""What the measure room speaks of: points, providers, prepared work, meters, what each can do.

Owns the vocabulary of measuring and nothing that touches a device. Needs numpy alone, as does the
whole room at import: it also runs on bare machines that have none of our other dependencies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ..errors import SpecError

__all__ = ["BANDWIDTH_KERNELS", "PATTERNS", "DeviceInfo", "Meter", "Point", "Probe", "Provider",
           "Reading", "Work"]  # fmt: skip

F64 = npt.NDArray[np.float64]

PATTERNS = ("normal", "zeros", "sparse")  # random normal, all zero, half of the entries zero
BANDWIDTH_KERNELS = ("copy", "triad", "l2_read", "launch")  # micro-benchmarks; m is a byte count
_CACHES = ("hot", "cold")


@dataclass(frozen=True, slots=True)
class Point:
    """One thing to measure: a kernel on a shape, how it is run, and what is asked of it.

    `config` holds columns of the store's CONFIG_COLUMNS (tile, tile_m, stages ...) with whole
    numbers. For a micro-benchmark (`BANDWIDTH_KERNELS`) m is the bytes of one array and n = k = 1.
    `repeat` tells apart repeats that are separate measurements of the same thing (the noise floor).
    Raises SpecError for a size below 1, an unknown cache state or an unknown input pattern.
    """

    kernel: str
    m: int
    n: int = 1
    k: int = 1
    dtype: str = "fp32"
    batch: int = 1
    layout: str = "nn"
    config: Mapping[str, int] = field(default_factory=dict[str, int])
    cache: str = "hot"
    pattern: str = "normal"
    energy: bool = False
    repeat: int = 0

    def __post_init__(self) -> None:
        for name in ("m", "n", "k", "batch"):
            value = getattr(self, name)
            if value != int(value) or value < 1:
                raise SpecError(f"point.{name}: got {value!r}, need a whole number from 1")
        for name, allowed in (("cache", _CACHES), ("pattern", PATTERNS)):
            if getattr(self, name) not in allowed:
                got = getattr(self, name)
                raise SpecError(f"point.{name}: got {got!r}, need one of {', '.join(allowed)}")

    @property
    def flops(self) -> float:
        """Operations of one run: 2 batch m n k; 0 for a micro-benchmark."""
        if self.kernel in BANDWIDTH_KERNELS:
            return 0.0
        return 2.0 * self.batch * self.m * self.n * self.k

    def columns(self) -> dict[str, Any]:
        """Identity of the point as flat columns, configuration included."""
        fixed = {name: getattr(self, name) for name in _IDENTITY}
        return {**fixed, **{name: int(value) for name, value in sorted(self.config.items())}}

    @property
    def key(self) -> str:
        """Short stable name of the point: equal points have equal keys on any machine."""
        text = json.dumps(self.columns(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


_IDENTITY = ("kernel", "m", "n", "k", "dtype", "batch", "layout", "cache", "pattern", "energy",
             "repeat")  # fmt: skip


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """The device that a provider runs on, as it names itself; unknown texts are ""."""

    name: str  # "NVIDIA H200", "AMD EPYC 9555"
    kind: str  # "gpu" or "cpu"
    hardware: str = ""  # our catalogue name (h200_sxm), "" when it is not in the catalogue
    uuid: str = ""
    memory: int = 0  # bytes, 0 when not known
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])  # driver, SM count, L2 ...


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether something can be used here; if not, why, and the line that cures it ("" if none)."""

    ok: bool
    reason: str = ""
    cure: str = ""
    device: DeviceInfo | None = None


class Work(Protocol):
    """A point made ready on a device: operands allocated and filled, kernel compiled.

    `tolerance` is the largest relative Frobenius error that the number format allows. `facts` are
    extra columns of the row, such as registers, shared_bytes, blocks_per_sm, or the number of
    rotating buffers.
    """

    tolerance: float
    facts: Mapping[str, float | int | str]

    def verify(self) -> float:
        """Poison the output, run once, return the relative Frobenius error against float64.

        An element that was not written, NaN or inf makes it inf or NaN, never small.
        """
        ...

    def sample(self, count: int) -> F64:
        """Run `count` times and return each run's duration in seconds, by the device's own clock.

        With cache = "cold" the last-level cache is flushed before each run, outside its window.
        """
        ...

    def enqueue(self, count: int) -> None:
        """Launch `count` runs back to back without waiting, for energy windows."""
        ...

    def synchronize(self) -> None:
        """Wait until everything that was launched has ended."""
        ...

    def close(self) -> None:
        """Give back memory. May be called twice."""
        ...


@runtime_checkable
class Provider(Protocol):
    """Something that can run points: a library, a compiler, a runtime on one device."""

    name: str

    def probe(self) -> Probe:
        """Whether it works here, tried for real (a probe kernel is built); cheap when repeated."""
        ...

    def refusal(self, point: Point) -> str:
        """Why this provider cannot run the point, or "" when it can."""
        ...

    def prepare(self, point: Point, rng: np.random.Generator) -> Work:
        """Allocate, fill and compile. Raises MeasurementError with the reason when that fails."""
        ...


@dataclass(frozen=True, slots=True)
class Reading:
    """What a meter saw between `start` and `stop`; NaN where it cannot know, with a reason.

    `energy` in J and `mean_power` in W are of the whole board or package. `samples` are the
    instant readings as columns ("time" in s since start, "power" in W, "energy" as the counter's
    J since its first reading, "clock" and "memory_clock" in Hz, "temperature" in deg C), NaN where
    one was not read, empty arrays where there are none. `facts` are further columns of the row,
    such as power_limit_w, or energy_source ("counter", "instant" or "averaged": what `energy` is).
    """

    duration: float  # s, host clock
    energy: float = np.nan
    mean_power: float = np.nan
    reason: str = ""
    throttle: tuple[str, ...] = ()  # reasons seen, such as "power_cap", "thermal"
    samples: Mapping[str, F64] = field(default_factory=dict[str, F64])
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])


@runtime_checkable
class Meter(Protocol):
    """A source of power, energy, clocks or throttle state. Every meter has a Replay twin."""

    name: str

    def probe(self) -> Probe:
        """Whether it can be read here; if not why, and the line that cures it."""
        ...

    def start(self) -> None:
        """Begin a window. Raises MeasurementError when one is open already."""
        ...

    def stop(self) -> Reading:
        """End the window and return what was seen. Raises MeasurementError when none is open."""
        ...

    def throttled(self) -> tuple[str, ...]:
        """Reasons for which the device runs slower than it would, right now; () when none."""
        ...
