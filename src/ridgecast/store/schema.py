"""The one schema of measurements: columns, units, versions and what makes a row valid.

Owns the names and meaning of the columns that every importer produces. Knows no file format and
no device.
"""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np

from ..dtypes import DTYPES
from ..errors import SpecError
from .tables import Table, is_text, length, map_text, numeric, text, write_table

__all__ = ["COLUMNS", "CONFIG_COLUMNS", "SCHEMA_VERSION", "Column", "canonical", "upgrade",
           "validate", "write_measurements"]  # fmt: skip

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Column:
    """One canonical column: its kind (text, int, float, bool), unit, meaning and default."""

    kind: str
    unit: str
    meaning: str
    default: Any = None


COLUMNS: dict[str, Column] = {
    "op": Column("text", "", "name of the op, such as gemm", ""),
    "hardware": Column("text", "", "our device name, or the source's text in snake case", ""),
    "dtype": Column("text", "", "our format name", ""),
    "m": Column("int", "1", "rows of op(A) and D"),
    "n": Column("int", "1", "columns of op(B) and D"),
    "k": Column("int", "1", "contraction length"),
    "batch": Column("int", "1", "independent multiplications", 1),
    "layout": Column("text", "", "op(A), op(B) as in BLAS: nn, nt, tn, tt", ""),
    "kernel": Column("text", "", "kernel family: library, clblast, cutlass_simt, tiled ...", ""),
    "kernel_source": Column("text", "", "kernel as the source calls it", ""),
    "time_s": Column("float", "s", "duration of one run (the source's mean or median)"),
    "time_std_s": Column("float", "s", "standard deviation over the samples"),
    "time_low_s": Column("float", "s", "smallest sample or collection"),
    "time_high_s": Column("float", "s", "largest sample or collection"),
    "samples": Column("float", "1", "how many runs or collections stand behind time_s"),
    "power_w": Column("float", "W", "mean board power while it ran"),
    "power_valid": Column("bool", "", "whether power_w may be used", False),
    "energy_j": Column("float", "J", "energy of one run, where the source measured it"),
    "cache": Column("text", "", "hot (operands may stay in L2), cold (flushed) or unknown", ""),
    "launch": Column("text", "", "graph (replayed), stream (launch included) or unknown", ""),
    "sustained": Column("bool", "", "back-to-back for long enough to reach the power limit", False),
    "collection": Column("text", "", "one campaign of measurements on one device", ""),
    "source_file": Column("text", "", "file that the row came from", ""),
    "licence": Column("text", "", "licence of the source", ""),
    "valid": Column("bool", "", "whether time_s may be used", True),
    "reason": Column("text", "", "why a flag is false, and other notes on the row", ""),
}

# How it was run. Tile shapes are in elements; CLBlast's own parameter names are kept in lower case.
CONFIG_COLUMNS: tuple[str, ...] = (
    "tile_m", "tile_n", "tile_k", "warps_m", "warps_n", "warps_k", "inst_m", "inst_n", "inst_k",
    "stages", "split_k", "cluster_m", "cluster_n", "cluster_k", "swizzle", "stream_k", "tile",
    "mwg", "nwg", "kwg", "mdimc", "ndimc", "mdima", "ndimb", "kwi", "vwm", "vwn", "strm", "strn",
    "sa", "sb", "gemmk", "kreg",
)  # fmt: skip


def canonical(rows: int, /, **given: Any) -> Table:
    """Table of `rows` measurements: given columns (arrays or one value for all), defaults else.

    Columns outside the schema (configurations, notes of a source) are kept behind the others.
    """
    table: Table = {}
    for name, column in COLUMNS.items():
        table[name] = _filled(given.pop(name, column.default), column.kind, rows)
    for name, value in given.items():
        kind = "text" if isinstance(value, str) else "float"
        table[name] = _filled(value, kind, rows)
    length(table)
    return table


def _filled(value: Any, kind: str, rows: int) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    if kind == "text":
        return text(value or "", rows)
    if kind == "bool":
        return np.full(rows, bool(value))
    if isinstance(value, int) and kind == "int":
        return np.full(rows, value, dtype=np.int64)
    return np.full(rows, np.nan if value is None else value, dtype=np.float64)


