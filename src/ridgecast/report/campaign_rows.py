"""Folders of measured rows: what they hold, and the same points predicted.

A campaign is what `ridgecast measure PLAN --out` or a script of `campaigns/` leaves: shards of rows
with their environment records, in one folder or one a provider, or tables collected from them.
Owns the reading; shows nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import NoDataError, RidgecastError
from ..hardware import Hardware, load
from ..measure.base import BANDWIDTH_KERNELS
from ..measure.providers import PROVIDERS
from ..measure.shards import finished_points, read_shards
from ..predict import predict_table
from ..store import CONFIG_COLUMNS, Table, concat, length, read_table, select

__all__ = ["Campaign", "column", "devices_of", "is_campaign", "predictions", "read_campaign",
           "records_of", "texts"]  # fmt: skip

F64 = npt.NDArray[np.float64]
_ASKED = ("op", "hardware", "dtype", "m", "n", "k", "batch", "layout", "kernel", "cache")


def is_campaign(folder: Path) -> bool:
    """Whether a folder holds measured rows with their environment records."""
    return bool(records_of(folder)) and bool(_sources(folder) or _collected(folder))


def _places(folder: Path) -> list[Path]:
    """Return a folder, and those of its children that a campaign's script names by provider."""
    if not folder.is_dir():
        return []
    inside = (p for p in sorted(folder.iterdir()) if p.is_dir() and p.name in PROVIDERS)
    return [folder, *inside]


def _sources(folder: Path) -> list[Path]:
    """Folders of shards: itself, or its children, one a provider."""
    held = [p for p in _places(folder) if any(p.glob("rows-*.parquet")) or _waits(p)]
    return held[:1] if held[:1] == [folder] else held


def _waits(folder: Path) -> bool:
    """Whether rows wait in a journal, as while a run goes on."""
    path = folder / "journal.log"
    return path.is_file() and path.stat().st_size > 0


def _collected(folder: Path) -> list[Path]:
    """Tables that a campaign was collected into; those of other origin have no environments."""
    return sorted(folder.glob("*.parquet")) if folder.is_dir() and records_of(folder) else []


def records_of(folder: Path) -> list[dict[str, Any]]:
    """Environment records of a folder or its children."""
    paths = [path for place in _places(folder) for path in sorted(place.glob("*.json"))
             if "environment-" in path.name]  # fmt: skip
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        try:
            record = json.loads(path.read_text("utf-8"))
        except ValueError:
            continue
        if isinstance(record, dict) and "device" in record.get("must_agree", ()):
            found.setdefault(str(record.get("environment", path.name)), record)
    return list(found.values())


def devices_of(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the devices that were measured."""
    return list(dict.fromkeys(str(r["must_agree"]["device"]["name"]) for r in records))


@dataclass(frozen=True, slots=True, eq=False)
class Campaign:
    """Rows of a campaign, the last attempt at each point, with predictions in the same order."""

    folder: Path
    table: Table
    predicted: Table
    records: Sequence[Mapping[str, Any]]
    asked: int
    skipped: tuple[str, ...]

    @property
    def status(self) -> list[str]:
        """Status of each row: ok, invalid (measured, but a rule was broken), failed, refused."""
        valid = self.table["valid"].astype(bool).tolist()
        told = map(str, self.table["status"].tolist())
        return [s if s != "ok" or v else "invalid" for s, v in zip(told, valid, strict=True)]

    @property
    def time(self) -> F64:
        """Measured times [s]; NaN of rows that are not ok."""
        ok = np.array([status == "ok" for status in self.status], bool)
        return np.where(ok, column(self.table, "time_s"), np.nan)

    @property
    def flops(self) -> F64:
        """Operations of one run; NaN of micro-benchmarks."""
        m, n, k = (column(self.table, name, 1.0) for name in "mnk")
        work = 2.0 * np.nan_to_num(column(self.table, "batch", 1.0), nan=1.0) * m * n * k
        return np.where(np.isin(texts(self.table, "kernel"), BANDWIDTH_KERNELS), np.nan, work)

    def prediction(self, name: str = "time_s") -> F64:
        """Return a column of the predictions; NaN of rows without one."""
        answered = np.array(texts(self.predicted, "status")) == "ok"
        return np.where(answered, column(self.predicted, name), np.nan)


def read_campaign(folder: Path) -> Campaign:
    """Read a campaign. Raises NoDataError where there is none."""
    sources = _sources(folder)
    asked = 0
    if sources:
        tables = [read_shards(place) for place in sources if finished_points(place)]
        asked = sum(_planned(place) for place in sources)
    else:
        tables = [t for p in _collected(folder) if {"point", "status"} <= set(t := read_table(p))]
    if not tables:
        raise NoDataError(
            f"{folder}: no measured rows; `ridgecast measure PLAN --out FOLDER` writes them"
        )
    table = _last(concat(tables))
    if "valid" not in table:
        table["valid"] = np.zeros(length(table), bool)
    return Campaign(folder, table, predictions(table, _own_devices(folder)), records_of(folder),
                     max(asked, length(table)), _skipped(folder))  # fmt: skip


def _planned(folder: Path) -> int:
    path = folder / "order.json"
    return len(json.loads(path.read_text("utf-8"))["points"]) if path.is_file() else 0


def _skipped(folder: Path) -> tuple[str, ...]:
    """Stages of a campaign that could not be measured at all."""
    path = folder / "skipped.json"
    found = json.loads(path.read_text("utf-8")) if path.is_file() else []
    return tuple(map(str, found)) if isinstance(found, list) else ()


def _last(table: Table) -> Table:
    """Keep the last attempt at each point of each collection."""
    attempts = column(table, "attempt", 1.0)
    keys = zip(texts(table, "collection"), texts(table, "point"), strict=True)
    kept: dict[tuple[str, str], int] = {}
    for i, key in enumerate(keys):
        if key not in kept or attempts[i] >= attempts[kept[key]]:
            kept[key] = i
    return select(table, np.array(list(kept.values()), np.int64))


def texts(table: Table, name: str) -> list[str]:
    """Return a column as text; "" where the table has none."""
    if name not in table:
        return [""] * length(table)
    return [str(value) for value in table[name].tolist()]


def column(table: Table, name: str, default: float = float("nan")) -> F64:
    """Return a column of numbers; the default where the table has none."""
    if name not in table:
        return np.full(length(table), default)
    return np.asarray(table[name], np.float64)


def predictions(table: Table, devices: Mapping[str, Hardware] | None = None) -> Table:
    """Predict the same points; a row of a device or kernel that is not known is left empty.

    `devices` are some of one's own, by name.
    """
    names = [n for n in (*_ASKED, *CONFIG_COLUMNS) if n in table]
    try:
        return predict_table({n: table[n] for n in names}, hardware=devices)
    except RidgecastError as error:
        rows = length(table)
        return {"time_s": np.full(rows, np.nan), "bound_s": np.full(rows, np.nan),
                "status": np.full(rows, "no_answer", object),
                "reason": np.full(rows, str(error), object)}  # fmt: skip


def _own_devices(folder: Path) -> dict[str, Hardware]:
    """Devices that calibration wrote beside the rows."""
    found: dict[str, Hardware] = {}
    for place in _places(folder):
        path = place / "device.toml"
        if path.is_file():
            try:
                device = load(path)
            except RidgecastError:
                continue
            found[device.name] = device
    return found
