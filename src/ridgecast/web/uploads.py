"""Tables that a request sends to be predicted, row by row, as `predict --table` does.

A table is written to a file that we name, read back by the store's own reader, and bounded in rows
and columns before anything is predicted.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np

from ..errors import RidgecastError, SpecError
from ..store import Table, length, read_table

__all__ = ["MOST_COLUMNS", "MOST_ROWS", "predicted", "read_upload"]

MOST_ROWS = 20_000
MOST_COLUMNS = 100
_SUFFIXES = {"text/csv": ".csv", "application/json": ".jsonl", "application/x-ndjson": ".jsonl",
             "application/jsonl": ".jsonl", "application/vnd.apache.parquet": ".parquet",
             "application/octet-stream": ".parquet"}  # fmt: skip


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
    if kind.endswith("json") and body.lstrip()[:1] == b"[":
        body = _lines(body)
    handle, name = tempfile.mkstemp(suffix=_SUFFIXES[kind], prefix="ridgecast-")
    path = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(body)
        table = read_table(path)
    except RidgecastError as error:
        raise SpecError(f"body: {str(error).replace(str(path), 'the table')}") from None
    finally:
        path.unlink(missing_ok=True)
    if len(table) > MOST_COLUMNS or length(table) > MOST_ROWS:
        raise SpecError(
            f"body: got {length(table)} rows of {len(table)} columns, at most {MOST_ROWS} of "
            f"{MOST_COLUMNS}; split it, or use `ridgecast predict --table FILE`"
        )
    if not table or not length(table):
        raise SpecError("body: holds no row; send at least one")
    return table


def _lines(body: bytes) -> bytes:
    """JSON lines of a JSON list."""
    import json

    try:
        rows = json.loads(body)
    except ValueError as error:
        raise SpecError(f"body: not valid JSON: {error}; send a list of rows") from None
    return b"\n".join(json.dumps(row).encode() for row in rows)


def predicted(table: Table, *, level: float = 0.9, model: Path | None = None) -> Table:
    """Predict every row; one whose device is not in the catalogue says so.

    Raises SpecError for missing columns.
    """
    from ..predict import predict_table

    if "hardware" not in table:
        raise SpecError("hardware: the table has no such column; `ridgecast hardware` lists names")
    names = [str(v) for v in np.asarray(table["hardware"], dtype=object)]
    # only names: what ends like a device file would be opened
    safe = np.array([n.replace(".toml", " toml") for n in names], dtype=object)
    done = predict_table({**table, "hardware": safe}, level=level, model=model)
    return {**done, "hardware": np.array(names, dtype=object)}
