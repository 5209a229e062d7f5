"""Tables that a request sends to be predicted, row by row, as `predict --table` does.

A table is weighed before it is unpacked: a few kilobytes of Parquet can hold a billion rows. It is
then written to a file that we name and read back by the store's own reader.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RidgecastError, SpecError
from ..store import Table, length, read_table
from .guard import MOST_BODY

__all__ = ["MOST_COLUMNS", "MOST_ROWS", "predicted", "read_upload"]

MOST_ROWS = 20_000
MOST_COLUMNS = 100
_MOST_TEXT = 4 * MOST_BODY  # bytes of all texts, unpacked
_SUFFIXES = {"text/csv": ".csv", "application/json": ".jsonl", "application/x-ndjson": ".jsonl",
             "application/jsonl": ".jsonl", "application/vnd.apache.parquet": ".parquet",
             "application/octet-stream": ".parquet"}  # fmt: skip
_NESTED = ("STRUCT", "MAP", "UNION", "BLOB", "JSON", "VARIANT")


def read_upload(body: bytes, kind: str) -> Table:
    """Read a table that was sent as `kind` (a media type).

    Raises SpecError for a media type, a table or a size that is not accepted.
    """
    kind = kind.partition(";")[0].strip().lower()
    if body[:4] == b"PAR1":
        kind = "application/vnd.apache.parquet"
    if kind not in _SUFFIXES:
        raise SpecError(
            f"body: got {kind or 'no media type'!r}, need one of {', '.join(_SUFFIXES)}"
        )
    if not body.strip():
        raise SpecError(
            "body: is empty; send a table with the columns op, hardware, dtype, m, n, k"
        )
    suffix = _SUFFIXES[kind]
    if suffix == ".jsonl":
        body = _lines(body)
    elif suffix == ".csv":
        first, lines = body[: body.find(b"\n") % (len(body) + 1)], body.count(b"\n")
        _check(lines if lines > 2 * MOST_ROWS else 0, 1 + max(map(first.count, _MARKS)))
    table = _read(body, suffix)
    _check(length(table), len(table))
    if not table or not length(table):
        raise SpecError("body: holds no row; send at least one")
    return table


_MARKS = (b",", b";", b"\t", b"|")


def _check(rows: int, columns: int) -> None:
    if columns > MOST_COLUMNS or rows > MOST_ROWS:
        raise SpecError(
            f"body: got {rows} rows of {columns} columns, at most {MOST_ROWS} of {MOST_COLUMNS}; "
            "split it, or use `ridgecast predict --table FILE`"
        )


def _read(body: bytes, suffix: str) -> Table:
    handle, name = tempfile.mkstemp(suffix=suffix, prefix="ridgecast-")
    path = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(body)
        if suffix == ".parquet":
            _weigh(path)
        return read_table(path)
    except RidgecastError as error:
        told = str(error).replace(str(path), "the table").removeprefix("body: ")
        cure = "" if "; " in told else "; send UTF-8 CSV, JSON rows or Parquet of plain columns"
        raise SpecError(f"body: {told}{cure}") from None
    finally:
        path.unlink(missing_ok=True)


def _weigh(path: Path) -> None:
    """Refuse a Parquet file that would unpack to more than is accepted, without unpacking it."""
    import duckdb

    with duckdb.connect(config={"memory_limit": "256MB", "threads": 1}) as connection:
        try:
            ask = connection.execute
            found = ask("describe select * from read_parquet(?)", [str(path)]).fetchall()
            columns = {str(name): str(kind).upper() for name, kind, *_ in found}
            rows = ask("select count(*) from read_parquet(?)", [str(path)]).fetchall()[0][0]
            _check(rows, len(columns))
            for name, kind in columns.items():
                if "[" in kind or kind.startswith(_NESTED):
                    raise SpecError(f"body: column {name!r} is {kind}; send numbers and texts")
            sums = [f"coalesce(sum(strlen({_quoted(name)})), 0)"
                    for name, kind in columns.items() if kind == "VARCHAR"]  # fmt: skip
            query = f"select {' + '.join(sums) or '0'} from read_parquet(?)"
            if ask(query, [str(path)]).fetchall()[0][0] > _MOST_TEXT:
                raise SpecError(f"body: over {_MOST_TEXT} bytes of texts; send shorter ones")
        except duckdb.Error as error:
            first = str(error).strip().splitlines()[0]
            raise SpecError(f"{path}: cannot be read as Parquet: {first}") from None


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _lines(body: bytes) -> bytes:
    """JSON lines of a JSON list, or of JSON lines: rows of numbers and texts."""
    try:
        text = body.decode()
        if text.lstrip()[:1] == "[":
            rows = json.loads(text)
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError) as error:
        raise SpecError(f"body: not valid JSON: {error}; send a list of rows") from None
    if any(not isinstance(row, dict) for row in rows):
        raise SpecError('body: need rows such as {"op": "gemm", "m": 4096}; send a list of them')
    names = {name for row in rows for name in row}
    _check(len(rows), len(names))
    return b"\n".join(json.dumps({k: _cell(k, v) for k, v in row.items()}).encode() for row in rows)


def _cell(name: str, value: Any) -> Any:
    if isinstance(value, dict | list):
        raise SpecError(f"body: column {name!r} holds a list or an object; send numbers and texts")
    return None if isinstance(value, float) and not math.isfinite(value) else value


def predicted(table: Table, *, level: float = 0.9, model: Path | None = None) -> Table:
    """Predict every row; one whose device is not in the catalogue says so.

    Raises SpecError for missing columns.
    """
    from ..predict import predict_table

    if "hardware" not in table:
        raise SpecError(
            "hardware: the table has no such column; give one of names that `ridgecast hardware` "
            "lists"
        )
    names = [str(v) for v in np.asarray(table["hardware"], dtype=object)]
    # only names: what ends like a device file would be opened
    safe = np.array([n.replace(".toml", " toml") for n in names], dtype=object)
    try:
        done = predict_table({**table, "hardware": safe}, level=level, model=model)
    except SpecError as error:
        text = str(error).removeprefix("table: ")
        raise SpecError(f"body: {text}; give what is missing") from None
    return {**done, "hardware": np.array(names, dtype=object)}
