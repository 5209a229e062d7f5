"""Grams of CO2e, litres of water and grams of metal behind GPU work.

    device hours = flops / (peak x MFU)                              or given
    energy       = hours x board power x its share x node share x PUE
    CO2e         = energy x carbon intensity  +  device hours / life x making of device and server
    water        = energy / PUE x WUE  +  energy x water of the electricity
    devices      = device hours / (lifetime x busy share);  metal = devices x metal of one

The method for devices and metal is that of Falk et al. (arXiv:2512.04142), for water that of Li
et al. (arXiv:2304.03271), for embodied carbon that of Luccioni et al. (arXiv:2211.02001). Every
factor comes from `footprint.toml` with its source, or is given. A sum that lacks an unknown part is
None with the reason. `low` and `high` are reached when every factor is at its end of what was
published: an envelope, not an interval of known coverage.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import SpecError, unknown_name
from ..hardware import Hardware, resolve

__all__ = ["Factor", "Footprint", "Span", "factor_names", "footprint", "regions"]

_FILE = Path(__file__).with_name("footprint.toml")
_HOUR = 3600.0
_YEAR = 365 * 24 * _HOUR  # s; the papers count years of 365 days
_KWH = 3.6e6  # J
_SHARES = ("mfu", "board_power_share", "busy_share", "heavy_metal_share")
_OF_REGION = {"carbon_g_per_kwh": "carbon", "water_l_per_kwh": "water"}
_OF_DEVICE = ("embodied_kg", "mass_g", "toxic_g")


@dataclass(frozen=True, slots=True)
class Span:
    """A number and the ends of its range; all three equal where no range is known."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float) -> Span:
        """Span of one number."""
        return cls(value, value, value)

    def __mul__(self, other: Span | float) -> Span:
        o = other if isinstance(other, Span) else Span.of(other)
        return Span(self.value * o.value, self.low * o.low, self.high * o.high)

    def __truediv__(self, other: Span | float) -> Span:
        o = other if isinstance(other, Span) else Span.of(other)
        return Span(self.value / o.value, self.low / o.high, self.high / o.low)

    def __add__(self, other: Span) -> Span:
        return Span(self.value + other.value, self.low + other.low, self.high + other.high)


