"""Turn a parsed device file into a `Hardware`, filling its gaps from relatives.

A device file needs name, sm_count, clock, memory.capacity, memory.bandwidth and one rate. What it
leaves out is filled from `catalog/isa/<isa>.toml` (limits of one SM, and the `[rules]` below),
each with kind "derived" or "assumed" and the rule as its source:

- shared.bandwidth = shared_bytes_per_clock x sm_count x clock
- shared.capacity = sm.shared_memory
- l2.bandwidth = l2_bytes_per_clock x sm_count x clock
- l2.capacity = l2_per_sm x sm_count
- board_power = power_per_sm x sm_count
- launch_latency = that of relatives
- rates.fp8_e5m2 = rates.fp8_e4m3 (one unit multiplies both)

Must not import any other room but `units`, `dtypes` and `errors`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from ..dtypes import DTYPES
from ..dtypes import dtype as find_dtype
from ..errors import SpecError, unknown_name
from .schema import LEVELS, QUANTITIES, SM_FIELDS, TEXT, Reader, Value
from .spec import Hardware, Link, MemoryLevel, SmLimits, Source

__all__ = ["CATALOG", "build"]

CATALOG = Path(__file__).parent / "catalog"
# architecture -> the isa file that fills gaps: data-centre parts, and consumer or workstation ones
_ISA_OF = {
    "generic": ("generic", "generic"),
    "pascal": ("sm_60", "sm_61"),
    "volta": ("sm_70", "sm_70"),
    "turing": ("sm_75", "sm_75"),
    "ampere": ("sm_80", "sm_86"),
    "ada": ("sm_89", "sm_89"),
    "hopper": ("sm_90", "sm_90"),
    "blackwell": ("sm_100", "sm_120"),
    "blackwell_ultra": ("sm_103", "sm_103"),
    "gcn5": ("gfx906", "gfx906"),
    "cdna1": ("gfx908", "gfx908"),
    "cdna2": ("gfx90a", "gfx90a"),
    "cdna3": ("gfx942", "gfx942"),
    "cdna4": ("gfx950", "gfx950"),
    "rdna2": ("gfx1030", "gfx1030"),
    "rdna3": ("gfx1100", "gfx1100"),
    "xe_hpg": ("xe_hpg", "xe_hpg"),
    "xe_hpc": ("xe_hpc", "xe_hpc"),
    "xe2": ("xe2", "xe2"),
}
_TABLES = ("rates", "other_rates", "memory", "l2", "l3", "shared", "sm", "links", "sources")
_TOP = (*TEXT, "source", "sm_count", *QUANTITIES, *_TABLES)


class _Isa:
    """What relatives of a device have: limits of one SM, matrix formats, rules for gaps."""

    def __init__(self, name: str, document: Mapping[str, Any]) -> None:
        read = Reader(document, origin=f"isa/{name}.toml")
        read.known(document, ("title", "source", "sources", "tensor", "sm", "rules"))
        sm, rules = read.table(document, "sm"), read.table(document, "rules")
        self.name = name
        self.tensor = frozenset(cast("list[str]", document.get("tensor", [])))
        self.sm = {k: read.value(sm[k], d, f"sm.{k}") for k, d in SM_FIELDS.items()}
        kinds = {
            "shared_bytes_per_clock": "ratio",
            "l2_bytes_per_clock": "ratio",
            "l2_per_sm": "bytes",
            "power_per_sm": "power",
            "launch_latency": "time",
        }
        read.known(rules, tuple(kinds), "rules")
        self.rules = {k: read.value(rules[k], d, f"rules.{k}") for k, d in kinds.items()}


@lru_cache(maxsize=32)
def _isa(name: str) -> _Isa:
    text = (CATALOG / "isa" / f"{name}.toml").read_text(encoding="utf-8")
    return _Isa(name, tomllib.loads(text))


def _isa_names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in (CATALOG / "isa").glob("*.toml")))


class _Builder:
    """Collects the values of one device with their sources, filling gaps from its isa."""

    def __init__(self, document: Mapping[str, Any], origin: str) -> None:
        self.read = Reader(document, origin=origin, default=f"the file {origin}")
        self.doc = document
        self.sources: dict[str, Source] = {}
        self.read.known(document, _TOP)

    def need(self, table: Mapping[str, Any], key: str, dimension: str, path: str) -> float:
        if key not in table:
            raise self.read.error(path, "missing; every device needs it")
        return self.take(table[key], dimension, path).number

    def take(self, raw: object, dimension: str, path: str) -> Value:
        value = self.read.value(raw, dimension, path)
        self.sources[path] = value.source
        return value

    def maybe(self, key: str) -> float | None:
        return self.take(self.doc[key], QUANTITIES[key], key).number if key in self.doc else None

    def count(self, key: str) -> int:
        number = self.need(self.doc, key, "count", key)
        if number < 1:
            raise self.read.error(key, f"got {number}, need 1 or more")
        return int(number)

    def texts(self) -> dict[str, str]:
        """Return the text fields that the file gives, but the isa, which is resolved apart."""
        found = {key: self.read.text(self.doc, key) for key in TEXT if key != "isa"}
        return {key: text for key, text in found.items() if text is not None}

    def rule(self, isa: _Isa, name: str, path: str, factor: float, by: str) -> float:
        """Fill a gap with a rule of the isa times a factor, and record that as its source."""
        number, source, _ = isa.rules[name]
        kind = "derived" if source.kind in ("spec", "derived") else "assumed"
        text = f"{name} of {isa.name} ({number:g}: {source.source})" + (f" x {by}" if by else "")
        self.sources[path] = Source(kind, text)
        return number * factor

    def level(self, key: str) -> tuple[dict[str, float], str]:
        """Return the given parts of one memory level, and its kind."""
        table = self.read.table(self.doc, key)
        self.read.known(table, ("capacity", "bandwidth", "kind"), key)
        given = {
            part: self.take(table[part], dimension, f"{key}.{part}").number
            for part, dimension in (("capacity", "bytes"), ("bandwidth", "bytes_per_s"))
            if part in table
        }
        return given, self.read.text(table, "kind", "") or ""

    def rates(self, key: str, isa: _Isa) -> tuple[dict[str, float], dict[str, str]]:
        """Rates by dtype, each with the unit that runs it."""
        rates: dict[str, float] = {}
        units: dict[str, str] = {}
        for written, raw in self.read.table(self.doc, key).items():
            path = f"{key}.{written}"
            try:
                name = find_dtype(written).name
            except SpecError:
                message = unknown_name("dtype", written, DTYPES)
                raise self.read.error(path, message) from None
            if name != find_dtype(name).compute:
                raise self.read.error(path, f"runs at the rate of {find_dtype(name).compute}")
            if name in rates:
                raise self.read.error(path, f"gives {name} a second time")
            value = self.take(raw, "flops_per_s", f"{key}.{name}")
            if name != written:
                self.sources.pop(path, None)
            rates[name] = value.number
            units[name] = value.unit or ("tensor" if name in isa.tensor else "simt")
        if key == "rates" and "fp8_e4m3" in rates and "fp8_e5m2" not in rates:
            rates["fp8_e5m2"] = rates["fp8_e4m3"]
            self.sources["rates.fp8_e5m2"] = Source("derived", "rates.fp8_e4m3: same unit")
            units["fp8_e5m2"] = units["fp8_e4m3"]
        return rates, units

    def sm(self, isa: _Isa) -> SmLimits:
        table = self.read.table(self.doc, "sm")
        self.read.known(table, tuple(SM_FIELDS), "sm")
        values: dict[str, Value] = {}
        for key, dimension in SM_FIELDS.items():
            if key in table:
                values[key] = self.take(table[key], dimension, f"sm.{key}")
            else:
                values[key] = isa.sm[key]
                self.sources[f"sm.{key}"] = isa.sm[key].source
        return SmLimits(**{key: int(value.number) for key, value in values.items()})

    def links(self) -> dict[str, Link]:
        links: dict[str, Link] = {}
        for name in self.read.table(self.doc, "links"):
            entry = self.read.table(self.read.table(self.doc, "links"), name)
            path = f"links.{name}"
            self.read.known(entry, ("bandwidth", "latency"), path)
            bandwidth = self.need(entry, "bandwidth", "bytes_per_s", f"{path}.bandwidth")
            latency = None
            if "latency" in entry:
                latency = self.take(entry["latency"], "time", f"{path}.latency").number
            try:
                links[name] = Link(bandwidth, latency)
            except SpecError as err:
                raise self.read.error(path, str(err)) from None
        return links


def _find_isa(build: _Builder) -> _Isa:
    """Return the isa that a file names, or the one its architecture and form imply."""
    doc, read = build.doc, build.read
    architecture = read.text(doc, "architecture", "generic") or "generic"
    if architecture not in _ISA_OF:
        step = "Write architecture = 'generic' when it is none of these."
        raise read.error("architecture", unknown_name("architecture", architecture, _ISA_OF, step))
    desk = read.text(doc, "form", "pcie") in ("consumer", "laptop", "workstation")
    isa = read.text(doc, "isa") or _ISA_OF[architecture][1 if desk else 0]
    if isa not in _isa_names():
        raise read.error("isa", unknown_name("isa", isa, _isa_names()))
    return _isa(isa)


def _levels(
    device: _Builder, isa: _Isa, sm: SmLimits, sm_count: int, clock: float
) -> dict[str, MemoryLevel]:
    """Every memory level, gaps filled by the rules of the module docstring."""
    levels: dict[str, MemoryLevel] = {}
    for key in LEVELS:
        given, kind = device.level(key)
        if key == "l3" and not given and not kind:
            continue
        if key in ("l2", "shared") and "bandwidth" not in given:
            rule = f"{key}_bytes_per_clock"
            factor = sm_count * clock
            given["bandwidth"] = device.rule(isa, rule, f"{key}.bandwidth", factor, "SMs x clock")
        if key == "l2" and "capacity" not in given:
            given["capacity"] = device.rule(isa, "l2_per_sm", "l2.capacity", sm_count, "SMs")
        if key == "shared" and "capacity" not in given:
            given["capacity"] = float(sm.shared_memory)
            device.sources["shared.capacity"] = Source("derived", "sm.shared_memory")
        for part in ("capacity", "bandwidth"):
            if part not in given:
                raise device.read.error(f"{key}.{part}", "missing; the device needs it")
        try:
            levels[key] = MemoryLevel(given["capacity"], given["bandwidth"], kind)
        except SpecError as err:
            raise SpecError(f"{key}.{err}") from None
    return levels


def build(document: Mapping[str, Any], origin: str) -> Hardware:
    """Turn a parsed file into a Hardware; `origin` names it in messages and as default source.

    Raises SpecError with the field path.
    """
    try:
        return _build(_Builder(document, origin))
    except SpecError as err:
        message = str(err)
        raise SpecError(message if message.startswith(origin) else f"{origin}: {message}") from None


def _build(device: _Builder) -> Hardware:
    read, document = device.read, device.doc
    name = read.text(document, "name")
    if not name or not re.fullmatch(r"[a-z0-9_]+", name):
        raise read.error("name", f"got {name!r}, need lower_snake_case such as 'h200_sxm'")
    isa = _find_isa(device)
    sm_count = device.count("sm_count")
    clock = device.need(document, "clock", "frequency", "clock")
    if clock <= 0:
        raise read.error("clock", f"got {clock:g} Hz, need more than 0")
    rates, units = device.rates("rates", isa)
    sm = device.sm(isa)
    levels = _levels(device, isa, sm, sm_count, clock)
    power, latency = device.maybe("board_power"), device.maybe("launch_latency")
    if power is None:
        power = device.rule(isa, "power_per_sm", "board_power", sm_count, "SMs")
    if latency is None:
        latency = device.rule(isa, "launch_latency", "launch_latency", 1, "")
    return Hardware(
        **device.texts(),
        isa=isa.name,
        sm_count=sm_count,
        clock=clock,
        base_clock=device.maybe("base_clock"),
        rates=rates,
        units=units,
        other_rates=device.rates("other_rates", isa)[0],
        memory=levels["memory"],
        l2=levels["l2"],
        l3=levels.get("l3"),
        shared=levels["shared"],
        sm=sm,
        launch_latency=latency,
        board_power=power,
        idle_power=device.maybe("idle_power"),
        links=device.links(),
        price=device.maybe("price"),
        price_per_h=device.maybe("price_per_h"),
        sources=device.sources,
        origin=None,
    )
