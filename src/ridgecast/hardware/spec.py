"""The frozen values that describe a device, in SI base units, with their range checks.

Owns `Hardware` and its parts. Reads no file: `catalog` builds these values, `whatif` changes
them. Must not import any other room but `units`, `dtypes` and `errors`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from types import MappingProxyType
from typing import Any, Literal, cast

from ..dtypes import DType
from ..dtypes import dtype as find_dtype
from ..errors import SpecError, UnsupportedError, nearest
from ..units import Bytes, BytesPerS, FlopsPerS, Hertz, Seconds, Watts

__all__ = ["KINDS", "Hardware", "Link", "MemoryLevel", "SmLimits", "Source", "Unit"]

Unit = Literal["tensor", "simt"]
_MAPPINGS = ("rates", "units", "other_rates", "links", "sources")
DEVICE_KINDS = ("gpu", "cpu")
FORMS = ("sxm", "pcie", "server", "workstation", "consumer", "laptop")
KINDS = ("spec", "measured", "derived", "assumed")


def _refuse(path: str, got: object, need: str) -> SpecError:
    return SpecError(f"{path}: got {got!r}, need {need}")


def _is_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _positive(path: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _refuse(path, value, "a number above 0")
    if not (math.isfinite(value) and value > 0):
        raise _refuse(path, value, "a finite number above 0")


def _whole(path: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
        raise _refuse(path, value, "a whole number from 1 to 2^31 - 1")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a number comes from.

    `kind` is spec (a vendor's document or a table of them), measured, derived (by a named rule
    from other fields) or assumed; `source` names the document or states the rule.
    """

    kind: str
    source: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            close = ", ".join(nearest(str(self.kind), KINDS))
            raise SpecError(
                f"kind: got {self.kind!r}, allowed: {', '.join(KINDS)} (nearest: {close})"
            )
        if not self.source.strip():
            raise SpecError("source: empty; name the document, or state the rule")


@dataclass(frozen=True, slots=True)
class MemoryLevel:
    """One level of memory: capacity [B], peak bandwidth [B/s], kind ("HBM3e", "GDDR6X", ...).

    For `Hardware.shared`, capacity is that of one SM and bandwidth that of the whole device.
    """

    capacity: Bytes
    bandwidth: BytesPerS
    kind: str = ""

    def __post_init__(self) -> None:
        _positive("capacity", self.capacity)
        _positive("bandwidth", self.bandwidth)


@dataclass(frozen=True, slots=True)
class SmLimits:
    """What one SM (compute unit, Xe-core) can hold at once; sizes in B, registers of 32 bits.

    `register_unit` registers per warp and `shared_unit` bytes per block are the granularities of
    allocation.
    """

    registers: int
    shared_memory: int
    max_threads: int
    max_blocks: int
    warp_size: int
    max_threads_per_block: int
    max_shared_per_block: int
    register_unit: int
    shared_unit: int
    max_registers_per_thread: int

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            _whole(f"sm.{f.name}", getattr(self, f.name))
        if self.max_shared_per_block > self.shared_memory:
            raise _refuse(
                "sm.max_shared_per_block",
                self.max_shared_per_block,
                f"at most sm.shared_memory = {self.shared_memory}",
            )
        if self.max_threads % self.warp_size:
            raise _refuse(
                "sm.max_threads", self.max_threads, f"a multiple of warp_size = {self.warp_size}"
            )


@dataclass(frozen=True, slots=True)
class Link:
    """A connection to other devices or the host: bandwidth [B/s] per direction, latency [s]."""

    bandwidth: BytesPerS
    latency: Seconds | None = None

    def __post_init__(self) -> None:
        _positive("bandwidth", self.bandwidth)
        if self.latency is not None:
            _positive("latency", self.latency)


def _no_rates() -> Mapping[str, float]:
    return MappingProxyType({})


def _no_links() -> Mapping[str, Link]:
    return MappingProxyType({})


