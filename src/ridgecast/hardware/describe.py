"""Devices as rows for people: pure data, no printing.

Must not import any other room but `units` and `errors`.
"""

from __future__ import annotations

from typing import NamedTuple

from ..units import format_quantity
from .schema import TEXT
from .spec import Hardware
from .whatif import fields

__all__ = ["CompareRow", "Row", "compare", "describe"]

_UNITS = {
    "count": "",
    "bytes": "B",
    "bytes_per_s": "B/s",
    "flops_per_s": "flop/s",
    "frequency": "Hz",
    "power": "W",
    "time": "s",
    "price": "USD",
    "price_per_h": "USD/h",
}


class Row(NamedTuple):
    """One field of a device; `value` is in SI units (None: not known), `text` is for eyes."""

    field: str
    value: float | str | None
    unit: str
    kind: str
    source: str
    text: str


class CompareRow(NamedTuple):
    """One field of two devices, in SI units; `ratio` is b / a where both are known numbers."""

    field: str
    a: float | str | None
    b: float | str | None
    unit: str
    ratio: float | None
    a_text: str
    b_text: str


def describe(hw: Hardware) -> list[Row]:
    """Return every field of a device with its unit, kind and source; unknown values stay None."""
    rows = [
        Row(name, found or None, "", "", "", str(found or "n/a"))
        for name in TEXT
        for found in (getattr(hw, name),)
    ]
    for path, (value, dimension) in fields(hw).items():
        source = hw.sources.get(path)
        unit = hw.units.get(path.removeprefix("rates."), "") if path.startswith("rates.") else ""
        text = _text(value, dimension) + (f" ({unit})" if unit else "")
        kind, origin = (source.kind, source.source) if source else ("", "")
        rows.append(Row(path, value, _UNITS[dimension], kind, origin, text))
    return rows


def compare(a: Hardware, b: Hardware) -> list[CompareRow]:
    """Return the fields of two devices side by side, those that only one has included."""
    left = {row.field: row for row in describe(a)}
    right = {row.field: row for row in describe(b)}
    rows: list[CompareRow] = []
    for name in [*left, *(name for name in right if name not in left)]:
        one, two = left.get(name), right.get(name)
        old, new = (one.value if one else None), (two.value if two else None)
        numbers = isinstance(old, int | float) and isinstance(new, int | float) and old > 0
        ratio = float(new) / float(old) if numbers else None  # type: ignore[arg-type]
        unit = (one or two).unit  # type: ignore[union-attr]
        texts = (one.text if one else "n/a", two.text if two else "n/a")
        rows.append(CompareRow(name, old, new, unit, ratio, *texts))
    return rows


def _text(value: float | None, dimension: str) -> str:
    if value is None:
        return "n/a"
    if dimension == "count":
        return str(int(value))
    if dimension.startswith("price"):
        return f"{value:,.2f} {_UNITS[dimension]}"
    return format_quantity(value, dimension)