@dataclass(frozen=True, slots=True)
class Factor:
    """One number behind a footprint; `span` is None where it is unknown, with the `reason`."""

    name: str
    span: Span | None
    kind: str
    source: str
    title: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What the work took: totals with ranges, their parts, and every factor with its source.

    `devices` are lifetimes of devices used up. None where a part is unknown; `missing` says why.
    `elements` are grams by element or group of elements, as far as known.
    """

    device: str
    region: str
    device_hours: Span | None
    energy_j: Span
    co2_electricity_g: Span
    co2_embodied_g: Span | None
    co2_g: Span | None
    water_site_l: Span
    water_electricity_l: Span | None
    water_l: Span | None
    devices: Span | None
    metal_g: Span | None
    elements: Mapping[str, Span]
    factors: tuple[Factor, ...]
    missing: Mapping[str, str] = field(default_factory=dict[str, str])

    def to_dict(self) -> dict[str, Any]:
        """Flat columns with their units: co2_g, co2_low_g, co2_high_g ...; factors and reasons."""
        out: dict[str, Any] = {"device": self.device, "region": self.region}
        for name in ("device_hours", "energy_j", "co2_g", "co2_electricity_g", "co2_embodied_g",
                     "water_l", "water_site_l", "water_electricity_l", "devices",
                     "metal_g"):  # fmt: skip
            out |= _columns(name, getattr(self, name))
        out["elements_g"] = {name: span.value for name, span in self.elements.items()}
        out["factors"] = [
            {"name": f.name, **_columns("value", f.span), "kind": f.kind, "source": f.source,
             "title": f.title, "reason": f.reason}
            for f in self.factors
        ]  # fmt: skip
        return out | {"missing": dict(self.missing)}


def _columns(name: str, span: Span | None) -> dict[str, float | None]:
    stem, _, unit = name.rpartition("_")
    ends = ("low", "high")
    if unit in ("j", "g", "l") and stem:
        low, high = (f"{stem}_{end}_{unit}" for end in ends)
    else:
        low, high = (f"{name}_{end}" for end in ends)
    if span is None:
        return {name: None, low: None, high: None}
    return {name: span.value, low: span.low, high: span.high}


def footprint(
    device: str | Path | Hardware,
    *,
    device_hours: float | None = None,
    flops: float | None = None,
    energy: float | None = None,
    region: str = "world",
    dtype: str = "bf16",
    given: Mapping[str, float] | None = None,
) -> Footprint:
    """Footprint of device hours, of training flops, or of `energy` [J] that the boards drew.

    Exactly one of the three (energy may come with its device hours). `region` is a country's code
    or name; `given` replaces factors by name (`factor_names`), and then they have no range.
    Raises SpecError for anything unknown or impossible.

    >>> run = footprint("a100_sxm", device_hours=1082990, region="fr", given={"pue": 1.0})
    >>> round(run.energy_j.value / 3.6e9)  # MWh; BLOOM: 433
    433
    """
    hardware = resolve(device)
    factors = _factors(hardware, region, dict(given or {}))
    hours = _hours(hardware, factors, device_hours, flops, energy, dtype)
    boards = _boards(hardware, factors, hours, energy)
    it = boards * _span(factors, "node_share")
    total = it * _span(factors, "pue")
    missing: dict[str, str] = {}

    def known(name: str) -> Span | None:
        factor = factors[name]
        if factor.span is None:
            missing[name] = factor.reason
        return factor.span

    electricity = total * _span(factors, "carbon_g_per_kwh") / _KWH
    site = it * _span(factors, "wue_site") / _KWH
    station = known("water_l_per_kwh")
    water = None if station is None else total * station / _KWH
    devices = None
    if hours is None:
        missing["device_hours"] = "energy was given without the hours of devices behind it"
    else:
        life = _span(factors, "lifetime_years") * _span(factors, "busy_share")
        devices = hours / (life * (_YEAR / _HOUR))
    making = known("embodied_kg")
    embodied = None
    if devices is not None and making is not None:
        embodied = devices * (making + _span(factors, "server_embodied_kg")) * 1e3
    known("water_embodied")  # water leaves it out and says so
    metal, elements = _metal(factors, devices, known)
    return Footprint(
        device=hardware.name,
        region=_region(region)[0],
        device_hours=hours,
        energy_j=total,
        co2_electricity_g=electricity,
        co2_embodied_g=embodied,
        co2_g=None if embodied is None else electricity + embodied,
        water_site_l=site,
        water_electricity_l=water,
        water_l=None if water is None else site + water,
        devices=devices,
        metal_g=metal,
        elements=elements,
        factors=tuple(factors.values()),
        missing=missing,
    )


def _hours(
    hardware: Hardware,
    factors: Mapping[str, Factor],
    device_hours: float | None,
    flops: float | None,
    energy: float | None,
    dtype: str,
) -> Span | None:
    """Device hours; None where only energy is given."""
    for name, value in (("device_hours", device_hours), ("flops", flops), ("energy", energy)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise SpecError(f"{name}: got {value!r}, need a number above 0")
    if flops is not None:
        if device_hours is not None or energy is not None:
            raise SpecError("flops: given beside device hours or energy; give one of them")
        rate = _span(factors, "mfu") * hardware.rate(dtype)
        return Span.of(flops) / rate / _HOUR
    if device_hours is not None:
        return Span.of(device_hours)
    if energy is None:
        raise SpecError("how much? give device_hours, flops, or energy")
    return None


def _boards(
    hardware: Hardware, factors: Mapping[str, Factor], hours: Span | None, energy: float | None
) -> Span:
    """Energy that the boards drew [J]."""
    if energy is not None:
        return Span.of(energy)
    if hardware.board_power is None or hours is None:
        raise SpecError(f"{hardware.name}: board_power is not known; give the energy")
    return hours * (_span(factors, "board_power_share") * (hardware.board_power * _HOUR))


def _metal(
    factors: Mapping[str, Factor], devices: Span | None, known: Any
) -> tuple[Span | None, dict[str, Span]]:
    """Heavy metals of the devices used up [g], and what is known by element.

    The toxic elements alone are the low end, the mass of the whole module the high end.
    """
    mass = known("mass_g")
    toxic = factors["toxic_g"].span
    if factors["elements"].reason:
        known("elements")
    if devices is None:
        return None, {}
    elements = {} if toxic is None else {"toxic elements": devices * toxic}
    if mass is None:
        return None, elements
    metal = mass * _span(factors, "heavy_metal_share")
    low = metal.low if toxic is None else min(toxic.low, metal.low)
    return devices * Span(metal.value, low, mass.high), elements


# ------------------------------------------------------------------------------------- factors


def regions() -> dict[str, str]:
    """Titles of the regions by code."""
    return {code: entry["title"] for code, entry in _document()["regions"].items()}


def factor_names() -> tuple[str, ...]:
    """Names of the factors that `given` may replace."""
    return (*_document()["factors"], *_OF_REGION, *_OF_DEVICE)


@lru_cache(maxsize=1)
def _document() -> dict[str, Any]:
    return tomllib.loads(_FILE.read_text(encoding="utf-8"))


def _region(name: str) -> tuple[str, Mapping[str, Any]]:
    """Code and entry of a region by code, two-letter code or name."""
    wanted = name.strip().lower().replace("_", " ").replace("-", " ")
    table = _document()["regions"]
    spellings: dict[str, str] = {}
    for code, entry in table.items():
        spellings |= dict.fromkeys((code, entry["alias"], entry["title"].lower()), code)
    spellings["gb"] = "gbr"
    if wanted not in spellings:
        step = "Or give carbon_g_per_kwh yourself."
        raise SpecError(unknown_name("region", name, spellings, step))
    return spellings[wanted], table[spellings[wanted]]


def _factors(hardware: Hardware, region: str, given: dict[str, float]) -> dict[str, Factor]:
    """Every factor of a case: the file's, the region's, the device's, less what is given."""
    document = _document()
    found = {name: _factor(name, entry) for name, entry in document["factors"].items()}
    entry = _region(region)[1]
    for name, key in _OF_REGION.items():
        source = "ember" if key == "carbon" else "li"
        about: dict[str, Any] = {"kind": "derived", "source": source, "title": f"{key} of the "
                                 f"electricity of {entry['title']}, {entry['year']}"}  # fmt: skip
        if key in entry:
            about["value"] = entry[key]
        else:
            about["reason"] = f"no figure of that method for {entry['title']}"
        found[name] = _factor(name, about)
    own = document["devices"].get(hardware.base_name, {})
    own = document["devices"][own["like"]] if "like" in own else own
    none = {"kind": "derived", "reason": f"no life-cycle data of {hardware.name} found"}
    for name in (*_OF_DEVICE, "elements"):
        found[name] = _factor(name, own.get(name, none))
    for name, value in given.items():
        found[name] = _given(found, name, value)
    return found


