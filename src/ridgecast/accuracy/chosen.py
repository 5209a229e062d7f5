"""Some rows of the accuracy table: by what is predicted, device, format, operation and split.

Owns what these names mean and which a table has. Scores nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from ..errors import SpecError, unknown_name
from ..hardware import get

__all__ = ["FILTERS", "choose", "names_of", "own_name"]

FILTERS = ("target", "hardware", "dtype", "op", "split")
"""Columns of the table that rows are chosen by."""

Row = Mapping[str, Any]
R = TypeVar("R", bound=Row)


def choose(rows: Sequence[R], wanted: Mapping[str, str | Sequence[str]]) -> list[R]:
    """Rows that have one of the wanted values in each column of `wanted`; empty values take all.

    Library GEMMs and configurations count as op `gemm`; `attention` takes all its kinds
    (`attention, latent` one of them). Other spellings of a device are understood.
    Raises SpecError with the nearest names for one that no score has.
    """
    chosen = list(rows)
    for name, values in wanted.items():
        if name not in FILTERS:
            raise SpecError(unknown_name("column to choose by", name, FILTERS))
        asked = [values] if isinstance(values, str) else values
        own = {own_name(rows, name, value) for value in asked if value}
        if own:
            chosen = [r for r in chosen if own & _said(r, name)]
    return chosen


def own_name(rows: Sequence[Row], name: str, value: str) -> str:
    """Value as the table spells it. Raises SpecError with the nearest names for an unknown one."""
    known = names_of(rows, name)
    own = get(value).name if name == "hardware" and value not in known else value
    if own not in known:
        raise SpecError(f"{name}: {unknown_name(f'scored {name}', value, known)}")
    return own


def names_of(rows: Iterable[Row], name: str) -> list[str]:
    """Values that a column of FILTERS has in the rows, in the order of the rows."""
    return list(dict.fromkeys(value for row in rows for value in sorted(_said(row, name))))


def _said(row: Row, name: str) -> set[str]:
    """Values that choose a row: of an operation with a kind, both without and with it."""
    value = str((row["op"] or "gemm") if name == "op" else row[name] or "")
    return {value, value.partition(", ")[0]} - {""} if name == "op" else {value} - {""}
