"""Run it for real: providers, meters, one protocol, resumable sweeps, calibration.

Owns everything that touches a device. Imports with numpy alone. Never changes a device's clocks,
power limit, compute mode or persistence, and never resets one.
"""

from .base import DeviceInfo, Meter, Point, Probe, Provider, Reading, Work

__all__ = ["DeviceInfo", "Meter", "Point", "Probe", "Provider", "Reading", "Work"]
