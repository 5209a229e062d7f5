"""Table files through pyarrow, for machines that have it and lack DuckDB.

Owns the same formats and the same rules as `tables`: a missing number is NaN, a missing text "".
Loads pyarrow inside the functions. Rows of unequal length in a CSV are refused here; DuckDB pads
them.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import SpecError

__all__ = ["read", "write"]


def read(local: str, shown: str, kind: str) -> dict[str, np.ndarray]:
    """Columns of a local file; `kind` is "Parquet", "CSV" or "JSON lines".

    Raises SpecError when the file cannot be read as that.
    """
    pa: Any = import_module("pyarrow")

    try:
        found = _load(local, shown, kind)
    except (pa.ArrowException, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise SpecError(f"{shown}: cannot be read as {kind}: {first}") from error
    columns = (column.combine_chunks() for column in found.columns)
    return dict(zip(found.column_names, map(_numpy, columns), strict=True))


def _load(local: str, shown: str, kind: str) -> Any:
    pa: Any = import_module("pyarrow")

    if kind == "Parquet":
        return import_module("pyarrow.parquet").ParquetFile(local).read()
    packed = "gzip" if shown.lower().endswith(".gz") else None
    with pa.input_stream(local, compression=packed) as stream:
        content = stream.read()
    # one block: a kind of column that is guessed from the first block alone would stop at a bad
    # cell further down
    block = max(len(content) + 1, 1024)
    if kind == "CSV":
        csv: Any = import_module("pyarrow.csv")
        tabs = ".tsv" in Path(shown).name.lower()
        return csv.read_csv(
            pa.BufferReader(content),
            read_options=csv.ReadOptions(block_size=block),
            parse_options=csv.ParseOptions(
                delimiter="\t" if tabs else ",", newlines_in_values=True
            ),
            convert_options=csv.ConvertOptions(null_values=["", "NULL"]),
        )
    json: Any = import_module("pyarrow.json")
    return json.read_json(pa.BufferReader(content), read_options=json.ReadOptions(block_size=block))


def _numpy(column: Any) -> np.ndarray:
    """Plain array of an Arrow column: int64, float64, bool or object."""
    pa: Any = import_module("pyarrow")

    kind, rows = column.type, len(column)
    if pa.types.is_null(kind):
        return np.full(rows, np.nan)
    if pa.types.is_temporal(kind):
        column, kind = column.cast(pa.string()), pa.string()
    if pa.types.is_boolean(kind) and not column.null_count:
        return np.asarray(column.to_numpy(zero_copy_only=False), dtype=bool)
    if pa.types.is_integer(kind) and not column.null_count:
        return column.to_numpy(zero_copy_only=False).astype(np.int64)
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        values = [np.nan if value is None else float(value) for value in column.to_pylist()]
        return np.array(values, dtype=np.float64)
    out = np.empty(rows, dtype=object)
    out[:] = ["" if value is None else value for value in column.to_pylist()]
    return out


def write(table: dict[str, np.ndarray], target: Path, *, parquet: bool, packed: bool) -> None:
    """Write columns without mixed objects to a local Parquet or CSV file; NaN becomes null."""
    pa: Any = import_module("pyarrow")

    arrays = [
        pa.array(column, mask=np.isnan(column), from_pandas=False)
        if column.dtype.kind == "f"
        else pa.array(column, type=pa.string() if column.dtype == object else None)
        for column in table.values()
    ]
    names = [name or f"column_{i}" for i, name in enumerate(table)]
    whole = pa.Table.from_arrays(arrays, names=names)
    if parquet:
        import_module("pyarrow.parquet").write_table(whole, str(target), compression="zstd")
        return
    csv: Any = import_module("pyarrow.csv")
    with pa.output_stream(str(target), compression="gzip" if packed else None) as stream:
        csv.write_csv(whole, stream)
