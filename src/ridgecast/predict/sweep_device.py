"""A device as plain values and back, so that a model carries the very device it was fitted for.

Owns the JSON form of `Hardware` in a model's card. Files that people write are `hardware`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from ..hardware import Hardware, Link, MemoryLevel, SmLimits, Source

__all__ = ["hardware_from_dict", "hardware_to_dict"]

_LEVELS = ("memory", "l2", "shared", "l3")


def hardware_to_dict(hardware: Hardware) -> dict[str, Any]:
    """Plain values in SI base units, JSON-able."""
    out: dict[str, Any] = {}
    for f in fields(hardware):
        value = getattr(hardware, f.name)
        if f.name in ("links", "sources"):
            value = {key: asdict(item) for key, item in value.items()}
        elif isinstance(value, MemoryLevel | SmLimits):
            value = asdict(value)
        elif isinstance(value, Mapping):
            value = dict(value)
        out[f.name] = value
    return out


def hardware_from_dict(state: Mapping[str, Any]) -> Hardware:
    """Undo `hardware_to_dict`. Raises SpecError for impossible values, TypeError for a gap."""
    values = dict(state)
    for name in _LEVELS:
        values[name] = MemoryLevel(**values[name]) if values[name] is not None else None
    values["sm"] = SmLimits(**values["sm"])
    values["links"] = {key: Link(**item) for key, item in values["links"].items()}
    values["sources"] = {key: Source(**item) for key, item in values["sources"].items()}
    return Hardware(**values)
