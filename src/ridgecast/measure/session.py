"""What a run stands on: the provider and its device, the meter, the environment, one row.

Owns how they are found and what every row is told of them. Knows no folder.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import MeasurementError, SpecError
from ..store import SCHEMA_VERSION
from .base import DeviceInfo, Meter, Point, Provider
from .energy import measure_idle
from .meters import get_meter
from .plan import Plan
from .protocol import Protocol, measure_point
from .providers import get_provider
from .record import Environment, command_line, environment_of

__all__ = ["Session", "find_meter", "find_provider", "open_session"]


def find_provider(plan: Plan, name: str = "") -> Provider:
    """Build the provider of a plan, or the named one. Raises SpecError when nothing names one."""
    chosen = name or plan.provider
    if not chosen:
        raise SpecError('no provider is named: write provider = "blas" in the file, or --provider')
    # options are for the plan's own provider
    return get_provider(chosen, **(plan.options if chosen == plan.provider else {}))


def find_meter(names: tuple[str, ...], device: DeviceInfo) -> tuple[Meter | None, str]:
    """Return the first named meter that can be read, and "".

    Where none is named, the device's own; if that cannot be read, one without power and the
    reason. Raises MeasurementError with the cure when those that are named cannot be read: asking
    for a meter means needing it.
    """
    own = ("nvml",) if device.kind == "gpu" else ("rapl",)
    reasons: list[str] = []
    for name in names or own:
        options = {"uuid": device.uuid} if name == "nvml" and device.uuid else {}
        meter = get_meter(name, **options)
        probe = meter.probe()
        if probe.ok:
            return meter, ""
        reasons.append(f"{name}: {probe.reason}" + (f" (try: {probe.cure})" * bool(probe.cure)))
    if names:
        raise MeasurementError(f"no meter can be read: {'; '.join(reasons)}")
    clock = get_meter("clock") if device.kind == "cpu" else None  # sees a CPU overheat
    return clock, "; ".join(reasons)


@dataclass(frozen=True, slots=True)
class Session:
    """Provider, device, meter and environment of one run, and the protocol with the idle power."""

    provider: Provider
    device: DeviceInfo
    meter: Meter | None
    environment: Environment
    protocol: Protocol
    seed: int

    def with_idle(self) -> Session:
        """Measure the idle power for energy rows, where there is a meter and none is given."""
        energy = self.protocol.energy
        if self.meter is None or self.meter.name == "clock" or np.isfinite(energy.idle_power):
            return self
        try:
            idle = measure_idle(self.meter)
        except MeasurementError:  # each energy row says why; it is null there
            return self
        protocol = replace(self.protocol, energy=replace(energy, idle_power=idle))
        return replace(self, protocol=protocol)

    def row(self, point: Point, attempt: int = 1) -> dict[str, Any]:
        """Measure a point: its row with what it must be told of the run.

        Operands are seeded by the seed and the point's key alone, in whatever order points run.
        """
        rng = np.random.default_rng([self.seed, int(point.key, 16)])
        row: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "environment": self.environment.id,
            "device": self.device.name,
            "hardware": _hardware_name(self.device),
            "collection": f"{self.provider.name}-{self.environment.id}",
            "licence": "own measurement",
            "seed": self.seed,
            "launch": "unknown",
            "power_valid": False,
            "sustained": False,
        }
        row |= measure_point(
            self.provider, point, rng=rng, protocol=self.protocol, meter=self.meter
        )
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        return row | {"attempt": attempt, "utc": now}


def open_session(plan: Plan, provider: Provider, meter: Meter | None = None) -> Session:
    """Probe the provider, find the meter (the plan's, or the device's own), record where we are.

    Raises MeasurementError when the provider cannot run here or the plan's meter cannot be read.
    """
    probe = provider.probe()
    if not probe.ok or probe.device is None:
        cure = f" Try: {probe.cure}" if probe.cure else ""
        raise MeasurementError(f"provider {provider.name} cannot run here: {probe.reason}.{cure}")
    reason = ""
    if meter is None and not hasattr(provider, "recorded"):
        meter, reason = find_meter(plan.meters, probe.device)
    environment = environment_of(
        provider, probe.device, protocol=plan.protocol, seed=plan.seed, command=command_line(),
        meter=meter, meter_reason=reason,
    )  # fmt: skip
    return Session(provider, probe.device, meter, environment, plan.protocol, plan.seed)


def _hardware_name(device: DeviceInfo) -> str:
    """Our name of the device, as the importers would spell it."""
    if device.hardware:
        return device.hardware
    from ..store.importers.base import device_name

    return device_name(device.name)[0]
