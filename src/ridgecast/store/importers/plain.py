"""Any table with a column map: our column -> their column, with a unit.

A map entry is `"their column"`, `"their column [unit]"` or `"=one value for all rows"`. Without
a map, columns are expected under our own names, which is also how our own files are read back.
Without a unit a column is taken to be in the SI unit that our column's suffix names.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from ...dtypes import DTYPES
from ...errors import SpecError, unknown_name
from ...units import parse_quantity
from ..schema import COLUMNS, CONFIG_COLUMNS, canonical, invalidate, upgrade, validate
from ..tables import Table, length, map_text, numeric, require_columns, text
from .base import Importer, Request, device_name, dtypes

__all__ = ["IMPORTER"]

_DIMENSION = {"s": "time", "W": "power", "J": "energy"}
_ENTRY = re.compile(r"^(?P<column>.*?)\s*\[(?P<unit>[^\]]+)\]\s*$")


def convert(table: Table, request: Request) -> Table:
    """Canonical rows of a table under a column map.

    Raises SpecError for columns that the schema or the table lacks, and for units that do not
    measure what our column holds.
    """
    extra: Table = {}
    if "schema_version" in table:
        versions = numeric(table, "schema_version")[0]
        table = upgrade(table, int(np.nanmax(versions)) if len(versions) else 1)
        table = {name: column for name, column in table.items() if name != "schema_version"}
        extra = {} if request.column_map else table  # our own file: keep notes of its source
    rows = length(table)
    given: dict[str, Any] = {}
    bad_cells: dict[str, np.ndarray] = {}
    mapping = dict(request.column_map) or {
        name: name for name in (*COLUMNS, *CONFIG_COLUMNS, "power_limit_w") if name in table
    }
    for ours, theirs in mapping.items():
        given[ours] = _column(table, ours, str(theirs), bad_cells)
    for name, value in request.defaults.items():
        given.setdefault(name, _constant(name, str(value), rows))
    missing = [name for name in ("m", "n", "k", "time_s") if name not in given]
    if missing:
        raise SpecError(
            f"{request.path}: the column map gives no {', '.join(missing)}; "
            "write for example time_s='latency [ms]'"
        )
    given.setdefault("op", text("gemm", rows))
    given.setdefault("source_file", text(request.name, rows))
    if "dtype" in given:
        given["dtype"] = dtypes(given["dtype"])
    out = canonical(rows, **{**extra, **given})
    out["hardware"] = map_text(out["hardware"], lambda name: device_name(name)[0] if name else "")
    for name, bad in bad_cells.items():
        if name in ("m", "n", "k", "batch", "time_s"):
            invalidate(out, bad, f"{name} is not a number")
    if "dtype" not in given:
        everything = np.ones(rows, dtype=bool)
        invalidate(out, everything, f"no dtype: give one of {', '.join(list(DTYPES)[:6])} ...")
    return validate(out)


def _column(table: Table, ours: str, theirs: str, bad_cells: dict[str, np.ndarray]) -> np.ndarray:
    known = (*COLUMNS, *CONFIG_COLUMNS, "power_limit_w")
    if ours not in known:
        raise SpecError(unknown_name("measurement column", ours, known))
    if theirs.startswith("="):
        return _constant(ours, theirs[1:].strip(), length(table))
    match = _ENTRY.match(theirs)
    name, unit = theirs, ""
    if match is not None:
        unit = match["unit"]
        name = theirs if theirs in table else match["column"]
    require_columns(table, [name], what=f"column map {ours}={theirs!r}")
    column = COLUMNS.get(ours)
    kind = column.kind if column else "float"
    if kind == "text":
        return map_text(table[name], str)
    if kind == "bool" and table[name].dtype == bool:
        return table[name]
    values, bad = numeric(table, name)
    if kind == "bool":
        return values == 1.0
    bad_cells[ours] = bad
    return values * _factor(ours, unit)


def _factor(ours: str, unit: str) -> float:
    if not unit:
        return 1.0
    base = COLUMNS[ours].unit if ours in COLUMNS else ""
    if base not in _DIMENSION:
        raise SpecError(f"column map {ours}: has no unit, got [{unit}]")
    return parse_quantity(f"1 {unit}", _DIMENSION[base], field=f"column map {ours}")


def _constant(ours: str, value: str, rows: int) -> np.ndarray:
    column = COLUMNS.get(ours)
    if column is not None and column.kind == "text":
        return text(value, rows)
    if column is not None and column.kind == "bool":
        return np.full(rows, value.lower() in ("true", "1", "yes"))
    try:
        return np.full(rows, float(value))
    except ValueError:
        raise SpecError(f"{ours}: got {value!r}, need a number") from None


IMPORTER = Importer(
    name="plain",
    what="any CSV, Parquet or JSON lines with a column map",
    needs=("m", "n", "k", "time_s"),
    convert=convert,
)