def add_reason(table: Table, rows: np.ndarray, reason: str) -> None:
    """Append a reason to the given rows of `table`, in place, unless it stands there already."""
    if not rows.any():
        return
    old = table["reason"]
    merged = old.copy()
    merged[rows] = [
        reason if not before else before if reason in before else f"{before}; {reason}"
        for before in old[rows].tolist()
    ]
    table["reason"] = merged


def invalidate(table: Table, rows: np.ndarray, reason: str) -> None:
    """Mark rows of `table` as not valid, in place, and say why."""
    if rows.any():
        table["valid"] = table["valid"] & ~rows
        add_reason(table, rows, reason)


def validate(table: Table) -> Table:
    """Copy of a measurement table whose `valid` and `reason` columns tell which rows may be used.

    Checked: batch, and m, n, k of GEMM rows are whole numbers from 1 to 2^31 - 1 (other operations
    have sizes of their own, which their importers check), the time is a finite number above 0, its
    range is in order, the format is known, a usable power is above 0. No row is dropped or
    repaired; cells that are no number become NaN.
    """
    rows = length(table)
    out = canonical(rows, **table)
    if out["valid"].dtype != bool:  # 1/0/NaN or text from a file: missing means not said to be bad
        values, _ = numeric({"valid": _as_number(out["valid"])}, "valid")
        out["valid"] = ~(values == 0)
    shaped = map_text(out["op"], lambda op: op in ("gemm", "")).astype(bool)
    for name in ("m", "n", "k", "batch"):
        values, bad = numeric(out, name)
        bad &= shaped | (name == "batch")
        wrong = ~((values >= 1) & (values <= 2**31 - 1) & (values == np.floor(values)))
        out[name] = values.astype(np.int64) if np.isfinite(values).all() else values
        wrong &= shaped | (name == "batch")
        invalidate(out, wrong & ~bad, f"{name} is not a whole number from 1 to 2^31 - 1")
        invalidate(out, bad, f"{name} is not a number")
    time, bad = numeric(out, "time_s")
    out["time_s"] = time
    invalidate(out, bad, "time_s is not a number")
    # a row that failed says so itself; do not add that its time is missing
    missing = np.isnan(time) & ~bad
    invalidate(out, missing & out["valid"], "no time")
    out["valid"] = out["valid"] & ~missing
    invalidate(out, ~missing & ~((time > 0) & np.isfinite(time)) & ~bad, "time is not positive")
    low, _ = numeric(out, "time_low_s")
    high, _ = numeric(out, "time_high_s")
    # 1e-6: sources store single precision
    disorder = (low > time * (1 + 1e-6)) | (high < time * (1 - 1e-6))
    add_reason(out, disorder, "time lies outside its own range")
    known = map_text(out["dtype"], DTYPES.__contains__).astype(bool)
    invalidate(out, ~known, "unknown dtype")
    power, _ = numeric(out, "power_w")
    out["power_w"] = power
    out["power_valid"] = out["power_valid"].astype(bool) & (power > 0) & np.isfinite(power)
    return out


def _as_number(column: np.ndarray) -> np.ndarray:
    if not is_text(column):
        return column
    words = {"true": 1.0, "1": 1.0, "false": 0.0, "0": 0.0}
    return np.array([words.get(str(v).strip().lower(), np.nan) for v in column.tolist()])


def upgrade(table: Table, version: int) -> Table:
    """Bring a measurement table of an older schema to this one.

    Raises SpecError for a newer schema, which this version cannot read.
    """
    if version > SCHEMA_VERSION:
        raise SpecError(
            f"schema_version {version} is newer than {SCHEMA_VERSION}, the newest that this "
            "version of ridgecast reads; upgrade ridgecast"
        )
    if version < 1:
        raise SpecError(f"schema_version: got {version}, need an integer from 1")
    return table


def write_measurements(path: str | PathLike[str], table: Table) -> None:
    """Write measurements with their schema_version; `import_files` reads them back."""
    version = np.full(length(table), SCHEMA_VERSION, dtype=np.int64)
    write_table(path, {**table, "schema_version": version})
