"""Measurements: tables and files, the canonical schema, importers, honest splits.

Imports numpy only; DuckDB is loaded by the functions that read or write files.
"""

from __future__ import annotations

from .importers import IMPORTERS, FileResult, ImportReport, import_files, import_report
from .schema import COLUMNS, CONFIG_COLUMNS, SCHEMA_VERSION, canonical, validate, write_measurements
from .splits import SPLITS, Split, chip_family, make_split
from .tables import (
    Table,
    concat,
    factorize,
    length,
    map_text,
    numeric,
    read_table,
    require_columns,
    select,
    write_table,
)

__all__ = [
    "COLUMNS",
    "CONFIG_COLUMNS",
    "IMPORTERS",
    "SCHEMA_VERSION",
    "SPLITS",
    "FileResult",
    "ImportReport",
    "Split",
    "Table",
    "canonical",
    "chip_family",
    "concat",
    "factorize",
    "import_files",
    "import_report",
    "length",
    "make_split",
    "map_text",
    "numeric",
    "read_table",
    "require_columns",
    "select",
    "validate",
    "write_measurements",
    "write_table",
]
