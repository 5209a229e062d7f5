"""Counterfactual devices: the same device with some numbers changed.

A change is "+20%" or "-10%" (relative), "x2" (factor), or an absolute quantity with its unit
("500 W", "6 TB/s"; plain numbers for counts). Three changes reach further than their own field:

- `clock` scales every rate, the L2 and shared-memory bandwidths and the base clock with it
  (they run in, or close to, the SM clock domain);
- `sm_count` scales every rate and the L2 and shared-memory bandwidths with it (more SMs bring
  their own units, shared memory and, in every shipped family, L2 slices);
- `rates` scales every rate.

They are applied first, so that an absolute value given beside them stands. Must not import any
other room but `units` and `errors`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, cast

from ..errors import SpecError, nearest
from ..units import parse_quantity
from .schema import LEVELS, QUANTITIES, SM_FIELDS
from .spec import Hardware, Link, MemoryLevel, Source

__all__ = ["fields", "what_if"]

_FIRST = ("sm_count", "clock", "rates")
_PERCENT = re.compile(r"^\s*([+-]\s*[\d.]+(?:e[+-]?\d+)?)\s*%\s*$", re.IGNORECASE)
_FACTOR = re.compile(r"^\s*[x×*]\s*([\d.]+(?:e[+-]?\d+)?)\s*$", re.IGNORECASE)


def fields(hw: Hardware) -> dict[str, tuple[float | None, str]]:
    """Every field that can be changed: path -> (value in SI, dimension)."""
    found: dict[str, tuple[float | None, str]] = {"sm_count": (hw.sm_count, "count")}
    for name, dimension in QUANTITIES.items():
        found[name] = (getattr(hw, name), dimension)
    for table in ("rates", "other_rates"):
        for name, value in cast("Mapping[str, float]", getattr(hw, table)).items():
            found[f"{table}.{name}"] = (value, "flops_per_s")
    for name in LEVELS:
        level = cast("MemoryLevel | None", getattr(hw, name))
        if level is not None:
            found[f"{name}.capacity"] = (level.capacity, "bytes")
            found[f"{name}.bandwidth"] = (level.bandwidth, "bytes_per_s")
    for name, dimension in SM_FIELDS.items():
        found[f"sm.{name}"] = (getattr(hw.sm, name), dimension)
    for name, link in hw.links.items():
        found[f"links.{name}.bandwidth"] = (link.bandwidth, "bytes_per_s")
        found[f"links.{name}.latency"] = (link.latency, "time")
    return found


def what_if(hw: Hardware, changes: Mapping[str, str | float]) -> Hardware:
    """Return `hw` with `changes` made; its name tells them.

    Raises SpecError for an unknown field (nearest three), a change that cannot be read, or a
    result that no device can have.

    >>> from ridgecast.hardware import get
    >>> what_if(get("h200_sxm"), {"clock": "-10%"}).name
    'h200_sxm[clock=-10%]'
    """
    if not changes:
        return hw
    known = fields(hw)
    for path in changes:
        if path not in known and path != "rates":
            close = ", ".join(nearest(path, [*known, "rates"]))
            raise SpecError(f"what_if: unknown field {path!r} of {hw.name}; nearest: {close}")
    ordered = sorted(changes, key=lambda path: path not in _FIRST)
    text = ",".join(f"{path}={_compact(changes[path])}" for path in changes)
    out = hw
    try:
        for path in ordered:
            out = _apply(out, path, changes[path])
    except SpecError as err:
        raise SpecError(f"what_if[{text}]: {err}") from None
    name = f"{hw.name[:-1]},{text}]" if hw.name.endswith("]") else f"{hw.name}[{text}]"
    return dataclasses.replace(out, name=name, origin=hw.origin or hw)


def _compact(change: str | float) -> str:
    return re.sub(r"\s+", "", str(change))


def _changed(old: float | None, change: str | float, dimension: str, path: str) -> float:
    """Return the new value of one field."""
    text = str(change)
    percent, factor = _PERCENT.match(text), _FACTOR.match(text)
    if percent or factor:
        if old is None:
            raise SpecError(f"{path}: is not known, so {text!r} has no base; give a value")
        try:
            by = 1 + float(percent[1].replace(" ", "")) / 100 if percent else float(factor[1])  # type: ignore[index]
        except ValueError:
            raise SpecError(f"{path}: cannot read {text!r}") from None
        return old * by
    if dimension == "count":
        try:
            return float(text)
        except ValueError:
            need = "+20%, x2 or a whole number"
            raise SpecError(f"{path}: cannot read {text!r}; need {need}") from None
    if not isinstance(change, str):
        return float(change)
    return parse_quantity(text, dimension, field=path)


def _apply(hw: Hardware, path: str, change: str | float) -> Hardware:
    told = Source("assumed", f"what if {path} = {change}")
    if path == "rates":
        by = _changed(1.0, change, "ratio", path) if _relative(change) else None
        if by is None:
            raise SpecError("rates: is a group; give +20% or x2, or name one, as rates.bf16")
        return _scaled(hw, by, ("rates", "other_rates"), told)
    old, dimension = fields(hw)[path]
    new = _changed(old, change, dimension, path)
    if dimension == "count" or (path.startswith("sm.") and dimension == "bytes"):
        if path != "sm_count" and new != round(new):
            raise SpecError(f"{path}: becomes {new:g}, need a whole number")
        new = round(new)
    if path in ("sm_count", "clock"):
        rule = Source("derived", f"scaled with {path} = {change}")
        by = new / cast("float", old)
        if not 0 < by < float("inf"):
            raise SpecError(f"{path}: got {new:g}, need a number above 0")
        hw = _scaled(hw, by, ("rates", "other_rates", "l2", "shared"), rule)
        if path == "clock" and hw.base_clock is not None:
            hw = dataclasses.replace(hw, base_clock=hw.base_clock * by, clock=new)
    return _set(hw, path, new, told)


def _relative(change: str | float) -> bool:
    return isinstance(change, str) and bool(_PERCENT.match(change) or _FACTOR.match(change))


def _scaled(hw: Hardware, by: float, tables: tuple[str, ...], source: Source) -> Hardware:
    """Scale rates and the bandwidths of memory levels by one factor."""
    new: dict[str, Any] = {}
    sources = dict(hw.sources)
    for table in tables:
        found = getattr(hw, table)
        if isinstance(found, MemoryLevel):
            new[table] = dataclasses.replace(found, bandwidth=found.bandwidth * by)
            sources[f"{table}.bandwidth"] = source
        else:
            rates = cast("Mapping[str, float]", found)
            new[table] = {name: rate * by for name, rate in rates.items()}
            sources.update({f"{table}.{name}": source for name in rates})
    return dataclasses.replace(hw, sources=sources, **new)


def _set(hw: Hardware, path: str, new: float, source: Source) -> Hardware:
    """Put one number into its place."""
    sources = {**hw.sources, path: source}
    head, _, rest = path.partition(".")
    value: Any = new
    if head in ("rates", "other_rates"):
        value = {**getattr(hw, head), rest: new}
    elif head == "links":
        link, _, part = rest.rpartition(".")
        try:
            changed: Link = dataclasses.replace(hw.links[link], **{part: new})
        except SpecError as err:
            raise SpecError(f"links.{link}.{err}") from None
        value = {**hw.links, link: changed}
    elif rest:
        try:
            value = dataclasses.replace(getattr(hw, head), **{rest: new})
        except SpecError as err:
            raise SpecError(str(err) if head == "sm" else f"{head}.{err}") from None
    return dataclasses.replace(hw, sources=sources, **{head: value})
