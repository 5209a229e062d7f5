"""Find and read devices: the shipped catalogue, aliases, a user's own TOML, third parties.

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

Nothing is read at import. Must not import any other room but `units`, `dtypes` and `errors`.
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

__all__ = ["devices_with", "get", "load", "loads", "names", "resolve"]

CATALOG = Path(__file__).parent / "catalog"
ENTRY_POINTS = "ridgecast.hardware"
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
_BRANDS = re.compile(
    r"\b(nvidia|amd|intel|geforce|tesla|quadro|radeon|instinct|graphics|gpu|tensor core)\b"
)


def names(*, third_party: bool = False) -> tuple[str, ...]:
    """Names of the catalogue's devices, sorted; with installed third parties' on request."""
    found = {path.stem for path in CATALOG.glob("*.toml")} - {"aliases"}
    if third_party:
        found |= set(_third_party())
    return tuple(sorted(found))


def get(name: str) -> Hardware:
    """Look up a device by name or by a common other spelling ("NVIDIA H200", "H100-SXM").

    Case, spaces, dashes and vendor names do not matter. Raises SpecError with the nearest three.

    >>> get("NVIDIA H200").name
    'h200_sxm'
    """
    return _get(str(name))


def resolve(what: str | Path | Hardware) -> Hardware:
    """Return a device from an object, a name, or a path that ends in .toml."""
    if isinstance(what, Hardware):
        return what
    if isinstance(what, Path) or what.endswith(".toml"):
        return load(what)
    return get(what)


def load(path: str | Path) -> Hardware:
    """Read a device file. Raises SpecError with the field path for anything wrong in it."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        reason = getattr(err, "strerror", None) or "not a text file"
        raise SpecError(f"hardware file {str(path)!r}: cannot read it ({reason})") from None
    return loads(text, origin=path.name)


def loads(text: str, *, origin: str = "hardware") -> Hardware:
    """Read a device from TOML text; `origin` names it in messages and is the default source."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        raise SpecError(f"{origin}: not valid TOML: {err}") from None
    return _build(document, origin)


def devices_with(dtype: str) -> tuple[str, ...]:
    """Names of the catalogue's devices that have a unit for a format (by compute format)."""
    return _devices_with(find_dtype(dtype).compute)


@lru_cache(maxsize=64)
def _devices_with(compute: str) -> tuple[str, ...]:
    return tuple(name for name in names() if compute in get(name).rates)


@lru_cache(maxsize=1024)
def _get(name: str) -> Hardware:
    path = CATALOG / f"{name}.toml"
    if re.fullmatch(r"[a-z0-9_]+", name) and name != "aliases" and path.exists():
        return load(path)
    key = _normal(name)
    index = _aliases()
    if key in index:
        return _get(index[key])
    others = _third_party()
    for other, point in others.items():
        if key == _normal(other):
            return _from_entry_point(point)
    known = [*names(), *others]
    step = "List them with `ridgecast hardware`, or give a device file (my.toml)."
    raise SpecError(unknown_name("hardware", name, known, step))


def _normal(name: str) -> str:
    """Reduce a spelling to what tells devices apart."""
    text = re.sub(r"\((r|tm)\)|[®™]", " ", name.lower())
    return re.sub(r"[^a-z0-9]", "", _BRANDS.sub(" ", re.sub(r"[-_/,]", " ", text)))


@lru_cache(maxsize=1)
def _aliases() -> dict[str, str]:
    document = tomllib.loads((CATALOG / "aliases.toml").read_text(encoding="utf-8"))
    index = {_normal(name): name for name in names()}
    for name, spellings in cast("dict[str, list[str]]", document).items():
        for spelling in spellings:
            known = index.setdefault(_normal(spelling), name)
            if known != name:
                raise SpecError(f"aliases.toml: {spelling!r} names both {known} and {name}")
    return index


@lru_cache(maxsize=1)
def _third_party() -> dict[str, Any]:
    from importlib.metadata import entry_points

    found: dict[str, Any] = {}
    shipped = {_normal(name) for name in names()}
    for point in entry_points(group=ENTRY_POINTS):
        if point.name in found and found[point.name].value == point.value:
            continue  # one distribution found twice on sys.path
        if point.name in found or _normal(point.name) in shipped:
            raise SpecError(
                f"hardware {point.name!r} is defined twice: entry point {point.value!r} "
                f"repeats a device that exists; rename it or uninstall its package"
            )
        found[point.name] = point
    return found


