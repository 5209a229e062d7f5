"""Write measured ceilings as a device file of the catalogue's form.

With a catalogue device as base, its file with the measured fields put in. Without one, a CPU:

    sm_count             cores used              sm.warp_size    fp32 lanes of the vector unit
    shared               level 1 data cache: capacity of a core, bandwidth of all cores
    l2                   the cores' level 2 caches together
    l3                   level 3 cache, where there is one
    memory               RAM; bandwidth of copy or triad
    sm.max_blocks        1: a core runs the blocks that are dealt to it one after another
    sm.registers         as many as the threads of a block could ask for: threads are iterations of
                         loops, whose values wait in the level 1 cache, so that registers never
                         keep a block from running (they cost speed, which calibration learns)

Latencies of the levels are not fields of a device file. Board power is left to the rule for
unknown devices and says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from ..errors import MeasurementError
from ..hardware import Hardware
from ..hardware.schema import LEVELS, SM_FIELDS
from ..hardware.spec import Source
from .base import DeviceInfo
from .readings import Ceiling, Ceilings

__all__ = ["to_hardware_toml"]

_THREADS = 1024  # of a block: tile side 32
_REGISTERS = 255  # of a thread, as many as any GPU allows
_LINE = 64  # bytes of a cache line
_L1 = 32 * 2**10  # bytes assumed where the level 1 cache is not known
_CLOCK = 3e9  # Hz assumed where the system tells none
_TOP_UNITS = {"clock": "Hz", "base_clock": "Hz", "launch_latency": "s", "board_power": "W",
              "idle_power": "W", "price": "USD", "price_per_h": "USD/h"}  # fmt: skip
_TEXT = ("title", "vendor", "kind", "architecture", "isa", "form", "released", "notes")
_BLOCK_RULE = "a core runs one block at a time, its threads as vector lanes and loop iterations"


class _Document:
    """Fields of a device file by path, each with kind and source, rendered as TOML."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = {key: text for key, text in texts.items() if text}
        self._levels: dict[str, str] = {}
        self._entries: dict[str, tuple[float | str, Source, str]] = {}

    def put(self, path: str, number: float, source: Source, *, unit: str = "") -> None:
        """Set a number; `unit` makes it a text with its unit, without one it is a count."""
        value = f"{number:.12g} {unit}" if unit else int(number)
        self._entries[path] = (value, source, "")

    def runs_on(self, path: str, unit: str) -> None:
        """Name the unit ("tensor", "simt") that a rate is of."""
        value, source, _ = self._entries[path]
        self._entries[path] = (value, source, unit)

    def level(self, name: str, kind: str) -> None:
        """Name the kind of a memory level, such as HBM3e."""
        if kind:
            self._levels[name] = kind

    def measured(self, path: str, ceiling: Ceiling | None, utc: str, *, unit: str) -> None:
        """Set a measured number, keeping which unit it is of; None changes nothing."""
        if ceiling is not None:
            runs_on = self._entries[path][2] if path in self._entries else ""
            source = Source("measured", f"ridgecast, {utc}: {ceiling.how}")
            self.put(path, float(f"{ceiling.value:.5g}"), source, unit=unit)
            self.runs_on(path, runs_on)

    def render(self) -> str:
        """Return the TOML text: top-level fields, [sources], then tables."""
        names: dict[str, str] = {}
        tables: dict[str, list[str]] = {name: [f"kind = {_quoted(kind)}"]
                                        for name, kind in self._levels.items()}  # fmt: skip
        for path, (value, source, runs_on) in self._entries.items():
            table, _, key = path.rpartition(".")
            name = names.setdefault(source.source, f"s{len(names) + 1}")
            shown = _quoted(value) if isinstance(value, str) else str(value)
            tail = f', unit = "{runs_on}"' if runs_on else ""
            line = f'{key} = {{ value = {shown}, kind = "{source.kind}", source = "{name}"{tail} }}'
            tables.setdefault(table, []).append(line)
        lines = [f"{key} = {_quoted(text)}" for key, text in self._texts.items()]
        lines += [*tables.pop("", []), "", "[sources]"]
        lines += [f"{name} = {_quoted(source)}" for source, name in names.items()]
        for table, rows in tables.items():
            lines += ["", f"[{table}]", *rows]
        return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # a JSON string is a TOML basic string