def _factor(name: str, entry: Mapping[str, Any]) -> Factor:
    span = None
    if "value" in entry:
        value = float(entry["value"])
        span = Span(value, float(entry.get("low", value)), float(entry.get("high", value)))
    source = _document()["sources"].get(entry.get("source", ""), "")
    note = f" ({entry['note']})" if "note" in entry else ""
    return Factor(name, span, entry["kind"], source + note, entry.get("title", ""),
                  entry.get("reason", ""))  # fmt: skip


def _given(found: Mapping[str, Factor], name: str, value: float) -> Factor:
    if name not in factor_names():
        raise SpecError(unknown_name("factor", name, factor_names()))
    least = 1.0 if name in ("pue", "node_share") else 0.0
    most = 1.0 if name in _SHARES else math.inf
    zero = name in ("mfu", "lifetime_years", "busy_share", "board_power_share")
    if not (math.isfinite(value) and least <= value <= most) or (zero and value == 0):
        need = f"from {least:g}" + (f" to {most:g}" if most < math.inf else "")
        raise SpecError(f"{name}: got {value!r}, need a number {need}{', not 0' if zero else ''}")
    return replace(found[name], span=Span.of(float(value)), kind="given", source="given", reason="")


def _span(factors: Mapping[str, Factor], name: str) -> Span:
    span = factors[name].span
    if span is None:
        raise SpecError(f"{name}: {factors[name].reason}; give it")
    return span
