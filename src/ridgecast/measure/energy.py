"""Energy of one run: a settled window of back-to-back runs between two readings of a counter.

    |-- settle: same load >= 1.5 s --|---- window >= 2.5 s, whole runs ----|
                                     ^ start()                             ^ synchronize, stop()

Averaged power sensors lag by about a second, so a short window shows the kernel before it. Owns
the window; a `Meter` owns the numbers. Knows no device.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import SpecError
from .base import Meter, Work

__all__ = ["EnergyProtocol", "measure_energy"]


@dataclass(frozen=True, slots=True)
class EnergyProtocol:
    """Durations in seconds; `agreement` is how far counter and integrated samples may differ."""

    settle: float = 1.5
    window: float = 2.5
    agreement: float = 0.03

    def __post_init__(self) -> None:
        if not (self.settle >= 0 and self.window > 0 and self.agreement > 0):
            raise SpecError(
                f"energy protocol: got settle {self.settle}, window {self.window}, agreement "
                f"{self.agreement}; need settle >= 0 and the others above 0"
            )


def measure_energy(
    work: Work, run_time: float, meter: Meter | None, protocol: EnergyProtocol
) -> dict[str, Any]:
    """Columns of an energy window. TODO(helper): cross-check, idle, per-run energy, clocks."""
    del work, run_time, meter, protocol
    time.sleep(0)
    return {"energy_j": np.nan, "energy_reason": "no meter"}
