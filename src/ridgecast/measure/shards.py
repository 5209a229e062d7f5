"""A folder of result rows that survives a kill at any moment: shards, a journal, a lock.

    rows-000001.parquet ...   append-only shards, each complete or absent
    journal.log               rows since the last shard, one JSON line each, on the disk at once
    order.json                keys of the plan's points, for reading rows back in plan order
    writer.lock               held by the one process that writes

A row is in the journal before `append` returns; a full batch becomes a shard, then the journal is
emptied. Killed between the two, a row is in both and counts once: rows have an identity, (point,
attempt). Owns the folder's files and nothing of what the rows mean.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import MeasurementError, NoDataError
from ..store import COLUMNS, CONFIG_COLUMNS, Table, concat, length, read_table, select, write_table
from ..store.places import sync
from ..store.tables import read_many
from .base import Point

__all__ = ["ShardWriter", "finished_points", "plain_row", "read_rows", "read_shards", "table_of",
           "write_json"]  # fmt: skip

Row = dict[str, Any]
_SHARD = re.compile(r"rows-(\d{6,})\.parquet$")
_JOURNAL, _ORDER, _LOCK = "journal.log", "order.json", "writer.lock"
_FLAGS = ("energy", *(name for name, column in COLUMNS.items() if column.kind == "bool"))


def plain_row(row: Mapping[str, Any]) -> Row:
    """Row of plain values as files keep them: text, bool for the schema's flags, numbers, None.

    A number that is not finite becomes None (null); other true and false become 1 and 0, since
    rows that lack them must be told apart from false.
    """
    found: Row = {}
    for name, given in row.items():
        value = given.item() if isinstance(given, np.generic) else given
        if isinstance(value, float) and not math.isfinite(value):
            value = None
        elif isinstance(value, bool) and name not in _FLAGS:
            value = int(value)
        elif not (value is None or isinstance(value, bool | int | float | str)):
            value = str(value)
        found[name] = value
    return found


def table_of(rows: Sequence[Row]) -> Table:
    """Columns of plain rows; a column without any value is left out, but for the time."""
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    kept = (n for n, c in columns.items() if n == "time_s" or any(v is not None for v in c))
    return {name: _column(columns[name]) for name in kept}


def _column(values: list[Any]) -> np.ndarray:
    kinds = {type(value) for value in values}
    if str in kinds:
        out = np.empty(len(values), dtype=object)
        out[:] = ["" if value is None else str(value) for value in values]
        return out
    if kinds == {bool}:
        return np.array(values, dtype=bool)
    if kinds == {int}:
        return np.array(values, dtype=np.int64)
    return np.array([np.nan if v is None else float(v) for v in values])


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document to a temporary name, wait for the disk, then rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------- reading


def _shards(folder: Path) -> list[Path]:
    found = [(int(m[1]), p) for p in folder.iterdir() if (m := _SHARD.fullmatch(p.name))]
    return [path for _, path in sorted(found)]


def _journal(path: Path) -> list[Row]:
    """Rows of a journal; a last line that a kill tore off is no row.

    Raises NoDataError for a broken line before the last, which no kill explains.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    rows: list[Row] = []
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is torn
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise NoDataError(
                f"{path}: line {number} is damaged, which a killed run does not do (a disk that "
                "lost data?); move the file away to go on without its rows, and measure them again"
            ) from None
    return rows


def _identity(row: Mapping[str, Any]) -> tuple[str, int]:
    return str(row["point"]), int(row["attempt"])


def _identities(table: Table) -> list[tuple[str, int]]:
    if not table:
        return []
    attempts = np.asarray(table["attempt"], np.int64).tolist()
    return list(zip(map(str, table["point"].tolist()), attempts, strict=True))