def to_hardware_toml(
    ceilings: Ceilings, device: DeviceInfo, base: Hardware | None = None, *, name: str = ""
) -> str:
    """Return the text of a device file that holds what was measured.

    `base` is the device's catalogue entry, whose other fields are kept with their sources; a CPU
    needs none. Measured fields have kind "measured" and say when and how. `name` defaults to the
    base's name, or to the device's in snake case, with "_measured". Raises MeasurementError where
    a GPU has no base, or a CPU no measured memory bandwidth or no rate.
    """
    name = name or f"{base.name if base else _snake(device.name)}_measured"
    if base is not None:
        document = _of_base(base, name)
    elif device.kind == "cpu":
        document = _of_cpu(ceilings, device, name)
    else:
        raise MeasurementError(
            f"{device.name}: without a catalogue device as base its limits are not known; "
            "write a device file first (ridgecast hardware shows the form)"
        )
    utc = ceilings.utc
    for dtype, ceiling in ceilings.rates.items():
        document.measured(f"rates.{dtype}", ceiling, utc, unit="FLOP/s")
    document.measured("memory.bandwidth", ceilings.memory, utc, unit="B/s")
    levels = {"l1": "shared", "l2": "l2", "l3": "l3"}
    for level, ceiling in ceilings.caches.items():
        document.measured(f"{levels[level]}.bandwidth", ceiling, utc, unit="B/s")
    document.measured("launch_latency", ceilings.launch, utc, unit="s")
    return document.render()


def _snake(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "device"


def _of_base(base: Hardware, name: str) -> _Document:
    """Return every field of a catalogue device, each with its source."""
    texts = {key: getattr(base, key) or "" for key in _TEXT}
    document = _Document({"name": name, **texts})

    def put(path: str, number: float | None, unit: str = "") -> None:
        if number is not None:
            source = base.sources.get(path, Source("derived", f"as {base.name}"))
            document.put(path, number, source, unit=unit)

    put("sm_count", base.sm_count)
    for key, unit in _TOP_UNITS.items():
        put(key, getattr(base, key), unit)
    for dtype, rate in base.rates.items():
        put(f"rates.{dtype}", rate, "FLOP/s")
        document.runs_on(f"rates.{dtype}", base.units[dtype])
    for dtype, rate in base.other_rates.items():
        put(f"other_rates.{dtype}", rate, "FLOP/s")
    for level in LEVELS:
        held = getattr(base, level)
        if held is not None:
            document.level(level, held.kind)
            put(f"{level}.capacity", held.capacity, "B")
            put(f"{level}.bandwidth", held.bandwidth, "B/s")
    for key, dimension in SM_FIELDS.items():
        put(f"sm.{key}", getattr(base.sm, key), "B" if dimension == "bytes" else "")
    for link, held in base.links.items():
        put(f"links.{link}.bandwidth", held.bandwidth, "B/s")
        put(f"links.{link}.latency", held.latency, "s")
    return document


def _of_cpu(ceilings: Ceilings, device: DeviceInfo, name: str) -> _Document:
    """Return what a CPU has in place of a GPU's fields; see the module docstring."""
    if ceilings.memory is None or not ceilings.rates:
        told = "; ".join(f"{what}: {why}" for what, why in ceilings.missing.items())
        raise MeasurementError(
            f"{device.name}: a device file needs a memory bandwidth and a rate ({told}); "
            "measure with the providers numba and blas, or with a larger budget"
        )
    facts = device.facts
    system = Source("measured", "as the operating system tells it")
    rule = Source("assumed", _BLOCK_RULE)
    document = _Document({
        "name": name, "title": device.name, "vendor": _vendor(device.name), "kind": "cpu",
        "architecture": "generic", "form": "server",
        "notes": "A CPU in a GPU's terms: SMs are cores, shared memory is the level 1 cache.",
    })  # fmt: skip
    threads = [int(row["threads"]) for row in ceilings.rows if row.get("threads")]
    document.put("sm_count", max(threads, default=int(facts.get("cores", 1))), system)
    clock = facts.get("max_frequency_hz") or facts.get("frequency_hz")
    told = Source("assumed", "the clock that the system reports; boost may be higher")
    document.put("clock", clock or _CLOCK, told, unit="Hz")
    unknown = Source("assumed", "the system does not tell it")
    document.put("memory.capacity", device.memory or 2**30, system if device.memory else unknown,
                 unit="B")  # fmt: skip
    l1 = int(facts.get("l1_core_bytes", 0))
    document.put("shared.capacity", l1 or _L1, system if l1 else unknown, unit="B")
    for level in ("l2", "l3"):
        size = int(facts.get(f"{level}_bytes", 0))
        # an l3 needs a bandwidth, which only measuring gives
        if size and (level == "l2" or level in ceilings.caches):
            document.put(f"{level}.capacity", size, system, unit="B")
    lanes = int(facts.get("simd_bits", 128)) // 32
    limits = {
        "registers": _THREADS * _REGISTERS, "shared_memory": l1 or _L1, "max_threads": _THREADS,
        "max_blocks": 1, "warp_size": lanes, "max_threads_per_block": _THREADS,
        "max_shared_per_block": l1 or _L1, "register_unit": lanes, "shared_unit": _LINE,
        "max_registers_per_thread": _REGISTERS,
    }  # fmt: skip
    for key, number in limits.items():
        document.put(f"sm.{key}", number, rule, unit="B" if SM_FIELDS[key] == "bytes" else "")
    return document


def _vendor(text: str) -> str:
    """Return the maker's name in lower case, as catalogue files write it."""
    makers = ("amd", "intel", "nvidia", "apple", "arm", "ampere", "qualcomm")
    return next((maker for maker in makers if maker in text.lower()), "unknown")
