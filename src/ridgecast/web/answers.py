"""From a question to bytes: the view, in the form that was asked for, kept for a while.

Owns the formats of an answer and the store of recent ones. Answers are pure functions of their
question, so that one may be kept; the store is bounded in number and in bytes.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import NoDataError
from ..report.page import static_page
from ..report.view import Rows, View, plain
from ..store import Table, write_table

__all__ = ["FORMATS", "Kept", "encode", "rendered", "table_bytes"]

FORMATS = {
    "json": "application/json", "csv": "text/csv; charset=utf-8",
    "parquet": "application/vnd.apache.parquet", "html": "text/html; charset=utf-8",
}  # fmt: skip


def encode(value: Any) -> bytes:
    """JSON as bytes."""
    return json.dumps(
        value, allow_nan=False, ensure_ascii=False, separators=(",", ":")
    ).encode()  # fmt: skip


def rendered(view: View, form: str, table: str) -> bytes:
    """Bytes of a view: whole as json or html, one of its tables as csv or parquet (or json).

    Raises SpecError for a table that the view does not have.
    """
    if form == "html":
        return static_page([view]).encode()
    if form == "json":
        return encode(view.to_dict() if not table else view.table(table).to_dict()["rows"])
    rows = (view.table(table) if table else _first(view)).to_dict()["rows"]
    return _file(_columns(rows), form)


def table_bytes(table: Table, form: str) -> bytes:
    """Bytes of a table of columns [rows]: rows as json, or a csv or parquet file."""
    if form != "json":
        return _file(table, form)
    columns = {name: plain(column) for name, column in table.items()}
    rows = len(next(iter(columns.values()), ()))
    return encode([{name: column[i] for name, column in columns.items()} for i in range(rows)])


def _first(view: View) -> Rows:
    for found in view.tables.values():
        return found
    raise NoDataError(f"table: {view.title} has none; ask for format=json")


def _file(table: Table, form: str) -> bytes:
    """Write a table as the command line would, through a file of our own naming."""
    handle, name = tempfile.mkstemp(suffix=f".{form}", prefix="ridgecast-")
    os.close(handle)
    path = Path(name)
    try:
        write_table(path, table)
        return path.read_bytes()
    finally:
        path.unlink(missing_ok=True)


def _columns(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Columns of rows: numbers as they are, all else as text; missing is null."""
    out: Table = {}
    for key in dict.fromkeys(k for row in rows for k in row):
        cells = [row.get(key) for row in rows]
        known = [c for c in cells if c is not None]
        if known and all(isinstance(c, int | float) and not isinstance(c, bool) for c in known):
            whole = len(known) == len(cells) and all(isinstance(c, int) for c in known)
            exact = whole and all(abs(c) < 2**53 for c in known)
            out[key] = np.array(cells if exact else [_float(c) for c in cells])
        else:
            out[key] = np.array([_word(c) for c in cells], dtype=object)
    return out


def _float(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _word(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class Kept:
    """Recent answers by question, the oldest leaving first: at most `most` of them and `room` B."""

    def __init__(self, most: int = 256, room: int = 24 * 2**20) -> None:
        self.most, self.room = most, room
        self._found: OrderedDict[Any, bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Any, make: Callable[[], bytes]) -> bytes:
        """Return the answer of a question, made if it is not there."""
        with self._lock:
            found = self._found.get(key)
            if found is not None:
                self._found.move_to_end(key)
                return found
        made = make()
        if len(made) * 4 <= self.room:
            with self._lock:
                if key not in self._found:
                    self._bytes += len(made)
                self._found[key] = made
                while len(self._found) > self.most or self._bytes > self.room:
                    self._bytes -= len(self._found.popitem(last=False)[1])
        return made