def _no_sources() -> Mapping[str, Source]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=True)
class Hardware:
    """One device, in SI base units; immutable and hashable.

    `sm_count` counts SMs, compute units or Xe-cores. `clock` is the boost clock [Hz]. `rates` are
    dense peaks [flop/s, or op/s for integers] by dtype name, on the unit that `units` names;
    `other_rates` are the peaks of the same formats on the other unit, where a device has both
    (fp64 beside the tensor core, fp32 on AMD's matrix core). `memory`, `l2` and `shared` are the
    levels, `l3` a memory-side cache behind the L2 where there is one. `launch_latency` [s] is the
    fixed cost of one kernel replayed in a graph. `links` holds bandwidths per direction. `price`
    is in USD, `price_per_h` in USD/h. `sources` maps each field path ("memory.bandwidth",
    "rates.bf16") to where its number comes from.

    Raises SpecError with the field path for impossible values.
    """

    name: str
    sm_count: int
    clock: Hertz
    rates: Mapping[str, FlopsPerS]
    units: Mapping[str, str]
    memory: MemoryLevel
    l2: MemoryLevel
    shared: MemoryLevel
    sm: SmLimits
    launch_latency: Seconds
    board_power: Watts
    title: str = ""
    vendor: str = "unknown"
    kind: str = "gpu"
    architecture: str = "generic"
    isa: str = "generic"
    form: str = "pcie"
    released: str | None = None
    base_clock: Hertz | None = None
    other_rates: Mapping[str, FlopsPerS] = field(default_factory=_no_rates)
    l3: MemoryLevel | None = None
    idle_power: Watts | None = None
    links: Mapping[str, Link] = field(default_factory=_no_links)
    price: float | None = None
    price_per_h: float | None = None
    sources: Mapping[str, Source] = field(default_factory=_no_sources)
    notes: str = ""
    origin: Hardware | None = field(default=None, compare=False, repr=False)  # of a what-if

    def __post_init__(self) -> None:
        for name in _MAPPINGS:
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        for name, allowed in (("kind", DEVICE_KINDS), ("form", FORMS)):
            if getattr(self, name) not in allowed:
                raise _refuse(name, getattr(self, name), " or ".join(allowed))
        if self.released is not None and not _is_date(self.released):
            raise _refuse("released", self.released, "a date such as '2024-11-18'")
        _whole("sm_count", self.sm_count)
        for name in ("clock", "launch_latency", "board_power"):
            _positive(name, getattr(self, name))
        for name in ("base_clock", "price", "price_per_h"):
            if getattr(self, name) is not None:
                _positive(name, getattr(self, name))
        self._check_rates()
        self._check_order()

    def _check_rates(self) -> None:
        if not self.rates:
            raise SpecError("rates: empty; give at least one, for example rates.fp32")
        for table, rates in (("rates", self.rates), ("other_rates", self.other_rates)):
            for name, value in rates.items():
                _positive(f"{table}.{name}", value)
        for name in self.rates:
            if self.units.get(name) not in ("tensor", "simt"):
                raise _refuse(f"rates.{name}.unit", self.units.get(name), "'tensor' or 'simt'")

    def _check_order(self) -> None:
        if self.base_clock is not None and self.base_clock > self.clock:
            raise _refuse("base_clock", self.base_clock, f"at most clock = {self.clock} Hz (boost)")
        if self.idle_power is not None and not 0 <= self.idle_power < self.board_power:
            raise _refuse(
                "idle_power", self.idle_power, f"0 or more, below board_power = {self.board_power}"
            )
        for name in ("l2", "l3"):
            level = cast("MemoryLevel | None", getattr(self, name))
            if level is not None and level.capacity > self.memory.capacity:
                raise _refuse(
                    f"{name}.capacity",
                    level.capacity,
                    f"at most memory.capacity = {self.memory.capacity:.6g} B",
                )

    def __hash__(self) -> int:
        return hash((self.name, self.sm_count, self.clock, self.memory.bandwidth))

    def __reduce__(self) -> tuple[Any, ...]:
        # mapping proxies do not pickle; search runs in processes
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in _MAPPINGS:
            values[name] = dict(values[name])
        return _rebuild, (values,)

    @property
    def base_name(self) -> str:
        """Name of the catalogue device that a what-if device was made from."""
        return self.name.split("[", 1)[0]

    @property
    def family(self) -> str:
        """Chip family: architecture and kind of memory; a refresh ("ultra") is of the same.

        HBM against GDDR tells the data-centre chips of an architecture from the others.
        """
        memory = "hbm" if "hbm" in (self.memory.kind or "").lower() else "gddr"
        return f"{self.architecture.removesuffix('_ultra')}-{memory}"

    @property
    def last_level_cache(self) -> MemoryLevel:
        """The cache next to memory: the L3 (Infinity Cache) where there is one, else the L2."""
        return self.l3 or self.l2

    def supports(self, dtype: str | DType) -> bool:
        """Whether some unit multiplies this format (after dequantisation, for weight-only)."""
        return find_dtype(dtype).compute in self.rates

    def rate(self, dtype: str | DType, *, unit: str | None = None) -> FlopsPerS:
        """Dense peak [flop/s] for a format on its usual unit, or on the unit that is asked for.

        Raises UnsupportedError that names the formats of this device and the devices that have
        the wanted one.

        >>> from ridgecast.hardware import get
        >>> get("h200_sxm").rate("bf16")
        989400000000000.0
        """
        name = find_dtype(dtype).compute
        if name not in self.rates:
            raise UnsupportedError(self._no_rate(name))
        if unit is None or unit == self.units[name]:
            return self.rates[name]
        if unit not in ("tensor", "simt"):
            raise _refuse("unit", unit, "'tensor' or 'simt'")
        if name not in self.other_rates:
            raise UnsupportedError(
                f"{self.name} multiplies {name} on its {self.units[name]} unit only, not on {unit}"
            )
        return self.other_rates[name]

    def unit(self, dtype: str | DType) -> str:
        """Which unit multiplies this format: "tensor" (matrix cores too) or "simt"."""
        self.rate(dtype)
        return self.units[find_dtype(dtype).compute]

    def _no_rate(self, name: str) -> str:
        from .catalog import devices_with

        others = devices_with(name)
        where = ", ".join(others[:8]) + (", ..." if len(others) > 8 else "")
        return (
            f"{self.name} has no unit for {name}; it multiplies {', '.join(self.rates)}. "
            f"Devices with {name}: {where or 'none in the catalogue'}."
        )

    def what_if(self, changes: Mapping[str, str | float]) -> Hardware:
        """Return this device with fields changed: "+20%", "x2" or an absolute quantity.

        `sm_count` and `clock` scale every rate and the L2 and shared-memory bandwidths with them;
        `rates` scales every rate. See `ridgecast.hardware.whatif`.
        Raises SpecError for unknown fields (nearest three) and impossible results.

        >>> from ridgecast.hardware import get
        >>> get("h200_sxm").what_if({"memory.bandwidth": "x2"}).memory.bandwidth
        9600000000000.0
        """
        from .whatif import what_if

        return what_if(self, changes)

    def replace(self, **changes: Any) -> Hardware:
        """Return a copy with whole fields replaced, checked again."""
        return dataclasses.replace(self, **changes)


def _rebuild(values: dict[str, Any]) -> Hardware:
    return Hardware(**values)
