"""SI base units in code, readable units at the edges.

Owns the annotations (`Seconds = float`), the parser for quantities that people write
("3.35 TB/s", "80 GiB", "700 W") and the one formatter for eyes. Must not import any other room
but `errors`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from functools import lru_cache

from .errors import SpecError

__all__ = [
    "Bytes",
    "BytesPerS",
    "Flops",
    "FlopsPerS",
    "Hertz",
    "Joules",
    "Seconds",
    "Watts",
    "dimension_of",
    "format_field",
    "format_number",
    "format_quantity",
    "heading_of",
    "key_values",
    "number_or_text",
    "parse_quantity",
]

Seconds = float
Bytes = float
Joules = float
Watts = float
Hertz = float
Flops = float
BytesPerS = float
FlopsPerS = float

_DECIMAL = {
    "": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
    "m": 1e-3, "u": 1e-6, "µ": 1e-6, "n": 1e-9, "p": 1e-12,
}  # fmt: skip
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
# unit spelling -> (dimension, base-unit name, factor)
_BASE = {
    "s": ("time", 1.0), "min": ("time", 60.0), "h": ("time", 3600.0),
    "B": ("bytes", 1.0), "bit": ("bytes", 0.125),
    "J": ("energy", 1.0), "Wh": ("energy", 3600.0),
    "W": ("power", 1.0),
    "Hz": ("frequency", 1.0),
    "flop": ("flops", 1.0), "FLOP": ("flops", 1.0), "op": ("flops", 1.0), "OP": ("flops", 1.0),
    "B/s": ("bytes_per_s", 1.0), "bit/s": ("bytes_per_s", 0.125),
    "flop/s": ("flops_per_s", 1.0), "FLOP/s": ("flops_per_s", 1.0), "FLOPS": ("flops_per_s", 1.0),
    "op/s": ("flops_per_s", 1.0), "OP/s": ("flops_per_s", 1.0), "OPS": ("flops_per_s", 1.0),
    "USD": ("price", 1.0), "USD/h": ("price_per_h", 1.0),
}  # fmt: skip
_NUMBER = re.compile(r"^\s*([-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(\S.*?)?\s*$")

_UNIT_OF = {
    "time": "s", "bytes": "B", "energy": "J", "power": "W", "frequency": "Hz", "flops": "flop",
    "bytes_per_s": "B/s", "flops_per_s": "flop/s",
}  # fmt: skip
# suffix of a key -> dimension; the longest suffix that fits wins
_SUFFIXES = {
    "_bytes_per_s": "bytes_per_s", "_flops_per_s": "flops_per_s", "_bytes": "bytes",
    "_flops": "flops", "_hz": "frequency", "_s": "time", "_j": "energy", "_w": "power",
}  # fmt: skip
_SHARES = ("_share", "utilisation", "coverage", "mape", "_error", "probability")


def _unit_factor(unit: str) -> tuple[str, float] | None:
    for base in sorted(_BASE, key=len, reverse=True):
        if not unit.endswith(base):
            continue
        prefix = unit[: len(unit) - len(base)]
        dimension, factor = _BASE[base]
        if prefix in _BINARY and dimension in ("bytes", "bytes_per_s"):
            return dimension, factor * _BINARY[prefix]
        if prefix in _DECIMAL:
            return dimension, factor * _DECIMAL[prefix]
    return None


def parse_quantity(text: str, dimension: str, *, field: str = "value") -> float:
    """Parse a written quantity into SI base units.

    `dimension` is one of time, bytes, energy, power, frequency, flops, bytes_per_s, flops_per_s,
    price, price_per_h. GB = 1e9 B, GiB = 2^30 B.
    Raises SpecError when the unit is missing, unknown or of another dimension, or the number is
    not finite.

    >>> parse_quantity("3.35 TB/s", "bytes_per_s")
    3350000000000.0
    >>> parse_quantity("80 GiB", "bytes")
    85899345920.0
    """
    match = _NUMBER.match(text)
    example = _UNIT_OF.get(dimension, dimension)
    if match is None:
        raise SpecError(f"{field}: {text!r} is not a number with a unit, such as '1.5 {example}'")
    number, unit = float(match.group(1).replace("_", "")), match.group(2)
    if unit is None:
        raise SpecError(f"{field}: {text!r} has no unit; write for example '{text} {example}'")
    found = _unit_factor(unit)
    if found is None or found[0] != dimension:
        raise SpecError(
            f"{field}: unit {unit!r} in {text!r} does not measure {dimension}; "
            f"write for example '1.5 {example}' (prefixes k M G T P, and Ki Mi Gi for bytes)"
        )
    value = number * found[1]
    if not math.isfinite(value):
        raise SpecError(f"{field}: {text!r} is not finite")
    return value


def format_number(value: float) -> str:
    """Format a plain number for eyes: three significant digits, thousands in full.

    >>> format_number(0.12345), format_number(3894.2), format_number(17), format_number(2.5e10)
    ('0.123', '3,894', '17', '2.5e+10')
    """
    return f"{value:,.0f}" if 999.5 <= abs(value) < 1e9 else f"{value:.3g}"


def format_quantity(value: float | None, dimension: str) -> str:
    """Format a value in SI base units for eyes: three significant digits and a decimal prefix.

    >>> format_quantity(3.35e12, "bytes_per_s")
    '3.35 TB/s'
    >>> format_quantity(None, "time")
    'n/a'
    """
    if value is None or math.isnan(value):
        return "n/a"
    unit = _UNIT_OF.get(dimension, "")
    if value == 0:
        return f"0 {unit}".strip()
    prefixes = ["p", "n", "µ", "m", "", "k", "M", "G", "T", "P", "E"]
    # round first so that 999.96 becomes 1.00 k, not 1000
    magnitude = math.floor(math.log10(float(f"{abs(value):.2e}")) / 3 + 1e-12)
    low = -4 if dimension in ("time", "energy", "power") else 0
    magnitude = min(max(magnitude, low), 6)
    scaled = value / 10.0 ** (3 * magnitude)
    digits = max(0, 2 - math.floor(math.log10(float(f"{abs(scaled):.2e}"))))
    return f"{scaled:.{digits}f} {prefixes[magnitude + 4]}{unit}".strip()


@lru_cache(maxsize=1024)
def dimension_of(key: str) -> str:
    """Dimension that the suffix of a key or column carries, "share" for shares, "" for neither.

    >>> dimension_of("memory_bytes"), dimension_of("time_share"), dimension_of("batch")
    ('bytes', 'share', '')
    """
    if key == "share" or key.endswith(_SHARES):
        return "share"
    if key.endswith(("_j_s", "tokens_per_s", "requests_per_s")):
        return ""
    return next((d for suffix, d in _SUFFIXES.items() if key.endswith(suffix)), "")


def format_field(key: str, value: object) -> str:
    """Format a value for eyes by the unit that its key carries; "" where there is none.

    >>> format_field("time_s", 1.5e-4), format_field("share", 0.25), format_field("basis", "bound")
    ('150 µs', '25.0 %', 'bound')
    >>> format_field("rate", 3894.2), format_field("m", 4096)
    ('3,894', '4096')
    """
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, str | bool) or not isinstance(value, int | float):
        return str(value)
    dimension = dimension_of(key)
    if dimension == "share":
        return f"{100 * value:.1f} %"
    if key.endswith("_j_s"):
        return f"{value:.3g} J s"
    if dimension:
        return format_quantity(float(value), dimension)
    return str(value) if isinstance(value, int) else format_number(value)


@lru_cache(maxsize=1024)
def heading_of(key: str) -> str:
    """Heading of a column: its key without the unit, which stands in the cells.

    >>> heading_of("time_s"), heading_of("memory_bytes_per_s"), heading_of("edp_j_s")
    ('time', 'memory bandwidth', 'edp')
    """
    for suffix in ("_j_s", *_SUFFIXES):
        if key.endswith(suffix) and dimension_of(key) + ("J" if suffix == "_j_s" else ""):
            rate = {"_bytes_per_s": " bandwidth", "_flops_per_s": " rate"}.get(suffix, "")
            return key.removesuffix(suffix) + rate
    return key


def key_values(pairs: Iterable[str], option: str) -> dict[str, str]:
    """Split `field=value` pairs of a repeatable option; a pair twice is refused.

    >>> key_values(["memory.bandwidth=+20%"], "--what-if")
    {'memory.bandwidth': '+20%'}
    """
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not (key and equals and value):
            raise SpecError(f"{option}: got {pair!r}, need FIELD=VALUE: {option} field=+20%")
        if key in found:
            raise SpecError(f"{option}: {key!r} is given twice")
        found[key] = value
    return found


def number_or_text(text: str) -> str | int | float:
    """Read a whole number, a number, or else leave the text as it is.

    >>> number_or_text("16"), number_or_text("0.5"), number_or_text("max")
    (16, 0.5, 'max')
    """
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
