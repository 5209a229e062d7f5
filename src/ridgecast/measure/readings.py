"""What measuring a device's ceilings gives: values with spread, count and provenance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from .base import DeviceInfo

__all__ = ["Ceiling", "Ceilings"]


@dataclass(frozen=True, slots=True)
class Ceiling:
    """One measured ceiling in SI units (flop/s, B/s, or s for a launch).

    `spread` is (p90 - p10) / median of the samples' times, `how` says in words what was run.
    """

    value: float
    spread: float
    samples: int
    how: str


def _nothing() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Ceilings:
    """A device's ceilings: `rates` [flop/s] by format, `memory` [B/s], `caches` [B/s] by level
    ("l1", "l2", "l3"), `launch` [s]; `utc` is when measuring began.

    What could not be measured is None or absent, with its reason in `missing`; `rows` are the
    rows of every point that was tried.
    """  # noqa: D205

    device: DeviceInfo
    utc: str
    rates: Mapping[str, Ceiling]
    memory: Ceiling | None
    caches: Mapping[str, Ceiling] = field(default_factory=_nothing)
    launch: Ceiling | None = None
    missing: Mapping[str, str] = field(default_factory=_nothing)
    rows: tuple[Mapping[str, Any], ...] = ()
