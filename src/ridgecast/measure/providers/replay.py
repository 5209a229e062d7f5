"""Recorded rows answered again: sweeps, studies and tests of GPU runs without the GPU.

Owns the look-up of a point in a recording. Rows come back as they were recorded, their numbers
unchanged, under the provider name "replay": nothing here is a new measurement.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import MeasurementError, NoDataError, SpecError
from ...store import CONFIG_COLUMNS, Table, length, read_table
from ..base import F64, DeviceInfo, Point, Probe

__all__ = ["Replay"]

_IDENTITY = {"kernel": "library", "m": None, "n": None, "k": None, "dtype": None, "batch": 1,
             "layout": "nn", "cache": "hot", "pattern": "normal", "energy": False,
             "repeat": 0}  # fmt: skip
# of the run that replays, not of the recording
_OWN = ("point", "provider", "op", "collection", "environment", "schema_version", "attempt", "utc",
        "seed", "device", "hardware")  # fmt: skip


class Replay:
    """Provider of recorded rows: a folder of shards, a table file, or a table in memory.

    `pace` is how many seconds pass for one recorded second of `elapsed_s` (0: none), so that
    schedules can be tried out. The device is the recorded one; a recording of several devices
    needs `device`, the name of one.
    """

    name = "replay"
    libraries: tuple[str, ...] = ()

    def __init__(
        self, recording: str | Path | Table = "", *, device: str = "", pace: float = 0.0
    ) -> None:
        self._recording, self._wanted, self._pace = recording, device, pace
        self._rows: dict[str, dict[str, Any]] | None = None
        self._info = DeviceInfo("", "cpu")

    def probe(self) -> Probe:
        """Whether the recording can be read."""
        try:
            self._load()
        except (NoDataError, SpecError) as error:
            return Probe(False, str(error), "Give a recording: --replay FOLDER or FILE.")
        return Probe(True, device=self._info)

    def _load(self) -> dict[str, dict[str, Any]]:
        if self._rows is None:
            table = self._table()
            table = self._of_one_device(table)
            self._rows = {}
            for i in range(length(table)):
                row = {name: _plain(column[i]) for name, column in table.items()}
                self._rows[_point(row).key] = {k: v for k, v in row.items() if v is not None}
        return self._rows

    def _table(self) -> Table:
        if isinstance(self._recording, dict):
            return self._recording
        if not str(self._recording):
            raise SpecError("replay: no recording is given")
        path = Path(self._recording)
        if path.is_dir():
            from ..shards import read_shards

            return read_shards(path)
        return read_table(path)

    def _of_one_device(self, table: Table) -> Table:
        names = table.get("device", table.get("hardware"))
        if names is None or not length(table):
            raise SpecError("replay: the recording names no device (columns device or hardware)")
        found = list(dict.fromkeys(str(name) for name in names.tolist()))
        wanted = self._wanted or found[0]
        if wanted not in found or (len(found) > 1 and not self._wanted):
            raise SpecError(f"replay: name one device of the recording: {', '.join(found)}")
        rows = np.flatnonzero(names == wanted)
        hardware = str(table["hardware"][rows[0]]) if "hardware" in table else ""
        kind = "cpu" if hardware and not _in_catalogue(hardware) else "gpu"
        known = hardware if kind == "gpu" else ""
        self._info = DeviceInfo(wanted, kind, known, facts={"recorded": len(rows)})
        return {name: column[rows] for name, column in table.items()}

    def refusal(self, point: Point) -> str:
        """Refuse what was not recorded, and what was refused when it was."""
        row = self._load().get(point.key)
        if row is None:
            return "not in the recording"
        return str(row.get("reason", "refused")) if row.get("status") == "refused" else ""

    def points(self) -> list[Point]:
        """Every point of the recording that has a time, in its order."""
        return [_point(row) for row in self._load().values() if row.get("time_s", 0.0) > 0]

    def recorded(self, point: Point) -> dict[str, Any]:
        """Columns of the recorded row, its origin in recorded_provider and recorded_collection."""
        row = self._load()[point.key]
        time.sleep(self._pace * float(row.get("elapsed_s", 0.0)))
        kept = {name: value for name, value in row.items() if name not in _OWN}
        for name in ("provider", "collection"):
            if row.get(name):
                kept[f"recorded_{name}"] = row[name]
        kept.setdefault("licence", "of the recording")
        kept.setdefault("status", "ok" if kept.get("time_s", 0.0) > 0 else "failed")
        kept.setdefault("valid", kept["status"] == "ok")
        return kept

    def prepare(self, point: Point, rng: np.random.Generator) -> _Recorded:
        """Work whose samples have the recorded quantiles. Raises what the point raised then."""
        del rng
        row = self._load().get(point.key)
        if row is None or row.get("status", "ok") != "ok":
            raise MeasurementError(str((row or {}).get("reason", "not in the recording")))
        return _Recorded(row)


class _Recorded:
    """Work of a recorded row: nothing runs."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self.tolerance = float(row.get("tolerance", 1.0))
        self.facts: Mapping[str, float | int | str] = {"launch": str(row.get("launch", "unknown"))}
        self._error = float(row.get("error_frobenius", 0.0))
        middle = float(row["time_s"])
        names = ("time_low_s", "time_p10_s", "time_s", "time_p90_s", "time_high_s")
        self._quantiles = [float(row.get(name, middle)) for name in names]

    def verify(self) -> float:
        """Error that was recorded."""
        return self._error

    def sample(self, count: int) -> F64:
        """Return durations spread over the recorded quantiles; their median is the recorded one."""
        shares = (np.arange(count) + 0.5) / count
        shares[np.abs(shares - 0.5) <= 0.5001 / count] = 0.5
        return np.interp(shares, (0.0, 0.1, 0.5, 0.9, 1.0), self._quantiles)

    def enqueue(self, count: int) -> None:
        """Do nothing."""

    def synchronize(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def _in_catalogue(name: str) -> bool:
    from ...hardware import names

    return name in names()


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and np.isnan(value) else value


def _point(row: Mapping[str, Any]) -> Point:
    """Point of a recorded row. Raises SpecError when it names no m, n, k or dtype."""
    fixed: dict[str, Any] = {}
    for name, default in _IDENTITY.items():
        value = row.get(name, default)
        value = default if value is None or value in ("", "unknown") else value
        if value is None:
            raise SpecError(f"replay: the recording has a row without {name}")
        fixed[name] = int(value) if isinstance(value, float) else value
    fixed["energy"] = bool(fixed["energy"])
    config = {n: int(row[n]) for n in CONFIG_COLUMNS if row.get(n) is not None}
    return Point(**fixed, config=config)
