"""Tables in memory and in files: equal-length numpy columns, Parquet, CSV and JSON lines.

Owns reading, writing, concatenating and selecting. Knows nothing about what the columns mean.
DuckDB does the file formats, pyarrow where there is no DuckDB; both are imported inside the
functions.

A missing number is NaN, a missing text is "". Whole numbers stay int64 when none is missing and
become float64 when some are; a column of true and false with missing cells becomes float64 (1, 0,
NaN). Dates become ISO text.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MissingExtraError, NoDataError, SpecError, nearest
from .places import fsspec_module, local_copy, sync

__all__ = [
    "Table",
    "concat",
    "factorize",
    "is_text",
    "length",
    "map_text",
    "numeric",
    "read_many",
    "read_table",
    "require_columns",
    "select",
    "text",
    "write_table",
]

Table = dict[str, np.ndarray]

_CSV = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".txt")
_JSON = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
_PARQUET = (".parquet", ".pq")


def length(table: Table) -> int:
    """Rows of a table, after checking that all columns have as many.

    Raises SpecError naming the columns that differ.
    """
    odd = [name for name, column in table.items() if np.ndim(column) != 1]
    if odd:
        raise SpecError(f"table column {odd[0]!r}: got {np.ndim(table[odd[0]])} dimensions, need 1")
    sizes = {name: len(column) for name, column in table.items()}
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{name}: {size}" for name, size in list(sizes.items())[:8])
        raise SpecError(f"table columns differ in length ({shown}); all must have the same")
    return next(iter(sizes.values()), 0)


def select(table: Table, rows: np.ndarray) -> Table:
    """Rows of a table by a bool mask or by integer positions."""
    return {name: column[rows] for name, column in table.items()}


def is_text(column: np.ndarray) -> bool:
    """Whether a column holds text (or mixed objects) rather than numbers."""
    return column.dtype.kind in "OUST"


def factorize(column: np.ndarray) -> tuple[np.ndarray, list[Any]]:
    """Integer code per row, and the distinct values in order of first appearance.

    Missing cells (None, NaN, NaT, pandas' NA) are one value, None in object columns; cells that
    cannot be keys of a dict (lists, arrays) count by their text.

    >>> codes, values = factorize(np.array(["b", "a", "b"], dtype=object))
    >>> codes.tolist(), values
    ([0, 1, 0], ['b', 'a'])
    """
    cells = column.tolist()
    if cells and isinstance(cells[0], str) and cells.count(cells[0]) == len(cells):
        return np.zeros(len(cells), dtype=np.int64), [cells[0]]
    try:
        seen = {value: i for i, value in enumerate(dict.fromkeys(cells))}
    except TypeError:
        return factorize(np.array([_hashable(value) for value in cells], dtype=object))
    codes = np.fromiter(map(seen.__getitem__, cells), np.int64, len(cells))
    if all(_is_itself(value) for value in seen):
        return codes, list(seen)
    merged: dict[Any, int] = {}
    again = [merged.setdefault(v if _is_itself(v) else None, len(merged)) for v in seen]
    nothing = None if column.dtype == object else float("nan")
    return np.asarray(again, np.int64)[codes], [nothing if v is None else v for v in merged]


def _is_itself(value: Any) -> bool:
    """Whether a value equals itself: NaN, NaT and pandas' NA do not. None counts as missing too."""
    if value is None:
        return False
    same = value == value  # noqa: PLR0124 - what is missing is unequal to itself
    return same is True or same is np.True_


def _hashable(value: Any) -> Any:
    try:
        hash(value)
    except TypeError:
        return str(value)
    return value


def map_text(column: np.ndarray, function: Callable[[str], Any]) -> np.ndarray:
    """Apply a function to each distinct value of a text column; the result is an object column."""
    codes, values = factorize(column)
    mapped = np.empty(len(values), dtype=object)
    mapped[:] = [function("" if value is None else str(value)) for value in values]
    return mapped[codes] if len(values) else np.empty(0, dtype=object)


def text(value: str, rows: int) -> np.ndarray:
    """Object column that holds one text in every row."""
    return np.full(rows, value, dtype=object)


def require_columns(table: Table, columns: Iterable[str], *, what: str = "table") -> None:
    """Raise SpecError that names every missing column and the nearest present spellings."""
    missing = [name for name in columns if name not in table]
    if not missing:
        return
    hints = [
        f"{name!r} (nearest present: {', '.join(nearest(name, table)) or 'none'})"
        for name in missing
    ]
    plural = "s" if len(missing) > 1 else ""
    raise SpecError(f"{what}: missing column{plural} {'; '.join(hints)}")


def numeric(table: Table, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Column as float64, and a mask of the cells that hold something other than a number.

    Bad cells become NaN. A missing cell (null, "" or NaN) is NaN too but is not marked as bad.
    Raises SpecError when the column is absent.
    """
    require_columns(table, [column])
    values = table[column]
    if values.dtype.kind in "biuf":
        return values.astype(np.float64), np.zeros(len(values), dtype=bool)
    try:
        return values.astype(np.float64), np.zeros(len(values), dtype=bool)
    except (TypeError, ValueError, OverflowError):
        pass
    codes, distinct = factorize(values)
    numbers = np.full(len(distinct), np.nan)
    bad = np.zeros(len(distinct), dtype=bool)
    for i, value in enumerate(distinct):
        if value is None or value == "":
            continue
        try:
            numbers[i] = float(value)
        except (TypeError, ValueError, OverflowError):
            bad[i] = True
    return numbers[codes], bad[codes]


def concat(tables: Sequence[Table]) -> Table:
    """Stack tables; the result has the union of their columns, in order of first appearance.

    Where a table lacks a column, text becomes "", true/false becomes False, numbers become NaN.
    """
    tables = [t for t in tables if t]
    if not tables:
        return {}
    sizes = [length(t) for t in tables]
    names = list(dict.fromkeys(name for t in tables for name in t))
    return {name: _stack([t.get(name) for t in tables], sizes) for name in names}


def _stack(parts: list[np.ndarray | None], sizes: list[int]) -> np.ndarray:
    present = [p for p in parts if p is not None and len(p)]
    if not present:
        first = next(p for p in parts if p is not None)
        return np.full(sum(sizes), _missing(first.dtype), first.dtype) if sum(sizes) else first
    if any(is_text(p) for p in present):
        kind: Any = object
    elif all(p.dtype == bool for p in present):
        kind = bool
    else:
        absent = any(p is None and size for p, size in zip(parts, sizes, strict=True))
        whole = all(p.dtype.kind in "iu" for p in present)
        kind = np.int64 if whole and not absent else np.float64
    out = np.full(sum(sizes), _missing(np.dtype(kind)), dtype=kind)
    start = 0
    for part, size in zip(parts, sizes, strict=True):
        if part is not None:
            out[start : start + size] = part
        start += size
    return out


def _missing(kind: np.dtype) -> Any:
    return {"O": "", "U": "", "b": False, "f": np.nan}.get(kind.kind, 0)


# ------------------------------------------------------------------------------------- files


def read_table(path: str | os.PathLike[str]) -> Table:
    """Read Parquet, CSV or JSON lines (by suffix; .csv.gz too) from a path or an fsspec URL.

    A CSV column with some cells that are not numbers arrives as text; see `numeric`.
    Raises NoDataError when the file does not exist and SpecError when it cannot be read as what
    its suffix says.
    """
    with local_copy(path) as (local, shown):
        lower = shown.lower()
        if lower.endswith(_CSV):
            return _read_csv(local, shown)
        if lower.endswith(_JSON):
            query = "select * from read_json(?, format='newline_delimited', sample_size=-1)"
            return _fetch(query, local, shown, "JSON lines")
        if not lower.endswith(_PARQUET) and not _looks_like_parquet(local):
            allowed = ", ".join((*_PARQUET, *_CSV, *_JSON))
            raise SpecError(f"{shown}: unknown kind of table file; known suffixes: {allowed}")
        return _fetch("select * from read_parquet(?)", local, shown, "Parquet")


def _looks_like_parquet(local: str) -> bool:
    with open(local, "rb") as file:
        return file.read(4) == b"PAR1"


def _read_csv(local: str, shown: str) -> Table:
    # sample_size=-1: a bad cell far down makes the column text instead of stopping the file
    query = "select * from read_csv(?, sample_size=-1, header=true{})"
    try:
        return _fetch(query.format(""), local, shown, "CSV")
    except SpecError:  # ragged rows: pad the short ones rather than lose the file
        return _fetch(query.format(", null_padding=true, strict_mode=false"), local, shown, "CSV")


def _engine() -> str:
    """Library that reads and writes files here: duckdb, else pyarrow."""
    for name in ("duckdb", "pyarrow"):
        try:
            import_module(name)
        except ImportError:
            continue
        return name
    raise MissingExtraError("table files need duckdb, or pyarrow in its place: pip install duckdb")


def _fetch(query: str, local: str, shown: str, kind: str) -> Table:
    if _engine() == "pyarrow":
        from .arrow import read

        return read(local, shown, kind)
    import duckdb

    with duckdb.connect() as connection:
        return _query(connection, query, local, shown, kind)


def _query(connection: Any, query: str, local: str, shown: str, kind: str) -> Table:
    import duckdb

    try:
        columns = connection.execute(query, [local]).fetchnumpy()
    except duckdb.Error as error:
        first = str(error).strip().splitlines()[0]
        raise SpecError(f"{shown}: cannot be read as {kind}: {first}") from error
    return {name: _plain(column) for name, column in columns.items()}


def read_many(paths: Sequence[Path]) -> list[Table]:
    """Tables of many local Parquet files, each as `read_table` gives it, much faster."""
    if _engine() == "pyarrow" or not paths:
        return [read_table(path) for path in paths]
    import duckdb

    with duckdb.connect() as connection:  # opening one costs more than reading a small file
        query = "select * from read_parquet(?)"
        return [_query(connection, query, str(p), str(p), "Parquet") for p in paths]


def _plain(column: Any) -> np.ndarray:
    """Turn what DuckDB returns into plain arrays: int64, float64, bool or object."""
    mask = np.ma.getmaskarray(column) if isinstance(column, np.ma.MaskedArray) else None
    values = np.asarray(np.ma.getdata(column))
    missing = mask is not None and bool(mask.any())
    kind = values.dtype.kind
    if kind in "iu" and not missing:
        return values.astype(np.int64, copy=False)
    if kind in "iufb" and (missing or kind == "f"):
        out = values.astype(np.float64)
        if missing:
            out[mask] = np.nan
        return out
    if kind == "b":
        return values
    if kind in "Mm":
        out = np.datetime_as_string(values).astype(object) if kind == "M" else values.astype(object)
    else:
        out = values.astype(object, copy=missing)
    if missing:
        out[mask] = ""
    return out


def write_table(path: str | os.PathLike[str], table: Table, *, durable: bool = False) -> None:
    """Write a table as Parquet (zstd) or CSV by suffix, to a temporary name, then rename.

    NaN is written as null. `durable` waits until a local file and its name are on the disk, so
    that a power cut cannot take it back. Raises SpecError for another suffix or columns of
    different length.
    """
    shown = os.fspath(path)
    lower = shown.lower()
    if not lower.endswith((*_PARQUET, ".csv", ".csv.gz")):
        raise SpecError(f"{shown}: tables are written as .parquet, .csv or .csv.gz")
    if not table:
        raise SpecError(f"{shown}: a table without columns cannot be written")
    length(table)
    if "://" in shown and not shown.startswith("file://"):
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "table"
            _copy_out(table, local, lower)
            with fsspec_module().open(shown, "wb") as out:
                out.write(local.read_bytes())
        return
    target = Path(shown.removeprefix("file://"))
    if not target.parent.is_dir():
        raise NoDataError(f"{shown}: the folder {target.parent} does not exist; create it first")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        _copy_out(table, temporary, lower)
        if durable:
            sync(temporary)
        os.replace(temporary, target)
        if durable:
            sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _copy_out(table: Table, target: Path, lower: str) -> None:
    parquet, packed = lower.endswith(_PARQUET), lower.endswith(".gz")
    if _engine() == "pyarrow":
        from .arrow import write

        columns = {name: _writable(column) for name, column in table.items()}
        return write(columns, target, parquet=parquet, packed=packed)
    import duckdb

    options = "format parquet, compression zstd" if parquet else "format csv, header"
    options += ", compression gzip" if packed else ""
    source = {f"c{i}": _writable(column) for i, column in enumerate(table.values())}
    fields: list[str] = []
    for i, (name, key) in enumerate(zip(table, source, strict=True)):
        value = key
        if source[key].dtype.kind == "f":
            value = f"case when isnan({key}) then null else {key} end"
        quoted = name.replace('"', '""') or f"column_{i}"
        fields.append(f'{value} as "{quoted}"')
    quoted_path = str(target).replace("'", "''")
    with duckdb.connect() as connection:
        connection.register("source_table", source)
        query = f"select {', '.join(fields)} from source_table"
        connection.execute(f"copy ({query}) to '{quoted_path}' ({options})")
    return None


def _writable(column: np.ndarray) -> np.ndarray:
    """Column in a form that DuckDB scans without guessing: no fixed-width or mixed objects."""
    column = np.asarray(column)
    if column.dtype == np.float16:
        return column.astype(np.float32)
    if column.dtype.kind in "biufM":
        return np.ascontiguousarray(column)
    values = column.tolist()
    kinds = set(map(type, values))
    out = np.empty(len(values), dtype=object)
    if kinds <= {str}:
        out[:] = values
    elif kinds <= {int, float, bool, type(None)} and kinds - {type(None)}:
        return np.array([np.nan if v is None else v for v in values], dtype=np.float64)
    else:
        out[:] = ["" if v is None else str(v) for v in values]
    return out
