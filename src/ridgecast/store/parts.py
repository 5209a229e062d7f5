"""A folder or fsspec URL of tables that are each complete or absent, by name.

A part is written to a temporary name, then renamed; writing one again replaces it by the same.
Two writers of the same parts do no harm. Owns names and files; knows nothing of what parts hold.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import NoDataError, SpecError
from .places import fsspec_module
from .tables import Table, is_text, read_many, read_table, write_table

__all__ = ["Parts", "settled"]


class Parts:
    """Parts of one place, a folder (created when absent) or an fsspec URL.

    Raises MissingExtraError for a URL without fsspec or its driver.
    """

    def __init__(self, place: str | os.PathLike[str]) -> None:
        shown = os.fspath(place)
        self.place = shown.rstrip("/") or shown
        self._files: Any = None
        if "://" in shown and not shown.startswith("file://"):
            self._files, self._root = fsspec_module().core.url_to_fs(self.place)
            self._files.makedirs(self._root, exist_ok=True)
            return
        self._folder = Path(shown.removeprefix("file://"))
        if self._folder.exists() and not self._folder.is_dir():
            raise SpecError(f"{shown}: is a file, need a folder")
        self._folder.mkdir(parents=True, exist_ok=True)

    def names(self) -> set[str]:
        """Names of the parts that are there."""
        if self._files is None:
            found = [path.name for path in self._folder.glob("*.parquet")]
        else:
            self._files.invalidate_cache()
            found = [path.rsplit("/", 1)[-1] for path in self._files.ls(self._root, detail=False)]
        return {n.removesuffix(".parquet") for n in found if n[0] != "." and n.endswith(".parquet")}

    def read(self, names: Iterable[str]) -> dict[str, Table]:
        """Those of the named parts that can be read; one that a disk spoilt counts as absent."""
        wanted = [name for name in names if name]
        if self._files is None:
            with contextlib.suppress(SpecError, NoDataError):  # all at once is much faster
                paths = [self._folder / f"{name}.parquet" for name in wanted]
                return dict(zip(wanted, read_many(paths), strict=True))
        found: dict[str, Table] = {}
        for name in wanted:
            with contextlib.suppress(SpecError, NoDataError):
                found[name] = read_table(f"{self.place}/{name}.parquet")
        return found

    def write(self, name: str, table: Table) -> None:
        """Write a part; on return it is there under its name, whole."""
        if self._files is None:
            return write_table(self._folder / f"{name}.parquet", table, durable=True)
        temporary = f".{name}.{uuid.uuid4().hex}.tmp.parquet"
        write_table(f"{self.place}/{temporary}", table)
        self._files.mv(f"{self._root}/{temporary}", f"{self._root}/{name}.parquet")
        return None

    def note(self, name: str, document: Any) -> None:
        """Write a JSON document beside the parts, for people."""
        text = json.dumps(document, indent=1, allow_nan=False, default=str)
        if self._files is not None:
            self._files.pipe(f"{self._root}/{name}", text.encode())
            return
        temporary = self._folder / f".{name}.{os.getpid()}.tmp"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, self._folder / name)


def settled(table: Table) -> Table:
    """Columns as they come back from a file: int64, float64, bool, or objects that are text.

    >>> settled({"n": np.array([1, None], dtype=object)})["n"].tolist()
    [1.0, nan]
    """
    return {name: _settled(np.asarray(column)) for name, column in table.items()}


def _settled(column: np.ndarray) -> np.ndarray:
    kind = column.dtype.kind
    if kind in "iufb":
        return column.astype({"f": np.float64, "b": np.bool_}.get(kind, np.int64), copy=False)
    cells = column.tolist()
    kinds = set(map(type, cells)) - {type(None)}
    if not is_text(column) or (kinds and not kinds <= {int, float, bool}):
        out = np.empty(len(cells), dtype=object)
        out[:] = ["" if cell is None else str(cell) for cell in cells]
        return out
    if not kinds:  # nothing but missing cells
        return np.full(len(cells), "", dtype=object)
    return np.array([np.nan if cell is None else float(cell) for cell in cells], dtype=np.float64)
