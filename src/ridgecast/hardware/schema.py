"""The form of a device file: which fields there are, their dimension, how each is read.

A value is a string with a unit ("3.35 TB/s"), a whole number for counts, or a table
`{value = "...", kind = "...", source = "..."}` when its source differs from the file's default.
Must not import any other room but `units`, `dtypes` and `errors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from ..errors import SpecError, nearest
from ..units import parse_quantity
from .spec import Source

__all__ = ["LEVELS", "QUANTITIES", "SM_FIELDS", "TEXT", "Reader", "Value"]

TEXT = ("name", "title", "vendor", "kind", "architecture", "isa", "form", "released", "notes")
QUANTITIES = {
    "clock": "frequency",
    "base_clock": "frequency",
    "launch_latency": "time",
    "board_power": "power",
    "idle_power": "power",
    "price": "price",
    "price_per_h": "price_per_h",
}
LEVELS = ("memory", "l2", "l3", "shared")
SM_FIELDS = {
    "registers": "count",
    "shared_memory": "bytes",
    "max_threads": "count",
    "max_blocks": "count",
    "warp_size": "count",
    "max_threads_per_block": "count",
    "max_shared_per_block": "bytes",
    "register_unit": "count",
    "shared_unit": "bytes",
    "max_registers_per_thread": "count",
}


class Value(NamedTuple):
    """A number in SI base units, its source, and the unit that runs it (rates only)."""

    number: float
    source: Source
    unit: str = ""


class Reader:
    """Reads values of one file: resolves sources, parses units, names the field in errors."""

    def __init__(self, document: Mapping[str, Any], *, origin: str, default: str = "") -> None:
        self.origin = origin
        self.named = self._texts(document.get("sources", {}))
        self.default = default
        if "source" in document:
            self.default = self._source("source", document["source"])

    def error(self, path: str, message: str) -> SpecError:
        """Make a SpecError that names file and field."""
        return SpecError(f"{self.origin}: {path}: {message}")

    def table(self, parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        """Return a sub-table, empty when absent."""
        found = parent.get(key, {})
        if not isinstance(found, dict):
            raise self.error(key, f"got {found!r}, need a table [{key}]")
        return cast("Mapping[str, Any]", found)

    def known(self, table: Mapping[str, Any], allowed: tuple[str, ...], path: str = "") -> None:
        """Refuse keys that are not allowed, with the nearest three."""
        for key in table:
            if key not in allowed:
                where = f"{path}.{key}" if path else key
                close = ", ".join(nearest(key, allowed))
                raise self.error(where, f"unknown field; nearest: {close}")

    def text(self, table: Mapping[str, Any], key: str, default: str | None = None) -> str | None:
        """Return a text field."""
        found = table.get(key, default)
        if found is not None and not isinstance(found, str):
            raise self.error(key, f"got {found!r}, need text in quotes")
        return found

    def value(self, raw: object, dimension: str, path: str) -> Value:
        """Read a sourced number: a bare value takes the file's default source, kind spec."""
        if not isinstance(raw, dict):
            if not self.default:
                raise self.error(path, "has no source; give it one, or the file a default `source`")
            return Value(self.number(raw, dimension, path), Source("spec", self.default))
        entry = cast("dict[str, Any]", raw)
        self.known(entry, ("value", "kind", "source", "unit"), path)
        if "value" not in entry:
            raise self.error(path, "has no `value`")
        named = self._source(path, entry["source"]) if "source" in entry else self.default
        if not named:
            raise self.error(path, "has no source; give it one, or the file a default `source`")
        try:
            source = Source(str(entry.get("kind", "spec")), named)
        except SpecError as err:
            raise self.error(path, str(err)) from None
        number = self.number(entry["value"], dimension, path)
        return Value(number, source, str(entry.get("unit", "")))

    def number(self, raw: object, dimension: str, path: str) -> float:
        """Parse a count (a whole number) or a quantity with its unit (text) into SI."""
        if dimension in ("count", "ratio"):
            if isinstance(raw, bool) or not isinstance(raw, int | float):
                raise self.error(path, f"got {raw!r}, need a number without unit")
            if dimension == "count" and not isinstance(raw, int):
                raise self.error(path, f"got {raw!r}, need a whole number")
            return raw
        if not isinstance(raw, str):
            example = {"bytes": "80 GiB", "bytes_per_s": "3.35 TB/s", "frequency": "1.98 GHz"}
            hint = example.get(dimension, "700 W" if dimension == "power" else "1.5 us")
            raise self.error(path, f"got {raw!r} without a unit; write it as text, like '{hint}'")
        return parse_quantity(raw, dimension, field=f"{self.origin}: {path}")

    def _texts(self, raw: object) -> dict[str, str]:
        if not isinstance(raw, dict):
            raise self.error("sources", "need a table of id = 'document'")
        for key, text in cast("dict[str, object]", raw).items():
            if not isinstance(text, str) or not text.strip():
                raise self.error(f"sources.{key}", "need the document's name as text")
        return cast("dict[str, str]", raw)

    def _source(self, path: str, name: object) -> str:
        if not isinstance(name, str):
            raise self.error(path, f"source: got {name!r}, need an id of [sources]")
        if name not in self.named:
            close = ", ".join(nearest(name, self.named)) or "none declared"
            raise self.error(path, f"source {name!r} is not in [sources]; nearest: {close}")
        return self.named[name]