def read_rows(folder: str | os.PathLike[str]) -> Table:
    """Every row of a results folder, in the order of measuring; the journal's are included.

    All attempts at a point are kept. Columns come in the schema's order, then by name. A folder
    may be read while it is written. Raises NoDataError when the folder holds no row.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NoDataError(f"{folder}: no such folder; `ridgecast measure PLAN --out` writes one")
    waiting = _journal(folder / _JOURNAL)  # before the shards: a row may move there meanwhile
    table = concat(read_many(_shards(folder)))
    known = set(_identities(table))
    late = [row for row in waiting if _identity(row) not in known]
    table = concat([table, table_of(late)] if late else [table])
    if not length(table):
        raise NoDataError(f"{folder}: holds no row yet")
    first = ("point", "attempt", *COLUMNS, *CONFIG_COLUMNS)
    names = [n for n in first if n in table] + sorted(set(table) - set(first))
    return {name: table[name] for name in names}


def read_shards(folder: str | os.PathLike[str]) -> Table:
    """Results of a folder: one row per point, its last attempt, in plan order.

    Raises NoDataError when the folder holds no row.
    """
    table = read_rows(folder)
    last: dict[str, tuple[int, int]] = {}
    for i, (key, attempt) in enumerate(_identities(table)):
        if key not in last or attempt >= last[key][0]:
            last[key] = (attempt, i)
    order = {key: i for i, key in enumerate(_order(Path(folder)))}
    ranked = sorted(last, key=lambda key: (order.get(key, len(order)), last[key][1]))
    return select(table, np.array([last[key][1] for key in ranked], dtype=np.int64))


def _order(folder: Path) -> list[str]:
    path = folder / _ORDER
    return json.loads(path.read_text("utf-8"))["points"] if path.exists() else []


def finished_points(folder: str | os.PathLike[str]) -> dict[str, Row]:
    """Last row of each point of a folder, by key: attempt, status, elapsed_s, time_s.

    {} for a folder without rows.
    """
    try:
        table = read_shards(folder)
    except NoDataError:
        return {}
    names = [n for n in ("attempt", "status", "elapsed_s", "time_s") if n in table]
    values = zip(*(table[name].tolist() for name in names), strict=True)
    rows = (dict(zip(names, row, strict=True)) for row in values)
    return dict(zip(map(str, table["point"].tolist()), rows, strict=True))


# ------------------------------------------------------------------------------------- writing


class ShardWriter:
    """The one writer of a results folder; a context manager.

    Opening takes the lock and turns what a killed run left in the journal into a shard. A batch
    becomes a shard after `rows` rows or `seconds` seconds.
    Raises MeasurementError when another process writes there or the disk does not take it.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, rows: int = 20, seconds: float = 5.0
    ) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._rows, self._seconds = rows, seconds
        self._lock = _take_lock(self.folder / _LOCK)
        self._waiting: list[Row] = []
        try:
            for left in self.folder.glob(".*.tmp"):
                left.unlink(missing_ok=True)
            path = self.folder / _JOURNAL
            rows_left = _journal(path)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
            self._handle = os.open(path, flags, 0o644)
            self._recover(rows_left)
        except BaseException:
            os.close(self._lock)
            raise

    def _recover(self, rows: list[Row]) -> None:
        """Make a shard of the journal's rows that are in none."""
        shards = _shards(self.folder)
        # only the newest shard can hold rows of a journal that was not emptied
        known = set(_identities(read_table(shards[-1]))) if shards and rows else set()
        self._waiting = [row for row in rows if _identity(row) not in known]
        self._since = time.monotonic()
        if self._waiting:
            self.flush()
        elif os.fstat(self._handle).st_size:
            self._empty()

    def record_order(self, points: Iterable[Point]) -> None:
        """Remember the plan's order; points of earlier plans stay in front."""
        keys = list(dict.fromkeys([*_order(self.folder), *(point.key for point in points)]))
        try:
            write_json(self.folder / _ORDER, {"points": keys})
        except OSError as error:
            raise self._refused(_ORDER, error) from error

    def append(self, row: Mapping[str, Any]) -> None:
        """Keep a row: on return it is on the disk. Needs its `point` and `attempt`."""
        kept = plain_row(row)
        line = json.dumps(kept, allow_nan=False).encode() + b"\n"
        before = os.fstat(self._handle).st_size
        try:
            _write_all(self._handle, line)
            os.fsync(self._handle)
        except OSError as error:
            os.ftruncate(self._handle, before)  # no half line before the next run's
            raise self._refused(_JOURNAL, error) from error
        self._waiting.append(kept)
        if len(self._waiting) >= self._rows or time.monotonic() - self._since >= self._seconds:
            self.flush()

    def flush(self) -> None:
        """Turn the journal's rows into a shard."""
        if not self._waiting:
            return
        shards = _shards(self.folder)
        number = int(_SHARD.fullmatch(shards[-1].name)[1]) + 1 if shards else 1  # type: ignore[index]
        name = f"rows-{number:06d}.parquet"
        try:
            write_table(self.folder / name, table_of(self._waiting), durable=True)
        except Exception as error:  # the file library's own exceptions among them
            raise self._refused(name, error) from error
        self._waiting = []
        self._since = time.monotonic()
        self._empty()

    def _empty(self) -> None:
        os.ftruncate(self._handle, 0)
        os.fsync(self._handle)

    def _refused(self, name: str, error: Exception) -> MeasurementError:
        return MeasurementError(
            f"{self.folder / name} cannot be written ({error}). Nothing that was written is lost "
            f"({len(self._waiting)} rows wait in {_JOURNAL}); make room on the disk, then run the "
            "same command again to resume"
        )

    def close(self) -> None:
        """Write the last shard and give the lock back. May be called twice."""
        if self._lock < 0:
            return
        try:
            self.flush()
        finally:
            os.close(self._handle)
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except MeasurementError:
            if error is None:  # the first failure is the one to tell
                raise


def _write_all(handle: int, content: bytes) -> None:
    while content:
        content = content[os.write(handle, content) :]


def _take_lock(path: Path) -> int:
    """Open and lock a file for as long as this process lives; its text names the process.

    Raises MeasurementError when another process holds it.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(handle, 1 << 20, os.SEEK_SET)  # beyond the text, which others may read
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
            os.lseek(handle, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.read(handle, 100).decode(errors="replace").strip() or "another process"
        os.close(handle)
        raise MeasurementError(
            f"{path.parent}: {holder} is writing there; wait for it, or give another --out. Two "
            "measurements on one device would disturb each other"
        ) from None
    os.ftruncate(handle, 0)
    _write_all(handle, f"process {os.getpid()}\n".encode())
    return handle
