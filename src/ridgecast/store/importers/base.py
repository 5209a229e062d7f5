"""What an importer is, and the helpers that they share.

Owns the `Importer` value and the mapping of a source's device text to our names. Knows no format.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from ...dtypes import dtype as _dtype
from ...errors import SpecError
from ..tables import Table, map_text

__all__ = ["Importer", "Request", "device_name", "devices", "dtypes"]


@dataclass(frozen=True, slots=True)
class Request:
    """One file to import: its path, the name to record, and what the caller knows about it.

    `column_map` is for the plain importer: our column -> their column, with a unit.
    `defaults` are values for canonical columns that a source does not hold (hardware ...).
    """

    path: Path
    column_map: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, object] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name that rows record as source_file: the last three parts of the path."""
        return "/".join(self.path.parts[-3:]).lstrip("/")


@dataclass(frozen=True, slots=True)
class Importer:
    """One kind of source.

    `needs` are the columns (or JSON keys) that a file must have to be recognised; `convert` turns
    the columns into canonical rows. `read` replaces reading a table, for sources that are none.
    """

    name: str
    what: str
    needs: tuple[str, ...]
    convert: Callable[[Table, Request], Table]
    read: Callable[[Path], Table] | None = None
    suffixes: tuple[str, ...] = (".parquet", ".csv", ".csv.gz", ".jsonl")


_FALLBACK = {
    "NVIDIA H200": "h200_sxm", "NVIDIA H100 80GB HBM3": "h100_sxm", "NVIDIA B200": "b200_sxm",
    "NVIDIA A100-SXM4-80GB": "a100_sxm", "NVIDIA GB200": "gb200", "NVIDIA GB300": "gb300",
    "NVIDIA B300 SXM6 AC": "b300_sxm", "NVIDIA L40S": "l40s",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition": "rtx_pro_6000",
    "Intel(R) Arc(TM) Pro B60 Graphics": "arc_b60",
    "NVIDIA GeForce RTX 4070": "rtx_4070", "NVIDIA GeForce RTX 2080 Ti": "rtx_2080_ti",
    "NVIDIA GeForce RTX 3090": "rtx_3090", "NVIDIA TITAN RTX": "titan_rtx",
    "NVIDIA RTX A6000": "rtx_a6000",
}  # fmt: skip
_FORM_WORDS = re.compile(r"[^a-z0-9]+")


@cache
def device_name(text: str) -> tuple[str, str]:
    """Our name for a device as a source spells it, and a note when the catalogue lacks it.

    >>> device_name("NVIDIA H200")
    ('h200_sxm', '')
    """
    try:
        from ...hardware import get

        return get(text).name, ""
    except (ImportError, OSError, SpecError):
        if text in _FALLBACK:
            return _FALLBACK[text], ""
        slug = _FORM_WORDS.sub("_", text.lower().replace("(r)", "").replace("(tm)", "")).strip("_")
        slug = slug.removeprefix("nvidia_").removeprefix("amd_").removeprefix("geforce_")
        return slug, f"device {text!r} is not in the catalogue"


def devices(column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Our names for a column of device texts, and the notes ("" where the catalogue has it)."""
    return (
        map_text(column, lambda t: device_name(t)[0]),
        map_text(column, lambda t: device_name(t)[1]),
    )


def dtypes(column: np.ndarray, extra: Mapping[str, str] | None = None) -> np.ndarray:
    """Our format names for a column of format texts; unknown ones stay as they are."""

    def one(name: str) -> str:
        key = name.strip().lower()
        try:
            return _dtype((extra or {}).get(key, key)).name
        except SpecError:
            return name

    return map_text(column, one)
