"""Meters: sources of power, energy, clocks and throttle state, by name, loaded on first use."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ...errors import SpecError, unknown_name
from ..base import Meter

__all__ = ["METERS", "get_meter"]

# name -> "module:class"; every meter has a Replay twin (meters.replay)
METERS: dict[str, str] = {
    "clock": "ridgecast.measure.meters.clock:Clock",
    "nvml": "ridgecast.measure.meters.nvml:Nvml",
    "rapl": "ridgecast.measure.meters.rapl:Rapl",
    "replay": "ridgecast.measure.meters.replay:Replay",
}


def get_meter(name: str, **options: Any) -> Meter:
    """Build a meter. Raises SpecError with the nearest names for an unknown one."""
    if name not in METERS:
        raise SpecError(unknown_name("meter", name, METERS))
    module, _, attribute = METERS[name].partition(":")
    return getattr(import_module(module), attribute)(**options)
