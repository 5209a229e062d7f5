"""Energy of CPU packages from the kernel's powercap tree (RAPL: Intel, and AMD since Zen).

The tree has a zone a package (name "package-0") with an energy counter in uJ that wraps at
max_energy_range_uj, and below it zones for parts ("core", "dram"). Packages are summed; dram, which
some machines count beside the package, stays apart. The counter is of the whole package: whatever
else runs there is in it. Reads files, changes none. Source: kernel documentation,
Documentation/power/powercap/powercap.rst.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...errors import MeasurementError
from ..base import F64, Probe, Reading
from .clock import ThrottleCount
from .sampling import Sampler

__all__ = ["POWERCAP", "Rapl", "Zone", "find_zones"]

POWERCAP = Path("/sys/class/powercap")
_DRIVERS = ("intel-rapl", "amd-rapl", "intel-rapl-mmio")  # first that counts a package wins
_MICRO = 1e-6  # uJ -> J
_PERIOD = 1e-3  # s between two updates (Intel SDM volume 3B, 14.10: about 1 ms)


@dataclass(slots=True)
class Zone:
    """One energy counter: its `name` ("package-0", "package-0/dram"), file and range [J].

    `total` [J] grows since the zone was opened; a wrap of the counter is undone, one a look.
    """

    name: str
    path: Path
    range: float
    total: float = 0.0
    _last: float = field(default=np.nan)

    def read(self) -> float:
        """J since the first read. Raises OSError when the file cannot be read."""
        value = int((self.path / "energy_uj").read_text()) * _MICRO
        if np.isfinite(self._last):
            step = value - self._last
            self.total += step if step >= 0 else step + self.range
        self._last = value
        return self.total


def find_zones(root: Path = POWERCAP) -> list[Zone]:
    """Package zones and their dram zones, each counted once. Raises OSError on no permission."""
    zones: dict[str, Zone] = {}
    for driver in _DRIVERS:
        for path in sorted(root.glob(f"{driver}:*")):
            label, parent = _label(path), _label(path.parent / path.name.rpartition(":")[0])
            if label.startswith("package") and path.name.count(":") == 1:
                name = label
            elif label == "dram" and parent.startswith("package"):
                name = f"{parent}/dram"
            else:
                continue  # core, uncore: inside the package; psys: the whole platform
            limit = int((path / "max_energy_range_uj").read_text()) * _MICRO
            zones.setdefault(name, Zone(name, path, limit))
    return list(zones.values())


def _label(path: Path) -> str:
    try:
        return (path / "name").read_text().strip()
    except OSError:
        return ""


class Rapl:
    """Energy and power of the CPU packages of this machine.

    `root` is the powercap folder, `period` [s] the pace of readings inside a window. Instant power
    is the counter's difference between two readings.
    """

    name = "rapl"

    def __init__(self, *, root: str | Path = POWERCAP, period: float = 0.05) -> None:
        self._root, self._period = Path(root), period
        self._throttle = ThrottleCount()
        self._zones: list[Zone] | None = None
        self._sampler: Sampler | None = None
        self._dram = 0.0

    def probe(self) -> Probe:
        """Whether the counters are there, can be read and count."""
        if not self._root.is_dir():
            return Probe(
                False,
                f"no {self._root}: this kernel or virtual machine shows no energy counter",
                "sudo modprobe intel_rapl_msr",
            )
        try:
            zones = find_zones(self._root)
            for zone in zones:
                zone.read()
        except PermissionError:
            files = " ".join(str(path / "energy_uj") for path in _all_packages(self._root))
            return Probe(False, "no permission to read the energy counters",
                         f"sudo chmod a+r {files}")  # fmt: skip
        except (OSError, ValueError) as error:
            return Probe(False, f"the energy counters cannot be read: {error}")
        if not any("/" not in zone.name for zone in zones):
            return Probe(False, f"{self._root} has no package zone", "sudo modprobe intel_rapl_msr")
        return Probe(True)

    def start(self) -> None:
        """Begin a window. Raises MeasurementError when one is open or nothing can be read."""
        if self._sampler is not None:
            raise MeasurementError("rapl: a window is open already; stop() ends it")
        probe = self.probe()
        if not probe.ok:
            cure = f"; try: {probe.cure}" if probe.cure else ""
            raise MeasurementError(f"rapl: {probe.reason}{cure}")
        self._zones = find_zones(self._root)
        self._throttle.look()
        sampler = Sampler(self._read, period=self._period)
        sampler.begin()
        self._sampler = sampler

    def stop(self) -> Reading:
        """End the window. Raises MeasurementError when none is open or a reading failed."""
        if self._sampler is None:
            raise MeasurementError("rapl: no window is open; start() begins one")
        sampler, self._sampler = self._sampler, None
        duration, samples = sampler.end()
        energy = float(samples["energy"][-1])
        samples["power"] = _differences(samples["time"], samples["energy"])
        moved = energy > 0
        return Reading(
            duration=duration,
            energy=energy if moved else np.nan,
            mean_power=energy / duration if moved else np.nan,
            reason="" if moved else "the package counter did not move",
            throttle=self._throttle.look(),
            samples=samples,
            facts={
                "energy_source": "counter",
                "power_sensor": "counter",
                "counter_period_s": _PERIOD,
                "window_dram_j": self._dram,
            },
        )

    def throttled(self) -> tuple[str, ...]:
        """("thermal",) when a package was slowed by its temperature since the last look."""
        return self._throttle.look()

    def _read(self, slow: bool) -> dict[str, float]:
        del slow
        package, dram = 0.0, np.nan
        for zone in self._zones or []:
            value = zone.read()
            if "/" not in zone.name:
                package += value
            else:
                dram = value if np.isnan(dram) else dram + value
        self._dram = dram
        return {"energy": package}


def _all_packages(root: Path) -> list[Path]:
    return [p for p in sorted(root.glob("*-rapl:*")) if p.name.count(":") == 1]


def _differences(time: F64, energy: F64) -> F64:
    """Mean power [W] over the step that ends at each reading; NaN for the first."""
    step = np.diff(time)
    power = np.full(len(time), np.nan)
    np.divide(np.diff(energy), step, out=power[1:], where=step > 0)
    return power