def _from_entry_point(point: Any) -> Hardware:
    made = point.load()
    made = made() if callable(made) else made
    if isinstance(made, str | Path):
        made = load(made)
    if not isinstance(made, Hardware):
        raise SpecError(
            f"entry point {point.value!r}: gives {type(made).__name__}, need a Hardware, a path "
            "to a .toml file, or a function that returns one"
        )
    return made


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

    def fill(self, path: str, number: float, kind: str, rule: str) -> float:
        self.sources[path] = Source(kind, rule)
        return number

    def level(self, key: str) -> tuple[Mapping[str, Any], dict[str, float], str]:
        """The given parts of one memory level."""
        table = self.read.table(self.doc, key)
        self.read.known(table, ("capacity", "bandwidth", "kind"), key)
        given = {
            part: self.take(table[part], dimension, f"{key}.{part}").number
            for part, dimension in (("capacity", "bytes"), ("bandwidth", "bytes_per_s"))
            if part in table
        }
        return table, given, self.read.text(table, "kind", "") or ""

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
            rates["fp8_e5m2"] = self.fill(
                "rates.fp8_e5m2", rates["fp8_e4m3"], "derived", "rates.fp8_e4m3: same unit"
            )
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
                raise SpecError(f"{path}.{err}") from None
        return links


def _find_isa(build: _Builder) -> _Isa:
    """The isa that a file names, or the one its architecture and form imply."""
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
    build: _Builder, isa: _Isa, sm: SmLimits, sm_count: int, clock: float
) -> dict[str, MemoryLevel | None]:
    """Every memory level, gaps filled by the rules of the module docstring."""

    def rule(name: str, path: str, text: str, factor: float) -> float:
        value = isa.rules[name]
        kind = "derived" if value.source.kind in ("spec", "derived") else "assumed"
        written = f"{text}, {name} = {value.number:g} of {isa.name} ({value.source.source})"
        return build.fill(path, value.number * factor, kind, written)

    levels: dict[str, MemoryLevel | None] = {}
    for key in LEVELS:
        _, given, kind = build.level(key)
        if key == "l3" and not given:
            levels[key] = None
            continue
        path = f"{key}.bandwidth"
        if "bandwidth" not in given and key in ("l2", "shared"):
            name = f"{key}_bytes_per_clock"
            given["bandwidth"] = rule(name, path, f"{name} x sm_count x clock", sm_count * clock)
        path = f"{key}.capacity"
        if "capacity" not in given and key == "l2":
            given["capacity"] = rule("l2_per_sm", path, "l2_per_sm x sm_count", sm_count)
        if "capacity" not in given and key == "shared":
            given["capacity"] = build.fill(path, sm.shared_memory, "derived", "sm.shared_memory")
        for part in ("capacity", "bandwidth"):
            if part not in given:
                raise build.read.error(f"{key}.{part}", "missing; every device needs it")
        try:
            levels[key] = MemoryLevel(given["capacity"], given["bandwidth"], kind)
        except SpecError as err:
            raise SpecError(f"{build.read.origin}: {key}.{err}") from None
    return levels


def _build(document: Mapping[str, Any], origin: str) -> Hardware:
    """Turn a parsed file into a Hardware."""
    build = _Builder(document, origin)
    read = build.read
    name = read.text(document, "name")
    if not name or not re.fullmatch(r"[a-z0-9_]+", name):
        raise read.error("name", f"got {name!r}, need lower_snake_case such as 'h200_sxm'")
    isa = _find_isa(build)
    sm_count = build.need(document, "sm_count", "count", "sm_count")
    clock = build.need(document, "clock", "frequency", "clock")
    rates, units = build.rates("rates", isa)
    other_rates, _ = build.rates("other_rates", isa)
    try:
        sm = build.sm(isa)
        levels = _levels(build, isa, sm, int(sm_count), clock)
        board_power = build.maybe("board_power")
        if board_power is None:
            value = isa.rules["power_per_sm"]
            text = f"power_per_sm x sm_count, {value.number:g} W of {isa.name}"
            board_power = build.fill(
                "board_power", value.number * sm_count, "assumed", f"{text} ({value.source.source})"
            )
        latency = build.maybe("launch_latency")
        if latency is None:
            value = isa.rules["launch_latency"]
            latency = build.fill(
                "launch_latency", value.number, "assumed", f"{isa.name}: {value.source.source}"
            )
        texts = {key: read.text(document, key) for key in TEXT}
        return Hardware(
            **{key: text for key, text in texts.items() if text is not None and key != "isa"},  # type: ignore[arg-type]
            isa=isa.name,
            sm_count=int(sm_count),
            clock=clock,
            base_clock=build.maybe("base_clock"),
            rates=rates,
            units=units,
            other_rates=other_rates,
            memory=cast("MemoryLevel", levels["memory"]),
            l2=cast("MemoryLevel", levels["l2"]),
            l3=levels["l3"],
            shared=cast("MemoryLevel", levels["shared"]),
            sm=sm,
            launch_latency=latency,
            board_power=board_power,
            idle_power=build.maybe("idle_power"),
            links=build.links(),
            price=build.maybe("price"),
            price_per_h=build.maybe("price_per_h"),
            sources=build.sources,
        )
    except SpecError as err:
        message = str(err)
        if message.startswith(f"{origin}: "):
            raise
        raise SpecError(f"{origin}: {message}") from None
