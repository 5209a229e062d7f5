"""The meter that every machine has: how long a window took, and whether the CPU overheated.

Knows no power: its readings say so, and with which meter to ask.
"""

from __future__ import annotations

import time
from pathlib import Path

from ...errors import MeasurementError
from ..base import Probe, Reading

__all__ = ["Clock", "ThrottleCount"]

_REASON = "the clock meter knows no power; choose nvml (NVIDIA GPUs) or rapl (CPU packages)"


class ThrottleCount:
    """Whether a CPU package overheated since the last look, from the kernel's counters.

    `root` is the CPU folder of sysfs. Where the kernel has no such counter, nothing is ever seen.
    """

    def __init__(self, root: str | Path = "/sys/devices/system/cpu", *, max_age: float = 0.01):
        self._files = _package_counters(Path(root))
        self._max_age = max_age
        self._count, self._at = self._total(), time.perf_counter()
        self._answer: tuple[str, ...] = ()

    def look(self) -> tuple[str, ...]:
        """("thermal",) when a counter rose since the look before, else (); kept for 10 ms."""
        now = time.perf_counter()
        if not self._files or now - self._at < self._max_age:
            return self._answer if self._files else ()
        count = self._total()
        self._answer = ("thermal",) if count > self._count else ()
        self._count, self._at = count, now
        return self._answer

    def _total(self) -> int:
        return sum(int(path.read_text()) for path in self._files)


def _package_counters(root: Path) -> list[Path]:
    """One counter file a physical package, of those that can be read."""
    found: dict[str, Path] = {}
    for path in sorted(root.glob("cpu[0-9]*/thermal_throttle/package_throttle_count")):
        package = path.parents[1] / "topology" / "physical_package_id"
        try:
            int(path.read_text())
            found.setdefault(package.read_text().strip(), path)
        except (OSError, ValueError):
            continue
    return list(found.values())


class Clock:
    """Duration of a window by the host's clock; power and energy are NaN with the reason."""

    name = "clock"

    def __init__(self) -> None:
        self._begun: float | None = None
        self._throttle = ThrottleCount()

    def probe(self) -> Probe:
        """Works everywhere."""
        return Probe(True, reason="durations only, no power")

    def start(self) -> None:
        """Begin a window. Raises MeasurementError when one is open already."""
        if self._begun is not None:
            raise MeasurementError("clock: a window is open already; stop() ends it")
        self._throttle.look()
        self._begun = time.perf_counter()

    def stop(self) -> Reading:
        """End the window. Raises MeasurementError when none is open."""
        if self._begun is None:
            raise MeasurementError("clock: no window is open; start() begins one")
        duration = time.perf_counter() - self._begun
        self._begun = None
        return Reading(duration, reason=_REASON, throttle=self._throttle.look())

    def throttled(self) -> tuple[str, ...]:
        """("thermal",) when a CPU package was slowed by its temperature since the last look."""
        return self._throttle.look()
