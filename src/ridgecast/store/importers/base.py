"""What an importer is, and the helpers that they share.

Owns the `Importer` value and the mapping of a source's device text to our names. Knows no format.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ...dtypes import dtype as _dtype
from ...errors import SpecError
from ..tables import Table, map_text, text

__all__ = ["Importer", "Request", "device_column", "device_name", "devices", "dtypes"]


@dataclass(frozen=True, slots=True)
class Request:
    """One file to import: its path, the name to record, and what the caller knows about it.

    `column_map` is for the plain importer: our column -> their column, with a unit.
    `defaults` are values for canonical columns that a source does not hold (hardware ...).
    """

    path: Path
    column_map: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name that rows record as source_file: the last three parts of the path."""
        return "/".join(self.path.parts[-3:]).lstrip("/")


@dataclass(frozen=True, slots=True)
class Importer:
    """One kind of source.

    `needs` are the columns (or JSON keys) that a file must have to be recognised; `convert` turns
    the columns into canonical rows. `read` replaces reading a table, for sources that are none;
    it is tried on files with one of `suffixes` that `looks_like` does not rule out.
    """

    name: str
    what: str
    needs: tuple[str, ...]
    convert: Callable[[Table, Request], Table]
    read: Callable[[Path], Table] | None = None
    suffixes: tuple[str, ...] = (".parquet", ".csv", ".csv.gz", ".jsonl")
    looks_like: Callable[[Path], bool] | None = None


_FORM_WORDS = re.compile(r"[^a-z0-9]+")


@cache
def device_name(spelling: str) -> tuple[str, str]:
    """Our name for a device as a source spells it, and a note when the catalogue lacks it.

    >>> device_name("NVIDIA H200")
    ('h200_sxm', '')
    """
    from ...hardware import get

    try:
        return get(spelling).name, ""
    except SpecError:
        slug = _FORM_WORDS.sub("_", spelling.lower().replace("(r)", "").replace("(tm)", "")).strip(
            "_"
        )
        slug = slug.removeprefix("nvidia_").removeprefix("amd_").removeprefix("geforce_")
        return slug, f"device {spelling!r} is not in the catalogue"


def devices(column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Our names for a column of device texts, and the notes ("" where the catalogue has it)."""
    return (
        map_text(column, lambda t: device_name(t)[0]),
        map_text(column, lambda t: device_name(t)[1]),
    )


def device_column(table: Table, request: Request, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """As `devices` for a source that may not name its device: the caller's default is used then."""
    for name in ("hardware", "device"):
        if name in table:
            return devices(table[name])
    given = str(request.defaults.get("hardware", ""))
    if not given:
        note = "the file names no device: give hardware as a default"
        return text("", rows), text(note, rows)
    name, note = device_name(given)
    return text(name, rows), text(note, rows)


def dtypes(column: np.ndarray, extra: Mapping[str, str] | None = None) -> np.ndarray:
    """Our format names for a column of format texts; unknown ones stay as they are."""

    def one(name: str) -> str:
        key = name.strip().lower()
        try:
            return _dtype((extra or {}).get(key, key)).name
        except SpecError:
            return name

    return map_text(column, one)
